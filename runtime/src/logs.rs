//! The log of a container: docker's `json-file`, one JSON object a line, read by other tools too.
//!
//! ```text
//! {"log":"hello\n","stream":"stdout","time":"2026-01-02T03:04:05.123456789Z"}
//! ```
//!
//! Output is cut into lines here, per stream, so that two streams never share an entry; a line longer than
//! [`LONGEST`] is written in pieces of which only the last ends with a newline. What a container writes cannot imitate
//! the frame, since it is JSON-escaped (S58). Each batch of entries is one `write` to a file opened for appending: a
//! reader sees whole entries, and a killed writer leaves at most one torn line at the end, which readers skip.
//!
//! A log with a limit is rotated as docker does it: `log` becomes `log.1`, `log.1` becomes `log.2`, and the oldest goes;
//! `log.1` becomes `log.1.gz` where that is wanted.

mod buffered;
mod packed;

use std::collections::BTreeMap;
use std::fs::{File, OpenOptions};
use std::io::{self, BufRead, BufReader, Read, Seek, SeekFrom, Write};
use std::os::unix::fs::OpenOptionsExt;
use std::path::{Path, PathBuf};

use serde::{Deserialize, Serialize};
use time::OffsetDateTime;

pub use buffered::{BufferedLog, LogSink};
use packed::{Identity, Part};

/// Bytes of one entry, docker's limit: a line without end must not grow the writer's memory.
pub const LONGEST: usize = 16 * 1024;

/// Which of the two outputs.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum Stream {
    Stdout,
    Stderr,
}

/// One line, or a piece of a long one.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Entry {
    /// The text with its newline, if it had one. Bytes that are not UTF-8 were replaced.
    pub log: String,
    pub stream: Stream,
    /// What of the container stands in each entry.
    #[serde(default, rename = "attrs", skip_serializing_if = "BTreeMap::is_empty")]
    pub attributes: BTreeMap<String, String>,
    /// When it was read from the container: RFC 3339 in UTC with nanoseconds.
    pub time: String,
}

impl Entry {
    /// The time as a value; `None` when the file was damaged.
    pub fn at(&self) -> Option<OffsetDateTime> {
        OffsetDateTime::parse(&self.time, &time::format_description::well_known::Rfc3339).ok()
    }
}

/// How much of a log is kept.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct LogLimits {
    /// Bytes of one file; `None` is without limit.
    pub max_size: Option<u64>,
    /// How many files there are, the one written to included; 0 and 1 both mean that one.
    pub max_file: u32,
    /// The files before that one are compressed.
    #[serde(default)]
    pub compress: bool,
}

/// How output is logged.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct LogTerms {
    pub limits: LogLimits,
    /// What of the container stands in each entry.
    pub attributes: BTreeMap<String, String>,
    /// Where the container does not wait for its log.
    pub buffer: Option<LogBuffer>,
}

/// Memory for output that is not written yet.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct LogBuffer {
    pub bytes: u64,
}

/// Appends a container's output to its log.
#[derive(Debug)]
pub struct LogWriter {
    file: File,
    path: PathBuf,
    limits: LogLimits,
    attributes: BTreeMap<String, String>,
    size: u64,
    partial: [Vec<u8>; 2],
}

impl LogWriter {
    /// Opens the log for appending, makes it when missing.
    pub fn open(path: &Path, terms: LogTerms) -> io::Result<Self> {
        let LogTerms { limits, attributes, buffer: _ } = terms;
        let mut file = create(path)?;
        // A writer that was killed may have left a torn entry: end it, so that ours begins a line.
        if file.seek(SeekFrom::End(-1)).is_ok() {
            let mut last = [b'\n'];
            file.read_exact(&mut last)?;
            if last != *b"\n" {
                file.write_all(b"\n")?;
            }
        }
        let size = file.metadata()?.len();
        Ok(Self { file, path: path.to_owned(), limits, attributes, size, partial: [Vec::new(), Vec::new()] })
    }

