//! Progress on a terminal, redrawn in place.
//!
//! One frame is one message of one indicatif bar: the frame is written in a single draw, limited to a few a
//! second, so nothing flickers. A bar for each step would be drawn in pieces, and would know nothing of the
//! height of the terminal. Each frame is made anew from what is known of the steps; there is no other state.

use std::collections::HashMap;
use std::time::Duration;

use console::{Style, measure_text_width, truncate_str};
use indicatif::{ProgressBar, ProgressDrawTarget, ProgressStyle};

use super::lines::{LineBuffer, elapsed, progress_text, seconds};
use super::look::Look;
use super::{Event, Outcome, Renderer, StepId};
use crate::terminal::{clean, clean_line};

/// Items of one step that are shown before those that are done make room.
const ITEMS: usize = 6;
/// The narrowest screen that is laid out; below, lines are simply cut.
const NARROW: usize = 40;

/// Draws on standard error.
pub struct Terminal {
    bar: ProgressBar,
    board: Board,
}

impl Terminal {
    pub fn new(colour: bool, look: Look) -> Self {
        let bar = ProgressBar::with_draw_target(None, ProgressDrawTarget::stderr_with_hz(12));
        if let Ok(style) = ProgressStyle::with_template("{msg}") {
            bar.set_style(style);
        }
        Self { bar, board: Board { colour, look, ..Board::default() } }
    }

    fn size() -> (usize, usize) {
        let (height, width) = console::Term::stderr().size();
        // A line that fills the last column leaves the cursor in a place terminals disagree about.
        (usize::from(width).saturating_sub(1).max(10), usize::from(height).max(4))
    }
}

impl Renderer for Terminal {
    fn event(&mut self, event: &Event) {
        self.board.event(event);
    }

    fn tick(&mut self, now: Duration) {
        self.board.now = now;
        let (width, height) = Self::size();
        self.bar.set_message(self.board.frame(now, width, height.saturating_sub(1)).join("\n"));
    }

    fn finish(&mut self, failed: bool, now: Duration) {
        let (width, _) = Self::size();
        self.bar.finish_and_clear();
        let lines = self.board.last_frame(now, width, failed);
        let mut err = std::io::stderr().lock();
        // Nobody to show it to: the result does not depend on it.
        drop(std::io::Write::write_all(&mut err, (lines.join("\n") + "\n").as_bytes()));
    }
}

/// All that is known of the steps, and how it looks.
#[derive(Default)]
struct Board {
    colour: bool,
    look: Look,
    order: Vec<StepId>,
    steps: HashMap<StepId, Step>,
    warnings: usize,
    /// The newest time heard of; amounts come without one.
    now: Duration,
}

struct Step {
    name: String,
    started: Option<Duration>,
    ended: Option<(Duration, Outcome)>,
    items: Vec<Item>,
    lines: LineBuffer,
    tail: Vec<String>,
}

/// Something that a step gets or sends, with how much of it is done.
struct Item {
    name: String,
    text: String,
    started: Option<Duration>,
    ended: Option<Duration>,
}

impl Board {
    fn event(&mut self, event: &Event) {
        match event {
            Event::Step { id, name, .. } => self.add(*id, name),
            Event::Warning { .. } => self.warnings += 1,
            Event::Started { id, at } => self.with(*id, |step| step.started = Some(*at)),
            Event::Finished { id, at, outcome } => self.with(*id, |step| {
                step.ended = Some((*at, outcome.clone()));
                if !matches!(outcome, Outcome::Failed(_)) {
                    step.tail.clear();
                }
            }),
            Event::Log { id, bytes, .. } => {
                let lines = self.look.lines;
                self.with(*id, |step| step.log(bytes, lines));
            }
            Event::Progress { id, item, current, total, unit, done } => {
                let now = self.now;
                self.with(*id, |step| {
                    step.progress(item, &progress_text(item, *current, *total, *unit, false), now, *done)
                });
            }
            _ => {}
        }
    }

    fn add(&mut self, id: StepId, name: &str) {
        let name = clean_line(name);
        let step = Step {
            name,
            started: None,
            ended: None,
            items: Vec::new(),
            lines: LineBuffer::default(),
            tail: Vec::new(),
        };
        if self.steps.insert(id, step).is_none() {
            self.order.push(id);
        }
    }

    fn with(&mut self, id: StepId, change: impl FnOnce(&mut Step)) {
        if let Some(step) = self.steps.get_mut(&id) {
            change(step);
        }
    }

    fn shown(&self) -> impl Iterator<Item = &Step> {
        self.order
            .iter()
            .filter_map(|id| self.steps.get(id))
            .filter(|step| step.started.is_some() || step.ended.is_some())
    }

