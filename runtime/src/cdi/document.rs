//! A specification file as written, and what makes one valid (the Container Device Interface's `SPEC.md`).

use std::collections::BTreeMap;

use serde::Deserialize;
use serde_json::Value;

/// Versions of the specification there are, oldest first.
const VERSIONS: [&str; 10] = ["0.1.0", "0.2.0", "0.3.0", "0.4.0", "0.5.0", "0.6.0", "0.7.0", "0.8.0", "1.0.0", "1.1.0"];

#[derive(Debug, Deserialize)]
#[serde(rename_all = "camelCase", deny_unknown_fields)]
pub(super) struct Document {
    cdi_version: String,
    pub(super) kind: String,
    #[serde(default)]
    pub(super) annotations: BTreeMap<String, String>,
    #[serde(default)]
    pub(super) devices: Vec<Entry>,
    #[serde(default)]
    pub(super) container_edits: Edits,
}

#[derive(Debug, Deserialize)]
#[serde(rename_all = "camelCase", deny_unknown_fields)]
pub(super) struct Entry {
    pub(super) name: String,
    #[serde(default)]
    pub(super) annotations: BTreeMap<String, String>,
    #[serde(default)]
    pub(super) container_edits: Edits,
}

/// What a container gets.
#[derive(Debug, Default, Clone, PartialEq, Deserialize)]
#[serde(rename_all = "camelCase", deny_unknown_fields, default)]
pub(super) struct Edits {
    pub(super) env: Vec<String>,
    pub(super) device_nodes: Vec<Node>,
    pub(super) mounts: Vec<HostMount>,
    pub(super) additional_gids: Vec<u32>,
    pub(super) hooks: Vec<Hook>,
    pub(super) net_devices: Vec<Value>,
    pub(super) intel_rdt: Option<Value>,
}

#[derive(Debug, Clone, PartialEq, Deserialize)]
#[serde(rename_all = "camelCase", deny_unknown_fields)]
pub(super) struct Node {
    pub(super) path: String,
    pub(super) host_path: Option<String>,
    #[serde(rename = "type")]
    pub(super) kind: Option<String>,
    pub(super) major: Option<i64>,
    pub(super) minor: Option<i64>,
    pub(super) file_mode: Option<u32>,
    pub(super) permissions: Option<String>,
    pub(super) uid: Option<u32>,
    pub(super) gid: Option<u32>,
}

#[derive(Debug, Clone, PartialEq, Deserialize)]
#[serde(rename_all = "camelCase", deny_unknown_fields)]
pub(super) struct HostMount {
    pub(super) host_path: String,
    pub(super) container_path: String,
    #[serde(default)]
    pub(super) options: Vec<String>,
    #[serde(rename = "type")]
    pub(super) kind: Option<String>,
}

/// A program that another runtime would start; here only its name matters.
#[derive(Debug, Clone, PartialEq, Deserialize)]
#[serde(rename_all = "camelCase")]
pub(super) struct Hook {
    pub(super) hook_name: String,
    pub(super) path: String,
}

impl Document {
    /// # Errors
    /// What keeps the value from being a valid specification.
    pub(super) fn read(value: Value) -> Result<Document, String> {
        let document: Document = serde_json::from_value(without_nulls(value)).map_err(|error| error.to_string())?;
        document.check()?;
        Ok(document)
    }

    fn check(&self) -> Result<(), String> {
        let version = self.cdi_version.strip_prefix('v').unwrap_or(&self.cdi_version);
        let Some(age) = VERSIONS.iter().position(|known| *known == version) else {
            return Err(format!("the version {:?} is not known; the newest is {}", self.cdi_version, VERSIONS[9]));
        };
        if !is_kind(&self.kind) {
            return Err(format!("the kind {:?} is not vendor/class", self.kind));
        }
        self.container_edits.check()?;
        let mut names: Vec<&str> = Vec::new();
        for device in &self.devices {
            if !is_name(&device.name) {
                return Err(format!("the device name {:?} is not valid", device.name));
            }
            if names.contains(&device.name.as_str()) {
                return Err(format!("the device {:?} is there twice", device.name));
            }
            names.push(&device.name);
            if device.container_edits == Edits::default() {
                return Err(format!("the device {:?} changes nothing of a container", device.name));
            }
            device.container_edits.check()?;
        }
        match self.newest_part().filter(|(_, since)| VERSIONS.iter().position(|known| known == since) > Some(age)) {
            Some((what, since)) => Err(format!("{what} need version {since}, and the file says {}", self.cdi_version)),
            None => Ok(()),
        }
    }

