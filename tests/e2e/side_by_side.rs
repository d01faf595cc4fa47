//! The same Dockerfiles built here and by docker 20.10 in its BuildKit mode: the same layers, file by file, the same
//! config and the same history. What may differ is in `docs/side-by-side.md`, and taken out of both before they are
//! compared, by [`Image::normalise`]. Without docker.io, or where its daemon does not start, this judges nothing.

use std::collections::BTreeMap;
use std::io::Read as _;
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};
use std::time::{Duration, Instant};

use serde_json::{Value, json};
use sha2::{Digest as _, Sha256};

use crate::scene::{Scene, busybox_archive};

/// How long the daemon may take to answer, and a build by it.
const PATIENCE: Duration = Duration::from_secs(120);

/// A daemon of our own, with namespaces that end with it, so that it leaves no mount and no process.
pub(crate) struct Docker {
    daemon: Child,
    directory: tempfile::TempDir,
}

impl Docker {
    pub(crate) fn start() -> Option<Docker> {
        const CLIENT: &str = "/usr/bin/docker";
        if [CLIENT, "/usr/sbin/dockerd"].iter().any(|program| !Path::new(program).exists()) {
            eprintln!("docker.io is not installed: this test judges nothing");
            return None;
        }
        let directory = tempfile::Builder::new().prefix("rbuild-docker-").tempdir().expect("a temporary directory");
        let place = |name: &str| directory.path().join(name).display().to_string();
        let log = std::fs::File::create(place("log")).expect("a log");
        let mut command = Command::new("unshare");
        command.args(["--mount", "--pid", "--fork", "--kill-child", "--mount-proc", "/usr/sbin/dockerd"]);
        command.args(["--bridge=none", "--iptables=false", "--ip6tables=false", "--ip-forward=false"]);
        command.args(["--storage-driver=vfs", "-H"]).arg(format!("unix://{}", place("sock")));
        command.args(["--data-root", &place("data"), "--exec-root", &place("exec"), "--pidfile", &place("pid")]);
        command.stdin(Stdio::null()).stdout(log.try_clone().expect("a log")).stderr(log);
        let daemon = command.spawn().ok()?;
        let mut docker = Docker { daemon, directory };
        let start = Instant::now();
        while !docker.client(&["version"]).output().is_ok_and(|output| output.status.success()) {
            let ended = docker.daemon.try_wait().is_ok_and(|status| status.is_some());
            if ended || start.elapsed() > PATIENCE {
                let log = std::fs::read_to_string(docker.directory.path().join("log")).unwrap_or_default();
                eprintln!("docker's daemon does not start here: this test judges nothing\n{log}");
                return None;
            }
            std::thread::sleep(Duration::from_millis(100));
        }
        docker.run(&["load", "-i", busybox_archive().to_str().expect("UTF-8")]);
        Some(docker)
    }

    /// As `DOCKER_HOST` has it.
    pub(crate) fn address(&self) -> String {
        format!("unix://{}", self.directory.path().join("sock").display())
    }

    pub(crate) fn client(&self, arguments: &[&str]) -> Command {
        let mut command = Command::new("/usr/bin/docker");
        command.arg("-H").arg(self.address()).args(arguments);
        command.env_clear().env("PATH", "/usr/sbin:/usr/bin:/sbin:/bin").env("DOCKER_BUILDKIT", "1");
        command.env("DOCKER_CONFIG", self.directory.path()).stdin(Stdio::null());
        command
    }

    #[track_caller]
    fn run(&self, arguments: &[&str]) {
        let output = self.client(arguments).output().expect("the client starts");
        assert!(output.status.success(), "docker {arguments:?}: {output:?}");
    }
}

impl Drop for Docker {
    fn drop(&mut self) {
        let _ = self.daemon.kill();
        let _ = self.daemon.wait();
    }
}

/// The time of everything in the context; a file that has another was made by a step, at its own time.
const TIME: u64 = 1_500_000_000;

/// What a layer says of a path.
#[derive(Debug, Clone, PartialEq)]
struct Entry {
    kind: char,
    mode: u32,
    owner: (u64, u64),
    link: Option<String>,
    content: Option<String>,
    from_context: bool,
}

type Tree = BTreeMap<String, Entry>;

/// An image as its archive has it.
struct Image {
    config: Value,
    layers: Vec<Tree>,
}

