//! [`NativeSandbox`]: makes a request of a [`ProcessSpec`], spawns the supervisor and hands the request over.

use std::fs::{self};
use std::io;
use std::os::fd::{AsFd, BorrowedFd, OwnedFd};
use std::path::{Path, PathBuf};
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::thread;
use std::time::Instant;

use oci_spec::runtime::{LinuxResources, Process};
use rustix::pipe::{PipeFlags, pipe_with};

use super::cgroups::Cgroup;
use super::hierarchies::Hierarchies;
use super::limits;
use super::running::{Running, Started, Streams};
use super::seccomp;
use super::spec::{CgroupSpec, EnterSpec, MemoryFile, MountSource, Network, ProcessSpec, Seccomp, Stdio, Upper};
use super::supervise::{Bind, BindSource, Enter, Ids, Net, Reply, Request, Start, Stream};
use super::supervisors::Supervisors;
use super::{Sandbox, wire};
use crate::error::{Error, Result};
use crate::ids::IdMaps;

/// What a [`NativeSandbox`] needs of its program.
#[derive(Debug, Clone)]
pub struct SandboxOptions {
    /// The executable whose `main` calls [`super::helper_main`] first; usually `/proc/self/exe`.
    pub helper: PathBuf,
    /// A private directory, made if missing, that lives as long as the sandboxes.
    pub state_dir: PathBuf,
}

/// Namespaces without a process in them; they end with their descriptors and what uses them.
#[derive(Debug)]
pub struct UserNamespace {
    pub user: OwnedFd,
    pub network: Option<OwnedFd>,
}

/// The sandbox made by this crate, as root of the machine. Cheap to share between threads.
#[derive(Debug)]
pub struct NativeSandbox {
    supervisors: Supervisors,
    anchor: PathBuf,
    empty: PathBuf,
    hierarchies: Hierarchies,
    filters: seccomp::Cache,
    started: AtomicBool,
    born: Instant,
    /// When the machine was last warmed, in milliseconds since `born`.
    warmed: AtomicU64,
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
            supervisors: Supervisors::new(options.helper, empty.clone()),
            anchor,
            empty,
            started: AtomicBool::new(false),
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

    /// A user namespace with these ids, for sandboxes, or `joined`, which has them; with `network` also a network namespace
    /// that belongs to it, in which nothing is set up.
    ///
    /// # Errors
    /// The kernel makes none, or takes no such maps.
    pub fn user_namespace(&self, maps: &IdMaps, joined: Option<OwnedFd>, network: bool) -> Result<UserNamespace> {
        if let (Some(user), false) = (&joined, network) {
            return Ok(UserNamespace { user: user.try_clone().map_err(duplicating)?, network: None });
        }
        let (mut child, socket) = self.supervisors.take()?;
        let request = Request::UserNamespace { maps: maps.clone(), network };
        let fds: Vec<BorrowedFd<'_>> = joined.iter().map(AsFd::as_fd).collect();
        let answer = wire::send(&socket, &request, &fds).and_then(|()| wire::receive::<Reply>(&socket));
        drop(socket);
        let status = child.wait();
        match answer {
            Ok(Some((Reply::UserNamespace, mut fds))) if fds.len() == 1 + usize::from(network) => {
                let network = if network { fds.pop() } else { None };
                let user = fds.pop().ok_or_else(|| Error::Lost("it sent no namespace".to_owned()))?;
                Ok(UserNamespace { user, network })
            }
            Ok(Some((Reply::Failed(failure), _))) => Err(failure.into()),
            _ => Err(Error::Lost(status.map_or_else(|error| error.to_string(), |status| status.to_string()))),
        }
    }

    /// Changes the limits of a sandbox that runs.
    ///
    /// # Errors
    /// A limit that this machine cannot set, or that the kernel refuses.
    pub fn update(&self, spec: &CgroupSpec, id: &str, resources: &LinuxResources) -> Result<()> {
        let path = cgroup_path(spec, id)?;
        Cgroup::open(&self.hierarchies, &path).update(&self.hierarchies, &path, resources).map(drop)
    }

    /// Takes the lock of v1 moves ahead, see [`Hierarchies::warm`], and the first time sweeps up, on a thread of its own.
    fn warm_cgroups(&self) {
        const LASTS: u64 = 15;
        let now = self.born.elapsed().as_millis() as u64 + LASTS;
        let last = self.warmed.fetch_max(now, Ordering::Relaxed);
        if last + LASTS > now {
            return;
        }
        let hierarchies = self.hierarchies.clone();
        // Nothing depends on it: without the thread a start only takes longer.
        let _ = thread::Builder::new().name("warm".to_owned()).spawn(move || hierarchies.warm());
    }

    /// What is worth doing beside the first start, and what beside the later ones.
    fn look_ahead(&self) {
        if self.started.swap(true, Ordering::Relaxed) {
            self.supervisors.prepare();
            return;
        }
        let hierarchies = self.hierarchies.clone();
        let parent = DEFAULT_PARENT.trim_start_matches('/');
        let _ = thread::Builder::new().name("sweep".to_owned()).spawn(move || hierarchies.sweep(Path::new(parent)));
    }

