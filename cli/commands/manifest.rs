use std::process::ExitCode;

use crate::app::App;
use crate::commands::commands;
use crate::error::CliError;

/// Look at manifests in registries, and make lists of them
#[derive(Debug, clap::Args)]
pub struct Args {
    #[command(subcommand)]
    command: ManifestCommand,
}

commands! {
    /// What stands after `rbuild manifest`.
    ManifestCommand {
        Annotate(manifest_annotate),
        Create(manifest_create),
        Inspect(manifest_inspect),
        Push(manifest_push),
        Rm(manifest_rm),
    }
}

pub async fn run(args: Args, app: &App) -> Result<ExitCode, CliError> {
    args.command.run(app).await
}
