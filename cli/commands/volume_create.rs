//! `rbuild volume create`.

use std::collections::BTreeMap;
use std::process::ExitCode;

use super::DONE;
use crate::app::App;
use crate::error::CliError;

/// Make a volume
#[derive(Debug, clap::Args)]
pub struct Args {
    /// How its files are kept: only 'local'
    #[arg(short, long, value_name = "DRIVER", default_value = "local", value_parser = ["local"])]
    driver: String,
    /// Label of the volume
    #[arg(long = "label", value_name = "NAME[=VALUE]")]
    labels: Vec<String>,
    /// Option of the driver: type=tmpfs|none, device=PATH, o=OPTIONS
    #[arg(short, long = "opt", value_name = "NAME=VALUE")]
    options: Vec<String>,
    /// Its name (default: one by chance)
    #[arg(value_name = "NAME")]
    name: Option<String>,
}

pub async fn run(args: Args, app: &App) -> Result<ExitCode, CliError> {
    let Args { driver: _, labels, options, name } = args;
    let pairs = |texts: &[String]| -> BTreeMap<String, String> {
        let pairs = texts.iter().map(|text| text.split_once('=').unwrap_or((text, "")));
        pairs.map(|(key, value)| (key.to_owned(), value.to_owned())).collect()
    };
    let (labels, options) = (pairs(&labels), pairs(&options));
    let volume = app.engine()?.volumes().create(name.as_deref(), &labels, &options)?;
    app.print(&format!("{}\n", volume.name))?;
    DONE
}
