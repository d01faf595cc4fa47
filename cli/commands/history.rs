//! `rbuild history`.

use std::process::ExitCode;
use std::time::SystemTime;

use rbuild_engine::images::HistoryStep;

use super::DONE;
use crate::app::App;
use crate::error::CliError;
use crate::format::{self, Column, Row, column};
use crate::units;

/// Show the steps that made an image
#[derive(Debug, clap::Args)]
pub struct Args {
    /// The image
    #[arg(value_name = "IMAGE")]
    image: String,
    /// Format with a Go template, 'table TEMPLATE' or 'json'
    #[arg(long, value_name = "TEMPLATE")]
    format: Option<String>,
    /// Sizes and times for people; with =false in bytes and as timestamps
    #[arg(short = 'H', long, action = clap::ArgAction::Set, num_args = 0..=1, require_equals = true, default_missing_value = "true",
          default_value = "true", value_name = "BOOL", value_parser = clap::builder::BoolishValueParser::new())]
    human: bool,
    /// Show ids and commands in full
    #[arg(long)]
    no_trunc: bool,
    /// The image of this platform, where there are several
    #[arg(long, value_name = "PLATFORM")]
    platform: Option<String>,
    /// Show ids only
    #[arg(short, long)]
    quiet: bool,
}

const COLUMNS: [Column; 6] = [
    column("Comment", "COMMENT"),
    column("CreatedAt", "CREATED AT"),
    column("CreatedBy", "CREATED BY"),
    column("CreatedSince", "CREATED"),
    column("ID", "IMAGE"),
    column("Size", "SIZE"),
];
const DEFAULT: [&str; 5] = ["ID", "CreatedSince", "CreatedBy", "Size", "Comment"];
/// With `--human=false`.
const STAMPED: [&str; 5] = ["ID", "CreatedAt", "CreatedBy", "Size", "Comment"];
/// Characters of a command that are shown.
const COMMAND: usize = 45;

pub async fn run(args: Args, app: &App) -> Result<ExitCode, CliError> {
    let platform = super::platform(args.platform.as_deref())?;
    let steps = app.images()?.history(&args.image, platform.as_ref())?;
    let rows: Vec<Row> = steps.iter().map(|step| row(step, &args)).collect();
    if args.quiet {
        let ids: String = rows.iter().filter_map(|r| r.cells.get("ID")).map(|id| format!("{id}\n")).collect();
        app.print(&ids)?;
    } else {
        let default = if args.human { DEFAULT } else { STAMPED };
        app.print(&format::listing(args.format.as_deref(), &COLUMNS, &default, &rows)?)?;
    }
    DONE
}

fn row(step: &HistoryStep, args: &Args) -> Row {
    let id = match &step.id {
        Some(id) if args.no_trunc => id.0.to_string(),
        Some(id) => id.0.short().to_owned(),
        None => "<missing>".to_owned(),
    };
    let created = step.created.unwrap_or(SystemTime::UNIX_EPOCH);
    let stamp = units::rfc3339(created);
    let since = if args.human { units::ago(created, SystemTime::now()) } else { stamp.clone() };
    let size = if args.human { units::short_size(step.size) } else { step.size.to_string() };
    let mut command = step.created_by.replace('\t', " ");
    if !args.no_trunc && command.chars().count() > COMMAND {
        command = command.chars().take(COMMAND - 1).collect::<String>() + "…";
    }
    Row::default()
        .set("Comment", step.comment.clone())
        .set("CreatedAt", stamp)
        .set("CreatedBy", command)
        .set("CreatedSince", since)
        .set("ID", id)
        .set("Size", size)
}
