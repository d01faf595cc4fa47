//! System calls nobody wraps safely. All `unsafe` of the sandbox is here, each block with its reason.
#![allow(unsafe_code)]

use std::ffi::{CStr, CString, c_char, c_int, c_long};
use std::io;
use std::mem::size_of;
use std::os::fd::{AsFd, AsRawFd, BorrowedFd, FromRawFd, OwnedFd, RawFd};
use std::ptr;

/// Which side of a [`clone3`] one is on.
pub(crate) enum Cloned {
    Child,
    Parent { pid: i32, pidfd: OwnedFd },
}

const CLONE_INTO_CGROUP: u64 = 0x2_0000_0000;

/// Like `fork`, with new namespaces and into a cgroup of the v2 hierarchy.
///
/// Only for a process with a single thread: the child gets no other, and whatever lock one held would stay locked.
pub(crate) fn clone3(namespaces: c_int, cgroup: Option<BorrowedFd<'_>>) -> io::Result<Cloned> {
    let into_cgroup = if cgroup.is_some() { CLONE_INTO_CGROUP } else { 0 };
    clone_with(namespaces as u64 | into_cgroup, libc::SIGCHLD as u64, cgroup)
}

/// As [`clone3`], but a child of the caller's parent, and in the caller's cgroup.
pub(crate) fn clone_sibling(namespaces: c_int) -> io::Result<Cloned> {
    // A sibling's end is told as the caller's is.
    clone_with(namespaces as u64 | libc::CLONE_PARENT as u64, 0, None)
}

fn clone_with(flags: u64, exit_signal: u64, cgroup: Option<BorrowedFd<'_>>) -> io::Result<Cloned> {
    let mut pidfd: RawFd = -1;
    // SAFETY: clone_args is plain integers; zero is "not given" for each.
    let mut args: libc::clone_args = unsafe { std::mem::zeroed() };
    args.flags = flags | libc::CLONE_PIDFD as u64;
    args.pidfd = ptr::from_mut(&mut pidfd) as u64;
    args.exit_signal = exit_signal;
    args.cgroup = cgroup.map_or(0, |fd| fd.as_raw_fd() as u64);
    // SAFETY: without CLONE_VM the child has its own copy of memory and stack, so returning in it is sound; the caller
    // promises a single thread, so that no lock is held by a thread the child lacks.
    let pid = unsafe { libc::syscall(libc::SYS_clone3, ptr::from_mut(&mut args), size_of::<libc::clone_args>()) };
    match pid {
        -1 => Err(io::Error::last_os_error()),
        0 => Ok(Cloned::Child),
        // SAFETY: the kernel stored a new descriptor that nobody else owns.
        pid => Ok(Cloned::Parent { pid: pid as i32, pidfd: unsafe { OwnedFd::from_raw_fd(pidfd) } }),
    }
}

/// A new cgroup namespace for the calling process.
pub(crate) fn unshare_cgroup() -> io::Result<()> {
    // SAFETY: no memory or descriptor table is unshared.
    check(unsafe { libc::unshare(libc::CLONE_NEWCGROUP) }.into())
}

/// A new network namespace for the calling process.
pub(crate) fn unshare_network() -> io::Result<()> {
    // SAFETY: no memory or descriptor table is unshared.
    check(unsafe { libc::unshare(libc::CLONE_NEWNET) }.into())
}

/// Makes files for another user, by the calling thread alone. Cannot fail for who may be anybody.
pub(crate) fn set_file_ids(uid: u32, gid: u32) {
    // SAFETY: changes two numbers of the calling thread's credentials.
    unsafe {
        libc::setfsgid(gid);
        libc::setfsuid(uid);
    }
}

/// A new mount namespace for the calling process, which must have one thread only.
pub(crate) fn unshare_mounts() -> io::Result<()> {
    // SAFETY: no memory or descriptor table is unshared.
    check(unsafe { libc::unshare(libc::CLONE_NEWNS) }.into())
}

/// Marks every descriptor from `first` on as close-on-exec.
pub(crate) fn close_on_exec_from(first: u32) -> io::Result<()> {
    // SAFETY: changes a flag of descriptors and closes none.
    check(unsafe { libc::syscall(libc::SYS_close_range, first, u32::MAX, libc::CLOSE_RANGE_CLOEXEC) })
}

