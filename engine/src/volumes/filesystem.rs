//! File systems that are volumes: memory, disks, shares of other machines, whatever mount(2) knows.
//!
//! As with docker such a file system is mounted on the host, onto the volume's own directory, when the first container
//! that has it starts, and goes with the last: so containers that run at the same time share one, memory too. Who has
//! it is a file in `users`, named as the container. It counts while the container's lock is held, so what a killed
//! monitor left behind holds nobody up. All of it is done under the lock of the volume's options, which every such volume has.
//!
//! Who only wants to read or write for a moment ([`open`]) gets it by descriptor, and leaves nothing mounted.

use std::collections::BTreeMap;
use std::ffi::CString;
use std::fs::{self, File};
use std::io;
use std::net::{IpAddr, ToSocketAddrs};
use std::path::{Path, PathBuf};

use rbuild_runtime::container::is_locked;
use rbuild_store::Root;
use rbuild_store::lock::{Lock, lock};
use rustix::fs::{AtFlags, CWD, StatxAttributes, StatxFlags, statx};
use rustix::mount::{MountFlags, MountPropagationFlags, UnmountFlags, mount, mount_change, mount_remount, unmount};

use super::driver;
use crate::error::Error;

/// A file system as the options of a volume have it.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct Filesystem {
    kind: String,
    device: String,
    flags: MountFlags,
    propagation: Option<MountPropagationFlags>,
    /// What the file system itself is told.
    data: Vec<String>,
}

impl Filesystem {
    pub(super) fn new(options: &BTreeMap<String, String>) -> Filesystem {
        let text = |key: &str| options.get(key).cloned().unwrap_or_default();
        let mut all = Filesystem {
            kind: text("type"),
            device: text("device"),
            flags: MountFlags::empty(),
            propagation: None,
            data: Vec::new(),
        };
        for option in driver::split(options) {
            all.take(option);
        }
        all
    }

    fn take(&mut self, option: &str) {
        let (on, flags) = match option {
            "defaults" => return,
            "ro" => (true, MountFlags::RDONLY),
            "rw" => (false, MountFlags::RDONLY),
            "nosuid" => (true, MountFlags::NOSUID),
            "suid" => (false, MountFlags::NOSUID),
            "nodev" => (true, MountFlags::NODEV),
            "dev" => (false, MountFlags::NODEV),
            "noexec" => (true, MountFlags::NOEXEC),
            "exec" => (false, MountFlags::NOEXEC),
            "sync" => (true, MountFlags::SYNCHRONOUS),
            "async" => (false, MountFlags::SYNCHRONOUS),
            "dirsync" => (true, MountFlags::DIRSYNC),
            "noatime" => (true, MountFlags::NOATIME),
            "atime" => (false, MountFlags::NOATIME),
            "nodiratime" => (true, MountFlags::NODIRATIME),
            "diratime" => (false, MountFlags::NODIRATIME),
            "relatime" => (true, MountFlags::RELATIME),
            "norelatime" => (false, MountFlags::RELATIME),
            "strictatime" => (true, MountFlags::STRICTATIME),
            "nostrictatime" => (false, MountFlags::STRICTATIME),
            "bind" => (true, MountFlags::BIND),
            "rbind" => (true, MountFlags::BIND | MountFlags::REC),
            "private" | "rprivate" => {
                return self.propagation = Some(propagation(option, MountPropagationFlags::PRIVATE));
            }
            "shared" | "rshared" => return self.propagation = Some(propagation(option, MountPropagationFlags::SHARED)),
            "slave" | "rslave" => {
                return self.propagation = Some(propagation(option, MountPropagationFlags::DOWNSTREAM));
            }
            "unbindable" | "runbindable" => {
                return self.propagation = Some(propagation(option, MountPropagationFlags::UNBINDABLE));
            }
            other => return self.data.push(other.to_owned()),
        };
        self.flags.set(flags, on);
    }

    /// The device and the data with addresses in place of names, which the kernel does not know: those of nfs in the
    /// option `addr`, that of cifs in the device. As docker resolves them.
    fn resolved(&self) -> Result<(String, String), String> {
        let (mut device, mut data) = (self.device.clone(), self.data.clone());
        match self.kind.as_str() {
            "nfs" | "nfs4" => {
                for option in &mut data {
                    if let Some(name) = option.strip_prefix("addr=").filter(|name| !name.is_empty()) {
                        *option = format!("addr={}", address(name)?);
                    }
                }
            }
            "cifs" => {
                if let Some((host, share)) = device.strip_prefix("//").and_then(|rest| rest.split_once('/')) {
                    device = format!("//{}/{share}", address(host)?);
                }
            }
            _ => {}
        }
        Ok((device, data.join(",")))
    }

