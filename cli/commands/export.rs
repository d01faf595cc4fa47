//! `rbuild export`.

use std::io::{BufWriter, IsTerminal as _, Write as _};
use std::path::{Path, PathBuf};
use std::process::ExitCode;

use super::DONE;
use crate::app::App;
use crate::error::CliError;

/// Write a container's file system as a tar archive
#[derive(Debug, clap::Args)]
pub struct Args {
    /// File to write, in place of standard output
    #[arg(short, long, value_name = "FILE")]
    output: Option<PathBuf>,
    #[arg(value_name = "CONTAINER")]
    container: String,
}

pub async fn run(args: Args, app: &App) -> Result<ExitCode, CliError> {
    let containers = app.engine()?.containers();
    let container = containers.find(&args.container)?.container;
    match &args.output {
        Some(path) => whole_file(path, |out| Ok(containers.export(&container, out).map(drop)?))?,
        None if std::io::stdout().is_terminal() => {
            let message = "cowardly refusing to save to a terminal. Use the -o flag or redirect";
            return Err(CliError::new(message));
        }
        None => {
            let mut out = BufWriter::with_capacity(1 << 16, std::io::stdout().lock());
            containers.export(&container, &mut out)?;
            out.flush()?;
        }
    }
    DONE
}

/// Writes a file that appears whole or not at all.
fn whole_file(
    path: &Path,
    write: impl FnOnce(&mut dyn std::io::Write) -> Result<(), CliError>,
) -> Result<(), CliError> {
    let failed = |e: std::io::Error| CliError::new(format!("failed to write {}: {e}", path.display()));
    if path.is_dir() {
        return Err(CliError::new(format!("invalid output path: \"{}\" must not be a directory", path.display())));
    }
    // A device or a pipe cannot be replaced, only written to.
    let special = std::fs::metadata(path).is_ok_and(|m| !m.is_file());
    let mut name = path.file_name().unwrap_or_default().to_owned();
    name.push(format!(".{}.part", std::process::id()));
    let aside = if special { path.to_owned() } else { path.with_file_name(name) };
    let file = std::fs::File::create(&aside).map_err(failed)?;
    let mut out = BufWriter::with_capacity(1 << 16, file);
    let written = write(&mut out).and_then(|()| out.flush().map_err(failed));
    if special {
        return written;
    }
    match written {
        Ok(()) => std::fs::rename(&aside, path).map_err(failed),
        Err(error) => {
            // The failure is what the user wants to hear of, not that a part stays.
            drop(std::fs::remove_file(&aside));
            Err(error)
        }
    }
}
