//! `rbuild rmi`, `rbuild image rm`.

use std::process::ExitCode;

use rbuild_engine::Kind;
use rbuild_engine::images::Removed;

use super::DONE;
use crate::app::App;
use crate::error::CliError;

/// Remove one or more images
#[derive(Debug, clap::Args)]
pub struct Args {
    /// Names or ids
    #[arg(value_name = "IMAGE", required = true)]
    images: Vec<String>,
    /// Remove it though it has several names or a stopped container uses it; one that is not there is no error
    #[arg(short, long)]
    force: bool,
    /// Leave what it consisted of on the disk, for the next cleaning up
    #[arg(long)]
    no_prune: bool,
}

pub async fn run(args: Args, app: &App) -> Result<ExitCode, CliError> {
    let images = app.images()?;
    let mut failures = Vec::new();
    let mut fatal = false;
    for name in &args.images {
        match images.remove(name, args.force, !args.no_prune) {
            Ok(removed) => app.print(&lines(&removed))?,
            Err(error) => {
                fatal |= error.kind != Kind::NotFound;
                failures.push(error.message);
            }
        }
    }
    let message = failures.join("\nError: ");
    if failures.is_empty() {
        DONE
    } else if args.force && !fatal {
        app.tell(&format!("Error: {message}"));
        DONE
    } else {
        Err(CliError::new(message))
    }
}

/// What was done, in docker's words.
pub fn lines(removed: &[Removed]) -> String {
    let line = |one: &Removed| match one {
        Removed::Untagged(name) => format!("Untagged: {}\n", name.familiar()),
        Removed::Deleted(id) => format!("Deleted: {}\n", id.0),
        Removed::Layer(chain) => format!("Deleted: {}\n", chain.0),
    };
    removed.iter().map(line).collect()
}