impl Image {
    fn read(archive: &Path) -> Image {
        let mut files = BTreeMap::new();
        let mut tar = tar::Archive::new(std::fs::File::open(archive).expect("an archive"));
        for entry in tar.entries().expect("a tar") {
            let mut entry = entry.expect("an entry");
            let path = entry.path().expect("a path").display().to_string();
            let mut bytes = Vec::new();
            entry.read_to_end(&mut bytes).expect("content");
            files.insert(path, bytes);
        }
        let manifest: Value = serde_json::from_slice(&files["manifest.json"]).expect("JSON");
        let named = |name: &Value| &files[name.as_str().expect("a name")];
        let config = serde_json::from_slice(named(&manifest[0]["Config"])).expect("JSON");
        let layers = manifest[0]["Layers"].as_array().expect("layers").iter().map(|name| layer(named(name))).collect();
        let mut image = Image { config, layers };
        image.normalise();
        image
    }

    /// Takes out what is permitted to differ.
    fn normalise(&mut self) {
        let config = self.config.as_object_mut().expect("an object");
        // Of the moment, and of docker's own making.
        for key in
            ["created", "container", "container_config", "docker_version", "rootfs", "moby.buildkit.buildinfo.v1"]
        {
            config.remove(key);
        }
        for entry in config["history"].as_array_mut().expect("a history") {
            entry.as_object_mut().expect("an object").remove("created");
            entry["created_by"] = comparable(entry["created_by"].as_str().unwrap_or_default()).into();
        }
        let container = config.get_mut("config").and_then(Value::as_object_mut).expect("a config");
        for key in [
            "Hostname",
            "Domainname",
            "Image",
            "AttachStdin",
            "AttachStdout",
            "AttachStderr",
            "Tty",
            "OpenStdin",
            "StdinOnce",
        ] {
            container.remove(key);
        }
        strip(&mut self.config);
    }
}

/// Absent, null, false and empty are the same.
fn strip(value: &mut Value) {
    let Value::Object(members) = value else { return };
    members.values_mut().for_each(strip);
    // The empty objects in sets of ports and volumes are what the set is made of.
    members.retain(|_, value| {
        *value != Value::Null && *value != json!(false) && *value != json!("") && *value != json!([])
    });
}

fn layer(bytes: &[u8]) -> Tree {
    let mut entries = BTreeMap::new();
    for entry in tar::Archive::new(bytes).entries().expect("a layer") {
        let mut entry = entry.expect("an entry");
        let path = entry.path().expect("a path").display().to_string();
        let mut content = Vec::new();
        entry.read_to_end(&mut content).expect("content");
        let header = entry.header();
        let kind = match header.entry_type() {
            tar::EntryType::Regular => 'f',
            tar::EntryType::Directory => 'd',
            tar::EntryType::Symlink => 'l',
            tar::EntryType::Link => 'h',
            other => char::from(other.as_byte()),
        };
        let link = entry.link_name().expect("a link").map(|link| link.display().to_string());
        let found = Entry {
            kind,
            mode: header.mode().expect("a mode") & 0o7777,
            owner: (header.uid().expect("a user"), header.gid().expect("a group")),
            link: link.map(|link| link.trim_start_matches("./").to_owned()),
            content: (kind == 'f').then(|| crate::scene::hex(&Sha256::digest(&content))),
            from_context: kind != 'd' && header.mtime().expect("a time") == TIME,
        };
        entries.insert(path.trim_start_matches("./").trim_matches('/').to_owned(), found);
    }
    // The root stands in some layers and not in others.
    entries.remove("");
    entries
}

/// The instruction as both write it into the history: docker 20.10 leaves out flags, and has other forms for some.
fn comparable(created_by: &str) -> String {
    match created_by.split(' ').next() {
        Some(name @ ("ARG" | "EXPOSE" | "HEALTHCHECK")) => name.to_owned(),
        Some("COPY" | "ADD") => {
            let words: Vec<&str> = created_by.split(' ').filter(|word| !word.starts_with("--")).collect();
            words.join(" ")
        }
        _ => created_by.to_owned(),
    }
}

/// Whether the path is an empty directory that was a mount point in a step: docker leaves it behind.
fn is_mount_point(path: &str) -> bool {
    ["dev", "proc", "sys", "scratch", "cache", "mnt", "mnt/one", "out"].contains(&path)
}

