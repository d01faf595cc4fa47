//! What operations pass on to each other.

use std::os::fd::{AsFd, BorrowedFd, OwnedFd};
use std::sync::Arc;

use rbuild_store::Snapshot;

use crate::files::index::StatIndex;
use crate::files::walk::PathFilter;
use crate::lazy::Lazy;

/// A result.
#[derive(Clone)]
pub enum Value {
    /// Nothing: the empty file tree.
    Scratch,
    /// A file tree in the store.
    Snapshot(Snapshot),
    /// The user's own files, as they lie. Never stored.
    Context(Context),
    /// A file tree that is brought when somebody needs its files.
    Lazy(Lazy),
}

/// A directory that the client of the build lends.
#[derive(Clone)]
pub struct Context {
    name: Arc<str>,
    root: Arc<OwnedFd>,
    hidden: Option<Arc<dyn PathFilter>>,
    index: Option<Arc<StatIndex>>,
}

impl Context {
    /// `hidden` says what of the directory does not exist for the build.
    pub fn new(name: &str, root: OwnedFd, hidden: Option<Arc<dyn PathFilter>>) -> Context {
        Context { name: name.into(), root: Arc::new(root), hidden, index: None }
    }

    /// With what earlier builds know of its files.
    #[must_use]
    pub fn with_index(self, index: Arc<StatIndex>) -> Context {
        Context { index: Some(index), ..self }
    }

    pub fn index(&self) -> Option<&Arc<StatIndex>> {
        self.index.as_ref()
    }

    pub fn name(&self) -> &str {
        &self.name
    }

    pub fn root(&self) -> BorrowedFd<'_> {
        self.root.as_fd()
    }

    pub fn hidden(&self) -> Option<&Arc<dyn PathFilter>> {
        self.hidden.as_ref()
    }
}

impl Value {
    /// The snapshot, if it is one that is here.
    pub fn snapshot(&self) -> Option<&Snapshot> {
        match self {
            Value::Snapshot(snapshot) => Some(snapshot),
            _ => None,
        }
    }
}

impl std::fmt::Debug for Value {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        match self {
            Value::Scratch => f.write_str("Scratch"),
            Value::Snapshot(snapshot) => write!(f, "Snapshot({:?})", snapshot.id()),
            Value::Context(context) => write!(f, "Context({})", context.name),
            Value::Lazy(lazy) => lazy.fmt(f),
        }
    }
}
