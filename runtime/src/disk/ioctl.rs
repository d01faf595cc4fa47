//! `ioctl` and `quotactl_fd` on structures of known layout. All `unsafe` of this folder is here.
#![allow(unsafe_code)]

use std::io;
use std::mem::size_of;
use std::os::fd::{AsRawFd, BorrowedFd};
use std::ptr;

/// A structure that a kernel call reads or writes: integers and arrays of them only, so that any bytes are a value.
///
/// # Safety
/// The type has no padding that matters, no pointers and no invalid bit patterns, and is laid out as the kernel's.
pub(super) unsafe trait Plain: Sized {
    /// All bytes zero.
    fn zeroed() -> Self {
        // SAFETY: the implementer promises that any bytes are a value.
        unsafe { std::mem::zeroed() }
    }
}

// SAFETY: an integer.
unsafe impl Plain for u64 {}

/// Declares structures of the kernel's.
macro_rules! plain {
    ($($(#[$about:meta])* $name:ident { $($field:ident: $type:ty),* $(,)? })*) => {$(
        $(#[$about])*
        #[repr(C)]
        pub(super) struct $name { $(pub(super) $field: $type),* }

        // SAFETY: `repr(C)`, and every field is an integer or an array of integers.
        unsafe impl Plain for $name {}
    )*};
}

plain! {
    /// `btrfs_ioctl_vol_args`
    VolArgs { fd: i64, name: [u8; 4088] }
    /// `btrfs_ioctl_vol_args_v2`
    VolArgs2 { fd: i64, transid: u64, flags: u64, unused: [u64; 4], name: [u8; 4040] }
    /// `btrfs_ioctl_get_subvol_info_args`
    SubvolumeFacts {
        treeid: u64, name: [u8; 256], parent_id: u64, dirid: u64, generation: u64, flags: u64,
        uuid: [u8; 16], parent_uuid: [u8; 16], received_uuid: [u8; 16],
        changed: u64, made: u64, sent: u64, received: u64, times: [u64; 8], reserved: [u64; 8],
    }
    /// `btrfs_ioctl_get_subvol_rootref_args`
    Nested { min_treeid: u64, found: [u64; 510], count: u8, align: [u8; 7] }
    /// `btrfs_ioctl_quota_ctl_args`
    QuotaControl { command: u64, status: u64 }
    /// `btrfs_ioctl_qgroup_limit_args`
    GroupLimit { group: u64, flags: u64, referenced: u64, exclusive: u64, reserved: [u64; 2] }
    /// `btrfs_ioctl_search_args_v2` with a buffer
    Search {
        tree: u64, min_object: u64, max_object: u64, min_offset: u64, max_offset: u64,
        min_transid: u64, max_transid: u64, min_type: u32, max_type: u32, items: u32, unused: u32,
        unused_more: [u64; 4], size: u64, buffer: [u8; SEARCHED],
    }
    /// `fsxattr`
    FileAttributes { flags: u32, extent_size: u32, extents: u32, project: u32, cow_extent_size: u32, pad: [u8; 8] }
    /// `if_dqblk`
    QuotaBlock {
        hard: u64, soft: u64, space: u64, hard_inodes: u64, soft_inodes: u64, inodes: u64,
        block_time: u64, inode_time: u64, valid: u32, pad: u32,
    }
}

/// Bytes that one search returns at most.
pub(super) const SEARCHED: usize = 256 << 10;

const WRITE: u32 = 1;
const READ: u32 = 2;

/// The number of a call: what the kernel's `_IOC` makes.
pub(super) struct Call(u32);

impl Call {
    /// One that the kernel reads its argument for.
    pub(super) const fn takes(kind: u8, number: u8, size: usize) -> Call {
        Call::new(WRITE, kind, number, size)
    }

    /// One that fills its argument.
    pub(super) const fn gives(kind: u8, number: u8, size: usize) -> Call {
        Call::new(READ, kind, number, size)
    }

    pub(super) const fn both(kind: u8, number: u8, size: usize) -> Call {
        Call::new(READ | WRITE, kind, number, size)
    }

    const fn new(direction: u32, kind: u8, number: u8, size: usize) -> Call {
        Call(direction << 30 | (size as u32) << 16 | (kind as u32) << 8 | number as u32)
    }

    /// Makes the call. `value` is at least as large as the call's number says.
    pub(super) fn on<T: Plain>(&self, fd: BorrowedFd<'_>, value: &mut T) -> io::Result<()> {
        assert!(size_of::<T>() >= (self.0 >> 16 & 0x3fff) as usize, "the kernel would go past the argument's end");
        // SAFETY: the argument lives across the call, is as large as the kernel takes it to be, and any bytes are a value.
        let result = unsafe { libc::ioctl(fd.as_raw_fd(), self.0 as _, ptr::from_mut(value)) };
        if result < 0 { Err(io::Error::last_os_error()) } else { Ok(()) }
    }
}

/// `quotactl_fd(2)` about project `id` of the file system that `fd` lies on.
pub(super) fn project_quota(fd: BorrowedFd<'_>, command: u32, id: u32, block: &mut QuotaBlock) -> io::Result<()> {
    const PROJECT: u32 = 2;
    // SAFETY: the structure lives across the call and is laid out as `if_dqblk`, which both commands used here take.
    let result = unsafe {
        libc::syscall(libc::SYS_quotactl_fd, fd.as_raw_fd(), command << 8 | PROJECT, id, ptr::from_mut(block))
    };
    if result < 0 { Err(io::Error::last_os_error()) } else { Ok(()) }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn sizes_are_the_kernels() {
        let sizes = [
            (size_of::<VolArgs>(), 4096),
            (size_of::<VolArgs2>(), 4096),
            (size_of::<SubvolumeFacts>(), 504),
            (size_of::<Nested>(), 4096),
            (size_of::<QuotaControl>(), 16),
            (size_of::<GroupLimit>(), 48),
            (size_of::<Search>(), 112 + SEARCHED),
            (size_of::<FileAttributes>(), 28),
            (size_of::<QuotaBlock>(), 72),
        ];
        for (at, (ours, theirs)) in sizes.into_iter().enumerate() {
            assert_eq!(ours, theirs, "structure {at}");
        }
    }
}
