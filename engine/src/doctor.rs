//! Looks at the machine: what rbuild needs of it, what is there, and what to do about the rest.
//!
//! Each [`Finding`] is about one thing and is made without the others, so that one broken part does not hide the rest; the
//! store itself is not opened. What can be tried is tried (a mount, a file attribute) rather than concluded from versions.

mod kernel;
mod place;
mod surroundings;

use std::path::Path;

pub use kernel::cgroup_mode;
pub use place::file_system_of;

use serde::Serialize;

/// How one thing is.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize)]
#[serde(rename_all = "lowercase")]
pub enum Verdict {
    Ok,
    /// Something that not everybody needs is missing.
    Warning,
    /// Containers or builds will not work.
    Problem,
}

/// One thing that was looked at.
#[derive(Debug, Clone, PartialEq, Eq, Serialize)]
pub struct Finding {
    pub name: &'static str,
    pub verdict: Verdict,
    /// What is there, or what is wrong.
    pub says: String,
    /// What to do about it.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub advice: Option<String>,
}

impl Finding {
    fn ok(name: &'static str, says: impl Into<String>) -> Self {
        Self { name, verdict: Verdict::Ok, says: says.into(), advice: None }
    }

    fn warning(name: &'static str, says: impl Into<String>, advice: impl Into<String>) -> Self {
        Self { name, verdict: Verdict::Warning, says: says.into(), advice: Some(advice.into()) }
    }

    fn problem(name: &'static str, says: impl Into<String>, advice: impl Into<String>) -> Self {
        Self { name, verdict: Verdict::Problem, says: says.into(), advice: Some(advice.into()) }
    }
}

/// Looks at everything. `root` is the state directory; `has` says whether a program is installed.
pub fn examine(root: &Path, has: &dyn Fn(&str) -> bool) -> Vec<Finding> {
    let mut findings = kernel::examine();
    findings.extend(place::examine(root));
    findings.extend(surroundings::examine(has));
    findings
}
