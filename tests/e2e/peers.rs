//! Other people's tools as the judges of whole file trees, and as makers of archives that must load here. A tool that
//! is not installed is named and its test judges nothing.

use std::path::Path;
use std::process::Command;

use crate::scene::Scene;

pub(crate) fn are_installed(programs: &[&str]) -> bool {
    let lacks =
        |program: &&&str| !["/usr/bin", "/usr/local/bin", "/bin"].iter().any(|d| Path::new(d).join(program).exists());
    let missing: Vec<_> = programs.iter().filter(lacks).collect();
    if !missing.is_empty() {
        eprintln!("not installed: {missing:?}: this test judges nothing");
    }
    missing.is_empty()
}

#[track_caller]
fn tool(scene: &Scene, line: &str) -> String {
    let output = Command::new("sh").args(["-ec", line]).current_dir(scene.work()).output().expect("sh");
    assert!(output.status.success(), "{line}: {output:?}");
    String::from_utf8_lossy(&output.stdout).into_owned()
}

/// A tree with what is easily lost: links of both kinds, modes, owners, a capability, names of all kinds, holes.
fn tree(scene: &Scene) {
    tool(
        scene,
        "mkdir -p tree/dir/empty tree/sticky && cd tree
         echo one > one && ln one hard && ln -s one soft && ln -s /nowhere dir/dangling
         echo two > dir/two && chmod 4711 dir/two && chmod 1777 sticky && chmod 700 dir/empty
         echo three > 'name with spaces' && echo four > \"$(printf 'l\\303\\244nge')\"
         long=$(printf 'x%.0s' $(seq 120)); mkdir -p $long/$long && echo five > $long/$long/$long
         truncate -s 300000 holes && echo end >> holes
         mkfifo pipe
         find . -exec touch -h -d @1500000000 {} +",
    );
}

/// Path, kind, mode, owner, size, links, time of everything, and what the files hold.
const LOOK: &str = "find . -mindepth 1 ! -type d -printf '%P|%y|%m|%U:%G|%s|%n|%T@|%l\\n' | LC_ALL=C sort
    find . -mindepth 1 -type d -printf '%P|%y|%m|%U:%G\\n' | LC_ALL=C sort
    find . -type f -exec sha256sum {} + | LC_ALL=C sort -k 2";

/// What was copied in is, as GNU tar unpacks the layer of the saved image, what it was; and so after `export`.
#[test]
fn gnu_tar_finds_the_tree_that_was_copied() {
    if !are_installed(&["tar", "find"]) {
        return;
    }
    let scene = Scene::new();
    tree(&scene);
    scene.write("Dockerfile", "FROM scratch\nADD tree.tar /\nCMD [\"/none\"]\n");
    tool(&scene, "tar --numeric-owner -C tree -cf tree.tar .");
    scene.write(".dockerignore", "tree\n");
    scene.rb(&["build", "-q", "-t", "tree", "."]).ok();
    scene.rb(&["save", "-o", "image.tar", "tree"]).ok();
    let wanted = tool(&scene, &format!("cd tree; {LOOK}"));
    let layer = scene.inspect("tree")["RootFS"]["Layers"][0].as_str().expect("a layer").replace("sha256:", "");
    tool(
        &scene,
        &format!(
            "mkdir image unpacked && tar -C image -xf image.tar
             tar -C unpacked --numeric-owner -xpf $(find image -type f -path '*{layer}*' | head -n 1)"
        ),
    );
    assert_eq!(tool(&scene, &format!("cd unpacked; {LOOK}")), wanted);

    scene.rb(&["create", "--name", "it", "tree"]).ok();
    scene.rb(&["export", "-o", "export.tar", "it"]).ok();
    scene.rb(&["rm", "it"]).ok();
    tool(
        &scene,
        "mkdir exported && tar -C exported --numeric-owner -xpf export.tar && cd exported && rm -rf dev etc proc sys .dockerenv",
    );
    assert_eq!(tool(&scene, &format!("cd exported; {LOOK}")), wanted);
}

/// An archive in docker's form that skopeo made, from a layout it copied from ours: the same image comes back.
#[test]
fn archives_that_skopeo_makes_are_the_same_image() {
    if !are_installed(&["skopeo"]) {
        return;
    }
    let scene = Scene::with_busybox();
    scene.write("f", "content\n");
    scene.write("Dockerfile", "FROM busybox\nCOPY f /f\nRUN rm /etc/group && echo new > /new\nLABEL a=b\n");
    scene.rb(&["build", "-q", "--network", "none", "-t", "travels", "."]).ok();
    let id = scene.inspect("travels")["Id"].clone();
    scene.rb(&["save", "-o", "ours.tar", "travels"]).ok();
    for (line, name) in [
        ("skopeo copy -q docker-archive:ours.tar docker-archive:theirs.tar:travels:theirs", "travels:theirs"),
        ("skopeo copy -q oci-archive:ours.tar oci:layout:travels:gone && tar -C layout -cf theirs.tar .", ""),
    ] {
        tool(&scene, &format!("rm -f theirs.tar; {line}"));
        let other = scene.work().join("other").display().to_string();
        let said = scene.rb(&["--root", &other, "load", "-i", "theirs.tar"]).ok();
        let name = match name {
            "" => said.out.trim().rsplit(": ").next().expect("what was loaded").to_owned(),
            name => name.to_owned(),
        };
        let found = scene.rb(&["--root", &other, "image", "inspect", "-f", "{{.Id}}", &name]).ok().out;
        assert_eq!(found.trim(), id.as_str().expect("an id"), "{line}");
        let look = "cat /f /new; ls /etc/group || true";
        let run = ["--root", &other, "run", "--rm", "--network", "none", &name, "sh", "-c", look];
        assert_eq!(scene.rb(&run).ok().out, "content\nnew\n");
        tool(&scene, "rm -rf other");
    }
}
