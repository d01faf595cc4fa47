//! placeholder
use super::sys::Instruction;
use crate::error::Result;
use oci_spec::runtime::{Capabilities, LinuxSeccomp};
use std::path::PathBuf;
#[derive(Debug)]
pub(super) struct Cache {
    _directory: PathBuf,
}
impl Cache {
    pub(super) fn new(directory: PathBuf) -> Self {
        Cache { _directory: directory }
    }
    pub(super) fn default_profile(&self, _capabilities: &Capabilities) -> Result<Vec<u64>> {
        Ok(Vec::new())
    }
}
pub(super) fn compile(_profile: &LinuxSeccomp) -> Result<Vec<u64>> {
    Ok(Vec::new())
}
pub(super) fn unpack(_filter: &[u64]) -> Vec<Instruction> {
    Vec::new()
}
