//! `rbuild ps`.

use std::collections::BTreeMap;
use std::process::ExitCode;
use std::time::SystemTime;

use rbuild_engine::Engine;
use rbuild_engine::containers::{Containers, HealthStatus, MountKind, Seen, Status};
use time::OffsetDateTime;
use time::format_description::well_known::Rfc3339;

use super::DONE;
use crate::app::App;
use crate::container_filters::{self, Filter, networks};
use crate::error::CliError;
use crate::format::{Column, Row, column, listing};
use crate::units;

/// List containers
#[derive(Debug, clap::Args)]
pub struct Args {
    /// Those that do not run too
    #[arg(short, long)]
    all: bool,
    /// Only those for which KEY=VALUE holds
    #[arg(short, long = "filter", value_name = "KEY=VALUE")]
    filters: Vec<String>,
    /// How to print them: 'table', 'json', or a Go template
    #[arg(long, value_name = "FORMAT")]
    format: Option<String>,
    /// The N made last, whether they run or not
    #[arg(short = 'n', long, value_name = "N", allow_hyphen_values = true)]
    last: Option<i64>,
    /// The one made last, whether it runs or not
    #[arg(short, long)]
    latest: bool,
    /// Do not shorten ids and commands
    #[arg(long)]
    no_trunc: bool,
    /// Only ids
    #[arg(short, long)]
    quiet: bool,
    /// How much they have written
    #[arg(short, long)]
    size: bool,
}

const COLUMNS: &[Column] = &[
    column("ID", "CONTAINER ID"),
    column("Image", "IMAGE"),
    column("Command", "COMMAND"),
    column("CreatedAt", "CREATED AT"),
    column("RunningFor", "CREATED"),
    column("Ports", "PORTS"),
    column("State", "STATE"),
    column("Status", "STATUS"),
    column("Size", "SIZE"),
    column("Names", "NAMES"),
    column("Labels", "LABELS"),
    column("Mounts", "MOUNTS"),
    column("LocalVolumes", "LOCAL VOLUMES"),
    column("Networks", "NETWORKS"),
];

pub async fn run(args: Args, app: &App) -> Result<ExitCode, CliError> {
    let engine = app.engine()?;
    let containers = engine.containers();
    let filters = container_filters::parse(&args.filters)?;
    let chosen = chosen(&args, engine, &containers, &filters)?;
    if args.quiet && args.format.is_none() {
        let id =
            |seen: &Seen| if args.no_trunc { seen.container.id.clone() } else { seen.container.short_id().to_owned() };
        let text: String = chosen.iter().map(|seen| id(seen) + "\n").collect();
        app.print(&text)?;
        return DONE;
    }
    let mut images = ImageNames { engine, known: BTreeMap::new() };
    let wants_size = args.size || args.format.as_deref().is_some_and(|format| format.contains(".Size"));
    let rows: Vec<Row> = chosen
        .iter()
        .map(|seen| {
            let row = row(seen, args.no_trunc, &mut images);
            if wants_size { row.set("Size", size(seen, &containers, engine)) } else { row }
        })
        .collect();
    let mut columns = vec!["ID", "Image", "Command", "RunningFor", "Status", "Ports", "Names"];
    if args.size {
        columns.push("Size");
    }
    app.print(&listing(args.format.as_deref(), COLUMNS, &columns, &rows)?)?;
    DONE
}

/// Every container, with what it has written: for `system df -v`.
///
/// # Errors
/// The store cannot be read.
pub(super) fn all_with_sizes(engine: &Engine) -> Result<Vec<Row>, CliError> {
    let containers = engine.containers();
    let mut images = ImageNames { engine, known: BTreeMap::new() };
    let rows = containers.list()?.into_iter().map(|seen| {
        let size = units::short_size(containers.layer_size(&seen.container));
        row(&seen, false, &mut images).set("Size", size)
    });
    Ok(rows.collect())
}

fn chosen(args: &Args, engine: &Engine, containers: &Containers, filters: &[Filter]) -> Result<Vec<Seen>, CliError> {
    let last = if args.latest { Some(1) } else { args.last.filter(|n| *n >= 0).and_then(|n| usize::try_from(n).ok()) };
    let by_status = filters.iter().any(Filter::is_about_the_past);
    let all = args.all || last.is_some() || by_status;
    let mut chosen = container_filters::select(filters, containers.list()?, engine)?;
    chosen.retain(|seen| all || seen.status.is_alive());
    chosen.truncate(last.unwrap_or(usize::MAX));
    Ok(chosen)
}

/// What an image is called in a listing: as the user called it, while that still means it.
struct ImageNames<'a> {
    engine: &'a Engine,
    known: BTreeMap<String, Option<String>>,
}

impl ImageNames<'_> {
    fn of(&mut self, seen: &Seen) -> String {
        let container = &seen.container;
        let engine = self.engine;
        let now = self.known.entry(container.image.clone()).or_insert_with(|| {
            let found = engine.store().images().find(&container.image).ok().flatten();
            found.map(|image| image.id.0.to_string())
        });
        let short = |id: &str| id.trim_start_matches("sha256:").chars().take(12).collect();
        match now {
            Some(id) if *id == container.image_id => container.image.clone(),
            _ => short(&container.image_id),
        }
    }
}

