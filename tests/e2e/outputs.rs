//! What becomes of a build's result.

use std::fs;
use std::path::Path;

use serde_json::Value;

use crate::registry::Registry;
use crate::scene::Scene;

fn json(path: impl AsRef<Path>) -> Value {
    serde_json::from_slice(&fs::read(path).unwrap()).unwrap()
}

fn blob(layout: &Path, descriptor: &Value) -> Value {
    let digest = descriptor["digest"].as_str().unwrap().strip_prefix("sha256:").unwrap();
    json(layout.join("blobs/sha256").join(digest))
}

#[test]
fn one_build_has_several_outputs() {
    let scene = Scene::new();
    let text = "FROM scratch\nCOPY f /d/f\n";
    scene.write("ctx/Dockerfile", text);
    let dir = scene.write("ctx/f", "data").parent().unwrap().parent().unwrap().to_owned();
    let at = |name: &str| dir.join(name);
    let layout = format!("type=oci,tar=false,dest={},compression=zstd,annotation.a=b", at("layout").display());
    let files = at("files").display().to_string();
    let tar = format!("type=tar,dest={}", at("files.tar").display());
    let meta = at("meta.json").display().to_string();
    let all = ["-o", &layout, "-o", &files, "-o", &tar, "-o", "type=image,name=some", "--metadata-file", &meta];
    scene.rb(&[&["build", "-t", "unused"], &all[..], &["ctx"]].concat()).ok();
    assert_eq!(fs::read_to_string(at("files/d/f")).unwrap(), "data");
    let mut archive = tar::Archive::new(fs::File::open(at("files.tar")).unwrap());
    let names: Vec<String> =
        archive.entries().unwrap().map(|e| e.unwrap().path().unwrap().display().to_string()).collect();
    assert!(names.iter().any(|name| name == "d/f"), "{names:?}");
    let index = json(at("layout/index.json"));
    let manifest = blob(&at("layout"), &index["manifests"][0]);
    assert_eq!(manifest["layers"][0]["mediaType"], "application/vnd.oci.image.layer.v1.tar+zstd");
    assert_eq!(manifest["annotations"]["a"], "b");
    let meta = json(at("meta.json"));
    assert_eq!(meta["image.name"], "docker.io/library/some:latest");
    assert_eq!(meta["containerimage.config.digest"], scene.inspect("some")["Id"]);
    scene.rb(&["inspect", "unused"]).refused(1, &["unused"]);
}

#[test]
fn an_archive_is_there_whole_or_not_at_all() {
    let scene = Scene::with_busybox();
    scene.write("ctx/Dockerfile", "FROM busybox\nRUN false\n");
    let old = scene.write("old.tar", "kept");
    let dest = format!("type=oci,dest={}", old.display());
    scene.rb(&["build", "-o", &dest, "ctx"]).refused(1, &["exit code: 1"]);
    assert_eq!(fs::read_to_string(&old).unwrap(), "kept");
    let names: Vec<_> = fs::read_dir(old.parent().unwrap()).unwrap().map(|e| e.unwrap().file_name()).collect();
    assert!(!names.iter().any(|name| name.to_string_lossy().contains(".part")), "{names:?}");
}

#[test]
fn several_platforms_make_an_index() {
    let scene = Scene::new();
    let dir = scene.write("ctx/Dockerfile", "FROM scratch\nARG TARGETARCH\nCOPY ${TARGETARCH} /arch\n");
    let dir = dir.parent().unwrap().parent().unwrap().to_owned();
    scene.write("ctx/amd64", "x86");
    scene.write("ctx/arm64", "arm");
    let layout = dir.join("layout");
    let oci = format!("type=oci,tar=false,dest={}", layout.display());
    let files = dir.join("files");
    let both = ["build", "--platform", "linux/amd64,linux/arm64"];
    let outputs = ["-o", &oci, "-o", files.to_str().unwrap(), "--annotation", "index:k=v", "ctx"];
    scene.rb(&[&both[..], &outputs].concat()).ok();
    let index = blob(&layout, &json(layout.join("index.json"))["manifests"][0]);
    let platforms: Vec<_> =
        index["manifests"].as_array().unwrap().iter().map(|m| m["platform"]["architecture"].clone()).collect();
    assert_eq!(platforms, ["amd64", "arm64"]);
    assert_eq!(index["annotations"]["k"], "v");
    assert_eq!(fs::read_to_string(files.join("linux_arm64/arch")).unwrap(), "arm");
    assert_eq!(fs::read_to_string(files.join("linux_amd64/arch")).unwrap(), "x86");
    let docker = format!("type=docker,dest={}", dir.join("d.tar").display());
    scene.rb(&[&both[..], &["-o", &docker, "ctx"]].concat()).refused(1, &["manifest lists"]);
    scene.rb(&["build", "--annotation", "index:k=v", "ctx"]).refused(1, &["index annotations not supported"]);
}

