//! `RUN --device`: devices that specifications of the machine describe, for a step that the caller lets have them.
//!
//! **In the key:** the full names of the devices the step gets, in order. A device that may be absent and is, is in no
//! key, so a later build that has it runs the step again.
//! **Left out:** what the specification says of the device (as in BuildKit: a new driver on the machine makes no other
//! image), the words of the Dockerfile that led to it, and who allowed it.
//!
//! Which devices a step gets is decided before anything runs: see [`crate::Executor::permits`].

use std::collections::{BTreeMap, BTreeSet};
use std::path::PathBuf;

use rbuild_graph::ops::Device;
use rbuild_runtime::ExtraMount;
use rbuild_runtime::cdi::{self, DeviceSpecs};

use crate::ExecutorError;

/// An annotation by which a device answers to a further name.
const CLASS: &str = "org.mobyproject.buildkit.device.class";
/// An annotation by which the machine lets every build have a device.
const AUTOALLOW: &str = "org.mobyproject.buildkit.device.autoallow";

/// Where devices are described, and which of them builds may have.
#[derive(Debug, Clone, Default)]
pub struct DeviceSettings {
    /// Directories of specifications; a later one overrules an earlier.
    pub directories: Vec<PathBuf>,
    pub grants: DeviceGrants,
}

/// What the caller of a build lets its steps have.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct DeviceGrants {
    pub all: bool,
    /// Devices, kinds or classes by their names.
    pub names: BTreeSet<String>,
    /// Names of a Dockerfile that stand for devices of other names; those are granted too.
    pub aliases: BTreeMap<String, String>,
}

/// The devices of one step.
pub(crate) struct Granted {
    specs: DeviceSpecs,
    /// Full names.
    pub(crate) names: Vec<String>,
    /// What was asked for, is not there, and need not be.
    pub(crate) absent: Vec<String>,
}

/// Finds the devices a step asks for.
///
/// # Errors
/// One that is required is not there, or one that is there is not allowed.
pub(crate) fn grant(settings: &DeviceSettings, wanted: &[Device]) -> Result<Granted, ExecutorError> {
    let mut granted = Granted { specs: DeviceSpecs::default(), names: Vec::new(), absent: Vec::new() };
    if wanted.is_empty() {
        return Ok(granted);
    }
    let (specs, grants) = (DeviceSpecs::read(&settings.directories), &settings.grants);
    let allowed: BTreeSet<String> = grants.names.iter().flat_map(|name| find(&specs, name)).collect();
    let mut forbidden = Vec::new();
    for device in wanted {
        let alias = grants.aliases.get(&device.name);
        let found = find(&specs, alias.unwrap_or(&device.name));
        if found.is_empty() && device.required {
            return Err(not_registered(&specs, settings, &device.name));
        }
        if found.is_empty() {
            granted.absent.push(device.name.clone());
        }
        for name in found {
            if granted.names.contains(&name) {
                continue;
            }
            let auto = specs.get(&name).and_then(|device| device.annotations.get(AUTOALLOW));
            let auto = auto.is_some_and(|text| matches!(text.as_str(), "1" | "t" | "T" | "true" | "True" | "TRUE"));
            if !(grants.all || alias.is_some() || auto || allowed.contains(&name)) {
                forbidden.push(name.clone());
            }
            granted.names.push(name);
        }
    }
    forbidden.dedup();
    if let Some(first) = forbidden.first() {
        let message = match forbidden.len() {
            1 => format!("device {first} is requested by the build but not allowed"),
            _ => format!("devices {} are requested by the build but not allowed", forbidden.join(", ")),
        };
        return Err(ExecutorError::Device { message, hints: vec![format!("allow it with --allow device={first}")] });
    }
    granted.specs = specs;
    Ok(granted)
}

/// The devices a name stands for: `vendor/class=name` for one, `vendor/class` for the first of its kind,
/// `vendor/class=*` for all of it; where there is none such, those whose class annotation is the name.
fn find(specs: &DeviceSpecs, wanted: &str) -> Vec<String> {
    let (kind, name) = wanted.split_once('=').unwrap_or((wanted, ""));
    let names = |devices: &mut dyn Iterator<Item = &cdi::Device>| devices.map(|device| device.name.clone()).collect();
    let found: Vec<String> = match name {
        _ if !kind.contains('/') => Vec::new(),
        "" => names(&mut specs.of_kind(kind).take(1)),
        "*" => names(&mut specs.of_kind(kind)),
        _ => names(&mut specs.get(wanted).into_iter()),
    };
    if !found.is_empty() {
        return found;
    }
    let is_class = |device: &&cdi::Device| device.annotations.get(CLASS).is_some_and(|class| class == wanted);
    names(&mut specs.names().filter_map(|name| specs.get(name)).filter(is_class))
}

fn not_registered(specs: &DeviceSpecs, settings: &DeviceSettings, wanted: &str) -> ExecutorError {
    let message = format!("required device {wanted:?} is not registered");
    let kind = wanted.split_once('=').map_or(wanted, |(kind, _)| kind);
    let of_kind: Vec<&str> = specs.of_kind(kind).map(|device| device.name.as_str()).collect();
    let directories: Vec<String> = settings.directories.iter().map(|dir| dir.display().to_string()).collect();
    let known = if !of_kind.is_empty() {
        format!("devices of the kind {kind} are {}", of_kind.join(", "))
    } else if specs.is_empty() {
        format!("no specification of a device was found in {}", directories.join(", "))
    } else {
        format!("there is no device of the kind {kind}; there are {}", specs.names().collect::<Vec<_>>().join(", "))
    };
    let faults = specs.faults().iter().map(|fault| format!("a specification cannot be used: {fault}"));
    ExecutorError::Device { message, hints: std::iter::once(known).chain(faults).collect() }
}

