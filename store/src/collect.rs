//! Removing what nothing keeps.
//!
//! Roots are images, and whatever owns a row in `refs`: containers, cache records, leases of the living. What can be
//! reached from them stays. Marking and the removal of the rows are one transaction, so what somebody leased before it
//! is spared and nobody can find the rest after it; only then are files taken away. A death in between leaves files
//! without a row, which the next collection recognises.

use std::collections::BTreeSet;
use std::ffi::{OsStr, OsString};
use std::sync::Arc;
use std::time::SystemTime;

use rbuild_oci::Digest;
use rusqlite::Transaction;

use crate::blobs;
use crate::db::{Durability, nanos};
use crate::error::{Context, Result, StoreError};
use crate::lease::{self, Lease};
use crate::root::Dir;
use crate::snapshots::SnapshotId;
use crate::store::Core;

/// What to collect beside what nothing keeps anyway.
#[derive(Debug, Clone)]
pub struct CollectOptions {
    pub records: Records,
}

/// Which cache records to drop, and with them what only they keep.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Records {
    None,
    All,
    /// Those that nobody used since then.
    UnusedSince(SystemTime),
    Keys(Vec<String>),
}

/// What a collection did.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Collected {
    /// Disk that became free.
    pub bytes: u64,
    /// Keys of dropped cache records.
    pub records: Vec<String>,
    pub snapshots: Vec<SnapshotId>,
    pub blobs: Vec<Digest>,
}

impl Collected {
    /// How many things were removed.
    pub fn removed(&self) -> usize {
        self.records.len() + self.snapshots.len() + self.blobs.len()
    }
}

pub(crate) fn collect(core: &Arc<Core>, options: &CollectOptions) -> Result<Collected> {
    core.make_room();
    lease::sweep(core)?;
    let mut done = Collected::default();
    core.db.write(Durability::Named, |tx| {
        done.records = drop_records(tx, &options.records)?;
        let kept = mark(tx)?;
        (done.snapshots, done.blobs) = drop_rest(tx, &kept)?;
        Ok(())
    })?;
    core.faults.pass("collect.rows")?;
    done.bytes = sweep_strays(core)? + lease::sweep_ingest(core)?;
    core.restore_reserve();
    Ok(done)
}

/// Removes one snapshot that nothing refers to.
pub(crate) fn remove_snapshot(core: &Arc<Core>, id: &SnapshotId) -> Result<()> {
    core.make_room();
    core.db.write(Durability::Named, |tx| {
        let used = tx
            .prepare_cached(
                "SELECT 1 FROM refs WHERE target = 'snapshot:' || ?1 UNION ALL SELECT 1 FROM snapshots
             WHERE parent = ?1 OR layer_of = ?1 OR delta_of = ?1",
            )?
            .exists([id.as_str()])?;
        if used {
            return Err(StoreError::SnapshotInUse(id.to_string()));
        }
        match tx.prepare_cached("DELETE FROM snapshots WHERE id = ?")?.execute([id.as_str()])? {
            0 => Err(StoreError::NoSnapshot(id.to_string())),
            _ => Ok(()),
        }
    })?;
    take_away(core, &PLACES[2], vec![OsString::from(id.as_str())]).map(|_| ())
}

/// Removes files without a row: of blobs and snapshots that were just collected, or whose publisher or remover died.
/// Returns the bytes freed.
pub(crate) fn sweep_strays(core: &Arc<Core>) -> Result<u64> {
    let mut freed = 0;
    for place in PLACES {
        freed += take_away(core, place, names(core, place)?)?;
    }
    Ok(freed)
}

/// What [`sweep_strays`] would remove now, as paths beneath the store. Nobody publishes or removes while it is listed.
pub(crate) fn strays(core: &Core) -> Result<Vec<String>> {
    core.db.write(Durability::Cache, |tx| {
        let mut found = Vec::new();
        for place in PLACES {
            let strays = without_row(tx, place, names(core, place)?)?;
            found.extend(strays.iter().map(|name| format!("{}/{}", place.path.join("/"), name.to_string_lossy())));
        }
        Ok(found)
    })
}

