//! Images that leave, judged by other people's tools: skopeo and umoci, where they are installed (tests/run.sh installs
//! them).

use std::path::Path;
use std::process::Command;

use crate::scene::Scene;

fn is_installed(program: &str) -> bool {
    let found = ["/usr/bin", "/usr/local/bin", "/bin"].iter().any(|place| Path::new(place).join(program).exists());
    if !found {
        eprintln!("{program} is not installed: this test judges nothing");
    }
    found
}

fn tool(scene: &Scene, line: &[&str]) -> String {
    let output = Command::new(line[0]).args(&line[1..]).current_dir(scene.work()).output().unwrap();
    assert!(output.status.success(), "{line:?}: {output:?}");
    String::from_utf8_lossy(&output.stdout).into_owned()
}

fn saved() -> Scene {
    let scene = Scene::with_busybox();
    scene.write("f", "content\n");
    scene.write(
        "Dockerfile",
        "FROM busybox\nENV K=v\nCOPY --chown=12:34 f /dir/f\nRUN chmod 4755 /dir/f && ln -s f /dir/link && rm -rf /etc/group && mkdir -p /deep/er\nEXPOSE 80\nUSER 1000\nENTRYPOINT [\"/dir/f\"]\n",
    );
    scene.rb(&["build", "-q", "--network", "none", "-t", "judged:1", "."]).ok();
    scene.rb(&["save", "-o", "judged.tar", "judged:1"]).ok();
    scene
}

/// One archive is both docker's form and an OCI layout, and says the same in both.
#[test]
fn skopeo_reads_a_saved_image_in_both_forms() {
    if !is_installed("skopeo") {
        return;
    }
    let scene = saved();
    let config = |source: &str| -> serde_json::Value {
        serde_json::from_str(&tool(&scene, &["skopeo", "inspect", "--config", source])).unwrap()
    };
    let docker = config("docker-archive:judged.tar");
    assert_eq!(docker["config"]["Env"][1], "K=v");
    assert_eq!(docker["config"]["User"], "1000");
    assert_eq!(docker["config"]["Entrypoint"], serde_json::json!(["/dir/f"]));
    assert!(docker["config"]["ExposedPorts"]["80/tcp"].is_object());
    assert_eq!(docker, config("oci-archive:judged.tar"));
}

#[test]
fn umoci_unpacks_the_same_files() {
    if !is_installed("umoci") {
        return;
    }
    let scene = saved();
    std::fs::create_dir(scene.work().join("layout")).unwrap();
    tool(&scene, &["tar", "-C", "layout", "-xf", "judged.tar"]);
    let index = std::fs::read_to_string(scene.work().join("layout/index.json")).unwrap();
    let index: serde_json::Value = serde_json::from_str(&index).unwrap();
    let name = index["manifests"][0]["annotations"]["org.opencontainers.image.ref.name"].as_str().unwrap();
    tool(&scene, &["umoci", "unpack", "--image", &format!("layout:{name}"), "bundle"]);
    let look = "cd bundle/rootfs && stat -c '%n %a %u:%g %F' dir/f dir/link deep/er && readlink dir/link && cat dir/f && ls etc";
    let theirs = tool(&scene, &["sh", "-c", look]);
    let ours = scene
        .rb(&[
            "run",
            "--rm",
            "--network",
            "none",
            "--user",
            "0",
            "--entrypoint",
            "sh",
            "judged:1",
            "-c",
            &look.replace("bundle/rootfs", "/"),
        ])
        .ok()
        .out;
    let kept = |text: &str| {
        text.lines()
            .filter(|l| !["hosts", "hostname", "resolv.conf", "mtab"].contains(l))
            .map(str::to_owned)
            .collect::<Vec<_>>()
    };
    assert_eq!(kept(&theirs), kept(&ours));
    assert!(theirs.contains("dir/f 4755 12:34 regular file") && !theirs.contains("group"), "{theirs}");
}
