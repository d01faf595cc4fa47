//! Caches in a directory, which is an OCI image layout.
//!
//! A file becomes visible whole or not at all: it is written aside and renamed. `index.json` is changed by one writer at a
//! time, who holds a lock that ends with its process; readers need none. Everything is reached through the open
//! directory, so nothing in it, link or name, leads anywhere else.

use std::fs::File;
use std::io::{self, Read, Write};
use std::path::{Path, PathBuf};
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Arc, OnceLock};

use futures::FutureExt;
use futures::future::BoxFuture;
use rbuild_oci::{
    Compression, Descriptor, DiffId, Digest, Document, ImageConfig, Index, Manifest, MediaType, Sha256, limits,
};
use rbuild_registry::{LayerPacking, LayerSource, PackedLayer};
use rbuild_store::layers::compress::Compressor;
use rbuild_store::lock::{Lock, lock, try_lock};
use rbuild_store::{Lease, Root, Snapshot, Store, Walk};

use crate::backend::{Backend, Report, Stored};
use crate::error::Error;
use crate::portable::Written;

mod leftovers;

const REF_NAME: &str = "org.opencontainers.image.ref.name";
const INDEX: &str = "index.json";
const LAYOUT: &[u8] = br#"{"imageLayoutVersion":"1.0.0"}"#;

/// A cache in a directory.
#[derive(Clone)]
pub struct DirectoryBackend {
    inner: Arc<Inner>,
}

struct Inner {
    path: PathBuf,
    place: String,
    tag: String,
    /// Exactly this image, whatever its name.
    digest: Option<Digest>,
    next: AtomicU64,
    /// Held while this writes: others leave alone what lies aside. `None` where that could not be had.
    writing: OnceLock<Option<File>>,
}

impl DirectoryBackend {
    /// The cache called `tag` in the directory `path`, or the image `digest` in it.
    pub fn new(path: &Path, tag: &str, digest: Option<Digest>) -> DirectoryBackend {
        let place = format!("local:{}", path.display());
        let (path, tag) = (path.to_owned(), tag.to_owned());
        let (next, writing) = (AtomicU64::new(0), OnceLock::new());
        DirectoryBackend { inner: Arc::new(Inner { path, place, tag, digest, next, writing }) }
    }

    /// Disks block, so they are asked on threads that may.
    fn blocking<'a, T: Send + 'static>(
        &self,
        work: impl FnOnce(&Inner) -> Result<T, Error> + Send + 'static,
    ) -> BoxFuture<'a, Result<T, Error>> {
        let inner = self.inner.clone();
        async move {
            match tokio::task::spawn_blocking(move || work(&inner)).await {
                Ok(done) => done,
                Err(stopped) => Err(Error::refused("the cache directory", stopped.to_string())),
            }
        }
        .boxed()
    }
}

impl Inner {
    fn what(&self, of: &str) -> String {
        format!("{of} of the cache {}", self.path.display())
    }

    /// The directory; `None` when it is not there.
    fn open(&self) -> Result<Option<Root>, Error> {
        match Root::open(&self.path) {
            Err(error) if error.kind() == io::ErrorKind::NotFound => Ok(None),
            root => root.map(Some).map_err(Error::io(format!("opening the cache {}", self.path.display()))),
        }
    }

    /// The directory for writing, made if it is not there. What a killed writer left aside goes.
    fn make(&self) -> Result<Root, Error> {
        let what = format!("making the cache {}", self.path.display());
        std::fs::create_dir_all(&self.path).map_err(Error::io(what.clone()))?;
        let root = Root::open(&self.path).map_err(Error::io(what.clone()))?;
        for dir in ["blobs/sha256", "ingest"] {
            root.mkdir_all(Path::new(dir), Walk::NoLinks, 0o755).map_err(Error::io(what.clone()))?;
        }
        self.writing.get_or_init(|| match self.sweep(&root) {
            Ok(held) => Some(held),
            Err(error) => {
                tracing::debug!(%error, "what is left of others is not removed");
                None
            }
        });
        if root.lstat(Path::new("oci-layout"), Walk::NoLinks).is_err() {
            self.publish(&root, LAYOUT, Path::new("oci-layout"))?;
        }
        Ok(root)
    }