/// Removes the files of `digest` and their like, whose rows are gone.
pub(crate) fn remove_blob_file(core: &Arc<Core>, digest: &Digest) -> Result<u64> {
    let place = PLACES.iter().find(|place| place.path == ["blobs", digest.algorithm().name()]);
    take_away(core, place.expect("every algorithm has a place"), vec![OsString::from(digest.hex())])
}

/// A directory whose entries each have a row.
struct Place {
    path: &'static [&'static str],
    /// Says whether the row of an entry is there.
    query: &'static str,
}

const PLACES: &[Place] = &[
    Place { path: &["blobs", "sha256"], query: "SELECT 1 FROM blobs WHERE digest = 'sha256:' || ?" },
    Place { path: &["blobs", "sha512"], query: "SELECT 1 FROM blobs WHERE digest = 'sha512:' || ?" },
    Place { path: &["snapshots"], query: "SELECT 1 FROM snapshots WHERE id = ?" },
];

/// Removes those of `names` that have no row. They are renamed away in a transaction, since nothing is published while
/// that lasts, and removed after it. Returns the bytes freed.
fn take_away(core: &Arc<Core>, place: &Place, names: Vec<OsString>) -> Result<u64> {
    let strays = core.db.read(|tx| without_row(tx, place, names))?;
    if strays.is_empty() {
        return Ok(0);
    }
    let what = || format!("removing from {}", place.path.join("/"));
    let trash = Lease::new(core, "removing")?;
    let aside = trash.ingest_fd()?;
    let dir = open(core, place)?;
    let mut freed = 0;
    for batch in strays.chunks(256) {
        let moved = core.db.write(Durability::Cache, |tx| {
            let mut moved = Vec::new();
            for name in without_row(tx, place, batch.to_vec())? {
                let to = trash.fresh_name("removed-");
                match dir.rename(&name, aside, &to) {
                    Err(error) if error.kind() == std::io::ErrorKind::NotFound => continue,
                    done => done.context(what)?,
                }
                moved.push(to);
            }
            Ok(moved)
        })?;
        core.faults.pass("collect.renamed")?;
        for name in moved {
            freed += core.remove_tree(aside, &name).context(what)?;
        }
        core.faults.pass("collect.removed")?;
    }
    Ok(freed)
}

fn without_row(tx: &Transaction<'_>, place: &Place, names: Vec<OsString>) -> Result<Vec<OsString>> {
    let mut query = tx.prepare_cached(place.query)?;
    let mut strays = Vec::new();
    for name in names {
        // A name that is no text was never ours.
        let known = match name.to_str() {
            Some(text) => query.exists([text])?,
            None => false,
        };
        if !known {
            strays.push(name);
        }
    }
    Ok(strays)
}

fn open(core: &Core, place: &Place) -> Result<Dir> {
    let mut dir = core.open_dir(place.path[0])?;
    for part in &place.path[1..] {
        dir = dir.open_dir(OsStr::new(part)).context(|| format!("opening {}", place.path.join("/")))?;
    }
    Ok(dir)
}

fn names(core: &Core, place: &Place) -> Result<Vec<OsString>> {
    let what = || format!("reading {}", place.path.join("/"));
    let entries = open(core, place)?.entries().context(what)?;
    entries.map(|entry| Ok(entry.context(what)?.name)).collect()
}

/// What is reachable.
#[derive(Default)]
struct Kept {
    blobs: BTreeSet<String>,
    snapshots: BTreeSet<String>,
}

