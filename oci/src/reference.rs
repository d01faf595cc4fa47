//! Names of images as people write them and as registries want them.

use std::fmt;
use std::str::FromStr;

use serde::{Deserialize, Deserializer, Serialize, Serializer};

use crate::{Digest, OciError};

const DEFAULT_REGISTRY: &str = "docker.io";
const OFFICIAL: &str = "library/";
const DEFAULT_TAG: &str = "latest";

/// A normalised image name: registry, repository, and a tag, a digest or both (distribution specification; docker's
/// rules for what may be left out).
///
/// `busybox` is `docker.io/library/busybox:latest`. The first component is a registry when it has a dot, a colon or an
/// upper-case letter, or is `localhost`.
#[derive(Clone, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub struct Reference {
    registry: String,
    repository: String,
    tag: Option<String>,
    digest: Option<Digest>,
}

impl Reference {
    /// Reads a name; without tag and digest it gets the tag `latest`.
    ///
    /// # Errors
    /// [`OciError::Reference`] in docker's words.
    pub fn parse(text: &str) -> Result<Reference, OciError> {
        let mut reference = Reference::parse_untagged(text)?;
        if reference.tag.is_none() && reference.digest.is_none() {
            reference.tag = Some(DEFAULT_TAG.into());
        }
        Ok(reference)
    }

    /// Reads a name and adds no tag.
    ///
    /// # Errors
    /// As [`Reference::parse`].
    pub fn parse_untagged(text: &str) -> Result<Reference, OciError> {
        let bad = |why: &str| OciError::Reference(why.to_owned());
        if text.is_empty() {
            return Err(bad("repository name must have at least one component"));
        }
        if text.len() == 64 && text.bytes().all(|b| b.is_ascii_digit() || (b'a'..=b'f').contains(&b)) {
            return Err(OciError::Reference(format!(
                "invalid repository name ({text}), cannot specify 64-byte hexadecimal strings"
            )));
        }
        let (rest, digest) = match text.split_once('@') {
            Some((name, digest)) => {
                (name, Some(digest.parse::<Digest>().map_err(|e| OciError::Reference(e.to_string()))?))
            }
            None => (text, None),
        };
        let (name, tag) = match rest.rsplit_once(':') {
            Some((name, tag)) if !tag.contains('/') => (name, Some(tag)),
            _ => (rest, None),
        };
        if let Some(tag) = tag
            && !is_tag(tag)
        {
            return Err(bad("invalid tag format"));
        }
        let (registry, path) = split_registry(name);
        if path.bytes().any(|b| b.is_ascii_uppercase()) {
            return Err(OciError::Reference(format!("repository name ({path}) must be lowercase")));
        }
        if !is_registry(&registry) {
            return Err(bad("invalid registry host"));
        }
        let repository = if registry == DEFAULT_REGISTRY && !path.contains('/') {
            format!("{OFFICIAL}{path}")
        } else {
            path.to_owned()
        };
        if repository.split('/').any(|c| !is_component(c)) {
            return Err(bad("expected lower-case letters, digits and single separators in each component"));
        }
        if registry.len() + 1 + repository.len() > 255 {
            return Err(bad("repository name must not be more than 255 characters"));
        }
        Ok(Reference { registry, repository, tag: tag.map(str::to_owned), digest })
    }

    /// The host, with its port if it has one: `docker.io`, `localhost:5000`.
    pub fn registry(&self) -> &str {
        &self.registry
    }

    /// The path in the registry: `library/busybox`.
    pub fn repository(&self) -> &str {
        &self.repository
    }

    pub fn tag(&self) -> Option<&str> {
        self.tag.as_deref()
    }

    pub fn digest(&self) -> Option<&Digest> {
        self.digest.as_ref()
    }

    /// The same repository with this tag and no digest.
    ///
    /// # Errors
    /// A tag that is none.
    pub fn with_tag(&self, tag: &str) -> Result<Reference, OciError> {
        if !is_tag(tag) {
            return Err(OciError::Reference("invalid tag format".into()));
        }
        Ok(Reference { tag: Some(tag.to_owned()), digest: None, ..self.clone() })
    }

    /// The same repository with this digest and no tag.
    pub fn with_digest(&self, digest: Digest) -> Reference {
        Reference { tag: None, digest: Some(digest), ..self.clone() }
    }

    /// Without tag and digest.
    pub fn without_tag(&self) -> Reference {
        Reference { tag: None, digest: None, ..self.clone() }
    }

    /// The full form: `docker.io/library/busybox:latest`.
    pub fn canonical(&self) -> String {
        format!("{}/{}{}", self.registry, self.repository, self.suffix())
    }

    /// The short form that people write and `images` shows: `busybox:latest`.
    pub fn familiar(&self) -> String {
        format!("{}{}", self.familiar_name(), self.suffix())
    }

    /// The short form without tag and digest: `busybox`, `localhost:5000/app`.
    pub fn familiar_name(&self) -> String {
        if self.registry != DEFAULT_REGISTRY {
            return format!("{}/{}", self.registry, self.repository);
        }
        match self.repository.strip_prefix(OFFICIAL) {
            Some(name) if !name.contains('/') => name.to_owned(),
            _ => self.repository.clone(),
        }
    }

