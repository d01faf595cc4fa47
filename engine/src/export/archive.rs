//! Files that are there whole or not at all.

use std::ffi::OsString;
use std::fs::File;
use std::io::{BufWriter, Write};
use std::path::{Path, PathBuf};

use super::timestamps::unwritten;
use crate::error::Error;
use crate::output::Destination;

/// Has `write` fill the destination. A file takes its name only when all of it is written.
///
/// # Errors
/// Those of `write`, and what the destination says.
pub(crate) fn fill(dest: &Destination, write: impl FnOnce(&mut dyn Write) -> Result<(), Error>) -> Result<(), Error> {
    match dest {
        Destination::Stream(stream) => {
            let stream = stream.take().ok_or_else(|| Error::invalid("several outputs go to one stream"))?;
            let mut out = BufWriter::with_capacity(128 << 10, stream);
            write(&mut out)?;
            out.flush().map_err(unwritten)
        }
        Destination::File(path) => {
            if path.is_dir() {
                return Err(Error::invalid(format!("destination file {} is a directory", path.display())));
            }
            let (file, aside) = Aside::create(path)?;
            let mut out = BufWriter::with_capacity(128 << 10, file);
            write(&mut out)?;
            out.flush().map_err(unwritten)?;
            aside.rename(path)
        }
    }
}

/// A file under a name that nobody looks for; removed unless it is given its own.
struct Aside(Option<PathBuf>);

impl Aside {
    fn create(path: &Path) -> Result<(File, Aside), Error> {
        let bad = |error: std::io::Error| Error::invalid(format!("cannot write {}: {error}", path.display()));
        let Some(file_name) = path.file_name() else {
            return Err(Error::invalid(format!("destination {} is no name of a file", path.display())));
        };
        let mut name = OsString::from(".");
        name.push(file_name);
        name.push(format!(".{}.part", std::process::id()));
        let aside = path.with_file_name(name);
        if let Some(parent) = path.parent().filter(|parent| !parent.as_os_str().is_empty()) {
            std::fs::create_dir_all(parent).map_err(bad)?;
        }
        let file = File::create(&aside).map_err(bad)?;
        Ok((file, Aside(Some(aside))))
    }

    fn rename(mut self, path: &Path) -> Result<(), Error> {
        let bad = |error: std::io::Error| Error::invalid(format!("cannot write {}: {error}", path.display()));
        let Some(aside) = self.0.take() else { return Ok(()) };
        std::fs::rename(&aside, path).map_err(|error| {
            // The error of the renaming is the one to tell.
            drop(std::fs::remove_file(&aside));
            bad(error)
        })
    }
}

impl Drop for Aside {
    fn drop(&mut self) {
        if let Some(path) = &self.0 {
            // It may be gone with its directory.
            drop(std::fs::remove_file(path));
        }
    }
}
