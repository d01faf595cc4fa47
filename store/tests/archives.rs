//! Image archives: what we write comes back, what docker ever wrote is read, what is wrong is refused whole.

mod fixture;

use std::io::{Read, Write};

use fixture::{TestStore, file, hard_link, run, symlink, tar};
use rbuild_oci::{Descriptor, DiffId, Digest, ImageConfig, Manifest, MediaType, Platform, Reference};
use rbuild_store::archive::{self, Loaded, Saved};
use rbuild_store::{Driver, ImageRecord, NewImage, Snapshot, StoreError};

impl TestStore {
    /// An image of these snapshots, as a build makes it.
    fn image(&self, snapshots: &[&Snapshot], names: &[&str]) -> ImageRecord {
        let mut config = ImageConfig { os: "linux".into(), architecture: "amd64".into(), ..ImageConfig::default() };
        let mut layers = Vec::new();
        for snapshot in snapshots {
            let id = self.store.layers().diff(snapshot.id()).unwrap();
            layers.push(Descriptor::new(MediaType::OciLayer, id.diff_id.0.clone(), id.size));
            config.rootfs.diff_ids.push(id.diff_id);
        }
        let bytes = config.to_canonical_json();
        let digest = self.store.blobs().put_bytes(&bytes, &self.lease).unwrap();
        let descriptor = Descriptor::new(MediaType::OciConfig, digest.clone(), bytes.len() as u64);
        let manifest = serde_json::to_vec(&Manifest::new(descriptor, layers)).unwrap();
        let target = self.store.blobs().put_bytes(&manifest, &self.lease).unwrap();
        let target = Descriptor::new(MediaType::OciManifest, target, manifest.len() as u64);
        let names = names.iter().map(|name| Reference::parse(name).unwrap()).collect();
        self.store.images().put(&NewImage { target, config: digest, names }, &self.lease).unwrap()
    }

    fn save(&self, texts: &[&str]) -> Vec<u8> {
        let texts: Vec<String> = texts.iter().map(|text| (*text).to_owned()).collect();
        let images: Vec<Saved> = archive::select(&self.store, &texts).unwrap();
        let mut bytes = Vec::new();
        archive::save(&images, &self.store, &mut bytes).unwrap();
        bytes
    }

    fn load(&self, bytes: &[u8]) -> Result<Vec<Loaded>, StoreError> {
        archive::load(bytes, &self.store, &self.lease, &|_| {})
    }

    /// What a script shows in an image of this store.
    fn show_image(&self, image: &ImageRecord, script: &str) -> String {
        let (manifest, config, _) = self.store.images().manifest(image, &Platform::host()).unwrap();
        let snapshot = self.store.layers().unpack(&manifest, &config, &self.lease).unwrap().unwrap();
        self.show(&snapshot, script)
    }

    fn is_empty(&self) -> bool {
        self.store.blobs().list().unwrap().is_empty()
            && self.store.snapshots().list().unwrap().is_empty()
            && self.store.images().list().unwrap().is_empty()
    }
}

/// A docker archive made by hand: one layer, one tag.
fn docker_archive(layer: &[u8], extra: &[(rbuild_store::layers::tar::Entry, Vec<u8>)]) -> Vec<u8> {
    let config = config_for(&[layer]);
    let manifest = r#"[{"Config":"c.json","RepoTags":["by-hand:latest"],"Layers":["l/layer.tar"]}]"#;
    let mut members = vec![file("c.json", &config)];
    members.push((fixture::entry("l/layer.tar", kind(layer)), layer.to_vec()));
    members.extend_from_slice(extra);
    members.push(file("manifest.json", manifest));
    tar(&members)
}

fn kind(bytes: &[u8]) -> rbuild_store::layers::tar::EntryKind {
    rbuild_store::layers::tar::EntryKind::File { size: bytes.len() as u64 }
}

fn config_for(layers: &[&[u8]]) -> String {
    let ids: Vec<String> = layers.iter().map(|layer| format!("\"{}\"", Digest::sha256_of(layer))).collect();
    format!(
        r#"{{"architecture":"amd64","os":"linux","config":{{}},"rootfs":{{"type":"layers","diff_ids":[{}]}}}}"#,
        ids.join(",")
    )
}

