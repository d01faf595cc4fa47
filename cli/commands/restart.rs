//! `rbuild restart`.

use std::process::ExitCode;

use rbuild_engine::containers::StartRequest;

use crate::app::App;
use crate::attach::terminal_size;
use crate::batch::each_named;
use crate::error::CliError;

/// Stop containers and start them again
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
    let signal = args.signal.as_deref().map(super::stop::number).transpose()?;
    let containers = app.engine()?.containers();
    let request = StartRequest { size: terminal_size(), ..StartRequest::default() };
    each_named(app, &args.containers, |name| {
        let container = containers.find(name)?.container;
        containers.stop(&container, signal, args.timeout)?;
        containers.start(&container, &request)?;
        containers.restarted(&container);
        Ok(())
    })
}
