//! `rbuild network rm`.

use std::process::ExitCode;

use rbuild_engine::Kind;

use crate::app::App;
use crate::batch::each;
use crate::error::CliError;

/// Remove networks to which no running container is connected
#[derive(Debug, clap::Args)]
pub struct Args {
    /// Do not fail for those that are not there
    #[arg(short, long)]
    force: bool,
    #[arg(value_name = "NETWORK", required = true, num_args = 1..)]
    networks: Vec<String>,
}

pub async fn run(args: Args, app: &App) -> Result<ExitCode, CliError> {
    let networks = app.engine()?.networks();
    each(app, &args.networks, |name| match networks.find(name).and_then(|network| networks.remove(&network)) {
        Err(error) if args.force && error.kind == Kind::NotFound => Ok(None),
        other => Ok(other.map(|()| Some(name.to_owned()))?),
    })
}
