//! What file systems offer beyond the calls that are wrapped safely elsewhere: subvolumes of btrfs, and limits on how
//! much a directory may hold.
//!
//! Here because `unsafe` is in this crate alone; the store is lent the subvolumes through its own trait.

mod btrfs;
mod ioctl;
mod quota;

pub use btrfs::Btrfs;
pub use quota::{lift, limit};
