//! The same project gives the same image, and only what a step uses makes it run again.

use std::os::unix::fs::PermissionsExt as _;
use std::time::{Duration, SystemTime};

use crate::scene::{Said, Scene};

/// All the instructions that make files without a process, and steps that leave no new times.
const EVERYTHING: &str = r#"# syntax=docker/dockerfile:1
FROM busybox AS stage
WORKDIR /made/on/the/way
COPY . /all/
COPY --chown=12:34 --chmod=640 dir/inner /owned/
ADD packed.tar /unpacked/
COPY <<one <<two /here/
first
one
second
two
RUN --network=none <<script
  echo text > /all/late
  touch -d @1234567890 /all/late /all
script

FROM busybox
COPY --from=stage /all /all
COPY --from=stage /here/one /moved/
RUN touch -d @1234567890 / /moved
LABEL built=twice
"#;

fn project() -> Scene {
    let scene = Scene::with_busybox();
    scene.write("dir/inner", "inner\n");
    scene.write("dir/other", "other\n");
    std::os::unix::fs::symlink("inner", scene.work().join("dir/link")).expect("symlink");
    let mut archive = tar::Builder::new(Vec::new());
    let mut header = tar::Header::new_ustar();
    header.set_mode(0o600);
    header.set_size(5);
    header.set_mtime(1_000_000_000);
    archive.append_data(&mut header, "deep/packed", &b"pack\n"[..]).expect("tar");
    scene.write("packed.tar", archive.into_inner().expect("tar"));
    scene.write("Dockerfile", EVERYTHING);
    scene
}

/// Two stores that share nothing, and a second in between, which would show wherever a clock got in.
#[test]
fn the_same_project_gives_the_same_image_on_two_stores() {
    let scene = project();
    let build = |root: &str| {
        let archive = crate::scene::busybox_archive().to_str().expect("UTF-8");
        scene.rb(&["--root", root, "load", "-q", "-i", archive]).ok();
        let line = ["--root", root, "build", "-q", "--no-cache", "--network", "none", "-t", "same", "."];
        let id = scene.rb(&line).ok().out;
        let save = format!("{root}.tar");
        scene.rb(&["--root", root, "save", "-o", &save, "same"]).ok();
        (id, scene.rb(&["--root", root, "inspect", "same"]).ok().out, std::fs::read(save).expect("read"))
    };
    let roots = ["first", "second"].map(|name| scene.work().join(name).display().to_string());
    // The stores lie in the context otherwise.
    scene.write(".dockerignore", "first*\nsecond*\n");
    let first = build(&roots[0]);
    std::thread::sleep(Duration::from_millis(1100));
    let second = build(&roots[1]);
    assert_eq!(first.0, second.0, "{}\n{}", first.1, second.1);
    assert!(first.2 == second.2, "the archives of the same image differ");
}

/// Nothing of the surroundings is in what a build gives: not where the state is, who builds in what language, with what
/// umask, how many steps at a time, or when.
#[test]
fn the_surroundings_are_in_no_output() {
    let scene = project();
    scene.write(".dockerignore", "first*\nsecond*\n");
    let build = |root: &str, umask: &str, jobs: &str, variables: &[(&str, &str)]| {
        let root = scene.work().join(root).display().to_string();
        let archive = crate::scene::busybox_archive().to_str().expect("UTF-8");
        scene.rb(&["--root", &root, "load", "-q", "-i", archive]).ok();
        let outputs = [
            format!("type=oci,dest={root}.oci.tar,name=same"),
            format!("type=docker,dest={root}.docker.tar,name=same"),
            format!("type=tar,dest={root}.files.tar"),
            format!("type=local,dest={root}.files"),
        ];
        let outputs: Vec<&str> = outputs.iter().flat_map(|output| ["-o", output]).collect();
        let line = ["--root", &root, "build", "--no-cache", "--network", "none", "--jobs", jobs];
        let line = scene.command(&[&line[..], &outputs, &["."]].concat());
        let mut command = std::process::Command::new("sh");
        command
            .args(["-c", &format!("umask {umask}; exec \"$0\" \"$@\"")])
            .arg(line.get_program())
            .args(line.get_args());
        command.current_dir(scene.work()).env_clear();
        command.envs(line.get_envs().filter_map(|(name, value)| Some((name, value?)))).envs(variables.iter().copied());
        Said::from(command.output().expect("a shell")).ok();
        root
    };
    let first = build("first", "022", "1", &[("TZ", "UTC"), ("LC_ALL", "C"), ("HOSTNAME", "one")]);
    let second = build("second", "077", "4", &[("TZ", "Asia/Tokyo"), ("LC_ALL", "de_DE.UTF-8"), ("HOSTNAME", "two")]);
    for kind in ["oci", "docker", "files"] {
        let [one, two] = [&first, &second].map(|root| std::fs::read(format!("{root}.{kind}.tar")).expect("read"));
        assert!(one == two, "the {kind} archives differ");
    }
    let [one, two] = [&first, &second].map(|root| listing(std::path::Path::new(&format!("{root}.files"))));
    assert_eq!(one, two);
}

