//! `rbuild volume` and its commands.

use std::process::ExitCode;

use crate::app::App;
use crate::commands::commands;
use crate::error::CliError;

/// Manage volumes
#[derive(Debug, clap::Args)]
pub struct Args {
    #[command(subcommand)]
    command: VolumeCommand,
}

commands! {
    /// What stands after `rbuild volume`.
    VolumeCommand {
        Create(volume_create),
        Inspect(volume_inspect),
        #[command(visible_alias = "list")]
        Ls(volume_ls),
        Prune(volume_prune),
        #[command(visible_alias = "remove")]
        Rm(volume_rm),
    }
}

pub async fn run(args: Args, app: &App) -> Result<ExitCode, CliError> {
    args.command.run(app).await
}
