//! Push, pull, login: against the registry in memory.

use rbuild_engine::registry::memory::{self, Access, Action, Behaviour, Fault};

use crate::scene::Scene;

/// A registry on loopback, served beside the test.
pub(crate) struct Registry {
    inner: Option<memory::Registry>,
    runtime: tokio::runtime::Runtime,
}

impl Registry {
    pub(crate) fn start() -> Registry {
        Registry::with(Behaviour::default())
    }

    pub(crate) fn with(behaviour: Behaviour) -> Registry {
        let runtime = tokio::runtime::Builder::new_multi_thread().worker_threads(1).enable_all().build();
        let runtime = runtime.expect("a runtime");
        let inner = runtime.block_on(memory::Registry::start_with(behaviour)).expect("a free port");
        Registry { inner: Some(inner), runtime }
    }

    pub(crate) fn get(&self) -> &memory::Registry {
        self.inner.as_ref().expect("it runs")
    }

    pub(crate) fn name(&self, rest: &str) -> String {
        format!("{}/{rest}", self.get().host())
    }
}

impl Drop for Registry {
    fn drop(&mut self) {
        let _within = self.runtime.enter();
        self.inner.take();
    }
}

#[test]
fn push_and_pull_say_what_docker_says() {
    let scene = Scene::with_busybox();
    let registry = Registry::start();
    let name = registry.name("team/app:v1");
    let id = scene.inspect("busybox")["Id"].clone();
    scene.rb(&["tag", "busybox", &name]).ok();
    let said = scene.rb(&["push", &name]).ok();
    let lines: Vec<&str> = said.out.lines().collect();
    assert_eq!(lines[0], format!("The push refers to repository [{}]", registry.name("team/app")));
    assert!(lines[2].ends_with(": Pushed"), "{said:?}");
    let digest = lines[3].split(' ').nth(2).expect("a digest").to_owned();
    assert!(lines[3].starts_with("v1: digest: sha256:") && lines[3].contains(" size: "), "{said:?}");
    let known = scene.rb(&["images", "--digests", "--format", "{{.Repository}} {{.Digest}}", &name]).ok().out;
    assert_eq!(known, format!("{} {digest}\n", registry.name("team/app")));

    let again = registry.name("team/app:v2");
    scene.rb(&["tag", "busybox", &again]).ok();
    registry.get().clear_log();
    let said = scene.rb(&["push", &again]).ok();
    assert!(said.out.contains(": Layer already exists\n") && !said.out.contains(": Pushed"), "{said:?}");
    assert_eq!(registry.get().count("PUT", "/blobs/"), 0);

    let other = Scene::new();
    let said = other.rb(&["pull", &name]).ok();
    assert!(said.out.starts_with("v1: Pulling from team/app\n"), "{said:?}");
    let end = format!("Digest: {digest}\nStatus: Downloaded newer image for {name}\n{name}\n");
    assert!(said.out.ends_with(&end), "{said:?}");
    assert_eq!(other.inspect(&name)["Id"], id, "the same image");
    let said = other.rb(&["pull", &name]).ok();
    assert!(said.out.contains(&format!("Status: Image is up to date for {name}\n")), "{said:?}");
    assert_eq!(other.rb(&["pull", "-q", &name]).ok().out, format!("{name}\n"));

    // By digest it gets no tag.
    let third = Scene::new();
    let by_digest = registry.name(&format!("team/app@{digest}"));
    third.rb(&["pull", &by_digest]).ok();
    assert_eq!(third.inspect(&by_digest)["RepoDigests"], serde_json::json!([by_digest]));
    third.rb(&["inspect", &name]).refused(1, &["No such object"]);
    let all = third.rb(&["pull", "-a", &registry.name("team/app")]).ok();
    assert!(all.out.contains("v1: Pulling") && all.out.contains("v2: Pulling"), "{all:?}");
    let repository = registry.name("team/app");
    let end = format!(" {repository}\n{repository}\n");
    assert!(all.out.ends_with(&end) && all.out.matches("Status: ").count() == 1, "one line for all tags: {all:?}");

    // What was made and pushed here is here.
    scene.write("Dockerfile", "FROM busybox\nCOPY Dockerfile /\n");
    let own = registry.name("team/own:v1");
    scene.rb(&["build", "-q", "-t", &own, "."]).ok();
    scene.rb(&["push", "-q", &own]).ok();
    let said = scene.rb(&["pull", &own]).ok();
    assert!(said.out.contains(&format!("Status: Image is up to date for {own}\n")), "{said:?}");
    let absent = registry.name("team/own:v2");
    scene.rb(&["push", &absent]).refused(1, &[&format!("tag does not exist: {absent}")]);
}