    /// Takes output as it was read; whole lines are in the file when this returns.
    pub fn write(&mut self, stream: Stream, bytes: &[u8]) -> io::Result<()> {
        let mut out = Vec::new();
        let now = now();
        let attributes = &self.attributes;
        let partial = &mut self.partial[stream as usize];
        let mut rest = bytes;
        while !rest.is_empty() {
            let room = LONGEST - partial.len();
            let window = &rest[..rest.len().min(room)];
            let (piece, complete) = match window.iter().position(|b| *b == b'\n') {
                Some(at) => (&window[..=at], true),
                None => (window, window.len() == room),
            };
            rest = &rest[piece.len()..];
            if complete && partial.is_empty() {
                encode(&mut out, stream, piece, attributes, &now)?;
            } else {
                partial.extend_from_slice(piece);
                if complete {
                    encode(&mut out, stream, partial, attributes, &now)?;
                    partial.clear();
                }
            }
        }
        self.append(&out)
    }

    /// Writes whole entries, to the next file when this one is full.
    fn append(&mut self, entries: &[u8]) -> io::Result<()> {
        let mut rest = entries;
        while let Some(room) = self.limits.max_size.map(|most| most.saturating_sub(self.size)) {
            if rest.len() as u64 <= room {
                break;
            }
            // As many entries as fit, but at least one in each file: an entry is never cut.
            let fitting = rest[..usize::try_from(room).unwrap_or(rest.len())].iter().rposition(|b| *b == b'\n');
            let end = match fitting {
                Some(at) => at + 1,
                None if self.size == 0 => rest.iter().position(|b| *b == b'\n').map_or(rest.len(), |at| at + 1),
                None => 0,
            };
            self.file.write_all(&rest[..end])?;
            self.size += end as u64;
            rest = &rest[end..];
            if rest.is_empty() {
                return Ok(());
            }
            self.rotate()?;
        }
        self.file.write_all(rest)?;
        self.size += rest.len() as u64;
        Ok(())
    }

    fn rotate(&mut self) -> io::Result<()> {
        packed::rotate(&self.path, self.limits.max_file, self.limits.compress)?;
        self.file = create(&self.path)?;
        self.size = 0;
        Ok(())
    }

    /// Writes what is left of lines without end.
    pub fn finish(&mut self) -> io::Result<()> {
        let mut out = Vec::new();
        for stream in [Stream::Stdout, Stream::Stderr] {
            let partial = std::mem::take(&mut self.partial[stream as usize]);
            if !partial.is_empty() {
                encode(&mut out, stream, &partial, &self.attributes, &now())?;
            }
        }
        self.append(&out)
    }
}

fn create(path: &Path) -> io::Result<File> {
    OpenOptions::new().append(true).create(true).read(true).mode(0o600).open(path)
}

fn encode(
    out: &mut Vec<u8>,
    stream: Stream,
    line: &[u8],
    attrs: &BTreeMap<String, String>,
    time: &str,
) -> io::Result<()> {
    #[derive(Serialize)]
    struct Borrowed<'a> {
        log: &'a str,
        stream: Stream,
        #[serde(skip_serializing_if = "BTreeMap::is_empty")]
        attrs: &'a BTreeMap<String, String>,
        time: &'a str,
    }
    let log = String::from_utf8_lossy(line);
    serde_json::to_writer(&mut *out, &Borrowed { log: &log, stream, attrs, time })?;
    out.push(b'\n');
    Ok(())
}

fn now() -> String {
    rfc3339(OffsetDateTime::now_utc())
}

/// RFC 3339 in UTC, always with nine digits, so that times sort as text.
pub fn rfc3339(t: OffsetDateTime) -> String {
    format!(
        "{:04}-{:02}-{:02}T{:02}:{:02}:{:02}.{:09}Z",
        t.year(),
        u8::from(t.month()),
        t.day(),
        t.hour(),
        t.minute(),
        t.second(),
        t.nanosecond()
    )
}

/// Reads a log from some point on, also while it grows and is rotated.
#[derive(Debug)]
pub struct LogReader {
    path: PathBuf,
    reader: BufReader<File>,
    /// Of the file that is read.
    identity: Identity,
    line: Vec<u8>,
}