/// Takes ownership of descriptor 0, which the starter made a socket. Once per process, before anything else uses it.
pub(crate) fn take_stdin() -> OwnedFd {
    // SAFETY: called once, first thing in a process that was started with the socket as descriptor 0.
    unsafe { OwnedFd::from_raw_fd(0) }
}

/// Ends the process without running destructors or exit handlers.
pub(crate) fn exit_now(code: i32) -> ! {
    // SAFETY: never returns; nothing in this process is worth flushing.
    unsafe { libc::_exit(code) }
}

/// `mount_setattr` on the mount `fd` stands for.
pub(crate) fn mount_setattr(
    fd: BorrowedFd<'_>,
    recursive: bool,
    set: u64,
    clear: u64,
    propagation: u64,
) -> io::Result<()> {
    set_attributes(fd, recursive, libc::mount_attr { attr_set: set, attr_clr: clear, propagation, userns_fd: 0 })
}

/// Shows the files of the unattached mount `fd` stands for with the ids of a user namespace: what is 0 on the disk belongs
/// to its root. Linux 5.12 and later, for file systems that can.
pub(crate) fn map_ids(fd: BorrowedFd<'_>, recursive: bool, user_namespace: BorrowedFd<'_>) -> io::Result<()> {
    let (set, userns_fd) = (libc::MOUNT_ATTR_IDMAP, user_namespace.as_raw_fd() as u64);
    set_attributes(fd, recursive, libc::mount_attr { attr_set: set, attr_clr: 0, propagation: 0, userns_fd })
}

fn set_attributes(fd: BorrowedFd<'_>, recursive: bool, attributes: libc::mount_attr) -> io::Result<()> {
    let flags = libc::AT_EMPTY_PATH | if recursive { libc::AT_RECURSIVE } else { 0 };
    // SAFETY: the path is an empty C string and the structure lives across the call, with its true size.
    check(unsafe {
        libc::syscall(
            libc::SYS_mount_setattr,
            fd.as_raw_fd(),
            c"".as_ptr(),
            flags,
            ptr::from_ref(&attributes),
            size_of::<libc::mount_attr>(),
        )
    })
}

/// Replaces the program. Returns only the error.
pub(crate) fn execve(path: &CStr, args: &[CString], env: &[CString]) -> io::Error {
    let pointers = |strings: &[CString]| {
        let mut pointers: Vec<*const c_char> = strings.iter().map(|string| string.as_ptr()).collect();
        pointers.push(ptr::null());
        pointers
    };
    let (args, env) = (pointers(args), pointers(env));
    // SAFETY: both arrays end with null and point to C strings that live across the call.
    unsafe { libc::execve(path.as_ptr(), args.as_ptr(), env.as_ptr()) };
    io::Error::last_os_error()
}

/// Gives every signal its default action and blocks none: Rust's start-up ignores SIGPIPE, which `execve` would pass on.
pub(crate) fn reset_signals() {
    for signal in 1..=64 {
        // SAFETY: SIG_DFL installs no handler; unknown and fixed signals fail harmlessly.
        unsafe { libc::signal(signal, libc::SIG_DFL) };
    }
    // SAFETY: an all-zero set is replaced by sigemptyset before use; no old set is asked for.
    unsafe {
        let mut none: libc::sigset_t = std::mem::zeroed();
        libc::sigemptyset(&raw mut none);
        libc::sigprocmask(libc::SIG_SETMASK, &raw const none, ptr::null_mut());
    }
}

/// The signals that were blocked before.
pub(crate) struct Blocked(libc::sigset_t);

/// Blocks every signal that can be.
pub(crate) fn block_all_signals() -> io::Result<Blocked> {
    // SAFETY: both sets are plain memory, filled before they are read.
    unsafe {
        let (mut all, mut before): (libc::sigset_t, libc::sigset_t) = (std::mem::zeroed(), std::mem::zeroed());
        libc::sigfillset(&raw mut all);
        check(libc::sigprocmask(libc::SIG_SETMASK, &raw const all, &raw mut before).into())?;
        Ok(Blocked(before))
    }
}

