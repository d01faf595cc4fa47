//! `registry serve`: the store as a registry, for this program and for others.

use std::io::{BufRead as _, BufReader};
use std::process::{Child, Command, Stdio};

use crate::peers::are_installed;
use crate::scene::Scene;

/// The program as a registry over the store of a scene, on a free port.
pub(crate) struct Serving {
    child: Child,
    pub(crate) address: String,
}

impl Serving {
    pub(crate) fn start(scene: &Scene, options: &[&str]) -> Serving {
        let mut command = scene.command(&["registry", "serve", "--listen", "127.0.0.1:0"]);
        let mut child = command.args(options).stdout(Stdio::piped()).spawn().expect("the program starts");
        let mut line = String::new();
        BufReader::new(child.stdout.take().expect("a pipe")).read_line(&mut line).expect("a line");
        let address = line.trim().rsplit('/').next().unwrap_or_default().to_owned();
        assert!(line.starts_with("Serving images on http"), "{line:?}");
        Serving { child, address }
    }

    pub(crate) fn name(&self, rest: &str) -> String {
        format!("{}/{rest}", self.address)
    }

    /// Ends it as a supervisor does; gives its exit code.
    fn end(mut self) -> Option<i32> {
        let pid = rustix::process::Pid::from_child(&self.child);
        rustix::process::kill_process(pid, rustix::process::Signal::TERM).expect("it lives");
        self.child.wait().expect("wait").code()
    }
}

impl Drop for Serving {
    fn drop(&mut self) {
        // Ended already, or else ended now.
        drop(self.child.kill());
        drop(self.child.wait());
    }
}

#[test]
fn a_store_serves_its_images_and_takes_others() {
    let team = Scene::with_busybox();
    let registry = Serving::start(&team, &[]);
    let scene = Scene::new();
    let name = registry.name("busybox");
    scene.rb(&["pull", "-q", &name]).ok();
    assert_eq!(scene.inspect(&name)["Id"], team.inspect("busybox")["Id"]);

    scene.write("Dockerfile", format!("FROM {name}\nRUN echo built > /file\nCMD [\"cat\", \"/file\"]\n"));
    let app = registry.name("team/app:v1");
    scene.rb(&["build", "-q", "-t", &app, "."]).ok();
    let said = scene.rb(&["push", &app]).ok();
    assert!(said.out.contains(": Mounted from busybox") && said.out.contains(": Pushed"), "{said:?}");
    assert_eq!(team.rb(&["run", "--rm", "--network", "none", "team/app:v1"]).ok().out, "built\n");
    let listed = team.rb(&["images", "--format", "{{.Repository}}:{{.Tag}}", "team/app"]).ok();
    assert_eq!(listed.out, "team/app:v1\n");
    assert_eq!(registry.end(), Some(0));
}

#[test]
fn skopeo_copies_to_it_and_from_it() {
    if !are_installed(&["skopeo"]) {
        return;
    }
    let scene = Scene::with_busybox();
    let registry = Serving::start(&scene, &[]);
    let skopeo = |arguments: &[&str]| {
        let mut command = Command::new("skopeo");
        let output = command.args(arguments).current_dir(scene.work()).output().expect("skopeo");
        assert!(output.status.success(), "{arguments:?}: {output:?}");
        String::from_utf8_lossy(&output.stdout).into_owned()
    };
    let at = |name: &str| format!("docker://{}", registry.name(name));
    let open = ["--insecure-policy", "copy", "--src-tls-verify=false", "--dest-tls-verify=false"];
    let copy = |from: &str, to: &str| skopeo(&[&open[..], &[from, to]].concat());
    copy(&at("busybox"), "oci:layout:here");
    copy("oci:layout:here", &at("copied/oci:v1"));
    copy(&at("copied/oci:v1"), &at("copied/again:v2"));
    assert_eq!(scene.inspect("copied/oci:v1")["Id"], scene.inspect("busybox")["Id"]);
    assert_eq!(scene.rb(&["run", "--rm", "--network", "none", "copied/again:v2", "echo", "runs"]).ok().out, "runs\n");
    let tags = skopeo(&["list-tags", "--tls-verify=false", &at("copied/oci")]);
    assert!(tags.contains("\"v1\""), "{tags}");
    skopeo(&["delete", "--tls-verify=false", &at("copied/again:v2")]);
    scene.rb(&["image", "inspect", "copied/again:v2"]).refused(1, &["No such image"]);
}

