//! `rbuild tag`.

use std::process::ExitCode;

use super::DONE;
use crate::app::App;
use crate::commands::reference;
use crate::error::CliError;
use crate::terminal::clean_line;

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
    let target = reference(&args.target).map_err(|error| {
        let shown = clean_line(&args.target);
        CliError::new(format!("error parsing reference: {shown:?} is not a valid repository/tag: {error}"))
    })?;
    app.images()?.tag(&args.source, &target)?;
    DONE
}
