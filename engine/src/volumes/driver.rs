//! The driver `local` and its options: a volume that is a directory of the host's, or a file system of its own.
//!
//! The options lie in the volume's own directory, as docker keeps them.

use std::collections::BTreeMap;
use std::fs;
use std::io;
use std::path::{Path, PathBuf};

use rbuild_store::Root;

use super::filesystem::{self, Filesystem};
use crate::error::Error;

pub(super) const FILE: &str = "opts.json";

/// Where the files of a volume are.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) enum Place {
    Directory(PathBuf),
    /// In a file system that is mounted while somebody uses it.
    Filesystem(Filesystem),
}

/// Where the files of a volume are.
///
/// # Errors
/// The directory it stands for is not there.
pub(crate) fn place(store: &Path, name: &str) -> Result<Place, Error> {
    let own = super::path(store, name);
    let options = options(store, name);
    if options.is_empty() {
        return Ok(Place::Directory(own));
    }
    let is_plain_bind = matches!(split(&options)[..], ["bind" | "rbind"]);
    if !is_plain_bind {
        return Ok(Place::Filesystem(Filesystem::new(&options)));
    }
    let device = PathBuf::from(options.get("device").map_or("", String::as_str));
    match device.exists() {
        true => Ok(Place::Directory(device)),
        false => Err(Error::invalid(format!(
            "error while mounting volume '{}': failed to mount local volume: mount {}:{}, flags: 0x1000: no such file or directory",
            own.display(),
            device.display(),
            own.display()
        ))),
    }
}

/// Where a container that is being started finds the files of a volume; [`filesystem::release`] is called at its end.
///
/// # Errors
/// The volume cannot be mounted.
pub(crate) fn hold(store: &Path, name: &str, user: &str) -> Result<PathBuf, Error> {
    match place(store, name)? {
        Place::Directory(path) => Ok(path),
        Place::Filesystem(filesystem) => filesystem::hold(store, name, user, &filesystem),
    }
}

/// The files of a volume for a moment.
///
/// # Errors
/// The volume cannot be mounted, or read.
pub(crate) fn open(store: &Path, name: &str) -> Result<Root, Error> {
    match place(store, name)? {
        Place::Directory(path) => {
            Root::open(&path).map_err(|e| Error::internal(format!("cannot open the volume {name}: {e}")))
        }
        Place::Filesystem(filesystem) => filesystem::open(store, name, &filesystem),
    }
}

/// Refuses options that mean nothing; the reason, in docker's words.
pub(super) fn check(options: &BTreeMap<String, String>) -> Result<(), String> {
    if let Some(key) = options.keys().find(|key| !["type", "device", "o", "size"].contains(&key.as_str())) {
        return Err(format!("invalid option: \"{key}\""));
    }
    if options.contains_key("size") {
        return Err("quota size requested but no quota support".to_owned());
    }
    let is_there = |key: &str| options.contains_key(key);
    for (key, needed) in [("device", "type"), ("type", "device"), ("o", "device"), ("o", "type")] {
        if is_there(key) && !is_there(needed) {
            return Err(format!("missing required option: \"{needed}\""));
        }
    }
    Ok(())
}

/// The options of a volume; none where it has none.
pub(super) fn options(store: &Path, name: &str) -> BTreeMap<String, String> {
    let text = fs::read(store.join("volumes").join(name).join(FILE)).unwrap_or_default();
    serde_json::from_slice(&text).unwrap_or_default()
}

pub(super) fn keep(store: &Path, name: &str, options: &BTreeMap<String, String>) -> io::Result<()> {
    if options.is_empty() {
        return Ok(());
    }
    let directory = store.join("volumes").join(name);
    let aside = directory.join(format!("{FILE}.new"));
    fs::write(&aside, serde_json::to_vec(options)?)?;
    fs::rename(aside, directory.join(FILE))
}

/// The single options in `o`.
pub(super) fn split(options: &BTreeMap<String, String>) -> Vec<&str> {
    options.get("o").map_or("", String::as_str).split(',').filter(|option| !option.is_empty()).collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn options_are_checked() {
        let check = |pairs: &[(&str, &str)]| {
            check(&pairs.iter().map(|(key, value)| ((*key).to_owned(), (*value).to_owned())).collect())
        };
        for good in [
            &[][..],
            &[("type", "tmpfs"), ("device", "tmpfs"), ("o", "size=1m")],
            &[("type", "nfs"), ("device", ":/x"), ("o", "addr=10.0.0.1")],
            &[("o", "bind"), ("device", "/d"), ("type", "none")],
        ] {
            assert_eq!(check(good), Ok(()), "{good:?}");
        }
        for (bad, why) in [
            (&[("speed", "1")][..], "invalid option: \"speed\""),
            (&[("size", "1g")], "quota size requested but no quota support"),
            (&[("o", "bind")], "missing required option: \"device\""),
            (&[("device", "/d")], "missing required option: \"type\""),
            (&[("type", "tmpfs")], "missing required option: \"device\""),
        ] {
            assert_eq!(check(bad), Err(why.to_owned()), "{bad:?}");
        }
    }
}
