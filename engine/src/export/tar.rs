//! The files of results as one tar archive.

use std::ffi::OsStr;
use std::io::{Read, Write};
use std::os::unix::ffi::OsStrExt;

use rbuild_store::Root;
use rbuild_store::layers::read::Reader;
use rbuild_store::layers::tar::{Entry, EntryKind, Writer, Xattrs};
use rbuild_store::root::Timestamp;

use super::timestamps::{BUFFER, Times, copy_body, unwritten};
use crate::attest::files::Written;
use crate::error::Error;

/// One result in an archive.
pub(crate) struct Part<'a> {
    pub(crate) tree: Root,
    /// The directory it is put into.
    pub(crate) prefix: Option<&'a OsStr>,
    /// All times become this one.
    pub(crate) epoch: Option<i64>,
    /// Files at its top that the tree does not have.
    pub(crate) more: Vec<Written>,
}

/// Writes the archive.
///
/// # Errors
/// A tree cannot be read, or `out` takes no more.
pub(crate) fn write(parts: Vec<Part<'_>>, out: &mut dyn Write) -> Result<(), Error> {
    let is_plain = |part: &Part<'_>| part.prefix.is_none() && part.epoch.is_none() && part.more.is_empty();
    if let [one] = parts.as_slice()
        && is_plain(one)
    {
        let part = parts.into_iter().next().ok_or_else(|| Error::internal("no result"))?;
        rbuild_store::layers::write_tree(part.tree, out)?;
        return Ok(());
    }
    let mut writer = Writer::new(out);
    for part in parts {
        part.write(&mut writer)?;
    }
    writer.finish().map_err(unwritten)?;
    Ok(())
}

impl Part<'_> {
    fn write<W: Write>(self, writer: &mut Writer<W>) -> Result<(), Error> {
        let Part { tree, prefix, epoch, more } = self;
        let time = Timestamp::new(epoch.unwrap_or(0), 0);
        if let Some(prefix) = prefix {
            writer.entry(&plain(prefix.as_bytes().to_vec(), EntryKind::Directory, 0o755, time)).map_err(unwritten)?;
        }
        let (reader, pipe) = std::io::pipe().map_err(Error::internal)?;
        std::thread::scope(|scope| {
            let written = scope.spawn(move || rbuild_store::layers::write_tree(tree, pipe));
            let copied = copy(reader, writer, prefix, epoch);
            match written.join() {
                // A writer that fails because nobody reads any more is not what went wrong.
                Ok(Err(error)) if copied.is_ok() => Err(Error::from(error)),
                Ok(_) => copied,
                Err(panic) => std::panic::resume_unwind(panic),
            }
        })?;
        for file in more {
            let size = file.content.len() as u64;
            let path = below(prefix, file.name.into_bytes());
            writer.entry(&plain(path, EntryKind::File { size }, 0o644, time)).map_err(unwritten)?;
            writer.body(&file.content).map_err(unwritten)?;
        }
        Ok(())
    }
}

fn copy<W: Write>(
    tree: impl Read,
    writer: &mut Writer<W>,
    prefix: Option<&OsStr>,
    epoch: Option<i64>,
) -> Result<(), Error> {
    let mut reader = Reader::new(tree);
    let mut buffer = vec![0; BUFFER];
    while let Some(mut entry) = reader.next()? {
        if prefix.is_some() && entry.path.is_empty() {
            continue;
        }
        entry.path = below(prefix, entry.path);
        if let EntryKind::HardLink { target } = &mut entry.kind {
            *target = below(prefix, std::mem::take(target));
        }
        if let Some(epoch) = epoch {
            entry.mtime = Times::All(epoch).of(entry.mtime);
        }
        writer.entry(&entry).map_err(unwritten)?;
        if matches!(entry.kind, EntryKind::File { .. }) {
            copy_body(&mut reader, writer, &mut buffer)?;
        }
    }
    Ok(())
}

fn below(prefix: Option<&OsStr>, path: Vec<u8>) -> Vec<u8> {
    match prefix {
        Some(prefix) => [prefix.as_bytes(), b"/", &path].concat(),
        None => path,
    }
}

fn plain(path: Vec<u8>, kind: EntryKind, mode: u32, mtime: Timestamp) -> Entry {
    Entry { path, kind, mode, uid: 0, gid: 0, mtime, xattrs: Xattrs::default() }
}
