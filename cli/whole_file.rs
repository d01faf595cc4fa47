//! Output files that appear whole or not at all.

use std::fs::File;
use std::io::{Read as _, Write};
use std::os::unix::fs::MetadataExt as _;
use std::path::Path;

use rbuild_engine::whole_file::{self, Failure, Like};
use rustix::fs::{Mode, OFlags};

use crate::error::CliError;

/// Makes, or replaces, the file at `path` by what `fill` writes. A pipe or a device cannot be replaced and is written
/// to as it is.
///
/// # Errors
/// Those of `fill`, and those of the file system, which name `path`; then what was there before still is.
pub fn write(path: &Path, fill: impl FnOnce(&mut dyn Write) -> Result<(), CliError>) -> Result<(), CliError> {
    write_like(path, Like::Mode(0o600), fill)
}

/// Replaces the user's own file at `path`, which held `old`, by `new`; mode and owner stay.
///
/// # Errors
/// It is a link, has further names, is no regular file, or is not what was read before: then replacing it would do
/// something else than the user sees. And those of the file system.
pub fn replace(path: &Path, old: &[u8], new: &[u8]) -> Result<(), CliError> {
    let shown = path.display();
    let failed = |e: rustix::io::Errno| CliError::new(format!("cannot change {shown}: {e}"));
    let flags = OFlags::RDONLY | OFlags::NOFOLLOW | OFlags::NONBLOCK | OFlags::CLOEXEC;
    let mut file = match rustix::fs::open(path, flags, Mode::empty()) {
        Ok(file) => File::from(file),
        Err(rustix::io::Errno::LOOP) => {
            return Err(CliError::new(format!("cannot change {shown}: it is a symbolic link"))
                .with_hint("name the file it leads to with -f"));
        }
        Err(errno) => return Err(failed(errno)),
    };
    let metadata = file.metadata()?;
    if !metadata.is_file() {
        return Err(CliError::new(format!("cannot change {shown}: it is no regular file")));
    }
    if metadata.nlink() > 1 {
        return Err(CliError::new(format!("cannot change {shown}: the file has {} names", metadata.nlink()))
            .with_hint("the others would keep the old text; copy the file first"));
    }
    let mut now = Vec::with_capacity(old.len());
    (&mut file).take(old.len() as u64 + 1).read_to_end(&mut now)?;
    if now != old {
        return Err(CliError::new(format!("cannot change {shown}: somebody else changed it meanwhile")));
    }
    write_like(path, Like::File(&metadata), |out| Ok(out.write_all(new)?))
}

fn write_like(
    path: &Path,
    like: Like<'_>,
    fill: impl FnOnce(&mut dyn Write) -> Result<(), CliError>,
) -> Result<(), CliError> {
    if path.is_dir() {
        return Err(CliError::new(format!("invalid output path: \"{}\" must not be a directory", path.display())));
    }
    if let Some(directory) = path.parent().filter(|parent| !parent.as_os_str().is_empty() && !parent.exists()) {
        return Err(CliError::new(format!(
            "invalid output path: directory \"{}\" does not exist",
            directory.display()
        )));
    }
    whole_file::write(path, like, fill).map_err(|failure| match failure {
        Failure::Content(error) => error,
        Failure::File(error) => CliError::new(format!("failed to write {}: {error}", path.display())),
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_failure_leaves_the_old_file_and_nothing_else() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("out");
        write(&path, |out| Ok(out.write_all(b"old")?)).unwrap();
        let failure = write(&path, |out| {
            out.write_all(b"half of the new")?;
            assert_eq!(std::fs::read_dir(dir.path())?.count(), 1, "it has no name yet");
            Err(CliError::new("no more"))
        });
        assert_eq!(failure.unwrap_err().to_string(), "no more");
        assert_eq!(std::fs::read(&path).unwrap(), b"old");
        write(&path, |out| Ok(out.write_all(b"new")?)).unwrap();
        assert_eq!(std::fs::read(&path).unwrap(), b"new");
        assert_eq!(std::fs::read_dir(dir.path()).unwrap().count(), 1);
        assert!(write(dir.path(), |_| Ok(())).unwrap_err().to_string().contains("must not be a directory"));
        let nowhere = write(&dir.path().join("no/where"), |_| Ok(())).unwrap_err();
        assert!(nowhere.to_string().ends_with("/no\" does not exist"), "{nowhere}");
    }

    #[test]
    fn what_is_replaced_is_the_file_that_was_read() {
        use std::os::unix::fs::PermissionsExt as _;
        let dir = tempfile::tempdir().unwrap();
        let at = |name: &str| dir.path().join(name);
        std::fs::write(at("a"), "old").unwrap();
        std::fs::set_permissions(at("a"), std::fs::Permissions::from_mode(0o640)).unwrap();
        replace(&at("a"), b"old", b"new").unwrap();
        assert_eq!(std::fs::read(at("a")).unwrap(), b"new");
        assert_eq!(std::fs::metadata(at("a")).unwrap().permissions().mode() & 0o7777, 0o640);
        let refused = |name: &str, old: &[u8]| replace(&at(name), old, b"x").unwrap_err().message;
        assert!(refused("a", b"ne").ends_with("somebody else changed it meanwhile"));
        std::os::unix::fs::symlink("a", at("link")).unwrap();
        assert!(refused("link", b"new").ends_with("it is a symbolic link"));
        std::fs::hard_link(at("a"), at("b")).unwrap();
        assert!(refused("a", b"new").ends_with("the file has 2 names"));
        assert!(refused(".", b"").ends_with("it is no regular file"));
        assert!(refused("nothing", b"").contains("No such file"));
        assert_eq!(std::fs::read(at("a")).unwrap(), b"new");
        assert_eq!(std::fs::read_dir(dir.path()).unwrap().count(), 3, "nothing is left aside");
    }
}
