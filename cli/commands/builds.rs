//! `rbuild builds`: the history of builds.

use std::process::ExitCode;

use crate::app::App;
use crate::commands::commands;
use crate::error::CliError;

/// Look at the builds that were made here
#[derive(Debug, clap::Args)]
pub struct Args {
    #[command(subcommand)]
    command: BuildsCommand,
}

commands! {
    /// What stands after `rbuild builds`.
    BuildsCommand {
        Inspect(builds_inspect),
        Logs(builds_logs),
        #[command(visible_alias = "list")]
        Ls(builds_ls),
        Prune(builds_prune),
        Rm(builds_rm),
    }
}

pub async fn run(args: Args, app: &App) -> Result<ExitCode, CliError> {
    args.command.run(app).await
}
