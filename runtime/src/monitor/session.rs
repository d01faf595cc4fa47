//! The streams of one process: read, logged, shown to all who are attached, and fed.
//!
//! Blocking threads, one per stream and per connection: there are a handful of them, each does one thing, and a slow
//! reader holds back exactly the process it reads from (as a pipe would), nobody else's.

use std::fs::File;
use std::io::{self, Read, Write};
use std::net::Shutdown;
use std::os::fd::OwnedFd;
use std::os::unix::net::UnixStream;
use std::sync::{Arc, Condvar, Mutex, MutexGuard, PoisonError};
use std::thread::{self, JoinHandle};
use std::time::Duration;

use rustix::process::Signal;

use super::wire::{Frame, send_output};
use crate::container::{Ended, Input};
use crate::error::{Error, Result};
use crate::logs::{LogSink, Stream};
use crate::sandbox::Running;

/// A started process with those who are attached to it. Of a container that is started again it is the same session
/// with another process.
pub(super) struct Session {
    running: Mutex<Arc<Running>>,
    clients: Mutex<Vec<Arc<Client>>>,
    log: Mutex<Option<LogSink>>,
    stdin: Mutex<Option<File>>,
    input: Input,
    terminal: bool,
    /// The signal that asks the process to end, where it is not the usual one.
    stop_signal: Option<i32>,
    asked: Mutex<Asked>,
    told: Condvar,
}

/// Whether somebody asked for its end.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Asked {
    No,
    /// The machine is about to stop.
    ToLeave,
    /// A command: for good.
    ToStop,
}

struct Client {
    /// Locked while one frame is written: frames of two streams must not mix.
    socket: Mutex<UnixStream>,
    output: bool,
}

fn lock<T>(mutex: &Mutex<T>) -> MutexGuard<'_, T> {
    mutex.lock().unwrap_or_else(PoisonError::into_inner)
}

impl Session {
    pub(super) fn new(
        running: Running,
        log: Option<LogSink>,
        input: Input,
        stop_signal: Option<i32>,
    ) -> Result<(Arc<Self>, Outputs)> {
        let terminal = running.terminal.is_some();
        let (running, stdin, outputs) = streams(running, input)?;
        let session = Arc::new(Self {
            running: Mutex::new(running),
            clients: Mutex::default(),
            log: Mutex::new(log),
            stdin: Mutex::new(stdin),
            input,
            terminal,
            stop_signal,
            asked: Mutex::new(Asked::No),
            told: Condvar::new(),
        });
        Ok((session, outputs))
    }

    /// The session goes on with another process.
    pub(super) fn renew(&self, running: Running) -> Result<Outputs> {
        let (running, stdin, outputs) = streams(running, self.input)?;
        *lock(&self.stdin) = stdin;
        *lock(&self.running) = running;
        Ok(outputs)
    }

    pub(super) fn pid(&self) -> i32 {
        self.running().pid()
    }

    fn running(&self) -> Arc<Running> {
        Arc::clone(&lock(&self.running))
    }

    /// Whether somebody asked for the end, waiting for it at most so long.
    pub(super) fn asked_within(&self, time: Duration) -> Asked {
        let waited = self.told.wait_timeout_while(lock(&self.asked), time, |asked| *asked == Asked::No);
        *waited.unwrap_or_else(PoisonError::into_inner).0
    }

    /// Adds somebody who is told of the end and, if so wanted, of the output from here on.
    pub(super) fn attach(self: &Arc<Self>, socket: UnixStream, stdin: bool, output: bool) {
        let Ok(reader) = socket.try_clone() else { return };
        lock(&self.clients).push(Arc::new(Client { socket: Mutex::new(socket), output }));
        let session = Arc::clone(self);
        // Without a thread nobody would notice that this client feeds or leaves: then it does not get in.
        let spawned = thread::Builder::new().name("client".into()).spawn(move || session.serve(reader, stdin));
        if spawned.is_err() {
            lock(&self.clients).pop();
        }
    }

    /// Does what one client asks until it leaves.
    fn serve(&self, mut socket: UnixStream, stdin: bool) {
        while let Ok(Some(frame)) = Frame::receive(&mut socket) {
            match frame {
                Frame::Stdin(bytes) if stdin => self.feed(&bytes),
                Frame::StdinEnd if stdin => self.end_input(),
                Frame::Resize { rows, columns } if self.terminal => {
                    let _ = self.running().resize(rows, columns);
                }
                Frame::Signal(number) => self.signal(number),
                _ => {}
            }
        }
    }

    fn feed(&self, bytes: &[u8]) {
        // The handle is taken out while writing: a process that does not read must not keep the lock.
        let handle = lock(&self.stdin).as_ref().and_then(|f| f.try_clone().ok());
        if let Some(mut stdin) = handle
            && stdin.write_all(bytes).is_err()
        {
            *lock(&self.stdin) = None;
        }
    }

