//! Opening, and what an open store offers.

use std::ffi::OsStr;
use std::fs::File;
use std::io::{Read, Seek, Write};
use std::os::fd::AsFd;
use std::os::unix::ffi::OsStrExt;
use std::path::{Path, PathBuf};
use std::sync::Arc;

use rusqlite::{Transaction, params};
use rustix::fs::{Mode, OFlags};

use crate::blobs::Blobs;
use crate::collect::{self, CollectOptions, Collected};
use crate::db::{Db, Durability};
use crate::error::{Context, Result, StoreError};
use crate::faults::Faults;
use crate::flush;
use crate::images::Images;
use crate::lease::{self, AbandonedIntent, Lease};
use crate::lock::{self, Lock};
use crate::root::{Dir, Kind, Root, Walk};
use crate::schema;
use crate::snapshots::{self, Driver, Snapshots, Subvolumes};

/// The first line of the file `VERSION`, before the number.
const MAGIC: &str = "rbuild store ";
/// SQLite takes no longer path to its database, and overlay's options must stay short too.
const LONGEST_ROOT: usize = 400;
/// Kept back so that removing works on a full disk, in bytes.
const RESERVE: u64 = 4 << 20;
const DIRS: [&str; 8] = ["blobs", "snapshots", "containers", "volumes", "cachemounts", "builds", "leases", "ingest"];

/// How to open a store.
#[derive(Debug, Clone)]
pub struct StoreOptions {
    /// The directory. It is made when it is not there.
    pub root: PathBuf,
    /// How snapshots lie on disk; `None` is what the store was made with, and for a new one what works there.
    pub driver: Option<Driver>,
    /// Nothing is written, not even to recover; what would write fails.
    pub read_only: bool,
    /// What is to go wrong, for tests; nothing in release builds.
    pub faults: Faults,
    /// The calls of btrfs, without which there is no such driver.
    pub subvolumes: Option<Arc<dyn Subvolumes>>,
}

impl StoreOptions {
    pub fn new(root: impl Into<PathBuf>) -> StoreOptions {
        StoreOptions { root: root.into(), driver: None, read_only: false, faults: Faults::default(), subvolumes: None }
    }
}

/// An open store; clones share one handle.
#[derive(Clone)]
pub struct Store {
    inner: Arc<Inner>,
}

struct Inner {
    core: Arc<Core>,
    blobs: Blobs,
    images: Images,
    snapshots: Snapshots,
}

/// What all parts of an open store share.
pub(crate) struct Core {
    pub(crate) path: PathBuf,
    pub(crate) dir: Dir,
    pub(crate) db: Db,
    pub(crate) id: String,
    pub(crate) driver: Driver,
    pub(crate) read_only: bool,
    pub(crate) faults: Faults,
    pub(crate) subvolumes: Option<Arc<dyn Subvolumes>>,
    /// Locked, shared, as long as the store is open: a newer program waits with its migration.
    _version: File,
}

impl Store {
    /// Opens a store, making it if it is not there, and recovers what dead processes and lost boots left. Many
    /// processes may do this at once.
    ///
    /// A store on a read-only file system is opened as if [`StoreOptions::read_only`] were set.
    pub fn open(mut options: StoreOptions) -> Result<Store> {
        options.read_only |= is_on_read_only(&options.root);
        let (path, dir) = open_root(&options)?;
        let version = open_version(&options, &path, &dir)?;
        let database = path.join("db.sqlite");
        let db = if options.read_only { Db::open_read_only(&database)? } else { Db::open(&database)? };
        let (id, made_with, boot) = db.read(|tx| {
            let row = tx.query_row("SELECT store, driver, boot FROM state", [], |row| {
                Ok((row.get::<_, String>(0)?, row.get::<_, String>(1)?, row.get::<_, String>(2)?))
            })?;
            Ok(row)
        })?;
        let driver: Driver = made_with.parse()?;
        if let Some(asked) = options.driver.filter(|asked| *asked != driver) {
            return Err(StoreError::OtherDriver { root: path, made_with: driver, asked });
        }
        let core = Arc::new(Core {
            path,
            dir,
            db,
            id,
            driver,
            read_only: options.read_only,
            faults: options.faults,
            subvolumes: options.subvolumes,
            _version: version,
        });
        if !options.read_only {
            let now = boot_id()?;
            if boot != now {
                flush::drop_lost(&core, &now)?;
            }
            lease::sweep(&core)?;
        }
        let inner =
            Inner { blobs: Blobs::new(&core), images: Images::new(&core), snapshots: Snapshots::new(&core), core };
        Ok(Store { inner: Arc::new(inner) })
    }

