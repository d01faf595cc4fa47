//! What takes room, and what of it could go.

use std::collections::{BTreeMap, BTreeSet};
use std::time::SystemTime;

use rbuild_oci::ChainId;
use rbuild_store::{CollectOptions, Collected, Records, Root, SnapshotId, StoreError};

use crate::containers::content_size;
use crate::engine::Engine;
use crate::error::Error;
use crate::images::ImageFilter;

/// How many things of a kind there are, and their size.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub struct Usage {
    pub total: usize,
    /// Those in use: by a container, or running.
    pub active: usize,
    /// Bytes; what several share counts once.
    pub size: u64,
    /// Bytes that would be free without those not in use.
    pub reclaimable: u64,
}

/// The use of a whole state directory.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub struct DiskUsage {
    pub images: Usage,
    pub containers: Usage,
    pub volumes: Usage,
    /// Results of steps that no image consists of.
    pub cache: Usage,
}

impl Engine {
    /// Counts what is there. Images, containers and volumes by the size of their files, the cache by its disk use.
    ///
    /// # Errors
    /// The store cannot be read.
    pub fn disk_usage(&self) -> Result<DiskUsage, Error> {
        Ok(DiskUsage {
            images: self.images_usage()?,
            containers: self.containers_usage()?,
            volumes: self.volumes_usage()?,
            cache: self.cache_usage()?,
        })
    }

    /// Forgets results of build steps: all, or those that no build used since a time. What only they kept is removed.
    ///
    /// # Errors
    /// The store cannot be changed.
    pub fn prune_cache(&self, unused_since: Option<SystemTime>) -> Result<Collected, Error> {
        let records = unused_since.map_or(Records::All, Records::UnusedSince);
        Ok(self.store().collect(&CollectOptions { records })?)
    }

    fn images_usage(&self) -> Result<Usage, Error> {
        let images = self.images()?;
        let mut usage = Usage::default();
        // Each layer by its place in a chain, with its size and whether an image in use has it.
        let mut layers: BTreeMap<String, (u64, bool)> = BTreeMap::new();
        for image in images.list(&ImageFilter::default())? {
            let used = images.is_used(&image)?;
            usage.total += 1;
            usage.active += usize::from(used);
            let mut chain: Option<ChainId> = None;
            for (diff, size) in image.config.rootfs.diff_ids.iter().zip(images.layer_sizes(&image)?) {
                let next = match &chain {
                    Some(below) => below.then(diff),
                    None => ChainId(diff.0.clone()),
                };
                layers.entry(next.0.to_string()).or_insert((size, false)).1 |= used;
                chain = Some(next);
            }
        }
        usage.size = layers.values().map(|(size, _)| size).sum();
        usage.reclaimable = layers.values().filter(|(_, used)| !used).map(|(size, _)| size).sum();
        Ok(usage)
    }

    fn containers_usage(&self) -> Result<Usage, Error> {
        let containers = self.containers();
        let mut usage = Usage::default();
        for seen in containers.list()? {
            let size = containers.layer_size(&seen.container);
            let runs = seen.status.is_alive();
            usage.total += 1;
            usage.active += usize::from(runs);
            usage.size += size;
            usage.reclaimable += if runs { 0 } else { size };
        }
        Ok(usage)
    }

    fn volumes_usage(&self) -> Result<Usage, Error> {
        let volumes = self.volumes();
        let used = volumes.in_use()?;
        let mut usage = Usage::default();
        for volume in volumes.list()? {
            let size = Root::open(&volume.mountpoint).and_then(|root| content_size(&root));
            let size = size.map_err(|e| Error::internal(format!("measuring volume {}: {e}", volume.name)))?;
            let active = used.contains(&volume.name);
            usage.total += 1;
            usage.active += usize::from(active);
            usage.size += size;
            usage.reclaimable += if active { 0 } else { size };
        }
        Ok(usage)
    }

    fn cache_usage(&self) -> Result<Usage, Error> {
        let snapshots = self.store().snapshots();
        let (records, kept) = self.store().db().read(|tx| {
            let records: i64 = tx.query_row("SELECT count(*) FROM records", [], |row| row.get(0))?;
            let mut query = tx.prepare_cached(
                "SELECT s.id FROM snapshots s JOIN images i ON i.chain_id = s.chain_id
                 UNION SELECT substr(target, 10) FROM refs WHERE target LIKE 'snapshot:%' AND owner LIKE 'container:%'",
            )?;
            let kept: BTreeSet<String> = query.query_map([], |row| row.get(0))?.collect::<Result<_, _>>()?;
            Ok((records, kept))
        })?;
        let mut kept: Vec<SnapshotId> = kept.iter().map(|id| id.parse()).collect::<Result<_, StoreError>>()?;
        let rows = snapshots.list()?;
        let parents: BTreeMap<&SnapshotId, Option<&SnapshotId>> =
            rows.iter().map(|row| (&row.id, row.parent.as_ref())).collect();
        let mut shared = BTreeSet::new();
        while let Some(id) = kept.pop() {
            kept.extend(parents.get(&id).copied().flatten().cloned());
            shared.insert(id);
        }
        let mut size = 0;
        for row in rows.iter().filter(|row| !shared.contains(&row.id)) {
            size += match snapshots.size(&row.id) {
                Err(error) if error.is_not_found() => 0, // collected meanwhile
                size => size?,
            };
        }
        Ok(Usage { total: usize::try_from(records).unwrap_or(0), active: 0, size, reclaimable: size })
    }
}