    /// The part of the file that came last into the specification, and with which version.
    fn newest_part(&self) -> Option<(&'static str, &'static str)> {
        let edits = || self.devices.iter().map(|device| &device.container_edits).chain([&self.container_edits]);
        let annotated = !self.annotations.is_empty() || self.devices.iter().any(|d| !d.annotations.is_empty());
        [
            (edits().any(|edits| !edits.net_devices.is_empty()), ("netDevices", "1.1.0")),
            (edits().any(|edits| !edits.additional_gids.is_empty()), ("additionalGids", "0.7.0")),
            (edits().any(|edits| edits.intel_rdt.is_some()), ("values of intelRdt", "0.7.0")),
            (annotated, ("annotations", "0.6.0")),
            (edits().flat_map(|e| &e.device_nodes).any(|n| n.host_path.is_some()), ("host paths of nodes", "0.5.0")),
            (edits().flat_map(|e| &e.mounts).any(|mount| mount.kind.is_some()), ("types of mounts", "0.4.0")),
        ]
        .into_iter()
        .find_map(|(there, part)| there.then_some(part))
    }
}

impl Edits {
    fn check(&self) -> Result<(), String> {
        if let Some(bad) = self.env.iter().find(|entry| entry.find('=').is_none_or(|at| at == 0)) {
            return Err(format!("the variable {bad:?} is not NAME=value"));
        }
        for node in &self.device_nodes {
            if !node.path.starts_with('/') {
                return Err(format!("the device node {:?} is not an absolute path", node.path));
            }
            if let Some(kind) = node.kind.as_deref().filter(|kind| !matches!(*kind, "" | "b" | "c" | "u" | "p")) {
                return Err(format!(
                    "the device node {} has the type {kind:?}, which is none of b, c, u, p",
                    node.path
                ));
            }
            if let Some(bad) = node.permissions.as_deref().filter(|p| !p.bytes().all(|b| b"rwm".contains(&b))) {
                return Err(format!("the device node {} has the permissions {bad:?}, not of r, w, m", node.path));
            }
        }
        for mount in &self.mounts {
            if !mount.host_path.starts_with('/') || !mount.container_path.starts_with('/') {
                let (host, inside) = (&mount.host_path, &mount.container_path);
                return Err(format!("a mount of {host:?} at {inside:?} needs two absolute paths"));
            }
        }
        Ok(())
    }
}

/// A member that is null is as good as absent.
fn without_nulls(value: Value) -> Value {
    match value {
        Value::Object(members) => {
            let kept = members.into_iter().filter(|(_, value)| !value.is_null());
            Value::Object(kept.map(|(name, value)| (name, without_nulls(value))).collect())
        }
        Value::Array(values) => Value::Array(values.into_iter().map(without_nulls).collect()),
        other => other,
    }
}

/// `vendor/class`, each a letter, then letters, digits and `_-.`, and no mark at the end.
pub(super) fn is_kind(text: &str) -> bool {
    let is_part = |part: &str| part.starts_with(|c: char| c.is_ascii_alphabetic()) && is_word(part, b"_-.");
    text.split_once('/').is_some_and(|(vendor, class)| is_part(vendor) && is_part(class))
}

/// A device's name begins with a letter or a digit and may hold colons.
pub(super) fn is_name(text: &str) -> bool {
    text.starts_with(|c: char| c.is_ascii_alphanumeric()) && is_word(text, b"_-.:")
}

fn is_word(text: &str, marks: &[u8]) -> bool {
    text.ends_with(|c: char| c.is_ascii_alphanumeric())
        && text.bytes().all(|byte| byte.is_ascii_alphanumeric() || marks.contains(&byte))
}