    /// What happened here, for who wants to know.
    pub fn events(&self) -> crate::EventJournal {
        crate::EventJournal::of(self.root())
    }

    /// The store's directory, absolute and without links.
    pub fn root(&self) -> &Path {
        &self.inner.core.path
    }

    /// Its random id of 16 hex digits, after which kernel objects are named.
    pub fn id(&self) -> &str {
        &self.inner.core.id
    }

    /// Whether nothing can be changed in it.
    pub fn is_read_only(&self) -> bool {
        self.inner.core.read_only
    }

    pub fn driver(&self) -> Driver {
        self.inner.core.driver
    }

    pub(crate) fn core(&self) -> &Arc<Core> {
        &self.inner.core
    }

    pub fn db(&self) -> &Db {
        &self.inner.core.db
    }

    pub fn blobs(&self) -> &Blobs {
        &self.inner.blobs
    }

    pub fn images(&self) -> &Images {
        &self.inner.images
    }

    pub fn snapshots(&self) -> &Snapshots {
        &self.inner.snapshots
    }

    /// A new lease. `purpose` is for people: `build of web`.
    pub fn lease(&self, purpose: &str) -> Result<Lease> {
        Lease::new(&self.inner.core, purpose)
    }

    /// Whether the process that holds the lease of this id lives.
    pub fn is_lease_alive(&self, id: &str) -> Result<bool> {
        lease::is_alive(&self.inner.core, id)
    }

    /// Brings everything that was published so far to the disk, other processes' work too. Nothing to do is cheap.
    pub fn flush(&self) -> Result<()> {
        flush::flush(&self.inner.core)
    }

    /// Runs `change` durably, after making room for it if the disk is full: for removals.
    pub fn remove_durably<T>(&self, change: impl FnOnce(&Transaction<'_>) -> Result<T>) -> Result<T> {
        self.inner.core.make_room();
        self.inner.core.db.write(Durability::Named, change)
    }

    /// Removes the directory at `relative` in the store and all that is in it; returns the bytes that became free.
    ///
    /// # Errors
    /// What resists stays, with what holds it.
    pub fn remove_directory(&self, relative: &Path) -> Result<u64> {
        let what = || format!("removing {:?}", self.root().join(relative));
        let core = &self.inner.core;
        let root = Root::from_fd(core.dir.try_clone().context(what)?.into_fd()).context(what)?;
        let (parent, name) = root.parent(relative, Walk::NoLinks).context(what)?;
        core.remove_tree(&parent, &name).context(what)
    }

    /// Removes what nothing keeps.
    pub fn collect(&self, options: &CollectOptions) -> Result<Collected> {
        collect::collect(&self.inner.core, options)
    }

    /// Work that dead processes wrote down and did not finish. Who knows its kind finishes or undoes it, then calls
    /// [`Store::settle_intent`].
    pub fn abandoned_intents(&self) -> Result<Vec<AbandonedIntent>> {
        lease::abandoned(&self.inner.core)
    }

    pub fn settle_intent(&self, id: i64) -> Result<()> {
        lease::settle(&self.inner.core, id)
    }
}

impl std::fmt::Debug for Store {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        write!(f, "Store({:?})", self.root())
    }
}

impl Core {
    /// A directory of the store by its fixed name.
    pub(crate) fn open_dir(&self, name: &str) -> Result<Dir> {
        self.dir.open_dir(OsStr::new(name)).context(|| format!("opening {:?}", self.path.join(name)))
    }

    /// [`Dir::remove_all`], quick where a subvolume can be removed as a whole.
    pub(crate) fn remove_tree(&self, parent: &Dir, name: &OsStr) -> std::io::Result<u64> {
        match &self.subvolumes {
            Some(subvolumes) if self.driver == Driver::Btrfs => {
                parent.remove_all_with(name, &|dir, name| subvolumes.remove(dir.as_fd(), name).ok())
            }
            _ => parent.remove_all(name),
        }
    }

    /// Gives up the reserve when the disk is full, so that removing works.
    pub(crate) fn make_room(&self) {
        if free_bytes(&self.dir).is_some_and(|free| free < RESERVE / 4) {
            // Not there: it was given up before.
            let _ = self.dir.unlink(OsStr::new("reserve"));
        }
    }

