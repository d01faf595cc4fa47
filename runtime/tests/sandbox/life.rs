//! Beginnings and ends: what is left when a sandbox or its starter dies, terminals, and entering.

use std::fs::{self, File};
use std::io::{BufRead, BufReader, Read, Write};
use std::path::PathBuf;
use std::process::{Command, ExitCode, Stdio as ChildStdio};
use std::time::{Duration, Instant};

use oci_spec::runtime::{LinuxNamespaceType, ProcessBuilder, UserBuilder};
use rbuild_runtime::sandbox::{DEFAULT_CAPABILITIES, capability_sets};
use rbuild_runtime::{
    CgroupSpec, EnterSpec, Error, NativeSandbox, Running, Sandbox, SandboxOptions, Seccomp, Stdio, mount_detached,
};
use rbuild_store::{Mounts, Root, Walk};
use rustix::process::Signal;

use crate::Test;
use crate::support::{Image, finish, run, sandbox};

pub(crate) const TESTS: &[Test] = &[
    ("everything_dies_with_the_first_process", everything_dies_with_the_first_process),
    ("drop_kills", drop_kills),
    ("without_a_pid_namespace_too", without_a_pid_namespace_too),
    ("kill_signal_is_told", kill_signal_is_told),
    ("the_death_of_the_starter_is_the_end", the_death_of_the_starter_is_the_end),
    ("the_death_of_the_supervisor_is_the_end", the_death_of_the_supervisor_is_the_end),
    ("the_death_of_both_is_the_end", the_death_of_both_is_the_end),
    ("our_program_is_sealed", our_program_is_sealed),
    ("joined_namespaces", joined_namespaces),
    ("a_supervisor_kept_ready_ends_too", a_supervisor_kept_ready_ends_too),
    ("standard_input", standard_input),
    ("terminal", terminal),
    ("entering", entering),
    ("freezing", freezing),
    ("failures_leave_nothing", failures_leave_nothing),
    ("many_at_once", many_at_once),
    ("layers_can_be_walked_detached", layers_can_be_walked_detached),
    ("hundreds_of_layers_are_folded", hundreds_of_layers_are_folded),
];

/// Directories of a sandbox's cgroup in whatever hierarchy.
fn cgroups(id: &str) -> Vec<PathBuf> {
    let hierarchies = fs::read_dir("/sys/fs/cgroup").unwrap().map(|entry| entry.unwrap().path());
    let all = hierarchies.chain([PathBuf::from("/sys/fs/cgroup")]).map(|path| path.join("rbuild-test").join(id));
    all.filter(|path| path.exists()).collect()
}

fn alive(pid: i32) -> bool {
    fs::read_to_string(format!("/proc/{pid}/stat")).is_ok_and(|stat| !stat.contains(") Z "))
}

fn until(what: &str, mut holds: impl FnMut() -> bool) {
    let started = Instant::now();
    while !holds() {
        assert!(started.elapsed() < Duration::from_secs(10), "{what}");
        std::thread::sleep(Duration::from_millis(5));
    }
}

fn processes(running: &Running) -> Vec<i32> {
    running.cgroup().unwrap().processes()
}

fn everything_dies_with_the_first_process() {
    let image = Image::new();
    let spec = image.spec(&["/bin/sh", "-c", "sleep 1000 & sleep 1000 & echo started; sleep 0.1; exit 3"]);
    let id = spec.id.clone();
    let mut running = sandbox().start(spec).unwrap();
    let mut line = String::new();
    BufReader::new(File::from(running.stdout.take().unwrap())).read_line(&mut line).unwrap();
    let pids = processes(&running);
    assert!(pids.len() >= 3, "{pids:?}");
    assert!(!cgroups(&id).is_empty());
    assert_eq!(running.wait().unwrap().code, Some(3));
    assert_eq!(running.wait().unwrap().code, Some(3), "asked again");
    assert!(pids.iter().all(|&pid| !alive(pid)));
    drop(running);
    assert_eq!(cgroups(&id), Vec::<PathBuf>::new());
    let mounts = fs::read_to_string("/proc/self/mountinfo").unwrap();
    assert!(!mounts.contains(image.dir.path().to_str().unwrap()));
}

fn drop_kills() {
    let image = Image::new();
    let spec = image.spec(&["/bin/sh", "-c", "sleep 1000 & sleep 1000"]);
    let id = spec.id.clone();
    let running = sandbox().start(spec).unwrap();
    until("the shell forks", || processes(&running).len() > 1);
    let pids = processes(&running);
    drop(running);
    assert!(pids.iter().all(|&pid| !alive(pid)), "{pids:?}");
    assert!(cgroups(&id).is_empty());
}

