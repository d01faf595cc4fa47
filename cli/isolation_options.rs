//! How a container is kept apart, and its share of disks and devices: the options that `run` and `create` have in common
//! about it.

use std::path::PathBuf;

use rbuild_engine::containers::{BlockIo, HostSettings, IdRange};

use crate::error::CliError;
use crate::{users, values};

#[derive(Debug, clap::Args)]
pub struct IsolationOptions {
    /// Note in the runtime's specification
    #[arg(long, value_name = "NAME[=VALUE]")]
    annotation: Vec<String>,
    /// Share of the disks among the containers that want them, 10 to 1000; 0 is none of its own
    #[arg(long, value_name = "N")]
    blkio_weight: Option<u16>,
    /// The same for one disk
    #[arg(long, value_name = "DEVICE:N", value_parser = weight_of)]
    blkio_weight_device: Vec<Of<u16>>,
    /// Cgroup namespace: private or host
    #[arg(long, value_name = "MODE", value_parser = cgroup_namespace)]
    cgroupns: Option<Mode>,
    /// Length of the period of the real-time budget, in microseconds
    #[arg(long, value_name = "N")]
    cpu_rt_period: Option<u64>,
    /// Processor time of real-time processes in each period, in microseconds
    #[arg(long, value_name = "N")]
    cpu_rt_runtime: Option<i64>,
    /// Devices it may use, though none is made for it: 'c 42:* rmw'
    #[arg(long, value_name = "RULE")]
    device_cgroup_rule: Vec<String>,
    /// Most bytes a second it may read of a disk
    #[arg(long, value_name = "DEVICE:BYTES", value_parser = bytes_of)]
    device_read_bps: Vec<Of<u64>>,
    /// Most reads a second of a disk
    #[arg(long, value_name = "DEVICE:N", value_parser = operations_of)]
    device_read_iops: Vec<Of<u64>>,
    /// Most bytes a second it may write to a disk
    #[arg(long, value_name = "DEVICE:BYTES", value_parser = bytes_of)]
    device_write_bps: Vec<Of<u64>>,
    /// Most writes a second to a disk
    #[arg(long, value_name = "DEVICE:N", value_parser = operations_of)]
    device_write_iops: Vec<Of<u64>>,
    /// Graphics processors, by the names that their CDI specification has: all, a number, or device=ID[,ID]
    #[arg(long, value_name = "GPUS", value_parser = gpus)]
    gpus: Option<Gpus>,
    /// How containers are kept apart; on Linux there is 'default' only
    #[arg(long, value_name = "TECHNOLOGY", value_parser = isolation)]
    isolation: Option<Mode>,
    /// How readily its memory is swapped out, 0 to 100 (cgroup v1); -1 is the machine's setting
    #[arg(long, value_name = "N", allow_hyphen_values = true)]
    memory_swappiness: Option<i64>,
    /// Let who wants more memory than there is wait, in place of killing it (cgroup v1)
    #[arg(long)]
    oom_kill_disable: bool,
    /// no-new-privileges, seccomp=FILE|builtin|unconfined, apparmor=PROFILE, label=OPTION, systempaths=unconfined, mask=PATHS or unmask=PATHS
    #[arg(long, value_name = "OPTION")]
    security_opt: Vec<String>,
    /// Whose users it has: host, remap[:USER[:GROUP]], auto[:size=N,uidmapping=IN:OUT:N,gidmapping=IN:OUT:N] or private
    #[arg(long, value_name = "MODE", value_parser = users::mode)]
    userns: Option<Mode>,
    /// Users of a user namespace of its own: those from INSIDE on are the machine's from OUTSIDE on
    #[arg(long, value_name = "INSIDE:OUTSIDE:N", value_parser = users::range)]
    uidmap: Vec<IdRange>,
    /// The same for groups; without it they are as the users
    #[arg(long, value_name = "INSIDE:OUTSIDE:N", value_parser = users::range)]
    gidmap: Vec<IdRange>,
    /// Driver of the volumes it names; there is 'local' only
    #[arg(long, value_name = "DRIVER")]
    volume_driver: Option<String>,
}