fn mark(tx: &Transaction<'_>) -> Result<Kept> {
    let mut queue = texts(
        tx,
        "SELECT 'image:' || target FROM images UNION SELECT target FROM refs WHERE owner NOT LIKE 'image:%'",
    )?;
    let mut kept = Kept::default();
    let mut images = BTreeSet::new();
    let mut of_owner = tx.prepare_cached("SELECT target FROM refs WHERE owner = ?")?;
    let mut of_chain = tx.prepare_cached(
        "SELECT min(length(s.id)), s.id FROM snapshots s JOIN images i ON i.chain_id = s.chain_id
         WHERE i.target = ? GROUP BY s.driver",
    )?;
    let mut parent_of = tx.prepare_cached(
        "SELECT parent FROM snapshots WHERE id = ?1 AND parent IS NOT NULL
         UNION ALL SELECT layer_of FROM snapshots WHERE id = ?1 AND layer_of IS NOT NULL
         UNION ALL SELECT delta_of FROM snapshots WHERE id = ?1 AND delta_of IS NOT NULL",
    )?;
    while let Some(target) = queue.pop() {
        match target.split_once(':') {
            Some(("blob", digest)) => {
                kept.blobs.insert(digest.to_owned());
            }
            Some(("snapshot", id)) => {
                if kept.snapshots.insert(id.to_owned()) {
                    for parent in parent_of.query_map([id], |row| row.get::<_, String>(0))? {
                        queue.push(format!("snapshot:{}", parent?));
                    }
                }
            }
            Some(("image", digest)) => {
                if images.insert(digest.to_owned()) {
                    for part in of_owner.query_map([&target], |row| row.get(0))? {
                        queue.push(part?);
                    }
                    for id in of_chain.query_map([digest], |row| row.get::<_, String>(1))? {
                        queue.push(format!("snapshot:{}", id?));
                    }
                }
            }
            _ => return Err(StoreError::invalid(format!("reference {target:?}"), "unknown kind")),
        }
    }
    Ok(kept)
}

/// Removes the rows of all that is not kept.
fn drop_rest(tx: &Transaction<'_>, kept: &Kept) -> Result<(Vec<SnapshotId>, Vec<Digest>)> {
    let mut snapshots = Vec::new();
    for id in texts(tx, "SELECT id FROM snapshots ORDER BY length(id), id")? {
        if !kept.snapshots.contains(&id) {
            tx.prepare_cached("DELETE FROM snapshots WHERE id = ?")?.execute([&id])?;
            snapshots.push(id.parse()?);
        }
    }
    let mut blobs = Vec::new();
    for digest in texts(tx, "SELECT digest FROM blobs ORDER BY digest")? {
        if !kept.blobs.contains(&digest) {
            let digest: Digest = digest.parse()?;
            blobs::remove_row(tx, &digest)?;
            blobs.push(digest);
        }
    }
    // What removed images consisted of, unless somebody still uses the image.
    tx.execute(
        "DELETE FROM refs WHERE owner LIKE 'image:%' AND substr(owner, 7) NOT IN (SELECT target FROM images)
             AND owner NOT IN (SELECT target FROM refs WHERE target LIKE 'image:%')",
        [],
    )?;
    tx.execute("DELETE FROM aliases WHERE to_key NOT IN (SELECT key FROM records)", [])?;
    Ok((snapshots, blobs))
}

/// Removes cache records; what they kept is then for the marking to find.
fn drop_records(tx: &Transaction<'_>, which: &Records) -> Result<Vec<String>> {
    let keys = match which {
        Records::None => Vec::new(),
        Records::All => texts(tx, "SELECT key FROM records ORDER BY key")?,
        Records::UnusedSince(time) => {
            let mut query = tx.prepare_cached("SELECT key FROM records WHERE used < ? ORDER BY key")?;
            let keys = query.query_map([nanos(*time)], |row| row.get(0))?;
            keys.collect::<Result<Vec<_>, _>>()?
        }
        Records::Keys(keys) => keys.clone(),
    };
    let mut dropped = Vec::new();
    for key in keys {
        if tx.prepare_cached("DELETE FROM records WHERE key = ?")?.execute([&key])? > 0 {
            dropped.push(key);
        }
    }
    tx.execute(
        "DELETE FROM refs WHERE owner LIKE 'record:%' AND substr(owner, 8) NOT IN (SELECT key FROM records)",
        [],
    )?;
    Ok(dropped)
}

fn texts(tx: &Transaction<'_>, sql: &str) -> Result<Vec<String>> {
    let mut query = tx.prepare_cached(sql)?;
    let rows = query.query_map([], |row| row.get(0))?;
    Ok(rows.collect::<Result<_, _>>()?)
}
