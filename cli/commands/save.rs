//! `rbuild save`.

use std::fs::{File, OpenOptions};
use std::io::{BufWriter, IsTerminal as _, Write as _};
use std::os::unix::fs::{FileTypeExt as _, OpenOptionsExt as _};
use std::path::{Path, PathBuf};
use std::process::ExitCode;

use rbuild_engine::images::Images;

use super::DONE;
use crate::app::App;
use crate::error::CliError;

/// Write images to an archive that docker's and OCI's tools read
#[derive(Debug, clap::Args)]
pub struct Args {
    /// Names or ids; a name without a tag means all its tags
    #[arg(value_name = "IMAGE", required = true)]
    images: Vec<String>,
    /// The archive (default: standard output)
    #[arg(short, long, value_name = "FILE")]
    output: Option<PathBuf>,
}

pub async fn run(args: Args, app: &App) -> Result<ExitCode, CliError> {
    let images = app.images()?;
    match &args.output {
        Some(path) => tokio::task::block_in_place(|| to_file(&images, &args.images, path))?,
        None if std::io::stdout().is_terminal() => {
            return Err(CliError::new("cowardly refusing to save to a terminal. Use the -o flag or redirect"));
        }
        None => tokio::task::block_in_place(|| {
            let mut out = BufWriter::with_capacity(1 << 20, std::io::stdout().lock());
            images.save(&args.images, &mut out)?;
            Ok::<_, CliError>(out.flush()?)
        })?,
    }
    DONE
}

/// A file appears complete or not at all. What is no file (a pipe, `/dev/null`) is written to as it is.
fn to_file(images: &Images, names: &[String], path: &Path) -> Result<(), CliError> {
    let failed = |e: std::io::Error| CliError::new(format!("{}: {e}", path.display()));
    if path.metadata().is_ok_and(|m| m.file_type().is_fifo() || m.file_type().is_char_device()) {
        let file = OpenOptions::new().write(true).open(path).map_err(failed)?;
        return write(images, names, file, path);
    }
    if path.is_dir() {
        return Err(failed(std::io::ErrorKind::IsADirectory.into()));
    }
    let name = path.file_name().ok_or_else(|| failed(std::io::ErrorKind::InvalidInput.into()))?;
    let aside = path.with_file_name(format!(".{}.{}", name.to_string_lossy(), std::process::id()));
    let open = OpenOptions::new().write(true).create_new(true).mode(0o600).open(&aside).map_err(failed)?;
    let outcome = write(images, names, open, path).and_then(|()| std::fs::rename(&aside, path).map_err(failed));
    if outcome.is_err() {
        drop(std::fs::remove_file(&aside));
    }
    outcome
}

fn write(images: &Images, names: &[String], file: File, path: &Path) -> Result<(), CliError> {
    let mut out = BufWriter::with_capacity(1 << 20, file);
    images.save(names, &mut out)?;
    out.flush().map_err(|e| CliError::new(format!("{}: {e}", path.display())))
}
