//! Linux security modules: whether the machine has AppArmor or SELinux, and telling the kernel under which of their
//! labels the next program runs.
//!
//! The label is written through a procfs of our own, so that nothing an image puts at `/proc` can swallow it
//! (CVE-2019-16884, CVE-2025-52881), and a label that the kernel does not take is an error and never a shrug.

use std::fs;
use std::io;
use std::os::fd::{AsRawFd, OwnedFd};
use std::path::Path;

use oci_spec::runtime::Process;
use rustix::fs::{AtFlags, Dir, FileType, Mode, OFlags, XattrFlags, openat, statat};
use rustix::io::Errno;

use super::process::write_beneath;
use crate::error::{Failure, Result};

/// Whether the kernel runs AppArmor.
pub fn has_apparmor() -> bool {
    fs::read_to_string("/sys/module/apparmor/parameters/enabled").is_ok_and(|word| word.trim() == "Y")
}

/// Whether the kernel runs SELinux with a policy.
pub fn has_selinux() -> bool {
    Path::new("/sys/fs/selinux/enforce").exists()
}

/// The labels that the machine's SELinux policy has for containers.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Contexts {
    pub process: String,
    pub file: String,
}

/// What `lxc_contexts` of the policy in use says; empty where there is none.
pub fn container_contexts() -> Contexts {
    let config = fs::read_to_string("/etc/selinux/config").unwrap_or_default();
    let policy = value(&config, "SELINUXTYPE").unwrap_or("targeted");
    let text = fs::read_to_string(format!("/etc/selinux/{policy}/contexts/lxc_contexts")).unwrap_or_default();
    let of = |name| value(&text, name).unwrap_or_default().to_owned();
    Contexts { process: of("process"), file: of("file") }
}

/// The value of a line `name = "value"`.
fn value<'a>(text: &'a str, name: &str) -> Option<&'a str> {
    let line = |line: &'a str| line.trim().strip_prefix(name)?.trim_start().strip_prefix('=');
    text.lines().find_map(line).map(|value| value.trim().trim_matches('"'))
}

/// Gives a file, or a directory and all in it, an SELinux label. Links are labelled and not followed.
///
/// # Errors
/// A file that is gone meanwhile is none; that the kernel takes no label is.
pub fn relabel(path: &Path, label: &str) -> io::Result<()> {
    // The kernel's own form ends in a zero.
    let value = [label.as_bytes(), b"\0"].concat();
    let flags = OFlags::PATH | OFlags::NOFOLLOW | OFlags::CLOEXEC;
    let mut open = vec![rustix::fs::open(path, OFlags::PATH | OFlags::CLOEXEC, Mode::empty())?];
    while let Some(fd) = open.pop() {
        let here = format!("/proc/self/fd/{}", fd.as_raw_fd());
        let kind = FileType::from_raw_mode(statat(&fd, c"", AtFlags::EMPTY_PATH)?.st_mode);
        if kind == FileType::Symlink {
            continue;
        }
        rustix::fs::setxattr(here.as_str(), c"security.selinux", &value, XattrFlags::empty())?;
        if kind != FileType::Directory {
            continue;
        }
        let directory = openat(&fd, c".", OFlags::RDONLY | OFlags::DIRECTORY | OFlags::CLOEXEC, Mode::empty())?;
        for entry in Dir::read_from(&directory)? {
            let entry = entry?;
            if matches!(entry.file_name().to_bytes(), b"." | b"..") {
                continue;
            }
            match openat(&directory, entry.file_name(), flags, Mode::empty()) {
                Ok(below) => open.push(below),
                Err(Errno::NOENT) => {}
                Err(error) => return Err(error.into()),
            }
        }
    }
    Ok(())
}

pub(super) fn check(process: &Process) -> Result<()> {
    use crate::error::Error;
    if let Some(name) = apparmor(process)
        && name != "unconfined"
        && !has_apparmor()
    {
        return Err(Error::Unsupported(format!("the AppArmor profile {name} on a machine without AppArmor")));
    }
    if let Some(label) = selinux(process)
        && !has_selinux()
    {
        return Err(Error::Unsupported(format!("the SELinux label {label} on a machine without SELinux")));
    }
    Ok(())
}

/// Whether anything has to be said to the kernel.
pub(super) fn wants_label(process: &Process) -> bool {
    apparmor(process).is_some() || selinux(process).is_some()
}

/// Asks for the process's labels at its next `execve`. `proc` is a procfs of its pid namespace.
pub(super) fn label_next_program(process: &Process, proc: &OwnedFd) -> Result<(), Failure> {
    if let Some(name) = apparmor(process).filter(|_| has_apparmor()) {
        let word = format!("exec {name}");
        // The module's own directory came with Linux 5.1.
        write_beneath(proc, "self/attr/apparmor/exec", &word)
            .or_else(|failure| match failure {
                Failure::System { errno: libc::ENOENT, .. } => write_beneath(proc, "self/attr/exec", &word),
                other => Err(other),
            })
            .map_err(|failure| match failure {
                Failure::System { errno, .. } => {
                    Failure::System { action: format!("apply the AppArmor profile {name}"), errno }
                }
                other => other,
            })?;
    }
    if let Some(label) = selinux(process) {
        write_beneath(proc, "self/attr/exec", label).map_err(|failure| match failure {
            Failure::System { errno, .. } => {
                Failure::System { action: format!("apply the SELinux label {label}"), errno }
            }
            other => other,
        })?;
    }
    Ok(())
}

fn apparmor(process: &Process) -> Option<&str> {
    process.apparmor_profile().as_deref().filter(|name| !name.is_empty())
}

fn selinux(process: &Process) -> Option<&str> {
    process.selinux_label().as_deref().filter(|label| !label.is_empty())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_tree_is_labelled_and_links_are_not_followed() {
        let (dir, other) = (tempfile::tempdir().unwrap(), tempfile::tempdir().unwrap());
        fs::create_dir(dir.path().join("sub")).unwrap();
        fs::write(dir.path().join("sub/file"), "").unwrap();
        fs::write(other.path().join("kept"), "").unwrap();
        std::os::unix::fs::symlink(other.path(), dir.path().join("link")).unwrap();
        let label = "system_u:object_r:container_file_t:s0";
        relabel(dir.path(), label).unwrap();
        let of = |path: &Path| {
            let mut value = vec![0; 256];
            rustix::fs::getxattr(path, c"security.selinux", &mut value[..]).map(|length| value[..length].to_vec())
        };
        for path in ["", "sub", "sub/file"] {
            assert_eq!(of(&dir.path().join(path)).unwrap(), [label.as_bytes(), b"\0"].concat(), "{path:?}");
        }
        for path in [other.path().to_owned(), other.path().join("kept")] {
            assert_ne!(of(&path).unwrap_or_default(), [label.as_bytes(), b"\0"].concat(), "{}", path.display());
        }
        assert!(relabel(Path::new("/no/such/place"), label).is_err());
    }

    #[test]
    fn contexts_are_read_as_they_are_written() {
        let text = "# comment\nprocess = \"system_u:system_r:container_t:s0\"\nfile=\"a:b:c:s0\"\nro_file = \"x\"\n";
        assert_eq!(value(text, "process"), Some("system_u:system_r:container_t:s0"));
        assert_eq!(value(text, "file"), Some("a:b:c:s0"));
        assert_eq!(value(text, "content"), None);
    }
}
