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
