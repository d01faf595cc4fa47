//! Builds that were made here: what was asked for, what happened, how it ended.
//!
//! A row in `builds` for each, whose id is that of the lease its process holds: `running` is not stored, it is that lease
//! being alive. What happened is a journal ([`journal`]), in the row or, once a step really ran, in a file that others can
//! follow. This is the only writer of the table. The history is bounded; the oldest go.

pub mod journal;
pub(crate) mod recording;
mod revision;

use std::collections::BTreeMap;
use std::fs;
use std::path::{Path, PathBuf};
use std::time::{Duration, SystemTime};

use rbuild_executor::sources::git::redacted;
use rbuild_graph::ops::Network;
use rbuild_store::db::time;
use rbuild_store::rusqlite::{OptionalExtension, Row};
use rbuild_store::{Durability, Store};
use serde::{Deserialize, Serialize};

use crate::engine::Engine;
use crate::error::{Error, Kind};
use crate::request::{BuildContext, BuildRequest, DockerfileSource};

pub use journal::Journal;
pub use revision::Revision;

/// The file of a build's directory that holds its journal.
const JOURNAL: &str = "journal";
/// Builds that are kept, and bytes of their journals.
const KEPT: usize = 500;
const KEPT_BYTES: u64 = 1 << 30;

/// What was asked for, as far as it may be written down.
#[derive(Debug, Clone, Default, PartialEq, Serialize, Deserialize)]
#[serde(default)]
pub struct Requested {
    /// For people: the directory or repository, and the target.
    pub name: String,
    /// As given, without credentials.
    pub context: String,
    /// The directory of a local context.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub local: Option<PathBuf>,
    pub dockerfile: String,
    #[serde(skip_serializing_if = "Option::is_none")]
    pub target: Option<String>,
    #[serde(skip_serializing_if = "Vec::is_empty")]
    pub platforms: Vec<String>,
    #[serde(skip_serializing_if = "Vec::is_empty")]
    pub tags: Vec<String>,
    #[serde(skip_serializing_if = "BTreeMap::is_empty")]
    pub build_args: BTreeMap<String, String>,
    #[serde(skip_serializing_if = "BTreeMap::is_empty")]
    pub labels: BTreeMap<String, String>,
    #[serde(skip_serializing_if = "std::ops::Not::not")]
    pub no_cache: bool,
    #[serde(skip_serializing_if = "std::ops::Not::not")]
    pub pull: bool,
    #[serde(skip_serializing_if = "Option::is_none")]
    pub network: Option<String>,
    #[serde(skip_serializing_if = "Option::is_none")]
    pub revision: Option<Revision>,
}

impl Requested {
    fn of(request: &BuildRequest) -> Requested {
        let local = match &request.context {
            BuildContext::Directory(path) => Some(fs::canonicalize(path).unwrap_or_else(|_| path.clone())),
            _ => None,
        };
        let context = match &request.context {
            BuildContext::Directory(path) | BuildContext::Unpacked(path) => path.display().to_string(),
            BuildContext::Remote(address) => redacted(address),
            BuildContext::Empty | BuildContext::Stream(_) => "-".to_owned(),
        };
        let dockerfile = match &request.dockerfile {
            DockerfileSource::File(Some(path)) => path.display().to_string(),
            DockerfileSource::File(None) => "Dockerfile".to_owned(),
            DockerfileSource::Text(_) => "-".to_owned(),
            DockerfileSource::Remote(address) => redacted(address),
        };
        let network = match request.network {
            Network::Default => None,
            Network::None => Some("none".to_owned()),
            Network::Host => Some("host".to_owned()),
        };
        Requested {
            name: name(local.as_deref(), &context, &dockerfile, request.target.as_deref()),
            context,
            local,
            dockerfile,
            target: request.target.clone(),
            platforms: request.platforms.iter().map(ToString::to_string).collect(),
            tags: request.tags.iter().map(|tag| tag.familiar()).collect(),
            build_args: request.build_args.clone(),
            labels: request.labels.iter().cloned().collect(),
            no_cache: request.no_cache,
            pull: request.pull,
            network,
            revision: None,
        }
    }

