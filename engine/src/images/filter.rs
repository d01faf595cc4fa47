//! Which images a listing shows.

use std::collections::BTreeMap;
use std::time::SystemTime;

use rbuild_oci::Reference;

use super::{Image, Images};
use crate::error::Error;

/// What to show, as the command line says it.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct ImageFilter {
    /// Names or patterns of names, one of which must fit.
    pub references: Vec<String>,
    /// Only those without a tag, or only those with one.
    pub dangling: Option<bool>,
    /// Labels that must be there, with this value where one is given.
    pub labels: Vec<(String, Option<String>)>,
    /// Labels that must not be there.
    pub not_labels: Vec<(String, Option<String>)>,
    /// Images that must have come later.
    pub before: Vec<String>,
    /// Images that must have come earlier.
    pub since: Vec<String>,
    /// Made before this time.
    pub until: Option<SystemTime>,
}

impl ImageFilter {
    /// Reads `key=value` filters. `until` is a time the caller has parsed, since it may be relative to now.
    ///
    /// # Errors
    /// An unknown key or a value it cannot have, in docker's words.
    pub fn parse(filters: &[String]) -> Result<ImageFilter, Error> {
        let mut all = ImageFilter::default();
        for filter in filters {
            let Some((key, value)) = filter.split_once('=') else {
                return Err(Error::invalid("invalid argument: bad format of filter (expected name=value)"));
            };
            let value = value.trim().to_owned();
            match key.trim().to_ascii_lowercase().as_str() {
                "dangling" => all.dangling = Some(truth(&value)?),
                "label" => all.labels.push(label(&value)),
                "label!" => all.not_labels.push(label(&value)),
                "before" => all.before.push(value),
                "since" => all.since.push(value),
                "reference" => all.references.push(value),
                key => return Err(Error::invalid(format!("invalid filter '{key}'"))),
            }
        }
        Ok(all)
    }

    /// The same with the images it names looked up.
    pub(super) fn limits<'a>(&'a self, images: &Images) -> Result<Limits<'a>, Error> {
        let time = |name: &String| images.get(name).map(|image| image.made_here);
        let before = self.before.iter().map(time).collect::<Result<Vec<_>, _>>()?.into_iter().min();
        let since = self.since.iter().map(time).collect::<Result<Vec<_>, _>>()?.into_iter().max();
        Ok(Limits { filter: self, before, since })
    }
}

/// A filter ready for use.
pub(super) struct Limits<'a> {
    filter: &'a ImageFilter,
    before: Option<SystemTime>,
    since: Option<SystemTime>,
}

impl Limits<'_> {
    /// Whether the image is shown; takes away the names that are not.
    pub(super) fn take(&self, image: &mut Image) -> bool {
        let dangles = image.tags.is_empty();
        let fits = self.filter.dangling.is_none_or(|wanted| wanted == dangles)
            && self.before.is_none_or(|t| image.made_here < t)
            && self.since.is_none_or(|t| image.made_here > t)
            && self.filter.until.is_none_or(|t| image.created.unwrap_or(SystemTime::UNIX_EPOCH) < t)
            && has_all(&image.config.config.labels, &self.filter.labels)
            && has_none(&image.config.config.labels, &self.filter.not_labels);
        if !fits || self.filter.references.is_empty() {
            return fits;
        }
        let wanted = |name: &Reference| self.filter.references.iter().any(|pattern| names(pattern, name));
        image.tags.retain(wanted);
        // A repository's digest is shown with any of its tags.
        let shown: Vec<Reference> = image.tags.iter().map(Reference::without_tag).collect();
        image.digests.retain(|name| wanted(name) || shown.contains(&name.without_tag()));
        !image.tags.is_empty() || !image.digests.is_empty()
    }
}

pub(super) fn has_all(labels: &BTreeMap<String, String>, wanted: &[(String, Option<String>)]) -> bool {
    wanted.iter().all(|(key, value)| labels.get(key).is_some_and(|have| value.as_ref().is_none_or(|v| v == have)))
}

pub(super) fn has_none(labels: &BTreeMap<String, String>, unwanted: &[(String, Option<String>)]) -> bool {
    unwanted.iter().all(|one| !has_all(labels, std::slice::from_ref(one)))
}

fn label(text: &str) -> (String, Option<String>) {
    match text.split_once('=') {
        Some((key, value)) => (key.to_owned(), Some(value.to_owned())),
        None => (text.to_owned(), None),
    }
}

