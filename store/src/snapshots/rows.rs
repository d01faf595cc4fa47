//! The table of snapshots.

use std::path::{Path, PathBuf};
use std::time::SystemTime;

use rbuild_oci::{ChainId, DiffId};
use rusqlite::{OptionalExtension, Row, Transaction, params};

use super::{DEEPEST, Driver, Snapshot, SnapshotId};
use crate::db::{self, Durability, nanos};
use crate::error::{Context, Result, StoreError};
use crate::lease::{Lease, Target};
use crate::root::{Root, Walk};
use crate::store::Core;

const COLUMNS: &str =
    "id, parent, driver, size, diff_id, chain_id, tar_size, newest, created, used, cost, volatile, layer_of, delta_of";

/// What the database knows of a snapshot.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct SnapshotRow {
    pub id: SnapshotId,
    pub parent: Option<SnapshotId>,
    pub driver: Driver,
    /// Disk use of its own directory in bytes, if it was counted.
    pub size: Option<u64>,
    pub diff_id: Option<DiffId>,
    pub chain_id: Option<ChainId>,
    /// Bytes of its uncompressed layer.
    pub tar_size: Option<u64>,
    /// The newest time of an entry in its layer, in seconds since 1970; known for layers whose tar was made here.
    pub newest: Option<i64>,
    pub created: SystemTime,
    /// When somebody last asked for it.
    pub used: SystemTime,
    /// Nanoseconds it took to make.
    pub cost: u64,
    /// Whether its files may not have reached the disk yet.
    pub volatile: bool,
    /// The snapshot on nothing whose layer this one's is.
    pub layer_of: Option<SnapshotId>,
    /// The snapshot on the same parent whose files it has where its own directory says nothing else.
    pub delta_of: Option<SnapshotId>,
}

impl SnapshotRow {
    /// The snapshots without which this one is none.
    pub fn needs(&self) -> impl Iterator<Item = &SnapshotId> {
        self.parent.iter().chain(&self.layer_of).chain(&self.delta_of)
    }
}

pub(super) fn get(tx: &Transaction<'_>, id: &SnapshotId) -> Result<Option<SnapshotRow>> {
    let mut query = tx.prepare_cached(&format!("SELECT {COLUMNS} FROM snapshots WHERE id = ?"))?;
    query.query_row([id.as_str()], |row| Ok(of_row(row))).optional()?.transpose()
}

pub(super) fn by_chain_id(tx: &Transaction<'_>, chain: &ChainId, driver: Driver) -> Result<Option<SnapshotRow>> {
    let mut query = tx.prepare_cached(&format!(
        "SELECT {COLUMNS} FROM snapshots WHERE chain_id = ? AND driver = ? ORDER BY length(id), id LIMIT 1"
    ))?;
    let row = query.query_row([chain.0.to_string(), driver.to_string()], |row| Ok(of_row(row)));
    row.optional()?.transpose()
}

pub(super) fn list(tx: &Transaction<'_>) -> Result<Vec<SnapshotRow>> {
    let mut query = tx.prepare_cached(&format!("SELECT {COLUMNS} FROM snapshots ORDER BY length(id), id"))?;
    query.query_map([], |row| Ok(of_row(row)))?.map(|row| row?).collect()
}

