//! Where a test takes place: a temporary directory with files, a state directory, and a way to call the program.

use std::collections::BTreeSet;
use std::fmt::Write as _;
use std::os::unix::fs::PermissionsExt as _;
use std::os::unix::process::ExitStatusExt as _;
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};
use std::sync::{OnceLock, RwLock, RwLockReadGuard, RwLockWriteGuard};
use std::time::{Duration, Instant};

use sha2::{Digest as _, Sha256};

/// Tests share the machine; those that count its cgroups and interfaces must be alone on it.
static MACHINE: RwLock<()> = RwLock::new(());

/// How long cleaning up behind the scenes may take.
const PATIENCE: Duration = Duration::from_secs(10);

/// The guard is only held.
#[expect(dead_code, reason = "held for its drop")]
enum Machine {
    Shared(RwLockReadGuard<'static, ()>),
    Alone(RwLockWriteGuard<'static, ()>),
}

/// One test's surroundings. Dropping it checks that nothing is left behind.
pub(crate) struct Scene {
    dir: tempfile::TempDir,
    before: Option<BTreeSet<String>>,
    _machine: Machine,
}

/// What the program said and how it ended.
#[derive(Debug)]
pub(crate) struct Said {
    pub(crate) out: String,
    pub(crate) err: String,
    /// The exit code, or 128 and the signal's number.
    pub(crate) code: i32,
}

impl Scene {
    /// An empty store.
    pub(crate) fn new() -> Scene {
        let machine = Machine::Shared(MACHINE.read().unwrap_or_else(std::sync::PoisonError::into_inner));
        Scene::at(machine, None)
    }

    /// A store with `busybox:latest`.
    pub(crate) fn with_busybox() -> Scene {
        Scene::new().load_busybox()
    }

    /// A store with `busybox:latest`, on a machine where no other test runs: the end also looks for cgroups and
    /// network interfaces.
    pub(crate) fn alone_with_busybox() -> Scene {
        let machine = Machine::Alone(MACHINE.write().unwrap_or_else(std::sync::PoisonError::into_inner));
        Scene::at(machine, Some(machine_state())).load_busybox()
    }

    fn at(machine: Machine, before: Option<BTreeSet<String>>) -> Scene {
        assert!(rustix::process::geteuid().is_root(), "these tests start containers: run them as root");
        let dir = tempfile::Builder::new().prefix("rbuild-e2e-").tempdir().expect("a temporary directory");
        std::fs::set_permissions(dir.path(), std::fs::Permissions::from_mode(0o755)).expect("chmod");
        std::fs::create_dir(dir.path().join("work")).expect("mkdir");
        Scene { dir, before, _machine: machine }
    }

    fn load_busybox(self) -> Scene {
        let archive = busybox_archive();
        self.rb(&["load", "-q", "-i", archive.to_str().expect("UTF-8")]).ok();
        self
    }

    /// The state directory.
    pub(crate) fn root(&self) -> PathBuf {
        self.dir.path().join("root")
    }

    /// The directory that commands run in.
    pub(crate) fn work(&self) -> PathBuf {
        self.dir.path().join("work")
    }

    /// Writes a file below the working directory, with its parents.
    pub(crate) fn write(&self, name: &str, text: impl AsRef<[u8]>) -> PathBuf {
        let path = self.work().join(name);
        std::fs::create_dir_all(path.parent().expect("a parent")).expect("mkdir");
        std::fs::write(&path, text).expect("write");
        path
    }

    /// The program with these arguments, not started yet: no standard input, progress as plain lines.
    pub(crate) fn command(&self, arguments: &[&str]) -> Command {
        let mut command = Command::new(env!("CARGO_BIN_EXE_rbuild"));
        command.args(arguments).current_dir(self.work()).env_clear();
        command.env("PATH", "/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin");
        command.env("HOME", self.dir.path()).env("RBUILD_ROOT", self.root()).env("BUILDKIT_PROGRESS", "plain");
        command.stdin(Stdio::null());
        command
    }

    /// Runs the program to its end.
    pub(crate) fn rb(&self, arguments: &[&str]) -> Said {
        Said::from(self.command(arguments).output().expect("the program starts"))
    }

    /// Runs the program with `input` as standard input.
    pub(crate) fn rb_with_input(&self, arguments: &[&str], input: &[u8]) -> Said {
        let path = self.dir.path().join("input");
        std::fs::write(&path, input).expect("write");
        let file = std::fs::File::open(path).expect("open");
        Said::from(self.command(arguments).stdin(file).output().expect("the program starts"))
    }

    /// `inspect` of an image, as JSON.
    pub(crate) fn inspect(&self, image: &str) -> serde_json::Value {
        let said = self.rb(&["image", "inspect", image]).ok();
        let mut all: serde_json::Value = serde_json::from_str(&said.out).expect("inspect gives JSON");
        all[0].take()
    }

    /// The output of a command in a new container without a network.
    pub(crate) fn in_image(&self, image: &str, script: &str) -> String {
        self.rb(&["run", "--rm", "--network", "none", image, "sh", "-c", script]).ok().out
    }

    /// What of this scene still lives: mounts, processes, and when alone cgroups and interfaces.
    pub(crate) fn leftovers(&self) -> BTreeSet<String> {
        let mut found = mounts_below(&self.root());
        found.extend(processes_of(&self.root()));
        found.extend(bridges_of(&self.root()));
        if let Some(before) = &self.before {
            found.extend(machine_state().difference(before).cloned());
        }
        found
    }

    /// Waits for everything of this scene to be gone.
    pub(crate) fn settle(&self) {
        let start = Instant::now();
        loop {
            let found = self.leftovers();
            if found.is_empty() {
                return;
            }
            assert!(start.elapsed() < PATIENCE, "left behind: {found:#?}");
            std::thread::sleep(Duration::from_millis(50));
        }
    }
}

impl Drop for Scene {
    fn drop(&mut self) {
        if !std::thread::panicking() {
            self.settle();
        }
    }
}

impl From<std::process::Output> for Said {
    fn from(output: std::process::Output) -> Said {
        let text = |bytes: Vec<u8>| String::from_utf8_lossy(&bytes).into_owned();
        let code = output.status.code().unwrap_or_else(|| 128 + output.status.signal().unwrap_or(0));
        Said { out: text(output.stdout), err: text(output.stderr), code }
    }
}

impl Said {
    /// It succeeded.
    #[track_caller]
    pub(crate) fn ok(self) -> Said {
        assert_eq!(self.code, 0, "should succeed: {self:#?}");
        self
    }

    /// It failed with this code, and said each of these on standard error.
    #[track_caller]
    pub(crate) fn refused(self, code: i32, words: &[&str]) -> Said {
        assert_eq!(self.code, code, "exit code: {self:#?}");
        self.says(words)
    }

    /// Standard error has each of these.
    #[track_caller]
    pub(crate) fn says(self, words: &[&str]) -> Said {
        for word in words {
            assert!(self.err.contains(word), "should say {word:?}: {self:#?}");
        }
        self
    }

    /// Whether the step whose heading ends with `name` came from the cache.
    #[track_caller]
    pub(crate) fn was_cached(&self, name: &str) -> bool {
        let heading = self.err.lines().find(|line| line.starts_with('#') && line.ends_with(name));
        let heading = heading.unwrap_or_else(|| panic!("no step {name:?}: {self:#?}"));
        let number = heading.split(' ').next().unwrap_or_default();
        self.err.lines().any(|line| line == format!("{number} CACHED"))
    }
}

fn mounts_below(root: &Path) -> BTreeSet<String> {
    let table = std::fs::read_to_string("/proc/self/mountinfo").expect("mountinfo");
    let below = format!("{}/", root.display());
    let targets = table.lines().filter_map(|line| line.split(' ').nth(4));
    targets.filter(|target| target.starts_with(&below)).map(|target| format!("mount {target}")).collect()
}

/// Bridges of networks that nobody removed.
fn bridges_of(root: &Path) -> BTreeSet<String> {
    let note = format!("rbuild {}", root.display());
    let entries = std::fs::read_dir("/sys/class/net").into_iter().flatten().flatten();
    let its = entries.filter(|entry| {
        std::fs::read_to_string(entry.path().join("ifalias"))
            .is_ok_and(|alias| alias.trim_end_matches(['\n', '\0']) == note)
    });
    its.map(|entry| format!("bridge {}", entry.file_name().to_string_lossy())).collect()
}

fn processes_of(root: &Path) -> BTreeSet<String> {
    let want = format!("RBUILD_ROOT={}", root.display()).into_bytes();
    let path = root.as_os_str().as_encoded_bytes();
    let mut found = BTreeSet::new();
    for entry in std::fs::read_dir("/proc").expect("/proc").flatten() {
        let name = entry.file_name().to_string_lossy().into_owned();
        if !name.bytes().all(|b| b.is_ascii_digit()) {
            continue;
        }
        // A process that ends meanwhile has nothing to read.
        let read = |file: &str| std::fs::read(entry.path().join(file)).unwrap_or_default();
        let command = read("cmdline");
        let environment = read("environ");
        let is_ours = environment.split(|b| *b == 0).any(|variable| variable == want)
            || command.windows(path.len()).any(|window| window == path);
        if is_ours && name != std::process::id().to_string() {
            found.insert(format!("process {name} {}", String::from_utf8_lossy(&command).replace('\0', " ")));
        }
    }
    found
}

/// The cgroups and interfaces of rbuild on this machine.
fn machine_state() -> BTreeSet<String> {
    let mut found = BTreeSet::new();
    let mut open = vec![PathBuf::from("/sys/fs/cgroup")];
    while let Some(directory) = open.pop() {
        for entry in std::fs::read_dir(&directory).into_iter().flatten().flatten() {
            let is_dir = entry.file_type().is_ok_and(|kind| kind.is_dir());
            if is_dir {
                if directory.ends_with("rbuild") {
                    found.insert(format!("cgroup {}", entry.path().display()));
                }
                open.push(entry.path());
            }
        }
    }
    for entry in std::fs::read_dir("/sys/class/net").into_iter().flatten().flatten() {
        let name = entry.file_name().to_string_lossy().into_owned();
        if name.starts_with("veth") {
            found.insert(format!("interface {name}"));
        }
    }
    found
}

/// An archive, in docker's form, with `busybox:latest` made from the host's static busybox.
pub(crate) fn busybox_archive() -> &'static Path {
    static ARCHIVE: OnceLock<PathBuf> = OnceLock::new();
    ARCHIVE.get_or_init(|| {
        let layer = busybox_layer();
        let diff_id = format!("sha256:{}", hex(&Sha256::digest(&layer)));
        let config = serde_json::json!({
            "architecture": if cfg!(target_arch = "aarch64") { "arm64" } else { "amd64" },
            "os": "linux",
            "created": "2024-01-01T00:00:00Z",
            "config": {"Env": ["PATH=/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin"], "Cmd": ["sh"]},
            "rootfs": {"type": "layers", "diff_ids": [diff_id]},
            "history": [{"created": "2024-01-01T00:00:00Z", "created_by": "ADD busybox /"}],
        });
        let config = serde_json::to_vec(&config).expect("JSON");
        let config_name = format!("{}.json", hex(&Sha256::digest(&config)));
        let manifest =
            serde_json::json!([{"Config": config_name, "RepoTags": ["busybox:latest"], "Layers": ["layer.tar"]}]);
        let manifest = serde_json::to_vec(&manifest).expect("JSON");
        let mut archive = tar::Builder::new(Vec::new());
        for (name, bytes) in [("layer.tar", &layer), (config_name.as_str(), &config), ("manifest.json", &manifest)] {
            add(&mut archive, name, tar::EntryType::Regular, 0o644, bytes, "");
        }
        let path = Path::new(env!("CARGO_TARGET_TMPDIR")).join("busybox.tar");
        std::fs::write(&path, archive.into_inner().expect("tar")).expect("write");
        path
    })
}

fn busybox_layer() -> Vec<u8> {
    let program =
        ["/bin/busybox", "/usr/bin/busybox", "/bin/busybox-static"].iter().find(|path| Path::new(path).exists());
    let program = program.expect("a static busybox: install busybox-static");
    let list = Command::new(program).arg("--list").output().expect("busybox runs");
    let bytes = std::fs::read(program).expect("read busybox");
    let mut layer = tar::Builder::new(Vec::new());
    for (name, mode) in [("bin/", 0o755), ("dev/", 0o755), ("etc/", 0o755), ("root/", 0o700), ("tmp/", 0o1777)] {
        add(&mut layer, name, tar::EntryType::Directory, mode, &[], "");
    }
    add(&mut layer, "bin/busybox", tar::EntryType::Regular, 0o755, &bytes, "");
    for applet in String::from_utf8_lossy(&list.stdout).lines().filter(|applet| *applet != "busybox") {
        add(&mut layer, &format!("bin/{applet}"), tar::EntryType::Link, 0o755, &[], "bin/busybox");
    }
    add(&mut layer, "etc/group", tar::EntryType::Regular, 0o644, b"root:x:0:\nnogroup:x:65534:\n", "");
    let passwd = b"root:x:0:0:root:/root:/bin/sh\nnobody:x:65534:65534:nobody:/home:/bin/false\n";
    add(&mut layer, "etc/passwd", tar::EntryType::Regular, 0o644, passwd, "");
    layer.into_inner().expect("tar")
}

fn add(to: &mut tar::Builder<Vec<u8>>, name: &str, kind: tar::EntryType, mode: u32, bytes: &[u8], link: &str) {
    let mut header = tar::Header::new_ustar();
    header.set_entry_type(kind);
    header.set_mode(mode);
    header.set_mtime(1_704_067_200);
    header.set_uid(0);
    header.set_gid(0);
    header.set_size(bytes.len() as u64);
    match kind {
        tar::EntryType::Link => to.append_link(&mut header, name, link).expect("tar"),
        _ => to.append_data(&mut header, name, bytes).expect("tar"),
    }
}

pub(crate) fn hex(bytes: &[u8]) -> String {
    bytes.iter().fold(String::new(), |mut text, byte| {
        write!(text, "{byte:02x}").expect("a string takes all");
        text
    })
}
