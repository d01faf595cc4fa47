//! A build whose result lies in a cache elsewhere and goes on to somebody else: nothing moves that need not.

use rbuild_engine::registry::memory::{Action, Behaviour, Fault};

use crate::exchange::{Machine, base};
use crate::registry::Registry;
use crate::scene::Scene;

/// The base image's one and two of half a megabyte.
const LAYERS: usize = 3;

fn dockerfile(scene: &Scene, base: &str) {
    let random = "head -c 500000 /dev/urandom";
    scene.write("Dockerfile", format!("FROM {base}\nRUN {random} >/r\nRUN {random} >/s\nCMD [\"true\"]\n"));
}

/// A cache of a build that was pushed as `team/app:1`; its name, and what the image's manifest is.
fn cached(scene: &Scene, registry: &Registry) -> (String, String) {
    dockerfile(scene, &base(scene, registry));
    let (cache, app) = (registry.name("team/cache:main"), registry.name("team/app:1"));
    let to = format!("type=registry,ref={cache},mode=max");
    Machine::new(scene, "a").rb(&["build", "-t", &app, "--push", "--cache-to", &to, "."]).ok();
    let (digest, _) = registry.get().manifest("team/app", "1").expect("the image was pushed");
    (cache, digest.to_string())
}

/// The digests of the image's layers.
fn layers(registry: &Registry, repository: &str, tag: &str) -> Vec<String> {
    let (_, manifest) = registry.get().manifest(repository, tag).expect("the image is there");
    let manifest: serde_json::Value = serde_json::from_slice(&manifest).expect("JSON");
    let layers = manifest["layers"].as_array().expect("layers").iter();
    layers.map(|layer| layer["digest"].as_str().expect("a digest").to_owned()).collect()
}

/// How many requests were about one of the layers: its bytes asked for, mounts, uploads.
fn requests(registry: &Registry, layers: &[String]) -> (usize, usize, usize) {
    let log = registry.get().log();
    let count = |method: &str, part: &str| {
        let about = |path: &str| {
            let plain = path.replace("%3A", ":");
            plain.contains(part) && layers.iter().any(|layer| plain.contains(layer.as_str()))
        };
        log.iter().filter(|request| request.method == method && about(&request.path)).count()
    };
    (count("GET", "/blobs/"), count("POST", "mount="), count("PUT", "/blobs/uploads/"))
}

fn snapshots(scene: &Scene, machine: &str) -> usize {
    let dir = scene.root().join("machines").join(machine).join("snapshots");
    std::fs::read_dir(dir).map_or(0, |entries| entries.count())
}

/// A machine pushes what it found in a cache. Gives the requests, and how many file trees it has afterwards.
fn pushed(scene: &Scene, registry: &Registry, cache: &str, to: &str, how: &[&str]) -> ((usize, usize, usize), usize) {
    let (repository, tag) = to.split_once(':').expect("a tag");
    let machine = Machine::new(scene, tag);
    registry.get().clear_log();
    let name = registry.name(to);
    let said = machine.rb(&[&["build", "-t", &name, "--cache-from", cache], how, &["."]].concat()).ok();
    assert!(said.was_cached("RUN head -c 500000 /dev/urandom >/s"), "{said:#?}");
    let layers = layers(registry, repository, tag);
    assert_eq!(layers.len(), LAYERS);
    (requests(registry, &layers), snapshots(scene, tag))
}

/// The same repository has the layers, another one of the same registry takes them over, and in neither case a byte moves.
#[test]
fn a_registry_that_has_the_layers_is_sent_none() {
    let scene = Scene::with_busybox();
    let registry = Registry::start();
    let (cache, digest) = cached(&scene, &registry);
    let what = |repository: &str, tag: &str| registry.get().manifest(repository, tag).expect("pushed").0.to_string();

    assert_eq!(pushed(&scene, &registry, &cache, "team/app:2", &["--push"]), ((0, 0, 0), 0));
    assert_eq!(pushed(&scene, &registry, &cache, "else/app:3", &["--push"]), ((0, LAYERS, 0), 0));
    let output = ["--output", "type=image,push=true"];
    assert_eq!(pushed(&scene, &registry, &cache, "team/app:4", &output), ((0, 0, 0), 0));
    // It is the image that was pushed from where it was built.
    for (repository, tag) in [("team/app", "2"), ("else/app", "3"), ("team/app", "4")] {
        assert_eq!(what(repository, tag), digest, "{repository}:{tag}");
    }
    // The store has no image whose files it has not; the next who wants it pulls it.
    let machine = Machine::new(&scene, "2");
    assert_eq!(machine.rb(&["images", "-q"]).ok().out, "");
    let name = registry.name("team/app:2");
    let size = machine.rb(&["run", "--rm", "--network", "none", &name, "wc", "-c", "/r"]).ok().out;
    assert_eq!(size, "500000 /r\n");
}

/// An index and what is said about the images of it go the same way.
#[test]
fn attested_images_are_passed_on_too() {
    let scene = Scene::with_busybox();
    let registry = Registry::start();
    let (cache, _) = cached(&scene, &registry);
    let machine = Machine::new(&scene, "b");
    registry.get().clear_log();
    let name = registry.name("else/app:1");
    machine.rb(&["build", "-t", &name, "--cache-from", &cache, "--push", "--provenance=mode=max", "."]).ok();
    assert_eq!(requests(&registry, &layers(&registry, "team/app", "1")), (0, LAYERS, 0));
    assert_eq!(snapshots(&scene, "b"), 0);
    machine.rb(&["run", "--rm", "--network", "none", &name, "true"]).ok();
}

