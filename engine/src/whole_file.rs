//! Output files that appear whole or not at all.
//!
//! What is written has no name until it is complete, where the file system can do that: so a program that is killed in
//! the middle leaves nothing behind in the user's directory. Elsewhere it has a hidden name meanwhile. What cannot be
//! replaced (a pipe, a device, a terminal) is written to as it is.

use std::ffi::OsString;
use std::fs::{File, Metadata, OpenOptions};
use std::io::{self, BufWriter, Write};
use std::os::fd::AsRawFd as _;
use std::os::unix::fs::{MetadataExt as _, OpenOptionsExt as _};
use std::path::Path;

pub use rbuild_store::Outside;
use rustix::fs::{AtFlags, CWD, Mode, OFlags};

/// Buffered between the writer and the file, in bytes.
const BUFFER: usize = 1 << 20;

/// What the new file is to be like.
#[derive(Debug, Clone, Copy)]
pub enum Like<'a> {
    /// Permission bits, of which the umask takes some away.
    Mode(u32),
    /// Mode and owner of the file that is replaced.
    File(&'a Metadata),
}

/// Why there is no file: what was to fill it failed, or the file system did.
#[derive(Debug)]
pub enum Failure<E> {
    Content(E),
    File(io::Error),
}

/// Makes, or replaces, the file at `path` by what `fill` writes. A failure to write says so within `fill`'s error too,
/// as one of an [`Outside`].
///
/// # Errors
/// Those of `fill` and those of the file system; then what was there before still is.
pub fn write<E>(
    path: &Path,
    like: Like<'_>,
    fill: impl FnOnce(&mut dyn Write) -> Result<(), E>,
) -> Result<(), Failure<E>> {
    let file = Failure::File;
    let fill_and_flush = |to: &File| {
        if let Like::File(model) = like {
            // The owner first: changing it takes bits off the mode.
            std::os::unix::fs::fchown(to, Some(model.uid()), Some(model.gid())).map_err(file)?;
            to.set_permissions(model.permissions()).map_err(file)?;
        }
        let mut out = BufWriter::with_capacity(BUFFER, Outside(to));
        fill(&mut out).map_err(Failure::Content)?;
        out.flush().map_err(file)
    };
    if is_special(path) {
        return fill_and_flush(&OpenOptions::new().write(true).open(path).map_err(file)?);
    }
    let mode = match like {
        Like::Mode(mode) => mode,
        Like::File(_) => 0o600,
    };
    let name = path.file_name().ok_or_else(|| file(io::ErrorKind::InvalidInput.into()))?;
    let mut aside = OsString::from(".");
    aside.push(name);
    aside.push(format!(".{}", std::process::id()));
    let aside = path.with_file_name(aside);
    let unnamed = match path.parent() {
        Some(directory) if !directory.as_os_str().is_empty() => without_name(directory, mode),
        _ => without_name(Path::new("."), mode),
    };
    let written = match unnamed {
        Some(new) => fill_and_flush(&new).and_then(|()| give_name(&new, &aside).map_err(file)),
        None => {
            let mut open = OpenOptions::new();
            fill_and_flush(&open.write(true).create_new(true).mode(mode).open(&aside).map_err(file)?)
        }
    };
    let outcome = written.and_then(|()| std::fs::rename(&aside, path).map_err(file));
    if outcome.is_err() {
        // The failure is what the user wants to hear of, not that a part stays.
        drop(std::fs::remove_file(&aside));
    }
    outcome
}

/// Whether there is something at `path` that a file cannot take the place of: a device, a pipe, a socket.
pub fn is_special(path: &Path) -> bool {
    std::fs::metadata(path).is_ok_and(|there| !there.is_file() && !there.is_dir())
}

/// A new file in `directory` that has no name yet; nothing where the file system knows no such thing.
fn without_name(directory: &Path, mode: u32) -> Option<File> {
    let flags = OFlags::TMPFILE | OFlags::WRONLY | OFlags::CLOEXEC;
    rustix::fs::open(directory, flags, Mode::from_raw_mode(mode)).ok().map(File::from)
}

fn give_name(file: &File, path: &Path) -> io::Result<()> {
    let itself = format!("/proc/self/fd/{}", file.as_raw_fd());
    Ok(rustix::fs::linkat(CWD, itself.as_str(), CWD, path, AtFlags::SYMLINK_FOLLOW)?)
}

#[cfg(test)]
mod tests {
    use std::os::unix::fs::FileTypeExt as _;

    use super::*;

    #[test]
    fn what_is_no_file_is_not_replaced() {
        let dir = tempfile::tempdir().unwrap();
        let pipe = dir.path().join("pipe");
        rustix::fs::mknodat(CWD, &pipe, rustix::fs::FileType::Fifo, Mode::RUSR | Mode::WUSR, 0).unwrap();
        let reader = std::thread::spawn({
            let pipe = pipe.clone();
            move || std::fs::read(pipe).unwrap()
        });
        write(&pipe, Like::Mode(0o644), |out| out.write_all(b"through")).unwrap();
        assert_eq!(reader.join().unwrap(), b"through");
        assert!(std::fs::symlink_metadata(&pipe).unwrap().file_type().is_fifo());
        let link = dir.path().join("null");
        std::os::unix::fs::symlink("/dev/null", &link).unwrap();
        write(&link, Like::Mode(0o644), |out| out.write_all(b"gone")).unwrap();
        assert!(std::fs::symlink_metadata(&link).unwrap().is_symlink(), "it is written through");
        assert_eq!(std::fs::read_dir(dir.path()).unwrap().count(), 2, "nothing is left aside");
    }
}
