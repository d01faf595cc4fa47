//! What is different between two computations, in a user's words.
//!
//! Keys are hashes over named parts, and the parts are kept ([`rbuild_cache::trace`]). So why a step did not hit is the
//! difference between its parts and those of the nearest step that ran before. Nothing here looks at files or at a
//! database: two records in, differences out.

use std::collections::BTreeMap;
use std::fmt;

use rbuild_cache::trace::{label, short};
use rbuild_solver::{KeyPart, PartValue, RunRecord};
use serde::Serialize;
use serde_json::Value;

/// Paths that are named before the rest is counted.
const NAMED: usize = 5;
/// Characters of a value that are shown.
const SHOWN: usize = 80;

/// One reason why a step ran.
#[derive(Debug, Clone, PartialEq, Eq, Serialize)]
#[serde(tag = "kind", rename_all = "kebab-case")]
#[non_exhaustive]
pub enum Cause {
    /// Nothing like it was run here before.
    First,
    /// It was told to run whatever is known.
    NoCache,
    /// The very same ran before, and its result was removed since.
    Removed,
    /// The very same was tried before, and failed.
    FailedBefore,
    /// Another build ran it at the same time, and this one waited for that.
    Shared,
    /// A variable that it sees. `argument` when an ARG declares it.
    Variable { name: String, argument: bool, old: Option<String>, new: Option<String> },
    /// The command of a RUN.
    Command { old: String, new: String },
    /// The text of a heredoc.
    Text { name: String },
    /// An option: where it copies to, as whom it runs, its network.
    Setting { name: String, old: Option<String>, new: Option<String> },
    /// Another instruction than before.
    Instruction { old: String, new: String },
    /// Files that it reads. `from` names the step they come from, if not the context.
    Files { from: Option<String>, changes: Vec<FileChange> },
    /// What it reads of another step, where single paths are not known.
    Content { from: Option<String> },
    /// A base image stands for something else.
    Base { old_image: String, image: String, old: String, new: String },
    /// The step it builds on ran again, or is another one.
    Before { step: Option<usize>, name: String, missed: bool },
}

/// A path that is not what it was.
#[derive(Debug, Clone, PartialEq, Eq, PartialOrd, Ord, Serialize)]
pub struct FileChange {
    pub path: String,
    pub change: Change,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Serialize)]
#[serde(rename_all = "lowercase")]
pub enum Change {
    Added,
    Removed,
    Changed,
}

impl fmt::Display for Change {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Change::Added => "added",
            Change::Removed => "removed",
            Change::Changed => "changed",
        })
    }
}

/// A difference between two records; what only the builds around them can tell is left as the index of an input.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) enum Difference {
    Cause(Cause),
    /// The input's own name.
    Input(usize),
    /// Paths of an input; none when they are not known.
    Files(usize, Vec<FileChange>),
}

/// How far apart two records are, roughly in things to change.
pub(crate) fn distance(differences: &[Difference]) -> usize {
    let weight = |difference: &Difference| match difference {
        Difference::Files(_, changes) => changes.len().clamp(1, 1000),
        Difference::Cause(Cause::Instruction { .. }) => 2000,
        _ => 1,
    };
    differences.iter().map(weight).sum()
}

