//! `rbuild volume create`.

use std::collections::BTreeMap;
use std::process::ExitCode;

use super::DONE;
use crate::app::App;
use crate::error::CliError;
use crate::terminal::clean_line;

/// Make a volume
#[derive(Debug, clap::Args)]
pub struct Args {
    /// How its files are kept: only 'local'
    #[arg(short, long, value_name = "DRIVER", default_value = "local")]
    driver: String,
    /// Label of the volume
    #[arg(long = "label", value_name = "NAME[=VALUE]")]
    labels: Vec<String>,
    /// Option of the driver: type=TYPE, device=DEVICE, o=OPTIONS, as of mount(8)
    #[arg(short, long = "opt", value_name = "NAME=VALUE")]
    options: Vec<String>,
    /// Its name (default: one by chance)
    #[arg(value_name = "NAME")]
    name: Option<String>,
}

pub async fn run(args: Args, app: &App) -> Result<ExitCode, CliError> {
    let Args { driver, labels, options, name } = args;
    if !["", "local"].contains(&driver.as_str()) {
        let (name, driver) = (clean_line(name.as_deref().unwrap_or_default()), clean_line(&driver));
        let message = format!("create {name}: error looking up volume plugin {driver}: plugin \"{driver}\" not found");
        return Err(CliError::new(message));
    }
    let pairs = |texts: &[String]| -> BTreeMap<String, String> {
        let pairs = texts.iter().map(|text| text.split_once('=').unwrap_or((text, "")));
        pairs.map(|(key, value)| (key.to_owned(), value.to_owned())).collect()
    };
    let (labels, options) = (pairs(&labels), pairs(&options));
    let volume = app.engine()?.volumes().create(name.as_deref(), &labels, &options)?;
    app.print(&format!("{}\n", volume.name))?;
    DONE
}