/// Names, modes, times and contents below a directory, in order.
fn listing(top: &std::path::Path) -> Vec<String> {
    use std::os::unix::fs::MetadataExt as _;
    let (mut found, mut waiting) = (Vec::new(), vec![top.to_owned()]);
    while let Some(dir) = waiting.pop() {
        for entry in std::fs::read_dir(&dir).expect("a directory").flatten() {
            let (path, meta) = (entry.path(), entry.path().symlink_metadata().expect("stat"));
            let content = match meta.is_file() {
                true => format!("{:?}", std::fs::read(&path).expect("read").len()),
                false => String::new(),
            };
            let name = path.strip_prefix(top).expect("below").display().to_string();
            found.push(format!("{name} {:o} {} {content}", meta.mode(), meta.mtime()));
            if meta.is_dir() {
                waiting.push(path);
            }
        }
    }
    found.sort();
    found
}

/// The date of everything can be fixed by the environment, or by a build argument, which goes first.
#[test]
fn a_fixed_date_is_everywhere() {
    let scene = Scene::with_busybox();
    scene.write("ctx/f", "new");
    scene.write(
        "ctx/Dockerfile",
        "FROM busybox\nARG SOURCE_DATE_EPOCH\nRUN --network=none echo $SOURCE_DATE_EPOCH >/said\nCOPY f /\n",
    );
    let built = |options: &[&str]| {
        let output = "type=oci,tar=false,dest=layout,name=n,rewrite-timestamp=true";
        let mut command = scene.command(&[&["build", "-o", output], options, &["ctx"]].concat());
        Said::from(command.env("SOURCE_DATE_EPOCH", "1000000000").output().expect("it starts")).ok();
        let read = |path: std::path::PathBuf| -> serde_json::Value {
            serde_json::from_slice(&std::fs::read(path).expect("read")).expect("JSON")
        };
        let blob = |descriptor: &serde_json::Value| {
            let digest = descriptor["digest"].as_str().expect("a digest").replace(':', "/");
            read(scene.work().join("layout/blobs").join(digest))
        };
        let manifest = blob(&read(scene.work().join("layout/index.json"))["manifests"][0]);
        (manifest.to_string(), blob(&manifest["config"])["created"].as_str().expect("a time").to_owned())
    };
    let first = built(&[]);
    assert_eq!(first.1, "2001-09-09T01:46:40Z");
    assert_eq!(first, built(&["--no-cache"]));
    assert_eq!(built(&["--build-arg", "SOURCE_DATE_EPOCH=1700000000"]).1, "2023-11-14T22:13:20Z");
    let mut wrong = scene.command(&["build", "ctx"]);
    let said = Said::from(wrong.env("SOURCE_DATE_EPOCH", "yesterday").output().expect("it starts"));
    said.refused(1, &["invalid SOURCE_DATE_EPOCH: yesterday"]);
}

const STEPS: [&str; 4] = ["COPY one /one", "COPY dir /dir", "COPY . /all", "RUN ls /all > /list"];