    fn heading(&self, now: Duration, width: usize, state: &str) -> String {
        let done = self.steps.values().filter(|step| step.ended.is_some()).count();
        let cached = self.steps.values().filter(|step| matches!(step.ended, Some((_, Outcome::Cached)))).count();
        let mut text = format!("[+] Building {} ({done}/{}){state}", seconds(now), self.order.len());
        if cached > 0 {
            text.push_str(&format!("  {cached} cached"));
        }
        if self.warnings > 0 {
            let warnings = format!("{} warning{}", self.warnings, if self.warnings == 1 { "" } else { "s" });
            text.push_str(&format!("  {}", self.paint(&warnings, &self.look.warning)));
        }
        truncate_str(&text, width, "").into_owned()
    }

    /// At most `height` lines: the heading, then the newest steps; of those that are done the oldest go first.
    fn frame(&self, now: Duration, width: usize, height: usize) -> Vec<String> {
        let running: usize = self.shown().filter(|s| s.ended.is_none()).map(|s| s.height(self.look.lines)).sum();
        let tail = if running < height { self.look.lines } else { 1 };
        let mut groups: Vec<(bool, Vec<String>)> =
            self.shown().map(|step| (step.ended.is_some(), self.step_lines(step, now, width, tail))).collect();
        let mut excess = (groups.iter().map(|(_, lines)| lines.len()).sum::<usize>() + 1).saturating_sub(height);
        for finished_only in [true, false] {
            groups.retain(|(finished, lines)| {
                let goes = excess > 0 && (*finished || !finished_only);
                if goes {
                    excess = excess.saturating_sub(lines.len());
                }
                !goes
            });
        }
        std::iter::once(self.heading(now, width, "")).chain(groups.into_iter().flat_map(|(_, lines)| lines)).collect()
    }

    fn last_frame(&self, now: Duration, width: usize, failed: bool) -> Vec<String> {
        let state = if failed { "" } else { " FINISHED" };
        let steps = self.shown().flat_map(|step| self.step_lines(step, now, width, self.look.lines));
        std::iter::once(self.heading(now, width, state)).chain(steps).collect()
    }

    fn step_lines(&self, step: &Step, now: Duration, width: usize, tail: usize) -> Vec<String> {
        let end = step.ended.as_ref().map_or(now, |(at, _)| *at);
        let (mark, style) = match &step.ended {
            None => ("", Style::new()),
            Some((_, Outcome::Done)) => ("", self.look.run.clone()),
            Some((_, Outcome::Cached)) => ("CACHED ", self.look.run.clone()),
            Some((_, Outcome::Failed(_))) => ("ERROR ", self.look.error.clone()),
            Some(_) => ("CANCELED ", self.look.cancel.clone()),
        };
        let mut lines = vec![self.line(&format!(" => {mark}{}", step.name), elapsed(step.started, end), width, &style)];
        for item in &step.items {
            let took = elapsed(item.started, item.ended.unwrap_or(end));
            lines.push(self.line(&format!(" => => {}", item.text), took, width, &style));
        }
        if step.ended.is_none() || matches!(step.ended, Some((_, Outcome::Failed(_)))) {
            let skip = step.tail.len().saturating_sub(tail);
            let dim = Style::new().dim();
            lines.extend(step.tail[skip..].iter().map(|text| {
                let text = format!(" => => # {text}");
                self.paint(&truncate_str(&text, width, ""), &dim)
            }));
        }
        lines
    }

    /// Text at the left, time at the right edge.
    fn line(&self, text: &str, took: Duration, width: usize, style: &Style) -> String {
        let time = seconds(took);
        let room = width.saturating_sub(time.len() + 1);
        if width < NARROW {
            return self.paint(&truncate_str(text, width, ""), style);
        }
        let text = truncate_str(text, room, "…");
        let gap = width.saturating_sub(measure_text_width(&text) + time.len());
        self.paint(&format!("{text}{}{time}", " ".repeat(gap)), style)
    }

    fn paint(&self, text: &str, style: &Style) -> String {
        if self.colour { style.clone().force_styling(true).apply_to(text).to_string() } else { text.to_owned() }
    }
}

impl Step {
    fn height(&self, tail: usize) -> usize {
        1 + self.items.len() + self.tail.len().min(tail)
    }

    /// Takes in what the step wrote; the last `lines` of it are kept.
    fn log(&mut self, bytes: &[u8], lines: usize) {
        for line in self.lines.push(bytes) {
            let text = clean(&String::from_utf8_lossy(&line)).replace('\t', "    ");
            // What a progress bar wrote with carriage returns: its last state.
            let last = text.lines().rfind(|part| !part.trim().is_empty()).unwrap_or_default().to_owned();
            self.tail.push(last);
        }
        let excess = self.tail.len().saturating_sub(lines);
        self.tail.drain(..excess);
    }

