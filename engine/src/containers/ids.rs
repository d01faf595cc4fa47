//! The users of a container: those of the machine, or its own in a user namespace.
//!
//! Which users of the machine a container's are is settled when the container is made, and stands in its row: each start
//! makes a user namespace of the same ids. That row is also what keeps a range of ids from being given out twice; it is
//! searched under a lock, and a range is free again when the row is gone. There is no other list that could disagree.

use std::fs::{self, File, OpenOptions};
use std::os::fd::{AsFd, OwnedFd};
use std::os::unix::fs::OpenOptionsExt;
use std::path::Path;

use oci_spec::runtime::{MountBuilder, Spec};
use rbuild_runtime::ids::{Allowed, IdError, IdMaps, IdRange, allot, consecutive, other_name, subordinate};
use rbuild_runtime::sandbox::{NativeSandbox, SandboxOptions};
use rbuild_runtime::users;
use rbuild_store::root::{Dir, Kind as FileKind};
use rustix::fs::{Mode, OFlags};
use serde::{Deserialize, Serialize};

use super::Containers;
use super::record::{self, Container};
use super::request::{HostSettings, NamespaceMode, NetworkMode};
use crate::error::Error;

/// The user whose subordinate ids are given out in ranges, by its name of old.
const FOR_RANGES: &str = "containers";
/// Ids of a range whose size nobody says: at least, and at most.
const LEAST: u32 = 1024;
const MOST: u32 = 65536;
/// The group of terminals.
const TTY: u32 = 5;

/// Whose users a container has.
#[derive(Debug, Clone, PartialEq, Eq, Default, Serialize, Deserialize)]
pub enum UserNamespace {
    /// The machine's.
    #[default]
    Host,
    /// All ids that `/etc/subuid` gives to the user and `/etc/subgid` to the group, docker's `userns-remap`. Containers of
    /// the same user have the same ids.
    Remap { user: String, group: String },
    /// A range that no other container of this store has, of those that the user `containers` may use. Without a size as
    /// many as the image has users. What is mapped here already is left as it is.
    Auto { size: Option<u32>, users: Vec<IdRange>, groups: Vec<IdRange> },
    /// These.
    Maps(IdMaps),
}

/// Refuses what cannot be shared with the machine by who has other users, in docker's words.
pub(super) fn check(host: &HostSettings) -> Result<(), Error> {
    if host.users == UserNamespace::Host {
        return Ok(());
    }
    if host.privileged {
        return Err(Error::invalid(
            "privileged mode is incompatible with user namespaces.  You must run the container in the host namespace \
             when running privileged mode",
        )
        .with_hint("give --userns=host"));
    }
    if host.network == NetworkMode::Host {
        let message = "cannot share the host's network namespace when user namespaces are enabled";
        return Err(Error::invalid(message).with_hint("give --userns=host"));
    }
    if host.pid == NamespaceMode::Host {
        let message = "cannot share the host PID namespace when user namespaces are enabled";
        return Err(Error::invalid(message).with_hint("give --userns=host"));
    }
    if let Some(runtime) = &host.runtime {
        let message = format!("a user namespace is not supported with the runtime {}", runtime.name);
        return Err(Error::invalid(message).with_hint("give --userns=host"));
    }
    Ok(())
}