/// What `new` has that `old` has not, and the other way round. `is_argument` tells ARG from ENV.
pub(crate) fn differences(old: &RunRecord, new: &RunRecord, is_argument: &dyn Fn(&str) -> bool) -> Vec<Difference> {
    let kind = |record: &RunRecord| record.parts.first().map(|part| text(&part.value));
    let instruction = || {
        let (old, new) = (label(&old.name).to_owned(), label(&new.name).to_owned());
        vec![Difference::Cause(Cause::Instruction { old, new })]
    };
    if kind(old) != kind(new) {
        return instruction();
    }
    let mut found: Vec<Difference> = Vec::new();
    if kind(new).as_deref() == Some("file") {
        match actions(old, new) {
            Some(causes) => found.extend(causes.into_iter().map(Difference::Cause)),
            None => return instruction(),
        }
    } else {
        found.extend(parts(old, new, is_argument).into_iter().map(Difference::Cause));
    }
    for (index, input) in new.inputs.iter().enumerate() {
        let Some(before) = old.inputs.get(index) else { continue };
        match (before.content, input.content) {
            (Some(was), Some(is)) if was == is => {}
            // The record of an image that carries its own cache names no paths.
            (Some(_), Some(_)) if before.parts.is_empty() || input.parts.is_empty() => {
                found.push(Difference::Files(index, Vec::new()));
            }
            (Some(_), Some(_)) => found.push(Difference::Files(index, paths(&before.parts, &input.parts))),
            _ if before.key == input.key => {}
            _ => found.push(Difference::Input(index)),
        }
    }
    if found.is_empty() && old.inputs.len() != new.inputs.len() { instruction() } else { found }
}

/// Named parts of everything but file operations.
fn parts(old: &RunRecord, new: &RunRecord, is_argument: &dyn Fn(&str) -> bool) -> Vec<Cause> {
    let (old, new) = (by_name(&old.parts), by_name(&new.parts));
    let mut causes = Vec::new();
    let names: std::collections::BTreeSet<&str> = old.keys().chain(new.keys()).copied().collect();
    for name in names {
        let (was, is) = (old.get(name), new.get(name));
        if was == is {
            continue;
        }
        let one = |values: Option<&Vec<String>>| values.map(|values| values.join(", "));
        let (was, is) = (one(was), one(is));
        causes.push(match name.split_once(' ') {
            Some(("env", variable)) => {
                Cause::Variable { name: variable.to_owned(), argument: is_argument(variable), old: was, new: is }
            }
            Some(("mount", target)) => mount(target, was.as_deref(), is.as_deref()),
            Some(("host", host)) => Cause::Setting { name: format!("host {host}"), old: was, new: is },
            _ if name == "command" => {
                Cause::Command { old: command(&was.unwrap_or_default()), new: command(&is.unwrap_or_default()) }
            }
            _ => {
                let plain = |text: Option<String>| text.map(|text| text.trim_matches('"').to_owned());
                Cause::Setting { name: name.to_owned(), old: plain(was), new: plain(is) }
            }
        });
    }
    causes
}

fn by_name(parts: &[KeyPart]) -> BTreeMap<&str, Vec<String>> {
    let mut found: BTreeMap<&str, Vec<String>> = BTreeMap::new();
    for part in parts {
        found.entry(&part.name).or_default().push(text(&part.value));
    }
    found
}

fn text(value: &PartValue) -> String {
    match value {
        PartValue::Text(text) | PartValue::Digest(text) => text.clone(),
        PartValue::Content(hash) => hash.to_string(),
    }
}

/// A command as a Dockerfile has it: the text of a shell, or words.
fn command(json: &str) -> String {
    let words: Vec<String> = serde_json::from_str(json).unwrap_or_else(|_| vec![json.to_owned()]);
    match words.as_slice() {
        [shell, flag, text] if flag == "-c" && shell.ends_with("sh") => text.clone(),
        words => words.join(" "),
    }
}

fn mount(target: &str, old: Option<&str>, new: Option<&str>) -> Cause {
    let parse = |text: Option<&str>| text.and_then(|text| serde_json::from_str::<Value>(text).ok());
    let (was, is) = (parse(old), parse(new));
    let inline = |value: &Option<Value>| value.as_ref().is_some_and(|value| value["kind"]["Inline"].is_object());
    if inline(&was) && inline(&is) {
        return Cause::Text { name: "the script".into() };
    }
    let name = format!("mount {target}");
    let shown = |value: Option<Value>| value.map(|value| mount_words(&value));
    Cause::Setting { name, old: shown(was), new: shown(is) }
}

