//! What takes room, whose it is, and how one gets it back: `builder du`, `builder prune`, `system df`, `system prune`.

use std::collections::BTreeMap;
use std::os::unix::fs::MetadataExt as _;
use std::path::Path;
use std::process::Stdio;

use serde_json::Value;

use crate::scene::Scene;

const CACHED: &str = "FROM busybox
COPY f /f
RUN --mount=type=cache,id=downloads,target=/c head -c 3000000 /dev/zero > /c/x && head -c 1000000 /dev/zero > /made
FROM busybox
COPY --from=0 /made /made
";

fn build(scene: &Scene, tag: &str) {
    scene.rb(&["build", "-q", "--network", "none", "-t", tag, "."]).ok();
}

/// The entries of `builder du`, one JSON object each.
fn entries(scene: &Scene, filters: &[&str]) -> Vec<Value> {
    let mut line = vec!["builder", "du", "--format", "json"];
    filters.iter().for_each(|filter| line.extend(["--filter", filter]));
    let out = scene.rb(&line).ok().out;
    out.lines().map(|line| serde_json::from_str(line).expect("JSON")).collect()
}

fn sizes(entries: &[Value]) -> u64 {
    entries.iter().map(|entry| entry["Size"].as_str().expect("a size").parse::<u64>().expect("a number")).sum()
}

#[test]
fn the_build_cache_is_listed() {
    let scene = Scene::with_busybox();
    scene.write("f", "content");
    scene.write("Dockerfile", CACHED);
    build(&scene, "made");
    let all = entries(&scene, &[]);
    let step = |word: &str| {
        let found = all.iter().find(|entry| entry["Description"].as_str().is_some_and(|text| text.contains(word)));
        found.unwrap_or_else(|| panic!("no {word}: {all:#?}"))
    };
    assert_eq!(step("RUN")["Parents"][0], step("[stage-0 2/3] COPY")["ID"]);
    assert_eq!((step("RUN")["Shared"].clone(), step("RUN")["Reclaimable"].clone()), (false.into(), true.into()));
    assert_eq!(step("COPY --from=0")["Shared"], true, "the image has it");
    let mount = entries(&scene, &["type=exec.cachemount"]);
    assert_eq!(mount.len(), 1);
    assert!(sizes(&mount) >= 3_000_000, "{mount:?}");
    assert_eq!((mount[0]["Mutable"].clone(), mount[0]["UsageCount"].clone()), (true.into(), 1.into()));
    let id = mount[0]["ID"].as_str().expect("an id").to_owned();
    let said = scene.rb(&["buildx", "du", "--verbose", "--filter", &format!("id={id}")]).ok().out;
    for line in
        ["Mutable:        true\n", "Type:           exec.cachemount\n", "\"downloads\" (shared)", "\nTotal:         3"]
    {
        assert!(said.contains(line), "{line:?}: {said}");
    }
    let table = scene.rb(&["builder", "du"]).ok().out;
    assert!(table.starts_with("ID   ") && table.contains(&format!("{id}*")), "{table}");
    for heading in ["RECLAIMABLE", "SIZE", "LAST ACCESSED", "\nShared: ", "\nPrivate: ", "\nReclaimable: ", "\nTotal: "]
    {
        assert!(table.contains(heading), "{heading}: {table}");
    }
    let count = |filters: &[&str]| entries(&scene, filters).len();
    assert_eq!(count(&["mutable"]) + count(&["immutable"]), all.len());
    assert_eq!(count(&["shared=true"]) + count(&["private"]), all.len());
    assert_eq!(count(&["type!=regular"]), count(&["mutable"]));
    assert_eq!(count(&["description~=COPY f"]), 1);
    assert_eq!(count(&["until=1h"]), 0);
    assert_eq!(count(&["inuse"]), 0);
    let types = scene.rb(&["builder", "du", "--format", "{{.Type}}"]).ok().out;
    assert_eq!(types.lines().filter(|line| *line == "exec.cachemount").count(), 1);
    scene.rb(&["builder", "du", "--filter", "nonsense=1"]).refused(1, &["invalid filter 'nonsense'"]);
    scene.rb(&["builder", "du", "--filter", "until=soon"]).refused(1, &["duration"]);
}

