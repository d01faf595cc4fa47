//! How large images are: bytes of the files in their layers, as docker counts them.
//!
//! Not the size of tars (which round up) nor of disk use (which depends on the file system): the same image has the same
//! size everywhere. A layer's size is counted once and kept.

use rbuild_oci::{ChainId, DiffId};
use rbuild_store::rusqlite::OptionalExtension as _;
use rbuild_store::{Durability, SnapshotId, StoreError};

use super::{Image, Images};
use crate::containers::content_size;
use crate::error::Error;

impl Images {
    /// Bytes of the files of each layer, the lowest first. A layer that was never unpacked counts as its blob is large.
    ///
    /// # Errors
    /// The store cannot be read.
    pub fn layer_sizes(&self, image: &Image) -> Result<Vec<u64>, Error> {
        let mut chain: Option<ChainId> = None;
        let mut sizes = Vec::new();
        for (at, diff) in image.config.rootfs.diff_ids.iter().enumerate() {
            let next = match &chain {
                Some(below) => below.then(diff),
                None => ChainId(diff.0.clone()),
            };
            sizes.push(match self.known_size(diff)? {
                Some(size) => size,
                None => self.measure(diff, &next, image, at)?,
            });
            chain = Some(next);
        }
        Ok(sizes)
    }

    /// Bytes of all layers together.
    ///
    /// # Errors
    /// As [`Images::layer_sizes`].
    pub fn size(&self, image: &Image) -> Result<u64, Error> {
        Ok(self.layer_sizes(image)?.iter().sum())
    }

    fn known_size(&self, diff: &DiffId) -> Result<Option<u64>, StoreError> {
        let known: Option<i64> = self.store.db().read(|tx| {
            let mut query = tx.prepare_cached("SELECT size FROM layer_sizes WHERE diff_id = ?")?;
            Ok(query.query_row([diff.0.to_string()], |row| row.get(0)).optional()?)
        })?;
        Ok(known.map(i64::unsigned_abs))
    }

    fn measure(&self, diff: &DiffId, chain: &ChainId, image: &Image, at: usize) -> Result<u64, Error> {
        let Some((id, parent)) = self.snapshot_of(chain)? else {
            let Some(target) = image.targets.first() else { return Ok(0) };
            let source = rbuild_store::transfer::StoreSource::new(&self.store);
            let chosen = rbuild_store::transfer::choose(&source, target, 0)?;
            return Ok(chosen.and_then(|(_, manifest)| manifest.layers.get(at).map(|l| l.size)).unwrap_or(0));
        };
        let below = match parent {
            // A copying driver's snapshot holds the parent's files too.
            Some(parent) if self.store.driver().is_whole() => self.bytes_in(&parent)?,
            _ => 0,
        };
        let size = self.bytes_in(&id)?.saturating_sub(below);
        let kept = i64::try_from(size).unwrap_or(i64::MAX);
        let noted = self.store.db().write(Durability::Cache, |tx| {
            tx.prepare_cached("INSERT OR REPLACE INTO layer_sizes (diff_id, size) VALUES (?, ?)")?
                .execute((diff.0.to_string(), kept))?;
            Ok(())
        });
        match noted {
            // It is only noted to be quicker next time: listing works on a full or read-only disk too.
            Err(error) if error.is_full() || matches!(error, StoreError::ReadOnly { .. }) => {}
            noted => noted?,
        }
        Ok(size)
    }

    fn snapshot_of(&self, chain: &ChainId) -> Result<Option<(SnapshotId, Option<SnapshotId>)>, StoreError> {
        let found: Option<(String, Option<String>)> = self.store.db().read(|tx| {
            let mut query = tx.prepare_cached("SELECT id, parent FROM snapshots WHERE chain_id = ? LIMIT 1")?;
            Ok(query.query_row([chain.0.to_string()], |row| Ok((row.get(0)?, row.get(1)?))).optional()?)
        })?;
        let Some((id, parent)) = found else { return Ok(None) };
        Ok(Some((id.parse()?, parent.map(|p| p.parse()).transpose()?)))
    }

    fn bytes_in(&self, id: &SnapshotId) -> Result<u64, StoreError> {
        if self.store.snapshots().row(id)?.delta_of.is_some() {
            return self.store.layers().content_bytes(id);
        }
        let root = self.store.snapshots().open(id)?;
        content_size(&root).map_err(|e| StoreError::io(format!("measuring snapshot {id}"), e))
    }
}
