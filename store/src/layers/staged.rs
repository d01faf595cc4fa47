//! A layer that is unpacked but stands on nothing yet.

use std::ffi::{OsStr, OsString};
use std::io::Read;

use rbuild_oci::{DiffId, Sha256};

use super::apply::{self, Marks, Unpacked};
use super::compress::{Codec, Decompressed};
use super::merge;
use super::pipe;
use super::read::Reader;
use super::whiteout::Lowers;
use crate::error::{Context, Result, StoreError};
use crate::lease::Lease;
use crate::root::Root;
use crate::snapshots::{Active, Driver, Snapshot};
use crate::store::Store;

/// An unpacked layer. Dropped, it leaves nothing.
pub struct Staged {
    /// The digest of the uncompressed tar.
    pub diff_id: DiffId,
    /// Bytes of the uncompressed tar.
    pub size: u64,
    /// How the stream was compressed.
    pub codec: Codec,
    unpacked: Unpacked,
    place: Place,
}

/// Where it lies.
enum Place {
    /// The future snapshot's own directory.
    Active(Box<Active>),
    /// A directory to be merged over a copy of the parent.
    Scratch(Scratch),
}

/// What an archive is taken for.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Meaning {
    Layer,
    Rootfs,
}

impl Staged {
    pub(super) fn unpack(store: &Store, reader: impl Read + Send, lease: &Lease, meaning: Meaning) -> Result<Staged> {
        let (place, root, marks) = match store.driver() {
            Driver::Overlay => {
                let active = store.snapshots().prepare(lease, None)?;
                let root = Root::open(active.upper()).context(|| format!("opening {:?}", active.upper()))?;
                (Place::Active(Box::new(active)), root, Marks::Overlay)
            }
            Driver::Vfs | Driver::Btrfs => {
                let scratch = Scratch::new(lease)?;
                let root = scratch.root()?;
                (Place::Scratch(scratch), root, Marks::Files)
            }
        };
        let marks = if meaning == Meaning::Rootfs { Marks::Refused } else { marks };
        let plain = Decompressed::new(reader).map_err(|e| super::from_io("reading the archive", e))?;
        let codec = plain.codec;
        let mut hash = Sha256::new();
        let mut size = 0;
        // Decompression and hashing on one thread, files on the other.
        let unpacked = pipe::scoped(
            |out| copy_hashed(plain, out, &mut hash, &mut size).map_err(|e| super::from_io("reading the archive", e)),
            |input| apply::unpack(&mut Reader::new(input), &root, marks),
        )?;
        Ok(Staged { diff_id: DiffId(hash.finish()), size, codec, unpacked, place })
    }

    /// Checks that it is the layer it should be.
    pub fn expect(&self, diff_id: &DiffId) -> Result<()> {
        match self.diff_id == *diff_id {
            true => Ok(()),
            false => Err(StoreError::WrongDigest {
                what: "an uncompressed layer".into(),
                expected: diff_id.0.clone(),
                found: self.diff_id.0.clone(),
            }),
        }
    }

    pub(super) fn stack(self, store: &Store, parent: Option<&Snapshot>) -> Result<Snapshot> {
        let lowers = match parent {
            Some(parent) => store.layers().lowers(parent.id())?,
            None => Lowers::default(),
        };
        match self.place {
            Place::Active(mut active) => {
                let root = Root::open(active.upper()).context(|| format!("opening {:?}", active.upper()))?;
                active.set_parent(parent)?;
                self.unpacked.settle(&root, &lowers)?;
                store.snapshots().commit(*active)
            }
            Place::Scratch(scratch) => {
                let layer = scratch.root()?;
                self.unpacked.settle(&layer, &lowers)?;
                let active = store.snapshots().prepare(&scratch.lease, parent.map(Snapshot::id))?;
                let tree = Root::open(active.upper()).context(|| format!("opening {:?}", active.upper()))?;
                merge::merge(&layer, &tree)?;
                store.snapshots().commit(active)
            }
        }
    }
}

fn copy_hashed(
    mut from: impl Read,
    to: &mut pipe::PipeWriter,
    hash: &mut Sha256,
    size: &mut u64,
) -> std::io::Result<()> {
    use std::io::Write;
    let mut buffer = vec![0; 128 << 10];
    loop {
        match from.read(&mut buffer) {
            Ok(0) => return Ok(()),
            Ok(len) => {
                hash.update(&buffer[..len]);
                *size += len as u64;
                to.write_all(&buffer[..len])?;
            }
            Err(e) if e.kind() == std::io::ErrorKind::Interrupted => {}
            Err(e) => return Err(e),
        }
    }
}

/// A directory in the lease's ingest that goes when this is dropped.
struct Scratch {
    lease: Lease,
    name: OsString,
}

impl Scratch {
    fn new(lease: &Lease) -> Result<Scratch> {
        let name = lease.fresh_name("layer-");
        lease.ingest_fd()?.mkdir(&name, 0o755).context(|| "making a directory for a layer".to_owned())?;
        Ok(Scratch { lease: lease.clone(), name })
    }

    fn root(&self) -> Result<Root> {
        let name: &OsStr = &self.name;
        let dir = self.lease.ingest_fd()?.open_dir(name).context(|| "opening a staged layer".to_owned())?;
        Root::from_fd(dir.into_fd()).context(|| "opening a staged layer".to_owned())
    }
}

impl Drop for Scratch {
    fn drop(&mut self) {
        let Ok(ingest) = self.lease.ingest_fd() else { return };
        if let Err(error) = ingest.remove_all(&self.name) {
            // It goes with the lease.
            tracing::debug!("removing a staged layer: {error}");
        }
    }
}
