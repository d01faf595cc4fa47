//! Death in the middle of every kind of command: what was there stays, what was under way is whole or gone, nothing
//! lives on, and the same command repeated succeeds.
//!
//! The moments are drawn from a fixed seed. `RBUILD_TEST_ROUNDS` asks for more of them, `RBUILD_TEST_SEED` for others.

use std::io::{Read as _, Write as _};
use std::process::{Child, Stdio};
use std::time::{Duration, Instant};

use rbuild_engine::registry::memory::{Action, Fault};
use rustix::process::{Pid, Signal, kill_process};

use crate::registry::Registry;
use crate::scene::{Said, Scene};

/// How long a command may take to end after it was asked to.
const PROMPT: Duration = Duration::from_secs(2);
/// When a test gives up on something that should happen soon.
const PATIENCE: Duration = Duration::from_secs(20);
/// Every process of a step or container has the state directory in its environment: so a scene finds it.
const MARK: &str = "RBUILD_ROOT";

fn signal(child: &Child, signal: Signal) {
    kill_process(Pid::from_child(child), signal).expect("it has not been waited for");
}

fn spawn(scene: &Scene, arguments: &[&str]) -> Child {
    let mut command = scene.command(arguments);
    command.stdout(Stdio::piped()).stderr(Stdio::piped()).spawn().expect("the program starts")
}

/// Reads both streams until `word` was seen in one of them; reading goes on beside, so that nothing blocks.
fn wait_for(child: &mut Child, word: &str) {
    let (found, finds) = std::sync::mpsc::channel();
    let streams: [Box<dyn std::io::Read + Send>; 2] =
        [Box::new(child.stdout.take().expect("piped")), Box::new(child.stderr.take().expect("piped"))];
    for mut stream in streams {
        let (found, word) = (found.clone(), word.to_owned());
        std::thread::spawn(move || {
            let (mut seen, mut piece) = (Vec::new(), [0; 4096]);
            while let Ok(count @ 1..) = stream.read(&mut piece) {
                seen.extend_from_slice(&piece[..count]);
                if String::from_utf8_lossy(&seen).contains(&word) {
                    let _: Result<_, _> = found.send(());
                }
            }
        });
    }
    drop(found);
    finds.recv_timeout(PATIENCE).unwrap_or_else(|e| panic!("never said {word:?}: {e}"));
}

/// Waits for the end, which must come within `limit`. A death by a signal counts as 128 and its number, as in a shell.
#[track_caller]
fn ends_within(mut child: Child, limit: Duration) -> i32 {
    use std::os::unix::process::ExitStatusExt as _;
    let start = Instant::now();
    loop {
        if let Some(status) = child.try_wait().expect("wait") {
            return status.code().unwrap_or_else(|| 128 + status.signal().unwrap_or(0));
        }
        if start.elapsed() > limit {
            child.kill().expect("kill");
            child.wait().expect("wait");
            panic!("still there after {limit:?}");
        }
        std::thread::sleep(Duration::from_millis(5));
    }
}

fn image_id(scene: &Scene, image: &str) -> String {
    scene.inspect(image)["Id"].as_str().expect("an id").to_owned()
}

/// Steps that finished before a death are not done again.
#[test]
fn a_death_keeps_the_steps_that_had_finished() {
    for how in [Signal::KILL, Signal::INT] {
        let scene = Scene::alone_with_busybox();
        let root = scene.root().display().to_string();
        let text = |last: &str| {
            format!(
                "FROM busybox\nENV {MARK}={root}\nCOPY f /f\nRUN cat /proc/sys/kernel/random/uuid > /once\nRUN {last}\n"
            )
        };
        scene.write("f", "content");
        scene.write("Dockerfile", text("echo is-; echo ready; sleep 1000 & sleep 1000"));
        let mut child = spawn(&scene, &["build", "-t", "never", "."]);
        wait_for(&mut child, " ready\n");
        signal(&child, how);
        ends_within(child, PROMPT);
        scene.rb(&["images"]).ok();
        scene.settle();
        scene.write("Dockerfile", text("true"));
        let said = scene.rb(&["build", "-t", "after", "."]).ok();
        assert!(said.was_cached("COPY f /f"), "{said:?}");
        assert!(said.was_cached("RUN cat /proc/sys/kernel/random/uuid > /once"), "{said:?}");
        scene.rb(&["image", "inspect", "never"]).refused(1, &["never"]);
    }
}

