//! `rbuild volume rm`.

use std::process::ExitCode;

use rbuild_engine::Kind;

use crate::app::App;
use crate::batch::each;
use crate::error::CliError;

/// Remove volumes that no container has
#[derive(Debug, clap::Args)]
pub struct Args {
    /// Do not fail for those that are not there
    #[arg(short, long)]
    force: bool,
    #[arg(value_name = "VOLUME", required = true, num_args = 1..)]
    volumes: Vec<String>,
}

pub async fn run(args: Args, app: &App) -> Result<ExitCode, CliError> {
    let volumes = app.engine()?.volumes();
    each(app, &args.volumes, |name| match volumes.remove(name) {
        Err(error) if args.force && error.kind == Kind::NotFound => Ok(Some(name.to_owned())),
        other => Ok(other.map(|()| Some(name.to_owned()))?),
    })
}
