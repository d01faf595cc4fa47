//! Progress as numbered lines, for logs that are read later.
//!
//! Steps run at the same time but a log is read from top to bottom, so one step at a time has the floor: its
//! lines appear as they come, those of others wait. The floor passes on when the step ends, or when it has been
//! silent for a while and others have something to say; each stretch begins with the step's heading.

use std::collections::HashMap;
use std::io::Write;
use std::time::Duration;

use super::lines::{LineBuffer, Told, elapsed, ended, progress_text};
use super::{Event, Outcome, Renderer, StepId};
use crate::terminal::{clean, clean_line};

/// Silence after which a step loses the floor to one that has lines waiting.
const SILENCE: Duration = Duration::from_secs(1);

/// Writes plain progress to `out`.
pub struct Plain<W> {
    out: W,
    /// Whether control characters go: yes when people read it as it comes, no when it is a pipe or a file.
    cleaned: bool,
    steps: HashMap<StepId, Step>,
    /// Steps with something to show, in the order they got it.
    waiting: Vec<StepId>,
    floor: Option<StepId>,
    numbers: usize,
    last_line: Option<Duration>,
    told: Told,
}

#[derive(Default)]
struct Step {
    name: String,
    number: Option<usize>,
    started: Option<Duration>,
    lines: LineBuffer,
    queue: Vec<Vec<u8>>,
    finished: bool,
}

impl<W: Write> Plain<W> {
    pub fn new(out: W, cleaned: bool) -> Self {
        Self {
            out,
            cleaned,
            steps: HashMap::new(),
            waiting: Vec::new(),
            floor: None,
            numbers: 0,
            last_line: None,
            told: Told::default(),
        }
    }

    fn queue(&mut self, id: StepId, line: Vec<u8>) {
        let Some(step) = self.steps.get_mut(&id) else { return };
        step.queue.push(line);
        if !self.waiting.contains(&id) {
            self.waiting.push(id);
        }
    }

    /// Shows what may be shown: the lines of the step that has the floor, then of those that wait if it is done.
    fn advance(&mut self, now: Duration) {
        loop {
            let id = match self.floor.or_else(|| self.waiting.first().copied()) {
                Some(id) => id,
                None => return,
            };
            self.show(id, now);
            if !self.steps.get(&id).is_some_and(|step| step.finished) {
                return;
            }
            self.floor = None;
        }
    }

    fn show(&mut self, id: StepId, now: Duration) {
        self.waiting.retain(|other| *other != id);
        let Some(step) = self.steps.get_mut(&id) else { return };
        let number = *step.number.get_or_insert_with(|| {
            self.numbers += 1;
            self.numbers
        });
        let mut text = Vec::new();
        if self.floor != Some(id) {
            let gap = if self.last_line.is_some() { "\n" } else { "" };
            text.extend_from_slice(format!("{gap}#{number} {}\n", clean_line(&step.name)).as_bytes());
            self.floor = Some(id);
        }
        for line in step.queue.drain(..) {
            text.extend_from_slice(format!("#{number} ").as_bytes());
            match self.cleaned {
                true => text.extend_from_slice(clean(&String::from_utf8_lossy(&line)).as_bytes()),
                false => text.extend_from_slice(&line),
            }
            text.push(b'\n');
        }
        if !text.is_empty() {
            self.last_line = Some(now);
            // A reader that went away is no reason to stop the build.
            drop(self.out.write_all(&text).and_then(|()| self.out.flush()));
        }
    }

    fn log(&mut self, id: StepId, bytes: &[u8], at: Duration) {
        let Some(step) = self.steps.get_mut(&id) else { return };
        let since = elapsed(step.started, at);
        for line in step.lines.push(bytes) {
            self.queue(id, timed(since, &line));
        }
    }

    fn finish_step(&mut self, id: StepId, outcome: &Outcome, at: Duration) {
        let Some(step) = self.steps.get_mut(&id) else { return };
        let since = elapsed(step.started, at);
        let rest = step.lines.rest();
        step.finished = true;
        if let Some(line) = rest {
            self.queue(id, timed(since, &line));
        }
        self.queue(id, ended(outcome, since).into_bytes());
    }
}

impl<W: Write + Send> Renderer for Plain<W> {
    fn event(&mut self, event: &Event) {
        let now = match event {
            Event::Step { id, name, .. } => {
                self.steps.entry(*id).or_default().name = name.clone();
                return;
            }
            Event::Started { id, at } => {
                if let Some(step) = self.steps.get_mut(id) {
                    step.started = Some(*at);
                    if !self.waiting.contains(id) {
                        self.waiting.push(*id);
                    }
                }
                *at
            }
            Event::Log { id, bytes, at, .. } => {
                self.log(*id, bytes, *at);
                *at
            }
            Event::Progress { id, item, current, total, unit, done } => {
                if self.told.is_worth_a_line(*id, item, *current, *total, *done) {
                    self.queue(*id, progress_text(item, *current, *total, *unit, *done).into_bytes());
                }
                self.last_line.unwrap_or_default()
            }
            Event::Finished { id, at, outcome } => {
                self.finish_step(*id, outcome, *at);
                *at
            }
            _ => return,
        };
        self.advance(now);
    }

