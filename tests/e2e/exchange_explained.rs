//! `rbuild explain` on a machine that has nothing of its own to compare with: only what it imported.

use sha2::{Digest as _, Sha256};

use crate::exchange::{Machine, base};
use crate::registry::Registry;
use crate::scene::{Scene, hex};

const SECRET: &str = "hunter2-of-the-user";

fn dockerfile(base: &str) -> String {
    format!(
        "FROM {base}\nARG VERSION=1.2\nRUN --mount=type=secret,id=token echo $VERSION >/v\nCOPY src/ /src/\nRUN echo one >/one\n"
    )
}

/// A project, built on one machine and exported to a directory and to a registry.
struct Exported {
    scene: Scene,
    registry: Registry,
    base: String,
    caches: [String; 2],
}

impl Exported {
    fn new() -> Exported {
        let scene = Scene::with_busybox();
        let registry = Registry::start();
        let base = base(&scene, &registry);
        scene.write("src/a.c", "a\n");
        scene.write("src/b.c", "b\n");
        let token = scene.root().with_file_name("token");
        std::fs::write(&token, SECRET).expect("write");
        scene.write("Dockerfile", dockerfile(&base));
        scene.write(".dockerignore", "cache\n");
        let name = registry.name("cache:x");
        let exported = Exported {
            caches: ["type=local,src=cache".to_owned(), format!("type=registry,ref={name}")],
            scene,
            registry,
            base,
        };
        let to = format!("type=registry,ref={name},mode=max");
        exported.build("a", &["--cache-to", "type=local,dest=cache,mode=max", "--cache-to", &to]);
        exported
    }

    fn build(&self, machine: &str, options: &[&str]) {
        let secret = format!("id=token,src={}", self.scene.root().with_file_name("token").display());
        let options = [&["--network", "none", "--secret", &secret], options].concat();
        Machine::new(&self.scene, machine).build(&options).ok();
    }

    /// The steps of a build on an empty machine, from each cache in turn.
    fn explained(&self, case: &str, options: &[&str]) -> Vec<serde_json::Value> {
        let each = self.caches.iter().enumerate().map(|(n, cache)| {
            let name = format!("{case}-{n}");
            self.build(&name, &[options, &["--cache-from", cache]].concat());
            let out = Machine::new(&self.scene, &name).rb(&["explain", "--format", "json"]).ok().out;
            assert!(!out.contains(SECRET), "{out}");
            serde_json::from_str(&out).expect("JSON")
        });
        each.collect()
    }
}

fn step<'a>(all: &'a serde_json::Value, name: &str) -> &'a serde_json::Value {
    let mut steps = all["steps"].as_array().expect("steps").iter();
    let found = steps.find(|step| step["name"].as_str().is_some_and(|found| found.ends_with(name)));
    found.unwrap_or_else(|| panic!("no step {name}: {all:#}"))
}

#[track_caller]
fn why(all: &serde_json::Value, name: &str) -> Vec<String> {
    let found = step(all, name);
    assert_eq!(found["outcome"], "miss", "{all:#}");
    let causes = found["causes"].as_array().cloned().unwrap_or_default();
    causes.iter().map(|cause| cause["text"].as_str().expect("text").to_owned()).collect()
}

#[test]
fn a_hit_names_the_import_it_came_from() {
    let exported = Exported::new();
    let places = ["local:cache".to_owned(), format!("registry:{}", exported.registry.name("cache:x"))];
    for (all, place) in exported.explained("same", &[]).iter().zip(places) {
        for name in [" >/v", "COPY src/ /src/", "RUN echo one >/one"] {
            let found = step(all, name);
            assert_eq!(
                (&found["outcome"], &found["from"]["import"]),
                (&"hit".into(), &place.clone().into()),
                "{all:#}"
            );
        }
    }
}

#[test]
fn a_changed_file_is_named_from_an_import() {
    let exported = Exported::new();
    exported.scene.write("src/a.c", "changed\n");
    for all in exported.explained("file", &[]) {
        assert_eq!(why(&all, "COPY src/ /src/"), ["src/a.c changed"], "{all:#}");
        assert_eq!(step(&all, " >/v")["outcome"], "hit", "{all:#}");
    }
}

