//! The images of all platforms, with what is said about them, as one thing to ship.

use rbuild_oci::{Compression, Descriptor, Digest, ImageId, Index, MediaType, Platform, Reference};

use super::image::{Described, write_documents};
use super::pack::{Packer, notes};
use super::results::{Built, Done, Work};
use crate::attest;
use crate::error::Error;
use crate::output::{Annotated, MediaTypes, Packing};

impl Work {
    /// Packs every platform's image and writes what describes them. What is returned names the manifest, or the index
    /// where there are several manifests.
    pub(super) fn pack(
        &self,
        packing: &Packing,
        names: &[Reference],
        usual: Compression,
    ) -> Result<(Done, Descriptor), Error> {
        let is_attested = self.results.iter().any(|result| !result.testimony.is_empty());
        // A statement is about one form of the image: the one that travels.
        let usual = if is_attested { Compression::Gzip } else { usual };
        let mut done = Done::default();
        let asked = packing.media_types == Some(MediaTypes::Docker);
        let docker_types = asked && self.can_have_docker_types(packing, is_attested, &mut done.warnings);
        // What the client of registries makes of an image whose layers are compressed on their way.
        let away = self.results.iter().filter_map(|result| result.lying.as_ref());
        let mut away = away.flat_map(|lying| &lying.layers).peekable();
        let usual_types = away.peek().is_some()
            && packing.media_types.is_none()
            && usual == Compression::None
            && !is_attested
            && self.results.len() == 1
            && packing.annotations.is_empty()
            && away.all(|layer| layer.blob.media_type.layer_compression() == Some(Compression::Gzip));
        let docker_types = docker_types || usual_types;
        let packer = Packer { store: &self.store, lease: &self.lease, packing, usual, docker_types };
        let mut entries: Vec<(Digest, Descriptor)> = Vec::new();
        let mut statements = Vec::new();
        let has_index = self.results.len() > 1 || is_attested;
        for result in self.results.iter() {
            if packing.rewrite_timestamps && result.epoch.is_none() && done.warnings.is_empty() {
                let message = "rewrite-timestamp is specified, but no source-date-epoch was found";
                done.warnings.push(message.to_owned());
            }
            let packed = packer.pack(&result.image, result.base_layers, result.epoch, result.lying.as_ref())?;
            let (config, mut entry) = write_documents(&self.store, &self.lease, &packed)?;
            if !result.testimony.is_empty() {
                statements.push(self.attach(result, &packed, &entry, names, packing)?);
            }
            let platform = packed.config.platform();
            entry.annotations.extend(notes(packing, Annotated::ManifestDescriptor, &platform));
            if has_index {
                entry.platform = Some(platform);
            }
            entries.push((config, entry));
        }
        let host = Platform::host();
        let of_host = self.results.iter().position(|result| host.matches(&result.platform)).unwrap_or(0);
        let config = entries[of_host].0.clone();
        let target = match entries.as_slice() {
            [(_, one)] if !has_index => one.clone(),
            _ => {
                let images = entries.into_iter().map(|(_, entry)| entry);
                self.index(images.chain(statements).collect(), packing, docker_types)?
            }
        };
        done.identity = Some((ImageId(config), target.clone()));
        Ok((done, target))
    }

    fn attach(
        &self,
        result: &Built,
        packed: &Described,
        image: &Descriptor,
        names: &[Reference],
        packing: &Packing,
    ) -> Result<Descriptor, Error> {
        let predicates = result.testimony.predicates(&packed.manifest.layers);
        let place = (&self.store, &self.lease);
        attest::attach(&predicates, image, &packed.config.platform(), names, packing.artifacts, place)
    }

    fn index(&self, manifests: Vec<Descriptor>, packing: &Packing, docker_types: bool) -> Result<Descriptor, Error> {
        let host = Platform::host();
        let mut index = Index::new(manifests);
        let media_type = if docker_types { MediaType::DockerManifestList } else { MediaType::OciIndex };
        index.media_type = Some(media_type.clone());
        index.annotations.extend(notes(packing, Annotated::Index, &host));
        let bytes = serde_json::to_vec(&index).map_err(Error::internal)?;
        let digest = self.store.blobs().put_bytes(&bytes, &self.lease)?;
        let mut entry = Descriptor::new(media_type, digest, bytes.len() as u64);
        entry.annotations.extend(notes(packing, Annotated::IndexDescriptor, &host));
        Ok(entry)
    }

    /// Whether docker's types can say everything; if not, people are told.
    fn can_have_docker_types(&self, packing: &Packing, is_attested: bool, warnings: &mut Vec<String>) -> bool {
        let layers = self.results.iter().flat_map(|result| &result.image.manifest.layers);
        let zstd = packing.compression == Some(Compression::Zstd)
            || !packing.force
                && layers.into_iter().any(|l| l.media_type.layer_compression() == Some(Compression::Zstd));
        let why = match () {
            () if zstd => "zstd",
            () if !packing.annotations.is_empty() => "annotations",
            () if is_attested => "attestations",
            () => return true,
        };
        warnings.push(format!("forcibly turning on oci-mediatype mode for {why}"));
        false
    }
}
