//! cgroup v1, hybrid and v2 behind one small type.
//!
//! A sandbox has the same path in every hierarchy it uses. The v2 hierarchy, where there is one, always: a process is
//! cloned straight into it, `cgroup.kill` ends everything at once, and it freezes and guards devices without any
//! controller, so also in hybrid mode. v1 hierarchies are used only for limits asked for: a process has to be moved
//! into them, and the first move in a while waits some ten milliseconds for an RCU grace period.

use std::fs;
use std::io;
use std::os::fd::OwnedFd;
use std::path::{Path, PathBuf};
use std::thread::sleep;
use std::time::Duration;

use oci_spec::runtime::{LinuxDeviceCgroup, LinuxResources};
use rustix::fs::{Mode, OFlags, mkdirat, open};
use rustix::io::Errno;

use super::hierarchies::{Hierarchies, Hierarchy};
use super::mounts::{self, BindDepth, Options};
use super::{devices, limits, sys};
use crate::error::{Doing, Error, Failure, Result};

/// Controllers of v1 every sandbox joins where there is no v2 hierarchy.
const WITHOUT_V2: [&str; 5] = ["pids", "memory", "devices", "freezer", "cpuacct"];

/// One sandbox's cgroup, in every hierarchy it is in.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Cgroup {
    unified: Option<PathBuf>,
    /// Whether limits go to the v2 hierarchy.
    unified_limits: bool,
    v1: Vec<Hierarchy>,
    /// Whether the kernel keeps its processes from devices they were not given. Known of new ones only.
    guards_devices: bool,
}

impl Cgroup {
    /// Refers to a cgroup that exists, or did.
    pub fn open(hierarchies: &Hierarchies, path: &Path) -> Self {
        let mut cgroup = Cgroup::named(hierarchies, path);
        cgroup.v1.retain(|hierarchy| hierarchy.mount.is_dir());
        cgroup
    }

    fn named(hierarchies: &Hierarchies, path: &Path) -> Self {
        let v1 = hierarchies.v1.iter().map(|hierarchy| Hierarchy {
            controllers: hierarchy.controllers.clone(),
            mount: hierarchy.mount.join(path),
        });
        Cgroup {
            unified: hierarchies.unified.as_ref().map(|unified| unified.join(path)),
            unified_limits: hierarchies.v1.is_empty(),
            v1: v1.collect(),
            guards_devices: true,
        }
    }

    /// Makes the directories and sets the limits. A leftover of the same name that is empty is taken over.
    pub(super) fn create(
        hierarchies: &Hierarchies,
        path: &Path,
        resources: Option<&LinuxResources>,
    ) -> Result<Self, Failure> {
        let mut cgroup = Cgroup::named(hierarchies, path);
        let wanted = limits::controllers(resources);
        let no_v2 = cgroup.unified.is_none();
        cgroup.v1.retain(|hierarchy| {
            hierarchy.controllers.iter().any(|controller| {
                let controller = controller.as_str();
                wanted.contains(&controller) || (no_v2 && WITHOUT_V2.contains(&controller))
            })
        });
        for controller in &wanted {
            if !hierarchies.has(controller) {
                return Err(Failure::refused(format!(
                    "this machine has no cgroup controller {controller} for the limit asked for"
                )));
            }
        }
        let made = cgroup.make(hierarchies, path, &wanted).and_then(|()| match resources {
            Some(resources) => limits::apply(&cgroup, resources).and_then(|()| {
                cgroup.guard_devices(hierarchies, path, resources.devices().as_deref().unwrap_or_default())
            }),
            None => Ok(true),
        });
        match made {
            Ok(guards_devices) => {
                cgroup.guards_devices = guards_devices;
                Ok(cgroup)
            }
            Err(failure) => {
                cgroup.remove();
                Err(failure)
            }
        }
    }

