//! Why a source is not there: the first part of the path that fails tells.

use std::ffi::CString;
use std::os::fd::BorrowedFd;

use super::meta::Kind;
use super::select::{Query, clean, is_hidden, list, resolve, stat};
use super::walk::{join, open_dir_beneath, read_link, split_parent};
use crate::ExecutorError;
use crate::error::show;

/// The error for a source that is not there, with what may have been meant.
pub(super) fn missing(root: BorrowedFd<'_>, source: &[u8], query: &Query<'_>) -> ExecutorError {
    let names = clean(source).0;
    let path = names.join(&b'/');
    let hint = match resolve(root, &path, true) {
        Ok(Some(_)) if query.hidden.is_some() => {
            Some(format!("{} exists, but .dockerignore leaves it out of the build context", show(&path)))
        }
        _ => first_failure(root, &names, query),
    };
    ExecutorError::SourceNotFound { path: format!("/{}", show(&path)), hints: hint.into_iter().collect() }
}

fn first_failure(root: BorrowedFd<'_>, names: &[Vec<u8>], query: &Query<'_>) -> Option<String> {
    let mut at = Vec::new();
    for (position, name) in names.iter().enumerate() {
        let child = join(&at, name);
        let rest = &names[position + 1..];
        match stat(root, &child) {
            Ok(meta) if meta.kind == Kind::Symlink => match resolve(root, &child, true) {
                Ok(Some(resolved)) => at = resolved,
                _ => return Some(dangling(root, &child)),
            },
            Ok(meta) if !meta.is_dir() && !rest.is_empty() => {
                return Some(format!("{} is a file, not a directory", show(&child)));
            }
            Ok(_) => at = child,
            Err(_) => return nearest(root, &at, name, rest, query),
        }
    }
    None
}

fn dangling(root: BorrowedFd<'_>, link: &[u8]) -> String {
    let (parent, name) = split_parent(link);
    let target = CString::new(name).ok().and_then(|name| read_link(open_dir_beneath(root, parent).ok()?, &name).ok());
    match target {
        Some(target) => {
            format!("{} is a symbolic link to {}, which is not there", show(link), show(target.as_bytes()))
        }
        None => format!("{} is a symbolic link to something that is not there", show(link)),
    }
}

/// A name like the one that `dir` does not have, with what was to follow it as far as that is there.
fn nearest(root: BorrowedFd<'_>, dir: &[u8], name: &[u8], rest: &[Vec<u8>], query: &Query<'_>) -> Option<String> {
    let names = list(root, dir).unwrap_or_default();
    if names.is_empty() && dir.is_empty() {
        return Some("there are no files at all to copy from".to_owned());
    }
    let near = names
        .into_iter()
        .filter(|candidate| !is_hidden(root, &join(dir, candidate), query))
        .map(|candidate| (distance(&candidate, name), candidate))
        .filter(|(distance, _)| *distance <= name.len().div_ceil(3).max(1))
        .min();
    let near = join(dir, &near?.1);
    let whole = rest.iter().fold(near.clone(), |path, name| join(&path, name));
    match resolve(root, &whole, true) {
        Ok(Some(_)) => Some(format!("did you mean {}?", show(&whole))),
        _ => Some(format!("there is no {}; did you mean {}?", show(&join(dir, name)), show(&near))),
    }
}

/// Edit distance, letter case free of charge.
pub(crate) fn distance(a: &[u8], b: &[u8]) -> usize {
    let (a, b) = (a.to_ascii_lowercase(), b.to_ascii_lowercase());
    let mut row: Vec<usize> = (0..=b.len()).collect();
    for (i, x) in a.iter().enumerate() {
        let mut diagonal = std::mem::replace(&mut row[0], i + 1);
        for (j, y) in b.iter().enumerate() {
            let next = (diagonal + usize::from(x != y)).min(row[j] + 1).min(row[j + 1] + 1);
            diagonal = std::mem::replace(&mut row[j + 1], next);
        }
    }
    row[b.len()]
}