#[test]
fn outputs_that_cannot_be_are_named() {
    let scene = Scene::new();
    scene.write("ctx/Dockerfile", "FROM scratch\n");
    scene.rb(&["build", "--push", "ctx"]).refused(1, &["tag is needed when pushing to registry"]);
    scene.rb(&["build", "-o", "type=local", "ctx"]).refused(1, &["dest is required for local exporter"]);
    scene.rb(&["build", "-o", "type=no", "ctx"]).refused(1, &["exporter \"no\" could not be found"]);
    scene.rb(&["build", "-o", "type=cacheonly", "-t", "n", "ctx"]).ok();
    scene.rb(&["inspect", "n"]).refused(1, &["n"]);
}

const BOTH: [&str; 3] = ["build", "--platform", "linux/amd64,linux/arm64"];

fn two_platforms() -> Scene {
    let scene = Scene::new();
    scene.write("ctx/Dockerfile", "FROM scratch\nARG TARGETARCH\nCOPY ${TARGETARCH} /arch\n");
    scene.write("ctx/amd64", "x86");
    scene.write("ctx/arm64", "arm");
    scene
}

#[test]
fn annotations_go_where_they_are_wanted() {
    let scene = two_platforms();
    let layout = scene.work().join("layout");
    let output = format!("type=oci,tar=false,dest={},annotation-index-descriptor.id=v", layout.display());
    let notes = ["manifest:m=1", "manifest-descriptor[linux/arm64]:md=2", "index:i=3", "manifest[linux/amd64]:only=4"];
    let notes: Vec<&str> = notes.iter().flat_map(|note| ["--annotation", note]).collect();
    scene.rb(&[&BOTH[..], &["-o", &output], &notes, &["ctx"]].concat()).ok();
    let root = json(layout.join("index.json"));
    assert_eq!(root["manifests"][0]["annotations"]["id"], "v");
    let index = blob(&layout, &root["manifests"][0]);
    assert_eq!(index["annotations"]["i"], "3");
    assert_eq!(index["manifests"][0]["annotations"]["md"], Value::Null);
    assert_eq!(index["manifests"][1]["annotations"]["md"], "2");
    let manifests = [0, 1].map(|at| blob(&layout, &index["manifests"][at])["annotations"].clone());
    assert_eq!(manifests, [serde_json::json!({"m": "1", "only": "4"}), serde_json::json!({"m": "1"})]);
    let bad = [&BOTH[..], &["-o", &output, "--annotation", "index[linux/amd64]:k=v", "ctx"]].concat();
    scene.rb(&bad).refused(1, &["annotation k is for an index", "linux/amd64 alone"]);
}

#[test]
fn an_image_can_have_dockers_types() {
    let scene = two_platforms();
    let layout = scene.work().join("layout");
    let output = format!("type=oci,tar=false,oci-mediatypes=false,dest={}", layout.display());
    scene.rb(&["build", "--build-arg", "TARGETARCH=amd64", "-o", &output, "ctx"]).ok();
    let entry = json(layout.join("index.json"))["manifests"][0].clone();
    assert_eq!(entry["mediaType"], "application/vnd.docker.distribution.manifest.v2+json");
    let manifest = blob(&layout, &entry);
    assert_eq!(manifest["mediaType"], entry["mediaType"]);
    assert_eq!(manifest["config"]["mediaType"], "application/vnd.docker.container.image.v1+json");
    assert_eq!(manifest["layers"][0]["mediaType"], "application/vnd.docker.image.rootfs.diff.tar.gzip");
    let said = scene.rb(&["build", "-o", &output, "--annotation", "a=b", "ctx"]).ok();
    assert!(said.err.contains("forcibly turning on oci-mediatype mode for annotations"), "{said:?}");
    let entry = &json(layout.join("index.json"))["manifests"][0];
    assert_eq!(entry["mediaType"], "application/vnd.oci.image.manifest.v1+json");
}

