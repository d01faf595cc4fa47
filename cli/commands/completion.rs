use std::process::ExitCode;

use clap_complete::Shell;

use crate::app::App;
use crate::args;
use crate::commands::DONE;
use crate::error::CliError;

/// Print the completion script for a shell
#[derive(Debug, clap::Args)]
pub struct Args {
    #[arg(value_name = "SHELL")]
    shell: Shell,
}

pub async fn run(args: Args, app: &App) -> Result<ExitCode, CliError> {
    let mut script = Vec::new();
    clap_complete::generate(args.shell, &mut args::command_tree(), "rbuild", &mut script);
    app.write_out(&script)?;
    DONE
}
