//! The question before something is removed for good.

use std::io::{BufRead as _, Write as _};

use crate::error::CliError;

/// Asks on standard output as docker does, reads a line from standard input; only `y` is yes.
///
/// # Errors
/// Standard input cannot be read.
pub fn ask(warning: &str) -> Result<bool, CliError> {
    ask_after(warning, '\n')
}

/// As [`ask`], the question on the warning's line, as builders have it.
///
/// # Errors
/// As [`ask`].
pub fn ask_in_line(warning: &str) -> Result<bool, CliError> {
    ask_after(warning, ' ')
}

fn ask_after(warning: &str, gap: char) -> Result<bool, CliError> {
    let mut out = std::io::stdout().lock();
    write!(out, "{warning}{gap}Are you sure you want to continue? [y/N] ")?;
    out.flush()?;
    let mut line = String::new();
    std::io::stdin().lock().read_line(&mut line)?;
    Ok(matches!(line.trim(), "y" | "Y" | "yes"))
}
