//! Flush epochs: when published files reach the disk.
//!
//! A row may be written before its files are on disk when it carries a mark, the generation of flushes it was written
//! in. Every process of the same boot trusts it, since a process' death loses nothing that was written; after a reboot
//! the marked rows are dropped. One flush at the end of a command takes the marks away that were there before it
//! began, and nothing gets a name before that: so a build costs one flush, not one for each file.

use std::os::fd::AsFd;
use std::path::{Path, PathBuf};
use std::sync::Arc;

use rbuild_oci::Digest;
use rusqlite::Transaction;
use rustix::fs::OFlags;

use crate::blobs;
use crate::collect;
use crate::db::Durability;
use crate::error::{Context, Result};
use crate::root::{Dir, Kind, Root, Walk, node};
use crate::store::Core;

/// From this many files on, one `syncfs` is cheaper than an `fsync` of each, although it waits for everybody's pages.
const FEW: usize = 64;

/// Tables with a column `volatile`.
const MARKED: [&str; 3] = ["blobs", "snapshots", "records"];

/// Brings all that is marked to the disk and takes the marks away.
pub(crate) fn flush(core: &Core) -> Result<()> {
    match flush_files(core)? {
        None => Ok(()),
        Some(generation) => core.db.write(Durability::Cache, |tx| clear_marks(tx, generation)),
    }
}

/// The first half of [`flush`]: after it, what was marked with the returned generation or an older one is on disk.
/// `None` when nothing is marked.
pub(crate) fn flush_files(core: &Core) -> Result<Option<i64>> {
    let marked = core.db.read(|tx| {
        for table in MARKED {
            if tx.prepare_cached(&format!("SELECT 1 FROM {table} WHERE volatile IS NOT NULL LIMIT 1"))?.exists([])? {
                return Ok(true);
            }
        }
        Ok(false)
    })?;
    if !marked {
        return Ok(None);
    }
    let (generation, blobs, snapshots) = core.db.write(Durability::Cache, |tx| {
        let generation: i64 = tx
            .prepare_cached("UPDATE state SET generation = generation + 1 RETURNING generation - 1")?
            .query_row([], |row| row.get(0))?;
        let few = i64::try_from(FEW).expect("a small number") + 1;
        let blobs = column(tx, "SELECT digest FROM blobs WHERE volatile IS NOT NULL LIMIT ?", few)?;
        let snapshots = column(tx, "SELECT id FROM snapshots WHERE volatile IS NOT NULL LIMIT ?", few)?;
        Ok((generation, blobs, snapshots))
    })?;
    if let Err(error) = sync(core, &blobs, &snapshots).and_then(|()| core.faults.pass("flush.synced")) {
        // The kernel may have marked the pages clean, so trying again would prove nothing.
        core.db.write(Durability::Named, |tx| drop_marked(tx, Some(generation)))?;
        return Err(error);
    }
    Ok(Some(generation))
}

/// Brings blobs and snapshots to the disk, or everything where they are many.
fn sync(core: &Core, blobs: &[String], snapshots: &[String]) -> Result<()> {
    match few_files(core, blobs, snapshots)? {
        Some(files) => files.iter().try_for_each(|file| sync_one(core, file)),
        None => {
            let fd = core.dir.readable().context(|| format!("opening {:?}", core.path))?;
            rustix::fs::syncfs(fd).context(|| format!("flushing store {:?}", core.path))
        }
    }
}

/// The second half of [`flush`].
pub(crate) fn clear_marks(tx: &Transaction<'_>, generation: i64) -> Result<()> {
    for table in MARKED {
        tx.prepare_cached(&format!("UPDATE {table} SET volatile = NULL WHERE volatile <= ?"))?.execute([generation])?;
    }
    Ok(())
}

/// Drops the rows whose files a reboot may have lost, then sweeps those files.
pub(crate) fn drop_lost(core: &Arc<Core>, boot: &str) -> Result<()> {
    core.make_room();
    let mine = core.db.write(Durability::Named, |tx| {
        let known: String = tx.query_row("SELECT boot FROM state", [], |row| row.get(0))?;
        if known == boot {
            return Ok(false);
        }
        drop_marked(tx, None)?;
        tx.execute("UPDATE state SET boot = ?", [boot])?;
        Ok(true)
    })?;
    if mine {
        collect::sweep_strays(core)?;
    }
    Ok(())
}

