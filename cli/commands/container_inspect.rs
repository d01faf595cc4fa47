//! `rbuild container inspect`.

use std::process::ExitCode;

use super::volume_inspect::show;
use crate::app::App;
use crate::error::{CliError, exit};

/// Show all about containers
#[derive(Debug, clap::Args)]
pub struct Args {
    /// How to print them: 'json' or a Go template
    #[arg(short, long, value_name = "FORMAT")]
    format: Option<String>,
    #[arg(value_name = "CONTAINER", required = true, num_args = 1..)]
    containers: Vec<String>,
}

pub async fn run(args: Args, app: &App) -> Result<ExitCode, CliError> {
    let containers = app.engine()?.containers();
    let (mut found, mut failed) = (Vec::new(), Vec::new());
    for name in &args.containers {
        match containers.find(name) {
            Ok(seen) => found.push(containers.inspect(&seen)),
            Err(error) => failed.push(CliError::from(error)),
        }
    }
    show(app, args.format.as_deref(), &found)?;
    for error in &failed {
        crate::terminal::tell(&error.render());
    }
    Ok(if failed.is_empty() { ExitCode::SUCCESS } else { ExitCode::from(exit::FAILURE) })
}
