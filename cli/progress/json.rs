//! Progress for programs: buildx's `rawjson`, one object with `vertexes`, `statuses`, `logs` or `warnings` a line.

use std::collections::HashMap;
use std::io::Write;
use std::time::{Duration, SystemTime};

use base64::Engine as _;
use base64::prelude::BASE64_STANDARD;
use rbuild_oci::Digest;
use serde::Serialize;

use super::{Event, LogStream, Outcome, Renderer, StepId};
use crate::units::rfc3339;

/// Writes JSON lines to `out`.
pub struct Json<W> {
    out: W,
    /// When the events' clock was zero.
    origin: SystemTime,
    steps: HashMap<StepId, Vertex>,
    items: HashMap<(StepId, String), String>,
    now: Duration,
}

#[derive(Serialize, Default)]
struct Line {
    #[serde(skip_serializing_if = "Vec::is_empty")]
    vertexes: Vec<Vertex>,
    #[serde(skip_serializing_if = "Vec::is_empty")]
    statuses: Vec<Status>,
    #[serde(skip_serializing_if = "Vec::is_empty")]
    logs: Vec<Log>,
    #[serde(skip_serializing_if = "Vec::is_empty")]
    warnings: Vec<Warning>,
}

#[derive(Serialize, Clone)]
struct Vertex {
    digest: String,
    #[serde(skip_serializing_if = "Vec::is_empty")]
    inputs: Vec<String>,
    name: String,
    #[serde(skip_serializing_if = "Option::is_none")]
    started: Option<String>,
    #[serde(skip_serializing_if = "Option::is_none")]
    completed: Option<String>,
    #[serde(skip_serializing_if = "std::ops::Not::not")]
    cached: bool,
    #[serde(skip_serializing_if = "String::is_empty")]
    error: String,
}

#[derive(Serialize)]
struct Status {
    id: String,
    vertex: String,
    #[serde(skip_serializing_if = "Option::is_none")]
    total: Option<u64>,
    current: u64,
    timestamp: String,
    started: String,
    #[serde(skip_serializing_if = "Option::is_none")]
    completed: Option<String>,
}

#[derive(Serialize)]
struct Log {
    vertex: String,
    stream: u8,
    /// base64
    data: String,
    timestamp: String,
}

#[derive(Serialize)]
struct Warning {
    #[serde(skip_serializing_if = "Option::is_none")]
    vertex: Option<String>,
    level: u8,
    /// base64
    short: String,
    #[serde(skip_serializing_if = "Option::is_none")]
    url: Option<String>,
    #[serde(skip_serializing_if = "Vec::is_empty")]
    range: Vec<Range>,
}

#[derive(Serialize)]
struct Range {
    start: Position,
    end: Position,
}

#[derive(Serialize)]
struct Position {
    line: u32,
}

impl<W: Write> Json<W> {
    pub fn new(out: W, origin: SystemTime) -> Self {
        Self { out, origin, steps: HashMap::new(), items: HashMap::new(), now: Duration::ZERO }
    }

    fn time(&mut self, at: Duration) -> String {
        self.now = self.now.max(at);
        rfc3339(self.origin + at)
    }

    fn name(&self, id: StepId) -> String {
        self.steps.get(&id).map(|vertex| vertex.digest.clone()).unwrap_or_default()
    }

    fn vertex(&mut self, id: StepId, change: impl FnOnce(&mut Vertex)) -> Line {
        let Some(vertex) = self.steps.get_mut(&id) else { return Line::default() };
        change(vertex);
        Line { vertexes: vec![vertex.clone()], ..Line::default() }
    }

