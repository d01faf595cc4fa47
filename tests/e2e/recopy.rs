//! A COPY that runs again takes what did not change from its earlier result, and nobody can tell.
//!
//! The same changes are made to one context and built in two stores: in one as they come, in the other with `--no-cache`, where
//! everything is copied every time. The images must be the same to the bit, and what a container sees the same to a file's
//! link count. `RBUILD_MUTATIONS=500` makes that many changes.

use std::fs;
use std::os::unix::fs::{PermissionsExt as _, symlink};
use std::path::{Path, PathBuf};
use std::time::{Duration, SystemTime};

use crate::scene::Scene;

/// What is copied lies partly on what was there: files, a directory of another mode, links.
const DOCKERFILE: &str = "FROM busybox AS base\n\
    RUN mkdir -p /app/d0 /app/d9 && echo base >/app/d0/f3 && echo base >/app/d0/only && echo base >/app/f7 && \
    ln -s f7 /app/f8 && chmod 700 /app/d0 && \
    touch -h -d @1234567890 /app/f8 /app/d0/f3 /app/d0/only /app/f7 /app/d0 /app/d9 /app /\n\
    FROM base AS t1\nCOPY ctx /fresh/\nFROM base AS t2\nCOPY --chown=7:8 --chmod=u=rwX ctx /made/here\n\
    FROM base AS t0\nCOPY ctx /app\n";

/// Everything that `stat` tells, and the contents. The link count of a directory is 1 wherever two layers have a part of it.
const LOOK: &str = "cd /; find app fresh* made* | sort | while read -r p; do \
    if [ -d \"$p\" ] && [ ! -L \"$p\" ]; then stat -c '%n %F %a %u:%g %Y' \"$p\"; \
    else stat -c '%n %F %a %u:%g %h %s %Y' \"$p\"; fi; done; \
    find app fresh* made* -type l | sort | xargs -n1 readlink; find app fresh* made* -type f | sort | xargs md5sum";

/// A generator that gives the same every time (xorshift).
pub(crate) struct Dice(pub(crate) u64);

impl Dice {
    pub(crate) fn roll(&mut self, sides: usize) -> usize {
        self.0 ^= self.0 << 13;
        self.0 ^= self.0 >> 7;
        self.0 ^= self.0 << 17;
        (self.0 % sides as u64) as usize
    }
}

struct Project {
    scene: Scene,
    dice: Dice,
}

impl Project {
    fn new() -> Project {
        let scene = Scene::new();
        for n in 0..60 {
            let name = if n < 20 { format!("ctx/f{n}") } else { format!("ctx/d{}/f{n}", n % 5) };
            scene.write(&name, format!("{n}\n").repeat(n));
        }
        scene.write("ctx/d0/f3", "over the base's\n");
        symlink("f1", scene.work().join("ctx/ln")).expect("symlink");
        scene.write("Dockerfile", DOCKERFILE);
        scene.write(".dockerignore", "**/*.log\n");
        for root in ["first", "second"] {
            let archive = crate::scene::busybox_archive().to_str().expect("UTF-8");
            scene.rb(&["--root", root, "load", "-q", "-i", archive]).ok();
        }
        Project { scene, dice: Dice(0x9e37_79b9_7f4a_7c15) }
    }

    fn build(&self, root: &str, options: &[&str]) -> String {
        let fixed = ["--root", root, "build", "-q", "--network=none", "-t", "it"];
        self.scene.rb(&[&fixed[..], options, &["."]].concat()).ok().out
    }

    fn look(&self, root: &str) -> String {
        self.scene.rb(&["--root", root, "run", "--rm", "--network=none", "it", "sh", "-c", LOOK]).ok().out
    }

    /// All paths of the context of one kind.
    fn paths(&self, dirs: bool) -> Vec<PathBuf> {
        let (mut found, mut waiting) = (Vec::new(), vec![self.scene.work().join("ctx")]);
        while let Some(dir) = waiting.pop() {
            let mut entries: Vec<_> = fs::read_dir(&dir).expect("read").map(|e| e.expect("entry").path()).collect();
            entries.sort();
            for path in entries {
                let is_dir = path.symlink_metadata().expect("stat").is_dir();
                if is_dir {
                    waiting.push(path.clone());
                }
                if is_dir == dirs {
                    found.push(path);
                }
            }
        }
        found
    }

    fn any(&mut self, dirs: bool) -> PathBuf {
        let mut paths = self.paths(dirs);
        paths.swap_remove(self.dice.roll(paths.len()))
    }

    fn change(&mut self, n: usize) -> String {
        let (file, dir) = (self.any(false), self.any(true));
        let time = SystemTime::UNIX_EPOCH + Duration::from_secs(1_000_000_000 + n as u64);
        let plain = file.symlink_metadata().expect("stat").is_file();
        let kind = self.dice.roll(17);
        let new = dir.join(format!("new{n}"));
        match kind {
            0..=3 if plain => fs::write(&file, format!("changed {n}\n").repeat(n % 50 + 1)).expect("write"),
            4 | 5 => fs::write(&new, format!("new {n}\n")).expect("write"),
            6 | 7 => fs::remove_file(&file).expect("remove"),
            8 => fs::rename(&file, &new).expect("rename"),
            9 if plain => {
                fs::set_permissions(&file, fs::Permissions::from_mode(0o600 + n as u32 % 0o200)).expect("chmod");
            }
            10 => fs::set_permissions(&dir, fs::Permissions::from_mode(0o700 + n as u32 % 0o100)).expect("chmod"),
            11 if plain => touch(&file, time),
            12 => touch(&dir, time),
            13 => symlink(format!("to{n}"), &new).expect("symlink"),
            14 => {
                fs::create_dir_all(new.join("deep/er")).expect("mkdir");
                fs::write(new.join("deep/er/x"), "x").expect("write");
            }
            15 if plain && n.is_multiple_of(3) => fs::hard_link(&file, &new).expect("link"),
            16 if n.is_multiple_of(2) => {
                // What was a file becomes a directory, or the other way.
                fs::remove_file(&file).expect("remove");
                fs::create_dir(&file).expect("mkdir");
            }
            16 if self.paths(true).len() > 4 => fs::remove_dir_all(&dir).expect("remove"),
            _ => fs::write(&new, "").expect("write"),
        }
        format!("{n}: kind {kind}, {} and {}", file.display(), dir.display())
    }

