//! The files of a rotated log: by number, the older the higher, and the older ones compressed where that is wanted.
//!
//! A file that is compressed is another file than the one it was made of, which somebody may be reading just then: so it
//! says in its header which one that was.

use std::fs::{self, File};
use std::io::{self, Seek, SeekFrom, Write};
use std::os::unix::fs::MetadataExt;
use std::path::{Path, PathBuf};
use std::time::UNIX_EPOCH;

use flate2::read::GzDecoder;
use flate2::{Compression, GzBuilder};
use rustix::fs::{MemfdFlags, memfd_create};

/// What tells a file from all others, also from one that gets its number after it: the number and the time it was made.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) struct Identity(u64, u128);

impl Identity {
    pub(super) fn of(file: &File) -> io::Result<Identity> {
        let metadata = file.metadata()?;
        // Not every file system knows; then the number has to do.
        let made = metadata.created().ok().and_then(|time| time.duration_since(UNIX_EPOCH).ok());
        Ok(Identity(metadata.ino(), made.map_or(0, |time| time.as_nanos())))
    }

    fn parse(text: &[u8]) -> Option<Identity> {
        let (number, made) = std::str::from_utf8(text).ok()?.split_once(' ')?;
        Some(Identity(number.parse().ok()?, made.parse().ok()?))
    }
}

/// One of the files, to be read when that is wanted.
pub(super) enum Part {
    Plain(File, Identity),
    Packed(Box<GzDecoder<File>>, Identity),
}

impl Part {
    /// The `n`-th last file; `None` where there is none.
    pub(super) fn open(path: &Path, n: u32) -> io::Result<Option<Part>> {
        let plain = if n == 0 { path.to_owned() } else { numbered(path, n) };
        if let Some(file) = there(File::open(&plain))? {
            let identity = Identity::of(&file)?;
            return Ok(Some(Part::Plain(file, identity)));
        }
        if n == 0 {
            return Ok(None);
        }
        let Some(file) = there(File::open(packed(&plain)))? else { return Ok(None) };
        let own = Identity::of(&file)?;
        let decoder = GzDecoder::new(file);
        let identity = decoder.header().and_then(|header| header.comment()).and_then(Identity::parse);
        Ok(Some(Part::Packed(Box::new(decoder), identity.unwrap_or(own))))
    }

    pub(super) fn identity(&self) -> Identity {
        match self {
            Part::Plain(_, identity) | Part::Packed(_, identity) => *identity,
        }
    }

    /// A file with the entries, at its beginning.
    pub(super) fn into_file(self) -> io::Result<File> {
        match self {
            Part::Plain(file, _) => Ok(file),
            Part::Packed(mut decoder, _) => {
                let mut file = File::from(memfd_create("log", MemfdFlags::CLOEXEC)?);
                io::copy(&mut decoder, &mut file)?;
                file.seek(SeekFrom::Start(0))?;
                Ok(file)
            }
        }
    }
}

/// Makes room for a new log: each file becomes the next older one, the oldest goes. `compress`: the one that was the log.
pub(super) fn rotate(path: &Path, most: u32, compress: bool) -> io::Result<()> {
    let older = most.max(1) - 1;
    for n in (1..older).rev() {
        let (from, to) = (numbered(path, n), numbered(path, n + 1));
        there(fs::remove_file(&to))?;
        there(fs::remove_file(packed(&to)))?;
        there(fs::rename(&from, &to))?;
        there(fs::rename(packed(&from), packed(&to)))?;
    }
    if older == 0 {
        return fs::remove_file(path);
    }
    let first = numbered(path, 1);
    there(fs::remove_file(packed(&first)))?;
    fs::rename(path, &first)?;
    // What cannot be compressed stays as it is.
    if compress && let Err(error) = pack(&first) {
        tracing::warn!(%error, "a full log is not compressed");
        let _ = fs::remove_file(aside(&first));
    }
    Ok(())
}

fn pack(path: &Path) -> io::Result<()> {
    let mut file = File::open(path)?;
    let Identity(number, made) = Identity::of(&file)?;
    let out = fs::OpenOptions::new().write(true).create(true).truncate(true).open(aside(path))?;
    out.set_permissions(file.metadata()?.permissions())?;
    let mut encoder = GzBuilder::new().comment(format!("{number} {made}")).write(out, Compression::fast());
    io::copy(&mut file, &mut encoder)?;
    encoder.finish()?.flush()?;
    fs::rename(aside(path), packed(path))?;
    fs::remove_file(path)
}

/// The `n`-th last file of a rotated log.
pub(super) fn numbered(path: &Path, n: u32) -> PathBuf {
    with_end(path, &format!(".{n}"))
}

fn packed(path: &Path) -> PathBuf {
    with_end(path, ".gz")
}

fn aside(path: &Path) -> PathBuf {
    with_end(path, ".gz.new")
}

fn with_end(path: &Path, end: &str) -> PathBuf {
    let mut name = path.as_os_str().to_owned();
    name.push(end);
    name.into()
}

/// `None` for what is not there.
fn there<T>(result: io::Result<T>) -> io::Result<Option<T>> {
    match result {
        Err(error) if error.kind() == io::ErrorKind::NotFound => Ok(None),
        other => other.map(Some),
    }
}
