//! `rbuild save`.

use std::io::{BufWriter, IsTerminal as _, Write as _};
use std::path::PathBuf;
use std::process::ExitCode;

use rbuild_engine::whole_file::Outside;

use super::DONE;
use crate::app::App;
use crate::error::CliError;
use crate::whole_file;

/// Write images to an archive that docker's and OCI's tools read
#[derive(Debug, clap::Args)]
pub struct Args {
    /// Names or ids; a name without a tag means all its tags
    #[arg(value_name = "IMAGE", required = true)]
    images: Vec<String>,
    /// The archive (default: standard output)
    #[arg(short, long, value_name = "FILE")]
    output: Option<PathBuf>,
    /// The image of this platform only, where there are several
    #[arg(long, value_name = "PLATFORM")]
    platform: Option<String>,
}

pub async fn run(args: Args, app: &App) -> Result<ExitCode, CliError> {
    let images = app.images()?;
    let platform = super::platform(args.platform.as_deref())?;
    match &args.output {
        Some(path) => {
            let saved = tokio::task::block_in_place(|| {
                whole_file::write(path, |out| Ok(images.save(&args.images, platform.as_ref(), out)?))
            });
            saved.map_err(|error| match error.message.starts_with("invalid output path") {
                true => CliError { message: format!("failed to save image: {}", error.message), ..error },
                false => error,
            })?;
        }
        None if std::io::stdout().is_terminal() => {
            return Err(CliError::new("cowardly refusing to save to a terminal. Use the -o flag or redirect"));
        }
        None => tokio::task::block_in_place(|| {
            let mut out = BufWriter::with_capacity(1 << 20, Outside(std::io::stdout().lock()));
            images.save(&args.images, platform.as_ref(), &mut out)?;
            Ok::<_, CliError>(out.flush()?)
        })?,
    }
    DONE
}
