//! `rbuild rename`.

use std::process::ExitCode;

use super::DONE;
use crate::app::App;
use crate::error::CliError;

/// Give a container another name
#[derive(Debug, clap::Args)]
pub struct Args {
    #[arg(value_name = "CONTAINER")]
    container: String,
    #[arg(value_name = "NEW_NAME")]
    name: String,
}

pub async fn run(args: Args, app: &App) -> Result<ExitCode, CliError> {
    let containers = app.engine()?.containers();
    containers.rename(&containers.find(&args.container)?.container, &args.name)?;
    DONE
}
