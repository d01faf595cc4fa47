//! Which name of the store a repository of the registry means.

use rbuild_oci::Reference;

use crate::Error;

/// The rule: a repository is the image name that people would write, behind a prefix.
///
/// Without a prefix `busybox` is the store's `busybox` (docker.io/library/busybox), `quay.io/team/app` its
/// `quay.io/team/app`; with the prefix `registry.lan:5000/` a pushed `app` is the store's `registry.lan:5000/app`. What
/// the rule cannot reach is not served: names with a port when there is no prefix that has it, and with a prefix all
/// that is not behind it.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Names {
    /// Empty, or ends in a slash.
    prefix: String,
}

/// Longest repository name, in bytes; docker's limit for a name with its host.
const LONGEST: usize = 255;

impl Names {
    /// # Errors
    /// A prefix that begins no image name.
    pub fn behind(prefix: &str) -> Result<Names, Error> {
        let prefix = match prefix.trim_end_matches('/') {
            "" => String::new(),
            text => format!("{text}/"),
        };
        let names = Names { prefix };
        match Reference::parse_untagged(&format!("{}x", names.prefix)) {
            Ok(_) => Ok(names),
            Err(error) => Err(Error::Options(format!("invalid name prefix {:?}: {error}", names.prefix))),
        }
    }

    /// The name in the store, without tag, of a repository; `None` for text that is no repository name.
    pub(super) fn local(&self, repository: &str) -> Option<Reference> {
        let allowed = |b: u8| b.is_ascii_lowercase() || b.is_ascii_digit() || matches!(b, b'.' | b'_' | b'-' | b'/');
        if repository.len() > LONGEST || !repository.bytes().all(allowed) {
            return None;
        }
        Reference::parse_untagged(&format!("{}{repository}", self.prefix)).ok()
    }

    /// The repository that a name of the store belongs to, if the rule reaches it.
    pub(super) fn repository(&self, name: &Reference) -> Option<String> {
        let name = name.without_tag();
        [name.familiar(), name.canonical()].into_iter().find_map(|written| {
            let repository = written.strip_prefix(&self.prefix)?;
            (self.local(repository).as_ref() == Some(&name)).then(|| repository.to_owned())
        })
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn repositories_and_names_correspond() {
        for (prefix, repository, local) in [
            ("", "busybox", Some("docker.io/library/busybox")),
            ("", "team/app", Some("docker.io/team/app")),
            ("", "quay.io/team/app", Some("quay.io/team/app")),
            ("registry.lan:5000", "team/app", Some("registry.lan:5000/team/app")),
            ("docker.io/", "library/busybox", Some("docker.io/library/busybox")),
            ("team", "app", Some("docker.io/team/app")),
            ("", "Upper", None),
            ("", "a:b", None),
            ("", "a@b", None),
            ("", "a//b", None),
            ("", "../etc", None),
        ] {
            let names = Names::behind(prefix).unwrap();
            let found = names.local(repository);
            assert_eq!(found.as_ref().map(Reference::canonical).as_deref(), local, "{prefix:?} {repository:?}");
            if let Some(found) = found {
                assert_eq!(names.repository(&found).as_deref(), Some(repository), "{prefix:?} {repository:?}");
            }
        }
    }

    #[test]
    fn what_the_rule_cannot_reach_is_not_served() {
        let with_port = Reference::parse("localhost:5000/app").unwrap();
        assert_eq!(Names::default().repository(&with_port), None);
        assert_eq!(Names::behind("localhost:5000").unwrap().repository(&with_port).as_deref(), Some("app"));
        let other = Reference::parse("busybox").unwrap();
        assert_eq!(Names::behind("localhost:5000").unwrap().repository(&other), None);
        assert!(Names::behind("A B/").is_err());
    }
}
