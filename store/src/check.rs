//! Whether the database and the disk agree (reliability R18), and making them agree again.
//!
//! What a row names must be there and be what its digest says. What is damaged is never mended in place: repairing
//! forgets it, with what stands on it, so that the next command that needs it makes or fetches it again. Names are only
//! lost together with the content that they had. Containers are never forgotten, since what was written in them
//! exists nowhere else.
//!
//! Rows and names of files are compared in one write transaction, while which nobody publishes or removes: so a check may
//! run beside any other command. Content is read outside it, and what seems damaged is asked for once more.

use std::collections::{BTreeMap, BTreeSet};
use std::ffi::OsStr;
use std::fmt;
use std::io::Read;

use rbuild_oci::{DiffId, Digest, Document, ImageConfig, limits};
use rusqlite::Transaction;

use crate::db::Durability;
use crate::error::{Context, Result, StoreError};
use crate::lease;
use crate::snapshots::{SnapshotId, SnapshotRow, list_in};
use crate::store::{Core, Store};

/// What a check looks at, and what it does.
#[derive(Debug, Clone, Copy, Default)]
pub struct CheckOptions {
    /// Make every layer's tar again and compare its digest. Takes as long as reading and unpacking all images.
    pub deep: bool,
    /// Forget what is damaged.
    pub repair: bool,
}

/// Something that is not as the database says.
#[derive(Debug, Clone, PartialEq, Eq, PartialOrd, Ord)]
pub enum Problem {
    /// In SQLite's words.
    Database(String),
    Blob {
        digest: Digest,
        reason: String,
    },
    Snapshot {
        id: SnapshotId,
        reason: String,
    },
    Image {
        target: String,
        names: Vec<String>,
        reason: String,
    },
    /// The result of a step.
    Record {
        key: String,
        reason: String,
    },
    /// Somebody keeps a thing that is not there.
    Reference {
        owner: String,
        target: String,
    },
    /// A name of an image that is not there.
    Name {
        name: String,
    },
    Container {
        id: String,
        reason: String,
    },
    Volume {
        name: String,
    },
}

impl fmt::Display for Problem {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Problem::Database(reason) => write!(f, "database: {reason}"),
            Problem::Blob { digest, reason } => write!(f, "blob {digest}: {reason}"),
            Problem::Snapshot { id, reason } => write!(f, "file tree {id}: {reason}"),
            Problem::Image { target, names, reason } if names.is_empty() => write!(f, "image {target}: {reason}"),
            Problem::Image { names, reason, .. } => write!(f, "image {}: {reason}", names.join(", ")),
            Problem::Record { key, reason } => write!(f, "result {key} of a build step: {reason}"),
            Problem::Reference { owner, target } => write!(f, "{owner} uses {target}, which is not there"),
            Problem::Name { name } => write!(f, "name {name}: its image is not there"),
            Problem::Container { id, reason } => write!(f, "container {id}: {reason}"),
            Problem::Volume { name } => write!(f, "volume {name}: its directory is gone"),
        }
    }
}

impl Problem {
    /// Whether repairing leaves it, since nobody could make it again.
    pub fn stays(&self) -> bool {
        matches!(self, Problem::Database(_) | Problem::Container { .. })
    }
}

/// What a check found.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Checked {
    pub blobs: usize,
    pub snapshots: usize,
    pub images: usize,
    pub problems: Vec<Problem>,
    /// Files and directories of dead processes, as paths beneath the store. Harmless: the next collection removes them.
    pub leftovers: Vec<String>,
}

impl Store {
    /// Compares the database with the disk, and reads every blob.
    ///
    /// # Errors
    /// The store cannot be read at all, or not be changed when it is to be repaired.
    pub fn check(&self, options: &CheckOptions) -> Result<Checked> {
        let core = self.core();
        let mut checked = Checked::default();
        let mut seen = core.db.write(Durability::Cache, |tx| Seen::new(core, tx))?;
        checked.blobs = seen.blobs.len();
        checked.snapshots = seen.snapshots.len();
        for digest in seen.blobs.clone() {
            if let Some(reason) = self.damage(&digest)? {
                seen.damaged_blobs.insert(digest, reason);
            }
        }
        if options.deep {
            for row in seen.snapshots.values().cloned().collect::<Vec<_>>() {
                if !seen.damaged_snapshots.contains_key(&row.id)
                    && let Some(reason) = self.layer_damage(&row)?
                {
                    seen.damaged_snapshots.insert(row.id, reason);
                }
            }
        }
        core.db.write(Durability::Named, |tx| {
            checked.images = count(tx, "SELECT count(*) FROM images")?;
            checked.problems = seen.problems(core, tx)?;
            if options.repair { forget(tx, &checked.problems) } else { Ok(()) }
        })?;
        if options.repair {
            self.collect(&crate::CollectOptions { records: crate::Records::None })?;
        }
        checked.leftovers = leftovers(core)?;
        Ok(checked)
    }

