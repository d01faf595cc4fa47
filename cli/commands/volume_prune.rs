//! `rbuild volume prune`.

use std::process::ExitCode;

use super::DONE;
use crate::app::App;
use crate::error::CliError;
use crate::prune_filter::PruneFilter;
use crate::{confirm, terminal, units};

/// Remove the anonymous volumes that no container has
#[derive(Debug, clap::Args)]
pub struct Args {
    /// Named volumes too
    #[arg(short, long)]
    all: bool,
    /// Only what fits: label=KEY[=VALUE], label!=KEY[=VALUE]; all=true is --all
    #[arg(long, value_name = "FILTER")]
    filter: Vec<String>,
    /// Do not ask
    #[arg(short, long)]
    force: bool,
}

pub async fn run(args: Args, app: &App) -> Result<ExitCode, CliError> {
    let (whole, labels): (Vec<_>, Vec<_>) = args.filter.into_iter().partition(|filter| filter.starts_with("all="));
    let mut all = args.all;
    for filter in &whole {
        all = match filter.as_str() {
            "all=1" | "all=true" => true,
            "all=0" | "all=false" => args.all,
            _ => return Err(CliError::new(format!("invalid filter '{}'", terminal::clean_line(filter)))),
        };
    }
    let filter = PruneFilter::parse(&labels)?;
    if filter.until.is_some() {
        return Err(CliError::new("invalid filter 'until'"));
    }
    let what = if all { "all local volumes not used" } else { "anonymous local volumes not used" };
    if !args.force && !confirm::ask(&format!("WARNING! This will remove {what} by at least one container."))? {
        return DONE;
    }
    let removed = app.engine()?.volumes().prune(all, |volume| filter.takes_labels(&volume.labels))?;
    let mut text = String::new();
    if !removed.is_empty() {
        text.push_str("Deleted Volumes:\n");
        text.extend(removed.iter().map(|(name, _)| format!("{name}\n")));
        text.push('\n');
    }
    let bytes = removed.iter().map(|(_, bytes)| bytes).sum();
    app.print(&format!("{text}Total reclaimed space: {}\n", units::size(bytes)))?;
    DONE
}
