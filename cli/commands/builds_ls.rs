//! `rbuild builds ls`, which is also `rbuild buildx history ls`.

use std::process::ExitCode;
use std::time::{Duration, SystemTime};

use rbuild_engine::history::{BuildRecord, Status};
use serde_json::json;

use super::DONE;
use crate::app::App;
use crate::error::CliError;
use crate::format::{Column, Row, column, listing};
use crate::units;

/// List builds, the newest first
#[derive(Debug, clap::Args)]
pub struct Args {
    /// Only those for which it holds: status=, name=, ref=, repository=, duration<, startedAt>, completedAt>
    #[arg(long = "filter", short = 'f', value_name = "FILTER")]
    filters: Vec<String>,
    /// How to print them: 'table', 'json', or a Go template
    #[arg(long, value_name = "FORMAT")]
    format: Option<String>,
    /// Only those of the current directory's repository
    #[arg(long)]
    local: bool,
    /// Whole references: builder, node and id
    #[arg(long)]
    no_trunc: bool,
    /// Only ids
    #[arg(short, long)]
    quiet: bool,
}

const COLUMNS: &[Column] = &[
    column("Ref", "BUILD ID"),
    column("Name", "NAME"),
    column("Status", "STATUS"),
    column("CreatedAt", "CREATED AT"),
    column("Duration", "DURATION"),
    column("Steps", "STEPS"),
    column("Cached", "CACHED"),
    column("Revision", "REVISION"),
];

pub async fn run(args: Args, app: &App) -> Result<ExitCode, CliError> {
    let now = SystemTime::now();
    let mut all = app.engine()?.builds().list()?;
    for filter in &args.filters {
        let filter = Filter::parse(filter, now)?;
        all.retain(|build| filter.holds(build));
    }
    if args.local {
        let here = std::fs::canonicalize(".").map_err(|e| CliError::new(format!("the current directory: {e}")))?;
        all.retain(|build| build.requested.local.as_ref().is_some_and(|local| local.starts_with(&here)));
    }
    if args.quiet && args.format.is_none() {
        app.print(&all.iter().map(|build| shown_id(build, args.no_trunc) + "\n").collect::<String>())?;
        return DONE;
    }
    if args.format.as_deref() == Some("json") {
        app.print(&all.iter().map(|build| json_line(build) + "\n").collect::<String>())?;
        return DONE;
    }
    let rows: Vec<Row> = all.iter().map(|build| row(build, args.no_trunc, now)).collect();
    let default = ["Ref", "Name", "Status", "CreatedAt", "Duration"];
    app.print(&listing(args.format.as_deref(), COLUMNS, &default, &rows)?)?;
    DONE
}

fn row(build: &BuildRecord, whole: bool, now: SystemTime) -> Row {
    let revision = build.requested.revision.as_ref();
    Row::default()
        .set("Ref", shown_id(build, whole))
        .set("Name", build.requested.name.as_str())
        .set("Status", build.status.name())
        .set("CreatedAt", units::ago(build.started, now))
        .set("Duration", exact(build.duration()))
        .set("Steps", format!("{}/{}", build.counts.completed, build.counts.total))
        .set("Cached", format!("{:.0}%", build.cached_share() * 100.0))
        .set("Revision", revision.map_or("", |revision| &revision.commit))
}

fn json_line(build: &BuildRecord) -> String {
    let mut line = json!({
        "ref": full_reference(build),
        "name": build.requested.name,
        "status": build.status.name(),
        "created_at": units::rfc3339(build.started),
        "total_steps": build.counts.total,
        "completed_steps": build.counts.completed,
        "cached_steps": build.counts.cached,
    });
    if let (Some(ended), Some(line)) = (build.ended, line.as_object_mut()) {
        line.insert("completed_at".into(), units::rfc3339(ended).into());
    }
    line.to_string()
}

/// As buildx names a build: builder, node, id.
pub fn full_reference(build: &BuildRecord) -> String {
    format!("default/default/{}", build.id)
}

fn shown_id(build: &BuildRecord, whole: bool) -> String {
    if whole { full_reference(build) } else { build.id.clone() }
}

