//! `rbuild network disconnect`.

use std::process::ExitCode;

use super::DONE;
use crate::app::App;
use crate::error::CliError;

/// Disconnect a container from a network
#[derive(Debug, clap::Args)]
pub struct Args {
    /// As without: a container is always taken out at once
    #[arg(short, long)]
    force: bool,
    #[arg(value_name = "NETWORK")]
    network: String,
    #[arg(value_name = "CONTAINER")]
    container: String,
}

pub async fn run(args: Args, app: &App) -> Result<ExitCode, CliError> {
    let Args { force: _, network, container } = args;
    let networks = app.engine()?.networks();
    let network = networks.find(&network)?;
    networks.disconnect(&network, &app.engine()?.containers().find(&container)?)?;
    DONE
}
