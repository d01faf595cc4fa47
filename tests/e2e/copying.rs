//! `copy`: images from any place to any other, and what of them stays behind.

use crate::registry::Registry;
use crate::scene::Scene;
use crate::side_by_side::Docker;

/// The name of every image and nothing else that is in the store.
fn names(scene: &Scene) -> Vec<String> {
    let said = scene.rb(&["images", "-a", "--format", "{{.Repository}}:{{.Tag}}"]).ok().out;
    let mut names: Vec<String> = said.lines().map(str::to_owned).collect();
    names.sort();
    names
}

fn digest(said: &str) -> String {
    said.lines().find_map(|line| line.strip_prefix("Digest: ")).expect("a digest").to_owned()
}

fn build(scene: &Scene, platforms: &str) {
    scene.write("f", "content\n");
    scene.write("Dockerfile", "FROM scratch\nCOPY f /f\nLABEL a=b\nCMD [\"/f\"]\n");
    scene.rb(&["build", "-q", "--platform", platforms, "-t", "app:v1", "."]).ok();
}

/// Around all places there are: the same digest at each, and the store has no more than before.
#[test]
fn an_image_is_the_same_at_every_place() {
    let scene = Scene::new();
    build(&scene, "linux/amd64");
    let registry = Registry::start();
    let (team, twin) = (format!("docker://{}", registry.name("team/app:v1")), registry.name("twin/app:v2"));
    let twin = format!("docker://{twin}");
    let way = [
        "app:v1",
        "oci:layout:one",
        "oci-archive:layout.tar",
        "docker-archive:docker.tar:named:v3",
        team.as_str(),
        twin.as_str(),
        "oci:layout:two",
        "oci-archive:last.tar:quay.example/x:v9",
    ];
    let mut known = None;
    for step in way.windows(2) {
        let said = scene.rb(&["copy", step[0], step[1]]).ok().out;
        assert!(said.ends_with(&format!("Status: Copied {} to {}\n", step[0], step[1])), "{said}");
        // Pushed, the layer is compressed: from there on it is another manifest of the same image.
        if step[1] == team {
            known = None;
        }
        let digest = digest(&said);
        assert_eq!(*known.get_or_insert(digest.clone()), digest, "{step:?}");
        assert_eq!(names(&scene), ["app:v1"], "{step:?}");
    }
    let id = scene.inspect("app:v1")["Id"].clone();
    scene.rb(&["copy", "-q", "oci-archive:last.tar:quay.example/x:v9", "back"]).ok();
    assert_eq!(scene.inspect("back")["Id"], id);
    scene.rb(&["rmi", "app:v1", "back"]).ok();
    scene.rb(&["copy", &twin, "again"]).ok();
    assert_eq!(scene.inspect("again")["Id"], id);
    assert_eq!(names(&scene), ["again:latest"]);
    let index = std::fs::read_to_string(scene.work().join("layout/index.json")).expect("an index");
    assert!(index.contains("\"one\"") && index.contains("\"two\""), "{index}");
    scene.rb(&["system", "check"]).ok();
}

/// An image for two platforms stays one where it can, and one is taken where a place has room for one.
#[test]
fn platforms_stay_together_where_they_can() {
    let scene = Scene::new();
    build(&scene, "linux/amd64,linux/arm64");
    let registry = Registry::start();
    let team = format!("docker://{}", registry.name("team/app:v1"));
    let platforms = |name: &str| {
        let said = scene.rb(&["imagetools", "inspect", "--raw", name.trim_start_matches("docker://")]).ok().out;
        ["amd64", "arm64"].iter().filter(|&&platform| said.contains(&format!("\"{platform}\""))).count()
    };
    scene.rb(&["copy", "app:v1", "oci:layout:v1"]).ok();
    scene.rb(&["copy", "oci:layout:v1", &team]).ok();
    assert_eq!(platforms(&team), 2);
    scene.rb(&["copy", &team, "oci-archive:both.tar:v1"]).ok();
    let both = format!("docker://{}", registry.name("both/app:v1"));
    scene.rb(&["copy", "oci-archive:both.tar:v1", &both]).ok();
    assert_eq!(platforms(&both), 2);
    scene.rb(&["copy", &team, "docker-archive:one.tar:app:v1"]).ok();
    scene.rb(&["rmi", "app:v1"]).ok();
    assert_eq!(scene.rb(&["load", "-i", "one.tar"]).ok().out, "Loaded image: app:v1\n");
    assert_eq!(scene.inspect("app:v1")["Architecture"], std::env::consts::ARCH.replace("x86_64", "amd64"));
    scene.rb(&["copy", "--platform", "linux/arm64", &team, "docker-archive:other.tar:app:arm"]).ok();
    assert_eq!(scene.rb(&["load", "-i", "other.tar"]).ok().out, "Loaded image: app:arm\n");
    assert_eq!(scene.inspect("app:arm")["Architecture"], "arm64");
    scene
        .rb(&["copy", "--platform", "linux/s390x", &team, "oci:layout:z"])
        .refused(1, &["no matching manifest for linux/s390x"]);
    scene
        .rb(&["copy", "--platform", "linux/s390x", "app:arm", "oci:layout:z"])
        .refused(1, &["not there for the platform linux/s390x"]);
}

