//! `rbuild search`.

use std::process::ExitCode;

use rbuild_engine::registry::Match;

use super::DONE;
use crate::app::App;
use crate::error::CliError;
use crate::format::{self, Column, Row, column};

/// Search Docker Hub, or another registry that can be searched, for images
#[derive(Debug, clap::Args)]
pub struct Args {
    /// Words to look for; behind HOST/ in the registry of that host
    #[arg(value_name = "TERM")]
    term: String,
    /// Show what fits: stars=NUMBER, is-official=BOOL, is-automated=BOOL
    #[arg(short, long, value_name = "FILTER")]
    filter: Vec<String>,
    /// Format with a Go template, 'table TEMPLATE' or 'json'
    #[arg(long, value_name = "TEMPLATE")]
    format: Option<String>,
    /// Show so many at most
    #[arg(long, value_name = "NUMBER", default_value_t = 25)]
    limit: u32,
    /// Show descriptions in full
    #[arg(long)]
    no_trunc: bool,
}

const COLUMNS: [Column; 5] = [
    column("Name", "NAME"),
    column("Description", "DESCRIPTION"),
    column("StarCount", "STARS"),
    column("IsOfficial", "OFFICIAL"),
    column("IsAutomated", "AUTOMATED"),
];
const DEFAULT: [&str; 4] = ["Name", "Description", "StarCount", "IsOfficial"];
/// Characters of a description that are shown.
const DESCRIPTION: usize = 45;

pub async fn run(args: Args, app: &App) -> Result<ExitCode, CliError> {
    if !(1..=100).contains(&args.limit) {
        return Err(CliError::new(format!("limit {} is outside the range of [1, 100]", args.limit)));
    }
    let filters = args.filter.iter().map(|text| Filter::parse(text)).collect::<Result<Vec<_>, _>>()?;
    let client = app.registry_client()?;
    let found = client.search(&args.term, args.limit).await.map_err(|e| CliError::new(e.to_string()))?;
    let mut found: Vec<Match> = found.into_iter().filter(|one| filters.iter().all(|f| f.lets(one))).collect();
    found.sort_by_key(|one| std::cmp::Reverse(one.star_count));
    let rows: Vec<Row> = found.iter().map(|one| row(one, args.no_trunc)).collect();
    app.print(&format::listing(args.format.as_deref(), &COLUMNS, &DEFAULT, &rows)?)?;
    DONE
}

enum Filter {
    Stars(u64),
    Official(bool),
    Automated(bool),
}

impl Filter {
    fn parse(text: &str) -> Result<Filter, CliError> {
        let invalid = || CliError::new(format!("invalid filter '{text}'"));
        let (key, value) = text.split_once('=').ok_or_else(invalid)?;
        let flag = || match value {
            "true" | "1" => Ok(true),
            "false" | "0" => Ok(false),
            _ => Err(CliError::new(format!("invalid filter '{key}=[{value}]'"))),
        };
        match key {
            "stars" => Ok(Filter::Stars(value.parse().map_err(|_| invalid())?)),
            "is-official" => Ok(Filter::Official(flag()?)),
            "is-automated" => Ok(Filter::Automated(flag()?)),
            _ => Err(CliError::new(format!("invalid filter '{key}'"))),
        }
    }

    fn lets(&self, one: &Match) -> bool {
        match *self {
            Filter::Stars(least) => one.star_count >= least,
            Filter::Official(wanted) => one.is_official == wanted,
            Filter::Automated(wanted) => one.is_automated == wanted,
        }
    }
}

fn row(one: &Match, no_trunc: bool) -> Row {
    let description = one.description.replace(['\n', '\r'], " ");
    let shown = match description.char_indices().nth(DESCRIPTION) {
        Some(_) if !no_trunc => description.chars().take(DESCRIPTION - 1).chain(['…']).collect(),
        _ => description,
    };
    let mark = |yes: bool| if yes { "[OK]" } else { "" };
    Row::default()
        .set("Name", &one.name)
        .set("Description", shown)
        .set("StarCount", one.star_count.to_string())
        .set("IsOfficial", mark(one.is_official))
        .set("IsAutomated", mark(one.is_automated))
}
