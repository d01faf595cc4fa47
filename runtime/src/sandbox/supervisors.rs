//! Supervisors: this program executed again, from where nobody can write it, and one kept ready.
//!
//! Starting the program is a good part of starting a sandbox, and all of it can be done before one knows what will run.

use std::fs::{self, File};
use std::io;
use std::mem;
use std::os::fd::{AsRawFd, OwnedFd};
use std::os::unix::fs::MetadataExt;
use std::os::unix::net::UnixStream;
use std::os::unix::process::CommandExt;
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio as ChildStdio};
use std::sync::{Arc, Mutex, MutexGuard, OnceLock};
use std::thread;
use std::time::Duration;

use rustix::fs::{MemfdFlags, Mode, OFlags, SealFlags, fcntl_add_seals, memfd_create, openat};
use tracing::debug;

use super::overlay;
use super::supervise::MARKER;
use crate::error::{Error, Result};

/// Where supervisors come from. Dropping it ends the one that is ready.
#[derive(Debug)]
pub(super) struct Supervisors(Arc<Source>);

#[derive(Debug)]
struct Source {
    helper: PathBuf,
    /// An empty directory to seal the program with.
    empty: PathBuf,
    sealed: OnceLock<Sealed>,
    ready: Mutex<Ready>,
}

#[derive(Debug)]
enum Ready {
    Nobody,
    /// Waits for its request; ends when the socket closes.
    One(Box<(Child, UnixStream)>),
    /// Nobody will ask any more.
    Closed,
}

impl Supervisors {
    pub(super) fn new(helper: PathBuf, empty: PathBuf) -> Self {
        let ready = Mutex::new(Ready::Nobody);
        Supervisors(Arc::new(Source { helper, empty, sealed: OnceLock::new(), ready }))
    }

    /// A supervisor that waits for its request on the socket.
    pub(super) fn take(&self) -> Result<(Child, UnixStream)> {
        let ready = mem::replace(&mut *self.0.ready(), Ready::Nobody);
        if let Ready::One(mut one) = ready
            && matches!(one.0.try_wait(), Ok(None))
        {
            return Ok(*one);
        }
        self.0.spawn()
    }

    /// Makes one ready, on a thread of its own.
    pub(super) fn prepare(&self) {
        if !matches!(*self.0.ready(), Ready::Nobody) {
            return;
        }
        let source = Arc::clone(&self.0);
        // Nothing depends on it: without the thread the next start only takes longer.
        let _ = thread::Builder::new().name("prepare".to_owned()).spawn(move || {
            let Ok(one) = source.spawn() else { return };
            let mut ready = source.ready();
            match *ready {
                Ready::Nobody => *ready = Ready::One(Box::new(one)),
                Ready::One(_) | Ready::Closed => {
                    drop(ready);
                    end(one);
                }
            }
        });
    }
}

impl Drop for Supervisors {
    fn drop(&mut self) {
        let ready = mem::replace(&mut *self.0.ready(), Ready::Closed);
        if let Ready::One(one) = ready {
            end(*one);
        }
    }
}

fn end((mut child, socket): (Child, UnixStream)) {
    drop(socket);
    let _ = child.wait();
}

impl Source {
    fn ready(&self) -> MutexGuard<'_, Ready> {
        self.ready.lock().unwrap_or_else(|poisoned| poisoned.into_inner())
    }

    fn spawn(&self) -> Result<(Child, UnixStream)> {
        let (ours, theirs) = UnixStream::pair().map_err(|error| Error::system("make a socket pair", error))?;
        let program = match self.sealed.get() {
            Some(sealed) => sealed.path(),
            None => {
                let sealed = seal(&self.helper, &self.empty)?;
                self.sealed.get_or_init(|| sealed).path()
            }
        };
        // With these settings the standard library uses posix_spawn, hence vfork: nothing of this process is copied.
        let mut command = Command::new(&program);
        command.arg0(MARKER).env_clear().stdout(ChildStdio::null()).stderr(ChildStdio::null());
        command.stdin(ChildStdio::from(OwnedFd::from(theirs)));
        let child = spawn_patiently(&mut command);
        Ok((child.map_err(|error| Error::system(format!("execute {}", self.helper.display()), error))?, ours))
    }
}

