//! The user's end of a process's streams: terminal, signals, detaching.
//!
//! The input is read by a thread of its own that nobody waits for: a `read` of a terminal cannot be taken back, and the
//! program ends without it.

use std::io::{IsTerminal as _, Read as _};
use std::process::ExitCode;
use std::thread;

use rbuild_engine::containers::{Attached, AttachedInput, Attachment, Stream};
use rustix::termios::{OptionalActions, Termios, tcgetattr, tcgetwinsize, tcsetattr};
use tokio::signal::unix::{SignalKind, signal};
use tokio::sync::mpsc;

use crate::error::{CliError, exit};

/// How a process is followed.
#[derive(Debug, Clone)]
pub struct Follow {
    /// Feed it from standard input.
    pub stdin: bool,
    /// It has a terminal: ours becomes raw, and the detach keys work.
    pub tty: bool,
    /// Pass on the signals that we get (without a terminal; with one they are keys).
    pub proxy: bool,
    /// Keys that leave the process running.
    pub detach_keys: Vec<u8>,
    /// Which outputs are shown.
    pub stdout: bool,
    pub stderr: bool,
    /// The process ends with this one: if our output goes away it has no reason to go on.
    pub ends_with_us: bool,
}

impl Default for Follow {
    fn default() -> Self {
        Self {
            stdin: false,
            tty: false,
            proxy: true,
            detach_keys: DETACH_KEYS.to_vec(),
            stdout: true,
            stderr: true,
            ends_with_us: false,
        }
    }
}

/// Ctrl-P Ctrl-Q.
const DETACH_KEYS: [u8; 2] = [0x10, 0x11];

/// Why following ended.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Outcome {
    /// With this status.
    Ended(i32),
    /// The user left it running.
    Detached,
    /// Nobody can say.
    Lost,
}

impl Outcome {
    pub fn exit_code(self) -> ExitCode {
        match self {
            Outcome::Ended(status) => ExitCode::from(u8::try_from(status & 0xff).unwrap_or(exit::ENGINE)),
            Outcome::Detached => ExitCode::SUCCESS,
            Outcome::Lost => ExitCode::from(exit::ENGINE),
        }
    }
}

/// Rows and columns of the terminal we write to, or of the usual one.
pub fn terminal_size() -> (u16, u16) {
    match tcgetwinsize(std::io::stdout()) {
        Ok(size) if size.ws_row > 0 && size.ws_col > 0 => (size.ws_row, size.ws_col),
        _ => (24, 80),
    }
}

/// Refuses `-t` without a terminal to lend, in docker's words.
///
/// # Errors
/// Standard input is to be fed to a terminal and is none.
pub fn check_tty(stdin: bool, tty: bool) -> Result<(), CliError> {
    if stdin && tty && !std::io::stdin().is_terminal() {
        return Err(CliError::new("the input device is not a TTY"));
    }
    Ok(())
}

/// The bytes of `--detach-keys`: `ctrl-p,ctrl-q`, `a`, `ctrl-@`.
///
/// # Errors
/// Something else than that.
pub fn detach_keys(text: &str) -> Result<Vec<u8>, String> {
    let key = |word: &str| match word.strip_prefix("ctrl-").map(str::as_bytes) {
        Some([b @ b'a'..=b'z']) => Ok(b - b'a' + 1),
        Some([b @ (b'@' | b'[' | b'\\' | b']' | b'^' | b'_')]) => Ok(b - b'@'),
        None if word.len() == 1 => Ok(word.as_bytes()[0]),
        _ => Err(format!("Unknown character: '{word}'")),
    };
    if text.is_empty() { Ok(Vec::new()) } else { text.split(',').map(key).collect() }
}

/// The terminal of standard input in raw mode; as it was when dropped.
struct Raw(Termios);

