//! Caches that travel: `--cache-to` and `--cache-from`, between stores that share nothing else.

use std::collections::BTreeSet;
use std::path::PathBuf;
use std::process::{Child, Stdio};

use rbuild_engine::registry::memory::{Access, Action, Behaviour, Fault};

use crate::registry::Registry;
use crate::scene::{Said, Scene};

/// A machine of its own: a store that begins empty, in the scene's working directory.
pub(crate) struct Machine<'a> {
    scene: &'a Scene,
    root: PathBuf,
}

impl<'a> Machine<'a> {
    pub(crate) fn new(scene: &'a Scene, name: &str) -> Machine<'a> {
        Machine { scene, root: scene.root().join("machines").join(name) }
    }

    fn command(&self, arguments: &[&str]) -> std::process::Command {
        let mut command = self.scene.command(arguments);
        std::fs::create_dir_all(self.root.parent().expect("a parent")).expect("mkdir");
        command.env("RBUILD_ROOT", &self.root);
        command
    }

    pub(crate) fn rb(&self, arguments: &[&str]) -> Said {
        Said::from(self.command(arguments).output().expect("the program starts"))
    }

    /// Builds the working directory.
    pub(crate) fn build(&self, options: &[&str]) -> Said {
        let arguments = [&["build", "-t", "built"], options, &["."]].concat();
        self.rb(&arguments)
    }

    fn reads(&self, path: &str) -> String {
        self.rb(&["run", "--rm", "--network", "none", "built", "cat", path]).ok().out
    }

    fn id(&self) -> String {
        self.rb(&["image", "inspect", "--format", "{{.Id}}", "built"]).ok().out
    }
}

/// Busybox in a registry, for bases that every machine can have.
pub(crate) fn base(scene: &Scene, registry: &Registry) -> String {
    let name = registry.name("base/busybox:latest");
    scene.rb(&["tag", "busybox", &name]).ok();
    scene.rb(&["push", &name]).ok();
    name
}

/// Two stages, of which the first is of no use without the second; random, so that what ran again shows.
fn two_stages(scene: &Scene, base: &str) {
    let random = "head -c 2000000 /dev/urandom";
    scene.write(
        "Dockerfile",
        format!(
            "FROM {base} AS gen\nRUN {random} >/large && {random} | sha256sum >/r\nFROM {base}\nCOPY --from=gen /r /r\nRUN head -c 9 /dev/urandom | sha256sum >/s\n"
        ),
    );
}

/// No step of the Dockerfile ran.
#[track_caller]
fn all_cached(said: &Said) {
    let ran: Vec<&str> = said
        .err
        .lines()
        .filter(|line| line.starts_with('#') && line.contains("] RUN ") || line.contains("] COPY "))
        .filter(|line| {
            let number = line.split(' ').next().unwrap_or_default();
            !said.err.lines().any(|other| other == format!("{number} CACHED"))
        })
        .collect();
    assert!(ran.is_empty(), "ran: {ran:?}: {said:#?}");
    assert!(said.err.contains("CACHED"), "{said:#?}");
}

/// Bytes of layers that were fetched from `repository` since the log was cleared.
fn fetched(registry: &Registry, repository: &str) -> usize {
    let log = registry.get().log();
    let part = format!("/v2/{repository}/blobs/");
    let digests = log.iter().filter(|r| r.method == "GET").filter_map(|r| r.path.strip_prefix(&part));
    let blobs = digests.filter_map(|digest| registry.get().blob(&digest.parse().ok()?));
    blobs.filter(|blob| !blob.starts_with(b"{")).map(|blob| blob.len()).sum()
}

#[test]
fn an_empty_machine_builds_from_a_cache_in_a_registry() {
    let scene = Scene::with_busybox();
    let registry = Registry::start();
    two_stages(&scene, &base(&scene, &registry));
    let cache = registry.name("team/cache");
    let (a, b, c) = (Machine::new(&scene, "a"), Machine::new(&scene, "b"), Machine::new(&scene, "c"));
    let to = format!("type=registry,ref={cache},mode=max");
    a.build(&["--cache-to", &to]).ok().says(&["exporting cache to registry"]);
    let (r, s) = (a.reads("/r"), a.reads("/s"));

    // Nothing is exported: nothing but records moves, and the base's description.
    registry.get().clear_log();
    let said = b.build(&["--cache-from", &cache, "--output", "type=cacheonly"]).ok();
    all_cached(&said);
    said.says(&[&format!("importing cache manifest from {cache}:latest")]);
    assert_eq!((fetched(&registry, "team/cache"), fetched(&registry, "base/busybox")), (0, 0));

    // With an image, its own layers move, and those of the stage it copied from do not.
    registry.get().clear_log();
    let said = c.build(&["--cache-from", &format!("type=registry,ref={cache}")]).ok();
    all_cached(&said);
    let moved = fetched(&registry, "team/cache");
    assert!(moved > 0 && moved < 2_000_000, "{moved} bytes");
    assert_eq!((c.reads("/r"), c.reads("/s"), c.id()), (r.clone(), s, a.id()));

    // The results are local now; what the build names no more is not asked again.
    registry.get().clear_log();
    all_cached(&c.build(&[]).ok());
    assert_eq!(registry.get().count("GET", "team/cache"), 0);
    // A record whose files never came is of no use to a build that does not name its cache.
    b.build(&[]).ok();
    assert_ne!(b.reads("/r"), r);
}

/// A change in the middle: what is before it is found, and its files come when the step after it needs them.
#[test]
fn files_come_when_a_step_needs_them() {
    let scene = Scene::with_busybox();
    let registry = Registry::start();
    let base = base(&scene, &registry);
    let cache = registry.name("cache:v1");
    let write = |last: &str| {
        scene.write(
            "Dockerfile",
            format!("FROM {base}\nRUN head -c 9 /dev/urandom | sha256sum >/r\nRUN cat /r >/{last}\n"),
        )
    };
    write("one");
    let (a, b) = (Machine::new(&scene, "a"), Machine::new(&scene, "b"));
    a.build(&["--cache-to", &cache]).ok();
    write("two");
    let said = b.build(&["--cache-from", &cache]).ok();
    assert!(said.was_cached("RUN head -c 9 /dev/urandom | sha256sum >/r") && !said.was_cached("RUN cat /r >/two"));
    assert_eq!(b.reads("/two"), a.reads("/one"));
}

#[test]
fn mode_min_holds_the_final_image_only() {
    let scene = Scene::with_busybox();
    let registry = Registry::start();
    two_stages(&scene, &base(&scene, &registry));
    let (min, max) = (registry.name("cache:min"), registry.name("cache:max"));
    let (a, b) = (Machine::new(&scene, "a"), Machine::new(&scene, "b"));
    let to_max = format!("type=registry,ref={max},mode=max");
    a.build(&["--cache-to", &format!("type=registry,ref={min}"), "--cache-to", &to_max]).ok();
    let layers = |tag: &str| {
        let (_, manifest) = registry.get().manifest("cache", tag).expect("the cache is there");
        let manifest: serde_json::Value = serde_json::from_slice(&manifest).expect("JSON");
        manifest["layers"].as_array().expect("layers").len()
    };
    assert_eq!((layers("min"), layers("max")), (3, 4));
    all_cached(&b.build(&["--cache-from", &min]).ok());
    assert_eq!((b.reads("/r"), b.id()), (a.reads("/r"), a.id()));
}

/// Builders that know nothing of each other write one cache at once, each a branch; then one who has nothing builds all.
#[test]
fn builders_at_once_lose_nothing_of_each_other() {
    const BUILDERS: usize = 16;
    let scene = Scene::with_busybox();
    let registry = Registry::start();
    let base = base(&scene, &registry);
    let stages = (0..BUILDERS)
        .map(|n| format!("FROM {base} AS b{n}\nRUN head -c 9 /dev/urandom >/r{n} && echo {n}\nRUN cat /r{n} >/s{n}\n"));
    scene.write("Dockerfile", stages.collect::<String>());
    let cache = registry.name("shared");
    let to = format!("type=registry,ref={cache},mode=max");
    let builders: Vec<Child> = (0..BUILDERS)
        .map(|n| {
            let machine = Machine::new(&scene, &n.to_string());
            let mut command = machine.command(&[
                "build",
                "--target",
                &format!("b{n}"),
                "--cache-to",
                &to,
                "-o",
                "type=cacheonly",
                ".",
            ]);
            command.stdout(Stdio::null()).stderr(Stdio::piped()).spawn().expect("the program starts")
        })
        .collect();
    for builder in builders {
        Said::from(builder.wait_with_output().expect("it ends")).ok();
    }
    let last = Machine::new(&scene, "last");
    for n in 0..BUILDERS {
        let target = format!("b{n}");
        let said = last.rb(&["build", "--target", &target, "--cache-from", &cache, "-o", "type=cacheonly", "."]).ok();
        all_cached(&said);
    }
}

/// `RBUILD_KILLS=50` kills that many. Wherever a writer is killed, a reader finds whole records or none, never a wrong one.
#[test]
fn a_killed_writer_leaves_nothing_wrong() {
    let scene = Scene::with_busybox();
    let registry = Registry::start();
    let base = base(&scene, &registry);
    scene.write(
        "Dockerfile",
        format!("FROM {base} AS gen\nRUN seq 20000 >/a\nRUN sha256sum /a >/b\nFROM {base}\nCOPY --from=gen /b /b\nRUN cat /b /b >/c\n"),
    );
    let whole = Machine::new(&scene, "whole");
    registry.get().clear_log();
    whole.build(&["--cache-to", &format!("type=registry,ref={},mode=max", registry.name("whole"))]).ok();
    let wanted = whole.reads("/c");
    let requests = registry.get().log().len() as u64;
    let mut seed = 0x9e37_79b9_7f4a_7c15_u64;
    let asked = std::env::var("RBUILD_KILLS").ok().and_then(|text| text.parse().ok());
    for n in 0..asked.unwrap_or(8) {
        seed = seed.wrapping_mul(6_364_136_223_846_793_005).wrapping_add(1_442_695_040_888_963_407);
        let after = (seed >> 33) % requests;
        let cache = registry.name(&format!("killed:{n}"));
        let writer = Machine::new(&scene, &format!("writer{n}"));
        registry.get().clear_log();
        let to = format!("type=registry,ref={cache},mode=max");
        let mut child = writer.command(&["build", "--cache-to", &to, "-o", "type=cacheonly", "."]);
        let mut child = child.stdout(Stdio::null()).stderr(Stdio::null()).spawn().expect("the program starts");
        while (registry.get().log().len() as u64) < after && child.try_wait().expect("wait").is_none() {
            std::thread::yield_now();
        }
        // It may have ended by itself.
        drop(child.kill());
        child.wait().expect("wait");
        let reader = Machine::new(&scene, &format!("reader{n}"));
        let said = reader.build(&["--cache-from", &cache]).ok();
        assert!(!said.err.to_lowercase().contains("warn"), "after {after} requests: {said:#?}");
        assert_eq!(reader.reads("/c"), wanted, "after {after} requests");
    }
}

/// The file of each kind of cache directory, and both compressions; several writers at once.
#[test]
fn a_directory_holds_what_several_writers_put_there() {
    let scene = Scene::with_busybox();
    let registry = Registry::start();
    let base = base(&scene, &registry);
    let stages =
        (0..4).map(|n| format!("FROM {base} AS b{n}\nRUN head -c 9 /dev/urandom | sha256sum >/r && echo {n}\n"));
    scene.write("Dockerfile", stages.collect::<String>());
    scene.write(".dockerignore", "dir\n");
    let machines: Vec<Machine> = (0..4).map(|n| Machine::new(&scene, &n.to_string())).collect();
    let forms = ["gzip", "zstd,force-compression=true", "uncompressed", "zstd,compression-level=7"];
    let writers: Vec<Child> = forms
        .iter()
        .zip(&machines)
        .enumerate()
        .map(|(n, (form, machine))| {
            let to = format!("type=local,dest=dir,mode=max,compression={form}");
            let arguments = ["build", "-t", "built", "--target", &format!("b{n}"), "--cache-to", &to, "."];
            let mut command = machine.command(&arguments);
            command.stdout(Stdio::null()).stderr(Stdio::piped()).spawn().expect("the program starts")
        })
        .collect();
    for writer in writers {
        Said::from(writer.wait_with_output().expect("it ends")).ok().says(&["exporting cache to client directory"]);
    }
    let reader = Machine::new(&scene, "reader");
    for (n, machine) in machines.iter().enumerate() {
        let said = reader.build(&["--target", &format!("b{n}"), "--cache-from", "type=local,src=dir"]).ok();
        all_cached(&said);
        assert_eq!(reader.reads("/r"), machine.reads("/r"));
        // What came in whatever form leaves again.
        reader.rb(&["save", "-o", "built.tar", "built"]).ok();
    }
    let index: serde_json::Value =
        serde_json::from_slice(&std::fs::read(scene.work().join("dir/index.json")).expect("index")).expect("JSON");
    let names: BTreeSet<&str> = index["manifests"]
        .as_array()
        .expect("manifests")
        .iter()
        .filter_map(|entry| entry["annotations"]["org.opencontainers.image.ref.name"].as_str())
        .collect();
    assert!(names.contains("latest") && names.len() == 5, "{names:?}");
}

#[test]
fn an_image_carries_its_own_cache() {
    let scene = Scene::with_busybox();
    let registry = Registry::start();
    two_stages(&scene, &base(&scene, &registry));
    let (a, b, c) = (Machine::new(&scene, "a"), Machine::new(&scene, "b"), Machine::new(&scene, "c"));
    let name = registry.name("app");
    a.rb(&["build", "-t", &name, "--push", "--build-arg", "BUILDKIT_INLINE_CACHE=1", "."]).ok();
    let r = a.rb(&["run", "--rm", "--network", "none", &name, "cat", "/r"]).ok().out;
    all_cached(&b.build(&["--cache-from", &name]).ok());
    assert_eq!(b.reads("/r"), r);
    // One that carries none is said to.
    c.rb(&["build", "-t", &name, "--push", "--cache-from", &name, "."]).ok();
    let d = Machine::new(&scene, "d");
    d.build(&["--cache-from", &name]).ok().says(&["is an image that holds no build cache"]);
}

/// A cache that is not there, cannot be reached or is of another kind costs a warning.
#[test]
fn a_cache_that_cannot_be_used_is_a_warning() {
    let scene = Scene::with_busybox();
    let registry = Registry::start();
    // Something that is known nowhere yet.
    let build = |options: &[&str]| {
        scene.write("Dockerfile", format!("FROM busybox\nRUN echo '{}' >/r\n", options.concat()));
        scene.rb(&[&["build"], options, &["."]].concat())
    };
    let missing = registry.name("none:yet");
    build(&["--cache-from", &missing]).ok().says(&[&format!("{missing}: not found")]);
    build(&["--cache-from", "type=local,src=nowhere"]).ok().says(&["local:nowhere: not found"]);

    registry.get().fault(Fault::new("GET", "/v2/broken/", Action::Status(403, None)).times(100));
    build(&["--cache-from", &registry.name("broken:x")]).ok().says(&["cannot be used: "]);
    let index = r#"{"schemaVersion":2,"mediaType":"application/vnd.oci.image.index.v1+json","manifests":[{"mediaType":"application/vnd.buildkit.cacheconfig.v0","digest":"sha256:e3b0c44298fc1c149afbf4c8996fb92427ae41e4649b934ca495991b7852b855","size":0}]}"#;
    registry.get().put_manifest("kit", Some("c"), "application/vnd.oci.image.index.v1+json", index);
    let foreign = registry.name("kit:c");
    build(&["--cache-from", &foreign]).ok().says(&["is a cache in BuildKit's own format, which rbuild does not read"]);

    // Writing is another matter, unless its errors are to be ignored.
    registry.get().fault(Fault::new("POST", "/v2/full/", Action::Status(403, None)).times(1000));
    let to = format!("type=registry,ref={}", registry.name("full:x"));
    build(&["--cache-to", &to]).refused(1, &["failed to export the cache to registry:"]);
    build(&["--cache-to", &format!("{to},ignore-error=true")]).ok().says(&["failed to export the cache"]);
}

/// What does not keep its word is found out, said, and built anew.
#[test]
fn forged_records_are_refused() {
    let scene = Scene::with_busybox();
    let registry = Registry::start();
    let base = base(&scene, &registry);
    scene.write("Dockerfile", format!("FROM {base}\nRUN echo one >/r\nRUN cat /r >/s\n"));
    let (a, cache) = (Machine::new(&scene, "a"), registry.name("cache:x"));
    a.build(&["--cache-to", &cache]).ok();
    let get = registry.get();
    let (_, main) = get.manifest("cache", "x").expect("the cache");
    let parsed: serde_json::Value = serde_json::from_slice(&main).expect("JSON");
    let config = get.blob(&parsed["config"]["digest"].as_str().expect("digest").parse().expect("digest"));
    let config = String::from_utf8(config.expect("config").to_vec()).expect("UTF-8");
    let kind = "application/vnd.oci.image.manifest.v1+json";
    // A cache of its own, with a config and layers as given.
    let forge = |tag: &str, config: &str, layers: &serde_json::Value| {
        let digest = get.put_blob("cache", config.to_owned());
        let mut manifest = parsed.clone();
        manifest["config"]["digest"] = digest.to_string().into();
        manifest["config"]["size"] = config.len().into();
        manifest["layers"] = layers.clone();
        get.put_manifest("cache", Some(tag), kind, manifest.to_string());
        registry.name(&format!("cache:{tag}"))
    };
    let victim = |name: &str, from: &str, words: &[&str]| {
        let machine = Machine::new(&scene, name);
        machine.build(&["--cache-from", from]).ok().says(words);
        assert_eq!(machine.reads("/s"), "one\n", "{name}");
    };
    let layers = &parsed["layers"];

    // Layers that are not there at all, or are another record's: found when they are unpacked.
    let mut swapped = layers.clone();
    let count = swapped.as_array().expect("layers").len();
    swapped.as_array_mut().expect("layers").swap(count - 2, count - 1);
    victim("swapped", &forge("swapped", &config, &swapped), &["is not used any more"]);
    let mut gone = layers.clone();
    gone[count - 1]["digest"] = format!("sha256:{}", "0".repeat(64)).into();
    victim("gone", &forge("gone", &config, &gone), &["is not used any more"]);

    // A position beyond the layers, an address elsewhere, a path for a digest, too much of anything.
    let beyond = config.replacen("\"outputs\":[[0", "\"outputs\":[[99", 1);
    assert_ne!(beyond, config);
    victim("beyond", &forge("beyond", &beyond, layers), &["is refused", "names layer 99"]);
    let mut elsewhere = layers.clone();
    elsewhere[0]["urls"] = serde_json::json!(["http://127.0.0.1:1/x"]);
    victim("elsewhere", &forge("elsewhere", &config, &elsewhere), &["is no layer of its own"]);
    let mut escape = layers.clone();
    escape[0]["digest"] = "sha256:../../../../etc/passwd".into();
    victim("escape", &forge("escape", &config, &escape), &["cannot be used"]);
    let version = config.replacen("\"version\":1", "\"version\":9", 1);
    victim("version", &forge("version", &version, layers), &["this program reads version 1"]);
    let junk = config.replacen("\"records\":[", "\"records\":[7,", 1);
    victim("junk", &forge("junk", &junk, layers), &["is refused"]);
    let large = format!("{config}{}", " ".repeat(9 << 20));
    victim("large", &forge("large", &large, layers), &["over the limit"]);

    // A record under another one's name.
    let tags: Vec<String> = tags(&registry);
    let [one, two, ..] = tags.as_slice() else { panic!("{tags:?}") };
    let (_, other) = get.manifest("cache", two).expect("a record");
    let name = one.replacen("x.r-", "y.r-", 1);
    get.put_manifest("cache", Some(&name), kind, other);
    victim("renamed", &registry.name("cache:y"), &["it holds a record of another name"]);

    // Bytes that are not what their digest says.
    get.fault(
        Fault::new(
            "GET",
            &format!("/blobs/{}", parsed["config"]["digest"].as_str().expect("digest")),
            Action::OtherBytes,
        )
        .times(9),
    );
    victim("bytes", &cache, &["cannot be used"]);
}

fn tags(registry: &Registry) -> Vec<String> {
    all_tags(registry).into_iter().filter(|tag| tag.starts_with("x.r-")).collect()
}

/// All tags of the repository `cache`.
pub(crate) fn all_tags(registry: &Registry) -> Vec<String> {
    let address = registry.get().host();
    let line = format!(
        "exec 3<>/dev/tcp/{} && printf 'GET /v2/cache/tags/list HTTP/1.0\\r\\n\\r\\n' >&3 && cat <&3",
        address.replace(':', "/")
    );
    let output = std::process::Command::new("bash").args(["-c", &line]).output().expect("bash");
    let text = String::from_utf8_lossy(&output.stdout).into_owned();
    let json: serde_json::Value = serde_json::from_str(text.split("\r\n\r\n").nth(1).expect("a body")).expect("JSON");
    json["tags"].as_array().expect("tags").iter().filter_map(|tag| tag.as_str().map(str::to_owned)).collect()
}

/// Other tools see ordinary images: every name can be inspected, and a copy of the cache is a cache.
#[test]
fn skopeo_reads_a_cache_as_images() {
    if !std::path::Path::new("/usr/bin/skopeo").exists() {
        eprintln!("not installed: skopeo: this test judges nothing");
        return;
    }
    let scene = Scene::with_busybox();
    let registry = Registry::start();
    two_stages(&scene, &base(&scene, &registry));
    let (a, b) = (Machine::new(&scene, "a"), Machine::new(&scene, "b"));
    a.build(&["--cache-to", &format!("type=registry,ref={},mode=max", registry.name("cache:x"))]).ok();
    let skopeo = |line: &[&str]| {
        let output =
            std::process::Command::new("skopeo").args(line).current_dir(scene.work()).output().expect("skopeo");
        assert!(output.status.success(), "{line:?}: {output:?}");
    };
    let mut names = tags(&registry);
    names.push("x".to_owned());
    assert_eq!(names.len(), 4, "three steps, and all of them: {names:?}");
    for name in names {
        skopeo(&["inspect", "--tls-verify=false", &format!("docker://{}", registry.name(&format!("cache:{name}")))]);
    }
    let from = format!("docker://{}", registry.name("cache:x"));
    skopeo(&["copy", "-q", "--src-tls-verify=false", &from, "oci:copy:latest"]);
    scene.write(".dockerignore", "copy\n");
    all_cached(&b.build(&["--cache-from", "type=local,src=copy"]).ok());
    assert_eq!(b.reads("/r"), a.reads("/r"));
}

/// What a build is lent, and what it shows to registries, is in nothing that it sends.
#[test]
fn secrets_stay_at_home() {
    let scene = Scene::with_busybox();
    let (user, password) = ("builder", "pa55-w0rd-of-the-registry");
    let access = Access::Basic { username: user.into(), password: password.into() };
    let registry = Registry::with(Behaviour { access, ..Behaviour::default() });
    scene.rb_with_input(&["login", "-u", user, "--password-stdin", &registry.get().host()], password.as_bytes()).ok();
    scene.write("secret.txt", "t0p-s3cret-of-the-user");
    scene.write(
        "Dockerfile",
        "FROM busybox\nRUN --mount=type=secret,id=s --mount=type=secret,id=e,env=E test -s /run/secrets/s && test -n \"$E\" && echo ok >/r\n",
    );
    let cache = registry.name("cache");
    let to = format!("type=registry,ref={cache},mode=max");
    let mut command = scene.command(&[
        "build",
        "--secret",
        "id=s,src=secret.txt",
        "--secret",
        "id=e,env=HIDDEN",
        "--cache-to",
        &to,
        "--cache-to",
        "type=local,dest=dir,mode=max",
        ".",
    ]);
    command.env("HIDDEN", "v4lue-of-the-environment");
    Said::from(command.output().expect("the program starts")).ok();
    let text = std::fs::read_dir(scene.work().join("dir/blobs/sha256"))
        .expect("blobs")
        .map(|entry| String::from_utf8_lossy(&std::fs::read(entry.expect("entry").path()).expect("read")).into_owned());
    let text: String = text.collect();
    assert!(text.contains("rbuild.cache.v1") && text.contains("/run/secrets/s"), "records are there to be searched");
    let home = scene.work().display().to_string();
    for hidden in ["t0p-s3cret", "pa55-w0rd", "v4lue-of-the", "secret.txt", &home] {
        assert!(!text.contains(hidden), "{hidden} travels");
    }
}
