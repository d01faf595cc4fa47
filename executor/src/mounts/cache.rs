//! `RUN --mount=type=cache`: directories that outlive the build and are part of no layer and no key.
//!
//! `cachemounts/<key>` in the store belongs to one cache. The key is a hash of the cache's id, of what it is seeded with,
//! and of its owner and mode, so that a cache asked for with another owner is another one and never a directory its user
//! cannot write. In it:
//!
//! ```text
//! id          what it was asked for by, for people
//! choose      locked by whoever picks or makes a slot
//! 0/lock      shared by its users, or held alone
//! 0/data/     what is mounted
//! 1/ …        made when 0 was taken and waiting was not asked for
//! ```
//!
//! Locks are `flock`s, so they hold between processes and end with their holder, however it ends. `shared` takes a slot
//! together with others, `private` one nobody uses, `locked` waits for the first. A process takes its caches
//! in the order of their keys: no two can wait for each other.
//!
//! Taking a slot notes in its lock what for ([`super::cache_objects`] lists, measures and removes them).
//!
//! A slot without `data` is one whose maker was killed; it is made again. What a killed step left in `data` stays, as
//! with any cache that lies on a disk.

use std::collections::BTreeMap;
use std::fs::{File, OpenOptions};
use std::io;
use std::os::unix::fs::{DirBuilderExt, MetadataExt, PermissionsExt};
use std::path::{Path, PathBuf};
use std::time::Duration;

use rbuild_graph::ops::{CacheSharing, Mount, MountKind};
use rbuild_runtime::MountSource;
use rbuild_solver::Cancel;
use rbuild_store::lock::{Lock, try_lock};

use super::cache_objects::note_use;
use super::{Step, cancelled, local, open_path, tree};
use crate::ops::file::Source;
use crate::{ExecutorError, Value};

/// How often a wait looks again. Locks of dead holders wake nobody who polls, and a cancelled step must not wait on.
pub(super) const PAUSE: Duration = Duration::from_millis(50);

/// The caches of one process by key: named twice, one is taken once.
pub(super) type Caches = BTreeMap<String, Taken>;

/// A slot in use.
#[derive(Debug)]
pub(super) struct Taken {
    data: PathBuf,
    _lock: File,
}

/// Takes all caches of a process, waiting for those that others hold.
pub(super) fn take_all(step: &Step<'_>) -> Result<Caches, ExecutorError> {
    let mut wanted: BTreeMap<String, Vec<(usize, &Mount)>> = BTreeMap::new();
    for (n, mount) in step.op.mounts.iter().enumerate() {
        if let MountKind::Cache { .. } = mount.kind {
            wanted.entry(key(step, mount)?).or_default().push((n, mount));
        }
    }
    let root = step.executor.store.root().join("cachemounts");
    let mut caches = Caches::new();
    for (key, mounts) in wanted {
        // The strictest wish counts for all of them.
        let strict = |(_, mount): &&(usize, &Mount)| match mount.kind {
            MountKind::Cache { sharing: CacheSharing::Locked, .. } => 2,
            MountKind::Cache { sharing: CacheSharing::Private, .. } => 1,
            _ => 0,
        };
        let Some(&(n, mount)) = mounts.iter().max_by_key(strict) else { continue };
        let MountKind::Cache { id, sharing, .. } = &mount.kind else { continue };
        let about = format!("cached mount {} from exec {}", crate::error::show(&mount.target), step.op.args.join(" "));
        let place = Place { dir: root.join(&key), id, about, sharing: *sharing, cancel: &step.context.cancel };
        caches.insert(key, place.take(|dir| make(step, n, mount, dir))?);
    }
    Ok(caches)
}

pub(super) fn source(step: &Step<'_>, mount: &Mount, caches: &Caches) -> Result<MountSource, ExecutorError> {
    let taken = caches.get(&key(step, mount)?);
    let taken = taken.ok_or_else(|| ExecutorError::Invalid("a cache that was not taken".into()))?;
    Ok(MountSource::Opened(open_path(&taken.data)?))
}

