//! `--init`: a first process that starts the program as its child, passes signals on to it and takes in orphans.
//!
//! It is this same binary, in the place and with the rights the program would have had: the process that was to execute
//! the program forks just before, so nothing of the sandbox differs. A program that is not made to be process 1
//! neither gets the default action of signals nor waits for children that are not its own; here both are as elsewhere.

use std::io;
use std::os::fd::AsFd;

use rustix::process::{Pid, Signal, WaitOptions, getpid, kill_process, setpgid};
use rustix::termios::tcsetpgrp;

use super::sys;
use crate::error::{Doing, Failure};

/// Forks; returns in the child, which is to execute the program. The parent stays and ends as the child does.
pub(super) fn split() -> Result<(), Failure> {
    // Before the fork, so that no signal and no end of the child can fall between.
    let signals = sys::block_all_signals().doing(|| "block signals".to_owned())?;
    match sys::fork().doing(|| "start the program under an init".to_owned())? {
        Some(child) => stay(child),
        None => {
            lead_the_terminal();
            signals.restore().doing(|| "unblock signals".to_owned())
        }
    }
}

/// A process group of its own, the terminal's foreground one: Ctrl-C is the program's, and its init is passed over.
fn lead_the_terminal() {
    let _ = setpgid(None, None);
    // All signals are blocked, so that this does not stop a process in the background. Without a terminal it fails.
    let _ = tcsetpgrp(rustix::stdio::stdin().as_fd(), getpid());
}

fn stay(child: Pid) -> ! {
    let _ = rustix::thread::set_name(c"init");
    // The way to the supervisor above all: its closing is the sign that the program runs.
    sys::close_from(3);
    loop {
        match sys::wait_for_signal() {
            Ok(signal) if signal == Signal::CHILD.as_raw() => {
                if let Some(status) = reap(child) {
                    sys::exit_now(status);
                }
            }
            Ok(signal) => {
                if let Some(signal) = Signal::from_named_raw(signal) {
                    let _ = kill_process(child, signal);
                }
            }
            Err(error) if error.kind() == io::ErrorKind::Interrupted => {}
            Err(_) => sys::exit_now(255),
        }
    }
}

/// Takes in all who have ended; the status to exit with when the program is among them.
fn reap(child: Pid) -> Option<i32> {
    let mut ended = None;
    while let Ok(Some((pid, status))) = rustix::process::wait(WaitOptions::NOHANG) {
        if pid == child {
            ended = status.exit_status().or_else(|| status.terminating_signal().map(|signal| 128 + signal));
        }
    }
    ended
}
