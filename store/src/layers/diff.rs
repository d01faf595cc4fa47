//! The difference of a snapshot to what it lies on, as canonical tar.
//!
//! The entries are a function of what was shown before and what is shown now. What a driver copied up without changing
//! it is left out (a directory on the way to a change is there as its parent), and files are compared by content when
//! their metadata are equal, times in whole seconds: so all drivers give the same bytes for the same change.
//! Times alone are never trusted to mean "unchanged": a build may set them.

use std::collections::{HashMap, HashSet};
use std::ffi::OsStr;
use std::fs::File;
use std::io::{Read, Write};
use std::os::fd::AsFd;
use std::os::unix::ffi::OsStringExt;
use std::sync::{Mutex, PoisonError};

use super::read::shown;
use super::tar::{Entry, EntryKind, Writer, Xattrs, travels};
use super::walk::{Node, Tree, Visit, Walker};
use super::whiteout::Below;
use crate::error::{Context, Result, StoreError};
use crate::root::{Dir, Kind, Metadata, Timestamp, node};

const BUFFER: usize = 64 << 10;

/// Writes the layer of `tree`; returns its size.
pub(crate) fn write_diff<W: Write>(tree: &Tree, out: W) -> Result<u64> {
    write_dated(tree, out).map(|(size, _)| size)
}

/// As [`write_diff`]; returns the newest time of its entries as well.
fn write_dated<W: Write>(tree: &Tree, out: W) -> Result<(u64, Option<i64>)> {
    let mut writer = DiffWriter {
        writer: Writer::new(out),
        pending: Vec::new(),
        links: HashMap::new(),
        groups: None,
        tree,
        buffer: vec![0; BUFFER].into_boxed_slice(),
    };
    writer.root()?;
    let mut walker = Walker::new(tree)?;
    while let Some(visit) = walker.next()? {
        match visit {
            Visit::Enter(node) => writer.enter(&mut walker, &node)?,
            Visit::Leave => writer.leave(),
            Visit::Node(node) => writer.node(&mut walker, &node)?,
            Visit::Whiteout(path) => writer.emit(&Entry {
                path,
                kind: EntryKind::File { size: 0 },
                mode: 0,
                uid: 0,
                gid: 0,
                mtime: Timestamp::new(0, 0),
                xattrs: Xattrs::new(),
            })?,
        }
    }
    let newest = writer.writer.newest();
    let (_, size) = writer.writer.finish().context(|| "writing a layer".to_owned())?;
    Ok((size, newest))
}

struct DiffWriter<'a, W: Write> {
    writer: Writer<W>,
    /// The directories that lead to where we are; those that were not written yet come before the next entry.
    pending: Vec<Option<Entry>>,
    /// The first name of each file with several.
    links: HashMap<(u64, u64), Vec<u8>>,
    /// Inodes whose set of names changed; found when first needed.
    groups: Option<HashSet<(u64, u64)>>,
    tree: &'a Tree,
    buffer: Box<[u8]>,
}

