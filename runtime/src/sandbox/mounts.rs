//! Mounting by descriptor: a mount is made detached, completed, and only then moved onto a target that was opened before.

use std::ffi::CString;
use std::io;
use std::os::fd::{AsFd, BorrowedFd, OwnedFd};
use std::path::Path;

use rustix::fs::{AtFlags, CWD, Mode, OFlags, ResolveFlags, openat2};
use rustix::io::Errno;
use rustix::mount::{
    FsMountFlags, FsOpenFlags, MountAttrFlags, MoveMountFlags, OpenTreeFlags, fsconfig_create, fsconfig_set_flag,
    fsconfig_set_string, fsmount, fsopen, move_mount, open_tree,
};

use super::sys;
use crate::error::{Doing, Failure};

/// OCI mount options, sorted by what is done with them.
#[derive(Debug, Default, Clone, PartialEq, Eq)]
pub(super) struct Options {
    pub(super) set: u64,
    pub(super) clear: u64,
    pub(super) bind: Option<BindDepth>,
    /// Mounts below a bind keep their attributes.
    pub(super) shallow: bool,
    pub(super) propagation: u64,
    /// Shown with the ids of the sandbox's user namespace.
    pub(super) map_ids: bool,
    /// For the file system itself: `size=1m`, `mode=755`.
    pub(super) parameters: Vec<(String, Option<String>)>,
    /// What the mount table calls it; its kind where nothing is given.
    pub(super) source: Option<String>,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum BindDepth {
    Single,
    Recursive,
}

/// The option of a recursive bind whose other options are not for the mounts below it. No specification has a word for it:
/// there `ro` is so, and `rro` is what `ro` is here.
pub const WRITABLE_BELOW: &str = "writable-below";

impl Options {
    pub(super) fn parse(options: &[String]) -> Result<Self, Failure> {
        const ATIME: u64 = libc::MOUNT_ATTR__ATIME;
        let mut parsed = Options { propagation: libc::MS_PRIVATE, ..Options::default() };
        for option in options {
            let (set, clear) = match option.as_str() {
                "defaults" | "async" | "loud" | "nomand" | "norelatime" | "iversion" | "noiversion" => continue,
                "ro" | "rro" => (libc::MOUNT_ATTR_RDONLY, 0),
                "rw" | "rrw" => (0, libc::MOUNT_ATTR_RDONLY),
                "nosuid" => (libc::MOUNT_ATTR_NOSUID, 0),
                "suid" => (0, libc::MOUNT_ATTR_NOSUID),
                "nodev" => (libc::MOUNT_ATTR_NODEV, 0),
                "dev" => (0, libc::MOUNT_ATTR_NODEV),
                "noexec" => (libc::MOUNT_ATTR_NOEXEC, 0),
                "exec" => (0, libc::MOUNT_ATTR_NOEXEC),
                "nodiratime" => (libc::MOUNT_ATTR_NODIRATIME, 0),
                "diratime" => (0, libc::MOUNT_ATTR_NODIRATIME),
                "relatime" | "atime" | "nostrictatime" => (libc::MOUNT_ATTR_RELATIME, ATIME),
                "noatime" => (libc::MOUNT_ATTR_NOATIME, ATIME),
                "strictatime" => (libc::MOUNT_ATTR_STRICTATIME, ATIME),
                "nosymfollow" => (libc::MOUNT_ATTR_NOSYMFOLLOW, 0),
                "bind" => {
                    parsed.bind = parsed.bind.or(Some(BindDepth::Single));
                    continue;
                }
                WRITABLE_BELOW => {
                    parsed.shallow = true;
                    continue;
                }
                "rbind" => {
                    parsed.bind = Some(BindDepth::Recursive);
                    continue;
                }
                "private" | "rprivate" => {
                    parsed.propagation = libc::MS_PRIVATE;
                    continue;
                }
                "slave" | "rslave" => {
                    parsed.propagation = libc::MS_SLAVE;
                    continue;
                }
                "shared" | "rshared" => {
                    parsed.propagation = libc::MS_SHARED;
                    continue;
                }
                // All of a bind is mapped or nothing.
                "idmap" | "ridmap" => {
                    parsed.map_ids = true;
                    continue;
                }
                "sync" | "dirsync" | "mand" | "tmpcopyup" | "copy-up" | "unbindable" | "runbindable" => {
                    return Err(Failure::Unsupported(format!("the mount option {option}")));
                }
                other => {
                    let (key, value) = match other.split_once('=') {
                        Some((key, value)) => (key, Some(value.to_owned())),
                        None => (other, None),
                    };
                    parsed.parameters.push((key.to_owned(), value));
                    continue;
                }
            };
            parsed.clear = (parsed.clear & !set) | clear;
            parsed.set = (parsed.set & !clear) | set;
        }
        Ok(parsed)
    }

