//! `rbuild stats`.

use std::collections::BTreeMap;
use std::io::IsTerminal as _;
use std::process::ExitCode;
use std::time::Duration;

use rbuild_engine::Kind;
use rbuild_engine::containers::{Containers, Seen, Usage};

use super::DONE;
use crate::app::App;
use crate::error::CliError;
use crate::format::{Column, Row, column, listing};
use crate::units::{binary_size, short_size};

/// Show what containers use of the machine
#[derive(Debug, clap::Args)]
pub struct Args {
    /// Those that do not run too
    #[arg(short, long)]
    all: bool,
    /// How to print them: 'table', 'json', or a Go template
    #[arg(long, value_name = "FORMAT")]
    format: Option<String>,
    /// Show it once and end
    #[arg(long)]
    no_stream: bool,
    /// Do not shorten ids
    #[arg(long)]
    no_trunc: bool,
    #[arg(value_name = "CONTAINER")]
    containers: Vec<String>,
}

const COLUMNS: &[Column] = &[
    column("BlockIO", "BLOCK I/O"),
    column("CPUPerc", "CPU %"),
    column("Container", "CONTAINER"),
    column("ID", "CONTAINER ID"),
    column("MemPerc", "MEM %"),
    column("MemUsage", "MEM USAGE / LIMIT"),
    column("Name", "NAME"),
    column("NetIO", "NET I/O"),
    column("PIDs", "PIDS"),
];

const SHOWN: [&str; 8] = ["ID", "Name", "CPUPerc", "MemUsage", "MemPerc", "NetIO", "BlockIO", "PIDs"];

/// From one look to the next.
const INTERVAL: Duration = Duration::from_secs(1);
/// The shorter time in which the first share of processor time is measured.
const FIRST: Duration = Duration::from_millis(400);

/// What was used at the last look, by the containers' ids.
type Before = BTreeMap<String, Usage>;

pub async fn run(args: Args, app: &App) -> Result<ExitCode, CliError> {
    let containers = app.engine()?.containers();
    // Before anything is measured, so that a template that is none is told at once.
    listing(args.format.as_deref(), COLUMNS, &SHOWN, &[])?;
    for name in &args.containers {
        containers.find(name)?;
    }
    let mut before = Before::new();
    look(&args, &containers, &mut before)?;
    tokio::time::sleep(FIRST).await;
    let redraws = std::io::stdout().is_terminal() && !args.no_stream;
    loop {
        let rows = look(&args, &containers, &mut before)?;
        let text = listing(args.format.as_deref(), COLUMNS, &SHOWN, &rows)?;
        if redraws {
            redraw(app, &text)?;
        } else {
            app.print(&text)?;
        }
        if args.no_stream {
            return DONE;
        }
        tokio::time::sleep(INTERVAL).await;
    }
}

/// From the upper left corner on, each line and then the screen cleared to its end.
fn redraw(app: &App, text: &str) -> Result<(), CliError> {
    let lines: String = crate::terminal::clean(text).lines().map(|line| format!("{line}\x1b[K\n")).collect();
    app.write_out(format!("\x1b[H{lines}\x1b[J").as_bytes())
}

/// One look at the containers that are asked for.
fn look(args: &Args, containers: &Containers, before: &mut Before) -> Result<Vec<Row>, CliError> {
    let mut rows = Vec::new();
    let mut now = Before::new();
    for (asked, seen) in chosen(args, containers)? {
        let id = &seen.container.id;
        let usage = containers.usage(&seen)?;
        rows.push(row(args, &asked, &seen, usage.as_ref(), before.get(id)));
        now.extend(usage.map(|usage| (id.clone(), usage)));
    }
    *before = now;
    Ok(rows)
}

/// The containers with what they are called here: those named, or all.
fn chosen(args: &Args, containers: &Containers) -> Result<Vec<(String, Seen)>, CliError> {
    if args.containers.is_empty() {
        let mut all = containers.list()?;
        all.retain(|seen| args.all || seen.status.is_alive());
        return Ok(all.into_iter().map(|seen| (seen.container.short_id().to_owned(), seen)).collect());
    }
    let mut found = Vec::new();
    for name in &args.containers {
        match containers.find(name) {
            Ok(seen) => found.push((name.clone(), seen)),
            // Removed since the first look.
            Err(error) if error.kind == Kind::NotFound => {}
            Err(error) => return Err(error.into()),
        }
    }
    Ok(found)
}

fn row(args: &Args, asked: &str, seen: &Seen, usage: Option<&Usage>, before: Option<&Usage>) -> Row {
    let container = &seen.container;
    let zero = Usage::default();
    let now = usage.unwrap_or(&zero);
    let share = |part: u64, whole: u64| if whole == 0 { 0.0 } else { part as f64 * 100.0 / whole as f64 };
    let pair = |one: String, other: String| format!("{one} / {other}");
    Row::default()
        .set("Container", asked)
        .set("ID", if args.no_trunc { container.id.as_str() } else { container.short_id() })
        .set("Name", container.name.as_str())
        .set("CPUPerc", format!("{:.2}%", before.map_or(0.0, |before| processors(before, now) * 100.0)))
        .set("MemUsage", pair(binary_size(now.memory), binary_size(now.memory_limit)))
        .set("MemPerc", format!("{:.2}%", share(now.memory, now.memory_limit)))
        .set("NetIO", pair(short_size(now.received), short_size(now.sent)))
        .set("BlockIO", pair(short_size(now.read), short_size(now.written)))
        .set("PIDs", now.processes.to_string())
}

/// How many processors were busy with it between two looks.
fn processors(before: &Usage, now: &Usage) -> f64 {
    let (Some(from), Some(to)) = (before.at, now.at) else { return 0.0 };
    let elapsed = to.saturating_duration_since(from).as_secs_f64();
    // Started anew in between, it has used less than before.
    let used = now.cpu.saturating_sub(before.cpu).as_secs_f64();
    if elapsed > 0.0 { used / elapsed } else { 0.0 }
}

#[cfg(test)]
mod tests {
    use std::time::Instant;

    use super::*;

    #[test]
    fn shares_of_processors() {
        let begin = Instant::now();
        let at = |seconds, cpu| Usage {
            at: Some(begin + Duration::from_secs(seconds)),
            cpu: Duration::from_secs(cpu),
            ..Usage::default()
        };
        assert_eq!(processors(&at(0, 10), &at(2, 13)), 1.5);
        assert_eq!(processors(&at(0, 10), &at(2, 3)), 0.0);
        assert_eq!(processors(&at(1, 0), &at(1, 5)), 0.0);
        assert_eq!(processors(&at(1, 0), &Usage::default()), 0.0);
    }
}
