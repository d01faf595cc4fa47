//! Copies selected trees into a snapshot.
//!
//! Directories are made one after the other, files by all threads: each is opened relative to its open directory, copied
//! within the kernel where that pays, and checked to be the file the walk saw, so that a key that was made from the walk
//! never lies. Nothing is flushed here; the store flushes once, before a name is given.

use std::collections::{HashMap, HashSet};
use std::ffi::CString;
use std::os::fd::{AsFd, BorrowedFd, OwnedFd};
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};

use rayon::prelude::*;
use rbuild_graph::ops::ModeChange;
use rustix::fs::{AtFlags, FileType, Gid, Mode, OFlags, SeekFrom, Uid};
use rustix::io::Errno;

use super::hash::{open_file, unchanged};
use super::meta::{Kind, Meta};
use super::select::{Selected, stat};
use super::walk::{Entry, join, open_dir_beneath, read_link, split_parent};
use super::writer::{Found, Look, TreeWriter, UpperDir, apply_look, timestamps};
use super::xattrs;
use crate::ExecutorError;

/// Files up to this size are read and written through a buffer; larger ones are copied by the kernel.
const BUFFERED: u64 = 256 << 10;
/// Files that are copied by all threads before the next directories are looked at: bounds open descriptors.
const BATCH: usize = 256;

/// How copies look and where they go.
#[derive(Debug, Clone)]
pub struct CopyRules {
    /// As written in the Dockerfile, made absolute; a trailing slash means a directory.
    pub dest: Vec<u8>,
    /// `None` keeps the owner of the source.
    pub owner: Option<(u32, u32)>,
    pub mode: Option<ModeChange>,
    /// Seconds since 1970 that every copied entry gets.
    pub timestamp: Option<i64>,
    /// The time of directories that are made on the way.
    pub implied_time: i64,
    pub contents_only: bool,
    pub parents: bool,
    /// Whatever is in the way of something else gives way, and no link in the destination is followed: how a layer comes
    /// to lie on others.
    pub replace: bool,
}

impl CopyRules {
    /// A directory that is made on the way.
    fn implied(&self) -> Look {
        let (uid, gid) = self.owner.unwrap_or((0, 0));
        let time = self.timestamp.unwrap_or(self.implied_time);
        Look { mode: 0o755, uid, gid, mtime: (time, 0) }
    }

    /// The directory that contents are copied into: octal modes are meant for it too.
    pub(super) fn made(&self, mtime: (i64, u32)) -> Look {
        match self.mode {
            Some(ModeChange::Bits(mode)) => Look { mode, mtime, ..self.implied() },
            _ => Look { mtime, ..self.implied() },
        }
    }
}

/// Copies `selected` (walked below `root`) into `writer`'s tree.
///
/// # Errors
/// A source that changed or cannot be read, a destination that cannot be written, a file where a directory should go.
pub fn copy(
    writer: &mut TreeWriter,
    root: BorrowedFd<'_>,
    selected: &[Selected],
    rules: &CopyRules,
) -> Result<(), ExecutorError> {
    let mut copier = Copier {
        writer,
        root,
        rules,
        links: HashMap::new(),
        kept: HashSet::new(),
        jobs: Vec::new(),
        clone: AtomicBool::new(true),
    };
    let several = selected.len() > 1;
    for one in selected {
        copier.selected(one, several)?;
    }
    copier.run_jobs()
}

struct Copier<'a> {
    writer: &'a mut TreeWriter,
    root: BorrowedFd<'a>,
    rules: &'a CopyRules,
    /// Where the first name of a source inode with several names went.
    links: HashMap<(u64, u64), Vec<u8>>,
    /// Directories of the source that `--parents` has made.
    kept: HashSet<Vec<u8>>,
    jobs: Vec<Job>,
    /// Whether the file systems can share blocks; cleared at the first refusal.
    clone: AtomicBool,
}

struct Job {
    from: Arc<OwnedFd>,
    to: Arc<UpperDir>,
    entry: Entry,
    name: CString,
    path: Vec<u8>,
}

