//! `rbuild logout`.

use std::process::ExitCode;

use super::DONE;
use crate::app::App;
use crate::credentials::{DOCKER_IO_KEY, registry_name};
use crate::error::CliError;

/// Log out of a registry
#[derive(Debug, clap::Args)]
pub struct Args {
    /// The registry (default: docker.io)
    #[arg(value_name = "SERVER")]
    server: Option<String>,
}

pub async fn run(args: Args, app: &App) -> Result<ExitCode, CliError> {
    let registry = registry_name(args.server.as_deref().unwrap_or("docker.io"));
    let shown = if registry == "docker.io" { DOCKER_IO_KEY } else { registry };
    app.print(&format!("Removing login credentials for {shown}\n"))?;
    app.credentials().remove(registry).map_err(CliError::new)?;
    DONE
}