impl LogReader {
    /// The whole log, or its last `tail` entries.
    pub fn open(path: &Path, tail: Option<u64>) -> io::Result<Self> {
        let mut part = Part::open(path, 0)?.ok_or(io::ErrorKind::NotFound)?;
        let mut left = tail;
        for n in 0.. {
            let identity = part.identity();
            let mut file = part.into_file()?;
            if let Some(tail) = left {
                let (at, more) = nth_line_from_end(&mut file, tail)?;
                file.seek(SeekFrom::Start(at))?;
                left = Some(more);
            }
            let older = if left == Some(0) { None } else { Part::open(path, n + 1)? };
            let Some(older) = older else {
                let reader = BufReader::with_capacity(64 * 1024, file);
                return Ok(Self { path: path.to_owned(), reader, identity, line: Vec::new() });
            };
            part = older;
        }
        unreachable!("the numbers do not end")
    }

    /// The next entry; `None` when there is none yet. May be asked again later.
    pub fn next_entry(&mut self) -> io::Result<Option<Entry>> {
        loop {
            self.reader.read_until(b'\n', &mut self.line)?;
            if self.line.last() != Some(&b'\n') {
                // The end, or an entry half written, whose rest is appended to what is held.
                match self.newer()? {
                    Some(newer) => {
                        // What was written between the last look and the rotation comes first.
                        self.reader.read_until(b'\n', &mut self.line)?;
                        if self.line.last() != Some(&b'\n') {
                            self.line.clear();
                            self.identity = newer.identity();
                            self.reader = BufReader::with_capacity(64 * 1024, newer.into_file()?);
                            continue;
                        }
                    }
                    None => return Ok(None),
                }
            }
            let entry = serde_json::from_slice(&self.line).ok();
            self.line.clear();
            if entry.is_some() {
                return Ok(entry);
            }
        }
    }

    /// The file after the one being read; `None` while that is the newest. A file that is no longer there at all was
    /// rotated away while nobody read: then the oldest there is comes next.
    fn newer(&self) -> io::Result<Option<Part>> {
        let mut newer = None;
        for n in 0.. {
            // Between two renames a number may be missing for an instant; a removed container has none.
            let Some(part) = Part::open(&self.path, n)? else { return Ok(newer) };
            if part.identity() == self.identity {
                return Ok(newer);
            }
            newer = Some(part);
        }
        Ok(newer)
    }
}

/// Where the last `n` lines of the file begin, and how many of them it does not have. Reads from the end, so the length of
/// the file does not matter.
fn nth_line_from_end(file: &mut File, n: u64) -> io::Result<(u64, u64)> {
    const BLOCK: u64 = 64 * 1024;
    let length = file.seek(SeekFrom::End(0))?;
    let mut end = length;
    let mut seen = 0;
    let mut block = Vec::new();
    while end > 0 {
        let start = end.saturating_sub(BLOCK);
        file.seek(SeekFrom::Start(start))?;
        block.resize((end - start) as usize, 0);
        file.read_exact(&mut block)?;
        for (at, _) in block.iter().enumerate().rev().filter(|(_, b)| **b == b'\n') {
            // The newline that ends the line before the n-th from the end; the file's last byte ends the last line.
            if seen == n {
                return Ok((start + at as u64 + 1, 0));
            }
            seen += 1;
        }
        end = start;
    }
    Ok((0, n - seen.min(n)))
}

#[cfg(test)]
mod tests {
    use std::fs;

    use super::*;

    fn limited(limits: LogLimits) -> LogTerms {
        LogTerms { limits, ..LogTerms::default() }
    }

    fn texts(reader: &mut LogReader) -> Vec<(Stream, String)> {
        std::iter::from_fn(|| reader.next_entry().expect("read").map(|e| (e.stream, e.log))).collect()
    }

