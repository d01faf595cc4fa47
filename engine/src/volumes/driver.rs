//! The driver `local` and its options: a volume that is a directory of the host's, or memory.
//!
//! The options lie in the volume's own directory, as docker keeps them. Nothing is mounted on the host: who mounts the
//! volume into a container is told where its files are. So memory is each container's own, and goes with it.

use std::collections::BTreeMap;
use std::fs;
use std::io;
use std::path::{Path, PathBuf};

use crate::error::Error;

const FILE: &str = "opts.json";

/// Where the files of a volume are.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) enum Place {
    Directory(PathBuf),
    /// In memory, with these options of the mount.
    Memory(Vec<String>),
}

/// Where the files of a volume are, whose own directory is `own`.
///
/// # Errors
/// The directory it stands for is not there.
pub(crate) fn place(store: &Path, name: &str, own: PathBuf) -> Result<Place, Error> {
    let options = options(store, name);
    if options.is_empty() {
        return Ok(Place::Directory(own));
    }
    let given = split(&options);
    if options.get("type").is_some_and(|kind| kind == "tmpfs") {
        return Ok(Place::Memory(given.into_iter().map(str::to_owned).collect()));
    }
    let device = PathBuf::from(options.get("device").map_or("", String::as_str));
    match device.exists() {
        true => Ok(Place::Directory(device)),
        false => Err(Error::invalid(format!(
            "error while mounting volume '{}': failed to mount local volume: mount {}: no such file or directory",
            own.display(),
            device.display()
        ))),
    }
}

/// Refuses options that mean nothing here; the reason, in docker's words where it has some.
pub(super) fn check(options: &BTreeMap<String, String>) -> Result<(), String> {
    if options.is_empty() {
        return Ok(());
    }
    if let Some(key) = options.keys().find(|key| !["type", "device", "o"].contains(&key.as_str())) {
        return Err(format!("invalid option: \"{key}\""));
    }
    let kind = options.get("type").map_or("", String::as_str);
    let device = options.get("device").map_or("", String::as_str);
    let is_bind = split(options).iter().any(|option| ["bind", "rbind"].contains(option));
    match kind {
        "tmpfs" => Ok(()),
        "" | "none" | "bind" if is_bind && device.starts_with('/') => Ok(()),
        "" | "none" | "bind" if device.is_empty() => Err("missing required option: \"device\"".to_owned()),
        "" | "none" | "bind" if is_bind => Err(format!("the device {device} is no absolute path")),
        "" => Err("missing required option: \"type\"".to_owned()),
        other => Err(format!("a volume of the type {other} is not supported (tmpfs is, and none with o=bind)")),
    }
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
fn split(options: &BTreeMap<String, String>) -> Vec<&str> {
    options.get("o").map_or("", String::as_str).split(',').filter(|option| !option.is_empty()).collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    fn given(pairs: &[(&str, &str)]) -> BTreeMap<String, String> {
        pairs.iter().map(|(key, value)| ((*key).to_owned(), (*value).to_owned())).collect()
    }

    #[test]
    fn options_are_checked() {
        for good in
            [&[][..], &[("type", "tmpfs"), ("o", "size=1m")], &[("o", "bind"), ("device", "/d"), ("type", "none")]]
        {
            assert_eq!(check(&given(good)), Ok(()), "{good:?}");
        }
        for (bad, word) in [
            (&[("speed", "1")][..], "invalid option: \"speed\""),
            (&[("o", "bind")], "missing required option: \"device\""),
            (&[("o", "bind"), ("device", "rel")], "no absolute path"),
            (&[("device", "/d")], "missing required option: \"type\""),
            (&[("type", "nfs"), ("device", ":/x")], "type nfs is not supported"),
        ] {
            assert!(check(&given(bad)).is_err_and(|why| why.contains(word)), "{bad:?}");
        }
    }
}
