//! What buildx's history has and rbuild's has not.

use std::process::ExitCode;

use crate::app::App;
use crate::error::CliError;

/// Not supported
#[derive(Debug, clap::Args)]
pub struct Args {
    #[arg(hide = true, num_args = 0.., trailing_var_arg = true, allow_hyphen_values = true)]
    words: Vec<String>,
}

pub async fn run(_args: Args, _app: &App) -> Result<ExitCode, CliError> {
    Err(CliError::new("buildx history open, trace, export and import are not supported")
        .with_hint("'rbuild builds inspect' and 'rbuild builds logs' show what is kept of a build"))
}
