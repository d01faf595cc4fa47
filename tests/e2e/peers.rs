//! Other people's tools as the judges of whole file trees, and as makers of archives that must load here. A tool that
//! is not installed is named and its test judges nothing.

use std::path::Path;
use std::process::{Child, Command, Stdio};
use std::time::Duration;

use crate::scene::Scene;
use crate::serve::Serving;

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

/// podman takes from the served store, gives it back, and what either saves the other loads.
#[test]
fn podman_exchanges_images_with_the_served_store() {
    if !are_installed(&["podman"]) {
        return;
    }
    let scene = Scene::with_busybox();
    let registry = Serving::start(&scene, &[]);
    let podman = |line: &str| {
        let own = "--root=$PWD/pod --runroot=$PWD/podrun --tmpdir=$PWD/podtmp --storage-driver=vfs";
        tool(&scene, &format!("podman {own} {line}"))
    };
    let (from, to) = (registry.name("busybox:latest"), registry.name("back/busybox:1"));
    podman(&format!("pull -q --tls-verify=false {from}"));
    podman(&format!("push -q --tls-verify=false {from} {to}"));
    let id = scene.inspect("busybox")["Id"].clone();
    assert_eq!(scene.inspect("back/busybox:1")["Id"], id);
    for format in ["docker-archive", "oci-archive"] {
        podman(&format!("save -q --format {format} -o {format}.tar {from}"));
        scene.rb(&["load", "-q", "-i", &format!("{format}.tar")]).ok();
        assert_eq!(scene.inspect(&from)["Id"], id, "{format}");
        scene.rb(&["rmi", &from]).ok();
    }
    scene.rb(&["save", "-o", "ours.tar", "back/busybox:1"]).ok();
    let loaded = podman("load -q -i ours.tar");
    assert!(loaded.contains("back/busybox:1"), "{loaded}");
    assert_eq!(podman("image inspect --format sha256:{{.Id}} back/busybox:1").trim(), id.as_str().expect("an id"));
}

/// umoci unpacks and repacks what skopeo fetched from the served store; what it makes loads here.
#[test]
fn umoci_unpacks_what_is_served_and_its_layers_load() {
    if !are_installed(&["skopeo", "umoci"]) {
        return;
    }
    let scene = Scene::new();
    tree(&scene);
    scene.write("Dockerfile", "FROM scratch\nCOPY tree /tree\nCMD [\"/none\"]\n");
    scene.rb(&["build", "-q", "-t", "tree", "."]).ok();
    let registry = Serving::start(&scene, &[]);
    let source = format!("docker://{}", registry.name("tree"));
    tool(&scene, &format!("skopeo --insecure-policy copy -q --src-tls-verify=false {source} oci:layout:1"));
    tool(&scene, "umoci unpack --image layout:1 bundle && diff -r -x pipe --no-dereference tree bundle/rootfs/tree");
    tool(
        &scene,
        "echo more >bundle/rootfs/more && rm -r bundle/rootfs/tree/dir && umoci repack --image layout:2 bundle",
    );
    tool(&scene, "umoci gc --layout layout; umoci rm --image layout:1; tar -C layout -cf two.tar .");
    let said = scene.rb(&["load", "-q", "-i", "two.tar"]).ok();
    let id = said.out.trim().rsplit(' ').next().expect("an id").to_owned();
    scene.rb(&["tag", &id, "two"]).ok();
    scene.write("Dockerfile", "FROM two\n");
    scene.rb(&["build", "-q", "-o", "out", "."]).ok();
    tool(
        &scene,
        "test ! -e out/tree/dir && test \"$(cat out/more)\" = more && diff -r -x pipe --no-dereference bundle/rootfs out",
    );
}

/// Debian's docker-registry on a free port, over a directory of the scene.
struct DockerRegistry {
    child: Child,
    address: String,
}

impl DockerRegistry {
    fn start(scene: &Scene) -> DockerRegistry {
        let config = "version: 0.1\nlog: {level: info, accesslog: {disabled: true}}\n\
                      storage: {delete: {enabled: true}, filesystem: {rootdirectory: ./held}}\nhttp: {addr: '127.0.0.1:0'}\n";
        let (config, said) = (scene.write("registry.yml", config), scene.work().join("registry.log"));
        let log = std::fs::File::create(&said).expect("a file");
        let mut command = Command::new("docker-registry");
        command.arg("serve").arg(config).current_dir(scene.work()).stdout(Stdio::null()).stderr(log);
        let mut child = command.spawn().expect("docker-registry starts");
        loop {
            let text = std::fs::read_to_string(&said).expect("its log");
            let told = text.split_once("listening on ").and_then(|(_, rest)| rest.split_once('"'));
            if let Some((address, _)) = told {
                return DockerRegistry { child, address: address.to_owned() };
            }
            assert!(child.try_wait().expect("wait").is_none(), "{text}");
            std::thread::sleep(Duration::from_millis(20));
        }
    }
}

impl Drop for DockerRegistry {
    fn drop(&mut self) {
        drop(self.child.kill());
        drop(self.child.wait());
    }
}

/// What we push to Debian's registry is there under the digest we say, and comes back the same; a second repository is
/// given its layers by the registry itself.
#[test]
fn debians_registry_takes_and_gives_our_images() {
    if !are_installed(&["docker-registry"]) {
        return;
    }
    let scene = Scene::with_busybox();
    let registry = DockerRegistry::start(&scene);
    let name = |rest: &str| format!("{}/{rest}", registry.address);
    scene.write("Dockerfile", "FROM busybox\nRUN echo made > /made\n");
    scene.rb(&["build", "-q", "-t", &name("a/app:1"), "."]).ok();
    let digest = |said: &str| said.split_once("digest: ").and_then(|(_, rest)| rest.get(..71)).map(str::to_owned);
    let pushed = digest(&scene.rb(&["push", &name("a/app:1")]).ok().out).expect("a digest");
    scene.rb(&["tag", &name("a/app:1"), &name("b/app:1")]).ok();
    let second = scene.rb(&["push", &name("b/app:1")]).ok();
    assert!(second.out.contains("Mounted from a/app"), "{second:?}");
    assert_eq!(digest(&second.out), Some(pushed.clone()));
    let other = Scene::new();
    let pulled = other.rb(&["pull", &name("b/app:1")]).ok();
    assert!(pulled.out.contains(&format!("Digest: {pushed}\n")), "{pulled:?}");
    assert_eq!(other.inspect(&name("b/app:1"))["Id"], scene.inspect(&name("a/app:1"))["Id"]);
    assert_eq!(other.rb(&["run", "--rm", "--network", "none", &name("b/app:1"), "cat", "/made"]).ok().out, "made\n");
    other.rb(&["system", "check"]).ok();
}