    /// What two builds have in common whose steps are worth comparing.
    fn project(&self) -> String {
        let mut hasher = blake3::Hasher::new();
        let context = self.local.as_ref().map_or_else(|| self.context.clone(), |path| path.display().to_string());
        for part in [&context, &self.dockerfile, self.target.as_deref().unwrap_or_default()] {
            hasher.update(&(part.len() as u64).to_le_bytes()).update(part.as_bytes());
        }
        hasher.finalize().to_hex()[..32].to_owned()
    }
}

fn name(local: Option<&Path>, context: &str, dockerfile: &str, target: Option<&str>) -> String {
    let last = |text: &str| text.trim_end_matches('/').rsplit('/').next().unwrap_or(text).to_owned();
    let mut name = match local.and_then(Path::file_name) {
        Some(name) => name.to_string_lossy().into_owned(),
        None => last(context.split('#').next().unwrap_or(context)).trim_end_matches(".git").to_owned(),
    };
    let file = last(dockerfile);
    if file != "Dockerfile" && file != "-" {
        name = format!("{name}/{file}");
    }
    match target {
        Some(target) => format!("{name} ({target})"),
        None => name,
    }
}

/// How a build is, or ended.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum Status {
    Running,
    Completed,
    Error,
    Canceled,
}

impl Status {
    /// In buildx's words.
    pub fn name(self) -> &'static str {
        match self {
            Status::Running => "Running",
            Status::Completed => "Completed",
            Status::Error => "Error",
            Status::Canceled => "Canceled",
        }
    }
}

/// Steps and warnings, counted.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct Counts {
    pub total: u32,
    pub completed: u32,
    pub cached: u32,
    pub warnings: u32,
}

/// Why a build failed.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct Failure {
    pub message: String,
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub hints: Vec<String>,
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub step: Option<String>,
    /// The Dockerfile's line.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub line: Option<u32>,
}

impl Failure {
    fn of(error: &Error) -> Failure {
        Failure {
            message: error.message.clone(),
            hints: error.hints.clone(),
            step: error.step.as_ref().map(|step| step.name.clone()),
            line: error.span.map(|span| span.line),
        }
    }
}

#[derive(Serialize, Deserialize)]
struct Ending {
    status: Status,
    failure: Option<Failure>,
    counts: Counts,
}

/// A build of the history.
#[derive(Debug, Clone, PartialEq)]
pub struct BuildRecord {
    pub id: String,
    pub requested: Requested,
    pub started: SystemTime,
    /// `None` while it runs. Of a build that was killed, when it last gave a sign.
    pub ended: Option<SystemTime>,
    pub status: Status,
    pub failure: Option<Failure>,
    pub counts: Counts,
    pub(crate) project: String,
}

impl BuildRecord {
    /// How long it ran, or runs by now.
    pub fn duration(&self) -> Duration {
        self.ended.unwrap_or_else(SystemTime::now).duration_since(self.started).unwrap_or_default()
    }

    /// The share of its steps that came from the cache, from 0 to 1.
    pub fn cached_share(&self) -> f64 {
        if self.counts.total == 0 { 0.0 } else { f64::from(self.counts.cached) / f64::from(self.counts.total) }
    }
}

/// The builds of a store.
#[derive(Clone)]
pub struct Builds {
    store: Store,
}

impl Engine {
    /// The builds that were made in this engine's store.
    pub fn builds(&self) -> Builds {
        Builds::new(self.store().clone())
    }
}

const COLUMNS: &str = "id, project, request, started, ended, outcome";

impl Builds {
    pub(crate) fn new(store: Store) -> Builds {
        Builds { store }
    }

    pub(crate) fn store(&self) -> &Store {
        &self.store
    }

    /// All of them, the newest first.
    ///
    /// # Errors
    /// The store cannot be read.
    pub fn list(&self) -> Result<Vec<BuildRecord>, Error> {
        self.select(&format!("SELECT {COLUMNS} FROM builds ORDER BY started DESC, id"), &[])
    }

    /// The builds before `build` of the same context, Dockerfile and target, the newest first, at most `most`.
    pub(crate) fn before(&self, build: &BuildRecord, most: u32) -> Result<Vec<BuildRecord>, Error> {
        let sql = format!(
            "SELECT {COLUMNS} FROM builds WHERE project = ? AND started < ? ORDER BY started DESC LIMIT {most}"
        );
        self.select(&sql, &[&build.project, &rbuild_store::db::nanos(build.started)])
    }