#[test]
fn a_changed_argument_is_named_from_an_import() {
    let exported = Exported::new();
    for all in exported.explained("arg", &["--build-arg", "VERSION=1.3"]) {
        assert_eq!(why(&all, " >/v"), ["ARG VERSION 1.2 → 1.3"], "{all:#}");
    }
}

#[test]
fn a_changed_command_is_named_from_an_import() {
    let exported = Exported::new();
    exported.scene.write("Dockerfile", dockerfile(&exported.base).replace("echo one", "echo two"));
    for all in exported.explained("text", &[]) {
        let want = ["command changed: echo one >/one → echo two >/one"];
        assert_eq!(why(&all, "RUN echo two >/one"), want, "{all:#}");
        assert_eq!(step(&all, "COPY src/ /src/")["outcome"], "hit", "{all:#}");
    }
}

#[test]
fn a_moved_base_image_is_named_from_an_import() {
    let exported = Exported::new();
    let digest = || {
        let (_, manifest) = exported.registry.get().manifest("base/busybox", "latest").expect("the base is there");
        format!("sha256:{}", hex(&Sha256::digest(&manifest)))
    };
    let old = digest();
    let base = &exported.base;
    let text = b"FROM busybox\nRUN echo moved >/moved\n";
    exported.scene.rb_with_input(&["build", "-q", "--network", "none", "-t", base, "-"], text).ok();
    exported.scene.rb(&["push", base]).ok();
    let new = digest();
    assert_ne!(old, new);
    for all in exported.explained("base", &[]) {
        let want = [format!("base image {base} moved from {old} to {new}")];
        assert_eq!(why(&all, " >/v"), want, "{all:#}");
    }
}

/// A step that fails has no record of its own here, and is compared all the same.
#[test]
fn a_changed_step_that_fails_is_compared_with_an_import() {
    let exported = Exported::new();
    exported.scene.write("Dockerfile", dockerfile(&exported.base).replace("echo one >/one", "echo two >/two && false"));
    for (n, cache) in exported.caches.iter().enumerate() {
        let machine = Machine::new(&exported.scene, &format!("fails-{n}"));
        let secret = format!("id=token,src={}", exported.scene.root().with_file_name("token").display());
        machine.build(&["--network", "none", "--secret", &secret, "--cache-from", cache]).refused(1, &["&& false"]);
        let out = machine.rb(&["explain", "--format", "json"]).ok().out;
        let all: serde_json::Value = serde_json::from_str(&out).expect("JSON");
        let found = step(&all, "&& false");
        assert_eq!(found["outcome"], "failed", "{all:#}");
        let want = "command changed: echo one >/one → echo two >/two && false";
        assert_eq!(found["causes"][0]["text"], want, "{all:#}");
    }
}

/// An image that carries its cache says what its steps were, and of the files they read only that they are others.
#[test]
fn an_image_explains_what_it_can() {
    let exported = Exported::new();
    let image = exported.registry.name("app:1");
    exported.build("inline", &["-o", &format!("type=registry,name={image}"), "--cache-to", "type=inline"]);
    let explained = |case: &str, options: &[&str]| -> serde_json::Value {
        exported.build(case, &[options, &["--cache-from", &image]].concat());
        let out = Machine::new(&exported.scene, case).rb(&["explain", "--format", "json"]).ok().out;
        serde_json::from_str(&out).expect("JSON")
    };
    let all = explained("hit", &[]);
    assert_eq!(step(&all, "COPY src/ /src/")["outcome"], "hit", "{all:#}");
    let all = explained("argument", &["--build-arg", "VERSION=1.3"]);
    assert_eq!(why(&all, " >/v"), ["ARG VERSION 1.2 → 1.3"], "{all:#}");
    exported.scene.write("src/a.c", "changed\n");
    let all = explained("file", &[]);
    assert_eq!(why(&all, "COPY src/ /src/"), ["what it reads of the context changed"], "{all:#}");
    exported.scene.write("src/a.c", "a\n");
    exported.scene.write("Dockerfile", dockerfile(&exported.base).replace("echo one", "echo two"));
    let all = explained("text", &[]);
    assert_eq!(why(&all, "RUN echo two >/one"), ["command changed: echo one >/one → echo two >/one"], "{all:#}");
}
