//! The default profile as data.
//!
//! NOTICE: the choice of calls follows the default seccomp profile of the Moby project (github.com/moby/profiles,
//! Apache License 2.0), written anew here. Left out of it: `io_uring_*`, `name_to_handle_at`, sockets of
//! AF_ALG besides AF_VSOCK, and every second architecture.

use oci_spec::runtime::{
    Capabilities, Capability, LinuxSeccomp, LinuxSeccompAction, LinuxSeccompArg, LinuxSeccompArgBuilder,
    LinuxSeccompBuilder, LinuxSeccompOperator, LinuxSyscall, LinuxSyscallBuilder,
};

/// Allowed to everybody, whatever the arguments.
const ALLOWED: &str = "
    accept accept4 access adjtimex alarm bind brk cachestat capget capset chdir chmod chown clock_adjtime clock_getres
    clock_gettime clock_nanosleep close close_range connect copy_file_range creat dup dup2 dup3 epoll_create
    epoll_create1 epoll_ctl epoll_ctl_old epoll_pwait epoll_pwait2 epoll_wait epoll_wait_old eventfd eventfd2 execve
    execveat exit exit_group faccessat faccessat2 fadvise64 fallocate fanotify_mark fchdir fchmod fchmodat fchmodat2
    fchown fchownat fcntl fdatasync fgetxattr flistxattr flock fork fremovexattr fsetxattr fstat fstatfs fsync
    ftruncate futex futex_requeue futex_wait futex_waitv futex_wake futimesat getcpu getcwd getdents getdents64 getegid
    geteuid getgid getgroups getitimer getpeername getpgid getpgrp getpid getppid getpriority getrandom getresgid
    getresuid getrlimit get_robust_list getrusage getsid getsockname getsockopt get_thread_area gettid gettimeofday
    getuid getxattr getxattrat inotify_add_watch inotify_init inotify_init1 inotify_rm_watch io_cancel ioctl io_destroy
    io_getevents io_pgetevents ioprio_get ioprio_set io_setup io_submit kill landlock_add_rule
    landlock_create_ruleset landlock_restrict_self lchown lgetxattr link linkat listen listmount listxattr listxattrat
    llistxattr lremovexattr lseek lsetxattr lstat madvise map_shadow_stack membarrier memfd_create memfd_secret mincore
    mkdir mkdirat mknod mknodat mlock mlock2 mlockall mmap mprotect mq_getsetattr mq_notify mq_open mq_timedreceive
    mq_timedsend mq_unlink mremap mseal msgctl msgget msgrcv msgsnd msync munlock munlockall munmap nanosleep newfstatat
    open openat openat2 pause pidfd_open pidfd_send_signal pipe pipe2 pkey_alloc pkey_free pkey_mprotect poll ppoll
    prctl pread64 preadv preadv2 prlimit64 process_mrelease process_vm_readv process_vm_writev pselect6 ptrace pwrite64
    pwritev pwritev2 read readahead readlink readlinkat readv recvfrom recvmmsg recvmsg remap_file_pages removexattr
    removexattrat rename renameat renameat2 restart_syscall rmdir rseq rt_sigaction rt_sigpending rt_sigprocmask
    rt_sigqueueinfo rt_sigreturn rt_sigsuspend rt_sigtimedwait rt_tgsigqueueinfo sched_getaffinity sched_getattr
    sched_getparam sched_get_priority_max sched_get_priority_min sched_getscheduler sched_rr_get_interval
    sched_setaffinity sched_setattr sched_setparam sched_setscheduler sched_yield seccomp select semctl semget semop
    semtimedop sendfile sendmmsg sendmsg sendto setfsgid setfsuid setgid setgroups setitimer setpgid setpriority
    setregid setresgid setresuid setreuid setrlimit set_robust_list setsid setsockopt set_thread_area set_tid_address
    setuid setxattr setxattrat shmat shmctl shmdt shmget shutdown sigaltstack signalfd signalfd4 socketpair splice stat
    statfs statmount statx symlink symlinkat sync sync_file_range syncfs sysinfo tee tgkill time timer_create
    timer_delete timer_getoverrun timer_gettime timer_settime timerfd_create timerfd_gettime timerfd_settime times tkill
    truncate umask uname unlink unlinkat uretprobe utime utimensat utimes vfork vmsplice wait4 waitid write writev";

/// Calls of one architecture.
const ALLOWED_HERE: &str = if cfg!(target_arch = "x86_64") { "arch_prctl modify_ldt" } else { "" };