fn without_a_pid_namespace_too() {
    let image = Image::new();
    let mut spec = image.spec(&["/bin/sh", "-c", "sleep 1000 & sleep 1000 & sleep 0.2"]);
    let namespaces = spec.spec.linux_mut().as_mut().unwrap().namespaces_mut().as_mut().unwrap();
    namespaces.retain(|namespace| namespace.typ() != LinuxNamespaceType::Pid);
    let running = sandbox().start(spec).unwrap();
    until("the shell forks", || processes(&running).len() > 2);
    let pids = processes(&running);
    running.wait().unwrap();
    drop(running);
    assert!(pids.iter().all(|&pid| !alive(pid)), "{pids:?}");
}

fn kill_signal_is_told() {
    let image = Image::new();
    let running = sandbox().start(image.spec(&["sleep", "1000"])).unwrap();
    running.kill(Signal::KILL).unwrap();
    let exit = running.wait().unwrap();
    assert_eq!((exit.code, exit.signal, exit.status(), exit.oom), (None, Some(9), 137, false));
    running.kill(Signal::KILL).unwrap();
}

const STARTER: &str = "starter-to-be-killed";

/// When a test below executes this program again: starts a sandbox, says so, and waits to be killed.
pub(crate) fn starter_to_be_killed() -> Option<ExitCode> {
    if std::env::args().nth(1).as_deref() != Some(STARTER) {
        return None;
    }
    let image = Image::new();
    let spec = image.spec(&["/bin/sh", "-c", "sleep 1000 & sleep 1000"]);
    let id = spec.id.clone();
    let running = sandbox().start(spec).unwrap();
    until("the shell forks", || processes(&running).len() > 1);
    println!("{id} {} {}", image.dir.path().display(), running.pid());
    let _ = running.wait();
    Some(ExitCode::FAILURE)
}

fn the_death_of_the_starter_is_the_end() {
    let mut starter = Command::new("/proc/self/exe").arg(STARTER).stdout(ChildStdio::piped()).spawn().unwrap();
    let mut line = String::new();
    BufReader::new(starter.stdout.take().unwrap()).read_line(&mut line).unwrap();
    let words: Vec<&str> = line.split_whitespace().collect();
    let pid: i32 = words[2].parse().unwrap();
    assert!(alive(pid));
    starter.kill().unwrap();
    starter.wait().unwrap();
    until("the first process dies", || !alive(pid));
    until("the cgroup is removed", || cgroups(words[0]).is_empty());
    fs::remove_dir_all(words[1]).unwrap();
}

fn the_death_of_the_supervisor_is_the_end() {
    let image = Image::new();
    let spec = image.spec(&["sleep", "1000"]);
    let id = spec.id.clone();
    let running = sandbox().start(spec).unwrap();
    kill_supervisor(running.pid());
    assert!(matches!(running.wait(), Err(Error::Lost(_))));
    let pid = running.pid();
    drop(running);
    until("the first process dies", || !alive(pid));
    until("the cgroup is removed", || cgroups(&id).is_empty());
}

/// With the supervisor and its starter killed at once nobody is left to clean up, but the processes end all the same.
fn the_death_of_both_is_the_end() {
    let mut starter = Command::new("/proc/self/exe").arg(STARTER).stdout(ChildStdio::piped()).spawn().unwrap();
    let mut line = String::new();
    BufReader::new(starter.stdout.take().unwrap()).read_line(&mut line).unwrap();
    let words: Vec<&str> = line.split_whitespace().collect();
    let pid: i32 = words[2].parse().unwrap();
    let id = rustix::process::Pid::from_child(&starter);
    rustix::process::kill_process(id, Signal::STOP).unwrap();
    kill_supervisor(pid);
    until("the first process dies", || !alive(pid));
    starter.kill().unwrap();
    starter.wait().unwrap();
    for cgroup in cgroups(words[0]) {
        fs::remove_dir(cgroup).unwrap();
    }
    fs::remove_dir_all(words[1]).unwrap();
}

/// Kills the parent of a sandbox's first process.
fn kill_supervisor(pid: i32) {
    let supervisor = supervisor(pid);
    rustix::process::kill_process(rustix::process::Pid::from_raw(supervisor).unwrap(), Signal::KILL).unwrap();
}

