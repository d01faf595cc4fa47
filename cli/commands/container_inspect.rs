//! `rbuild container inspect`.

use std::process::ExitCode;

use super::inspect::show;
use crate::app::App;
use crate::error::CliError;

/// Show all about containers
#[derive(Debug, clap::Args)]
pub struct Args {
    /// How to print them: 'json' or a Go template
    #[arg(short, long, value_name = "FORMAT")]
    format: Option<String>,
    #[arg(value_name = "CONTAINER", required = true, num_args = 1..)]
    containers: Vec<String>,
}

pub async fn run(args: Args, app: &App) -> Result<ExitCode, CliError> {
    let containers = app.engine()?.containers();
    show(app, &args.containers, args.format.as_deref(), |name| Ok(Some(containers.inspect(&containers.find(name)?))))
}