/// Blocks the signals that ask a program to end, for this thread and all it starts: for [`wait_for_end`].
pub(crate) fn block_end() -> io::Result<()> {
    // SAFETY: the set is plain memory, filled before it is read; no old one is asked for.
    unsafe {
        let mut set: libc::sigset_t = std::mem::zeroed();
        libc::sigemptyset(&raw mut set);
        for signal in [libc::SIGTERM, libc::SIGINT, libc::SIGHUP] {
            libc::sigaddset(&raw mut set, signal);
        }
        check(libc::sigprocmask(libc::SIG_BLOCK, &raw const set, ptr::null_mut()).into())
    }
}

/// Waits for one of the signals that [`block_end`] blocks.
pub(crate) fn wait_for_end() -> io::Result<()> {
    loop {
        if matches!(wait_for_signal()?, libc::SIGTERM | libc::SIGINT | libc::SIGHUP) {
            return Ok(());
        }
    }
}

impl Blocked {
    pub(crate) fn restore(&self) -> io::Result<()> {
        // SAFETY: the set was filled by the kernel; no old one is asked for.
        check(unsafe { libc::sigprocmask(libc::SIG_SETMASK, &raw const self.0, ptr::null_mut()) }.into())
    }
}

/// Waits for any blocked signal; its number.
pub(crate) fn wait_for_signal() -> io::Result<i32> {
    // SAFETY: the set is filled before it is read; no details are asked for.
    let number = unsafe {
        let mut all: libc::sigset_t = std::mem::zeroed();
        libc::sigfillset(&raw mut all);
        libc::sigwaitinfo(&raw const all, ptr::null_mut())
    };
    check(number.into()).map(|()| number)
}

/// Forks the calling process, which must have one thread only; `None` in the child.
pub(crate) fn fork() -> io::Result<Option<rustix::process::Pid>> {
    // SAFETY: the init of a sandbox is single-threaded, so the child may go on with everything it has.
    let pid = unsafe { libc::fork() };
    check(pid.into()).map(|()| rustix::process::Pid::from_raw(pid))
}

/// Closes every descriptor from `first` on. Whoever calls it ends without dropping what owned them.
pub(crate) fn close_from(first: u32) {
    // SAFETY: the caller never returns to code that owns one of them.
    let _ = unsafe { libc::syscall(libc::SYS_close_range, first, u32::MAX, 0) };
}

/// One instruction of classic BPF, as seccomp takes it.
pub(crate) type Instruction = libc::sock_filter;

/// Loads a seccomp filter for the calling thread and what it executes.
pub(crate) fn seccomp_filter(filter: &[Instruction]) -> io::Result<()> {
    let length = u16::try_from(filter.len()).map_err(|_| io::Error::from_raw_os_error(libc::E2BIG))?;
    let program = libc::sock_fprog { len: length, filter: filter.as_ptr().cast_mut() };
    // SAFETY: the kernel reads `len` instructions, which live across the call; it does not write.
    check(unsafe { libc::syscall(libc::SYS_seccomp, libc::SECCOMP_SET_MODE_FILTER, 0, ptr::from_ref(&program)) })
}

/// A session keyring of the process's own, so that none of the starter's keys is in reach.
pub(crate) fn new_session_keyring() -> io::Result<()> {
    const KEYCTL_JOIN_SESSION_KEYRING: c_int = 1;
    // SAFETY: a null name asks for an anonymous keyring; no memory is read.
    check(unsafe { libc::syscall(libc::SYS_keyctl, KEYCTL_JOIN_SESSION_KEYRING, ptr::null::<c_char>(), 0, 0, 0) })
}

/// How a child ended and what it used.
pub(crate) struct Ended {
    pub(crate) status: i32,
    pub(crate) cpu_nanoseconds: u64,
    /// Bytes resident at once in the largest process.
    pub(crate) peak_memory: u64,
}

/// Waits for the child `pid`.
pub(crate) fn wait4(pid: i32) -> io::Result<Ended> {
    let mut status = 0;
    // SAFETY: rusage is plain integers and both results live across the call.
    let mut usage: libc::rusage = unsafe { std::mem::zeroed() };
    loop {
        // SAFETY: as above.
        if unsafe { libc::wait4(pid, &raw mut status, 0, &raw mut usage) } == pid {
            let nanoseconds = |time: libc::timeval| time.tv_sec as u64 * 1_000_000_000 + time.tv_usec as u64 * 1000;
            return Ok(Ended {
                status,
                cpu_nanoseconds: nanoseconds(usage.ru_utime) + nanoseconds(usage.ru_stime),
                peak_memory: usage.ru_maxrss as u64 * 1024,
            });
        }
        let error = io::Error::last_os_error();
        if error.kind() != io::ErrorKind::Interrupted {
            return Err(error);
        }
    }
}