/// The helper's executable where nobody can write it: on an unattached overlay of its directory without an upper, hence
/// read-only for ever, or in sealed memory. An open file, so that replacing the program on disk changes nothing.
#[derive(Debug)]
struct Sealed(OwnedFd);

impl Sealed {
    fn path(&self) -> PathBuf {
        Path::new("/proc/self/fd").join(self.0.as_raw_fd().to_string())
    }
}

fn seal(helper: &Path, empty: &Path) -> Result<Sealed> {
    let action = |error: io::Error| Error::system(format!("open the program {}", helper.display()), error);
    let wanted = fs::metadata(helper).map_err(action)?;
    match on_overlay(helper, empty) {
        // Somebody may have put another program there since this one was started.
        Ok(file) => match rustix::fs::fstat(&file) {
            Ok(stat) if stat.st_size as u64 == wanted.len() && stat.st_mtime == wanted.mtime() => {
                return Ok(Sealed(file));
            }
            _ => debug!("{} is no longer the program", helper.display()),
        },
        Err(error) => debug!("the program goes to memory: {error}"),
    }
    let flags = MemfdFlags::CLOEXEC | MemfdFlags::ALLOW_SEALING;
    let memory = memfd_create("rbuild", flags).map_err(|error| action(error.into()))?;
    let mut memory = File::from(memory);
    io::copy(&mut File::open(helper).map_err(action)?, &mut memory).map_err(action)?;
    let seals = SealFlags::SEAL | SealFlags::SHRINK | SealFlags::GROW | SealFlags::WRITE;
    fcntl_add_seals(&memory, seals).map_err(|error| action(error.into()))?;
    // The descriptor that wrote must go: a file open for writing cannot be executed.
    let path = format!("/proc/self/fd/{}", memory.as_raw_fd());
    Ok(Sealed(File::open(path).map_err(action)?.into()))
}

/// A process that another thread is just spawning holds, for an instant, a descriptor that wrote the program.
fn spawn_patiently(command: &mut Command) -> io::Result<Child> {
    for _ in 0..100 {
        match command.spawn() {
            Err(error) if error.kind() == io::ErrorKind::ExecutableFileBusy => thread::sleep(Duration::from_millis(1)),
            spawned => return spawned,
        }
    }
    command.spawn()
}

fn on_overlay(helper: &Path, empty: &Path) -> Result<OwnedFd> {
    let action = |error: io::Error| Error::system(format!("open the program {}", helper.display()), error);
    let path = fs::canonicalize(helper).map_err(action)?;
    let (Some(directory), Some(name)) = (path.parent(), path.file_name()) else {
        return Err(Error::Refused(format!("{} is not a program", path.display())));
    };
    let tree = overlay::read_only(&[directory, empty])?;
    openat(&tree, name, OFlags::PATH | OFlags::CLOEXEC, Mode::empty()).map_err(|error| action(error.into()))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_program_is_on_an_overlay_or_in_memory() {
        let dir = tempfile::tempdir().unwrap();
        let (bin, empty) = (dir.path().join("bin"), dir.path().join("empty"));
        let program = bin.join("program");
        fs::create_dir(&bin).and_then(|()| fs::create_dir(&empty)).unwrap();
        fs::copy("/bin/busybox", &program).unwrap();
        let works = |sealed: &Sealed| {
            let mut child = spawn_patiently(Command::new(sealed.path()).arg0("true")).unwrap();
            child.wait().unwrap().success()
        };

        let sealed = seal(&program, &empty).unwrap();
        let denied = File::options().write(true).open(sealed.path()).unwrap_err();
        assert_eq!(denied.raw_os_error(), Some(libc::EROFS));
        assert!(works(&sealed));
        fs::remove_file(&program).unwrap();
        fs::write(&program, "another").unwrap();
        assert!(works(&sealed), "replaced on disk");

        let sealed = seal(Path::new("/bin/busybox"), Path::new("/no/such/directory")).unwrap();
        let mut opened = File::options().write(true).open(sealed.path()).unwrap();
        assert_eq!(io::Write::write(&mut opened, b"x").unwrap_err().raw_os_error(), Some(libc::EPERM));
        drop(opened);
        assert!(works(&sealed));
    }
}
