//! ADD: archives are unpacked, everything else is copied.
//!
//! What is an archive is decided by content, never by name: after decompression the first header must be one of tar's.
//! Entries are made through the same writer as copies, so names and links in an archive cannot lead out of the image,
//! and `.wh.` names are ordinary ones here.

use std::ffi::CString;
use std::fs::File;
use std::io::Read;
use std::os::fd::{AsFd, BorrowedFd};
use std::path::Path;

use rbuild_store::StoreError;
use rbuild_store::layers::compress::Decompressed;
use rbuild_store::layers::read::Reader;
use rbuild_store::layers::tar::{Entry, EntryKind};
use rustix::fs::{AtFlags, FileType, Gid, Mode, OFlags, Uid, XattrFlags};
use rustix::io::Errno;

use crate::ExecutorError;
use crate::error::show;
use crate::files::copy::{CopyRules, copy};
use crate::files::hash::open_file;
use crate::files::select::Selected;
use crate::files::walk::{join, open_dir_beneath, split_parent};
use crate::files::writer::{Found, Look, TreeWriter, UpperDir, timestamps, unlink_if_there};
use crate::files::xattrs::Xattrs;

/// Unpacks those of `selected` that are archives and copies the others.
///
/// # Errors
/// A damaged archive, a name that cannot be made, `required` and no archive.
pub(crate) fn copy_or_unpack(
    writer: &mut TreeWriter,
    root: BorrowedFd<'_>,
    selected: &[Selected],
    rules: &CopyRules,
    owner: Option<(u32, u32)>,
    required: bool,
) -> Result<(), ExecutorError> {
    let mut plain = Vec::new();
    for one in selected {
        match open_archive(root, one)? {
            Some(file) => unpack(writer, file, &one.path, rules, owner)?,
            None if required => {
                return Err(ExecutorError::Invalid(format!(
                    "/{} is no tar archive and cannot be unpacked",
                    show(&one.path)
                )));
            }
            None => plain.push(one.clone()),
        }
    }
    // Several sources were several before some of them were unpacked.
    let dest = if selected.len() > 1 && !rules.dest.ends_with(b"/") {
        [&rules.dest[..], b"/"].concat()
    } else {
        rules.dest.clone()
    };
    copy(writer, root, &plain, &CopyRules { dest, ..rules.clone() })
}

/// The file, at its start, if its content is an archive.
fn open_archive(root: BorrowedFd<'_>, one: &Selected) -> Result<Option<File>, ExecutorError> {
    let tree = &one.tree;
    if !tree.is_file() || tree.root.meta.size == 0 {
        return Ok(None);
    }
    let (parent, _) = split_parent(&tree.path);
    let dir = open_dir_beneath(root, parent).map_err(|errno| ExecutorError::read(parent, errno))?;
    let open = || open_file(dir.as_fd(), &tree.root.name, &tree.root.meta, &tree.path).map(File::from);
    Ok(if looks_like_tar(open()?) { Some(open()?) } else { None })
}

fn looks_like_tar(file: File) -> bool {
    let Ok(mut stream) = Decompressed::new(file) else { return false };
    let mut block = Vec::with_capacity(512);
    (&mut stream).take(512).read_to_end(&mut block).is_ok() && starts_tar(&block)
}

/// Whether `start`, the first 512 bytes of something that is not compressed, begins a tar archive.
pub fn starts_tar(start: &[u8]) -> bool {
    let Some(block) = start.get(..512) else { return false };
    // An archive of nothing begins with its end mark.
    if block.iter().all(|byte| *byte == 0) {
        return true;
    }
    let stored = &block[148..156];
    let text: String = stored.iter().map(|b| *b as char).filter(|c| c.is_digit(8)).collect();
    let sum: u32 =
        block.iter().enumerate().map(|(at, b)| if (148..156).contains(&at) { 32 } else { u32::from(*b) }).sum();
    u32::from_str_radix(&text, 8).is_ok_and(|stored| stored == sum)
}