    /// Says that somebody writes here, as long as the file is open, and removes what lies aside if nobody else did.
    fn sweep(&self, root: &Root) -> Result<File, Error> {
        let what = || self.what("the directory ingest");
        let file = self.lock_file(root, "ingest/writers")?;
        if try_lock(&file, Lock::Alone)? {
            for entry in root.read_dir(Path::new("ingest"), Walk::NoLinks).map_err(Error::io(what()))? {
                if !["lock", "writers", leftovers::UNUSED].iter().any(|kept| entry.name == *kept) {
                    let path = Path::new("ingest").join(entry.name);
                    root.unlink(&path, Walk::NoLinks).map_err(Error::io(what()))?;
                }
            }
        }
        // Those who come between the two locks write nothing before they have this one.
        lock(&file, Lock::Shared)?;
        Ok(file)
    }

    fn lock_file(&self, root: &Root, path: &str) -> Result<File, Error> {
        let (path, what) = (Path::new(path), || self.what("the lock"));
        match root.create_file(path, Walk::NoLinks, 0o644) {
            Err(error) if error.kind() != io::ErrorKind::AlreadyExists => return Err(Error::io(what())(error)),
            _ => {}
        }
        root.open_file(path, Walk::NoLinks).map_err(Error::io(what()))
    }

    fn bytes(&self, root: &Root, path: &Path, limit: u64) -> Result<Option<Vec<u8>>, Error> {
        let what = || self.what(&path.display().to_string());
        let file = match root.open_file(path, Walk::NoLinks) {
            Err(error) if error.kind() == io::ErrorKind::NotFound => return Ok(None),
            file => file.map_err(Error::io(what()))?,
        };
        let mut bytes = Vec::new();
        file.take(limit + 1).read_to_end(&mut bytes).map_err(Error::io(what()))?;
        match bytes.len() as u64 > limit {
            true => Err(Error::refused(what(), format!("it is over the limit of {limit} bytes"))),
            false => Ok(Some(bytes)),
        }
    }

    fn index(&self, root: &Root) -> Result<Index, Error> {
        let Some(bytes) = self.bytes(root, Path::new(INDEX), limits::INDEX)? else {
            return Ok(Index::new(Vec::new()));
        };
        match Document::parse(&bytes, None)? {
            Document::Index(index) => Ok(index),
            Document::Manifest(_) => Err(Error::refused(self.what(INDEX), "it is a manifest")),
        }
    }

    /// A small blob, checked.
    fn document(&self, root: &Root, blob: &Descriptor, limit: u64) -> Result<Vec<u8>, Error> {
        let what = || self.what(&blob.digest.to_string());
        let bytes = self.bytes(root, &blob_path(&blob.digest), limit)?;
        let bytes = bytes.ok_or_else(|| Error::refused(what(), "it is not there"))?;
        match blob.digest.matches(&bytes) {
            true => Ok(bytes),
            false => Err(Error::refused(what(), "its content has another digest")),
        }
    }

    fn read(&self, name: Option<&str>) -> Result<Option<Stored>, Error> {
        let Some(root) = self.open()? else { return Ok(None) };
        let index = self.index(&root)?;
        let named = |entry: &&Descriptor| match (name, &self.digest) {
            (None, Some(digest)) => entry.digest == *digest,
            (name, _) => entry.annotations.get(REF_NAME).map(String::as_str) == Some(name.unwrap_or(&self.tag)),
        };
        let Some(found) = index.manifests.iter().find(named) else { return Ok(None) };
        if found.media_type.as_str() == "application/vnd.oci.image.index.v1+json" {
            // What BuildKit writes without image-manifest=true.
            return Err(Error::BuildKit(self.place.clone()));
        }
        let bytes = self.document(&root, found, limits::MANIFEST)?;
        let Document::Manifest(manifest) = Document::parse(&bytes, Some(&found.media_type))? else {
            return Err(Error::refused(self.what(&found.digest.to_string()), "it is no manifest"));
        };
        if !manifest.config.media_type.is_config() {
            return Err(Error::BuildKit(self.place.clone()));
        }
        let config = self.config(&manifest.config)?;
        Ok(Some(Stored { manifest, config }))
    }

    fn config(&self, config: &Descriptor) -> Result<ImageConfig, Error> {
        let root = self.open()?.ok_or_else(|| Error::NotFound(self.place.clone()))?;
        Ok(ImageConfig::parse(&self.document(&root, config, limits::CONFIG)?)?)
    }

