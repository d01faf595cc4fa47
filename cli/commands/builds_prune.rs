//! `rbuild builds prune`.

use std::process::ExitCode;
use std::time::SystemTime;

use rbuild_engine::history::Status;

use super::DONE;
use crate::app::App;
use crate::error::CliError;
use crate::{confirm, units};

/// Remove builds that are over from the history
#[derive(Debug, clap::Args)]
pub struct Args {
    /// Only those for which it holds: until=<duration or time>
    #[arg(long = "filter", value_name = "FILTER")]
    filters: Vec<String>,
    /// Do not ask
    #[arg(short, long)]
    force: bool,
}

pub async fn run(args: Args, app: &App) -> Result<ExitCode, CliError> {
    let mut before = SystemTime::now();
    for filter in &args.filters {
        let shown = crate::terminal::clean_line(filter);
        let until = filter.strip_prefix("until=").and_then(|until| units::time_before(until, SystemTime::now()));
        before = before.min(until.ok_or_else(|| CliError::new(format!("invalid filter {shown:?}")))?);
    }
    if !args.force && !confirm::ask("WARNING! This will remove builds and their logs from the history.")? {
        return DONE;
    }
    let builds = app.engine()?.builds();
    let old = |build: &_| is_old(build, before);
    let over: Vec<_> = builds.list()?.into_iter().filter(old).collect();
    builds.remove(&over)?;
    app.print(&over.iter().map(|build| format!("{}\n", build.id)).collect::<String>())?;
    DONE
}

fn is_old(build: &rbuild_engine::history::BuildRecord, before: SystemTime) -> bool {
    build.status != Status::Running && build.ended.is_none_or(|ended| ended <= before)
}