/// Unpacks an archive, compressed or not, into the directory `dest`, which is empty. Nothing is written outside of it,
/// whatever the names and links in the archive are.
///
/// # Errors
/// A damaged archive; a name that cannot be made.
pub fn unpack_into(archive: impl Read + Send, dest: &Path) -> Result<(), ExecutorError> {
    let bad = |error: &dyn std::fmt::Display| ExecutorError::Invalid(format!("cannot unpack the archive: {error}"));
    let mut writer = TreeWriter::new(dest, None)?;
    let implied = Look { mode: 0o755, uid: 0, gid: 0, mtime: (0, 0) };
    let mut reader = Reader::new(Decompressed::new(archive).map_err(|error| bad(&error))?);
    let mut unpacker = Unpacker { writer: &mut writer, top: Vec::new(), implied, owner: None };
    while let Some(entry) = reader.next().map_err(|error| bad(&error))? {
        unpacker.entry(&entry, &mut reader, |error| bad(&error))?;
    }
    writer.finish().map(drop)
}

fn unpack(
    writer: &mut TreeWriter,
    file: File,
    shown: &[u8],
    rules: &CopyRules,
    owner: Option<(u32, u32)>,
) -> Result<(), ExecutorError> {
    let bad = |error: StoreError| ExecutorError::Invalid(format!("/{}: {error}", show(shown)));
    let (uid, gid) = owner.unwrap_or((0, 0));
    let implied = Look { mode: 0o755, uid, gid, mtime: (rules.timestamp.unwrap_or(rules.implied_time), 0) };
    let top = writer.resolve(&rules.dest, true).map_err(|errno| ExecutorError::write(&rules.dest, errno))?.path;
    writer.make_dirs(&top, &implied)?;
    let stream =
        Decompressed::new(file).map_err(|error| ExecutorError::Invalid(format!("/{}: {error}", show(shown))))?;
    let mut reader = Reader::new(stream);
    let mut unpacker = Unpacker { writer, top, implied, owner };
    while let Some(entry) = reader.next().map_err(bad)? {
        unpacker.entry(&entry, &mut reader, bad)?;
    }
    Ok(())
}

struct Unpacker<'a> {
    writer: &'a mut TreeWriter,
    top: Vec<u8>,
    implied: Look,
    owner: Option<(u32, u32)>,
}

