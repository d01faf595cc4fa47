//! System call filters: which calls a sandbox may make.
//!
//! The default is docker's list, less what the field has learned to regret (see [`profile`]). It is compiled by ourselves:
//! a binary search over call numbers is a few hundred instructions made in microseconds, where libseccomp takes
//! milliseconds and a C library. Calls newer than the list answer "not implemented", so that programs fall back.

mod compile;
mod docker;
mod profile;
mod syscalls;

use std::collections::HashMap;
use std::sync::Mutex;

use oci_spec::runtime::{Capabilities, LinuxSeccomp};

pub(super) use compile::{compile, unpack};
pub use docker::parse_docker_profile;
pub use profile::default_profile;

use super::caps;
use crate::error::Result;

/// Whether a profile can be made a filter.
///
/// # Errors
/// `Refused` for one that is too large or contradicts itself, `Unsupported` for what this runtime does not do.
pub fn check(profile: &LinuxSeccomp) -> Result<()> {
    compile(profile).map(drop)
}

/// Compiled filters of the default profile, which depends on the capabilities.
#[derive(Debug, Default)]
pub(super) struct Cache(Mutex<HashMap<u64, Vec<u64>>>);

impl Cache {
    pub(super) fn default_profile(&self, capabilities: &Capabilities) -> Result<Vec<u64>> {
        let key = capabilities.iter().fold(0, |bits, &one| bits | caps::bit(one));
        let mut known = self.0.lock().unwrap_or_else(|poisoned| poisoned.into_inner());
        if let Some(filter) = known.get(&key) {
            return Ok(filter.clone());
        }
        let filter = compile(&default_profile(capabilities))?;
        known.insert(key, filter.clone());
        Ok(filter)
    }
}
