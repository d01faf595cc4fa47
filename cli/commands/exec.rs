//! `rbuild exec`.

use std::path::PathBuf;
use std::process::ExitCode;

use rbuild_engine::containers::{ExecRequest, Executed};

use super::run::{Keys, start_error};
use crate::app::App;
use crate::attach::{Follow, check_tty, follow, terminal_size};
use crate::container_options::{engine_error, env_file, from_environment};
use crate::error::CliError;

/// Run a program in a running container
///
/// The exit code is the program's own; 126 says that it cannot be executed, 127 that there is none.
#[derive(Debug, clap::Args)]
pub struct Args {
    /// Leave it in the background
    #[arg(short, long)]
    detach: bool,
    /// Keys that leave the program (default: ctrl-p,ctrl-q)
    #[arg(long, value_name = "KEYS", value_parser = super::run::keys)]
    detach_keys: Option<Keys>,
    /// Environment variable; a bare name takes the caller's value
    #[arg(short, long = "env", value_name = "NAME[=VALUE]")]
    env: Vec<String>,
    /// File of environment variables, one a line
    #[arg(long, value_name = "FILE")]
    env_file: Vec<PathBuf>,
    /// Feed it from standard input
    #[arg(short, long)]
    interactive: bool,
    /// Give it all capabilities
    #[arg(long)]
    privileged: bool,
    /// Give it a terminal
    #[arg(short, long)]
    tty: bool,
    /// User, and group, by name or number
    #[arg(short, long, value_name = "USER[:GROUP]")]
    user: Option<String>,
    /// Directory in which it starts
    #[arg(short, long, value_name = "PATH")]
    workdir: Option<String>,
    /// The container, and what to run
    #[arg(value_name = "CONTAINER COMMAND [ARGUMENT]", required = true, num_args = 2.., trailing_var_arg = true)]
    words: Vec<String>,
}

pub async fn run(args: Args, app: &App) -> Result<ExitCode, CliError> {
    if !args.detach {
        check_tty(args.interactive, args.tty)?;
    }
    let mut env = Vec::new();
    for file in &args.env_file {
        env.extend(env_file(file, &app.settings)?);
    }
    env.extend(args.env.iter().map(|text| from_environment(text, &app.settings)));
    let request = ExecRequest {
        command: args.words[1..].to_vec(),
        env,
        user: args.user,
        working_dir: args.workdir,
        tty: args.tty,
        stdin: args.interactive && !args.detach,
        privileged: args.privileged,
        size: terminal_size(),
    };
    let containers = app.engine()?.containers();
    let seen = containers.find(&args.words[0])?;
    let executed = containers.exec(&seen, &request, args.detach).map_err(|error| {
        let not_program =
            !matches!(error.kind, rbuild_engine::Kind::CommandNotFound | rbuild_engine::Kind::NotExecutable);
        if not_program { CliError::from(error) } else { engine_error(start_error(error)) }
    })?;
    let Executed::Attached(attachment) = executed else { return Ok(ExitCode::SUCCESS) };
    let mut options = Follow { stdin: request.stdin, tty: args.tty, proxy: false, ..Follow::default() };
    if let Some(keys) = args.detach_keys {
        options.detach_keys = keys.0;
    }
    Ok(follow(attachment, &options).await?.exit_code())
}
