//! What the executor asks of those around it: the client of the build lends files, the engine knows images.

use std::fmt;
use std::sync::Arc;

use futures::future::BoxFuture;
use rbuild_graph::ops::{ContextSource, ImageSource};
use rbuild_oci::{ChainId, Digest};
use rbuild_solver::RunContext;
use rbuild_store::{Lease, Snapshot};
use tokio::io::{AsyncRead, AsyncWrite};

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

    /// A secret. `None` is one the client does not have.
    ///
    /// # Errors
    /// The client has it and cannot hand it over.
    fn secret<'a>(&'a self, id: &'a str) -> BoxFuture<'a, Result<Option<Secret>, ExecutorError>>;

    /// A new connection to an ssh agent. `None` is one the client does not lend.
    ///
    /// # Errors
    /// The client lends it and it does not answer.
    fn ssh<'a>(&'a self, id: &'a str) -> BoxFuture<'a, Result<Option<Box<dyn AgentStream>>, ExecutorError>>;
}

/// A connection that speaks the ssh agent's protocol.
pub trait AgentStream: AsyncRead + AsyncWrite + Send + Unpin {}

impl<T: AsyncRead + AsyncWrite + Send + Unpin> AgentStream for T {}

/// Bytes that must be written nowhere.
#[derive(Clone, PartialEq, Eq)]
pub struct Secret(Arc<[u8]>);

impl Secret {
    pub fn new(bytes: impl Into<Arc<[u8]>>) -> Secret {
        Secret(bytes.into())
    }

    /// The bytes themselves. Named so that each use is seen.
    pub fn expose(&self) -> &[u8] {
        &self.0
    }
}

impl fmt::Debug for Secret {
    /// Not even its length.
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("Secret")
    }
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
