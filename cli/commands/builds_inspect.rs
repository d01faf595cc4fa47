//! `rbuild builds inspect`, which is also `rbuild buildx history inspect`.

use std::collections::BTreeMap;
use std::fmt::Write as _;
use std::process::ExitCode;

use rbuild_engine::history::journal::{Ended, Journal, Step};
use rbuild_engine::history::{BuildRecord, Status};
use serde_json::{Value, json};

use super::DONE;
use super::builds_ls::{exact, full_reference};
use crate::app::App;
use crate::error::CliError;
use crate::format::{object, tabulate};
use crate::terminal::clean_line;
use crate::units;

/// Show what is known about a build
#[derive(Debug, clap::Args)]
pub struct Args {
    /// An id or its beginning; ^1 is the build before the last (default: the last)
    #[arg(value_name = "BUILD")]
    build: Option<String>,
    /// Words that only `attachment` takes
    #[arg(hide = true)]
    more: Vec<String>,
    /// How to print it: 'pretty', 'json', or a Go template
    #[arg(long, value_name = "FORMAT")]
    format: Option<String>,
}

pub async fn run(args: Args, app: &App) -> Result<ExitCode, CliError> {
    if args.build.as_deref() == Some("attachment") {
        return Err(CliError::new("inspect attachment is not supported: the history keeps no attestations").with_hint(
            "those of an image are shown by 'rbuild buildx imagetools inspect', and --metadata-file has a build's provenance",
        ));
    }
    if let Some(more) = args.more.first() {
        return Err(CliError::new(format!("inspect takes one build, and was given also {}", clean_line(more))));
    }
    let builds = app.engine()?.builds();
    let build = builds.find(args.build.as_deref())?;
    let journal = Journal::read(&builds.journal(&build.id)?);
    let text = match args.format.as_deref() {
        None | Some("pretty") => pretty(&build, &journal),
        Some("json") => {
            serde_json::to_string_pretty(&detail(&build, &journal)).map_err(|e| CliError::new(e.to_string()))? + "\n"
        }
        Some(template) => object(template, &detail(&build, &journal))? + "\n",
    };
    app.print(&text)?;
    DONE
}

fn pretty(build: &BuildRecord, journal: &Journal) -> String {
    let asked = &build.requested;
    let mut lines: Vec<Vec<String>> = Vec::new();
    let mut line = |name: &str, value: String| {
        if !value.is_empty() {
            lines.push(vec![format!("{name}:"), value]);
        }
    };
    line("Name", asked.name.clone());
    line("Context", asked.context.clone());
    line("Dockerfile", asked.dockerfile.clone());
    if let Some(revision) = &asked.revision {
        line("VCS Repository", revision.remote.clone().unwrap_or_default());
        line("VCS Revision", shown_revision(build));
    }
    line("Target", asked.target.clone().unwrap_or_default());
    line("Platforms", asked.platforms.join(", "));
    line("Tags", asked.tags.join(", "));
    let mut text = tabulate(&lines);
    let mut lines: Vec<Vec<String>> = Vec::new();
    let mut line = |name: &str, value: String| lines.push(vec![format!("{name}:"), value]);
    line("Started", units::timestamp(build.started).replace(" +0000 UTC", ""));
    let running = if build.status == Status::Running { " (running)" } else { "" };
    line("Duration", exact(build.duration()) + running);
    line("Status", build.status.name().to_owned());
    let share = build.cached_share() * 100.0;
    line("Build Steps", format!("{}/{} ({share:.0}% cached)", build.counts.completed, build.counts.total));
    if build.counts.warnings > 0 {
        line("Warnings", build.counts.warnings.to_string());
    }
    if asked.no_cache {
        line("No Cache", "true".to_owned());
    }
    text.push('\n');
    text.push_str(&tabulate(&lines));
    table(&mut text, "BUILD ARG", &asked.build_args);
    table(&mut text, "LABEL", &asked.labels);
    let images = materials(journal);
    if !images.is_empty() {
        text.push_str("\nMaterials:\n");
        let head = vec!["URI".to_owned(), "DIGEST".to_owned()];
        let rows = images.into_iter().map(|(name, digest)| vec![name, digest]);
        text.push_str(&tabulate(&std::iter::once(head).chain(rows).collect::<Vec<_>>()));
    }
    text.push_str("\nSteps:\n");
    let rows: Vec<Vec<String>> = journal.shown().map(step_row).collect();
    text.push_str(&tabulate(&rows));
    for warning in &journal.warnings {
        let _ = write!(text, "\nWarning: {warning}");
    }
    if !journal.warnings.is_empty() {
        text.push('\n');
    }
    if let Some(failure) = &build.failure {
        let _ = write!(text, "\nError: {}", failure.message);
        if let Some(step) = &failure.step {
            let _ = write!(text, "\n  in {step}");
        }
        if let Some(line) = failure.line {
            let _ = write!(text, "\n  at {}:{line}", asked.dockerfile);
        }
        for hint in &failure.hints {
            let _ = write!(text, "\n  hint: {hint}");
        }
        text.push('\n');
    }
    text
}

