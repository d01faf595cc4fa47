//! `rbuild volume prune`.

use std::process::ExitCode;

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
    /// Do not ask
    #[arg(short, long)]
    force: bool,
}

pub async fn run(args: Args, app: &App) -> Result<ExitCode, CliError> {
    let what = if args.all { "all local volumes not used" } else { "anonymous local volumes not used" };
    if !args.force && !confirm::ask(&format!("WARNING! This will remove {what} by at least one container."))? {
        return DONE;
    }
    let removed = app.engine()?.volumes().prune(args.all)?;
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
