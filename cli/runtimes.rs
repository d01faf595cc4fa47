//! Which program makes a container's sandbox: ours, or an OCI runtime by name or path.
//!
//! A name is one of the configuration file's, or of a few that are known to be runtimes and found in `PATH`: any other
//! program of that name is none. It is looked up when the container is made, and kept with it.

use std::path::{Path, PathBuf};

use rbuild_engine::containers::RuntimeRequest;

use crate::error::CliError;
use crate::settings::{DaemonConfig, Settings};

/// What this program itself is called.
const OWN: &str = "rbuild";
/// Programs that are called as the OCI runtime specification says.
const KNOWN: [&str; 6] = ["runc", "crun", "youki", "runsc", "kata-runtime", "kata-qemu"];

/// The runtime that is asked for, else the configured one; `None` is our own sandbox.
///
/// # Errors
/// There is no such runtime, in docker's words.
pub fn chosen(
    asked: Option<&str>,
    settings: &Settings,
    config: &DaemonConfig,
) -> Result<Option<RuntimeRequest>, CliError> {
    let Some(name) = asked.filter(|name| !name.is_empty()).or(config.default_runtime.as_deref()) else {
        return Ok(None);
    };
    let unknown = || CliError::new(format!("unknown or invalid runtime name: {name}"));
    let (program, arguments) = match config.runtimes.get(name) {
        Some(runtime) => (runtime_path(&runtime.path, settings), runtime.runtime_args.clone()),
        None if name == OWN => return Ok(None),
        None if name.starts_with('/') => (runtime_path(Path::new(name), settings), Vec::new()),
        // As docker calls the shims of containerd.
        None => {
            let plain = name.strip_prefix("io.containerd.").and_then(|rest| rest.strip_suffix(".v2")).unwrap_or(name);
            let known = KNOWN.iter().find(|known| **known == plain);
            (known.and_then(|known| settings.program(known)), Vec::new())
        }
    };
    let program = program.ok_or_else(unknown)?;
    Ok(Some(RuntimeRequest { name: name.to_owned(), program, arguments }))
}

/// A program by its path, or by its name in `PATH`.
fn runtime_path(path: &Path, settings: &Settings) -> Option<PathBuf> {
    if !path.is_absolute() {
        return settings.program(path.to_str()?);
    }
    let executable = rustix::fs::access(path, rustix::fs::Access::EXEC_OK).is_ok();
    (executable && path.is_file()).then(|| path.to_owned())
}