    fn names(&self) -> Result<Vec<String>, Error> {
        let Some(root) = self.open()? else { return Ok(Vec::new()) };
        let mut index = self.index(&root)?;
        Ok(index.manifests.iter_mut().filter_map(|entry| entry.annotations.remove(REF_NAME)).collect())
    }

    /// Copies blobs that are not here yet into the store, checked, and unpacks all.
    fn bring(&self, layers: &[PackedLayer], store: &Store, lease: &Lease) -> Result<Option<Snapshot>, Error> {
        let root = self.open()?.ok_or_else(|| Error::NotFound(self.place.clone()))?;
        let diff_ids: Vec<DiffId> = layers.iter().map(|layer| layer.diff_id.clone()).collect();
        let (here, _) = store.layers().deepest(&diff_ids, lease)?;
        self.bring_packed(&root, &layers[here..], store, lease)?;
        let mut config = ImageConfig::default();
        config.rootfs.diff_ids = diff_ids;
        let blobs = layers.iter().map(|layer| layer.blob.clone()).collect();
        let snapshot = store.layers().unpack(&Manifest::new(config.descriptor(), blobs), &config, lease)?;
        crate::import::date(layers, snapshot.as_ref(), store)?;
        Ok(snapshot)
    }

    fn bring_packed(&self, root: &Root, layers: &[PackedLayer], store: &Store, lease: &Lease) -> Result<(), Error> {
        for PackedLayer { blob, .. } in layers {
            if store.blobs().hold(&blob.digest, lease)? {
                continue;
            }
            let what = || self.what(&blob.digest.to_string());
            let file = root.open_file(&blob_path(&blob.digest), Walk::NoLinks).map_err(Error::io(what()))?;
            let mut writer = store.blobs().writer_for(&blob.digest, lease)?;
            // One byte more than it should have is enough to tell.
            io::copy(&mut file.take(blob.size.saturating_add(1)), &mut writer).map_err(Error::io(what()))?;
            writer.commit(Some(&blob.digest), Some(blob.size))?;
        }
        Ok(())
    }

    /// Passes a blob on, checked. `out` sees all of it before it is known to be wrong, and an error in its place then.
    fn pass_on(&self, blob: &Descriptor, out: &mut dyn Write) -> io::Result<()> {
        let root = self.open().map_err(io::Error::other)?;
        let root = root.ok_or_else(|| io::Error::other(Error::NotFound(self.place.clone())))?;
        let what = || self.what(&blob.digest.to_string());
        let open = root.open_file(&blob_path(&blob.digest), Walk::NoLinks);
        let file = open.map_err(|error| io::Error::other(Error::io(what())(error)))?;
        let mut hashed = Hashed { out, hash: Sha256::new(), size: 0 };
        io::copy(&mut file.take(blob.size.saturating_add(1)), &mut hashed)?;
        match hashed.size == blob.size && hashed.hash.finish() == blob.digest {
            true => Ok(()),
            false => Err(io::Error::other(Error::refused(what(), "its content has another digest"))),
        }
    }

    fn has(&self, root: &Root, blob: &Descriptor) -> bool {
        root.lstat(&blob_path(&blob.digest), Walk::NoLinks).is_ok_and(|found| found.size == blob.size)
    }

    fn put_layer(
        &self,
        diff_id: &DiffId,
        packing: LayerPacking,
        store: &Store,
        lease: &Lease,
    ) -> Result<Descriptor, Error> {
        let root = self.make()?;
        let options = packing.options();
        let mut known = store.layers().blobs_of(diff_id)?;
        known.retain(|(blob, _)| packing.takes(&blob.media_type));
        if let Some((blob, _)) = known.iter().find(|(blob, _)| self.has(&root, blob)) {
            return Ok(blob.clone());
        }
        for (blob, _) in known {
            if store.blobs().hold(&blob.digest, lease)? {
                let mut reader = store.blobs().reader(&blob.digest)?;
                self.add(&root, Some(&blob.digest), |out| io::copy(&mut reader, out).map(drop))?;
                return Ok(blob);
            }
        }
        let mut tar = store.layers().open_diff(diff_id)?;
        let (digest, size) = self.add(&root, None, |out| {
            let mut compressor = Compressor::new(out, packing.compression, packing.level)?;
            io::copy(&mut tar, &mut compressor)?;
            compressor.finish().map(drop)
        })?;
        let blob = Descriptor::new(MediaType::oci_layer(packing.compression), digest, size);
        if packing.compression != Compression::None {
            store.layers().note_blob(diff_id, &blob, &options)?;
        }
        Ok(blob)
    }