    fn make(&self, hierarchies: &Hierarchies, path: &Path, wanted: &[&str]) -> Result<(), Failure> {
        if let (Some(unified), Some(mount)) = (&self.unified, &hierarchies.unified) {
            let parents: Vec<&Path> =
                path.ancestors().skip(1).filter(|parent| !parent.as_os_str().is_empty()).collect();
            if self.unified_limits {
                delegate(mount, &hierarchies.controllers, wanted)?;
            }
            for parent in parents.iter().rev() {
                let parent = mount.join(parent);
                make_directory(&parent)?;
                if self.unified_limits {
                    delegate(&parent, &hierarchies.controllers, wanted)?;
                }
            }
            make_directory(unified)?;
        }
        self.v1.iter().try_for_each(|hierarchy| hierarchy.make(path))
    }

    /// Sets the device rules; says whether the kernel holds them. A program on the v2 hierarchy does it, else v1's controller.
    fn guard_devices(
        &mut self,
        hierarchies: &Hierarchies,
        path: &Path,
        rules: &[LinuxDeviceCgroup],
    ) -> Result<bool, Failure> {
        if rules.is_empty() {
            return Ok(true);
        }
        if !self.has_v1("devices") {
            match self.attach_devices(&devices::program(rules)?) {
                Ok(()) => return Ok(true),
                Err(failure) => tracing::debug!("no device program: {}", Error::from(failure)),
            }
            let Some(own) = hierarchies.v1_of("devices") else { return Ok(false) };
            let own = Hierarchy { controllers: own.controllers.clone(), mount: own.mount.join(path) };
            own.make(path)?;
            self.v1.push(own);
        }
        limits::devices(self, rules)?;
        Ok(true)
    }

    /// Moves a process into the v1 hierarchies.
    pub(super) fn take_in(&self, pid: i32) -> Result<(), Failure> {
        for hierarchy in &self.v1 {
            let file = hierarchy.mount.join("cgroup.procs");
            match fs::write(&file, pid.to_string()) {
                // It died already; whoever waits for it will tell why.
                Err(error) if error.raw_os_error() == Some(libc::ESRCH) => return Ok(()),
                moved => moved.doing(|| format!("enter {}", hierarchy.mount.display()))?,
            }
        }
        Ok(())
    }

    /// The v2 directory, to be cloned into.
    pub(super) fn unified_directory(&self) -> Result<Option<OwnedFd>, Failure> {
        let open = |path: &PathBuf| {
            open(path, OFlags::PATH | OFlags::DIRECTORY | OFlags::CLOEXEC, Mode::empty())
                .doing(|| format!("open {}", path.display()))
        };
        self.unified.as_ref().map(open).transpose()
    }

    /// Without a guard the root is mounted `nodev`, and whoever starts under such a root may make no nodes elsewhere.
    pub(super) fn guards_devices(&self) -> bool {
        self.guards_devices
    }

    pub(super) fn unified_limits(&self) -> bool {
        self.unified_limits
    }

    /// Where a controller's files are.
    pub(super) fn directory(&self, controller: &str) -> Option<&Path> {
        let v1 = self.v1.iter().find(|hierarchy| hierarchy.controllers.iter().any(|one| one == controller));
        match v1 {
            Some(hierarchy) => Some(&hierarchy.mount),
            None => self.unified.as_deref().filter(|_| self.unified_limits),
        }
    }

