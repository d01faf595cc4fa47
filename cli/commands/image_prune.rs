//! `rbuild image prune`.

use std::io::Write as _;
use std::process::ExitCode;

use rbuild_engine::images::{ImageFilter, Removed};

use super::DONE;
use crate::app::App;
use crate::error::CliError;
use crate::units;

/// Remove images that nobody uses
#[derive(Debug, clap::Args)]
pub struct Args {
    /// Remove all images without a container, not only those without a name
    #[arg(short, long)]
    all: bool,
    /// Only what fits: label=KEY[=VALUE], label!=KEY[=VALUE]
    #[arg(long, value_name = "FILTER")]
    filter: Vec<String>,
    /// Do not ask
    #[arg(short, long)]
    force: bool,
}

pub async fn run(args: Args, app: &App) -> Result<ExitCode, CliError> {
    let filter = ImageFilter::parse(&args.filter)?;
    let what =
        if args.all { "all images without at least one container associated to them" } else { "all dangling images" };
    if !args.force && !confirmed(app, what)? {
        return DONE;
    }
    let pruned = app.images()?.prune(args.all, &filter)?;
    let mut text = String::new();
    if !pruned.removed.is_empty() {
        text.push_str("Deleted Images:\n");
        for one in &pruned.removed {
            text.push_str(&match one {
                Removed::Untagged(name) => format!("untagged: {}\n", name.familiar()),
                Removed::Deleted(id) => format!("deleted: {}\n", id.0),
            });
        }
        text.push('\n');
    }
    text.push_str(&format!("Total reclaimed space: {}\n", units::size(pruned.bytes)));
    app.print(&text)?;
    DONE
}

/// Docker's question before a prune; anything but yes is no.
pub fn confirmed(app: &App, what: &str) -> Result<bool, CliError> {
    app.print(&format!("WARNING! This will remove {what}.\nAre you sure you want to continue? [y/N] "))?;
    std::io::stdout().flush()?;
    let mut answer = String::new();
    std::io::stdin().read_line(&mut answer)?;
    Ok(matches!(answer.trim().to_ascii_lowercase().as_str(), "y" | "yes"))
}