impl Unpacker<'_> {
    fn entry<R: Read>(
        &mut self,
        entry: &Entry,
        reader: &mut Reader<R>,
        bad: impl Fn(StoreError) -> ExecutorError,
    ) -> Result<(), ExecutorError> {
        let (uid, gid) = self.owner.unwrap_or((entry.uid, entry.gid));
        let look = Look { mode: entry.mode, uid, gid, mtime: (entry.mtime.seconds, entry.mtime.nanos) };
        let attributes: Xattrs = entry
            .xattrs
            .iter()
            .filter_map(|(name, value)| Some((CString::new(name.clone()).ok()?, value.clone())))
            .collect();
        if entry.path.is_empty() {
            return Ok(());
        }
        let (parent, name) = self.place(&entry.path)?;
        let path = join(&parent, name.to_bytes());
        let fail = |errno: Errno| ExecutorError::write(&path, errno);
        if entry.kind == EntryKind::Directory {
            if !matches!(self.writer.look(&path).map_err(fail)?, Found::Directory(_) | Found::Absent) {
                self.writer.remove(&path)?;
            }
            self.writer.make_dirs(&path, &look)?;
            return self.writer.change_dir(&path, &look, &attributes);
        }
        if matches!(self.writer.look(&path).map_err(fail)?, Found::Directory(_)) {
            self.writer.remove(&path)?;
        }
        let dir = self.writer.open_dir(&parent)?;
        self.writer.clear(&dir, &name)?;
        self.writer.mark_changed();
        match &entry.kind {
            EntryKind::File { size } => self.file(&dir, &name, (&look, *size, &attributes), reader, bad),
            EntryKind::HardLink { target } => self.hard_link(&dir, &name, target),
            EntryKind::Symlink { target } => {
                let target = CString::new(target.clone()).map_err(|_| fail(Errno::INVAL))?;
                rustix::fs::symlinkat(target.as_c_str(), &dir.fd, name.as_c_str()).map_err(fail)?;
                own(&dir, &name, &look, false).map_err(fail)
            }
            EntryKind::CharDevice { major, minor } | EntryKind::BlockDevice { major, minor } => {
                let block = matches!(entry.kind, EntryKind::BlockDevice { .. });
                if !block && (*major, *minor) == (0, 0) {
                    return Err(ExecutorError::Invalid(format!(
                        "/{} is an overlay whiteout and cannot be unpacked",
                        show(&path)
                    )));
                }
                let kind = if block { FileType::BlockDevice } else { FileType::CharacterDevice };
                node(&dir, &name, kind, rustix::fs::makedev(*major, *minor), &look).map_err(fail)
            }
            EntryKind::Fifo => node(&dir, &name, FileType::Fifo, 0, &look).map_err(fail),
            EntryKind::Directory => Ok(()),
        }
    }

    /// Where an entry goes: links in its parents are followed as a process inside would.
    fn place(&mut self, path: &[u8]) -> Result<(Vec<u8>, CString), ExecutorError> {
        let full = join(&self.top, path);
        let (parent, name) = split_parent(&full);
        let parent = self.writer.resolve(parent, true).map_err(|errno| ExecutorError::write(parent, errno))?.path;
        self.writer.make_dirs(&parent, &self.implied)?;
        Ok((parent, CString::new(name).map_err(|_| ExecutorError::write(path, Errno::INVAL))?))
    }

    fn file<R: Read>(
        &mut self,
        dir: &UpperDir,
        name: &CString,
        (look, size, attributes): (&Look, u64, &Xattrs),
        reader: &mut Reader<R>,
        bad: impl Fn(StoreError) -> ExecutorError,
    ) -> Result<(), ExecutorError> {
        let fail = |errno: Errno| ExecutorError::write(name.to_bytes(), errno);
        let flags = OFlags::WRONLY | OFlags::CREATE | OFlags::EXCL | OFlags::NOFOLLOW | OFlags::CLOEXEC;
        let fd = rustix::fs::openat(&dir.fd, name.as_c_str(), flags, Mode::from_raw_mode(0o600)).map_err(fail)?;
        let mut end = 0;
        while let Some(piece) = reader.piece().map_err(&bad)? {
            let mut at = piece.offset;
            let mut rest = piece.bytes;
            while !rest.is_empty() {
                let n = rustix::io::pwrite(&fd, rest, at).map_err(fail)?;
                rest = &rest[n..];
                at += n as u64;
            }
            end = at;
        }
        if size > end {
            rustix::fs::ftruncate(&fd, size).map_err(fail)?;
        }
        crate::files::writer::apply_look(&fd, look, false).map_err(fail)?;
        for (attribute, value) in attributes {
            rustix::fs::fsetxattr(&fd, attribute.as_c_str(), value, XattrFlags::empty()).map_err(fail)?;
        }
        crate::files::writer::set_times(&fd, look.mtime).map_err(fail)
    }

    fn hard_link(&mut self, dir: &UpperDir, name: &CString, target: &[u8]) -> Result<(), ExecutorError> {
        let (parent, first) = self.place(target)?;
        let fail = |errno: Errno| ExecutorError::write(target, errno);
        let from = self.writer.open_dir(&parent)?;
        unlink_if_there(&dir.fd, name).map_err(fail)?;
        rustix::fs::linkat(&from.fd, first.as_c_str(), &dir.fd, name.as_c_str(), AtFlags::empty()).map_err(fail)
    }
}

fn own(dir: &UpperDir, name: &CString, look: &Look, mode: bool) -> rustix::io::Result<()> {
    let itself = AtFlags::SYMLINK_NOFOLLOW;
    let (uid, gid) = (Uid::from_raw(look.uid), Gid::from_raw(look.gid));
    rustix::fs::chownat(&dir.fd, name.as_c_str(), Some(uid), Some(gid), itself)?;
    if mode {
        rustix::fs::chmodat(&dir.fd, name.as_c_str(), Mode::from_raw_mode(look.mode), AtFlags::empty())?;
    }
    rustix::fs::utimensat(&dir.fd, name.as_c_str(), &timestamps(look.mtime), itself)
}

fn node(dir: &UpperDir, name: &CString, kind: FileType, device: u64, look: &Look) -> rustix::io::Result<()> {
    rustix::fs::mknodat(&dir.fd, name.as_c_str(), kind, Mode::from_raw_mode(0o600), device)?;
    own(dir, name, look, true)
}
