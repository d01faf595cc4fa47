//! [`NativeSandbox`]: makes a request of a [`ProcessSpec`], spawns the supervisor and hands the request over.

use std::fs::{self, File};
use std::io;
use std::os::fd::{AsFd, AsRawFd, BorrowedFd, OwnedFd};
use std::os::unix::fs::MetadataExt;
use std::os::unix::net::UnixStream;
use std::os::unix::process::CommandExt;
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio as ChildStdio};
use std::sync::OnceLock;
use std::sync::atomic::{AtomicU64, Ordering};
use std::thread;
use std::time::{Duration, Instant};

use oci_spec::runtime::Process;
use rustix::fs::{MemfdFlags, Mode, OFlags, SealFlags, fcntl_add_seals, memfd_create, openat};
use rustix::pipe::{PipeFlags, pipe_with};
use tracing::debug;

use super::cgroups::{Cgroup, Hierarchies};
use super::limits;
use super::overlay;
use super::running::{Running, Started, Streams};
use super::seccomp;
use super::spec::{CgroupSpec, EnterSpec, MountSource, Network, ProcessSpec, Seccomp, Stdio, Upper};
use super::supervise::{Bind, BindSource, Enter, MARKER, Net, Reply, Request, Start, Stream};
use super::{Sandbox, wire};
use crate::error::{Error, Result};

/// What a [`NativeSandbox`] needs of its program.
#[derive(Debug, Clone)]
pub struct SandboxOptions {
    /// The executable whose `main` calls [`super::helper_main`] first; usually `/proc/self/exe`.
    pub helper: PathBuf,
    /// A private directory, made if missing, that lives as long as the sandboxes.
    pub state_dir: PathBuf,
}

/// The sandbox made by this crate, as root of the machine. Cheap to share between threads.
#[derive(Debug)]
pub struct NativeSandbox {
    helper: PathBuf,
    anchor: PathBuf,
    empty: PathBuf,
    sealed: OnceLock<Sealed>,
    hierarchies: Hierarchies,
    filters: seccomp::Cache,
    born: Instant,
    /// When the machine was last warmed, in milliseconds since `born`.
    warmed: AtomicU64,
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

impl NativeSandbox {
    pub fn new(options: SandboxOptions) -> Result<Self> {
        let anchor = options.state_dir.join("anchor");
        let empty = options.state_dir.join("empty");
        for directory in [&anchor, &empty] {
            fs::create_dir_all(directory)
                .map_err(|error| Error::system(format!("create {}", directory.display()), error))?;
        }
        Ok(NativeSandbox {
            helper: options.helper,
            anchor,
            empty,
            sealed: OnceLock::new(),
            hierarchies: Hierarchies::detect()?,
            filters: seccomp::Cache::default(),
            born: Instant::now(),
            warmed: AtomicU64::new(0),
        })
    }

    /// The cgroup hierarchies this machine shows.
    pub fn hierarchies(&self) -> &Hierarchies {
        &self.hierarchies
    }

    /// The cgroup a sandbox of this id has or had.
    pub fn cgroup(&self, spec: &CgroupSpec, id: &str) -> Result<Cgroup> {
        Ok(Cgroup::open(&self.hierarchies, &cgroup_path(spec, id)?))
    }

