//! The last steps, alike for a first process and an entered one: limits, working directory, identity, filter, exec.

use std::ffi::{CString, OsStr};
use std::io::Write;
use std::os::fd::{AsFd, OwnedFd};
use std::os::unix::ffi::OsStrExt;
use std::os::unix::net::UnixStream;
use std::path::Path;

use oci_spec::runtime::{Capability, PosixRlimitType, Process, Spec};
use rustix::fs::{
    Access, AtFlags, CWD, FileType, Mode, OFlags, ResolveFlags, StatVfsMountFlags, accessat, fstat, openat2, stat,
    statvfs,
};
use rustix::io::Errno;
use rustix::process::{Gid, Signal, Uid, fchdir, set_parent_process_death_signal, umask};
use rustix::thread::{set_no_new_privs, set_thread_groups, set_thread_res_gid, set_thread_res_uid};

use super::caps::{self, Sets};
use super::init::Report;
use super::namespaces::Namespaces;
use super::seccomp;
use super::{lsm, reaper, sys, wire};
use crate::error::{Doing, ExecFailure, Failure};

/// Everything a process needs once its namespaces and its root are there.
pub(super) struct Stage<'a> {
    pub(super) process: &'a Process,
    pub(super) stdio: [OwnedFd; 3],
    pub(super) filter: &'a [u64],
    /// A procfs only we can see, for writes an image must not be able to redirect.
    pub(super) private_proc: Option<OwnedFd>,
    /// Whether it runs as the child of an init.
    pub(super) init: bool,
    /// Whether somebody with more rights has set its limits already.
    pub(super) limited: bool,
}

/// Executes the program; returns only with the reason why not.
pub(super) fn become_it(stage: Stage<'_>, channel: &UnixStream) -> Failure {
    match prepare_and_execute(stage, channel) {
        Err(failure) => failure,
        Ok(never) => match never {},
    }
}

fn prepare_and_execute(stage: Stage<'_>, channel: &UnixStream) -> Result<std::convert::Infallible, Failure> {
    let Stage { process, stdio, filter, private_proc, init, limited } = stage;
    if let (Some(score), Some(proc), false) = (process.oom_score_adj(), &private_proc, limited) {
        write_beneath(proc, "self/oom_score_adj", &score.to_string())?;
    }
    if let Some(proc) = &private_proc {
        lsm::label_next_program(process, proc)?;
    }
    drop(private_proc);
    // Without the right to have another keyring the old one holds nothing either.
    let _ = sys::new_session_keyring();
    if !limited {
        set_limits(process)?;
    }
    enter_cwd(process.cwd())?;
    let user = process.user();
    let (uid, gid) = (Uid::from_raw(user.uid()), Gid::from_raw(user.gid()));
    for fd in &stdio {
        own(fd, uid);
    }
    let [stdin, stdout, stderr] = stdio;
    rustix::stdio::dup2_stdin(&stdin).doing(|| "set standard input".to_owned())?;
    rustix::stdio::dup2_stdout(&stdout).doing(|| "set standard output".to_owned())?;
    rustix::stdio::dup2_stderr(&stderr).doing(|| "set standard error".to_owned())?;
    drop((stdin, stdout, stderr));
    sys::close_on_exec_from(3).doing(|| "close descriptors".to_owned())?;
    sys::reset_signals();
    umask(Mode::from_raw_mode(user.umask().unwrap_or(0o022)));

    let mut sets = Sets::of(process.capabilities().as_ref());
    // No device cgroup guards this sandbox: a node made on a file system without `nodev` would be live.
    if statvfs("/").is_ok_and(|root| root.f_flag.contains(StatVfsMountFlags::NODEV)) {
        sets.remove(Capability::Mknod);
    }
    let quiet = process.no_new_privileges().unwrap_or(false);
    sets.limit_bounding()?;
    caps::keep_across_identity(true)?;
    let groups: Vec<Gid> = user.additional_gids().iter().flatten().map(|&gid| Gid::from_raw(gid)).collect();
    set_thread_groups(&groups).doing(|| "set the groups".to_owned())?;
    set_thread_res_gid(gid, gid, gid).doing(|| format!("become group {}", user.gid()))?;
    set_thread_res_uid(uid, uid, uid).doing(|| format!("become user {}", user.uid()))?;
    caps::raise_permitted()?;
    caps::keep_across_identity(false)?;
    // Changing the user cleared it, so it is asked for here. If the supervisor died before, the next report fails.
    set_parent_process_death_signal(Some(Signal::KILL)).doing(|| "die with the supervisor".to_owned())?;
    let program = Program::find(process)?;
    let (args, env) = (strings(process.args())?, strings(process.env())?);
    wire::send(channel, &Report::Executing, &[]).doing(|| "report".to_owned())?;
    // The filter needs CAP_SYS_ADMIN unless no_new_privs is set, so the capabilities go after it.
    if quiet {
        set_no_new_privs(true).doing(|| "set no_new_privs".to_owned())?;
    }
    if !filter.is_empty() {
        sys::seccomp_filter(&seccomp::unpack(filter)).doing(|| "load the seccomp filter".to_owned())?;
    }
    sets.apply()?;
    if init {
        reaper::split()?;
    }
    let error = sys::execve(&program.path, &args, &env);
    Err(program.failed(Errno::from_io_error(&error).unwrap_or(Errno::IO)))
}

