//! Volumes: directories that outlive containers.

mod driver;
mod filesystem;

use std::collections::{BTreeMap, BTreeSet};
use std::fs;
use std::io;
use std::os::unix::fs::PermissionsExt;
use std::path::{Path, PathBuf};
use std::time::SystemTime;

use rbuild_runtime::ids::IdMaps;
use rbuild_store::root::Dir;
use rbuild_store::rusqlite::{self, OptionalExtension, Row, Transaction};
use rbuild_store::snapshots::copy_tree;
use rbuild_store::{Durability, Event, EventKind, Root, Store, Walk, db};

use crate::containers::{Container, MountKind, VolumeTerms, containers_in};
use crate::error::{Error, Kind};

pub(crate) use driver::{Place, hold, open, place};
pub(crate) use filesystem::release;

/// A volume of the store.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Volume {
    pub name: String,
    pub labels: BTreeMap<String, String>,
    /// Made for one container without being named.
    pub anonymous: bool,
    pub created: SystemTime,
    /// Where its files are.
    pub mountpoint: PathBuf,
    /// As `volume create -o` had them.
    pub options: BTreeMap<String, String>,
}

/// The volumes of a store.
#[derive(Debug, Clone)]
pub struct Volumes {
    store: Store,
}

impl Volumes {
    pub fn new(store: Store) -> Self {
        Self { store }
    }

    /// Makes a volume, or finds the one of this name. Without a name it gets one by chance and is anonymous.
    ///
    /// # Errors
    /// A name or options that are none; a volume of this name with other options.
    pub fn create(
        &self,
        name: Option<&str>,
        labels: &BTreeMap<String, String>,
        options: &BTreeMap<String, String>,
    ) -> Result<Volume, Error> {
        let made;
        let (name, anonymous) = match name {
            Some(name) => {
                check_name(name)?;
                (name, false)
            }
            None => {
                made = crate::containers::random_id()?;
                (made.as_str(), true)
            }
        };
        let shown = format!("create {name}");
        driver::check(options).map_err(|reason| Error::invalid(format!("{shown}: {reason}")))?;
        let exists = self.find(name).is_ok();
        if exists && !options.is_empty() && driver::options(self.store.root(), name) != *options {
            let message = format!("{shown}: volume name must be unique: it exists with other options");
            return Err(Error::new(Kind::Conflict, message));
        }
        self.make_directory(name)?;
        if !exists {
            driver::keep(self.store.root(), name, options).map_err(|e| kept(name, &e))?;
        }
        let (made, volume) = self
            .store
            .db()
            .write(Durability::Named, |tx| {
                let made = insert(tx, name, labels, anonymous)?;
                Ok((made, get(tx, self.store.root(), name)?))
            })
            .map_err(Error::from)?;
        if made {
            self.tell("create", name);
        }
        volume.ok_or_else(|| Error::internal(format!("volume {name} vanished while it was made")))
    }

    /// Notes that something happened to a volume.
    pub(crate) fn tell(&self, action: &str, name: &str) {
        self.store.events().note(&Event::new(EventKind::Volume, action, name).with("driver", "local"));
    }

    /// By name; the message of one that is not there is docker's.
    pub fn find(&self, name: &str) -> Result<Volume, Error> {
        let found = self.store.db().read(|tx| Ok(get(tx, self.store.root(), name)?))?;
        found.ok_or_else(|| Error::not_found(format!("get {name}: no such volume")))
    }

    /// All of them by name.
    pub fn list(&self) -> Result<Vec<Volume>, Error> {
        let root = self.store.root();
        Ok(self.store.db().read(|tx| {
            let mut query = tx.prepare_cached(&format!("{COLUMNS} ORDER BY name"))?;
            let rows = query.query_map([], |row| from_row(root, row))?;
            Ok(rows.collect::<rusqlite::Result<Vec<_>>>()?)
        })?)
    }

    /// Names of the volumes that some container has.
    pub fn in_use(&self) -> Result<BTreeSet<String>, Error> {
        Ok(self.store.db().read(|tx| Ok(used(&containers_in(tx)?)))?)
    }

