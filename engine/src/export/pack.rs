//! Layers as they are to travel: compressed, and with the times the caller wants.
//!
//! In the store a layer made here is its snapshot, and its name that of the plain tar. What is packed has a manifest of
//! its own, and with other times a config of its own as well, since that names the plain tars.

use std::io::{self, Write};

use rbuild_oci::{Compression, Descriptor, DiffId, Manifest, MediaType, Platform, Sha256};
use rbuild_store::layers::compress::{Compressor, DEFAULT_LEVEL};
use rbuild_store::{Lease, Store};

use super::image::{Described, as_oci};
use super::timestamps::{Times, change_times};
use crate::error::Error;
use crate::exchange::Lying;
use crate::output::{Annotated, Packing};

/// Packs images of one build.
pub(crate) struct Packer<'a> {
    pub(crate) store: &'a Store,
    pub(crate) lease: &'a Lease,
    pub(crate) packing: &'a Packing,
    /// For plain layers when the caller says nothing.
    pub(crate) usual: Compression,
    /// Docker's media types.
    pub(crate) docker_types: bool,
}

impl Packer<'_> {
    /// The image as it is to travel. Layers below `own` are the base image's and keep their times; those that lie elsewhere
    /// are as they lie.
    ///
    /// # Errors
    /// A layer that is not here; a level that the compression does not have.
    pub(crate) fn pack(
        &self,
        image: &Described,
        own: usize,
        epoch: Option<i64>,
        lying: Option<&Lying>,
    ) -> Result<Described, Error> {
        let mut packed = image.clone();
        let wanted = self.packing.compression.unwrap_or(self.usual);
        // What stays in the store only needs no blobs; a base image's may be known there by its files alone.
        let travels = self.usual != Compression::None || wanted != Compression::None;
        for (at, layer) in packed.manifest.layers.iter_mut().enumerate() {
            let diff_id = &mut packed.config.rootfs.diff_ids[at];
            let now = layer.media_type.layer_compression();
            let again = now == Some(Compression::None) || self.packing.force;
            let lies = lying.and_then(|lying| lying.layers.get(at));
            if let Some(lies) = lies.filter(|_| !layer.media_type.is_foreign_layer()) {
                let annotations = std::mem::take(&mut layer.annotations);
                *layer = as_oci(&lies.blob);
                layer.annotations = annotations;
                continue;
            }
            match epoch.filter(|_| self.packing.rewrite_timestamps && at >= own) {
                Some(epoch) => {
                    (*diff_id, *layer) = self.rewrite(diff_id, epoch, wanted)?;
                    // The steps gave other layers than these.
                    packed.config.cache = None;
                }
                None if layer.media_type.is_foreign_layer() => {}
                None if again && now != Some(wanted) || travels && !self.store.layers().has(&layer.digest)? => {
                    let annotations = std::mem::take(&mut layer.annotations);
                    *layer = self.store.layers().compress(diff_id, wanted, self.level(), self.lease)?;
                    layer.annotations = annotations;
                }
                None => {}
            }
        }
        let platform = packed.config.platform();
        packed.manifest.annotations.extend(notes(self.packing, Annotated::Manifest, &platform));
        packed.manifest.config = packed.config.descriptor();
        if self.docker_types {
            with_docker_types(&mut packed.manifest);
        }
        Ok(packed)
    }

    fn level(&self) -> i32 {
        self.packing.level.unwrap_or(DEFAULT_LEVEL)
    }

    /// The layer with no time after `epoch`.
    fn rewrite(&self, diff_id: &DiffId, epoch: i64, how: Compression) -> Result<(DiffId, Descriptor), Error> {
        let bad = |error: io::Error| Error::invalid(format!("cannot compress layer {diff_id}: {error}"));
        let tar = self.store.layers().open_diff(diff_id)?;
        let blob = self.store.blobs().writer(self.lease)?;
        let out = Compressor::new(blob, how, self.level()).map_err(bad)?;
        let hashed = Hashed { out, hash: Sha256::new() };
        let hashed = change_times(tar, hashed, Times::NoLaterThan(epoch))?;
        let plain = DiffId(hashed.hash.finish());
        let (digest, size) = hashed.out.finish().map_err(bad)?.commit(None, None)?;
        let layer = Descriptor::new(MediaType::oci_layer(how), digest, size);
        if how != Compression::None {
            self.store.layers().note_blob(&plain, &layer, "")?;
        }
        Ok((plain, layer))
    }
}

/// What is to be written on something of this platform.
pub(crate) fn notes<'a>(
    packing: &'a Packing,
    on: Annotated,
    platform: &'a Platform,
) -> impl Iterator<Item = (String, String)> + 'a {
    let all = packing.annotations.iter().filter(move |note| note.on == on);
    let mine = all.filter(move |note| note.platform.as_ref().is_none_or(|wanted| platform.matches(wanted)));
    mine.map(|note| (note.key.clone(), note.value.clone()))
}

/// The same manifest in docker's words (schema 2).
fn with_docker_types(manifest: &mut Manifest) {
    manifest.media_type = Some(MediaType::DockerManifest);
    manifest.config.media_type = MediaType::DockerConfig;
    for layer in &mut manifest.layers {
        layer.media_type = match (layer.media_type.layer_compression(), layer.media_type.is_foreign_layer()) {
            (Some(Compression::Gzip), true) => MediaType::DockerForeignLayerGzip,
            (Some(Compression::Gzip), false) => MediaType::DockerLayerGzip,
            (Some(Compression::None), false) => MediaType::DockerLayer,
            _ => continue,
        };
    }
}

/// Passes bytes on and hashes them.
struct Hashed<W> {
    out: W,
    hash: Sha256,
}

impl<W: Write> Write for Hashed<W> {
    fn write(&mut self, bytes: &[u8]) -> io::Result<usize> {
        let len = self.out.write(bytes)?;
        self.hash.update(&bytes[..len]);
        Ok(len)
    }

    fn flush(&mut self) -> io::Result<()> {
        self.out.flush()
    }
}