fn row(seen: &Seen, no_trunc: bool, images: &mut ImageNames<'_>) -> Row {
    let container = &seen.container;
    let now = SystemTime::now();
    let id = if no_trunc { container.id.as_str() } else { container.short_id() };
    let labels: Vec<String> = container.labels().iter().map(|(k, v)| format!("{k}={v}")).collect();
    let mut row = Row::default()
        .set("ID", id)
        .set("Image", images.of(seen))
        .set("Command", quoted(&command(&container.args(), no_trunc)))
        .set("CreatedAt", units::timestamp(container.created_at()))
        .set("RunningFor", units::ago(container.created_at(), now))
        .set("Ports", seen.ports_column())
        .set("State", seen.status.as_str())
        .set("Status", status(seen, now))
        .set("Names", container.name.as_str())
        .set("Labels", labels.join(","))
        .set("Mounts", mounts(seen, no_trunc))
        .set("LocalVolumes", volumes(seen).to_string())
        .set("Networks", networks(seen).join(","));
    row.labels.clone_from(container.labels());
    row
}

fn mounts(seen: &Seen, whole: bool) -> String {
    let shorten = |name: String| {
        if whole || name.chars().count() <= 15 { name } else { name.chars().take(14).chain(['…']).collect() }
    };
    let names = seen.container.mounts.iter().filter_map(|mount| match &mount.kind {
        MountKind::Bind { source, .. } => Some(shorten(source.display().to_string())),
        MountKind::Volume { name, .. } => Some(shorten(name.clone())),
        MountKind::Tmpfs { .. } => None,
        MountKind::Image { name, .. } => Some(shorten(name.clone())),
    });
    names.collect::<Vec<_>>().join(",")
}

fn volumes(seen: &Seen) -> usize {
    seen.container.mounts.iter().filter(|mount| matches!(mount.kind, MountKind::Volume { .. })).count()
}

fn size(seen: &Seen, containers: &Containers, engine: &Engine) -> String {
    let own = containers.layer_size(&seen.container);
    let chain = seen.container.parent.as_deref().and_then(|id| id.parse().ok());
    let below: u64 = chain
        .and_then(|id| engine.store().snapshots().stack(&id).ok())
        .into_iter()
        .flatten()
        .filter_map(|id| engine.store().snapshots().size(&id).ok())
        .sum();
    format!("{} (virtual {})", units::short_size(own), units::short_size(own + below))
}

fn command(args: &[String], whole: bool) -> String {
    let word = |arg: &String| if arg.contains(' ') { format!("'{arg}'") } else { arg.clone() };
    let text = args.iter().map(word).collect::<Vec<_>>().join(" ");
    if whole || text.chars().count() <= 20 { text } else { text.chars().take(19).chain(['…']).collect() }
}

fn quoted(text: &str) -> String {
    let mut out = String::from('"');
    for c in text.chars() {
        match c {
            '"' => out.push_str("\\\""),
            '\\' => out.push_str("\\\\"),
            '\n' => out.push_str("\\n"),
            '\t' => out.push_str("\\t"),
            '\r' => out.push_str("\\r"),
            c => out.push(c),
        }
    }
    out.push('"');
    out
}

fn status(seen: &Seen, now: SystemTime) -> String {
    let since = |text: &Option<String>| {
        let at = text.as_deref().and_then(|t| OffsetDateTime::parse(t, &Rfc3339).ok());
        units::rough(at.and_then(|at| now.duration_since(at.into()).ok()).unwrap_or_default())
    };
    match seen.status {
        Status::Created => "Created".into(),
        Status::Running => match seen.state.health.as_ref().map(|health| health.status) {
            None => format!("Up {}", since(&seen.state.started)),
            Some(HealthStatus::Starting) => format!("Up {} (health: starting)", since(&seen.state.started)),
            Some(health) => format!("Up {} ({})", since(&seen.state.started), health.as_str()),
        },
        Status::Restarting => format!("Restarting ({}) {} ago", seen.state.exit_code, since(&seen.state.finished)),
        Status::Paused => format!("Up {} (Paused)", since(&seen.state.started)),
        Status::Exited => {
            let at = if seen.state.finished.is_some() { &seen.state.finished } else { &seen.state.started };
            format!("Exited ({}) {} ago", seen.state.exit_code, since(at))
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn commands_are_shortened_and_quoted() {
        let args = |words: &[&str]| words.iter().map(|&w| w.to_owned()).collect::<Vec<_>>();
        let long = args(&["sh", "-c", "sleep 1000; echo more"]);
        assert_eq!(quoted(&command(&long, false)), "\"sh -c 'sleep 1000; …\"");
        assert_eq!(command(&long, true), "sh -c 'sleep 1000; echo more'");
        assert_eq!(quoted(&command(&args(&["/hello"]), false)), "\"/hello\"");
        assert_eq!(quoted("a\"b\\c\n"), r#""a\"b\\c\n""#);
    }
}
