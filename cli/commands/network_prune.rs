//! `rbuild network prune`.

use std::process::ExitCode;
use std::time::SystemTime;

use super::{DONE, network_ls};
use crate::app::App;
use crate::error::CliError;
use crate::{confirm, units};

/// Remove all networks to which no running container is connected
#[derive(Debug, clap::Args)]
pub struct Args {
    /// Only those for which KEY=VALUE holds: label, label!, until
    #[arg(long = "filter", value_name = "KEY=VALUE")]
    filters: Vec<String>,
    /// Do not ask
    #[arg(short, long)]
    force: bool,
}

pub async fn run(args: Args, app: &App) -> Result<ExitCode, CliError> {
    let mut before = None;
    let mut labels = Vec::new();
    for filter in &args.filters {
        let (key, value) =
            filter.split_once('=').ok_or_else(|| CliError::new("bad format of filter (expected name=value)"))?;
        match key {
            "label" => labels.push((value, true)),
            "label!" => labels.push((value, false)),
            "until" => {
                let time = units::time_before(value, SystemTime::now());
                before = Some(time.ok_or_else(|| CliError::new(format!("invalid filter 'until={value}'")))?);
            }
            _ => return Err(CliError::new(format!("invalid filter '{key}'"))),
        }
    }
    let warning = "WARNING! This will remove all custom networks not used by at least one container.";
    if !args.force && !confirm::ask(warning)? {
        return DONE;
    }
    let removed = app.engine()?.networks().prune(|network| {
        labels.iter().all(|(label, wanted)| network_ls::has_label(network, label) == *wanted)
            && before.is_none_or(|before| network.created_at() < before)
    })?;
    app.print(&deleted(&removed))?;
    DONE
}

/// What was removed, as docker lists it; nothing for nothing.
pub(super) fn deleted(names: &[String]) -> String {
    if names.is_empty() {
        return String::new();
    }
    let names: String = names.iter().map(|name| format!("{name}\n")).collect();
    format!("Deleted Networks:\n{names}\n")
}