#[test]
fn what_cannot_be_served_is_said_at_once() {
    let scene = Scene::new();
    let weak = scene.write("weak", "ann:{SHA}x\n");
    let weak = weak.to_str().expect("UTF-8");
    scene.rb(&["registry", "serve", "--htpasswd", weak]).refused(1, &["bcrypt"]);
    scene.rb(&["registry", "serve", "--htpasswd", "absent"]).refused(1, &["absent"]);
    scene.rb(&["registry", "serve", "--name-prefix", "Not A Name"]).refused(1, &["invalid name prefix"]);
    scene.rb(&["registry", "serve", "--tls-cert", weak]).refused(1, &["tls-key"]);
    scene.rb(&["registry", "serve", "--tls-cert", weak, "--tls-key", weak]).refused(1, &["certificate"]);
    scene.rb(&["registry", "serve", "--listen", "nowhere"]).refused(1, &["listening on nowhere"]);
}

/// The certificates of the tests of the registry crate.
fn certificate(name: &str) -> String {
    format!("{}/registry/tests/testdata/tls/{name}", env!("CARGO_MANIFEST_DIR"))
}

/// Puts a file into the directory that is about one registry.
fn configure(scene: &Scene, registry: &str, name: &str, bytes: &[u8]) {
    scene.write(&format!("../.docker/certs.d/{registry}/{name}"), bytes);
}

#[test]
fn certificates_of_a_registry_come_from_its_directory() {
    let team = Scene::with_busybox();
    let (shown, key, authority) = (certificate("server.pem"), certificate("server-key.pem"), certificate("ca.pem"));
    let options = ["--tls-cert", &shown, "--tls-key", &key, "--tls-client-ca", &authority];
    let registry = Serving::start(&team, &options);
    let read = |name: &str| std::fs::read(certificate(name)).expect("a certificate");
    let (host, name) = (registry.address.clone(), registry.name("busybox"));
    let scene = Scene::new();
    configure(&scene, &host, "ca.crt", &read("ca.pem"));
    scene.rb(&["pull", &name]).refused(1, &[&host]);
    configure(&scene, &host, "team.cert", &read("client.pem"));
    scene.rb(&["pull", &name]).refused(1, &["missing key"]);
    configure(&scene, &host, "team.key", &read("client-key.pem"));
    scene.rb(&["pull", "-q", &name]).ok();
    scene.rb(&["tag", &name, &registry.name("again:v1")]).ok();
    scene.rb(&["push", "-q", &registry.name("again:v1")]).ok();

    // Another authority is not believed, though the address is of this machine.
    let other = Scene::new();
    configure(&other, &host, "ca.crt", &read("client.pem"));
    configure(&other, &host, "team.cert", &read("client.pem"));
    configure(&other, &host, "team.key", &read("client-key.pem"));
    other.rb(&["pull", &name]).refused(1, &["certificate"]);

    // The same by containerd's file, under another name.
    let third = Scene::new();
    let hosts = format!("server = \"https://{host}\"\nca = \"ca.pem\"\nclient = [[\"c.pem\", \"k.pem\"]]\n");
    configure(&third, "registry.example", "hosts.toml", hosts.as_bytes());
    for (file, from) in [("ca.pem", "ca.pem"), ("c.pem", "client.pem"), ("k.pem", "client-key.pem")] {
        configure(&third, "registry.example", file, &read(from));
    }
    third.rb(&["pull", "-q", "registry.example/again:v1"]).ok();
}

#[test]
fn a_mirror_of_hosts_toml_is_asked_first_and_told_for_whom() {
    let team = Scene::with_busybox();
    let registry = Serving::start(&team, &[]);
    let scene = Scene::new();
    let hosts = format!("[host.\"http://127.0.0.1:9\"]\n[host.\"http://{}\"]\n", registry.address);
    configure(&scene, "docker.io", "hosts.toml", hosts.as_bytes());
    let said = scene.rb(&["pull", "busybox"]).ok();
    assert!(said.out.contains("Status: Downloaded newer image for busybox:latest"), "{said:?}");
    configure(&scene, "docker.io", "hosts.toml", b"[host.\"https://x\"]\ndial_timeout = \"1s\"\n");
    scene.rb(&["pull", "busybox"]).refused(1, &["hosts.toml", "dial_timeout"]);
}
