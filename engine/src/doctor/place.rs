//! The state directory: its file system, what that can do, and the space on it.

use std::ffi::OsStr;
use std::fs::{self, File};
use std::io;
use std::os::fd::AsFd;
use std::path::{Path, PathBuf};

use rbuild_runtime::mount_detached;
use rbuild_store::Mounts;
use rbuild_store::root::{set_xattr, xattr};
use rustix::fs::{FileType, StatVfsMountFlags, statfs, statvfs};

use super::Finding;

/// Less space, or fewer files to come, is a problem soon.
const LEAST_BYTES: u64 = 1 << 30;
const LEAST_FILES: u64 = 10_000;

pub(super) fn examine(root: &Path) -> Vec<Finding> {
    let Some(there) = root.ancestors().find(|path| path.is_dir()) else { return Vec::new() };
    let mut findings = vec![file_system(root, there), space(there)];
    // What is tried is tried in a directory of its own, which goes again.
    match Scratch::new(there) {
        Ok(scratch) => findings.extend([attributes(&scratch), types(&scratch), overlay(&scratch)]),
        Err(error) => findings.push(Finding::problem(
            "state directory",
            format!("nothing can be written to {}: {error}", there.display()),
            "name a place that can be written to with --root or RBUILD_ROOT",
        )),
    }
    findings
}

struct Scratch(PathBuf);

impl Scratch {
    fn new(parent: &Path) -> io::Result<Self> {
        let path = parent.join(format!(".doctor-{}", std::process::id()));
        fs::create_dir(&path)?;
        Ok(Self(path))
    }
}

impl Drop for Scratch {
    fn drop(&mut self) {
        if let Err(error) = fs::remove_dir_all(&self.0) {
            tracing::debug!(%error, "a directory of an examination stays");
        }
    }
}

/// File systems by the number `statfs` gives.
const KNOWN: [(u32, &str); 12] = [
    (0xef53, "ext4"),
    (0x5846_5342, "xfs"),
    (0x9123_683e, "btrfs"),
    (0x0102_1994, "tmpfs"),
    (0x794c_7630, "overlay"),
    (0x2fc1_2fc1, "zfs"),
    (0xf2f5_2010, "f2fs"),
    (0xca45_1a4e, "bcachefs"),
    (0x6969, "nfs"),
    (0x0187, "autofs"),
    (0x6573_5546, "fuse"),
    (0x0102_1997, "9p"),
];

/// The name of the file system a directory is on.
pub fn file_system_of(path: &Path) -> String {
    let Ok(found) = statfs(path) else { return "unknown".to_owned() };
    #[allow(clippy::cast_possible_truncation, clippy::cast_sign_loss, reason = "the kernel's number has 32 bits")]
    let number = found.f_type as u32;
    KNOWN.iter().find(|known| known.0 == number).map_or_else(|| format!("{number:#x}"), |known| known.1.to_owned())
}

fn file_system(root: &Path, there: &Path) -> Finding {
    let kind = file_system_of(there);
    let says = format!("{} on {kind}", root.display());
    let read_only = statvfs(there).is_ok_and(|found| found.f_flag.contains(StatVfsMountFlags::RDONLY));
    let no_devices = statvfs(there).is_ok_and(|found| found.f_flag.contains(StatVfsMountFlags::NODEV));
    match kind.as_str() {
        _ if read_only => Finding::problem(
            "state directory",
            format!("{says}, read-only"),
            "name another one with --root or RBUILD_ROOT",
        ),
        "nfs" | "fuse" | "9p" | "autofs" => Finding::warning(
            "state directory",
            format!("{says}: locks and attributes may not work there"),
            "name a local one with --root or RBUILD_ROOT",
        ),
        "tmpfs" => Finding::warning(
            "state directory",
            format!("{says}: it is gone with the next start of the machine"),
            "name one on a disk with --root or RBUILD_ROOT",
        ),
        _ if no_devices => Finding::warning(
            "state directory",
            format!("{says}, mounted nodev: devices in images do not work"),
            "mount it without nodev",
        ),
        _ => Finding::ok("state directory", says),
    }
}

