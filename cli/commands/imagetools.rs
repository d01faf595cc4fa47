use std::process::ExitCode;

use crate::app::App;
use crate::commands::commands;
use crate::error::CliError;

/// Work on images in registries
#[derive(Debug, clap::Args)]
pub struct Args {
    #[command(subcommand)]
    command: ImagetoolsCommand,
}

commands! {
    /// What stands after `rbuild imagetools`.
    ImagetoolsCommand {
        Create(imagetools_create),
        Inspect(imagetools_inspect),
    }
}

pub async fn run(args: Args, app: &App) -> Result<ExitCode, CliError> {
    args.command.run(app).await
}
