//! Resource limits of a cgroup: OCI's `LinuxResources` written to the files of either version.

use std::fs;
use std::path::Path;

use oci_spec::runtime::{
    LinuxBlockIo, LinuxCpu, LinuxDeviceCgroup, LinuxMemory, LinuxNamespace, LinuxNamespaceType, LinuxResources, Spec,
};

use super::cgroups::Cgroup;
use super::devices;
use super::hierarchies::Hierarchies;
use crate::error::{Doing, Failure};

/// v1 names of the controllers that limits in `resources` need.
pub(super) fn controllers(resources: Option<&LinuxResources>) -> Vec<&'static str> {
    let Some(resources) = resources else { return Vec::new() };
    let mut wanted = Vec::new();
    if resources.memory().as_ref().is_some_and(|memory| *memory != LinuxMemory::default()) {
        wanted.push("memory");
    }
    if resources.pids().as_ref().is_some_and(|pids| pids.limit() > 0) {
        wanted.push("pids");
    }
    if let Some(cpu) = resources.cpu() {
        let real_time = cpu.realtime_runtime().is_some() || cpu.realtime_period().is_some();
        let fair = cpu.shares().is_some() || cpu.quota().is_some() || cpu.period().is_some() || cpu.burst().is_some();
        if fair || real_time {
            wanted.push("cpu");
        }
        if cpu.cpus().is_some() || cpu.mems().is_some() {
            wanted.push("cpuset");
        }
    }
    if resources.block_io().as_ref().is_some_and(|io| *io != LinuxBlockIo::default()) {
        wanted.push("blkio");
    }
    wanted
}

/// Sets every limit given, and fails if one cannot be set.
pub(super) fn apply(cgroup: &Cgroup, resources: &LinuxResources) -> Result<(), Failure> {
    let files = Files { cgroup, v2: cgroup.unified_limits() };
    if let Some(memory) = resources.memory() {
        files.memory(memory)?;
    }
    if let Some(pids) = resources.pids() {
        let value = if pids.limit() > 0 { pids.limit().to_string() } else { "max".to_owned() };
        if pids.limit() > 0 || cgroup.directory("pids").is_some_and(|directory| directory.join("pids.max").exists()) {
            files.write("pids", "pids.max", "pids.max", &value)?;
        }
    }
    if let Some(cpu) = resources.cpu() {
        files.cpu(cpu)?;
    }
    if let Some(io) = resources.block_io() {
        files.io(io)?;
    }
    for (name, value) in resources.unified().iter().flatten() {
        if !files.v2 || name.contains('/') || name.starts_with("cgroup.") {
            return Err(Failure::refused(format!("the cgroup file {name} cannot be set here")));
        }
        files.write("memory", "", name, value)?;
    }
    Ok(())
}

/// Writes the device rules to v1's controller.
pub(super) fn devices(cgroup: &Cgroup, rules: &[LinuxDeviceCgroup]) -> Result<(), Failure> {
    let files = Files { cgroup, v2: false };
    rules.iter().try_for_each(|rule| {
        let file = if rule.allow() { "devices.allow" } else { "devices.deny" };
        files.write("devices", file, "", &devices::line(rule)?)
    })
}

/// A limit of processes that the pid namespace holds by itself, or `None` if the cgroup has to.
///
/// Only where v1 would have to be joined for it, and only for a limit so large that its exact number tells nobody anything.
/// Before Linux 6.14 the number was the whole machine's.
pub(super) fn pids_by_namespace(spec: &Spec, hierarchies: &Hierarchies) -> Option<i64> {
    let linux = spec.linux().as_ref()?;
    let limit = linux.resources().as_ref()?.pids().as_ref()?.limit();
    let own = |namespace: &LinuxNamespace| namespace.typ() == LinuxNamespaceType::Pid && namespace.path().is_none();
    let own = linux.namespaces().iter().flatten().any(own);
    let release = rustix::system::uname();
    let mut numbers = release.release().to_str().ok()?.split(|c: char| !c.is_ascii_digit());
    let mut number = || numbers.next().and_then(|number| number.parse::<u32>().ok()).unwrap_or(0);
    let kernel = (number(), number());
    (own && limit >= 4096 && hierarchies.unified().is_some() && hierarchies.is_v1("pids") && kernel >= (6, 14))
        .then_some(limit)
}