fn space(there: &Path) -> Finding {
    let Ok(found) = statvfs(there) else {
        return Finding::warning("disk space", "not known", "look at it with df");
    };
    let free = found.f_bavail * found.f_frsize;
    let gigabytes = |bytes: u64| format!("{:.1}GB", bytes as f64 / 1e9);
    let says = format!("{} free of {}", gigabytes(free), gigabytes(found.f_blocks * found.f_frsize));
    let advice = "remove what is not needed: rbuild system prune";
    if free < LEAST_BYTES {
        return Finding::problem("disk space", says, advice);
    }
    // Some file systems make room for files as they come, and say so with no number at all.
    if found.f_files > 0 && found.f_favail < LEAST_FILES {
        return Finding::problem("disk space", format!("{says}, but room for {} files only", found.f_favail), advice);
    }
    Finding::ok("disk space", says)
}

fn attributes(scratch: &Scratch) -> Finding {
    let file = scratch.0.join("attributes");
    let (name, value) = (OsStr::new("user.rbuild"), &b"1"[..]);
    let tried = File::create(&file).and_then(|file| {
        set_xattr(file.as_fd(), name, value)?;
        xattr(file.as_fd(), name)
    });
    match tried {
        Ok(Some(found)) if found == value => Finding::ok("extended attributes", "kept"),
        Ok(_) => Finding::problem("extended attributes", "not kept", "use ext4, xfs or btrfs"),
        Err(error) => Finding::warning(
            "extended attributes",
            format!("not kept ({error}): those of images are lost"),
            "mount the file system with user_xattr, or use ext4, xfs or btrfs",
        ),
    }
}

/// Whether a directory says what its entries are, which overlays need.
fn types(scratch: &Scratch) -> Finding {
    let listed = rustix::fs::openat(rustix::fs::CWD, &scratch.0, rustix::fs::OFlags::RDONLY, rustix::fs::Mode::empty());
    let known = listed.and_then(|fd| {
        let mut all = rustix::fs::Dir::new(fd)?;
        Ok(all.all(|entry| entry.is_ok_and(|entry| entry.file_type() != FileType::Unknown)))
    });
    match known {
        Ok(true) => Finding::ok("d_type", "directories tell what is in them"),
        _ => Finding::problem(
            "d_type",
            "directories do not tell what is in them",
            "on xfs make it anew with mkfs.xfs -n ftype=1",
        ),
    }
}

fn overlay(scratch: &Scratch) -> Finding {
    let directories = ["lower", "upper", "work"].map(|name| scratch.0.join(name));
    let tried = directories.iter().try_for_each(fs::create_dir).map_err(|e| e.to_string()).and_then(|()| {
        let [lower, upper, work] = &directories;
        let mounts =
            Mounts::Overlay { lowers: vec![lower.clone()], upper: Some(upper.clone()), work: Some(work.clone()) };
        mount_detached(&mounts).map(drop).map_err(|e| e.to_string())
    });
    match tried {
        Ok(()) => Finding::ok("overlay", "mounts on the state directory"),
        Err(error) => Finding::warning(
            "overlay",
            format!("does not mount there ({error}): files are copied instead"),
            "use a state directory on ext4, xfs or btrfs, as root, on a kernel with overlayfs (modprobe overlay)",
        ),
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::doctor::Verdict;

    #[test]
    fn a_place_that_can_be_used_and_one_that_is_not_there_yet() {
        let dir = tempfile::tempdir().expect("tempdir");
        for root in [dir.path().to_owned(), dir.path().join("not/yet")] {
            let findings = examine(&root);
            let of = |name: &str| findings.iter().find(|finding| finding.name == name).map(|finding| finding.verdict);
            assert_eq!(of("d_type"), Some(Verdict::Ok), "{findings:?}");
            assert_ne!(of("state directory"), Some(Verdict::Problem), "{findings:?}");
        }
        assert_eq!(fs::read_dir(dir.path()).expect("read").count(), 0, "nothing of it stays");
    }
}
