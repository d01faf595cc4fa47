//! Subvolumes of btrfs, for the store's driver of that name.
//!
//! By the kernel's own calls: the `btrfs` program need not be installed, and nothing is parsed. What a snapshot changes
//! is read from the file system's tree (the transaction that last wrote each inode and extent), not found by reading files.

use std::collections::HashSet;
use std::ffi::OsStr;
use std::io;
use std::os::fd::{AsFd, BorrowedFd};
use std::os::unix::ffi::OsStrExt;

use rbuild_store::snapshots::{SubvolumeChanges, Subvolumes};
use rustix::fs::{Mode, OFlags};

use super::ioctl::{Call, Nested, Plain, SEARCHED, Search, SubvolumeFacts, VolArgs, VolArgs2};

const KIND: u8 = 0x94;
const CREATE: Call = Call::takes(KIND, 14, 4096);
const DESTROY: Call = Call::takes(KIND, 15, 4096);
const SEARCH: Call = Call::both(KIND, 17, 112);
const WAIT_SYNC: Call = Call::takes(KIND, 22, 8);
const SNAPSHOT: Call = Call::takes(KIND, 23, 4096);
const START_SYNC: Call = Call::gives(KIND, 24, 8);
const GET_FLAGS: Call = Call::gives(KIND, 25, 8);
const SET_FLAGS: Call = Call::takes(KIND, 26, 8);
const FACTS: Call = Call::gives(KIND, 60, 504);
const NESTED: Call = Call::both(KIND, 61, 4096);

const READ_ONLY: u64 = 1 << 1;
/// The inode of a subvolume's root.
const ROOT_INODE: u64 = 256;
const LAST_OBJECT: u64 = 256_u64.wrapping_neg();

const INODE_ITEM: u32 = 1;
const EXTENT_DATA: u32 = 108;
const HEADER: usize = 32;

/// The calls of btrfs.
#[derive(Debug, Clone, Copy, Default)]
pub struct Btrfs;

impl Subvolumes for Btrfs {
    fn create(&self, parent: BorrowedFd<'_>, name: &OsStr) -> io::Result<()> {
        CREATE.on(parent, &mut named(name)?)
    }

    fn snapshot(&self, of: BorrowedFd<'_>, parent: BorrowedFd<'_>, name: &OsStr) -> io::Result<()> {
        use std::os::fd::AsRawFd;
        let mut arguments = VolArgs2::zeroed();
        arguments.fd = of.as_raw_fd().into();
        put(&mut arguments.name, name)?;
        SNAPSHOT.on(parent, &mut arguments)
    }

    fn remove(&self, parent: BorrowedFd<'_>, name: &OsStr) -> io::Result<u64> {
        let mut arguments = named(name)?;
        let flags = OFlags::RDONLY | OFlags::DIRECTORY | OFlags::NOFOLLOW | OFlags::CLOEXEC;
        let subvolume = rustix::fs::openat(parent, name, flags, Mode::empty())?;
        // Of what a snapshot shares nothing is freed. Where it cannot be told, nothing is claimed.
        let own = facts(subvolume.as_fd()).and_then(|facts| search(subvolume.as_fd(), facts.made));
        drop(subvolume);
        DESTROY.on(parent, &mut arguments)?;
        Ok(own.map_or(0, |own| own.bytes))
    }

    fn seal(&self, subvolume: BorrowedFd<'_>) -> io::Result<()> {
        let mut flags = 0;
        GET_FLAGS.on(subvolume, &mut flags)?;
        flags |= READ_ONLY;
        SET_FLAGS.on(subvolume, &mut flags)
    }

    fn has_nested(&self, subvolume: BorrowedFd<'_>) -> io::Result<bool> {
        let mut nested = Nested::zeroed();
        match NESTED.on(subvolume, &mut nested) {
            // More than fit.
            Err(error) if error.raw_os_error() == Some(libc::EOVERFLOW) => Ok(true),
            asked => asked.map(|()| nested.count > 0),
        }
    }

