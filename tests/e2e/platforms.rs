//! Images of several platforms in the local commands, and what else is told about images.

use serde_json::Value;

use crate::scene::Scene;

/// `multi:v1`, for amd64 and arm64, each with a file of its own.
fn multi(scene: &Scene) {
    scene.write("Dockerfile", "FROM scratch\nARG TARGETARCH\nCOPY $TARGETARCH /file\nLABEL arch=$TARGETARCH\n");
    scene.write("amd64", "one");
    scene.write("arm64", "second");
    scene.rb(&["build", "-q", "--platform", "linux/amd64,linux/arm64", "-t", "multi:v1", "."]).ok();
}

fn architecture(scene: &Scene, options: &[&str]) -> String {
    let said = scene.rb(&[&["image", "inspect", "-f", "{{.Architecture}}"], options].concat()).ok();
    said.out.trim().to_owned()
}

#[test]
fn one_platform_of_several_is_shown_saved_and_loaded() {
    let scene = Scene::new();
    multi(&scene);
    assert_eq!(architecture(&scene, &["multi:v1"]), "amd64");
    assert_eq!(architecture(&scene, &["--platform", "linux/arm64", "multi:v1"]), "arm64");
    scene
        .rb(&["image", "inspect", "--platform", "linux/s390x", "multi:v1"])
        .refused(1, &["does not provide the specified platform (linux/s390x)"]);
    let history = |platform: &str| {
        scene.rb(&["history", "--no-trunc", "--platform", platform, "--format", "{{.CreatedBy}}", "multi:v1"]).ok().out
    };
    assert!(history("linux/arm64").contains("arch=arm64") && history("linux/amd64").contains("arch=amd64"));

    let tree = scene.rb(&["images", "--tree"]).ok().out;
    let lines: Vec<&str> = tree.lines().collect();
    assert!(lines[0].starts_with("IMAGE") && lines[0].contains("DISK USAGE") && lines[0].contains("EXTRA"), "{tree}");
    assert!(lines[1].starts_with("multi:v1"), "{tree}");
    assert!(lines[2].starts_with("├─ linux/amd64") && lines[2].contains("3B"), "{tree}");
    assert!(lines[3].starts_with("└─ linux/arm64") && lines[3].contains("6B"), "{tree}");

    scene.rb(&["save", "-o", "arm.tar", "--platform", "linux/arm64", "multi:v1"]).ok();
    scene.rb(&["save", "-o", "both.tar", "multi:v1"]).ok();
    scene.rb(&["save", "-o", "no.tar", "--platform", "linux/s390x", "multi:v1"]).refused(1, &["linux/s390x"]);
    assert!(!scene.work().join("no.tar").exists());
    let load = |archive: &str, options: &[&str]| {
        let other = Scene::new();
        let path = scene.work().join(archive);
        let said = other.rb(&[&["load", "-i", path.to_str().expect("UTF-8")], options].concat());
        (other, said)
    };
    let (arm, said) = load("arm.tar", &[]);
    assert_eq!(said.ok().out, "Loaded image: multi:v1\n");
    assert_eq!(architecture(&arm, &["multi:v1"]), "arm64");
    let (one, said) = load("both.tar", &["--platform", "linux/arm64"]);
    said.ok();
    assert_eq!(architecture(&one, &["multi:v1"]), "arm64");
    assert_eq!(one.rb(&["images", "-q", "-a"]).ok().out.lines().count(), 1);
    one.rb(&["image", "inspect", "--platform", "linux/amd64", "multi:v1"]).refused(1, &["linux/amd64"]);
    let (none, said) = load("both.tar", &["--platform", "linux/s390x"]);
    said.refused(1, &["not for the platform linux/s390x"]);
    assert_eq!(none.rb(&["images", "-q", "-a"]).ok().out, "");
}

