//! `rbuild start`.

use std::process::ExitCode;

use rbuild_engine::containers::{Containers, StartRequest};

use super::run::Keys;
use crate::app::App;
use crate::attach::{Follow, check_tty, follow, terminal_size};
use crate::batch::{each, each_named};
use crate::container_filters;
use crate::error::CliError;

/// Start containers that were made or have ended
#[derive(Debug, clap::Args)]
pub struct Args {
    /// All that do not run, or those of them that --filter names
    #[arg(long)]
    all: bool,
    /// Show its output and pass on signals
    #[arg(short, long)]
    attach: bool,
    /// Keys that leave the container running (default: ctrl-p,ctrl-q)
    #[arg(long, value_name = "KEYS", value_parser = super::run::keys)]
    detach_keys: Option<Keys>,
    /// Only those for which KEY=VALUE holds, as of ps; restart-policy=POLICY and should-start-on-boot=true among them
    #[arg(short, long = "filter", value_name = "KEY=VALUE")]
    filters: Vec<String>,
    /// Feed it from standard input
    #[arg(short, long)]
    interactive: bool,
    /// Pass on the signals that rbuild gets (with --attach, without a terminal)
    #[arg(long, value_name = "BOOL", default_value = "true", num_args = 0..=1, require_equals = true,
          default_missing_value = "true", action = clap::ArgAction::Set)]
    sig_proxy: bool,
    #[arg(value_name = "CONTAINER", required_unless_present_any = ["all", "filters"], num_args = 0..)]
    containers: Vec<String>,
}

pub async fn run(args: Args, app: &App) -> Result<ExitCode, CliError> {
    let containers = app.engine()?.containers();
    if args.all || !args.filters.is_empty() {
        return start_those(&args, &containers, app);
    }
    if !args.attach && !args.interactive {
        let request = StartRequest { size: terminal_size(), ..StartRequest::default() };
        let mut failed = Vec::new();
        let code = each_named(app, &args.containers, |name| {
            let started = containers.find(name).and_then(|seen| containers.start(&seen.container, &request));
            if started.is_err() {
                failed.push(name.to_owned());
            }
            Ok(started.map(|_| ())?)
        })?;
        if !failed.is_empty() {
            app.tell(&format!("Error: failed to start containers: {}", failed.join(", ")));
        }
        return Ok(code);
    }
    let [name] = &args.containers[..] else {
        return Err(CliError::new("you cannot start and attach multiple containers at once"));
    };
    let container = containers.find(name)?.container;
    let stdin = args.interactive && container.stdin;
    check_tty(stdin, container.tty)?;
    let request = StartRequest { stdin, output: true, here: false, size: terminal_size() };
    let attachment = match containers.start(&container, &request).map_err(super::run::start_error)? {
        Some(attachment) => attachment,
        // It runs already: then this only attaches.
        None => containers.attach(&container, stdin)?,
    };
    let mut options = Follow { stdin, tty: container.tty, proxy: args.sig_proxy, ..Follow::default() };
    if let Some(keys) = args.detach_keys {
        options.detach_keys = keys.0;
    }
    Ok(follow(attachment, &options).await?.exit_code())
}

/// Starts those that do not run and that the filters let through, the oldest first; prints their ids.
fn start_those(args: &Args, containers: &Containers, app: &App) -> Result<ExitCode, CliError> {
    if args.attach || args.interactive {
        return Err(CliError::new("you cannot start and attach multiple containers at once"));
    }
    if !args.containers.is_empty() {
        return Err(CliError::new("--all and --filter take no names of containers"));
    }
    let filters = container_filters::parse(&args.filters)?;
    let chosen = container_filters::select(&filters, containers.list()?, app.engine()?)?;
    let ids: Vec<String> =
        chosen.into_iter().rev().filter(|seen| !seen.status.is_alive()).map(|seen| seen.container.id).collect();
    let request = StartRequest { size: terminal_size(), ..StartRequest::default() };
    each(app, &ids, |id| {
        containers.start(&containers.find(id)?.container, &request)?;
        Ok(Some(id.to_owned()))
    })
}