/// Gives a pipe or terminal to the user, so that `/dev/stdout` can be opened again. Nothing else is touched: it may be a file of the host's.
pub(super) fn own(fd: &OwnedFd, uid: Uid) {
    let Ok(stat) = fstat(fd) else { return };
    let kind = FileType::from_raw_mode(stat.st_mode);
    let terminal = kind.is_char_device() && rustix::termios::isatty(fd);
    if (kind.is_fifo() || terminal) && stat.st_uid != uid.as_raw() {
        let _ = rustix::fs::fchown(fd, Some(uid), None);
    }
}

pub(super) fn set_limits(process: &Process) -> Result<(), Failure> {
    limits(process, sys::set_limit)
}

/// Does for another process what that one has no right to: sets its limits and its place among those that are killed
/// when memory is short.
pub(super) fn prepare_other(pid: i32, process: &Process) -> Result<(), Failure> {
    limits(process, |kind, soft, hard| sys::set_limit_of(pid, kind, soft, hard))?;
    match process.oom_score_adj() {
        Some(score) => std::fs::write(format!("/proc/{pid}/oom_score_adj"), score.to_string())
            .doing(|| "write oom_score_adj".to_owned()),
        None => Ok(()),
    }
}

fn limits(process: &Process, set: impl Fn(u32, u64, u64) -> std::io::Result<()>) -> Result<(), Failure> {
    for limit in process.rlimits().iter().flatten() {
        let kind = match limit.typ() {
            PosixRlimitType::RlimitCpu => libc::RLIMIT_CPU,
            PosixRlimitType::RlimitFsize => libc::RLIMIT_FSIZE,
            PosixRlimitType::RlimitData => libc::RLIMIT_DATA,
            PosixRlimitType::RlimitStack => libc::RLIMIT_STACK,
            PosixRlimitType::RlimitCore => libc::RLIMIT_CORE,
            PosixRlimitType::RlimitRss => libc::RLIMIT_RSS,
            PosixRlimitType::RlimitNproc => libc::RLIMIT_NPROC,
            PosixRlimitType::RlimitNofile => libc::RLIMIT_NOFILE,
            PosixRlimitType::RlimitMemlock => libc::RLIMIT_MEMLOCK,
            PosixRlimitType::RlimitAs => libc::RLIMIT_AS,
            PosixRlimitType::RlimitLocks => libc::RLIMIT_LOCKS,
            PosixRlimitType::RlimitSigpending => libc::RLIMIT_SIGPENDING,
            PosixRlimitType::RlimitMsgqueue => libc::RLIMIT_MSGQUEUE,
            PosixRlimitType::RlimitNice => libc::RLIMIT_NICE,
            PosixRlimitType::RlimitRtprio => libc::RLIMIT_RTPRIO,
            PosixRlimitType::RlimitRttime => libc::RLIMIT_RTTIME,
        };
        set(kind, limit.soft(), limit.hard())
            .doing(|| format!("set the limit {} to {}:{}", limit.typ(), limit.soft(), limit.hard()))?;
    }
    Ok(())
}

/// The directory must be a directory beneath the root, and the kernel must agree that it is.
fn enter_cwd(cwd: &Path) -> Result<(), Failure> {
    let action = || format!("enter the working directory {}", cwd.display());
    if !cwd.is_absolute() {
        return Err(Failure::refused(format!("the working directory {} is not absolute", cwd.display())));
    }
    let flags = OFlags::PATH | OFlags::DIRECTORY | OFlags::CLOEXEC;
    let directory = openat2(CWD, cwd, flags, Mode::empty(), ResolveFlags::NO_MAGICLINKS).doing(action)?;
    fchdir(&directory).doing(action)?;
    let now = rustix::process::getcwd(Vec::new()).doing(action)?;
    if now.as_bytes().first() != Some(&b'/') {
        return Err(Failure::refused(format!("the working directory {} is outside the root", cwd.display())));
    }
    Ok(())
}

/// The program to execute, found as docker finds it.
struct Program {
    path: CString,
}