    /// What is wrong with the content of a blob; `None` when nothing is, or it went meanwhile.
    fn damage(&self, digest: &Digest) -> Result<Option<String>> {
        let path = self.root().join(crate::blobs::path_of(digest));
        let Ok(expected) = self.blobs().size(digest) else { return Ok(None) };
        let found = match std::fs::File::open(&path) {
            Ok(mut file) => {
                let mut hash = crate::blobs::Hasher::new(digest.algorithm());
                let (mut size, mut buffer) = (0u64, vec![0; 1 << 18]);
                loop {
                    match file.read(&mut buffer).context(|| format!("reading blob {digest}"))? {
                        0 => break,
                        read => {
                            size += read as u64;
                            hash.update(&buffer[..read]);
                        }
                    }
                }
                match (size == expected, hash.finish()? == *digest) {
                    (true, true) => None,
                    (false, _) => Some(format!("it has {size} bytes instead of {expected}")),
                    (true, false) => Some("its content has another digest".to_owned()),
                }
            }
            Err(error) if error.kind() == std::io::ErrorKind::NotFound => Some("its file is gone".to_owned()),
            Err(error) => return Err(error).context(|| format!("reading blob {digest}")),
        };
        // Somebody who removes it takes the row away first.
        Ok(found.filter(|_| self.blobs().has(digest).unwrap_or(true)))
    }

    /// What is wrong with a snapshot whose layer is known.
    fn layer_damage(&self, row: &SnapshotRow) -> Result<Option<String>> {
        let Some(diff_id) = &row.diff_id else { return Ok(None) };
        let other = || Some(format!("its files are no longer those of layer {diff_id}"));
        let found = match self.layers().canonical(&row.id) {
            Err(error) if error.is_not_found() => return Ok(None),
            found => found?,
        };
        if found.diff_id == *diff_id {
            return Ok(None);
        }
        if row.newest.is_some() {
            return Ok(other());
        }
        // It was unpacked from an archive whose bytes nobody can make again: what that gives now is what it must be.
        let lease = self.lease("system check")?;
        let again = match self.layers().open_diff(diff_id) {
            Ok(mut tar) => match self.layers().apply(&mut *tar, row.parent.as_ref(), &lease) {
                Ok(applied) => applied.snapshot,
                // The blob is at fault, which is found there.
                Err(_) => return Ok(None),
            },
            Err(_) => return Ok(None),
        };
        let same = self.layers().canonical(again.id())? == found;
        let id = again.id().clone();
        drop((again, lease));
        self.snapshots().remove(&id)?;
        Ok(if same { None } else { other() })
    }
}

/// What the database says, and what of it is not there.
struct Seen {
    blobs: BTreeSet<Digest>,
    snapshots: BTreeMap<SnapshotId, SnapshotRow>,
    damaged_blobs: BTreeMap<Digest, String>,
    damaged_snapshots: BTreeMap<SnapshotId, String>,
}

impl Seen {
    fn new(core: &Core, tx: &Transaction<'_>) -> Result<Seen> {
        let mut seen = Seen {
            blobs: BTreeSet::new(),
            snapshots: list_in(tx)?.into_iter().map(|row| (row.id.clone(), row)).collect(),
            damaged_blobs: BTreeMap::new(),
            damaged_snapshots: BTreeMap::new(),
        };
        for digest in texts(tx, "SELECT digest FROM blobs")? {
            seen.blobs.insert(digest.parse()?);
        }
        let directory = core.open_dir("snapshots")?;
        for row in seen.snapshots.values() {
            let reason =
                match directory.open_dir(OsStr::new(row.id.as_str())).and_then(|dir| dir.stat(OsStr::new("fs"))) {
                    Err(_) => Some("its directory is gone".to_owned()),
                    Ok(_) => row.needs().find(|id| !seen.snapshots.contains_key(*id)).map(missing),
                };
            if let Some(reason) = reason {
                seen.damaged_snapshots.insert(row.id.clone(), reason);
            }
        }
        Ok(seen)
    }

