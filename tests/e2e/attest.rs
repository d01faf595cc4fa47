//! Statements that go with a result: where they are, what they say, and what they must not say.

use std::fs;
use std::path::Path;

use serde_json::Value;

use crate::scene::Scene;

const IN_TOTO: &str = "https://in-toto.io/Statement/v1";

fn json(path: impl AsRef<Path>) -> Value {
    serde_json::from_slice(&fs::read(path).unwrap()).unwrap()
}

fn blob(layout: &Path, descriptor: &Value) -> Value {
    let digest = descriptor["digest"].as_str().unwrap().strip_prefix("sha256:").unwrap();
    json(layout.join("blobs/sha256").join(digest))
}

/// The index of the only image of a layout.
fn index(layout: &Path) -> Value {
    blob(layout, &json(layout.join("index.json"))["manifests"][0])
}

/// The statements about the first image of an index.
fn statements(layout: &Path) -> Vec<Value> {
    let index = index(layout);
    let (image, about) = (&index["manifests"][0], &index["manifests"][1]);
    assert_eq!(about["annotations"]["vnd.docker.reference.type"], "attestation-manifest");
    assert_eq!(about["annotations"]["vnd.docker.reference.digest"], image["digest"]);
    assert_eq!(about["platform"]["os"], "unknown");
    let manifest = blob(layout, about);
    let layers = manifest["layers"].as_array().unwrap();
    let all: Vec<Value> = layers.iter().map(|layer| blob(layout, layer)).collect();
    for (layer, statement) in layers.iter().zip(&all) {
        assert_eq!(statement["_type"], IN_TOTO);
        assert_eq!(layer["annotations"]["in-toto.io/predicate-type"], statement["predicateType"]);
        let digest = format!("sha256:{}", statement["subject"][0]["digest"]["sha256"].as_str().unwrap());
        assert_eq!(image["digest"], digest);
    }
    all
}

fn project() -> Scene {
    let scene = Scene::with_busybox();
    scene.write("ctx/f", "data\n");
    scene.write(
        "ctx/Dockerfile",
        "FROM busybox AS base\nARG WHO=nobody\nRUN --network=none echo $WHO >/who && touch -d @1000000000 /who /\n\
         FROM scratch\nCOPY --from=base /who /\nCOPY f /\n",
    );
    filetime(&scene);
    scene
}

/// The context's file is as old in every run.
fn filetime(scene: &Scene) {
    let file = fs::File::options().write(true).open(scene.work().join("ctx/f")).unwrap();
    file.set_modified(std::time::UNIX_EPOCH + std::time::Duration::from_secs(1_000_000_000)).unwrap();
}

fn layout_of(scene: &Scene, name: &str, options: &[&str]) -> std::path::PathBuf {
    let layout = scene.work().join(name);
    let output = format!("type=oci,tar=false,dest={}", layout.display());
    scene.rb(&[&["build", "-o", &output], options, &["ctx"]].concat()).ok();
    layout
}

#[test]
fn the_least_provenance_is_the_same_every_time() {
    let scene = project();
    let options = ["--provenance=mode=min", "-t", "name:v1", "--build-arg", "WHO=somebody"];
    let first = layout_of(&scene, "first", &[&options[..], &["--no-cache"]].concat());
    let second = layout_of(&scene, "second", &[&options[..], &["--no-cache"]].concat());
    assert_eq!(fs::read(first.join("index.json")).unwrap(), fs::read(second.join("index.json")).unwrap());
    let [statement] = statements(&first).try_into().unwrap();
    assert_eq!(statement["predicateType"], "https://slsa.dev/provenance/v1");
    let name = statement["subject"][0]["name"].as_str().unwrap();
    assert!(name.starts_with("pkg:docker/name@v1?platform=linux%2F"), "{name}");
    let definition = &statement["predicate"]["buildDefinition"];
    let base = definition["resolvedDependencies"][0]["uri"].as_str().unwrap();
    assert!(base.starts_with("pkg:docker/busybox@latest?platform="), "{base}");
    assert_eq!(definition["externalParameters"]["configSource"]["path"], "Dockerfile");
    assert!(!statement.to_string().contains("somebody"), "{statement}");
}