fn truth(text: &str) -> Result<bool, Error> {
    match text {
        "1" | "true" | "t" | "True" | "TRUE" | "T" => Ok(true),
        "0" | "false" | "f" | "False" | "FALSE" | "F" => Ok(false),
        _ => Err(Error::invalid(format!("invalid filter 'dangling={text}'"))),
    }
}

/// Whether `pattern` means `name`: `repo`, `repo:tag`, both with `*`, `?` and `[…]` that do not cross a slash.
fn names(pattern: &str, name: &Reference) -> bool {
    let (repository, whole) = (name.familiar_name(), name.familiar());
    if fits(pattern.as_bytes(), repository.as_bytes()) || fits(pattern.as_bytes(), whole.as_bytes()) {
        return true;
    }
    // Another spelling of the same name.
    match Reference::parse_untagged(pattern) {
        Ok(asked) if asked.tag().is_some() || asked.digest().is_some() => asked.canonical() == name.canonical(),
        Ok(asked) => asked == name.without_tag(),
        Err(_) => false,
    }
}

/// Go's `path.Match`, in time linear in the product of the lengths.
fn fits(pattern: &[u8], text: &[u8]) -> bool {
    let (mut p, mut t) = (0, 0);
    let mut star: Option<(usize, usize)> = None;
    while t < text.len() {
        let step = match pattern.get(p) {
            Some(b'*') => {
                star = Some((p + 1, t));
                p += 1;
                continue;
            }
            Some(b'?') if text[t] != b'/' => Some(p + 1),
            Some(b'[') => class(&pattern[p..], text[t]).filter(|(hit, _)| *hit).map(|(_, len)| p + len),
            Some(b'\\') if pattern.get(p + 1) == Some(&text[t]) => Some(p + 2),
            Some(c) if *c == text[t] => Some(p + 1),
            _ => None,
        };
        match (step, star) {
            (Some(next), _) => {
                p = next;
                t += 1;
            }
            (None, Some((after, from))) if text[from] != b'/' => {
                star = Some((after, from + 1));
                (p, t) = (after, from + 1);
            }
            (None, _) => return false,
        }
    }
    pattern[p..].iter().all(|c| *c == b'*')
}

/// Whether `c` is in the class at the start of `pattern`, and how long the class is; `None` when it never ends.
fn class(pattern: &[u8], c: u8) -> Option<(bool, usize)> {
    let negated = matches!(pattern.get(1), Some(b'^' | b'!'));
    let mut at = if negated { 2 } else { 1 };
    let mut hit = false;
    let first = at;
    loop {
        match *pattern.get(at)? {
            b']' if at > first => return Some((hit != negated && c != b'/', at + 1)),
            low => {
                let high = match pattern.get(at + 1) {
                    Some(b'-') if pattern.get(at + 2).is_some_and(|h| *h != b']') => {
                        at += 2;
                        pattern[at]
                    }
                    _ => low,
                };
                hit |= low <= c && c <= high;
                at += 1;
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn patterns_mean_names_as_docker_says() {
        let name = |text: &str| Reference::parse(text).unwrap();
        for (pattern, text, means) in [
            ("busybox", "busybox:1", true),
            ("busybox:1", "busybox:1", true),
            ("busybox:2", "busybox:1", false),
            ("docker.io/library/busybox", "busybox", true),
            ("library/busybox", "busybox", true),
            ("busy*", "busybox", true),
            ("*", "team/app", false),
            ("*/*", "team/app", true),
            ("*:1", "busybox:1", true),
            ("b[a-z]sybox", "busybox", true),
            ("b[^u]sybox", "busybox", false),
            ("localhost:5000/app", "localhost:5000/app:3", true),
            ("app", "localhost:5000/app:3", false),
            ("b[", "busybox", false),
        ] {
            assert_eq!(names(pattern, &name(text)), means, "{pattern} for {text}");
        }
        assert!(!fits(&b"*a".repeat(2000), &[b'b'; 5000]), "and ends soon");
    }

    #[test]
    fn filters_are_read_or_refused() {
        let parse = |texts: &[&str]| ImageFilter::parse(&texts.iter().map(|t| (*t).to_owned()).collect::<Vec<_>>());
        let all = parse(&["dangling=true", "label=a=b", "label=c", "since=x"]).unwrap();
        assert_eq!(all.dangling, Some(true));
        assert_eq!(all.labels, [("a".to_owned(), Some("b".to_owned())), ("c".to_owned(), None)]);
        assert_eq!(parse(&["colour=red"]).unwrap_err().message, "invalid filter 'colour'");
        assert!(parse(&["dangling"]).is_err());
        assert!(parse(&["dangling=maybe"]).is_err());
    }
}
