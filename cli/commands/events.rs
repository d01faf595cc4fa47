//! `rbuild events`.

use std::collections::BTreeMap;
use std::process::ExitCode;
use std::time::SystemTime;

use rbuild_engine::store::{Event, EventKind};
use serde::Serialize;

use super::DONE;
use crate::app::App;
use crate::error::CliError;
use crate::{format, units};

/// Show what happens to containers, images, volumes and networks
///
/// Without --until it goes on until it is interrupted. What happened before is shown with --since, as far as it is kept: some
/// ten thousand events.
#[derive(Debug, clap::Args)]
pub struct Args {
    /// Only those for which KEY=VALUE holds
    #[arg(short, long = "filter", value_name = "KEY=VALUE")]
    filters: Vec<String>,
    /// How to print them: 'json' or a Go template
    #[arg(long, value_name = "FORMAT")]
    format: Option<String>,
    /// Begin with what happened then: a time, seconds since 1970, or how long ago (10m)
    #[arg(long, value_name = "TIME", value_parser = units::point_in_time)]
    since: Option<SystemTime>,
    /// End with what happens then: a time, seconds since 1970, or how long ago
    #[arg(long, value_name = "TIME", value_parser = units::point_in_time)]
    until: Option<SystemTime>,
}

pub async fn run(args: Args, app: &App) -> Result<ExitCode, CliError> {
    let filters = args.filters.iter().map(|text| Filter::parse(text)).collect::<Result<Vec<_>, _>>()?;
    let template = args.format.as_deref().map(str::trim).filter(|text| !text.is_empty());
    if let Some(template) = template.filter(|text| *text != "json") {
        format::compile(template)?;
    }
    let nanos = |time: SystemTime| {
        let since = time.duration_since(SystemTime::UNIX_EPOCH).unwrap_or_default();
        i64::try_from(since.as_nanos()).unwrap_or(i64::MAX)
    };
    let since = args.since.map(nanos);
    let until = args.until.map(nanos);
    let journal = app.engine()?.store().events();
    let mut reader = if since.is_some() { journal.read()? } else { journal.read_new()? };
    loop {
        while let Some(event) = reader.next_event()? {
            let in_time =
                since.is_none_or(|since| event.time >= since) && until.is_none_or(|until| event.time <= until);
            if in_time && matches(&filters, &event) {
                app.print(&(line(&event, template)? + "\n"))?;
            }
        }
        let left = args.until.map(|until| until.duration_since(SystemTime::now()));
        match left {
            Some(Err(_)) => return DONE,
            Some(Ok(left)) => reader.wait(Some(left))?,
            None => reader.wait(None)?,
        }
    }
}

/// One `--filter`. Those of one key are alternatives, but labels all have to hold; those of different keys all have to.
struct Filter {
    key: &'static str,
    value: String,
}

/// Keys of docker's. Of some nothing happens here: they let nothing through.
const KEYS: [&str; 14] = [
    "config",
    "container",
    "daemon",
    "event",
    "image",
    "label",
    "network",
    "node",
    "plugin",
    "scope",
    "secret",
    "service",
    "type",
    "volume",
];

impl Filter {
    fn parse(text: &str) -> Result<Self, CliError> {
        let (key, value) = text.split_once('=').ok_or_else(|| {
            CliError::new(format!(
                "invalid argument \"{text}\" for \"-f, --filter\" flag: bad format of filter (expected name=value)"
            ))
        })?;
        let wanted = key.trim().to_ascii_lowercase();
        let known = KEYS.into_iter().find(|key| *key == wanted);
        let key = known.ok_or_else(|| CliError::new(format!("invalid filter '{wanted}'")))?;
        Ok(Self { key, value: value.to_owned() })
    }

    fn holds(&self, event: &Event) -> bool {
        let value = self.value.as_str();
        let attribute = |name: &str| event.attributes.get(name).map(String::as_str);
        let is = |kind| event.kind == kind && (event.id == value || attribute("name") == Some(value));
        let by_id = |kind| event.kind == kind && value.len() >= 4 && event.id.starts_with(value);
        match self.key {
            "type" => event.kind.as_str() == value,
            // `exec_start: COMMAND` and `health_status: healthy` are found by their first word too.
            "event" => event.action == value || event.action.split(':').next() == Some(value),
            "scope" => value == "local",
            "container" => is(EventKind::Container) || by_id(EventKind::Container),
            "network" => is(EventKind::Network) || by_id(EventKind::Network),
            "volume" => is(EventKind::Volume),
            "label" => match value.split_once('=') {
                Some((name, value)) => attribute(name) == Some(value),
                None => attribute(value).is_some(),
            },
            "image" => {
                let name = match event.kind {
                    EventKind::Container => attribute("image"),
                    EventKind::Image => attribute("name"),
                    _ => None,
                };
                let without_tag = |name: &str| name.rsplit_once(':').map_or(name, |(name, _)| name) == value;
                by_id(EventKind::Image)
                    || event.kind == EventKind::Image && event.id == value
                    || name.is_some_and(|name| name == value || without_tag(name))
            }
            _ => false,
        }
    }
}

fn matches(filters: &[Filter], event: &Event) -> bool {
    KEYS.iter().all(|key| {
        let mut of_key = filters.iter().filter(|filter| filter.key == *key).peekable();
        match (of_key.peek(), *key) {
            (None, _) => true,
            (_, "label") => of_key.all(|filter| filter.holds(event)),
            _ => of_key.any(|filter| filter.holds(event)),
        }
    })
}

fn line(event: &Event, template: Option<&str>) -> Result<String, CliError> {
    match template {
        None => Ok(text(event)),
        Some("json" | "{{json .}}" | "{{ json . }}") => {
            serde_json::to_string(&Json::of(event)).map_err(|e| CliError::new(e.to_string()))
        }
        Some(template) => format::object(template, &Fields(Json::of(event))),
    }
}