    /// The build of this id or beginning of one. None is the last; `^2` is the second before that.
    ///
    /// # Errors
    /// There is none, or several begin so.
    pub fn find(&self, reference: Option<&str>) -> Result<BuildRecord, Error> {
        let reference = reference.unwrap_or("^0");
        if let Some(back) = reference.strip_prefix('^') {
            let back: u32 = match back {
                "" => 1,
                number => {
                    number.parse().map_err(|_| Error::invalid(format!("invalid build reference {reference:?}")))?
                }
            };
            let sql = format!("SELECT {COLUMNS} FROM builds ORDER BY started DESC, id LIMIT 1 OFFSET {back}");
            let found = self.select(&sql, &[])?.pop();
            return found.ok_or_else(|| match back {
                0 => Error::not_found("no build is in the history yet"),
                _ => Error::not_found(format!("the history has no build {reference}")),
            });
        }
        // As buildx shows them: builder/node/id.
        let id = reference.rsplit('/').next().unwrap_or(reference);
        let plain = !id.is_empty() && id.bytes().all(|byte| byte.is_ascii_lowercase() || byte.is_ascii_digit());
        let mut found = match plain {
            true => {
                let sql =
                    format!("SELECT {COLUMNS} FROM builds WHERE id >= ?1 AND id < ?1 || 'zz' ORDER BY id LIMIT 2");
                self.select(&sql, &[&id])?
            }
            false => Vec::new(),
        };
        match (found.pop(), found.pop()) {
            (None, _) => Err(Error::not_found(format!("no build {reference:?} in the history"))),
            (Some(one), None) => Ok(one),
            (Some(_), Some(first)) if first.id == id => Ok(first),
            _ => Err(Error::invalid(format!("several builds begin with {reference:?}"))),
        }
    }

    /// What happened in a build, as it is kept: lines for [`journal::Entry::read`].
    ///
    /// # Errors
    /// It cannot be read.
    pub fn journal(&self, id: &str) -> Result<Vec<u8>, Error> {
        let row: Option<Option<Vec<u8>>> = self.store.db().read(|tx| {
            let mut query = tx.prepare_cached("SELECT journal FROM builds WHERE id = ?")?;
            Ok(query.query_row([id], |row| row.get(0)).optional()?)
        })?;
        match row {
            Some(Some(journal)) => Ok(journal),
            _ => match fs::read(self.journal_path(id)) {
                Ok(journal) => Ok(journal),
                Err(error) if error.kind() == std::io::ErrorKind::NotFound => Ok(Vec::new()),
                Err(error) => Err(Error::internal(format!("reading the journal of build {id}: {error}"))),
            },
        }
    }

    /// Where the journal of a build is, once a step of it ran; it grows while the build does.
    pub fn journal_path(&self, id: &str) -> PathBuf {
        self.store.root().join("builds").join(id).join(JOURNAL)
    }

    /// Forgets builds. One that runs is refused.
    ///
    /// # Errors
    /// A build runs, or the store cannot be changed.
    pub fn remove(&self, builds: &[BuildRecord]) -> Result<(), Error> {
        if let Some(build) = builds.iter().find(|build| build.status == Status::Running) {
            return Err(Error::new(Kind::Conflict, format!("build {} is running", build.id)));
        }
        self.store.db().write(Durability::Named, |tx| {
            for build in builds {
                tx.prepare_cached("DELETE FROM builds WHERE id = ?")?.execute([&build.id])?;
            }
            Ok(())
        })?;
        for build in builds {
            self.remove_directory(&build.id);
        }
        Ok(())
    }

    /// Removes the oldest builds where there are too many, or their journals are too large.
    ///
    /// # Errors
    /// The store cannot be changed.
    pub fn trim(&self) -> Result<(), Error> {
        let mut bytes = 0;
        let mut old = Vec::new();
        for (n, build) in self.list()?.into_iter().enumerate() {
            bytes += fs::metadata(self.journal_path(&build.id)).map_or(0, |found| found.len());
            if (n >= KEPT || bytes > KEPT_BYTES) && build.status != Status::Running {
                old.push(build);
            }
        }
        if !old.is_empty() {
            self.remove(&old)?;
        }
        Ok(rbuild_cache::trace::trim(self.store.db())?)
    }