/// On the default network, where there is most to clear away. The next command does it.
#[test]
fn a_killed_run_takes_its_container_along() {
    let scene = Scene::alone_with_busybox();
    let mark = format!("{MARK}={}", scene.root().display());
    for options in [&["--name", "kept"][..], &["--rm"], &["--rm", "--network", "none", "--privileged"]] {
        let script = "echo is-ready; sleep 1000 & sleep 1000";
        let line = [&["run", "-e", &mark], options, &["busybox", "sh", "-c", script]].concat();
        let mut child = spawn(&scene, &line);
        wait_for(&mut child, "is-ready");
        signal(&child, Signal::KILL);
        ends_within(child, PROMPT);
        scene.rb(&["ps", "-a"]).ok();
        scene.settle();
    }
    let names = scene.rb(&["ps", "-a", "--format", "{{.Names}} {{.Status}}"]).ok().out;
    assert!(names.starts_with("kept Exited (137)") && names.lines().count() == 1, "{names}");
    scene.rb(&["rm", "kept"]).ok();
    assert_eq!(scene.in_image("busybox", "echo next"), "next\n");
}

/// What a program does about a signal is its own business; `run` passes it on and ends as it does.
#[test]
fn signals_of_a_run_reach_its_program() {
    let scene = Scene::with_busybox();
    for (how, name) in [(Signal::INT, "INT"), (Signal::TERM, "TERM"), (Signal::HUP, "HUP")] {
        let script = format!("trap 'exit 7' {name}; echo is-ready; while :; do sleep 0.05; done");
        let mut child = spawn(&scene, &["run", "--rm", "--network", "none", "busybox", "sh", "-c", &script]);
        wait_for(&mut child, "is-ready");
        signal(&child, how);
        assert_eq!(ends_within(child, PROMPT), 7, "{name}");
    }
}

/// Whatever a command waits for (a pipe, a registry, a server, a reader), it ends at once when it is told to.
#[test]
fn a_command_that_waits_can_be_interrupted() {
    let scene = Scene::alone_with_busybox();
    let registry = Registry::start();
    let name = registry.name("app:1");
    scene.rb(&["tag", "busybox", &name]).ok();
    scene.rb(&["push", "-q", &name]).ok();
    scene.rb(&["rmi", &name]).ok();
    let stalled = std::net::TcpListener::bind("127.0.0.1:0").expect("a free port");
    let port = stalled.local_addr().expect("an address").port();
    scene.write("Dockerfile", format!("FROM busybox\nADD http://127.0.0.1:{port}/f /f\n"));
    let before = scene.rb(&["images", "--no-trunc"]).ok().out;
    let archive = std::fs::read(crate::scene::busybox_archive()).expect("read");
    for (how, code) in [(Signal::INT, 130), (Signal::TERM, 143)] {
        let lines: [(&[&str], &[u8]); 6] = [
            (&["load"], &archive[..archive.len() / 2]),
            (&["import", "-", "imported"], &archive[..archive.len() / 2]),
            (&["build", "-t", "typed", "-"], b"FROM busybox\nLABEL half=of"),
            (&["save", "busybox"], b""),
            (&["build", "-t", "fetched", "."], b""),
            (&["pull", &name], b""),
        ];
        for (line, input) in lines {
            if line[0] == "pull" {
                registry.get().fault(Fault::new("GET", "/manifests/", Action::Delay(PATIENCE)));
            }
            let mut command = scene.command(line);
            command.stdin(Stdio::piped()).stdout(Stdio::piped()).stderr(Stdio::null());
            let mut child = command.spawn().expect("the program starts");
            let mut stdin = child.stdin.take().expect("piped");
            let feeder = std::thread::scope(|scope| {
                // It may be gone before it has read everything.
                scope.spawn(|| drop(stdin.write_all(input)));
                std::thread::sleep(Duration::from_millis(250));
                signal(&child, how);
                ends_within(child, PROMPT)
            });
            assert_eq!(feeder, code, "{line:?}");
            drop(stdin);
        }
        assert_eq!(scene.rb(&["images", "--no-trunc"]).ok().out, before);
    }
    scene.settle();
    let ingest = std::fs::read_dir(scene.root().join("ingest")).expect("ingest").count();
    assert_eq!(ingest, 0, "unfinished work was swept");
}

/// A process that is stopped holds up nobody for long.
#[test]
fn a_stopped_build_is_not_waited_for() {
    let scene = Scene::with_busybox();
    scene.write(
        "Dockerfile",
        "FROM busybox\nRUN echo is-; echo ready; sleep 1; cat /proc/sys/kernel/random/uuid > /id\n",
    );
    let mut stopped = spawn(&scene, &["build", "--network", "none", "-t", "one", "."]);
    wait_for(&mut stopped, " ready\n");
    signal(&stopped, Signal::STOP);
    let mut other = spawn(&scene, &["build", "--network", "none", "-t", "two", "."]);
    wait_for(&mut other, "exporting to image");
    let code = ends_within(other, PATIENCE);
    signal(&stopped, Signal::CONT);
    assert_eq!((code, ends_within(stopped, PATIENCE)), (0, 0));
    assert_eq!(scene.in_image("one", "cat /id").len(), scene.in_image("two", "cat /id").len());
}

