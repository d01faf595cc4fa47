//! `rbuild commit`.

use std::process::ExitCode;
use std::time::SystemTime;

use rbuild_engine::containers::CommitRequest;

use super::{DONE, reference};
use crate::app::App;
use crate::error::CliError;

/// Make an image of what a container has become
#[derive(Debug, clap::Args)]
pub struct Args {
    /// Who made it
    #[arg(short, long, value_name = "TEXT")]
    author: Option<String>,
    /// Line of a Dockerfile that changes the configuration
    #[arg(short, long = "change", value_name = "INSTRUCTION")]
    changes: Vec<String>,
    /// What its history says
    #[arg(short, long, value_name = "TEXT")]
    message: Option<String>,
    /// Stop the processes while their files are copied
    #[arg(short, long, value_name = "BOOL", default_value = "true", num_args = 0..=1, require_equals = true,
          default_missing_value = "true", action = clap::ArgAction::Set)]
    pause: bool,
    #[arg(value_name = "CONTAINER")]
    container: String,
    /// The name of the image
    #[arg(value_name = "REPOSITORY[:TAG]")]
    name: Option<String>,
}

pub async fn run(args: Args, app: &App) -> Result<ExitCode, CliError> {
    let request = CommitRequest {
        name: args.name.as_deref().map(reference).transpose()?,
        author: args.author.unwrap_or_default(),
        message: args.message.unwrap_or_default(),
        changes: args.changes,
        pause: args.pause,
        now: SystemTime::now(),
    };
    let containers = app.engine()?.containers();
    let seen = containers.find(&args.container)?;
    let id = containers.commit(&seen, &request)?;
    app.print(&format!("{}\n", id.0))?;
    DONE
}
