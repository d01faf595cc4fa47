//! `rbuild network ls`.

use std::process::ExitCode;

use rbuild_engine::networks::{Network, Networks};

use super::DONE;
use crate::app::App;
use crate::error::CliError;
use crate::format::{Column, Row, column, listing};
use crate::units;

/// List networks
#[derive(Debug, clap::Args)]
pub struct Args {
    /// Only those for which KEY=VALUE holds: dangling, driver, id, label, name, scope, type
    #[arg(short, long = "filter", value_name = "KEY=VALUE")]
    filters: Vec<String>,
    /// How to print them: 'table', 'json', or a Go template
    #[arg(long, value_name = "FORMAT")]
    format: Option<String>,
    /// Do not shorten ids
    #[arg(long)]
    no_trunc: bool,
    /// Only ids
    #[arg(short, long)]
    quiet: bool,
}

const COLUMNS: &[Column] = &[
    column("ID", "NETWORK ID"),
    column("Name", "NAME"),
    column("Driver", "DRIVER"),
    column("Scope", "SCOPE"),
    column("IPv4", "IPV4"),
    column("IPv6", "IPV6"),
    column("Internal", "INTERNAL"),
    column("Labels", "LABELS"),
    column("CreatedAt", "CREATED AT"),
];

pub async fn run(args: Args, app: &App) -> Result<ExitCode, CliError> {
    let networks = app.engine()?.networks();
    let mut all = networks.list()?;
    // Those of one key are alternatives, those of different keys all have to hold; labels all have to.
    let filters = args.filters.iter().map(|text| parse(text)).collect::<Result<Vec<_>, _>>()?;
    for key in ["dangling", "driver", "id", "name", "scope", "type"] {
        let values: Vec<&str> = filters.iter().filter(|(k, _)| *k == key).map(|(_, v)| *v).collect();
        if !values.is_empty() {
            let checked = values.iter().map(|value| predicate(&networks, key, value)).collect::<Result<Vec<_>, _>>()?;
            all.retain(|network| checked.iter().any(|holds| holds(network)));
        }
    }
    for (_, value) in filters.iter().filter(|(key, _)| *key == "label") {
        all.retain(|network| has_label(network, value));
    }
    let id = |n: &Network| if args.no_trunc { n.id.clone() } else { n.short_id().to_owned() };
    if args.quiet && args.format.is_none() {
        let text: String = all.iter().map(|n| id(n) + "\n").collect();
        app.print(&text)?;
        return DONE;
    }
    let rows: Vec<Row> = all
        .iter()
        .map(|n| {
            let labels: Vec<String> = n.labels.iter().map(|(k, v)| format!("{k}={v}")).collect();
            let mut row = Row::default()
                .set("ID", id(n))
                .set("Name", n.name.as_str())
                .set("Driver", n.driver.as_str())
                .set("Scope", "local")
                .set("IPv4", "true")
                .set("IPv6", n.bridge.subnet6.is_some().to_string())
                .set("Internal", n.bridge.internal.to_string())
                .set("Labels", labels.join(","))
                .set("CreatedAt", units::timestamp(n.created_at()));
            row.labels.clone_from(&n.labels);
            row
        })
        .collect();
    app.print(&listing(args.format.as_deref(), COLUMNS, &["ID", "Name", "Driver", "Scope"], &rows)?)?;
    DONE
}

fn parse(text: &str) -> Result<(&str, &str), CliError> {
    let (key, value) =
        text.split_once('=').ok_or_else(|| CliError::new("bad format of filter (expected name=value)"))?;
    match key {
        "dangling" | "driver" | "id" | "label" | "name" | "scope" | "type" => Ok((key, value)),
        _ => Err(CliError::new(format!("invalid filter '{key}'"))),
    }
}

pub(super) fn has_label(network: &Network, wanted: &str) -> bool {
    match wanted.split_once('=') {
        Some((key, value)) => network.labels.get(key).is_some_and(|found| found == value),
        None => network.labels.contains_key(wanted),
    }
}

type Predicate<'a> = Box<dyn Fn(&Network) -> bool + 'a>;

fn predicate<'a>(networks: &Networks, key: &str, value: &'a str) -> Result<Predicate<'a>, CliError> {
    let invalid = || CliError::new(format!("invalid filter '{key}={value}'"));
    Ok(match key {
        "driver" => Box::new(move |n| n.driver.as_str() == value),
        "id" => Box::new(move |n| n.id.starts_with(value)),
        "name" => Box::new(move |n| n.name.contains(value)),
        "scope" => Box::new(move |_| value == "local"),
        "type" => match value {
            "builtin" => Box::new(Network::is_predefined),
            "custom" => Box::new(|n| !n.is_predefined()),
            _ => return Err(invalid()),
        },
        _ => {
            let wanted = match value {
                "true" | "1" => true,
                "false" | "0" => false,
                _ => return Err(invalid()),
            };
            let mut used = Vec::new();
            for network in networks.list()? {
                if network.is_predefined() || !networks.members(&network)?.is_empty() {
                    used.push(network.id);
                }
            }
            Box::new(move |n| used.contains(&n.id) != wanted)
        }
    })
}