impl<W: Write> DiffWriter<'_, W> {
    /// The root is an entry only when it changed. Without anything below, that is when it is not as made.
    fn root(&mut self) -> Result<()> {
        let what = || "reading the root of a snapshot".to_owned();
        let own = self.tree.own.top().context(what)?;
        let top = own.uppermost().ok_or_else(|| StoreError::invalid("snapshot", "it has no directory"))?;
        let metadata = top.metadata().context(what)?;
        let entry = entry_of(Vec::new(), &metadata, EntryKind::Directory, xattrs(top).context(what)?);
        let below = self.tree.lowers.top().context(what)?;
        let changed = match below.uppermost() {
            Some(dir) => {
                let before = dir.metadata().context(what)?;
                !same_metadata(&metadata, &before) || xattrs(dir).context(what)? != entry.xattrs
            }
            None => (metadata.mode, metadata.uid, metadata.gid) != (0o755, 0, 0) || !entry.xattrs.is_empty(),
        };
        if changed { self.emit(&entry) } else { Ok(()) }
    }

    fn enter(&mut self, walker: &mut Walker<'_>, node: &Node) -> Result<()> {
        let what = || format!("reading {} of a snapshot", shown(&node.path));
        let (own, below) = walker.here()?;
        let dir = own.uppermost().ok_or_else(|| StoreError::invalid("walk", "its directory is gone"))?;
        let xattrs_now = xattrs(dir).context(what)?;
        let unchanged = match below.uppermost() {
            Some(before) => {
                same_metadata(&node.metadata, &before.metadata().context(what)?)
                    && xattrs(before).context(what)? == xattrs_now
            }
            None => false,
        };
        let entry = entry_of(node.path.clone(), &node.metadata, EntryKind::Directory, xattrs_now);
        if unchanged {
            self.pending.push(Some(entry));
        } else {
            self.emit(&entry)?;
            self.pending.push(None);
        }
        Ok(())
    }

    fn leave(&mut self) {
        self.pending.pop();
    }

    fn node(&mut self, walker: &mut Walker<'_>, node: &Node) -> Result<()> {
        let what = || format!("reading {} of a snapshot", shown(&node.path));
        let metadata = &node.metadata;
        let shared = metadata.kind == Kind::File && metadata.links > 1;
        let inode = (metadata.device, metadata.inode);
        let (own, below) = walker.here()?;
        if !shared
            && self.tree.fresh.is_some()
            && let Some((_, before)) = below.find(node.name()).context(what)?
            && self.tree.is_same(metadata, &before)
        {
            return Ok(());
        }
        let dir = node.dir(own).context(what)?;
        let Some(mut found) = Found::open(dir, node.name(), metadata).context(what)? else {
            return Ok(());
        };
        let unchanged = unchanged(self.tree, &mut found, node, below, &mut self.buffer).context(what)?;
        if unchanged && !(shared && self.group_changed(inode)?) {
            return Ok(());
        }
        if shared && let Some(first) = self.links.get(&inode) {
            let kind = EntryKind::HardLink { target: first.clone() };
            return self.emit(&entry_of(node.path.clone(), metadata, kind, Xattrs::new()));
        }
        self.emit(&entry_of(node.path.clone(), metadata, found.kind, found.xattrs))?;
        if shared {
            self.links.insert(inode, node.path.clone());
        }
        match &mut found.file {
            Some(file) => self.copy(file).context(|| format!("archiving {}", shown(&node.path))),
            None => Ok(()),
        }
    }

    fn copy(&mut self, file: &mut File) -> std::io::Result<()> {
        while self.writer.owed() > 0 {
            let want = self.writer.owed().min(self.buffer.len() as u64) as usize;
            match file.read(&mut self.buffer[..want])? {
                0 => return Err(std::io::Error::other("the file became shorter while it was read")),
                len => self.writer.body(&self.buffer[..len])?,
            }
        }
        Ok(())
    }

    fn emit(&mut self, entry: &Entry) -> Result<()> {
        for parent in self.pending.iter_mut().filter_map(Option::take) {
            self.writer.entry(&parent).context(|| format!("archiving {}", shown(&parent.path)))?;
        }
        self.writer.entry(entry).context(|| format!("archiving {}", shown(&entry.path)))
    }

    fn group_changed(&mut self, inode: (u64, u64)) -> Result<bool> {
        let changed = match self.groups.take() {
            Some(groups) => groups,
            None => changed_groups(self.tree, &mut self.buffer)?,
        };
        Ok(self.groups.insert(changed).contains(&inode))
    }
}