fn supervisor(pid: i32) -> i32 {
    let stat = fs::read_to_string(format!("/proc/{pid}/stat")).unwrap();
    stat.rsplit(") ").next().unwrap().split(' ').nth(1).unwrap().parse().unwrap()
}

/// The program of ours that lives beside a sandbox is on a file system nobody can write, and debuggers cannot reach it.
fn our_program_is_sealed() {
    let image = Image::new();
    let running = sandbox().start(image.spec(&["sleep", "1000"])).unwrap();
    let exe = format!("/proc/{}/exe", supervisor(running.pid()));
    let file = File::open(&exe).unwrap();
    const OVERLAYFS: i64 = 0x794c_7630;
    assert_eq!(rustix::fs::fstatfs(&file).unwrap().f_type, OVERLAYFS);
    let opened = File::options().write(true).open(&exe).unwrap_err();
    assert!(matches!(opened.raw_os_error(), Some(libc::EROFS | libc::ETXTBSY)), "{opened}");
    let status = fs::metadata(format!("/proc/{}/environ", supervisor(running.pid()))).unwrap();
    assert_eq!(std::os::unix::fs::MetadataExt::uid(&status), 0);
    assert_eq!(fs::read(format!("/proc/{}/environ", supervisor(running.pid()))).unwrap(), b"", "cleared");
}

fn joined_namespaces() {
    let image = Image::new();
    let other = Image::new();
    let running = sandbox().start(image.spec(&["sleep", "1000"])).unwrap();
    let mut spec = other.spec(&[
        "/bin/sh",
        "-c",
        "tr '\\0' ' ' </proc/1/cmdline; readlink /proc/self/ns/ipc; sleep 1000 & sleep 0.1",
    ]);
    for namespace in spec.spec.linux_mut().as_mut().unwrap().namespaces_mut().as_mut().unwrap() {
        let name = match namespace.typ() {
            LinuxNamespaceType::Pid => "pid",
            LinuxNamespaceType::Ipc => "ipc",
            _ => continue,
        };
        namespace.set_path(Some(format!("/proc/{}/ns/{name}", running.pid()).into()));
    }
    let mut joined = sandbox().start(spec).unwrap();
    until("the shell forks", || processes(&joined).len() > 1);
    let pids = processes(&joined);
    let ipc = fs::read_link(format!("/proc/{}/ns/ipc", running.pid())).unwrap();
    // What it leaves behind in the joined namespace holds its standard output until it is killed.
    let output = finish(&mut joined);
    assert_eq!(output.stdout, format!("sleep 1000 {}\n", ipc.display()));
    drop(joined);
    assert!(pids.iter().all(|&pid| !alive(pid)) && alive(running.pid()));
}

fn a_supervisor_kept_ready_ends_too() {
    let waiting = || {
        let children = fs::read_dir("/proc").unwrap().filter_map(|entry| {
            let pid = entry.unwrap().file_name().to_str()?.parse::<i32>().ok()?;
            let stat = fs::read_to_string(format!("/proc/{pid}/stat")).ok()?;
            let parent = stat.rsplit(") ").next()?.split(' ').nth(1)?.parse::<u32>().ok()?;
            (parent == std::process::id()).then_some(pid)
        });
        children.collect::<Vec<_>>()
    };
    let dir = tempfile::tempdir().unwrap();
    let options = SandboxOptions { helper: "/proc/self/exe".into(), state_dir: dir.path().into() };
    let own = NativeSandbox::new(options).unwrap();
    // What other tests left ready may come and go, but not with the same number.
    let before = waiting();
    own.warm();
    until("one is ready", || waiting().iter().any(|pid| !before.contains(pid)));
    let ready: Vec<i32> = waiting().into_iter().filter(|pid| !before.contains(pid)).collect();
    let image = Image::new();
    let running = own.start(image.spec(&["sleep", "1000"])).unwrap();
    assert!(ready.contains(&supervisor(running.pid())), "it is the one that is used");
    drop(running);
    own.warm();
    until("another is ready", || waiting().iter().any(|pid| !before.contains(pid)));
    let ready: Vec<i32> = waiting().into_iter().filter(|pid| !before.contains(pid)).collect();
    drop(own);
    assert!(ready.iter().all(|&pid| !alive(pid)));
}