/// What a step holds is in use, and stays whatever is asked for.
#[test]
fn what_a_build_holds_is_not_pruned() {
    let scene = Scene::with_busybox();
    scene.write("go", "");
    scene.write(
        "Dockerfile",
        "FROM busybox\nRUN head -c 1000 /dev/zero > /first\n\
         RUN --mount=type=cache,target=/c echo kept > /c/x; echo is-; echo ready; \
         while [ ! -e /c/go ]; do sleep 0.05; done; cat /c/x /first | wc -c > /out\n",
    );
    let mut command = scene.command(&["build", "--network", "none", "-t", "held", "."]);
    let mut child = command.stdout(Stdio::null()).stderr(Stdio::piped()).spawn().expect("the program starts");
    let stderr = child.stderr.take().expect("piped");
    let mut lines = std::io::BufRead::lines(std::io::BufReader::new(stderr));
    assert!(lines.any(|line| line.expect("text").ends_with(" ready")), "the step begins");
    // The rest is read too, so that the build never waits for a reader.
    let reader = std::thread::spawn(move || lines.count());
    assert_eq!(entries(&scene, &["type=exec.cachemount", "inuse"]).len(), 1);
    scene.rb(&["builder", "prune", "-a", "-f"]).ok();
    scene.rb(&["system", "prune", "-a", "-f"]).ok();
    assert_eq!(entries(&scene, &["type=exec.cachemount"]).len(), 1);
    let slots = scene.root().join("cachemounts");
    let cache = std::fs::read_dir(slots).expect("read").next().expect("one").expect("an entry").path();
    std::fs::write(cache.join("0/data/go"), "").expect("write");
    assert!(child.wait().expect("wait").success());
    reader.join().expect("it ends");
    assert_eq!(scene.in_image("held", "cat /out"), "1005\n");
    assert_eq!(entries(&scene, &["inuse"]).len(), 0);
    let said = scene.rb(&["builder", "prune", "-f", "--filter", "type=exec.cachemount"]).ok().out;
    assert!(said.starts_with("ID ") && said.contains("\nTotal:\t"), "{said}");
    assert_eq!(entries(&scene, &["type=exec.cachemount"]).len(), 0);
    assert!(!cache.exists());
}

#[test]
fn pruning_keeps_to_its_limits() {
    let scene = Scene::with_busybox();
    let steps: String = (0..6).map(|n| format!("RUN head -c 1000000 /dev/zero > /f{n}\n")).collect();
    scene.write("Dockerfile", format!("FROM busybox\n{steps}FROM busybox\nCOPY --from=0 /f0 /\n"));
    build(&scene, "limits");
    let private = || sizes(&entries(&scene, &["private"]));
    let before = private();
    assert!(before > 6_000_000);
    let said = scene.rb_with_input(&["builder", "prune"], b"n\n").ok();
    assert!(said.out.contains("WARNING! This will remove all dangling build cache. Are you sure"), "{said:?}");
    assert_eq!(private(), before);
    scene.rb(&["builder", "prune", "-f", "--reserved-space", "1GB"]).ok();
    scene.rb(&["builder", "prune", "-f", "--filter", "until=10h"]).ok();
    scene.rb(&["builder", "prune", "-f", "--max-used-space", "1GB", "--min-free-space", "1"]).ok();
    assert_eq!(private(), before);
    scene.rb(&["builder", "prune", "-f", "--max-used-space", "4MB"]).ok();
    let after = private();
    assert!((2_000_000..4 << 20).contains(&after), "{after}");
    scene.rb(&["builder", "prune", "-f", "--keep-storage", "1MB"]).ok();
    assert!(private() < 1 << 20);
    let shared = entries(&scene, &["shared"]).len();
    scene.rb(&["builder", "prune", "-f"]).ok();
    assert_eq!((private(), entries(&scene, &["shared"]).len()), (0, shared));
    scene.rb(&["builder", "prune", "-f", "-a"]).ok();
    assert_eq!(entries(&scene, &[]).len(), 0);
    assert_eq!(scene.in_image("limits", "wc -c < /f0"), "1000000\n");
}