/// The same numbers each time.
struct Dice(u64);

impl Dice {
    fn below(&mut self, limit: u64) -> u64 {
        // xorshift64*, which is random enough for choosing moments.
        self.0 ^= self.0 >> 12;
        self.0 ^= self.0 << 25;
        self.0 ^= self.0 >> 27;
        (self.0.wrapping_mul(0x2545_f491_4f6c_dd1d) >> 33) % limit
    }
}

/// A kind of command, and how to see that it did its work.
struct Kind {
    name: &'static str,
    line: Vec<String>,
    /// What it needs to have something to do.
    prepare: fn(&Scene),
    check: fn(&Scene, &Whole),
}

/// What finished commands give.
struct Whole {
    /// The name of what is pulled.
    pulled: String,
    payload: String,
    archive: Vec<u8>,
}

const FILES: usize = 600;
const COUNT: &str = "cat /files/*/* | sha256sum; find /files -type f | wc -l";

fn kinds(name: &str, root: &str) -> [Kind; 10] {
    let line = |words: &[&str]| words.iter().map(|word| (*word).to_owned()).collect();
    let mark = format!("{MARK}={root}");
    [
        Kind {
            name: "RUN",
            line: line(&["build", "-t", "stepped", "-f", "run.Dockerfile", "."]),
            prepare: |_| {},
            check: |scene, _| assert_eq!(scene.in_image("stepped", "cat /a /b /c"), "1\n2\n3\n"),
        },
        Kind {
            name: "COPY",
            line: line(&["build", "-t", "copied", "-f", "copy.Dockerfile", "."]),
            prepare: |_| {},
            check: |scene, whole| assert_eq!(scene.in_image("copied", COUNT), whole.payload),
        },
        Kind {
            name: "load",
            line: line(&["load", "-q", "-i", "payload.tar"]),
            prepare: |_| {},
            check: |scene, whole| assert_eq!(scene.in_image("payload", COUNT), whole.payload),
        },
        Kind {
            name: "pull",
            line: line(&["pull", "-q", name]),
            prepare: |_| {},
            check: |scene, whole| assert_eq!(scene.in_image(&whole.pulled, COUNT), whole.payload),
        },
        Kind {
            name: "save",
            line: line(&["save", "-o", "saved.tar", "busybox"]),
            prepare: |_| {},
            check: |scene, whole| {
                assert!(std::fs::read(scene.work().join("saved.tar")).expect("read") == whole.archive);
            },
        },
        Kind {
            name: "run",
            line: line(&["run", "--rm", "--name", "it", "-e", &mark, "busybox", "sh", "-c", "sleep 0.2"]),
            prepare: |_| {},
            check: |scene, _| assert_eq!(scene.rb(&["ps", "-aq", "--filter", "name=it"]).ok().out, ""),
        },
        Kind {
            name: "rmi",
            line: line(&["rmi", "-f", "victim"]),
            prepare: build_victim,
            check: |scene, _| drop(scene.rb(&["image", "inspect", "victim"]).refused(1, &["victim"])),
        },
        Kind {
            name: "builder prune",
            line: line(&["builder", "prune", "-a", "-f"]),
            prepare: build_victim,
            check: |scene, _| assert_eq!(scene.rb(&["builder", "du", "--format", "{{.ID}}"]).ok().out, ""),
        },
        Kind {
            name: "system prune",
            line: line(&["system", "prune", "-f"]),
            prepare: build_victim,
            check: |scene, _| drop(scene.rb(&["image", "inspect", "busybox"]).ok()),
        },
        Kind {
            name: "commit",
            line: line(&["commit", "changed", "committed"]),
            prepare: change_container,
            check: |scene, _| assert_eq!(scene.in_image("committed", "cat /change"), "changed\n"),
        },
    ]
}

fn build_victim(scene: &Scene) {
    scene.rb(&["build", "-q", "--network", "none", "-t", "victim", "-f", "victim.Dockerfile", "."]).ok();
}

fn change_container(scene: &Scene) {
    let known = scene.rb(&["ps", "-aq", "--filter", "name=changed"]).ok().out;
    if known.is_empty() {
        let script = "mkdir /d; for i in $(seq 200); do echo $i > /d/$i; done; echo changed > /change";
        scene.rb(&["run", "--network", "none", "--name", "changed", "busybox", "sh", "-c", script]).ok();
    }
}

