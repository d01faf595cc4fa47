//! The monitor of a container: starts it, owns its streams and log, and writes down how it ended.
//!
//! It is either a process of its own ([`spawn`], the same binary executed again), which outlives the command that
//! started it, or a thread of the command ([`run_here`]) for a container that is to end with the command anyway: without
//! a second process between the pipes a short container starts and ends faster. Both are the same code and listen on
//! the container's socket, so attaching, signalling and waiting work alike.

mod book;
mod health;
mod home;
mod restart;
mod session;
mod teller;
mod terms;
pub(crate) mod wire;
mod wiring;

use std::env;
use std::fs;
use std::io;
use std::os::fd::OwnedFd;
use std::os::unix::net::{UnixListener, UnixStream};
use std::os::unix::process::CommandExt;
use std::path::Path;
use std::process::{Command, Stdio as ChildStdio};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::thread;
use std::time::{Duration, Instant};

use rustix::process::{PidfdFlags, pidfd_open, setsid};
use serde::{Deserialize, Serialize};
use time::OffsetDateTime;

use crate::container::{
    Attached, Attachment, Change, ContainerLock, ContainerSpec, Ended, ExecSpec, Handles, Input, RestartPolicy,
    StartFailure, State, connect, sandbox, socket_address,
};
use crate::error::{Error, Result};
use crate::logs::{BufferedLog, LogSink, LogTerms, LogWriter, rfc3339};
use crate::network::Namespace;
use crate::passing;
use crate::sandbox::{SandboxOptions, Stdio};
use book::Book;
use restart::Restarts;
use session::{Asked, Outputs, Session};
use teller::Teller;
use terms::Terms;
use wire::{Frame, Hello};
use wiring::Wiring;

/// Argument zero of a monitor.
const MARKER: &str = "rbuild-monitor";

/// What a starter hands to the monitor.
#[derive(Debug)]
pub struct Start {
    pub spec: ContainerSpec,
    pub namespace: Option<Namespace>,
    /// The user namespace of a container that has its own.
    pub user: Option<OwnedFd>,
    pub lock: ContainerLock,
    /// Whether the starter's connection feeds the input, and whether it is told of output.
    pub stdin: bool,
    pub output: bool,
    /// Handed to [`AtEnd`] as it is.
    pub note: String,
}

/// What happens after a container's end while its lock is still held: `(directory's id, note of the starter)`.
pub type AtEnd = Box<dyn FnOnce(&ContainerSpec, &str) + Send>;

/// The form in which a [`Start`] crosses to another process; descriptors go beside it.
#[derive(Serialize, Deserialize)]
struct Handed {
    spec: ContainerSpec,
    stdin: bool,
    output: bool,
    note: String,
}

/// Starts the container under a monitor process. The attachment's first event says whether it runs.
pub fn spawn(start: Start) -> Result<Attachment> {
    let (ours, theirs) = UnixStream::pair().map_err(|e| Error::system("make a socket pair", e))?;
    let program = fs::canonicalize(&start.spec.helper)
        .map_err(|e| Error::system(format!("find the program {}", start.spec.helper.display()), e))?;
    let mut child = Command::new(&program)
        .arg0(MARKER)
        .env_clear()
        .current_dir("/")
        .stdin(ChildStdio::from(OwnedFd::from(theirs)))
        .stdout(ChildStdio::null())
        .stderr(ChildStdio::null())
        .spawn()
        .map_err(|e| Error::system(format!("execute {}", program.display()), e))?;
    let mut fds = vec![start.lock.into_fd()];
    fds.extend(start.user);
    fds.extend(start.namespace.map(Namespace::into_fd));
    let handed = Handed { spec: start.spec, stdin: start.stdin, output: start.output, note: start.note };
    let sent =
        serde_json::to_vec(&handed).map_err(io::Error::from).and_then(|bytes| passing::send(&ours, &bytes, &fds));
    // A starter that lives longer than the monitor (it is attached) takes its exit status, so that no zombie stays.
    let reaper = thread::Builder::new().name("monitor".into()).spawn(move || child.wait());
    sent.map_err(|e| Error::system("talk to the monitor", e))?;
    reaper.map_err(|e| Error::system("start a thread", e))?;
    Ok(Attachment::new(ours))
}