    /// Detached mounts for `/sys/fs/cgroup`: on v1 and hybrid a tmpfs and one mount for each hierarchy.
    pub(super) fn shown(&self, options: &Options, own_namespace: bool) -> Result<Shown, Failure> {
        let show = |path: &Path| {
            // With a cgroup namespace this directory is the root inside; without, the whole hierarchy is shown.
            let path = if own_namespace { path } else { mount_of(path) };
            let tree = mounts::clone_path(path, BindDepth::Single).doing(|| format!("show {}", path.display()))?;
            mounts::configure_bind(&tree, options).doing(|| format!("show {}", path.display()))?;
            Ok::<_, Failure>(tree)
        };
        if self.v1.is_empty() {
            let unified = self.unified.as_deref();
            let missing = || Failure::Unsupported("a cgroup mount on a machine without cgroups".to_owned());
            return Ok(Shown { tree: show(unified.ok_or_else(missing)?)?, below: Vec::new() });
        }
        let mut tmpfs = options.clone();
        tmpfs.source = Some("cgroup".to_owned());
        tmpfs.set &= !libc::MOUNT_ATTR_RDONLY;
        tmpfs.parameters = vec![("mode".to_owned(), Some("755".to_owned()))];
        let tree = mounts::make("tmpfs", &tmpfs)?;
        let all = self.v1.iter().map(|hierarchy| (hierarchy.controllers.join(","), hierarchy.mount.as_path()));
        let all = all.chain(self.unified.iter().map(|unified| ("unified".to_owned(), unified.as_path())));
        let mut below = Vec::new();
        for (name, path) in all {
            mkdirat(&tree, &name, Mode::from_raw_mode(0o755)).doing(|| format!("make /sys/fs/cgroup/{name}"))?;
            below.push((name, show(path)?));
        }
        Ok(Shown { tree, below })
    }

    /// Kills every process, also frozen ones.
    pub fn kill(&self) {
        let killed = self.unified.as_ref().is_some_and(|unified| fs::write(unified.join("cgroup.kill"), "1").is_ok());
        if !killed {
            // Frozen, nothing can fork away from under the list.
            let _ = self.freeze();
            for pid in self.processes() {
                if let Some(pid) = rustix::process::Pid::from_raw(pid) {
                    let _ = rustix::process::kill_process(pid, rustix::process::Signal::KILL);
                }
            }
        }
        // A process that the v1 freezer holds dies only when let go.
        if let Some(freezer) = self.freezer() {
            let _ = fs::write(freezer.join("freezer.state"), "THAWED");
        } else if !killed {
            let _ = self.thaw();
        }
    }

    /// The v1 freezer's directory, where it is the one in use.
    fn freezer(&self) -> Option<&Path> {
        if self.unified.is_some() {
            return None;
        }
        let freezer = self.v1.iter().find(|one| one.controllers.iter().any(|one| one == "freezer"));
        freezer.map(|freezer| freezer.mount.as_path())
    }

    /// Processes in it, as the caller's pid namespace numbers them.
    pub fn processes(&self) -> Vec<i32> {
        let directory = self.unified.as_deref().or(self.v1.first().map(|hierarchy| hierarchy.mount.as_path()));
        let list = directory.and_then(|directory| fs::read_to_string(directory.join("cgroup.procs")).ok());
        list.unwrap_or_default().lines().filter_map(|line| line.parse().ok()).collect()
    }

    /// As [`Cgroup::processes`], with those in cgroups that its processes made below it.
    pub fn all_processes(&self) -> Vec<i32> {
        let top = self.unified.as_deref().or(self.v1.first().map(|hierarchy| hierarchy.mount.as_path()));
        let mut open: Vec<PathBuf> = top.map(Path::to_path_buf).into_iter().collect();
        let mut all = Vec::new();
        while let Some(directory) = open.pop() {
            let list = fs::read_to_string(directory.join("cgroup.procs")).unwrap_or_default();
            all.extend(list.lines().filter_map(|line| line.parse::<i32>().ok()));
            let below = fs::read_dir(&directory).into_iter().flatten().flatten();
            open.extend(below.filter(|e| e.file_type().is_ok_and(|kind| kind.is_dir())).map(|e| e.path()));
        }
        all.sort_unstable();
        all
    }

    /// Stops every process until [`Cgroup::thaw`]; returns when all stand still.
    pub fn freeze(&self) -> Result<()> {
        self.set_frozen(Frozen::Yes)
    }

    pub fn thaw(&self) -> Result<()> {
        self.set_frozen(Frozen::No)
    }