impl Granted {
    /// Changes the specification of a process as its devices say; the mounts are theirs.
    pub(crate) fn inject(&self, spec: &mut oci_spec::runtime::Spec) -> Result<Vec<ExtraMount>, ExecutorError> {
        let devices: Vec<&cdi::Device> = self.names.iter().filter_map(|name| self.specs.get(name)).collect();
        let mounts = cdi::inject(spec, &devices)?;
        let opened = mounts.iter().map(|mount| mount.open()).collect::<Result<Vec<_>, _>>()?;
        Ok(opened.into_iter().flatten().collect())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const SPEC: &str = "cdiVersion: 0.6.0\nkind: acme.com/gpu\ndevices:\n\
        - {name: a, containerEdits: {env: [A=1]}, annotations: {org.mobyproject.buildkit.device.class: fast}}\n\
        - {name: b, containerEdits: {env: [B=1]}, annotations: {org.mobyproject.buildkit.device.class: fast}}\n\
        - {name: c, containerEdits: {env: [C=1]}, annotations: {org.mobyproject.buildkit.device.autoallow: 'true'}}\n";

    fn asked(grants: &DeviceGrants, wanted: &[&str]) -> Result<Vec<String>, (String, Vec<String>)> {
        let dir = tempfile::tempdir().unwrap();
        std::fs::write(dir.path().join("gpu.yaml"), SPEC).unwrap();
        std::fs::write(dir.path().join("bad.json"), "{").unwrap();
        let settings = DeviceSettings { directories: vec![dir.path().to_owned()], grants: grants.clone() };
        let wanted: Vec<Device> = wanted
            .iter()
            .map(|text| match text.strip_suffix('!') {
                Some(name) => Device { name: name.to_owned(), required: true },
                None => Device { name: (*text).to_owned(), required: false },
            })
            .collect();
        grant(&settings, &wanted).map(|granted| granted.names).map_err(|error| (error.to_string(), error.hints()))
    }

    fn all() -> DeviceGrants {
        DeviceGrants { all: true, ..DeviceGrants::default() }
    }

    #[test]
    fn names_kinds_and_classes() {
        for (wanted, want) in [
            (&["acme.com/gpu=b"][..], &["acme.com/gpu=b"][..]),
            (&["acme.com/gpu"], &["acme.com/gpu=a"]),
            (&["acme.com/gpu=*!"], &["acme.com/gpu=a", "acme.com/gpu=b", "acme.com/gpu=c"]),
            (&["fast"], &["acme.com/gpu=a", "acme.com/gpu=b"]),
            (&["acme.com/gpu=b", "fast!", "acme.com/gpu=b"], &["acme.com/gpu=b", "acme.com/gpu=a"]),
            (&["acme.com/gpu=x", "slow", "other/kind"], &[]),
        ] {
            assert_eq!(asked(&all(), wanted).unwrap(), want, "{wanted:?}");
        }
    }

    #[test]
    fn what_is_required_is_there() {
        let (message, hints) = asked(&all(), &["acme.com/gpu=x!"]).unwrap_err();
        assert_eq!(message, "required device \"acme.com/gpu=x\" is not registered");
        assert_eq!(hints[0], "devices of the kind acme.com/gpu are acme.com/gpu=a, acme.com/gpu=b, acme.com/gpu=c");
        assert!(
            hints[1].starts_with("a specification cannot be used: ") && hints[1].contains("/bad.json: "),
            "{hints:?}"
        );
        let (_, hints) = asked(&all(), &["other.com/x!"]).unwrap_err();
        assert!(hints[0].starts_with("there is no device of the kind other.com/x; there are acme.com/gpu=a, "));
    }

    #[test]
    fn only_what_is_allowed() {
        let none = DeviceGrants::default();
        assert_eq!(
            asked(&none, &["acme.com/gpu=c", "acme.com/gpu=x"]).unwrap(),
            ["acme.com/gpu=c"],
            "by its annotation"
        );
        let (message, hints) = asked(&none, &["acme.com/gpu=a"]).unwrap_err();
        assert_eq!(message, "device acme.com/gpu=a is requested by the build but not allowed");
        assert_eq!(hints, ["allow it with --allow device=acme.com/gpu=a"]);
        let (message, _) = asked(&none, &["fast"]).unwrap_err();
        assert_eq!(message, "devices acme.com/gpu=a, acme.com/gpu=b are requested by the build but not allowed");
        let one = |name: &str| DeviceGrants { names: [name.to_owned()].into(), ..DeviceGrants::default() };
        assert_eq!(asked(&one("acme.com/gpu=a"), &["acme.com/gpu"]).unwrap(), ["acme.com/gpu=a"]);
        assert_eq!(asked(&one("fast"), &["acme.com/gpu=b"]).unwrap(), ["acme.com/gpu=b"]);
        assert!(asked(&one("acme.com/gpu=a"), &["acme.com/gpu=b"]).is_err());
        let aliases = [("mine".to_owned(), "acme.com/gpu=b".to_owned())].into();
        let alias = DeviceGrants { aliases, ..DeviceGrants::default() };
        assert_eq!(asked(&alias, &["mine!"]).unwrap(), ["acme.com/gpu=b"]);
        assert!(asked(&alias, &["acme.com/gpu=b"]).is_err());
    }
}