    /// Prepares the machine for a sandbox with limits of cgroup v1 that will be wanted within some twenty milliseconds, on
    /// a thread of its own. [`Sandbox::start`] does this itself; calling it as soon as such a start is likely hides the
    /// wait. The first call also removes cgroups that killed supervisors left.
    pub fn warm(&self) {
        const LASTS: u64 = 15;
        let now = self.born.elapsed().as_millis() as u64 + LASTS;
        let last = self.warmed.fetch_max(now, Ordering::Relaxed);
        if last + LASTS > now {
            return;
        }
        let hierarchies = self.hierarchies.clone();
        // Nothing depends on it: without the thread a start only takes longer.
        let _ = thread::Builder::new().name("warm".to_owned()).spawn(move || {
            let _ = Cgroup::warm(&hierarchies);
            if last == 0 {
                hierarchies.sweep(Path::new(DEFAULT_PARENT.trim_start_matches('/')));
            }
        });
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

    fn filter(&self, seccomp: &Seccomp, process: &Process) -> Result<Vec<u64>> {
        let capabilities = process.capabilities().as_ref().and_then(|sets| sets.bounding().clone()).unwrap_or_default();
        match seccomp {
            Seccomp::Unconfined => Ok(Vec::new()),
            Seccomp::Default => self.filters.default_profile(&capabilities),
            Seccomp::Profile(profile) => seccomp::compile(profile),
        }
    }

    fn run(&self, request: &Request, fds: &[OwnedFd], streams: Streams, cgroup: Option<&Path>) -> Result<Running> {
        let (mut child, socket) = self.spawn()?;
        let fds: Vec<BorrowedFd<'_>> = fds.iter().map(AsFd::as_fd).collect();
        let answer = wire::send(&socket, request, &fds).and_then(|()| wire::receive::<Reply>(&socket));
        let failed = match answer {
            Ok(Some((Reply::Started { pid }, mut fds))) if !fds.is_empty() => {
                let terminal = if fds.len() > 1 { fds.pop() } else { None };
                if let Some(pidfd) = fds.pop() {
                    let started = Started { pid, pidfd, terminal };
                    let cgroup = cgroup.map(|path| Cgroup::open(&self.hierarchies, path));
                    return Ok(Running::new(started, streams, socket, child, cgroup));
                }
                Error::Lost("it sent no process".to_owned())
            }
            Ok(Some((Reply::Failed(failure), _))) => failure.into(),
            Ok(_) | Err(_) => Error::Lost("it closed its socket".to_owned()),
        };
        drop(socket);
        let status = child.wait();
        if let Some(cgroup) = cgroup.map(|path| Cgroup::open(&self.hierarchies, path))
            && !status.as_ref().is_ok_and(|status| status.success())
        {
            cgroup.kill();
            cgroup.remove();
        }
        Err(match (failed, status) {
            (Error::Lost(what), Ok(status)) => Error::Lost(format!("{what}; {status}")),
            (failed, _) => failed,
        })
    }
}

impl Sandbox for NativeSandbox {
    fn start(&self, spec: ProcessSpec) -> Result<Running> {
        super::spec_check::check(&spec)?;
        let most_pids = limits::pids_by_namespace(&spec.spec, &self.hierarchies);
        let mut limited = limits::controllers(spec.spec.linux().as_ref().and_then(|linux| linux.resources().as_ref()));
        limited
            .retain(|controller| self.hierarchies.is_v1(controller) && !(*controller == "pids" && most_pids.is_some()));
        if !limited.is_empty() || self.hierarchies.unified().is_none() {
            self.warm();
        }
        let mut fds = Fds::default();
        let (streams, stdio) = fds.stdio(spec.stdio)?;
        let process =
            spec.spec.process().as_ref().ok_or_else(|| Error::Refused("a spec without process".to_owned()))?;
        let filter = self.filter(&spec.seccomp, process)?;
        let net = match spec.network {
            Network::Host => Net::Host,
            Network::None => Net::New,
            Network::Namespace(fd) => Net::Joined(fds.add(fd.try_clone().map_err(duplicating)?)),
        };
        let etc = [
            ("/etc/hosts", &spec.etc.hosts),
            ("/etc/hostname", &spec.etc.hostname),
            ("/etc/resolv.conf", &spec.etc.resolv_conf),
        ];
        let mut binds: Vec<Bind> = etc
            .into_iter()
            .filter_map(|(destination, source)| Some((destination, source.clone()?)))
            .map(|(destination, source)| Bind {
                destination: destination.into(),
                options: vec!["nosuid".to_owned(), "nodev".to_owned(), "noexec".to_owned()],
                source: BindSource::Path(source),
            })
            .collect();
        for mount in spec.mounts {
            let source = match mount.source {
                MountSource::Opened(fd) => BindSource::Fd(fds.add(fd)),
                MountSource::Layers { mounts, path } => BindSource::Layers { mounts, path },
            };
            binds.push(Bind { destination: mount.destination, options: mount.options, source });
        }
        let path = cgroup_path(&spec.cgroup, &spec.id)?;
        let start = Start {
            spec: spec.spec,
            rootfs: spec.rootfs,
            volatile: spec.upper == Upper::Volatile,
            stub_dir: spec.stub_dir,
            anchor: self.anchor.clone(),
            empty: self.empty.clone(),
            net,
            binds,
            stdio,
            cgroup: path.clone(),
            hierarchies: self.hierarchies.clone(),
            most_pids,
            filter,
        };
        self.run(&Request::Start(Box::new(start)), &fds.0, streams, Some(&path))
    }