    fn set_frozen(&self, want: Frozen) -> Result<()> {
        let fail = |error: io::Error| Error::system("freeze or thaw a cgroup", error);
        if let Some(freezer) = self.freezer() {
            let file = freezer.join("freezer.state");
            let word = if want == Frozen::Yes { "FROZEN" } else { "THAWED" };
            for _ in 0..500 {
                fs::write(&file, word).map_err(fail)?;
                if fs::read_to_string(&file).map_err(fail)?.trim() == word {
                    return Ok(());
                }
                sleep(Duration::from_millis(2));
            }
            let _ = fs::write(&file, "THAWED");
            return Err(fail(io::ErrorKind::TimedOut.into()));
        }
        let Some(unified) = &self.unified else { return Err(fail(io::ErrorKind::Unsupported.into())) };
        let bit = if want == Frozen::Yes { "1" } else { "0" };
        fs::write(unified.join("cgroup.freeze"), bit).map_err(fail)?;
        for _ in 0..500 {
            let events = fs::read_to_string(unified.join("cgroup.events")).map_err(fail)?;
            if field(&events, "frozen") == Some(u64::from(want == Frozen::Yes)) {
                return Ok(());
            }
            sleep(Duration::from_millis(2));
        }
        let _ = fs::write(unified.join("cgroup.freeze"), "0");
        Err(fail(io::ErrorKind::TimedOut.into()))
    }

    /// Whether the processes stand still.
    pub fn is_frozen(&self) -> bool {
        if let Some(freezer) = self.freezer() {
            return fs::read_to_string(freezer.join("freezer.state")).is_ok_and(|state| state.trim() != "THAWED");
        }
        let events = self.unified.as_ref().and_then(|unified| fs::read_to_string(unified.join("cgroup.events")).ok());
        events.and_then(|events| field(&events, "frozen")) == Some(1)
    }

    /// Changes the limits of what runs. A v1 hierarchy that no limit needed before takes the processes in.
    pub(super) fn update(&self, hierarchies: &Hierarchies, path: &Path, resources: &LinuxResources) -> Result<Self> {
        let mut wide = self.clone();
        for controller in limits::controllers(Some(resources)) {
            if !hierarchies.has(controller) {
                let message = format!("this machine has no cgroup controller {controller} for the limit asked for");
                return Err(Error::Refused(message));
            }
            let Some(hierarchy) = hierarchies.v1_of(controller).filter(|_| !wide.has_v1(controller)) else { continue };
            let own = Hierarchy { controllers: hierarchy.controllers.clone(), mount: hierarchy.mount.join(path) };
            own.make(path)?;
            // What the processes hold already is to count too, where the kernel still can do that.
            let _ = fs::write(own.mount.join("memory.move_charge_at_immigrate"), "3");
            wide.v1.push(own);
        }
        let changed = limits::apply(&wide, resources)
            .and_then(|()| wide.v1[self.v1.len()..].iter().try_for_each(|one| self.move_into(one)));
        if let Err(failure) = changed {
            // One that holds a process refuses, and goes at the end.
            wide.v1[self.v1.len()..].iter().for_each(|one| drop(fs::remove_dir(&one.mount)));
            return Err(failure.into());
        }
        Ok(wide)
    }

    /// Moves every process into one more hierarchy; those forked meanwhile too.
    fn move_into(&self, hierarchy: &Hierarchy) -> Result<(), Failure> {
        let file = hierarchy.mount.join("cgroup.procs");
        for _ in 0..100 {
            let there = fs::read_to_string(&file).unwrap_or_default();
            let there: Vec<i32> = there.lines().filter_map(|line| line.parse().ok()).collect();
            let missing: Vec<i32> = self.all_processes().into_iter().filter(|pid| !there.contains(pid)).collect();
            if missing.is_empty() {
                return Ok(());
            }
            for pid in missing {
                match fs::write(&file, pid.to_string()) {
                    Err(error) if error.raw_os_error() == Some(libc::ESRCH) => {}
                    moved => moved.doing(|| format!("enter {}", hierarchy.mount.display()))?,
                }
            }
        }
        Err(Failure::refused("the processes fork faster than they can be limited"))
    }

    /// Bytes in use now, without the cached files that the kernel would give up first.
    pub fn memory(&self) -> Option<u64> {
        let used = self.number("memory", "memory.usage_in_bytes", "memory.current")?;
        let text = fs::read_to_string(self.directory("memory")?.join("memory.stat")).unwrap_or_default();
        let idle = field(&text, if self.unified_limits { "inactive_file" } else { "total_inactive_file" });
        Some(used.saturating_sub(idle.unwrap_or(0)))
    }