impl Copier<'_> {
    fn selected(&mut self, one: &Selected, several: bool) -> Result<(), ExecutorError> {
        let rules = self.rules;
        let is_dir = one.tree.root.meta.is_dir();
        let slash = rules.dest.ends_with(b"/") || rules.dest.is_empty();
        if rules.parents {
            let kept = &one.path[one.pivot..];
            self.kept_parents(one, split_parent(kept).0)?;
            let target = [&rules.dest[..], b"/", kept].concat();
            return if is_dir { self.directory(one, &target, true) } else { self.file(one, &target) };
        }
        if is_dir && rules.contents_only {
            return self.directory(one, &rules.dest, false);
        }
        let into = slash || several || matches!(self.resolve(&rules.dest)?.found, Found::Directory(_));
        let target = if into { [&rules.dest[..], b"/", &one.name].concat() } else { rules.dest.clone() };
        if is_dir { self.directory(one, &target, true) } else { self.file(one, &target) }
    }

    /// The directories that `--parents` keeps look as they do in the source.
    fn kept_parents(&mut self, one: &Selected, parents: &[u8]) -> Result<(), ExecutorError> {
        if parents.is_empty() || !self.kept.insert(one.path[..one.pivot + parents.len()].to_vec()) {
            return Ok(());
        }
        let slashes = parents.iter().enumerate().filter(|(_, b)| **b == b'/').map(|(at, _)| at);
        for end in slashes.chain([parents.len()]) {
            let from = &one.path[..one.pivot + end];
            let resolved = self.resolve(&[&self.rules.dest[..], b"/", &parents[..end]].concat())?;
            match stat(self.root, from) {
                Ok(meta) if meta.is_dir() && matches!(resolved.found, Found::Absent) => {
                    self.writer.make_dirs(split_parent(&resolved.path).0, &self.rules.implied())?;
                    let look = self.look(&meta)?;
                    self.writer.make_dir(&resolved.path, &look)?;
                    self.copy_attributes(from, &resolved.path, &look)?;
                }
                _ => {}
            }
        }
        Ok(())
    }

    /// Where a path of the destination leads.
    fn resolve(&mut self, path: &[u8]) -> Result<super::writer::Resolved, ExecutorError> {
        let fail = |errno| ExecutorError::write(trim(path), errno);
        if !self.rules.replace {
            return self.writer.resolve(path, true).map_err(fail);
        }
        let mut at: Vec<u8> = Vec::new();
        let mut found = self.writer.look(&at).map_err(fail)?;
        for name in trim(path).split(|b| *b == b'/').filter(|c| !c.is_empty() && *c != b"." && *c != b"..") {
            if matches!(found, Found::Link(_) | Found::Other(_)) {
                self.writer.remove(&at)?;
            }
            at = join(&at, name);
            found = self.writer.look(&at).map_err(fail)?;
        }
        Ok(super::writer::Resolved { path: at, found })
    }

    fn look(&self, meta: &Meta) -> Result<Look, ExecutorError> {
        let (uid, gid) = self.rules.owner.unwrap_or((meta.uid, meta.gid));
        let mode = match &self.rules.mode {
            Some(change) => super::mode::apply(change, meta.mode, meta.is_dir()).map_err(ExecutorError::Invalid)?,
            None => meta.mode,
        };
        let mtime = self.rules.timestamp.map_or(meta.mtime, |seconds| (seconds, 0));
        Ok(Look { mode, uid, gid, mtime })
    }

    /// A single file, link or node to `target`.
    fn file(&mut self, one: &Selected, target: &[u8]) -> Result<(), ExecutorError> {
        let (parent, _) = split_parent(trim(target));
        let implied = self.rules.implied();
        let parent = self.resolve(parent)?;
        self.writer.make_dirs(&parent.path, &implied)?;
        let resolved = self.resolve(target)?;
        let (parent, name) = split_parent(&resolved.path);
        self.writer.make_dirs(parent, &implied)?;
        if name.is_empty() {
            return Err(ExecutorError::FileOnDirectory { path: Vec::new() });
        }
        let to = Arc::new(self.writer.open_dir(parent)?);
        let (from_path, _) = split_parent(&one.tree.path);
        let from = open_dir_beneath(self.root, from_path).map_err(|e| ExecutorError::read(from_path, e))?;
        let name = CString::new(name).map_err(|_| ExecutorError::write(&resolved.path, Errno::INVAL))?;
        self.entry(Arc::new(from), to, &one.tree.root, name, one.tree.path.clone())
    }

    /// A directory's entries into `target`. Where that is not there yet, it looks as the directory does when `itself` is
    /// what is copied; when only its contents are, `target` is a directory made on the way, as BuildKit has it.
    fn directory(&mut self, one: &Selected, target: &[u8], itself: bool) -> Result<(), ExecutorError> {
        let implied = self.rules.implied();
        let resolved = self.resolve(target)?;
        let top = resolved.path;
        let mut found = resolved.found;
        if rules_replace(self.rules, &found) {
            self.writer.remove(&top)?;
            found = Found::Absent;
        }
        match found {
            Found::Directory(_) => {}
            Found::Absent => {
                self.writer.make_dirs(split_parent(&top).0, &implied)?;
                let look = self.look(&one.tree.root.meta)?;
                if itself {
                    self.writer.make_dir(&top, &look)?;
                    self.copy_attributes(&one.tree.path, &top, &look)?;
                } else {
                    let mtime = if target.ends_with(b"/") { implied.mtime } else { look.mtime };
                    self.writer.make_dirs(&top, &self.rules.made(mtime))?;
                }
            }
            _ => return Err(ExecutorError::DirectoryOnFile { path: top }),
        }
        for dir in &one.tree.dirs {
            let from_path = join(&one.tree.path, &dir.path);
            let to_path = join(&top, &dir.path);
            if !dir.path.is_empty() {
                let look = self.look(&dir.meta)?;
                match self.writer.look(&to_path).map_err(|e| ExecutorError::write(&to_path, e))? {
                    Found::Absent => self.writer.make_dir(&to_path, &look)?,
                    Found::Directory(_) => {}
                    _ if self.rules.replace => {
                        self.writer.remove(&to_path)?;
                        self.writer.make_dir(&to_path, &look)?;
                    }
                    _ => return Err(ExecutorError::DirectoryOnFile { path: to_path }),
                }
                self.copy_attributes(&from_path, &to_path, &look)?;
            }
            if dir.entries.is_empty() {
                continue;
            }
            let from = open_dir_beneath(self.root, &from_path).map_err(|e| ExecutorError::read(&from_path, e))?;
            let (from, to) = (Arc::new(from), Arc::new(self.writer.open_dir(&to_path)?));
            for entry in &dir.entries {
                let path = join(&from_path, entry.name.to_bytes());
                self.entry(from.clone(), to.clone(), entry, entry.name.clone(), path)?;
            }
            if self.jobs.len() >= BATCH {
                self.run_jobs()?;
            }
        }
        Ok(())
    }

    fn copy_attributes(&mut self, from: &[u8], to: &[u8], look: &Look) -> Result<(), ExecutorError> {
        let fd = open_dir_beneath(self.root, from).map_err(|e| ExecutorError::read(from, e))?;
        let attributes = xattrs::read(&fd).map_err(|e| ExecutorError::read(from, e))?;
        let same = matches!(self.writer.look(to), Ok(Found::Directory(meta))
            if attributes.is_empty() && (meta.mode, meta.uid, meta.gid, meta.mtime) == (look.mode, look.uid, look.gid, look.mtime));
        if same { Ok(()) } else { self.writer.change_dir(to, look, &attributes) }
    }

    /// Anything but a directory.
    fn entry(
        &mut self,
        from: Arc<OwnedFd>,
        to: Arc<UpperDir>,
        entry: &Entry,
        name: CString,
        path: Vec<u8>,
    ) -> Result<(), ExecutorError> {
        self.writer.mark_changed();
        let to_path = join(&to.path, name.to_bytes());
        if !to.fresh {
            if self.rules.replace && matches!(self.writer.look(&to_path), Ok(Found::Directory(_))) {
                self.writer.remove(&to_path)?;
            }
            self.writer.clear(&to, &name)?;
        }
        if entry.meta.kind == Kind::File && entry.meta.nlink > 1 {
            let key = (entry.meta.dev, entry.meta.ino);
            if let Some(first) = self.links.get(&key).cloned() {
                return self.hard_link(&first, &to, &name, &to_path);
            }
            self.links.insert(key, to_path.clone());
        }
        if entry.meta.kind == Kind::File {
            self.jobs.push(Job { from, to, entry: entry.clone(), name, path });
            if self.jobs.len() >= 64 * BATCH {
                self.run_jobs()?;
            }
            return Ok(());
        }
        let look = self.look(&entry.meta)?;
        special(&from, &to, entry, &name, &path, &to_path, &look)
    }

    fn hard_link(&mut self, first: &[u8], to: &UpperDir, name: &CString, path: &[u8]) -> Result<(), ExecutorError> {
        self.run_jobs()?;
        let (parent, first_name) = split_parent(first);
        let dir = self.writer.open_dir(parent)?;
        let fail = |errno| ExecutorError::write(path, errno);
        let first_name = CString::new(first_name).map_err(|_| fail(Errno::INVAL))?;
        super::writer::unlink_if_there(&to.fd, name).map_err(fail)?;
        rustix::fs::linkat(&dir.fd, first_name.as_c_str(), &to.fd, name.as_c_str(), AtFlags::empty()).map_err(fail)
    }

    fn run_jobs(&mut self) -> Result<(), ExecutorError> {
        let jobs = std::mem::take(&mut self.jobs);
        let this = &*self;
        let one = |job: &Job| file(job, &this.look(&job.entry.meta)?, &this.clone);
        if jobs.len() < 8 { jobs.iter().try_for_each(one) } else { jobs.par_iter().try_for_each(one) }
    }
}

