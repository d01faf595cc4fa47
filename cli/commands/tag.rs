//! `rbuild tag`.

use std::process::ExitCode;

use super::DONE;
use crate::app::App;
use crate::commands::reference;
use crate::error::CliError;

/// Give an image another name
#[derive(Debug, clap::Args)]
pub struct Args {
    /// The image
    #[arg(value_name = "SOURCE_IMAGE[:TAG]")]
    source: String,
    /// Its new name
    #[arg(value_name = "TARGET_IMAGE[:TAG]")]
    target: String,
}

pub async fn run(args: Args, app: &App) -> Result<ExitCode, CliError> {
    let target = reference(&args.target)?;
    app.images()?.tag(&args.source, &target)?;
    DONE
}
