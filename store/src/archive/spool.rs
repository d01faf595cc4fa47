//! An image archive, taken apart.
//!
//! Archives come as streams, and what describes their members may come last. So all members are put aside in one pass,
//! checked and hashed on the way: small ones in memory, others as blobs that nobody refers to yet. After that, names in
//! the archive's documents are looked up among its own members only; no name ever becomes a path of this machine.

use std::collections::{BTreeMap, BTreeSet};
use std::io::{self, Read, Write};

use rbuild_oci::{Descriptor, Digest, Sha256, limits};

use crate::blobs::BlobWriter;
use crate::db::Durability;
use crate::error::{Context, Result, StoreError};
use crate::layers::compress::Decompressed;
use crate::layers::from_io;
use crate::layers::read::{Reader, shown};
use crate::layers::tar::EntryKind;
use crate::lease::{Lease, Target};
use crate::store::Store;
use crate::transfer::ImageSource;

/// Members of one archive; 500 layers take 1,500 in the oldest form.
const MEMBERS: usize = 100_000;
/// Members up to this size stay in memory, as long as there are not too many.
const SMALL: u64 = 64 << 10;
const SMALL_TOTAL: u64 = 16 << 20;
/// Links from member to member.
const LINKS: usize = 8;

pub(super) struct Spool {
    pub(super) store: Store,
    pub(super) lease: Lease,
    members: BTreeMap<Vec<u8>, Member>,
    in_memory: u64,
    /// Blobs that were not in the store before.
    fresh: BTreeSet<Digest>,
}

enum Member {
    Small(Vec<u8>),
    Blob(Digest, u64),
    /// Another member.
    Link(Vec<u8>),
}

impl Spool {
    /// Reads the whole archive. `progress` is told how many bytes of members have been read.
    pub(super) fn read(input: impl Read + Send, store: &Store, lease: &Lease, progress: &dyn Fn(u64)) -> Result<Spool> {
        let plain = Decompressed::new(input).map_err(|e| from_io("reading the archive", e))?;
        let mut reader = Reader::new(plain);
        let mut spool = Spool {
            store: store.clone(),
            lease: lease.clone(),
            members: BTreeMap::new(),
            in_memory: 0,
            fresh: BTreeSet::new(),
        };
        let mut done = 0;
        while let Some(entry) = reader.next()? {
            let member = match entry.kind {
                EntryKind::Directory => continue,
                EntryKind::File { size } => {
                    done += size;
                    let member = spool.file(&mut reader, &entry.path, size)?;
                    progress(done);
                    member
                }
                EntryKind::Symlink { target } => Member::Link(resolve(&entry.path, &target)?),
                EntryKind::HardLink { target } => Member::Link(target),
                _ => return Err(invalid(&entry.path, "it is neither a file nor a link")),
            };
            if spool.members.len() >= MEMBERS {
                return Err(StoreError::Limit {
                    what: "an image archive".into(),
                    limit: MEMBERS as u64,
                    unit: "members",
                });
            }
            if spool.members.insert(entry.path.clone(), member).is_some() {
                return Err(invalid(&entry.path, "it is there twice"));
            }
        }
        Ok(spool)
    }

    fn file<R: Read>(&mut self, reader: &mut Reader<R>, path: &[u8], size: u64) -> Result<Member> {
        let expected = named_digest(path);
        if size <= SMALL && self.in_memory + size <= SMALL_TOTAL {
            let bytes = reader.read_body(SMALL)?;
            if let Some(expected) = &expected
                && !expected.matches(&bytes)
            {
                return Err(invalid(path, "its content has another digest"));
            }
            self.in_memory += size;
            return Ok(Member::Small(bytes));
        }
        let mut blob = match &expected {
            Some(expected) => self.store.blobs().writer_for(expected, &self.lease)?,
            None => self.store.blobs().writer(&self.lease)?,
        };
        let what = || format!("reading {}", shown(path));
        let known = match &expected {
            Some(digest) => {
                io::copy(&mut reader.body(), &mut blob).map_err(|e| from_io(&what(), e))?;
                self.store.blobs().has(digest)?
            }
            None => {
                let mut both = Both(&mut blob, Sha256::new());
                io::copy(&mut reader.body(), &mut both).map_err(|e| from_io(&what(), e))?;
                let digest = both.1.finish();
                self.store.blobs().has(&digest)?
            }
        };
        let (digest, size) = blob.commit(expected.as_ref(), Some(size)).map_err(|error| match error {
            StoreError::WrongDigest { .. } => invalid(path, "its content has another digest"),
            other => other,
        })?;
        if !known {
            self.fresh.insert(digest.clone());
        }
        Ok(Member::Blob(digest, size))
    }

    pub(super) fn has(&self, name: &str) -> bool {
        self.find(name).is_ok()
    }

    /// The content of a member that is expected to be small.
    pub(super) fn bytes(&self, name: &str, limit: u64) -> Result<Vec<u8>> {
        match self.find(name)? {
            Member::Small(bytes) if bytes.len() as u64 <= limit => Ok(bytes.clone()),
            Member::Blob(digest, size) if *size <= limit => self.store.blobs().read(digest, limit),
            _ => Err(StoreError::Limit { what: format!("{name} in the image archive"), limit, unit: "bytes" }),
        }
    }

