//! `rbuild run`.

use std::process::ExitCode;

use rbuild_engine::Kind;
use rbuild_engine::containers::{RestartPolicy, StartRequest};

use super::create::made;
use crate::app::App;
use crate::attach::{Follow, check_tty, detach_keys, follow, terminal_size};
use crate::container_options::{ContainerOptions, NotYet, Standard, engine_error};
use crate::error::{CliError, exit};
use crate::refused::Refused;

/// Make a container from an image and run it
///
/// The image is pulled when it is not here. The exit code is the program's own, or 128 and the number of the signal that
/// ended it; 125 says that rbuild failed, 126 that the program cannot be executed, 127 that there is none.
#[derive(Debug, clap::Args)]
pub struct Args {
    /// Run it in the background and print its id
    #[arg(short, long)]
    detach: bool,
    /// Keys that leave the container running (default: ctrl-p,ctrl-q)
    #[arg(long, value_name = "KEYS", value_parser = keys)]
    detach_keys: Option<Keys>,
    /// Pass on the signals that rbuild gets to the program (without a terminal)
    #[arg(long, value_name = "BOOL", default_value = "true", num_args = 0..=1, require_equals = true,
          default_missing_value = "true", action = clap::ArgAction::Set)]
    sig_proxy: bool,
    #[command(flatten)]
    options: ContainerOptions,
    #[command(flatten)]
    refused: Refused<NotYet>,
    /// The image, and what to run in place of its own command
    #[arg(value_name = "IMAGE [COMMAND] [ARGUMENT]", required = true, num_args = 1.., trailing_var_arg = true)]
    words: Vec<String>,
}

/// Detach keys, as one value of the command line.
#[derive(Debug, Clone)]
pub struct Keys(pub Vec<u8>);

pub fn keys(text: &str) -> Result<Keys, String> {
    detach_keys(text).map(Keys)
}

pub async fn run(args: Args, app: &App) -> Result<ExitCode, CliError> {
    Box::pin(run_container(&args, app)).await.map_err(engine_error)
}

async fn run_container(args: &Args, app: &App) -> Result<ExitCode, CliError> {
    let options = &args.options;
    args.refused.check()?;
    if args.detach && !options.attach.is_empty() {
        return Err(CliError::new("conflicting options: cannot specify both --attach and --detach"));
    }
    if !args.detach {
        check_tty(options.attaches(Standard::Input), options.tty)?;
    }
    let (containers, container, lock) = made(app, options, &args.words, !args.detach).await?;
    let attached = !args.detach;
    let request = StartRequest {
        stdin: attached && options.attaches(Standard::Input),
        output: attached,
        // With a terminal the user may leave it running, so somebody else must look after it.
        here: attached && !options.tty && options.supervision.restart == RestartPolicy::Never,
        size: terminal_size(),
    };
    let attachment = containers.start_held(&container, &request, lock).map_err(start_error)?;
    if !attached {
        app.print(&format!("{}\n", container.id))?;
        return Ok(ExitCode::SUCCESS);
    }
    let (stdout, stderr) = (options.attaches(Standard::Output), options.attaches(Standard::Error));
    if !stdout && !stderr {
        app.print(&format!("{}\n", container.id))?;
    }
    let follow_options = Follow {
        stdin: request.stdin,
        // A terminal has one output.
        stdout: stdout || (options.tty && stderr),
        stderr,
        tty: options.tty,
        proxy: args.sig_proxy,
        ends_with_us: request.here,
        ..Follow::default()
    };
    let follow_options = match &args.detach_keys {
        Some(keys) => Follow { detach_keys: keys.0.clone(), ..follow_options },
        None => follow_options,
    };
    Ok(follow(attachment, &follow_options).await?.exit_code())
}

/// An error of a start with the exit code docker has for it.
pub fn start_error(error: rbuild_engine::Error) -> CliError {
    let code = match error.kind {
        Kind::CommandNotFound => exit::NOT_FOUND,
        Kind::NotExecutable => exit::NOT_EXECUTABLE,
        _ => exit::ENGINE,
    };
    CliError::from(error).with_code(code)
}
