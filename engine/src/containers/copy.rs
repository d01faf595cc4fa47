//! `cp`: files between the host and a container, running or not.
//!
//! No path of the container's is ever joined to one of the host's. A running container is entered through its own root
//! (volumes and all), one that does not run through its layers mounted nowhere and its volumes beside them; within either
//! every path is walked with links resolved inside (S40).

use std::ffi::{OsStr, OsString};
use std::io;
use std::os::fd::AsFd;
use std::path::{Component, Path, PathBuf};

use rbuild_store::root::{Dir, Kind as FileKind, Metadata, set_mode, set_owner, set_times};
use rbuild_store::{Mounts, Root, Walk};

use super::record::{Container, MountKind, MountPoint, Seen, Status};
use super::{Containers, root_of};
use crate::error::Error;
use crate::volumes;

/// How files are copied.
#[derive(Debug, Clone, Copy, Default)]
pub struct CopyOptions {
    /// Keep user and group; else they are the receiver's.
    pub keep_owner: bool,
    /// Copy what a link at the source leads to.
    pub follow_link: bool,
}

/// A place in a file tree: a directory, and what in it is meant.
pub(super) struct Place {
    pub(super) dir: Dir,
    /// `None`: the directory itself.
    pub(super) name: Option<OsString>,
}

impl Containers {
    /// Copies from a container to the host.
    pub fn copy_out(&self, seen: &Seen, from: &Path, to: &Path, options: CopyOptions) -> Result<(), Error> {
        let (root, inside) = self.tree(seen, from, false)?;
        let source = source(&root, &inside, options).map_err(|e| not_there(&seen.container, from, &e))?;
        let host = Root::open(Path::new("/")).map_err(Error::internal)?;
        let to_absolute = std::path::absolute(to).map_err(Error::internal)?;
        let owner = (rustix::process::geteuid().as_raw(), rustix::process::getegid().as_raw());
        let to_shown = if ends_in_slash(to) { to } else { &to_absolute };
        copy(&source, from, &host, &to_absolute, to_shown, Copying { owner, keep: options.keep_owner, into: None })?;
        self.tell(&seen.container, "archive-path", &[]);
        Ok(())
    }

    /// Copies from the host into a container.
    pub fn copy_in(&self, seen: &Seen, from: &Path, to: &Path, options: CopyOptions) -> Result<(), Error> {
        let host = Root::open(Path::new("/")).map_err(Error::internal)?;
        let absolute = std::path::absolute(from).map_err(Error::internal)?;
        let source = source(&host, &absolute, options).map_err(|e| match e.kind() {
            io::ErrorKind::NotFound => {
                Error::not_found(format!("lstat {}: no such file or directory", absolute.display()))
            }
            _ => Error::internal(format!("cannot read {}: {e}", from.display())),
        })?;
        let (root, inside) = self.tree(seen, to, true)?;
        let how = Copying { owner: (0, 0), keep: options.keep_owner, into: Some(&seen.container.name) };
        copy(&source, from, &root, &inside, to, how)?;
        self.tell(&seen.container, "extract-to-dir", &[]);
        Ok(())
    }

