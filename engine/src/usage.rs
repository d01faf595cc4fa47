//! What takes room, and what of it could go.

pub mod cache;
pub mod filter;
pub mod ledger;
pub mod policy;
pub mod prune;

use std::collections::BTreeMap;

use rbuild_oci::ChainId;
use rbuild_store::Root;

use crate::containers::{MountKind, MountPoint, content_size};
use crate::engine::Engine;
use crate::error::Error;
use crate::images::{Image, ImageFilter};

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
    /// Results of steps, cache mounts, indexes; what images have too counts there.
    pub cache: Usage,
}

/// An image, and how much of it others have too.
#[derive(Debug, Clone)]
pub struct ImageShare {
    pub image: Image,
    /// Bytes of the layers that other images have too.
    pub shared: u64,
    /// Bytes of those that only this one has.
    pub unique: u64,
    /// How many containers were made from it.
    pub containers: usize,
}

/// A layer in its place in a chain.
struct SharedLayer {
    size: u64,
    images: usize,
    /// By an image that is in use.
    used: bool,
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

    fn images_usage(&self) -> Result<Usage, Error> {
        let mut usage = Usage::default();
        let (images, layers) = self.images_and_layers()?;
        for image in &images {
            usage.total += 1;
            usage.active += usize::from(image.containers > 0);
        }
        usage.size = layers.values().map(|layer| layer.size).sum();
        usage.reclaimable = layers.values().filter(|layer| !layer.used).map(|layer| layer.size).sum();
        Ok(usage)
    }

    /// Each image with what it shares with others.
    ///
    /// # Errors
    /// The store cannot be read.
    pub fn image_shares(&self) -> Result<Vec<ImageShare>, Error> {
        Ok(self.images_and_layers()?.0)
    }

    fn images_and_layers(&self) -> Result<(Vec<ImageShare>, BTreeMap<String, SharedLayer>), Error> {
        let images = self.images()?;
        let containers = self.containers().list()?;
        let mut layers: BTreeMap<String, SharedLayer> = BTreeMap::new();
        let mut shares = Vec::new();
        for image in images.list(&ImageFilter::default())? {
            let id = image.id.0.to_string();
            let count = containers.iter().filter(|seen| seen.container.image_id == id).count();
            let mut chains = Vec::new();
            let mut chain: Option<ChainId> = None;
            for (diff, size) in image.config.rootfs.diff_ids.iter().zip(images.layer_sizes(&image)?) {
                let next = match &chain {
                    Some(below) => below.then(diff),
                    None => ChainId(diff.0.clone()),
                };
                let name = next.0.to_string();
                let layer = layers.entry(name.clone()).or_insert(SharedLayer { size, images: 0, used: false });
                layer.images += 1;
                layer.used |= count > 0 || images.is_used(&image)?;
                chains.push(name);
                chain = Some(next);
            }
            shares.push((image, count, chains));
        }
        let shares = shares.into_iter().map(|(image, containers, chains)| {
            let sum = |shared: bool| {
                let layers = chains.iter().filter_map(|chain| layers.get(chain));
                layers.filter(|layer| (layer.images > 1) == shared).map(|layer| layer.size).sum()
            };
            ImageShare { shared: sum(true), unique: sum(false), image, containers }
        });
        Ok((shares.collect(), layers))
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

    /// Each volume's name, the bytes of its files, and how many containers have it.
    ///
    /// # Errors
    /// A volume's files cannot be read.
    pub fn volume_sizes(&self) -> Result<Vec<(String, u64, usize)>, Error> {
        let containers = self.containers().list()?;
        let links = |name: &str| {
            let has = |mount: &MountPoint| matches!(&mount.kind, MountKind::Volume { name: used, .. } if used == name);
            containers.iter().filter(|seen| seen.container.mounts.iter().any(has)).count()
        };
        let mut sizes = Vec::new();
        for volume in self.volumes().list()? {
            let size = Root::open(&volume.mountpoint).and_then(|root| content_size(&root));
            let size = size.map_err(|e| Error::internal(format!("measuring volume {}: {e}", volume.name)))?;
            let links = links(&volume.name);
            sizes.push((volume.name, size, links));
        }
        Ok(sizes)
    }

    fn volumes_usage(&self) -> Result<Usage, Error> {
        let mut usage = Usage::default();
        for (_, size, links) in self.volume_sizes()? {
            usage.total += 1;
            usage.active += usize::from(links > 0);
            usage.size += size;
            usage.reclaimable += if links > 0 { 0 } else { size };
        }
        Ok(usage)
    }

    fn cache_usage(&self) -> Result<Usage, Error> {
        let mut usage = Usage::default();
        for entry in self.cache_entries()? {
            // What images have too is counted there.
            let size = if entry.shared { 0 } else { entry.size };
            usage.total += 1;
            usage.active += usize::from(entry.in_use);
            usage.size += size;
            usage.reclaimable += if entry.in_use { 0 } else { size };
        }
        Ok(usage)
    }
}
