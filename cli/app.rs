//! What every command is given: settings, printers and, when it asks, the engine.

use std::io::Write as _;

use crate::args::Globals;
use crate::error::CliError;
use crate::settings::Settings;

/// One invocation of the program.
pub struct App {
    pub settings: Settings,
}

impl App {
    /// # Errors
    /// No place for the state directory.
    pub fn new(globals: &Globals) -> Result<Self, CliError> {
        Ok(Self { settings: Settings::from_environment(globals)? })
    }

    /// Writes to standard output, as it is.
    ///
    /// # Errors
    /// The reader went away, or the disk behind a redirection is full.
    pub fn print(&self, text: &str) -> Result<(), CliError> {
        self.write_out(text.as_bytes())
    }

    /// Writes bytes to standard output.
    ///
    /// # Errors
    /// As [`App::print`].
    pub fn write_out(&self, bytes: &[u8]) -> Result<(), CliError> {
        let mut out = std::io::stdout().lock();
        out.write_all(bytes)?;
        out.flush()?;
        Ok(())
    }

    /// Writes a line to standard error. That nobody reads it is no reason to fail.
    pub fn tell(&self, text: &str) {
        let mut err = std::io::stderr().lock();
        drop(err.write_all(text.as_bytes()).and_then(|()| err.write_all(b"\n")));
    }
}
