//! The build cache as a list of things: results of steps, the file trees they stand on, cache mounts, indexes of contexts.
//!
//! A result is a row in `records`; what takes room is its snapshot. A snapshot that images or containers keep too is
//! *shared*: dropping the result frees nothing. A snapshot that only others stand on has no record and is listed by
//! itself, so that sizes add up: each snapshot counts once, with the first record that made it.

use std::collections::{BTreeMap, BTreeSet};
use std::path::PathBuf;
use std::time::{Duration, SystemTime};

use rbuild_executor::cache_objects::{self, CacheMount};
use rbuild_store::rusqlite::Transaction;
use rbuild_store::{SnapshotId, SnapshotRow, Store, StoreError, db};

use crate::engine::Engine;
use crate::error::Error;

/// Digits of a key that an entry is shown by.
const ID: usize = 25;

/// One thing of the build cache.
#[derive(Debug, Clone)]
pub struct CacheEntry {
    pub id: String,
    pub kind: CacheKind,
    /// Ids of the entries it stands on.
    pub parents: Vec<String>,
    pub description: String,
    /// Whether builds still write to it.
    pub mutable: bool,
    /// Whether something that runs at this moment holds it, or what stands on it.
    pub in_use: bool,
    /// Whether images or containers have its files too.
    pub shared: bool,
    /// Disk use of its own files, in bytes.
    pub size: u64,
    pub created: SystemTime,
    pub used: SystemTime,
    /// How often it was used, where that is counted.
    pub uses: Option<u64>,
    /// How long it took to make.
    pub cost: Duration,
    pub(super) what: What,
}

/// What kind of thing it is, in BuildKit's words.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum CacheKind {
    Regular,
    GitCheckout,
    CacheMount,
    Local,
}

impl CacheKind {
    pub fn name(self) -> &'static str {
        match self {
            CacheKind::Regular => "regular",
            CacheKind::GitCheckout => "source.git.checkout",
            CacheKind::CacheMount => "exec.cachemount",
            CacheKind::Local => "source.local",
        }
    }
}

/// What an entry is in the store.
#[derive(Debug, Clone)]
pub(super) enum What {
    Record {
        key: String,
        snapshot: Option<SnapshotId>,
    },
    /// Only kept by what stands on it.
    Snapshot(SnapshotId),
    Mount(CacheMount),
    /// A file below `contexts`.
    Index(PathBuf),
}

impl What {
    pub(super) fn snapshot(&self) -> Option<&SnapshotId> {
        match self {
            What::Record { snapshot, .. } => snapshot.as_ref(),
            What::Snapshot(id) => Some(id),
            What::Mount(_) | What::Index(_) => None,
        }
    }
}

impl Engine {
    /// The whole build cache, the oldest first. Measures what was not measured before.
    ///
    /// # Errors
    /// The store cannot be read.
    pub fn cache_entries(&self) -> Result<Vec<CacheEntry>, Error> {
        let store = self.store();
        let known = store.db().read(Known::read)?;
        let mut entries = results(store, &known)?;
        for mount in cache_objects::list(store).map_err(Error::internal)? {
            entries.push(of_mount(mount));
        }
        entries.extend(indexes(store)?);
        entries.sort_by(|a, b| (a.created, &a.id).cmp(&(b.created, &b.id)));
        Ok(entries)
    }
}

/// What the database says of the cache, at one moment.
struct Known {
    records: Vec<Record>,
    snapshots: BTreeMap<SnapshotId, SnapshotRow>,
    /// Kept by images and containers.
    shared: BTreeSet<SnapshotId>,
    /// Kept by processes that run.
    held: BTreeSet<SnapshotId>,
}

struct Record {
    key: String,
    name: String,
    operation: String,
    cost: Duration,
    created: SystemTime,
    used: SystemTime,
    snapshot: Option<SnapshotId>,
}