#[test]
fn archives_of_files_hold_all_platforms() {
    let scene = two_platforms();
    scene.rb(&[&BOTH[..], &["-o", "type=tar,dest=all.tar", "ctx"]].concat()).ok();
    let mut archive = tar::Archive::new(fs::File::open(scene.work().join("all.tar")).unwrap());
    let mut found: Vec<(String, String)> = Vec::new();
    for entry in archive.entries().unwrap() {
        let mut entry = entry.unwrap();
        let mut text = String::new();
        std::io::Read::read_to_string(&mut entry, &mut text).unwrap();
        found.push((entry.path().unwrap().display().to_string(), text));
    }
    let want = [("linux_amd64/", ""), ("linux_amd64/arch", "x86"), ("linux_arm64/", ""), ("linux_arm64/arch", "arm")];
    assert_eq!(found, want.map(|(name, text)| (name.to_owned(), text.to_owned())));
    let mixed = [&BOTH[..], &["-o", "type=tar,dest=x.tar,platform-split=false", "ctx"]].concat();
    scene.rb(&mixed).refused(1, &["cannot go to one place without platform-split"]);
}

#[test]
fn a_directory_can_be_made_equal_to_the_result() {
    let scene = two_platforms();
    let old = scene.write("out/old", "old");
    let delete = ["build", "--build-arg", "TARGETARCH=amd64", "-o", "type=local,dest=out,mode=delete", "ctx"];
    scene.rb(&delete).refused(1, &["removes files that the result does not have", "--allow buildx.local.delete"]);
    assert!(old.exists());
    scene.rb(&[&delete[..5], &["--allow", "buildx.local.delete", "ctx"]].concat()).ok();
    assert!(!old.exists());
    assert_eq!(fs::read_to_string(scene.work().join("out/arch")).unwrap(), "x86");
}

#[test]
fn what_is_pushed_is_what_was_built() {
    let scene = two_platforms();
    let registry = Registry::start();
    let (whole, bare) = (registry.name("whole:v1"), registry.name("bare"));
    let attested = ["--provenance=mode=min", "--push", "-t", &whole, "--metadata-file", "meta.json", "ctx"];
    scene.rb(&[&BOTH[..], &attested].concat()).ok();
    let meta = json(scene.work().join("meta.json"));
    let raw = scene.rb(&["imagetools", "inspect", "--raw", &whole]).ok().out;
    let index: Value = serde_json::from_str(&raw).unwrap();
    assert_eq!(index["manifests"].as_array().unwrap().len(), 4, "{raw}");
    let digest = index["manifests"][0]["digest"].clone();
    assert_eq!(index["manifests"][2]["annotations"]["vnd.docker.reference.digest"], digest);
    assert_eq!(meta["containerimage.digest"], meta["containerimage.descriptor"]["digest"]);
    assert!(meta["buildx.build.provenance/linux/arm64"].is_object(), "{meta}");
    let other = scene.work().join("other").display().to_string();
    scene.rb(&["--root", &other, "pull", "--platform", "linux/arm64", &whole]).ok();

    let output = format!("type=image,name={bare},push=true,push-by-digest=true,name-canonical=true");
    let one = ["build", "--build-arg", "TARGETARCH=amd64", "-o", &output, "--metadata-file", "meta.json", "ctx"];
    scene.rb(&one).ok();
    let digest = json(scene.work().join("meta.json"))["containerimage.digest"].as_str().unwrap().to_owned();
    scene.rb(&["imagetools", "inspect", &format!("{bare}@{digest}")]).ok();
    scene.rb(&["imagetools", "inspect", &format!("{bare}:latest")]).refused(1, &["not found"]);
}

