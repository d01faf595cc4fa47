//! The netlink wire: messages laid out by hand, sent in one batch, answered in order.
//!
//! The handful of messages the network needs are a few attributes each, and nf_tables has no maintained
//! pure-Rust encoder at all, so both families share these hundred lines instead of two libraries.

use std::io;
use std::os::fd::OwnedFd;

use rustix::net::{self, AddressFamily, Protocol, RecvFlags, SendFlags, SocketFlags, SocketType};

/// Wants an acknowledgement (`NLM_F_REQUEST | NLM_F_ACK`).
pub(super) const ACK: u16 = 0x1 | 0x4;
/// Asks for one object or, with [`DUMP`], all of them (`NLM_F_REQUEST`).
pub(super) const REQUEST: u16 = 0x1;
/// Asks for every object (`NLM_F_ROOT | NLM_F_MATCH`).
pub(super) const DUMP: u16 = 0x300;
/// Makes the object when it is missing (`NLM_F_CREATE`).
pub(super) const CREATE: u16 = 0x400;
/// Fails when the object exists (`NLM_F_EXCL`).
pub(super) const EXCLUSIVE: u16 = 0x200;
/// Puts a rule at the end of its chain (`NLM_F_APPEND`).
pub(super) const APPEND: u16 = 0x800;

const NESTED: u16 = 0x8000;
const HEADER: usize = 16;
const KIND_ERROR: u16 = 2;
const KIND_DONE: u16 = 3;

/// A batch of netlink messages under construction.
#[derive(Default)]
pub(super) struct Messages {
    bytes: Vec<u8>,
    /// Where each message begins.
    starts: Vec<usize>,
}

impl Messages {
    pub(super) fn new() -> Self {
        Self::default()
    }

    /// Begins a message of `kind` with the fixed header of its family; attributes follow.
    pub(super) fn message(&mut self, kind: u16, flags: u16, family_header: &[u8]) -> &mut Self {
        let start = self.bytes.len();
        self.starts.push(start);
        self.bytes.extend_from_slice(&0u32.to_ne_bytes());
        self.bytes.extend_from_slice(&kind.to_ne_bytes());
        self.bytes.extend_from_slice(&flags.to_ne_bytes());
        self.bytes.extend_from_slice(&[0; 8]);
        self.bytes.extend_from_slice(family_header);
        self.finish();
        self
    }

    pub(super) fn attribute(&mut self, kind: u16, value: &[u8]) -> &mut Self {
        self.bytes.extend_from_slice(&((value.len() + 4) as u16).to_ne_bytes());
        self.bytes.extend_from_slice(&kind.to_ne_bytes());
        self.bytes.extend_from_slice(value);
        self.finish();
        self
    }

    /// A NUL-terminated string.
    pub(super) fn text(&mut self, kind: u16, value: &str) -> &mut Self {
        let mut bytes = value.as_bytes().to_vec();
        bytes.push(0);
        self.attribute(kind, &bytes)
    }

    /// An integer in host order, as rtnetlink has them.
    pub(super) fn number(&mut self, kind: u16, value: u32) -> &mut Self {
        self.attribute(kind, &value.to_ne_bytes())
    }

    /// An integer in network order, as nf_tables has them.
    pub(super) fn network_number(&mut self, kind: u16, value: u32) -> &mut Self {
        self.attribute(kind, &value.to_be_bytes())
    }

    pub(super) fn nested(&mut self, kind: u16, body: impl FnOnce(&mut Self)) -> &mut Self {
        self.nested_after(kind, &[], body)
    }

    /// A nested attribute that begins with a fixed header of its own (the peer of a veth).
    pub(super) fn nested_after(&mut self, kind: u16, header: &[u8], body: impl FnOnce(&mut Self)) -> &mut Self {
        let start = self.bytes.len();
        self.attribute(kind | NESTED, header);
        body(self);
        let length = (self.bytes.len() - start) as u16;
        self.bytes[start..start + 2].copy_from_slice(&length.to_ne_bytes());
        self
    }

    /// Pads to four bytes and writes the length of the message so far.
    fn finish(&mut self) {
        while !self.bytes.len().is_multiple_of(4) {
            self.bytes.push(0);
        }
        if let Some(&start) = self.starts.last() {
            let length = (self.bytes.len() - start) as u32;
            self.bytes[start..start + 4].copy_from_slice(&length.to_ne_bytes());
        }
    }

    /// Numbers the messages from `first` on; the flags of each, to know which get an answer.
    fn number_from(&mut self, first: u32) -> Vec<u16> {
        let mut flags = Vec::with_capacity(self.starts.len());
        for (n, &start) in self.starts.iter().enumerate() {
            let sequence = first.wrapping_add(n as u32);
            self.bytes[start + 8..start + 12].copy_from_slice(&sequence.to_ne_bytes());
            flags.push(u16_at(&self.bytes, start + 6));
        }
        flags
    }
}

/// What the kernel said to one message of a batch: nothing wrong, or its error.
pub(super) type Answer = Result<(), io::Error>;

/// A netlink socket. It belongs to the network namespace it was opened in for as long as it lives.
#[derive(Debug)]
pub(super) struct Socket {
    fd: OwnedFd,
    sequence: u32,
}

