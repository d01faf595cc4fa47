//! [`Running`]: the handle on a sandbox that was started.

use std::io;
use std::net::Shutdown;
use std::os::fd::{AsFd, BorrowedFd, OwnedFd};
use std::os::unix::net::UnixStream;
use std::process::Child;
use std::sync::Mutex;
use std::time::Duration;

use rustix::process::{Signal, pidfd_send_signal};
use rustix::termios::{Winsize, tcsetwinsize};
use serde::{Deserialize, Serialize};

use super::cgroups::Cgroup;
use super::external::ExternalRuntime;
use super::supervise::Reply;
use super::wire;
use crate::error::{Error, Result};

/// A started sandbox. Dropping it kills every process in it and waits until its mounts and its cgroup are gone.
#[derive(Debug)]
pub struct Running {
    /// The write end of standard input, with [`super::Stdio::Pipes`].
    pub stdin: Option<OwnedFd>,
    /// The read ends, with [`super::Stdio::Pipes`] and [`super::Stdio::Output`].
    pub stdout: Option<OwnedFd>,
    pub stderr: Option<OwnedFd>,
    /// The terminal's master, with [`super::Stdio::Terminal`].
    pub terminal: Option<OwnedFd>,
    pid: i32,
    pidfd: OwnedFd,
    socket: UnixStream,
    supervisor: Child,
    cgroup: Option<Cgroup>,
    /// Who made it, where that was not us, and the id it knows it by.
    runtime: Option<(ExternalRuntime, String)>,
    exit: Mutex<Option<Exit>>,
}

/// How a sandbox ended.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
pub struct Exit {
    /// The first process's exit status, if it exited.
    pub code: Option<i32>,
    /// The signal that ended it otherwise.
    pub signal: Option<i32>,
    /// Whether the kernel killed any process of it for want of memory.
    pub oom: bool,
    /// The most memory used at once, in bytes: of all processes where a memory cgroup counts it, else of the largest.
    pub peak_memory: Option<u64>,
    /// Processor time of all its processes.
    pub cpu: Duration,
}

impl Exit {
    /// The status as shells and docker tell it: the code, or 128 and the signal.
    pub fn status(&self) -> i32 {
        self.code.or(self.signal.map(|signal| 128 + signal)).unwrap_or(255)
    }
}

/// The caller's ends of the streams.
#[derive(Debug, Default)]
pub(super) struct Streams {
    pub(super) stdin: Option<OwnedFd>,
    pub(super) stdout: Option<OwnedFd>,
    pub(super) stderr: Option<OwnedFd>,
}

/// What the supervisor's first reply says.
#[derive(Debug)]
pub(super) struct Started {
    pub(super) pid: i32,
    pub(super) pidfd: OwnedFd,
    pub(super) terminal: Option<OwnedFd>,
}

impl Running {
    pub(super) fn new(
        started: Started,
        streams: Streams,
        socket: UnixStream,
        supervisor: Child,
        cgroup: Option<Cgroup>,
    ) -> Self {
        Running {
            stdin: streams.stdin,
            stdout: streams.stdout,
            stderr: streams.stderr,
            terminal: started.terminal,
            pid: started.pid,
            pidfd: started.pidfd,
            socket,
            supervisor,
            cgroup,
            runtime: None,
            exit: Mutex::new(None),
        }
    }

    /// The same, of a container whose signals go by another runtime.
    pub(super) fn of_runtime(mut self, runtime: ExternalRuntime, id: String) -> Self {
        self.runtime = Some((runtime, id));
        self
    }

    /// The first process, as the caller's pid namespace numbers it.
    pub fn pid(&self) -> i32 {
        self.pid
    }

    /// Readable once the first process has ended.
    pub fn pidfd(&self) -> BorrowedFd<'_> {
        self.pidfd.as_fd()
    }

    /// Waits for the end. Every process is dead when this returns; may be called again, and from several threads.
    pub fn wait(&self) -> Result<Exit> {
        let mut exit = self.exit.lock().unwrap_or_else(|poisoned| poisoned.into_inner());
        if let Some(exit) = *exit {
            return Ok(exit);
        }
        match wire::receive::<Reply>(&self.socket) {
            Ok(Some((Reply::Exited(ended), _))) => {
                *exit = Some(ended);
                Ok(ended)
            }
            Ok(Some((Reply::Failed(failure), _))) => Err(failure.into()),
            Ok(_) => Err(Error::Lost("its supervisor was killed, so the exit status is unknown".to_owned())),
            Err(error) => Err(Error::system("read the exit status of a sandbox", error)),
        }
    }

    /// Sends a signal to the first process. Quiet when it has ended already.
    pub fn kill(&self, signal: Signal) -> Result<()> {
        if let Some((runtime, id)) = &self.runtime
            && runtime.kill(id, signal)
        {
            return Ok(());
        }
        match pidfd_send_signal(&self.pidfd, signal) {
            Ok(()) | Err(rustix::io::Errno::SRCH) => Ok(()),
            Err(error) => Err(Error::system(format!("signal process {}", self.pid), error)),
        }
    }

    /// Kills every process of the sandbox; [`Running::wait`] then returns.
    pub fn end(&self) -> Result<()> {
        match self.socket.shutdown(Shutdown::Write) {
            Err(error) if error.kind() != io::ErrorKind::NotConnected => Err(Error::system("end a sandbox", error)),
            _ => Ok(()),
        }
    }

    /// Tells the terminal its new size.
    pub fn resize(&self, rows: u16, columns: u16) -> Result<()> {
        let Some(terminal) = &self.terminal else {
            return Err(Error::Refused("a process without a terminal cannot be resized".to_owned()));
        };
        let size = Winsize { ws_row: rows, ws_col: columns, ws_xpixel: 0, ws_ypixel: 0 };
        tcsetwinsize(terminal, size).map_err(|error| Error::system("resize the terminal", error))
    }

    /// The cgroup, for statistics and freezing; `None` for an entered process, which is in its target's.
    pub fn cgroup(&self) -> Option<&Cgroup> {
        self.cgroup.as_ref()
    }
}

impl Drop for Running {
    fn drop(&mut self) {
        let _ = self.socket.shutdown(Shutdown::Write);
        let orderly = self.supervisor.wait().is_ok_and(|status| status.success());
        if !orderly {
            // The supervisor was killed from outside: do its work.
            let _ = pidfd_send_signal(&self.pidfd, Signal::KILL);
            if let Some(cgroup) = &self.cgroup {
                cgroup.kill();
                cgroup.remove();
            }
        }
    }
}
