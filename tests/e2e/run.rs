//! Running what was built.

use crate::scene::Scene;

#[test]
fn the_exit_code_is_the_programs() {
    let scene = Scene::with_busybox();
    let run = |arguments: &[&str]| scene.rb(&[&["run", "--rm", "--network", "none"], arguments].concat());
    assert_eq!(run(&["busybox", "sh", "-c", "exit 7"]).code, 7);
    assert_eq!(run(&["busybox", "sh", "-c", "sh -c 'kill -9 $$'; exit $?"]).code, 137);
    run(&["busybox", "/no/such/program"]).refused(127, &["/no/such/program"]);
    run(&["busybox", "/etc/passwd"]).refused(126, &["/etc/passwd"]);
    run(&["--no-such-flag", "busybox"]).refused(125, &["unknown flag"]);
}

#[test]
fn streams_stay_apart() {
    let scene = Scene::with_busybox();
    let said = scene.rb(&["run", "--rm", "--network", "none", "busybox", "sh", "-c", "echo out; echo err >&2"]).ok();
    assert_eq!((said.out.as_str(), said.err.as_str()), ("out\n", "err\n"));
    let said = scene.rb_with_input(&["run", "--rm", "-i", "--network", "none", "busybox", "cat"], b"through\n").ok();
    assert_eq!(said.out, "through\n");
}

#[test]
fn the_image_decides_what_is_not_said() {
    let scene = Scene::with_busybox();
    scene.write(
        "Dockerfile",
        "FROM busybox\nENV A=image B=image\nWORKDIR /srv\nUSER 1234:5678\nENTRYPOINT [\"sh\", \"-c\"]\nCMD [\"echo $A $B $(id -u):$(id -g) $PWD\"]\n",
    );
    scene.rb(&["build", "-t", "defaults", "."]).ok();
    let said = scene.rb(&["run", "--rm", "--network", "none", "-e", "B=given", "defaults"]).ok();
    assert_eq!(said.out, "image given 1234:5678 /srv\n");
    let said = scene.rb(&["run", "--rm", "--network", "none", "--entrypoint", "pwd", "-w", "/tmp", "defaults"]).ok();
    assert_eq!(said.out, "/tmp\n");
}
