//! Content by digest.
//!
//! A blob is written into its lease's ingest directory and hashed on the way, then renamed to `blobs/<algorithm>/<hex>`
//! in the transaction that makes its row. So a reader never sees half of one, and a file without a row is a stray that
//! collection can recognise without asking who is at work: strays are looked for inside a transaction, and none is
//! being published meanwhile.

use std::ffi::{OsStr, OsString};
use std::fs::File;
use std::io::{self, Read, Write};
use std::os::unix::fs::MetadataExt;
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::time::SystemTime;

use rbuild_oci::{Algorithm, Digest, Sha256};
use rusqlite::{OptionalExtension, Transaction, params};
use sha2::Digest as _;

use crate::collect;
use crate::db::{Db, Durability, nanos};
use crate::error::{Context, Result, StoreError};
use crate::lease::{Lease, Target};
use crate::store::Core;

/// The blobs of a store.
#[derive(Clone)]
pub struct Blobs {
    core: Arc<Core>,
}

impl Blobs {
    pub(crate) fn new(core: &Arc<Core>) -> Blobs {
        Blobs { core: Arc::clone(core) }
    }

    /// Begins a blob that will be named by its sha256.
    pub fn writer(&self, lease: &Lease) -> Result<BlobWriter> {
        self.begin(lease, Algorithm::Sha256)
    }

    /// Begins a blob that is expected to have a digest of the same algorithm as `expected`.
    pub fn writer_for(&self, expected: &Digest, lease: &Lease) -> Result<BlobWriter> {
        self.begin(lease, expected.algorithm())
    }

    /// Begins a blob that will be named by its digest of this algorithm.
    pub fn writer_by(&self, algorithm: Algorithm, lease: &Lease) -> Result<BlobWriter> {
        self.begin(lease, algorithm)
    }

    /// Stores `bytes`, held by `lease`, and returns their sha256.
    pub fn put_bytes(&self, bytes: &[u8], lease: &Lease) -> Result<Digest> {
        let digest = Digest::sha256_of(bytes);
        if self.hold(&digest, lease)? {
            return Ok(digest);
        }
        let mut writer = self.writer(lease)?;
        writer.write_all(bytes).context(|| format!("writing blob {digest}"))?;
        Ok(writer.commit(Some(&digest), Some(bytes.len() as u64))?.0)
    }

    /// Keeps a blob while `lease` lives; false when it is not in the store or its file is not whole.
    pub fn hold(&self, digest: &Digest, lease: &Lease) -> Result<bool> {
        let target = Target::Blob(digest.clone());
        if !self.is_whole(digest)? {
            return Ok(false);
        }
        match lease.hold(&target) {
            Err(StoreError::NoBlob(_)) => Ok(false),
            held => held.map(|()| true),
        }
    }

    /// Whether the blob is in the store. It may go at any time unless somebody holds it.
    pub fn has(&self, digest: &Digest) -> Result<bool> {
        Ok(self.row(digest)?.is_some())
    }

    /// Its size in bytes.
    pub fn size(&self, digest: &Digest) -> Result<u64> {
        self.row(digest)?.ok_or_else(|| StoreError::NoBlob(digest.clone()))
    }

    /// The file of a blob, whose size is checked. Its content is not: [`Blobs::reader`] does that.
    pub fn open(&self, digest: &Digest) -> Result<File> {
        let expected = self.size(digest)?;
        let (dir, name) = place(digest);
        let damaged = |reason: String| StoreError::DamagedBlob { digest: digest.clone(), reason };
        let file = match self.core.open_dir("blobs")?.open_dir(dir).and_then(|dir| dir.open_file(&name)) {
            Err(error) if error.kind() == io::ErrorKind::NotFound => {
                self.set_aside(digest)?;
                return Err(damaged("its file is gone".to_owned()));
            }
            file => file.context(|| format!("opening blob {digest}"))?,
        };
        let found = file.metadata().context(|| format!("looking at blob {digest}"))?.size();
        if found != expected {
            self.set_aside(digest)?;
            return Err(damaged(format!("it has {found} bytes instead of {expected}")));
        }
        Ok(file)
    }

    /// Streams a blob and checks it: when the content proves damaged, the read that reaches the end fails, and the blob is
    /// taken out of the store so that it is fetched again.
    pub fn reader(&self, digest: &Digest) -> Result<BlobReader> {
        Ok(BlobReader {
            file: self.open(digest)?,
            hasher: Some(Hasher::new(digest.algorithm())),
            digest: digest.clone(),
            blobs: self.clone(),
        })
    }

    /// All of a small blob, checked. An error when it has more than `limit` bytes.
    pub fn read(&self, digest: &Digest, limit: u64) -> Result<Vec<u8>> {
        let size = self.size(digest)?;
        if size > limit {
            return Err(StoreError::Limit { what: format!("blob {digest}"), limit, unit: "bytes" });
        }
        let mut bytes = Vec::with_capacity(usize::try_from(size).unwrap_or(0));
        match self.reader(digest)?.read_to_end(&mut bytes) {
            Err(error) if error.kind() == io::ErrorKind::InvalidData => Err(StoreError::DamagedBlob {
                digest: digest.clone(),
                reason: "its content has another digest".to_owned(),
            }),
            read => read.map(|_| bytes).context(|| format!("reading blob {digest}")),
        }
    }

