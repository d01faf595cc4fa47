//! `rbuild manifest rm`.

use std::process::ExitCode;

use crate::app::App;
use crate::commands::reference;
use crate::error::CliError;

/// Forget lists that were not pushed
#[derive(Debug, clap::Args)]
pub struct Args {
    /// The lists
    #[arg(value_name = "MANIFEST_LIST", required = true)]
    lists: Vec<String>,
}

pub async fn run(args: Args, app: &App) -> Result<ExitCode, CliError> {
    let lists = app.manifest_lists()?;
    let mut failures = Vec::new();
    for name in &args.lists {
        let list = reference(name)?;
        if !lists.remove(&list)? {
            failures.push(format!("No such manifest: {}", list.canonical()));
        }
    }
    if failures.is_empty() { super::DONE } else { Err(CliError::new(failures.join("\n"))) }
}
