//! Docker's own archives.
//!
//! Since 1.10 `manifest.json` lists images with their config and layers. Before, `repositories` gave names to layers, and
//! each layer was a directory with a `json` of its own that named its parent; the chain of these is made an image config
//! here, as docker did when it read such archives.

use std::collections::BTreeMap;

use rbuild_oci::{ContainerConfig, Descriptor, DiffId, Digest, HistoryEntry, ImageConfig, Reference, Sha256, limits};
use serde::{Deserialize, Serialize};

use super::spool::{Spool, invalid, parse};
use super::{Planned, config_of, layer_descriptor, layout};
use crate::error::{Result, StoreError};
use crate::layers::compress::Decompressed;
use crate::layers::from_io;

/// An entry of `manifest.json`.
#[derive(Debug, Clone, Serialize, Deserialize)]
#[serde(rename_all = "PascalCase")]
pub(super) struct Item {
    pub(super) config: String,
    #[serde(default)]
    pub(super) repo_tags: Option<Vec<String>>,
    #[serde(default)]
    pub(super) layers: Option<Vec<String>>,
}

/// `repositories`: the layer that each tag of each name is on top of.
pub(super) type Repositories = BTreeMap<String, BTreeMap<String, String>>;

/// The images of a docker archive, with the manifests of the OCI layout that may share it.
pub(super) fn read(spool: &mut Spool) -> Result<Vec<Planned>> {
    let items: Vec<Item> = parse("manifest.json", &spool.bytes("manifest.json", limits::MANIFEST)?)?;
    if items.is_empty() {
        return Err(invalid(b"manifest.json", "it lists no image"));
    }
    let manifests = match spool.has("index.json") {
        true => layout::manifests(spool)?,
        false => Vec::new(),
    };
    let mut plans = Vec::new();
    for item in items {
        let config_bytes = spool.bytes(&item.config, limits::CONFIG)?;
        let config_digest = Digest::sha256_of(&config_bytes);
        check_name(&item.config, &config_digest)?;
        let config = config_of(&item.config, &config_bytes)?;
        let names = item.repo_tags.unwrap_or_default();
        let names = names.iter().map(|name| name_of(name, "manifest.json")).collect::<Result<_>>()?;
        if let Some((root, manifest)) = manifests.iter().find(|(_, m)| m.config.digest == config_digest) {
            for layer in &manifest.layers {
                spool.content(layer)?;
            }
            let (layers, target) = (manifest.layers.clone(), Some(root.clone()));
            let tag = layout::tag_of(spool, &root.digest)?;
            plans.push(Planned { config_bytes, config, names, tag, layers, target });
            continue;
        }
        let names_of_layers = item.layers.unwrap_or_default();
        if names_of_layers.len() != config.rootfs.diff_ids.len() {
            let (listed, known) = (names_of_layers.len(), config.rootfs.diff_ids.len());
            let reason = format!("it lists {listed} layers for {}, whose config has {known}", item.config);
            return Err(invalid(b"manifest.json", &reason));
        }
        let mut layers = Vec::new();
        for name in &names_of_layers {
            let (digest, size) = spool.blob(name)?;
            layers.push(layer_descriptor(spool, digest, size)?);
        }
        plans.push(Planned { config_bytes, config, names, tag: None, layers, target: None });
    }
    Ok(plans)
}

/// A config that is named after its digest must have it.
fn check_name(name: &str, digest: &Digest) -> Result<()> {
    let stem = name.strip_suffix(".json").unwrap_or(name);
    let is_digest = stem.len() == 64 && stem.bytes().all(|b| b.is_ascii_hexdigit());
    match is_digest && stem != digest.hex() {
        true => Err(invalid(name.as_bytes(), "its content has another digest")),
        false => Ok(()),
    }
}

pub(super) fn name_of(text: &str, member: &str) -> Result<Reference> {
    Reference::parse(text).map_err(|error| invalid(member.as_bytes(), &format!("{text:?}: {error}")))
}