/// Bytes on the disk below `path`, itself included; a file of several names counts once.
fn disk_use(path: &Path) -> u64 {
    let mut seen = std::collections::BTreeSet::new();
    let mut queue = vec![path.to_owned()];
    let mut total = 0;
    while let Some(path) = queue.pop() {
        let metadata = std::fs::symlink_metadata(&path).expect("stat");
        if seen.insert((metadata.dev(), metadata.ino())) {
            total += metadata.blocks() * 512;
        }
        if metadata.is_dir() {
            queue.extend(std::fs::read_dir(&path).expect("read").map(|entry| entry.expect("an entry").path()));
        }
    }
    total
}

fn shares(scene: &Scene) -> BTreeMap<String, u64> {
    let out = scene.rb(&["system", "df", "-v", "--format", "json"]).ok().out;
    let object: Value = serde_json::from_str(&out).expect("JSON");
    let text = |value: &Value| value.as_str().expect("text").to_owned();
    let owners = object["Owners"].as_array().expect("a list").iter();
    owners.map(|owner| (text(&owner["Owner"]), text(&owner["Bytes"]).parse().expect("a number"))).collect()
}

/// Every byte of the state directory is somebody's.
#[test]
fn every_byte_has_an_owner() {
    let scene = Scene::with_busybox();
    scene.write("f", "content");
    scene.write("Dockerfile", CACHED);
    build(&scene, "made");
    scene.write("Dockerfile", "FROM busybox\nRUN head -c 500000 /dev/zero > /z; echo for the log\n");
    build(&scene, "other");
    scene
        .rb(&["run", "--network", "none", "--name", "writer", "made", "sh", "-c", "head -c 700000 /dev/zero > /w"])
        .ok();
    scene
        .rb(&[
            "run",
            "--rm",
            "--network",
            "none",
            "-v",
            "data:/v",
            "made",
            "sh",
            "-c",
            "head -c 900000 /dev/zero > /v/x",
        ])
        .ok();
    scene.rb(&["create", "--name", "gone", "other", "true"]).ok();
    scene.rb(&["rmi", "-f", "other"]).ok();
    // What processes that died would leave.
    for name in ["snapshots/zzz/fs", "ingest/1x1", "containers/dead"] {
        std::fs::create_dir_all(scene.root().join(name)).expect("mkdir");
    }
    for name in ["snapshots/zzz/fs/f", "ingest/1x1/f", "blobs/sha256/00"] {
        std::fs::write(scene.root().join(name), vec![1; 100_000]).expect("write");
    }
    std::fs::write(scene.root().join("stranger"), vec![1; 50_000]).expect("write");
    // Counted once, so that nothing is measured for the first time, and written down, between the two.
    shares(&scene);
    let shares = shares(&scene);
    let is_database = |name: &str| name.starts_with("db.sqlite");
    let files = std::fs::read_dir(scene.root()).expect("read").map(|entry| entry.expect("an entry"));
    let database: u64 =
        files.filter(|file| is_database(&file.file_name().to_string_lossy())).map(|file| disk_use(&file.path())).sum();
    let total: u64 = shares.values().sum();
    assert_eq!(total - database, disk_use(&scene.root()) - database, "{shares:#?}");
    let least = [
        ("Images", 1_000_000),
        ("Containers", 700_000),
        ("Local Volumes", 900_000),
        ("Build Cache", 4_000_000),
        ("Build Logs", 1),
        ("Leftovers", 200_000),
        ("Unknown", 50_000),
    ];
    for (owner, least) in least {
        assert!(shares.get(owner).is_some_and(|bytes| *bytes >= least), "{owner}: {shares:#?}");
    }
    assert!(shares["Unknown"] < 60_000, "{shares:#?}");
    let text = scene.rb(&["system", "df", "-v"]).ok().out;
    for heading in [
        "Images space usage:\n\nREPOSITORY ",
        "SHARED SIZE",
        "UNIQUE SIZE",
        "\nContainers space usage:\n\nCONTAINER ID ",
        "LOCAL VOLUMES",
        "\nLocal Volumes space usage:\n\nVOLUME NAME ",
        "\nBuild cache usage: ",
        "\nCACHE ID ",
        "\nState directory usage:\n\nOWNER ",
    ] {
        assert!(text.contains(heading), "{heading:?}: {text}");
    }
    // What processes left goes; what is not ours stays.
    scene.rb(&["system", "prune", "-f"]).ok();
    let shares = self::shares(&scene);
    assert!(!shares.contains_key("Leftovers") && shares.contains_key("Unknown"), "{shares:#?}");
}