    /// Removes a volume that no container has.
    pub fn remove(&self, name: &str) -> Result<(), Error> {
        self.find(name)?;
        let user = self.store.remove_durably(|tx| {
            let user = containers_in(tx)?.into_iter().find(|c| volume_names(c).any(|n| n == name));
            if user.is_none() {
                delete(tx, name)?;
            }
            Ok(user)
        })?;
        if let Some(user) = user {
            let message = format!("remove {name}: volume is in use - [{}]", user.id);
            return Err(Error::new(Kind::Conflict, message));
        }
        self.remove_files(name);
        Ok(())
    }

    /// Removes what no container has: anonymous volumes, or named ones too. Those removed, with the bytes they held.
    pub fn prune(&self, named_too: bool, fits: impl Fn(&Volume) -> bool) -> Result<Vec<(String, u64)>, Error> {
        let gone = self.store.remove_durably(|tx| {
            let used = used(&containers_in(tx)?);
            let mut query = tx.prepare_cached(&format!("{COLUMNS} ORDER BY name"))?;
            let all = query.query_map([], |row| from_row(self.store.root(), row))?;
            let all: Vec<Volume> = all.collect::<rusqlite::Result<_>>()?;
            let gone: Vec<Volume> =
                all.into_iter().filter(|v| (named_too || v.anonymous) && !used.contains(&v.name) && fits(v)).collect();
            for volume in &gone {
                delete(tx, &volume.name)?;
            }
            Ok(gone)
        })?;
        Ok(gone.into_iter().map(|v| (v.name.clone(), self.remove_files(&v.name))).collect())
    }

    /// Makes the directory of a volume that a container is to have, if it is missing, and keeps with it how the volume
    /// is to be then. One that is there stays as it is.
    pub(crate) fn make_ready(&self, name: &str, terms: Option<&VolumeTerms>) -> Result<(), Error> {
        let wished = terms.map(|terms| &terms.options).filter(|options| !options.is_empty());
        if let Some(options) = wished.filter(|_| self.find(name).is_err()) {
            driver::check(options).map_err(|reason| Error::invalid(format!("create {name}: {reason}")))?;
            self.make_directory(name)?;
            return driver::keep(self.store.root(), name, options).map_err(|e| kept(name, &e));
        }
        self.make_directory(name).map(|_| ())
    }

    /// The directory for a volume of this name, made if it is missing.
    fn make_directory(&self, name: &str) -> Result<PathBuf, Error> {
        let path = path(self.store.root(), name);
        let failed = |e: io::Error| Error::internal(format!("cannot make volume {name}: {e}"));
        if !path.exists() {
            fs::create_dir_all(&path).map_err(failed)?;
            fs::set_permissions(&path, fs::Permissions::from_mode(0o755)).map_err(failed)?;
        }
        Ok(path)
    }

    /// Removes the files of a volume that has no row any more. What cannot be removed has no name and is found by the
    /// next sweep.
    pub(crate) fn remove_files(&self, name: &str) -> u64 {
        self.tell("destroy", name);
        let removed = filesystem::clear(&path(self.store.root(), name))
            .and_then(|()| Root::open(self.store.root()))
            .and_then(|root| root.remove_all(&Path::new("volumes").join(name), Walk::NoLinks));
        removed.unwrap_or_else(|error| {
            tracing::warn!(%error, volume = name, "files of a removed volume stay");
            0
        })
    }
}

fn kept(name: &str, error: &io::Error) -> Error {
    Error::internal(format!("cannot keep the options of volume {name}: {error}"))
}

/// Where the files of a volume are.
pub(crate) fn path(store: &Path, name: &str) -> PathBuf {
    store.join("volumes").join(name).join("_data")
}

