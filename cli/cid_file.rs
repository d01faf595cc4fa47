//! `--cidfile`: the container's id in a file, for scripts.

use std::fs::File;
use std::io::{ErrorKind, Write as _};
use std::path::{Path, PathBuf};

use crate::error::CliError;

/// A file that waits for the id of a container, if one is wanted. It goes again unless it gets one: where it cannot be made
/// there is no container, and where there is no container it is not there.
#[derive(Debug)]
pub struct CidFile(Option<(File, PathBuf)>);

impl CidFile {
    /// Makes the file, before there is a container.
    ///
    /// # Errors
    /// It exists, or cannot be made.
    pub fn make(path: Option<&Path>) -> Result<CidFile, CliError> {
        let Some(path) = path else { return Ok(CidFile(None)) };
        match File::create_new(path) {
            Ok(file) => Ok(CidFile(Some((file, path.to_owned())))),
            Err(error) if error.kind() == ErrorKind::AlreadyExists => Err(CliError::new(format!(
                "container ID file found, make sure the other container isn't running or delete {}",
                path.display()
            ))),
            Err(error) => Err(failed(path, &error)),
        }
    }

    /// Puts the id into it.
    ///
    /// # Errors
    /// The file system's.
    pub fn fill(mut self, id: &str) -> Result<(), CliError> {
        let Some((file, path)) = &mut self.0 else { return Ok(()) };
        file.write_all(id.as_bytes()).map_err(|error| failed(path, &error))?;
        self.0 = None;
        Ok(())
    }
}

impl Drop for CidFile {
    fn drop(&mut self) {
        if let Some((_, path)) = &self.0 {
            // What kept the container from being made is what is told.
            drop(std::fs::remove_file(path));
        }
    }
}

fn failed(path: &Path, error: &std::io::Error) -> CliError {
    CliError::new(format!("failed to create the container ID file: open {}: {error}", path.display()))
}