/// The name of a cache's directory. Never a path, whatever the id holds.
fn key(step: &Step<'_>, mount: &Mount) -> Result<String, ExecutorError> {
    let MountKind::Cache { id, mode, uid, gid, .. } = &mount.kind else {
        return Err(ExecutorError::Invalid("a mount that is no cache".into()));
    };
    let seed = match mount.input.map(|input| &step.inputs[input]) {
        Some(Value::Snapshot(snapshot)) => Some(format!("snapshot {}", snapshot.id().as_str())),
        Some(Value::Context(context)) => Some(format!("context {}", context.name())),
        Some(Value::Scratch) | None => None,
    };
    let named = (id, seed, &mount.selector, mode, uid, gid);
    let text = serde_json::to_vec(&named).map_err(|error| ExecutorError::Invalid(error.to_string()))?;
    Ok(blake3::hash(&text).to_hex().to_string())
}

/// Makes the content of a new slot below `dir`, which does not exist: empty, or a copy of what it is seeded with.
fn make(step: &Step<'_>, n: usize, mount: &Mount, dir: &Path) -> Result<PathBuf, ExecutorError> {
    let MountKind::Cache { mode, uid, gid, .. } = mount.kind else { return Ok(dir.to_owned()) };
    let input = mount.input.map(|input| &step.inputs[input]);
    let selector = mount.selector.as_deref().unwrap_or_default();
    let (value, own) = match input {
        None | Some(Value::Scratch) if selector.is_empty() => {
            std::fs::create_dir(dir).map_err(local)?;
            look(dir, mode, (uid, gid))?;
            return Ok(dir.to_owned());
        }
        None | Some(Value::Scratch) => {
            let path = format!("/{}", crate::error::show(selector));
            return Err(ExecutorError::SourceNotFound { path, hints: Vec::new() });
        }
        // What comes from the user's machine belongs to root.
        Some(value @ Value::Context(_)) => (value, Some((0, 0))),
        Some(value) => (value, None),
    };
    let source = Source::open(step.executor, value)?;
    let selected = match step.selections.get(&n) {
        Some((selected, _)) => selected.clone(),
        None => source.select_path(selector)?,
    };
    if !selected.tree.root.meta.is_dir() {
        let path = crate::error::show(selector);
        return Err(ExecutorError::Invalid(format!("a cache mount cannot begin as /{path}: it is no directory")));
    }
    let copy = tree::copy_of(dir, &source, &selected, own)?;
    if (mode, uid, gid) != (0o755, 0, 0) {
        look(&copy, mode, (uid, gid))?;
    }
    Ok(copy)
}

fn look(dir: &Path, mode: u32, (uid, gid): (u32, u32)) -> Result<(), ExecutorError> {
    // The owner first: changing it takes away special bits.
    std::os::unix::fs::chown(dir, Some(uid), Some(gid))
        .and_then(|()| std::fs::set_permissions(dir, std::fs::Permissions::from_mode(mode)))
        .map_err(local)
}

/// One cache and how it is wanted.
struct Place<'a> {
    dir: PathBuf,
    id: &'a str,
    /// What it is used for, for people.
    about: String,
    sharing: CacheSharing,
    cancel: &'a Cancel,
}

impl Place<'_> {
    /// A slot, its content made by `make` when it is new. `make` gets a path that does not exist and gives one below it.
    fn take(&self, make: impl Fn(&Path) -> Result<PathBuf, ExecutorError>) -> Result<Taken, ExecutorError> {
        let how = if self.sharing == CacheSharing::Shared { Lock::Shared } else { Lock::Alone };
        loop {
            let chosen = self.choose()?;
            for slot in 0.. {
                let dir = self.dir.join(slot.to_string());
                make_dir(&dir)?;
                let lock = lock_file(&dir.join("lock"))?;
                if try_lock(&lock, how)? {
                    let data = ready(&dir, &make)?;
                    note_use(&lock, self.sharing, &self.about).map_err(local)?;
                    return Ok(Taken { data, _lock: lock });
                }
                if self.sharing == CacheSharing::Locked {
                    break;
                }
            }
            drop(chosen);
            self.pause()?;
        }
    }

    /// The right to pick a slot. The cache's directory exists from then on: whoever removes one does it with this lock.
    fn choose(&self) -> Result<File, ExecutorError> {
        loop {
            make_dir(&self.dir)?;
            let path = self.dir.join("choose");
            let lock = match lock_file(&path) {
                Err(ExecutorError::Start(_)) if !self.dir.exists() => continue,
                lock => lock?,
            };
            if !try_lock(&lock, Lock::Alone)? {
                self.pause()?;
                continue;
            }
            if lock.metadata().map_err(local)?.nlink() > 0 {
                let id = self.dir.join("id");
                if !id.exists() {
                    std::fs::write(&id, format!("{}\n", self.id)).map_err(local)?;
                }
                return Ok(lock);
            }
        }
    }

    fn pause(&self) -> Result<(), ExecutorError> {
        if self.cancel.is_cancelled() {
            return Err(cancelled());
        }
        std::thread::sleep(PAUSE);
        Ok(())
    }
}

