//! `rbuild attach`.

use std::process::ExitCode;

use super::run::Keys;
use crate::app::App;
use crate::attach::{Follow, check_tty, follow};
use crate::error::CliError;

/// Connect standard input, output and error with a running container
#[derive(Debug, clap::Args)]
pub struct Args {
    /// Keys that leave the container running (default: ctrl-p,ctrl-q)
    #[arg(long, value_name = "KEYS", value_parser = super::run::keys)]
    detach_keys: Option<Keys>,
    /// Do not feed it from standard input
    #[arg(long)]
    no_stdin: bool,
    /// Pass on the signals that rbuild gets (without a terminal)
    #[arg(long, value_name = "BOOL", default_value = "true", num_args = 0..=1, require_equals = true,
          default_missing_value = "true", action = clap::ArgAction::Set)]
    sig_proxy: bool,
    #[arg(value_name = "CONTAINER")]
    container: String,
}

pub async fn run(args: Args, app: &App) -> Result<ExitCode, CliError> {
    let containers = app.engine()?.containers();
    let container = containers.find(&args.container)?.container;
    let stdin = container.stdin && !args.no_stdin;
    check_tty(stdin, container.tty)?;
    let attachment = containers.attach(&container, stdin)?;
    let mut options = Follow { stdin, tty: container.tty, proxy: args.sig_proxy, ..Follow::default() };
    if let Some(keys) = args.detach_keys {
        options.detach_keys = keys.0;
    }
    Ok(follow(attachment, &options).await?.exit_code())
}
