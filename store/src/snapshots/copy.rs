//! Snapshots that are full copies, for file systems and kernels without overlay. Users call it `vfs`.
//!
//! `snapshots/<id>/fs` holds the whole tree. Nothing needs mounting privileges, and nothing is shared but what the file
//! system shares by itself (reflinks). Hard links between snapshots would be quicker, and would show: `cp -a` would join
//! what was never joined.

use std::ffi::OsStr;

use super::Driver;
use super::tree;
use super::whole::Trees;
use crate::error::{Context, Result};
use crate::root::Dir;

/// The driver `vfs`.
pub(super) struct Copy;

impl Trees for Copy {
    const DRIVER: Driver = Driver::Vfs;

    fn empty(&self, dir: &Dir) -> Result<()> {
        dir.mkdir(OsStr::new("fs"), 0o755).map(drop).context(|| "making a writable layer".to_owned())
    }

    fn duplicate(&self, of: &Dir, dir: &Dir) -> Result<()> {
        let what = || "copying a snapshot".to_owned();
        let fs = dir.mkdir(OsStr::new("fs"), 0o755).context(what)?;
        tree::copy_tree(of, &fs).context(what)
    }
}
