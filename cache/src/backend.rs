//! Where caches are kept outside this machine.

use futures::future::BoxFuture;
use rbuild_oci::{Descriptor, DiffId, ImageConfig, Manifest};
use rbuild_registry::{LayerPacking, LayerSource, PackedLayer, Progress};
use rbuild_store::{Lease, Snapshot, Store};

use crate::error::Error;
use crate::portable::Written;

/// Who hears how far something has come.
pub type Report<'a> = &'a (dyn Fn(Progress) + Send + Sync);

/// A manifest that was found under a name, with its config.
#[derive(Debug, Clone)]
pub struct Stored {
    pub manifest: Manifest,
    pub config: ImageConfig,
}

/// A place for images: some have names, the layers of all lie side by side. What is read is checked against its digest
/// before anybody sees it.
///
/// A name leads to one image and may be taken over by another writer at any time; there is no way to ask that it
/// be not. All that is built on this must do without.
pub trait Backend: Send + Sync {
    /// The place as people are shown it, `registry:host/repository:tag`. Equal places are one.
    fn place(&self) -> &str;

    /// The name of the cache itself; `None` when exactly one image is meant, whatever else is there.
    fn base(&self) -> Option<&str>;

    /// The image under `name`, or with `None` the one that is meant; `None` when there is none.
    fn read<'a>(&'a self, name: Option<&'a str>) -> BoxFuture<'a, Result<Option<Stored>, Error>>;

    /// All names.
    fn names(&self) -> BoxFuture<'_, Result<Vec<String>, Error>>;

    /// A config by its digest.
    fn config<'a>(&'a self, config: &'a Descriptor) -> BoxFuture<'a, Result<ImageConfig, Error>>;

    /// Brings a stack of layers here, unpacked and checked.
    fn bring<'a>(
        &'a self,
        layers: &'a [PackedLayer],
        store: &'a Store,
        lease: &'a Lease,
        report: Report<'a>,
    ) -> BoxFuture<'a, Result<Option<Snapshot>, Error>>;

    /// Brings layers here as they are, compressed, and checked.
    fn bring_packed<'a>(
        &'a self,
        layers: &'a [PackedLayer],
        store: &'a Store,
        lease: &'a Lease,
        report: Report<'a>,
    ) -> BoxFuture<'a, Result<(), Error>>;

    /// A layer on its way to somebody else, who may have it already: nothing is asked before it is read.
    fn source(&self, layer: &Descriptor) -> LayerSource;

    /// Whether a layer is there, or can be had there from `origin` without moving it.
    fn has<'a>(
        &'a self,
        layer: &'a Descriptor,
        origin: &'a str,
        store: &'a Store,
        lease: &'a Lease,
    ) -> BoxFuture<'a, Result<bool, Error>>;

    /// Puts a layer of the store there; gives the form in which it is there now.
    fn put_layer<'a>(
        &'a self,
        diff_id: &'a DiffId,
        packing: LayerPacking,
        store: &'a Store,
        lease: &'a Lease,
    ) -> BoxFuture<'a, Result<Descriptor, Error>>;

    /// Takes names away; one that is not there is as good as removed. What they led to goes when nobody can be reading it
    /// any more: in a directory with a later call, in a registry when that collects what has no name.
    ///
    /// # Errors
    /// The place does not let names be removed.
    fn remove<'a>(&'a self, names: &'a [String]) -> BoxFuture<'a, Result<(), Error>>;

    /// Puts an image whose layers are there under `name`.
    fn put<'a>(
        &'a self,
        name: &'a str,
        image: &'a Written,
        store: &'a Store,
        lease: &'a Lease,
    ) -> BoxFuture<'a, Result<(), Error>>;
}