impl Socket {
    pub(super) fn open(protocol: Option<Protocol>) -> io::Result<Self> {
        let fd = net::socket_with(AddressFamily::NETLINK, SocketType::RAW, SocketFlags::CLOEXEC, protocol)?;
        Ok(Self { fd, sequence: 1 })
    }

    /// Sends the batch and waits for the answer to each message that asked for one; `reply` sees every object
    /// sent back as (position of the message in the batch, kind, payload after the netlink header).
    pub(super) fn exchange(
        &mut self,
        mut messages: Messages,
        mut reply: impl FnMut(usize, u16, &[u8]),
    ) -> io::Result<Vec<Answer>> {
        let first = self.sequence;
        let flags = messages.number_from(first);
        self.sequence = first.wrapping_add(flags.len() as u32);
        net::send(&self.fd, &messages.bytes, SendFlags::empty())?;

        let mut waiting: Vec<bool> = flags.iter().map(|f| f & (ACK & !REQUEST | DUMP) != 0).collect();
        let mut answers: Vec<Answer> = flags.iter().map(|_| Ok(())).collect();
        let mut buffer = vec![0u8; 64 * 1024];
        while waiting.iter().any(|w| *w) {
            let (length, _) = match net::recv(&self.fd, &mut buffer[..], RecvFlags::empty()) {
                Err(rustix::io::Errno::INTR) => continue,
                other => other?,
            };
            for message in Split(&buffer[..length]) {
                let position = message.sequence.wrapping_sub(first) as usize;
                if position >= answers.len() {
                    continue; // an answer to an earlier batch that was given up
                }
                match message.kind {
                    KIND_ERROR | KIND_DONE => {
                        waiting[position] = false;
                        answers[position] = read_error(message.payload);
                    }
                    kind => reply(position, kind, message.payload),
                }
            }
        }
        Ok(answers)
    }

    /// As [`exchange`](Self::exchange) for one batch all of which has to succeed.
    pub(super) fn command(&mut self, messages: Messages) -> io::Result<()> {
        self.exchange(messages, |_, _, _| {})?.into_iter().collect::<io::Result<Vec<()>>>().map(|_| ())
    }
}

fn read_error(payload: &[u8]) -> Answer {
    let code = payload.get(..4).map_or(0, |b| i32::from_ne_bytes(b.try_into().unwrap_or_default()));
    if code == 0 { Ok(()) } else { Err(io::Error::from_raw_os_error(code.saturating_neg())) }
}

struct Received<'a> {
    kind: u16,
    sequence: u32,
    payload: &'a [u8],
}

/// The messages of one datagram.
struct Split<'a>(&'a [u8]);

impl<'a> Iterator for Split<'a> {
    type Item = Received<'a>;

    fn next(&mut self) -> Option<Received<'a>> {
        if self.0.len() < HEADER {
            return None;
        }
        let length = u32_at(self.0, 0) as usize;
        if length < HEADER || length > self.0.len() {
            return None;
        }
        let (message, _) = self.0.split_at(length);
        self.0 = &self.0[length.next_multiple_of(4).min(self.0.len())..];
        Some(Received { kind: u16_at(message, 4), sequence: u32_at(message, 8), payload: &message[HEADER..] })
    }
}

/// The attributes in `bytes` as (kind without flags, value); stops at the first that does not fit.
pub(super) fn attributes(mut bytes: &[u8]) -> impl Iterator<Item = (u16, &[u8])> {
    std::iter::from_fn(move || {
        if bytes.len() < 4 {
            return None;
        }
        let length = u16_at(bytes, 0) as usize;
        if length < 4 || length > bytes.len() {
            return None;
        }
        let item = (u16_at(bytes, 2) & 0x3fff, &bytes[4..length]);
        bytes = &bytes[length.next_multiple_of(4).min(bytes.len())..];
        Some(item)
    })
}

fn u16_at(bytes: &[u8], at: usize) -> u16 {
    u16::from_ne_bytes([bytes[at], bytes[at + 1]])
}

pub(super) fn u32_at(bytes: &[u8], at: usize) -> u32 {
    u32::from_ne_bytes([bytes[at], bytes[at + 1], bytes[at + 2], bytes[at + 3]])
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn lengths_cover_nesting_and_padding() {
        let mut messages = Messages::new();
        messages.message(16, ACK, &[7; 4]).text(3, "ab").nested(18, |m| {
            m.attribute(1, &[9]);
        });
        messages.message(17, ACK, &[]);
        assert_eq!(messages.starts, [0, 40]);
        assert_eq!(u32_at(&messages.bytes, 0), 40);
        let found: Vec<_> = attributes(&messages.bytes[20..40]).collect();
        assert_eq!(found[0], (3, &b"ab\0"[..]));
        assert_eq!(found[1].0, 18);
        assert_eq!(attributes(found[1].1).next(), Some((1, &[9u8][..])));
    }

    #[test]
    fn hostile_lengths_end_the_walk() {
        assert_eq!(attributes(&[3, 0, 1, 0]).count(), 0);
        assert_eq!(attributes(&[200, 0, 1, 0]).count(), 0);
        assert_eq!(Split(&[255; 16]).count(), 0);
        assert_eq!(Split(&[0; 16]).count(), 0);
    }
}
