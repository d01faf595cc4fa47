//! Devices by name: what the Container Device Interface's specification files say a container gets with each.
//!
//! A vendor puts a file (JSON or YAML) into a directory; it names devices `vendor/class=name` and the edits of a
//! container that make each usable: nodes, variables, mounts, groups. Which directories those are is the caller's to say.
//! Files are read when a device is asked for and at no other time, so a file that is wrong harms nobody who does not need
//! it; it is remembered as a [`Fault`], to be told to whoever misses a device.
//!
//! Not done, and refused by name: hooks (programs of the host's that would run while a container is made; nothing here
//! has the stages they belong to), network devices and Intel's resource director.

mod document;
mod edits;
mod yaml;

use std::collections::{BTreeMap, BTreeSet};
use std::path::{Path, PathBuf};
use std::sync::Arc;

use document::{Document, Edits};

pub use edits::inject;

/// A specification larger than this, in bytes, is refused.
const LARGEST: u64 = 4 << 20;

/// A device as its specification describes it.
#[derive(Debug, Clone)]
pub struct Device {
    /// `vendor/class=name`.
    pub name: String,
    /// Those of the specification, overruled by the device's own.
    pub annotations: BTreeMap<String, String>,
    edits: Edits,
    spec: Arc<SpecFile>,
}

#[derive(Debug)]
struct SpecFile {
    path: PathBuf,
    /// What a container gets once, with any of its devices.
    edits: Edits,
}

/// Why a specification, or a device of it, cannot be used.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Fault {
    pub path: PathBuf,
    pub message: String,
}

impl std::fmt::Display for Fault {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        write!(f, "{}: {}", self.path.display(), self.message)
    }
}

/// The devices of some directories.
#[derive(Debug, Default)]
pub struct DeviceSpecs {
    devices: BTreeMap<String, Device>,
    faults: Vec<Fault>,
}

impl DeviceSpecs {
    /// Reads every `*.json` and `*.yaml` of `directories`. A device of a later directory takes the place of one of the
    /// same name in an earlier; two in the same directory are a fault, and neither is there.
    pub fn read(directories: &[PathBuf]) -> DeviceSpecs {
        let mut specs = DeviceSpecs::default();
        for directory in directories {
            specs.add(directory);
        }
        specs
    }

    /// What could not be used, in the order of the directories.
    pub fn faults(&self) -> &[Fault] {
        &self.faults
    }

    /// Whether there is any device.
    pub fn is_empty(&self) -> bool {
        self.devices.is_empty()
    }

    /// The names of all devices, in order.
    pub fn names(&self) -> impl Iterator<Item = &str> {
        self.devices.keys().map(String::as_str)
    }

    pub fn get(&self, name: &str) -> Option<&Device> {
        self.devices.get(name)
    }

    /// The devices a kind (`vendor/class`) has.
    pub fn of_kind<'a>(&'a self, kind: &'a str) -> impl Iterator<Item = &'a Device> {
        let is_kind = move |name: &str| name.strip_prefix(kind).is_some_and(|rest| rest.starts_with('='));
        self.devices.values().filter(move |device| is_kind(&device.name))
    }

    fn add(&mut self, directory: &Path) {
        let mut paths: Vec<PathBuf> = match std::fs::read_dir(directory) {
            Ok(entries) => entries.flatten().map(|entry| entry.path()).collect(),
            Err(error) if error.kind() == std::io::ErrorKind::NotFound => return,
            Err(error) => {
                let message = format!("cannot read the directory: {}", crate::error::words(&error));
                return self.faults.push(Fault { path: directory.to_owned(), message });
            }
        };
        paths.retain(|path| path.extension().is_some_and(|ext| ext == "json" || ext == "yaml") && !path.is_dir());
        paths.sort();
        let mut here: BTreeMap<String, Device> = BTreeMap::new();
        let mut twice = BTreeSet::new();
        for path in paths {
            let document = match read(&path) {
                Ok(document) => document,
                Err(message) => {
                    self.faults.push(Fault { path, message });
                    continue;
                }
            };
            for device in devices(document, &path) {
                if let Some(other) = here.get(&device.name) {
                    let message = format!("the device {} is also in {}", device.name, other.spec.path.display());
                    self.faults.push(Fault { path: path.clone(), message });
                    twice.insert(device.name.clone());
                }
                here.insert(device.name.clone(), device);
            }
        }
        self.devices.extend(here);
        self.devices.retain(|name, _| !twice.contains(name));
    }
}

fn read(path: &Path) -> Result<Document, String> {
    let words = |error: std::io::Error| format!("cannot read it: {}", crate::error::words(&error));
    if std::fs::metadata(path).map_err(words)?.len() > LARGEST {
        return Err("it is larger than 4MiB".to_owned());
    }
    let text = std::fs::read_to_string(path).map_err(words)?;
    let value = match path.extension().is_some_and(|ext| ext == "json") {
        true => serde_json::from_str(&text).map_err(|error| error.to_string())?,
        false => yaml::read(&text)?,
    };
    Document::read(value)
}

fn devices(document: Document, path: &Path) -> Vec<Device> {
    let spec = Arc::new(SpecFile { path: path.to_owned(), edits: document.container_edits });
    let of = |device: document::Entry| {
        let mut annotations = document.annotations.clone();
        annotations.extend(device.annotations);
        let name = format!("{}={}", document.kind, device.name);
        Device { name, annotations, edits: device.container_edits, spec: spec.clone() }
    };
    document.devices.into_iter().map(of).collect()
}

/// Whether `text` has the form `vendor/class=name`. A path has not, since no vendor begins with a slash.
pub fn is_device_name(text: &str) -> bool {
    text.split_once('=').is_some_and(|(kind, name)| document::is_kind(kind) && document::is_name(name))
}