struct Files<'a> {
    cgroup: &'a Cgroup,
    v2: bool,
}

impl Files<'_> {
    fn write(&self, controller: &str, v1: &str, v2: &str, value: &str) -> Result<(), Failure> {
        let Some(directory) = self.cgroup.directory(controller) else {
            return Err(Failure::refused(format!("this sandbox has no cgroup controller {controller}")));
        };
        let name = if self.v2 { v2 } else { v1 };
        if name.is_empty() {
            let version = if self.v2 { "v2" } else { "v1" };
            return Err(Failure::Unsupported(format!("a {controller} limit that cgroup {version} does not have")));
        }
        write(&directory.join(name), value)
    }

    fn memory(&self, memory: &LinuxMemory) -> Result<(), Failure> {
        if memory.kernel().is_some() || memory.kernel_tcp().is_some() {
            return Err(Failure::Unsupported("a kernel memory limit".to_owned()));
        }
        let bytes = |bytes: i64| if bytes < 0 { self.unlimited().to_owned() } else { bytes.to_string() };
        let limit = memory.limit().filter(|&limit| limit != 0);
        let swap = memory.swap().filter(|&swap| swap != 0);
        let set_limit = || match limit {
            Some(limit) => self.write("memory", "memory.limit_in_bytes", "memory.max", &bytes(limit)),
            None => Ok(()),
        };
        let set_swap = || match (swap, limit) {
            (None, _) => Ok(()),
            (Some(swap), Some(limit)) if self.v2 && swap >= 0 && limit > 0 => {
                if swap < limit {
                    return Err(Failure::refused("the limit of memory and swap is below that of memory"));
                }
                self.write("memory", "", "memory.swap.max", &(swap - limit).to_string())
            }
            (Some(swap), _) => self.write("memory", "memory.memsw.limit_in_bytes", "memory.swap.max", &bytes(swap)),
        };
        // v1 keeps memory <= memory + swap at every instant, so which goes first depends on the direction.
        if set_limit().is_err() {
            set_swap()?;
            set_limit()?;
        } else {
            set_swap()?;
        }
        if let Some(reservation) = memory.reservation().filter(|&bytes| bytes != 0) {
            self.write("memory", "memory.soft_limit_in_bytes", "memory.low", &bytes(reservation))?;
        }
        if let Some(swappiness) = memory.swappiness() {
            self.write("memory", "memory.swappiness", "", &swappiness.to_string())?;
        }
        if memory.disable_oom_killer().unwrap_or(false) {
            self.write("memory", "memory.oom_control", "", "1")?;
        }
        Ok(())
    }

    fn unlimited(&self) -> &'static str {
        if self.v2 { "max" } else { "-1" }
    }

    fn cpu(&self, cpu: &LinuxCpu) -> Result<(), Failure> {
        self.real_time(cpu)?;
        if let Some(shares) = cpu.shares().filter(|&shares| shares != 0) {
            let weight = 1 + (shares.clamp(2, 262_144) - 2) * 9999 / 262_142;
            let value = if self.v2 { weight } else { shares };
            self.write("cpu", "cpu.shares", "cpu.weight", &value.to_string())?;
        }
        let quota = cpu.quota().filter(|&quota| quota != 0);
        let period = cpu.period().filter(|&period| period != 0);
        if self.v2 && (quota.is_some() || period.is_some()) {
            let quota = quota.filter(|&quota| quota > 0).map_or("max".to_owned(), |quota| quota.to_string());
            self.write("cpu", "", "cpu.max", &format!("{quota} {}", period.unwrap_or(100_000)))?;
        } else {
            if let Some(period) = period {
                self.write("cpu", "cpu.cfs_period_us", "", &period.to_string())?;
            }
            if let Some(quota) = quota {
                self.write("cpu", "cpu.cfs_quota_us", "", &quota.to_string())?;
            }
        }
        if let Some(burst) = cpu.burst() {
            self.write("cpu", "cpu.cfs_burst_us", "cpu.max.burst", &burst.to_string())?;
        }
        if let Some(idle) = cpu.idle() {
            self.write("cpu", "cpu.idle", "cpu.idle", &idle.to_string())?;
        }
        if let Some(cpus) = cpu.cpus().as_deref().filter(|cpus| !cpus.is_empty()) {
            self.write("cpuset", "cpuset.cpus", "cpuset.cpus", cpus)?;
        }
        if let Some(mems) = cpu.mems().as_deref().filter(|mems| !mems.is_empty()) {
            self.write("cpuset", "cpuset.mems", "cpuset.mems", mems)?;
        }
        Ok(())
    }

    /// Processor time for real-time processes: a budget that each group has to be given by the one above it.
    fn real_time(&self, cpu: &LinuxCpu) -> Result<(), Failure> {
        let (runtime, period) = (cpu.realtime_runtime(), cpu.realtime_period());
        if runtime.is_none() && period.is_none() {
            return Ok(());
        }
        let own = self.cgroup.directory("cpu").filter(|own| !self.v2 && own.join("cpu.rt_runtime_us").exists());
        let Some(own) = own else {
            return Err(Failure::Unsupported("a limit for real-time processes on this machine".to_owned()));
        };
        let read = |at: &Path| fs::read_to_string(at.join("cpu.rt_runtime_us")).ok()?.trim().parse::<i64>().ok();
        let above: Vec<&Path> = own.ancestors().skip(1).take_while(|at| read(at).is_some()).collect();
        if let Some((root, between)) = above.split_last()
            && let Some(all) = read(root)
        {
            for level in between.iter().rev().filter(|level| read(level) == Some(0)) {
                write(&level.join("cpu.rt_runtime_us"), &all.to_string())?;
            }
        }
        if let Some(period) = period {
            self.write("cpu", "cpu.rt_period_us", "", &period.to_string())?;
        }
        if let Some(runtime) = runtime {
            self.write("cpu", "cpu.rt_runtime_us", "", &runtime.to_string())?;
        }
        Ok(())
    }

    /// A share of a disk; the file's name depends on who schedules the disk.
    fn io_weight(&self, device: Option<(i64, i64)>, weight: u16) -> Result<(), Failure> {
        let directory = self.cgroup.directory("blkio");
        let exists = |name: &str| directory.is_some_and(|directory| directory.join(name).exists());
        let (bfq, other) = match (self.v2, device) {
            (true, _) => ("io.bfq.weight", "io.weight"),
            (false, None) => ("blkio.bfq.weight", "blkio.weight"),
            (false, Some(_)) => ("blkio.bfq.weight_device", "blkio.weight_device"),
        };
        let file = match (exists(bfq), exists(other)) {
            (_, true) => other,
            (true, false) => bfq,
            (false, false) => {
                return Err(Failure::Unsupported("a block io weight on this machine".to_owned()));
            }
        };
        // Docker counts from 10 to 1000, io.weight from 1 to 10000.
        let value =
            if file == "io.weight" { 1 + u32::from(weight.max(10) - 10) * 9999 / 990 } else { u32::from(weight) };
        let line = match device {
            Some((major, minor)) => format!("{major}:{minor} {value}"),
            None => value.to_string(),
        };
        self.write("blkio", file, file, &line)
    }

    fn io(&self, io: &LinuxBlockIo) -> Result<(), Failure> {
        if io.leaf_weight().is_some() {
            return Err(Failure::Unsupported("a block io weight of leaves".to_owned()));
        }
        if let Some(weight) = io.weight().filter(|&weight| weight != 0) {
            self.io_weight(None, weight)?;
        }
        for device in io.weight_device().iter().flatten() {
            if let Some(weight) = device.weight() {
                self.io_weight(Some((device.major(), device.minor())), weight)?;
            }
        }
        let throttles = [
            (io.throttle_read_bps_device(), "blkio.throttle.read_bps_device", "rbps"),
            (io.throttle_write_bps_device(), "blkio.throttle.write_bps_device", "wbps"),
            (io.throttle_read_iops_device(), "blkio.throttle.read_iops_device", "riops"),
            (io.throttle_write_iops_device(), "blkio.throttle.write_iops_device", "wiops"),
        ];
        for (devices, v1, v2) in throttles {
            for device in devices.iter().flatten() {
                let prefix = if self.v2 { format!("{v2}=") } else { String::new() };
                let line = format!("{}:{} {prefix}{}", device.major(), device.minor(), device.rate());
                self.write("blkio", v1, "io.max", &line)?;
            }
        }
        Ok(())
    }
}