/// Drops the rows marked with `generation` or an older one, or all that are marked, and what cache records kept.
fn drop_marked(tx: &Transaction<'_>, generation: Option<i64>) -> Result<()> {
    for table in MARKED {
        let newest = generation.unwrap_or(i64::MAX);
        let dropped = tx.execute(&format!("DELETE FROM {table} WHERE volatile <= ?"), [newest])?;
        if dropped > 0 {
            tracing::info!("dropped {dropped} rows of {table} that never reached the disk");
        }
    }
    tx.execute(
        "DELETE FROM refs WHERE owner LIKE 'record:%' AND substr(owner, 8) NOT IN (SELECT key FROM records)",
        [],
    )?;
    Ok(())
}

fn column(tx: &Transaction<'_>, sql: &str, limit: i64) -> Result<Vec<String>> {
    let mut query = tx.prepare_cached(sql)?;
    let rows = query.query_map([limit], |row| row.get(0))?;
    Ok(rows.collect::<Result<_, _>>()?)
}

/// What is to be synced one by one, as paths beneath the store, directories after what they hold; `None` when it is
/// too much for that.
fn few_files(core: &Core, blobs: &[String], snapshots: &[String]) -> Result<Option<Vec<PathBuf>>> {
    let mut files = Vec::new();
    let mut blob_dirs = Vec::new();
    for digest in blobs {
        let path = blobs::path_of(&digest.parse::<Digest>()?);
        let dir = path.parent().expect("a blob lies in a directory").to_path_buf();
        if !blob_dirs.contains(&dir) {
            blob_dirs.push(dir);
        }
        files.push(path);
    }
    files.extend(blob_dirs);
    let root = Root::from_fd(core.dir.as_fd().try_clone_to_owned().context(|| "duplicating".to_owned())?)
        .context(|| format!("opening {:?}", core.path))?;
    for id in snapshots {
        let top = Path::new("snapshots").join(id);
        if !list_few(&root, &top, &mut files)? {
            return Ok(None);
        }
    }
    if !snapshots.is_empty() {
        files.push(PathBuf::from("snapshots"));
    }
    Ok((files.len() <= FEW).then_some(files))
}

/// Adds the files and directories of the tree at `top`; false as soon as they are too many.
fn list_few(root: &Root, top: &Path, files: &mut Vec<PathBuf>) -> Result<bool> {
    let mut found = vec![top.to_path_buf()];
    let mut next = 0;
    while let Some(path) = found.get(next).cloned() {
        next += 1;
        let what = || format!("looking at {path:?}");
        let dir: Dir = root.open_dir(&path, Walk::NoLinks).context(what)?;
        for entry in dir.entries().context(what)? {
            let entry = entry.context(what)?;
            let kind = match entry.kind {
                Some(kind) => kind,
                None => dir.stat(&entry.name).context(what)?.kind,
            };
            match kind {
                Kind::Dir => found.push(path.join(&entry.name)),
                Kind::File => files.push(path.join(&entry.name)),
                _ => {}
            }
            if found.len() + files.len() > FEW {
                return Ok(false);
            }
        }
    }
    files.extend(found.into_iter().rev());
    Ok(true)
}

fn sync_one(core: &Core, path: &Path) -> Result<()> {
    let what = || format!("flushing {:?}", core.path.join(path));
    let root = Root::from_fd(core.dir.as_fd().try_clone_to_owned().context(what)?).context(what)?;
    let fd = match root.walk(path, Walk::NoLinks) {
        // Somebody removed it, row first: then it needs no flush.
        Err(error) if error.kind() == std::io::ErrorKind::NotFound => return Ok(()),
        fd => fd.context(what)?,
    };
    match node::Metadata::of(fd.as_fd()).context(what)?.kind {
        Kind::Dir => Dir::from_fd(fd).and_then(|dir| dir.sync()).context(what),
        _ => node::reopen_file(fd.as_fd(), OFlags::RDONLY).and_then(|file| file.sync_all()).context(what),
    }
}
