//! Image manifests and indexes.

use std::collections::BTreeMap;

use serde::{Deserialize, Serialize};

use crate::descriptor::nullable;
use crate::{Descriptor, MediaType, OciError, limits};

/// What an image consists of (image specification, "Image Manifest"; docker's schema 2 has the same shape).
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct Manifest {
    pub schema_version: u32,
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub media_type: Option<MediaType>,
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub artifact_type: Option<String>,
    pub config: Descriptor,
    /// Lowest layer first.
    #[serde(default, deserialize_with = "nullable")]
    pub layers: Vec<Descriptor>,
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub subject: Option<Descriptor>,
    #[serde(default, skip_serializing_if = "BTreeMap::is_empty", deserialize_with = "nullable")]
    pub annotations: BTreeMap<String, String>,
}

impl Manifest {
    /// An OCI image manifest.
    pub fn new(config: Descriptor, layers: Vec<Descriptor>) -> Manifest {
        Manifest {
            schema_version: 2,
            media_type: Some(MediaType::OciManifest),
            artifact_type: None,
            config,
            layers,
            subject: None,
            annotations: BTreeMap::new(),
        }
    }
}

/// Several manifests under one name, usually one for each platform (image specification, "Image Index").
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct Index {
    pub schema_version: u32,
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub media_type: Option<MediaType>,
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub artifact_type: Option<String>,
    #[serde(default, deserialize_with = "nullable")]
    pub manifests: Vec<Descriptor>,
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub subject: Option<Descriptor>,
    #[serde(default, skip_serializing_if = "BTreeMap::is_empty", deserialize_with = "nullable")]
    pub annotations: BTreeMap<String, String>,
}

impl Index {
    /// An OCI image index.
    pub fn new(manifests: Vec<Descriptor>) -> Index {
        Index {
            schema_version: 2,
            media_type: Some(MediaType::OciIndex),
            artifact_type: None,
            manifests,
            subject: None,
            annotations: BTreeMap::new(),
        }
    }
}

/// A manifest or an index, told apart once and for all (security: a document is one thing).
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Document {
    Manifest(Manifest),
    Index(Index),
}

impl Document {
    /// Reads a document that came as `content_type` (a Content-Type header or a descriptor's media type; `None` when
    /// nothing was said).
    ///
    /// # Errors
    /// The type said, the `mediaType` inside and the members present must agree; schema 1 is refused by name; a
    /// document with both `layers` and `manifests` is refused.
    pub fn parse(bytes: &[u8], content_type: Option<&MediaType>) -> Result<Document, OciError> {
        let size = bytes.len() as u64;
        if size > limits::MANIFEST {
            return Err(OciError::TooLarge { kind: "manifest", size, limit: limits::MANIFEST });
        }
        let bad = |reason: String| OciError::Document { kind: "manifest", reason };
        #[derive(Deserialize)]
        #[serde(rename_all = "camelCase")]
        struct Shape {
            schema_version: Option<u32>,
            media_type: Option<MediaType>,
            #[serde(default)]
            config: Option<serde::de::IgnoredAny>,
            #[serde(default)]
            layers: Option<serde::de::IgnoredAny>,
            #[serde(default)]
            manifests: Option<serde::de::IgnoredAny>,
            #[serde(default)]
            fs_layers: Option<serde::de::IgnoredAny>,
        }
        let shape: Shape = serde_json::from_slice(bytes).map_err(|e| bad(e.to_string()))?;
        let said = content_type.filter(|t| t.is_index() || t.is_manifest() || t.is_schema1());
        if shape.schema_version == Some(1)
            || shape.fs_layers.is_some()
            || [said, shape.media_type.as_ref()].into_iter().flatten().any(MediaType::is_schema1)
        {
            return Err(bad(
                "docker schema 1 images are no longer supported; push the image again with a newer tool".into()
            ));
        }
        if shape.schema_version != Some(2) {
            return Err(bad("schemaVersion must be 2".into()));
        }
        if let (Some(said), Some(inside)) = (said, shape.media_type.as_ref())
            && said != inside
        {
            return Err(bad(format!("it was sent as {said} but calls itself {inside}")));
        }
        let kind = said.or(shape.media_type.as_ref());
        let looks_like_index = shape.manifests.is_some();
        let looks_like_manifest = shape.config.is_some() || shape.layers.is_some();
        if looks_like_index && looks_like_manifest {
            return Err(bad("it has members of a manifest and of an index".into()));
        }
        let is_index = kind.map_or(looks_like_index, MediaType::is_index);
        if kind.is_some_and(|k| !k.is_index() && !k.is_manifest()) {
            return Err(bad(format!("unsupported media type {}", kind.map(ToString::to_string).unwrap_or_default())));
        }
        if is_index && looks_like_manifest || !is_index && looks_like_index {
            return Err(bad("its media type and its members disagree".into()));
        }
        if is_index {
            serde_json::from_slice(bytes).map(Document::Index).map_err(|e| bad(e.to_string()))
        } else {
            let manifest: Manifest = serde_json::from_slice(bytes).map_err(|e| bad(e.to_string()))?;
            if manifest.layers.len() > limits::LAYERS {
                return Err(bad(format!("{} layers are over the limit of {}", manifest.layers.len(), limits::LAYERS)));
            }
            Ok(Document::Manifest(manifest))
        }
    }

    /// The media type this document has, said or implied.
    pub fn media_type(&self) -> MediaType {
        match self {
            Document::Manifest(m) => m.media_type.clone().unwrap_or(MediaType::OciManifest),
            Document::Index(i) => i.media_type.clone().unwrap_or(MediaType::OciIndex),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_document_is_one_thing() {
        let digest = crate::Digest::sha256_of(b"");
        let config =
            format!(r#"{{"mediaType":"application/vnd.oci.image.config.v1+json","digest":"{digest}","size":0}}"#);
        let manifest = format!(r#"{{"schemaVersion":2,"config":{config},"layers":[]}}"#);
        assert!(matches!(Document::parse(manifest.as_bytes(), None), Ok(Document::Manifest(_))));
        let index = r#"{"schemaVersion":2,"manifests":[]}"#;
        assert!(matches!(Document::parse(index.as_bytes(), None), Ok(Document::Index(_))));
        let refused = [
            (format!(r#"{{"schemaVersion":2,"config":{config},"layers":[],"manifests":[]}}"#), None),
            (manifest.clone(), Some(MediaType::OciIndex)),
            (index.to_owned(), Some(MediaType::OciManifest)),
            (r#"{"schemaVersion":1,"fsLayers":[]}"#.to_owned(), None),
            (
                r#"{"schemaVersion":2,"mediaType":"application/vnd.oci.image.index.v1+json","manifests":[]}"#
                    .to_owned(),
                Some(MediaType::DockerManifestList),
            ),
            ("{".to_owned(), None),
        ];
        for (text, said) in refused {
            assert!(Document::parse(text.as_bytes(), said.as_ref()).is_err(), "{text} was accepted");
        }
    }
}