impl Raw {
    fn new() -> Option<Self> {
        let before = tcgetattr(std::io::stdin()).ok()?;
        let mut raw = before.clone();
        raw.make_raw();
        tcsetattr(std::io::stdin(), OptionalActions::Now, &raw).ok()?;
        Some(Self(before))
    }
}

impl Drop for Raw {
    fn drop(&mut self) {
        // The terminal may have gone away: then there is nothing to restore.
        let _ = tcsetattr(std::io::stdin(), OptionalActions::Drain, &self.0);
    }
}

/// What the threads tell.
enum Told {
    Outcome(Outcome),
    OutputGone(std::io::Error),
}

/// Connects the user with the process until it ends or he leaves it.
///
/// # Errors
/// Standard output went away.
pub async fn follow(attachment: Attachment, options: &Follow) -> Result<Outcome, CliError> {
    let mut input = attachment.input()?;
    let raw = if options.tty && options.stdin { Raw::new() } else { None };
    let (tell, mut told) = mpsc::unbounded_channel();
    if options.stdin {
        feed(input.try_clone()?, options, tell.clone());
    }
    // First, so that who has seen output knows that signals go where it came from.
    let mut signals = Forwarded::new(options)?;
    show(attachment, options, tell);
    let outcome = loop {
        tokio::select! {
            told = told.recv() => break told.unwrap_or(Told::Outcome(Outcome::Lost)),
            number = signals.next() => match number {
                WINCH => {
                    let (rows, columns) = terminal_size();
                    // A process that has just ended needs no size.
                    drop(input.resize(rows, columns));
                }
                number if options.proxy && !options.tty => drop(input.signal(number)),
                number => {
                    input.detach();
                    drop(raw);
                    return Err(CliError::silent(exit::SIGNAL + u8::try_from(number).unwrap_or(0)));
                }
            },
        }
    };
    drop(raw);
    match outcome {
        Told::Outcome(outcome) => {
            if outcome == Outcome::Detached {
                input.detach();
            }
            Ok(outcome)
        }
        Told::OutputGone(error) => {
            if options.ends_with_us {
                drop(input.signal(9));
                // The output thread goes on reading: its next word is the end.
                told.recv().await;
            }
            Err(error.into())
        }
    }
}

/// Copies standard input to the process.
fn feed(mut input: AttachedInput, options: &Follow, tell: mpsc::UnboundedSender<Told>) {
    let keys = if options.tty { options.detach_keys.clone() } else { Vec::new() };
    thread::spawn(move || {
        let mut stdin = std::io::stdin().lock();
        let mut buffer = vec![0; 32 * 1024];
        let mut watch = DetachWatch { keys, held: 0 };
        loop {
            match stdin.read(&mut buffer) {
                Ok(0) | Err(_) => {
                    drop(input.stdin_end());
                    return;
                }
                Ok(n) => {
                    let (bytes, detached) = watch.pass(&buffer[..n]);
                    if !bytes.is_empty() && input.stdin(&bytes).is_err() {
                        return;
                    }
                    if detached {
                        drop(tell.send(Told::Outcome(Outcome::Detached)));
                        return;
                    }
                }
            }
        }
    });
}

/// Finds the detach keys in what is typed. Keys that could still become the sequence are held back.
struct DetachWatch {
    keys: Vec<u8>,
    held: usize,
}

impl DetachWatch {
    /// The bytes to pass on, and whether the sequence is complete.
    fn pass(&mut self, typed: &[u8]) -> (Vec<u8>, bool) {
        let mut out = Vec::with_capacity(typed.len());
        for &byte in typed {
            if self.keys.get(self.held) == Some(&byte) {
                self.held += 1;
                if self.held == self.keys.len() {
                    return (out, true);
                }
                continue;
            }
            out.extend_from_slice(&self.keys[..self.held]);
            self.held = usize::from(self.keys.len() > 1 && self.keys.first() == Some(&byte));
            if self.held == 0 {
                out.push(byte);
            }
        }
        (out, false)
    }
}

