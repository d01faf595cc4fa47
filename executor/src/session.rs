//! What the executor asks of those around it: the client of the build lends files, the engine knows images.

use futures::future::BoxFuture;
use rbuild_graph::ops::{ContextSource, ImageSource};
use rbuild_oci::{ChainId, Digest};
use rbuild_solver::RunContext;
use rbuild_store::{Lease, Snapshot};

use crate::{Context, ExecutorError};

/// What the client of one build lends.
pub trait Session: Send + Sync {
    /// Names this session among all others, so that what rests on its unpinned files is never taken for somebody else's.
    fn id(&self) -> &str;

    /// The files of a context. Success means that the directory is open; nothing has been read.
    ///
    /// # Errors
    /// The client lends no context of this name.
    fn context(&self, source: &ContextSource) -> Result<Context, ExecutorError>;
}

/// Where the file systems of images come from.
pub trait Images: Send + Sync {
    /// Pins an image: which manifest, which layers. Asks a registry only when the name was not resolved before.
    fn pin<'a>(&'a self, source: &'a ImageSource) -> BoxFuture<'a, Result<PinnedImage, ExecutorError>>;

    /// The image's file system as a snapshot, fetched and unpacked as far as it is not here. `None` has no layers.
    fn unpack<'a>(
        &'a self,
        source: &'a ImageSource,
        lease: &'a Lease,
        context: &'a RunContext,
    ) -> BoxFuture<'a, Result<Option<Snapshot>, ExecutorError>>;
}

/// What an image is, independent of its name.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct PinnedImage {
    pub manifest: Digest,
    /// `None` for an image without layers.
    pub chain: Option<ChainId>,
}
