//! `rbuild inspect`.

use std::process::ExitCode;

use rbuild_engine::{Error, Kind};
use serde::Serialize as _;
use serde_json::Value;

use super::{image_inspect, volume_inspect};
use crate::app::App;
use crate::error::{CliError, exit};
use crate::format;

/// Show all that is known about containers, images, networks and volumes
#[derive(Debug, clap::Args)]
pub struct Args {
    /// Names or ids
    #[arg(value_name = "NAME", required = true)]
    names: Vec<String>,
    /// Format with a Go template, or 'json'
    #[arg(short, long, value_name = "TEMPLATE")]
    format: Option<String>,
    /// Look among these only
    #[arg(long = "type", value_name = "TYPE", value_parser = kind_of)]
    kind: Option<String>,
}

pub async fn run(args: Args, app: &App) -> Result<ExitCode, CliError> {
    let kind = args.kind.as_deref().filter(|kind| !kind.is_empty());
    let image = |name: &str| {
        let images = app.images()?;
        let found = or_none(images.get(name), kind == Some("image"))?;
        found.map(|image| image_inspect::detail(&images, &image)).transpose()
    };
    let containers = app.engine()?.containers();
    let container = |name: &str| {
        let found = or_none(containers.find(name), kind == Some("container"))?;
        Ok(found.map(|seen| containers.inspect(&seen)))
    };
    let volume = |name: &str| {
        let found = or_none(containers.volumes().find(name), kind == Some("volume"))?;
        Ok(found.map(|volume| volume_inspect::detail(&volume)))
    };
    let network = |name: &str| {
        let networks = app.engine()?.networks();
        let found = or_none(networks.find(name), kind == Some("network"))?;
        Ok(found.map(|network| networks.inspect(&network)).transpose()?)
    };
    show(app, &args.names, args.format.as_deref(), |name| match kind {
        Some("container") => container(name),
        Some("image") => image(name),
        Some("network") => network(name),
        Some("volume") => volume(name),
        _ => {
            if let Some(found) = container(name)? {
                return Ok(Some(found));
            }
            if let Some(found) = image(name)? {
                return Ok(Some(found));
            }
            match network(name)? {
                Some(found) => Ok(Some(found)),
                None => volume(name),
            }
        }
    })
}

fn kind_of(text: &str) -> Result<String, String> {
    match text {
        "" | "container" | "image" | "network" | "volume" => Ok(text.to_owned()),
        other => {
            Err(format!("unknown type: \"{other}\": must be one of \"container\", \"image\", \"network\", \"volume\""))
        }
    }
}

/// `None` for what is not there, unless that is the failure to be told.
fn or_none<T>(found: Result<T, Error>, only_this: bool) -> Result<Option<T>, CliError> {
    match found {
        Ok(found) => Ok(Some(found)),
        Err(error) if error.kind == Kind::NotFound && !only_this => Ok(None),
        Err(error) => Err(error.into()),
    }
}

/// Prints what `find` gives for each name: an array, or a line for each through a template. What is not there is told
/// after the others were shown.
pub fn show(
    app: &App,
    names: &[String],
    format: Option<&str>,
    find: impl Fn(&str) -> Result<Option<Value>, CliError>,
) -> Result<ExitCode, CliError> {
    if let Some(format) = format.filter(|f| *f != "json") {
        format::compile(format).map_err(|error| error.with_code(exit::BAD_TEMPLATE))?;
    }
    let mut found = Vec::new();
    let mut missing = Vec::new();
    for name in names {
        match find(name) {
            Ok(Some(value)) => found.push(value),
            Ok(None) => missing.push(format!("Error: No such object: {name}")),
            Err(error) => missing.push(format!("Error: {}", error.message)),
        }
    }
    let text = match format {
        None => array(&found)?,
        // Docker prints an empty line when there is nothing to print.
        Some(_) if found.is_empty() => "\n".to_owned(),
        Some(format) => {
            let mut lines = String::new();
            for value in &found {
                lines.push_str(&format::object(format, value)?);
                lines.push('\n');
            }
            lines
        }
    };
    app.print(&text)?;
    for line in &missing {
        app.tell(line);
    }
    if missing.is_empty() { Ok(ExitCode::SUCCESS) } else { Err(CliError::silent(exit::FAILURE)) }
}

fn array(values: &[Value]) -> Result<String, CliError> {
    let mut out = Vec::new();
    let four = serde_json::ser::PrettyFormatter::with_indent(b"    ");
    let mut serializer = serde_json::Serializer::with_formatter(&mut out, four);
    values.serialize(&mut serializer).map_err(|e| CliError::new(e.to_string()))?;
    Ok(String::from_utf8_lossy(&out).into_owned() + "\n")
}
