//! Media types of the image specification and docker's older ones.

use std::fmt;

use serde::{Deserialize, Deserializer, Serialize, Serializer};

/// How a blob is compressed.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, PartialOrd, Ord, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum Compression {
    None,
    Gzip,
    Zstd,
}

macro_rules! media_types {
    ($($(#[$doc:meta])* $name:ident = $text:literal,)*) => {
        /// A media type (image specification, "Media Types").
        #[derive(Debug, Clone, PartialEq, Eq, Hash, PartialOrd, Ord)]
        pub enum MediaType {
            $($(#[$doc])* $name,)*
            /// One this program has no use for; kept as it came.
            Other(String),
        }

        impl MediaType {
            pub fn as_str(&self) -> &str {
                match self {
                    $(MediaType::$name => $text,)*
                    MediaType::Other(text) => text,
                }
            }
        }

        impl From<&str> for MediaType {
            /// Parameters (`; charset=…`) are dropped.
            fn from(text: &str) -> MediaType {
                match text.split(';').next().unwrap_or_default().trim() {
                    $($text => MediaType::$name,)*
                    other => MediaType::Other(other.to_owned()),
                }
            }
        }
    };
}

media_types! {
    OciManifest = "application/vnd.oci.image.manifest.v1+json",
    OciIndex = "application/vnd.oci.image.index.v1+json",
    OciConfig = "application/vnd.oci.image.config.v1+json",
    OciLayer = "application/vnd.oci.image.layer.v1.tar",
    OciLayerGzip = "application/vnd.oci.image.layer.v1.tar+gzip",
    OciLayerZstd = "application/vnd.oci.image.layer.v1.tar+zstd",
    OciForeignLayer = "application/vnd.oci.image.layer.nondistributable.v1.tar",
    OciForeignLayerGzip = "application/vnd.oci.image.layer.nondistributable.v1.tar+gzip",
    OciForeignLayerZstd = "application/vnd.oci.image.layer.nondistributable.v1.tar+zstd",
    OciEmpty = "application/vnd.oci.empty.v1+json",
    DockerManifest = "application/vnd.docker.distribution.manifest.v2+json",
    DockerManifestList = "application/vnd.docker.distribution.manifest.list.v2+json",
    DockerConfig = "application/vnd.docker.container.image.v1+json",
    DockerLayer = "application/vnd.docker.image.rootfs.diff.tar",
    DockerLayerGzip = "application/vnd.docker.image.rootfs.diff.tar.gzip",
    DockerLayerZstd = "application/vnd.docker.image.rootfs.diff.tar.zstd",
    DockerForeignLayerGzip = "application/vnd.docker.image.rootfs.foreign.diff.tar.gzip",
    /// Schema 1, which nobody writes any more; named so that it can be refused by name.
    DockerSchema1 = "application/vnd.docker.distribution.manifest.v1+json",
    DockerSchema1Signed = "application/vnd.docker.distribution.manifest.v1+prettyjws",
}

impl MediaType {
    /// An image index or docker's manifest list.
    pub fn is_index(&self) -> bool {
        matches!(self, MediaType::OciIndex | MediaType::DockerManifestList)
    }

    /// An image manifest of schema 2 or OCI.
    pub fn is_manifest(&self) -> bool {
        matches!(self, MediaType::OciManifest | MediaType::DockerManifest)
    }

    /// Docker's schema 1 in either form.
    pub fn is_schema1(&self) -> bool {
        matches!(self, MediaType::DockerSchema1 | MediaType::DockerSchema1Signed)
    }

    /// A container image's config.
    pub fn is_config(&self) -> bool {
        matches!(self, MediaType::OciConfig | MediaType::DockerConfig)
    }

    /// A file system layer, whatever its compression.
    pub fn is_layer(&self) -> bool {
        self.layer_compression().is_some()
    }

    /// A layer that its publisher does not let others distribute.
    pub fn is_foreign_layer(&self) -> bool {
        use MediaType::*;
        matches!(self, OciForeignLayer | OciForeignLayerGzip | OciForeignLayerZstd | DockerForeignLayerGzip)
    }

    /// How a layer is compressed; `None` when this is no layer.
    pub fn layer_compression(&self) -> Option<Compression> {
        use MediaType::*;
        match self {
            OciLayer | OciForeignLayer | DockerLayer => Some(Compression::None),
            OciLayerGzip | OciForeignLayerGzip | DockerLayerGzip | DockerForeignLayerGzip => Some(Compression::Gzip),
            OciLayerZstd | OciForeignLayerZstd | DockerLayerZstd => Some(Compression::Zstd),
            _ => None,
        }
    }

    /// The OCI layer type for a compression.
    pub fn oci_layer(compression: Compression) -> MediaType {
        match compression {
            Compression::None => MediaType::OciLayer,
            Compression::Gzip => MediaType::OciLayerGzip,
            Compression::Zstd => MediaType::OciLayerZstd,
        }
    }
}

impl fmt::Display for MediaType {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(self.as_str())
    }
}

impl Serialize for MediaType {
    fn serialize<S: Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        serializer.serialize_str(self.as_str())
    }
}

impl<'de> Deserialize<'de> for MediaType {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<MediaType, D::Error> {
        let text = std::borrow::Cow::<'de, str>::deserialize(deserializer)?;
        Ok(MediaType::from(&*text))
    }
}