#[cfg(test)]
mod tests {
    use super::*;

    fn directory(files: &[(&str, &str)]) -> tempfile::TempDir {
        let dir = tempfile::tempdir().unwrap();
        for (name, text) in files {
            std::fs::write(dir.path().join(name), text).unwrap();
        }
        dir
    }

    const ONE: &str = r#"{"cdiVersion": "0.6.0", "kind": "acme.com/thing", "annotations": {"a": "spec", "b": "spec"},
        "devices": [
            {"name": "one", "annotations": {"a": "own"}, "containerEdits": {"env": ["ONE=1"]}},
            {"name": "two", "containerEdits": {"env": ["TWO=2"]}}]}"#;
    const YAML: &str = "cdiVersion: 0.7.0\nkind: acme.com/other\ndevices:\n- name: \"0\"\n  containerEdits:\n    \
        additionalGids: [7]\n";

    #[test]
    fn both_forms_are_read_and_other_files_are_not() {
        let dir = directory(&[("a.json", ONE), ("b.yaml", YAML), ("c.txt", "{"), ("d.yml", "{")]);
        let specs = DeviceSpecs::read(&[dir.path().to_owned(), "/no/such/directory".into()]);
        assert_eq!(specs.faults(), []);
        let names: Vec<_> = specs.names().collect();
        assert_eq!(names, ["acme.com/other=0", "acme.com/thing=one", "acme.com/thing=two"]);
        let annotations = &specs.get("acme.com/thing=one").unwrap().annotations;
        assert_eq!((annotations["a"].as_str(), annotations["b"].as_str()), ("own", "spec"));
        assert_eq!(specs.of_kind("acme.com/thing").count(), 2);
        assert_eq!(specs.of_kind("acme.com/thin").count(), 0);
    }

    #[test]
    fn later_directories_win_and_twins_cancel_each_other() {
        let first = directory(&[("a.json", ONE)]);
        let second = directory(&[("a.json", &ONE.replace("ONE=1", "ONE=later"))]);
        let specs = DeviceSpecs::read(&[first.path().to_owned(), second.path().to_owned()]);
        let one = specs.get("acme.com/thing=one").unwrap();
        assert_eq!(one.spec.path, second.path().join("a.json"));
        let twins = directory(&[("a.json", ONE), ("b.json", ONE)]);
        let specs = DeviceSpecs::read(&[first.path().to_owned(), twins.path().to_owned()]);
        assert!(specs.is_empty(), "{specs:?}");
        let said: Vec<String> = specs.faults().iter().map(Fault::to_string).collect();
        let (a, b) = (twins.path().join("a.json"), twins.path().join("b.json"));
        assert_eq!(said[0], format!("{}: the device acme.com/thing=one is also in {}", b.display(), a.display()));
    }

    #[test]
    fn what_is_wrong_is_named_with_its_file() {
        let kind = |kind: &str| ONE.replace("acme.com/thing", kind);
        let edits = |edits: &str| ONE.replace(r#"{"env": ["ONE=1"]}"#, edits);
        for (text, want) in [
            ("{".to_owned(), "EOF while parsing"),
            ("{}".to_owned(), "missing field `cdiVersion`"),
            (ONE.replace("0.6.0", "9.9"), "the version \"9.9\" is not known"),
            (ONE.replace("0.6.0", "0.5.0"), "annotations need version 0.6.0, and the file says 0.5.0"),
            (kind("thing"), "the kind \"thing\" is not vendor/class"),
            (kind("acme.com/-x"), "the kind \"acme.com/-x\" is not vendor/class"),
            (ONE.replace("\"two\"", "\"t o\""), "the device name \"t o\" is not valid"),
            (ONE.replace("\"two\"", "\"one\""), "the device \"one\" is there twice"),
            (ONE.replace("\"name\": \"two\"", "\"name\": \"two\", \"nmae\": 1"), "unknown field `nmae`"),
            (edits("{}"), "the device \"one\" changes nothing"),
            (edits(r#"{"env": ["=x"]}"#), "the variable \"=x\" is not NAME=value"),
            (edits(r#"{"deviceNodes": [{"path": "x"}]}"#), "the device node \"x\" is not an absolute path"),
            (edits(r#"{"deviceNodes": [{"path": "/x", "type": "q"}]}"#), "the device node /x has the type \"q\""),
            (edits(r#"{"deviceNodes": [{"path": "/x", "permissions": "z"}]}"#), "the permissions \"z\""),
            (edits(r#"{"mounts": [{"hostPath": "", "containerPath": "/x"}]}"#), "a mount of \"\" at \"/x\""),
            (edits(r#"{"additionalGids": [1]}"#), "additionalGids need version 0.7.0"),
        ] {
            let dir = directory(&[("a.json", &text)]);
            let specs = DeviceSpecs::read(&[dir.path().to_owned()]);
            assert!(specs.is_empty(), "{text}");
            let said: Vec<String> = specs.faults().iter().map(Fault::to_string).collect();
            let file = dir.path().join("a.json").display().to_string();
            assert!(said.len() == 1 && said[0].starts_with(&file) && said[0].contains(want), "{want}: {said:?}");
        }
    }

    #[test]
    fn names_of_devices_and_paths() {
        for name in ["acme.com/thing=one", "a/b=0", "nvidia.com/gpu=GPU-1:2_3.4"] {
            assert!(is_device_name(name), "{name}");
        }
        for name in ["/dev/a=b", "/a/b=c", "a/b", "a/b=", "a=b", "/dev/null", "a/b=c/d", "1/b=c", "a/b=-"] {
            assert!(!is_device_name(name), "{name}");
        }
    }
}