/// A word that was checked.
#[derive(Debug, Clone)]
pub struct Mode(pub(crate) String);

/// Names of devices.
#[derive(Debug, Clone)]
pub struct Gpus(Vec<String>);

/// A number for one device.
#[derive(Debug, Clone)]
pub struct Of<T>(PathBuf, T);

impl IsolationOptions {
    /// Whose users it has: as asked, else as `default` says, docker's `userns-remap`.
    ///
    /// # Errors
    /// Maps that the kernel would not take, or beside a mode that has its own.
    pub fn set_users(&self, host: &mut HostSettings, default: Option<&str>) -> Result<(), CliError> {
        let asked = self.userns.as_ref().map_or("", |mode| mode.0.as_str());
        host.users = users::wanted(asked, &self.uidmap, &self.gidmap, default.filter(|word| !word.is_empty()))?;
        asked.clone_into(&mut host.users_mode);
        Ok(())
    }

    /// Sets what was asked for.
    ///
    /// # Errors
    /// A security option that is none, a profile that cannot be read.
    pub fn set(&self, host: &mut HostSettings) -> Result<(), CliError> {
        let of = |list: &[Of<u64>]| list.iter().map(|Of(device, n)| (device.clone(), *n)).collect();
        host.block_io = BlockIo {
            weight: self.blkio_weight.filter(|n| *n != 0),
            weight_of: self.blkio_weight_device.iter().map(|Of(device, n)| (device.clone(), *n)).collect(),
            read_bps: of(&self.device_read_bps),
            write_bps: of(&self.device_write_bps),
            read_iops: of(&self.device_read_iops),
            write_iops: of(&self.device_write_iops),
        };
        host.named_devices.extend(self.gpus.iter().flat_map(|gpus| gpus.0.clone()));
        host.device_cgroup_rules.clone_from(&self.device_cgroup_rule);
        host.cpu_rt_period = self.cpu_rt_period.filter(|n| *n != 0);
        host.cpu_rt_runtime = self.cpu_rt_runtime.filter(|n| *n != 0);
        host.memory_swappiness = self.memory_swappiness.filter(|n| *n != -1);
        host.oom_kill_disable = self.oom_kill_disable;
        host.cgroup_host = self.cgroupns.as_ref().is_some_and(|mode| mode.0 == "host");
        host.volume_driver = self.volume_driver.clone().filter(|driver| !driver.is_empty());
        for text in &self.annotation {
            let (name, value) = text.split_once('=').unwrap_or((text, ""));
            if name.is_empty() {
                return Err(CliError::new(format!("invalid --annotation: {text:?} has no name")));
            }
            host.annotations.insert(name.to_owned(), value.to_owned());
        }
        self.security_opt.iter().try_for_each(|option| security(option, host))
    }
}

/// One `--security-opt`: `NAME=VALUE`, of old `NAME:VALUE`.
fn security(option: &str, host: &mut HostSettings) -> Result<(), CliError> {
    let refuse = || CliError::new(format!("invalid --security-opt: {option:?}"));
    let (name, value) = match option.split_once('=').or_else(|| option.split_once(':')) {
        Some(both) => both,
        None if option == "no-new-privileges" => (option, "true"),
        None => return Err(refuse()),
    };
    let paths = || value.split(':').filter(|path| !path.is_empty()).map(str::to_owned);
    match (name, value) {
        ("no-new-privileges", _) => host.no_new_privileges = switch(value).ok_or_else(refuse)?,
        ("seccomp", "unconfined") => (host.seccomp_unconfined, host.security.seccomp_profile) = (true, None),
        ("seccomp", "builtin") => (host.seccomp_unconfined, host.security.seccomp_profile) = (false, None),
        ("seccomp", path) => {
            let text = std::fs::read_to_string(path)
                .map_err(|e| CliError::new(format!("opening seccomp profile ({path}) failed: {e}")))?;
            let json: serde_json::Value = serde_json::from_str(&text)
                .map_err(|e| CliError::new(format!("compacting json for seccomp profile ({path}) failed: {e}")))?;
            (host.seccomp_unconfined, host.security.seccomp_profile) = (false, Some(json.to_string()));
        }
        ("apparmor", name) => host.security.apparmor = Some(name.to_owned()),
        ("label", option) if !option.is_empty() => host.security.labels.push(option.to_owned()),
        ("systempaths", "unconfined") => host.security.bare_system_paths = true,
        ("mask", _) => host.security.masked.extend(paths()),
        ("unmask", _) => host.security.unmasked.extend(paths()),
        _ => return Err(refuse()),
    }
    Ok(())
}