#[test]
fn what_is_no_place_or_has_no_image_is_named() {
    let scene = Scene::new();
    build(&scene, "linux/amd64");
    scene.rb(&["tag", "app:v1", "other:v2"]).ok();
    scene.write("Dockerfile", "FROM scratch\nLABEL another=one\n");
    scene.rb(&["build", "-q", "-t", "second:v1", "."]).ok();
    scene.rb(&["save", "-o", "two.tar", "app:v1", "second:v1"]).ok();
    scene.rb(&["copy", "app:v1", "dir:there"]).refused(1, &["dir:there: not a place", "docker-daemon:NAME"]);
    scene.rb(&["copy", "app:v1", "oci:"]).refused(1, &["oci:: names no file"]);
    scene.rb(&["copy", "docker-daemon:", "x"]).refused(1, &["docker-daemon: names no image"]);
    scene.rb(&["copy", "none:v1", "docker-archive:x.tar"]).refused(1, &["No such image: none:v1"]);
    assert!(!scene.work().join("x.tar").exists());
    scene.rb(&["copy", "docker-archive:two.tar", "x"]).refused(1, &["two.tar has several images", "app:v1, second:v1"]);
    scene
        .rb(&["copy", "docker-archive:two.tar:third", "x"])
        .refused(1, &["two.tar has no image third", "app:v1, second:v1"]);
    scene.rb(&["copy", "docker-archive:two.tar:second:v1", "x"]).ok();
    assert_eq!(scene.inspect("x")["Id"], scene.inspect("second:v1")["Id"]);
    scene.rb(&["copy", "docker-archive:none.tar", "x"]).refused(1, &["open none.tar: no such file or directory\n"]);
    scene.rb(&["copy", "app:v1", "Not A Name"]).refused(1, &["invalid reference format"]);
    scene.rb(&["copy", "oci:none:v1", "x"]).refused(1, &["none: no such file or directory"]);
    let without = |address: &str| {
        let output =
            scene.command(&["copy", "docker-daemon:app", "x"]).env("DOCKER_HOST", address).output().expect("it starts");
        assert_eq!(output.status.code(), Some(1));
        String::from_utf8_lossy(&output.stderr).into_owned()
    };
    let nowhere = format!("unix://{}/none.sock", scene.work().display());
    assert!(
        without(&nowhere)
            .contains(&format!("Cannot connect to the Docker daemon at {nowhere}. Is the docker daemon running?"))
    );
    assert!(without("ssh://host").contains("ssh:// is not supported, unix:// and tcp:// are"));
    assert_eq!(names(&scene), ["app:v1", "other:v2", "second:v1", "x:latest"]);
}

/// A real daemon takes an image and gives it back: the same id there and here, and its own images come.
#[test]
fn a_docker_daemon_gives_and_takes_images() {
    let Some(docker) = Docker::start() else { return };
    let scene = Scene::new();
    build(&scene, "linux/amd64,linux/arm64");
    let id = scene.inspect("app:v1")["Id"].clone();
    let copy = |from: &str, to: &str| {
        let mut command = scene.command(&["copy", from, to]);
        crate::scene::Said::from(command.env("DOCKER_HOST", docker.address()).output().expect("it starts"))
    };
    let there = |name: &str| {
        let output = docker.client(&["image", "inspect", "-f", "{{.Id}}", name]).output().expect("the client starts");
        String::from_utf8_lossy(&output.stdout).trim().to_owned()
    };
    assert!(copy("app:v1", "docker-daemon:").ok().out.starts_with("Loaded image: app:v1\n"));
    assert_eq!(there("app:v1"), id.as_str().expect("an id"));
    assert!(copy("app:v1", "docker-daemon:team/app:v2").ok().out.starts_with("Loaded image: team/app:v2\n"));
    assert_eq!(there("team/app:v2"), id.as_str().expect("an id"));
    scene.rb(&["rmi", "app:v1"]).ok();
    copy("docker-daemon:team/app:v2", "mine").ok();
    assert_eq!(scene.inspect("mine")["Id"], id);
    copy("docker-daemon:busybox", "oci:layout:box").ok();
    assert_eq!(names(&scene), ["mine:latest"], "what only passed through is not kept");
    let registry = Registry::start();
    let name = format!("docker://{}", registry.name("library/busybox:1"));
    copy("docker-daemon:busybox", &name).ok();
    copy(&name, "docker-daemon:through/registry:1").ok();
    assert_eq!(there("through/registry:1"), there("busybox"));
    copy("docker-daemon:absent", "x").refused(1, &["error response from the docker daemon", "absent"]);
    assert_eq!(names(&scene), ["mine:latest"]);
}