fn standard_input() {
    let image = Image::new();
    let mut spec = image.spec(&["cat"]);
    spec.stdio = Stdio::Pipes;
    let mut running = sandbox().start(spec).unwrap();
    let mut input = File::from(running.stdin.take().unwrap());
    input.write_all(b"through\n").unwrap();
    drop(input);
    assert_eq!(finish(&mut running).stdout, "through\n");
    assert_eq!(run(image.spec(&["cat"])).unwrap().stdout, "", "nothing to read");
}

fn terminal() {
    let image = Image::new();
    let mut spec = image.spec(&[
        "/bin/sh",
        "-c",
        "test -t 0 && tty; stty size; ls /dev/console; read x; stty size; echo got $x >/dev/tty",
    ]);
    spec.stdio = Stdio::Terminal { rows: 33, columns: 111 };
    let running = sandbox().start(spec).unwrap();
    let mut master = File::from(running.terminal.as_ref().unwrap().try_clone().unwrap());
    let mut text = String::new();
    let mut buffer = [0; 1024];
    while !text.contains("console") {
        let length = master.read(&mut buffer).unwrap();
        text.push_str(std::str::from_utf8(&buffer[..length]).unwrap());
    }
    running.resize(10, 20).unwrap();
    master.write_all(b"typed\n").unwrap();
    // The master fails with EIO once the last process has closed its side.
    while let Ok(length @ 1..) = master.read(&mut buffer) {
        text.push_str(std::str::from_utf8(&buffer[..length]).unwrap());
    }
    assert_eq!(text, "/dev/pts/0\r\n33 111\r\n/dev/console\r\ntyped\r\n10 20\r\ngot typed\r\n");
    assert_eq!(running.wait().unwrap().code, Some(0));
}

fn entering() {
    let image = Image::new();
    let spec = image.spec(&["sleep", "1000"]);
    let (id, cgroup) = (spec.id.clone(), spec.cgroup.clone());
    let running = sandbox().start(spec).unwrap();
    let enter = |args: &[&str], stdio| {
        let process = ProcessBuilder::default()
            .args(args.iter().map(|&arg| arg.to_owned()).collect::<Vec<_>>())
            .env(vec!["PATH=/bin".to_owned()])
            .cwd("/tmp")
            .user(UserBuilder::default().uid(0u32).gid(0u32).build().unwrap())
            .capabilities(capability_sets(&DEFAULT_CAPABILITIES))
            .build();
        let mut process = process.unwrap();
        process.set_rlimits(None);
        sandbox().enter(EnterSpec {
            target: running.pidfd().try_clone_to_owned().unwrap(),
            id: id.clone(),
            cgroup: CgroupSpec { parent: cgroup.parent.clone() },
            process,
            seccomp: Seccomp::Default,
            stdio,
            ids: None,
        })
    };
    let script = "readlink /proc/self/cwd; all=$(ps -o pid,args); echo \"$all\" | grep -v ps; ls /proc/self/fd | wc -l; \
                  for n in uts net mnt ipc pid cgroup; do [ $(readlink /proc/self/ns/$n) = $(readlink /proc/1/ns/$n) ] || echo $n differs; done; \
                  cmp -s /proc/1/cgroup /proc/self/cgroup; grep -E 'CapEff|Seccomp:' /proc/self/status; exit 5";
    let output = finish(&mut enter(&["sh", "-c", script], Stdio::Output).unwrap());
    assert_eq!(output.exit.code, Some(5), "{output:?}");
    let lines: Vec<&str> = output.stdout.lines().map(str::trim).collect();
    assert_eq!((lines[0], lines[2], lines[3]), ("/tmp", "1 sleep 1000", "4"), "{output:?}");
    assert_eq!(lines[4..], ["CapEff:\t00000000a80425fb", "Seccomp:\t2"], "{output:?}");
    match enter(&["nosuch"], Stdio::Output) {
        Err(Error::Exec(failure)) => assert_eq!(failure.exit_code, 127),
        other => panic!("{other:?}"),
    }
    let terminal = enter(&["tty"], Stdio::Terminal { rows: 1, columns: 2 }).unwrap();
    let mut text = String::new();
    let _ = File::from(terminal.terminal.as_ref().unwrap().try_clone().unwrap()).read_to_string(&mut text);
    assert_eq!(text, "/dev/pts/0\r\n");
    let inside = enter(&["sleep", "1000"], Stdio::Null).unwrap();
    let pid = inside.pid();
    assert!(processes(&running).contains(&pid), "in the same cgroup");
    drop(inside);
    assert!(!alive(pid) && alive(running.pid()), "only the entered process ends");
    let outlived = enter(&["sleep", "1000"], Stdio::Null).unwrap();
    drop(running);
    assert_eq!(outlived.wait().unwrap().signal, Some(9), "the end is the end of all");
}

