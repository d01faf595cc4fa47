//! What ends a container from outside: a container whose directory is removed under it ends, since nobody could find it
//! any more, to look at it or to stop it; and so does one whose monitor is told to end.

use std::mem::MaybeUninit;
use std::path::Path;
use std::sync::Arc;
use std::thread;

use rustix::fs::inotify::{self, CreateFlags, ReadFlags, Reader, WatchFlags};
use rustix::process::Signal;

use super::session::Session;

/// Ends the container when the monitor is asked to end: the machine stops, or what the monitor was started by. The
/// signals were blocked at the beginning of the process.
pub(super) fn leave_when_told(session: &Arc<Session>) {
    let session = Arc::downgrade(session);
    let wait = move || {
        while crate::sandbox::wait_for_end().is_ok() {
            let Some(session) = session.upgrade() else { return };
            session.leave();
        }
    };
    if let Err(error) = thread::Builder::new().name("end".into()).spawn(wait) {
        tracing::debug!(%error, "the monitor does not hear that it is to end");
    }
}

/// Ends the container when the file `lock` of its directory goes, which is what "running" means. A removal in order comes
/// after the end. Where it cannot be watched (inotify has limits) the container just lives on.
pub(super) fn leave_with(directory: &Path, session: &Arc<Session>) {
    let watch = || {
        let fd = inotify::init(CreateFlags::CLOEXEC)?;
        inotify::add_watch(&fd, directory, WatchFlags::DELETE | WatchFlags::ONLYDIR)?;
        Ok::<_, rustix::io::Errno>(fd)
    };
    let fd = match watch() {
        Ok(fd) => fd,
        Err(error) => return tracing::debug!(%error, "the container's directory is not watched"),
    };
    let session = Arc::downgrade(session);
    let wait = move || {
        let mut buffer = [MaybeUninit::uninit(); 4096];
        let mut events = Reader::new(&fd, &mut buffer);
        while let Ok(event) = events.next() {
            let gone =
                event.events().contains(ReadFlags::DELETE) && event.file_name().is_some_and(|name| name == c"lock");
            let Some(session) = session.upgrade().filter(|_| gone) else { continue };
            session.signal(Signal::KILL.as_raw());
            return;
        }
    };
    if let Err(error) = thread::Builder::new().name("home".into()).spawn(wait) {
        tracing::debug!(%error, "the container's directory is not watched");
    }
}
