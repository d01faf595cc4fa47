//! `rbuild volume inspect`.

use std::process::ExitCode;

use rbuild_engine::volumes::Volume;
use serde_json::{Value, json};

use crate::app::App;
use crate::error::{CliError, exit};
use crate::{format, units};

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
    let (mut found, mut failed) = (Vec::new(), Vec::new());
    for name in &args.volumes {
        match volumes.find(name) {
            Ok(volume) => found.push(value(&volume)),
            Err(error) => failed.push(CliError::from(error)),
        }
    }
    show(app, args.format.as_deref(), &found)?;
    for error in &failed {
        crate::terminal::tell(&error.render());
    }
    Ok(if failed.is_empty() { ExitCode::SUCCESS } else { ExitCode::from(exit::FAILURE) })
}

fn value(volume: &Volume) -> Value {
    json!({
        "CreatedAt": units::rfc3339(volume.created),
        "Driver": "local",
        "Labels": volume.labels,
        "Mountpoint": volume.mountpoint,
        "Name": volume.name,
        "Options": Value::Null,
        "Scope": "local",
    })
}

/// Prints objects as `inspect` does: each by the template, or all as one indented array.
///
/// # Errors
/// The template is wrong, or standard output went away.
pub fn show(app: &App, template: Option<&str>, objects: &[Value]) -> Result<(), CliError> {
    let text = match template.filter(|t| !t.is_empty()) {
        Some(template) => {
            let lines = objects.iter().map(|object| Ok(format::object(template, object)? + "\n"));
            lines.collect::<Result<String, CliError>>()?
        }
        None => {
            let mut out = Vec::new();
            let indent = serde_json::ser::PrettyFormatter::with_indent(b"    ");
            let mut to = serde_json::Serializer::with_formatter(&mut out, indent);
            serde::Serialize::serialize(objects, &mut to).map_err(|e| CliError::new(e.to_string()))?;
            out.push(b'\n');
            String::from_utf8_lossy(&out).into_owned()
        }
    };
    app.print(&text)
}