/// The files with several names of which one is new or changed, or which were different files before: all their names
/// have to be in the layer, or unpacking it would take them apart.
fn changed_groups(tree: &Tree, buffer: &mut [u8]) -> Result<HashSet<(u64, u64)>> {
    let mut before: HashMap<(u64, u64), (u64, u64)> = HashMap::new();
    let mut changed = HashSet::new();
    let mut walker = Walker::new(tree)?;
    while let Some(visit) = walker.next()? {
        let Visit::Node(node) = visit else { continue };
        let inode = (node.metadata.device, node.metadata.inode);
        if node.metadata.kind != Kind::File || node.metadata.links < 2 || changed.contains(&inode) {
            continue;
        }
        let what = || format!("reading {} of a snapshot", shown(&node.path));
        let (own, below) = walker.here()?;
        let dir = node.dir(own).context(what)?;
        let was = below.find(node.name()).context(what)?.map(|(_, metadata)| (metadata.device, metadata.inode));
        let same_file = was.is_some_and(|was| *before.entry(inode).or_insert(was) == was);
        let Some(mut found) = Found::open(dir, node.name(), &node.metadata).context(what)? else { continue };
        if !same_file || !unchanged(tree, &mut found, &node, below, buffer).context(what)? {
            changed.insert(inode);
        }
    }
    Ok(changed)
}

/// Something that is no directory, opened as far as it takes to archive it.
struct Found {
    kind: EntryKind,
    xattrs: Xattrs,
    file: Option<File>,
}

impl Found {
    /// `None` for what no archive can hold.
    fn open(dir: &Dir, name: &OsStr, metadata: &Metadata) -> std::io::Result<Option<Found>> {
        let device = || (rustix::fs::major(metadata.rdev), rustix::fs::minor(metadata.rdev));
        let plain = |kind| Ok(Some(Found { kind, xattrs: named_xattrs(dir, name)?, file: None }));
        match metadata.kind {
            Kind::File => {
                let file = open_file(dir, name, metadata)?;
                let xattrs = xattrs(&file)?;
                Ok(Some(Found { kind: EntryKind::File { size: metadata.size }, xattrs, file: Some(file) }))
            }
            Kind::Symlink => {
                let target = dir.read_link(name)?.into_os_string().into_vec();
                Ok(Some(Found { kind: EntryKind::Symlink { target }, xattrs: Xattrs::new(), file: None }))
            }
            Kind::CharDevice => {
                let (major, minor) = device();
                plain(EntryKind::CharDevice { major, minor })
            }
            Kind::BlockDevice => {
                let (major, minor) = device();
                plain(EntryKind::BlockDevice { major, minor })
            }
            Kind::Fifo => plain(EntryKind::Fifo),
            Kind::Dir | Kind::Socket => Ok(None),
        }
    }
}

/// Opens a regular file of a snapshot in one step instead of the four of [`Dir::open_file`]: a snapshot does not change,
/// so what was a file a moment ago is no device now. If it were, neither its opening would block nor would it be read.
pub(super) fn open_file(dir: &Dir, name: &OsStr, metadata: &Metadata) -> std::io::Result<File> {
    use rustix::fs::{Mode, OFlags};
    let flags = OFlags::RDONLY | OFlags::NOFOLLOW | OFlags::NONBLOCK | OFlags::NOCTTY | OFlags::CLOEXEC;
    let file = File::from(rustix::fs::openat(dir, name, flags, Mode::empty())?);
    let opened = Metadata::of(file.as_fd())?;
    match (opened.kind, opened.inode) == (Kind::File, metadata.inode) {
        true => Ok(file),
        false => Err(std::io::Error::other("the snapshot is being changed")),
    }
}

/// Whether the same was there before. Leaves the file at its start.
fn unchanged(tree: &Tree, found: &mut Found, node: &Node, below: &Below, buffer: &mut [u8]) -> std::io::Result<bool> {
    let Some((dir, before)) = below.find(node.name())? else {
        return Ok(false);
    };
    if tree.is_same(&node.metadata, &before) {
        return Ok(true);
    }
    if !same_metadata(&node.metadata, &before) {
        return Ok(false);
    }
    let Some(mut was) = Found::open(dir, node.name(), &before)? else {
        return Ok(false);
    };
    if was.kind != found.kind || was.xattrs != found.xattrs {
        return Ok(false);
    }
    match (&mut found.file, &mut was.file) {
        (Some(now), Some(was)) => same_content(now, was, buffer),
        _ => Ok(true),
    }
}