    #[test]
    fn lines_keep_their_stream_and_their_bytes() {
        let dir = tempfile::tempdir().expect("tempdir");
        let path = dir.path().join("log");
        let mut log = LogWriter::open(&path, LogTerms::default()).expect("open");
        log.write(Stream::Stdout, b"one\ntw").expect("write");
        log.write(Stream::Stderr, b"\x1b[31m\"e\"\xff\n").expect("write");
        log.write(Stream::Stdout, b"o\nend").expect("write");
        log.finish().expect("finish");
        let mut reader = LogReader::open(&path, None).expect("open");
        let want = [
            (Stream::Stdout, "one\n"),
            (Stream::Stderr, "\x1b[31m\"e\"\u{fffd}\n"),
            (Stream::Stdout, "two\n"),
            (Stream::Stdout, "end"),
        ];
        assert_eq!(texts(&mut reader), want.map(|(s, t)| (s, t.to_owned())));
        let first = LogReader::open(&path, None).expect("open").next_entry().expect("read").expect("entry");
        assert!(first.at().is_some() && first.time.len() == 30, "{}", first.time);
    }

    #[test]
    fn long_lines_come_in_pieces_and_memory_stays_flat() {
        let dir = tempfile::tempdir().expect("tempdir");
        let path = dir.path().join("log");
        let mut log = LogWriter::open(&path, LogTerms::default()).expect("open");
        let long = vec![b'x'; LONGEST * 2 + 5];
        log.write(Stream::Stdout, &long[..7]).expect("write");
        log.write(Stream::Stdout, &long[7..]).expect("write");
        log.write(Stream::Stdout, b"\n").expect("write");
        let lengths: Vec<usize> =
            texts(&mut LogReader::open(&path, None).expect("open")).iter().map(|(_, t)| t.len()).collect();
        assert_eq!(lengths, [LONGEST, LONGEST, 6]);
    }

    #[test]
    fn the_tail_is_the_last_entries() {
        let dir = tempfile::tempdir().expect("tempdir");
        let path = dir.path().join("log");
        let mut log = LogWriter::open(&path, LogTerms::default()).expect("open");
        let lines: Vec<String> = (0..3000).map(|n| format!("line {n}\n")).collect();
        log.write(Stream::Stdout, lines.concat().as_bytes()).expect("write");
        for tail in [0usize, 1, 2, 2999, 3000, 4000] {
            let mut reader = LogReader::open(&path, Some(tail as u64)).expect("open");
            let got: Vec<String> = texts(&mut reader).into_iter().map(|(_, t)| t).collect();
            assert_eq!(got, lines[3000 - tail.min(3000)..], "--tail {tail}");
        }
    }

    /// What a reader that came at once, one that comes at the end, and one that wants the last entries see.
    #[test]
    fn a_limited_log_is_rotated() {
        let dir = tempfile::tempdir().expect("tempdir");
        let path = dir.path().join("log");
        let limits = LogLimits { max_size: Some(1000), max_file: 3, compress: false };
        let mut log = LogWriter::open(&path, limited(limits)).expect("open");
        let mut early = LogReader::open(&path, None).expect("open");
        let lines: Vec<String> = (0..100).map(|n| format!("line {n}\n")).collect();
        let mut seen = Vec::new();
        for line in &lines {
            log.write(Stream::Stdout, line.as_bytes()).expect("write");
            seen.extend(texts(&mut early).into_iter().map(|(_, text)| text));
        }
        assert_eq!(seen, lines);
        let files: Vec<u64> = ["log", "log.1", "log.2", "log.3"]
            .map(|name| fs::metadata(dir.path().join(name)).map_or(0, |metadata| metadata.len()))
            .to_vec();
        assert!(files[0] > 0 && files[..3].iter().all(|size| *size <= 1000), "{files:?}");
        assert!(files[1] > 900 && files[2] > 900 && files[3] == 0, "{files:?}");
        let late: Vec<String> =
            texts(&mut LogReader::open(&path, None).expect("open")).into_iter().map(|t| t.1).collect();
        assert!(late.len() > 20 && lines.ends_with(&late), "{late:?}");
        let last =
            |n| texts(&mut LogReader::open(&path, Some(n)).expect("open")).into_iter().map(|t| t.1).collect::<Vec<_>>();
        for n in [0, 1, 15, late.len()] {
            assert_eq!(last(n as u64), lines[100 - n..], "--tail {n}");
        }
        assert_eq!(last(90), late);
    }

