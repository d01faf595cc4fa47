//! `rbuild network inspect`.

use std::process::ExitCode;

use super::inspect::show;
use crate::app::App;
use crate::error::CliError;

/// Show all about networks
#[derive(Debug, clap::Args)]
pub struct Args {
    /// How to print them: 'json' or a Go template
    #[arg(short, long, value_name = "FORMAT")]
    format: Option<String>,
    /// As without: there are no services of a cluster
    #[arg(short, long)]
    verbose: bool,
    #[arg(value_name = "NETWORK", required = true, num_args = 1..)]
    networks: Vec<String>,
}

pub async fn run(args: Args, app: &App) -> Result<ExitCode, CliError> {
    let Args { format, verbose: _, networks: names } = args;
    let networks = app.engine()?.networks();
    show(app, &names, format.as_deref(), |name| Ok(Some(networks.inspect(&networks.find(name)?)?)))
}