    fn suffix(&self) -> String {
        let tag = self.tag.as_ref().map(|t| format!(":{t}")).unwrap_or_default();
        let digest = self.digest.as_ref().map(|d| format!("@{d}")).unwrap_or_default();
        tag + &digest
    }
}

fn split_registry(name: &str) -> (String, &str) {
    match name.split_once('/') {
        Some((host, path))
            if host == "localhost" || host.contains(['.', ':']) || host.bytes().any(|b| b.is_ascii_uppercase()) =>
        {
            let host = if host == "index.docker.io" { DEFAULT_REGISTRY } else { host };
            (host.to_owned(), path)
        }
        _ => (DEFAULT_REGISTRY.to_owned(), name),
    }
}

fn is_registry(host: &str) -> bool {
    let (name, port) = if let Some(rest) = host.strip_prefix('[') {
        let Some((address, port)) = rest.split_once(']') else { return false };
        if address.parse::<std::net::Ipv6Addr>().is_err() {
            return false;
        }
        (None, port.strip_prefix(':'))
    } else {
        match host.split_once(':') {
            Some((name, port)) => (Some(name), Some(port)),
            None => (Some(host), None),
        }
    };
    let label = |l: &str| {
        !l.is_empty()
            && l.len() <= 63
            && l.bytes().all(|b| b.is_ascii_alphanumeric() || b == b'-')
            && !l.starts_with('-')
            && !l.ends_with('-')
    };
    name.is_none_or(|n| n.split('.').all(label))
        && port.is_none_or(|p| p.parse::<u16>().is_ok() && p.bytes().all(|b| b.is_ascii_digit()))
}

/// `[a-z0-9]+((\.|_|__|-+)[a-z0-9]+)*` (distribution specification, "name").
fn is_component(text: &str) -> bool {
    let bytes = text.as_bytes();
    let word = |b: u8| b.is_ascii_lowercase() || b.is_ascii_digit();
    let mut at = 0;
    loop {
        let start = at;
        while at < bytes.len() && word(bytes[at]) {
            at += 1;
        }
        if at == start {
            return false;
        }
        if at == bytes.len() {
            return true;
        }
        let separator = at;
        while at < bytes.len() && !word(bytes[at]) {
            at += 1;
        }
        let run = &bytes[separator..at];
        if !(run == b"." || run == b"_" || run == b"__" || run.iter().all(|b| *b == b'-')) {
            return false;
        }
    }
}

/// `[a-zA-Z0-9_][a-zA-Z0-9._-]{0,127}` (distribution specification, "reference" as a tag).
fn is_tag(text: &str) -> bool {
    let ok = |b: u8| b.is_ascii_alphanumeric() || b == b'_' || b == b'.' || b == b'-';
    (1..=128).contains(&text.len()) && text.bytes().all(ok) && !text.starts_with(['.', '-'])
}

impl FromStr for Reference {
    type Err = OciError;
    fn from_str(text: &str) -> Result<Reference, OciError> {
        Reference::parse(text)
    }
}

impl fmt::Display for Reference {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.canonical())
    }
}

impl fmt::Debug for Reference {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.canonical())
    }
}

impl Serialize for Reference {
    fn serialize<S: Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        serializer.collect_str(self)
    }
}

impl<'de> Deserialize<'de> for Reference {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Reference, D::Error> {
        let text = std::borrow::Cow::<'de, str>::deserialize(deserializer)?;
        Reference::parse_untagged(&text).map_err(serde::de::Error::custom)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn names_are_normalised_as_docker_does() {
        let digest = Digest::sha256_of(b"x");
        for (text, canonical, familiar) in [
            ("busybox", "docker.io/library/busybox:latest", "busybox:latest"),
            ("busybox:1.36", "docker.io/library/busybox:1.36", "busybox:1.36"),
            ("me/app", "docker.io/me/app:latest", "me/app:latest"),
            ("localhost/app", "localhost/app:latest", "localhost/app:latest"),
            ("localhost:5000/a/b:v1", "localhost:5000/a/b:v1", "localhost:5000/a/b:v1"),
            ("index.docker.io/busybox", "docker.io/library/busybox:latest", "busybox:latest"),
            ("REG/x", "REG/x:latest", "REG/x:latest"),
            ("[::1]:5000/x", "[::1]:5000/x:latest", "[::1]:5000/x:latest"),
            (&format!("a@{digest}"), &format!("docker.io/library/a@{digest}"), &format!("a@{digest}")),
            (&format!("a:t@{digest}"), &format!("docker.io/library/a:t@{digest}"), &format!("a:t@{digest}")),
        ] {
            let reference = Reference::parse(text).unwrap();
            assert_eq!(
                (reference.canonical().as_str(), reference.familiar().as_str()),
                (canonical, familiar),
                "{text}"
            );
        }
    }

    #[test]
    fn odd_names_are_refused() {
        let hex = "a".repeat(64);
        for bad in [
            "",
            "Busybox",
            "a//b",
            "a:",
            "a:-x",
            "a b",
            "a@sha256:1",
            "-rf",
            "a/../b",
            "a..b",
            "a___b",
            "../x",
            "x:y:z",
            &hex,
            "host:99999/x",
            "a\n",
        ] {
            assert!(Reference::parse(bad).is_err(), "{bad:?} was accepted");
        }
    }
}
