//! `rbuild builder prune`.

use std::process::ExitCode;
use std::time::SystemTime;

use super::DONE;
use crate::app::App;
use crate::error::CliError;
use crate::{confirm, units};

/// Remove the build cache
#[derive(Debug, clap::Args)]
pub struct Args {
    /// All of it (there are no internal results that would stay otherwise)
    #[arg(short, long)]
    all: bool,
    /// Only what no build used for so long: until=24h
    #[arg(long, value_name = "FILTER")]
    filter: Vec<String>,
    /// Do not ask
    #[arg(short, long)]
    force: bool,
}

pub async fn run(args: Args, app: &App) -> Result<ExitCode, CliError> {
    let until = until(&args.filter)?;
    let what = if args.all { "all build cache" } else { "all dangling build cache" };
    if !args.force && !confirm::ask(&format!("WARNING! This will remove {what}."))? {
        return DONE;
    }
    let pruned = app.engine()?.prune_cache(until)?;
    app.print(&format!("Total reclaimed space: {}\n", units::size(pruned.bytes)))?;
    DONE
}

/// The time that `until=` filters name; the earliest counts.
pub fn until(filters: &[String]) -> Result<Option<SystemTime>, CliError> {
    let mut earliest = None;
    for filter in filters {
        let Some(value) = filter.strip_prefix("until=") else {
            let name = filter.split('=').next().unwrap_or_default();
            return Err(CliError::new(format!("invalid filter '{}'", crate::terminal::clean_line(name))));
        };
        let time = units::time_before(value, SystemTime::now())
            .ok_or_else(|| CliError::new(format!("invalid filter 'until={}'", crate::terminal::clean_line(value))))?;
        earliest = Some(earliest.map_or(time, |other: SystemTime| other.min(time)));
    }
    Ok(earliest)
}