/// Collection beside work: what runs finds everything it needs, and the store is right afterwards.
#[test]
fn pruning_disturbs_nobody() {
    let scene = Scene::with_busybox();
    let workers: Vec<_> = (0..3)
        .map(|n| {
            let dir = format!("project{n}");
            scene.write(&format!("{dir}/f"), format!("content {n}"));
            let text = format!(
                "FROM busybox\nARG N\nCOPY f /f\nRUN --mount=type=cache,target=/c cat /f >> /c/log; echo {n}-$N > /a\n\
                 FROM busybox\nCOPY --from=0 /a /a\nRUN cat /a > /b\n"
            );
            scene.write(&format!("{dir}/Dockerfile"), text);
            dir
        })
        .collect();
    let done = std::sync::atomic::AtomicBool::new(false);
    std::thread::scope(|scope| {
        let pruner = scope.spawn(|| {
            let mut rounds = 0;
            while !done.load(std::sync::atomic::Ordering::Relaxed) {
                let line: &[&str] = match rounds % 3 {
                    0 => &["builder", "prune", "-a", "-f"],
                    1 => &["builder", "prune", "-f", "--max-used-space", "1MB"],
                    _ => &["system", "prune", "-f"],
                };
                scene.rb(line).ok();
                rounds += 1;
            }
            rounds
        });
        let builders: Vec<_> = workers
            .iter()
            .enumerate()
            .map(|(n, dir)| {
                let scene = &scene;
                scope.spawn(move || {
                    for round in 0..4 {
                        let (tag, argument) = (format!("built{n}"), format!("N={round}"));
                        let line = ["build", "-q", "--network", "none", "--build-arg", &argument, "-t", &tag, dir];
                        scene.rb(&line).ok();
                        assert_eq!(scene.in_image(&tag, "cat /b"), format!("{n}-{round}\n"));
                    }
                })
            })
            .collect();
        let ended: Vec<_> = builders.into_iter().map(|builder| builder.join()).collect();
        done.store(true, std::sync::atomic::Ordering::Relaxed);
        assert!(pruner.join().expect("it ends") > 0);
        ended.into_iter().for_each(|ended| ended.expect("a builder ends"));
    });
    for n in 0..3 {
        assert_eq!(scene.in_image(&format!("built{n}"), "cat /b"), format!("{n}-3\n"));
    }
    scene.rb(&["system", "check", "--deep"]).ok();
}

/// A build whose cache is over the limit that somebody wrote is followed by a collection, which nobody waits for.
#[test]
fn a_policy_is_applied_after_builds() {
    let scene = Scene::with_busybox();
    let steps: String = (0..4).map(|n| format!("RUN head -c 1000000 /dev/zero > /f{n}\n")).collect();
    scene.write("Dockerfile", format!("FROM busybox\n{steps}FROM busybox\nCOPY --from=0 /f0 /\n"));
    let policy = |text: &str| {
        let config = format!("{{\"builder\": {{\"gc\": {{\"policy\": [{text}]}}}}}}");
        std::fs::write(scene.root().join("daemon.json"), config).expect("write");
    };
    policy("{\"maxUsedSpace\": \"1GB\"}");
    build(&scene, "made");
    scene.settle();
    let before = sizes(&entries(&scene, &["private"]));
    assert!(before > 4_000_000);
    scene.rb(&["builder", "gc"]).ok();
    assert_eq!(sizes(&entries(&scene, &["private"])), before);
    policy("{\"keepDuration\": \"48h\"}, {\"maxUsedSpace\": \"2MB\"}");
    std::fs::remove_file(scene.root().join("gc.stamp")).expect("it was noted");
    build(&scene, "again");
    // The collection is a process of its own.
    scene.settle();
    assert!(sizes(&entries(&scene, &["private"])) <= 2 << 20);
    assert_eq!(scene.in_image("again", "wc -c < /f0"), "1000000\n");
    let config = "{\"builder\": {\"gc\": {\"enabled\": false}}}";
    std::fs::write(scene.root().join("daemon.json"), config).expect("write");
    scene.rb(&["builder", "gc"]).refused(1, &["not enabled"]);
    policy("{\"maxUsedSpace\": \"many\"}");
    scene.rb(&["builder", "gc"]).refused(1, &["'many'"]);
    scene.rb(&["system", "check"]).ok();
}

