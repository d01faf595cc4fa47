//! `rbuild system prune`.

use std::process::ExitCode;

use rbuild_engine::images::ImageFilter;
use rbuild_engine::usage::prune::CachePrune;

use super::{DONE, image_prune, network_prune};
use crate::app::App;
use crate::commands::container_prune;
use crate::error::CliError;
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
    /// Do not ask
    #[arg(short, long)]
    force: bool,
}

pub async fn run(args: Args, app: &App) -> Result<ExitCode, CliError> {
    if !args.force && !confirm::ask(&warning(&args))? {
        return DONE;
    }
    let (containers, mut bytes) = container_prune::prune(app, &container_prune::Limits::default())?;
    let mut text = containers;
    text.push_str(&network_prune::deleted(&app.engine()?.networks().prune(|_| true)?));
    if args.volumes {
        let removed = app.engine()?.volumes().prune(false, &|_| true)?;
        if !removed.is_empty() {
            let names: String = removed.iter().map(|(name, _)| format!("{name}\n")).collect();
            text.push_str(&format!("Deleted Volumes:\n{names}\n"));
        }
        bytes += removed.iter().map(|(_, bytes)| bytes).sum::<u64>();
    }
    let images = app.images()?.prune(args.all, &ImageFilter::default())?;
    text.push_str(&image_prune::deleted(&images.removed));
    let cache = app.engine()?.prune_cache(&CachePrune { all: args.all, ..CachePrune::default() })?;
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
    let lines: Vec<String> = lines.into_iter().map(|line| format!("  - {line}")).collect();
    format!("WARNING! This will remove:\n{}\n", lines.join("\n"))
}