    /// Everything that is wrong, with what follows from it.
    fn problems(&mut self, core: &Core, tx: &Transaction<'_>) -> Result<Vec<Problem>> {
        let mut problems: Vec<Problem> = texts(tx, "PRAGMA integrity_check")?
            .into_iter()
            .filter(|line| line != "ok")
            .map(Problem::Database)
            .collect();
        // Only what is still there is a problem; others went on meanwhile.
        let blobs: BTreeSet<String> = texts(tx, "SELECT digest FROM blobs")?.into_iter().collect();
        let rows: BTreeMap<SnapshotId, SnapshotRow> =
            list_in(tx)?.into_iter().map(|row| (row.id.clone(), row)).collect();
        self.damaged_blobs.retain(|digest, _| blobs.contains(&digest.to_string()));
        self.damaged_snapshots.retain(|id, _| rows.contains_key(id));
        self.spread(&rows);
        for (digest, reason) in &self.damaged_blobs {
            problems.push(Problem::Blob { digest: digest.clone(), reason: reason.clone() });
        }
        for (id, reason) in &self.damaged_snapshots {
            problems.push(Problem::Snapshot { id: id.clone(), reason: reason.clone() });
        }
        self.images(core, tx, &rows, &mut problems)?;
        self.references(tx, &mut problems)?;
        containers_and_volumes(core, tx, &self.damaged_snapshots, &mut problems)?;
        problems.sort();
        problems.dedup();
        Ok(problems)
    }

    /// What stands on something damaged is of no use.
    fn spread(&mut self, rows: &BTreeMap<SnapshotId, SnapshotRow>) {
        loop {
            let new: Vec<(SnapshotId, String)> = rows
                .values()
                .filter(|row| !self.damaged_snapshots.contains_key(&row.id))
                .filter_map(|row| {
                    let damaged = row.needs().find(|id| self.damaged_snapshots.contains_key(*id))?;
                    Some((row.id.clone(), format!("it stands on the file tree {damaged}, which is damaged")))
                })
                .collect();
            if new.is_empty() {
                return;
            }
            self.damaged_snapshots.extend(new);
        }
    }

    fn has_blob(&self, tx: &Transaction<'_>, digest: &str) -> Result<bool> {
        let damaged = digest.parse().is_ok_and(|digest| self.damaged_blobs.contains_key(&digest));
        Ok(!damaged && tx.prepare_cached("SELECT 1 FROM blobs WHERE digest = ?")?.exists([digest])?)
    }

    fn images(
        &self,
        core: &Core,
        tx: &Transaction<'_>,
        rows: &BTreeMap<SnapshotId, SnapshotRow>,
        problems: &mut Vec<Problem>,
    ) -> Result<()> {
        let whole: BTreeSet<&DiffId> = rows
            .values()
            .filter(|row| !self.damaged_snapshots.contains_key(&row.id))
            .filter_map(|row| row.diff_id.as_ref())
            .collect();
        let mut query = tx.prepare_cached("SELECT target, config_digest FROM images ORDER BY target")?;
        let images = query.query_map([], |row| Ok((row.get::<_, String>(0)?, row.get::<_, String>(1)?)))?;
        for image in images.collect::<Result<Vec<_>, _>>()? {
            let (target, config) = image;
            let mut reason = None;
            for part in [&target, &config] {
                if !self.has_blob(tx, part)? {
                    reason.get_or_insert(format!("its part {part} is lost"));
                }
            }
            if reason.is_none() {
                let mut blobs: Option<Vec<Digest>> = None;
                for (at, diff_id) in diff_ids(core, &config)?.iter().enumerate() {
                    if whole.contains(diff_id) || self.has_layer_blob(tx, diff_id)? {
                        continue;
                    }
                    // What was pushed to this store is a blob that nobody has unpacked: its manifest tells which.
                    let blobs = blobs.get_or_insert_with(|| layers(core, &target, &config, 0).unwrap_or_default());
                    let here = blobs.get(at).map(|blob| self.has_blob(tx, &blob.to_string())).transpose()?;
                    if here != Some(true) {
                        reason.get_or_insert(format!("its layer {diff_id} is lost"));
                    }
                }
            }
            if let Some(reason) = reason {
                let mut names = tx.prepare_cached("SELECT name FROM names WHERE target = ? ORDER BY name")?;
                let names = names.query_map([&target], |row| row.get(0))?.collect::<Result<Vec<String>, _>>()?;
                problems.push(Problem::Image { target, names, reason });
            }
        }
        for name in texts(tx, "SELECT name FROM names WHERE target NOT IN (SELECT target FROM images)")? {
            problems.push(Problem::Name { name });
        }
        Ok(())
    }

