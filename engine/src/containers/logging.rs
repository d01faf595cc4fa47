//! How a container's output is kept: the drivers and their options, and what of the container stands in each entry.

use std::collections::BTreeMap;

use rbuild_runtime::logs::{LogBuffer, LogLimits, LogTerms};
use regex::Regex;
use serde::{Deserialize, Serialize};

use super::record::Container;
use crate::error::Error;

/// What becomes of a container's output.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub enum LogDriver {
    /// Docker's `json-file`, within limits.
    JsonFile(LogLimits),
    /// Docker's `local`: kept within limits, read by `logs` only. It is kept as `json-file` keeps it.
    Local(LogLimits),
    /// Only who is attached sees it.
    None,
}

/// What `local` keeps where nothing else is said.
pub const LOCAL: LogLimits = LogLimits { max_size: Some(20 * 1024 * 1024), max_file: 5, compress: true };

impl Default for LogDriver {
    fn default() -> LogDriver {
        LogDriver::JsonFile(LogLimits::default())
    }
}

impl LogDriver {
    pub fn name(&self) -> &'static str {
        match self {
            LogDriver::JsonFile(_) => "json-file",
            LogDriver::Local(_) => "local",
            LogDriver::None => "none",
        }
    }
}

/// The options of a driver beside its limits.
#[derive(Debug, Clone, PartialEq, Eq, Default, Serialize, Deserialize)]
pub struct LogOptions {
    /// As the user gave them, all of them.
    pub given: BTreeMap<String, String>,
    /// Bytes that may wait to be written, if the container is not to wait for that.
    pub buffer: Option<u64>,
}

impl LogOptions {
    /// Refuses expressions and tags that are none.
    pub(super) fn check(&self) -> Result<(), Error> {
        for key in ["labels-regex", "env-regex"] {
            if let Some(text) = self.given.get(key) {
                Regex::new(text)
                    .map_err(|e| Error::invalid(format!("failed to initialize logging driver: {key}: {e}")))?;
            }
        }
        self.given.get("tag").map_or(Ok(()), |text| tag(text, |_| Some(String::new())).map(|_| ()))
    }
}

/// How the output of a container that is being started is kept; `None`: not at all.
pub(super) fn terms(container: &Container) -> Result<Option<LogTerms>, Error> {
    let limits = match &container.host.log {
        LogDriver::None => return Ok(None),
        LogDriver::JsonFile(limits) | LogDriver::Local(limits) => *limits,
    };
    let options = &container.host.log_options;
    let buffer = options.buffer.map(|bytes| LogBuffer { bytes });
    Ok(Some(LogTerms { limits, attributes: attributes(container)?, buffer }))
}

/// What docker's `labels`, `env` and `tag` put into each entry.
fn attributes(container: &Container) -> Result<BTreeMap<String, String>, Error> {
    let given = &container.host.log_options.given;
    let mut found = BTreeMap::new();
    let variables: BTreeMap<&str, &str> = container.config.env.iter().filter_map(|text| text.split_once('=')).collect();
    let labels: BTreeMap<&str, &str> =
        container.labels().iter().map(|(key, value)| (key.as_str(), value.as_str())).collect();
    for (all, names, expression) in [(labels, "labels", "labels-regex"), (variables, "env", "env-regex")] {
        let names: Vec<&str> = given.get(names).map_or("", String::as_str).split(',').collect();
        let expression = given.get(expression).filter(|text| !text.is_empty());
        let expression = expression.map(|text| Regex::new(text)).transpose().map_err(Error::internal)?;
        let wanted = |key: &str| names.contains(&key) || expression.as_ref().is_some_and(|e| e.is_match(key));
        found.extend(
            all.iter().filter(|(key, _)| wanted(key)).map(|(key, value)| ((*key).to_owned(), (*value).to_owned())),
        );
    }
    if let Some(text) = given.get("tag").filter(|text| !text.is_empty()) {
        found.insert("tag".to_owned(), tag(text, |field| field_of(container, field))?);
    }
    Ok(found)
}

fn field_of(container: &Container, field: &str) -> Option<String> {
    let short = |digest: &str| digest.trim_start_matches("sha256:").chars().take(12).collect::<String>();
    Some(match field {
        "ID" => container.short_id().to_owned(),
        "FullID" => container.id.clone(),
        "Name" => container.name.clone(),
        "ImageID" => short(&container.image_id),
        "ImageFullID" => container.image_id.clone(),
        "ImageName" => container.image.clone(),
        "DaemonName" => "docker".to_owned(),
        _ => return None,
    })
}

/// A tag with its fields filled in, like `{{.Name}}/{{.ID}}`.
fn tag(text: &str, field: impl Fn(&str) -> Option<String>) -> Result<String, Error> {
    let wrong = |what: &str| Error::invalid(format!("invalid log tag \"{text}\": {what}"));
    // A tag may name fields that another driver has; here every one has to be known.
    let known = ["ID", "FullID", "Name", "ImageID", "ImageFullID", "ImageName", "DaemonName"];
    let (mut done, mut rest) = (String::new(), text);
    while let Some((before, after)) = rest.split_once("{{") {
        let (inside, left) = after.split_once("}}").ok_or_else(|| wrong("unclosed action"))?;
        let name = inside.trim().strip_prefix('.').filter(|name| known.contains(name));
        let name = name.ok_or_else(|| wrong(&format!("{{{{{inside}}}}} is no field of a log tag")))?;
        done.push_str(before);
        done.push_str(&field(name).unwrap_or_default());
        rest = left;
    }
    done.push_str(rest);
    Ok(done)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn tags_are_filled_in() {
        let filled = |text: &str| tag(text, |field| Some(format!("<{field}>"))).map_err(|e| e.message);
        assert_eq!(filled("a/{{.Name}}-{{ .ID }}").as_deref(), Ok("a/<Name>-<ID>"));
        assert_eq!(filled("plain").as_deref(), Ok("plain"));
        for (wrong, part) in [("{{.Name", "unclosed action"), ("{{.Nope}}", "no field"), ("{{Name}}", "no field")] {
            assert!(filled(wrong).is_err_and(|why| why.contains(part)), "{wrong}");
        }
    }
}
