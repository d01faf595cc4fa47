//! `rbuild load`.

use std::fs::File;
use std::io::IsTerminal as _;
use std::path::PathBuf;
use std::process::ExitCode;

use super::DONE;
use crate::app::App;
use crate::error::CliError;
use crate::progress::transfer::bytes_bar;

/// Load images from an archive: docker's or an OCI layout, compressed or not
#[derive(Debug, clap::Args)]
pub struct Args {
    /// The archive (default: standard input)
    #[arg(short, long, value_name = "FILE")]
    input: Option<PathBuf>,
    /// Keep the image of this platform only, where there are several
    #[arg(long, value_name = "PLATFORM")]
    platform: Option<String>,
    /// Print what was loaded only
    #[arg(short, long)]
    quiet: bool,
}

pub async fn run(args: Args, app: &App) -> Result<ExitCode, CliError> {
    let images = app.images()?;
    let platform = super::platform(args.platform.as_deref())?;
    let platform = platform.as_ref();
    let loaded = match &args.input {
        Some(path) => {
            let file = File::open(path).map_err(|e| CliError::new(format!("open {}: {e}", path.display())))?;
            let bar = bytes_bar(file.metadata().ok().map(|m| m.len()), args.quiet);
            let loaded = tokio::task::block_in_place(|| images.load(file, platform, &|read| bar.set_position(read)));
            bar.finish_and_clear();
            loaded?
        }
        None if std::io::stdin().is_terminal() => {
            return Err(CliError::new("requested load from stdin, but stdin is a terminal; use -i or redirect"));
        }
        None => {
            let bar = bytes_bar(None, args.quiet);
            let loaded =
                tokio::task::block_in_place(|| images.load(std::io::stdin(), platform, &|read| bar.set_position(read)));
            bar.finish_and_clear();
            loaded?
        }
    };
    for image in loaded {
        let text = match image.names.is_empty() {
            true => format!("Loaded image ID: {}\n", image.id.0),
            false => image.names.iter().map(|name| format!("Loaded image: {}\n", name.familiar())).collect(),
        };
        app.print(&text)?;
    }
    DONE
}