/// Between registries, and where nothing can be mounted, each layer passes through once and is not unpacked.
#[test]
fn layers_pass_through_where_they_cannot_be_mounted() {
    let scene = Scene::with_busybox();
    let registry = Registry::with(Behaviour { no_mounts: true, ..Behaviour::default() });
    let (cache, digest) = cached(&scene, &registry);
    assert_eq!(pushed(&scene, &registry, &cache, "else/app:2", &["--push"]), ((LAYERS, LAYERS, LAYERS), 0));
    assert_eq!(registry.get().manifest("else/app", "2").expect("pushed").0.to_string(), digest);

    let other = Registry::start();
    let machine = Machine::new(&scene, "b");
    registry.get().clear_log();
    let name = other.name("app:1");
    machine.rb(&["build", "-t", &name, "--cache-from", &cache, "--push", "."]).ok();
    assert_eq!(other.get().manifest("app", "1").expect("pushed").0.to_string(), digest);
    let layers = layers(&other, "app", "1");
    assert_eq!((requests(&registry, &layers), requests(&other, &layers)), ((LAYERS, 0, 0), (0, 0, LAYERS)));
    assert_eq!(snapshots(&scene, "b"), 0);
    machine.rb(&["run", "--rm", "--network", "none", &name, "test", "-s", "/s"]).ok();
}

/// An archive takes the layers as they are; from a cache in a directory they go to a registry.
#[test]
fn archives_and_directories_take_part() {
    let scene = Scene::with_busybox();
    let registry = Registry::start();
    let (cache, digest) = cached(&scene, &registry);
    let (b, c, d) = (Machine::new(&scene, "b"), Machine::new(&scene, "c"), Machine::new(&scene, "d"));
    registry.get().clear_log();
    b.rb(&["build", "-t", "x", "--cache-from", &cache, "-o", "type=oci,dest=x.tar", "."]).ok();
    let layers = layers(&registry, "team/app", "1");
    assert_eq!((requests(&registry, &layers), snapshots(&scene, "b")), ((LAYERS, 0, 0), 0));
    c.rb(&["load", "-i", "x.tar"]).ok();
    c.rb(&["run", "--rm", "--network", "none", "x", "test", "-s", "/s"]).ok();

    c.rb(&["build", "-t", "x", "--cache-from", &cache, "--cache-to", "type=local,dest=cache", "."]).ok();
    let name = registry.name("new/app:1");
    registry.get().clear_log();
    d.rb(&["build", "-t", &name, "--cache-from", "type=local,src=cache", "--push", "."]).ok();
    assert_eq!((requests(&registry, &layers), snapshots(&scene, "d")), ((0, 0, LAYERS), 0));
    assert_eq!(registry.get().manifest("new/app", "1").expect("pushed").0.to_string(), digest);
}

/// Whoever wants the image here gets it, and so does who had its name here: that must not mean an older one.
#[test]
fn what_is_wanted_here_is_brought() {
    let scene = Scene::with_busybox();
    let registry = Registry::start();
    let (cache, digest) = cached(&scene, &registry);
    let wanted: [&[&str]; 2] = [&["--push", "--load"], &["-o", "type=registry,store=true"]];
    for (n, how) in wanted.into_iter().enumerate() {
        let machine = Machine::new(&scene, &format!("wanted{n}"));
        let name = registry.name(&format!("team/app:w{n}"));
        machine.rb(&[&["build", "-t", &name, "--cache-from", &cache], how, &["."]].concat()).ok();
        assert_eq!(machine.rb(&["images", "-q", &name]).ok().out.lines().count(), 1);
        let (pushed, _) = registry.get().manifest("team/app", &format!("w{n}")).expect("pushed");
        assert_eq!(pushed.to_string(), digest);
    }
    let known = Machine::new(&scene, "known");
    let name = registry.name("team/app:known");
    known.rb(&["pull", "-q", &base(&scene, &registry)]).ok();
    known.rb(&["tag", &registry.name("base/busybox:latest"), &name]).ok();
    known.rb(&["build", "-t", &name, "--cache-from", &cache, "--push", "."]).ok();
    known.rb(&["run", "--rm", "--network", "none", &name, "test", "-s", "/s"]).ok();

    // And what is not wanted here is not kept, although its files are.
    let own = Machine::new(&scene, "own");
    let name = registry.name("team/app:own");
    own.rb(&["build", "-t", &name, "-o", "type=registry,store=false", "."])
        .ok()
        .says(&["not kept in the store, as asked"]);
    assert_eq!(own.rb(&["images", "-q", &name]).ok().out, "");
    assert!(registry.get().manifest("team/app", "own").is_some());
}

/// A layer that the cache does not have any more: the build goes on without it.
#[test]
fn a_layer_that_is_gone_is_made_anew() {
    let scene = Scene::with_busybox();
    let registry = Registry::start();
    let (cache, _) = cached(&scene, &registry);
    let last = layers(&registry, "team/app", "1").pop().expect("a layer");
    registry
        .get()
        .fault(Fault::new("GET", &format!("/v2/team/cache/blobs/{last}"), Action::Status(404, None)).times(99));
    let other = Registry::start();
    let (machine, name) = (Machine::new(&scene, "b"), other.name("app:1"));
    let said = machine.rb(&["build", "-t", &name, "--cache-from", &cache, "--push", "."]).ok();
    said.says(&["is not used any more"]);
    machine.rb(&["run", "--rm", "--network", "none", &name, "test", "-s", "/s"]).ok();
}
