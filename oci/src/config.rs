//! The image config: what an image says about itself and about the process it starts.

use std::collections::BTreeMap;

use serde::{Deserialize, Serialize};

use crate::descriptor::nullable;
use crate::{ChainId, Descriptor, DiffId, Digest, ImageId, MediaType, OciError, limits};

/// An image config (image specification, "Image Configuration"), with docker's extra members.
///
/// Members are written in alphabetical order of docker's JSON and absent ones are left out, so equal values give equal
/// bytes and so equal ids.
#[derive(Debug, Clone, PartialEq, Eq, Default, Serialize, Deserialize)]
pub struct ImageConfig {
    #[serde(default)]
    pub architecture: String,
    #[serde(default, skip_serializing_if = "String::is_empty")]
    pub author: String,
    #[serde(default, deserialize_with = "nullable")]
    pub config: ContainerConfig,
    /// RFC 3339 time. Docker's own images of 2014 have none.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub created: Option<String>,
    #[serde(default, skip_serializing_if = "Vec::is_empty", deserialize_with = "nullable")]
    pub history: Vec<HistoryEntry>,
    #[serde(default)]
    pub os: String,
    #[serde(default, rename = "os.features", skip_serializing_if = "Vec::is_empty", deserialize_with = "nullable")]
    pub os_features: Vec<String>,
    #[serde(default, rename = "os.version", skip_serializing_if = "String::is_empty")]
    pub os_version: String,
    /// Build cache records whose results are layers of this image, for `--cache-from`. Other tools ignore the member.
    #[serde(default, rename = "rbuild.cache.v1", skip_serializing_if = "Option::is_none")]
    pub cache: Option<serde_json::Value>,
    #[serde(default)]
    pub rootfs: RootFs,
    #[serde(default, skip_serializing_if = "String::is_empty")]
    pub variant: String,
}

/// The layers of an image by what is in them.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct RootFs {
    #[serde(rename = "type", default = "layers")]
    pub kind: String,
    /// Lowest layer first.
    #[serde(default, deserialize_with = "nullable")]
    pub diff_ids: Vec<DiffId>,
}

fn layers() -> String {
    "layers".into()
}

impl Default for RootFs {
    fn default() -> RootFs {
        RootFs { kind: layers(), diff_ids: Vec::new() }
    }
}

/// How a line of the Dockerfile, or a commit, changed the image.
#[derive(Debug, Clone, PartialEq, Eq, Default, Serialize, Deserialize)]
pub struct HistoryEntry {
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub created: Option<String>,
    #[serde(default, skip_serializing_if = "String::is_empty")]
    pub author: String,
    #[serde(default, skip_serializing_if = "String::is_empty")]
    pub created_by: String,
    #[serde(default, skip_serializing_if = "String::is_empty")]
    pub comment: String,
    /// True when no layer belongs to this entry.
    #[serde(default, skip_serializing_if = "std::ops::Not::not")]
    pub empty_layer: bool,
}

/// `{}`: the value type of docker's sets.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default, Serialize, Deserialize)]
pub struct EmptyObject {}

/// The process an image starts and what it wants around it (image specification, member "config").
#[derive(Debug, Clone, PartialEq, Eq, Default, Serialize, Deserialize)]
#[serde(rename_all = "PascalCase", default)]
pub struct ContainerConfig {
    #[serde(skip_serializing_if = "String::is_empty")]
    pub user: String,
    #[serde(skip_serializing_if = "BTreeMap::is_empty", deserialize_with = "nullable")]
    pub exposed_ports: BTreeMap<String, EmptyObject>,
    /// `NAME=value`, in the order the process gets them.
    #[serde(skip_serializing_if = "Vec::is_empty", deserialize_with = "nullable")]
    pub env: Vec<String>,
    #[serde(skip_serializing_if = "Option::is_none")]
    pub entrypoint: Option<Vec<String>>,
    #[serde(skip_serializing_if = "Option::is_none")]
    pub cmd: Option<Vec<String>>,
    #[serde(skip_serializing_if = "Option::is_none")]
    pub healthcheck: Option<Healthcheck>,
    /// Windows only: the command is one escaped string.
    #[serde(skip_serializing_if = "std::ops::Not::not")]
    pub args_escaped: bool,
    #[serde(skip_serializing_if = "BTreeMap::is_empty", deserialize_with = "nullable")]
    pub volumes: BTreeMap<String, EmptyObject>,
    #[serde(skip_serializing_if = "String::is_empty")]
    pub working_dir: String,
    #[serde(skip_serializing_if = "Vec::is_empty", deserialize_with = "nullable")]
    pub on_build: Vec<String>,
    #[serde(skip_serializing_if = "BTreeMap::is_empty", deserialize_with = "nullable")]
    pub labels: BTreeMap<String, String>,
    #[serde(skip_serializing_if = "String::is_empty")]
    pub stop_signal: String,
    /// Seconds between the stop signal and the kill.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub stop_timeout: Option<i64>,
    #[serde(skip_serializing_if = "Option::is_none")]
    pub shell: Option<Vec<String>>,
}

