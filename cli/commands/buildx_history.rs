//! `rbuild buildx history`: the history of builds under buildx's names.

use std::process::ExitCode;

use crate::app::App;
use crate::commands::commands;
use crate::error::CliError;

/// Look at the builds that were made here
#[derive(Debug, clap::Args)]
pub struct Args {
    #[command(subcommand)]
    command: HistoryCommand,
}

commands! {
    /// What stands after `rbuild buildx history`.
    HistoryCommand {
        #[command(hide = true)]
        Export(buildx_history_refused),
        #[command(hide = true)]
        Import(buildx_history_refused),
        Inspect(builds_inspect),
        Logs(builds_logs),
        Ls(builds_ls),
        #[command(hide = true)]
        Open(buildx_history_refused),
        Rm(builds_rm),
        #[command(hide = true)]
        Trace(buildx_history_refused),
    }
}

pub async fn run(args: Args, app: &App) -> Result<ExitCode, CliError> {
    args.command.run(app).await
}
