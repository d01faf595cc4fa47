use std::process::ExitCode;

use crate::app::App;
use crate::commands::commands;
use crate::error::CliError;

/// Commands under the names that buildx has for them
#[derive(Debug, clap::Args)]
pub struct Args {
    #[command(subcommand)]
    command: BuildxCommand,
}

commands! {
    /// What stands after `rbuild buildx`.
    BuildxCommand {
        Build(build),
        Du(builder_du),
        History(buildx_history),
        Imagetools(imagetools),
        Prune(builder_prune),
    }
}

pub async fn run(args: Args, app: &App) -> Result<ExitCode, CliError> {
    args.command.run(app).await
}