/// The content of a slot, made if it is not there. Only with the right to choose.
fn ready(slot: &Path, make: impl Fn(&Path) -> Result<PathBuf, ExecutorError>) -> Result<PathBuf, ExecutorError> {
    let data = slot.join("data");
    if data.symlink_metadata().is_ok() {
        return Ok(data);
    }
    let new = slot.join("new");
    let clear = || match std::fs::remove_dir_all(&new) {
        Err(error) if error.kind() != io::ErrorKind::NotFound => Err(local(error)),
        _ => Ok(()),
    };
    clear()?;
    let made = make(&new)?;
    std::fs::rename(made, &data).map_err(local)?;
    clear()?;
    Ok(data)
}

fn make_dir(path: &Path) -> Result<(), ExecutorError> {
    match std::fs::DirBuilder::new().mode(0o700).create(path) {
        Err(error) if error.kind() != io::ErrorKind::AlreadyExists => Err(local(error)),
        _ => Ok(()),
    }
}

pub(super) fn lock_file(path: &Path) -> Result<File, ExecutorError> {
    OpenOptions::new().create(true).truncate(false).read(true).write(true).open(path).map_err(local)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn take(dir: &Path, sharing: CacheSharing) -> Taken {
        let cancel = Cancel::never();
        place(dir, sharing, &cancel).take(empty).unwrap()
    }

    fn place<'a>(dir: &Path, sharing: CacheSharing, cancel: &'a Cancel) -> Place<'a> {
        Place { dir: dir.join("key"), id: "an id", about: "for a test".into(), sharing, cancel }
    }

    fn empty(dir: &Path) -> Result<PathBuf, ExecutorError> {
        std::fs::create_dir(dir).map_err(local)?;
        Ok(dir.to_owned())
    }

    fn slot(taken: &Taken) -> String {
        taken.data.parent().unwrap().file_name().unwrap().to_str().unwrap().to_owned()
    }

    #[test]
    fn who_shares_with_whom() {
        use CacheSharing::{Locked, Private, Shared};
        let dir = tempfile::tempdir().unwrap();
        let first = take(dir.path(), Shared);
        let second = take(dir.path(), Shared);
        assert_eq!((slot(&first), slot(&second)), ("0".into(), "0".into()));
        let private = take(dir.path(), Private);
        let another = take(dir.path(), Private);
        assert_eq!((slot(&private), slot(&another)), ("1".into(), "2".into()));
        drop((first, second, private));
        assert_eq!(slot(&take(dir.path(), Private)), "0", "what nobody uses is used again");
        let locked = take(dir.path(), Locked);
        assert_eq!(slot(&locked), "0");
        assert_eq!(slot(&take(dir.path(), Shared)), "1", "what is held alone is shared with nobody");
        assert_eq!(std::fs::read_to_string(dir.path().join("key/id")).unwrap(), "an id\n");
    }

    #[test]
    fn locked_waits_its_turn() {
        let dir = tempfile::tempdir().unwrap();
        let holder = take(dir.path(), CacheSharing::Locked);
        let path = dir.path().to_owned();
        let waiter = std::thread::spawn(move || slot(&take(&path, CacheSharing::Locked)));
        std::thread::sleep(3 * PAUSE);
        assert!(!waiter.is_finished());
        // Others can still choose meanwhile.
        drop(take(dir.path(), CacheSharing::Private));
        drop(holder);
        assert_eq!(waiter.join().unwrap(), "0");
    }

    #[test]
    fn what_a_killed_maker_left_is_made_again() {
        let dir = tempfile::tempdir().unwrap();
        let half = |new: &Path| -> Result<PathBuf, ExecutorError> {
            empty(new)?;
            std::fs::write(new.join("half"), "").map_err(local)?;
            Err(cancelled())
        };
        let cancel = Cancel::never();
        assert!(place(dir.path(), CacheSharing::Shared, &cancel).take(half).is_err());
        let taken = take(dir.path(), CacheSharing::Shared);
        assert_eq!(std::fs::read_dir(&taken.data).unwrap().count(), 0);
        std::fs::write(taken.data.join("kept"), "").unwrap();
        drop(taken);
        let again = take(dir.path(), CacheSharing::Shared);
        assert!(again.data.join("kept").exists());
    }
}
