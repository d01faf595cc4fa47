//! `rbuild builds logs`, which is also `rbuild buildx history logs`.

use std::io::{BufRead as _, BufReader};
use std::process::ExitCode;
use std::time::Duration;

use rbuild_engine::history::journal::Entry;
use rbuild_engine::history::{BuildRecord, Builds, Status};

use super::DONE;
use crate::app::App;
use crate::error::CliError;
use crate::progress::{Mode, Renderer};

/// How often a build that runs is looked at.
const PAUSE: Duration = Duration::from_millis(50);

/// Show what a build printed
#[derive(Debug, clap::Args)]
pub struct Args {
    /// An id or its beginning; ^1 is the build before the last (default: the last)
    #[arg(value_name = "BUILD")]
    build: Option<String>,
    /// Stay until a build that runs is over
    #[arg(short, long)]
    follow: bool,
    /// How to show it: auto, plain or rawjson
    #[arg(long, value_name = "MODE", default_value = "plain")]
    progress: String,
}

pub async fn run(args: Args, app: &App) -> Result<ExitCode, CliError> {
    let mode = match Mode::choose(false, Some(&args.progress), &app.settings)? {
        Mode::Terminal => Mode::Plain,
        mode => mode,
    };
    let builds = app.engine()?.builds();
    let build = builds.find(args.build.as_deref())?;
    let mut renderer = mode.renderer(&app.settings);
    let last = match args.follow && build.status == Status::Running {
        true => follow(&builds, &build, renderer.as_mut()).await?,
        false => Entry::read(&builds.journal(&build.id)?).map(|entry| show(&entry, renderer.as_mut())).max(),
    };
    renderer.finish(false, last.unwrap_or_default());
    DONE
}

/// Shows an entry; gives the time it speaks of.
fn show(entry: &Entry, renderer: &mut dyn Renderer) -> Duration {
    if let Some(event) = entry.event() {
        renderer.event(&event);
    }
    match entry {
        Entry::Started { at, .. } | Entry::Finished { at, .. } | Entry::Log { at, .. } => Duration::from_nanos(*at),
        _ => Duration::ZERO,
    }
}

/// Reads the journal as it grows, until the build is over.
async fn follow(
    builds: &Builds,
    build: &BuildRecord,
    renderer: &mut dyn Renderer,
) -> Result<Option<Duration>, CliError> {
    let mut file = None;
    let mut line = Vec::new();
    let mut last = None;
    loop {
        // Asked before the rest is read, so that nothing written before the end is missed.
        let over = builds.find(Some(&build.id))?.status != Status::Running;
        if file.is_none() {
            file = std::fs::File::open(builds.journal_path(&build.id)).ok().map(BufReader::new);
        }
        if let Some(file) = &mut file {
            while file.read_until(b'\n', &mut line)? > 0 && line.ends_with(b"\n") {
                last = last.max(Entry::read(&line).map(|entry| show(&entry, renderer)).max());
                line.clear();
            }
        } else if over {
            // It never wrote one: all it has to say is in its row.
            return Ok(Entry::read(&builds.journal(&build.id)?).map(|entry| show(&entry, renderer)).max());
        }
        if over {
            return Ok(last);
        }
        renderer.tick(build.duration());
        tokio::time::sleep(PAUSE).await;
    }
}