/// Compares kind, mode, owner, size (for files), device and time as the archive would show them.
pub(super) fn same_metadata(a: &Metadata, b: &Metadata) -> bool {
    let shown = |m: &Metadata| {
        let size = if m.kind == Kind::File { m.size } else { 0 };
        let device = if matches!(m.kind, Kind::CharDevice | Kind::BlockDevice) { m.rdev } else { 0 };
        (m.kind, m.mode, m.uid, m.gid, m.modified.seconds, size, device)
    };
    shown(a) == shown(b)
}

pub(super) fn same_content(a: &mut File, b: &mut File, buffer: &mut [u8]) -> std::io::Result<bool> {
    use std::io::{Seek, SeekFrom};
    let (left, right) = buffer.split_at_mut(buffer.len() / 2);
    let same = loop {
        let (in_left, in_right) = (fill(a, left)?, fill(b, right)?);
        if left[..in_left] != right[..in_right] {
            break false;
        }
        if in_left < left.len() {
            break true;
        }
    };
    a.seek(SeekFrom::Start(0))?;
    Ok(same)
}

fn fill(file: &mut File, buffer: &mut [u8]) -> std::io::Result<usize> {
    let mut filled = 0;
    while filled < buffer.len() {
        match file.read(&mut buffer[filled..])? {
            0 => break,
            len => filled += len,
        }
    }
    Ok(filled)
}

pub(crate) fn entry_of(path: Vec<u8>, metadata: &Metadata, kind: EntryKind, xattrs: Xattrs) -> Entry {
    let Metadata { mode, uid, gid, modified, .. } = *metadata;
    // A link's mode means nothing and differs between file systems.
    let mode = if matches!(kind, EntryKind::Symlink { .. }) { 0o777 } else { mode };
    Entry { path, kind, mode, uid, gid, mtime: modified, xattrs }
}

/// The extended attributes that travel.
pub(crate) fn xattrs(of: impl AsFd) -> std::io::Result<Xattrs> {
    // Most files have none, and saying so takes one call.
    if let Ok(0) | Err(rustix::io::Errno::OPNOTSUPP) = rustix::fs::flistxattr(&of, &mut [0u8; 256][..]) {
        return Ok(Xattrs::new());
    }
    Ok(travelling(node::xattrs(of.as_fd())?))
}

fn named_xattrs(dir: &Dir, name: &OsStr) -> std::io::Result<Xattrs> {
    Ok(travelling(dir.xattrs(name)?))
}

fn travelling(all: Vec<(std::ffi::OsString, Vec<u8>)>) -> Xattrs {
    all.into_iter().map(|(name, value)| (name.into_vec(), value)).filter(|(name, _)| travels(name)).collect()
}

/// Hashes a layer while it is read: digest, size, newest time.
pub(crate) fn digest_of(tree: &Tree) -> Result<(rbuild_oci::Digest, u64, Option<i64>)> {
    digest_into(tree, &mut std::io::sink())
}

/// As [`digest_of`]; its bytes go to `out` as well.
pub(crate) fn digest_into(tree: &Tree, out: &mut dyn Write) -> Result<(rbuild_oci::Digest, u64, Option<i64>)> {
    let newest = &Mutex::new(None);
    let (digest, size) = super::pipe::scoped(
        move |out| {
            let (_, found) = write_dated(tree, out)?;
            *newest.lock().unwrap_or_else(PoisonError::into_inner) = found;
            Ok(())
        },
        |mut input| {
            let mut hash = rbuild_oci::Sha256::new();
            let mut size = 0;
            loop {
                let bytes = input.chunk().map_err(|e| StoreError::io("reading a snapshot", e))?;
                if bytes.is_empty() {
                    return Ok((hash.finish(), size));
                }
                hash.update(bytes);
                size += bytes.len() as u64;
                out.write_all(bytes).map_err(|e| StoreError::io("writing a layer", e))?;
            }
        },
    )?;
    let newest = *newest.lock().unwrap_or_else(PoisonError::into_inner);
    Ok((digest, size, newest))
}
