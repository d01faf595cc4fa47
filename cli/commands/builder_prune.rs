//! `rbuild builder prune`, `rbuild buildx prune`.

use std::process::ExitCode;
use std::time::SystemTime;

use rbuild_engine::usage::prune::{CacheLimits, CachePrune};

use super::DONE;
use super::builder_du::{self, Wanted};
use crate::app::App;
use crate::error::CliError;
use crate::{confirm, units, values};

/// Remove the build cache
#[derive(Debug, clap::Args)]
pub struct Args {
    /// Also the results of steps that images consist of
    #[arg(short, long)]
    all: bool,
    /// Only what fits: id=ID, type=TYPE, parents=ID, description~=TEXT, mutable, immutable, shared, private, until=24h
    #[arg(long, value_name = "FILTER")]
    filter: Vec<String>,
    /// Do not ask
    #[arg(short, long)]
    force: bool,
    /// Keep so much of the cache in any case
    #[arg(long, value_name = "BYTES", value_parser = values::bytes, default_value = "0", alias = "keep-storage")]
    reserved_space: u64,
    /// Keep no more than this
    #[arg(long, value_name = "BYTES", value_parser = values::bytes, default_value = "0")]
    max_used_space: u64,
    /// Remove until so much of the disk is free
    #[arg(long, value_name = "BYTES", value_parser = values::bytes, default_value = "0")]
    min_free_space: u64,
    /// Show all that is known of each entry
    #[arg(long)]
    verbose: bool,
}

pub async fn run(args: Args, app: &App) -> Result<ExitCode, CliError> {
    let wanted = Wanted::parse(&args.filter)?;
    let what = if args.all { "all build cache" } else { "all dangling build cache" };
    if !args.force && !confirm::ask_in_line(&format!("WARNING! This will remove {what}."))? {
        return DONE;
    }
    let prune = CachePrune {
        all: args.all,
        any_of: if wanted.filters.is_empty() { Vec::new() } else { vec![wanted.filters] },
        unused_for: wanted.unused_for,
        limits: CacheLimits {
            reserved: args.reserved_space,
            max_used: args.max_used_space,
            min_free: args.min_free_space,
        },
    };
    let pruned = app.engine()?.prune_cache(&prune)?;
    let now = SystemTime::now();
    let mut text = match pruned.entries.is_empty() {
        true => String::new(),
        false if args.verbose => builder_du::pretty(&pruned.entries, now),
        false => builder_du::table(&pruned.entries, now)?,
    };
    text.push_str(&format!("Total:\t{}\n", units::size(pruned.bytes)));
    app.print(&text)?;
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
