//! Profiles in docker's format, whose rules depend on capabilities, architecture and kernel.

use oci_spec::runtime::{
    Capabilities, Capability, LinuxSeccomp, LinuxSeccompAction, LinuxSeccompArg, LinuxSeccompBuilder,
    LinuxSyscallBuilder,
};
use serde::Deserialize;

use crate::error::{Error, Result};

/// Longest profile taken, in bytes; docker's own is 20 KiB.
const LONGEST: usize = 1 << 20;

#[derive(Deserialize)]
#[serde(rename_all = "camelCase")]
struct Profile {
    default_action: LinuxSeccompAction,
    default_errno_ret: Option<u32>,
    #[serde(default)]
    syscalls: Vec<Rule>,
    #[serde(default)]
    flags: Vec<serde_json::Value>,
    listener_path: Option<String>,
}

#[derive(Deserialize)]
#[serde(rename_all = "camelCase")]
struct Rule {
    #[serde(default)]
    name: Option<String>,
    #[serde(default)]
    names: Vec<String>,
    action: LinuxSeccompAction,
    errno_ret: Option<u32>,
    #[serde(default)]
    args: Option<Vec<LinuxSeccompArg>>,
    #[serde(default)]
    includes: Option<Filter>,
    #[serde(default)]
    excludes: Option<Filter>,
}

#[derive(Deserialize)]
#[serde(rename_all = "camelCase")]
struct Filter {
    #[serde(default)]
    caps: Vec<Capability>,
    #[serde(default)]
    arches: Vec<String>,
    min_kernel: Option<String>,
}

/// Reads a profile as `--security-opt seccomp=` takes it, for a process with these capabilities on this machine.
pub fn parse_docker_profile(text: &str, capabilities: &Capabilities) -> Result<LinuxSeccomp> {
    let invalid = |error: &dyn std::fmt::Display| Error::Refused(format!("the seccomp profile is not valid: {error}"));
    if text.len() > LONGEST {
        return Err(invalid(&format!("it is longer than {LONGEST} bytes")));
    }
    let profile: Profile = serde_json::from_str(text).map_err(|error| invalid(&error))?;
    if let Some(flag) = profile.flags.first() {
        return Err(Error::Unsupported(format!("the seccomp filter flag {flag}")));
    }
    if profile.listener_path.is_some_and(|path| !path.is_empty()) {
        return Err(Error::Unsupported("a seccomp listener".to_owned()));
    }
    let kernel = rustix::system::uname();
    let kernel = version(&kernel.release().to_string_lossy());
    let mut rules = Vec::new();
    for rule in profile.syscalls {
        let includes = rule.includes.as_ref().is_none_or(|filter| {
            filter.caps.iter().all(|one| capabilities.contains(one))
                && (filter.arches.is_empty() || filter.arches.iter().any(|arch| is_native(arch)))
                && filter.min_kernel.as_deref().is_none_or(|least| kernel >= version(least))
        });
        let excludes = rule.excludes.as_ref().is_some_and(|filter| {
            filter.caps.iter().any(|one| capabilities.contains(one))
                || filter.arches.iter().any(|arch| is_native(arch))
                || filter.min_kernel.as_deref().is_some_and(|least| kernel >= version(least))
        });
        if !includes || excludes {
            continue;
        }
        let names: Vec<String> = rule.name.into_iter().chain(rule.names).collect();
        let mut built =
            LinuxSyscallBuilder::default().names(names).action(rule.action).build().map_err(|error| invalid(&error))?;
        built.set_errno_ret(rule.errno_ret);
        built.set_args(rule.args.filter(|arguments| !arguments.is_empty()));
        rules.push(built);
    }
    let mut built = LinuxSeccompBuilder::default()
        .default_action(profile.default_action)
        .syscalls(rules)
        .build()
        .map_err(|error| invalid(&error))?;
    built.set_default_errno_ret(profile.default_errno_ret);
    Ok(built)
}

fn is_native(name: &str) -> bool {
    let names: &[&str] =
        if cfg!(target_arch = "x86_64") { &["amd64", "SCMP_ARCH_X86_64"] } else { &["arm64", "SCMP_ARCH_AARCH64"] };
    names.contains(&name)
}

fn version(text: &str) -> (u32, u32) {
    let mut numbers = text.split(|c: char| !c.is_ascii_digit()).map(|number| number.parse().unwrap_or(0));
    (numbers.next().unwrap_or(0), numbers.next().unwrap_or(0))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn rules_depend_on_the_machine_and_the_capabilities() {
        let text = r#"{"defaultAction": "SCMP_ACT_ERRNO", "defaultErrnoRet": 1, "archMap": [], "syscalls": [
            {"names": ["read"], "action": "SCMP_ACT_ALLOW"},
            {"names": ["mount"], "action": "SCMP_ACT_ALLOW", "includes": {"caps": ["CAP_SYS_ADMIN"]}},
            {"names": ["ptrace"], "action": "SCMP_ACT_ALLOW", "includes": {"minKernel": "4.8"}},
            {"names": ["future"], "action": "SCMP_ACT_ALLOW", "includes": {"minKernel": "99.1"}},
            {"names": ["s390"], "action": "SCMP_ACT_ALLOW", "includes": {"arches": ["s390x"]}},
            {"names": ["clone3"], "action": "SCMP_ACT_ERRNO", "errnoRet": 38, "excludes": {"caps": ["CAP_SYS_ADMIN"]}}]}"#;
        let names = |capabilities: &[Capability]| {
            let profile = parse_docker_profile(text, &capabilities.iter().copied().collect()).unwrap();
            profile.syscalls().iter().flatten().flat_map(|rule| rule.names().clone()).collect::<Vec<_>>()
        };
        assert_eq!(names(&[]), ["read", "ptrace", "clone3"]);
        assert_eq!(names(&[Capability::SysAdmin]), ["read", "mount", "ptrace"]);
        assert!(parse_docker_profile("{", &Capabilities::default()).is_err());
    }
}
