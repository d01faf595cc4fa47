//! Which revision of a git repository a build's files are.
//!
//! Read from the files below `.git`: starting `git` takes longer than a build that finds everything, and runs what the
//! repository's configuration names. So this says what is checked out, and "modified" only where the index shows it
//! without reading a file: a tracked file that is gone, or has another size.

use std::fs;
use std::path::{Path, PathBuf};

use rbuild_executor::sources::git::redacted;
use serde::{Deserialize, Serialize};

/// Directories above the context in which `.git` is looked for.
const ABOVE: usize = 32;
/// An index with more entries is not compared with the files.
const COMPARED: u32 = 5_000;
/// Larger files of git's are not read.
const LARGEST: u64 = 4 << 20;

/// What is checked out.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Revision {
    pub commit: String,
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub branch: Option<String>,
    /// The address of `origin`, without credentials.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub remote: Option<String>,
    /// A tracked file is gone or has another size. (One changed to the same size is not noticed.)
    #[serde(default, skip_serializing_if = "std::ops::Not::not")]
    pub modified: bool,
}

impl Revision {
    /// The top of the work tree that a directory is in.
    pub fn work_tree(dir: &Path) -> Option<PathBuf> {
        let top = dir.ancestors().take(ABOVE).find(|dir| git_dir(&dir.join(".git")).is_some())?;
        Some(top.to_owned())
    }

    /// That of a directory, if it is in a repository.
    pub fn of(dir: &Path) -> Option<Revision> {
        let (top, git) = dir.ancestors().take(ABOVE).find_map(|dir| Some((dir, git_dir(&dir.join(".git"))?)))?;
        let common = read(&git.join("commondir")).map_or_else(|| git.clone(), |text| git.join(text.trim()));
        let head = read(&git.join("HEAD"))?;
        let (commit, branch) = match head.trim().strip_prefix("ref: ") {
            Some(name) => {
                (resolve(&git, &common, name)?, Some(name.strip_prefix("refs/heads/").unwrap_or(name).to_owned()))
            }
            None => (head.trim().to_owned(), None),
        };
        let is_commit = matches!(commit.len(), 40 | 64) && commit.bytes().all(|byte| byte.is_ascii_hexdigit());
        is_commit.then(|| Revision {
            commit,
            branch,
            remote: read(&common.join("config")).and_then(|config| origin(&config)),
            modified: is_modified(top, &git).unwrap_or(false),
        })
    }
}

/// The repository that `.git` is or names.
fn git_dir(dot_git: &Path) -> Option<PathBuf> {
    let found = fs::symlink_metadata(dot_git).ok()?;
    if found.is_dir() {
        return Some(dot_git.to_owned());
    }
    let text = read(dot_git)?;
    Some(dot_git.parent()?.join(text.trim().strip_prefix("gitdir: ")?))
}

fn resolve(git: &Path, common: &Path, name: &str) -> Option<String> {
    // A name leads nowhere else: git refuses others too.
    if name.split('/').any(|part| part.is_empty() || part.starts_with('.')) {
        return None;
    }
    let loose = read(&git.join(name)).or_else(|| read(&common.join(name)));
    if let Some(commit) = loose {
        return Some(commit.trim().to_owned());
    }
    let packed = read(&common.join("packed-refs"))?;
    packed.lines().find_map(|line| Some(line.split_once(' ').filter(|(_, found)| *found == name)?.0.to_owned()))
}

/// The `url` in the section `[remote "origin"]`.
fn origin(config: &str) -> Option<String> {
    let mut here = false;
    for line in config.lines().map(str::trim) {
        if line.starts_with('[') {
            here = line == "[remote \"origin\"]";
        } else if let (true, Some((name, value))) = (here, line.split_once('='))
            && name.trim() == "url"
        {
            return Some(redacted(value.trim()));
        }
    }
    None
}

/// Whether the index names a file that is gone or has another size. `None` when it was not looked at.
fn is_modified(top: &Path, git: &Path) -> Option<bool> {
    let path = git.join("index");
    if fs::metadata(&path).ok()?.len() > LARGEST {
        return None;
    }
    let index = fs::read(path).ok()?;
    let (version, count) = (number(&index, 4)?, number(&index, 8)?);
    // In version 4 names are cut short.
    if !index.starts_with(b"DIRC") || !matches!(version, 2 | 3) || count > COMPARED {
        return None;
    }
    let mut at = 12;
    for _ in 0..count {
        let (mode, size) = (number(&index, at + 24)?, number(&index, at + 36)?);
        let flags = u16::from_be_bytes(index.get(at + 60..at + 62)?.try_into().ok()?);
        let extended = flags & 0x4000 != 0;
        let skipped = extended && index.get(at + 62)? & 0x40 != 0;
        let start = at + if extended { 64 } else { 62 };
        let length = index.get(start..)?.iter().position(|byte| *byte == 0)?;
        let name = std::str::from_utf8(index.get(start..start + length)?).ok()?;
        at += (start + length - at + 8) & !7;
        // Regular files; links and submodules are compared by other means.
        if mode & 0o170_000 == 0o100_000 && !skipped {
            match fs::symlink_metadata(top.join(name)) {
                Ok(found) if found.is_file() && (size == 0 || found.len() as u32 == size) => {}
                _ => return Some(true),
            }
        }
    }
    Some(false)
}

fn number(bytes: &[u8], at: usize) -> Option<u32> {
    Some(u32::from_be_bytes(bytes.get(at..at + 4)?.try_into().ok()?))
}

fn read(path: &Path) -> Option<String> {
    let found = fs::metadata(path).ok()?;
    if !found.is_file() || found.len() > LARGEST {
        return None;
    }
    fs::read_to_string(path).ok()
}

#[cfg(test)]
mod tests {
    use std::process::Command;

    use super::*;

    #[test]
    fn what_is_checked_out_is_read_from_the_repository() {
        let dir = tempfile::tempdir().unwrap();
        let top = dir.path().join("project");
        fs::create_dir_all(top.join("sub/dir")).unwrap();
        assert_eq!(Revision::of(&top), None);
        let git = |arguments: &[&str]| {
            let mut command = Command::new("git");
            command.args(["-c", "user.name=n", "-c", "user.email=e@x", "-c", "init.defaultBranch=trunk"]);
            let done =
                command.args(arguments).current_dir(&top).env("GIT_CONFIG_GLOBAL", "/dev/null").output().unwrap();
            assert!(done.status.success(), "{done:?}");
            String::from_utf8(done.stdout).unwrap().trim().to_owned()
        };
        git(&["init", "-q"]);
        fs::write(top.join("sub/file"), "x\n").unwrap();
        git(&["add", "."]);
        git(&["commit", "-q", "-m", "m"]);
        git(&["remote", "add", "origin", "https://user:token@host/repo.git"]);
        let want = Revision {
            commit: git(&["rev-parse", "HEAD"]),
            branch: Some("trunk".into()),
            remote: Some("https://host/repo.git".into()),
            modified: false,
        };
        assert_eq!(Revision::of(&top.join("sub/dir")), Some(want.clone()));
        git(&["pack-refs", "--all"]);
        assert_eq!(Revision::of(&top), Some(want.clone()));
        fs::write(top.join("sub/file"), "longer\n").unwrap();
        assert!(Revision::of(&top).unwrap().modified);
        fs::write(top.join("sub/file"), "x\n").unwrap();
        git(&["worktree", "add", "-q", "--detach", "../other"]);
        let other = Revision::of(&dir.path().join("other")).unwrap();
        assert_eq!(other, Revision { branch: None, ..want });
    }
}
