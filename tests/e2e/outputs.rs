//! What becomes of a build's result.

use std::fs;
use std::path::Path;

use serde_json::Value;

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