#[test]
fn the_most_provenance_has_the_file_and_its_steps() {
    let scene = project();
    let options =
        ["--attest", "type=provenance,mode=max,version=v0.2,builder-id=https://ci/1", "--build-arg", "WHO=me"];
    let layout = layout_of(&scene, "layout", &options);
    let [statement] = statements(&layout).try_into().unwrap();
    assert_eq!(statement["predicateType"], "https://slsa.dev/provenance/v0.2");
    let predicate = &statement["predicate"];
    assert_eq!(predicate["builder"]["id"], "https://ci/1");
    assert_eq!(predicate["invocation"]["parameters"]["args"]["build-arg:WHO"], "me");
    let steps = predicate["buildConfig"]["llbDefinition"].as_array().unwrap();
    let run = steps.iter().find(|step| step["op"]["Op"]["exec"].is_object()).unwrap();
    assert_eq!(run["op"]["Op"]["exec"]["meta"]["args"][0], "/bin/sh");
    assert_eq!(run["op"]["Op"]["exec"]["network"], "NONE");
    assert!(predicate["metadata"]["buildStartedOn"].is_string());
    // The layers are the ones that travel.
    let manifest = blob(&layout, &index(&layout)["manifests"][0]);
    let known = &predicate["metadata"]["https://mobyproject.org/buildkit@v1#metadata"]["layers"];
    let known = known.as_object().unwrap().values().next().unwrap();
    assert_eq!(known[0][0]["digest"], manifest["layers"][0]["digest"]);
    assert_eq!(known[0][0]["mediaType"], "application/vnd.oci.image.layer.v1.tar+gzip");

    // A fixed date stands for a result that does not depend on the time.
    let epoch = [&options[..], &["--build-arg", "SOURCE_DATE_EPOCH=1700000000", "--no-cache"]].concat();
    let (one, two) = (layout_of(&scene, "one", &epoch), layout_of(&scene, "two", &epoch));
    assert_eq!(fs::read(one.join("index.json")).unwrap(), fs::read(two.join("index.json")).unwrap());
}

#[test]
fn packages_are_listed() {
    let scene = Scene::with_busybox();
    scene.write("ctx/status", "Package: bash\nStatus: install ok installed\nArchitecture: amd64\nVersion: 5.2-1\n");
    scene.write("ctx/os-release", "ID=debian\nVERSION_ID=12\n");
    scene.write("ctx/Dockerfile", "FROM scratch\nCOPY status /var/lib/dpkg/status\nCOPY os-release /etc/os-release\n");
    let layout = layout_of(&scene, "layout", &["--sbom=true", "--provenance=mode=min"]);
    let [packages, provenance] = statements(&layout).try_into().unwrap();
    assert_eq!(packages["predicateType"], "https://spdx.dev/Document");
    assert_eq!(packages["predicate"]["spdxVersion"], "SPDX-2.3");
    let package = &packages["predicate"]["packages"][0];
    assert_eq!((&package["name"], &package["versionInfo"]), (&"bash".into(), &"5.2-1".into()));
    let url = &package["externalRefs"][0]["referenceLocator"];
    assert_eq!(*url, "pkg:deb/debian/bash@5.2-1?arch=amd64&distro=debian-12");
    assert_eq!(provenance["predicateType"], "https://slsa.dev/provenance/v1");
}

