//! Where an image is, as `copy` has it written: skopeo's words, and a name alone for the store.

use std::path::PathBuf;

use rbuild_engine::images::{Named, Place, split_path};
use rbuild_engine::registry::daemon::{Daemon, USUAL_ADDRESS};

use crate::app::App;
use crate::commands::reference;
use crate::error::CliError;

/// The words in front of a place, each with what follows it.
pub const TRANSPORTS: &str = "a name in the store, docker://NAME (a registry), docker-daemon:NAME, docker-archive:FILE[:NAME], \
     oci-archive:FILE[:NAME] or oci:DIRECTORY[:TAG]";

/// Words that other tools know and this one does not.
const OTHERS: [&str; 5] = ["containers-storage:", "dir:", "sif:", "ostree:", "tarball:"];

/// The place that `text` means. `source` says which end of a copy it is.
///
/// # Errors
/// A transport that is not known, a name that is none, a daemon's address that cannot be used.
pub fn place(text: &str, source: bool, app: &App) -> Result<Place, CliError> {
    if let Some(name) = text.strip_prefix("docker://") {
        return Ok(Place::Registry(reference(name)?));
    }
    if let Some(name) = text.strip_prefix("docker-daemon:") {
        if name.is_empty() && source {
            return Err(CliError::new("docker-daemon: names no image"));
        }
        let image = Some(name.to_owned()).filter(|name| !name.is_empty());
        return Ok(Place::Daemon { daemon: daemon(app)?, image });
    }
    let in_file = |rest: &str, docker: bool| {
        let (path, image) = split_path(rest);
        match path.as_os_str().is_empty() {
            true => Err(CliError::new(format!("{text}: names no file"))),
            false => Ok(Named { path: path.to_owned(), image: image.map(str::to_owned), docker }),
        }
    };
    if let Some(rest) = text.strip_prefix("docker-archive:") {
        return in_file(rest, true).map(Place::Archive);
    }
    if let Some(rest) = text.strip_prefix("oci-archive:") {
        return in_file(rest, false).map(Place::Archive);
    }
    if let Some(rest) = text.strip_prefix("oci:") {
        let named = in_file(rest, false)?;
        let path: PathBuf = named.path.clone();
        return Ok(Place::Layout(Named { path, ..named }));
    }
    if OTHERS.iter().any(|other| text.starts_with(other)) || text.contains("://") {
        let words = format!("{text}: not a place that images are copied to or from");
        return Err(CliError::new(crate::terminal::clean_line(&words)).with_hint(format!("these are: {TRANSPORTS}")));
    }
    if !source {
        reference(text)?;
    }
    Ok(Place::Store(text.to_owned()))
}

/// The daemon that `DOCKER_HOST` names, or the one of this machine.
fn daemon(app: &App) -> Result<Daemon, CliError> {
    let address = app.settings.non_empty("DOCKER_HOST").unwrap_or(USUAL_ADDRESS);
    if address.starts_with("tcp:") && app.settings.non_empty("DOCKER_TLS_VERIFY").is_some() {
        return Err(CliError::new(format!("the docker daemon at {address}: TLS (DOCKER_TLS_VERIFY) is not supported"))
            .with_hint("reach it over its unix socket, or copy by an archive"));
    }
    Daemon::new(address).map_err(|e| CliError::new(e.to_string()))
}
