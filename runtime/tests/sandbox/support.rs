//! A root with busybox, and short ways to run something in it.

use std::fs::{self, File};
use std::io::Read;
use std::os::unix::fs::symlink;
use std::path::{Path, PathBuf};
use std::sync::OnceLock;
use std::sync::atomic::{AtomicU32, Ordering};

use oci_spec::runtime::UserBuilder;
use rbuild_runtime::{
    CgroupSpec, EtcFiles, Exit, NativeSandbox, Network, ProcessSpec, Result, Running, Sandbox, SandboxOptions, Seccomp,
    Stdio, Upper, default_spec,
};
use rbuild_store::Mounts;

pub(crate) fn sandbox() -> &'static NativeSandbox {
    static SANDBOX: OnceLock<NativeSandbox> = OnceLock::new();
    SANDBOX.get_or_init(|| {
        NativeSandbox::new(SandboxOptions { helper: "/proc/self/exe".into(), state_dir: state_dir() }).unwrap()
    })
}

/// An image in a temporary directory: `lower`, `upper`, `work`, `stubs`.
pub(crate) struct Image {
    pub(crate) dir: tempfile::TempDir,
}

impl Image {
    pub(crate) fn new() -> Self {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path();
        for name in ["lower/bin", "lower/etc", "lower/tmp", "upper", "work", "stubs"] {
            fs::create_dir_all(path.join(name)).unwrap();
        }
        fs::copy("/bin/busybox", path.join("lower/bin/busybox")).unwrap();
        for name in
            "sh cat ls id env true false sleep mount mkdir touch kill ps readlink hostname stat echo test mknod head \
                     wc grep sed ip stty tty dd tr unshare awk chroot find chmod cmp"
                .split_whitespace()
        {
            symlink("busybox", path.join("lower/bin").join(name)).unwrap();
        }
        fs::write(path.join("lower/etc/passwd"), "root:x:0:0:root:/root:/bin/sh\n").unwrap();
        Image { dir }
    }

    pub(crate) fn path(&self, name: &str) -> PathBuf {
        self.dir.path().join(name)
    }

    pub(crate) fn mounts(&self) -> Mounts {
        Mounts::Overlay {
            lowers: vec![self.path("lower")],
            upper: Some(self.path("upper")),
            work: Some(self.path("work")),
        }
    }

    /// Runs `script` with the default confinement.
    pub(crate) fn spec(&self, args: &[&str]) -> ProcessSpec {
        static NEXT: AtomicU32 = AtomicU32::new(0);
        let id = format!("test-{}-{}", std::process::id(), NEXT.fetch_add(1, Ordering::Relaxed));
        let args = args.iter().map(|&arg| arg.to_owned()).collect();
        let env = vec!["PATH=/bin".to_owned(), "B=2".to_owned(), "A=1".to_owned()];
        let user = UserBuilder::default().uid(0u32).gid(0u32).build().unwrap();
        ProcessSpec {
            id,
            spec: default_spec(args, env, "/", user),
            rootfs: self.mounts(),
            upper: Upper::Durable,
            stub_dir: self.path("stubs"),
            network: Network::None,
            etc: EtcFiles::default(),
            mounts: Vec::new(),
            stdio: Stdio::Output,
            cgroup: CgroupSpec { parent: Some("/rbuild-test".into()) },
            seccomp: Seccomp::Default,
            init: false,
            ids: None,
        }
    }

    pub(crate) fn sh(&self, script: &str) -> Output {
        run(self.spec(&["/bin/sh", "-c", script])).unwrap()
    }
}

#[derive(Debug)]
pub(crate) struct Output {
    pub(crate) stdout: String,
    pub(crate) stderr: String,
    pub(crate) exit: Exit,
}

pub(crate) fn run(spec: ProcessSpec) -> Result<Output> {
    let mut running = sandbox().start(spec)?;
    Ok(finish(&mut running))
}

pub(crate) fn finish(running: &mut Running) -> Output {
    let read = |fd: Option<std::os::fd::OwnedFd>| {
        std::thread::spawn(move || {
            let mut text = String::new();
            if let Some(fd) = fd {
                let _ = File::from(fd).read_to_string(&mut text);
            }
            text
        })
    };
    let (stdout, stderr) = (read(running.stdout.take()), read(running.stderr.take()));
    let exit = running.wait().unwrap();
    Output { stdout: stdout.join().unwrap(), stderr: stderr.join().unwrap(), exit }
}

/// Removes what all tests share.
pub(crate) fn clean_up() {
    let _ = fs::remove_dir_all(state_dir());
    let hierarchies = fs::read_dir("/sys/fs/cgroup").unwrap().map(|entry| entry.unwrap().path());
    for hierarchy in hierarchies.chain([PathBuf::from("/sys/fs/cgroup")]) {
        let _ = fs::remove_dir(hierarchy.join("rbuild-test"));
    }
}

fn state_dir() -> PathBuf {
    std::env::temp_dir().join(format!("rbuild-sandbox-test-{}", std::process::id()))
}

pub(crate) fn tree(root: &Path) -> Vec<String> {
    let mut found = Vec::new();
    let mut todo = vec![root.to_owned()];
    while let Some(directory) = todo.pop() {
        for entry in fs::read_dir(&directory).unwrap() {
            let path = entry.unwrap().path();
            found.push(path.strip_prefix(root).unwrap().to_string_lossy().into_owned());
            if path.is_dir() && !path.is_symlink() {
                todo.push(path);
            }
        }
    }
    found.sort();
    found
}
