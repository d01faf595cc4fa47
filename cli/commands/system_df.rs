//! `rbuild system df`.

use std::process::ExitCode;

use rbuild_engine::usage::Usage;

use super::DONE;
use crate::app::App;
use crate::error::CliError;
use crate::format::{self, Column, Row, column};
use crate::units;

/// Show what takes room
#[derive(Debug, clap::Args)]
pub struct Args {
    /// Format with a Go template, 'table TEMPLATE' or 'json'
    #[arg(long, value_name = "TEMPLATE")]
    format: Option<String>,
}

const COLUMNS: [Column; 5] = [
    column("Active", "ACTIVE"),
    column("Reclaimable", "RECLAIMABLE"),
    column("Size", "SIZE"),
    column("TotalCount", "TOTAL"),
    column("Type", "TYPE"),
];
const DEFAULT: [&str; 5] = ["Type", "TotalCount", "Active", "Size", "Reclaimable"];

pub async fn run(args: Args, app: &App) -> Result<ExitCode, CliError> {
    let usage = app.engine()?.disk_usage()?;
    let rows = [
        row("Images", usage.images),
        row("Containers", usage.containers),
        row("Local Volumes", usage.volumes),
        row("Build Cache", usage.cache),
    ];
    app.print(&format::listing(args.format.as_deref(), &COLUMNS, &DEFAULT, &rows)?)?;
    DONE
}

fn row(kind: &str, usage: Usage) -> Row {
    let mut reclaimable = units::short_size(usage.reclaimable);
    if let Some(percent) = (usage.reclaimable * 100).checked_div(usage.size) {
        reclaimable.push_str(&format!(" ({percent}%)"));
    }
    Row::default()
        .set("Active", usage.active.to_string())
        .set("Reclaimable", reclaimable)
        .set("Size", units::short_size(usage.size))
        .set("TotalCount", usage.total.to_string())
        .set("Type", kind)
}