    fn tick(&mut self, now: Duration) {
        let silent = now.saturating_sub(self.last_line.unwrap_or_default()) >= SILENCE;
        let others = self.waiting.iter().any(|id| Some(*id) != self.floor);
        if silent && others {
            if let Some(number) = self.floor.take().and_then(|id| self.steps.get(&id)).and_then(|step| step.number) {
                drop(writeln!(self.out, "#{number} ..."));
            }
            self.advance(now);
        }
    }

    fn finish(&mut self, _failed: bool, now: Duration) {
        // What still runs was cut off by the end of the build.
        while let Some(id) = self.waiting.first().copied() {
            self.floor = self.floor.filter(|floor| *floor == id);
            self.show(id, now);
        }
    }
}

/// `0.123 text`: seconds since the step started, in five characters as long as that goes.
fn timed(since: Duration, line: &[u8]) -> Vec<u8> {
    let seconds = since.as_secs_f64();
    let digits = if seconds < 10.0 {
        3
    } else if seconds < 100.0 {
        2
    } else {
        1
    };
    let mut text = format!("{seconds:.digits$} ").into_bytes();
    text.extend_from_slice(line);
    text
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::progress::{LogStream, StepKind};

    const MILLI: Duration = Duration::from_millis(1);

    fn step(id: u64, name: &str) -> Event {
        Event::Step { id: StepId(id), name: name.into(), inputs: vec![], span: None, kind: StepKind::Build }
    }

    fn log(id: u64, text: &[u8], at: u32) -> Event {
        Event::Log { id: StepId(id), stream: LogStream::Stdout, bytes: text.to_vec(), at: MILLI * at }
    }

    fn shown(events: &[Event], cleaned: bool) -> String {
        let mut out = Vec::new();
        let mut plain = Plain::new(&mut out, cleaned);
        for event in events {
            plain.event(event);
        }
        plain.finish(false, MILLI * 999);
        String::from_utf8(out).unwrap()
    }

    #[test]
    fn one_step_speaks_at_a_time() {
        let at = |n: u32| MILLI * n;
        let text = shown(
            &[
                step(7, "[1/3] FROM busybox"),
                step(8, "[2/3] RUN a"),
                step(9, "[3/3] RUN b"),
                Event::Finished { id: StepId(7), at: at(1), outcome: Outcome::Cached },
                Event::Started { id: StepId(8), at: at(10) },
                Event::Started { id: StepId(9), at: at(10) },
                log(9, b"from b\n", 20),
                log(8, b"from a\nno newline", 30),
                Event::Finished { id: StepId(8), at: at(310), outcome: Outcome::Done },
                Event::Finished { id: StepId(9), at: at(320), outcome: Outcome::Failed("exit code: 1".into()) },
            ],
            false,
        );
        let want = "#1 [1/3] FROM busybox\n#1 CACHED\n\n#2 [2/3] RUN a\n#2 0.020 from a\n#2 0.300 no newline\n#2 DONE 0.3s\n\
                    \n#3 [3/3] RUN b\n#3 0.010 from b\n#3 ERROR: exit code: 1\n";
        assert_eq!(text, want);
    }

    #[test]
    fn a_silent_step_loses_the_floor() {
        let mut out = Vec::new();
        let mut plain = Plain::new(&mut out, false);
        for event in [
            step(1, "a"),
            step(2, "b"),
            Event::Started { id: StepId(1), at: MILLI },
            Event::Started { id: StepId(2), at: MILLI },
        ] {
            plain.event(&event);
        }
        plain.event(&log(2, b"b speaks\n", 2));
        plain.tick(MILLI * 500);
        plain.tick(MILLI * 1500);
        plain.event(&log(1, b"a again\n", 1600));
        plain.finish(false, MILLI * 1700);
        assert_eq!(
            String::from_utf8(out).unwrap(),
            "#1 a\n#1 ...\n\n#2 b\n#2 0.001 b speaks\n\n#1 a\n#1 1.599 a again\n"
        );
    }

    #[test]
    fn bytes_reach_a_pipe_as_they_are() {
        let events = [step(1, "a"), log(1, b"\x1b[31mred\n", 1)];
        assert!(shown(&events, false).contains("\x1b[31mred"));
        assert!(shown(&events, true).contains("#1 0.000 red\n"));
    }
}
