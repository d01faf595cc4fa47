//! Statements about a result that is files: files themselves, at its top.

use std::ffi::OsStr;
use std::io::Read;
use std::os::unix::ffi::OsStrExt;

use rbuild_executor::files::meta::Kind;
use rbuild_executor::files::walk::{join, walk};
use rbuild_oci::{Digest, Platform, Sha256};
use rbuild_store::{Root, root::Walk};

use super::Predicate;
use crate::error::Error;

/// A file beside the result's own.
pub(crate) struct Written {
    pub(crate) name: String,
    pub(crate) content: Vec<u8>,
}

/// The statements about the tree at `root`, as files. With `platform` their names tell which result they are about.
///
/// # Errors
/// The tree cannot be read, or has such a file itself.
pub(crate) fn written(
    predicates: &[Predicate],
    root: &Root,
    platform: Option<&Platform>,
) -> Result<Vec<Written>, Error> {
    let predicates: Vec<&Predicate> = predicates.iter().filter(|predicate| !predicate.inline_only).collect();
    if predicates.is_empty() {
        return Ok(Vec::new());
    }
    let subjects = subjects(root)?;
    let mut all = Vec::new();
    for predicate in predicates {
        let name = match (platform, predicate.file.rsplit_once('.')) {
            (None, _) => predicate.file.clone(),
            (Some(platform), Some((stem, extension))) => {
                format!("{stem}.{}.{extension}", platform.to_string().replace('/', "_"))
            }
            (Some(platform), None) => format!("{}.{}", predicate.file, platform.to_string().replace('/', "_")),
        };
        if subjects.iter().any(|(path, _)| *path == name) {
            let message = format!("the result has a file /{name} itself, which the attestation would replace");
            return Err(Error::invalid(message).with_hint("name another one: --provenance filename=NAME"));
        }
        all.push(Written { name, content: predicate.statement(&subjects)? });
    }
    Ok(all)
}

/// Every regular file with its digest, in the order of the walk.
fn subjects(root: &Root) -> Result<Vec<(String, Digest)>, Error> {
    let top = root.top().try_clone().map_err(Error::internal)?.into_fd();
    let tree = walk(std::os::fd::AsFd::as_fd(&top), b"", &[]).map_err(|error| Error::internal(error.to_string()))?;
    let mut all = Vec::new();
    let mut buffer = vec![0; 128 << 10];
    for dir in &tree.dirs {
        for entry in dir.entries.iter().filter(|entry| entry.meta.kind == Kind::File) {
            let path = join(&dir.path, entry.name.to_bytes());
            let mut file = root.open_file(OsStr::from_bytes(&path).as_ref(), Walk::NoLinks).map_err(Error::internal)?;
            let mut hash = Sha256::new();
            loop {
                match file.read(&mut buffer).map_err(Error::internal)? {
                    0 => break,
                    len => hash.update(&buffer[..len]),
                }
            }
            all.push((String::from_utf8_lossy(&path).into_owned(), hash.finish()));
        }
    }
    all.sort();
    Ok(all)
}
