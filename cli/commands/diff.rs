//! `rbuild diff`.

use std::os::unix::ffi::OsStrExt as _;
use std::process::ExitCode;

use rbuild_engine::containers::ChangeKind;
use rbuild_engine::images::DifferenceKind;

use super::DONE;
use crate::app::App;
use crate::error::CliError;

/// List what a container has added (A), changed (C) and deleted (D); of two images what the second has differently
///
/// For images each line also says by how many bytes the content grew or shrank.
#[derive(Debug, clap::Args)]
pub struct Args {
    /// A container; or two images
    #[arg(value_name = "CONTAINER | IMAGE IMAGE", required = true, num_args = 1..=2)]
    names: Vec<String>,
}

pub async fn run(args: Args, app: &App) -> Result<ExitCode, CliError> {
    let name = match args.names.as_slice() {
        [one, other] => return images(app, one, other),
        names => &names[0],
    };
    let containers = app.engine()?.containers();
    let mut out = Vec::new();
    for change in containers.diff(&containers.find(name)?.container)? {
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

fn images(app: &App, one: &str, other: &str) -> Result<ExitCode, CliError> {
    let mut out = Vec::new();
    let differences = app.images()?.compare(one, other)?;
    for difference in &differences {
        out.extend_from_slice(match difference.kind {
            DifferenceKind::Added => b"A ",
            DifferenceKind::Changed => b"C ",
            DifferenceKind::Deleted => b"D ",
        });
        out.extend_from_slice(&difference.path);
        let grown = i128::from(difference.after) - i128::from(difference.before);
        out.extend_from_slice(format!(" {grown:+}\n").as_bytes());
    }
    match String::from_utf8(out) {
        Ok(text) => app.print(&text)?,
        Err(bytes) => app.write_out(bytes.as_bytes())?,
    }
    DONE
}
