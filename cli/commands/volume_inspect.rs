//! `rbuild volume inspect`.

use std::process::ExitCode;

use rbuild_engine::volumes::Volume;
use serde_json::{Value, json};

use super::inspect::show;
use crate::app::App;
use crate::error::CliError;
use crate::units;

/// Show all about volumes
#[derive(Debug, clap::Args)]
pub struct Args {
    /// How to print them: 'json' or a Go template
    #[arg(short, long, value_name = "FORMAT")]
    format: Option<String>,
    #[arg(value_name = "VOLUME", required = true, num_args = 1..)]
    volumes: Vec<String>,
}

pub async fn run(args: Args, app: &App) -> Result<ExitCode, CliError> {
    let volumes = app.engine()?.volumes();
    show(app, &args.volumes, args.format.as_deref(), |name| Ok(Some(detail(&volumes.find(name)?))))
}

/// A volume as docker's JSON shows it.
pub(super) fn detail(volume: &Volume) -> Value {
    let mut labels = volume.labels.clone();
    if volume.anonymous {
        labels.insert("com.docker.volume.anonymous".to_owned(), String::new());
    }
    json!({
        "CreatedAt": units::rfc3339(volume.created),
        "Driver": "local",
        "Labels": if labels.is_empty() { Value::Null } else { json!(labels) },
        "Mountpoint": volume.mountpoint,
        "Name": volume.name,
        "Options": if volume.options.is_empty() { Value::Null } else { json!(volume.options) },
        "Scope": "local",
    })
}