/// Sets the flags of a network interface of the caller's namespace to "up".
pub(crate) fn bring_up(interface: &CStr) -> io::Result<()> {
    let socket = rustix::net::socket(rustix::net::AddressFamily::INET, rustix::net::SocketType::DGRAM, None)?;
    // SAFETY: ifreq is plain data; zero is valid.
    let mut request: libc::ifreq = unsafe { std::mem::zeroed() };
    for (to, from) in request.ifr_name.iter_mut().zip(interface.to_bytes()) {
        *to = *from as c_char;
    }
    request.ifr_ifru.ifru_flags = (libc::IFF_UP | libc::IFF_RUNNING) as i16;
    // SAFETY: SIOCSIFFLAGS reads an ifreq, which lives across the call.
    check(unsafe { libc::ioctl(socket.as_raw_fd(), libc::SIOCSIFFLAGS as _, ptr::from_ref(&request)) }.into())
}

/// Sets a resource limit of the calling process by its number.
pub(crate) fn set_limit(resource: u32, soft: u64, hard: u64) -> io::Result<()> {
    let limit = libc::rlimit { rlim_cur: soft, rlim_max: hard };
    // SAFETY: the structure lives across the call.
    check(unsafe { libc::setrlimit(resource as _, &raw const limit) }.into())
}

/// The same of another process.
pub(crate) fn set_limit_of(pid: i32, resource: u32, soft: u64, hard: u64) -> io::Result<()> {
    let limit = libc::rlimit { rlim_cur: soft, rlim_max: hard };
    // SAFETY: the structure lives across the call; no old limit is asked for.
    check(unsafe { libc::prlimit(pid, resource as _, &raw const limit, ptr::null_mut()) }.into())
}

/// `bpf(2)`: loads a program that decides about devices of a cgroup. `instructions` are eBPF, eight bytes each.
pub(crate) fn load_device_program(instructions: &[u64]) -> io::Result<OwnedFd> {
    #[repr(C)]
    #[derive(Default)]
    struct Load {
        kind: u32,
        count: u32,
        instructions: u64,
        license: u64,
        log_level: u32,
        log_size: u32,
        log: u64,
        kernel_version: u32,
        flags: u32,
    }
    const BPF_PROG_LOAD: c_int = 5;
    const CGROUP_DEVICE: u32 = 15;
    let load = Load {
        kind: CGROUP_DEVICE,
        count: instructions.len() as u32,
        instructions: instructions.as_ptr() as u64,
        license: c"Apache-2.0".as_ptr() as u64,
        ..Load::default()
    };
    // SAFETY: the structure begins like bpf_attr for this command, its pointers live across the call, its size is true.
    let fd = unsafe { libc::syscall(libc::SYS_bpf, BPF_PROG_LOAD, ptr::from_ref(&load), size_of::<Load>()) };
    if fd < 0 {
        return Err(io::Error::last_os_error());
    }
    // SAFETY: a new descriptor that nobody else owns.
    Ok(unsafe { OwnedFd::from_raw_fd(fd as RawFd) })
}

/// Attaches a device program to a cgroup directory of the v2 hierarchy.
pub(crate) fn attach_device_program(cgroup: impl AsFd, program: impl AsFd) -> io::Result<()> {
    #[repr(C)]
    struct Attach {
        target: u32,
        program: u32,
        kind: u32,
        flags: u32,
    }
    const BPF_PROG_ATTACH: c_int = 8;
    const CGROUP_DEVICE: u32 = 6;
    const ALLOW_MULTI: u32 = 2;
    let attach = Attach {
        target: cgroup.as_fd().as_raw_fd() as u32,
        program: program.as_fd().as_raw_fd() as u32,
        kind: CGROUP_DEVICE,
        flags: ALLOW_MULTI,
    };
    // SAFETY: the structure begins like bpf_attr for this command and its size is true.
    check(unsafe { libc::syscall(libc::SYS_bpf, BPF_PROG_ATTACH, ptr::from_ref(&attach), size_of::<Attach>()) })
}

fn check(result: c_long) -> io::Result<()> {
    if result < 0 { Err(io::Error::last_os_error()) } else { Ok(()) }
}
