//! `rbuild unpause`.

use std::process::ExitCode;

use crate::app::App;
use crate::batch::each_named;
use crate::error::CliError;

/// Let the processes of paused containers go on
#[derive(Debug, clap::Args)]
pub struct Args {
    #[arg(value_name = "CONTAINER", required = true, num_args = 1..)]
    containers: Vec<String>,
}

pub async fn run(args: Args, app: &App) -> Result<ExitCode, CliError> {
    let containers = app.engine()?.containers();
    each_named(app, &args.containers, |name| Ok(containers.unpause(&containers.find(name)?)?))
}
