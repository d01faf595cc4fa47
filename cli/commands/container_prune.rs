//! `rbuild container prune`.

use std::process::ExitCode;

use rbuild_engine::containers::Removal;

use super::DONE;
use crate::app::App;
use crate::error::CliError;
use crate::prune_filter::PruneFilter;
use crate::{confirm, units};

/// Remove all containers that do not run
#[derive(Debug, clap::Args)]
pub struct Args {
    /// Only what fits: label=KEY[=VALUE], label!=KEY[=VALUE], until=24h
    #[arg(long, value_name = "FILTER")]
    filter: Vec<String>,
    /// Do not ask
    #[arg(short, long)]
    force: bool,
}

pub async fn run(args: Args, app: &App) -> Result<ExitCode, CliError> {
    let filter = PruneFilter::parse(&args.filter)?;
    if !args.force && !confirm::ask("WARNING! This will remove all stopped containers.")? {
        return DONE;
    }
    let (text, bytes) = prune(app, &filter)?;
    app.print(&format!("{text}Total reclaimed space: {}\n", units::size(bytes)))?;
    DONE
}

/// Removes the containers that do not run and fit. What is to be said about it, and the bytes they took.
pub fn prune(app: &App, filter: &PruneFilter) -> Result<(String, u64), CliError> {
    let containers = app.engine()?.containers();
    let (mut names, mut bytes) = (Vec::new(), 0);
    for seen in containers.list()? {
        let fits = filter.takes(seen.container.labels(), seen.container.created_at());
        if seen.status.is_alive() || !fits {
            continue;
        }
        let size = containers.layer_size(&seen.container);
        // One that was started meanwhile stays.
        if containers.remove(&seen.container, Removal::default()).is_ok() {
            names.push(seen.container.id);
            bytes += size;
        }
    }
    if names.is_empty() {
        return Ok((String::new(), 0));
    }
    let lines: String = names.iter().map(|id| format!("{id}\n")).collect();
    Ok((format!("Deleted Containers:\n{lines}\n"), bytes))
}