fn shown_revision(build: &BuildRecord) -> String {
    let Some(revision) = &build.requested.revision else { return String::new() };
    let note = if revision.modified { "-dirty" } else { "" };
    format!("{}{note}", revision.commit)
}

fn table(text: &mut String, heading: &str, values: &BTreeMap<String, String>) {
    if values.is_empty() {
        return;
    }
    let head = vec![heading.to_owned(), "VALUE".to_owned()];
    let rows = values.iter().map(|(name, value)| vec![name.clone(), value.clone()]);
    text.push('\n');
    text.push_str(&tabulate(&std::iter::once(head).chain(rows).collect::<Vec<_>>()));
}

/// The base images, each once.
fn materials(journal: &Journal) -> BTreeMap<String, String> {
    journal.shown().filter_map(|step| step.key.as_ref()?.image.clone()).collect()
}

fn step_row(step: &Step) -> Vec<String> {
    vec![outcome(step).to_owned(), took(step).map_or_else(String::new, exact), step.name.clone()]
}

fn outcome(step: &Step) -> &'static str {
    match &step.ended {
        Some((_, Ended::Done)) => "DONE",
        Some((_, Ended::Cached)) => "CACHED",
        Some((_, Ended::Failed(_))) => "ERROR",
        Some((_, Ended::Cancelled)) => "CANCELED",
        None if step.started.is_some() => "RUNNING",
        None => "-",
    }
}

fn took(step: &Step) -> Option<std::time::Duration> {
    let (ended, _) = step.ended.as_ref()?;
    Some(std::time::Duration::from_nanos(ended.saturating_sub(step.started?)))
}

/// Buildx's JSON about a build, with the steps beside it.
fn detail(build: &BuildRecord, journal: &Journal) -> Value {
    let asked = &build.requested;
    let pairs = |values: &BTreeMap<String, String>| -> Vec<Value> {
        values.iter().map(|(name, value)| json!({"Name": name, "Value": value})).collect()
    };
    let mut detail = json!({
        "Name": asked.name,
        "Ref": full_reference(build),
        "Context": asked.context,
        "Dockerfile": asked.dockerfile,
        "Target": asked.target.clone().unwrap_or_default(),
        "Platform": asked.platforms,
        "Tags": asked.tags,
        "StartedAt": units::rfc3339(build.started),
        "Duration": build.duration().as_nanos() as u64,
        "Status": build.status.name().to_lowercase(),
        "NumCompletedSteps": build.counts.completed,
        "NumTotalSteps": build.counts.total,
        "NumCachedSteps": build.counts.cached,
        "NumWarnings": build.counts.warnings,
        "BuildArgs": pairs(&asked.build_args),
        "Labels": pairs(&asked.labels),
        "Config": {"NoCache": asked.no_cache, "Pull": asked.pull, "Network": asked.network.clone().unwrap_or_default()},
        "Materials": materials(journal).into_iter().map(|(uri, digest)| json!({"URI": uri, "Digests": [digest]})).collect::<Vec<_>>(),
        "Attachments": [],
        "Warnings": journal.warnings,
        "Steps": journal.shown().map(|step| json!({
            "Name": step.name,
            "Status": outcome(step).to_lowercase(),
            "Duration": took(step).map_or(0, |took| took.as_nanos() as u64),
        })).collect::<Vec<_>>(),
    });
    if let Some(fields) = detail.as_object_mut() {
        if let Some(revision) = &asked.revision {
            fields.insert("VCSRepository".into(), revision.remote.clone().unwrap_or_default().into());
            fields.insert("VCSRevision".into(), shown_revision(build).into());
        }
        if let Some(ended) = build.ended {
            fields.insert("CompletedAt".into(), units::rfc3339(ended).into());
        }
        if let Some(failure) = &build.failure {
            fields.insert(
                "Error".into(),
                json!({"Message": failure.message, "Name": failure.step, "Line": failure.line}),
            );
        }
    }
    detail
}
