//! `rbuild logs`.

use std::io::Write as _;
use std::process::ExitCode;
use std::time::{Duration, SystemTime};

use rbuild_engine::containers::{Containers, Entry, LogReader, Seen, Stream};

use super::DONE;
use crate::app::App;
use crate::error::CliError;
use crate::units;

/// Show what a container has written
#[derive(Debug, clap::Args)]
pub struct Args {
    /// Begin each line with what --log-opt labels, env and tag put beside it
    #[arg(long)]
    details: bool,
    /// Go on showing it until the container ends
    #[arg(short, long)]
    follow: bool,
    /// Only what was written since: a time, seconds since 1970, or how long ago (10m)
    #[arg(long, value_name = "TIME", value_parser = units::point_in_time)]
    since: Option<SystemTime>,
    /// Only the last lines: a number or 'all'
    #[arg(short = 'n', long, value_name = "N", default_value = "all", allow_hyphen_values = true)]
    tail: String,
    /// Begin each line with its time
    #[arg(short, long)]
    timestamps: bool,
    /// Only what was written before: a time, seconds since 1970, or how long ago
    #[arg(long, value_name = "TIME", value_parser = units::point_in_time)]
    until: Option<SystemTime>,
    #[arg(value_name = "CONTAINER")]
    container: String,
}

/// How long the end of the log is left alone before it is looked at again.
const PAUSE: Duration = Duration::from_millis(40);

pub async fn run(args: Args, app: &App) -> Result<ExitCode, CliError> {
    let containers = app.engine()?.containers();
    let seen = containers.find(&args.container)?;
    // As docker: a number that is none, or below zero, means everything.
    let tail = args.tail.parse::<u64>().ok();
    let Some(mut log) = containers.logs(&seen.container, tail)? else {
        return if args.follow { wait_for_log(&args, &containers, seen).await } else { DONE };
    };
    follow(&args, &containers, seen, &mut log).await?;
    DONE
}

/// Follows the log of a container that was never started, once it is.
async fn wait_for_log(args: &Args, containers: &Containers, mut seen: Seen) -> Result<ExitCode, CliError> {
    loop {
        if let Some(mut log) = containers.logs(&seen.container, None)? {
            follow(args, containers, seen, &mut log).await?;
            return DONE;
        }
        tokio::time::sleep(PAUSE).await;
        seen = containers.find(&seen.container.id)?;
    }
}

async fn follow(args: &Args, containers: &Containers, seen: Seen, log: &mut LogReader) -> Result<(), CliError> {
    let mut alive = seen.status.is_alive();
    loop {
        let mut shown = false;
        while let Some(entry) = log.next_entry()? {
            if let Some(until) = args.until
                && entry.at().is_some_and(|at| SystemTime::from(at) > until)
            {
                return Ok(());
            }
            if args.since.is_none_or(|since| entry.at().is_none_or(|at| SystemTime::from(at) >= since)) {
                show(args, &entry)?;
            }
            shown = true;
        }
        if !args.follow || !alive {
            return Ok(());
        }
        if !shown {
            tokio::time::sleep(PAUSE).await;
        }
        // Asked before the next look at the log: what came before the end is then in it.
        alive = match containers.find(&seen.container.id) {
            Ok(now) => now.status.is_alive(),
            // Removed meanwhile; the open file still has its last words.
            Err(_) => false,
        };
    }
}

fn show(args: &Args, entry: &Entry) -> Result<(), CliError> {
    let mut line = Vec::with_capacity(entry.log.len() + 40);
    if args.timestamps {
        line.extend_from_slice(entry.time.as_bytes());
        line.push(b' ');
    }
    if args.details {
        let details: Vec<String> =
            entry.attributes.iter().map(|(key, value)| format!("{}={}", escaped(key), escaped(value))).collect();
        line.extend_from_slice(details.join(",").as_bytes());
        line.push(b' ');
    }
    line.extend_from_slice(entry.log.as_bytes());
    match entry.stream {
        Stream::Stdout => std::io::stdout().lock().write_all(&line)?,
        Stream::Stderr => std::io::stderr().lock().write_all(&line)?,
    }
    Ok(())
}

/// As in the query of a URL, so that commas and equals signs only stand between.
fn escaped(text: &str) -> String {
    let mut escaped = String::with_capacity(text.len());
    for byte in text.bytes() {
        match byte {
            b' ' => escaped.push('+'),
            b if b.is_ascii_alphanumeric() || b"-_.~".contains(&b) => escaped.push(char::from(b)),
            b => escaped.push_str(&format!("%{b:02X}")),
        }
    }
    escaped
}

#[cfg(test)]
mod tests {
    use super::escaped;

    #[test]
    fn details_are_escaped() {
        assert_eq!(escaped("a b,c=d/é~"), "a+b%2Cc%3Dd%2F%C3%A9~");
    }
}
