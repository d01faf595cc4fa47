//! The kernel: its version, what it was built with, and how its cgroups are mounted.

use std::fs;
use std::path::Path;

use rbuild_runtime::sandbox::Hierarchies;

use super::Finding;

/// The first kernel that has all that is used: `cgroup.kill` and `openat2` with its flags, `mount_setattr`, pidfds.
const LEAST: (u32, u32) = (5, 14);

pub(super) fn examine() -> Vec<Finding> {
    vec![version(), user(), namespaces(), seccomp(), cgroups(), limits(), watches()]
}

fn version() -> Finding {
    let system = rustix::system::uname();
    let release = system.release().to_string_lossy().into_owned();
    match parsed(&release) {
        Some(version) if version >= LEAST => Finding::ok("kernel", format!("Linux {release}")),
        _ => Finding::problem(
            "kernel",
            format!("Linux {release} is older than {}.{}", LEAST.0, LEAST.1),
            "install a newer kernel of your distribution",
        ),
    }
}

fn parsed(release: &str) -> Option<(u32, u32)> {
    let mut numbers = release.split(|c: char| !c.is_ascii_digit());
    Some((numbers.next()?.parse().ok()?, numbers.next()?.parse().ok()?))
}

fn user() -> Finding {
    if rustix::process::geteuid().is_root() {
        return Finding::ok("user", "root");
    }
    Finding::problem(
        "user",
        "not root: containers and RUN steps cannot be started",
        "run it as root, for example with sudo",
    )
}

fn namespaces() -> Finding {
    let kinds = ["cgroup", "ipc", "mnt", "net", "pid", "user", "uts"];
    let missing: Vec<&str> =
        kinds.into_iter().filter(|kind| !Path::new(&format!("/proc/self/ns/{kind}")).exists()).collect();
    let none_allowed = |kind: &&str| {
        let text = fs::read_to_string(format!("/proc/sys/user/max_{kind}_namespaces"));
        text.is_ok_and(|text| text.trim() == "0")
    };
    let closed: Vec<&str> = kinds.into_iter().filter(none_allowed).collect();
    match (&missing[..], &closed[..]) {
        ([], []) => Finding::ok("namespaces", kinds.join(" ")),
        ([], closed) => Finding::problem(
            "namespaces",
            format!("none may be made of: {}", closed.join(", ")),
            "raise the numbers of /proc/sys/user/max_*_namespaces",
        ),
        (missing, _) => Finding::problem(
            "namespaces",
            format!("the kernel has not: {}", missing.join(", ")),
            "use a kernel that was built with them, as those of all distributions are",
        ),
    }
}

fn seccomp() -> Finding {
    if Path::new("/proc/sys/kernel/seccomp/actions_avail").exists() {
        return Finding::ok("seccomp", "filters of system calls");
    }
    Finding::problem(
        "seccomp",
        "the kernel has no filters of system calls",
        "use a kernel built with CONFIG_SECCOMP_FILTER, or run containers with --security-opt seccomp=unconfined",
    )
}

fn cgroups() -> Finding {
    let found = match Hierarchies::detect() {
        Ok(found) => found,
        Err(error) => return Finding::problem("cgroups", error.to_string(), "mount /proc"),
    };
    let wanted = ["cpu", "cpuset", "memory", "pids", "blkio"];
    let missing: Vec<&str> = wanted.into_iter().filter(|controller| !found.has(controller)).collect();
    let mode = match mode(&found) {
        Some(mode) => mode,
        None => {
            return Finding::problem(
                "cgroups",
                "no cgroup hierarchy is mounted",
                "mount -t cgroup2 none /sys/fs/cgroup, or boot with systemd, which does it",
            );
        }
    };
    if missing.is_empty() {
        return Finding::ok("cgroups", format!("{mode}, with {}", wanted.join(" ")));
    }
    Finding::warning(
        "cgroups",
        format!("{mode}, without {}: such limits are refused", missing.join(", ")),
        "boot with the kernel parameters cgroup_enable=memory swapaccount=1, or enable them in cgroup.subtree_control",
    )
}

/// How the cgroups of this machine are mounted; `None` where they are not.
fn mode(found: &Hierarchies) -> Option<&'static str> {
    let v1 =
        ["cpu", "memory", "pids", "devices", "freezer"].iter().any(|controller| found.is_first_version(controller));
    match (found.unified().is_some(), v1) {
        (true, false) => Some("v2"),
        (true, true) => Some("v1 and v2 (hybrid)"),
        (false, true) => Some("v1"),
        (false, false) => None,
    }
}

/// How the cgroups of this machine are mounted: `v1`, `v2` or `v1 and v2 (hybrid)`.
pub fn cgroup_mode() -> Option<&'static str> {
    mode(&Hierarchies::detect().ok()?)
}

fn limits() -> Finding {
    let most = rustix::process::getrlimit(rustix::process::Resource::Nofile).current.unwrap_or(u64::MAX);
    if most >= 1024 {
        return Finding::ok("open files", format!("at most {most}"));
    }
    Finding::warning("open files", format!("at most {most}: many containers need more"), "raise it: ulimit -n 65536")
}

fn watches() -> Finding {
    let text = fs::read_to_string("/proc/sys/fs/inotify/max_user_instances").unwrap_or_default();
    match text.trim().parse::<u64>() {
        Ok(most) if most < 128 => Finding::warning(
            "inotify",
            format!("at most {most} instances: monitors of more containers do not notice that their directory is gone"),
            "sysctl -w fs.inotify.max_user_instances=1024",
        ),
        Ok(most) => Finding::ok("inotify", format!("at most {most} instances")),
        Err(_) => Finding::warning("inotify", "the kernel has none", "use a kernel built with CONFIG_INOTIFY_USER"),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn releases() {
        assert_eq!(parsed("6.1.0-13-amd64"), Some((6, 1)));
        assert_eq!(parsed("5.14"), Some((5, 14)));
        assert_eq!(parsed("odd"), None);
        assert!(parsed("5.4.0-generic") < Some(LEAST) && parsed("10.0") > Some(LEAST));
    }
}