/// The tree that the layers make.
fn applied(layers: &[Tree]) -> Tree {
    let mut tree = Tree::new();
    for layer in layers {
        for path in layer.keys() {
            let (parent, name) = path.rsplit_once('/').unwrap_or(("", path));
            let below = |parent: &str| if parent.is_empty() { String::new() } else { format!("{parent}/") };
            match name.strip_prefix(".wh.") {
                Some(".wh..opq") => tree.retain(|path, _| !path.starts_with(&below(parent))),
                Some(gone) => {
                    let gone = format!("{}{gone}", below(parent));
                    tree.retain(|path, _| *path != gone && !path.starts_with(&format!("{gone}/")));
                }
                None => {}
            }
        }
        for (path, entry) in layer.iter().filter(|(path, _)| !path.contains(".wh.")) {
            if entry.kind != 'd' {
                tree.retain(|other, _| !other.starts_with(&format!("{path}/")));
            }
            tree.insert(path.clone(), entry.clone());
        }
    }
    tree
}

/// What differs, a line each.
fn differences(ours: &Image, theirs: &Image) -> Vec<String> {
    let mut found = Vec::new();
    for (key, value) in theirs.config.as_object().expect("an object") {
        if ours.config.get(key) != Some(value) {
            found.push(format!("{key}\n  docker: {value}\n  rbuild: {}", ours.config.get(key).unwrap_or(&Value::Null)));
        }
    }
    let more = ours.config.as_object().expect("an object").keys().filter(|key| theirs.config.get(*key).is_none());
    found.extend(more.map(|key| format!("only rbuild has {key}: {}", ours.config[key])));
    if ours.layers.len() != theirs.layers.len() {
        found.push(format!("docker has {} layers, rbuild {}", theirs.layers.len(), ours.layers.len()));
    }
    for (number, (ours, theirs)) in ours.layers.iter().zip(&theirs.layers).enumerate() {
        // Deletions are written in two ways; the whole trees tell whether they mean the same.
        compare(&format!("layer {number}"), ours, theirs, &mut found);
    }
    compare("the tree", &applied(&ours.layers), &applied(&theirs.layers), &mut found);
    found
}

fn compare(what: &str, ours: &Tree, theirs: &Tree, found: &mut Vec<String>) {
    for path in ours.keys().chain(theirs.keys().filter(|path| !ours.contains_key(*path))) {
        let permitted = path.contains(".wh.") || (is_mount_point(path) && !ours.contains_key(path));
        let (ours, theirs) = (ours.get(path), theirs.get(path));
        if ours != theirs && !permitted {
            found.push(format!("{what}: {path}\n  docker: {theirs:?}\n  rbuild: {ours:?}"));
        }
    }
}

/// A context with what is easily lost.
fn context(scene: &Scene) -> PathBuf {
    let tar = "mkdir -p ctx/d/e/empty ctx/sticky && cd ctx
        echo one > one && echo two > d/two && echo three > d/e/three && ln -s two d/link && ln -s d ld
        ln d/two d/hard && chmod 4755 one && chmod 700 d/e && chmod 1777 sticky && echo 'a b' > 'a b'
        echo x > x.md && echo y > y.md && echo k > keep.md && printf '*.md\\n!keep.md\\n' > .dockerignore
        mkdir packed && echo p > packed/p && chown 5:6 packed/p && tar -czf packed.tar.gz packed && tar -cJf packed.xz packed
        find . -exec touch -h -d @1500000000 {} +";
    let output = Command::new("sh").args(["-ec", tar]).current_dir(scene.work()).output().expect("sh");
    assert!(output.status.success(), "{output:?}");
    scene.work().join("ctx")
}

