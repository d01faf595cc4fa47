//! What happened in a build, line by line: enough to show it again, and to say why each step ran.
//!
//! One JSON object a line, appended as things happen, so that another process can follow a build that runs and a build
//! that was killed leaves what it got to. A build that finds everything writes no file: its few lines go into its row.

use std::time::Duration;

use rbuild_solver::{CacheKey, Event, LogStream, Outcome, RunRecord, StepId, StepKind};
use serde::{Deserialize, Serialize};

/// One thing that happened. Times are nanoseconds since the build began.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
#[non_exhaustive]
pub enum Entry {
    Step {
        id: u64,
        name: String,
        #[serde(default, skip_serializing_if = "Vec::is_empty")]
        inputs: Vec<u64>,
        #[serde(default, skip_serializing_if = "std::ops::Not::not")]
        internal: bool,
    },
    Started {
        id: u64,
        at: u64,
    },
    Finished {
        id: u64,
        at: u64,
        outcome: Ended,
    },
    Log {
        id: u64,
        at: u64,
        #[serde(default, skip_serializing_if = "std::ops::Not::not")]
        stderr: bool,
        text: Text,
    },
    Warning {
        message: String,
        #[serde(default, skip_serializing_if = "Option::is_none")]
        line: Option<u32>,
        #[serde(default, skip_serializing_if = "Option::is_none")]
        url: Option<String>,
    },
    /// Names that ARG instructions declare.
    Arguments(Vec<String>),
    Key(Keyed),
}

/// How a step ended.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum Ended {
    Done,
    Cached,
    Failed(String),
    Cancelled,
}

/// Output as it came. Cut anywhere, so it may be no text.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[serde(untagged)]
pub enum Text {
    Text(String),
    Bytes(Vec<u8>),
}

/// What was found out about a step's key.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct Keyed {
    pub id: u64,
    pub key: CacheKey,
    /// Its result was not to be had without running it.
    #[serde(default, skip_serializing_if = "std::ops::Not::not")]
    pub missed: bool,
    /// It was told to ignore the cache.
    #[serde(default, skip_serializing_if = "std::ops::Not::not")]
    pub ignored: bool,
    /// It ran again because something it reads did.
    #[serde(default, skip_serializing_if = "std::ops::Not::not")]
    pub fresh: bool,
    /// The steps it reads, in the order of its operation.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub inputs: Vec<u64>,
    /// An image's name and what that stood for.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub image: Option<(String, String)>,
    /// What the key is made of, where no result of it was saved.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub made_of: Option<Box<RunRecord>>,
}

impl Entry {
    /// What of an event is worth keeping.
    pub(crate) fn of(event: &Event) -> Option<Entry> {
        let nanos = |at: &Duration| u64::try_from(at.as_nanos()).unwrap_or(u64::MAX);
        Some(match event {
            Event::Step { id, name, inputs, kind, .. } => Entry::Step {
                id: id.0,
                name: name.clone(),
                inputs: inputs.iter().map(|id| id.0).collect(),
                internal: *kind == StepKind::Internal,
            },
            Event::Started { id, at } => Entry::Started { id: id.0, at: nanos(at) },
            Event::Finished { id, at, outcome } => Entry::Finished {
                id: id.0,
                at: nanos(at),
                outcome: match outcome {
                    Outcome::Done => Ended::Done,
                    Outcome::Cached => Ended::Cached,
                    Outcome::Failed(why) => Ended::Failed(why.clone()),
                    _ => Ended::Cancelled,
                },
            },
            Event::Log { id, stream, bytes, at } => Entry::Log {
                id: id.0,
                at: nanos(at),
                stderr: *stream == LogStream::Stderr,
                text: match std::str::from_utf8(bytes) {
                    Ok(text) => Text::Text(text.to_owned()),
                    Err(_) => Text::Bytes(bytes.clone()),
                },
            },
            Event::Warning { message, span, url, .. } => {
                Entry::Warning { message: message.clone(), line: span.map(|span| span.line), url: url.clone() }
            }
            _ => return None,
        })
    }

    /// The event again, for showing it.
    pub fn event(&self) -> Option<Event> {
        Some(match self {
            Entry::Step { id, name, inputs, internal } => Event::Step {
                id: StepId(*id),
                name: name.clone(),
                inputs: inputs.iter().map(|id| StepId(*id)).collect(),
                span: None,
                kind: if *internal { StepKind::Internal } else { StepKind::Build },
            },
            Entry::Started { id, at } => Event::Started { id: StepId(*id), at: Duration::from_nanos(*at) },
            Entry::Finished { id, at, outcome } => Event::Finished {
                id: StepId(*id),
                at: Duration::from_nanos(*at),
                outcome: match outcome {
                    Ended::Done => Outcome::Done,
                    Ended::Cached => Outcome::Cached,
                    Ended::Failed(why) => Outcome::Failed(why.clone()),
                    Ended::Cancelled => Outcome::Cancelled,
                },
            },
            Entry::Log { id, at, stderr, text } => Event::Log {
                id: StepId(*id),
                stream: if *stderr { LogStream::Stderr } else { LogStream::Stdout },
                bytes: match text {
                    Text::Text(text) => text.clone().into_bytes(),
                    Text::Bytes(bytes) => bytes.clone(),
                },
                at: Duration::from_nanos(*at),
            },
            Entry::Warning { message, url, .. } => {
                Event::Warning { id: None, message: message.clone(), span: None, url: url.clone() }
            }
            Entry::Arguments(_) | Entry::Key(_) => return None,
        })
    }