    /// A member as a blob of the store, kept by the lease.
    pub(super) fn blob(&mut self, name: &str) -> Result<(Digest, u64)> {
        let bytes = match self.find(name)? {
            Member::Blob(digest, size) => return Ok((digest.clone(), *size)),
            Member::Small(bytes) => bytes.clone(),
            Member::Link(_) => return Err(missing(name)),
        };
        self.put(&bytes)
    }

    /// Bytes as a blob of the store, kept by the lease.
    pub(super) fn put(&mut self, bytes: &[u8]) -> Result<(Digest, u64)> {
        let digest = Digest::sha256_of(bytes);
        if !self.store.blobs().has(&digest)? {
            self.fresh.insert(digest.clone());
        }
        Ok((self.store.blobs().put_bytes(bytes, &self.lease)?, bytes.len() as u64))
    }

    /// The content that `descriptor` names as a blob of the store, kept by the lease.
    pub(super) fn content(&mut self, descriptor: &Descriptor) -> Result<()> {
        let name = blob_name(&descriptor.digest);
        let (digest, size) = self.blob(&name)?;
        if size != descriptor.size {
            return Err(StoreError::WrongSize {
                what: format!("{name} in the image archive"),
                expected: descriptor.size,
                found: size,
            });
        }
        if digest != descriptor.digest {
            return Err(invalid(name.as_bytes(), "its content has another digest"));
        }
        Ok(())
    }

    /// Takes blobs that this archive brought, and that no image needs, out of the store.
    pub(super) fn discard(&mut self, needed: &BTreeSet<Digest>) -> Result<()> {
        for digest in std::mem::take(&mut self.fresh) {
            if needed.contains(&digest) {
                continue;
            }
            let target = Target::Blob(digest.clone()).to_string();
            let owner = self.lease.owner();
            let removed = self.store.db().write(Durability::Named, |tx| {
                tx.prepare_cached("DELETE FROM refs WHERE owner = ? AND target = ?")?.execute([&owner, &target])?;
                let used = tx.prepare_cached("SELECT 1 FROM refs WHERE target = ?")?.exists([&target])?;
                if used { Ok(false) } else { crate::blobs::remove_row(tx, &digest) }
            })?;
            if removed {
                crate::collect::remove_blob_file(self.lease.core(), &digest)?;
            }
        }
        Ok(())
    }

    fn find(&self, name: &str) -> Result<&Member> {
        let mut at = crate::layers::read::clean(name.as_bytes()).map_err(|reason| invalid(name.as_bytes(), &reason))?;
        for _ in 0..=LINKS {
            match self.members.get(&at) {
                Some(Member::Link(target)) => at.clone_from(target),
                Some(member) => return Ok(member),
                None => return Err(missing(name)),
            }
        }
        Err(invalid(name.as_bytes(), "it is a link to a link to a link"))
    }
}

/// Writes and hashes, where the digest has to be known before the blob is.
struct Both<'a>(&'a mut BlobWriter, Sha256);

impl Write for Both<'_> {
    fn write(&mut self, bytes: &[u8]) -> io::Result<usize> {
        let len = self.0.write(bytes)?;
        self.1.update(&bytes[..len]);
        Ok(len)
    }

    fn flush(&mut self) -> io::Result<()> {
        self.0.flush()
    }
}

/// Small documents of an OCI layout within the archive; blobs must have been stored by [`Spool::content`].
impl ImageSource for Spool {
    fn document(&self, descriptor: &Descriptor) -> Result<Option<Vec<u8>>> {
        let name = blob_name(&descriptor.digest);
        match self.has(&name) {
            true => self.bytes(&name, limits::MANIFEST.max(limits::INDEX)).map(Some),
            false => Ok(None),
        }
    }

    fn open(&self, blob: &Descriptor) -> Result<Box<dyn Read + Send>> {
        Ok(Box::new(self.store.blobs().reader(&blob.digest)?))
    }
}

pub(super) fn blob_name(digest: &Digest) -> String {
    format!("blobs/{}/{}", digest.algorithm().name(), digest.hex())
}

/// The digest that a member's name promises.
fn named_digest(path: &[u8]) -> Option<Digest> {
    let (algorithm, hex) = std::str::from_utf8(path).ok()?.strip_prefix("blobs/")?.split_once('/')?;
    format!("{algorithm}:{hex}").parse().ok()
}

/// Where a symbolic link within the archive leads, by its text alone.
fn resolve(path: &[u8], target: &[u8]) -> Result<Vec<u8>> {
    let mut at: Vec<&[u8]> = path.split(|b| *b == b'/').collect();
    at.pop();
    if target.starts_with(b"/") {
        return Err(invalid(path, "it is a link out of the archive"));
    }
    for component in target.split(|b| *b == b'/') {
        match component {
            b"" | b"." => {}
            b".." => drop(at.pop().ok_or_else(|| invalid(path, "it is a link out of the archive"))?),
            name => at.push(name),
        }
    }
    Ok(at.join(&b'/'))
}

pub(super) fn missing(name: &str) -> StoreError {
    StoreError::invalid("image archive", format!("{} is missing in it", shown(name.as_bytes())))
}

pub(super) fn invalid(path: &[u8], reason: &str) -> StoreError {
    StoreError::invalid(format!("member {} of the image archive", shown(path)), reason)
}

pub(super) fn parse<T: serde::de::DeserializeOwned>(name: &str, bytes: &[u8]) -> Result<T> {
    serde_json::from_slice(bytes).map_err(io::Error::from).context(|| format!("reading {name} of the image archive"))
}