/// Whether what is at the destination gives way to a directory.
fn rules_replace(rules: &CopyRules, found: &Found) -> bool {
    rules.replace && matches!(found, Found::Link(_) | Found::Other(_))
}

fn trim(path: &[u8]) -> &[u8] {
    let mut path = path;
    while let Some(shorter) = path.strip_suffix(b"/") {
        path = shorter;
    }
    while let Some(shorter) = path.strip_prefix(b"/") {
        path = shorter;
    }
    path
}

/// A link or a node.
fn special(
    from: &OwnedFd,
    to: &UpperDir,
    entry: &Entry,
    name: &CString,
    path: &[u8],
    to_path: &[u8],
    look: &Look,
) -> Result<(), ExecutorError> {
    let fail = |errno| ExecutorError::write(to_path, errno);
    super::writer::unlink_if_there(&to.fd, name).map_err(fail)?;
    let meta = &entry.meta;
    let kind = match meta.kind {
        Kind::Symlink => {
            let target = read_link(from, &entry.name).map_err(|e| ExecutorError::read(path, e))?;
            rustix::fs::symlinkat(target.as_c_str(), &to.fd, name.as_c_str()).map_err(fail)?;
            None
        }
        // A socket is a meeting point of living processes; images cannot hold one.
        Kind::Socket => return Ok(()),
        Kind::Fifo => Some(FileType::Fifo),
        Kind::CharDevice if meta.rdev == 0 => {
            return Err(ExecutorError::Invalid(format!(
                "/{} is an overlay whiteout and cannot be copied",
                crate::error::show(path)
            )));
        }
        Kind::CharDevice => Some(FileType::CharacterDevice),
        Kind::BlockDevice => Some(FileType::BlockDevice),
        Kind::File | Kind::Directory => return Err(fail(Errno::INVAL)),
    };
    let own = AtFlags::SYMLINK_NOFOLLOW;
    if let Some(kind) = kind {
        rustix::fs::mknodat(&to.fd, name.as_c_str(), kind, Mode::from_raw_mode(0o600), meta.rdev).map_err(fail)?;
    }
    let (uid, gid) = (Uid::from_raw(look.uid), Gid::from_raw(look.gid));
    rustix::fs::chownat(&to.fd, name.as_c_str(), Some(uid), Some(gid), own).map_err(fail)?;
    if kind.is_some() {
        rustix::fs::chmodat(&to.fd, name.as_c_str(), Mode::from_raw_mode(look.mode), AtFlags::empty()).map_err(fail)?;
    }
    rustix::fs::utimensat(&to.fd, name.as_c_str(), &timestamps(look.mtime), own).map_err(fail)
}