fn steps() -> Scene {
    let scene = Scene::with_busybox();
    scene.write("one", "1\n");
    scene.write("dir/f", "f\n");
    scene.write("dir/g", "g\n");
    scene.write("log/x.log", "x\n");
    scene.write("Dockerfile", format!("FROM busybox\n{}\n", STEPS.join("\n")));
    scene.write(".dockerignore", "**/*.log\nDockerfile\n.dockerignore\n");
    scene
}

/// Builds; gives how many of the steps came from the cache before the first that did not.
fn hits(scene: &Scene) -> usize {
    let said: Said = scene.rb(&["build", "--network", "none", "-t", "steps", "."]).ok();
    let hits: Vec<bool> = STEPS.iter().map(|name| said.was_cached(name)).collect();
    let first_miss = hits.iter().position(|hit| !hit).unwrap_or(STEPS.len());
    // What stands on a result that changed runs again.
    assert!(hits[first_miss..].iter().all(|hit| !hit), "{hits:?}: {said:?}");
    first_miss
}

#[test]
fn a_change_misses_at_the_first_copy_that_selects_it() {
    let scene = steps();
    let at = |name: &str| scene.work().join(name);
    assert_eq!((hits(&scene), hits(&scene)), (0, 4));

    let touch = |name: &str| {
        let time = SystemTime::now() - Duration::from_secs(4711);
        std::fs::File::open(at(name)).and_then(|file| file.set_modified(time)).expect("touch");
    };
    for name in ["one", "dir/f", "dir", "."] {
        touch(name);
    }
    assert_eq!(hits(&scene), 4, "times are no content");
    scene.write("log/x.log", "changed\n");
    scene.write("log/new.log", "new\n");
    assert_eq!(hits(&scene), 4, "what is ignored is no content");

    scene.write("dir/f", "F\n");
    assert_eq!(hits(&scene), 1, "a byte");
    std::fs::set_permissions(at("dir/g"), std::fs::Permissions::from_mode(0o755)).expect("chmod");
    assert_eq!(hits(&scene), 1, "a mode");
    std::fs::set_permissions(at("dir"), std::fs::Permissions::from_mode(0o700)).expect("chmod");
    // The modes of directories come along, but that of the one whose content is copied does not name a file.
    assert!((1..=2).contains(&hits(&scene)), "the mode of a directory");
    std::fs::rename(at("dir/g"), at("dir/h")).expect("rename");
    assert_eq!(hits(&scene), 1, "a name");
    scene.write("unselected", "new\n");
    assert_eq!(hits(&scene), 2, "a new file, of the whole context only");
    scene.write("dir/f", "f\n");
    std::fs::rename(at("dir/h"), at("dir/g")).expect("rename");
    scene.write("one", "2\n");
    assert_eq!(hits(&scene), 0);
    scene.write("one", "1\n");
    assert!(hits(&scene) >= 1, "what was there before is known");
}

/// From another stage, content decides as well: its owner too, and not the step that made it.
#[test]
fn a_copy_from_a_stage_looks_at_what_it_copies() {
    let scene = Scene::with_busybox();
    let hit = |step: &str| {
        scene
            .write("Dockerfile", format!("FROM busybox AS stage\nRUN {step}\nFROM busybox\nCOPY --from=stage /f /g\n"));
        scene.rb(&["build", "--network", "none", "-t", "copied", "."]).ok().was_cached("COPY --from=stage /f /g")
    };
    assert!(!hit("echo x > /f; touch -d @1 /f"));
    assert!(hit("echo y > /elsewhere; echo x > /f; touch -d @1 /f"), "elsewhere it may differ");
    assert!(hit("echo x > /f; touch -d @2 /f"), "another time");
    assert!(!hit("echo x > /f; chown 5:6 /f"), "another owner");
    assert_eq!(scene.in_image("copied", "stat -c %u:%g /g"), "5:6\n");
    assert!(!hit("echo x > /f; chmod 600 /f"), "another mode");
    assert!(!hit("mkdir /f"), "another kind");
}
