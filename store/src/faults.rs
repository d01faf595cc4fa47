//! Fail points: places where a test makes a process die, or a step fail, between two steps that belong together.
//!
//! They belong to one open store ([`StoreOptions::faults`](crate::StoreOptions::faults)), so that nothing global is needed and
//! tests in one process do not meet each other's. In release builds they are nothing: no field, no call.

use crate::error::Result;

/// Every fail point, in about the order in which a store meets them. A test walks the list, so a new one is tested from
/// the day it is named.
pub const POINTS: &[&str] = &[
    "store.directories",
    "store.database",
    "lease.made",
    "blob.written",
    "blob.renamed",
    "blob.row",
    "snapshot.written",
    "snapshot.renamed",
    "snapshot.row",
    "flush.synced",
    "image.flushed",
    "image.row",
    "image.removed",
    "collect.rows",
    "collect.renamed",
    "collect.removed",
    "lease.rows",
    "lease.ingest",
];

/// What happens at a fail point.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Fault {
    /// The process is killed, as by `kill -9`.
    Kill,
    /// The step fails with this error number.
    Error(i32),
}

/// Where what happens; usually nowhere.
#[derive(Debug, Clone, Default)]
pub struct Faults {
    #[cfg(debug_assertions)]
    at: Option<(&'static str, Fault)>,
}

impl Faults {
    /// `fault` at the point of this name, in builds that have fail points; `None` when there is no such point.
    pub fn at(name: &str, fault: Fault) -> Option<Faults> {
        let point = POINTS.iter().find(|point| **point == name)?;
        #[cfg(debug_assertions)]
        return Some(Faults { at: Some((point, fault)) });
        #[cfg(not(debug_assertions))]
        return {
            let _ = (point, fault);
            Some(Faults::default())
        };
    }

    #[cfg(debug_assertions)]
    pub(crate) fn pass(&self, point: &'static str) -> Result<()> {
        debug_assert!(POINTS.contains(&point), "{point} is not listed");
        match self.at {
            Some((at, Fault::Kill)) if at == point => loop {
                // Only refused to those without the right, and everybody has it over himself.
                let _ = rustix::process::kill_process(rustix::process::getpid(), rustix::process::Signal::KILL);
            },
            Some((at, Fault::Error(number))) if at == point => {
                Err(crate::StoreError::io(format!("at {point}"), std::io::Error::from_raw_os_error(number)))
            }
            _ => Ok(()),
        }
    }

    #[cfg(not(debug_assertions))]
    #[inline(always)]
    pub(crate) fn pass(&self, _point: &'static str) -> Result<()> {
        Ok(())
    }
}