/// A mount's options: its kind, and what of it is set.
fn mount_words(mount: &Value) -> String {
    let mut words = Vec::new();
    match &mount["kind"] {
        Value::String(kind) => words.push(kind.to_lowercase()),
        Value::Object(kind) => {
            for (kind, options) in kind {
                words.push(kind.to_lowercase());
                let options = options.as_object().into_iter().flatten();
                words.extend(
                    options
                        .filter(|(_, value)| !value.is_null())
                        .map(|(name, value)| format!("{name}={}", plain(value))),
                );
            }
        }
        _ => {}
    }
    for name in ["input", "read_only", "selector"] {
        match &mount[name] {
            Value::Null | Value::Bool(false) => {}
            value => words.push(format!("{name}={}", plain(value))),
        }
    }
    words.join(",")
}

/// The actions of two file operations. `None` when they are not the same kinds of actions.
fn actions(old: &RunRecord, new: &RunRecord) -> Option<Vec<Cause>> {
    let (old, new) = (&old.parts, &new.parts);
    if old.len() != new.len() || old.iter().zip(new).any(|(a, b)| a.name != b.name) {
        return None;
    }
    let mut causes = Vec::new();
    for (was, is) in old.iter().zip(new).filter(|(was, is)| was != is) {
        let parse = |part: &KeyPart| -> Option<serde_json::Map<String, Value>> {
            let Value::Object(action) = serde_json::from_str(&text(&part.value)).ok()? else { return None };
            // One entry: the kind of action, with its fields.
            action.into_iter().next().and_then(|(_, fields)| fields.as_object().cloned())
        };
        let (was, is) = (parse(was)?, parse(is)?);
        for (name, value) in is {
            let before = was.get(&name).cloned().unwrap_or_default();
            if before == value || name == "input" {
                continue;
            }
            if name == "content" {
                causes.push(Cause::Text { name: "the text of a heredoc".into() });
                continue;
            }
            let shown = |value: &Value| match value {
                Value::Null => None,
                value => Some(plain(value)),
            };
            let name = match name.as_str() {
                "dest" | "path" => "destination".to_owned(),
                name => name.replace('_', " "),
            };
            causes.push(Cause::Setting { name, old: shown(&before), new: shown(&value) });
        }
    }
    Some(causes)
}

/// A field as people write it. Paths are lists of bytes in JSON.
fn plain(value: &Value) -> String {
    match value {
        Value::String(text) => text.clone(),
        Value::Array(items) if !items.is_empty() && items.iter().all(|item| item.as_u64().is_some_and(|n| n < 256)) => {
            let bytes: Vec<u8> = items.iter().filter_map(Value::as_u64).map(|n| n as u8).collect();
            String::from_utf8_lossy(&bytes).into_owned()
        }
        Value::Array(items) => items.iter().map(plain).collect::<Vec<_>>().join(" "),
        Value::Object(fields) => match (fields.get("user"), fields.get("group")) {
            (Some(user), Some(group)) => match (plain(user).as_str(), plain(group).as_str()) {
                (user, "" | "null") => user.to_owned(),
                (user, group) => format!("{user}:{group}"),
            },
            _ => match fields.iter().next() {
                Some((name, Value::Number(bits))) if name == "Bits" => {
                    format!("{:04o}", bits.as_u64().unwrap_or_default())
                }
                Some((_, inner)) => plain(inner),
                None => String::new(),
            },
        },
        other => other.to_string(),
    }
}

