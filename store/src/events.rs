//! The journal of what happened to containers, images, volumes and networks, for who wants to know: `events`.
//!
//! There is no daemon that could be asked, so whoever does something appends a line to a file: one small write, in append
//! mode, which no other one can tear. Two files of bounded size are kept, `events/journal` and the one before it; nothing
//! depends on them, and what cannot be written is only not told. Not the database: a transaction costs more than all the
//! lines of a container's life, and a follower would have to ask it again and again.

use std::collections::BTreeMap;
use std::fs::{self, File, OpenOptions};
use std::io::{self, BufRead as _, BufReader, ErrorKind, Seek as _, SeekFrom, Write as _};
use std::mem::MaybeUninit;
use std::os::fd::OwnedFd;
use std::os::unix::fs::{DirBuilderExt as _, MetadataExt as _, OpenOptionsExt as _};
use std::path::{Path, PathBuf};
use std::time::{Duration, SystemTime};

use rustix::event::{PollFd, PollFlags, Timespec, poll};
use rustix::fs::inotify::{self, CreateFlags, WatchFlags};
use serde::{Deserialize, Serialize};

use crate::db;
use crate::lock::{Lock, try_lock};

/// Bytes after which a file is put aside and a new one begun.
const LONGEST: u64 = 2 << 20;

/// Something that happened.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Event {
    /// Nanoseconds since 1970.
    pub time: i64,
    pub kind: EventKind,
    /// Docker's word: `create`, `health_status: healthy`.
    pub action: String,
    /// What it happened to: an id, of a volume and of some images the name.
    pub id: String,
    pub attributes: BTreeMap<String, String>,
}

/// What an event is about.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum EventKind {
    Builder,
    Container,
    Image,
    Network,
    Volume,
}

impl EventKind {
    pub fn as_str(self) -> &'static str {
        match self {
            EventKind::Builder => "builder",
            EventKind::Container => "container",
            EventKind::Image => "image",
            EventKind::Network => "network",
            EventKind::Volume => "volume",
        }
    }
}

impl Event {
    /// Something that happens now.
    pub fn new(kind: EventKind, action: impl Into<String>, id: impl Into<String>) -> Event {
        let time = db::nanos(SystemTime::now());
        Event { time, kind, action: action.into(), id: id.into(), attributes: BTreeMap::new() }
    }

    #[must_use]
    pub fn with(mut self, name: &str, value: impl Into<String>) -> Event {
        self.attributes.insert(name.to_owned(), value.into());
        self
    }
}

/// The journal of a state directory.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct EventJournal {
    directory: PathBuf,
}

impl EventJournal {
    /// The journal of the state directory `root`.
    pub fn of(root: &Path) -> EventJournal {
        EventJournal { directory: root.join("events") }
    }

    /// Appends an event. What cannot be written is not told: nobody's work fails for it.
    pub fn note(&self, event: &Event) {
        if let Err(error) = self.append(event) {
            tracing::debug!(%error, action = event.action, "an event is not in the journal");
        }
    }

    fn append(&self, event: &Event) -> io::Result<()> {
        let mut line = serde_json::to_vec(event)?;
        line.push(b'\n');
        let path = self.directory.join("journal");
        let open = || OpenOptions::new().append(true).create(true).mode(0o600).open(&path);
        let mut file = match open() {
            Err(error) if error.kind() == ErrorKind::NotFound => {
                fs::DirBuilder::new().recursive(true).mode(0o700).create(&self.directory)?;
                open()?
            }
            opened => opened?,
        };
        file.write_all(&line)?;
        if file.metadata()?.len() > LONGEST { self.turn(&file) } else { Ok(()) }
    }

    /// Puts a full file aside, unless somebody else just does.
    fn turn(&self, full: &File) -> io::Result<()> {
        let guard = File::open(&self.directory)?;
        if !try_lock(&guard, Lock::Alone).map_err(io::Error::other)? {
            return Ok(());
        }
        let path = self.directory.join("journal");
        if fs::metadata(&path)?.ino() == full.metadata()?.ino() {
            fs::rename(&path, self.directory.join("journal.1"))?;
        }
        Ok(())
    }

    /// Reads from the oldest event that is kept.
    ///
    /// # Errors
    /// The directory of the journal cannot be made or watched.
    pub fn read(&self) -> io::Result<EventReader> {
        let mut reader = self.read_new()?;
        reader.aside = open(&self.directory.join("journal.1"))?;
        if let Some((file, _)) = &mut reader.current {
            file.seek(SeekFrom::Start(0))?;
        }
        Ok(reader)
    }

    /// Reads what comes from now on.
    ///
    /// # Errors
    /// As [`EventJournal::read`].
    pub fn read_new(&self) -> io::Result<EventReader> {
        fs::DirBuilder::new().recursive(true).mode(0o700).create(&self.directory)?;
        let watch = inotify::init(CreateFlags::CLOEXEC | CreateFlags::NONBLOCK)?;
        inotify::add_watch(&watch, &self.directory, WatchFlags::MODIFY | WatchFlags::CREATE | WatchFlags::MOVED_TO)?;
        let mut current = open(&self.directory.join("journal"))?;
        if let Some((file, _)) = &mut current {
            file.seek(SeekFrom::End(0))?;
        }
        Ok(EventReader { directory: self.directory.clone(), watch, aside: None, current, line: Vec::new() })
    }
}

type Opened = Option<(BufReader<File>, u64)>;

/// A file with its inode; `None` where there is none.
fn open(path: &Path) -> io::Result<Opened> {
    match File::open(path) {
        Ok(file) => {
            let inode = file.metadata()?.ino();
            Ok(Some((BufReader::new(file), inode)))
        }
        Err(error) if error.kind() == ErrorKind::NotFound => Ok(None),
        Err(error) => Err(error),
    }
}