fn write(file: &Path, value: &str) -> Result<(), Failure> {
    fs::write(file, value).doing(|| format!("write {value} to {}", file.display()))
}

#[cfg(test)]
mod tests {
    use oci_spec::runtime::{LinuxCpuBuilder, LinuxMemoryBuilder, LinuxPidsBuilder, LinuxResourcesBuilder};

    use super::super::cgroups::fake;
    use super::*;

    fn resources() -> LinuxResources {
        let memory = LinuxMemoryBuilder::default().limit(64i64 << 20).swap(96i64 << 20).reservation(1i64 << 20);
        let cpu = LinuxCpuBuilder::default().shares(512u64).quota(50_000i64).period(100_000u64).cpus("0-1");
        LinuxResourcesBuilder::default()
            .memory(memory.build().unwrap())
            .cpu(cpu.build().unwrap())
            .pids(LinuxPidsBuilder::default().limit(20i64).build().unwrap())
            .build()
            .unwrap()
    }

    fn read(directory: &Path) -> Vec<(String, String)> {
        let entries = fs::read_dir(directory).unwrap().map(|entry| entry.unwrap());
        let mut all: Vec<_> = entries
            .map(|entry| (entry.file_name().into_string().unwrap(), fs::read_to_string(entry.path()).unwrap()))
            .collect();
        all.sort();
        all
    }