    /// Writes a blob and gives it its name once it is whole.
    fn add(
        &self,
        root: &Root,
        expected: Option<&Digest>,
        write: impl FnOnce(&mut dyn Write) -> io::Result<()>,
    ) -> Result<(Digest, u64), Error> {
        let aside = self.aside();
        let what = || self.what("a blob");
        let file = root.create_file(&aside, Walk::NoLinks, 0o644).map_err(Error::io(what()))?;
        let mut out = Hashed { out: io::BufWriter::with_capacity(256 << 10, file), hash: Sha256::new(), size: 0 };
        let written = write(&mut out).and_then(|()| out.out.flush());
        let Hashed { hash, size, .. } = out;
        let digest = hash.finish();
        let wrong = expected.is_some_and(|expected| *expected != digest);
        let done = match written {
            Ok(()) if wrong => Err(Error::refused(what(), "its content has another digest")),
            Ok(()) => root.rename(&aside, &blob_path(&digest), Walk::NoLinks).map_err(Error::io(what())),
            Err(error) => Err(Error::io(what())(error)),
        };
        if done.is_err() {
            // It lies aside and means nothing; the error is the one to tell.
            drop(root.unlink(&aside, Walk::NoLinks));
        }
        done.map(|()| (digest, size))
    }

    /// Replaces a file at once.
    fn publish(&self, root: &Root, bytes: &[u8], path: &Path) -> Result<(), Error> {
        let aside = self.aside();
        let what = || self.what(&path.display().to_string());
        let mut file = root.create_file(&aside, Walk::NoLinks, 0o644).map_err(Error::io(what()))?;
        let done = file.write_all(bytes).and_then(|()| root.rename(&aside, path, Walk::NoLinks));
        if done.is_err() {
            drop(root.unlink(&aside, Walk::NoLinks));
        }
        done.map_err(Error::io(what()))
    }

    /// A name that no other writer has.
    fn aside(&self) -> PathBuf {
        let number = self.next.fetch_add(1, Ordering::Relaxed);
        let clock = std::time::SystemTime::now().duration_since(std::time::UNIX_EPOCH).map_or(0, |t| t.as_nanos());
        PathBuf::from(format!("ingest/{}-{number}-{clock}", std::process::id()))
    }

    fn put(&self, name: &str, image: &Written) -> Result<(), Error> {
        let root = self.make()?;
        self.add(&root, None, |out| out.write_all(&image.config))?;
        let (digest, size) = self.add(&root, None, |out| out.write_all(&image.manifest))?;
        let mut entry = Descriptor::new(image.media_type.clone(), digest, size);
        entry.annotations.insert(REF_NAME.to_owned(), name.to_owned());
        let locked = self.locked(&root)?;
        let mut index = self.index(&root)?;
        index.manifests.retain(|other| other.annotations.get(REF_NAME).map(String::as_str) != Some(name));
        index.manifests.push(entry);
        let bytes = serde_json::to_vec(&index).map_err(|error| Error::refused(self.what(INDEX), error.to_string()))?;
        self.publish(&root, &bytes, Path::new(INDEX))?;
        drop(locked);
        Ok(())
    }

    /// Takes names away, and blobs that no name leads to since an hour.
    fn remove(&self, names: &[String]) -> Result<(), Error> {
        let root = self.make()?;
        let locked = self.locked(&root)?;
        let mut index = self.index(&root)?;
        let before = index.manifests.len();
        index.manifests.retain(|entry| entry.annotations.get(REF_NAME).is_none_or(|name| !names.contains(name)));
        if index.manifests.len() < before {
            let bytes =
                serde_json::to_vec(&index).map_err(|error| Error::refused(self.what(INDEX), error.to_string()))?;
            self.publish(&root, &bytes, Path::new(INDEX))?;
        }
        let Some(Some(writing)) = self.writing.get() else { return Ok(()) };
        // Whoever else writes here may count on any blob. Where the lock is not had, a later export removes them.
        let alone = try_lock(writing, Lock::Alone)?;
        let swept = if alone { self.sweep_blobs(&root, &index) } else { Ok(()) };
        lock(writing, Lock::Shared)?;
        drop(locked);
        swept
    }