/// Goes along the journal.
#[derive(Debug)]
pub struct EventReader {
    directory: PathBuf,
    watch: OwnedFd,
    /// The file before the current one, read first.
    aside: Opened,
    current: Opened,
    /// A line that is not whole yet.
    line: Vec<u8>,
}

impl EventReader {
    /// The next event; `None` when there is none yet. A line that is no event is passed over.
    ///
    /// # Errors
    /// The journal cannot be read.
    pub fn next_event(&mut self) -> io::Result<Option<Event>> {
        loop {
            if let Some((aside, _)) = &mut self.aside {
                match event(aside, &mut self.line)? {
                    Line::Event(event) => return Ok(Some(event)),
                    Line::Junk => continue,
                    Line::End => {
                        self.aside = None;
                        self.line.clear();
                    }
                }
            }
            if self.current.is_none() {
                self.current = open(&self.directory.join("journal"))?;
            }
            let Some((current, inode)) = &mut self.current else { return Ok(None) };
            match event(current, &mut self.line)? {
                Line::Event(event) => return Ok(Some(event)),
                Line::Junk => continue,
                Line::End => {}
            }
            // At its end: is it still the one that is written to?
            let inode = *inode;
            match open(&self.directory.join("journal"))? {
                Some((_, now)) if now == inode => return Ok(None),
                None => return Ok(None),
                fresh => {
                    self.aside = self.current.take();
                    self.current = fresh;
                }
            }
        }
    }

    /// Waits until there may be another event, at most so long.
    ///
    /// # Errors
    /// It cannot be waited for.
    pub fn wait(&mut self, patience: Option<Duration>) -> io::Result<()> {
        let timeout = patience.map(|time| Timespec {
            tv_sec: i64::try_from(time.as_secs()).unwrap_or(i64::MAX),
            tv_nsec: time.subsec_nanos().into(),
        });
        match poll(&mut [PollFd::new(&self.watch, PollFlags::IN)], timeout.as_ref()) {
            Ok(_) | Err(rustix::io::Errno::INTR) => {}
            Err(error) => return Err(error.into()),
        }
        // Only that something happened counts.
        let mut buffer = [MaybeUninit::uninit(); 4096];
        let mut told = inotify::Reader::new(&self.watch, &mut buffer);
        while told.next().is_ok() {}
        Ok(())
    }
}

enum Line {
    Event(Event),
    Junk,
    End,
}

fn event(file: &mut BufReader<File>, line: &mut Vec<u8>) -> io::Result<Line> {
    file.read_until(b'\n', line)?;
    if line.last() != Some(&b'\n') {
        return Ok(Line::End);
    }
    let parsed = serde_json::from_slice(line);
    line.clear();
    Ok(parsed.map_or(Line::Junk, Line::Event))
}

#[cfg(test)]
mod tests {
    use super::*;

    fn all(reader: &mut EventReader) -> Vec<String> {
        std::iter::from_fn(|| reader.next_event().expect("read")).map(|event| event.id).collect()
    }

    fn note(journal: &EventJournal, id: &str) {
        journal.note(&Event::new(EventKind::Container, "start", id).with("name", "n"));
    }

    #[test]
    fn events_are_read_from_the_beginning_and_from_now() {
        let dir = tempfile::tempdir().expect("tempdir");
        let journal = EventJournal::of(dir.path());
        let mut early = journal.read_new().expect("read");
        note(&journal, "a");
        let (mut whole, mut late) = (journal.read().expect("read"), journal.read_new().expect("read"));
        note(&journal, "b");
        assert_eq!((all(&mut early), all(&mut whole), all(&mut late)), (ids("a b"), ids("a b"), ids("b")));
        early.wait(None).expect("it was told of the lines");
        assert!(all(&mut early).is_empty());
    }

    fn ids(text: &str) -> Vec<String> {
        text.split(' ').map(str::to_owned).collect()
    }

    #[test]
    fn junk_and_a_line_that_is_not_whole_yet() {
        let dir = tempfile::tempdir().expect("tempdir");
        let journal = EventJournal::of(dir.path());
        note(&journal, "a");
        let path = dir.path().join("events/journal");
        let line = fs::read(&path).expect("read");
        let mut file = OpenOptions::new().append(true).open(&path).expect("open");
        file.write_all(b"junk\n").expect("write");
        file.write_all(&line[..10]).expect("write");
        let mut reader = journal.read().expect("read");
        assert_eq!(all(&mut reader), ids("a"));
        file.write_all(&line[10..]).expect("write");
        assert_eq!(all(&mut reader), ids("a"));
    }

    #[test]
    fn the_journal_is_bounded_and_a_follower_misses_nothing() {
        let dir = tempfile::tempdir().expect("tempdir");
        let journal = EventJournal::of(dir.path());
        let mut reader = journal.read_new().expect("read");
        let long = "x".repeat(100_000);
        let mut seen = Vec::new();
        for number in 0..60 {
            journal.note(&Event::new(EventKind::Image, "pull", number.to_string()).with("name", long.as_str()));
            seen.extend(all(&mut reader));
        }
        assert_eq!(seen, (0..60).map(|number| number.to_string()).collect::<Vec<_>>());
        let size = |name: &str| fs::metadata(dir.path().join("events").join(name)).expect("stat").len();
        assert!(size("journal") <= LONGEST && size("journal.1") <= LONGEST + 200_000);
        let kept = all(&mut journal.read().expect("read"));
        assert!(kept.len() < 60 && kept.last().is_some_and(|id| id == "59"), "{kept:?}");
    }
}