    fn mount(&self, target: &Path) -> Result<(), Error> {
        let failed = |why: String| {
            let message =
                format!("error while mounting volume '{}': failed to mount local volume: {why}", target.display());
            Error::invalid(self.without_password(message))
        };
        let (device, data) = self.resolved().map_err(failed)?;
        let text = CString::new(data.as_str()).map_err(|_| failed("a NUL byte in the options".to_owned()))?;
        let told = |error: rustix::io::Errno| {
            let flags =
                if self.flags.is_empty() { String::new() } else { format!(", flags: {:#x}", self.flags.bits()) };
            let data = if data.is_empty() { String::new() } else { format!(", data: {data}") };
            let why = io::Error::from(error).to_string();
            let why = why.split(" (os error").next().unwrap_or_default().to_lowercase();
            failed(format!("mount {device}:{}{flags}{data}: {why}", target.display()))
        };
        mount(device.as_str(), target, self.kind.as_str(), self.flags, text.as_c_str()).map_err(told)?;
        let finished = self.finish(target);
        if finished.is_err() {
            let _ = unmount(target, UnmountFlags::DETACH);
        }
        finished.map_err(told)
    }

    /// What cannot be said with the first call.
    fn finish(&self, target: &Path) -> rustix::io::Result<()> {
        // A volume is nobody else's, unless its options say so: not the peer of what the store lies on.
        mount_change(target, self.propagation.unwrap_or(MountPropagationFlags::PRIVATE))?;
        // A bind takes its flags the second time only.
        if self.flags.contains(MountFlags::BIND) && self.flags.intersects(!(MountFlags::BIND | MountFlags::REC)) {
            mount_remount(target, self.flags, c"")?;
        }
        Ok(())
    }

    fn without_password(&self, message: String) -> String {
        let words = self.data.iter().filter_map(|option| option.strip_prefix("password="));
        words
            .filter(|word| !word.is_empty())
            .fold(message, |text, word| text.replace(&format!("password={word}"), "password=********"))
    }
}

fn propagation(option: &str, flags: MountPropagationFlags) -> MountPropagationFlags {
    if option.starts_with('r') { flags | MountPropagationFlags::REC } else { flags }
}

fn address(name: &str) -> Result<IpAddr, String> {
    if let Ok(address) = name.parse() {
        return Ok(address);
    }
    let found = (name, 0).to_socket_addrs().ok().and_then(|mut all| all.next());
    found
        .map(|found| found.ip())
        .ok_or_else(|| format!("error resolving passed in network volume address: lookup {name}: no such host"))
}

/// Where a container finds the volume's files, mounted there for it. [`release`] is called at its end.
pub(super) fn hold(store: &Path, name: &str, user: &str, filesystem: &Filesystem) -> Result<PathBuf, Error> {
    let place = Place::of(store, name);
    let _guard = place.lock().map_err(|e| place.failed(&e))?;
    fs::create_dir_all(&place.users)
        .and_then(|()| fs::write(place.users.join(user), ""))
        .map_err(|e| place.failed(&e))?;
    if !is_mounted(&place.files) {
        filesystem.mount(&place.files).inspect_err(|_| {
            let _ = fs::remove_file(place.users.join(user));
        })?;
    }
    Ok(place.files)
}

/// The volume's files for somebody who is no container, and has no more than the descriptor.
pub(super) fn open(store: &Path, name: &str, filesystem: &Filesystem) -> Result<Root, Error> {
    let place = Place::of(store, name);
    let _guard = place.lock().map_err(|e| place.failed(&e))?;
    let mounted = is_mounted(&place.files);
    if !mounted {
        filesystem.mount(&place.files)?;
    }
    let root = Root::open(&place.files);
    if !mounted {
        unmount(&place.files, UnmountFlags::DETACH).map_err(|e| place.failed(&e.into()))?;
    }
    root.map_err(|e| place.failed(&e))
}