/// How to find out whether a container does its work (docker's extension). Times in nanoseconds; 0 means the default.
#[derive(Debug, Clone, PartialEq, Eq, Default, Serialize, Deserialize)]
#[serde(rename_all = "PascalCase", default)]
pub struct Healthcheck {
    /// `["NONE"]`, `["CMD", …]` or `["CMD-SHELL", "…"]`; empty inherits.
    #[serde(skip_serializing_if = "Vec::is_empty", deserialize_with = "nullable")]
    pub test: Vec<String>,
    #[serde(skip_serializing_if = "is_zero")]
    pub interval: i64,
    #[serde(skip_serializing_if = "is_zero")]
    pub timeout: i64,
    #[serde(skip_serializing_if = "is_zero")]
    pub start_period: i64,
    #[serde(skip_serializing_if = "is_zero")]
    pub start_interval: i64,
    #[serde(skip_serializing_if = "is_zero")]
    pub retries: i64,
}

fn is_zero(n: &i64) -> bool {
    *n == 0
}

impl ImageConfig {
    /// Reads a config blob.
    ///
    /// # Errors
    /// Over [`limits::CONFIG`], or not the JSON of a config.
    pub fn parse(bytes: &[u8]) -> Result<ImageConfig, OciError> {
        let size = bytes.len() as u64;
        if size > limits::CONFIG {
            return Err(OciError::TooLarge { kind: "image config", size, limit: limits::CONFIG });
        }
        serde_json::from_slice(bytes).map_err(|e| OciError::Document { kind: "image config", reason: e.to_string() })
    }

    /// The bytes to store: compact JSON, members in fixed order.
    pub fn to_canonical_json(&self) -> Vec<u8> {
        serde_json::to_vec(self).unwrap_or_else(|error| unreachable!("a config has only string keys: {error}"))
    }

    /// The id of the image that has exactly this config.
    pub fn image_id(&self) -> ImageId {
        ImageId(Digest::sha256_of(&self.to_canonical_json()))
    }

    /// The descriptor of the canonical bytes.
    pub fn descriptor(&self) -> Descriptor {
        let bytes = self.to_canonical_json();
        Descriptor::new(MediaType::OciConfig, Digest::sha256_of(&bytes), bytes.len() as u64)
    }

    /// The name of the whole stack of layers; `None` for an image without any.
    pub fn chain_id(&self) -> Option<ChainId> {
        ChainId::of(&self.rootfs.diff_ids)
    }

    /// The platform this image says it is for.
    pub fn platform(&self) -> crate::Platform {
        let text = |s: &String| Some(s.clone()).filter(|s| !s.is_empty());
        crate::Platform {
            architecture: self.architecture.clone(),
            os: self.os.clone(),
            os_version: text(&self.os_version),
            os_features: self.os_features.clone(),
            variant: text(&self.variant),
        }
        .normalized()
    }
}

impl ContainerConfig {
    /// The value of a variable.
    pub fn env_value(&self, name: &str) -> Option<&str> {
        self.env.iter().rev().find_map(|entry| entry.split_once('=').filter(|(n, _)| *n == name).map(|(_, v)| v))
    }

    /// Sets a variable where it stands, or adds it at the end.
    pub fn set_env(&mut self, name: &str, value: &str) {
        let entry = format!("{name}={value}");
        match self.env.iter_mut().find(|e| e.split('=').next() == Some(name)) {
            Some(old) => *old = entry,
            None => self.env.push(entry),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_was_read_is_written_again() {
        let text = br#"{"architecture":"amd64","config":{"Env":["PATH=/bin"],"Cmd":["sh"],"Healthcheck":{"Test":["NONE"]},"Volumes":{"/data":{}},"OnBuild":["RUN x"],"Shell":["/bin/bash","-c"]},"created":"2024-01-01T00:00:00Z","history":[{"created_by":"x","empty_layer":true}],"os":"linux","rootfs":{"type":"layers","diff_ids":[]}}"#;
        let config = ImageConfig::parse(text).unwrap();
        assert_eq!(ImageConfig::parse(&config.to_canonical_json()).unwrap(), config);
        assert_eq!(String::from_utf8(config.to_canonical_json()).unwrap(), String::from_utf8(text.to_vec()).unwrap());
    }

    #[test]
    fn null_members_of_old_images_are_absent() {
        let config = ImageConfig::parse(br#"{"config":{"Env":null,"Cmd":null,"Volumes":null,"Labels":null,"OnBuild":null},"rootfs":{"type":"layers","diff_ids":null}}"#).unwrap();
        assert_eq!(config.config, ContainerConfig::default());
        assert!(ImageConfig::parse(br#"{"config":null}"#).is_ok());
    }
}
