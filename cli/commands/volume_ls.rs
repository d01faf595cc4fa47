//! `rbuild volume ls`.

use std::process::ExitCode;

use super::DONE;
use crate::app::App;
use crate::error::CliError;
use crate::format::{Column, Row, column, listing};

/// List volumes
#[derive(Debug, clap::Args)]
pub struct Args {
    /// Only those for which KEY=VALUE holds: name, label, driver, dangling
    #[arg(short, long = "filter", value_name = "KEY=VALUE")]
    filters: Vec<String>,
    /// How to print them: 'table', 'json', or a Go template
    #[arg(long, value_name = "FORMAT")]
    format: Option<String>,
    /// Only names
    #[arg(short, long)]
    quiet: bool,
}

const COLUMNS: &[Column] = &[
    column("Driver", "DRIVER"),
    column("Name", "VOLUME NAME"),
    column("Scope", "SCOPE"),
    column("Mountpoint", "MOUNTPOINT"),
    column("Labels", "LABELS"),
];

pub async fn run(args: Args, app: &App) -> Result<ExitCode, CliError> {
    let volumes = app.engine()?.volumes();
    let mut all = volumes.list()?;
    for filter in &args.filters {
        let (key, value) =
            filter.split_once('=').ok_or_else(|| CliError::new("bad format of filter (expected name=value)"))?;
        match key {
            "name" => all.retain(|v| v.name.contains(value)),
            "driver" => all.retain(|_| value == "local"),
            "label" => all.retain(|v| match value.split_once('=') {
                Some((key, value)) => v.labels.get(key).is_some_and(|found| found == value),
                None => v.labels.contains_key(value),
            }),
            "dangling" => {
                let wanted = match value {
                    "true" | "1" => true,
                    "false" | "0" => false,
                    _ => return Err(CliError::new(format!("invalid filter 'dangling={value}'"))),
                };
                let used = volumes.in_use()?;
                all.retain(|v| used.contains(&v.name) != wanted);
            }
            _ => return Err(CliError::new(format!("invalid filter '{key}'"))),
        }
    }
    if args.quiet && args.format.is_none() {
        let text: String = all.iter().map(|v| v.name.clone() + "\n").collect();
        app.print(&text)?;
        return DONE;
    }
    let rows: Vec<Row> = all
        .iter()
        .map(|v| {
            let labels: Vec<String> = v.labels.iter().map(|(k, v)| format!("{k}={v}")).collect();
            let mut row = Row::default()
                .set("Driver", "local")
                .set("Name", v.name.as_str())
                .set("Scope", "local")
                .set("Mountpoint", v.mountpoint.display().to_string())
                .set("Labels", labels.join(","));
            // Docker has these for clusters of volumes, and sizes where somebody counts them.
            for name in ["Availability", "Group", "Links", "Size", "Status"] {
                row = row.set(name, "N/A");
            }
            row.labels.clone_from(&v.labels);
            row
        })
        .collect();
    app.print(&listing(args.format.as_deref(), COLUMNS, &["Driver", "Name"], &rows)?)?;
    DONE
}