/// Finds a row and makes `lease` keep it, in one transaction; or only finds it, when the lease has it already.
pub(super) fn hold(
    core: &Core,
    lease: &Lease,
    find: impl Fn(&Transaction<'_>) -> Result<SnapshotRow>,
) -> Result<Snapshot> {
    let row = core.db.read(&find)?;
    let row = match lease.holds(&Target::Snapshot(row.id.clone())) {
        true => row,
        false => {
            let row = core.db.write(Durability::Cache, |tx| {
                let row = find(tx)?;
                lease.hold_in(tx, &Target::Snapshot(row.id.clone()))?;
                tx.prepare_cached("UPDATE snapshots SET used = max(used, ?) WHERE id = ?")?
                    .execute(params![nanos(SystemTime::now()), row.id.as_str()])?;
                Ok(row)
            })?;
            lease.note(&[Target::Snapshot(row.id.clone())]);
            row
        }
    };
    if !super::is_on_disk(core, &row.id) {
        tracing::warn!("the directory of snapshot {} is gone", row.id);
        return Err(StoreError::NoSnapshot(row.id.to_string()));
    }
    Ok(Snapshot::new(row.id, row.parent, lease.clone()))
}

/// One snapshot of a stack, and the other one that its layer is spread over.
pub(super) struct Link {
    pub(super) id: SnapshotId,
    pub(super) delta_of: Option<SnapshotId>,
}

/// The snapshots whose directories show these, base first.
pub(super) fn stacked(links: Vec<Link>) -> impl DoubleEndedIterator<Item = SnapshotId> {
    links.into_iter().flat_map(|link| [link.delta_of, Some(link.id)]).flatten()
}

/// The stack with `id` on top, base first.
pub(super) fn chain(core: &Core, id: &SnapshotId) -> Result<Vec<Link>> {
    let chain = core.db.read(|tx| {
        let mut query = tx.prepare_cached(
            "WITH RECURSIVE chain (depth, id, parent, delta_of) AS (
                 SELECT 0, id, parent, delta_of FROM snapshots WHERE id = ?
                 UNION ALL
                 SELECT depth + 1, s.id, s.parent, s.delta_of FROM chain JOIN snapshots s ON s.id = chain.parent
             ) SELECT id, parent, delta_of FROM chain ORDER BY depth DESC",
        )?;
        let text = |row: &Row<'_>, at: usize| row.get::<_, Option<String>>(at);
        let rows =
            query.query_map([id.as_str()], |row| Ok((row.get::<_, String>(0)?, text(row, 1)?, text(row, 2)?)))?;
        Ok(rows.collect::<Result<Vec<_>, _>>()?)
    })?;
    match chain.first() {
        None => Err(StoreError::NoSnapshot(id.to_string())),
        Some((_, Some(missing), _)) => Err(StoreError::NoSnapshot(missing.clone())),
        Some((_, None, _)) => {
            let link = |(id, _, delta_of): (String, _, Option<String>)| {
                Ok(Link { id: id.parse()?, delta_of: delta_of.map(|id| id.parse()).transpose()? })
            };
            chain.into_iter().map(link).collect()
        }
    }
}

/// As [`chain`], refused when nothing may be put on top of it.
pub(super) fn chain_below(core: &Core, parent: &SnapshotId) -> Result<Vec<Link>> {
    let chain = chain(core, parent)?;
    match chain.len() > DEEPEST {
        true => Err(StoreError::TooDeep { depth: chain.len() + 1, limit: DEEPEST }),
        false => Ok(chain),
    }
}

pub(super) fn fs_path(core: &Core, id: &SnapshotId) -> PathBuf {
    core.path.join("snapshots").join(id.as_str()).join("fs")
}

/// The directory of [`fs_path`], reached without a link on the way.
pub(super) fn open_fs(core: &Core, id: &SnapshotId) -> Result<Root> {
    let fs = Root::from_fd(core.open_dir("snapshots")?.into_fd())
        .and_then(|root| root.walk(&Path::new(id.as_str()).join("fs"), Walk::NoLinks))
        .and_then(Root::from_fd);
    match fs {
        Err(error) if error.kind() == std::io::ErrorKind::NotFound => Err(StoreError::NoSnapshot(id.to_string())),
        fs => fs.context(|| format!("opening snapshot {id}")),
    }
}

/// The next id. It is taken when the transaction is committed.
pub(super) fn next_id(tx: &Transaction<'_>) -> Result<SnapshotId> {
    let number: i64 = tx
        .prepare_cached("UPDATE state SET last_snapshot = last_snapshot + 1 RETURNING last_snapshot")?
        .query_row([], |row| row.get(0))?;
    Ok(SnapshotId::of_number(number.unsigned_abs()))
}

/// A new row.
pub(super) struct New<'a> {
    pub(super) id: &'a SnapshotId,
    pub(super) parent: Option<&'a SnapshotId>,
    pub(super) driver: Driver,
    pub(super) delta_of: Option<&'a SnapshotId>,
    pub(super) copied: Option<&'a str>,
}

pub(super) fn insert(tx: &Transaction<'_>, new: &New<'_>) -> Result<()> {
    let now = nanos(SystemTime::now());
    tx.prepare_cached(
        "INSERT INTO snapshots (id, parent, driver, created, used, volatile, delta_of, copied)
         VALUES (?, ?, ?, ?, ?, ?, ?, ?)",
    )?
    .execute(params![
        new.id.as_str(),
        new.parent.map(SnapshotId::as_str),
        new.driver.to_string(),
        now,
        now,
        db::Db::mark(tx)?,
        new.delta_of.map(SnapshotId::as_str),
        new.copied,
    ])?;
    Ok(())
}

/// The newest snapshot on `parent` that was made as `copied` says and holds all its files itself.
pub(super) fn whole_copy(
    tx: &Transaction<'_>,
    copied: &str,
    parent: Option<&SnapshotId>,
    driver: Driver,
) -> Result<Option<SnapshotRow>> {
    let mut query = tx.prepare_cached(&format!(
        "SELECT {COLUMNS} FROM snapshots WHERE copied = ? AND parent IS ? AND driver = ? AND delta_of IS NULL
         ORDER BY length(id) DESC, id DESC LIMIT 1"
    ))?;
    let row = query
        .query_row(params![copied, parent.map(SnapshotId::as_str), driver.to_string()], |row| Ok(of_row(row)))
        .optional()?;
    row.transpose()
}

