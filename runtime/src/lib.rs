//! Namespaces, sandboxes and networks: the only crate with `unsafe`.

pub mod network;
