//! What drives a build from a request to graphs.

pub(crate) mod dockerfile;