/// Starts the container under a thread of this process: it ends when this process does.
pub fn run_here(start: Start, at_end: AtEnd) -> Result<Attachment> {
    let (ours, theirs) = UnixStream::pair().map_err(|e| Error::system("make a socket pair", e))?;
    thread::Builder::new()
        .name("monitor".into())
        .spawn(move || monitor(start, theirs, at_end, false))
        .map_err(|e| Error::system("start a thread", e))?;
    Ok(Attachment::new(ours))
}

/// Becomes a monitor when the program was started as one, and says with which status to exit; `None` in every
/// other process. Must come first in `main`. `at_end` runs after the container's end.
pub fn monitor_main(at_end: AtEnd) -> Option<i32> {
    if env::args_os().next()? != MARKER {
        return None;
    }
    let _ = setsid();
    // Before there are threads, which inherit it. Unblocked they would end the monitor, and all with it, at once.
    let _ = crate::sandbox::block_end();
    // What the starter's shell had open is not the container's to keep: a lock, or a pipe whose end somebody awaits.
    crate::sandbox::close_inherited();
    Some(i32::from(serve(at_end).is_err()))
}

fn serve(at_end: AtEnd) -> io::Result<()> {
    let socket = rustix::io::fcntl_dupfd_cloexec(rustix::stdio::stdin(), 3)?;
    let null = fs::OpenOptions::new().read(true).write(true).open("/dev/null")?;
    rustix::stdio::dup2_stdin(&null)?;
    let socket = UnixStream::from(socket);
    let (bytes, fds) = passing::receive(&socket)?;
    let handed: Handed = serde_json::from_slice(&bytes)?;
    let mut fds = fds.into_iter();
    let lock = fds.next().ok_or(io::ErrorKind::InvalidData)?;
    let user = if handed.spec.ids.is_some() { fds.next() } else { None };
    let start = Start {
        user,
        namespace: fds.next().map(Namespace::from_fd),
        lock: ContainerLock::from_fd(lock),
        spec: handed.spec,
        stdin: handed.stdin,
        output: handed.output,
        note: handed.note,
    };
    monitor(start, socket, at_end, true);
    Ok(())
}

/// A container from its first start to its last end. `stays` says that it may outlive the command that started it.
fn monitor(start: Start, mut starter: UnixStream, at_end: AtEnd, stays: bool) {
    let Start { spec, namespace, user, lock, stdin, output, note } = start;
    let book =
        Arc::new(Book::new(&spec.directory, State { connections: spec.connections.clone(), ..State::default() }));
    let handles = Handles { user, network: namespace.map(Namespace::into_fd) };
    // Who is started once gives its network away: it is gone with the sandbox, without waiting for the monitor.
    let kept = match spec.restart {
        RestartPolicy::Never => Ok(None),
        _ => handles.try_clone().map(Some),
    };
    let begun = kept.map_err(|e| Error::system("keep the network", e));
    let begun = begun.and_then(|kept| begin(&spec, handles).map(|begun| (begun, kept)));
    let (Begun { session, outputs, listener, wiring }, kept) = match begun {
        Ok(begun) => begun,
        Err(error) => {
            let failure = StartFailure::from(&error);
            book.change(|state| {
                state.exit_code = failure.exit_code.map_or(128, i32::from);
                state.error.clone_from(&failure.message);
            });
            at_end(&spec, &note);
            drop(lock);
            let _ = Frame::Failed(failure).send(&mut starter);
            return;
        }
    };
    let ports = wiring.ports();
    book.started(session.pid(), spec.health.is_some(), |state| state.ports = ports);
    let teller = Arc::new(Teller::new(&spec));
    teller.started(&spec.connections);
    let _ = Frame::Started { pid: session.pid() }.send(&mut starter);
    session.attach(starter, stdin, output);
    let terms = Terms::new(spec.restart, kept);
    let care = Arc::new(Care { wiring, book: Arc::clone(&book), teller, terms, ended: Mutex::new(false) });
    listen(listener, &session, &spec, &care);
    if stays {
        home::leave_with(&spec.directory, &session);
        home::leave_when_told(&session);
    }
    let ended = lives(&spec, &session, outputs, &care);
    care.end();
    let _ = fs::remove_file(spec.directory.join("socket"));
    at_end(&spec, &note);
    drop(lock);
    session.tell_end(&ended);
}