    fn ending(&self, id: &str) -> Result<Option<(Option<i64>, Ending)>, Error> {
        let row: Option<(Option<i64>, Option<String>)> = self.store.db().read(|tx| {
            let mut query = tx.prepare_cached("SELECT ended, outcome FROM builds WHERE id = ?")?;
            Ok(query.query_row([id], |row| Ok((row.get(0)?, row.get(1)?))).optional()?)
        })?;
        Ok(row.and_then(|(ended, outcome)| Some((ended, serde_json::from_str(&outcome?).ok()?))))
    }

    /// Whatever stays behind holds nothing but a log.
    fn remove_directory(&self, id: &str) {
        let path = self.store.root().join("builds").join(id);
        if let Err(error) = fs::remove_dir_all(&path)
            && error.kind() != std::io::ErrorKind::NotFound
        {
            tracing::warn!(%error, path = %path.display(), "the log of a removed build stays");
        }
    }

    fn select(&self, sql: &str, parameters: &[&dyn rbuild_store::rusqlite::ToSql]) -> Result<Vec<BuildRecord>, Error> {
        let rows: Vec<BuildRow> = self.store.db().read(|tx| {
            let mut query = tx.prepare_cached(sql)?;
            let rows = query.query_map(parameters, BuildRow::of)?;
            Ok(rows.collect::<Result<_, _>>()?)
        })?;
        rows.into_iter().map(|row| self.understand(row)).collect()
    }

    fn understand(&self, row: BuildRow) -> Result<BuildRecord, Error> {
        let requested = serde_json::from_str(&row.request).unwrap_or_default();
        let ending: Option<Ending> = row.outcome.and_then(|text| serde_json::from_str(&text).ok());
        let started = time(row.started);
        let record = |ended, status, failure, counts| BuildRecord {
            id: row.id.clone(),
            requested,
            started,
            ended,
            status,
            failure,
            counts,
            project: row.project.clone(),
        };
        if let Some(ending) = ending {
            return Ok(record(row.ended.map(time), ending.status, ending.failure, ending.counts));
        }
        let counts = counts_of(&Journal::read(&self.journal(&row.id)?));
        if self.store.is_lease_alive(&row.id)? {
            return Ok(record(None, Status::Running, None, counts));
        }
        // It may have ended since the row was read.
        if let Some((ended, ending)) = self.ending(&row.id)? {
            return Ok(record(ended.map(time), ending.status, ending.failure, ending.counts));
        }
        let last = fs::metadata(self.journal_path(&row.id)).and_then(|found| found.modified());
        let failure = Failure { message: "the build was killed".into(), ..Failure::default() };
        Ok(record(Some(last.unwrap_or(started)), Status::Error, Some(failure), counts))
    }
}

struct BuildRow {
    id: String,
    project: String,
    request: String,
    started: i64,
    ended: Option<i64>,
    outcome: Option<String>,
}

impl BuildRow {
    fn of(row: &Row<'_>) -> rbuild_store::rusqlite::Result<BuildRow> {
        Ok(BuildRow {
            id: row.get(0)?,
            project: row.get(1)?,
            request: row.get(2)?,
            started: row.get(3)?,
            ended: row.get(4)?,
            outcome: row.get(5)?,
        })
    }
}

fn counts_of(journal: &Journal) -> Counts {
    let mut counts = Counts { warnings: journal.warnings.len() as u32, ..Counts::default() };
    for step in journal.shown() {
        counts.total += 1;
        match &step.ended {
            Some((_, journal::Ended::Done)) => counts.completed += 1,
            Some((_, journal::Ended::Cached)) => {
                counts.completed += 1;
                counts.cached += 1;
            }
            _ => {}
        }
    }
    counts
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn builds_have_names() {
        for (local, context, file, target, want) in [
            (Some("/src/web"), ".", "Dockerfile", None, "web"),
            (Some("/src/web"), ".", "docker/Dockerfile.dev", Some("test"), "web/Dockerfile.dev (test)"),
            (None, "https://host/team/repo.git#v1:sub", "Dockerfile", None, "repo"),
            (None, "-", "-", None, "-"),
        ] {
            assert_eq!(name(local.map(Path::new), context, file, target), want);
        }
    }
}
