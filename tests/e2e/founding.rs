//! The images this program was first meant for, looked at as others see them: in their saved form.

use std::io::Read as _;
use std::os::unix::fs::PermissionsExt as _;

use crate::scene::Scene;

/// The config of an image, and the names in its last layer, from its archive.
fn saved(scene: &Scene, image: &str) -> (serde_json::Value, Vec<String>) {
    scene.rb(&["save", "-o", "image.tar", image]).ok();
    let read = |wanted: &str| {
        let mut archive = tar::Archive::new(std::fs::File::open(scene.work().join("image.tar")).expect("open"));
        let mut bytes = Vec::new();
        for entry in archive.entries().expect("entries") {
            let mut entry = entry.expect("entry");
            if entry.path().expect("path").to_str() == Some(wanted) {
                entry.read_to_end(&mut bytes).expect("read");
            }
        }
        assert!(!bytes.is_empty(), "no {wanted} in the archive");
        bytes
    };
    let manifest: serde_json::Value = serde_json::from_slice(&read("manifest.json")).expect("JSON");
    let name = |value: &serde_json::Value| value.as_str().expect("a name").to_owned();
    let config = serde_json::from_slice(&read(&name(&manifest[0]["Config"]))).expect("JSON");
    let layers = manifest[0]["Layers"].as_array().expect("layers");
    let last = read(&name(layers.last().expect("a layer")));
    let mut last = tar::Archive::new(&last[..]);
    let names = last.entries().expect("a layer").map(|e| e.expect("entry").path().expect("path").display().to_string());
    let names = names.collect();
    (config, names)
}

fn count(value: &serde_json::Value) -> usize {
    value.as_array().map_or(0, Vec::len)
}

#[test]
fn one_layer_with_one_file_and_two_empty_entries() {
    let scene = Scene::with_busybox();
    let script = scene.write("run.sh", "#!/bin/sh\necho it runs in $PWD\n");
    std::fs::set_permissions(script, std::fs::Permissions::from_mode(0o755)).expect("chmod");
    scene.write("Dockerfile", "FROM busybox\nADD run.sh /\nVOLUME /data\nCMD [\"./run.sh\"]\n");
    scene.rb(&["-t", "founding", "."]).ok();
    let (base, _) = saved(&scene, "busybox");
    let (config, names) = saved(&scene, "founding");
    assert_eq!(names, ["run.sh"]);
    assert_eq!(count(&config["rootfs"]["diff_ids"]), count(&base["rootfs"]["diff_ids"]) + 1);
    let history = config["history"].as_array().expect("a history");
    assert_eq!(history.len(), count(&base["history"]) + 3);
    let added = &history[history.len() - 3..];
    let empty: Vec<bool> = added.iter().map(|entry| entry["empty_layer"] == true).collect();
    assert_eq!(empty, [false, true, true], "{added:#?}");
    for (entry, word) in std::iter::zip(added, ["ADD run.sh /", "VOLUME [/data]", "CMD [\"./run.sh\"]"]) {
        assert!(entry["created_by"].as_str().is_some_and(|text| text.contains(word)), "{entry}");
    }
    assert_eq!(config["config"]["Cmd"], serde_json::json!(["./run.sh"]));
    assert_eq!(config["config"]["Volumes"], serde_json::json!({"/data": {}}));
    assert_eq!(scene.rb(&["run", "--rm", "--network", "none", "founding"]).ok().out, "it runs in /\n");
    // The volume that came with it went with it.
    assert_eq!(scene.rb(&["volume", "ls", "-q"]).ok().out, "");
}

#[test]
fn hello_world_is_one_layer_with_one_program() {
    let scene = Scene::new();
    let program = ["/bin/busybox", "/usr/bin/busybox"].iter().find_map(|path| std::fs::read(path).ok());
    let path = scene.write("echo", program.expect("a static busybox: install busybox-static"));
    std::fs::set_permissions(path, std::fs::Permissions::from_mode(0o755)).expect("chmod");
    scene.write("Dockerfile", "FROM scratch\nCOPY echo /\nENTRYPOINT [\"/echo\"]\nCMD [\"hello\", \"world\"]\n");
    scene.rb(&["-t", "hello-world", "."]).ok();
    let (config, names) = saved(&scene, "hello-world");
    assert_eq!(
        (names, count(&config["rootfs"]["diff_ids"]), count(&config["history"])),
        (vec!["echo".to_owned()], 1, 3)
    );
    let run =
        |words: &[&str]| scene.rb(&[&["run", "--rm", "--network", "none", "hello-world"], words].concat()).ok().out;
    assert_eq!(run(&[]), "hello world\n");
    assert_eq!(run(&["and", "more"]), "and more\n");
}

