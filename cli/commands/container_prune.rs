//! `rbuild container prune`.

use std::process::ExitCode;
use std::time::SystemTime;

use rbuild_engine::containers::{Container, Removal};

use super::DONE;
use crate::app::App;
use crate::error::CliError;
use crate::{confirm, units};

/// Remove all containers that do not run
#[derive(Debug, clap::Args)]
pub struct Args {
    /// Only what fits: label=KEY[=VALUE], label!=KEY[=VALUE], until=24h
    #[arg(long = "filter", value_name = "FILTER")]
    filters: Vec<String>,
    /// Do not ask
    #[arg(short, long)]
    force: bool,
}

pub async fn run(args: Args, app: &App) -> Result<ExitCode, CliError> {
    let limits = Limits::parse(&args.filters)?;
    if !args.force && !confirm::ask("WARNING! This will remove all stopped containers.")? {
        return DONE;
    }
    let (text, bytes) = prune(app, &limits)?;
    app.print(&format!("{text}Total reclaimed space: {}\n", units::size(bytes)))?;
    DONE
}

/// Which of the containers that do not run are to go.
#[derive(Debug, Default)]
pub struct Limits {
    /// Labels that they have to have, or must not.
    labels: Vec<(String, bool)>,
    /// Made before.
    until: Option<SystemTime>,
}

impl Limits {
    fn parse(filters: &[String]) -> Result<Self, CliError> {
        let mut limits = Self::default();
        for filter in filters {
            let (key, value) =
                filter.split_once('=').ok_or_else(|| CliError::new("bad format of filter (expected name=value)"))?;
            match key {
                "label" => limits.labels.push((value.to_owned(), true)),
                "label!" => limits.labels.push((value.to_owned(), false)),
                "until" => {
                    let time = units::time_before(value, SystemTime::now());
                    limits.until = Some(time.ok_or_else(|| CliError::new(format!("invalid filter 'until={value}'")))?);
                }
                _ => return Err(CliError::new(format!("invalid filter '{key}'"))),
            }
        }
        Ok(limits)
    }

    fn hold(&self, container: &Container) -> bool {
        let has = |label: &str| match label.split_once('=') {
            Some((key, value)) => container.labels().get(key).is_some_and(|v| v == value),
            None => container.labels().contains_key(label),
        };
        self.until.is_none_or(|until| container.created_at() < until)
            && self.labels.iter().all(|(label, wanted)| has(label) == *wanted)
    }
}

/// Removes the containers that do not run. What is to be said about it, and the bytes they took.
pub fn prune(app: &App, limits: &Limits) -> Result<(String, u64), CliError> {
    let containers = app.engine()?.containers();
    let (mut names, mut bytes) = (Vec::new(), 0);
    for seen in containers.list()? {
        if seen.status.is_alive() || !limits.hold(&seen.container) {
            continue;
        }
        let size = containers.layer_size(&seen.container);
        // One that was started meanwhile stays.
        if containers.remove(&seen.container, Removal::default()).is_ok() {
            names.push(seen.container.id);
            bytes += size;
        }
    }
    if names.is_empty() {
        return Ok((String::new(), 0));
    }
    let lines: String = names.iter().map(|id| format!("{id}\n")).collect();
    Ok((format!("Deleted Containers:\n{lines}\n"), bytes))
}
