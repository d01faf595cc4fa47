//! Writing to where the caller says, which need not be the store's disk.

use std::error::Error;
use std::fmt;
use std::io::{self, Write};

/// A writer whose failures are told apart from those of the store's disk: a full disk elsewhere is not cured by removing
/// images.
#[derive(Debug)]
pub struct Outside<W>(pub W);

impl<W: Write> Write for Outside<W> {
    fn write(&mut self, bytes: &[u8]) -> io::Result<usize> {
        self.0.write(bytes).map_err(mark)
    }

    fn write_all(&mut self, bytes: &[u8]) -> io::Result<()> {
        self.0.write_all(bytes).map_err(mark)
    }

    fn flush(&mut self) -> io::Result<()> {
        self.0.flush().map_err(mark)
    }
}

/// Whether an error is that of an [`Outside`].
pub(crate) fn is_outside(error: &io::Error) -> bool {
    error.get_ref().is_some_and(|inner| inner.is::<Marked>())
}

#[derive(Debug)]
struct Marked(io::Error);

fn mark(error: io::Error) -> io::Error {
    match error.kind() {
        // It is answered by writing again, not told.
        io::ErrorKind::Interrupted => error,
        kind => io::Error::new(kind, Marked(error)),
    }
}

impl fmt::Display for Marked {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        self.0.fmt(f)
    }
}

impl Error for Marked {
    fn source(&self) -> Option<&(dyn Error + 'static)> {
        self.0.source()
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::error::{Context, StoreError};

    #[test]
    fn a_full_disk_elsewhere_is_not_the_stores() {
        let full = std::fs::OpenOptions::new().write(true).open("/dev/full").expect("open");
        let failed = |result: io::Result<()>| result.context(|| "writing it".to_owned()).unwrap_err();
        let own = failed((&full).write_all(b"x"));
        let other = failed(Outside(&full).write_all(b"x"));
        assert_eq!(own.to_string(), other.to_string());
        assert!(own.is_full() && own.hint().is_some_and(|hint| hint.contains("prune")), "{own:?}");
        assert!(!other.is_full() && other.hint().is_some_and(|hint| hint.contains("somewhere else")), "{other:?}");
        let StoreError::Io { source, .. } = other else { panic!("{other:?}") };
        assert_eq!(source.kind(), io::ErrorKind::StorageFull);
    }
}
