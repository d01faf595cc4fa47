//! Git addresses as ADD takes them: `https://host/repo.git#ref:dir`, `ssh://…`, `git://…`, `git@host:repo`, and the
//! query form `?branch=…&subdir=…`.

use rbuild_graph::ops::GitSource;

use crate::Diagnostic;

/// The repository that an address names, where a build context or an ADD may be one; `None` is no git address.
///
/// # Errors
/// A git address with a query that says nothing known.
#[allow(clippy::result_large_err, reason = "made once per build")]
pub fn git_source(address: &str) -> Option<Result<GitSource, Diagnostic>> {
    let parse = |address: &str| GitUrl::parse(address).map(GitUrl::into_source);
    GitUrl::recognise(address).then(|| parse(address))
}

/// A repository and what of it is wanted.
#[derive(Debug, Default, PartialEq, Eq)]
pub(crate) struct GitUrl {
    pub(crate) remote: String,
    pub(crate) reference: Option<String>,
    pub(crate) subdir: Option<String>,
    pub(crate) checksum: Option<String>,
    pub(crate) keep_git_dir: Option<bool>,
    pub(crate) submodules: Option<bool>,
}

const KEYS: [&str; 8] = ["ref", "tag", "branch", "subdir", "checksum", "commit", "keep-git-dir", "submodules"];

impl GitUrl {
    /// Whether a source is a repository, not a file and not a download.
    pub(crate) fn recognise(source: &str) -> bool {
        if let Some((scheme, rest)) = source.split_once("://") {
            let path = rest.split(['#', '?']).next().unwrap_or_default();
            return match scheme {
                "git" | "ssh" => true,
                "http" | "https" => path.contains('/') && path.ends_with(".git"),
                _ => false,
            };
        }
        is_scp(source)
    }

    /// Reads an address that [`GitUrl::recognise`]s.
    pub(crate) fn parse(source: &str) -> Result<GitUrl, Diagnostic> {
        let (address, fragment) = source.split_once('#').unwrap_or((source, ""));
        let (remote, query) = match address.split_once('?') {
            Some((remote, query)) if !is_scp(source) => (remote, query),
            _ => (address, ""),
        };
        let text = |text: &str| Some(text.to_owned()).filter(|text| !text.is_empty());
        let (reference, subdir) = fragment.split_once(':').unwrap_or((fragment, ""));
        let mut url = GitUrl {
            remote: remote.to_owned(),
            reference: text(reference),
            subdir: text(subdir.trim_start_matches('/')),
            ..GitUrl::default()
        };
        for pair in query.split('&').filter(|pair| !pair.is_empty()) {
            let (key, value) = pair.split_once('=').unwrap_or((pair, ""));
            url.set(key, value)?;
        }
        Ok(url)
    }

    fn into_source(self) -> GitSource {
        GitSource {
            remote: self.remote,
            reference: self.reference,
            subdir: self.subdir,
            checksum: self.checksum,
            keep_git_dir: self.keep_git_dir.unwrap_or(false),
            submodules: self.submodules.unwrap_or(true),
        }
    }

    fn set(&mut self, key: &str, value: &str) -> Result<(), Diagnostic> {
        let boolean = || match value {
            "" | "true" | "1" => Ok(Some(true)),
            "false" | "0" => Ok(Some(false)),
            _ => Err(Diagnostic::error(format!("invalid {key} value: {value:?}")).expected("true or false")),
        };
        let conflict = |old: &Option<String>, new: &str| match old {
            Some(old) if old != new => Err(Diagnostic::error(format!("{key} conflicts with {old:?}"))),
            _ => Ok(Some(new.to_owned())),
        };
        match key {
            "ref" => self.reference = conflict(&self.reference, value)?,
            "tag" => self.reference = conflict(&self.reference, &format!("refs/tags/{value}"))?,
            "branch" => self.reference = conflict(&self.reference, &format!("refs/heads/{value}"))?,
            "subdir" => self.subdir = conflict(&self.subdir, value)?,
            "checksum" | "commit" => self.checksum = conflict(&self.checksum, value)?,
            "keep-git-dir" => self.keep_git_dir = boolean()?,
            "submodules" => self.submodules = boolean()?,
            _ => return Err(Diagnostic::error(format!("unexpected query {key:?} of a git URL")).suggest(key, KEYS)),
        }
        Ok(())
    }
}

/// `user@host:path`.
fn is_scp(source: &str) -> bool {
    let Some((user, rest)) = source.split_once('@') else { return false };
    let name = |text: &str| !text.is_empty() && text.chars().all(|c| c.is_alphanumeric() || "-_.".contains(c));
    rest.split_once(':').is_some_and(|(host, path)| name(user) && name(host) && !path.is_empty())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn repositories_are_told_from_files_and_downloads() {
        for good in
            ["https://h/r.git", "http://h:1/r.git#main:sub", "ssh://git@h/r", "git@github.com:a/b.git#v1", "git://h/r"]
        {
            assert!(GitUrl::recognise(good), "{good}");
        }
        for bad in ["https://h/file.tgz", "github.com/a/b", "a@b", "file:x", "./a.git", "https://h.git", "dir/x@y:z"] {
            assert!(!GitUrl::recognise(bad), "{bad}");
        }
    }

    #[test]
    fn addresses_are_taken_apart() {
        let url = GitUrl::parse("http://h/r.git#main:/sub/x").unwrap();
        assert_eq!(
            (url.remote.as_str(), url.reference.as_deref(), url.subdir.as_deref()),
            ("http://h/r.git", Some("main"), Some("sub/x"))
        );
        let url = GitUrl::parse("https://h/r.git?branch=b&subdir=s&keep-git-dir=1&commit=abc").unwrap();
        assert_eq!(
            (url.reference.as_deref(), url.checksum.as_deref(), url.keep_git_dir),
            (Some("refs/heads/b"), Some("abc"), Some(true))
        );
        assert!(GitUrl::parse("https://h/r.git?mtime=commit").unwrap_err().message.contains("mtime"));
        assert!(GitUrl::parse("https://h/r.git?ref=a#b").is_err());
    }
}