/// A layer as GNU tar makes it, which our own writer would not give back.
fn foreign_layer() -> Vec<u8> {
    let temp = tempfile::tempdir().unwrap();
    std::fs::write(temp.path().join("hello"), "foreign").unwrap();
    let path = temp.path().join("layer.tar");
    let (ok, output) = run(
        "tar",
        &["--format=gnu", "-C", temp.path().to_str().unwrap(), "-cf", path.to_str().unwrap(), "./hello"],
        b"",
    );
    assert!(ok, "{output}");
    std::fs::read(path).unwrap()
}

#[test]
fn what_is_saved_comes_back() {
    let origin = TestStore::new(Driver::Overlay);
    let base = origin.change(None, "mkdir -p a/b; echo base >a/b/f; echo gone >gone");
    let top = origin.change(Some(&base), "rm gone; ln a/b/f a/g; chmod 4755 a/g; mkfifo p");
    let other = origin.change(Some(&base), "echo other >o");
    let first = origin.image(&[&base, &top], &["one", "example.com/two:x", "one:y"]);
    let second = origin.image(&[&base, &other], &["second"]);
    let saved = origin.save(&["one", "second", "one:y", "example.com/two:x"]);
    assert!(saved == origin.save(&["one", "second", "one:y", "example.com/two:x"]), "saving twice gives other bytes");
    let (ok, listing) = run("tar", &["-tf", "-"], &saved);
    assert!(ok, "{listing}");
    assert_eq!(
        listing.lines().filter(|l| l.starts_with("blobs/sha256/") && l.len() > 20).count(),
        3 + 2 + 2,
        "{listing}"
    );
    for driver in fixture::DRIVERS {
        let store = TestStore::new(driver);
        let loaded = store.load(&saved).unwrap();
        let targets: Vec<_> = loaded.iter().map(|image| image.record.target.clone()).collect();
        assert_eq!(targets, [first.target.clone(), second.target.clone()]);
        let names: Vec<String> = loaded[0].names.iter().map(Reference::familiar).collect();
        assert_eq!(names, ["one:latest", "one:y", "example.com/two:x"]);
        assert_eq!(loaded[0].record.id, first.id);
        let shown = store.show_image(&loaded[0].record, "cat a/b/f; stat -c '%a %h' a/g; ls -A; stat -c %F p");
        assert_eq!(shown, "base\n4755 2\na\np\nfifo\n", "{driver}");
        // Layers of ours are made again when they are wanted: only configs and manifests are blobs.
        assert_eq!(store.store.blobs().list().unwrap().len(), 4);
        assert!(store.save(&["one", "second", "one:y", "example.com/two:x"]) == saved, "{driver}");
    }
}

#[test]
fn an_image_without_name_is_saved_by_id() {
    let origin = TestStore::new(Driver::Overlay);
    let base = origin.change(None, "echo x >f");
    let image = origin.image(&[&base], &["named"]);
    let saved = origin.save(&[image.id.0.hex()]);
    let (_, manifest) = run("tar", &["-xOf", "-", "manifest.json"], &saved);
    assert!(manifest.contains("\"RepoTags\":null"), "{manifest}");
    let store = TestStore::new(Driver::Overlay);
    let loaded = store.load(&saved).unwrap();
    assert!(loaded[0].names.is_empty() && loaded[0].record.names.is_empty());
}

#[test]
fn foreign_layers_are_kept_as_they_came() {
    let layer = foreign_layer();
    let store = TestStore::new(Driver::Overlay);
    let loaded = store.load(&docker_archive(&layer, &[])).unwrap();
    assert_eq!(store.show_image(&loaded[0].record, "cat hello"), "foreign");
    let id = DiffId(Digest::sha256_of(&layer));
    let mut again = Vec::new();
    store.store.layers().open_diff(&id).unwrap().read_to_end(&mut again).unwrap();
    assert!(again == layer);
    // A build on top of it, saved and loaded elsewhere, still has that very layer.
    let (manifest, config, _) = store.store.images().manifest(&loaded[0].record, &Platform::host()).unwrap();
    let base = store.store.layers().unpack(&manifest, &config, &store.lease).unwrap().unwrap();
    let top = store.change(Some(&base), "echo more >more");
    let image = store.image(&[&base, &top], &["derived"]);
    let other = TestStore::new(Driver::Vfs);
    let derived = other.load(&store.save(&["derived"])).unwrap();
    assert_eq!(derived[0].record.id, image.id);
    assert_eq!(other.show_image(&derived[0].record, "cat hello more"), "foreignmore\n");
}

