//! Files that are there whole or not at all.

use std::io::{BufWriter, Write};

use rbuild_store::Outside;

use super::timestamps::unwritten;
use crate::error::Error;
use crate::output::Destination;
use crate::whole_file::{self, Failure, Like};

/// Has `write` fill the destination. A file takes its name only when all of it is written.
///
/// # Errors
/// Those of `write`, and what the destination says.
pub(crate) fn fill(dest: &Destination, write: impl FnOnce(&mut dyn Write) -> Result<(), Error>) -> Result<(), Error> {
    match dest {
        Destination::Stream(stream) => {
            let stream = stream.take().ok_or_else(|| Error::invalid("several outputs go to one stream"))?;
            let mut out = BufWriter::with_capacity(128 << 10, Outside(stream));
            write(&mut out)?;
            out.flush().map_err(unwritten)
        }
        Destination::File(path) => {
            if path.is_dir() {
                return Err(Error::invalid(format!("destination file {} is a directory", path.display())));
            }
            let failed = |error: std::io::Error| Error::invalid(format!("cannot write {}: {error}", path.display()));
            if let Some(parent) = path.parent().filter(|parent| !parent.as_os_str().is_empty()) {
                std::fs::create_dir_all(parent).map_err(failed)?;
            }
            whole_file::write(path, Like::Mode(0o666), write).map_err(|failure| match failure {
                Failure::Content(error) => error,
                Failure::File(error) => failed(error),
            })
        }
    }
}
