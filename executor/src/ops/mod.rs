//! How each operation is made real: its key, with the list of what is left out, and its run.

pub(crate) mod devices;
pub(crate) mod exec;
pub(crate) mod file;
pub(crate) mod git;
pub(crate) mod http;
pub(crate) mod insecure;
pub(crate) mod merge;
mod recopy;
pub(crate) mod source;
pub(crate) mod unpack;