    fn has_layer_blob(&self, tx: &Transaction<'_>, diff_id: &DiffId) -> Result<bool> {
        if self.has_blob(tx, &diff_id.0.to_string())? {
            return Ok(true);
        }
        let mut query = tx.prepare_cached("SELECT digest FROM layer_blobs WHERE diff_id = ?")?;
        let known: Vec<String> =
            query.query_map([diff_id.0.to_string()], |row| row.get(0))?.collect::<Result<_, _>>()?;
        for digest in known {
            if self.has_blob(tx, &digest)? {
                return Ok(true);
            }
        }
        Ok(false)
    }

    fn references(&self, tx: &Transaction<'_>, problems: &mut Vec<Problem>) -> Result<()> {
        let mut query = tx.prepare_cached("SELECT owner, target FROM refs ORDER BY owner, target")?;
        let refs = query.query_map([], |row| Ok((row.get::<_, String>(0)?, row.get::<_, String>(1)?)))?;
        for row in refs.collect::<Result<Vec<_>, _>>()? {
            let (owner, target) = row;
            let lost = match target.split_once(':') {
                Some(("blob", digest)) => !self.has_blob(tx, digest)?,
                Some(("snapshot", id)) => {
                    let id: SnapshotId = id.parse()?;
                    self.damaged_snapshots.contains_key(&id)
                        || !tx.prepare_cached("SELECT 1 FROM snapshots WHERE id = ?")?.exists([id.as_str()])?
                }
                Some(("image", digest)) => {
                    !tx.prepare_cached("SELECT 1 FROM images WHERE target = ?")?.exists([digest])?
                        && !owner.starts_with("container:")
                }
                _ => true,
            };
            if !lost {
                continue;
            }
            match owner.split_once(':') {
                Some(("record", key)) => {
                    problems.push(Problem::Record { key: key.to_owned(), reason: format!("{target} is lost") });
                }
                // Told as an image, or as a container, where that matters; what an index names may lack.
                Some(("image" | "container", _)) => {}
                _ => problems.push(Problem::Reference { owner, target }),
            }
        }
        Ok(())
    }
}

fn missing(id: &SnapshotId) -> String {
    format!("the file tree {id}, on which it stands, is gone")
}

/// The layers that a config in the store names; none when it cannot be read, which is a damage of its blob.
fn diff_ids(core: &Core, config: &str) -> Result<Vec<DiffId>> {
    let bytes = small_blob(core, &config.parse()?, limits::CONFIG);
    let config = bytes.and_then(|bytes| ImageConfig::parse(&bytes).ok());
    Ok(config.map(|config| config.rootfs.diff_ids).unwrap_or_default())
}

/// The layers of the manifest with this config, which is `target` or below it.
fn layers(core: &Core, target: &str, config: &str, depth: usize) -> Option<Vec<Digest>> {
    let bytes = small_blob(core, &target.parse().ok()?, limits::MANIFEST.max(limits::INDEX))?;
    match Document::parse(&bytes, None).ok()? {
        Document::Manifest(manifest) => {
            let digests = manifest.layers.into_iter().map(|layer| layer.digest).collect();
            (manifest.config.digest.to_string() == config).then_some(digests)
        }
        Document::Index(index) if depth < limits::INDEX_DEPTH => {
            index.manifests.iter().find_map(|child| layers(core, &child.digest.to_string(), config, depth + 1))
        }
        Document::Index(_) => None,
    }
}

fn small_blob(core: &Core, digest: &Digest, limit: u64) -> Option<Vec<u8>> {
    let path = core.path.join(crate::blobs::path_of(digest));
    let mut bytes = Vec::new();
    std::fs::File::open(path).and_then(|file| file.take(limit).read_to_end(&mut bytes)).ok()?;
    Some(bytes)
}

