//! Commands that take several names: each is done, each failure is told, one failure makes the command fail.

use std::process::ExitCode;

use crate::app::App;
use crate::error::{CliError, exit};

/// Does `work` for every name. What it returns is printed on a line of its own.
///
/// # Errors
/// Standard output went away.
pub fn each(
    app: &App,
    names: &[String],
    mut work: impl FnMut(&str) -> Result<Option<String>, CliError>,
) -> Result<ExitCode, CliError> {
    let mut code = ExitCode::SUCCESS;
    for name in names {
        match work(name) {
            Ok(Some(line)) => app.print(&format!("{line}\n"))?,
            Ok(None) => {}
            Err(error) => {
                crate::terminal::tell(&error.render());
                code = ExitCode::from(exit::FAILURE);
            }
        }
    }
    Ok(code)
}

/// The same for commands that print the name of each when it is done.
///
/// # Errors
/// As [`each`].
pub fn each_named(
    app: &App,
    names: &[String],
    mut work: impl FnMut(&str) -> Result<(), CliError>,
) -> Result<ExitCode, CliError> {
    each(app, names, |name| work(name).map(|()| Some(name.to_owned())))
}