/// A project of all kinds, and what they give when nobody disturbs them.
fn payload(scene: &Scene, registry: &Registry) -> Whole {
    scene.write("victim.Dockerfile", "FROM busybox\nCOPY files /files\nRUN echo victim > /victim\n");
    for n in 0..FILES {
        scene.write(&format!("files/d{}/f{n}", n % 20), format!("{n} {}\n", "x".repeat(n * 7 % 4096)));
    }
    scene.write("copy.Dockerfile", "FROM busybox\nCOPY files /files\n");
    let mark = format!("{MARK}={}", scene.root().display());
    scene.write(
        "run.Dockerfile",
        format!("FROM busybox\nENV {mark}\nRUN echo 1 > /a\nRUN echo 2 > /b; sleep 0.1\nRUN echo 3 > /c\n"),
    );
    let other = scene.work().join("other");
    let other = other.to_str().expect("UTF-8");
    let busybox = crate::scene::busybox_archive().to_str().expect("UTF-8");
    let name = registry.name("payload:1");
    for line in [
        &["load", "-q", "-i", busybox][..],
        &["build", "-q", "-t", "payload", "-t", &name, "-f", "copy.Dockerfile", "."],
        &["save", "-o", "payload.tar", "payload"],
        &["save", "-o", "expected.tar", "busybox"],
        &["push", "-q", &name],
    ] {
        scene.rb(&[&["--root", other], line].concat()).ok();
    }
    let said = scene.rb(&["--root", other, "run", "--rm", "--network", "none", "payload", "sh", "-c", COUNT]).ok();
    assert!(said.out.ends_with(&format!("\n{FILES}\n")), "{said:?}");
    Whole { pulled: name, payload: said.out, archive: std::fs::read(scene.work().join("expected.tar")).expect("read") }
}

#[test]
fn deaths_at_random_moments() {
    let number = |name: &str, default: u64| match std::env::var(name) {
        Ok(text) => text.parse().unwrap_or_else(|e| panic!("{name}={text}: {e}")),
        Err(_) => default,
    };
    let (rounds, seed) = (number("RBUILD_TEST_ROUNDS", 10), number("RBUILD_TEST_SEED", 20_240_601));
    let scene = Scene::alone_with_busybox();
    let registry = Registry::start();
    let whole = payload(&scene, &registry);
    let kinds = kinds(&registry.name("payload:1"), &scene.root().display().to_string());
    let mut dice = Dice(seed | 1);
    for round in 0..rounds {
        // All kinds in turn, so that few rounds see most of them; the rest is chance.
        let kind = &kinds[usize::try_from(round).expect("small") % kinds.len()];
        let how =
            [Signal::KILL, Signal::KILL, Signal::INT, Signal::TERM][usize::try_from(dice.below(4)).expect("small")];
        let delay = Duration::from_millis(dice.below(300));
        let line: Vec<&str> = kind.line.iter().map(String::as_str).collect();
        eprintln!("seed {seed} round {round}: {} {how:?} after {delay:?}", kind.name);
        (kind.prepare)(&scene);
        let mut command = scene.command(&line);
        let child = command.stdout(Stdio::null()).stderr(Stdio::null()).spawn().expect("the program starts");
        std::thread::sleep(delay);
        signal(&child, how);
        ends_within(child, PROMPT);

        assert_eq!(scene.in_image("busybox", "echo works at once"), "works at once\n");
        scene.rb(&["system", "check"]).ok();
        scene.settle();
        let stray = |name: &std::ffi::OsStr| name.to_string_lossy().starts_with(".saved");
        let entries = std::fs::read_dir(scene.work()).expect("read").flatten();
        assert_eq!(entries.filter(|entry| stray(&entry.file_name())).count(), 0, "a part of an archive");
        if scene.work().join("saved.tar").exists() {
            assert!(std::fs::read(scene.work().join("saved.tar")).expect("read") == whole.archive, "half an archive");
        }
        (kind.prepare)(&scene);
        scene.rb(&line).ok();
        (kind.check)(&scene, &whole);
        // So that the next round of this kind has work to do.
        let _: Said = scene.rb(&[
            "rmi",
            "-f",
            "payload",
            "copied",
            "stepped",
            "victim",
            "committed",
            &registry.name("payload:1"),
        ]);
        scene.rb(&["image", "prune", "-f"]).ok();
        drop(std::fs::remove_file(scene.work().join("saved.tar")));
    }
    scene.rb(&["system", "check", "--deep"]).ok();
    assert_eq!(image_id(&scene, "busybox").len(), 71);
}
