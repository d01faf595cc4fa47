//! The image a container is to be made of: here, or pulled first.

use rbuild_engine::oci::{Platform, Reference};
use rbuild_engine::registry::{Progress, Stage};

use crate::app::App;
use crate::container_options::ContainerOptions;
use crate::error::CliError;

/// Sees to it that the image is in the store. What the pull tells goes to standard error: standard output is the
/// container's.
///
/// # Errors
/// It is not here and may not be pulled; the registry's.
pub async fn ensure_image(app: &App, options: &ContainerOptions, image: &str) -> Result<(), CliError> {
    let when = options.pull.as_str();
    let wanted = options.wanted_platform()?;
    let images = app.engine()?.store().images();
    let found = images.find(image).map_err(rbuild_engine::Error::from)?;
    // An image of another platform is not the one that is wanted.
    let of_another = found.is_some() && when == "never";
    let here = found.is_some_and(|found| match &wanted {
        Some(wanted) => images.manifest(&found, wanted).is_ok_and(|(_, config, _)| config.platform().matches(wanted)),
        None => true,
    });
    // That it is of another platform is told by who makes the container.
    if of_another || (here && when != "always") {
        return Ok(());
    }
    let name = Reference::parse(image).map_err(|_| CliError::new(format!("invalid reference format: {image:?}")))?;
    if when == "never" {
        return Err(CliError::new(format!("No such image: {}", name.familiar())));
    }
    if !here {
        app.tell(&format!("Unable to find image '{}' locally", name.familiar()));
    }
    let platform = wanted.unwrap_or_else(Platform::host);
    let tag = name.tag().map_or_else(|| name.canonical(), str::to_owned);
    let say = |line: String| {
        if !options.quiet {
            app.tell(&line);
        }
    };
    say(format!("{tag}: Pulling from {}", name.repository()));
    let told = |progress: Progress| {
        if matches!(progress.stage, Stage::PullComplete) {
            say(format!("{}: Pull complete", progress.blob.short()));
        }
    };
    let pulled = app.images()?.pull(&name, &platform, &told).await?;
    let status = if pulled.up_to_date { "Image is up to date for" } else { "Downloaded newer image for" };
    say(format!("Digest: {}\nStatus: {status} {}", pulled.digest, name.familiar()));
    Ok(())
}