#[test]
fn any_compression_outside_and_inside() {
    let layer = foreign_layer();
    let plain = docker_archive(&layer, &[]);
    for program in ["gzip", "xz", "bzip2", "zstd"] {
        let temp = tempfile::tempdir().unwrap();
        let pack = |bytes: &[u8]| {
            let path = temp.path().join("packed");
            std::fs::write(&path, bytes).unwrap();
            let output = std::process::Command::new(program).arg("-c").arg(&path).output().unwrap();
            assert!(output.status.success());
            output.stdout
        };
        let store = TestStore::new(Driver::Overlay);
        let outside = store.load(&pack(&plain)).unwrap();
        assert_eq!(outside[0].names[0].familiar(), "by-hand:latest", "{program}");
        let inside = pack(&layer);
        let config = config_for(&[&layer]);
        let manifest = r#"[{"Config":"c.json","RepoTags":null,"Layers":["packed"]}]"#;
        let archive = tar(&[
            file("manifest.json", manifest),
            file("c.json", &config),
            (fixture::entry("packed", kind(&inside)), inside),
        ]);
        let store = TestStore::new(Driver::Overlay);
        let loaded = store.load(&archive).unwrap();
        assert_eq!(store.show_image(&loaded[0].record, "cat hello"), "foreign", "{program}");
        let again = TestStore::new(Driver::Overlay);
        let back = again.load(&store.save(&[loaded[0].record.id.0.hex()])).unwrap();
        assert_eq!(back[0].record.id, loaded[0].record.id, "{program}");
    }
}

#[test]
fn layers_that_are_links_to_layers() {
    let layer = foreign_layer();
    let config = config_for(&[&layer, &layer, &layer]);
    let manifest =
        r#"[{"Config":"./c.json","RepoTags":["twice:latest"],"Layers":["a/layer.tar","b/layer.tar","c/layer.tar"]}]"#;
    let archive = tar(&[
        file("manifest.json", manifest),
        symlink("b/layer.tar", "../a/layer.tar"),
        hard_link("c/layer.tar", "a/layer.tar"),
        (fixture::entry("a/layer.tar", kind(&layer)), layer.clone()),
        file("c.json", &config),
    ]);
    let store = TestStore::new(Driver::Overlay);
    let loaded = store.load(&archive).unwrap();
    assert_eq!(store.show_image(&loaded[0].record, "cat hello"), "foreign");
    assert_eq!(loaded[0].record.config.rootfs.diff_ids.len(), 3);
}

