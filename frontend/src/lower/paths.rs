//! Paths of the image and of sources.

use rbuild_graph::pattern::clean_path;

/// A path of the image, absolute and clean; a relative one starts at `cwd`.
pub(crate) fn absolute(cwd: &str, path: &str) -> String {
    if path.starts_with('/') { clean_path(path) } else { clean_path(&format!("/{cwd}/{path}")) }
}

/// As [`absolute`], with a trailing slash where it is meant as a directory.
pub(crate) fn destination(cwd: &str, path: &str) -> String {
    let clean = absolute(cwd, path);
    let directory = path.is_empty() || path == "." || path.ends_with('/') || path.ends_with("/.");
    if directory && clean != "/" { format!("{clean}/") } else { clean }
}

/// A path of a source, relative to its root, which it cannot leave; the root is `.`.
pub(crate) fn source(path: &str) -> String {
    let clean = clean_path(&format!("/{path}"));
    match clean.trim_start_matches('/') {
        "" => ".".into(),
        relative => relative.to_owned(),
    }
}

/// As [`source`], with the `/./` from which directories are kept.
pub(crate) fn source_with_pivot(path: &str) -> String {
    match path.split_once("/./") {
        Some((parent, kept)) => format!("{}/./{}", source(parent), source(kept)),
        None => source(path),
    }
}

/// The name of the file that a URL gives.
pub(crate) fn file_of_url(url: &str) -> String {
    let rest = url.split_once("://").map_or(url, |(_, rest)| rest);
    let path = rest.split(['?', '#']).next().unwrap_or_default();
    let path = path.split_once('/').map_or("", |(_, path)| path);
    match clean_path(&format!("/{}", percent_decoded(path))).rsplit('/').next() {
        Some(name) if !name.is_empty() => name.to_owned(),
        _ => "__unnamed__".to_owned(),
    }
}

fn percent_decoded(text: &str) -> String {
    let mut bytes = Vec::with_capacity(text.len());
    let mut rest = text.as_bytes();
    while let [first, tail @ ..] = rest {
        let hex = tail.get(..2).filter(|_| *first == b'%').and_then(|hex| std::str::from_utf8(hex).ok());
        match hex.and_then(|hex| u8::from_str_radix(hex, 16).ok()) {
            Some(byte) => {
                bytes.push(byte);
                rest = &tail[2..];
            }
            None => {
                bytes.push(*first);
                rest = tail;
            }
        }
    }
    String::from_utf8_lossy(&bytes).replace('\0', "")
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn paths_are_cleaned_and_confined() {
        assert_eq!(absolute("/a/b", "../c"), "/a/c");
        assert_eq!(absolute("/", "../../.."), "/");
        for (path, want) in [(".", "/w/"), ("", "/w/"), ("x/", "/w/x/"), ("x/.", "/w/x/"), ("/x", "/x"), ("/", "/")] {
            assert_eq!(destination("/w", path), want, "{path}");
        }
        for (path, want) in [("", "."), (".", "."), ("/", "."), ("../../x", "x"), ("a/./b/", "a/b"), ("/a", "a")] {
            assert_eq!(source(path), want, "{path}");
        }
        assert_eq!(source_with_pivot("a/b/./c/../d"), "a/b/./d");
        assert_eq!(source_with_pivot("./a/b"), "a/b");
        assert_eq!(file_of_url("https://h/a/b%20c.tgz?x=/y#z"), "b c.tgz");
        assert_eq!(file_of_url("https://h"), "__unnamed__");
        assert_eq!(file_of_url("https://h/a/%2f..%2f"), "__unnamed__");
    }
}
