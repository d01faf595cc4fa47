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
        History(history),
        Import(import),
        Inspect(image_inspect),
        Load(load),
        /// List images
        #[command(visible_alias = "list")]
        Ls(images),
        Prune(image_prune),
        Pull(pull),
        Push(push),
        /// Remove one or more images
        #[command(visible_alias = "remove")]
        Rm(rmi),
        Save(save),
        Tag(tag),
    }
}

pub async fn run(args: Args, app: &App) -> Result<ExitCode, CliError> {
    args.command.run(app).await
}