#[test]
fn archives_of_2013() {
    let (base, top) = ("b".repeat(64), "a".repeat(64));
    let layer = foreign_layer();
    let second = tar(&[file("added", "later")]);
    let json = |id: &str, parent: &str, cmd: &str| {
        format!(
            r#"{{"id":"{id}","parent":"{parent}","created":"2013-06-01T00:00:00Z","architecture":"amd64","os":"linux",
                "container_config":{{"Cmd":["/bin/sh","-c","{cmd}"]}},"config":{{"Env":["A=b"]}},"Size":1}}"#
        )
    };
    let archive = tar(&[
        file(&format!("{top}/VERSION"), "1.0"),
        file(&format!("{top}/json"), &json(&top, &base, "second")),
        (fixture::entry(&format!("{top}/layer.tar"), kind(&second)), second),
        file(&format!("{base}/json"), &json(&base, "", "first")),
        (fixture::entry(&format!("{base}/layer.tar"), kind(&layer)), layer),
        file("repositories", &format!(r#"{{"old/name":{{"v1":"{top}"}}}}"#)),
    ]);
    let store = TestStore::new(Driver::Overlay);
    let loaded = store.load(&archive).unwrap();
    assert_eq!(loaded[0].names[0].familiar(), "old/name:v1");
    let config = &loaded[0].record.config;
    assert_eq!(config.config.env, ["A=b"]);
    let by: Vec<&str> = config.history.iter().map(|entry| entry.created_by.as_str()).collect();
    assert_eq!(by, ["/bin/sh -c first", "/bin/sh -c second"]);
    assert_eq!(store.show_image(&loaded[0].record, "cat hello added"), "foreignlater");
}

#[test]
fn an_oci_layout_with_an_index_in_its_index() {
    let layer = foreign_layer();
    let blob = |bytes: &[u8]| {
        let digest = Digest::sha256_of(bytes);
        (digest.clone(), (fixture::entry(&format!("blobs/sha256/{}", digest.hex()), kind(bytes)), bytes.to_vec()))
    };
    let config = config_for(&[&layer]);
    let (config_digest, config_member) = blob(config.as_bytes());
    let (layer_digest, layer_member) = blob(&layer);
    let manifest = Manifest::new(
        Descriptor::new(MediaType::OciConfig, config_digest.clone(), config.len() as u64),
        vec![Descriptor::new(MediaType::OciLayer, layer_digest, layer.len() as u64)],
    );
    let manifest = serde_json::to_vec(&manifest).unwrap();
    let (manifest_digest, manifest_member) = blob(&manifest);
    let other = Digest::sha256_of(b"of another platform, not in the archive");
    let index = format!(
        r#"{{"schemaVersion":2,"mediaType":"application/vnd.oci.image.index.v1+json","manifests":[
            {{"mediaType":"application/vnd.oci.image.manifest.v1+json","digest":"{other}","size":5,"platform":{{"os":"linux","architecture":"s390x"}}}},
            {{"mediaType":"application/vnd.oci.image.manifest.v1+json","digest":"{manifest_digest}","size":{},"platform":{{"os":"linux","architecture":"amd64"}}}}]}}"#,
        manifest.len()
    );
    let (index_digest, index_member) = blob(index.as_bytes());
    let top = format!(
        r#"{{"schemaVersion":2,"manifests":[{{"mediaType":"application/vnd.oci.image.index.v1+json","digest":"{index_digest}","size":{},
            "annotations":{{"io.containerd.image.name":"docker.io/library/nested:v1","org.opencontainers.image.ref.name":"v1"}}}}]}}"#,
        index.len()
    );
    let archive = tar(&[
        layer_member,
        file("index.json", &top),
        file("oci-layout", r#"{"imageLayoutVersion":"1.0.0"}"#),
        index_member,
        manifest_member,
        config_member,
    ]);
    let store = TestStore::new(Driver::Overlay);
    let loaded = store.load(&archive).unwrap();
    assert_eq!(loaded[0].names[0].familiar(), "nested:v1");
    assert_eq!(loaded[0].record.target.digest, index_digest);
    assert_eq!(loaded[0].record.id.0, config_digest);
    assert_eq!(store.show_image(&loaded[0].record, "cat hello"), "foreign");
    // What is saved again is what is whole: the manifest.
    let again = TestStore::new(Driver::Overlay);
    let back = again.load(&store.save(&["nested:v1"])).unwrap();
    assert_eq!(back[0].record.target.digest, manifest_digest);
}

