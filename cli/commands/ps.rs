//! `rbuild ps`.

use std::collections::BTreeMap;
use std::process::ExitCode;
use std::time::SystemTime;

use rbuild_engine::Engine;
use rbuild_engine::containers::{Containers, HealthStatus, MountKind, NetworkMode, Seen, Status};
use time::OffsetDateTime;
use time::format_description::well_known::Rfc3339;

use super::DONE;
use crate::app::App;
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
    let filters = args.filters.iter().map(|text| Filter::parse(text)).collect::<Result<Vec<_>, _>>()?;
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
    let by_status = filters.iter().any(|f| matches!(f, Filter::Status(_) | Filter::Exited(_)));
    let all = args.all || last.is_some() || by_status;
    let everything = containers.list()?;
    let bounds = Bounds::of(filters, &everything)?;
    let mut chosen = Vec::new();
    for seen in everything {
        let runs = seen.status.is_alive();
        if (all || runs) && bounds.hold(&seen) && matches(filters, &seen, engine)? {
            chosen.push(seen);
        }
    }
    chosen.truncate(last.unwrap_or(usize::MAX));
    Ok(chosen)
}

/// One `--filter`. Those of one key are alternatives, those of different keys all have to hold; labels all have to.
enum Filter {
    Id(String),
    Name(String),
    Label(String),
    Status(String),
    Exited(i32),
    Ancestor(String),
    Volume(String),
    Network(String),
    /// Published ports, or exposed ones: the first, the last, `tcp` or `udp`.
    Publish(PortFilter),
    Expose(PortFilter),
    Before(String),
    Since(String),
    Health(String),
}

impl Filter {
    fn parse(text: &str) -> Result<Self, CliError> {
        let (key, value) = text.split_once('=').ok_or_else(|| {
            CliError::new(format!(
                "invalid argument \"{text}\" for \"-f, --filter\" flag: bad format of filter (expected name=value)"
            ))
        })?;
        let owned = value.to_owned();
        Ok(match key.trim().to_ascii_lowercase().as_str() {
            "id" => Filter::Id(owned),
            "name" => Filter::Name(owned),
            "label" => Filter::Label(owned),
            "status" => match value {
                "created" | "running" | "paused" | "exited" | "restarting" | "removing" | "dead" => {
                    Filter::Status(owned)
                }
                _ => return Err(CliError::new(format!("invalid filter 'status={value}'"))),
            },
            "exited" => match value.parse() {
                Ok(code) => Filter::Exited(code),
                Err(_) => return Err(CliError::new(format!("invalid filter 'exited={value}'"))),
            },
            "ancestor" => Filter::Ancestor(owned),
            "volume" => Filter::Volume(owned),
            "network" => Filter::Network(owned),
            "publish" => Filter::Publish(PortFilter::parse(value)?),
            "expose" => Filter::Expose(PortFilter::parse(value)?),
            "before" => Filter::Before(owned),
            "since" => Filter::Since(owned),
            "health" => match value {
                "starting" | "healthy" | "unhealthy" | "none" => Filter::Health(owned),
                _ => return Err(CliError::new(format!("invalid filter 'health={value}'"))),
            },
            other @ ("is-task" | "isolation") => {
                return Err(CliError::new(format!("filter '{other}' is not supported yet")));
            }
            other => return Err(CliError::new(format!("invalid filter '{other}'"))),
        })
    }

    fn key(&self) -> usize {
        match self {
            Filter::Id(_) => 0,
            Filter::Name(_) => 1,
            Filter::Label(_) => 2,
            Filter::Status(_) => 3,
            Filter::Exited(_) => 4,
            Filter::Ancestor(_) => 5,
            Filter::Volume(_) => 6,
            Filter::Network(_) => 7,
            Filter::Before(_) => 8,
            Filter::Since(_) => 9,
            Filter::Publish(_) => 10,
            Filter::Expose(_) => 11,
            Filter::Health(_) => 12,
        }
    }