pub(super) fn set_newest(tx: &Transaction<'_>, id: &SnapshotId, newest: i64) -> Result<()> {
    tx.prepare_cached("UPDATE snapshots SET newest = ? WHERE id = ?")?.execute(params![newest, id.as_str()])?;
    Ok(())
}

pub(super) fn set_layer(tx: &Transaction<'_>, id: &SnapshotId, diff: &DiffId, tar_size: u64) -> Result<()> {
    let size = i64::try_from(tar_size).unwrap_or(i64::MAX);
    let changed = tx
        .prepare_cached("UPDATE snapshots SET diff_id = ?, tar_size = ?, chain_id = NULL WHERE id = ?")?
        .execute(params![diff.0.to_string(), size, id.as_str()])?;
    if changed == 0 {
        return Err(StoreError::NoSnapshot(id.to_string()));
    }
    let mut waiting = vec![id.clone()];
    while let Some(id) = waiting.pop() {
        let Some(chain) = chain_id(tx, &id)? else { continue };
        tx.prepare_cached("UPDATE snapshots SET chain_id = ? WHERE id = ?")?
            .execute(params![chain.0.to_string(), id.as_str()])?;
        let mut above = tx
            .prepare_cached("SELECT id FROM snapshots WHERE parent = ? AND diff_id IS NOT NULL AND chain_id IS NULL")?;
        for id in above.query_map([id.as_str()], |row| row.get::<_, String>(0))? {
            waiting.push(id?.parse()?);
        }
    }
    Ok(())
}

pub(super) fn set_layer_of(tx: &Transaction<'_>, id: &SnapshotId, layer: &SnapshotId) -> Result<()> {
    let stands_alone = get(tx, layer)?.is_some_and(|row| row.parent.is_none());
    if !stands_alone {
        return Err(StoreError::invalid(format!("snapshot {layer}"), "only one that stands on nothing can be stacked"));
    }
    tx.prepare_cached("UPDATE snapshots SET layer_of = ? WHERE id = ?")?
        .execute(params![layer.as_str(), id.as_str()])?;
    Ok(())
}

/// Direct references to a snapshot, its children, and those whose layer it is or has a part of.
pub(super) fn users(tx: &Transaction<'_>, id: &SnapshotId) -> Result<Vec<String>> {
    let mut query = tx.prepare_cached(
        "SELECT owner FROM refs WHERE target = 'snapshot:' || ?1
         UNION ALL SELECT 'snapshot:' || id FROM snapshots WHERE parent = ?1 OR layer_of = ?1 OR delta_of = ?1",
    )?;
    let rows = query.query_map([id.as_str()], |row| row.get(0))?;
    Ok(rows.collect::<Result<_, _>>()?)
}

/// The chain id that follows from a snapshot's own layer and its parent's chain id.
fn chain_id(tx: &Transaction<'_>, id: &SnapshotId) -> Result<Option<ChainId>> {
    let Some(row) = get(tx, id)? else { return Ok(None) };
    let Some(diff) = row.diff_id else { return Ok(None) };
    match row.parent {
        None => Ok(ChainId::of(&[diff])),
        Some(parent) => {
            let below = get(tx, &parent)?.and_then(|parent| parent.chain_id);
            Ok(below.map(|below| below.then(&diff)))
        }
    }
}

fn of_row(row: &Row<'_>) -> Result<SnapshotRow> {
    let digest = |text: Option<String>| text.map(|text| text.parse()).transpose();
    let parent: Option<String> = row.get("parent")?;
    Ok(SnapshotRow {
        id: row.get::<_, String>("id")?.parse()?,
        parent: parent.map(|id| id.parse()).transpose()?,
        driver: row.get::<_, String>("driver")?.parse()?,
        size: row.get::<_, Option<i64>>("size")?.map(i64::unsigned_abs),
        diff_id: digest(row.get("diff_id")?)?.map(DiffId),
        chain_id: digest(row.get("chain_id")?)?.map(ChainId),
        tar_size: row.get::<_, Option<i64>>("tar_size")?.map(i64::unsigned_abs),
        newest: row.get("newest")?,
        created: db::time(row.get("created")?),
        used: db::time(row.get("used")?),
        cost: row.get::<_, i64>("cost")?.unsigned_abs(),
        volatile: row.get::<_, Option<i64>>("volatile")?.is_some(),
        layer_of: row.get::<_, Option<String>>("layer_of")?.map(|id| id.parse()).transpose()?,
        delta_of: row.get::<_, Option<String>>("delta_of")?.map(|id| id.parse()).transpose()?,
    })
}