    /// The tree in which a path of a container's lies, and the path in it.
    pub(super) fn tree(&self, seen: &Seen, path: &Path, write: bool) -> Result<(Root, PathBuf), Error> {
        let container = &seen.container;
        let absolute = Path::new("/").join(path);
        let is_top = absolute.components().all(|part| matches!(part, Component::RootDir | Component::CurDir));
        // Of all its files those that the kernel makes up are none.
        if matches!(seen.status, Status::Running | Status::Paused) && (write || !is_top) {
            let root = Root::open(Path::new(&format!("/proc/{}/root", seen.state.pid))).map_err(Error::internal)?;
            return Ok((root, absolute));
        }
        // The deepest mount above the path is where it lies.
        let clean: PathBuf = absolute.components().filter(|c| !matches!(c, Component::CurDir)).collect();
        let mount = container.mounts.iter().rev().find(|m| clean.starts_with(&m.destination));
        if let Some(mount) = mount {
            let rest = clean.strip_prefix(&mount.destination).unwrap_or(&clean);
            let source = match &mount.kind {
                MountKind::Bind { source, .. } => Some(source.clone()),
                MountKind::Volume { name, .. } => match volumes::place(self.store.root(), name)? {
                    volumes::Place::Directory(path) => Some(path),
                    volumes::Place::Filesystem(_) if write && mount.read_only => None,
                    volumes::Place::Filesystem(_) => {
                        let files = volumes::open(self.store.root(), name)?;
                        return Ok((files, below(mount, rest, path)));
                    }
                },
                MountKind::Tmpfs { .. } => None,
                MountKind::Image { snapshot, .. } => {
                    let files = root_of(&self.store.snapshots().view(&snapshot.parse()?)?)?;
                    let below = mount.subpath.as_deref().unwrap_or(Path::new("")).join(rest);
                    return Ok((files, Path::new("/").join(below)));
                }
            };
            if write && mount.read_only {
                return Err(Error::invalid(format!("{} is mounted read-only", mount.destination)));
            }
            if let Some(source) = source {
                // A single file is mounted: then its directory is the tree.
                if rest.as_os_str().is_empty() && !source.is_dir() {
                    let parent = source.parent().unwrap_or(Path::new("/"));
                    let name = source.file_name().unwrap_or_default();
                    return Ok((Root::open(parent).map_err(Error::internal)?, Path::new("/").join(name)));
                }
                return Ok((Root::open(&source).map_err(Error::internal)?, below(mount, rest, path)));
            }
        }
        let root = if write { self.writable_root(container)? } else { self.root(container)? };
        Ok((root, absolute))
    }

    /// The root of a container that does not run, for writing, mounted nowhere.
    fn writable_root(&self, container: &Container) -> Result<Root, Error> {
        match self.mounts(container)? {
            Mounts::Bind { source, .. } => Root::open(&source).map_err(Error::internal),
            overlay => root_of(&overlay),
        }
    }
}

/// A path in what is mounted, of which `rest` is the part below the place it is mounted on.
fn below(mount: &MountPoint, rest: &Path, path: &Path) -> PathBuf {
    let inside = Path::new("/").join(mount.subpath.as_deref().unwrap_or(Path::new("")).join(rest));
    if ends_in_dot(path) { inside.join(".") } else { inside }
}

pub(super) fn not_there(container: &Container, path: &Path, error: &io::Error) -> Error {
    match error.kind() {
        io::ErrorKind::NotFound => {
            Error::not_found(format!("Could not find the file {} in container {}", path.display(), container.name))
        }
        _ => Error::internal(format!("cannot read {} in container {}: {error}", path.display(), container.name)),
    }
}

/// What a source path means.
pub(super) fn source(root: &Root, path: &Path, options: CopyOptions) -> io::Result<Place> {
    let ends_in_name = path.file_name().is_some() && !ends_in_dot(path);
    if !ends_in_name {
        return Ok(Place { dir: root.open_dir(path, Walk::InRoot)?, name: None });
    }
    let (dir, name) = root.parent(path, Walk::InRoot)?;
    let metadata = dir.stat(&name)?;
    let asks_directory = path.as_os_str().as_encoded_bytes().ends_with(b"/");
    if metadata.kind == FileKind::Symlink && (options.follow_link || asks_directory) {
        let target = root.walk(path, Walk::InRoot)?;
        if Metadata::of(target.as_fd())?.kind == FileKind::Dir {
            return Ok(Place { dir: Dir::from_fd(target)?, name: None });
        }
        let text = dir.read_link(&name)?;
        let resolved = path.parent().unwrap_or(Path::new("/")).join(text);
        return source(root, &resolved, options);
    }
    if asks_directory && metadata.kind != FileKind::Dir {
        return Err(io::Error::other("not a directory"));
    }
    Ok(Place { dir, name: Some(name) })
}