    #[test]
    fn older_files_are_compressed_and_read_alike() {
        let dir = tempfile::tempdir().expect("tempdir");
        let path = dir.path().join("log");
        let limits = LogLimits { max_size: Some(1000), max_file: 4, compress: true };
        let mut log = LogWriter::open(&path, limited(limits)).expect("open");
        let mut early = LogReader::open(&path, None).expect("open");
        let lines: Vec<String> = (0..100).map(|n| format!("line {n}\n")).collect();
        let mut seen = Vec::new();
        for (n, line) in lines.iter().enumerate() {
            log.write(Stream::Stdout, line.as_bytes()).expect("write");
            // One that comes from time to time only reads what was compressed meanwhile.
            if n % 25 == 24 {
                seen.extend(texts(&mut early).into_iter().map(|(_, text)| text));
            }
        }
        assert_eq!(seen, lines);
        let mut names: Vec<String> = fs::read_dir(dir.path())
            .expect("read")
            .map(|e| e.expect("entry").file_name().into_string().expect("name"))
            .collect();
        names.sort();
        assert_eq!(names, ["log", "log.1.gz", "log.2.gz", "log.3.gz"]);
        let late: Vec<String> =
            texts(&mut LogReader::open(&path, None).expect("open")).into_iter().map(|t| t.1).collect();
        assert!(late.len() > 30 && lines.ends_with(&late), "{late:?}");
        let tail =
            texts(&mut LogReader::open(&path, Some(30)).expect("open")).into_iter().map(|t| t.1).collect::<Vec<_>>();
        assert_eq!(tail, lines[70..]);
    }

    #[test]
    fn attributes_stand_in_each_entry() {
        let dir = tempfile::tempdir().expect("tempdir");
        let path = dir.path().join("log");
        let attributes = BTreeMap::from([("tag".to_owned(), "t\"".to_owned())]);
        let terms = LogTerms { attributes: attributes.clone(), ..LogTerms::default() };
        LogWriter::open(&path, terms).expect("open").write(Stream::Stderr, b"x\n").expect("write");
        let text = fs::read_to_string(&path).expect("read");
        assert!(text.starts_with(r#"{"log":"x\n","stream":"stderr","attrs":{"tag":"t\""},"time":"#), "{text}");
        let entry = LogReader::open(&path, None).expect("open").next_entry().expect("read").expect("entry");
        assert_eq!(entry.attributes, attributes);
    }

    #[test]
    fn one_file_with_a_limit_begins_anew() {
        let dir = tempfile::tempdir().expect("tempdir");
        let path = dir.path().join("log");
        let mut log =
            LogWriter::open(&path, limited(LogLimits { max_size: Some(100), ..LogLimits::default() })).expect("open");
        let mut reader = LogReader::open(&path, None).expect("open");
        log.write(Stream::Stdout, b"one\ntwo\nthree\n").expect("write");
        assert_eq!(fs::read_dir(dir.path()).expect("read").count(), 1);
        assert_eq!(texts(&mut reader).last().expect("an entry").1, "three\n");
    }

    #[test]
    fn a_torn_end_is_skipped_and_appended_to() {
        let dir = tempfile::tempdir().expect("tempdir");
        let path = dir.path().join("log");
        LogWriter::open(&path, LogTerms::default()).expect("open").write(Stream::Stdout, b"whole\n").expect("write");
        OpenOptions::new().append(true).open(&path).expect("open").write_all(b"{\"log\":\"to").expect("write");
        let mut reader = LogReader::open(&path, None).expect("open");
        assert_eq!(texts(&mut reader).len(), 1);
        LogWriter::open(&path, LogTerms::default()).expect("open").write(Stream::Stdout, b"next\n").expect("write");
        assert_eq!(texts(&mut reader), [(Stream::Stdout, "next\n".to_owned())]);
    }
}