/// What a monitor has of its container beside the streams: what may change, and where changes are written down and told.
struct Care {
    wiring: Wiring,
    book: Arc<Book>,
    teller: Arc<Teller>,
    terms: Terms,
    ended: Mutex<bool>,
}

impl Care {
    fn change(&self, spec: &ContainerSpec, change: &Change, pid: i32) -> Result<()> {
        let ended = self.lock();
        if *ended {
            return Err(Error::Refused("the container has ended".to_owned()));
        }
        let changed = match change {
            Change::Join(joining) => {
                self.wiring.join(joining, pid).inspect(|()| self.tell("connect", &joining.network))
            }
            Change::Leave { network } => {
                let before = self.wiring.connections();
                self.wiring.leave(network, pid).inspect(|()| {
                    let gone = before.iter().filter(|connection| connection.network == *network);
                    gone.for_each(|connection| self.teller.network("disconnect", connection));
                })
            }
            Change::Rename { from, to } => {
                self.wiring.rename(from, to);
                self.teller.renamed(to);
                Ok(())
            }
            Change::Terms(new) => self.terms.change(spec, new, pid),
        };
        // Also after a failure, which may have come half-way.
        let (connections, ports) = (self.wiring.connections(), self.wiring.ports());
        self.book.change(|state| (state.connections, state.ports) = (connections, ports));
        changed
    }

    fn tell(&self, action: &str, network: &str) {
        let connections = self.wiring.connections();
        let found = connections.iter().filter(|connection| connection.network == network);
        found.for_each(|connection| self.teller.network(action, connection));
    }

    /// Ends what listens, before anybody is told of the end: who starts the container again at once finds its ports free.
    fn end(&self) {
        *self.lock() = true;
        self.wiring.end();
    }

