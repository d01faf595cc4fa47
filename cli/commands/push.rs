//! `rbuild push`.

use std::process::ExitCode;

use rbuild_engine::oci::Reference;
use rbuild_engine::registry::ProgressSink;

use super::DONE;
use crate::app::App;
use crate::commands::reference_untagged;
use crate::error::CliError;
use crate::progress::transfer::Transfer;

/// Send an image to a registry
#[derive(Debug, clap::Args)]
pub struct Args {
    /// The image, by the name it has in the registry
    #[arg(value_name = "NAME[:TAG]")]
    name: String,
    /// All tags of the repository
    #[arg(short, long)]
    all_tags: bool,
    /// The image of this platform only, where there are several
    #[arg(long, value_name = "PLATFORM")]
    platform: Option<String>,
    /// Print the name only
    #[arg(short, long)]
    quiet: bool,
}

pub async fn run(args: Args, app: &App) -> Result<ExitCode, CliError> {
    let platform = super::platform(args.platform.as_deref())?;
    let asked = reference_untagged(&args.name)?;
    if asked.digest().is_some() {
        return Err(CliError::new("cannot push a digest reference"));
    }
    let images = app.images()?;
    let invalid = |e: rbuild_engine::oci::OciError| CliError::new(e.to_string());
    let names: Vec<Reference> = match (args.all_tags, asked.tag()) {
        (true, Some(_)) => return Err(CliError::new("tag can't be used with --all-tags/-a")),
        (true, None) => images.local_tags(&asked)?,
        (false, Some(_)) => vec![asked.clone()],
        (false, None) => {
            if !args.quiet {
                app.print("Using default tag: latest\n")?;
            }
            vec![asked.with_tag("latest").map_err(invalid)?]
        }
    };
    if names.is_empty() {
        let name = asked.familiar_name();
        return Err(CliError::new(format!("An image does not exist locally with the tag: {name}")));
    }
    if !args.quiet {
        app.print(&format!("The push refers to repository [{}]\n", asked.without_tag().canonical()))?;
    }
    for name in &names {
        let work = async |told: ProgressSink<'_>| images.push(name, platform.as_ref(), told).await;
        let pushed = Transfer::show(app, args.quiet, "", work).await?;
        if !args.quiet {
            let tag = name.tag().unwrap_or_default();
            app.print(&format!("{tag}: digest: {} size: {}\n", pushed.digest, pushed.size))?;
        }
    }
    if args.quiet {
        let shown = if args.all_tags { &asked } else { &names[0] };
        app.print(&format!("{}\n", shown.canonical()))?;
    }
    DONE
}