#[test]
fn failures_of_a_pull_change_nothing() {
    let scene = Scene::with_busybox();
    let registry = Registry::start();
    let name = registry.name("app:1");
    scene.rb(&["tag", "busybox", &name]).ok();
    scene.rb(&["push", "-q", &name]).ok();
    scene.rb(&["rmi", &name]).ok();
    let before = scene.rb(&["images", "--no-trunc"]).ok().out;
    scene.rb(&["pull", &registry.name("nope")]).refused(1, &["not found"]);
    scene.rb(&["pull", &registry.name("app:nope")]).refused(1, &["manifest unknown"]);
    scene.rb(&["pull", "127.0.0.1:1/x"]).refused(1, &["connection refused"]);
    scene.rb(&["pull", &registry.name("UPPER")]).refused(1, &["must be lowercase"]);
    scene.rb(&["push", &registry.name("not-here:1")]).refused(1, &["does not exist locally"]);
    registry.get().fault(Fault::new("GET", "/manifests/", Action::OtherBytes));
    scene.rb(&["pull", &name]).refused(1, &["has digest"]);
    assert_eq!(scene.rb(&["images", "--no-trunc"]).ok().out, before);

    let fresh = Scene::new();
    registry.get().fault(Fault::new("GET", "/blobs/", Action::CutAfter(100)).times(3));
    fresh.rb(&["pull", &name]).ok();
    assert_eq!(fresh.inspect(&name)["Id"], scene.inspect("busybox")["Id"]);
}

#[test]
fn a_stored_login_opens_a_registry() {
    let access = Access::Basic { username: "user".into(), password: "secret".into() };
    let registry = Registry::with(Behaviour { access, ..Behaviour::default() });
    let scene = Scene::with_busybox();
    let host = registry.get().host();
    let name = registry.name("private");
    scene.rb(&["tag", "busybox", &name]).ok();
    scene.rb(&["push", &name]).refused(1, &["no basic auth credentials"]);
    scene
        .rb_with_input(&["login", "-u", "user", "--password-stdin", &host], b"wrong")
        .refused(1, &["Error: login attempt to ", "failed with status: 401 Unauthorized"]);
    scene.rb(&["login", "--password-stdin", &host]).refused(1, &["--username"]);
    scene.rb(&["login", "-u", "user", &host]).refused(1, &["non TTY"]);
    let said = scene.rb_with_input(&["login", "-u", "user", "--password-stdin", &host], b"secret\n").ok();
    assert!(said.out.contains("Login Succeeded"), "{said:?}");
    scene.rb(&["push", &name]).ok();
    scene.rb(&["logout", &host]).ok();
    scene.rb(&["pull", &name]).refused(1, &["no basic auth credentials"]);
}

#[test]
fn a_build_is_given_credentials_of_its_own() {
    let access = Access::Basic { username: "user".into(), password: "secret".into() };
    let registry = Registry::with(Behaviour { access, ..Behaviour::default() });
    let scene = Scene::with_busybox();
    let name = registry.name("private");
    scene.rb(&["tag", "busybox", &name]).ok();
    scene.rb_with_input(&["login", "-u", "user", "--password-stdin", &registry.get().host()], b"secret").ok();
    scene.rb(&["push", &name]).ok();
    let login = scene.root().parent().expect("a parent").join(".docker/config.json");
    let kept = scene.work().join("auth.json");
    std::fs::rename(&login, &kept).expect("the login is kept there");

    scene.write("Dockerfile", format!("FROM {name}\nRUN true\n"));
    let build = ["build", "--network", "none", "--pull", "-q"];
    let with = |options: &[&str]| scene.rb(&[&build[..], options, &["."]].concat());
    with(&[]).refused(1, &["no basic auth credentials"]);
    with(&["--creds", "user:wrong"]).refused(1, &[&name]);
    with(&["--creds", "user:secret", "--tls-verify=false", "--retry", "1", "--retry-delay", "1ms"]).ok();
    with(&["--authfile", kept.to_str().expect("UTF-8")]).ok();
    with(&["--authfile", "/no/such/file"]).refused(1, &["credential file /no/such/file"]);
    with(&["--cert-dir", "/no/such"]).refused(1, &["/no/such"]);
    with(&["--tls-verify=perhaps"]).refused(125, &["tls-verify", "perhaps"]);
    with(&["--retry-delay", "soon"]).refused(125, &["invalid duration \"soon\""]);
}

#[test]
fn a_configured_mirror_answers_for_docker_io() {
    let scene = Scene::with_busybox();
    let registry = Registry::start();
    let name = registry.name("library/mirrored");
    scene.rb(&["tag", "busybox", &name]).ok();
    scene.rb(&["push", "-q", &name]).ok();
    let config = format!("{{\"registry-mirrors\": [\"http://{}\"]}}", registry.get().host());
    std::fs::write(scene.root().join("daemon.json"), config).expect("write");
    assert!(scene.rb(&["info"]).ok().out.contains(&registry.get().host()), "info tells where images come from");
    let said = scene.rb(&["pull", "mirrored"]).ok();
    assert!(said.out.ends_with("docker.io/library/mirrored:latest\n"), "{said:?}");
    assert_eq!(scene.rb(&["images", "--format", "{{.Repository}}:{{.Tag}}", "mirrored"]).ok().out, "mirrored:latest\n");
}