    /// The most bytes that it may use; `None` where nothing says so, or so much that it means nothing.
    pub fn memory_limit(&self) -> Option<u64> {
        self.number("memory", "memory.limit_in_bytes", "memory.max").filter(|&bytes| bytes < 1 << 62)
    }

    /// Bytes read from and written to block devices.
    pub fn block_io(&self) -> Option<(u64, u64)> {
        let directory = self.directory("blkio")?;
        if self.unified_limits {
            let text = fs::read_to_string(directory.join("io.stat")).ok()?;
            let sum = |name: &str| {
                let words = text.split_whitespace().filter_map(|word| word.strip_prefix(name)?.strip_prefix('='));
                words.filter_map(|number| number.parse::<u64>().ok()).sum()
            };
            return Some((sum("rbytes"), sum("wbytes")));
        }
        let text = fs::read_to_string(directory.join("blkio.throttle.io_service_bytes")).ok()?;
        let sum = |name: &str| {
            let lines = text.lines().filter_map(|line| line.split_once(' ')?.1.strip_prefix(name));
            lines.filter_map(|number| number.trim().parse::<u64>().ok()).sum()
        };
        Some((sum("Read "), sum("Write ")))
    }

    /// The most bytes in use at once.
    pub fn peak_memory(&self) -> Option<u64> {
        self.number("memory", "memory.max_usage_in_bytes", "memory.peak")
    }

    /// How many processes the kernel killed for want of memory.
    pub fn oom_kills(&self) -> u64 {
        let Some(directory) = self.directory("memory") else { return 0 };
        let file = if self.unified_limits { "memory.events" } else { "memory.oom_control" };
        let text = fs::read_to_string(directory.join(file)).unwrap_or_default();
        field(&text, "oom_kill").unwrap_or(0)
    }

    /// Processor time of all processes that are or were in it.
    pub fn cpu_time(&self) -> Option<Duration> {
        if let Some(unified) = &self.unified {
            let text = fs::read_to_string(unified.join("cpu.stat")).ok()?;
            return field(&text, "usage_usec").map(Duration::from_micros);
        }
        self.number("cpuacct", "cpuacct.usage", "").map(Duration::from_nanos)
    }

    /// How many processes and threads are in it.
    pub fn pids(&self) -> Option<u64> {
        self.number("pids", "pids.current", "pids.current")
    }

    fn number(&self, controller: &str, v1: &str, v2: &str) -> Option<u64> {
        let file = self.directory(controller)?.join(if self.unified_limits { v2 } else { v1 });
        fs::read_to_string(file).ok()?.trim().parse().ok()
    }

    /// Removes the directories; processes still on their way out are waited for, for a while.
    pub fn remove(&self) {
        let all = self.unified.iter().chain(self.v1.iter().map(|hierarchy| &hierarchy.mount));
        for directory in all {
            for tries in 0..200 {
                match fs::remove_dir(directory) {
                    Err(error) if error.raw_os_error() == Some(libc::EBUSY) => {
                        if tries % 50 == 49 {
                            self.kill();
                        }
                        sleep(Duration::from_micros(200 << tries.min(5)));
                    }
                    _ => break,
                }
            }
        }
    }

    pub(super) fn has_v1(&self, controller: &str) -> bool {
        self.v1.iter().any(|hierarchy| hierarchy.controllers.iter().any(|one| one == controller))
    }

    /// Whether whoever enters has to be moved, see [`Cgroup::warm`].
    pub(super) fn is_moved_into(&self) -> bool {
        !self.v1.is_empty()
    }