    /// The lock of those who change `index.json`. It ends with its file, and so with the process at the latest.
    fn locked(&self, root: &Root) -> Result<File, Error> {
        let file = self.lock_file(root, "ingest/lock")?;
        lock(&file, Lock::Alone)?;
        Ok(file)
    }
}

fn blob_path(digest: &Digest) -> PathBuf {
    Path::new("blobs").join(digest.algorithm().name()).join(digest.hex())
}

/// Passes bytes on, hashes and counts them.
struct Hashed<W> {
    out: W,
    hash: Sha256,
    size: u64,
}

impl<W: Write> Write for Hashed<W> {
    fn write(&mut self, bytes: &[u8]) -> io::Result<usize> {
        let len = self.out.write(bytes)?;
        self.hash.update(&bytes[..len]);
        self.size += len as u64;
        Ok(len)
    }

    fn flush(&mut self) -> io::Result<()> {
        self.out.flush()
    }
}

impl Backend for DirectoryBackend {
    fn place(&self) -> &str {
        &self.inner.place
    }

    fn base(&self) -> Option<&str> {
        self.inner.digest.is_none().then_some(self.inner.tag.as_str())
    }

    fn read<'a>(&'a self, name: Option<&'a str>) -> BoxFuture<'a, Result<Option<Stored>, Error>> {
        let name = name.map(str::to_owned);
        self.blocking(move |inner| inner.read(name.as_deref()))
    }

    fn names(&self) -> BoxFuture<'_, Result<Vec<String>, Error>> {
        self.blocking(|inner| inner.names())
    }

    fn config<'a>(&'a self, config: &'a Descriptor) -> BoxFuture<'a, Result<ImageConfig, Error>> {
        let config = config.clone();
        self.blocking(move |inner| inner.config(&config))
    }

    fn bring<'a>(
        &'a self,
        layers: &'a [PackedLayer],
        store: &'a Store,
        lease: &'a Lease,
        _report: Report<'a>,
    ) -> BoxFuture<'a, Result<Option<Snapshot>, Error>> {
        let (layers, store, lease) = (layers.to_vec(), store.clone(), lease.clone());
        self.blocking(move |inner| inner.bring(&layers, &store, &lease))
    }

    fn bring_packed<'a>(
        &'a self,
        layers: &'a [PackedLayer],
        store: &'a Store,
        lease: &'a Lease,
        _report: Report<'a>,
    ) -> BoxFuture<'a, Result<(), Error>> {
        let (layers, store, lease) = (layers.to_vec(), store.clone(), lease.clone());
        self.blocking(move |inner| {
            let root = inner.open()?.ok_or_else(|| Error::NotFound(inner.place.clone()))?;
            inner.bring_packed(&root, &layers, &store, &lease)
        })
    }

    fn source(&self, layer: &Descriptor) -> LayerSource {
        let (inner, layer) = (self.inner.clone(), layer.clone());
        LayerSource { repository: None, bytes: Arc::new(move |out| inner.pass_on(&layer, out)) }
    }

    fn has<'a>(
        &'a self,
        layer: &'a Descriptor,
        _origin: &'a str,
        _store: &'a Store,
        _lease: &'a Lease,
    ) -> BoxFuture<'a, Result<bool, Error>> {
        let layer = layer.clone();
        self.blocking(move |inner| Ok(inner.open()?.is_some_and(|root| inner.has(&root, &layer))))
    }

    fn remove<'a>(&'a self, names: &'a [String]) -> BoxFuture<'a, Result<(), Error>> {
        let names = names.to_vec();
        self.blocking(move |inner| inner.remove(&names))
    }

    fn put_layer<'a>(
        &'a self,
        diff_id: &'a DiffId,
        packing: LayerPacking,
        store: &'a Store,
        lease: &'a Lease,
    ) -> BoxFuture<'a, Result<Descriptor, Error>> {
        let (diff_id, store, lease) = (diff_id.clone(), store.clone(), lease.clone());
        self.blocking(move |inner| inner.put_layer(&diff_id, packing, &store, &lease))
    }

    fn put<'a>(
        &'a self,
        name: &'a str,
        image: &'a Written,
        _store: &'a Store,
        _lease: &'a Lease,
    ) -> BoxFuture<'a, Result<(), Error>> {
        let (name, image) = (name.to_owned(), image.clone());
        self.blocking(move |inner| inner.put(&name, &image))
    }
}
