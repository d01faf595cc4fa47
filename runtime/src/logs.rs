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

use std::fs::{File, OpenOptions};
use std::io::{self, BufRead, BufReader, Read, Seek, SeekFrom, Write};
use std::os::unix::fs::OpenOptionsExt;
use std::path::Path;

use serde::{Deserialize, Serialize};
use time::OffsetDateTime;

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
    /// When it was read from the container: RFC 3339 in UTC with nanoseconds.
    pub time: String,
}

impl Entry {
    /// The time as a value; `None` when the file was damaged.
    pub fn at(&self) -> Option<OffsetDateTime> {
        OffsetDateTime::parse(&self.time, &time::format_description::well_known::Rfc3339).ok()
    }
}

/// Appends a container's output to its log.
#[derive(Debug)]
pub struct LogWriter {
    file: File,
    partial: [Vec<u8>; 2],
}

impl LogWriter {
    /// Opens the log for appending, makes it when missing.
    pub fn open(path: &Path) -> io::Result<Self> {
        let mut file = OpenOptions::new().append(true).create(true).read(true).mode(0o600).open(path)?;
        // A writer that was killed may have left a torn entry: end it, so that ours begins a line.
        if file.seek(SeekFrom::End(-1)).is_ok() {
            let mut last = [b'\n'];
            file.read_exact(&mut last)?;
            if last != *b"\n" {
                file.write_all(b"\n")?;
            }
        }
        Ok(Self { file, partial: [Vec::new(), Vec::new()] })
    }

    /// Takes output as it was read; whole lines are in the file when this returns.
    pub fn write(&mut self, stream: Stream, bytes: &[u8]) -> io::Result<()> {
        let mut out = Vec::new();
        let now = now();
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
                encode(&mut out, stream, piece, &now)?;
            } else {
                partial.extend_from_slice(piece);
                if complete {
                    encode(&mut out, stream, partial, &now)?;
                    partial.clear();
                }
            }
        }
        self.file.write_all(&out)
    }

    /// Writes what is left of lines without end.
    pub fn finish(&mut self) -> io::Result<()> {
        let mut out = Vec::new();
        for stream in [Stream::Stdout, Stream::Stderr] {
            let partial = std::mem::take(&mut self.partial[stream as usize]);
            if !partial.is_empty() {
                encode(&mut out, stream, &partial, &now())?;
            }
        }
        self.file.write_all(&out)
    }
}

fn encode(out: &mut Vec<u8>, stream: Stream, line: &[u8], time: &str) -> io::Result<()> {
    #[derive(Serialize)]
    struct Borrowed<'a> {
        log: &'a str,
        stream: Stream,
        time: &'a str,
    }
    let log = String::from_utf8_lossy(line);
    serde_json::to_writer(&mut *out, &Borrowed { log: &log, stream, time })?;
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

/// Reads a log from some point on, also while it grows.
#[derive(Debug)]
pub struct LogReader {
    reader: BufReader<File>,
    line: Vec<u8>,
}

impl LogReader {
    /// The whole log, or its last `tail` entries.
    pub fn open(path: &Path, tail: Option<u64>) -> io::Result<Self> {
        let mut file = File::open(path)?;
        if let Some(tail) = tail {
            let at = nth_line_from_end(&mut file, tail)?;
            file.seek(SeekFrom::Start(at))?;
        }
        Ok(Self { reader: BufReader::with_capacity(64 * 1024, file), line: Vec::new() })
    }

    /// The next entry; `None` when there is none yet. May be asked again later.
    pub fn next_entry(&mut self) -> io::Result<Option<Entry>> {
        loop {
            self.reader.read_until(b'\n', &mut self.line)?;
            if self.line.last() != Some(&b'\n') {
                return Ok(None); // end, or an entry half written: its rest is appended to what is held
            }
            let entry = serde_json::from_slice(&self.line).ok();
            self.line.clear();
            if entry.is_some() {
                return Ok(entry);
            }
        }
    }
}

/// Where the last `n` lines of the file begin. Reads from the end, so the length of the file does not matter.
fn nth_line_from_end(file: &mut File, n: u64) -> io::Result<u64> {
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
                return Ok(start + at as u64 + 1);
            }
            seen += 1;
        }
        end = start;
    }
    Ok(0)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn texts(reader: &mut LogReader) -> Vec<(Stream, String)> {
        std::iter::from_fn(|| reader.next_entry().expect("read").map(|e| (e.stream, e.log))).collect()
    }

    #[test]
    fn lines_keep_their_stream_and_their_bytes() {
        let dir = tempfile::tempdir().expect("tempdir");
        let path = dir.path().join("log");
        let mut log = LogWriter::open(&path).expect("open");
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
        let mut log = LogWriter::open(&path).expect("open");
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
        let mut log = LogWriter::open(&path).expect("open");
        let lines: Vec<String> = (0..3000).map(|n| format!("line {n}\n")).collect();
        log.write(Stream::Stdout, lines.concat().as_bytes()).expect("write");
        for tail in [0usize, 1, 2, 2999, 3000, 4000] {
            let mut reader = LogReader::open(&path, Some(tail as u64)).expect("open");
            let got: Vec<String> = texts(&mut reader).into_iter().map(|(_, t)| t).collect();
            assert_eq!(got, lines[3000 - tail.min(3000)..], "--tail {tail}");
        }
    }

    #[test]
    fn a_torn_end_is_skipped_and_appended_to() {
        let dir = tempfile::tempdir().expect("tempdir");
        let path = dir.path().join("log");
        LogWriter::open(&path).expect("open").write(Stream::Stdout, b"whole\n").expect("write");
        OpenOptions::new().append(true).open(&path).expect("open").write_all(b"{\"log\":\"to").expect("write");
        let mut reader = LogReader::open(&path, None).expect("open");
        assert_eq!(texts(&mut reader).len(), 1);
        LogWriter::open(&path).expect("open").write(Stream::Stdout, b"next\n").expect("write");
        assert_eq!(texts(&mut reader), [(Stream::Stdout, "next\n".to_owned())]);
    }
}
