//! Builds that succeed, builds that fail, and what they leave in the store.

use crate::scene::Scene;

#[test]
fn scratch_gives_one_layer() {
    let scene = Scene::with_busybox();
    scene.write("hello", "no program, but a file\n");
    scene.write("Dockerfile", "FROM scratch\nCOPY hello /\nCMD [\"/hello\"]\n");
    scene.rb(&["-t", "hello-world", "."]).ok();
    let image = scene.inspect("hello-world");
    assert_eq!(image["RootFS"]["Layers"].as_array().unwrap().len(), 1);
    assert_eq!(image["Config"]["Cmd"], serde_json::json!(["/hello"]));
}

/// One instruction that touches files is one layer; the others are history entries marked empty.
#[test]
fn the_founding_example() {
    let scene = Scene::with_busybox();
    scene.write("run.sh", "#!/bin/sh\necho it runs\n");
    std::fs::set_permissions(scene.work().join("run.sh"), std::os::unix::fs::PermissionsExt::from_mode(0o755)).unwrap();
    scene.write("Dockerfile", "FROM busybox\nADD run.sh /\nVOLUME /data\nCMD [\"./run.sh\"]\n");
    scene.rb(&["build", "-t", "founding", "."]).ok();
    let (base, image) = (scene.inspect("busybox"), scene.inspect("founding"));
    let layers = |image: &serde_json::Value| image["RootFS"]["Layers"].as_array().unwrap().clone();
    assert_eq!(layers(&image).len(), layers(&base).len() + 1);
    assert_eq!(layers(&image)[0], layers(&base)[0]);
    assert!(image["Config"]["Volumes"]["/data"].is_object());
    let history = scene.rb(&["history", "--no-trunc", "--format", "{{.CreatedBy}}|{{.Size}}", "founding"]).ok().out;
    let empty = history.lines().take(3).filter(|line| line.ends_with("|0B")).count();
    assert_eq!(empty, 2, "{history}");
    assert_eq!(scene.rb(&["run", "--rm", "--network", "none", "founding"]).ok().out, "it runs\n");
}

#[test]
fn a_failing_step_tells_everything() {
    let scene = Scene::with_busybox();
    scene.write(
        "Dockerfile",
        "FROM busybox\nRUN echo fine > /fine\n# comment\nRUN echo about-to-fail && exit 42\nRUN echo never\n",
    );
    let said = scene.rb(&["build", "--network", "none", "-t", "failing", "."]).refused(
        1,
        &[
            "> [3/4] RUN echo about-to-fail && exit 42:",
            "about-to-fail",
            "Dockerfile:4\n",
            "\n   2 |     RUN echo fine > /fine\n",
            "\n   4 | >>> RUN echo about-to-fail && exit 42\n",
            "\n   5 |     RUN echo never\n",
            "process \"/bin/sh -c echo about-to-fail && exit 42\" did not complete successfully: exit code: 42",
        ],
    );
    assert!(!said.err.contains("[4/4] RUN echo never\n#"), "{said:?}");
    scene.rb(&["image", "inspect", "failing"]).refused(1, &["failing"]);

    scene.write("Dockerfile", "FROM busybox\nRUN echo fine > /fine\n# comment\nRUN echo fixed > /fixed\n");
    let said = scene.rb(&["build", "--network", "none", "-t", "failing", "."]).ok();
    assert!(said.was_cached("RUN echo fine > /fine"), "{said:?}");
    assert_eq!(scene.in_image("failing", "cat /fine /fixed"), "fine\nfixed\n");
}

#[test]
fn plain_progress_has_numbered_steps_on_standard_error() {
    let scene = Scene::with_busybox();
    scene.write("Dockerfile", "FROM busybox\nRUN echo hello-output\n");
    let said = scene.rb(&["build", "--network", "none", "--progress", "plain", "."]).ok();
    assert_eq!(said.out, "");
    let said =
        said.says(&["load build definition from Dockerfile", "load .dockerignore", "[2/2] RUN echo hello-output\n"]);
    let is_output = |line: &str| line.starts_with('#') && line.ends_with(" hello-output") && !line.contains("RUN");
    assert!(said.err.lines().any(is_output), "{said:?}");
    assert!(scene.rb(&["build", "--network", "none", "."]).ok().was_cached("RUN echo hello-output"));
}

#[test]
fn json_progress_is_json() {
    let scene = Scene::with_busybox();
    scene.write("Dockerfile", "FROM busybox\nRUN echo hello-output\n");
    let said = scene.rb(&["build", "--network", "none", "--progress", "rawjson", "."]).ok();
    let lines: Vec<serde_json::Value> =
        said.err.lines().filter(|l| l.starts_with('{')).map(|l| serde_json::from_str(l).unwrap()).collect();
    let run =
        lines.iter().filter_map(|l| l["vertexes"].get(0)).find(|v| v["name"] == "[2/2] RUN echo hello-output").unwrap();
    let log = lines.iter().filter_map(|l| l["logs"].get(0)).find(|log| log["vertex"] == run["digest"]).unwrap();
    assert_eq!(log["data"], "aGVsbG8tb3V0cHV0Cg==");
}

#[test]
fn quiet_prints_the_id_and_iidfile_holds_it() {
    let scene = Scene::with_busybox();
    scene.write("Dockerfile", "FROM busybox\nLABEL a=b\n");
    let said = scene.rb(&["build", "-q", "-t", "quiet", "--iidfile", "id", "."]).ok();
    let id = scene.inspect("quiet")["Id"].as_str().unwrap().to_owned();
    assert_eq!((said.out.trim_end(), said.err.as_str()), (id.as_str(), ""));
    assert_eq!(std::fs::read_to_string(scene.work().join("id")).unwrap(), id);

    scene.write("Dockerfile", "FROM busybox\nRUN exit 3\n");
    scene.rb(&["build", "-q", "--network", "none", "--iidfile", "id", "."]).refused(1, &["exit code: 3"]);
    assert!(!scene.work().join("id").exists(), "a failed build leaves no id behind");
}