    fn matches(&self, seen: &Seen, engine: &Engine) -> Result<bool, CliError> {
        let container = &seen.container;
        Ok(match self {
            Filter::Id(id) => container.id.starts_with(id.as_str()),
            Filter::Name(pattern) => name_matches(pattern, &container.name),
            Filter::Label(label) => match label.split_once('=') {
                Some((key, value)) => container.labels().get(key).is_some_and(|v| v == value),
                None => container.labels().contains_key(label),
            },
            Filter::Status(status) => seen.status.as_str() == status,
            Filter::Exited(code) => seen.status == Status::Exited && seen.state.exit_code == *code,
            Filter::Ancestor(image) => match engine.store().images().find(image) {
                Ok(Some(found)) => found.id.0.to_string() == container.image_id,
                _ => container.image == *image,
            },
            Filter::Volume(volume) => container.mounts.iter().any(|mount| {
                let named = matches!(&mount.kind, MountKind::Volume { name, .. } if name == volume);
                let bound =
                    matches!(&mount.kind, MountKind::Bind { source, .. } if source.as_os_str() == volume.as_str());
                named || bound || mount.destination == *volume
            }),
            Filter::Network(network) => {
                let by_id = |id: &str| !network.is_empty() && id.starts_with(network.as_str());
                networks(seen).contains(network) || container.memberships().iter().any(|m| by_id(&m.network))
            }
            Filter::Publish(wanted) => {
                seen.ports().iter().any(|b| wanted.holds(b.container_port, &b.protocol.to_string()))
            }
            Filter::Expose(wanted) => container.config.exposed_ports.keys().any(|text| {
                let (port, protocol) = text.split_once('/').unwrap_or((text, "tcp"));
                port.parse().is_ok_and(|port| wanted.holds(port, protocol))
            }),
            Filter::Health(wanted) => {
                let health = seen.state.health.as_ref().filter(|_| seen.status.is_alive());
                health.map_or("none", |health| health.status.as_str()) == wanted
            }
            Filter::Before(_) | Filter::Since(_) => true,
        })
    }
}

/// `80`, `80-90`, `80/udp`.
struct PortFilter(crate::ports::Expose);

impl PortFilter {
    fn parse(text: &str) -> Result<Self, CliError> {
        crate::ports::expose(text).map(Self).map_err(|_| CliError::new(format!("invalid filter '{text}'")))
    }

    fn holds(&self, port: u16, protocol: &str) -> bool {
        self.0.0.contains(&format!("{port}/{protocol}"))
    }
}

fn matches(filters: &[Filter], seen: &Seen, engine: &Engine) -> Result<bool, CliError> {
    const LABEL: usize = 2;
    for key in 0..=12 {
        let mut any = None;
        for filter in filters.iter().filter(|f| f.key() == key) {
            let holds = filter.matches(seen, engine)?;
            if key == LABEL && !holds {
                return Ok(false);
            }
            any = Some(any.unwrap_or(false) || holds);
        }
        if any == Some(false) {
            return Ok(false);
        }
    }
    Ok(true)
}

/// The times that `before` and `since` name by containers.
struct Bounds {
    before: Option<i64>,
    since: Option<i64>,
}

impl Bounds {
    fn of(filters: &[Filter], all: &[Seen]) -> Result<Self, CliError> {
        let created = |name: &String| {
            let found = all.iter().find(|s| s.container.name == *name || s.container.id.starts_with(name.as_str()));
            found.map(|s| s.container.created).ok_or_else(|| CliError::new(format!("No such container: {name}")))
        };
        let mut bounds = Self { before: None, since: None };
        for filter in filters {
            match filter {
                Filter::Before(name) => bounds.before = Some(created(name)?),
                Filter::Since(name) => bounds.since = Some(created(name)?),
                _ => {}
            }
        }
        Ok(bounds)
    }

    fn hold(&self, seen: &Seen) -> bool {
        let created = seen.container.created;
        self.before.is_none_or(|b| created < b) && self.since.is_none_or(|s| created > s)
    }
}

/// Docker takes a regular expression here; what people write is a part of a name, perhaps anchored.
fn name_matches(pattern: &str, name: &str) -> bool {
    let (from_start, rest) = match pattern.strip_prefix('^') {
        Some(rest) => (true, rest),
        None => (false, pattern),
    };
    let (to_end, rest) = match rest.strip_suffix('$') {
        Some(rest) => (true, rest),
        None => (false, rest),
    };
    let part = rest.strip_prefix('/').unwrap_or(rest);
    match (from_start || rest.starts_with('/'), to_end) {
        (true, true) => name == part,
        (true, false) => name.starts_with(part),
        (false, true) => name.ends_with(part),
        (false, false) => name.contains(part),
    }
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

/// The names of its networks.
fn networks(seen: &Seen) -> Vec<String> {
    match &seen.container.host.network {
        NetworkMode::Host => vec!["host".into()],
        NetworkMode::None => vec!["none".into()],
        _ => seen.container.memberships().into_iter().map(|membership| membership.network_name).collect(),
    }
}

fn mounts(seen: &Seen, whole: bool) -> String {
    let shorten = |name: String| {
        if whole || name.chars().count() <= 15 { name } else { name.chars().take(14).chain(['…']).collect() }
    };
    let names = seen.container.mounts.iter().filter_map(|mount| match &mount.kind {
        MountKind::Bind { source, .. } => Some(shorten(source.display().to_string())),
        MountKind::Volume { name, .. } => Some(shorten(name.clone())),
        MountKind::Tmpfs { .. } => None,
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

    #[test]
    fn names_match_in_part_or_anchored() {
        for (pattern, name, want) in [
            ("web", "my-web-1", true),
            ("^web", "my-web", false),
            ("^/web$", "web", true),
            ("^web$", "web1", false),
            ("1$", "web1", true),
            ("/web", "web", true),
        ] {
            assert_eq!(name_matches(pattern, name), want, "{pattern} {name}");
        }
    }
}