#[test]
fn an_attested_image_is_an_image_like_others() {
    let scene = Scene::with_busybox();
    scene.write("ctx/Dockerfile", "FROM busybox\nRUN --network=none echo attested >/word\n");
    let said = scene.rb(&["build", "-q", "-t", "made", "--provenance=true", "--iidfile", "id", "ctx"]).ok();
    assert_eq!(said.out.trim(), fs::read_to_string(scene.work().join("id")).unwrap());
    assert_eq!(scene.in_image("made", "cat /word"), "attested\n");
    let listed = scene.rb(&["images", "-q", "--no-trunc", "made"]).ok().out;
    assert_eq!(listed, said.out);
    // A base image with statements is a base image.
    scene.write("next/Dockerfile", "FROM made\nRUN --network=none cat /word >/again\n");
    scene.rb(&["build", "-t", "next", "next"]).ok();
    assert_eq!(scene.in_image("next", "cat /again"), "attested\n");
    // Statements go along, and what reads the archive finds one image.
    scene.rb(&["save", "-o", "made.tar", "made"]).ok();
    let other = scene.work().join("other").display().to_string();
    let loaded = scene.rb(&["--root", &other, "load", "-i", "made.tar"]).ok();
    assert_eq!(loaded.out, "Loaded image: made:latest\n");
    scene.rb(&["--root", &other, "save", "-o", "again.tar", "made"]).ok();
    let read = |name: &str| fs::read(scene.work().join(name)).unwrap();
    assert!(read("made.tar") == read("again.tar"), "an archive that was loaded and saved is another");
    scene.rb(&["rmi", "next", "made"]).ok();
    scene.rb(&["image", "prune", "-f"]).ok();
    assert_eq!(scene.rb(&["images", "-q"]).ok().out.lines().count(), 1);
}

#[test]
fn files_have_their_statements_beside_them() {
    let scene = project();
    let at = |name: &str| scene.work().join(name);
    scene.rb(&["build", "--provenance=true", "--sbom=true", "-o", "out", "ctx"]).ok();
    let statement = json(at("out/provenance.json"));
    let names: Vec<&str> =
        statement["subject"].as_array().unwrap().iter().map(|s| s["name"].as_str().unwrap()).collect();
    assert_eq!(names, ["f", "who"]);
    assert_eq!(json(at("out/sbom.spdx.json"))["predicateType"], "https://spdx.dev/Document");
    scene.rb(&["build", "--provenance=inline-only=true", "-o", "inline", "ctx"]).ok();
    assert!(!at("inline/provenance.json").exists() && at("inline/f").exists());
    scene.rb(&["build", "--provenance=filename=p.json", "-o", "type=tar,dest=t.tar", "ctx"]).ok();
    let mut archive = tar::Archive::new(fs::File::open(at("t.tar")).unwrap());
    let names: Vec<String> =
        archive.entries().unwrap().map(|e| e.unwrap().path().unwrap().display().to_string()).collect();
    assert!(names.contains(&"p.json".to_owned()) && names.contains(&"who".to_owned()), "{names:?}");
    scene.write("ctx/provenance.json", "mine");
    scene.write("ctx/Dockerfile", "FROM scratch\nCOPY provenance.json /\n");
    let clash = ["build", "--provenance=true", "-o", "clash", "ctx"];
    scene.rb(&clash).refused(1, &["the result has a file /provenance.json itself", "filename=NAME"]);
}

#[test]
fn what_cannot_be_attested_is_said_before_the_build() {
    let scene = project();
    for (options, want) in [
        (&["--sbom=generator=scanner"][..], "option generator of attestation type=sbom is not supported"),
        (&["--attest", "type=provenance", "--provenance=true"], "duplicate attestation field provenance"),
        (&["--provenance=mode=all"], "invalid mode \"all\""),
        (&["--provenance=true", "-o", "type=docker,dest=d.tar"], "does not currently support exporting manifest lists"),
    ] {
        let said = scene.rb(&[&["build"], options, &["ctx"]].concat()).refused(1, &[want]);
        assert!(!said.err.contains("FROM"), "{said:?}");
    }
}