    /// Lets a v2 cgroup decide about devices with a program, since that hierarchy has no files for it.
    fn attach_devices(&self, program: &[u64]) -> Result<(), Failure> {
        let missing = || Failure::Unsupported("a device program without a v2 hierarchy".to_owned());
        let directory = self.unified_directory()?.ok_or_else(missing)?;
        let directory = rustix::fs::openat(&directory, c".", OFlags::DIRECTORY | OFlags::CLOEXEC, Mode::empty())
            .doing(|| "open a cgroup".to_owned())?;
        let program = sys::load_device_program(program).doing(|| "load the device rules".to_owned())?;
        sys::attach_device_program(directory, program).doing(|| "attach the device rules".to_owned())
    }
}

/// What `/sys/fs/cgroup` shows. The parts are attached one after another, since a mount takes others onto it only once it
/// is itself in the namespace.
pub(super) struct Shown {
    pub(super) tree: OwnedFd,
    /// Names in `tree` and what goes there.
    pub(super) below: Vec<(String, OwnedFd)>,
}

#[derive(Clone, Copy, PartialEq, Eq)]
enum Frozen {
    Yes,
    No,
}

impl Hierarchy {
    /// Makes the directory and those above it, `path` being the part that is ours.
    fn make(&self, path: &Path) -> Result<(), Failure> {
        let levels: Vec<&Path> = self.mount.ancestors().take(path.components().count()).collect();
        for level in levels.iter().rev() {
            make_directory(level)?;
            if self.controllers.iter().any(|one| one == "cpuset") {
                inherit_cpuset(level)?;
            }
        }
        Ok(())
    }
}

/// Value of a line `name value`.
fn field(text: &str, name: &str) -> Option<u64> {
    text.lines().find_map(|line| line.strip_prefix(name)?.strip_prefix(' ')?.trim().parse().ok())
}

fn make_directory(path: &Path) -> Result<(), Failure> {
    match mkdirat(rustix::fs::CWD, path, Mode::from_raw_mode(0o755)) {
        Err(Errno::EXIST) => Ok(()),
        made => made.doing(|| format!("create the cgroup {}", path.display())),
    }
}

/// Lets children of a v2 cgroup use the controllers. Where one cannot be had it is an error only if a limit needs it.
fn delegate(directory: &Path, available: &[String], wanted: &[&str]) -> Result<(), Failure> {
    let file = directory.join("cgroup.subtree_control");
    let now = fs::read_to_string(&file).unwrap_or_default();
    for controller in ["memory", "pids", "cpu", "cpuset", "io"] {
        if !available.iter().any(|one| one == controller) || now.split_whitespace().any(|one| one == controller) {
            continue;
        }
        let enabled = fs::write(&file, format!("+{controller}"));
        if wanted.contains(&if controller == "io" { "blkio" } else { controller }) {
            enabled.doing(|| format!("enable the cgroup controller {controller} in {}", directory.display()))?;
        }
    }
    Ok(())
}

/// A new v1 cpuset is empty and can hold nobody until it has its parent's values.
fn inherit_cpuset(level: &Path) -> Result<(), Failure> {
    for name in ["cpuset.cpus", "cpuset.mems"] {
        let file = level.join(name);
        let read = |file: &Path| fs::read_to_string(file).doing(|| format!("read {}", file.display()));
        if read(&file)?.trim().is_empty()
            && let Some(parent) = level.parent()
        {
            let value = read(&parent.join(name))?;
            fs::write(&file, value.trim()).doing(|| format!("write {}", file.display()))?;
        }
    }
    Ok(())
}

/// The root of the hierarchy a directory is in.
fn mount_of(path: &Path) -> &Path {
    path.ancestors().take_while(|level| level.join("cgroup.procs").exists()).last().unwrap_or(path)
}

/// A cgroup whose files are ordinary ones.
#[cfg(test)]
pub(super) fn fake(unified: Option<&Path>, v1: &[(&str, &Path)]) -> Cgroup {
    let hierarchy =
        |(name, path): &(&str, &Path)| Hierarchy { controllers: vec![(*name).to_owned()], mount: path.to_path_buf() };
    Cgroup {
        unified: unified.map(Path::to_path_buf),
        unified_limits: v1.is_empty(),
        v1: v1.iter().map(hierarchy).collect(),
        guards_devices: true,
    }
}