    fn line(&mut self, event: &Event) -> Line {
        match event {
            Event::Step { id, name, inputs, .. } => {
                let digest = Digest::sha256_of(format!("{} {name}", id.0).as_bytes()).to_string();
                let inputs = inputs.iter().map(|input| self.name(*input)).filter(|name| !name.is_empty()).collect();
                let vertex = Vertex {
                    digest,
                    inputs,
                    name: name.clone(),
                    started: None,
                    completed: None,
                    cached: false,
                    error: String::new(),
                };
                self.steps.insert(*id, vertex);
                self.vertex(*id, |_| {})
            }
            Event::Started { id, at } => {
                let at = self.time(*at);
                self.vertex(*id, |vertex| vertex.started = Some(at))
            }
            Event::Finished { id, at, outcome } => {
                let at = self.time(*at);
                self.vertex(*id, |vertex| {
                    vertex.started.get_or_insert_with(|| at.clone());
                    vertex.completed = Some(at);
                    vertex.cached = matches!(outcome, Outcome::Cached);
                    vertex.error = match outcome {
                        Outcome::Done | Outcome::Cached => String::new(),
                        Outcome::Failed(message) => message.clone(),
                        _ => "context canceled".into(),
                    };
                })
            }
            Event::Log { id, stream, bytes, at } => {
                let stream = if matches!(stream, LogStream::Stdout) { 1 } else { 2 };
                let log = Log {
                    vertex: self.name(*id),
                    stream,
                    data: BASE64_STANDARD.encode(bytes),
                    timestamp: self.time(*at),
                };
                Line { logs: vec![log], ..Line::default() }
            }
            Event::Progress { id, item, current, total, done, .. } => {
                let timestamp = self.time(self.now);
                let started = self.items.entry((*id, item.clone())).or_insert_with(|| timestamp.clone()).clone();
                let completed = done.then(|| timestamp.clone());
                let vertex = self.name(*id);
                let status = Status {
                    id: item.clone(),
                    vertex,
                    total: *total,
                    current: *current,
                    timestamp,
                    started,
                    completed,
                };
                Line { statuses: vec![status], ..Line::default() }
            }
            Event::Warning { id, message, span, url } => {
                let range =
                    span.map(|s| Range { start: Position { line: s.line }, end: Position { line: s.end_line } });
                let warning = Warning {
                    vertex: id.map(|id| self.name(id)),
                    level: 1,
                    short: BASE64_STANDARD.encode(message),
                    url: url.clone(),
                    range: range.into_iter().collect(),
                };
                Line { warnings: vec![warning], ..Line::default() }
            }
            _ => Line::default(),
        }
    }
}

impl<W: Write + Send> Renderer for Json<W> {
    fn event(&mut self, event: &Event) {
        let line = self.line(event);
        if let Ok(mut text) = serde_json::to_vec(&line)
            && text != b"{}"
        {
            text.push(b'\n');
            // A reader that went away is no reason to stop the build.
            drop(self.out.write_all(&text));
        }
    }

    fn tick(&mut self, now: Duration) {
        self.now = self.now.max(now);
    }

    fn finish(&mut self, _failed: bool, _now: Duration) {
        drop(self.out.flush());
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::progress::StepKind;

    #[test]
    fn a_step_in_lines() {
        let mut out = Vec::new();
        let mut json = Json::new(&mut out, SystemTime::UNIX_EPOCH);
        let (id, at) = (StepId(1), Duration::from_millis(500));
        json.event(&Event::Step { id, name: "[1/1] RUN x".into(), inputs: vec![], span: None, kind: StepKind::Build });
        json.event(&Event::Started { id, at });
        json.event(&Event::Log { id, stream: LogStream::Stderr, bytes: b"foo".to_vec(), at });
        json.event(&Event::Finished { id, at: at * 2, outcome: Outcome::Cached });
        let lines: Vec<serde_json::Value> =
            out.split(|b| *b == b'\n').filter(|l| !l.is_empty()).map(|l| serde_json::from_slice(l).unwrap()).collect();
        assert_eq!(lines.len(), 4);
        assert_eq!(lines[1]["vertexes"][0]["started"], "1970-01-01T00:00:00.5Z");
        assert_eq!(
            lines[2]["logs"][0],
            serde_json::json!({
                "vertex": lines[0]["vertexes"][0]["digest"], "stream": 2, "data": "Zm9v", "timestamp": "1970-01-01T00:00:00.5Z"
            })
        );
        assert_eq!(lines[3]["vertexes"][0]["cached"], true);
        assert_eq!(lines[3]["vertexes"][0]["completed"], "1970-01-01T00:00:01Z");
    }
}
