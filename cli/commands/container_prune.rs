//! `rbuild container prune`.

use std::process::ExitCode;

use rbuild_engine::containers::{Removal, Status};

use super::DONE;
use crate::app::App;
use crate::error::CliError;
use crate::{confirm, units};

/// Remove all containers that do not run
#[derive(Debug, clap::Args)]
pub struct Args {
    /// Do not ask
    #[arg(short, long)]
    force: bool,
}

pub async fn run(args: Args, app: &App) -> Result<ExitCode, CliError> {
    if !args.force && !confirm::ask("WARNING! This will remove all stopped containers.")? {
        return DONE;
    }
    let containers = app.engine()?.containers();
    let (mut names, mut bytes) = (Vec::new(), 0);
    for seen in containers.list()? {
        if matches!(seen.status, Status::Running | Status::Paused) {
            continue;
        }
        let size = containers.layer_size(&seen.container);
        // One that was started meanwhile stays.
        if containers.remove(&seen.container, Removal::default()).is_ok() {
            names.push(seen.container.id);
            bytes += size;
        }
    }
    let mut text = String::new();
    if !names.is_empty() {
        text.push_str("Deleted Containers:\n");
        text.extend(names.iter().map(|id| format!("{id}\n")));
        text.push('\n');
    }
    app.print(&format!("{text}Total reclaimed space: {}\n", units::size(bytes)))?;
    DONE
}