/// Refuses what is no volume name, in docker's words.
pub(crate) fn check_name(name: &str) -> Result<(), Error> {
    if name.len() == 1 {
        let message =
            format!("create {name}: volume name is too short, names should be at least two alphanumeric characters");
        return Err(Error::invalid(message));
    }
    let plain = |b: u8| b.is_ascii_alphanumeric() || b"_.-".contains(&b);
    let good =
        name.len() <= 255 && name.bytes().all(plain) && name.bytes().next().is_some_and(|b| b.is_ascii_alphanumeric());
    if good {
        return Ok(());
    }
    Err(Error::invalid(format!(
        "create {name}: \"{name}\" includes invalid characters for a local volume name, only \
         \"[a-zA-Z0-9][a-zA-Z0-9_.-]\" are allowed. If you intended to pass a host directory, use absolute path"
    )))
}

/// Fills an empty volume with what the image has at the place it is mounted on: files, owners, modes. With `ids` owners are
/// those who are in a container of these users what they are in the image.
pub(crate) fn fill(store: &Path, name: &str, image: Option<(&Root, &Path)>, ids: Option<&IdMaps>) -> Result<(), Error> {
    let failed = |e: io::Error| Error::internal(format!("cannot fill the volume {name}: {e}"));
    // Two containers that share a new volume must not both fill it.
    let guard = fs::File::open(store.join("volumes").join(name)).map_err(failed)?;
    rbuild_store::lock::lock(&guard, rbuild_store::lock::Lock::Alone)?;
    // Nothing there, or a file: the volume stays empty.
    let from: Option<Dir> = image.and_then(|(root, destination)| root.open_dir(destination, Walk::InRoot).ok());
    if from.is_none() && ids.is_none() {
        return Ok(());
    }
    let to = open(store, name)?;
    if !to.read_dir(Path::new("."), Walk::NoLinks).map_err(failed)?.is_empty() {
        return Ok(());
    }
    let to = to.open_dir(Path::new("."), Walk::NoLinks).map_err(failed)?;
    if let Some(from) = from {
        copy_tree(&from, &to).map_err(failed)?;
    }
    match ids {
        Some(ids) => crate::containers::give_tree(to, ids).map_err(failed),
        None => Ok(()),
    }
}

const COLUMNS: &str = "SELECT name, labels, anonymous, created FROM volumes";

fn from_row(root: &Path, row: &Row<'_>) -> rusqlite::Result<Volume> {
    let name: String = row.get(0)?;
    let labels: String = row.get(1)?;
    Ok(Volume {
        mountpoint: path(root, &name),
        options: driver::options(root, &name),
        labels: serde_json::from_str(&labels).unwrap_or_default(),
        anonymous: row.get(2)?,
        created: db::time(row.get(3)?),
        name,
    })
}

fn get(tx: &Transaction<'_>, root: &Path, name: &str) -> rusqlite::Result<Option<Volume>> {
    let mut query = tx.prepare_cached(&format!("{COLUMNS} WHERE name = ?"))?;
    query.query_row([name], |row| from_row(root, row)).optional()
}

/// Makes the row of a volume, unless it has one; whether it had none.
pub(crate) fn insert(
    tx: &Transaction<'_>,
    name: &str,
    labels: &BTreeMap<String, String>,
    anonymous: bool,
) -> rusqlite::Result<bool> {
    let labels = serde_json::to_string(labels).map_err(|e| rusqlite::Error::ToSqlConversionFailure(Box::new(e)))?;
    let made = tx
        .prepare_cached(
            "INSERT OR IGNORE INTO volumes (name, driver, labels, anonymous, created) VALUES (?, 'local', ?, ?, ?)",
        )?
        .execute((name, labels, anonymous, db::nanos(SystemTime::now())))?;
    Ok(made > 0)
}

pub(crate) fn delete(tx: &Transaction<'_>, name: &str) -> rusqlite::Result<()> {
    tx.prepare_cached("DELETE FROM volumes WHERE name = ?")?.execute([name])?;
    Ok(())
}

/// Names of the volumes a container has.
pub(crate) fn volume_names(container: &Container) -> impl Iterator<Item = &str> {
    container.mounts.iter().filter_map(|mount| match &mount.kind {
        MountKind::Volume { name, .. } => Some(name.as_str()),
        _ => None,
    })
}

pub(crate) fn used(containers: &[Container]) -> BTreeSet<String> {
    containers.iter().flat_map(volume_names).map(str::to_owned).collect()
}