    fn filter(&self, seccomp: &Seccomp, process: &Process) -> Result<Vec<u64>> {
        let capabilities = process.capabilities().as_ref().and_then(|sets| sets.bounding().clone()).unwrap_or_default();
        match seccomp {
            Seccomp::Unconfined => Ok(Vec::new()),
            Seccomp::Default => self.filters.default_profile(&capabilities),
            Seccomp::Profile(profile) => seccomp::compile(profile),
        }
    }

    /// What the process in the middle is told, the descriptors that go with it, and the caller's ends of the streams.
    pub(super) fn request(
        &self,
        spec: ProcessSpec,
        filter: Vec<u64>,
        most_pids: Option<i64>,
    ) -> Result<(Start, Fds, Streams)> {
        let mut fds = Fds::default();
        let (streams, stdio) = fds.stdio(spec.stdio)?;
        let net = match spec.network {
            Network::Host => Net::Host,
            Network::None => Net::New,
            Network::Namespace(fd) => Net::Joined(fds.add(fd.try_clone().map_err(duplicating)?)),
        };
        let ids = match spec.ids {
            Some(ids) => {
                let namespace = fds.add(ids.namespace.try_clone().map_err(duplicating)?);
                Some(Ids { namespace, maps: ids.maps })
            }
            None => None,
        };
        // Ours, so that they may be its root's.
        let shown = ids.is_some().then(|| "idmap".to_owned());
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
                options: ["nosuid", "nodev", "noexec"].map(str::to_owned).into_iter().chain(shown.clone()).collect(),
                source: BindSource::Path(source),
            })
            .collect();
        for mount in spec.mounts {
            let source = match mount.source {
                MountSource::Opened(fd) => BindSource::Fd(fds.add(fd)),
                MountSource::Layers { mounts, path } => BindSource::Layers { mounts, path },
                MountSource::Memory(MemoryFile { content, mode, uid, gid }) => {
                    BindSource::Memory { content: fds.add(in_memory(&content)?), mode, uid, gid }
                }
                MountSource::Tmpfs { size } => BindSource::Tmpfs { size },
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
            cgroup: path,
            hierarchies: self.hierarchies.clone(),
            most_pids,
            filter,
            init: spec.init,
            ids,
        };
        Ok((start, fds, streams))
    }

    pub(super) fn run(
        &self,
        request: &Request,
        fds: &[OwnedFd],
        streams: Streams,
        cgroup: Option<&Path>,
    ) -> Result<Running> {
        let (mut child, socket) = self.supervisors.take()?;
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
            self.warm_cgroups();
        }
        let process =
            spec.spec.process().as_ref().ok_or_else(|| Error::Refused("a spec without process".to_owned()))?;
        let filter = self.filter(&spec.seccomp, process)?;
        let (start, fds, streams) = self.request(spec, filter, most_pids)?;
        let path = start.cgroup.clone();
        let running = self.run(&Request::Start(Box::new(start)), &fds.0, streams, Some(&path))?;
        self.look_ahead();
        Ok(running)
    }

    fn enter(&self, spec: EnterSpec) -> Result<Running> {
        let mut fds = Fds::default();
        let target = fds.add(spec.target);
        let (streams, stdio) = fds.stdio(spec.stdio)?;
        super::spec_check::check_process(&spec.process)?;
        let cgroup = cgroup_path(&spec.cgroup, &spec.id)?;
        if Cgroup::open(&self.hierarchies, &cgroup).is_moved_into() {
            self.warm_cgroups();
        }
        let enter = Enter {
            target,
            filter: self.filter(&spec.seccomp, &spec.process)?,
            process: spec.process,
            stdio,
            cgroup,
            hierarchies: self.hierarchies.clone(),
            ids: spec.ids,
        };
        self.run(&Request::Enter(Box::new(enter)), &fds.0, streams, None)
    }

    fn warm(&self) {
        self.supervisors.prepare();
        if self.hierarchies.unified().is_none() {
            self.warm_cgroups();
        }
    }
}

const DEFAULT_PARENT: &str = "/rbuild";

/// `<parent>/<id>`, relative to the root of a hierarchy.
pub(super) fn cgroup_path(spec: &CgroupSpec, id: &str) -> Result<PathBuf> {
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

/// Descriptors on their way to the supervisor; what refers to one holds its place here.
#[derive(Default)]
pub(super) struct Fds(pub(super) Vec<OwnedFd>);

impl Fds {
    fn add(&mut self, fd: OwnedFd) -> usize {
        self.0.push(fd);
        self.0.len() - 1
    }

    pub(super) fn stdio(&mut self, stdio: Stdio) -> Result<(Streams, [Stream; 3])> {
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

/// A descriptor to read `content` from, for one process: nothing has a name.
fn in_memory(content: &[u8]) -> Result<OwnedFd> {
    let make = || {
        let fd = rustix::fs::memfd_create(c"rbuild", rustix::fs::MemfdFlags::CLOEXEC)?;
        let mut file = fs::File::from(fd);
        io::Write::write_all(&mut file, content)?;
        Ok(OwnedFd::from(file))
    };
    make().map_err(|error: io::Error| Error::system("keep a file in memory", error))
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
}