    fn progress(&mut self, name: &str, text: &str, now: Duration, done: bool) {
        let ended = done.then_some(now);
        match self.items.iter_mut().find(|item| item.name == name) {
            Some(item) => (item.text, item.ended) = (text.to_owned(), ended),
            None => self.items.push(Item { name: name.to_owned(), text: text.to_owned(), started: Some(now), ended }),
        }
        // Finished items make room: a pull of forty layers shows those that still move.
        if done && self.items.len() > ITEMS {
            self.items.retain(|item| item.name != name);
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::progress::{LogStream, StepKind, Unit};

    const SECOND: Duration = Duration::from_secs(1);

    fn board(steps: u64) -> Board {
        let mut board = Board::default();
        for n in 1..=steps {
            let id = StepId(n);
            board.event(&Event::Step {
                id,
                name: format!("[{n}/{steps}] RUN x"),
                inputs: vec![],
                span: None,
                kind: StepKind::Build,
            });
            board.event(&Event::Started { id, at: Duration::ZERO });
        }
        board
    }

    #[test]
    fn a_frame_has_the_width_and_fits_the_height() {
        let mut board = board(30);
        for n in 1..=20 {
            board.event(&Event::Finished { id: StepId(n), at: SECOND, outcome: Outcome::Cached });
        }
        board.event(&Event::Log {
            id: StepId(21),
            stream: LogStream::Stdout,
            bytes: b"a\nb\x1b[2J\nunfinished".to_vec(),
            at: SECOND,
        });
        let frame = board.frame(2 * SECOND, 80, 24);
        assert_eq!(frame[0], "[+] Building 2.0s (20/30)  20 cached");
        assert!(frame.len() <= 24 && frame.iter().all(|line| measure_text_width(line) <= 80), "{frame:#?}");
        assert!(frame.contains(&" => => # b".to_owned()), "{frame:#?}");
        assert_eq!(measure_text_width(&frame[1]), 80);
        assert!(board.frame(SECOND, 80, 5).len() <= 5);
        assert!(board.frame(SECOND, 12, 24).iter().all(|line| measure_text_width(line) <= 12));
    }

    #[test]
    fn the_end_is_a_summary_of_all_steps() {
        let mut board = board(3);
        board.event(&Event::Log {
            id: StepId(3),
            stream: LogStream::Stdout,
            bytes: b"why it failed\n".to_vec(),
            at: SECOND,
        });
        for (n, outcome) in [(1, Outcome::Done), (2, Outcome::Cached), (3, Outcome::Failed("exit code: 1".into()))] {
            board.event(&Event::Finished { id: StepId(n), at: SECOND, outcome });
        }
        let lines = board.last_frame(SECOND, 60, true);
        assert_eq!(lines.len(), 5);
        assert!(lines[2].starts_with(" => CACHED [2/3] RUN x") && lines[2].ends_with(" 1.0s"));
        assert!(lines[3].starts_with(" => ERROR [3/3]") && lines[4].ends_with("# why it failed"));
        assert!(board.last_frame(SECOND, 60, false)[0].starts_with("[+] Building 1.0s (3/3) FINISHED"));
    }

    #[test]
    fn as_many_lines_as_asked_for_in_colours_as_asked_for() {
        let mut board = board(1);
        board.look.lines = 8;
        board.colour = true;
        board.look.error = Style::new().magenta();
        let bytes = (1..=9).map(|n| format!("line {n}\n")).collect::<String>().into_bytes();
        board.event(&Event::Log { id: StepId(1), stream: LogStream::Stdout, bytes, at: SECOND });
        board.event(&Event::Warning { id: None, message: "w".into(), span: None, url: None });
        let frame = board.frame(SECOND, 60, 40);
        assert!(frame.len() == 10 && frame[2].contains("# line 2"), "{frame:#?}");
        assert!(frame[0].contains("  \u{1b}[33m1 warning\u{1b}[0m"), "{frame:#?}");
        board.event(&Event::Finished { id: StepId(1), at: SECOND, outcome: Outcome::Failed("x".into()) });
        assert!(board.frame(SECOND, 60, 40)[1].starts_with("\u{1b}[35m => ERROR"));
    }

    #[test]
    fn items_end_where_they_were() {
        let mut board = board(1);
        let progress = |current, done| Event::Progress {
            id: StepId(1),
            item: "sha256:a".into(),
            current,
            total: Some(10),
            unit: Unit::Bytes,
            done,
        };
        board.now = SECOND;
        board.event(&progress(1, false));
        board.now = 2 * SECOND;
        board.event(&progress(10, true));
        let line = &board.frame(9 * SECOND, 40, 9)[2];
        assert!(line.starts_with(" => => sha256:a 10B ") && line.ends_with(" 1.0s"), "{line}");
    }
}
