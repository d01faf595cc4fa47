//! `rbuild import`.

use std::fs::File;
use std::process::ExitCode;
use std::time::SystemTime;

use rbuild_engine::images::ImportRequest;
use rbuild_engine::oci::Platform;

use super::DONE;
use crate::app::App;
use crate::commands::reference;
use crate::error::CliError;

/// Make an image from an archive of a file system
#[derive(Debug, clap::Args)]
pub struct Args {
    /// The archive, or '-' for standard input
    #[arg(value_name = "FILE|-")]
    source: String,
    /// The name of the image
    #[arg(value_name = "REPOSITORY[:TAG]")]
    name: Option<String>,
    /// What its history says
    #[arg(short, long, value_name = "TEXT")]
    message: Option<String>,
    /// The platform it is for (default: this machine's)
    #[arg(long, value_name = "PLATFORM")]
    platform: Option<String>,
}

pub async fn run(args: Args, app: &App) -> Result<ExitCode, CliError> {
    let platform = match &args.platform {
        Some(text) => Platform::parse(text).map_err(|e| CliError::new(e.to_string()))?,
        None => Platform::host(),
    };
    if args.source.starts_with("http://") || args.source.starts_with("https://") {
        return Err(
            CliError::new("importing from a URL is not supported yet").with_hint("download it and import the file")
        );
    }
    let request = ImportRequest {
        name: args.name.as_deref().map(reference).transpose()?,
        message: args.message.unwrap_or_else(|| format!("Imported from {}", args.source)),
        platform,
        created: SystemTime::now(),
    };
    let images = app.images()?;
    let id = if args.source == "-" {
        tokio::task::block_in_place(|| images.import(std::io::stdin(), &request))?
    } else {
        let file = File::open(&args.source).map_err(|e| CliError::new(format!("open {}: {e}", args.source)))?;
        tokio::task::block_in_place(|| images.import(file, &request))?
    };
    app.print(&format!("{}\n", id.0))?;
    DONE
}
