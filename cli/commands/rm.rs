//! `rbuild rm`.

use std::process::ExitCode;

use rbuild_engine::Kind;
use rbuild_engine::containers::Removal;

use crate::app::App;
use crate::batch::each;
use crate::error::CliError;

/// Remove containers
#[derive(Debug, clap::Args)]
pub struct Args {
    /// Kill those that run
    #[arg(short, long)]
    force: bool,
    /// Remove their anonymous volumes too
    #[arg(short, long)]
    volumes: bool,
    #[arg(value_name = "CONTAINER", required = true, num_args = 1..)]
    containers: Vec<String>,
}

pub async fn run(args: Args, app: &App) -> Result<ExitCode, CliError> {
    let removal = Removal { force: args.force, volumes: args.volumes };
    let containers = app.engine()?.containers();
    each(app, &args.containers, |name| {
        let removed = containers.find(name).and_then(|seen| containers.remove(&seen.container, removal));
        match removed {
            // Forced, one that is not there is as wanted: told, but no failure.
            Err(error) if args.force && error.kind == Kind::NotFound => {
                crate::terminal::tell(&CliError::from(error).render());
                Ok(None)
            }
            other => Ok(other.map(|()| Some(name.to_owned()))?),
        }
    })
}
