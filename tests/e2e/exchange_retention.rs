//! What of a cache elsewhere goes with time: `keep-duration`.

use rbuild_engine::registry::memory::{Behaviour, Removal};

use crate::exchange::{Machine, all_tags, base};
use crate::registry::Registry;
use crate::scene::{Said, Scene};

const KIND: &str = "application/vnd.oci.image.manifest.v1+json";

fn config_of(registry: &Registry, tag: &str) -> (serde_json::Value, String) {
    let (_, manifest) = registry.get().manifest("cache", tag).expect("the tag is there");
    let manifest: serde_json::Value = serde_json::from_slice(&manifest).expect("JSON");
    let digest = manifest["config"]["digest"].as_str().expect("a digest").parse().expect("a digest");
    let config = registry.get().blob(&digest).expect("the config");
    (manifest, String::from_utf8(config.to_vec()).expect("UTF-8"))
}

/// Makes all records of the cache look as if they had been made in 2001.
fn age(registry: &Registry) {
    for tag in all_tags(registry) {
        let (mut manifest, config) = config_of(registry, &tag);
        let mut parts = config.split("\"secs_since_epoch\":");
        let mut aged = parts.next().expect("a beginning").to_owned();
        for part in parts {
            let rest = part.trim_start_matches(|c: char| c.is_ascii_digit());
            aged.push_str("\"secs_since_epoch\":1000000000");
            aged.push_str(rest);
        }
        assert_ne!(aged, config);
        let digest = registry.get().put_blob("cache", aged.clone());
        manifest["config"]["digest"] = digest.to_string().into();
        manifest["config"]["size"] = aged.len().into();
        registry.get().put_manifest("cache", Some(&tag), KIND, manifest.to_string());
    }
}

fn write(scene: &Scene, base: &str, text: &str) {
    scene.write("Dockerfile", format!("FROM {base}\nRUN echo {text} >/{text}\n"));
}

fn export(scene: &Scene, registry: &Registry, machine: &str, from: bool) -> Said {
    let cache = registry.name("cache:main");
    let to = format!("type=registry,ref={cache},mode=max,keep-duration=720h");
    let from: &[&str] = if from { &["--cache-from", &cache] } else { &[] };
    Machine::new(scene, machine).build(&[&["--cache-to", &to, "--network", "none"], from].concat()).ok()
}

/// Two machines wrote one record each long ago. Then somebody uses one of the two.
fn two_old_ones(scene: &Scene, registry: &Registry) {
    let base = base(scene, registry);
    write(scene, &base, "one");
    export(scene, registry, "a", false);
    write(scene, &base, "two");
    export(scene, registry, "b", false);
    assert_eq!(all_tags(registry).len(), 3);
    age(registry);
}

/// What nobody used goes, with its name; what a build uses stays, also when it was made long ago.
#[test]
fn records_that_nobody_uses_are_removed() {
    for removal in [Removal::ByTag, Removal::ByDigest] {
        let scene = Scene::with_busybox();
        let registry = Registry::with(Behaviour { removal, ..Behaviour::default() });
        two_old_ones(&scene, &registry);
        let said = export(&scene, &registry, "c", true);
        assert!(said.was_cached("RUN echo two >/two"), "{said:#?}");
        said.says(&["removing 1 records that no build used for long done"]);
        assert_eq!(all_tags(&registry).len(), 2, "{removal:?}");
        let (_, config) = config_of(&registry, "main");
        assert!(config.contains("echo two") && !config.contains("echo one"), "{config}");
        assert!(config.contains("\"used\":"), "{config}");
        // The next one finds nothing to do, and what was removed is built anew.
        registry.get().clear_log();
        let said = export(&scene, &registry, "d", true);
        assert!(said.was_cached("RUN echo two >/two") && !said.err.contains("no build used"), "{said:#?}");
        assert_eq!((registry.get().count("DELETE", "/v2/"), registry.get().count("PUT", "/manifests/")), (0, 0));
        write(&scene, &registry.name("base/busybox:latest"), "one");
        let said = export(&scene, &registry, "e", true);
        assert!(!said.was_cached("RUN echo one >/one"), "{said:#?}");
        assert_eq!(all_tags(&registry).len(), 3);
        assert!(export(&scene, &registry, "f", true).was_cached("RUN echo one >/one"));
    }
}

/// Where nothing can be removed the names stay, and nobody reads them any more.
#[test]
fn a_registry_that_removes_nothing_is_said_so() {
    let scene = Scene::with_busybox();
    let registry = Registry::with(Behaviour { removal: Removal::Never, ..Behaviour::default() });
    two_old_ones(&scene, &registry);
    let said = export(&scene, &registry, "c", true);
    said.says(&["removing 1 records", "they are not read any more, but their names stay: "]);
    let left = all_tags(&registry);
    assert_eq!(left.len(), 3);
    registry.get().clear_log();
    let said = Machine::new(&scene, "d").build(&["--cache-from", &registry.name("cache:main"), "--network", "none"]);
    assert!(said.ok().was_cached("RUN echo two >/two"));
    assert_eq!(registry.get().count("GET", "/v2/cache/manifests/main.r-"), 0);
    // Built again, a record that was gone is there again.
    write(&scene, &registry.name("base/busybox:latest"), "one");
    export(&scene, &registry, "e", true);
    assert!(export(&scene, &registry, "f", true).was_cached("RUN echo one >/one"));
}

/// In a directory, what no name leads to goes an hour later, and nothing while somebody else writes there.
#[test]
fn blobs_of_a_directory_go_when_nobody_can_read_them_any_more() {
    let scene = Scene::with_busybox();
    let to = "type=local,dest=../cache,mode=max,keep-duration=1h";
    let export = |text: &str| {
        write(&scene, "busybox", text);
        scene.rb(&["build", "--network", "none", "--cache-to", to, "."]).ok();
    };
    export("one");
    let cache = scene.work().with_file_name("cache");
    let stray = "0".repeat(64);
    let stray_at = cache.join("blobs/sha256").join(&stray);
    std::fs::write(&stray_at, "nobody's").expect("write");
    export("two");
    let notes = cache.join("ingest/unused");
    let noted = std::fs::read_to_string(&notes).expect("the notes");
    assert!(noted.contains(&stray) && stray_at.exists(), "{noted}");
    // As if that had been hours ago.
    let mut all: serde_json::Value = serde_json::from_str(&noted).expect("JSON");
    all.as_object_mut().expect("an object").values_mut().for_each(|since| *since = 1_000_000_000.into());
    std::fs::write(&notes, all.to_string()).expect("write");
    let writers = std::fs::File::open(cache.join("ingest/writers")).expect("the lock");
    rustix::fs::flock(&writers, rustix::fs::FlockOperation::LockShared).expect("flock");
    export("three");
    assert!(stray_at.exists(), "somebody else writes");
    drop(writers);
    export("four");
    assert!(!stray_at.exists());
    let other = Machine::new(&scene, "other");
    other.rb(&["load", "-q", "-i", &crate::scene::busybox_archive().display().to_string()]).ok();
    assert!(
        other
            .build(&["--network", "none", "--cache-from", "type=local,src=../cache"])
            .ok()
            .was_cached("RUN echo four >/four")
    );
}
