//! `rbuild stop`.

use std::process::ExitCode;

use rbuild_engine::containers::signal_number;

use crate::app::App;
use crate::batch::each_named;
use crate::error::CliError;

/// Ask containers to end, and kill those that do not
#[derive(Debug, clap::Args)]
pub struct Args {
    /// Signal to ask with (default: the container's own, else SIGTERM)
    #[arg(short, long, value_name = "SIGNAL")]
    signal: Option<String>,
    /// Seconds until the kill; -1 waits for ever (default: the container's own, else 10)
    #[arg(short = 't', long = "timeout", visible_alias = "time", value_name = "SECONDS")]
    timeout: Option<i64>,
    #[arg(value_name = "CONTAINER", required = true, num_args = 1..)]
    containers: Vec<String>,
}

pub async fn run(args: Args, app: &App) -> Result<ExitCode, CliError> {
    let signal = args.signal.as_deref().map(number).transpose()?;
    let containers = app.engine()?.containers();
    each_named(app, &args.containers, |name| {
        Ok(containers.stop(&containers.find(name)?.container, signal, args.timeout)?)
    })
}

/// The number of a signal the user named.
///
/// # Errors
/// There is no such signal.
pub fn number(text: &str) -> Result<i32, CliError> {
    signal_number(text).ok_or_else(|| CliError::new(format!("Invalid signal: {text}")))
}