    fn enter(&self, spec: EnterSpec) -> Result<Running> {
        let mut fds = Fds::default();
        let target = fds.add(spec.target);
        let (streams, stdio) = fds.stdio(spec.stdio)?;
        super::spec_check::check_process(&spec.process)?;
        let cgroup = cgroup_path(&spec.cgroup, &spec.id)?;
        if Cgroup::open(&self.hierarchies, &cgroup).is_moved_into() {
            self.warm();
        }
        let enter = Enter {
            target,
            filter: self.filter(&spec.seccomp, &spec.process)?,
            process: spec.process,
            stdio,
            cgroup,
            hierarchies: self.hierarchies.clone(),
        };
        self.run(&Request::Enter(Box::new(enter)), &fds.0, streams, None)
    }
}

const DEFAULT_PARENT: &str = "/rbuild";

/// `<parent>/<id>`, relative to the root of a hierarchy.
fn cgroup_path(spec: &CgroupSpec, id: &str) -> Result<PathBuf> {
    let plain = |name: &str| {
        !name.is_empty()
            && name.len() <= 255
            && !name.starts_with('.')
            && name.bytes().all(|byte| byte.is_ascii_alphanumeric() || b"._-:@".contains(&byte))
    };
    let parent = spec.parent.as_deref().unwrap_or(Path::new(DEFAULT_PARENT));
    let text = parent.to_str().unwrap_or_default();
    if !text.starts_with('/') || !text.split('/').filter(|part| !part.is_empty()).all(plain) {
        return Err(Error::Refused(format!("the cgroup parent {} is not an absolute plain path", parent.display())));
    }
    if !plain(id) {
        return Err(Error::Refused(format!("the sandbox id {id:?} is not a plain name")));
    }
    Ok(Path::new(text.trim_matches('/')).join(id))
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

/// Descriptors on their way to the supervisor; what refers to one holds its place here.
#[derive(Default)]
struct Fds(Vec<OwnedFd>);

impl Fds {
    fn add(&mut self, fd: OwnedFd) -> usize {
        self.0.push(fd);
        self.0.len() - 1
    }

    fn stdio(&mut self, stdio: Stdio) -> Result<(Streams, [Stream; 3])> {
        let mut streams = Streams::default();
        let wire = match stdio {
            Stdio::Null => [Stream::Null, Stream::Null, Stream::Null],
            Stdio::Output | Stdio::Pipes => {
                let stdin = if matches!(stdio, Stdio::Pipes) {
                    let (read, write) = pipe()?;
                    streams.stdin = Some(write);
                    Stream::Fd(self.add(read))
                } else {
                    Stream::Null
                };
                let (stdout, theirs) = pipe()?;
                let out = Stream::Fd(self.add(theirs));
                let (stderr, theirs) = pipe()?;
                (streams.stdout, streams.stderr) = (Some(stdout), Some(stderr));
                [stdin, out, Stream::Fd(self.add(theirs))]
            }
            Stdio::Terminal { rows, columns } => {
                let terminal = Stream::Terminal { rows, columns };
                [terminal.clone(), terminal.clone(), terminal]
            }
            Stdio::Files { stdin, stdout, stderr } => [stdin, stdout, stderr].map(|fd| Stream::Fd(self.add(fd))),
        };
        Ok((streams, wire))
    }
}

fn pipe() -> Result<(OwnedFd, OwnedFd)> {
    pipe_with(PipeFlags::CLOEXEC).map_err(|error| Error::system("make a pipe", error))
}

fn duplicating(error: io::Error) -> Error {
    Error::system("duplicate a descriptor", error)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn cgroup_paths_are_plain() {
        let of = |parent: Option<&str>, id| cgroup_path(&CgroupSpec { parent: parent.map(PathBuf::from) }, id);
        assert_eq!(of(None, "a-1").unwrap(), Path::new("rbuild/a-1"));
        assert_eq!(of(Some("/x/y.slice/"), "a").unwrap(), Path::new("x/y.slice/a"));
        for (parent, id) in [("relative", "a"), ("/../x", "a"), ("/x", ""), ("/x", "."), ("/x", "a/b"), ("/x", "a\n")] {
            assert!(of(Some(parent), id).is_err(), "{parent} {id:?}");
        }
    }

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
