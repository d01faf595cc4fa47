//! `rbuild pull`.

use std::process::ExitCode;

use rbuild_engine::images::Images;
use rbuild_engine::oci::{Platform, Reference};

use super::DONE;
use crate::app::App;
use crate::commands::reference_untagged;
use crate::error::CliError;
use crate::progress::transfer::Transfer;

/// Bring an image from a registry
#[derive(Debug, clap::Args)]
pub struct Args {
    /// The image
    #[arg(value_name = "NAME[:TAG|@DIGEST]")]
    name: String,
    /// All tags of the repository
    #[arg(short, long)]
    all_tags: bool,
    /// For another platform than this machine's
    #[arg(long, value_name = "PLATFORM")]
    platform: Option<String>,
    /// Print the name only
    #[arg(short, long)]
    quiet: bool,
}

pub async fn run(args: Args, app: &App) -> Result<ExitCode, CliError> {
    let platform = match &args.platform {
        Some(text) => Platform::parse(text).map_err(|e| CliError::new(e.to_string()))?,
        None => Platform::host(),
    };
    let mut asked = reference_untagged(&args.name)?;
    let images = app.images()?;
    if args.all_tags {
        if asked.tag().is_some() || asked.digest().is_some() {
            return Err(CliError::new("tag can't be used with --all-tags/-a"));
        }
        let mut newer = false;
        for tag in images.remote_tags(&asked).await? {
            let named = asked.with_tag(&tag).map_err(|e| CliError::new(e.to_string()))?;
            newer |= !one(app, &images, &named, &platform, &args).await?;
        }
        if !args.quiet {
            app.print(&status(!newer, &asked.familiar_name()))?;
        }
        app.print(&format!("{}\n", asked.canonical()))?;
        return DONE;
    }
    if asked.tag().is_none() && asked.digest().is_none() {
        asked = asked.with_tag("latest").map_err(|e| CliError::new(e.to_string()))?;
        if !args.quiet {
            app.print("Using default tag: latest\n")?;
        }
    }
    let up_to_date = one(app, &images, &asked, &platform, &args).await?;
    if !args.quiet {
        app.print(&status(up_to_date, &asked.familiar()))?;
    }
    app.print(&format!("{}\n", asked.canonical()))?;
    DONE
}

fn status(up_to_date: bool, name: &str) -> String {
    let words = if up_to_date { "Image is up to date for" } else { "Downloaded newer image for" };
    format!("Status: {words} {name}\n")
}

/// Pulls an image; gives whether it was here before.
async fn one(app: &App, images: &Images, name: &Reference, platform: &Platform, args: &Args) -> Result<bool, CliError> {
    let what = match (name.digest(), name.tag()) {
        (Some(_), _) | (None, None) => name.canonical(),
        (None, Some(tag)) => tag.to_owned(),
    };
    let title = format!("{what}: Pulling from {}", name.repository());
    let pulled = Transfer::show(app, args.quiet, &title, async |told| images.pull(name, platform, told).await).await?;
    let have = pulled.image.config.platform();
    if args.platform.is_some() && !have.matches(platform) {
        app.tell(&format!(
            "WARNING: image with reference {} was found but does not match the specified platform: wanted {platform}, actual: {have}",
            name.familiar()
        ));
    }
    if !args.quiet {
        app.print(&format!("Digest: {}\n", pulled.digest))?;
    }
    Ok(pulled.up_to_date)
}
