//! `rbuild builder du`, `rbuild buildx du`.

use std::process::ExitCode;
use std::time::{Duration, SystemTime};

use rbuild_engine::usage::cache::CacheEntry;
use rbuild_engine::usage::filter::CacheFilter;
use serde::Serialize;

use super::DONE;
use crate::app::App;
use crate::error::CliError;
use crate::format::{self, Column, Row, column};
use crate::terminal::clean_line;
use crate::units;

/// Show what the build cache consists of and takes
#[derive(Debug, clap::Args)]
pub struct Args {
    /// Show what fits: id=ID, type=TYPE, parents=ID, description~=TEXT, inuse, mutable, immutable, shared, private, until=24h
    #[arg(long, value_name = "FILTER")]
    filter: Vec<String>,
    /// Format with a Go template, 'table TEMPLATE', 'json' or 'pretty'
    #[arg(long, value_name = "TEMPLATE")]
    format: Option<String>,
    /// All that is known of each entry (the same as --format pretty)
    #[arg(long)]
    verbose: bool,
}

const COLUMNS: [Column; 11] = [
    column("CreatedAt", "CREATED AT"),
    column("Description", "DESCRIPTION"),
    column("ID", "ID"),
    column("LastUsedAt", "LAST ACCESSED"),
    column("Mutable", "MUTABLE"),
    column("Parents", "PARENTS"),
    column("Reclaimable", "RECLAIMABLE"),
    column("Shared", "SHARED"),
    column("Size", "SIZE"),
    column("Type", "TYPE"),
    column("UsageCount", "USAGE COUNT"),
];
const DEFAULT: [&str; 4] = ["ID", "Reclaimable", "Size", "LastUsedAt"];

pub async fn run(args: Args, app: &App) -> Result<ExitCode, CliError> {
    if args.verbose && args.format.as_deref().is_some_and(|format| format != "pretty") {
        return Err(CliError::new("--format and --verbose cannot be used together"));
    }
    let wanted = Wanted::parse(&args.filter)?;
    let now = SystemTime::now();
    let entries: Vec<CacheEntry> =
        app.engine()?.cache_entries()?.into_iter().filter(|entry| wanted.fits(entry, now)).collect();
    let text = match args.format.as_deref() {
        _ if args.verbose => pretty(&entries, now) + &totals(&entries),
        Some("pretty") => pretty(&entries, now) + &totals(&entries),
        Some("json" | "{{json .}}") => entries.iter().map(|entry| json(entry) + "\n").collect(),
        None => table(&entries, now)? + &totals(&entries),
        Some(format) => {
            let rows: Vec<Row> =
                entries.iter().map(|entry| row(entry, format.trim_start().starts_with("table"), now)).collect();
            format::listing(Some(format), &COLUMNS, &DEFAULT, &rows)?
        }
    };
    app.print(&text)?;
    DONE
}

/// Which entries somebody wants to see or remove.
pub struct Wanted {
    pub filters: Vec<CacheFilter>,
    pub unused_for: Option<Duration>,
}

impl Wanted {
    /// # Errors
    /// A filter that nothing has, or a time that is none; in buildx's words.
    pub fn parse(filters: &[String]) -> Result<Wanted, CliError> {
        let mut wanted = Wanted { filters: Vec::new(), unused_for: None };
        let mut time: Option<&str> = None;
        for filter in filters {
            match filter.split_once('=') {
                Some((name @ ("until" | "unused-for"), value)) => {
                    match time.replace(name) {
                        Some(other) if other != name => {
                            return Err(CliError::new("conflicting filters \"until\" and \"unused-for\""));
                        }
                        Some(_) => return Err(CliError::new("filters expect only one value")),
                        None => {}
                    }
                    wanted.unused_for = Some(age(name, value)?);
                }
                _ => wanted.filters.push(CacheFilter::parse(filter)?),
            }
        }
        Ok(wanted)
    }

    fn fits(&self, entry: &CacheEntry, now: SystemTime) -> bool {
        let unused = now.duration_since(entry.used).unwrap_or_default();
        self.unused_for.is_none_or(|least| unused >= least) && self.filters.iter().all(|filter| filter.matches(entry))
    }
}

/// How long ago: a duration, or a time.
fn age(name: &str, value: &str) -> Result<Duration, CliError> {
    let now = SystemTime::now();
    let time = units::time_before(value, now)
        .ok_or_else(|| CliError::new(format!("\"{name}\" filter expects a duration (e.g., '24h')")))?;
    Ok(now.duration_since(time).unwrap_or_default())
}

