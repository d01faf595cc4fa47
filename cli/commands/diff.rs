//! `rbuild diff`.

use std::os::unix::ffi::OsStrExt as _;
use std::process::ExitCode;

use rbuild_engine::containers::ChangeKind;

use super::DONE;
use crate::app::App;
use crate::error::CliError;

/// List what a container has added (A), changed (C) and deleted (D)
#[derive(Debug, clap::Args)]
pub struct Args {
    #[arg(value_name = "CONTAINER")]
    container: String,
}

pub async fn run(args: Args, app: &App) -> Result<ExitCode, CliError> {
    let containers = app.engine()?.containers();
    let mut out = Vec::new();
    for change in containers.diff(&containers.find(&args.container)?.container)? {
        out.extend_from_slice(match change.kind {
            ChangeKind::Added => b"A ",
            ChangeKind::Changed => b"C ",
            ChangeKind::Deleted => b"D ",
        });
        out.extend_from_slice(change.path.as_os_str().as_bytes());
        out.push(b'\n');
    }
    match String::from_utf8(out) {
        Ok(text) => app.print(&text)?,
        Err(bytes) => app.write_out(bytes.as_bytes())?,
    }
    DONE
}