/// `<id>/json` of docker before 1.10.
#[derive(Debug, Clone, Default, Deserialize)]
#[serde(default)]
struct V1 {
    parent: Option<String>,
    created: Option<String>,
    author: Option<String>,
    comment: Option<String>,
    architecture: Option<String>,
    os: Option<String>,
    config: Option<ContainerConfig>,
    container_config: Option<ContainerConfig>,
    throwaway: Option<bool>,
}

/// The images of an archive of docker before 1.10.
pub(super) fn read_legacy(spool: &mut Spool) -> Result<Vec<Planned>> {
    let repositories: Repositories = parse("repositories", &spool.bytes("repositories", limits::MANIFEST)?)?;
    let mut tops: BTreeMap<String, Vec<Reference>> = BTreeMap::new();
    for (name, tags) in &repositories {
        for (tag, id) in tags {
            tops.entry(id.clone()).or_default().push(name_of(&format!("{name}:{tag}"), "repositories")?);
        }
    }
    if tops.is_empty() {
        return Err(invalid(b"repositories", "it lists no image"));
    }
    tops.into_iter().map(|(id, names)| legacy_image(spool, &id, names)).collect()
}

fn legacy_image(spool: &mut Spool, top: &str, names: Vec<Reference>) -> Result<Planned> {
    let mut chain: Vec<(String, V1)> = Vec::new();
    let mut next = Some(top.to_owned());
    while let Some(id) = next {
        let name = format!("{id}/json");
        if id.len() != 64 || !id.bytes().all(|b| b.is_ascii_hexdigit()) {
            return Err(invalid(b"repositories", &format!("{id:?} is no layer id")));
        }
        if chain.len() >= limits::LAYERS {
            let what = "layers of an image in the archive".into();
            return Err(StoreError::Limit { what, limit: limits::LAYERS as u64, unit: "layers" });
        }
        let layer: V1 = parse(&name, &spool.bytes(&name, limits::CONFIG)?)?;
        next = layer.parent.clone().filter(|parent| !parent.is_empty());
        chain.push((id, layer));
    }
    let newest = chain[0].1.clone();
    let mut config = ImageConfig {
        architecture: newest.architecture.unwrap_or_else(|| "amd64".into()),
        os: newest.os.unwrap_or_else(|| "linux".into()),
        author: newest.author.unwrap_or_default(),
        created: newest.created,
        config: newest.config.unwrap_or_default(),
        ..ImageConfig::default()
    };
    let mut layers: Vec<Descriptor> = Vec::new();
    for (id, layer) in chain.into_iter().rev() {
        let empty_layer = layer.throwaway.unwrap_or(false);
        config.history.push(HistoryEntry {
            created: layer.created,
            author: layer.author.unwrap_or_default(),
            created_by: layer.container_config.and_then(|config| config.cmd).unwrap_or_default().join(" "),
            comment: layer.comment.unwrap_or_default(),
            empty_layer,
        });
        if empty_layer {
            continue;
        }
        let (digest, size) = spool.blob(&format!("{id}/layer.tar"))?;
        config.rootfs.diff_ids.push(diff_id(spool, &digest)?);
        layers.push(layer_descriptor(spool, digest, size)?);
    }
    Ok(Planned { config_bytes: config.to_canonical_json(), config, names, tag: None, layers, target: None })
}

fn diff_id(spool: &Spool, blob: &Digest) -> Result<DiffId> {
    use std::io::Read;
    let what = format!("reading layer {blob}");
    let mut plain = Decompressed::new(spool.store.blobs().reader(blob)?).map_err(|e| from_io(&what, e))?;
    let mut hash = Sha256::new();
    let mut buffer = vec![0; 128 << 10];
    loop {
        match plain.read(&mut buffer).map_err(|e| from_io(&what, e))? {
            0 => return Ok(DiffId(hash.finish())),
            len => hash.update(&buffer[..len]),
        }
    }
}