pub(super) fn ends_in_dot(path: &Path) -> bool {
    let bytes = path.as_os_str().as_encoded_bytes();
    let bytes = bytes.strip_suffix(b"/").unwrap_or(bytes);
    bytes == b"." || bytes.ends_with(b"/.")
}

#[derive(Clone, Copy)]
struct Copying<'a> {
    owner: (u32, u32),
    keep: bool,
    /// The container that is copied into; `None` for the host.
    into: Option<&'a str>,
}

fn ends_in_slash(path: &Path) -> bool {
    path.as_os_str().as_encoded_bytes().ends_with(b"/")
}

/// Where the links at the end of a path lead to, whether anything is there or not; they are resolved inside the root.
fn through_links(root: &Root, path: &Path) -> io::Result<PathBuf> {
    let mut path = path.to_owned();
    for _ in 0..40 {
        if path.file_name().is_none() || ends_in_dot(&path) {
            return Ok(path);
        }
        let link = root.parent(&path, Walk::InRoot).and_then(|(dir, name)| match dir.stat(&name)?.kind {
            FileKind::Symlink => dir.read_link(&name).map(Some),
            _ => Ok(None),
        });
        match link {
            Ok(Some(target)) => path = path.parent().unwrap_or(Path::new("/")).join(target),
            Ok(None) => return Ok(path),
            Err(error) if error.kind() == io::ErrorKind::NotFound => return Ok(path),
            Err(error) => return Err(error),
        }
    }
    Err(rustix::io::Errno::LOOP.into())
}

/// Docker's rules for what the destination means, then the copy. `*_shown` are the paths as the user wrote them.
fn copy(
    from: &Place,
    from_shown: &Path,
    root: &Root,
    to: &Path,
    to_shown: &Path,
    how: Copying<'_>,
) -> Result<(), Error> {
    let failed =
        |e: io::Error| Error::internal(format!("cannot copy {} to {}: {e}", from_shown.display(), to_shown.display()));
    let is_dir = match &from.name {
        None => true,
        Some(name) => from.dir.stat(name).map_err(failed)?.kind == FileKind::Dir,
    };
    let existing = match root.walk(to, Walk::InRoot) {
        Ok(fd) => Some(Metadata::of(fd.as_fd()).map_err(failed)?.kind),
        Err(error) if error.kind() == io::ErrorKind::NotFound => None,
        Err(error) => return Err(failed(error)),
    };
    let wants_dir = ends_in_slash(to);
    let to = &through_links(root, to).map_err(failed)?;
    let contents = from.name.is_none() && ends_in_dot(from_shown);
    match (is_dir, existing) {
        (true, Some(FileKind::Dir)) => {
            let into = root.open_dir(to, Walk::InRoot).map_err(failed)?;
            let name = match (&from.name, contents) {
                (_, true) => None,
                // As the user named it, also where that is a link that was followed.
                (Some(name), _) => Some(from_shown.file_name().unwrap_or(name).to_owned()),
                (None, _) => from_shown.file_name().map(OsStr::to_owned),
            };
            let into = match &name {
                None => into,
                Some(name) => directory_in(&into, name).map_err(failed)?,
            };
            tree(open_source(from).map_err(failed)?, into, how).map_err(failed)
        }
        (true, None) => {
            let into = parent_of(root, to, to_shown, how)?;
            let into = into.0.mkdir(&into.1, 0o755).map_err(failed)?;
            tree(open_source(from).map_err(failed)?, into, how).map_err(failed)
        }
        (true, Some(_)) => Err(Error::invalid("cannot copy directory")),
        (false, Some(FileKind::Dir)) => {
            let into = root.open_dir(to, Walk::InRoot).map_err(failed)?;
            let name = from.name.as_deref().unwrap_or_default();
            node(&from.dir, name, &into, from_shown.file_name().unwrap_or(name), how).map_err(failed)
        }
        (false, None) if wants_dir => Err(Error::invalid("no such directory")),
        (false, _) => {
            let (into, name) = parent_of(root, to, to_shown, how)?;
            node(&from.dir, from.name.as_deref().unwrap_or_default(), &into, &name, how).map_err(failed)
        }
    }
}