/// A failure moves no name and writes no id, whichever step it is; what stood before it needs no second time.
#[test]
fn a_failure_leaves_the_names_where_they_were() {
    let scene = Scene::with_busybox();
    let build = |last: &str| {
        scene.write(
            "Dockerfile",
            format!("FROM busybox AS side\nRUN sleep 0.2; echo side > /side\nFROM busybox\nRUN echo 1 > /1\nCOPY --from=side /side /\n{last}\n"),
        );
        scene.rb(&["build", "--network", "none", "--iidfile", "id", "-t", "app", "-t", "app:2", "."])
    };
    build("RUN echo fine > /last").ok();
    let before = scene.inspect("app")["Id"].clone();
    for (last, words) in [
        ("RUN echo broken > /last; exit 9", "exit code: 9"),
        ("COPY nothing /", "\"/nothing\": not found"),
        ("RUN [\"/no/such/program\"]", "/no/such/program"),
        ("USER nobody-knows\nRUN true", "nobody-knows"),
    ] {
        build(last).refused(1, &[words, "Dockerfile:"]);
        assert_eq!((&scene.inspect("app")["Id"], &scene.inspect("app:2")["Id"]), (&before, &before), "{last}");
        assert!(!scene.work().join("id").exists(), "{last}");
    }
    let said = build("RUN echo fixed > /last").ok();
    for step in ["RUN sleep 0.2; echo side > /side", "RUN echo 1 > /1", "COPY --from=side /side /"] {
        assert!(said.was_cached(step), "{step}: {said:?}");
    }
    assert_eq!(scene.in_image("app:2", "cat /1 /side /last"), "1\nside\nfixed\n");
}

/// The walk that docker's own introduction takes: pull, run, change, commit, tag, push, commit a new command, run it, read
/// the page that it serves, and move the image to another machine in an archive.
#[test]
fn from_a_registry_through_commits_to_a_served_page() {
    use std::io::{Read as _, Write as _};
    let registry = crate::registry::Registry::start();
    let (upstream, mine) = (registry.name("library/busybox:latest"), registry.name("me/site:v1"));
    let seed = Scene::with_busybox();
    seed.rb(&["tag", "busybox", &upstream]).ok();
    seed.rb(&["push", "-q", &upstream]).ok();

    let scene = Scene::new();
    scene.rb(&["pull", &upstream]).ok();
    let script = "mkdir /data && echo '<h1>hello from a commit</h1>' > /data/index.html";
    scene.rb(&["run", "--name", "changed", "--network", "none", &upstream, "sh", "-c", script]).ok();
    assert!(scene.rb(&["diff", "changed"]).ok().out.contains("A /data/index.html\n"));
    scene.rb(&["commit", "-p", "-a", "me", "-m", "a page", "changed", "site"]).ok();
    scene.rb(&["tag", "site", &mine]).ok();
    let said = scene.rb(&["push", &mine]).ok();
    assert!(said.out.contains("Mounted from library/busybox") && said.out.contains(": Pushed"), "{said:?}");

    let command = "CMD [\"/bin/httpd\", \"-f\", \"-h\", \"/data\"]";
    scene.rb(&["commit", "-c", command, "changed", &mine]).ok();
    let said = scene.rb(&["push", &mine]).ok();
    assert!(said.out.contains("Layer already exists"), "{said:?}");
    scene.rb(&["save", "-o", "site.tar", &mine]).ok();

    let other = Scene::new();
    let archive = scene.work().join("site.tar");
    other.rb(&["load", "-i", archive.to_str().expect("UTF-8")]).ok();
    assert_eq!(other.inspect(&mine)["Id"], scene.inspect(&mine)["Id"]);
    for place in [&scene, &other] {
        place.rb(&["run", "-d", "--name", "web", &mine]).ok();
        let address = place.rb(&["inspect", "-f", "{{.NetworkSettings.IPAddress}}", "web"]).ok().out;
        let address: std::net::IpAddr = address.trim().parse().expect("an address");
        let start = std::time::Instant::now();
        let page = loop {
            // The server needs a moment to listen.
            let ask = || -> std::io::Result<String> {
                let mut stream = std::net::TcpStream::connect((address, 80))?;
                stream.write_all(b"GET / HTTP/1.0\r\n\r\n")?;
                let mut page = String::new();
                stream.read_to_string(&mut page)?;
                Ok(page)
            };
            match ask() {
                Ok(page) => break page,
                Err(error) => assert!(start.elapsed().as_secs() < 60, "no page: {error}"),
            }
            std::thread::sleep(std::time::Duration::from_millis(50));
        };
        assert!(page.contains("200 OK") && page.ends_with("<h1>hello from a commit</h1>\n"), "{page}");
        place.rb(&["rm", "-f", "web"]).ok();
    }
    scene.rb(&["rm", "changed"]).ok();
}