impl Program {
    fn find(process: &Process) -> Result<Self, Failure> {
        let name = process.args().iter().flatten().next().map(String::as_str).unwrap_or_default();
        if name.is_empty() {
            return Err(fails("exec: no command".to_owned(), 127));
        }
        let path_of = |path: &[u8]| CString::new(path).map_err(|_| Failure::refused("a program name with a null byte"));
        if name.contains('/') {
            executable(name.as_ref()).map_err(|errno| {
                let why = words(errno);
                let what = if errno == Errno::NOENT { format!("stat {name}: {why}") } else { why.to_owned() };
                fails(format!("exec: {name:?}: {what}"), code(errno))
            })?;
            return Ok(Program { path: path_of(name.as_bytes())? });
        }
        let env = process.env().as_deref().unwrap_or_default();
        let paths = env.iter().rev().find_map(|variable| variable.strip_prefix("PATH=")).unwrap_or_default();
        let mut denied = false;
        for directory in paths.split(':') {
            let directory = if directory.is_empty() { "." } else { directory };
            let candidate = Path::new(directory).join(name);
            match executable(candidate.as_os_str()) {
                Ok(()) => return Ok(Program { path: path_of(candidate.as_os_str().as_bytes())? }),
                Err(Errno::ACCESS) => denied = true,
                Err(_) => {}
            }
        }
        if denied {
            return Err(fails(format!("exec: {name:?}: permission denied"), 126));
        }
        Err(fails(format!("exec: {name:?}: executable file not found in $PATH"), 127))
    }

    /// The file was there and executable a moment ago: what is left is its format or its interpreter.
    fn failed(&self, errno: Errno) -> Failure {
        fails(format!("exec {}: {}", self.path.to_string_lossy(), words(errno)), code(errno))
    }
}

fn executable(path: &OsStr) -> rustix::io::Result<()> {
    if FileType::from_raw_mode(stat(path)?.st_mode).is_dir() {
        return Err(Errno::ISDIR);
    }
    accessat(CWD, path, Access::EXEC_OK, AtFlags::EACCESS)
}

fn fails(message: String, exit_code: u8) -> Failure {
    Failure::Exec(ExecFailure { message, exit_code })
}

fn code(errno: Errno) -> u8 {
    if errno == Errno::NOENT { 127 } else { 126 }
}

fn words(errno: Errno) -> String {
    crate::error::words(&errno.into())
}

fn strings(of: &Option<Vec<String>>) -> Result<Vec<CString>, Failure> {
    of.iter()
        .flatten()
        .map(|text| CString::new(text.as_str()))
        .collect::<Result<_, _>>()
        .map_err(|_| Failure::refused("an argument or variable with a null byte"))
}

/// Writes the request's sysctls, each only if it belongs to a namespace of the sandbox's own.
pub(super) fn sysctls(spec: &Spec, namespaces: &Namespaces, proc: &OwnedFd) -> Result<(), Failure> {
    let Some(sysctls) = spec.linux().as_ref().and_then(|linux| linux.sysctl().as_ref()) else { return Ok(()) };
    for (name, value) in sysctls {
        let ipc = ["kernel.msgmax", "kernel.msgmnb", "kernel.msgmni", "kernel.sem", "kernel.shmall", "kernel.shmmax"];
        let ipc = ipc.contains(&name.as_str())
            || ["kernel.shmmni", "kernel.shm_rmid_forced"].contains(&name.as_str())
            || name.starts_with("fs.mqueue.");
        let uts = name == "kernel.domainname";
        let own = (ipc && namespaces.own_ipc())
            || (uts && namespaces.own_uts())
            || (name.starts_with("net.") && namespaces.own_network());
        if !own || name.contains("..") {
            return Err(Failure::refused(format!("sysctl {name:?} is not in a separate kernel namespace")));
        }
        // A slash in a name stands for a dot in a file's, as with sysctl(8).
        let file: String = name
            .chars()
            .map(|c| {
                if c == '.' {
                    '/'
                } else if c == '/' {
                    '.'
                } else {
                    c
                }
            })
            .collect();
        write_beneath(proc, &format!("sys/{file}"), value).map_err(|failure| match failure {
            Failure::System { errno, .. } => Failure::System { action: format!("set the sysctl {name}"), errno },
            other => other,
        })?;
    }
    Ok(())
}

/// Limits the processes of the pid namespace one is the first of.
pub(super) fn limit_pids(proc: &OwnedFd, most: i64) -> Result<(), Failure> {
    // Numbers below this one are not given out again.
    const RESERVED: i64 = 300;
    write_beneath(proc, "sys/kernel/pid_max", &(most + RESERVED).to_string())
}

pub(super) fn write_beneath(proc: &OwnedFd, path: &str, value: &str) -> Result<(), Failure> {
    let action = || format!("write /proc/{path}");
    let flags = OFlags::WRONLY | OFlags::CLOEXEC;
    let resolve = ResolveFlags::BENEATH | ResolveFlags::NO_MAGICLINKS;
    let file = openat2(proc.as_fd(), path, flags, Mode::empty(), resolve).doing(action)?;
    std::fs::File::from(file).write_all(value.as_bytes()).doing(action)
}
