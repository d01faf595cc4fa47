//! Leases: how work in progress keeps what it uses.
//!
//! A lease is a file that a living process holds locked. The kernel unlocks it when the process dies, so a lease whose
//! lock can be taken is dead, and no clock is asked. What a lease protects are rows: references that collection counts
//! as roots. Each process that opens the store sweeps the dead ones; usually the directory is empty.

use std::collections::HashSet;
use std::ffi::{OsStr, OsString};
use std::fmt;
use std::fs::File;
use std::io::Write;
use std::os::fd::AsFd;
use std::path::{Path, PathBuf};
use std::str::FromStr;
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Arc, Mutex, OnceLock, PoisonError};
use std::time::SystemTime;

use rbuild_oci::Digest;
use rusqlite::{Transaction, params};

use crate::db::{Durability, nanos};
use crate::error::{Context, Result, StoreError};
use crate::lock::{self, Lock};
use crate::root::Dir;
use crate::snapshots::SnapshotId;
use crate::store::Core;

/// Something that can be kept alive.
#[derive(Debug, Clone, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub enum Target {
    Blob(Digest),
    Snapshot(SnapshotId),
    /// By the digest of its manifest or index.
    Image(Digest),
}

impl fmt::Display for Target {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Target::Blob(digest) => write!(f, "blob:{digest}"),
            Target::Snapshot(id) => write!(f, "snapshot:{id}"),
            Target::Image(digest) => write!(f, "image:{digest}"),
        }
    }
}

impl FromStr for Target {
    type Err = StoreError;

    fn from_str(text: &str) -> Result<Target> {
        match text.split_once(':') {
            Some(("blob", digest)) => Ok(Target::Blob(digest.parse()?)),
            Some(("snapshot", id)) => Ok(Target::Snapshot(id.parse()?)),
            Some(("image", digest)) => Ok(Target::Image(digest.parse()?)),
            _ => Err(StoreError::invalid(format!("reference target {text:?}"), "unknown kind")),
        }
    }
}

/// The id of a lease: letters and digits.
#[derive(Debug, Clone, PartialEq, Eq, Hash)]
pub struct LeaseId(String);

impl fmt::Display for LeaseId {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.0)
    }
}

/// Keeps what it holds until its last clone is dropped, or its process dies.
#[derive(Clone)]
pub struct Lease {
    inner: Arc<Inner>,
}

struct Inner {
    core: Arc<Core>,
    id: LeaseId,
    purpose: String,
    /// Open and locked as long as the lease lives.
    _file: File,
    held: Mutex<HashSet<String>>,
    ingest: OnceLock<Ingest>,
    next: AtomicU64,
}

struct Ingest {
    dir: Dir,
    path: PathBuf,
}

impl Lease {
    pub(crate) fn new(core: &Arc<Core>, purpose: &str) -> Result<Lease> {
        let what = || format!("making a lease in {:?}", core.path);
        if core.read_only {
            return Err(StoreError::ReadOnly { root: core.path.clone() });
        }
        let leases = core.dir.open_dir(OsStr::new("leases")).context(what)?;
        loop {
            let id = LeaseId(format!("{}x{:016x}", std::process::id(), random()?));
            let name = OsString::from(&id.0);
            let mut file = leases.create_file(&name, 0o600).context(what)?;
            // A sweeper may have found the file before it was locked, and removed it: then it is nobody's.
            if !lock::try_lock(&file, Lock::Alone)? || rustix::fs::fstat(&file).context(what)?.st_nlink == 0 {
                continue;
            }
            file.write_all(format!("{} {purpose}\n", std::process::id()).as_bytes()).context(what)?;
            core.faults.pass("lease.made")?;
            let inner = Inner {
                core: Arc::clone(core),
                id,
                purpose: purpose.to_owned(),
                _file: file,
                held: Mutex::default(),
                ingest: OnceLock::new(),
                next: AtomicU64::new(0),
            };
            return Ok(Lease { inner: Arc::new(inner) });
        }
    }

    pub fn id(&self) -> &LeaseId {
        &self.inner.id
    }

    pub fn purpose(&self) -> &str {
        &self.inner.purpose
    }

    /// The owner column of its rows in `refs`.
    pub fn owner(&self) -> String {
        format!("lease:{}", self.inner.id)
    }

    /// Keeps `target` as long as this lease lives. The target must be there: an error otherwise.
    pub fn hold(&self, target: &Target) -> Result<()> {
        self.hold_all(std::slice::from_ref(target))
    }

    /// Keeps all of `targets`, in one transaction; an error, and none kept, when one is not there.
    pub fn hold_all(&self, targets: &[Target]) -> Result<()> {
        if targets.iter().all(|target| self.holds(target)) {
            return Ok(());
        }
        self.inner.core.db.write(Durability::Cache, |tx| {
            for target in targets {
                exists(tx, target)?;
                self.hold_in(tx, target)?;
            }
            Ok(())
        })?;
        self.note(targets);
        Ok(())
    }

