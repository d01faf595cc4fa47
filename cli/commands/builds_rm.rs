//! `rbuild builds rm`, which is also `rbuild buildx history rm`.

use std::process::ExitCode;

use rbuild_engine::history::Status;

use super::DONE;
use crate::app::App;
use crate::batch::each_named;
use crate::error::CliError;

/// Remove builds from the history
#[derive(Debug, clap::Args)]
pub struct Args {
    /// All that do not run
    #[arg(long)]
    all: bool,
    /// Ids or their beginnings
    #[arg(value_name = "BUILD")]
    builds: Vec<String>,
}

pub async fn run(args: Args, app: &App) -> Result<ExitCode, CliError> {
    match (args.all, args.builds.is_empty()) {
        (false, true) => return Err(CliError::new("rm requires at least one argument").with_hint("--all means all")),
        (true, false) => return Err(CliError::new("rm requires either --all or at least one argument")),
        _ => {}
    }
    let builds = app.engine()?.builds();
    if args.all {
        let over: Vec<_> = builds.list()?.into_iter().filter(|build| build.status != Status::Running).collect();
        builds.remove(&over)?;
        app.print(&over.iter().map(|build| format!("{}\n", build.id)).collect::<String>())?;
        return DONE;
    }
    each_named(app, &args.builds, |name| {
        let build = builds.find(Some(name))?;
        Ok(builds.remove(&[build])?)
    })
}