    /// Removes a blob whatever refers to it; false when it was not there.
    pub fn remove(&self, digest: &Digest) -> Result<bool> {
        self.core.make_room();
        let removed = self.core.db.write(Durability::Named, |tx| remove_row(tx, digest))?;
        if removed {
            collect::remove_blob_file(&self.core, digest)?;
        }
        Ok(removed)
    }

    /// Every blob with its size.
    pub fn list(&self) -> Result<Vec<(Digest, u64)>> {
        let rows = self.core.db.read(|tx| {
            let mut query = tx.prepare_cached("SELECT digest, size FROM blobs ORDER BY digest")?;
            let rows = query.query_map([], |row| Ok((row.get::<_, String>(0)?, row.get::<_, i64>(1)?)))?;
            Ok(rows.collect::<Result<Vec<_>, _>>()?)
        })?;
        rows.into_iter().map(|(digest, size)| Ok((digest.parse()?, size.unsigned_abs()))).collect()
    }

    fn begin(&self, lease: &Lease, algorithm: Algorithm) -> Result<BlobWriter> {
        let name = lease.fresh_name("blob-");
        let file = lease.ingest_fd()?.create_file(&name, 0o600).context(|| "beginning a blob".to_owned())?;
        Ok(BlobWriter { lease: lease.clone(), file, name, hasher: Hasher::new(algorithm), size: 0, done: false })
    }

    fn row(&self, digest: &Digest) -> Result<Option<u64>> {
        self.core.db.read(|tx| size_in(tx, digest))
    }

    fn is_whole(&self, digest: &Digest) -> Result<bool> {
        match self.row(digest)? {
            Some(size) => Ok(file_size(&self.core, digest)? == Some(size)),
            None => Ok(false),
        }
    }

    /// Takes a damaged blob out: its row goes, its file follows.
    fn set_aside(&self, digest: &Digest) -> Result<()> {
        tracing::warn!("blob {digest} is damaged and taken out of the store");
        match self.core.read_only {
            true => Ok(()),
            false => self.remove(digest).map(|_| ()),
        }
    }
}

/// A blob being written. Dropped before [`BlobWriter::commit`], it leaves nothing.
pub struct BlobWriter {
    lease: Lease,
    file: File,
    name: OsString,
    hasher: Hasher,
    size: u64,
    done: bool,
}

impl BlobWriter {
    /// Bytes written so far.
    pub fn size(&self) -> u64 {
        self.size
    }

    /// Asks the file system for room for `bytes` in all, so that a full disk is known before a download.
    pub fn reserve(&self, bytes: u64) -> Result<()> {
        use rustix::io::Errno;
        if bytes == 0 {
            return Ok(());
        }
        match rustix::fs::fallocate(&self.file, rustix::fs::FallocateFlags::KEEP_SIZE, 0, bytes) {
            Ok(()) | Err(Errno::OPNOTSUPP | Errno::NOSYS) => Ok(()),
            Err(error) => Err(error).context(|| format!("reserving {bytes} bytes")),
        }
    }

    /// Makes the blob known, held by the writer's lease, if it is what was expected. A blob that is in the store already
    /// stays as it is.
    pub fn commit(mut self, expected: Option<&Digest>, size: Option<u64>) -> Result<(Digest, u64)> {
        let hasher = std::mem::replace(&mut self.hasher, Hasher::new(Algorithm::Sha256));
        let digest = hasher.finish()?;
        if let Some(expected) = expected.filter(|expected| **expected != digest) {
            let what = "blob".to_owned();
            return Err(StoreError::WrongDigest { what, expected: expected.clone(), found: digest });
        }
        if let Some(expected) = size.filter(|&size| size != self.size) {
            return Err(StoreError::WrongSize { what: format!("blob {digest}"), expected, found: self.size });
        }
        let core = Arc::clone(self.lease.core());
        let target = Target::Blob(digest.clone());
        let (dir, final_name) = place(&digest);
        let into = core.open_dir("blobs")?.open_dir(dir).context(|| format!("opening blobs/{dir:?}"))?;
        core.faults.pass("blob.written")?;
        core.db.write(Durability::Cache, |tx| {
            let known = size_in(tx, &digest)?;
            if known.is_none() || file_size(&core, &digest)? != known {
                self.lease
                    .ingest_fd()?
                    .rename(&self.name, &into, &final_name)
                    .context(|| format!("publishing blob {digest}"))?;
                self.done = true;
                core.faults.pass("blob.renamed")?;
                let size = i64::try_from(self.size).map_err(|_| too_large(&digest))?;
                tx.prepare_cached(
                    "INSERT OR REPLACE INTO blobs (digest, size, created, volatile) VALUES (?, ?, ?, ?)",
                )?
                .execute(params![
                    digest.to_string(),
                    size,
                    nanos(SystemTime::now()),
                    Db::mark(tx)?
                ])?;
            }
            self.lease.hold_in(tx, &target)
        })?;
        core.faults.pass("blob.row")?;
        self.lease.note(&[target]);
        Ok((digest, self.size))
    }
}

