//! `rbuild man`.

use std::path::PathBuf;
use std::process::ExitCode;

use super::DONE;
use crate::app::App;
use crate::args;
use crate::error::CliError;

/// Print the manual page of a command, or write those of all
#[derive(Debug, clap::Args)]
pub struct Args {
    /// Write the pages of all commands into a directory, which is made
    #[arg(short, long, value_name = "DIRECTORY", conflicts_with = "words")]
    output: Option<PathBuf>,
    /// Words of the command: image ls
    #[arg(value_name = "COMMAND", num_args = 0..)]
    words: Vec<String>,
}

pub async fn run(args: Args, app: &App) -> Result<ExitCode, CliError> {
    let tree = args::command_tree();
    if let Some(directory) = &args.output {
        let failed = |e: std::io::Error| CliError::new(format!("cannot write to {}: {e}", directory.display()));
        std::fs::create_dir_all(directory).map_err(failed)?;
        clap_mangen::generate_to(tree, directory).map_err(failed)?;
        return DONE;
    }
    let (mut command, mut name) = (&tree, "rbuild".to_owned());
    for word in &args.words {
        command = command.find_subcommand(word).ok_or_else(|| {
            CliError::new(format!("no manual entry for {name} {}", crate::terminal::clean_line(word)))
        })?;
        name.push('-');
        name.push_str(command.get_name());
    }
    let mut page = Vec::new();
    let command = command.clone().display_name(name.clone()).bin_name(name.replace('-', " "));
    clap_mangen::Man::new(command).title(name).render(&mut page)?;
    app.write_out(&page)?;
    DONE
}
