//! The question before something is removed for good.

use std::io::{BufRead as _, Write as _};

use crate::error::CliError;

/// Asks on standard error, reads a line from standard input; only `y` is yes.
///
/// # Errors
/// Standard input cannot be read.
pub fn ask(warning: &str) -> Result<bool, CliError> {
    let mut err = std::io::stderr().lock();
    write!(err, "{warning}\nAre you sure you want to continue? [y/N] ")?;
    err.flush()?;
    let mut line = String::new();
    std::io::stdin().lock().read_line(&mut line)?;
    Ok(matches!(line.trim(), "y" | "Y" | "yes"))
}