/// A truth value as Go reads one.
fn switch(text: &str) -> Option<bool> {
    match text {
        "1" | "t" | "T" | "true" | "TRUE" | "True" => Some(true),
        "0" | "f" | "F" | "false" | "FALSE" | "False" => Some(false),
        _ => None,
    }
}

/// `all`, `2`, `device=0,1` or fields of those, as comma-separated values: a list of devices is quoted in it.
fn gpus(text: &str) -> Result<Gpus, String> {
    let (mut count, mut ids) = (None, Vec::new());
    for field in fields(text) {
        let (key, value) = field.split_once('=').unwrap_or(("count", &field));
        match key {
            "count" if value == "all" || value == "-1" => count = Some(vec!["all".to_owned()]),
            "count" => {
                let number: u16 = value.parse().map_err(|_| format!("count must be an integer: {value}"))?;
                count = Some((0..number).map(|n| n.to_string()).collect());
            }
            "device" => ids.extend(value.split(',').map(str::to_owned)),
            "driver" if matches!(value, "nvidia" | "cdi") => {}
            "driver" => {
                return Err(format!("the driver {value} is not supported: there is nvidia, by its CDI specification"));
            }
            "capabilities" | "options" => {
                return Err(format!("{key} is not supported: the CDI specification of the devices decides"));
            }
            _ => return Err(format!("unexpected key '{key}' in '{field}'")),
        }
    }
    if count.is_some() && !ids.is_empty() {
        return Err("cannot set both Count and DeviceIDs on device request".to_owned());
    }
    let names = if ids.is_empty() { count.unwrap_or_else(|| vec!["0".to_owned()]) } else { ids };
    if names.iter().any(String::is_empty) {
        return Err(format!("a device without a name: {text}"));
    }
    Ok(Gpus(names.iter().map(|name| format!("nvidia.com/gpu={name}")).collect()))
}

/// Comma-separated fields; quotes keep a comma. What follows `device=` without quotes is its list, as docker's shell
/// examples leave it.
fn fields(text: &str) -> Vec<String> {
    let (mut fields, mut quoted) = (vec![String::new()], false);
    for c in text.chars() {
        match c {
            '"' => quoted = !quoted,
            ',' if !quoted => fields.push(String::new()),
            c => fields.last_mut().expect("never empty").push(c),
        }
    }
    let mut joined: Vec<String> = Vec::new();
    for field in fields {
        match joined.last_mut() {
            Some(last) if last.starts_with("device=") && !field.contains('=') => *last += &format!(",{field}"),
            _ => joined.push(field),
        }
    }
    joined
}

fn cgroup_namespace(text: &str) -> Result<Mode, String> {
    one_of(text, &["", "private", "host"], || "invalid CGROUP mode".to_owned())
}

fn isolation(text: &str) -> Result<Mode, String> {
    one_of(text, &["", "default"], || format!("invalid isolation: {text:?} - linux only supports 'default'"))
}

fn one_of(text: &str, words: &[&str], refusal: impl Fn() -> String) -> Result<Mode, String> {
    if words.contains(&text) { Ok(Mode(text.to_owned())) } else { Err(refusal()) }
}

fn weight_of(text: &str) -> Result<Of<u16>, String> {
    let (device, number) = of_device(text)?;
    let weight = number.parse::<u16>().ok().filter(|n| *n == 0 || (10..=1000).contains(n));
    weight.map(|weight| Of(device, weight)).ok_or_else(|| format!("invalid weight for device: {text}"))
}