    /// Takes the reserve back when there is room again.
    pub(crate) fn restore_reserve(&self) {
        reserve(&self.dir);
    }
}

/// Whether the directory is there and nobody can write to its file system.
fn is_on_read_only(root: &Path) -> bool {
    rustix::fs::statvfs(root).is_ok_and(|fs| fs.f_flag.contains(rustix::fs::StatVfsMountFlags::RDONLY))
}

/// The directory and its canonical path, checked to be ours alone.
fn open_root(options: &StoreOptions) -> Result<(PathBuf, Dir)> {
    let refuse = |reason: String| StoreError::Refused { root: options.root.clone(), reason };
    let what = || format!("opening store {:?}", options.root);
    if !options.read_only && !options.root.exists() {
        make_root(&options.root)?;
    }
    let path = options.root.canonicalize().context(what)?;
    if !path.is_dir() {
        return Err(refuse("it is not a directory".to_owned()));
    }
    if path.as_os_str().len() > LONGEST_ROOT {
        return Err(refuse(format!("its path is longer than {LONGEST_ROOT} bytes")));
    }
    let flags = OFlags::PATH | OFlags::DIRECTORY | OFlags::NOFOLLOW | OFlags::CLOEXEC;
    let dir = Dir::from_fd(rustix::fs::open(&path, flags, Mode::empty()).context(what)?).context(what)?;
    let metadata = dir.metadata().context(what)?;
    if metadata.uid != rustix::process::geteuid().as_raw() {
        return Err(refuse(format!("it belongs to user {}", metadata.uid)));
    }
    // In this order: who makes a store makes VERSION first.
    let foreign = dir.entries().context(what)?.flatten().any(|e| !may_be_in_new(e.name.as_bytes()));
    let is_store = dir.stat(OsStr::new("VERSION")).is_ok_and(|m| m.kind == Kind::File);
    if !is_store && (foreign || options.read_only) {
        let reason = if foreign { "it is neither empty nor a store" } else { "it is not a store" };
        return Err(refuse(reason.to_owned()));
    }
    if metadata.mode & 0o077 != 0 && !options.read_only {
        if is_store && metadata.mode & 0o022 != 0 {
            return Err(refuse(format!("others may write to it (mode {:o})", metadata.mode)));
        }
        rustix::fs::chmod(&path, Mode::RWXU).context(what)?;
    }
    Ok((path, dir))
}

/// Names that an empty file system has, or that another process creates while we look.
fn may_be_in_new(name: &[u8]) -> bool {
    name == b"lost+found" || name == b"VERSION"
}

fn make_root(path: &Path) -> Result<()> {
    use std::os::unix::fs::DirBuilderExt;
    let what = || format!("making store {path:?}");
    if let Some(above) = path.parent() {
        std::fs::create_dir_all(above).context(what)?;
    }
    match std::fs::DirBuilder::new().mode(0o700).create(path) {
        Err(error) if error.kind() == std::io::ErrorKind::AlreadyExists => Ok(()),
        made => made.context(what),
    }
}

/// The file `VERSION`, locked shared; makes or migrates the store first if need be.
fn open_version(options: &StoreOptions, path: &Path, dir: &Dir) -> Result<File> {
    let what = || format!("opening {:?}", path.join("VERSION"));
    let access = if options.read_only { OFlags::RDONLY } else { OFlags::RDWR | OFlags::CREATE };
    let flags = access | OFlags::NOFOLLOW | OFlags::CLOEXEC | OFlags::NONBLOCK;
    let fd = rustix::fs::openat(dir, c"VERSION", flags, Mode::RUSR | Mode::WUSR).context(what)?;
    let mut file = File::from(fd);
    if let Err(error) = lock::lock(&file, Lock::Shared) {
        let reason = format!("its file system has no locks: {error}");
        return Err(StoreError::Refused { root: path.to_path_buf(), reason });
    }
    if read_version(&mut file, path)? == schema::VERSION {
        return Ok(file);
    }
    if options.read_only {
        let reason = "it is of an older version, and opened for reading only".to_owned();
        return Err(StoreError::Refused { root: path.to_path_buf(), reason });
    }
    lock::lock(&file, Lock::Alone)?;
    if read_version(&mut file, path)? != schema::VERSION {
        make(options, path, dir)?;
        file.set_len(0).context(what)?;
        file.rewind().context(what)?;
        file.write_all(format!("{MAGIC}{}\n", schema::VERSION).as_bytes()).context(what)?;
        file.sync_all().context(what)?;
        dir.sync().context(what)?;
    }
    lock::lock(&file, Lock::Shared)?;
    Ok(file)
}

