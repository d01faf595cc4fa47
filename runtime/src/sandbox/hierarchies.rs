//! Which cgroup hierarchies a machine shows.

use std::fs;
use std::io;
use std::path::{Path, PathBuf};
use std::time::Duration;

use serde::{Deserialize, Serialize};

use crate::error::{Error, Result};

/// The cgroup file systems a machine shows.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct Hierarchies {
    pub(super) unified: Option<PathBuf>,
    /// Controllers of the v2 hierarchy; none in hybrid mode.
    pub(super) controllers: Vec<String>,
    pub(super) v1: Vec<Hierarchy>,
}

#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub(super) struct Hierarchy {
    pub(super) controllers: Vec<String>,
    pub(super) mount: PathBuf,
}

const KNOWN: [&str; 12] = [
    "pids",
    "memory",
    "devices",
    "freezer",
    "cpu",
    "cpuacct",
    "cpuset",
    "blkio",
    "hugetlb",
    "net_cls",
    "net_prio",
    "perf_event",
];

impl Hierarchies {
    /// Looks at the mount table.
    pub fn detect() -> Result<Self> {
        let table = fs::read_to_string("/proc/self/mountinfo")
            .map_err(|error| Error::system("read /proc/self/mountinfo", error))?;
        let mut found = Hierarchies::parse(&table);
        if let Some(unified) = &found.unified {
            let controllers = fs::read_to_string(unified.join("cgroup.controllers")).unwrap_or_default();
            found.controllers = controllers.split_whitespace().map(str::to_owned).collect();
        }
        Ok(found)
    }

    fn parse(table: &str) -> Self {
        let mut found = Hierarchies::default();
        for line in table.lines() {
            let Some((place, kind)) = line.split_once(" - ") else { continue };
            let Some(mount) = place.split(' ').nth(4).map(PathBuf::from) else { continue };
            let mut kind = kind.split(' ');
            match kind.next() {
                Some("cgroup2") if found.unified.is_none() => found.unified = Some(mount),
                Some("cgroup") => {
                    let options = kind.next_back().unwrap_or_default();
                    let controllers: Vec<String> =
                        options.split(',').filter(|option| KNOWN.contains(option)).map(str::to_owned).collect();
                    let seen = |one: &Hierarchy| one.controllers == controllers;
                    if !controllers.is_empty() && !found.v1.iter().any(seen) {
                        found.v1.push(Hierarchy { controllers, mount });
                    }
                }
                _ => {}
            }
        }
        found
    }

    /// Takes the writer's side of the lock that every move into a v1 cgroup takes, by moving the calling process to where it
    /// is. The first to do so waits for an RCU grace period, some ten milliseconds; others within some twenty do not.
    pub(super) fn warm(&self) -> io::Result<()> {
        let Some(hierarchy) = self.v1_of("pids").or(self.v1.first()) else { return Ok(()) };
        let ours = fs::read_to_string("/proc/self/cgroup")?;
        let is_it = |list: &str| list.split(',').eq(hierarchy.controllers.iter());
        let place =
            ours.lines().filter_map(|line| line.split_once(':')?.1.split_once(':')).find(|(list, _)| is_it(list));
        let Some((_, path)) = place else { return Ok(()) };
        fs::write(hierarchy.mount.join(path.trim_start_matches('/')).join("cgroup.procs"), "0")
    }

    /// Where the v2 hierarchy is mounted.
    pub fn unified(&self) -> Option<&Path> {
        self.unified.as_deref()
    }

    /// Whether a controller can be used at all, on whichever hierarchy.
    pub fn has(&self, controller: &str) -> bool {
        let v2 = if controller == "blkio" { "io" } else { controller };
        self.v1_of(controller).is_some() || self.controllers.iter().any(|one| one == v2)
    }

    /// Whether memory and swap can be limited together.
    pub fn has_swap_limit(&self) -> bool {
        match self.v1_of("memory") {
            Some(hierarchy) => hierarchy.mount.join("memory.memsw.limit_in_bytes").exists(),
            // The root of v2 has no such file: the kernel's switch for accounting decides.
            None => self.has("memory") && Path::new("/proc/swaps").exists(),
        }
    }

    /// Whether a controller is on a v1 hierarchy.
    pub fn is_first_version(&self, controller: &str) -> bool {
        self.is_v1(controller)
    }

    pub(super) fn is_v1(&self, controller: &str) -> bool {
        self.v1_of(controller).is_some()
    }

    pub(super) fn v1_of(&self, controller: &str) -> Option<&Hierarchy> {
        self.v1.iter().find(|hierarchy| hierarchy.controllers.iter().any(|one| one == controller))
    }
}

/// How old an empty cgroup must be to be a leftover rather than one whose first process is about to enter.
const LEFTOVER: Duration = Duration::from_secs(60);

impl Hierarchies {
    /// Removes empty cgroups below `parent` that a killed supervisor left behind.
    pub(super) fn sweep(&self, parent: &Path) {
        for mount in self.unified.iter().chain(self.v1.iter().map(|hierarchy| &hierarchy.mount)) {
            for entry in fs::read_dir(mount.join(parent)).into_iter().flatten().flatten() {
                let made = entry.metadata().and_then(|metadata| metadata.modified());
                let is_old = made.is_ok_and(|made| made.elapsed().is_ok_and(|age| age > LEFTOVER));
                if is_old && entry.file_type().is_ok_and(|kind| kind.is_dir()) {
                    // One that holds a process refuses.
                    let _ = fs::remove_dir(entry.path());
                }
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn mount_tables_of_all_three_kinds() {
        let v1 = "30 25 0:26 / /sys/fs/cgroup rw - tmpfs tmpfs rw\n\
                  31 30 0:27 / /sys/fs/cgroup/systemd rw - cgroup cgroup rw,name=systemd\n\
                  32 30 0:28 / /sys/fs/cgroup/cpu,cpuacct rw shared:9 - cgroup cgroup rw,cpu,cpuacct\n\
                  33 30 0:29 / /sys/fs/cgroup/pids rw - cgroup cgroup rw,pids\n";
        let v2 = "34 30 0:30 / /sys/fs/cgroup/unified rw - cgroup2 cgroup2 rw,nsdelegate\n";
        let found = Hierarchies::parse(v1);
        assert_eq!(found.unified(), None);
        assert!(found.is_v1("cpuacct") && found.is_v1("pids") && !found.has("memory"));
        let found = Hierarchies::parse(&format!("{v1}{v2}"));
        assert_eq!(found.unified(), Some(Path::new("/sys/fs/cgroup/unified")));
        assert!(!found.has("memory") && !found.v1.is_empty());
        let found = Hierarchies::parse(v2);
        assert!(found.v1.is_empty() && found.unified().is_some());
    }
}
