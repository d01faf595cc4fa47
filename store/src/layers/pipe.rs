//! Moves bytes from one thread to another in large pieces.
//!
//! Reading a tree and hashing or compressing what was read take about the same time; side by side they take half.
//! Channels of owned chunks rather than a kernel pipe, which would copy each byte twice more.

use std::io::{self, Read, Write};
use std::sync::mpsc::{Receiver, SyncSender, sync_channel};
use std::thread::JoinHandle;

use crate::error::{Result, StoreError};

const CHUNK: usize = 256 << 10;
const CHUNKS: usize = 8;

/// The end that is written to. An empty chunk says that all has been written: a channel that closes without one is a
/// writer that died.
pub(crate) struct PipeWriter {
    chunk: Vec<u8>,
    out: SyncSender<io::Result<Vec<u8>>>,
}

/// The end that is read. What the writing thread failed with comes out here, after the bytes it wrote.
pub(crate) struct PipeReader {
    chunk: Vec<u8>,
    at: usize,
    ended: bool,
    input: Option<Receiver<io::Result<Vec<u8>>>>,
    writer: Option<JoinHandle<()>>,
}

/// Runs `produce` on a thread of its own. Dropping the reader stops it at its next write and waits for it.
pub(crate) fn spawn(produce: impl FnOnce(&mut PipeWriter) -> Result<()> + Send + 'static) -> PipeReader {
    let (mut writer, mut reader) = pipe();
    reader.writer = Some(std::thread::spawn(move || run(&mut writer, produce)));
    reader
}

/// Runs `produce` on a thread of its own while `consume` reads what it writes here.
pub(crate) fn scoped<T>(
    produce: impl FnOnce(&mut PipeWriter) -> Result<()> + Send,
    consume: impl FnOnce(PipeReader) -> Result<T>,
) -> Result<T> {
    let (mut writer, reader) = pipe();
    std::thread::scope(|scope| {
        scope.spawn(move || run(&mut writer, produce));
        consume(reader)
    })
}

fn run(writer: &mut PipeWriter, produce: impl FnOnce(&mut PipeWriter) -> Result<()>) {
    let done = produce(writer);
    let flushed = writer.flush().map_err(|e| StoreError::io("writing a layer", e));
    let done = done.and(flushed);
    // When this fails nobody listens any more, so nobody wants to know.
    let _ = writer.out.send(done.map(|()| Vec::new()).map_err(to_io));
}

/// An error that keeps its kind where it had one, so that a full disk is still seen as one.
pub(crate) fn to_io(error: StoreError) -> io::Error {
    let kind = match &error {
        StoreError::Io { source, .. } => source.kind(),
        _ => io::ErrorKind::Other,
    };
    io::Error::new(kind, error)
}

fn pipe() -> (PipeWriter, PipeReader) {
    let (out, input) = sync_channel(CHUNKS);
    let writer = PipeWriter { chunk: Vec::with_capacity(CHUNK), out };
    (writer, PipeReader { chunk: Vec::new(), at: 0, ended: false, input: Some(input), writer: None })
}

impl Write for PipeWriter {
    fn write(&mut self, bytes: &[u8]) -> io::Result<usize> {
        let len = bytes.len().min(CHUNK - self.chunk.len());
        self.chunk.extend_from_slice(&bytes[..len]);
        if self.chunk.len() == CHUNK {
            self.flush()?;
        }
        Ok(len)
    }

    fn flush(&mut self) -> io::Result<()> {
        if self.chunk.is_empty() {
            return Ok(());
        }
        let chunk = std::mem::replace(&mut self.chunk, Vec::with_capacity(CHUNK));
        self.out.send(Ok(chunk)).map_err(|_| io::Error::from(io::ErrorKind::BrokenPipe))
    }
}

impl PipeReader {
    /// What came last, all of it; empty at the end.
    pub(crate) fn chunk(&mut self) -> io::Result<&[u8]> {
        if self.at == self.chunk.len() && !self.ended {
            let chunk = self.input.as_ref().and_then(|input| input.recv().ok());
            self.chunk = chunk.unwrap_or_else(|| Err(io::Error::other("the thread that writes this stream died")))?;
            self.at = 0;
            self.ended = self.chunk.is_empty();
        }
        let start = std::mem::replace(&mut self.at, self.chunk.len());
        Ok(&self.chunk[start..])
    }
}

impl Read for PipeReader {
    fn read(&mut self, out: &mut [u8]) -> io::Result<usize> {
        let bytes = self.chunk()?;
        let len = bytes.len().min(out.len());
        out[..len].copy_from_slice(&bytes[..len]);
        let rest = bytes.len() - len;
        self.at -= rest;
        Ok(len)
    }
}

impl Drop for PipeReader {
    fn drop(&mut self) {
        self.input = None; // the writer's next chunk fails
        if let Some(writer) = self.writer.take() {
            let _ = writer.join(); // a panic there has been reported by the panic hook; there is nothing to add
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn bytes_and_errors_come_through_in_order() {
        let mut reader = spawn(|out| {
            for byte in 0..=255u8 {
                out.write_all(&[byte; 5000]).unwrap();
            }
            Err(StoreError::Unsupported("this".into()))
        });
        let mut bytes = vec![0; 256 * 5000];
        reader.read_exact(&mut bytes).unwrap();
        assert!(bytes.chunks(5000).enumerate().all(|(at, chunk)| chunk == [at as u8; 5000]));
        assert_eq!(reader.read(&mut [0]).unwrap_err().to_string(), "not supported: this");
    }

    #[test]
    fn a_dropped_reader_ends_its_writer() {
        let reader = spawn(|out| {
            loop {
                out.write_all(&[0; 9999]).map_err(|e| StoreError::io("writing", e))?;
            }
        });
        drop(reader);
    }
}
