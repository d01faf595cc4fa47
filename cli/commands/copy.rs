//! `rbuild copy`.

use std::process::ExitCode;

use super::DONE;
use crate::app::App;
use crate::error::CliError;
use crate::places::place;
use crate::progress::transfer::Transfer;

/// Copy an image between the store, registries, archives, layouts and docker's daemon
///
/// A place is a name in the store, docker://NAME (a registry), docker-daemon:NAME, docker-archive:FILE[:NAME],
/// oci-archive:FILE[:NAME] or oci:DIRECTORY[:TAG]. An image for several platforms stays one where it can: in
/// registries, OCI archives and layouts. The daemon is the one that DOCKER_HOST names, else this machine's.
#[derive(Debug, clap::Args)]
pub struct Args {
    /// Where the image is
    #[arg(value_name = "SOURCE")]
    source: String,
    /// Where it is to be
    #[arg(value_name = "DESTINATION")]
    destination: String,
    /// The image of this platform only, where there are several
    #[arg(long, value_name = "PLATFORM")]
    platform: Option<String>,
    /// Print the digest only
    #[arg(short, long)]
    quiet: bool,
}

pub async fn run(args: Args, app: &App) -> Result<ExitCode, CliError> {
    let platform = super::platform(args.platform.as_deref())?;
    let source = place(&args.source, true, app)?;
    let destination = place(&args.destination, false, app)?;
    let images = app.images()?;
    let copied = Transfer::show(app, args.quiet, "", async |told| {
        images.copy(&source, &destination, platform.as_ref(), told).await
    })
    .await?;
    if args.quiet {
        app.print(&format!("{}\n", copied.digest))?;
        return DONE;
    }
    for line in &copied.said {
        app.print(&format!("{line}\n"))?;
    }
    app.print(&format!("Digest: {}\nStatus: Copied {} to {}\n", copied.digest, args.source, args.destination))?;
    DONE
}
