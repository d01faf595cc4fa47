//! What the frontend must know from outside, and how it asks.

use std::collections::HashMap;

use rbuild_graph::Span;
use rbuild_oci::{Digest, ImageConfig, Platform, Reference};

/// Everything known so far. Ask again with more after an [`Outcome::Missing`](crate::Outcome::Missing).
#[derive(Debug, Clone, Default)]
pub struct Facts {
    /// By the reference and platform of a [`FactRequest::ImageConfig`], exactly as asked.
    pub images: HashMap<(Reference, Platform), ImageFact>,
}

/// An image that a name was resolved to.
#[derive(Debug, Clone, PartialEq)]
pub struct ImageFact {
    /// The manifest (or index) the name stands for now.
    pub digest: Digest,
    pub config: ImageConfig,
    /// Whether the graph is to name the image by this digest, so that what is built from it is what was resolved.
    /// `false` leaves the name to the executor.
    pub pinned: bool,
}

/// Something to find out.
#[derive(Debug, Clone, PartialEq)]
#[non_exhaustive]
pub enum FactRequest {
    /// Which image this is, and its config.
    ImageConfig {
        reference: Reference,
        platform: Platform,
        /// Where the Dockerfile names it first; for the error when there is no such image.
        span: Option<Span>,
        /// A stage of nearly the same name: the likely meaning when there is no such image.
        near: Option<String>,
    },
}