fn file(job: &Job, look: &Look, clone: &AtomicBool) -> Result<(), ExecutorError> {
    let source = open_file(job.from.as_fd(), &job.entry.name, &job.entry.meta, &job.path)?;
    let to_path = || join(&job.to.path, job.name.to_bytes());
    let fail = |errno| ExecutorError::write(&to_path(), errno);
    let flags = OFlags::WRONLY | OFlags::CREATE | OFlags::EXCL | OFlags::NOFOLLOW | OFlags::CLOEXEC;
    let create = || rustix::fs::openat(&job.to.fd, job.name.as_c_str(), flags, Mode::from_raw_mode(0o600));
    let dest = match create() {
        Err(Errno::EXIST) => {
            // Two sources of one COPY with the same name: the later one wins.
            super::writer::unlink_if_there(&job.to.fd, &job.name).map_err(fail)?;
            create().map_err(fail)?
        }
        done => done.map_err(fail)?,
    };
    copy_bytes(&source, &dest, job.entry.meta.size, clone).map_err(fail)?;
    unchanged(&source, &job.entry.meta, &job.path)?;
    let attributes = xattrs::read(&source).map_err(|errno| ExecutorError::read(&job.path, errno))?;
    apply_look(&dest, look, false).map_err(fail)?;
    xattrs::write(&dest, &attributes).map_err(fail)?;
    super::writer::set_times(&dest, look.mtime).map_err(fail)
}