/// Copies the process's output to ours, and tells how it ended.
fn show(mut attachment: Attachment, options: &Follow, tell: mpsc::UnboundedSender<Told>) {
    let (stdout, stderr) = (options.stdout, options.stderr);
    thread::spawn(move || {
        let mut gone = false;
        let outcome = loop {
            match attachment.next_event() {
                Ok(Some(Attached::Output(stream, bytes))) if !gone => {
                    let written = match stream {
                        Stream::Stdout if stdout => write_through(std::io::stdout().lock(), &bytes),
                        Stream::Stderr if stderr => write_through(std::io::stderr().lock(), &bytes),
                        _ => Ok(()),
                    };
                    if let Err(error) = written {
                        gone = true;
                        drop(tell.send(Told::OutputGone(error)));
                    }
                }
                Ok(Some(Attached::Ended(ended))) => break Outcome::Ended(ended.status),
                Ok(Some(_)) => {}
                Ok(None) | Err(_) => break Outcome::Lost,
            }
        };
        drop(tell.send(Told::Outcome(outcome)));
    });
}

fn write_through(mut to: impl std::io::Write, bytes: &[u8]) -> std::io::Result<()> {
    to.write_all(bytes)?;
    to.flush()
}

const WINCH: i32 = 28;

/// The signals that mean something while a process is followed.
struct Forwarded(Vec<(i32, tokio::signal::unix::Signal)>);

impl Forwarded {
    fn new(options: &Follow) -> Result<Self, CliError> {
        let mut numbers = vec![1, 2, 3, 15];
        if options.proxy && !options.tty {
            numbers.extend([10, 12]);
        }
        if options.tty {
            numbers.push(WINCH);
        }
        let one = |number| match signal(SignalKind::from_raw(number)) {
            Ok(signal) => Ok((number, signal)),
            Err(error) => Err(CliError::new(format!("signal handlers: {error}"))),
        };
        Ok(Self(numbers.into_iter().map(one).collect::<Result<_, _>>()?))
    }

    async fn next(&mut self) -> i32 {
        std::future::poll_fn(|context| {
            for (number, signal) in &mut self.0 {
                if signal.poll_recv(context).is_ready() {
                    return std::task::Poll::Ready(*number);
                }
            }
            std::task::Poll::Pending
        })
        .await
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn keys_by_name() {
        assert_eq!(detach_keys("ctrl-p,ctrl-q").as_deref(), Ok(&DETACH_KEYS[..]));
        assert_eq!(detach_keys("a,ctrl-@,ctrl-_").as_deref(), Ok(&[b'a', 0, 31][..]));
        assert_eq!(detach_keys("").as_deref(), Ok(&[][..]));
        for wrong in ["ctrl-", "ctrl-P", "ab", "a,,b"] {
            assert!(detach_keys(wrong).is_err(), "{wrong}");
        }
    }

    #[test]
    fn the_detach_sequence_is_found_and_nothing_else_is_swallowed() {
        for (typed, passed, detached) in [
            (&[&b"abc"[..]][..], &b"abc"[..], false),
            (&[b"a\x10\x11b"], b"a", true),
            (&[b"a\x10", b"\x11"], b"a", true),
            (&[b"a\x10", b"b"], b"a\x10b", false),
            (&[b"\x10\x10\x11"], b"\x10", true),
            (&[b"\x11"], b"\x11", false),
        ] {
            let mut watch = DetachWatch { keys: DETACH_KEYS.to_vec(), held: 0 };
            let mut out = Vec::new();
            let mut found = false;
            for piece in typed {
                let (bytes, detached) = watch.pass(piece);
                out.extend(bytes);
                found |= detached;
            }
            assert_eq!((&out[..], found), (passed, detached), "{typed:?}");
        }
        let mut off = DetachWatch { keys: Vec::new(), held: 0 };
        assert_eq!(off.pass(b"\x10\x11"), (b"\x10\x11".to_vec(), false));
    }
}