    fn lock(&self) -> MutexGuard<'_, bool> {
        self.ended.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

/// Its lives, one after the other; how the last one ended.
fn lives(spec: &ContainerSpec, session: &Arc<Session>, mut outputs: Outputs, care: &Care) -> Ended {
    let Care { wiring, book, teller, terms, .. } = care;
    let mut restarts = Restarts::default();
    loop {
        let begun = Instant::now();
        let ended = life(spec, session, outputs, care);
        let asked = session.asked_within(Duration::ZERO);
        let again = restarts.after(&terms.restart(), &ended, begun.elapsed());
        let again = again.filter(|_| asked == Asked::No);
        book.ended(&ended, again.is_some(), asked == Asked::ToStop);
        teller.ended(&ended, &wiring.connections());
        let Some(wait) = again else { return ended };
        // Who is attached is attached to one life, as with docker.
        session.tell_end(&ended);
        let asked = session.asked_within(wait);
        // Its policy may be another one by now.
        if asked != Asked::No || terms.restart() == RestartPolicy::Never {
            book.change(|state| (state.restarting, state.stopped) = (false, asked == Asked::ToStop));
            return ended;
        }
        match live_again(spec, terms, session) {
            Ok(fresh) => outputs = fresh,
            Err(error) => {
                book.change(|state| {
                    state.restarting = false;
                    state.error = error.to_string();
                });
                return ended;
            }
        }
        book.started(session.pid(), spec.health.is_some(), |state| state.restarts += 1);
        teller.started(&wiring.connections());
    }
}

fn life(spec: &ContainerSpec, session: &Arc<Session>, outputs: Outputs, care: &Care) -> Ended {
    let _probing = health::probe(spec, session.pid(), &care.book, &care.teller);
    let ended = match outputs.pump(session).map_err(|e| Error::system("start a thread", e)) {
        Ok(pumps) => session.finish(pumps),
        Err(error) => Err(error),
    };
    ended.unwrap_or_else(|error| {
        care.book.change(|state| state.error = error.to_string());
        Ended { status: 255, oom: false }
    })
}

fn live_again(spec: &ContainerSpec, terms: &Terms, session: &Session) -> Result<Outputs> {
    let running = spec.sandbox()?.start(terms.next_life(spec)?)?;
    session.renew(running)
}

struct Begun {
    session: Arc<Session>,
    outputs: Outputs,
    listener: UnixListener,
    wiring: Wiring,
}

fn begin(spec: &ContainerSpec, handles: Handles) -> Result<Begun> {
    let listener = bind(spec)?;
    let log = spec.log.as_ref().map(|terms| open_log(&spec.directory.join("log"), terms)).transpose();
    let log = log.map_err(|e| Error::system("open the container's log", e))?;
    let Handles { user, network } = handles;
    let namespace = network.map(Namespace::from_fd);
    let wiring = Wiring::start(spec, namespace.as_ref())?;
    let sandbox = spec.sandbox()?;
    let handles = Handles { user, network: namespace.map(Namespace::into_fd) };
    let running = sandbox.start(spec.process_spec(handles)?)?;
    let (session, outputs) = Session::new(running, log, spec.stdin, spec.stop_signal)?;
    Ok(Begun { session, outputs, listener, wiring })
}

fn open_log(path: &Path, terms: &LogTerms) -> io::Result<LogSink> {
    let writer = LogWriter::open(path, terms.clone())?;
    Ok(match terms.buffer {
        Some(buffer) => LogSink::Buffered(BufferedLog::start(writer, buffer.bytes)?),
        None => LogSink::Direct(writer),
    })
}

fn bind(spec: &ContainerSpec) -> Result<UnixListener> {
    let _ = fs::remove_file(spec.directory.join("socket"));
    socket_address(&spec.directory)
        .and_then(|(_directory, address)| UnixListener::bind(address))
        .map_err(|e| Error::system("make the container's socket", e))
}

/// Accepts connections until the process is gone. The thread ends with the process it belongs to: a monitor's `main`
/// returns, and a command that ran the container itself exits.
fn listen(listener: UnixListener, session: &Arc<Session>, spec: &ContainerSpec, care: &Arc<Care>) {
    let session = Arc::downgrade(session);
    let care = Arc::clone(care);
    let spec = spec.clone();
    let accept = move || {
        for connection in listener.incoming() {
            let Ok(mut socket) = connection else { return };
            let Some(session) = session.upgrade() else { return };
            let _ = socket.set_read_timeout(Some(Duration::from_secs(10)));
            let hello = Frame::receive(&mut socket);
            let _ = socket.set_read_timeout(None);
            match hello {
                Ok(Some(Frame::Hello(Hello::Attach { stdin, output }))) => session.attach(socket, stdin, output),
                Ok(Some(Frame::Hello(Hello::Exec(exec)))) => exec_here(&spec, &session, &care.teller, *exec, socket),
                Ok(Some(Frame::Hello(Hello::Change(change)))) => {
                    let answer = match care.change(&spec, &change, session.pid()) {
                        Ok(()) => Frame::Done,
                        Err(error) => Frame::Failed((&error).into()),
                    };
                    let _ = answer.send(&mut socket);
                }
                _ => {}
            }
        }
    };
    if thread::Builder::new().name("listener".into()).spawn(accept).is_err() {
        tracing::warn!("nobody can attach to the container");
    }
}

/// Runs a process nobody is attached to; it lives in the monitor's care until it or the container ends.
fn exec_here(
    spec: &ContainerSpec,
    session: &Arc<Session>,
    teller: &Arc<Teller>,
    exec: ExecSpec,
    mut socket: UnixStream,
) {
    let answer = enter(spec.sandbox_options(), &exec, session.pid(), Stdio::Null);
    let frame = match &answer {
        Ok(running) => Frame::Started { pid: running.pid() },
        Err(error) => Frame::Failed(error.into()),
    };
    let _ = frame.send(&mut socket);
    if let Ok(running) = answer {
        let teller = Arc::clone(teller);
        let wait = move || {
            let status = running.wait().map_or(255, |exit| exit.status());
            teller.note("exec_die", &[("execID", &exec.exec_id), ("exitCode", &status.to_string())]);
        };
        let _ = thread::Builder::new().name("exec".into()).spawn(wait);
    }
}

fn enter(options: SandboxOptions, exec: &ExecSpec, pid: i32, stdio: Stdio) -> Result<crate::Running> {
    let gone = || Error::Refused(format!("process {pid} of the container is gone"));
    let target = rustix::process::Pid::from_raw(pid).ok_or_else(gone)?;
    let target = pidfd_open(target, PidfdFlags::empty()).map_err(|_| gone())?;
    sandbox(options, exec.runtime.as_ref())?.enter(exec.enter_spec(target, stdio))
}

/// Runs one more process in a container, with its streams on the attachment; it ends when this process does. `at_end` is
/// told its exit status before anybody else.
pub fn exec(
    options: SandboxOptions,
    exec: &ExecSpec,
    pid: i32,
    at_end: Box<dyn FnOnce(i32) + Send>,
) -> Result<Attachment> {
    let stdio = match exec.terminal {
        Some((rows, columns)) => Stdio::Terminal { rows, columns },
        None if exec.stdin => Stdio::Pipes,
        None => Stdio::Output,
    };
    let running = enter(options, exec, pid, stdio)?;
    let (ours, mut theirs) = UnixStream::pair().map_err(|e| Error::system("make a socket pair", e))?;
    let input = if exec.stdin { Input::Once } else { Input::Closed };
    let (session, outputs) = Session::new(running, None, input, None)?;
    let _ = Frame::Started { pid: session.pid() }.send(&mut theirs);
    session.attach(theirs, exec.stdin, true);
    let follow = move || {
        let ended = outputs.pump(&session).map_err(|e| Error::system("start a thread", e));
        let ended = ended.and_then(|pumps| session.finish(pumps)).unwrap_or(Ended { status: 255, oom: false });
        at_end(ended.status);
        session.tell_end(&ended);
    };
    thread::Builder::new().name("exec".into()).spawn(follow).map_err(|e| Error::system("start a thread", e))?;
    Ok(Attachment::new(ours))
}

/// Has the container's monitor run a process that nobody is attached to.
pub fn exec_detached(directory: &Path, exec: ExecSpec) -> Result<std::result::Result<i32, StartFailure>> {
    let failed = |e: io::Error| Error::system("talk to the container's monitor", e);
    let socket = connect(directory, Hello::Exec(Box::new(exec))).map_err(failed)?;
    match Attachment::new(socket).next_event().map_err(failed)? {
        Some(Attached::Started { pid }) => Ok(Ok(pid)),
        Some(Attached::Failed(failure)) => Ok(Err(failure)),
        _ => Err(Error::Lost("the container ended".to_owned())),
    }
}

/// Has the container's monitor change something; `None` when it does not run.
pub fn change(directory: &Path, change: Change) -> Result<Option<std::result::Result<(), StartFailure>>> {
    let failed = |e: io::Error| Error::system("talk to the container's monitor", e);
    let mut socket = match connect(directory, Hello::Change(change)) {
        Ok(socket) => socket,
        Err(error) if matches!(error.kind(), io::ErrorKind::NotFound | io::ErrorKind::ConnectionRefused) => {
            return Ok(None);
        }
        Err(error) => return Err(failed(error)),
    };
    match Frame::receive(&mut socket) {
        Ok(Some(Frame::Done)) => Ok(Some(Ok(()))),
        Ok(Some(Frame::Failed(failure))) => Ok(Some(Err(failure))),
        Ok(_) => Ok(None),
        Err(error) if error.kind() == io::ErrorKind::ConnectionReset => Ok(None),
        Err(error) => Err(failed(error)),
    }
}

fn now() -> String {
    rfc3339(OffsetDateTime::now_utc())
}
