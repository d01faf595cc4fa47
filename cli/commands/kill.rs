//! `rbuild kill`.

use std::process::ExitCode;

use crate::app::App;
use crate::batch::each_named;
use crate::error::CliError;

/// Send a signal to the first process of containers
#[derive(Debug, clap::Args)]
pub struct Args {
    /// The signal, by name or number
    #[arg(short, long, value_name = "SIGNAL", default_value = "KILL")]
    signal: String,
    #[arg(value_name = "CONTAINER", required = true, num_args = 1..)]
    containers: Vec<String>,
}

pub async fn run(args: Args, app: &App) -> Result<ExitCode, CliError> {
    let signal = super::stop::number(&args.signal)?;
    let containers = app.engine()?.containers();
    each_named(app, &args.containers, |name| Ok(containers.kill(&containers.find(name)?.container, signal)?))
}