impl Write for BlobWriter {
    fn write(&mut self, bytes: &[u8]) -> io::Result<usize> {
        let written = self.file.write(bytes)?;
        self.hasher.update(&bytes[..written]);
        self.size += written as u64;
        Ok(written)
    }

    fn flush(&mut self) -> io::Result<()> {
        Ok(())
    }
}

impl Drop for BlobWriter {
    fn drop(&mut self) {
        if !self.done
            && let Ok(dir) = self.lease.ingest_fd()
        {
            // Left behind, it goes with the lease.
            let _ = dir.unlink(&self.name);
        }
    }
}

/// Reads a blob and fails at its end if the content is not what its digest says.
pub struct BlobReader {
    file: File,
    hasher: Option<Hasher>,
    digest: Digest,
    blobs: Blobs,
}

impl Read for BlobReader {
    fn read(&mut self, buffer: &mut [u8]) -> io::Result<usize> {
        let read = self.file.read(buffer)?;
        if let Some(hasher) = &mut self.hasher {
            hasher.update(&buffer[..read]);
        }
        if read == 0
            && !buffer.is_empty()
            && let Some(hasher) = self.hasher.take()
        {
            let found = hasher.finish().map_err(io::Error::other)?;
            if found != self.digest {
                self.blobs.set_aside(&self.digest).map_err(io::Error::other)?;
                let message = format!("blob {} is damaged: its content has digest {found}", self.digest);
                return Err(io::Error::new(io::ErrorKind::InvalidData, message));
            }
        }
        Ok(read)
    }
}

pub(crate) enum Hasher {
    Sha256(Sha256),
    Sha512(Box<sha2::Sha512>),
}

impl Hasher {
    pub(crate) fn new(algorithm: Algorithm) -> Hasher {
        match algorithm {
            Algorithm::Sha256 => Hasher::Sha256(Sha256::new()),
            Algorithm::Sha512 => Hasher::Sha512(Box::default()),
        }
    }

    pub(crate) fn update(&mut self, bytes: &[u8]) {
        match self {
            Hasher::Sha256(hasher) => hasher.update(bytes),
            Hasher::Sha512(hasher) => sha2::Digest::update(hasher.as_mut(), bytes),
        }
    }

    pub(crate) fn finish(self) -> Result<Digest> {
        match self {
            Hasher::Sha256(hasher) => Ok(hasher.finish()),
            Hasher::Sha512(hasher) => {
                let mut text = String::from("sha512:");
                for byte in hasher.finalize() {
                    text.push_str(&format!("{byte:02x}"));
                }
                Ok(text.parse()?)
            }
        }
    }
}

/// Where a blob's file lies beneath the store.
pub(crate) fn path_of(digest: &Digest) -> PathBuf {
    let (dir, name) = place(digest);
    Path::new("blobs").join(dir).join(name)
}

/// Removes a blob's row; false when there was none.
pub(crate) fn remove_row(tx: &Transaction<'_>, digest: &Digest) -> Result<bool> {
    let digest = digest.to_string();
    // What we compressed ourselves can be made again, and registries know it: that stays written down.
    tx.prepare_cached("DELETE FROM layer_blobs WHERE digest = ? AND options = ''")?.execute([&digest])?;
    tx.prepare_cached("DELETE FROM blob_origins WHERE digest = ?")?.execute([&digest])?;
    Ok(tx.prepare_cached("DELETE FROM blobs WHERE digest = ?")?.execute([&digest])? > 0)
}

fn size_in(tx: &Transaction<'_>, digest: &Digest) -> Result<Option<u64>> {
    let mut query = tx.prepare_cached("SELECT size FROM blobs WHERE digest = ?")?;
    let size: Option<i64> = query.query_row([digest.to_string()], |row| row.get(0)).optional()?;
    Ok(size.map(i64::unsigned_abs))
}

fn file_size(core: &Core, digest: &Digest) -> Result<Option<u64>> {
    let (dir, name) = place(digest);
    match core.open_dir("blobs")?.open_dir(dir).and_then(|dir| dir.stat(&name)) {
        Err(error) if error.kind() == io::ErrorKind::NotFound => Ok(None),
        metadata => Ok(Some(metadata.context(|| format!("looking at blob {digest}"))?.size)),
    }
}

fn place(digest: &Digest) -> (&'static OsStr, OsString) {
    (OsStr::new(digest.algorithm().name()), OsString::from(digest.hex()))
}

fn too_large(digest: &Digest) -> StoreError {
    StoreError::Limit { what: format!("blob {digest}"), limit: i64::MAX as u64, unit: "bytes" }
}