#[test]
fn what_is_wrong_is_refused_whole() {
    let layer = foreign_layer();
    let config = config_for(&[&layer]);
    let good = docker_archive(&layer, &[]);
    let member = |name: &str| (fixture::entry(name, kind(&layer)), layer.clone());
    let manifest = |config: &str, layers: &str| {
        file("manifest.json", &format!(r#"[{{"Config":"{config}","RepoTags":["x:y"],"Layers":[{layers}]}}]"#))
    };
    let bad_digest = format!("blobs/sha256/{}", "0".repeat(64));
    let truncated = good[..good.len() - 2048].to_vec();
    let trailing = [good.as_slice(), b"more"].concat();
    let mut flipped = good.clone();
    let at = flipped.windows(7).position(|w| w == b"foreign").unwrap();
    flipped[at] ^= 1;
    let cases: Vec<(&str, Vec<u8>, &str)> = vec![
        ("garbage", (0..5000u32).map(|n| ((n * 7919) >> 3) as u8).collect(), "no tar archive"),
        ("nothing", Vec::new(), "truncated"),
        ("no documents", tar(&[file("etc/passwd", "root")]), "neither manifest.json nor index.json"),
        ("truncated", truncated, "truncated"),
        ("trailing", trailing, "after the end mark"),
        ("flipped", flipped, "expected sha256"),
        (
            "twice",
            docker_archive(&layer, &[member("l/layer.tar")]),
            "l/layer.tar of the image archive: it is there twice",
        ),
        (
            "no layer",
            tar(&[file("c.json", &config), manifest("c.json", "\"gone/layer.tar\"")]),
            "gone/layer.tar is missing",
        ),
        ("no config", tar(&[manifest("gone.json", "")]), "gone.json is missing"),
        (
            "too few layers",
            tar(&[file("c.json", &config), manifest("c.json", "")]),
            "lists 0 layers for c.json, whose config has 1",
        ),
        ("host config", tar(&[manifest("../../../../etc/passwd", "")]), "../../../../etc/passwd"),
        (
            "host layer",
            tar(&[file("c.json", &config), manifest("c.json", "\"/etc/passwd\"")]),
            "/etc/passwd is missing",
        ),
        ("link out", tar(&[symlink("a/layer.tar", "../../../etc/passwd")]), "a link out of the archive"),
        ("absolute link", tar(&[symlink("a/layer.tar", "/etc/passwd")]), "a link out of the archive"),
        ("link circle", tar(&[symlink("c.json", "c.json"), manifest("c.json", "")]), "c.json"),
        ("wrong digest", tar(&[member(&bad_digest), manifest("c.json", "")]), "its content has another digest"),
        (
            "wrong config name",
            tar(&[
                file(&format!("{}.json", "0".repeat(64)), &config),
                manifest(&format!("{}.json", "0".repeat(64)), ""),
            ]),
            "another digest",
        ),
        (
            "bad name",
            tar(&[
                file("c.json", &config),
                member("l"),
                file("manifest.json", r#"[{"Config":"c.json","RepoTags":["UP/../x"],"Layers":["l"]}]"#),
            ]),
            "UP/../x",
        ),
        ("bad json", tar(&[file("manifest.json", "[{]")]), "manifest.json"),
        ("double key", tar(&[file("manifest.json", r#"[{"Config":"a","Config":"b"}]"#)]), "duplicate field"),
        ("bombs", tar(&[file("manifest.json", &"[".repeat(100_000))]), "manifest.json"),
    ];
    for (what, archive, message) in cases {
        let store = TestStore::new(Driver::Overlay);
        let error = store.load(&archive).expect_err(what);
        assert!(error.to_string().contains(message), "{what}: {error}");
        assert!(store.is_empty(), "{what} left something in the store");
    }
}

#[test]
fn a_bad_image_takes_the_good_one_with_it() {
    let layer = foreign_layer();
    let store = TestStore::new(Driver::Overlay);
    let manifest = r#"[{"Config":"c.json","RepoTags":["good:latest"],"Layers":["l"]},{"Config":"d.json","RepoTags":["bad:latest"],"Layers":["m"]}]"#;
    let wrong = config_for(&[b"something else"]);
    let archive = tar(&[
        file("manifest.json", manifest),
        file("c.json", &config_for(&[&layer])),
        file("d.json", &wrong),
        (fixture::entry("l", kind(&layer)), layer.clone()),
        (fixture::entry("m", kind(&layer)), layer),
    ]);
    assert!(store.load(&archive).is_err());
    assert!(store.is_empty());
}

#[test]
fn a_file_system_becomes_an_image() {
    for driver in fixture::DRIVERS {
        let store = TestStore::new(driver);
        let made = store
            .change(None, "mkdir -m 1777 tmp; mkfifo p; echo hi >f; ln f g; chown 77:88 f; touch -d @1000000000 f");
        let packed = {
            let mut gzip = Vec::new();
            let mut out =
                rbuild_store::layers::compress::Compressor::new(&mut gzip, rbuild_oci::Compression::Gzip, -1).unwrap();
            out.write_all(&store.tar(&made)).unwrap();
            out.finish().unwrap();
            gzip
        };
        let config = ImageConfig { os: "linux".into(), architecture: "amd64".into(), ..ImageConfig::default() };
        let names = vec![Reference::parse("imported").unwrap()];
        let image = archive::import(packed.as_slice(), config, names, &store.store, &store.lease).unwrap();
        assert_eq!(image.names[0].familiar(), "imported:latest");
        let shown = store.show_image(&image, "stat -c '%n %a %u:%g %Y %h' tmp f g p | cut -d' ' -f1-3,5; stat -c %Y g");
        assert_eq!(shown, "tmp 1777 0:0 2\nf 644 77:88 2\ng 644 77:88 2\np 644 0:0 1\n1000000000\n", "{driver}");
        let whiteout = tar(&[file("d/.wh.x", "")]);
        let error =
            archive::import(whiteout.as_slice(), ImageConfig::default(), Vec::new(), &store.store, &store.lease);
        assert!(error.unwrap_err().to_string().contains("d/.wh.x"));
    }
}

/// A docker archive of one image with these layers, in which equal layers are one member.
fn archive_of(layers: &[Vec<u8>]) -> Vec<u8> {
    let plain: Vec<&[u8]> = layers.iter().map(Vec::as_slice).collect();
    let mut members = vec![file("c.json", &config_for(&plain))];
    let mut names = Vec::new();
    for layer in layers {
        let name = format!("{}.tar", Digest::sha256_of(layer).hex());
        if !names.contains(&name) {
            members.push((fixture::entry(&name, kind(layer)), layer.clone()));
        }
        names.push(name);
    }
    let manifest = serde_json::json!([{ "Config": "c.json", "RepoTags": ["corpus:v1"], "Layers": names }]);
    members.push(file("manifest.json", &manifest.to_string()));
    tar(&members)
}

/// Through one store and another: the same image, and the same archive.
fn round_trip(layers: &[Vec<u8>], second: Driver) -> (TestStore, ImageRecord) {
    let (one, other) = (TestStore::new(Driver::Overlay), TestStore::new(second));
    let first = one.load(&archive_of(layers)).unwrap().remove(0).record;
    let wanted: Vec<DiffId> = layers.iter().map(|layer| DiffId(Digest::sha256_of(layer))).collect();
    assert_eq!(first.config.rootfs.diff_ids, wanted);
    let saved = one.save(&["corpus:v1"]);
    let second = other.load(&saved).unwrap().remove(0).record;
    assert_eq!((&second.id, &second.target.digest), (&first.id, &first.target.digest));
    assert!(other.save(&["corpus:v1"]) == saved, "the same image gives the same archive");
    (one, first)
}

#[test]
fn two_hundred_layers_some_empty_and_some_alike() {
    let layers: Vec<Vec<u8>> = (0..200)
        .map(|n| match n {
            n if n % 10 == 0 => tar(&[]),
            n if n % 7 == 0 => tar(&[file("shared", "the same")]),
            n => tar(&[file(&format!("file-{n}"), &n.to_string())]),
        })
        .collect();
    let (_, image) = round_trip(&layers, Driver::Overlay);
    assert_eq!(image.config.rootfs.diff_ids.len(), 200);
}

#[test]
fn long_names_attributes_and_deleted_directories() {
    let long = [vec!["x".repeat(249); 15].join("/"), "y".repeat(249)].join("/");
    assert_eq!(long.len(), 3999);
    let deep = (1..16).map(|n| vec!["x".repeat(249); n].join("/"));
    let mut below: Vec<_> = deep.map(|path| fixture::dir(&path)).collect();
    below.push(file(&long, "deep"));
    let mut marked = file("marked", "content");
    marked.0.xattrs.insert(b"user.colour".to_vec(), b"blue\0green".to_vec());
    // cap_net_bind_service, effective and permitted, in the kernel's form.
    let capability = [1, 0, 0, 2, 0, 4, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0];
    marked.0.xattrs.insert(b"security.capability".to_vec(), capability.to_vec());
    below.extend([marked, fixture::dir("gone"), fixture::dir("gone/sub"), file("gone/sub/file", "x")]);
    below.extend([fixture::dir("opaque"), file("opaque/old", "x")]);
    let above =
        [file(".wh.gone", ""), fixture::dir("opaque"), file("opaque/.wh..wh..opq", ""), file("opaque/new", "n")];
    let (store, image) = round_trip(&[tar(&below), tar(&above)], Driver::Vfs);
    let script = "ls -d gone 2>/dev/null || true; ls opaque; find . -type f -name 'y*' | wc -c";
    assert_eq!(store.show_image(&image, script), format!("new\n{}\n", long.len() + 3));
}

#[test]
fn a_sparse_file_over_eight_gigabytes() {
    let store = TestStore::new(Driver::Overlay);
    let outside = store.outside().to_str().unwrap().to_owned();
    let make = "cd \"$0\" && mkdir t && truncate -s 9000000000 t/holes && printf end >> t/holes && tar -S -C t -cf sparse.tar holes";
    let (made, said) = run("sh", &["-c", make, &outside], b"");
    assert!(made, "{said}");
    let layer = std::fs::read(store.outside().join("sparse.tar")).unwrap();
    assert!(layer.len() < 100_000, "GNU tar left the holes out");
    let loaded = store.load(&archive_of(std::slice::from_ref(&layer))).unwrap().remove(0).record;
    assert_eq!(loaded.config.rootfs.diff_ids, [DiffId(Digest::sha256_of(&layer))]);
    let script = "stat -c %s holes; tail -c 3 holes; test $(stat -c %b holes) -lt 1000 && echo ' holes'";
    assert_eq!(store.show_image(&loaded, script), "9000000003\nend holes\n");
    let again = store.save(&["corpus:v1"]);
    assert!(again.len() < 200_000, "what came sparse goes sparse");
}