fn freezing() {
    let image = Image::new();
    let spec = image.spec(&["/bin/sh", "-c", "while :; do echo x; sleep 0.01; done"]);
    let mut running = sandbox().start(spec).unwrap();
    let output = running.stdout.take().unwrap();
    let cgroup = running.cgroup().unwrap();
    cgroup.freeze().unwrap();
    assert!(cgroup.is_frozen());
    rustix::io::ioctl_fionbio(&output, true).unwrap();
    let mut output = File::from(output);
    while output.read(&mut [0; 4096]).is_ok() {}
    std::thread::sleep(Duration::from_millis(50));
    assert!(output.read(&mut [0; 1]).is_err(), "stands still");
    cgroup.thaw().unwrap();
    until("it goes on", || output.read(&mut [0; 1]).is_ok());
    cgroup.freeze().unwrap();
    let pid = running.pid();
    drop(running);
    assert!(!alive(pid), "the frozen die too");
}

fn failures_leave_nothing() {
    let image = Image::new();
    let mut spec = image.spec(&["true"]);
    spec.etc.hosts = Some("/no/such/file".into());
    let id = spec.id.clone();
    let message = run(spec).unwrap_err().to_string();
    assert!(message.contains("/no/such/file") || message.contains("/etc/hosts"), "{message}");
    assert!(cgroups(&id).is_empty());
    let spec = image.spec(&["nosuch"]);
    let id = spec.id.clone();
    run(spec).unwrap_err();
    assert!(cgroups(&id).is_empty());
}

fn many_at_once() {
    std::thread::scope(|scope| {
        for n in 0..8 {
            scope.spawn(move || {
                let image = Image::new();
                for _ in 0..3 {
                    assert_eq!(image.sh(&format!("exit {n}")).exit.code, Some(n));
                }
            });
        }
    });
}

fn layers_can_be_walked_detached() {
    let image = Image::new();
    fs::write(image.path("upper/new"), "upper").unwrap();
    let read = |mounts: &Mounts, path: &str| {
        let root = Root::from_fd(mount_detached(mounts).unwrap()).unwrap();
        let mut text = String::new();
        root.open_file(path.as_ref(), Walk::InRoot)?.read_to_string(&mut text).map(|_| text)
    };
    assert_eq!(read(&image.mounts(), "/new").unwrap(), "upper");
    let single = Mounts::Overlay { lowers: vec![image.path("lower")], upper: None, work: None };
    assert!(read(&single, "/etc/passwd").unwrap().starts_with("root:"));
    assert!(read(&single, "/new").is_err());
    let bind = Mounts::Bind { source: image.path("lower"), read_only: true };
    assert!(read(&bind, "etc/passwd").is_ok());
    assert!(!fs::read_to_string("/proc/self/mountinfo").unwrap().contains(image.dir.path().to_str().unwrap()));
}

/// The kernel stacks 500 directories at a time.
fn hundreds_of_layers_are_folded() {
    const LAYERS: usize = 510;
    let image = Image::new();
    let mut lowers = Vec::new();
    for n in 0..LAYERS {
        let layer = image.path(&format!("layers/{n}"));
        fs::create_dir_all(layer.join("tmp")).unwrap();
        fs::write(layer.join(format!("tmp/f{n}")), n.to_string()).unwrap();
        fs::write(layer.join("tmp/highest"), n.to_string()).unwrap();
        lowers.insert(0, layer);
    }
    // One of the upper part takes away what one of the lower part made.
    let whiteout = lowers[10].join("tmp/f3");
    let made = rustix::fs::mknodat(
        rustix::fs::CWD,
        &whiteout,
        rustix::fs::FileType::CharacterDevice,
        rustix::fs::Mode::empty(),
        0,
    );
    made.unwrap();
    lowers.push(image.path("lower"));
    let rootfs = Mounts::Overlay { lowers, upper: Some(image.path("upper")), work: Some(image.path("work")) };
    let script = "cat /tmp/highest; ls /tmp | wc -l; echo changed > /tmp/f5; rm /tmp/f6; cat /tmp/f5; ls /tmp | wc -l";
    let spec = rbuild_runtime::ProcessSpec { rootfs, ..image.spec(&["sh", "-c", script]) };
    let output = run(spec).unwrap();
    assert_eq!((output.stdout.as_str(), output.stderr.as_str()), ("509510\nchanged\n509\n", ""));
}