/// `2024-05-01T12:00:00.000000000Z container start ID (image=busybox, name=web)`
fn text(event: &Event) -> String {
    let time = time::OffsetDateTime::from_unix_timestamp_nanos(event.time.into());
    let time = time.unwrap_or(time::OffsetDateTime::UNIX_EPOCH);
    let (date, clock) = (time.date(), time.time());
    let mut text = format!("{date}T{:02}:{:02}:{:02}.", clock.hour(), clock.minute(), clock.second());
    text.push_str(&format!("{:09}Z {} {} {}", clock.nanosecond(), event.kind.as_str(), event.action, event.id));
    if !event.attributes.is_empty() {
        let all: Vec<String> = event.attributes.iter().map(|(name, value)| format!("{name}={value}")).collect();
        text.push_str(&format!(" ({})", all.join(", ")));
    }
    crate::terminal::clean_line(&text)
}

/// As docker's API has it.
#[derive(Serialize)]
struct Json<'a> {
    #[serde(skip_serializing_if = "Option::is_none")]
    status: Option<&'a str>,
    #[serde(skip_serializing_if = "Option::is_none")]
    id: Option<&'a str>,
    #[serde(skip_serializing_if = "Option::is_none")]
    from: Option<&'a str>,
    #[serde(rename = "Type")]
    kind: &'a str,
    #[serde(rename = "Action")]
    action: &'a str,
    #[serde(rename = "Actor")]
    actor: Actor<'a>,
    scope: &'a str,
    time: i64,
    #[serde(rename = "timeNano")]
    nanos: i64,
}

#[derive(Serialize)]
struct Actor<'a> {
    #[serde(rename = "ID")]
    id: &'a str,
    #[serde(rename = "Attributes")]
    attributes: &'a BTreeMap<String, String>,
}

impl<'a> Json<'a> {
    fn of(event: &'a Event) -> Self {
        // Fields of old, which docker has for these two only.
        let of_old = matches!(event.kind, EventKind::Container | EventKind::Image);
        let image = event.attributes.get("image").filter(|_| event.kind == EventKind::Container);
        Self {
            status: of_old.then_some(event.action.as_str()),
            id: of_old.then_some(event.id.as_str()),
            from: image.map(String::as_str),
            kind: event.kind.as_str(),
            action: &event.action,
            actor: Actor { id: &event.id, attributes: &event.attributes },
            scope: "local",
            time: event.time.div_euclid(1_000_000_000),
            nanos: event.time,
        }
    }
}

/// The same under the names that templates use.
struct Fields<'a>(Json<'a>);

impl Serialize for Fields<'_> {
    fn serialize<S: serde::Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        use serde::ser::SerializeMap as _;
        let Json { status, id, from, kind, action, actor, scope, time, nanos } = &self.0;
        let mut map = serializer.serialize_map(None)?;
        for (name, value) in [("Status", status), ("ID", id), ("From", from)] {
            map.serialize_entry(name, value.unwrap_or_default())?;
        }
        for (name, value) in [("Type", kind), ("Action", action), ("Scope", scope)] {
            map.serialize_entry(name, value)?;
        }
        map.serialize_entry("Actor", actor)?;
        map.serialize_entry("Time", time)?;
        map.serialize_entry("TimeNano", nanos)?;
        map.end()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn event() -> Event {
        let event = Event::new(EventKind::Container, "exec_start: ls", "abcdef12");
        Event {
            time: 1_714_564_800_500_000_000,
            ..event.with("image", "busybox:1").with("name", "web").with("tier", "x")
        }
    }

    #[test]
    fn filters_of_a_key_are_alternatives() {
        let holds = |texts: &[&str]| {
            let filters: Vec<_> = texts.iter().map(|text| Filter::parse(text).unwrap()).collect();
            matches(&filters, &event())
        };
        for texts in [
            &["type=container"][..],
            &["type=image", "type=container"],
            &["event=exec_start", "container=web"],
            &["container=abcd"],
            &["image=busybox"],
            &["image=busybox:1"],
            &["label=tier", "label=tier=x"],
            &["scope=local"],
            &[],
        ] {
            assert!(holds(texts), "{texts:?}");
        }
        for texts in [
            &["type=image"][..],
            &["event=exec"],
            &["container=we"],
            &["label=tier", "label=other"],
            &["container=web", "event=die"],
            &["network=web"],
            &["scope=swarm"],
            &["plugin=x"],
        ] {
            assert!(!holds(texts), "{texts:?}");
        }
        assert_eq!(Filter::parse("what=x").err().map(|e| e.message).as_deref(), Some("invalid filter 'what'"));
        assert!(Filter::parse("type").is_err());
    }

    #[test]
    fn the_forms_of_an_event() {
        let event = event();
        let line = |template| line(&event, template).unwrap();
        assert_eq!(
            line(None),
            "2024-05-01T12:00:00.500000000Z container exec_start: ls abcdef12 (image=busybox:1, name=web, tier=x)"
        );
        let json: serde_json::Value = serde_json::from_str(&line(Some("json"))).unwrap();
        assert_eq!((&json["Actor"]["ID"], &json["from"]), (&"abcdef12".into(), &"busybox:1".into()));
        assert_eq!((&json["time"], &json["timeNano"]), (&1_714_564_800.into(), &1_714_564_800_500_000_000i64.into()));
        let template = "{{.Type}} {{.Status}} {{.Actor.Attributes.name}} {{.Time}} {{json .Actor.ID}}";
        assert_eq!(line(Some(template)), "container exec_start: ls web 1714564800 \"abcdef12\"");
    }
}
