//! A log that never keeps its container waiting (`--log-opt mode=non-blocking`).
//!
//! Output goes into memory, and a thread of its own writes it down. When more waits than may, what comes then is not in the
//! log: docker's rule, and the user's wish, who would rather lose lines than time.

use std::collections::VecDeque;
use std::io;
use std::sync::{Arc, Condvar, Mutex, MutexGuard, PoisonError};
use std::thread;

use super::{LogWriter, Stream};

/// Where output goes on its way to the log.
#[derive(Debug)]
pub enum LogSink {
    Direct(LogWriter),
    Buffered(BufferedLog),
}

impl LogSink {
    /// Takes output as it was read.
    pub fn write(&mut self, stream: Stream, bytes: &[u8]) -> io::Result<()> {
        match self {
            LogSink::Direct(writer) => writer.write(stream, bytes),
            LogSink::Buffered(log) => log.write(stream, bytes),
        }
    }

    /// Writes what is left of lines without end; all that was taken is in the file when this returns.
    pub fn finish(&mut self) -> io::Result<()> {
        match self {
            LogSink::Direct(writer) => writer.finish(),
            LogSink::Buffered(log) => log.finish(),
        }
    }
}

/// See the module.
#[derive(Debug)]
pub struct BufferedLog {
    shared: Arc<Shared>,
    most: usize,
}

#[derive(Debug, Default)]
struct Shared {
    queue: Mutex<Queue>,
    changed: Condvar,
}

#[derive(Debug, Default)]
struct Queue {
    waiting: VecDeque<Work>,
    bytes: usize,
    /// The writer has nothing in its hands.
    idle: bool,
    over: bool,
}

#[derive(Debug)]
enum Work {
    Output(Stream, Vec<u8>),
    Finish,
}

impl BufferedLog {
    /// Starts the thread that writes; at most so many bytes wait for it.
    pub fn start(mut writer: LogWriter, most: u64) -> io::Result<Self> {
        let shared =
            Arc::new(Shared { queue: Mutex::new(Queue { idle: true, ..Queue::default() }), ..Shared::default() });
        let theirs = Arc::clone(&shared);
        thread::Builder::new().name("log".into()).spawn(move || {
            while let Some(work) = theirs.next() {
                let written = match work {
                    Work::Output(stream, bytes) => writer.write(stream, &bytes),
                    Work::Finish => writer.finish(),
                };
                if let Err(error) = written {
                    tracing::warn!(%error, "output of the container is not in its log");
                }
            }
        })?;
        Ok(Self { shared, most: usize::try_from(most).unwrap_or(usize::MAX) })
    }

    fn write(&mut self, stream: Stream, bytes: &[u8]) -> io::Result<()> {
        let mut queue = self.shared.lock();
        // What comes alone is taken whatever its size.
        if queue.bytes > 0 && queue.bytes + bytes.len() > self.most {
            return Err(io::Error::new(io::ErrorKind::StorageFull, "more waits for the log than may"));
        }
        queue.bytes += bytes.len();
        queue.waiting.push_back(Work::Output(stream, bytes.to_vec()));
        self.shared.changed.notify_all();
        Ok(())
    }

    fn finish(&mut self) -> io::Result<()> {
        let mut queue = self.shared.lock();
        queue.waiting.push_back(Work::Finish);
        self.shared.changed.notify_all();
        while !(queue.waiting.is_empty() && queue.idle) {
            queue = self.shared.changed.wait(queue).unwrap_or_else(PoisonError::into_inner);
        }
        Ok(())
    }
}

impl Drop for BufferedLog {
    fn drop(&mut self) {
        self.shared.lock().over = true;
        self.shared.changed.notify_all();
    }
}

impl Shared {
    fn lock(&self) -> MutexGuard<'_, Queue> {
        self.queue.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// What to write next; `None` when nothing will come any more.
    fn next(&self) -> Option<Work> {
        let mut queue = self.lock();
        queue.idle = true;
        self.changed.notify_all();
        loop {
            if let Some(work) = queue.waiting.pop_front() {
                queue.idle = false;
                if let Work::Output(_, bytes) = &work {
                    queue.bytes -= bytes.len();
                }
                return Some(work);
            }
            if queue.over {
                return None;
            }
            queue = self.changed.wait(queue).unwrap_or_else(PoisonError::into_inner);
        }
    }
}

#[cfg(test)]
mod tests {
    use super::super::{LogReader, LogTerms};
    use super::*;

    #[test]
    fn all_that_was_taken_is_written() {
        let dir = tempfile::tempdir().expect("tempdir");
        let path = dir.path().join("log");
        let writer = LogWriter::open(&path, LogTerms::default()).expect("open");
        let mut log = LogSink::Buffered(BufferedLog::start(writer, 1 << 20).expect("start"));
        for n in 0..1000 {
            log.write(Stream::Stdout, format!("line {n}\n").as_bytes()).expect("taken");
        }
        log.write(Stream::Stdout, b"no end").expect("taken");
        log.finish().expect("finish");
        let mut reader = LogReader::open(&path, None).expect("open");
        let lines: Vec<String> = std::iter::from_fn(|| reader.next_entry().expect("read")).map(|e| e.log).collect();
        assert_eq!((lines.len(), lines.last().map(String::as_str)), (1001, Some("no end")));
    }

    #[test]
    fn what_is_too_much_is_not_taken() {
        let shared = Arc::new(Shared::default());
        // Nobody writes it down.
        let mut log = BufferedLog { shared, most: 10 };
        log.write(Stream::Stdout, &[b'x'; 50]).expect("the first is taken");
        assert!(log.write(Stream::Stdout, b"y").is_err());
    }
}