fn parent_of(root: &Root, to: &Path, shown: &Path, how: Copying<'_>) -> Result<(Dir, OsString), Error> {
    let above = shown.parent().unwrap_or(shown).display();
    root.parent(to, Walk::InRoot).map_err(|e| match (e.kind(), how.into) {
        (io::ErrorKind::NotFound, Some(container)) => {
            Error::not_found(format!("Could not find the file {above} in container {container}"))
        }
        (io::ErrorKind::NotFound, None) => {
            Error::not_found(format!("invalid output path: directory \"{above}\" does not exist"))
        }
        _ => Error::internal(format!("cannot write {}: {e}", shown.display())),
    })
}

fn open_source(from: &Place) -> io::Result<Dir> {
    match &from.name {
        None => from.dir.try_clone(),
        Some(name) => from.dir.open_dir(name),
    }
}

/// The directory of this name, made if it is missing.
fn directory_in(dir: &Dir, name: &OsStr) -> io::Result<Dir> {
    match dir.open_dir(name) {
        Err(error) if error.kind() == io::ErrorKind::NotFound => dir.mkdir(name, 0o755),
        other => other,
    }
}

/// Copies what is in `from` into `to`, over what is there, and gives `to` the attributes of `from`.
fn tree(from: Dir, to: Dir, how: Copying<'_>) -> io::Result<()> {
    struct Frame {
        from: Dir,
        to: Dir,
        names: Vec<OsString>,
    }
    let open = |from: Dir, to: Dir| -> io::Result<Frame> {
        let names = from.entries()?.map(|entry| Ok(entry?.name)).collect::<io::Result<_>>()?;
        Ok(Frame { from, to, names })
    };
    let mut stack = vec![open(from, to)?];
    while let Some(frame) = stack.last_mut() {
        let Some(name) = frame.names.pop() else {
            // Attributes last: what was written into it changed its time.
            attributes_of_dir(&frame.from, &frame.to, how)?;
            stack.pop();
            continue;
        };
        if frame.from.stat(&name)?.kind == FileKind::Dir {
            let next = open(frame.from.open_dir(&name)?, directory_in(&frame.to, &name)?)?;
            stack.push(next);
        } else {
            node(&frame.from, &name, &frame.to, &name, how)?;
        }
    }
    Ok(())
}

fn attributes_of_dir(from: &Dir, to: &Dir, how: Copying<'_>) -> io::Result<()> {
    let metadata = from.metadata()?;
    let (uid, gid) = if how.keep { (metadata.uid, metadata.gid) } else { how.owner };
    set_owner(to.as_fd(), uid, gid)?;
    set_mode(to.as_fd(), metadata.mode)?;
    set_times(to.as_fd(), metadata.accessed, metadata.modified)
}

/// Copies one thing that is no directory; what has its name at the destination is replaced.
fn node(from: &Dir, name: &OsStr, to: &Dir, as_name: &OsStr, how: Copying<'_>) -> io::Result<()> {
    let metadata = from.stat(name)?;
    match to.stat(as_name) {
        Ok(there) if there.kind == FileKind::Dir => {
            return Err(io::Error::other("cannot overwrite a directory with a file"));
        }
        Ok(_) => to.unlink(as_name)?,
        Err(error) if error.kind() == io::ErrorKind::NotFound => {}
        Err(error) => return Err(error),
    }
    match metadata.kind {
        FileKind::File => {
            let mut source = from.open_file(name)?;
            let mut target = to.create_file(as_name, 0o600)?;
            io::copy(&mut source, &mut target)?;
        }
        FileKind::Symlink => to.symlink(from.read_link(name)?.as_os_str(), as_name)?,
        FileKind::Fifo => to.mknod(as_name, FileKind::Fifo, metadata.mode, 0)?,
        // As tar does: a socket is nothing without its process.
        FileKind::Socket => return Ok(()),
        FileKind::CharDevice | FileKind::BlockDevice | FileKind::Dir => {
            return Err(io::Error::other(format!("{} is a device", Path::new(name).display())));
        }
    }
    let (uid, gid) = if how.keep { (metadata.uid, metadata.gid) } else { how.owner };
    to.set_owner(as_name, uid, gid)?;
    if metadata.kind != FileKind::Symlink {
        to.set_mode(as_name, metadata.mode)?;
    }
    to.set_times(as_name, metadata.accessed, metadata.modified)
}

