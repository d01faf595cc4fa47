use std::process::ExitCode;

use crate::app::App;
use crate::commands::commands;
use crate::error::CliError;

/// Manage builds
#[derive(Debug, clap::Args)]
pub struct Args {
    #[command(subcommand)]
    command: BuilderCommand,
}

commands! {
    /// What stands after `rbuild builder`.
    BuilderCommand {
        Build(build),
        Du(builder_du),
        Gc(builder_gc),
        Prune(builder_prune),
    }
}

pub async fn run(args: Args, app: &App) -> Result<ExitCode, CliError> {
    args.command.run(app).await
}