#[test]
fn two_images_are_compared_by_path() {
    let scene = Scene::new();
    scene.write("a/kept", "same");
    scene.write("a/grows", "x");
    scene.write("a/goes/deep", "12345");
    scene.write("a/linked", "abc");
    scene.write("Dockerfile", "FROM scratch\nCOPY a /\n");
    scene.rb(&["build", "-q", "-t", "one", "."]).ok();
    scene.write("b/grows", "xyz");
    scene.write("b/new file", "12");
    std::fs::remove_dir_all(scene.work().join("a/goes")).expect("remove");
    scene.write("Dockerfile", "FROM scratch\nCOPY a /\nCOPY b /\n");
    scene.rb(&["build", "-q", "-t", "two", "."]).ok();
    let said = scene.rb(&["diff", "one", "two"]).ok().out;
    assert_eq!(said, "D /goes +0\nD /goes/deep -5\nC /grows +2\nA /new file +2\n");
    assert_eq!(scene.rb(&["diff", "two", "two"]).ok().out, "");
    scene.rb(&["diff", "one", "absent"]).refused(1, &["No such image: absent"]);
}

#[test]
fn what_an_image_deletes_is_seen_in_a_comparison() {
    let scene = Scene::with_busybox();
    scene.write("Dockerfile", "FROM busybox\nRUN rm -r /root && mkdir /root && echo x > /root/y && rm /etc/group\n");
    scene.rb(&["build", "-q", "-t", "less", "."]).ok();
    let said = scene.rb(&["diff", "busybox", "less"]).ok().out;
    assert!(said.contains("D /etc/group -") && said.contains("A /root/y +2\n"), "{said}");
    assert!(!said.contains("/bin/"), "{said}");
}

#[test]
fn import_changes_the_configuration_and_reads_from_servers() {
    let scene = Scene::new();
    let mut tar = tar::Builder::new(Vec::new());
    let mut header = tar::Header::new_ustar();
    header.set_size(3);
    header.set_mode(0o644);
    tar.append_data(&mut header, "file", &b"abc"[..]).expect("tar");
    let bytes = tar.into_inner().expect("tar");
    scene.write("rootfs.tar", &bytes);
    scene.rb(&["import", "-c", "CMD [\"/x\"]", "--change", "ENV A=b", "-m", "hello", "rootfs.tar", "made:v1"]).ok();
    let config = &scene.inspect("made:v1")["Config"];
    assert_eq!((&config["Cmd"][0], &config["Env"][0]), (&Value::from("/x"), &Value::from("A=b")));
    scene.rb(&["import", "-c", "RUN x", "rootfs.tar"]).refused(1, &["run"]);

    let listener = std::net::TcpListener::bind("127.0.0.1:0").expect("a port");
    let url = format!("http://{}/rootfs.tar", listener.local_addr().expect("an address"));
    let server = std::thread::spawn(move || {
        use std::io::{Read as _, Write as _};
        for keep in [bytes.len(), 100] {
            let (mut stream, _) = listener.accept().expect("a client");
            let mut request = [0; 4096];
            let len = stream.read(&mut request).expect("a request");
            assert!(request[..len].starts_with(b"GET /rootfs.tar"));
            let head = format!("HTTP/1.1 200 OK\r\nContent-Length: {}\r\nConnection: close\r\n\r\n", bytes.len());
            stream.write_all(head.as_bytes()).expect("write");
            stream.write_all(&bytes[..keep]).expect("write");
        }
    });
    scene.rb(&["import", &url, "served:v1"]).ok();
    assert_eq!(scene.inspect("served:v1")["RootFS"], scene.inspect("made:v1")["RootFS"]);
    scene.rb(&["import", &url, "cut:v1"]).refused(1, &["reading the archive", "rootfs.tar"]);
    server.join().expect("the server");
    scene.rb(&["image", "inspect", "cut:v1"]).refused(1, &["No such image"]);
}

#[test]
fn images_are_filtered_by_time_and_kept_on_the_disk() {
    let scene = Scene::with_busybox();
    let list = |filter: &str| scene.rb(&["images", "-q", "--filter", filter]).ok().out.lines().count();
    assert_eq!((list("until=2024-06-01T00:00:00Z"), list("until=2023-06-01T00:00:00Z")), (1, 0));
    scene.rb(&["images", "--filter", "until=never"]).refused(1, &["never"]);
    scene.write("Dockerfile", "FROM scratch\nCOPY Dockerfile /\n");
    scene.rb(&["build", "-q", "-t", "small", "."]).ok();
    let said = scene.rb(&["rmi", "--no-prune", "busybox"]).ok();
    assert!(said.out.starts_with("Untagged: busybox:latest\nDeleted: sha256:"), "{said:?}");
}