#[cfg(test)]
mod tests {
    use std::fs;
    use std::os::unix::fs::{PermissionsExt, symlink};

    use super::*;

    /// Copies within one directory tree, as the user would name things.
    fn cp(base: &Path, from: &str, to: &str) -> Result<(), Error> {
        let root = Root::open(base).expect("open");
        let from_path = Path::new("/").join(from);
        let place = source(&root, &from_path, CopyOptions::default()).map_err(Error::internal)?;
        let owner = (rustix::process::geteuid().as_raw(), rustix::process::getegid().as_raw());
        let how = Copying { owner, keep: false, into: None };
        copy(&place, Path::new(from), &root, &Path::new("/").join(to), Path::new(to), how)
    }

    #[test]
    fn destinations_mean_what_docker_means() {
        let dir = tempfile::tempdir().expect("tempdir");
        let base = dir.path();
        fs::create_dir_all(base.join("src/sub")).expect("mkdir");
        fs::write(base.join("src/a"), "a").expect("write");
        fs::set_permissions(base.join("src/a"), fs::Permissions::from_mode(0o640)).expect("chmod");
        symlink("a", base.join("src/l")).expect("symlink");
        fs::create_dir(base.join("there")).expect("mkdir");
        cp(base, "src/a", "file").expect("file to a new name");
        cp(base, "src/a", "there").expect("file into a directory");
        cp(base, "src", "new").expect("directory to a new name");
        cp(base, "src", "there").expect("directory into a directory");
        cp(base, "src/.", "new/sub").expect("contents into a directory");
        for path in ["file", "there/a", "new/a", "new/sub/a", "there/src/a"] {
            assert_eq!(fs::read_to_string(base.join(path)).ok().as_deref(), Some("a"), "{path}");
            let mode = fs::metadata(base.join(path)).expect("stat").permissions().mode();
            assert_eq!(mode & 0o7777, 0o640, "{path}");
        }
        assert_eq!(fs::read_link(base.join("new/l")).expect("link"), Path::new("a"));
        cp(base, "src/a", "file").expect("over a file");
        fs::write(base.join("old"), "old").expect("write");
        symlink("old", base.join("link")).expect("symlink");
        symlink("/there/fresh", base.join("dangling")).expect("symlink");
        cp(base, "src/a", "link").expect("to where a link leads");
        cp(base, "src/a", "dangling").expect("to where nothing is yet");
        for path in ["old", "there/fresh"] {
            assert_eq!(fs::read_to_string(base.join(path)).ok().as_deref(), Some("a"), "{path}");
        }
        assert!(base.join("link").is_symlink() && base.join("dangling").is_symlink());
        assert!(cp(base, "src", "file").is_err(), "a directory over a file");
        assert!(cp(base, "src/a", "nowhere/").is_err(), "into a directory that is not there");
        assert!(cp(base, "src/a", "nowhere/x").is_err(), "below one that is not there");
        assert!(cp(base, "none", "x").is_err(), "a source that is not there");
    }

    #[test]
    fn links_stay_inside() {
        let outside = tempfile::tempdir().expect("tempdir");
        fs::write(outside.path().join("secret"), "s").expect("write");
        let dir = tempfile::tempdir().expect("tempdir");
        symlink(outside.path(), dir.path().join("out")).expect("symlink");
        fs::write(dir.path().join("f"), "f").expect("write");
        assert!(cp(dir.path(), "out/secret", "stolen").is_err());
        assert!(cp(dir.path(), "f", "out/planted").is_err());
        assert!(!outside.path().join("planted").exists());
    }
}
