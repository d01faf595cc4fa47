//! The container as the store knows it: its configuration, written once, and what is known of it now.

use std::collections::BTreeMap;
use std::path::{Path, PathBuf};
use std::time::SystemTime;

use rbuild_oci::{ContainerConfig, Digest};
use rbuild_runtime::container::{State, is_locked};
use rbuild_runtime::ids::IdMaps;
use rbuild_store::db;
use rbuild_store::rusqlite::{self, OptionalExtension, Row, Transaction};
use serde::{Deserialize, Serialize};

use super::request::{HostSettings, Looks, Membership, Relabel};

/// A container's configuration: the row of the table `containers`.
#[derive(Debug, Clone, Serialize, Deserialize)]
pub struct Container {
    /// 64 hexadecimal digits.
    pub id: String,
    pub name: String,
    /// Nanoseconds since 1970.
    pub created: i64,
    /// As the user wrote it.
    pub image: String,
    /// The image's id, `sha256:…`.
    pub image_id: String,
    /// Digest of the image's manifest or index.
    pub image_target: Digest,
    /// The snapshot the writable layer stands on.
    pub parent: Option<String>,
    pub hostname: String,
    pub domainname: String,
    /// What is run and how, the image's and the request's together.
    pub config: ContainerConfig,
    pub tty: bool,
    pub stdin: bool,
    pub stdin_once: bool,
    pub mounts: Vec<MountPoint>,
    /// See [`Container::memberships`].
    #[serde(default)]
    pub networks: Option<Vec<Membership>>,
    pub host: HostSettings,
    /// Which users of the machine its are; `None` for the same ones.
    #[serde(default)]
    pub ids: Option<IdMaps>,
}

/// Something mounted into a container.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct MountPoint {
    pub kind: MountKind,
    pub destination: String,
    pub read_only: bool,
    /// Of the volume or image only this path.
    #[serde(default)]
    pub subpath: Option<PathBuf>,
    #[serde(default)]
    pub looks: Looks,
}

impl MountPoint {
    /// Its options as `-v` takes them.
    pub(super) fn mode(&self) -> String {
        let label = self.looks.label.map(|label| match label {
            Relabel::Shared => "z",
            Relabel::Private => "Z",
        });
        let words = [self.read_only.then_some("ro"), label, self.looks.idmap.then_some("idmap")];
        words.into_iter().flatten().collect::<Vec<_>>().join(",")
    }
}

#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub enum MountKind {
    Bind {
        source: PathBuf,
        propagation: Option<String>,
        recursive: bool,
        /// The mounts below it do not become read-only with it.
        #[serde(default)]
        writable_below: bool,
    },
    Volume {
        name: String,
        anonymous: bool,
    },
    Tmpfs {
        options: Vec<String>,
    },
    /// The digest of an image's manifest or index, and its files.
    Image {
        name: String,
        target: Digest,
        snapshot: String,
    },
}

/// What a container is doing.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub enum Status {
    Created,
    Running,
    Paused,
    /// Its program ended and is about to be started again.
    Restarting,
    Exited,
}

impl Status {
    pub fn as_str(self) -> &'static str {
        match self {
            Status::Created => "created",
            Status::Running => "running",
            Status::Paused => "paused",
            Status::Restarting => "restarting",
            Status::Exited => "exited",
        }
    }

    /// Whether it runs, or will without anybody asking: it has a monitor.
    pub fn is_alive(self) -> bool {
        matches!(self, Status::Running | Status::Paused | Status::Restarting)
    }
}

/// A container with its present state.
#[derive(Debug, Clone)]
pub struct Seen {
    pub container: Container,
    pub status: Status,
    pub state: State,
}

impl Container {
    pub fn short_id(&self) -> &str {
        self.id.get(..12).unwrap_or(&self.id)
    }

    pub fn created_at(&self) -> SystemTime {
        db::time(self.created)
    }

    /// What is executed: entrypoint, then command.
    pub fn args(&self) -> Vec<String> {
        let entrypoint = self.config.entrypoint.iter().flatten();
        entrypoint.chain(self.config.cmd.iter().flatten()).cloned().collect()
    }

    pub fn labels(&self) -> &BTreeMap<String, String> {
        &self.config.labels
    }

