use std::process::ExitCode;

use crate::app::App;
use crate::commands::commands;
use crate::error::CliError;

/// Manage images
#[derive(Debug, clap::Args)]
pub struct Args {
    #[command(subcommand)]
    command: ImageCommand,
}

commands! {
    /// What stands after `rbuild image`.
    ImageCommand {
        Build(build),
    }
}

pub async fn run(args: Args, app: &App) -> Result<ExitCode, CliError> {
    args.command.run(app).await
}
