//! Statements about a result that travel with it: how it was made, and what is in it.
//!
//! The form is BuildKit's, so that its tools read them: an in-toto statement is a blob, the statements about one
//! platform's image are the layers of a manifest of their own, and an index holds that manifest beside the image's,
//! marked as no image anybody could run. Results that are no image get the statements as files.
//!
//! Nothing is attested unless it is asked for. A statement names a manifest by its digest, so an attested image has one
//! form: the store, archives and registries all get the same compressed layers.
//!
//! **Repeatable.** The same inputs give the same statements, and so the same digest of the image's index, with one
//! exception: provenance of mode `max` says when the build ran and which one it was. With a `SOURCE_DATE_EPOCH` or
//! `reproducible=true` it does not. Mode `min` never does, though BuildKit's does: it is what people leave switched on.

pub(crate) mod files;
pub(crate) mod materials;
pub(crate) mod provenance;
pub(crate) mod sbom;
mod spdx;
mod steps;

use rbuild_oci::{Descriptor, DiffId, Digest, ImageConfig, Manifest, MediaType, Platform, Reference};
use rbuild_store::{Lease, Store};
use serde_json::{Value, json};

use crate::error::Error;
use provenance::{Evidence, ProvenanceOptions};

const STATEMENT: &str = "https://in-toto.io/Statement/v1";
const STATEMENT_TYPE: &str = "application/vnd.in-toto+json";
const ARTIFACT_TYPE: &str = "application/vnd.docker.attestation.manifest.v1+json";
/// Annotation of a statement's descriptor.
const PREDICATE: &str = "in-toto.io/predicate-type";
const SPDX: &str = "https://spdx.dev/Document";

/// What is to be said about a result.
#[derive(Debug, Clone, Default)]
pub struct Attestations {
    pub provenance: Option<ProvenanceOptions>,
    /// The packages in the result.
    pub sbom: bool,
}

impl Attestations {
    pub(crate) fn is_empty(&self) -> bool {
        self.provenance.is_none() && !self.sbom
    }
}

/// What there is to be said about one platform's result.
#[derive(Debug, Clone, Default)]
pub(crate) struct Testimony {
    pub(crate) evidence: Option<Evidence>,
    pub(crate) provenance: Option<ProvenanceOptions>,
    /// The SPDX document.
    pub(crate) packages: Option<Value>,
}

/// A statement that lacks its subject.
pub(crate) struct Predicate {
    kind: &'static str,
    /// Its name where the result is files.
    pub(crate) file: String,
    /// Whether it goes with images only.
    pub(crate) inline_only: bool,
    content: Value,
}

impl Testimony {
    pub(crate) fn is_empty(&self) -> bool {
        self.provenance.is_none() && self.packages.is_none()
    }

    /// The predicates, about a result with these layers.
    pub(crate) fn predicates(&self, layers: &[Descriptor]) -> Vec<Predicate> {
        let packages = self.packages.iter().map(|packages| Predicate {
            kind: SPDX,
            file: "sbom.spdx.json".to_owned(),
            inline_only: false,
            content: packages.clone(),
        });
        let provenance = self.evidence.iter().zip(&self.provenance).map(|(evidence, options)| Predicate {
            kind: options.version.predicate_type(),
            file: options.filename.clone(),
            inline_only: options.inline_only,
            content: evidence.predicate(options, layers),
        });
        packages.chain(provenance).collect()
    }
}

impl Predicate {
    /// The whole statement about `subjects`, names with their digests.
    pub(crate) fn statement(&self, subjects: &[(String, Digest)]) -> Result<Vec<u8>, Error> {
        let subjects: Vec<Value> = subjects
            .iter()
            .map(|(name, digest)| json!({"name": name, "digest": {digest.algorithm().name(): digest.hex()}}))
            .collect();
        let statement = json!({
            "_type": STATEMENT,
            "predicateType": self.kind,
            "subject": subjects,
            "predicate": self.content,
        });
        serde_json::to_vec_pretty(&statement).map_err(Error::internal)
    }
}

/// Writes the statements about an image into the store; gives the entry for its index.
///
/// # Errors
/// The store cannot be written.
pub(crate) fn attach(
    predicates: &[Predicate],
    image: &Descriptor,
    platform: &Platform,
    names: &[Reference],
    artifact: bool,
    (store, lease): (&Store, &Lease),
) -> Result<Descriptor, Error> {
    let subjects: Vec<(String, Digest)> = match names {
        [] => vec![("_".to_owned(), image.digest.clone())],
        names => {
            names.iter().map(|name| (materials::package_url(name, Some(platform)), image.digest.clone())).collect()
        }
    };
    let mut layers = Vec::new();
    for predicate in predicates {
        let bytes = predicate.statement(&subjects)?;
        let digest = store.blobs().put_bytes(&bytes, lease)?;
        let mut layer = Descriptor::new(STATEMENT_TYPE.into(), digest, bytes.len() as u64);
        layer.annotations.insert(PREDICATE.to_owned(), predicate.kind.to_owned());
        layers.push(layer);
    }
    let (config, kind) = match artifact {
        true => (b"{}".to_vec(), MediaType::OciEmpty),
        false => (config_of(&layers).to_canonical_json(), MediaType::OciConfig),
    };
    let digest = store.blobs().put_bytes(&config, lease)?;
    let mut manifest = Manifest::new(Descriptor::new(kind, digest, config.len() as u64), layers);
    if artifact {
        manifest.artifact_type = Some(ARTIFACT_TYPE.to_owned());
        manifest.subject = Some(Descriptor::new(image.media_type.clone(), image.digest.clone(), image.size));
    }
    let bytes = serde_json::to_vec(&manifest).map_err(Error::internal)?;
    let digest = store.blobs().put_bytes(&bytes, lease)?;
    let mut entry = Descriptor::new(MediaType::OciManifest, digest, bytes.len() as u64);
    entry.platform = Some(Platform::new("unknown", "unknown"));
    entry.annotations.insert("vnd.docker.reference.digest".to_owned(), image.digest.to_string());
    entry.annotations.insert("vnd.docker.reference.type".to_owned(), "attestation-manifest".to_owned());
    Ok(entry)
}

/// A config for readers that insist on one: statements are its layers.
fn config_of(layers: &[Descriptor]) -> ImageConfig {
    let mut config =
        ImageConfig { architecture: "unknown".to_owned(), os: "unknown".to_owned(), ..ImageConfig::default() };
    config.rootfs.diff_ids = layers.iter().map(|layer| DiffId(layer.digest.clone())).collect();
    config
}