    /// The state now, from the container's directory.
    pub fn see(self, directory: &Path) -> Seen {
        let mut state = State::read(directory);
        let alive = is_locked(directory);
        // Read again: the monitor may have written its last word and let the lock go in between.
        if !alive {
            state = State::read(directory);
        }
        let status = match (alive, &state.started, &state.finished) {
            (true, Some(_), None) if directory.join("paused").exists() => Status::Paused,
            (true, Some(_), None) => Status::Running,
            (_, None, _) => Status::Created,
            (true, Some(_), Some(_)) if state.restarting => Status::Restarting,
            (false, Some(_), None) => {
                unseen_end(&mut state);
                Status::Exited
            }
            (_, Some(_), Some(_)) => Status::Exited,
        };
        Seen { container: self, status, state }
    }

    /// The state of a container whose monitor is known to be dead: the caller holds its lock.
    pub(super) fn see_dead(self, directory: &Path) -> Seen {
        let mut state = State::read(directory);
        unseen_end(&mut state);
        Seen { container: self, status: Status::Exited, state }
    }
}

/// Its monitor was killed, and everything inside with it.
fn unseen_end(state: &mut State) {
    state.pid = 0;
    state.exit_code = UNKNOWN_EXIT;
    state.error = "the container's monitor was killed: its exit status is not known".into();
}

/// The exit code of a container whose end nobody saw.
const UNKNOWN_EXIT: i32 = 137;

const COLUMNS: &str = "SELECT json FROM containers";

fn from_row(row: &Row<'_>) -> rusqlite::Result<Container> {
    let json: String = row.get(0)?;
    serde_json::from_str(&json)
        .map_err(|e| rusqlite::Error::FromSqlConversionFailure(0, rusqlite::types::Type::Text, Box::new(e)))
}

/// Every container, newest first.
pub(super) fn all(tx: &Transaction<'_>) -> rusqlite::Result<Vec<Container>> {
    tx.prepare_cached(&format!("{COLUMNS} ORDER BY created DESC, id"))?.query_map([], from_row)?.collect()
}

pub(super) fn by_id(tx: &Transaction<'_>, id: &str) -> rusqlite::Result<Option<Container>> {
    tx.prepare_cached(&format!("{COLUMNS} WHERE id = ?"))?.query_row([id], from_row).optional()
}

pub(super) fn by_name(tx: &Transaction<'_>, name: &str) -> rusqlite::Result<Option<Container>> {
    tx.prepare_cached(&format!("{COLUMNS} WHERE name = ?"))?.query_row([name], from_row).optional()
}

/// Those whose id begins so, at most two.
pub(super) fn by_prefix(tx: &Transaction<'_>, prefix: &str) -> rusqlite::Result<Vec<Container>> {
    tx.prepare_cached(&format!("{COLUMNS} WHERE substr(id, 1, ?) = ? LIMIT 2"))?
        .query_map((prefix.len() as i64, prefix), from_row)?
        .collect()
}

pub(super) fn insert(tx: &Transaction<'_>, container: &Container) -> rusqlite::Result<()> {
    let json = serde_json::to_string(container).map_err(|e| rusqlite::Error::ToSqlConversionFailure(Box::new(e)))?;
    tx.prepare_cached("INSERT INTO containers (id, name, json, created) VALUES (?, ?, ?, ?)")?.execute((
        &container.id,
        &container.name,
        json,
        container.created,
    ))?;
    let mut refer = tx.prepare_cached("INSERT OR IGNORE INTO refs (owner, target) VALUES (?, ?)")?;
    let owner = owner(&container.id);
    refer.execute((&owner, format!("image:{}", container.image_target)))?;
    if let Some(parent) = &container.parent {
        refer.execute((&owner, format!("snapshot:{parent}")))?;
    }
    for mount in &container.mounts {
        if let MountKind::Image { target, snapshot, .. } = &mount.kind {
            refer.execute((&owner, format!("image:{target}")))?;
            refer.execute((&owner, format!("snapshot:{snapshot}")))?;
        }
    }
    Ok(())
}

/// Replaces the row of a container that was changed (renamed, updated).
pub(super) fn update(tx: &Transaction<'_>, container: &Container) -> rusqlite::Result<()> {
    let json = serde_json::to_string(container).map_err(|e| rusqlite::Error::ToSqlConversionFailure(Box::new(e)))?;
    tx.prepare_cached("UPDATE containers SET name = ?, json = ? WHERE id = ?")?.execute((
        &container.name,
        json,
        &container.id,
    ))?;
    Ok(())
}

/// Removes the row and what the container kept alive; whether there was one.
pub(super) fn delete(tx: &Transaction<'_>, id: &str) -> rusqlite::Result<bool> {
    tx.prepare_cached("DELETE FROM refs WHERE owner = ?")?.execute([owner(id)])?;
    Ok(tx.prepare_cached("DELETE FROM containers WHERE id = ?")?.execute([id])? > 0)
}

fn owner(id: &str) -> String {
    format!("container:{id}")
}