impl Known {
    fn read(tx: &Transaction<'_>) -> Result<Known, StoreError> {
        let snapshots: BTreeMap<_, _> =
            rbuild_store::snapshots::list_in(tx)?.into_iter().map(|row| (row.id.clone(), row)).collect();
        let shared = kept_by(
            tx,
            &snapshots,
            "SELECT s.id FROM snapshots s JOIN images i ON i.chain_id = s.chain_id
             UNION SELECT substr(target, 10) FROM refs WHERE target LIKE 'snapshot:%'
                 AND (owner LIKE 'container:%' OR owner LIKE 'image:%')",
        )?;
        let held = kept_by(
            tx,
            &snapshots,
            "SELECT substr(target, 10) FROM refs WHERE target LIKE 'snapshot:%' AND owner LIKE 'lease:%'",
        )?;
        Ok(Known { records: Record::all(tx)?, snapshots, shared, held })
    }
}

impl Record {
    fn all(tx: &Transaction<'_>) -> Result<Vec<Record>, StoreError> {
        let mut query = tx.prepare_cached(
            "SELECT key, coalesce(json_extract(record, '$.name'), ''),
                    coalesce(json_extract(record, '$.parts[0][1].t'), ''), cost, created, used,
                    (SELECT substr(target, 10) FROM refs
                     WHERE owner = 'record:' || key AND target LIKE 'snapshot:%' LIMIT 1)
             FROM records ORDER BY created, key",
        )?;
        let rows = query.query_map([], |row| {
            let snapshot: Option<String> = row.get(6)?;
            Ok((
                Record {
                    key: row.get(0)?,
                    name: row.get(1)?,
                    operation: row.get(2)?,
                    cost: Duration::from_nanos(row.get::<_, i64>(3)?.unsigned_abs()),
                    created: db::time(row.get(4)?),
                    used: db::time(row.get(5)?),
                    snapshot: None,
                },
                snapshot,
            ))
        })?;
        rows.map(|row| {
            let (record, snapshot) = row?;
            Ok(Record { snapshot: snapshot.map(|id| id.parse()).transpose()?, ..record })
        })
        .collect()
    }
}

/// The snapshots that `sql` names, and those below them.
fn kept_by(
    tx: &Transaction<'_>,
    snapshots: &BTreeMap<SnapshotId, SnapshotRow>,
    sql: &str,
) -> Result<BTreeSet<SnapshotId>, StoreError> {
    let mut query = tx.prepare_cached(sql)?;
    let mut queue = Vec::new();
    for id in query.query_map([], |row| row.get::<_, String>(0))? {
        queue.push(id?.parse()?);
    }
    let mut kept = BTreeSet::new();
    while let Some(id) = queue.pop() {
        queue.extend(below(snapshots, &id).filter(|below| !kept.contains(*below)).cloned());
        kept.insert(id);
    }
    Ok(kept)
}

/// What a snapshot stands on, and what it has its files from.
fn below<'a>(
    snapshots: &'a BTreeMap<SnapshotId, SnapshotRow>,
    id: &SnapshotId,
) -> impl Iterator<Item = &'a SnapshotId> + use<'a> {
    snapshots.get(id).into_iter().flat_map(SnapshotRow::needs)
}