/// The table that buildx prints; `*` marks an id whose content changes, and a size that images take anyway.
///
/// # Errors
/// None: the columns are known.
pub fn table(entries: &[CacheEntry], now: SystemTime) -> Result<String, CliError> {
    let rows: Vec<Row> = entries.iter().map(|entry| row(entry, true, now)).collect();
    format::listing(None, &COLUMNS, &DEFAULT, &rows)
}

/// A paragraph for each entry.
pub fn pretty(entries: &[CacheEntry], now: SystemTime) -> String {
    let mut text = String::new();
    for entry in entries {
        let uses = entry.uses.map(|uses| uses.to_string());
        let fields = [
            ("ID", Some(entry.id.clone())),
            ("Parents", Some(entry.parents.join(",")).filter(|parents| !parents.is_empty())),
            ("Created at", Some(stamp(entry.created))),
            ("Mutable", Some(entry.mutable.to_string())),
            ("Reclaimable", Some((!entry.in_use).to_string())),
            ("Shared", Some(entry.shared.to_string())),
            ("Size", Some(units::size(entry.size))),
            ("Description", Some(entry.description.clone())),
            ("Usage count", uses),
            ("Last used", Some(units::ago(entry.used, now))),
            ("Type", Some(entry.kind.name().to_owned())),
        ];
        for (name, value) in fields {
            if let Some(value) = value {
                text.push_str(&format!("{:<15} {}\n", format!("{name}:"), clean_line(&value)));
            }
        }
        text.push('\n');
    }
    text
}

fn totals(entries: &[CacheEntry]) -> String {
    let sum = |which: &dyn Fn(&&CacheEntry) -> bool| entries.iter().filter(which).map(|entry| entry.size).sum::<u64>();
    let total = sum(&|_| true);
    let shared = sum(&|entry| entry.shared);
    let mut lines = Vec::new();
    if shared > 0 {
        lines.push(("Shared:", shared));
        lines.push(("Private:", total - shared));
    }
    lines.push(("Reclaimable:", sum(&|entry| !entry.in_use)));
    lines.push(("Total:", total));
    lines.into_iter().map(|(name, bytes)| format!("{name:<15}{}\n", units::size(bytes))).collect()
}

fn row(entry: &CacheEntry, marks: bool, now: SystemTime) -> Row {
    let mark = |set: bool| if marks && set { "*" } else { "" };
    Row::default()
        .set("CreatedAt", stamp(entry.created))
        .set("Description", entry.description.clone())
        .set("ID", format!("{}{}", entry.id, mark(entry.mutable)))
        .set("LastUsedAt", units::ago(entry.used, now))
        .set("Mutable", entry.mutable.to_string())
        .set("Parents", entry.parents.join(","))
        .set("Reclaimable", (!entry.in_use).to_string())
        .set("Shared", entry.shared.to_string())
        .set("Size", format!("{}{}", units::size(entry.size), mark(entry.shared)))
        .set("Type", entry.kind.name())
        .set("UsageCount", entry.uses.map(|uses| uses.to_string()).unwrap_or_default())
}

/// As buildx writes an entry; sizes are bytes.
#[derive(Serialize)]
#[serde(rename_all = "PascalCase")]
struct Json<'a> {
    created_at: String,
    description: &'a str,
    #[serde(rename = "ID")]
    id: &'a str,
    last_used_at: String,
    mutable: bool,
    parents: &'a [String],
    reclaimable: bool,
    shared: bool,
    size: String,
    r#type: &'a str,
    #[serde(skip_serializing_if = "Option::is_none")]
    usage_count: Option<u64>,
}

fn json(entry: &CacheEntry) -> String {
    let object = Json {
        created_at: units::rfc3339(entry.created),
        description: &entry.description,
        id: &entry.id,
        last_used_at: units::rfc3339(entry.used),
        mutable: entry.mutable,
        parents: &entry.parents,
        reclaimable: !entry.in_use,
        shared: entry.shared,
        size: entry.size.to_string(),
        r#type: entry.kind.name(),
        usage_count: entry.uses,
    };
    serde_json::to_string(&object).unwrap_or_default()
}

/// `2023-11-20 09:53:30.881558721 +0000 UTC`.
fn stamp(time: SystemTime) -> String {
    units::rfc3339(time).replace('T', " ").replace('Z', " +0000 UTC")
}
