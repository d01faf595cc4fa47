//! Devices by name (Container Device Interface), in the steps of builds and in containers.

use crate::scene::Scene;

/// A node under another name, a variable, a mount; the second device of the kind says it needs no permission.
fn specify(scene: &Scene) -> String {
    scene.write("lent/data", "from the host\n");
    let text = format!(
        "cdiVersion: 0.6.0\n\
         kind: acme.com/gpu\n\
         containerEdits:\n  env: [DRIVER=7]\n\
         devices:\n\
         - name: one\n  containerEdits:\n    env: [GPU=one]\n    deviceNodes:\n    \
         - {{path: /dev/acme0, hostPath: /dev/null, permissions: rw}}\n    mounts:\n    \
         - {{hostPath: {}, containerPath: /opt/acme, options: [ro, nosuid]}}\n\
         - name: two\n  annotations: {{org.mobyproject.buildkit.device.autoallow: \"true\"}}\n  \
         containerEdits: {{env: [GPU=two]}}\n",
        scene.work().join("lent").display()
    );
    let file = scene.write("cdi/acme.yaml", text);
    file.parent().expect("a parent").to_str().expect("UTF-8").to_owned()
}

fn dockerfile(scene: &Scene, run: &str) {
    scene.write(".dockerignore", "cdi\nlent\n");
    scene.write("Dockerfile", format!("FROM busybox\nRUN echo first\n{run}\n"));
}

/// What a step or a container with the first device sees.
const SEES: &str = "test \"$GPU $DRIVER\" = 'one 7' && echo x >/dev/acme0 && test ! -s /dev/acme0 \
                    && cat /opt/acme/data && ! touch /opt/acme/new 2>/dev/null";

#[test]
fn a_step_gets_the_devices_it_may_have() {
    let scene = Scene::with_busybox();
    let cdi = specify(&scene);
    dockerfile(&scene, &format!("RUN --device=acme.com/gpu=one,required {SEES}"));
    let build = |extra: &[&str]| {
        scene.rb(&[&["--cdi-spec-dir", &cdi, "build", "--network", "none", "-t", "made"], extra, &["."]].concat())
    };
    let said = build(&[]).refused(
        1,
        &[
            "device acme.com/gpu=one is requested by the build but not allowed",
            "--allow device=acme.com/gpu=one",
            "Dockerfile:3",
        ],
    );
    assert!(!said.err.contains("echo first\""), "nothing ran: {said:?}");
    let said = build(&["--allow", "device=acme.com/gpu=one"]).ok();
    assert!(said.err.contains("from the host"), "{said:?}");
    // Neither node nor mount point nor variable stays.
    let left = scene.in_image("made", "ls -d /opt /dev/acme0 2>/dev/null; echo \"[$GPU$DRIVER]\"");
    assert_eq!(left, "[]\n");
    assert!(build(&["--allow", "device"]).ok().err.contains("CACHED"), "who allows it is in no key");

    dockerfile(&scene, "RUN --device=name=mine,required=true test \"$GPU\" = one");
    build(&["--allow", "device=acme.com/gpu=one,alias=mine"]).ok();
    build(&["--allow", "device"])
        .refused(1, &["required device \"mine\" is not registered", "acme.com/gpu=one, acme.com/gpu=two"]);
    dockerfile(&scene, "RUN --device=acme.com/gpu=two test \"$GPU\" = two");
    build(&[]).ok();
}

#[test]
fn a_device_that_may_be_absent_is_left_out() {
    let scene = Scene::with_busybox();
    let cdi = specify(&scene);
    scene.write("cdi/broken.json", "{");
    dockerfile(&scene, "RUN --device=other.com/nic --device=acme.com/gpu=three test -z \"$GPU$DRIVER\"");
    let build = ["--cdi-spec-dir", &cdi, "build", "--network", "none", "."];
    let said = scene.rb(&build).ok();
    assert!(said.err.contains("optional device \"other.com/nic\" is not registered"), "{said:?}");
    dockerfile(&scene, "RUN --device=other.com/nic,required true");
    let broken = scene.work().join("cdi/broken.json").display().to_string();
    scene.rb(&build).refused(
        1,
        &["required device \"other.com/nic\" is not registered", "no device of the kind other.com/nic", &broken, "EOF"],
    );
    scene.rb(&["--cdi-spec-dir", "/no/such", "build", "."]).refused(1, &["no specification of a device", "/no/such"]);
    dockerfile(&scene, "RUN --device=acme.com/gpu,requird=1 true");
    scene.rb(&build).refused(1, &["unexpected key 'requird' in 'requird=1'", "did you mean required?"]);
    scene.rb(&["build", "--allow", "devices", "."]).refused(1, &["unknown entitlement devices"]);
}

#[test]
fn a_container_gets_the_devices_it_names() {
    let scene = Scene::with_busybox();
    let cdi = specify(&scene);
    // The configuration's word for it is docker's.
    std::fs::write(scene.root().join("daemon.json"), format!("{{\"cdi-spec-dirs\": [{cdi:?}]}}")).expect("write");
    let run = |device: &str, script: &str| {
        scene.rb(&["run", "--rm", "--network", "none", "--device", device, "busybox", "sh", "-c", script])
    };
    assert_eq!(run("acme.com/gpu=one", SEES).ok().out, "from the host\n");
    assert_eq!(run("/dev/null:/dev/mine", "ls /dev/mine").ok().out, "/dev/mine\n", "a path is none");
    let said = run("acme.com/gpu=three", "true");
    said.refused(125, &["CDI device injection failed: unresolvable CDI devices acme.com/gpu=three"]);
    scene.rb(&["create", "--name", "named", "--device", "acme.com/gpu=two", "busybox", "sh", "-c", "echo $GPU"]).ok();
    let shown = scene.rb(&["inspect", "-f", "{{json .HostConfig.DeviceRequests}}", "named"]).ok().out;
    assert!(shown.contains("\"DeviceIDs\":[\"acme.com/gpu=two\"]") && shown.contains("\"Driver\":\"cdi\""), "{shown}");
    assert_eq!(scene.rb(&["start", "-a", "named"]).ok().out, "two\n");
    scene.write(
        "cdi/hook.json",
        r#"{"cdiVersion": "0.6.0", "kind": "acme.com/hooked", "devices": [{"name": "x", "containerEdits":
            {"hooks": [{"hookName": "createContainer", "path": "/usr/bin/acme-hook"}]}}]}"#,
    );
    run("acme.com/hooked=x", "true").refused(125, &["acme.com/hooked=x", "/usr/bin/acme-hook", "not supported"]);
}
