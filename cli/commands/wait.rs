//! `rbuild wait`.

use std::process::ExitCode;

use crate::app::App;
use crate::batch::each;
use crate::error::CliError;

/// Wait until containers have ended and print their exit codes
#[derive(Debug, clap::Args)]
pub struct Args {
    #[arg(value_name = "CONTAINER", required = true, num_args = 1..)]
    containers: Vec<String>,
}

pub async fn run(args: Args, app: &App) -> Result<ExitCode, CliError> {
    let containers = app.engine()?.containers();
    each(app, &args.containers, |name| {
        let code = containers.wait(&containers.find(name)?.container)?;
        Ok(Some(code.to_string()))
    })
}