/// Ends a container's use of a volume, and with the last one's its mount. Quiet for who does not use it, and for what
/// cannot be: then the mount is met again when the volume is removed.
pub(crate) fn release(store: &Path, name: &str, user: &str) {
    let place = Place::of(store, name);
    if !place.users.join(user).exists() {
        return;
    }
    let Ok(_guard) = place.lock() else { return };
    let _ = fs::remove_file(place.users.join(user));
    let users = fs::read_dir(&place.users).into_iter().flatten().flatten();
    let mut left = 0;
    for other in users {
        if is_locked(&store.join("containers").join(other.file_name())) {
            left += 1;
        } else {
            let _ = fs::remove_file(other.path());
        }
    }
    if left == 0
        && let Err(error) = clear(&place.files)
    {
        tracing::warn!(%error, volume = name, "the file system of a volume stays mounted");
    }
}

/// Takes away what is mounted on the directory of a volume that is to be removed: nothing of it is the volume's own.
pub(super) fn clear(files: &Path) -> io::Result<()> {
    // Somebody else may have mounted something over it.
    while is_mounted(files) {
        unmount(files, UnmountFlags::DETACH)?;
    }
    Ok(())
}

/// The paths of a volume.
struct Place {
    options: PathBuf,
    users: PathBuf,
    files: PathBuf,
}

impl Place {
    fn of(store: &Path, name: &str) -> Place {
        let own = store.join("volumes").join(name);
        Place { options: own.join(driver::FILE), users: own.join("users"), files: super::path(store, name) }
    }

    fn lock(&self) -> io::Result<File> {
        let file = File::open(&self.options)?;
        lock(&file, Lock::Alone).map_err(io::Error::other)?;
        Ok(file)
    }

    fn failed(&self, error: &io::Error) -> Error {
        Error::internal(format!("error while mounting volume '{}': {error}", self.files.display()))
    }
}

fn is_mounted(path: &Path) -> bool {
    // Without asking a server that may be gone.
    let flags = AtFlags::SYMLINK_NOFOLLOW | AtFlags::STATX_DONT_SYNC;
    statx(CWD, path, flags, StatxFlags::empty())
        .is_ok_and(|stat| stat.stx_attributes.contains(StatxAttributes::MOUNT_ROOT))
}

#[cfg(test)]
mod tests {
    use super::*;

    fn of(kind: &str, device: &str, o: &str) -> Filesystem {
        let pairs = [("type", kind), ("device", device), ("o", o)];
        Filesystem::new(&pairs.iter().map(|(key, value)| ((*key).to_owned(), (*value).to_owned())).collect())
    }

    #[test]
    fn options_are_flags_and_data() {
        let found = of("ext4", "/dev/x", "ro,noexec,exec,nosuid,data=journal,rslave,discard");
        assert_eq!(found.flags, MountFlags::RDONLY | MountFlags::NOSUID);
        assert_eq!(found.data, ["data=journal", "discard"]);
        assert_eq!(found.propagation, Some(MountPropagationFlags::DOWNSTREAM | MountPropagationFlags::REC));
    }

    #[test]
    fn names_of_servers_become_addresses() {
        for (kind, device, o, want) in [
            ("nfs", ":/x", "addr=10.0.0.1,rw,soft", Ok((":/x", "addr=10.0.0.1,soft"))),
            ("nfs4", ":/x", "addr=::1", Ok((":/x", "addr=::1"))),
            ("cifs", "//127.0.0.1/share/a", "username=u", Ok(("//127.0.0.1/share/a", "username=u"))),
            ("tmpfs", "tmpfs", "addr=not.resolved", Ok(("tmpfs", "addr=not.resolved"))),
            ("nfs", ":/x", "addr=no such host", Err("lookup no such host: no such host")),
        ] {
            match (of(kind, device, o).resolved(), want) {
                (Ok((device, data)), want) => assert_eq!(Ok((device.as_str(), data.as_str())), want),
                (Err(why), Err(part)) => assert!(why.contains(part), "{why}"),
                (Err(why), Ok(_)) => panic!("{kind} {device} {o}: {why}"),
            }
        }
    }

    #[test]
    fn passwords_are_not_told() {
        let told = of("cifs", "//h/s", "username=u,password=secret").without_password("data: password=secret,x".into());
        assert_eq!(told, "data: password=********,x");
    }
}
