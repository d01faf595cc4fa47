//! Which containers are meant by `--filter`: for `ps`, and for whoever else takes some of them.

use rbuild_engine::Engine;
use rbuild_engine::containers::{MountKind, NetworkMode, RestartPolicy, Seen, Status};

use crate::error::CliError;
use crate::supervision::restart_policy;

/// The filters of a command line.
///
/// # Errors
/// One that is none, in docker's words.
pub fn parse(texts: &[String]) -> Result<Vec<Filter>, CliError> {
    texts.iter().map(|text| Filter::parse(text)).collect()
}

/// Those of `all`, newest first, that the filters let through.
///
/// # Errors
/// A filter names a container that is not there.
pub fn select(filters: &[Filter], all: Vec<Seen>, engine: &Engine) -> Result<Vec<Seen>, CliError> {
    let bounds = Bounds::of(filters, &all)?;
    let mut chosen = Vec::new();
    for seen in all {
        if bounds.hold(&seen) && all_match(filters, &seen, engine)? {
            chosen.push(seen);
        }
    }
    Ok(chosen)
}

/// One filter of containers. Those of one key are alternatives, those of different keys all have to hold; labels all have to.
pub enum Filter {
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
    /// Whether it is a task of a swarm, which none is.
    Task(bool),
    RestartPolicy(RestartPolicy),
    /// Whether it is to be started with the machine.
    Boot(bool),
}

impl Filter {
    fn parse(text: &str) -> Result<Self, CliError> {
        let (key, value) = text.split_once('=').ok_or_else(|| {
            CliError::new(format!(
                "invalid argument \"{text}\" for \"-f, --filter\" flag: bad format of filter (expected name=value)"
            ))
            .with_code(crate::error::exit::ENGINE)
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
            "is-task" => Filter::Task(truth(key, value)?),
            "should-start-on-boot" => Filter::Boot(truth(key, value)?),
            "restart-policy" => {
                let policy = restart_policy(value);
                Filter::RestartPolicy(
                    policy.map_err(|_| CliError::new(format!("invalid filter 'restart-policy={value}'")))?,
                )
            }
            "isolation" => {
                return Err(CliError::new("invalid filter 'isolation': containers of Linux have none"));
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
            Filter::Task(_) => 13,
            Filter::RestartPolicy(_) => 14,
            Filter::Boot(_) => 15,
        }
    }

    /// Whether it asks for containers that have ended, so that those that run are not all there is to look at.
    pub fn is_about_the_past(&self) -> bool {
        matches!(self, Filter::Status(_) | Filter::Exited(_))
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
            Filter::Task(wanted) => !wanted,
            // However many times it is tried.
            Filter::RestartPolicy(RestartPolicy::OnFailure { .. }) => {
                matches!(container.host.restart, RestartPolicy::OnFailure { .. })
            }
            Filter::RestartPolicy(wanted) => container.host.restart == *wanted,
            Filter::Boot(wanted) => seen.starts_with_machine() == *wanted,
            Filter::Before(_) | Filter::Since(_) => true,
        })
    }
}

/// `80`, `80-90`, `80/udp`.
pub struct PortFilter(crate::ports::Expose);

impl PortFilter {
    fn parse(text: &str) -> Result<Self, CliError> {
        crate::ports::expose(text).map(Self).map_err(|_| CliError::new(format!("invalid filter '{text}'")))
    }

    fn holds(&self, port: u16, protocol: &str) -> bool {
        self.0.0.contains(&format!("{port}/{protocol}"))
    }
}

fn all_match(filters: &[Filter], seen: &Seen, engine: &Engine) -> Result<bool, CliError> {
    const LABEL: usize = 2;
    for key in 0..=15 {
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

/// Docker takes a regular expression here, for the name with a slash before it or without.
fn name_matches(pattern: &str, name: &str) -> bool {
    let found =
        regex::Regex::new(pattern).is_ok_and(|regex| regex.is_match(name) || regex.is_match(&format!("/{name}")));
    found || pattern.strip_prefix('/').unwrap_or(pattern) == name
}

fn truth(key: &str, value: &str) -> Result<bool, CliError> {
    match value {
        "1" | "true" | "True" => Ok(true),
        "0" | "false" | "False" => Ok(false),
        _ => Err(CliError::new(format!("invalid filter '{key}={value}'"))),
    }
}

/// The names of its networks.
pub fn networks(seen: &Seen) -> Vec<String> {
    match &seen.container.host.network {
        NetworkMode::Host => vec!["host".into()],
        NetworkMode::None => vec!["none".into()],
        _ => seen.container.memberships().into_iter().map(|membership| membership.network_name).collect(),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn names_match_as_regular_expressions() {
        for (pattern, name, want) in [
            ("web", "my-web-1", true),
            ("^web", "my-web", false),
            ("^/web$", "web", true),
            ("^web$", "web1", false),
            ("1$", "web1", true),
            ("/web", "web", true),
            ("^(web|db)-[0-9]+$", "db-12", true),
            ("w.b", "wxb", true),
            ("web[", "web", false),
        ] {
            assert_eq!(name_matches(pattern, name), want, "{pattern} {name}");
        }
    }

    #[test]
    fn filters_that_make_no_sense_are_refused() {
        for (text, want) in [
            ("name", "bad format of filter"),
            ("what=x", "invalid filter 'what'"),
            ("status=fine", "invalid filter 'status=fine'"),
            ("is-task=x", "invalid filter 'is-task=x'"),
            ("restart-policy=x", "invalid filter 'restart-policy=x'"),
            ("isolation=x", "invalid filter 'isolation'"),
        ] {
            let message = Filter::parse(text).err().map(|e| e.message).unwrap_or_default();
            assert!(message.contains(want), "{text}: {message}");
        }
    }
}