fn bytes_of(text: &str) -> Result<Of<u64>, String> {
    let (device, number) = of_device(text)?;
    let rate = values::bytes(number).map_err(|_| {
        format!(
            "invalid rate for device: {text}. The correct format is <device-path>:<number>[<unit>]. Number must be a \
             positive integer. Unit is optional and can be kb, mb, or gb"
        )
    })?;
    Ok(Of(device, rate))
}

fn operations_of(text: &str) -> Result<Of<u64>, String> {
    let (device, number) = of_device(text)?;
    let rate = number.parse().map_err(|_| {
        format!(
            "invalid rate for device: {text}. The correct format is <device-path>:<number>. Number must be a positive \
             integer"
        )
    })?;
    Ok(Of(device, rate))
}

/// `/dev/NAME:NUMBER`
fn of_device(text: &str) -> Result<(PathBuf, &str), String> {
    let (device, number) =
        text.rsplit_once(':').filter(|(device, _)| !device.is_empty()).ok_or_else(|| format!("bad format: {text}"))?;
    if !device.starts_with("/dev/") {
        return Err(format!("bad format for device path: {text}"));
    }
    Ok((PathBuf::from(device), number))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn security_options_in_all_their_forms() {
        let mut host = HostSettings::default();
        for option in [
            "no-new-privileges",
            "seccomp=unconfined",
            "apparmor:unconfined",
            "label=type:spc_t",
            "label:disable",
            "systempaths=unconfined",
            "mask=/proc/a:/proc/b",
            "unmask=ALL",
        ] {
            security(option, &mut host).unwrap_or_else(|e| panic!("{option}: {e}"));
        }
        assert!(host.no_new_privileges && host.seccomp_unconfined && host.security.bare_system_paths);
        assert_eq!(host.security.labels, ["type:spc_t", "disable"]);
        assert_eq!(host.security.masked, ["/proc/a", "/proc/b"]);
        security("no-new-privileges:false", &mut host).unwrap();
        security("seccomp=builtin", &mut host).unwrap();
        assert!(!host.no_new_privileges && !host.seccomp_unconfined);
        for option in
            ["", "what", "no-new-privileges=maybe", "systempaths=x", "label=", "colour=red", "seccomp=/no/file"]
        {
            let error = security(option, &mut host).expect_err(option).to_string();
            assert!(error.contains(if option.starts_with("seccomp") { "opening seccomp" } else { "--security-opt" }));
        }
    }

    #[test]
    fn graphics_processors_have_names() {
        for (text, want) in [
            ("all", &["all"][..]),
            ("2", &["0", "1"]),
            ("device=0,2", &["0", "2"]),
            ("\"device=GPU-a,GPU-b\",driver=nvidia", &["GPU-a", "GPU-b"]),
            ("driver=nvidia", &["0"]),
        ] {
            let want: Vec<String> = want.iter().map(|name| format!("nvidia.com/gpu={name}")).collect();
            assert_eq!(gpus(text).map(|gpus| gpus.0), Ok(want), "{text}");
        }
        for text in ["x", "count=x", "device=", "capabilities=utility", "all,device=1", "driver=amd", "colour=red", ""]
        {
            assert!(gpus(text).is_err(), "{text}");
        }
    }

    #[test]
    fn numbers_of_devices() {
        assert_eq!(bytes_of("/dev/sda:1mb").map(|of| of.1), Ok(1 << 20));
        assert_eq!(operations_of("/dev/disk/by-path/a:b:100").map(|of| of.1), Ok(100));
        assert_eq!(weight_of("/dev/sda:500").map(|of| of.1), Ok(500));
        for text in ["", "/dev/sda", ":5", "sda:5", "/dev/sda:x"] {
            assert!(bytes_of(text).is_err() && operations_of(text).is_err() && weight_of(text).is_err(), "{text}");
        }
        assert!(weight_of("/dev/sda:9").is_err());
    }
}
