//! `rbuild create`.

use std::process::ExitCode;

use rbuild_engine::containers::{Container, ContainerLock, Containers};

use crate::app::App;
use crate::cid_file::CidFile;
use crate::container_options::{ContainerOptions, NotYet, engine_error};
use crate::error::CliError;
use crate::image_for_run::ensure_image;
use crate::refused::Refused;

/// Make a container from an image without starting it
#[derive(Debug, clap::Args)]
pub struct Args {
    #[command(flatten)]
    options: ContainerOptions,
    #[command(flatten)]
    refused: Refused<NotYet>,
    /// The image, and what to run in place of its own command
    #[arg(value_name = "IMAGE [COMMAND] [ARGUMENT]", required = true, num_args = 1.., trailing_var_arg = true)]
    words: Vec<String>,
}

pub async fn run(args: Args, app: &App) -> Result<ExitCode, CliError> {
    args.refused.check().map_err(engine_error)?;
    // Unlike `run`, it has no program whose exit code could be meant.
    let (containers, container, _lock) = made(app, &args.options, &args.words, true).await.map_err(failed)?;
    containers.leave_to_others(&container);
    app.print(&format!("{}\n", container.id))?;
    Ok(ExitCode::SUCCESS)
}

fn failed(error: CliError) -> CliError {
    let code = error.code;
    engine_error(error).with_code(code)
}

/// The container that the options ask for, made, its image pulled if it was not here.
///
/// # Errors
/// Whatever keeps it from being made.
pub async fn made(
    app: &App,
    options: &ContainerOptions,
    words: &[String],
    attached: bool,
) -> Result<(Containers, Container, ContainerLock), CliError> {
    let request = options.request(words, &app.settings, attached)?;
    if options.network.publishes_in_vain() {
        app.tell("WARNING: Published ports are discarded when using host network mode");
    }
    let cid_file = CidFile::make(options.cidfile.as_deref())?;
    ensure_image(app, options, &request.image).await?;
    let containers = app.engine()?.containers();
    let (container, lock) = containers.create_to_start(&request)?;
    cid_file.fill(&container.id)?;
    Ok((containers, container, lock))
}