#[test]
fn wrong_requests_are_named_before_anything_is_built() {
    let scene = two_platforms();
    scene.write("file", "");
    for (options, want) in [
        (&["--platform", "linux/amd64/x/y"][..], "linux/amd64/x/y"),
        (&["-t", "UPPER"], "invalid tag \"UPPER\""),
        (&["-o", "type=tar,dest=a", "-o", "type=tar,dest=a"], "duplicate output destination: a"),
        (&["-o", "file"], "destination directory file is a file"),
        (&["-o", "type=oci,dest=ctx"], "destination file ctx is a directory"),
        (&["-o", "type=oci,compression=lzma"], "unsupported compression type lzma"),
        (&["--resource", "gpu=1"], "unknown resource \"gpu\""),
        (&["--memory", "1m"], "Minimum memory limit allowed is 6MB"),
        (&["--builder", "other"], "no builder \"other\" found"),
        (&["--allow", "everything"], "unknown entitlement everything"),
        (&["--secret", "id=x,src=/no/such"], "/no/such"),
        (&["-f", "no.Dockerfile"], "no.Dockerfile: no such file or directory"),
        (&["-f", "/dev/null/x"], "/dev/null/x"),
        (&["-f", "ctx"], "ctx: it is no regular file"),
    ] {
        let said = scene.rb(&[&["build", "-t", "never"], options, &["ctx"]].concat()).refused(1, &[want]);
        assert!(!said.err.contains("COPY"), "{said:?}");
    }
    fs::File::create(scene.work().join("huge")).unwrap().set_len(1 << 40).unwrap();
    scene.rb(&["build", "-f", "huge", "ctx"]).refused(1, &["cannot read huge: it has 1099511627776 bytes", "limit"]);
    scene.rb(&["build", "file"]).refused(1, &["context must be a directory: file"]);
    scene.rb(&["build", "nowhere"]).refused(1, &["path \"nowhere\" not found"]);
    scene.rb(&["inspect", "never"]).refused(1, &["never"]);
}

#[test]
fn limits_hold_for_each_step() {
    let scene = Scene::with_busybox();
    scene.write("ctx/Dockerfile", "FROM busybox\nRUN --network=none tail /dev/zero\n");
    let said = scene.rb(&["build", "--memory", "32m", "ctx"]).refused(1, &["tail /dev/zero"]);
    assert!(said.err.contains("memory") || said.err.contains("137"), "{said:?}");
}

#[test]
fn layers_are_made_one() {
    let scene = Scene::with_busybox();
    scene.write(
        "Dockerfile",
        "FROM busybox\nRUN mkdir /d && printf gone%sfrom%severy-layer - - >/d/gone && echo 1 >/d/kept && ln /d/kept /d/twin\n\
         ENV A=b\nRUN rm /d/gone && rm /bin/cat && chmod 700 /d\n",
    );
    let build = |options: &[&str]| scene.rb(&[&["build", "--network", "none"], options, &["."]].concat());
    build(&["-t", "plain"]).ok();
    build(&["-t", "new", "--squash"]).ok();
    build(&["-t", "all", "--squash-all"]).ok();
    let layers = |name: &str| scene.inspect(name)["RootFS"]["Layers"].as_array().expect("layers").clone();
    let base = layers("busybox");
    assert_eq!((layers("plain").len(), layers("new").len(), layers("all").len()), (base.len() + 2, base.len() + 1, 1));
    assert_eq!(layers("new")[..base.len()], base, "the base stays what it is");
    let look = "cd / && find d root tmp | sort | xargs ls -ldn | awk '{print $1, ($1 ~ /^-/ ? $2 : 0), $3, $4, $NF}'; \
                ls bin | wc -l; head -n 1 /d/twin; echo $A";
    let plain = scene.in_image("plain", look);
    assert!(plain.contains("drwx------") && plain.contains("-rw-r--r-- 2 0 0 d/twin"), "{plain}");
    assert_eq!(scene.in_image("new", look), plain);
    assert_eq!(scene.in_image("all", look), plain);
    let archive = scene.work().join("new.tar");
    scene.rb(&["save", "-o", archive.to_str().expect("UTF-8"), "new"]).ok();
    let bytes = std::fs::read(archive).expect("saved");
    assert!(!bytes.windows(21).any(|part| part == b"gone-from-every-layer"), "what was removed is in no layer");
    let history = scene.rb(&["history", "--format", "{{.Comment}}|{{.CreatedBy}}", "--no-trunc", "new"]).ok().out;
    assert!(history.starts_with("2 layers squashed|\n"), "{history}");
    // The same again is the same image, and a squash of what has one layer is that.
    build(&["-t", "again", "--squash"]).ok();
    assert_eq!(layers("again"), layers("new"));
    scene.write("Dockerfile", "FROM busybox\nRUN echo >/one\n");
    build(&["-t", "one"]).ok();
    build(&["-t", "one-squashed", "--squash"]).ok();
    assert_eq!(layers("one-squashed"), layers("one"));
    build(&["--squash", "--cache-to", "type=inline"]).refused(1, &["--squash and --cache-to type=inline"]);
}
