//! The frames between a monitor (or whoever owns a process's streams) and those attached to it.
//!
//! `kind: u8, length: u32 little endian, payload`. Streams are raw bytes; what is asked for and told is JSON, since
//! it crosses between versions of the program when a container outlives an upgrade.

use std::io::{self, Read, Write};

use serde::{Deserialize, Serialize};

use crate::container::{Change, Ended, ExecSpec, StartFailure};
use crate::logs::Stream;

/// The longest frame anybody may send: an exec's environment is the largest.
const LONGEST: usize = 16 << 20;

/// The first frame of a connection says what it is for.
#[derive(Debug, Clone, Serialize, Deserialize)]
pub(crate) enum Hello {
    /// Be told of output (if asked for) and of the end; perhaps feed the input.
    Attach { stdin: bool, output: bool },
    /// Run one more process that nobody is attached to.
    Exec(Box<ExecSpec>),
    /// Change the container's network.
    Change(Change),
}

#[derive(Debug, Clone)]
pub(crate) enum Frame {
    Hello(Hello),
    Stdin(Vec<u8>),
    /// The sender's input is at its end.
    StdinEnd,
    Resize {
        rows: u16,
        columns: u16,
    },
    Signal(i32),
    Started {
        pid: i32,
    },
    Failed(StartFailure),
    Output(Stream, Vec<u8>),
    Ended(Ended),
    /// What was asked for is done.
    Done,
}

impl Frame {
    pub(crate) fn send(&self, to: &mut impl Write) -> io::Result<()> {
        let json = |value: &dyn erased::Json| value.bytes();
        match self {
            Frame::Hello(hello) => put(to, 0, &json(hello)?),
            Frame::Stdin(bytes) => put(to, 1, bytes),
            Frame::StdinEnd => put(to, 2, &[]),
            Frame::Resize { rows, columns } => put(to, 3, &json(&(rows, columns))?),
            Frame::Signal(signal) => put(to, 4, &json(signal)?),
            Frame::Started { pid } => put(to, 5, &json(pid)?),
            Frame::Failed(failure) => put(to, 6, &json(failure)?),
            Frame::Output(stream, bytes) => send_output(to, *stream, bytes),
            Frame::Ended(ended) => put(to, 9, &json(ended)?),
            Frame::Done => put(to, 10, &[]),
        }
    }

    /// The next frame; `None` at the orderly end.
    pub(crate) fn receive(from: &mut impl Read) -> io::Result<Option<Frame>> {
        let mut head = [0; 5];
        match from.read(&mut head[..1]) {
            Ok(0) => return Ok(None),
            Ok(_) => {}
            Err(error) if error.kind() == io::ErrorKind::Interrupted => return Self::receive(from),
            Err(error) => return Err(error),
        }
        from.read_exact(&mut head[1..])?;
        let length = u32::from_le_bytes([head[1], head[2], head[3], head[4]]) as usize;
        if length > LONGEST {
            return Err(io::Error::new(io::ErrorKind::InvalidData, "frame too long"));
        }
        let mut payload = vec![0; length];
        from.read_exact(&mut payload)?;
        Ok(Some(match head[0] {
            0 => Frame::Hello(serde_json::from_slice(&payload)?),
            1 => Frame::Stdin(payload),
            2 => Frame::StdinEnd,
            3 => {
                let (rows, columns) = serde_json::from_slice(&payload)?;
                Frame::Resize { rows, columns }
            }
            4 => Frame::Signal(serde_json::from_slice(&payload)?),
            5 => Frame::Started { pid: serde_json::from_slice(&payload)? },
            6 => Frame::Failed(serde_json::from_slice(&payload)?),
            7 => Frame::Output(Stream::Stdout, payload),
            8 => Frame::Output(Stream::Stderr, payload),
            9 => Frame::Ended(serde_json::from_slice(&payload)?),
            10 => Frame::Done,
            kind => return Err(io::Error::new(io::ErrorKind::InvalidData, format!("frame of unknown kind {kind}"))),
        }))
    }
}

/// An output frame without a copy of the bytes.
pub(crate) fn send_output(to: &mut impl Write, stream: Stream, bytes: &[u8]) -> io::Result<()> {
    put(to, if stream == Stream::Stdout { 7 } else { 8 }, bytes)
}

fn put(to: &mut impl Write, kind: u8, payload: &[u8]) -> io::Result<()> {
    let mut frame = Vec::with_capacity(payload.len() + 5);
    frame.push(kind);
    frame.extend_from_slice(&(payload.len() as u32).to_le_bytes());
    frame.extend_from_slice(payload);
    to.write_all(&frame)
}

/// Values that become JSON, as one object-safe trait, so that the table above stays a table.
mod erased {
    pub(super) trait Json {
        fn bytes(&self) -> std::io::Result<Vec<u8>>;
    }

    impl<T: serde::Serialize> Json for T {
        fn bytes(&self) -> std::io::Result<Vec<u8>> {
            Ok(serde_json::to_vec(self)?)
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn frames_survive_the_wire() {
        let mut wire = Vec::new();
        Frame::Hello(Hello::Attach { stdin: true, output: false }).send(&mut wire).expect("send");
        Frame::Output(Stream::Stderr, b"text".to_vec()).send(&mut wire).expect("send");
        Frame::Resize { rows: 24, columns: 80 }.send(&mut wire).expect("send");
        let mut from = &wire[..];
        let mut next = || Frame::receive(&mut from).expect("receive");
        assert!(matches!(next(), Some(Frame::Hello(Hello::Attach { stdin: true, output: false }))));
        assert!(matches!(next(), Some(Frame::Output(Stream::Stderr, bytes)) if bytes == b"text"));
        assert!(matches!(next(), Some(Frame::Resize { rows: 24, columns: 80 })));
        assert!(next().is_none());
    }

    #[test]
    fn junk_is_an_error() {
        for junk in [&[9u8, 255, 255, 255, 255][..], &[77, 0, 0, 0, 0], &[1, 9, 0, 0, 0, 1], &[3, 1, 0, 0, 0, b'x']] {
            assert!(Frame::receive(&mut &junk[..]).is_err(), "{junk:?}");
        }
    }
}
