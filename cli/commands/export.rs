//! `rbuild export`.

use std::io::{BufWriter, IsTerminal as _, Write as _};
use std::path::PathBuf;
use std::process::ExitCode;

use rbuild_engine::whole_file::Outside;

use super::DONE;
use crate::app::App;
use crate::error::CliError;
use crate::whole_file;

/// Write a container's file system as a tar archive
#[derive(Debug, clap::Args)]
pub struct Args {
    /// File to write, in place of standard output
    #[arg(short, long, value_name = "FILE")]
    output: Option<PathBuf>,
    #[arg(value_name = "CONTAINER")]
    container: String,
}

pub async fn run(args: Args, app: &App) -> Result<ExitCode, CliError> {
    let containers = app.engine()?.containers();
    let container = containers.find(&args.container)?.container;
    match &args.output {
        Some(path) => whole_file::write(path, |out| Ok(containers.export(&container, out).map(drop)?))?,
        None if std::io::stdout().is_terminal() => {
            let message = "cowardly refusing to save to a terminal. Use the -o flag or redirect";
            return Err(CliError::new(message));
        }
        None => {
            let mut out = BufWriter::with_capacity(1 << 16, Outside(std::io::stdout().lock()));
            containers.export(&container, &mut out)?;
            out.flush()?;
        }
    }
    DONE
}