    /// Appends the line.
    pub(crate) fn write(&self, out: &mut Vec<u8>) {
        let before = out.len();
        match serde_json::to_writer(&mut *out, self) {
            Ok(()) => out.push(b'\n'),
            Err(error) => {
                // Only a key of a map that is no text could do this, and there is none.
                out.truncate(before);
                tracing::debug!(%error, "an entry of a build's journal is not kept");
            }
        }
    }

    /// The entries of a journal. What is no entry is passed over: the last line of a build that was killed.
    pub fn read(journal: &[u8]) -> impl Iterator<Item = Entry> + '_ {
        journal.split(|byte| *byte == b'\n').filter_map(|line| serde_json::from_slice(line).ok())
    }
}

/// A step of a recorded build.
#[derive(Debug, Clone, PartialEq)]
pub struct Step {
    pub id: u64,
    pub name: String,
    /// Nanoseconds since the build began.
    pub started: Option<u64>,
    pub ended: Option<(u64, Ended)>,
    pub key: Option<Keyed>,
    /// Work of our own, no instruction's.
    pub internal: bool,
}

/// A whole journal, understood.
#[derive(Debug, Clone, Default, PartialEq)]
pub struct Journal {
    pub steps: Vec<Step>,
    pub warnings: Vec<String>,
    /// Names that ARG instructions declare.
    pub arguments: Vec<String>,
    /// The last time it speaks of, in nanoseconds since the build began.
    pub last: u64,
}

impl Journal {
    pub fn read(bytes: &[u8]) -> Journal {
        let mut journal = Journal::default();
        let mut places = std::collections::HashMap::new();
        for entry in Entry::read(bytes) {
            journal.note(entry, &mut places);
        }
        journal
    }

    fn note(&mut self, entry: Entry, places: &mut std::collections::HashMap<u64, usize>) {
        let step = |steps: &mut Vec<Step>, id: u64, change: &mut dyn FnMut(&mut Step)| {
            if let Some(place) = places.get(&id) {
                change(&mut steps[*place]);
            }
        };
        match entry {
            Entry::Step { id, name, internal, .. } => {
                places.insert(id, self.steps.len());
                self.steps.push(Step { id, name, started: None, ended: None, key: None, internal });
            }
            Entry::Started { id, at } => {
                self.last = self.last.max(at);
                step(&mut self.steps, id, &mut |step| step.started = Some(at));
            }
            Entry::Finished { id, at, outcome } => {
                self.last = self.last.max(at);
                step(&mut self.steps, id, &mut |step| step.ended = Some((at, outcome.clone())));
            }
            Entry::Log { at, .. } => self.last = self.last.max(at),
            Entry::Warning { message, .. } => self.warnings.push(message),
            Entry::Arguments(names) => self.arguments.extend(names),
            Entry::Key(key) => step(&mut self.steps, key.id, &mut |step| step.key = Some(key.clone())),
        }
    }

    /// The steps people know: their instructions and base images.
    pub fn shown(&self) -> impl Iterator<Item = &Step> {
        self.steps.iter().filter(|step| !step.internal)
    }

    pub fn step(&self, id: u64) -> Option<&Step> {
        self.steps.iter().find(|step| step.id == id)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_happened_is_read_back() {
        let id = StepId(3);
        let at = Duration::from_millis(5);
        let events = [
            Event::Step { id, name: "RUN x".into(), inputs: vec![StepId(1)], span: None, kind: StepKind::Build },
            Event::Started { id, at },
            Event::Log { id, stream: LogStream::Stderr, bytes: b"a\xffb\n".to_vec(), at },
            Event::Log { id, stream: LogStream::Stdout, bytes: "ü\n".into(), at },
            Event::Finished { id, at, outcome: Outcome::Failed("no".into()) },
            Event::Warning { id: None, message: "w".into(), span: None, url: None },
        ];
        let mut journal = Vec::new();
        events.iter().for_each(|event| Entry::of(event).unwrap().write(&mut journal));
        let again: Vec<Event> = Entry::read(&journal).filter_map(|entry| entry.event()).collect();
        assert_eq!(again, events);
        let cut = &journal[..journal.len() - 4];
        assert_eq!(Entry::read(cut).count(), events.len() - 1, "a line that was cut is passed over");
        let read = Journal::read(&journal);
        assert_eq!(read.steps[0].ended, Some((5_000_000, Ended::Failed("no".into()))));
        assert_eq!((read.shown().count(), read.warnings.len(), read.last), (1, 1, 5_000_000));
    }
}