/// `--filter` of all that prune takes what fits and leaves the rest.
#[test]
fn pruning_keeps_to_its_filters() {
    let scene = Scene::with_busybox();
    scene.write("Dockerfile", "FROM busybox\nLABEL keep=no\nRUN echo x >/x\n");
    build(&scene, "labelled");
    scene.rb(&["rmi", "labelled"]).ok();
    build(&scene, "labelled");
    for (name, label) in [("old", "keep=no"), ("other", "keep=yes")] {
        scene.rb(&["create", "--name", name, "--network=none", "--label", label, "busybox", "true"]).ok();
        scene.rb(&["network", "create", "--label", label, &format!("net-{name}")]).ok();
        scene.rb(&["volume", "create", "--label", label, &format!("vol-{name}")]).ok();
    }
    let names = |line: &[&str]| {
        let mut names: Vec<String> = scene.rb(line).ok().out.lines().map(str::to_owned).collect();
        names.sort();
        names.join(" ")
    };
    let containers = || names(&["ps", "-a", "--format", "{{.Names}}"]);
    let networks = || names(&["network", "ls", "--filter", "type=custom", "--format", "{{.Name}}"]);
    let volumes = || names(&["volume", "ls", "-q"]);
    let cached = || entries(&scene, &[]).len();
    let before = cached();

    // Nothing here is a day old, and nothing has this label.
    scene.rb(&["system", "prune", "-af", "--filter", "until=24h"]).ok();
    scene.rb(&["container", "prune", "-f", "--filter", "until=24h"]).ok();
    scene.rb(&["system", "prune", "-af", "--filter", "label=unheard-of"]).ok();
    assert_eq!(containers(), "old other");
    assert_eq!((networks(), volumes()), ("net-old net-other".into(), "vol-old vol-other".into()));
    assert_eq!(cached(), before);

    let said = scene.rb_with_input(&["system", "prune", "--filter", "label=keep=no"], b"n\n");
    assert!(
        format!("{}{}", said.out, said.err).contains("Items to be pruned will be filtered with:\n  - label=keep=no"),
        "{said:?}"
    );
    assert_eq!(containers(), "old other");
    scene.rb(&["system", "prune", "-af", "--filter", "label=keep=no"]).ok();
    assert_eq!((containers(), networks()), ("other".into(), "net-other".into()));
    assert_eq!(names(&["images", "--format", "{{.Repository}}"]), "busybox");
    assert_eq!(cached(), before, "nothing in the build cache has a label");

    // Named volumes go by `volume prune` alone.
    scene.rb(&["volume", "prune", "-f", "--filter", "label=keep"]).ok();
    assert_eq!(volumes(), "vol-old vol-other");
    scene.rb(&["volume", "prune", "-f", "--filter", "all=true", "--filter", "label!=keep=yes"]).ok();
    assert_eq!(volumes(), "vol-other");
    scene.rb(&["container", "prune", "-f", "--filter", "label!=keep=yes"]).ok();
    assert_eq!(containers(), "other");
    scene.rb(&["container", "prune", "-f", "--filter", "label=keep=yes", "--filter", "until=0s"]).ok();
    assert_eq!(containers(), "");
    scene.rb(&["network", "rm", "net-other"]).ok();

    for (line, words) in [
        (&["system", "prune", "-f", "--volumes", "--filter", "until=1h"][..], r#"The "until" filter is not supported"#),
        (&["system", "prune", "-f", "--filter", "colour=red"], "invalid filter 'colour'"),
        (&["container", "prune", "-f", "--filter", "until=never"], "invalid filter 'until=never'"),
        (&["volume", "prune", "-f", "--filter", "until=1h"], "invalid filter 'until'"),
        (&["volume", "prune", "-f", "--filter", "all=perhaps"], "invalid filter 'all=perhaps'"),
        (&["container", "prune", "-f", "--filter", "label"], "bad format of filter"),
    ] {
        let said = scene.rb(line);
        assert!(said.code != 0 && said.err.contains(words), "{line:?}: {said:?}");
    }
}
