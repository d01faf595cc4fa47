use std::process::ExitCode;

use crate::app::App;
use crate::commands::commands;
use crate::error::CliError;

/// Look after the state directory
#[derive(Debug, clap::Args)]
pub struct Args {
    #[command(subcommand)]
    command: SystemCommand,
}

commands! {
    /// What stands after `rbuild system`.
    SystemCommand {
        Check(system_check),
        Df(system_df),
        Events(events),
        Info(info),
        Prune(system_prune),
    }
}

pub async fn run(args: Args, app: &App) -> Result<ExitCode, CliError> {
    args.command.run(app).await
}