/// Allowed with a capability.
const WITH: [(Capability, &str); 14] = [
    (Capability::DacReadSearch, "open_by_handle_at name_to_handle_at"),
    (
        Capability::SysAdmin,
        "bpf clone clone3 fanotify_init fsconfig fsmount fsopen fspick lookup_dcookie lsm_get_self_attr lsm_list_modules
         lsm_set_self_attr mount mount_setattr move_mount name_to_handle_at open_tree open_tree_attr perf_event_open
         pivot_root quotactl quotactl_fd setdomainname sethostname setns syslog umount2 unshare",
    ),
    (Capability::SysBoot, "reboot"),
    (Capability::SysChroot, "chroot"),
    (Capability::SysModule, "delete_module init_module finit_module"),
    (Capability::SysPacct, "acct"),
    (Capability::SysPtrace, "kcmp pidfd_getfd process_madvise"),
    (Capability::SysRawio, "iopl ioperm"),
    (Capability::SysTime, "settimeofday clock_settime"),
    (Capability::SysTtyConfig, "vhangup"),
    (Capability::SysNice, "get_mempolicy mbind set_mempolicy set_mempolicy_home_node"),
    (Capability::Syslog, "syslog"),
    (Capability::Bpf, "bpf"),
    (Capability::Perfmon, "perf_event_open"),
];

/// Every flag of `clone` that makes a namespace.
const CLONE_NAMESPACES: u64 = (libc::CLONE_NEWNS
    | libc::CLONE_NEWCGROUP
    | libc::CLONE_NEWUTS
    | libc::CLONE_NEWIPC
    | libc::CLONE_NEWUSER
    | libc::CLONE_NEWPID
    | libc::CLONE_NEWNET) as u64;

/// The profile for a process with these capabilities.
pub fn default_profile(capabilities: &Capabilities) -> LinuxSeccomp {
    let mut rules =
        vec![rule(&format!("{ALLOWED} {ALLOWED_HERE}"), LinuxSeccompAction::ScmpActAllow, None, Vec::new())];
    // An argument that is an int is compared as one: the kernel ignores the upper half, so a filter must too.
    for family in [libc::AF_ALG, libc::AF_VSOCK] {
        rules.push(rule("socket", LinuxSeccompAction::ScmpActErrno, Some(libc::EPERM), vec![int_is(0, family as u64)]));
    }
    rules.push(rule("socket", LinuxSeccompAction::ScmpActAllow, None, Vec::new()));
    const UNAME26: u64 = libc::UNAME26 as u64;
    for personality in [0, 8, UNAME26, UNAME26 | 8, 0xffff_ffff] {
        rules.push(rule("personality", LinuxSeccompAction::ScmpActAllow, None, vec![int_is(0, personality)]));
    }
    for (capability, names) in WITH {
        if capabilities.contains(&capability) {
            rules.push(rule(names, LinuxSeccompAction::ScmpActAllow, None, Vec::new()));
        }
    }
    if !capabilities.contains(&Capability::SysAdmin) {
        let none = argument(0, CLONE_NAMESPACES, Some(0), LinuxSeccompOperator::ScmpCmpMaskedEq);
        rules.push(rule("clone", LinuxSeccompAction::ScmpActAllow, None, vec![none]));
        // Its flags are in memory, where a filter cannot look; C libraries then use clone.
        rules.push(rule("clone3", LinuxSeccompAction::ScmpActErrno, Some(libc::ENOSYS), Vec::new()));
    }
    LinuxSeccompBuilder::default()
        .default_action(LinuxSeccompAction::ScmpActErrno)
        .default_errno_ret(libc::EPERM as u32)
        .syscalls(rules)
        .build()
        .expect("every field without a default is given")
}

fn rule(names: &str, action: LinuxSeccompAction, errno: Option<i32>, arguments: Vec<LinuxSeccompArg>) -> LinuxSyscall {
    let names: Vec<String> = names.split_whitespace().map(str::to_owned).collect();
    let mut rule = LinuxSyscallBuilder::default()
        .names(names)
        .action(action)
        .build()
        .expect("every field without a default is given");
    rule.set_errno_ret(errno.map(|errno| errno as u32));
    if !arguments.is_empty() {
        rule.set_args(Some(arguments));
    }
    rule
}

fn int_is(index: usize, value: u64) -> LinuxSeccompArg {
    argument(index, 0xffff_ffff, Some(value), LinuxSeccompOperator::ScmpCmpMaskedEq)
}

fn argument(index: usize, value: u64, value_two: Option<u64>, op: LinuxSeccompOperator) -> LinuxSeccompArg {
    let argument = LinuxSeccompArgBuilder::default().index(index).value(value).op(op);
    let argument = match value_two {
        Some(value_two) => argument.value_two(value_two),
        None => argument,
    };
    argument.build().expect("every field without a default is given")
}

#[cfg(test)]
mod tests {
    use super::super::syscalls;
    use super::*;

    #[test]
    fn every_name_is_a_call() {
        for name in ALLOWED.split_whitespace().chain(WITH.iter().flat_map(|(_, names)| names.split_whitespace())) {
            let legacy = cfg!(not(target_arch = "x86_64"));
            assert!(legacy || syscalls::number(name).is_some(), "{name} is no system call");
        }
    }
}