    /// Keeps `target`, as part of the transaction that found or made it. The caller calls [`Lease::note`] once that is
    /// committed.
    pub fn hold_in(&self, tx: &Transaction<'_>, target: &Target) -> Result<()> {
        let lease = &self.inner;
        tx.prepare_cached("INSERT OR IGNORE INTO leases (id, pid, purpose, created) VALUES (?, ?, ?, ?)")?
            .execute(params![lease.id.0, std::process::id(), lease.purpose, nanos(SystemTime::now())])?;
        tx.prepare_cached("INSERT OR IGNORE INTO refs (owner, target) VALUES (?, ?)")?
            .execute(params![self.owner(), target.to_string()])?;
        Ok(())
    }

    /// Remembers that rows for `targets` were committed, so that holding them again costs nothing.
    pub fn note(&self, targets: &[Target]) {
        let mut held = self.inner.held.lock().unwrap_or_else(PoisonError::into_inner);
        held.extend(targets.iter().map(Target::to_string));
    }

    /// Whether this lease already holds `target`.
    pub fn holds(&self, target: &Target) -> bool {
        self.inner.held.lock().unwrap_or_else(PoisonError::into_inner).contains(&target.to_string())
    }

    /// The directory in which this lease's unfinished work lies. It goes with the lease.
    pub fn ingest(&self) -> Result<&Path> {
        Ok(&self.ingest_dir()?.path)
    }

    /// A fresh path in [`Lease::ingest`], where nothing is yet.
    pub fn ingest_path(&self, prefix: &str) -> Result<PathBuf> {
        let ingest = self.ingest_dir()?;
        Ok(ingest.path.join(self.fresh_name(prefix)))
    }

    /// Writes down work of several steps before its first, so that whoever comes after a death can finish or undo it.
    pub fn intent(&self, kind: &str, json: &str) -> Result<Intent> {
        let id = self.inner.core.db.write(Durability::Named, |tx| {
            tx.execute(
                "INSERT INTO intents (kind, json, lease) VALUES (?, ?, ?)",
                params![kind, json, self.inner.id.0],
            )?;
            Ok(tx.last_insert_rowid())
        })?;
        Ok(Intent { id, lease: self.clone() })
    }

    pub(crate) fn core(&self) -> &Arc<Core> {
        &self.inner.core
    }

    pub(crate) fn ingest_fd(&self) -> Result<&Dir> {
        Ok(&self.ingest_dir()?.dir)
    }

    pub(crate) fn fresh_name(&self, prefix: &str) -> OsString {
        OsString::from(format!("{prefix}{}", self.inner.next.fetch_add(1, Ordering::Relaxed)))
    }

    fn ingest_dir(&self) -> Result<&Ingest> {
        if let Some(ingest) = self.inner.ingest.get() {
            return Ok(ingest);
        }
        let core = &self.inner.core;
        let what = || format!("making a directory in {:?}", core.path.join("ingest"));
        let all = core.dir.open_dir(OsStr::new("ingest")).context(what)?;
        let dir = all.ensure_dir(OsStr::new(&self.inner.id.0), 0o700).context(what)?;
        let path = core.path.join("ingest").join(&self.inner.id.0);
        Ok(self.inner.ingest.get_or_init(|| Ingest { dir, path }))
    }
}

impl fmt::Debug for Lease {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "Lease({}: {})", self.inner.id, self.inner.purpose)
    }
}

impl Drop for Inner {
    fn drop(&mut self) {
        let held = !self.held.get_mut().unwrap_or_else(PoisonError::into_inner).is_empty();
        let ingested = self.ingest.get().is_some();
        if let Err(error) = release(&self.core, &self.id.0, held, ingested) {
            // The file goes unlocked with this value, so the next opener of the store sweeps what is left.
            tracing::warn!("releasing lease {}: {error}", self.id);
        }
    }
}

/// Work of several steps that has been written down.
#[derive(Debug)]
pub struct Intent {
    id: i64,
    lease: Lease,
}

impl Intent {
    pub fn id(&self) -> i64 {
        self.id
    }

    /// Notes that the first `step` steps are done.
    pub fn reached(&self, step: u32) -> Result<()> {
        self.lease.core().db.write(Durability::Cache, |tx| {
            tx.execute("UPDATE intents SET step = ? WHERE id = ?", params![step, self.id])?;
            Ok(())
        })
    }

    /// Strikes it out: the work is done, or undone.
    pub fn done(self) -> Result<()> {
        settle(self.lease.core(), self.id)
    }
}

/// Work of a process that died before it was done.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct AbandonedIntent {
    pub id: i64,
    pub kind: String,
    pub step: u32,
    pub json: String,
}

pub(crate) fn settle(core: &Core, id: i64) -> Result<()> {
    core.db.write(Durability::Named, |tx| {
        tx.execute("DELETE FROM intents WHERE id = ?", [id])?;
        Ok(())
    })
}

