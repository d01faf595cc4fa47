//! `rbuild volume prune`.

use std::process::ExitCode;

use rbuild_engine::volumes::Volume;

use super::DONE;
use crate::app::App;
use crate::error::CliError;
use crate::{confirm, units};

/// Remove the anonymous volumes that no container has
#[derive(Debug, clap::Args)]
pub struct Args {
    /// Named volumes too
    #[arg(short, long)]
    all: bool,
    /// Only those for which it holds: label=KEY[=VALUE], label!=KEY[=VALUE]; all=true is as --all
    #[arg(long = "filter", value_name = "KEY=VALUE")]
    filters: Vec<String>,
    /// Do not ask
    #[arg(short, long)]
    force: bool,
}

pub async fn run(args: Args, app: &App) -> Result<ExitCode, CliError> {
    let mut all = args.all;
    let mut labels = Vec::new();
    for filter in &args.filters {
        let (key, value) =
            filter.split_once('=').ok_or_else(|| CliError::new("bad format of filter (expected name=value)"))?;
        match (key, value) {
            ("all", "true" | "1") => all = true,
            ("all", "false" | "0") => {}
            ("label", value) => labels.push((true, value)),
            ("label!", value) => labels.push((false, value)),
            _ => return Err(CliError::new(format!("invalid filter '{filter}'"))),
        }
    }
    let is_meant = |volume: &Volume| labels.iter().all(|(wanted, label)| has_label(volume, label) == *wanted);
    let what = if all { "all local volumes not used" } else { "anonymous local volumes not used" };
    if !args.force && !confirm::ask(&format!("WARNING! This will remove {what} by at least one container."))? {
        return DONE;
    }
    let removed = app.engine()?.volumes().prune(all, &is_meant)?;
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

/// `KEY`, or `KEY=VALUE`.
fn has_label(volume: &Volume, label: &str) -> bool {
    match label.split_once('=') {
        Some((key, value)) => volume.labels.get(key).is_some_and(|found| found == value),
        None => volume.labels.contains_key(label),
    }
}
