//! `rbuild network` and its commands.

use std::process::ExitCode;

use crate::app::App;
use crate::commands::commands;
use crate::error::CliError;

/// Manage networks
#[derive(Debug, clap::Args)]
pub struct Args {
    #[command(subcommand)]
    command: NetworkCommand,
}

commands! {
    /// What stands after `rbuild network`.
    NetworkCommand {
        Connect(network_connect),
        Create(network_create),
        Disconnect(network_disconnect),
        Inspect(network_inspect),
        #[command(visible_alias = "list")]
        Ls(network_ls),
        Prune(network_prune),
        #[command(visible_alias = "remove")]
        Rm(network_rm),
    }
}

pub async fn run(args: Args, app: &App) -> Result<ExitCode, CliError> {
    args.command.run(app).await
}