/// The intents whose lease is no more.
pub(crate) fn abandoned(core: &Core) -> Result<Vec<AbandonedIntent>> {
    let all = core.db.read(|tx| {
        let mut query = tx.prepare_cached("SELECT id, kind, step, json, lease FROM intents ORDER BY id")?;
        let rows = query.query_map([], |row| {
            let intent = AbandonedIntent { id: row.get(0)?, kind: row.get(1)?, step: row.get(2)?, json: row.get(3)? };
            Ok((intent, row.get::<_, String>(4)?))
        })?;
        Ok(rows.collect::<Result<Vec<_>, _>>()?)
    })?;
    if all.is_empty() {
        return Ok(Vec::new());
    }
    let leases = core.dir.open_dir(OsStr::new("leases")).context(|| "opening the leases".to_owned())?;
    Ok(all.into_iter().filter(|(_, id)| leases.stat(OsStr::new(id)).is_err()).map(|(intent, _)| intent).collect())
}

/// Sweeps the leases of processes that are gone.
pub(crate) fn sweep(core: &Core) -> Result<()> {
    let what = || format!("sweeping leases of {:?}", core.path);
    let leases = core.dir.open_dir(OsStr::new("leases")).context(what)?;
    for entry in leases.entries().context(what)? {
        let entry = entry.context(what)?;
        let Ok(file) = leases.open_file(&entry.name) else { continue };
        if !lock::try_lock(file.as_fd(), Lock::Alone)? || rustix::fs::fstat(&file).context(what)?.st_nlink == 0 {
            // Alive; or another sweeper was quicker.
            continue;
        }
        let Some(id) = entry.name.to_str() else { continue };
        tracing::debug!("sweeping dead lease {id}");
        match release(core, id, true, true) {
            // Then it stays dead for a while: listing and removing must work on a full disk.
            Err(error) if error.is_full() => tracing::warn!("sweeping dead lease {id}: {error}"),
            swept => swept?,
        }
    }
    Ok(())
}

/// Removes unfinished work whose lease has no file: a lease's file is there before its work, and goes after it. Returns
/// the bytes freed.
pub(crate) fn sweep_ingest(core: &Core) -> Result<u64> {
    let what = || format!("sweeping {:?}", core.path.join("ingest"));
    let (leases, ingest) = (core.open_dir("leases")?, core.open_dir("ingest")?);
    let mut freed = 0;
    for entry in ingest.entries().context(what)? {
        let name = entry.context(what)?.name;
        match leases.stat(&name) {
            Err(error) if error.kind() == std::io::ErrorKind::NotFound => {
                freed += core.remove_tree(&ingest, &name).context(what)?;
            }
            there => {
                there.context(what)?;
            }
        }
    }
    Ok(freed)
}

/// Whether the lease `id` belongs to a living process.
pub(crate) fn is_alive(core: &Core, id: &str) -> Result<bool> {
    let what = || format!("looking at lease {id}");
    let leases = core.dir.open_dir(OsStr::new("leases")).context(what)?;
    match leases.open_file(OsStr::new(id)) {
        Ok(file) => Ok(!lock::try_lock(&file, Lock::Shared)?),
        Err(_) => Ok(false),
    }
}

/// Takes away all that lease `id` left, its file last. The caller has it locked.
fn release(core: &Core, id: &str, rows: bool, ingest: bool) -> Result<()> {
    if rows {
        core.db.write(Durability::Cache, |tx| {
            tx.prepare_cached("DELETE FROM refs WHERE owner = ?")?.execute([format!("lease:{id}")])?;
            tx.prepare_cached("DELETE FROM claims WHERE lease = ?")?.execute([id])?;
            tx.prepare_cached("DELETE FROM leases WHERE id = ?")?.execute([id])?;
            Ok(())
        })?;
    }
    core.faults.pass("lease.rows")?;
    let what = || format!("removing lease {id}");
    if ingest {
        let all = core.dir.open_dir(OsStr::new("ingest")).context(what)?;
        core.remove_tree(&all, OsStr::new(id)).context(what)?;
    }
    core.faults.pass("lease.ingest")?;
    let leases = core.dir.open_dir(OsStr::new("leases")).context(what)?;
    leases.unlink(OsStr::new(id)).context(what)
}

fn exists(tx: &Transaction<'_>, target: &Target) -> Result<()> {
    let (sql, key) = match target {
        Target::Blob(digest) => ("SELECT 1 FROM blobs WHERE digest = ?", digest.to_string()),
        Target::Snapshot(id) => ("SELECT 1 FROM snapshots WHERE id = ?", id.to_string()),
        Target::Image(digest) => ("SELECT 1 FROM images WHERE target = ?", digest.to_string()),
    };
    if tx.prepare_cached(sql)?.exists([key])? {
        return Ok(());
    }
    Err(match target {
        Target::Blob(digest) => StoreError::NoBlob(digest.clone()),
        Target::Snapshot(id) => StoreError::NoSnapshot(id.to_string()),
        Target::Image(digest) => StoreError::NoImage(digest.to_string()),
    })
}

pub(crate) fn random() -> Result<u64> {
    let mut bytes = [0u8; 8];
    rustix::rand::getrandom(&mut bytes, rustix::rand::GetRandomFlags::empty())
        .context(|| "asking for random bytes".to_owned())?;
    Ok(u64::from_le_bytes(bytes))
}