/// Results, and the snapshots that only they keep.
fn results(store: &Store, known: &Known) -> Result<Vec<CacheEntry>, Error> {
    // By which entry a snapshot is listed.
    let mut listed: BTreeMap<&SnapshotId, String> = BTreeMap::new();
    for record in &known.records {
        if let Some(id) = &record.snapshot {
            listed.entry(id).or_insert_with(|| short(&record.key));
        }
    }
    for id in known.snapshots.keys().filter(|id| !known.shared.contains(*id)) {
        listed.entry(id).or_insert_with(|| format!("snapshot-{id}"));
    }
    let parents = |id: &SnapshotId| -> Vec<String> {
        below(&known.snapshots, id).filter_map(|below| listed.get(below)).cloned().collect()
    };
    let mut entries = Vec::new();
    for record in &known.records {
        let id = short(&record.key);
        let snapshot = record.snapshot.as_ref().filter(|id| known.snapshots.contains_key(*id));
        let size = match snapshot.filter(|snapshot| listed.get(snapshot) == Some(&id)) {
            Some(snapshot) => size(store, snapshot)?,
            None => 0,
        };
        entries.push(CacheEntry {
            kind: if record.operation == "git" { CacheKind::GitCheckout } else { CacheKind::Regular },
            parents: snapshot.map(&parents).unwrap_or_default(),
            description: record.name.clone(),
            mutable: false,
            in_use: snapshot.is_some_and(|id| known.held.contains(id)),
            shared: snapshot.is_some_and(|id| known.shared.contains(id)),
            size,
            created: record.created,
            used: record.used,
            uses: None,
            cost: record.cost,
            what: What::Record { key: record.key.clone(), snapshot: snapshot.cloned() },
            id,
        });
    }
    for (id, row) in &known.snapshots {
        let name = format!("snapshot-{id}");
        if listed.get(id) != Some(&name) {
            continue;
        }
        entries.push(CacheEntry {
            kind: CacheKind::Regular,
            parents: parents(id),
            description: match &row.diff_id {
                Some(diff) => format!("layer {diff}"),
                None => "intermediate file tree".to_owned(),
            },
            mutable: false,
            in_use: known.held.contains(id),
            shared: false,
            size: size(store, id)?,
            created: row.created,
            used: row.used,
            uses: None,
            cost: Duration::from_nanos(row.cost),
            what: What::Snapshot(id.clone()),
            id: name,
        });
    }
    Ok(entries)
}

fn of_mount(mount: CacheMount) -> CacheEntry {
    let id = short(&mount.key);
    CacheEntry {
        id: if mount.slot == 0 { id } else { format!("{id}-{}", mount.slot) },
        kind: CacheKind::CacheMount,
        parents: Vec::new(),
        description: format!("{} with id {:?} ({})", mount.description, mount.id, mount.sharing),
        mutable: true,
        in_use: mount.in_use,
        shared: false,
        size: mount.size,
        created: mount.created,
        used: mount.used,
        uses: Some(mount.uses),
        cost: Duration::ZERO,
        what: What::Mount(mount),
    }
}

/// What builds remember of the files of directories on this machine.
fn indexes(store: &Store) -> Result<Vec<CacheEntry>, Error> {
    use std::os::unix::fs::MetadataExt as _;
    let dir = store.root().join("contexts");
    let entries = match std::fs::read_dir(&dir) {
        Err(error) if error.kind() == std::io::ErrorKind::NotFound => return Ok(Vec::new()),
        entries => entries.map_err(Error::internal)?,
    };
    let mut found = Vec::new();
    for entry in entries {
        let entry = entry.map_err(Error::internal)?;
        // One that is replaced at this moment.
        let Ok(metadata) = entry.metadata() else { continue };
        let used = metadata.modified().map_err(Error::internal)?;
        found.push(CacheEntry {
            id: entry.file_name().to_string_lossy().into_owned(),
            kind: CacheKind::Local,
            parents: Vec::new(),
            description: "index of the files of a local context".to_owned(),
            mutable: true,
            in_use: false,
            shared: false,
            size: metadata.blocks() * 512,
            created: used,
            used,
            uses: None,
            cost: Duration::ZERO,
            what: What::Index(entry.path()),
        });
    }
    Ok(found)
}

fn size(store: &Store, id: &SnapshotId) -> Result<u64, Error> {
    match store.snapshots().size(id) {
        Err(error) if error.is_not_found() => Ok(0), // collected meanwhile
        size => Ok(size?),
    }
}

fn short(key: &str) -> String {
    key.get(..ID).unwrap_or(key).to_owned()
}
