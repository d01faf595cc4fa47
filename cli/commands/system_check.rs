//! `rbuild system check`.

use std::process::ExitCode;

use rbuild_engine::store::{CheckOptions, Checked, Problem};

use super::DONE;
use crate::app::App;
use crate::error::CliError;
use crate::terminal::clean_line;

/// Check that everything the state directory names is there and whole
///
/// Reads every blob and compares it with its digest. Runs beside other commands.
#[derive(Debug, clap::Args)]
pub struct Args {
    /// Compare the file trees with their layers too: takes as long as unpacking all images
    #[arg(long)]
    deep: bool,
    /// Forget what is damaged, so that it is made or fetched again; what is whole stays
    #[arg(long)]
    repair: bool,
}

/// How often repairing looks again: what was forgotten may be what something else needs.
const ROUNDS: usize = 4;

pub async fn run(args: Args, app: &App) -> Result<ExitCode, CliError> {
    let store = app.engine()?.store();
    let check = |options: CheckOptions| store.check(&options).map_err(rbuild_engine::Error::from);
    if args.repair {
        app.engine()?.containers().sweep();
    }
    let mut checked = check(CheckOptions { deep: args.deep, repair: args.repair })?;
    let mut text = summary(&checked);
    let mut problems = checked.problems.clone();
    text.extend(problems.iter().map(line));
    for _ in 0..ROUNDS {
        if !args.repair || checked.problems.iter().all(Problem::stays) {
            break;
        }
        checked = check(CheckOptions { deep: false, repair: true })?;
        let new = checked.problems.iter().filter(|problem| !problems.contains(problem)).cloned().collect::<Vec<_>>();
        text.extend(new.iter().map(line));
        problems.extend(new);
    }
    text.extend(
        checked.leftovers.iter().map(|path| format!("left by a dead process, harmless: {}\n", clean_line(path))),
    );
    let left = problems.iter().filter(|problem| !args.repair || problem.stays()).count();
    text.push_str(&match (problems.len(), left) {
        (0, _) => "Nothing is damaged.\n".to_owned(),
        (found, 0) => format!("{found} damaged things were forgotten: pull, load or build again what you need.\n"),
        (found, left) => format!("{found} things are damaged; {left} of them stay.\n"),
    });
    app.print(&text)?;
    match left {
        0 => DONE,
        _ if args.repair => Err(CliError::new(format!("{left} things cannot be repaired"))),
        _ => Err(CliError::new(format!("{left} things are damaged"))
            .with_hint("`rbuild system check --repair` forgets what is damaged and keeps the rest")),
    }
}

fn summary(checked: &Checked) -> String {
    format!("Checked {} blobs, {} file trees and {} images.\n", checked.blobs, checked.snapshots, checked.images)
}

fn line(problem: &Problem) -> String {
    format!("{}\n", clean_line(&problem.to_string()))
}