    fn end_input(&self) {
        if self.input == Input::Once && !self.terminal {
            *lock(&self.stdin) = None;
        }
    }

    /// Sends a signal to the first process; one that is meant to end it ends it for good.
    pub(super) fn signal(&self, number: i32) {
        if !(1..=64).contains(&number) {
            return;
        }
        // Docker's rule: where the image names no signal of its own, any one is meant to end it for good.
        if number == Signal::KILL.as_raw() || self.stop_signal.is_none_or(|stop| stop == number) {
            *lock(&self.asked) = Asked::ToStop;
            self.told.notify_all();
        }
        self.pass(number);
    }

    /// Asks the process to end as a command would, but not for good: it is started again with the machine, if it is to be.
    pub(super) fn leave(&self) {
        let mut asked = lock(&self.asked);
        if *asked == Asked::No {
            *asked = Asked::ToLeave;
        }
        self.told.notify_all();
        drop(asked);
        self.pass(self.stop_signal.unwrap_or(Signal::TERM.as_raw()));
    }

    fn pass(&self, number: i32) {
        // SAFETY: within the kernel's range. That the C library keeps two real-time signals to itself is no concern here:
        // the number is only passed to the kernel, for a process that is not ours.
        #[allow(unsafe_code)]
        let signal = unsafe { Signal::from_raw_unchecked(number) };
        let _ = self.running().kill(signal);
    }

    fn spread(&self, stream: Stream, bytes: &[u8]) {
        if let Some(log) = lock(&self.log).as_mut()
            && let Err(error) = log.write(stream, bytes)
        {
            tracing::warn!(%error, "output of the container is not in its log");
        }
        // Not under the list's lock: while one client is slow others must be able to come.
        let clients: Vec<Arc<Client>> = lock(&self.clients).iter().filter(|c| c.output).cloned().collect();
        for client in clients {
            if send_output(&mut *lock(&client.socket), stream, bytes).is_err() {
                lock(&self.clients).retain(|c| !Arc::ptr_eq(c, &client));
            }
        }
    }

    /// Waits until the process and every other of its sandbox has ended and all output is handed on.
    pub(super) fn finish(&self, pumps: Vec<JoinHandle<()>>) -> Result<Ended> {
        let exit = self.running().wait();
        for pump in pumps {
            let _ = pump.join();
        }
        if let Some(log) = lock(&self.log).as_mut() {
            let _ = log.finish();
        }
        exit.map(|exit| Ended { status: exit.status(), oom: exit.oom })
    }

    /// Tells everybody how it ended and lets them go.
    pub(super) fn tell_end(&self, ended: &Ended) {
        let clients = std::mem::take(&mut *lock(&self.clients));
        for client in clients {
            let mut socket = lock(&client.socket);
            // Who has stopped reading does not keep the monitor alive.
            let _ = socket.set_write_timeout(Some(Duration::from_secs(10)));
            let _ = Frame::Ended(*ended).send(&mut *socket);
            let _ = socket.shutdown(Shutdown::Write);
        }
    }
}

/// The process's streams: what feeds it, and what it says.
fn streams(mut running: Running, input: Input) -> Result<(Arc<Running>, Option<File>, Outputs)> {
    let mut outputs = Vec::new();
    let stdin = match &running.terminal {
        Some(master) => {
            let duplicate = |e| Error::system("duplicate the terminal", e);
            outputs.push((Stream::Stdout, File::from(master.try_clone().map_err(duplicate)?)));
            (input != Input::Closed).then_some(master.try_clone().map_err(duplicate)?)
        }
        None => running.stdin.take(),
    };
    let file = |fd: Option<OwnedFd>| fd.map(File::from);
    outputs.extend(file(running.stdout.take()).map(|f| (Stream::Stdout, f)));
    outputs.extend(file(running.stderr.take()).map(|f| (Stream::Stderr, f)));
    Ok((Arc::new(running), file(stdin), Outputs(outputs)))
}

/// The output ends of a session that nobody reads yet.
pub(super) struct Outputs(Vec<(Stream, File)>);

impl Outputs {
    /// Starts a thread for each.
    pub(super) fn pump(self, session: &Arc<Session>) -> io::Result<Vec<JoinHandle<()>>> {
        let spawn = |(stream, file)| {
            let session = Arc::clone(session);
            thread::Builder::new().name("output".into()).spawn(move || pump(&session, stream, file))
        };
        self.0.into_iter().map(spawn).collect()
    }
}

fn pump(session: &Session, stream: Stream, mut from: File) {
    let mut buffer = vec![0; 32 * 1024];
    loop {
        match from.read(&mut buffer) {
            Ok(0) => return,
            Ok(n) => session.spread(stream, &buffer[..n]),
            Err(error) if error.kind() == io::ErrorKind::Interrupted => {}
            // A terminal's master says EIO when the last process that had it open is gone.
            Err(_) => return,
        }
    }
}