/// The containers whose namespaces a container is in.
fn joined(host: &HostSettings) -> Vec<(&'static str, &str)> {
    let network = match &host.network {
        NetworkMode::Container(id) => Some(("network", id.as_str())),
        _ => None,
    };
    let mut all: Vec<(&'static str, &str)> = network.into_iter().collect();
    for (name, mode) in [("PID", &host.pid), ("IPC", &host.ipc)] {
        if let NamespaceMode::Container(id) = mode {
            all.push((name, id));
        }
    }
    all
}

impl Containers {
    /// The lock under which ranges are given out, if one is wanted.
    pub(super) fn allotting(&self, host: &HostSettings) -> Result<Option<File>, Error> {
        if !matches!(host.users, UserNamespace::Auto { .. }) {
            return Ok(None);
        }
        let path = self.store.root().join("ids.lock");
        let file = OpenOptions::new().write(true).create(true).truncate(false).mode(0o600).open(path);
        let file = file.map_err(Error::internal)?;
        rbuild_store::lock::lock(&file, rbuild_store::lock::Lock::Alone)?;
        Ok(Some(file))
    }

    /// Which users of the machine those of a container that is being made are; `None` for the same ones.
    pub(super) fn ids(&self, container: &Container) -> Result<Option<IdMaps>, Error> {
        let host = &container.host;
        if host.users == UserNamespace::Host {
            return Ok(None);
        }
        // A namespace belongs to one user namespace, and only who is in that one has rights in it.
        let mut shared: Option<(&str, IdMaps)> = None;
        for (name, id) in joined(host) {
            let other = self.find(id)?.container;
            let Some(ids) = other.ids else {
                let message = format!(
                    "cannot share the {name} namespace of container {}: it has no user namespace of its own",
                    other.name
                );
                return Err(Error::invalid(message).with_hint("give --userns=host"));
            };
            match &shared {
                Some((first, _)) if *first != id => {
                    let message = "cannot share the namespaces of two containers when user namespaces are enabled";
                    return Err(Error::invalid(message));
                }
                _ => shared = Some((id, ids)),
            }
        }
        if let Some((_, ids)) = shared {
            return Ok(Some(ids));
        }
        match &host.users {
            UserNamespace::Host => Ok(None),
            UserNamespace::Maps(maps) => Ok(Some(maps.clone())),
            UserNamespace::Remap { user, group } => remapped(user, group).map(Some),
            UserNamespace::Auto { size, users, groups } => {
                let size = match size {
                    Some(size) => *size,
                    None => self.wanted_ids(container)?,
                };
                self.free_range(size, users, groups).map(Some)
            }
        }
    }

    /// As many ids as the image names and the container uses.
    fn wanted_ids(&self, container: &Container) -> Result<u32, Error> {
        let root = self.image_root_or_none(container)?;
        let Some(root) = root else { return Ok(LEAST) };
        let highest = users::highest_id(&root).map_err(|e| Error::invalid(e.to_string()))?;
        let identity = users::resolve(&root, &container.config.user).map_err(|e| Error::invalid(e.to_string()))?;
        let wanted = highest.max(identity.uid).max(identity.gid).saturating_add(1);
        Ok(wanted.clamp(LEAST, MOST))
    }

    fn free_range(&self, size: u32, users: &[IdRange], groups: &[IdRange]) -> Result<IdMaps, Error> {
        let taken = self.store.db().read(|tx| Ok(record::all(tx)?))?;
        let of = |file: &str, fixed: &[IdRange], get: fn(&IdMaps) -> &Vec<IdRange>| {
            let allowed = subordinate(&read(file)?, &[FOR_RANGES]);
            if allowed.is_empty() {
                return Err(no_ranges(file, FOR_RANGES));
            }
            let taken: Vec<Allowed> = taken
                .iter()
                .filter_map(|container| container.ids.as_ref())
                .flat_map(get)
                .map(|range| Allowed { first: range.outside, length: range.length })
                .collect();
            allot(size, fixed, &allowed, &taken).map_err(|error| match error {
                IdError::NoneFree { wanted } => Error::invalid(format!(
                    "could not find enough available IDs: {wanted} in a row of the user {FOR_RANGES} in {file} are wanted"
                ))
                .with_hint("remove containers with --userns=auto, ask for less with auto:size=N, or give the user more ids"),
                other => invalid(&other),
            })
        };
        let users = of("/etc/subuid", users, |maps| &maps.users)?;
        let groups = of("/etc/subgid", groups, |maps| &maps.groups)?;
        IdMaps::new(users, groups).map_err(|error| invalid(&error))
    }

    /// The user namespace of a container that is being started, and with `network` a network namespace of it.
    pub(super) fn user_namespace(&self, container: &Container, network: bool) -> Result<UserHandles, Error> {
        let Some(maps) = &container.ids else { return Ok(UserHandles::default()) };
        let other = match joined(&container.host).first() {
            Some((_, id)) => {
                let path = self.namespace_of(id, "user")?;
                let fd = rustix::fs::open(&path, OFlags::RDONLY | OFlags::CLOEXEC, Mode::empty());
                Some(fd.map_err(|e| Error::internal(format!("cannot join the users of container {id}: {e}")))?)
            }
            None => None,
        };
        let options = SandboxOptions { helper: self.parts.helper.clone(), state_dir: self.parts.state_dir.clone() };
        let made = NativeSandbox::new(options)?.user_namespace(maps, other, network)?;
        Ok(UserHandles { user: Some(made.user), network: made.network })
    }
}

/// Namespaces that a container with its own users is started in.
#[derive(Debug, Default)]
pub(super) struct UserHandles {
    pub(super) user: Option<OwnedFd>,
    pub(super) network: Option<OwnedFd>,
}

/// Changes the specification to what can be mounted in a user namespace.
pub(super) fn apply(container: &Container, spec: &mut Spec) -> Result<(), Error> {
    let Some(ids) = &container.ids else { return Ok(()) };
    let host_queues = container.host.ipc == NamespaceMode::Host;
    if let Some(mounts) = spec.mounts_mut() {
        // The queues are the machine's, and may be mounted by its root alone: where it has, they are bound.
        let there = Path::new("/dev/mqueue").is_dir();
        mounts.retain(|mount| there || !host_queues || mount.typ().as_deref() != Some("mqueue"));
    }
    for mount in spec.mounts_mut().iter_mut().flatten() {
        match mount.typ().as_deref() {
            // An option of a group that nobody is.
            Some("devpts") if ids.group(TTY).is_none() => {
                let mut options = mount.options().clone().unwrap_or_default();
                options.retain(|option| !option.starts_with("gid="));
                mount.set_options(Some(options));
            }
            Some("mqueue") if host_queues => {
                *mount = MountBuilder::default()
                    .destination(mount.destination())
                    .typ("bind")
                    .source("/dev/mqueue")
                    .options(["rbind", "nosuid", "noexec", "nodev"].map(str::to_owned).to_vec())
                    .build()
                    .map_err(Error::internal)?;
            }
            _ => {}
        }
    }
    Ok(())
}

/// Gives a tree and all in it, which has the ids of an image, those that a container has for them.
pub(crate) fn give_tree(top: Dir, ids: &IdMaps) -> std::io::Result<()> {
    let mut open = vec![top];
    let metadata = open[0].metadata()?;
    let (uid, gid) = ids.owner_outside((metadata.uid, metadata.gid));
    rbuild_store::root::set_owner(open[0].as_fd(), uid, gid)?;
    rbuild_store::root::set_mode(open[0].as_fd(), metadata.mode)?;
    while let Some(dir) = open.pop() {
        let names = dir.entries()?.map(|entry| Ok(entry?.name)).collect::<std::io::Result<Vec<_>>>()?;
        for name in names {
            let metadata = dir.stat(&name)?;
            let (uid, gid) = ids.owner_outside((metadata.uid, metadata.gid));
            dir.set_owner(&name, uid, gid)?;
            if metadata.kind != FileKind::Symlink {
                // A change of owner takes away set-user-id.
                dir.set_mode(&name, metadata.mode)?;
            }
            if metadata.kind == FileKind::Dir {
                open.push(dir.open_dir(&name)?);
            }
        }
    }
    Ok(())
}

fn remapped(user: &str, group: &str) -> Result<IdMaps, Error> {
    let of = |file: &str, names: &str, who: &str| {
        let other = other_name(&fs::read_to_string(names).unwrap_or_default(), who);
        let names: Vec<&str> = [Some(who), other.as_deref()].into_iter().flatten().collect();
        let allowed = subordinate(&read(file)?, &names);
        if allowed.is_empty() { Err(no_ranges(file, who)) } else { Ok(consecutive(&allowed)) }
    };
    let users = of("/etc/subuid", "/etc/passwd", user)?;
    let groups = of("/etc/subgid", "/etc/group", group)?;
    IdMaps::new(users, groups).map_err(|error| invalid(&error))
}

fn read(file: &str) -> Result<String, Error> {
    match fs::read_to_string(file) {
        Err(error) if error.kind() == std::io::ErrorKind::NotFound => Ok(String::new()),
        text => text.map_err(|e| Error::internal(format!("cannot read {file}: {e}"))),
    }
}

fn no_ranges(file: &str, who: &str) -> Error {
    let (kind, what) = if file.ends_with("gid") { ("subgid", "group") } else { ("subuid", "user") };
    Error::invalid(format!("Can't create ID mappings: No {kind} ranges found for {what} \"{who}\""))
        .with_hint(format!("add a line to {file}, for example {who}:100000:65536"))
}

fn invalid(error: &IdError) -> Error {
    Error::invalid(format!("Can't create ID mappings: {error}"))
}