/// The version in the file, 0 when it is empty: a store that is about to be made.
fn read_version(file: &mut File, path: &Path) -> Result<u32> {
    let mut text = String::new();
    file.rewind().and_then(|()| file.take(256).read_to_string(&mut text)).context(|| format!("reading {path:?}"))?;
    if text.is_empty() {
        return Ok(0);
    }
    let number = text.strip_prefix(MAGIC).and_then(|rest| rest.trim_end().parse::<u32>().ok());
    let Some(found) = number else {
        let reason = "its file VERSION is not a store's".to_owned();
        return Err(StoreError::Refused { root: path.to_path_buf(), reason });
    };
    if found > schema::VERSION {
        return Err(StoreError::Newer { root: path.to_path_buf(), found, known: schema::VERSION });
    }
    Ok(found)
}

/// Makes what lacks of a store, or migrates it. May be killed anywhere and done again.
fn make(options: &StoreOptions, path: &Path, dir: &Dir) -> Result<()> {
    let what = || format!("making store {path:?}");
    refuse_network_file_system(path, dir)?;
    for name in DIRS {
        dir.ensure_dir(OsStr::new(name), 0o700).context(what)?;
    }
    let blobs = dir.open_dir(OsStr::new("blobs")).context(what)?;
    for algorithm in ["sha256", "sha512"] {
        blobs.ensure_dir(OsStr::new(algorithm), 0o700).context(what)?;
    }
    options.faults.pass("store.directories")?;
    // The lowest directory of every overlay: a mount without upper wants two.
    dir.ensure_dir(OsStr::new("empty"), 0o755).context(what)?;
    let driver = match options.driver {
        Some(driver) => snapshots::check(driver, path, dir, options.subvolumes.as_deref()).map(|()| driver)?,
        None => snapshots::probe(path, dir, options.subvolumes.as_deref())?,
    };
    let boot = boot_id()?;
    let mut id = [0u8; 8];
    rustix::rand::getrandom(&mut id, rustix::rand::GetRandomFlags::empty()).context(what)?;
    let id = format!("{:016x}", u64::from_le_bytes(id));
    Db::prepare(&path.join("db.sqlite"), |tx| {
        tx.execute(
            "INSERT INTO state (one, store, driver, boot, generation, last_snapshot) VALUES (1, ?, ?, ?, 1, 0)",
            params![id, driver.to_string(), boot],
        )?;
        Ok(())
    })?;
    options.faults.pass("store.database")?;
    reserve(dir);
    Ok(())
}

/// Network file systems share no memory between machines, which the database's WAL needs.
fn refuse_network_file_system(path: &Path, dir: &Dir) -> Result<()> {
    const NETWORK: [(u32, &str); 6] = [
        (0x6969, "NFS"),
        (0x517b, "SMB"),
        (0xff53_4d42, "CIFS"),
        (0xfe53_4d42, "SMB2"),
        (0x5346_414f, "AFS"),
        (0x00c3_6400, "Ceph"),
    ];
    let kind = rustix::fs::fstatfs(dir).context(|| format!("looking at {path:?}"))?.f_type as u32;
    match NETWORK.iter().find(|(magic, _)| *magic == kind) {
        Some((_, name)) => Err(StoreError::Refused {
            root: path.to_path_buf(),
            reason: format!("it lies on the network file system {name}, where processes cannot share a database"),
        }),
        None => Ok(()),
    }
}

fn reserve(dir: &Dir) {
    let name = OsStr::new("reserve");
    if free_bytes(dir).is_none_or(|free| free < 16 * RESERVE) {
        return;
    }
    // Where it cannot be had, removing on a full disk may fail; nothing else does.
    if let Ok(file) = dir.create_file(name, 0o600) {
        let _ = rustix::fs::fallocate(&file, rustix::fs::FallocateFlags::empty(), 0, RESERVE);
    }
}

fn free_bytes(dir: &Dir) -> Option<u64> {
    let fs = rustix::fs::fstatvfs(dir).ok()?;
    Some(fs.f_bavail * fs.f_frsize)
}

fn boot_id() -> Result<String> {
    let path = "/proc/sys/kernel/random/boot_id";
    Ok(std::fs::read_to_string(path).context(|| format!("reading {path}"))?.trim_end().to_owned())
}
