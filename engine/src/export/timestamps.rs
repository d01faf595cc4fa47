//! A tar archive with its times changed, and nothing else.

use std::io::{Read, Write};

use rbuild_store::StoreError;
use rbuild_store::layers::read::Reader;
use rbuild_store::layers::tar::{EntryKind, Writer};
use rbuild_store::root::Timestamp;

use crate::error::Error;

/// Bytes that are copied at a time.
pub(crate) const BUFFER: usize = 128 << 10;

/// Which times are changed.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Times {
    /// Those after this one become it (seconds since 1970).
    NoLaterThan(i64),
    /// All become this one.
    All(i64),
}

impl Times {
    pub(crate) fn of(self, time: Timestamp) -> Timestamp {
        match self {
            Times::NoLaterThan(epoch) => time.min(Timestamp::new(epoch, 0)),
            Times::All(epoch) => Timestamp::new(epoch, 0),
        }
    }
}

/// Copies the archive `input` to `output`; returns that.
///
/// # Errors
/// `input` is no tar archive, or `output` takes no more.
pub(crate) fn change_times<W: Write>(input: impl Read, output: W, times: Times) -> Result<W, Error> {
    let mut reader = Reader::new(input);
    let mut writer = Writer::new(output);
    let mut buffer = vec![0; BUFFER];
    while let Some(mut entry) = reader.next()? {
        entry.mtime = times.of(entry.mtime);
        let is_file = matches!(entry.kind, EntryKind::File { .. });
        writer.entry(&entry).map_err(unwritten)?;
        if is_file {
            copy_body(&mut reader, &mut writer, &mut buffer)?;
        }
    }
    Ok(writer.finish().map_err(unwritten)?.0)
}

/// Copies the content of the file that `reader` stands at.
pub(crate) fn copy_body<R: Read, W: Write>(
    reader: &mut Reader<R>,
    writer: &mut Writer<W>,
    buffer: &mut [u8],
) -> Result<(), Error> {
    let mut body = reader.body();
    loop {
        match body.read(buffer).map_err(|error| Error::internal(format!("reading a layer: {error}")))? {
            0 => return Ok(()),
            len => writer.body(&buffer[..len]).map_err(unwritten)?,
        }
    }
}

/// What the place an export goes to says.
pub(crate) fn unwritten(error: std::io::Error) -> Error {
    match error.downcast::<StoreError>() {
        Ok(ours) => Error::from(ours),
        Err(other) => Error::invalid(format!("cannot write the result: {other}")),
    }
}
