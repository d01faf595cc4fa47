//! `rbuild system prune`.

use std::process::ExitCode;
use std::time::SystemTime;

use rbuild_engine::usage::prune::{CachePrune, PrunedCache};

use super::{DONE, image_prune, network_prune};
use crate::app::App;
use crate::commands::container_prune;
use crate::error::CliError;
use crate::prune_filter::PruneFilter;
use crate::{confirm, units};

/// Remove what nobody uses: stopped containers, networks, images without a name, the build cache
#[derive(Debug, clap::Args)]
pub struct Args {
    /// All images without a container, not only those without a name
    #[arg(short, long)]
    all: bool,
    /// Anonymous volumes too
    #[arg(long)]
    volumes: bool,
    /// Only what fits: label=KEY[=VALUE], label!=KEY[=VALUE], until=24h
    #[arg(long, value_name = "FILTER")]
    filter: Vec<String>,
    /// Do not ask
    #[arg(short, long)]
    force: bool,
}

pub async fn run(args: Args, app: &App) -> Result<ExitCode, CliError> {
    let filter = PruneFilter::parse(&args.filter)?;
    if args.volumes && filter.until.is_some() {
        return Err(CliError::new(r#"The "until" filter is not supported with "--volumes""#));
    }
    if !args.force && !confirm::ask(&warning(&args))? {
        return DONE;
    }
    let (containers, mut bytes) = container_prune::prune(app, &filter)?;
    let mut text = containers;
    text.push_str(&network_prune::deleted(
        &app.engine()?.networks().prune(|network| filter.takes(&network.labels, network.created_at()))?,
    ));
    if args.volumes {
        let removed = app.engine()?.volumes().prune(false, |volume| filter.takes_labels(&volume.labels))?;
        if !removed.is_empty() {
            let names: String = removed.iter().map(|(name, _)| format!("{name}\n")).collect();
            text.push_str(&format!("Deleted Volumes:\n{names}\n"));
        }
        bytes += removed.iter().map(|(_, bytes)| bytes).sum::<u64>();
    }
    let images = app.images()?.prune(args.all, &image_prune::image_filter(&args.filter)?)?;
    text.push_str(&image_prune::deleted(&images.removed));
    let cache = match filter.names_labels() {
        // Nothing in the build cache has a label.
        true => PrunedCache::default(),
        false => {
            let unused_for = filter.until.map(|until| SystemTime::now().duration_since(until).unwrap_or_default());
            app.engine()?.prune_cache(&CachePrune { all: args.all, unused_for, ..CachePrune::default() })?
        }
    };
    if !cache.records.is_empty() {
        let keys: String = cache.records.iter().map(|key| format!("{key}\n")).collect();
        text.push_str(&format!("Deleted build cache objects:\n{keys}\n"));
    }
    bytes += images.bytes + cache.bytes;
    app.print(&format!("{text}Total reclaimed space: {}\n", units::size(bytes)))?;
    DONE
}

fn warning(args: &Args) -> String {
    let mut lines = vec!["all stopped containers", "all networks not used by at least one container"];
    if args.volumes {
        lines.push("all anonymous volumes not used by at least one container");
    }
    lines.push(match args.all {
        true => "all images without at least one container associated to them",
        false => "all dangling images",
    });
    lines.push(if args.all { "all build cache" } else { "unused build cache" });
    let list = |lines: Vec<&str>| lines.into_iter().map(|line| format!("  - {line}\n")).collect::<String>();
    let text = format!("WARNING! This will remove:\n{}", list(lines));
    if args.filter.is_empty() {
        return text;
    }
    let filters = args.filter.iter().map(String::as_str).collect();
    format!("{text}\n  Items to be pruned will be filtered with:\n{}", list(filters))
}
