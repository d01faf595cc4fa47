//! `rbuild container` and its commands.

use std::process::ExitCode;

use crate::app::App;
use crate::commands::commands;
use crate::error::CliError;

/// Manage containers
#[derive(Debug, clap::Args)]
pub struct Args {
    #[command(subcommand)]
    command: ContainerCommand,
}

commands! {
    /// What stands after `rbuild container`.
    ContainerCommand {
        Attach(attach),
        Commit(commit),
        Cp(cp),
        Create(create),
        Diff(diff),
        Exec(exec),
        Export(export),
        Inspect(container_inspect),
        Kill(kill),
        Logs(logs),
        #[command(visible_aliases = ["list", "ps"])]
        Ls(ps),
        Pause(pause),
        Port(port),
        Prune(container_prune),
        Rename(rename),
        Restart(restart),
        #[command(visible_alias = "remove")]
        Rm(rm),
        Run(run),
        Start(start),
        Stats(stats),
        Stop(stop),
        Top(top),
        Unpause(unpause),
        Update(update),
        Wait(wait),
    }
}

pub async fn run(args: Args, app: &App) -> Result<ExitCode, CliError> {
    args.command.run(app).await
}