#[test]
fn only_the_stages_of_the_target_are_built() {
    let scene = Scene::with_busybox();
    scene.write(
        "Dockerfile",
        "FROM busybox AS one\nRUN echo 1 > /one\nFROM busybox AS broken\nRUN exit 1\nFROM one AS last\nRUN echo 2 > /two\n",
    );
    scene.rb(&["build", "--network", "none", "-t", "last", "."]).ok();
    scene.rb(&["build", "--network", "none", "-t", "one", "--target", "one", "."]).ok();
    assert_eq!(scene.in_image("one", "ls /one /two 2>/dev/null || true"), "/one\n");
    scene.rb(&["build", "--network", "none", "--target", "broken", "."]).refused(1, &["exit code: 1"]);
    scene.rb(&["build", "--network", "none", "--target", "nope", "."]).refused(1, &["nope"]);
}

#[test]
fn arguments_labels_and_the_environment() {
    let scene = Scene::with_busybox();
    scene.write("Dockerfile", "FROM busybox\nARG A\nARG B=default\nARG C\nRUN echo \"$A,$B,$C\" > /args\n");
    let mut command =
        scene.command(&["build", "-q", "--network", "none", "-t", "args", "--build-arg", "A=1", "--build-arg", "C"]);
    let output = command.args(["--label", "x=y", "."]).env("C", "from-env").output().unwrap();
    assert!(output.status.success(), "{output:?}");
    assert_eq!(scene.in_image("args", "cat /args"), "1,default,from-env\n");
    assert_eq!(scene.inspect("args")["Config"]["Labels"]["x"], "y");
}

#[test]
fn what_surrounds_a_step_can_be_set() {
    let scene = Scene::with_busybox();
    scene.write(
        "Dockerfile",
        "FROM busybox\nRUN grep -c '10.9.8.7.*peer' /etc/hosts; df /dev/shm | tail -n 1; ulimit -n\n",
    );
    let options = ["--add-host", "peer:10.9.8.7", "--shm-size", "1m", "--ulimit", "nofile=123:456"];
    let said = scene.rb(&[&["build", "--network", "none"], &options[..], &["."]].concat()).ok();
    let output: Vec<&str> =
        said.err.lines().filter_map(|line| line.split_once(' ')?.1.split_once(' ')).map(|(_, text)| text).collect();
    assert!(output.contains(&"1") && output.contains(&"123"), "{said:?}");
    assert!(output.iter().any(|text| text.contains(" 1024 ")), "{said:?}");
    scene
        .rb(&["build", "--shm-size", "big", "."])
        .refused(125, &["invalid argument \"big\" for \"--shm-size\" flag: invalid size: 'big'"]);
}

#[test]
fn the_dockerfile_may_come_from_elsewhere() {
    let scene = Scene::with_busybox();
    let text = "FROM busybox\nCOPY f /f\n";
    scene.write("ctx/f", "content\n");
    scene.write("other/My.Dockerfile", text);
    scene.rb(&["build", "-t", "a", "-f", "other/My.Dockerfile", "ctx"]).ok();
    scene.rb_with_input(&["build", "-t", "b", "-f", "-", "ctx"], text.as_bytes()).ok();
    assert_eq!(scene.inspect("a")["Id"], scene.inspect("b")["Id"]);
    scene.rb_with_input(&["build", "-t", "c", "-"], b"FROM busybox\nLABEL only=text\n").ok();
    scene.rb_with_input(&["build", "-"], text.as_bytes()).refused(1, &["/f", "not found"]);
    scene.write("ctx/Containerfile", text);
    scene.rb(&["build", "-q", "ctx"]).ok();
}

#[test]
fn dockerignore_hides_files() {
    let scene = Scene::with_busybox();
    scene.write("a.txt", "a");
    scene.write("b.log", "b");
    scene.write("keep.log", "k");
    scene.write(".dockerignore", "*.log\n!keep.log\n");
    scene.write("Dockerfile", "FROM busybox\nCOPY . /all/\n");
    scene.rb(&["build", "-t", "ignored", "."]).ok();
    assert_eq!(scene.in_image("ignored", "cd /all && ls *.txt *.log"), "a.txt\nkeep.log\n");
}

/// What rbuild supplies inside a step is not part of the layer.
#[test]
fn supplied_files_and_mount_points_stay_out_of_layers() {
    let scene = Scene::with_busybox();
    scene.write(
        "Dockerfile",
        "FROM busybox\nRUN cat /etc/hosts /etc/resolv.conf /etc/hostname > /dev/null; echo x > /only\n",
    );
    scene.rb(&["build", "--network", "none", "-t", "clean", "."]).ok();
    scene.rb(&["save", "-o", "clean.tar", "clean"]).ok();
    let layer = scene.inspect("clean")["RootFS"]["Layers"][1].as_str().unwrap().replace("sha256:", "");
    let mut archive = tar::Archive::new(std::fs::File::open(scene.work().join("clean.tar")).unwrap());
    let mut names = Vec::new();
    for entry in archive.entries().unwrap() {
        let entry = entry.unwrap();
        if entry.path().unwrap().to_string_lossy().contains(&layer) && entry.size() > 0 {
            let mut layer = tar::Archive::new(entry);
            names = layer.entries().unwrap().map(|e| e.unwrap().path().unwrap().display().to_string()).collect();
            break;
        }
    }
    // The root itself is there because the step wrote into it.
    assert_eq!(names, ["./", "only"]);
}
