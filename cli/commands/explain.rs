//! `rbuild explain`: why each step of a build ran, or where its result came from.

use std::fmt::Write as _;
use std::process::ExitCode;
use std::time::SystemTime;

use rbuild_engine::explain::{Explained, Origin, StepOutcome};
use rbuild_engine::history::{BuildRecord, Builds};
use serde_json::json;

use super::DONE;
use super::builds_ls::exact;
use crate::app::App;
use crate::error::CliError;
use crate::units;

/// Say for every step of a build why it ran, or where its result came from
#[derive(Debug, clap::Args)]
pub struct Args {
    /// An id or its beginning; ^1 is the build before the last (default: the last)
    #[arg(value_name = "BUILD")]
    build: Option<String>,
    /// Only the step of this number
    #[arg(long, value_name = "N")]
    step: Option<usize>,
    /// How to print it: 'pretty' or 'json'
    #[arg(long, value_name = "FORMAT", default_value = "pretty", value_parser = ["pretty", "json"])]
    format: String,
}

pub async fn run(args: Args, app: &App) -> Result<ExitCode, CliError> {
    let builds = app.engine()?.builds();
    let build = builds.find(args.build.as_deref())?;
    let mut steps = builds.explain(&build)?;
    if let Some(wanted) = args.step {
        let count = steps.len();
        steps.retain(|step| step.n == wanted);
        if steps.is_empty() {
            return Err(CliError::new(format!("build {} has no step {wanted}: it has {count}", build.id)));
        }
    }
    let text = match args.format.as_str() {
        "json" => as_json(&build, &steps)?,
        _ => heading(&build) + &listed(&steps),
    };
    app.print(&text)?;
    DONE
}

/// The steps of a build that did not come from the cache, for standard error after the build.
///
/// # Errors
/// The history cannot be read.
pub fn after_build(builds: &Builds, id: &str) -> Result<String, CliError> {
    let build = builds.find(Some(id))?;
    let steps = builds.explain(&build)?;
    let missed: Vec<Explained> = steps.into_iter().filter(|step| step.outcome != StepOutcome::Hit).collect();
    Ok(match missed.is_empty() {
        true => "Every step came from the cache.\n".to_owned(),
        false => listed(&missed),
    })
}

fn heading(build: &BuildRecord) -> String {
    let counts = &build.counts;
    format!(
        "build {} of {}, {}, {} in {}: {} of {} steps from the cache\n\n",
        build.id,
        build.requested.name,
        units::ago(build.started, SystemTime::now()),
        build.status.name().to_lowercase(),
        exact(build.duration()),
        counts.cached,
        counts.total
    )
}

fn listed(steps: &[Explained]) -> String {
    let width = steps.last().map_or(1, |step| step.n.to_string().len());
    let mut text = String::new();
    for step in steps {
        let _ = writeln!(text, "{:>width$}  {:<8}  {}", step.n, word(step.outcome), step.name);
        let indent = width + 12;
        for cause in &step.causes {
            let _ = writeln!(text, "{:indent$}{cause}", "");
        }
        if let Some(from) = &step.from {
            let _ = writeln!(text, "{:indent$}{}", "", origin(from));
        }
    }
    text
}

fn word(outcome: StepOutcome) -> &'static str {
    match outcome {
        StepOutcome::Hit => "hit",
        StepOutcome::Miss => "miss",
        StepOutcome::Failed => "failed",
        StepOutcome::Canceled => "canceled",
        StepOutcome::Waiting => "not run",
    }
}

fn origin(from: &Origin) -> String {
    let when = units::ago(from.made, SystemTime::now());
    match &from.import {
        Some(import) => format!("imported from {import}"),
        None if from.build.is_empty() => format!("made on this machine {when}"),
        None => format!("made on this machine {when}, by build {}", from.build),
    }
}

fn as_json(build: &BuildRecord, steps: &[Explained]) -> Result<String, CliError> {
    let mut shown = Vec::new();
    for step in steps {
        let mut value = serde_json::to_value(step).map_err(|e| CliError::new(e.to_string()))?;
        if let Some(causes) = value.get_mut("causes").and_then(|causes| causes.as_array_mut()) {
            for (value, cause) in causes.iter_mut().zip(&step.causes) {
                value["text"] = cause.to_string().into();
            }
        }
        shown.push(value);
    }
    let all = json!({
        "build": build.id,
        "name": build.requested.name,
        "status": build.status.name().to_lowercase(),
        "started": units::rfc3339(build.started),
        "steps": shown,
    });
    Ok(serde_json::to_string_pretty(&all).map_err(|e| CliError::new(e.to_string()))? + "\n")
}