/// Shares the blocks where the file system can, copies within the kernel where that pays, keeps holes.
fn copy_bytes(source: &OwnedFd, dest: &OwnedFd, size: u64, clone: &AtomicBool) -> rustix::io::Result<()> {
    if size == 0 {
        return Ok(());
    }
    if clone.load(Ordering::Relaxed) && size >= 4096 {
        match rustix::fs::ioctl_ficlone(dest, source) {
            Ok(()) => return Ok(()),
            Err(_) => clone.store(false, Ordering::Relaxed),
        }
    }
    if size <= BUFFERED {
        return buffered(source, dest, size as usize);
    }
    let sparse = rustix::fs::fstat(source).is_ok_and(|stat| (stat.st_blocks as u64) * 512 + 4096 < size);
    if !sparse {
        return in_kernel(source, dest, 0, size);
    }
    rustix::fs::ftruncate(dest, size)?;
    let mut at = 0;
    while at < size {
        let start = match rustix::fs::seek(source, SeekFrom::Data(at)) {
            Ok(start) => start,
            Err(Errno::NXIO) => return Ok(()),
            Err(errno) => return Err(errno),
        };
        let end = rustix::fs::seek(source, SeekFrom::Hole(start))?;
        in_kernel(source, dest, start, end)?;
        at = end;
    }
    Ok(())
}

fn in_kernel(source: &OwnedFd, dest: &OwnedFd, start: u64, end: u64) -> rustix::io::Result<()> {
    let (mut from, mut to) = (start, start);
    while from < end {
        let want = (end - from).min(1 << 30) as usize;
        match rustix::fs::copy_file_range(source, Some(&mut from), dest, Some(&mut to), want) {
            Ok(0) => return Ok(()),
            Ok(_) | Err(Errno::INTR) => {}
            Err(Errno::XDEV | Errno::NOSYS | Errno::INVAL | Errno::OPNOTSUPP) => {
                rustix::fs::seek(source, SeekFrom::Start(from))?;
                rustix::fs::seek(dest, SeekFrom::Start(to))?;
                return buffered(source, dest, (end - from) as usize);
            }
            Err(errno) => return Err(errno),
        }
    }
    Ok(())
}

fn buffered(source: &OwnedFd, dest: &OwnedFd, size: usize) -> rustix::io::Result<()> {
    let mut buffer = vec![0u8; size.min(BUFFERED as usize)];
    let mut left = size;
    while left > 0 {
        let want = left.min(buffer.len());
        let n = match rustix::io::read(source, &mut buffer[..want]) {
            Ok(0) => return Ok(()),
            Ok(n) => n,
            Err(Errno::INTR) => continue,
            Err(errno) => return Err(errno),
        };
        let mut rest = &buffer[..n];
        while !rest.is_empty() {
            match rustix::io::write(dest, rest) {
                Ok(n) => rest = &rest[n..],
                Err(Errno::INTR) => {}
                Err(errno) => return Err(errno),
            }
        }
        left -= n;
    }
    Ok(())
}
