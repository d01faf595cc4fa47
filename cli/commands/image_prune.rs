//! `rbuild image prune`.

use std::process::ExitCode;

use rbuild_engine::images::{ImageFilter, Removed};

use super::DONE;
use super::builder_prune::until;
use crate::app::App;
use crate::error::CliError;
use crate::{confirm, units};

/// Remove images that nobody uses
#[derive(Debug, clap::Args)]
pub struct Args {
    /// Remove all images without a container, not only those without a name
    #[arg(short, long)]
    all: bool,
    /// Only what fits: label=KEY[=VALUE], label!=KEY[=VALUE], until=24h
    #[arg(long, value_name = "FILTER")]
    filter: Vec<String>,
    /// Do not ask
    #[arg(short, long)]
    force: bool,
}

pub async fn run(args: Args, app: &App) -> Result<ExitCode, CliError> {
    let filter = image_filter(&args.filter)?;
    let what =
        if args.all { "all images without at least one container associated to them" } else { "all dangling images" };
    if !args.force && !confirm::ask(&format!("WARNING! This will remove {what}."))? {
        return DONE;
    }
    let pruned = app.images()?.prune(args.all, &filter)?;
    let mut text = deleted(&pruned.removed);
    text.push_str(&format!("Total reclaimed space: {}\n", units::size(pruned.bytes)));
    app.print(&text)?;
    DONE
}

/// Filters of images, a time before now among them.
pub fn image_filter(filters: &[String]) -> Result<ImageFilter, CliError> {
    let (times, others): (Vec<_>, Vec<_>) = filters.iter().cloned().partition(|f| f.starts_with("until="));
    Ok(ImageFilter { until: until(&times)?, ..ImageFilter::parse(&others)? })
}

/// What was removed, in docker's words; nothing when nothing was.
pub fn deleted(removed: &[Removed]) -> String {
    if removed.is_empty() {
        return String::new();
    }
    let line = |one: &Removed| match one {
        Removed::Untagged(name) => format!("untagged: {}\n", name.familiar()),
        Removed::Deleted(id) => format!("deleted: {}\n", id.0),
        Removed::Layer(chain) => format!("deleted: {}\n", chain.0),
    };
    let lines: String = removed.iter().map(line).collect();
    format!("Deleted Images:\n{lines}\n")
}
