//! `--filter` of the commands that prune: things of a label, without one, made before a time.

use std::collections::BTreeMap;
use std::time::SystemTime;

use crate::error::CliError;
use crate::{terminal, units};

/// What a thing must be to go.
#[derive(Debug, Clone, Default)]
pub struct PruneFilter {
    /// Made before this time.
    pub until: Option<SystemTime>,
    /// Labels that must be there, or must not.
    labels: Vec<(String, bool)>,
}

impl PruneFilter {
    /// # Errors
    /// Another filter, or a time that is none, in docker's words.
    pub fn parse(filters: &[String]) -> Result<PruneFilter, CliError> {
        let mut all = PruneFilter::default();
        for filter in filters {
            let (key, value) = filter
                .split_once('=')
                .ok_or_else(|| CliError::new("invalid argument: bad format of filter (expected name=value)"))?;
            match key {
                "label" => all.labels.push((value.to_owned(), true)),
                "label!" => all.labels.push((value.to_owned(), false)),
                "until" => {
                    let invalid = || CliError::new(format!("invalid filter 'until={}'", terminal::clean_line(value)));
                    let time = units::point_in_time(value).map_err(|_| invalid())?;
                    all.until = Some(all.until.map_or(time, |other| other.min(time)));
                }
                _ => return Err(CliError::new(format!("invalid filter '{}'", terminal::clean_line(key)))),
            }
        }
        Ok(all)
    }

    pub fn names_labels(&self) -> bool {
        !self.labels.is_empty()
    }

    /// Whether a thing of these labels goes, as far as they count.
    pub fn takes_labels(&self, labels: &BTreeMap<String, String>) -> bool {
        self.labels.iter().all(|(label, wanted)| {
            let there = match label.split_once('=') {
                Some((key, value)) => labels.get(key).is_some_and(|found| found == value),
                None => labels.contains_key(label),
            };
            there == *wanted
        })
    }

    /// Whether a thing of these labels that was made at this time goes.
    pub fn takes(&self, labels: &BTreeMap<String, String>, made: SystemTime) -> bool {
        self.takes_labels(labels) && self.until.is_none_or(|until| made < until)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn labels_and_times_are_told_apart() {
        let parse = |filters: &[&str]| PruneFilter::parse(&filters.iter().map(|f| (*f).to_owned()).collect::<Vec<_>>());
        let labels: BTreeMap<String, String> = [("a".to_owned(), "1".to_owned())].into();
        let now = SystemTime::now();
        for (filters, goes) in [
            (&[][..], true),
            (&["label=a"], true),
            (&["label=a=1"], true),
            (&["label=a=2"], false),
            (&["label!=a"], false),
            (&["label!=b"], true),
            (&["label=a", "label=b"], false),
            (&["until=24h"], false),
            (&["until=2000-01-01T00:00:00"], false),
        ] {
            assert_eq!(parse(filters).unwrap().takes(&labels, now), goes, "{filters:?}");
        }
        let old = SystemTime::UNIX_EPOCH;
        assert!(parse(&["until=24h", "label=a"]).unwrap().takes(&labels, old));
        for (filter, words) in
            [("x", "bad format"), ("colour=red", "invalid filter 'colour'"), ("until=x", "'until=x'")]
        {
            assert!(parse(&[filter]).unwrap_err().to_string().contains(words), "{filter}");
        }
    }
}