    fn check(directory: &Path, expected: &[(&str, &str)]) {
        let found = read(directory);
        let found: Vec<_> = found.iter().map(|(name, value)| (name.as_str(), value.as_str())).collect();
        assert_eq!(found, expected);
    }

    #[test]
    fn limits_in_the_words_of_v2() {
        let dir = tempfile::tempdir().unwrap();
        apply(&fake(Some(dir.path()), &[]), &resources()).unwrap();
        let expected = [
            ("cpu.max", "50000 100000"),
            ("cpu.weight", "20"),
            ("cpuset.cpus", "0-1"),
            ("memory.low", "1048576"),
            ("memory.max", "67108864"),
            ("memory.swap.max", "33554432"),
            ("pids.max", "20"),
        ];
        check(dir.path(), &expected);
    }

    #[test]
    fn limits_in_the_words_of_v1() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path();
        let all = [("memory", path), ("cpu", path), ("cpuset", path), ("pids", path)];
        apply(&fake(None, &all), &resources()).unwrap();
        let expected = [
            ("cpu.cfs_period_us", "100000"),
            ("cpu.cfs_quota_us", "50000"),
            ("cpu.shares", "512"),
            ("cpuset.cpus", "0-1"),
            ("memory.limit_in_bytes", "67108864"),
            ("memory.memsw.limit_in_bytes", "100663296"),
            ("memory.soft_limit_in_bytes", "1048576"),
            ("pids.max", "20"),
        ];
        check(path, &expected);
    }

    #[test]
    fn a_limit_nobody_can_set_is_an_error() {
        let dir = tempfile::tempdir().unwrap();
        assert_eq!(controllers(Some(&resources())), ["memory", "pids", "cpu", "cpuset"]);
        assert!(apply(&fake(None, &[("pids", dir.path())]), &resources()).is_err());
        let mut odd = LinuxResources::default();
        odd.set_unified(Some([("../x".to_owned(), "1".to_owned())].into_iter().collect()));
        assert!(apply(&fake(Some(dir.path()), &[]), &odd).is_err());
    }
}
