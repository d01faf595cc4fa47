//! `rbuild system df`.

use std::process::ExitCode;
use std::time::SystemTime;

use rbuild_engine::Engine;
use rbuild_engine::usage::Usage;
use rbuild_engine::usage::cache::CacheEntry;

use super::{DONE, images, ps};
use crate::app::App;
use crate::error::CliError;
use crate::format::{self, Column, Row, column};
use crate::units;

/// Show what takes room
#[derive(Debug, clap::Args)]
pub struct Args {
    /// Format with a Go template, 'table TEMPLATE' or 'json'
    #[arg(long, value_name = "TEMPLATE")]
    format: Option<String>,
    /// Each image, container, volume and entry of the build cache, and whose every byte of the state directory is
    #[arg(short, long)]
    verbose: bool,
}

const COLUMNS: [Column; 5] = [
    column("Active", "ACTIVE"),
    column("Reclaimable", "RECLAIMABLE"),
    column("Size", "SIZE"),
    column("TotalCount", "TOTAL"),
    column("Type", "TYPE"),
];
const DEFAULT: [&str; 5] = ["Type", "TotalCount", "Active", "Size", "Reclaimable"];

const IMAGES: [Column; 8] = [
    column("Repository", "REPOSITORY"),
    column("Tag", "TAG"),
    column("ID", "IMAGE ID"),
    column("CreatedSince", "CREATED"),
    column("Size", "SIZE"),
    column("SharedSize", "SHARED SIZE"),
    column("UniqueSize", "UNIQUE SIZE"),
    column("Containers", "CONTAINERS"),
];
const CONTAINERS: [Column; 8] = [
    column("ID", "CONTAINER ID"),
    column("Image", "IMAGE"),
    column("Command", "COMMAND"),
    column("LocalVolumes", "LOCAL VOLUMES"),
    column("Size", "SIZE"),
    column("RunningFor", "CREATED"),
    column("Status", "STATUS"),
    column("Names", "NAMES"),
];
const VOLUMES: [Column; 3] = [column("Name", "VOLUME NAME"), column("Links", "LINKS"), column("Size", "SIZE")];
const CACHE: [Column; 7] = [
    column("ID", "CACHE ID"),
    column("CacheType", "CACHE TYPE"),
    column("Size", "SIZE"),
    column("CreatedSince", "CREATED"),
    column("LastUsedSince", "LAST USED"),
    column("UsageCount", "USAGE"),
    column("Shared", "SHARED"),
];
const OWNERS: [Column; 4] =
    [column("Owner", "OWNER"), column("Items", "ITEMS"), column("Size", "SIZE"), column("Bytes", "BYTES")];

pub async fn run(args: Args, app: &App) -> Result<ExitCode, CliError> {
    let engine = app.engine()?;
    if args.verbose {
        app.print(&Verbose::of(engine)?.show(args.format.as_deref())?)?;
        return DONE;
    }
    let usage = engine.disk_usage()?;
    let rows = [
        row("Images", usage.images),
        row("Containers", usage.containers),
        row("Local Volumes", usage.volumes),
        row("Build Cache", usage.cache),
    ];
    app.print(&format::listing(args.format.as_deref(), &COLUMNS, &DEFAULT, &rows)?)?;
    DONE
}

fn row(kind: &str, usage: Usage) -> Row {
    let mut reclaimable = units::size(usage.reclaimable);
    if let Some(percent) = (usage.reclaimable * 100).checked_div(usage.size) {
        reclaimable.push_str(&format!(" ({percent}%)"));
    }
    Row::default()
        .set("Active", usage.active.to_string())
        .set("Reclaimable", reclaimable)
        .set("Size", units::size(usage.size))
        .set("TotalCount", usage.total.to_string())
        .set("Type", kind)
}

/// Everything, line by line.
struct Verbose {
    images: Vec<Row>,
    containers: Vec<Row>,
    volumes: Vec<Row>,
    cache: Vec<Row>,
    /// Bytes that only the cache has.
    cached: u64,
    owners: Vec<Row>,
}

impl Verbose {
    fn of(engine: &Engine) -> Result<Verbose, CliError> {
        let now = SystemTime::now();
        let mut all = Verbose {
            images: Vec::new(),
            containers: ps::all_with_sizes(engine)?,
            volumes: Vec::new(),
            cache: Vec::new(),
            cached: 0,
            owners: Vec::new(),
        };
        for share in engine.image_shares()? {
            for (repository, tag, digest) in images::lines(&share.image, false) {
                let row = images::row(&share.image, share.shared + share.unique, repository, tag, digest, false);
                all.images.push(
                    row.set("SharedSize", units::size(share.shared))
                        .set("UniqueSize", units::size(share.unique))
                        .set("Containers", share.containers.to_string()),
                );
            }
        }
        for (name, size, links) in engine.volume_sizes()? {
            let row = Row::default().set("Name", name).set("Links", links.to_string());
            all.volumes.push(row.set("Size", units::size(size)));
        }
        for entry in engine.cache_entries()? {
            all.cached += if entry.shared { 0 } else { entry.size };
            all.cache.push(cache_row(&entry, now));
        }
        for (owner, share) in engine.shares()? {
            let row = Row::default().set("Owner", owner.name()).set("Items", share.items.to_string());
            all.owners.push(row.set("Size", units::size(share.size)).set("Bytes", share.size.to_string()));
        }
        Ok(all)
    }

    fn show(&self, format: Option<&str>) -> Result<String, CliError> {
        let parts: [(&str, &str, &[Column], &[Row]); 5] = [
            ("Images", "Images space usage:", &IMAGES, &self.images),
            ("Containers", "Containers space usage:", &CONTAINERS, &self.containers),
            ("Volumes", "Local Volumes space usage:", &VOLUMES, &self.volumes),
            ("BuildCache", "Build cache usage:", &CACHE, &self.cache),
            ("Owners", "State directory usage:", &OWNERS, &self.owners),
        ];
        if let Some(format) = format {
            let object: serde_json::Map<String, serde_json::Value> = parts
                .iter()
                .map(|(name, _, columns, rows)| {
                    ((*name).to_owned(), rows.iter().map(|row| object(columns, row)).collect())
                })
                .collect();
            return Ok(format::object(format, &object)? + "\n");
        }
        let mut text = String::new();
        for (at, (name, heading, columns, rows)) in parts.into_iter().enumerate() {
            let total = if name == "BuildCache" { format!(" {}", units::size(self.cached)) } else { String::new() };
            let gap = if at == 0 { "" } else { "\n" };
            let names: Vec<&str> = columns.iter().map(|column| column.name).collect();
            text.push_str(&format!("{gap}{heading}{total}\n\n{}", format::listing(None, columns, &names, rows)?));
        }
        Ok(text)
    }
}

fn object(columns: &[Column], row: &Row) -> serde_json::Value {
    let cells = columns.iter().map(|column| {
        let text = row.cells.get(column.name).cloned().unwrap_or_default();
        (column.name.to_owned(), serde_json::Value::String(text))
    });
    serde_json::Value::Object(cells.collect())
}

fn cache_row(entry: &CacheEntry, now: SystemTime) -> Row {
    Row::default()
        .set("ID", entry.id.get(..12).unwrap_or(&entry.id))
        .set("CacheType", entry.kind.name())
        .set("Size", units::size(entry.size))
        .set("CreatedSince", units::ago(entry.created, now))
        .set("LastUsedSince", units::ago(entry.used, now))
        .set("UsageCount", entry.uses.map(|uses| uses.to_string()).unwrap_or_default())
        .set("Shared", entry.shared.to_string())
}
