//! Operations that bring something in from outside.

use rbuild_oci::{Digest, Platform, Reference};
use serde::{Deserialize, Serialize};

/// Where the bytes come from.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[non_exhaustive]
pub enum SourceOp {
    Image(ImageSource),
    Context(ContextSource),
    Http(HttpSource),
    Git(GitSource),
    OciLayout(LayoutSource),
}

/// The file system of an image.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct ImageSource {
    pub reference: Reference,
    pub platform: Platform,
    /// The manifest that the name was resolved to, so that the graph is pinned; `None` leaves it to the executor.
    pub digest: Option<Digest>,
}

/// Files that the client of the build lends: a build context.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct ContextSource {
    /// `context` for the main one, else the name of a named context.
    pub name: String,
    /// Wildcards of what is wanted; empty is everything.
    pub include: Vec<String>,
    /// Patterns of `.dockerignore` in their order.
    pub exclude: Vec<String>,
}

/// One file from a web server.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct HttpSource {
    pub url: String,
    /// The digest its content must have.
    pub checksum: Option<Digest>,
    /// The name of the file in the result.
    pub filename: String,
    /// Permission bits; 0600 when not said.
    pub mode: Option<u32>,
    pub uid: u32,
    pub gid: u32,
}

/// A revision of a git repository.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct GitSource {
    pub remote: String,
    /// Branch, tag or commit; `None` is the remote's default.
    pub reference: Option<String>,
    pub subdir: Option<String>,
    /// The commit (or a prefix) the reference must resolve to.
    pub checksum: Option<String>,
    pub keep_git_dir: bool,
    pub submodules: bool,
}

/// An image in an OCI layout that the client lends.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct LayoutSource {
    pub name: String,
    pub digest: Digest,
    pub platform: Platform,
}