const FILES: [(&str, &str); 6] = [
    (
        "copies",
        "FROM busybox
COPY one /one
COPY d /d
COPY d/ /into/
COPY ld /through
COPY [\"a b\", \"/dir/with space\"]
COPY one d/two /several/
COPY --chown=1:2 d /owned
COPY --chown=nobody:nogroup one /named
COPY --chmod=640 d/two /moded
COPY *.md /md/
COPY d/t* sticky /wild/
COPY d/e /new/deep/er
WORKDIR /w/x
COPY one .
COPY one rel
ADD packed.tar.gz /unpacked/
ADD packed.xz /unpacked-too
ADD --chown=7:8 one /added
",
    ),
    (
        "runs",
        "FROM busybox
RUN echo a > /a && mkdir -p /p/q && ln -s a /l && ln /a /h
RUN rm /a && rm -r /p && mkdir /p && echo n > /p/n
RUN [\"/bin/sh\", \"-c\", \"echo exec > /exec\"]
RUN true
RUN chmod 600 /exec && chown 3:4 /p/n
RUN mknod /null c 1 3 && mkfifo /fifo
USER 12:34
WORKDIR /made/by/workdir
USER root
RUN --mount=type=tmpfs,target=/scratch echo lost > /scratch/x
RUN --mount=type=cache,target=/cache echo kept > /cache/x
RUN --mount=type=bind,source=one,target=/mnt/one cat /mnt/one > /from-mount
",
    ),
    (
        "config",
        "FROM busybox
MAINTAINER somebody <a@b.c>
ENV A=1 B=\"two words\" C='sq' D=a\\ b
ENV OLD old value
ENV A=2 E=$A
LABEL one=1 \"two words\"=\"x y\" three='z'
EXPOSE 80 53/udp 7000-7002
VOLUME /v /w
VOLUME [\"/json\"]
USER 1000:1000
STOPSIGNAL SIGUSR1
SHELL [\"/bin/sh\", \"-ec\"]
HEALTHCHECK --interval=5s --timeout=3s --start-period=1m --retries=4 CMD test -e /x
ENTRYPOINT [\"/bin/echo\", \"x\"]
CMD echo $A \"quoted\"
ONBUILD RUN echo triggered
ONBUILD COPY . /src
",
    ),
    (
        "shell-forms",
        "FROM busybox
CMD [\"first\"]
ENTRYPOINT exec top -b
HEALTHCHECK NONE
WORKDIR /
LABEL a=1
LABEL a=2
",
    ),
    (
        "arguments",
        "ARG BASE=busybox
ARG GLOBAL=g
FROM ${BASE} AS first
ARG GLOBAL
ARG LOCAL=l-$GLOBAL
ARG GIVEN=default
ARG TARGETARCH
RUN echo $GLOBAL $LOCAL $GIVEN > /args
ENV FROM_ARG=${LOCAL:-none} MORE=${UNSET:+x}${GIVEN:+y}
FROM first
ARG LATE
LABEL l=$LATE m=${GLOBAL}
",
    ),
    (
        "stages",
        "# a comment
FROM busybox AS build
RUN mkdir /out && echo binary > /out/bin && chmod 755 /out/bin && ln -s bin /out/alias
FROM scratch AS Files
COPY --from=build /out /
FROM busybox
COPY --from=files / /opt/
COPY --from=0 /out/bin /bin2
COPY --from=busybox /bin/busybox /other
RUN --mount=from=build,source=/out,target=/out cat /out/bin > /copied \\
  # within
  && echo done
",
    ),
];

#[test]
fn docker_makes_the_same_images() {
    let Some(docker) = Docker::start() else { return };
    let scene = Scene::with_busybox();
    let context = context(&scene);
    let mut found = Vec::new();
    for (name, text) in FILES {
        scene.write("Dockerfile", text);
        let common = [
            "build",
            "--network",
            "none",
            "--build-arg",
            "GIVEN=given",
            "--build-arg",
            "LATE=late",
            "-f",
            "Dockerfile",
        ];
        let rest = ["-t", name, "ctx"];
        let all: Vec<&str> = common.into_iter().chain(rest).collect();
        scene.rb(&all).ok();
        let output = docker.client(&all).current_dir(scene.work()).output().expect("docker build");
        assert!(output.status.success(), "{name}: {output:?}");
        let archive = |who: &str| scene.work().join(format!("{name}-{who}.tar"));
        scene.rb(&["save", "-o", archive("rbuild").to_str().expect("UTF-8"), name]).ok();
        docker.run(&["save", "-o", archive("docker").to_str().expect("UTF-8"), name]);
        let (ours, theirs) = (Image::read(&archive("rbuild")), Image::read(&archive("docker")));
        found.extend(differences(&ours, &theirs).into_iter().map(|line| format!("{name}: {line}")));
    }
    assert!(context.exists());
    assert!(found.is_empty(), "{} differences:\n{}", found.len(), found.join("\n"));
}