    fn flags(&self) -> MountAttrFlags {
        MountAttrFlags::from_bits_retain(self.set as u32)
    }
}

/// A new file system, mounted nowhere yet.
pub(super) fn make(kind: &str, options: &Options) -> Result<OwnedFd, Failure> {
    let context = fsopen(kind, FsOpenFlags::FSOPEN_CLOEXEC).doing(|| format!("open the file system {kind}"))?;
    let source = options.source.as_deref().unwrap_or(kind);
    fsconfig_set_string(&context, "source", source).doing(|| format!("name a {kind} mount"))?;
    for (key, value) in &options.parameters {
        match value {
            Some(value) => fsconfig_set_string(&context, key.as_str(), value.as_str()),
            None => fsconfig_set_flag(&context, key.as_str()),
        }
        .map_err(|error| explain(&context, error))
        .doing(|| format!("set {key} of a {kind} mount"))?;
    }
    finish(kind, &context, options)
}

/// Completes a configured context.
pub(super) fn finish(kind: &str, context: &OwnedFd, options: &Options) -> Result<OwnedFd, Failure> {
    fsconfig_create(context).map_err(|error| explain(context, error)).doing(|| format!("make a {kind} file system"))?;
    fsmount(context, FsMountFlags::FSMOUNT_CLOEXEC, options.flags()).doing(|| format!("make a {kind} mount"))
}

/// Adds what the kernel wrote about it to the debug log; the errno stays the error.
fn explain(context: &OwnedFd, error: Errno) -> io::Error {
    let mut text = [0; 512];
    while let Ok(length) = rustix::io::read(context, &mut text[..]) {
        tracing::debug!("the kernel says: {}", String::from_utf8_lossy(&text[..length]).trim());
    }
    error.into()
}

/// A detached copy of the mount tree at `path`.
pub(super) fn clone_path(path: &Path, depth: BindDepth) -> rustix::io::Result<OwnedFd> {
    open_tree(CWD, path, clone_flags(depth))
}

/// The same for an open descriptor.
pub(super) fn clone_fd(fd: impl AsFd, depth: BindDepth) -> rustix::io::Result<OwnedFd> {
    open_tree(fd.as_fd(), c"", clone_flags(depth) | OpenTreeFlags::AT_EMPTY_PATH)
}

fn clone_flags(depth: BindDepth) -> OpenTreeFlags {
    let flags = OpenTreeFlags::OPEN_TREE_CLONE | OpenTreeFlags::OPEN_TREE_CLOEXEC;
    match depth {
        BindDepth::Single => flags,
        BindDepth::Recursive => flags | OpenTreeFlags::AT_RECURSIVE,
    }
}

/// Sets the attributes of a detached bind; below it too when it is recursive.
pub(super) fn configure_bind(tree: &OwnedFd, options: &Options) -> io::Result<()> {
    let recursive = options.bind == Some(BindDepth::Recursive);
    if recursive && options.shallow {
        sys::mount_setattr(tree.as_fd(), true, 0, 0, options.propagation)?;
        return sys::mount_setattr(tree.as_fd(), false, options.set, options.clear, 0);
    }
    sys::mount_setattr(tree.as_fd(), recursive, options.set, options.clear, options.propagation)
}

/// Moves a detached mount onto `target`, whatever has become of the target's path.
pub(super) fn attach(tree: &OwnedFd, target: BorrowedFd<'_>) -> rustix::io::Result<()> {
    let both = MoveMountFlags::MOVE_MOUNT_F_EMPTY_PATH | MoveMountFlags::MOVE_MOUNT_T_EMPTY_PATH;
    move_mount(tree, c"", target, c"", both)
}

/// Opens a path of the image beneath its root as `O_PATH`; `extra` narrows the walk.
pub(super) fn walk(root: BorrowedFd<'_>, path: &Path, extra: ResolveFlags) -> rustix::io::Result<OwnedFd> {
    open_in(root, path, OFlags::PATH, extra)
}

/// Opens a path of the image beneath its root. A rename anywhere on the machine during a `..` gives EAGAIN: tried again.
pub(super) fn open_in(
    root: BorrowedFd<'_>,
    path: &Path,
    flags: OFlags,
    extra: ResolveFlags,
) -> rustix::io::Result<OwnedFd> {
    let resolve = ResolveFlags::IN_ROOT | ResolveFlags::NO_MAGICLINKS | extra;
    let path = CString::new(path.as_os_str().as_encoded_bytes()).map_err(|_| Errno::INVAL)?;
    let mut tries = 0;
    loop {
        match openat2(root, &path, flags | OFlags::CLOEXEC, Mode::empty(), resolve) {
            Err(Errno::AGAIN) if tries < 1000 => tries += 1,
            other => return other,
        }
    }
}

/// Whether the descriptor's file system is of this kind (`libc::PROC_SUPER_MAGIC` and the like).
pub(super) fn is_filesystem(fd: impl AsFd, magic: i64) -> bool {
    rustix::fs::fstatfs(fd).is_ok_and(|stat| stat.f_type == magic)
}

/// What an `O_PATH` descriptor stands for.
pub(super) fn kind(fd: impl AsFd) -> rustix::io::Result<rustix::fs::FileType> {
    let stat = rustix::fs::statat(fd.as_fd(), c"", AtFlags::EMPTY_PATH)?;
    Ok(rustix::fs::FileType::from_raw_mode(stat.st_mode))
}

#[cfg(test)]
mod tests {
    use super::*;

    fn parse(options: &[&str]) -> Options {
        Options::parse(&options.iter().map(|&option| option.to_owned()).collect::<Vec<_>>()).unwrap()
    }

    #[test]
    fn options_sort_into_attributes_and_parameters() {
        let options = parse(&["nosuid", "ro", "size=64m", "rw", "noatime", "mode=1777"]);
        assert_eq!(options.set, libc::MOUNT_ATTR_NOSUID | libc::MOUNT_ATTR_NOATIME);
        assert_eq!(options.clear & libc::MOUNT_ATTR_RDONLY, libc::MOUNT_ATTR_RDONLY);
        assert_eq!(options.parameters.len(), 2);
        assert_eq!(parse(&["rbind", "bind"]).bind, Some(BindDepth::Recursive));
        assert_eq!(parse(&["rslave"]).propagation, libc::MS_SLAVE);
    }

    #[test]
    fn what_is_not_done_is_refused() {
        let refused = Options::parse(&["dirsync".to_owned()]);
        assert!(matches!(refused, Err(Failure::Unsupported(what)) if what.contains("dirsync")));
    }
}