    fn changes(
        &self,
        subvolume: BorrowedFd<'_>,
        below: Option<BorrowedFd<'_>>,
    ) -> io::Result<Option<SubvolumeChanges>> {
        let roots = [Some(subvolume), below];
        for root in roots.into_iter().flatten() {
            if rustix::fs::fstat(root)?.st_ino != ROOT_INODE {
                return Ok(None);
            }
        }
        // Inodes are written to the tree when a transaction ends; only that is searched.
        let mut transaction = 0;
        START_SYNC.on(subvolume, &mut transaction)?;
        WAIT_SYNC.on(subvolume, &mut transaction)?;
        let since = match below {
            None => 0,
            Some(below) => {
                let (ours, theirs) = (facts(subvolume)?, facts(below)?);
                // No snapshot, or of something that was changed since: numbers of inodes mean nothing.
                if ours.parent_uuid == [0; 16] || ours.made < theirs.changed {
                    return Ok(None);
                }
                theirs.changed
            }
        };
        search(subvolume, since).map(Some)
    }
}

fn facts(subvolume: BorrowedFd<'_>) -> io::Result<SubvolumeFacts> {
    let mut facts = SubvolumeFacts::zeroed();
    FACTS.on(subvolume, &mut facts)?;
    Ok(facts)
}

fn named(name: &OsStr) -> io::Result<VolArgs> {
    let mut arguments = VolArgs::zeroed();
    put(&mut arguments.name, name)?;
    Ok(arguments)
}

/// Puts a single name, ended by a zero, into an argument.
fn put(to: &mut [u8], name: &OsStr) -> io::Result<()> {
    let name = name.as_bytes();
    if name.is_empty() || name.len() > 255 || name.contains(&b'/') || name.contains(&0) {
        return Err(io::Error::from_raw_os_error(libc::EINVAL));
    }
    to[..name.len()].copy_from_slice(name);
    Ok(())
}

/// What of a subvolume was written after the transaction `since`.
fn search(subvolume: BorrowedFd<'_>, since: u64) -> io::Result<SubvolumeChanges> {
    let mut changes = SubvolumeChanges { inodes: HashSet::new(), bytes: 0 };
    let mut request = Box::new(Search::zeroed());
    let mut from = (ROOT_INODE, 0, 0);
    loop {
        request.tree = 0;
        (request.min_object, request.min_type, request.min_offset) = from;
        (request.max_object, request.max_type, request.max_offset) = (LAST_OBJECT, u32::MAX, u64::MAX);
        // Leaves that are older are skipped whole.
        (request.min_transid, request.max_transid) = (since + 1, u64::MAX);
        request.items = u32::MAX;
        request.size = SEARCHED as u64;
        SEARCH.on(subvolume, &mut *request)?;
        if request.items == 0 {
            return Ok(changes);
        }
        let mut at = 0;
        let mut last = from;
        for _ in 0..request.items {
            let header = request.buffer.get(at..at + HEADER).ok_or(io::ErrorKind::InvalidData)?;
            last = (number(header, 8), number32(header, 24), number(header, 16));
            let length = number32(header, 28) as usize;
            at += HEADER;
            let item = request.buffer.get(at..at + length).ok_or(io::ErrorKind::InvalidData)?;
            at += length;
            note(&mut changes, since, last, item);
        }
        from = match last {
            (object, kind, offset) if offset < u64::MAX => (object, kind, offset + 1),
            (object, kind, _) if kind < u32::MAX => (object, kind + 1, 0),
            (object, ..) => (object + 1, 0, 0),
        };
    }
}

/// Looks at one item of the tree: its key is object, type and offset.
fn note(changes: &mut SubvolumeChanges, since: u64, (object, kind, _): (u64, u32, u64), item: &[u8]) {
    match kind {
        INODE_ITEM if item.len() >= 16 && number(item, 8) > since => {
            changes.inodes.insert(object);
        }
        EXTENT_DATA if item.len() >= 21 && number(item, 0) > since => {
            let is_inline = item[20] == 0;
            changes.bytes += match is_inline {
                true => number(item, 8),
                // A hole is an extent at no place.
                false if item.len() >= 53 && number(item, 21) != 0 => number(item, 45),
                false => 0,
            };
        }
        _ => {}
    }
}

fn number(bytes: &[u8], at: usize) -> u64 {
    bytes[at..at + 8].try_into().map_or(0, u64::from_le_bytes)
}

fn number32(bytes: &[u8], at: usize) -> u32 {
    bytes[at..at + 4].try_into().map_or(0, u32::from_le_bytes)
}