fn containers_and_volumes(
    core: &Core,
    tx: &Transaction<'_>,
    damaged: &BTreeMap<SnapshotId, String>,
    problems: &mut Vec<Problem>,
) -> Result<()> {
    let directory = core.open_dir("containers")?;
    for id in texts(tx, "SELECT id FROM containers ORDER BY id")? {
        if directory.stat(OsStr::new(&id)).is_err() {
            problems.push(Problem::Container { id, reason: "its directory is gone: remove it with rm".to_owned() });
            continue;
        }
        let mut query = tx.prepare_cached("SELECT target FROM refs WHERE owner = 'container:' || ?")?;
        let targets: Vec<String> = query.query_map([&id], |row| row.get(0))?.collect::<Result<_, _>>()?;
        for target in targets {
            let Some(snapshot) = target.strip_prefix("snapshot:") else { continue };
            let snapshot: SnapshotId = snapshot.parse()?;
            let known = tx.prepare_cached("SELECT 1 FROM snapshots WHERE id = ?")?.exists([snapshot.as_str()])?;
            if !known || damaged.contains_key(&snapshot) {
                let reason =
                    format!("its image's file tree {snapshot} is damaged; what it wrote itself is still there");
                problems.push(Problem::Container { id: id.clone(), reason });
            }
        }
    }
    let directory = core.open_dir("volumes")?;
    for name in texts(tx, "SELECT name FROM volumes ORDER BY name")? {
        if directory.stat(OsStr::new(&name)).is_err() {
            problems.push(Problem::Volume { name });
        }
    }
    Ok(())
}

/// Removes the rows of what is damaged, save of what a container stands on.
fn forget(tx: &Transaction<'_>, problems: &[Problem]) -> Result<()> {
    for problem in problems {
        match problem {
            Problem::Blob { digest, .. } => {
                crate::blobs::remove_row(tx, digest)?;
            }
            Problem::Snapshot { id, .. } => {
                tx.execute(
                    "DELETE FROM snapshots WHERE id = ?1 AND NOT EXISTS
                         (SELECT 1 FROM refs WHERE target = 'snapshot:' || ?1 AND owner LIKE 'container:%')",
                    [id.as_str()],
                )?;
            }
            Problem::Image { target, .. } => {
                tx.execute("DELETE FROM names WHERE target = ?", [target])?;
                tx.execute("DELETE FROM images WHERE target = ?", [target])?;
                tx.execute("DELETE FROM refs WHERE owner = 'image:' || ?", [target])?;
            }
            Problem::Record { key, .. } => {
                tx.execute("DELETE FROM records WHERE key = ?", [key])?;
                tx.execute("DELETE FROM refs WHERE owner = 'record:' || ?", [key])?;
            }
            Problem::Reference { owner, target } => {
                tx.execute("DELETE FROM refs WHERE owner = ? AND target = ?", [owner, target])?;
            }
            Problem::Name { name } => {
                tx.execute("DELETE FROM names WHERE name = ?", [name])?;
            }
            Problem::Volume { name } => {
                tx.execute("DELETE FROM volumes WHERE name = ?", [name])?;
            }
            Problem::Database(_) | Problem::Container { .. } => {}
        }
    }
    Ok(())
}

/// Files that no row names, and what dead processes were at.
fn leftovers(core: &Core) -> Result<Vec<String>> {
    let mut found = crate::collect::strays(core)?;
    for place in ["ingest", "leases"] {
        let what = || format!("reading {place}");
        for entry in core.open_dir(place)?.entries().context(what)? {
            let name = entry.context(what)?.name.to_string_lossy().into_owned();
            if !lease::is_alive(core, &name)? {
                found.push(format!("{place}/{name}"));
            }
        }
    }
    Ok(found)
}

fn count(tx: &Transaction<'_>, sql: &str) -> Result<usize> {
    let count: i64 = tx.query_row(sql, [], |row| row.get(0))?;
    usize::try_from(count).map_err(|_| StoreError::invalid("count", "it is negative"))
}

fn texts(tx: &Transaction<'_>, sql: &str) -> Result<Vec<String>> {
    let mut query = tx.prepare_cached(sql)?;
    let rows = query.query_map([], |row| row.get(0))?;
    Ok(rows.collect::<Result<_, _>>()?)
}