/// The paths that differ. A path may be there twice, with its name and with its content.
fn paths(old: &[KeyPart], new: &[KeyPart]) -> Vec<FileChange> {
    fn index(parts: &[KeyPart]) -> BTreeMap<&str, Vec<&[u8]>> {
        let mut found: BTreeMap<&str, Vec<&[u8]>> = BTreeMap::new();
        for part in parts {
            let value = match &part.value {
                PartValue::Content(hash) => short(hash),
                PartValue::Text(text) | PartValue::Digest(text) => text.as_bytes(),
            };
            found.entry(&part.name).or_default().push(value);
        }
        found
    }
    let (old, new) = (index(old), index(new));
    let mut changes = Vec::new();
    let mut push = |path: &str, change| changes.push(FileChange { path: shown_path(path), change });
    for (path, value) in &new {
        match old.get(path) {
            None => push(path, Change::Added),
            Some(before) if before != value => push(path, Change::Changed),
            Some(_) => {}
        }
    }
    for path in old.keys().filter(|path| !new.contains_key(*path)) {
        push(path, Change::Removed);
    }
    changes.sort();
    changes
}

fn shown_path(path: &str) -> String {
    if path.is_empty() { ".".to_owned() } else { path.to_owned() }
}

impl fmt::Display for Cause {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let value = |value: &Option<String>| match value {
            Some(value) if value.is_empty() => "\"\"".to_owned(),
            Some(value) => cut(value),
            None => "(unset)".to_owned(),
        };
        match self {
            Cause::First => f.write_str("nothing like it ran here before"),
            Cause::NoCache => f.write_str("--no-cache was given"),
            Cause::Removed => f.write_str("the same ran before, but its result was removed from the cache"),
            Cause::FailedBefore => f.write_str("the same failed the last time"),
            Cause::Shared => f.write_str("another build ran it at the same time"),
            Cause::Variable { name, argument, old, new } => {
                write!(f, "{} {name} {} → {}", if *argument { "ARG" } else { "ENV" }, value(old), value(new))
            }
            Cause::Command { old, new } => write!(f, "command changed: {} → {}", cut(old), cut(new)),
            Cause::Text { name } => write!(f, "{name} changed"),
            Cause::Setting { name, old, new } => write!(f, "{name} {} → {}", value(old), value(new)),
            Cause::Instruction { old, new } => write!(f, "instruction changed: {} → {}", cut(old), cut(new)),
            Cause::Files { from, changes } => {
                files(f, changes)?;
                from.as_ref().map_or(Ok(()), |from| write!(f, " (in {})", cut(from)))
            }
            Cause::Content { from: Some(from) } => write!(f, "what it reads of {} changed", cut(from)),
            Cause::Content { from: None } => f.write_str("what it reads of the context changed"),
            Cause::Base { old_image, image, old, new } if old_image == image => {
                write!(f, "base image {image} moved from {old} to {new}")
            }
            Cause::Base { old_image, image, .. } => write!(f, "base image {old_image} → {image}"),
            Cause::Before { name, missed: true, .. } => write!(f, "the step before it ran again: {}", cut(name)),
            Cause::Before { name, missed: false, .. } => write!(f, "it follows another step: {}", cut(name)),
        }
    }
}

fn files(f: &mut fmt::Formatter<'_>, changes: &[FileChange]) -> fmt::Result {
    if let [one] = changes {
        return write!(f, "{} {}", one.path, one.change);
    }
    let same = changes.iter().all(|change| change.change == changes[0].change);
    let verb = if same { changes.first().map_or(Change::Changed, |first| first.change) } else { Change::Changed };
    write!(f, "{} files {verb}: ", changes.len())?;
    for (n, change) in changes.iter().take(NAMED).enumerate() {
        let note = match change.change {
            _ if same => "",
            Change::Added => " (added)",
            Change::Removed => " (removed)",
            Change::Changed => "",
        };
        write!(f, "{}{}{note}", if n > 0 { ", " } else { "" }, change.path)?;
    }
    match changes.len().saturating_sub(NAMED) {
        0 => Ok(()),
        more => write!(f, " and {more} more"),
    }
}

/// One line, not too long.
fn cut(text: &str) -> String {
    let line = text.lines().next().unwrap_or_default();
    match line.char_indices().nth(SHOWN) {
        Some((end, _)) => format!("{}…", &line[..end]),
        None if line.len() < text.trim_end().len() => format!("{line}…"),
        None => line.to_owned(),
    }
}