/// `0.4s`, `1m  2s`, as buildx prints durations.
pub fn exact(duration: Duration) -> String {
    let seconds = duration.as_secs();
    match seconds {
        0..60 => format!("{:.1}s", duration.as_secs_f64()),
        60..3600 => format!("{}m {:2}s", seconds / 60, seconds % 60),
        _ => format!("{}h {:2}m {:2}s", seconds / 3600, seconds / 60 % 60, seconds % 60),
    }
}

/// `key=value` and its kin.
struct Filter {
    key: String,
    operator: &'static str,
    value: Wanted,
}

enum Wanted {
    Text(String),
    Status(Status),
    Duration(Duration),
    Time(SystemTime),
}

impl Filter {
    fn parse(text: &str, now: SystemTime) -> Result<Filter, CliError> {
        let shown = crate::terminal::clean_line(text);
        let invalid = || CliError::new(format!("invalid filter {shown:?}"));
        let at = text.find(['=', '!', '<', '>', '~']).ok_or_else(invalid)?;
        let (key, rest) = text.split_at(at);
        let operators = [">=", "<=", "!=", "~=", "=", "<", ">"];
        let operator = operators.into_iter().find(|operator| rest.starts_with(operator)).ok_or_else(invalid)?;
        let value = &rest[operator.len()..];
        let comparing = matches!(operator, "<" | ">" | "<=" | ">=");
        let value = match key {
            "status" if !comparing => Wanted::Status(match value.to_ascii_lowercase().as_str() {
                "running" => Status::Running,
                "completed" => Status::Completed,
                "error" => Status::Error,
                "canceled" | "cancelled" => Status::Canceled,
                _ => return Err(invalid()),
            }),
            "ref" | "name" | "repository" if !comparing => Wanted::Text(value.to_owned()),
            "duration" => {
                let since = units::time_before(value, now).ok_or_else(invalid)?;
                Wanted::Duration(now.duration_since(since).map_err(|_| invalid())?)
            }
            "startedAt" | "completedAt" => Wanted::Time(units::time_before(value, now).ok_or_else(invalid)?),
            _ => return Err(invalid()),
        };
        Ok(Filter { key: key.to_owned(), operator, value })
    }

    fn holds(&self, build: &BuildRecord) -> bool {
        let compare = |order: std::cmp::Ordering| match self.operator {
            "=" => order.is_eq(),
            "!=" => order.is_ne(),
            "<" => order.is_lt(),
            ">" => order.is_gt(),
            "<=" => order.is_le(),
            _ => order.is_ge(),
        };
        match &self.value {
            Wanted::Status(status) => (build.status == *status) == (self.operator == "="),
            Wanted::Duration(duration) => compare(build.duration().cmp(duration)),
            Wanted::Time(time) => match self.key.as_str() {
                "startedAt" => compare(build.started.cmp(time)),
                _ => build.ended.is_some_and(|ended| compare(ended.cmp(time))),
            },
            Wanted::Text(text) => {
                let remote = build.requested.revision.as_ref().and_then(|revision| revision.remote.as_deref());
                let found = match self.key.as_str() {
                    "ref" => build.id.as_str(),
                    "name" => build.requested.name.as_str(),
                    _ => remote.unwrap_or(&build.requested.context),
                };
                match self.operator {
                    "=" => found == text,
                    "!=" => found != text,
                    _ => found.contains(text.as_str()),
                }
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn durations_are_exact() {
        for (millis, want) in [(0, "0.0s"), (1_449, "1.4s"), (62_000, "1m  2s"), (3_725_000, "1h  2m  5s")] {
            assert_eq!(exact(Duration::from_millis(millis)), want);
        }
    }

    #[test]
    fn filters_that_are_none() {
        let now = SystemTime::now();
        for text in ["status", "status=odd", "status>error", "colour=red", "duration<x", "name<a", ""] {
            assert!(Filter::parse(text, now).is_err(), "{text}");
        }
        for text in ["status=error", "status!=running", "duration>=1m", "startedAt>24h", "name~=web", "ref=x"] {
            assert!(Filter::parse(text, now).is_ok(), "{text}");
        }
    }
}
