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
    /// The archive: a file, a URL, or '-' for standard input
    #[arg(value_name = "FILE|URL|-")]
    source: String,
    /// Line of a Dockerfile that changes the configuration
    #[arg(short, long = "change", value_name = "INSTRUCTION")]
    changes: Vec<String>,
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
    let platform = super::platform(args.platform.as_deref())?.unwrap_or_else(Platform::host);
    let request = ImportRequest {
        name: args.name.as_deref().map(reference).transpose()?,
        message: args.message.unwrap_or_else(|| format!("Imported from {}", args.source)),
        platform,
        created: SystemTime::now(),
        changes: args.changes,
    };
    let images = app.images()?;
    let id = if args.source == "-" {
        tokio::task::block_in_place(|| images.import(std::io::stdin(), &request))?
    } else if args.source.starts_with("http://") || args.source.starts_with("https://") {
        images.import_from(&args.source, &request).await?
    } else {
        let file = File::open(&args.source).map_err(|e| CliError::new(format!("open {}: {e}", args.source)))?;
        tokio::task::block_in_place(|| images.import(file, &request))?
    };
    app.print(&format!("{}\n", id.0))?;
    DONE
}