    /// Files in the snapshot that was made last.
    fn files_in_newest(&self, root: &str) -> usize {
        let snapshots = self.scene.work().join(root).join("snapshots");
        let made = |path: &PathBuf| path.metadata().and_then(|meta| meta.modified()).expect("stat");
        let mut all: Vec<PathBuf> =
            fs::read_dir(snapshots).expect("read").map(|entry| entry.expect("entry").path()).collect();
        all.sort_by_key(|path| (made(path), path.as_os_str().len(), path.clone()));
        count(&all.pop().expect("a snapshot").join("fs"))
    }
}

fn touch(path: &Path, time: SystemTime) {
    fs::File::open(path).expect("open").set_modified(time).expect("touch");
}

fn count(dir: &Path) -> usize {
    let entries = fs::read_dir(dir).expect("read").map(|entry| entry.expect("entry").path());
    entries.map(|path| if path.symlink_metadata().expect("stat").is_dir() { count(&path) } else { 1 }).sum()
}

#[test]
fn what_is_copied_again_in_part_is_as_if_it_were_copied_whole() {
    let asked = std::env::var("RBUILD_MUTATIONS").ok().and_then(|text| text.parse().ok());
    let mut project = Project::new();
    let mut history = Vec::new();
    let mut small = 0;
    for n in 0..asked.unwrap_or(14) {
        for step in 0..=n % 2 {
            history.push(project.change(2 * n + step));
        }
        let target = format!("--target=t{}", n % 3);
        let first = project.build("first", &[&target]);
        let second = project.build("second", &[&target, "--no-cache"]);
        assert_eq!(first, second, "after {history:#?}");
        small += usize::from(project.files_in_newest("first") < 20);
        if n % 4 < 2 {
            let (first, second) = (project.look("first"), project.look("second"));
            let differ = first.lines().zip(second.lines()).find(|(one, two)| one != two);
            assert!(first == second, "{differ:?} after {history:#?}");
        }
        if n % 6 == 5 {
            project.scene.rb(&["--root", "first", "builder", "prune", "-af"]).ok();
        }
    }
    assert!(small > 0, "every time all was copied");
    project.scene.rb(&["--root", "first", "system", "check", "--deep"]).ok();
}

/// What is copied again stands on the earlier result, which must stay as long, whoever else lets go of it.
#[test]
fn the_earlier_copy_stays_as_long_as_a_later_one_stands_on_it() {
    let project = Project::new();
    let rb = |line: &[&str]| project.scene.rb(&[&["--root", "first"], line].concat());
    rb(&["build", "-q", "--network=none", "-t", "old", "."]).ok();
    project.scene.write("ctx/f5", "changed\n");
    project.build("first", &[]);
    assert!(project.files_in_newest("first") < 5, "all was copied");
    let size = |image: &str| rb(&["images", "--format", "{{.Size}}", image]).ok().out;
    assert_eq!(size("old"), size("it"));
    let before = project.look("first");
    rb(&["rmi", "old"]).ok();
    rb(&["builder", "prune", "-af"]).ok();
    rb(&["image", "prune", "-f"]).ok();
    assert_eq!(project.look("first"), before);
    rb(&["system", "check", "--deep"]).ok();
    // As an image it is whole: elsewhere it is the same.
    rb(&["save", "-o", "it.tar", "it"]).ok();
    project.scene.rb(&["--root", "second", "load", "-q", "-i", "it.tar"]).ok();
    assert_eq!(project.look("second"), before);
    // Without it, nothing of the two is left.
    rb(&["rmi", "it"]).ok();
    rb(&["rmi", "busybox"]).ok();
    rb(&["builder", "prune", "-af"]).ok();
    assert_eq!(fs::read_dir(project.scene.work().join("first/snapshots")).expect("read").count(), 0);
}

/// Where the note of what was copied, or a file of the earlier copy, is damaged, nothing wrong comes of it.
#[test]
fn a_damaged_earlier_copy_is_found_or_not_used() {
    let project = Project::new();
    project.build("first", &[]);
    for entry in fs::read_dir(project.scene.work().join("first/snapshots")).expect("read") {
        let note = entry.expect("entry").path().join("copied");
        if let Ok(mut bytes) = fs::read(&note) {
            let middle = bytes.len() / 2;
            bytes[middle] ^= 1;
            fs::write(&note, bytes).expect("write");
        }
    }
    project.scene.write("ctx/f5", "changed\n");
    let first = project.build("first", &[]);
    assert!(project.files_in_newest("first") > 50, "a damaged note was believed");
    assert_eq!(first, project.build("second", &["--no-cache"]));
    project.scene.write("ctx/f6", "changed\n");
    project.build("first", &[]);
    assert!(project.files_in_newest("first") < 5, "all was copied");
}
