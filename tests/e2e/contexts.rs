//! Contexts that are not directories: archives, files of a web server, OCI layouts; and what of a directory is left out.

use std::io::{Read as _, Write as _};

use crate::scene::Scene;

fn archive(files: &[(&str, &str)]) -> Vec<u8> {
    let mut tar = tar::Builder::new(Vec::new());
    for (name, text) in files {
        let mut header = tar::Header::new_ustar();
        header.set_size(text.len() as u64);
        header.set_mode(0o644);
        tar.append_data(&mut header, name, text.as_bytes()).unwrap();
    }
    tar.into_inner().unwrap()
}

/// Answers every request on the loopback with `body`, until the test ends with its process.
fn serve(body: Vec<u8>) -> String {
    let listener = std::net::TcpListener::bind("127.0.0.1:0").unwrap();
    let address = listener.local_addr().unwrap();
    std::thread::spawn(move || {
        for stream in listener.incoming() {
            let mut stream = stream.unwrap();
            let mut request = [0; 4096];
            // One read holds the whole of a small request.
            let _ = stream.read(&mut request).unwrap();
            write!(stream, "HTTP/1.1 200 OK\r\nContent-Length: {}\r\nConnection: close\r\n\r\n", body.len()).unwrap();
            stream.write_all(&body).unwrap();
        }
    });
    format!("http://{address}")
}

#[test]
fn an_archive_is_a_context_without_ignore_file() {
    let scene = Scene::with_busybox();
    let files = [
        ("Dockerfile", "FROM busybox\nCOPY . /c/\n"),
        ("Other", "FROM busybox\nCOPY f /o\n"),
        (".dockerignore", "f\n"),
        ("f", "data"),
    ];
    let tar = archive(&files);
    scene.rb_with_input(&["build", "-t", "a", "-"], &tar).ok();
    assert_eq!(scene.in_image("a", "cat /c/f"), "data");
    scene.rb_with_input(&["build", "-t", "b", "-f", "Other", "-"], &tar).ok();
    assert_eq!(scene.in_image("b", "cat /o"), "data");
    scene.rb_with_input(&["build", "-f", "Missing", "-"], &tar).refused(1, &["Missing", "no such file"]);
    scene.rb_with_input(&["build", "-"], &tar[..700]).refused(1, &["failed to load build context", "archive"]);
    scene.rb_with_input(&["build", "-f", "-", "-"], b"").refused(1, &["can't use stdin for both"]);
    scene.rb_with_input(&["build", "-f", "Other", "-"], b"FROM busybox\n").refused(1, &["is a Dockerfile itself"]);
}

#[test]
fn a_context_can_date_the_build() {
    let scene = Scene::with_busybox();
    let mut tar = tar::Builder::new(Vec::new());
    let text =
        "ARG SOURCE_DATE_EPOCH=context\nFROM busybox\nARG SOURCE_DATE_EPOCH\nRUN echo \"[$SOURCE_DATE_EPOCH]\" >/d\n";
    for (name, text, time) in [("Dockerfile", text, 1_000_000_000), ("sub/newest", "", 1_000_000_007)] {
        let mut header = tar::Header::new_ustar();
        header.set_size(text.len() as u64);
        header.set_mode(0o644);
        header.set_mtime(time);
        tar.append_data(&mut header, name, text.as_bytes()).unwrap();
    }
    scene.rb_with_input(&["build", "-t", "dated", "-"], &tar.into_inner().unwrap()).ok();
    assert_eq!(scene.in_image("dated", "cat /d"), "[1000000007]\n");
    assert_eq!(scene.inspect("dated")["Created"], "2001-09-09T01:46:47Z");
    // A directory of this machine has no date.
    scene.write("Dockerfile", text);
    let said = scene.command(&["build", "-t", "undated", "."]).env("SOURCE_DATE_EPOCH", "context").output().unwrap();
    assert!(said.status.success(), "{said:?}");
    assert_eq!(scene.in_image("undated", "cat /d"), "[]\n");
    let given = ["build", "--build-arg", "SOURCE_DATE_EPOCH=yesterday", "."];
    scene.rb(&given).refused(1, &["invalid SOURCE_DATE_EPOCH: yesterday", "seconds since 1970, or context"]);
}

/// What an archive's links point at is beneath the context, and so is what is written through them.
#[test]
fn an_archive_stays_beneath_its_directory() {
    let scene = Scene::with_busybox();
    let victim = scene.write("victim", "untouched");
    let mut tar = tar::Builder::new(Vec::new());
    let mut header = tar::Header::new_ustar();
    header.set_entry_type(tar::EntryType::Symlink);
    header.set_size(0);
    tar.append_link(&mut header, "out", victim.parent().unwrap()).unwrap();
    let mut header = tar::Header::new_ustar();
    header.set_size(4);
    header.set_mode(0o644);
    tar.append_data(&mut header, "out/victim", &b"evil"[..]).unwrap();
    let text = b"FROM busybox\nCOPY . /c/\n";
    let mut header = tar::Header::new_ustar();
    header.set_size(text.len() as u64);
    header.set_mode(0o644);
    tar.append_data(&mut header, "Dockerfile", &text[..]).unwrap();
    scene.rb_with_input(&["build", "-"], &tar.into_inner().unwrap());
    assert_eq!(std::fs::read_to_string(victim).unwrap(), "untouched");
}

#[test]
fn a_web_server_gives_archives_and_dockerfiles() {
    let scene = Scene::with_busybox();
    let tar = serve(archive(&[("Dockerfile", "FROM busybox\nCOPY f /f\n"), ("f", "data")]));
    scene.rb(&["build", "-t", "a", &format!("{tar}/context.tar")]).ok();
    assert_eq!(scene.in_image("a", "cat /f"), "data");
    let text = serve(b"FROM busybox\nLABEL from=web\n".to_vec());
    scene.rb(&["build", "-t", "b", &format!("{text}/Dockerfile")]).ok();
    assert_eq!(scene.inspect("b")["Config"]["Labels"]["from"], "web");
    let text = serve(b"FROM busybox\nCOPY g /g\nCOPY --from=named f /f\n".to_vec());
    scene.write("ctx/g", "here");
    let named = format!("named={tar}/context.tar");
    scene.rb(&["build", "-t", "c", "--build-context", &named, "-f", &format!("{text}/Dockerfile"), "ctx"]).ok();
    assert_eq!(scene.in_image("c", "cat /g /f"), "heredata");
    scene.rb(&["build", "http://127.0.0.1:1/x.tar"]).refused(1, &["127.0.0.1:1"]);
}

#[test]
fn downloads_and_addresses_that_are_wrong_are_named() {
    let scene = Scene::new();
    let web = serve(b"data".to_vec());
    let checksum = "sha256:e3b0c44298fc1c149afbf4c8996fb92427ae41e4649b934ca495991b7852b855";
    scene.write("Dockerfile", format!("FROM scratch\nADD --checksum={checksum} {web}/f /\n"));
    let found = "sha256:3a6eb0790f39ac87c94f3856b2dd2c5d110e6811602261a9a923d3bb23adc8b7";
    let want = format!("cannot fetch {web}/f: digest mismatch {found}: {checksum}");
    scene.rb(&["build", "-t", "bad", "."]).refused(1, &[&want, "Dockerfile:2\n", "   2 | >>> ADD --checksum"]);
    scene.write("Dockerfile", "FROM scratch\nADD https://127.0.0.1:1/r.git#--upload-pack=x /\n");
    scene.rb(&["build", "-t", "bad", "."]).refused(1, &["invalid git ref \"--upload-pack=x\"", "Dockerfile:2\n"]);
    for (address, words) in [
        ("https://127.0.0.1:1/r.git?colour=red", "invalid git context: unexpected query \"colour\" of a git URL"),
        ("https://127.0.0.1:1/r.git#-x", "failed to load build context: invalid git ref \"-x\""),
        ("git@-oProxyCommand=x:r", "\"git@-oProxyCommand=x:r\" is no address of a build context"),
    ] {
        scene.rb(&["build", "-t", "bad", address]).refused(1, &[words]);
    }
    let text = serve(b"FROM scratch\nCOPY f /\n".to_vec());
    let named = ["build", "-t", "bad", "-f", "Other", &format!("{text}/Dockerfile")];
    scene.rb(&named).refused(1, &["the build context is a Dockerfile itself, and another one was named"]);
    scene
        .rb_with_input(&["build", "-"], &[0x1f, 0x8b, 8, 0, 0, 0, 0, 0, 0, 3, 0xff, 0xff, 0xff])
        .refused(1, &["archive"]);
    assert_eq!(scene.rb(&["images", "-q"]).ok().out, "", "nothing is built");
}

/// A layout with two images, made by this program.
fn layout(scene: &Scene) -> std::path::PathBuf {
    let dir = scene.work().join("layout");
    for tag in ["one", "two"] {
        scene.write("made/Dockerfile", format!("FROM busybox\nRUN --network=none echo {tag} >/word\nENV WORD={tag}\n"));
        let output = format!("type=oci,tar=false,name=made:{tag},dest={}", dir.display());
        scene.rb(&["build", "-o", &output, "made"]).ok();
    }
    dir
}

#[test]
fn an_image_of_a_layout_stands_for_a_name() {
    let scene = Scene::with_busybox();
    let dir = layout(&scene);
    let other = scene.work().join("other").display().to_string();
    scene.write("ctx/Dockerfile", "FROM base\nCOPY --from=files /word /second\nRUN --network=none echo $WORD >/env\n");
    let (base, files) =
        (format!("base=oci-layout://{}:one", dir.display()), format!("files=oci-layout://{}:two", dir.display()));
    let build = |options: &[&str]| scene.rb(&[&["--root", &other, "build", "-t", "t"], options, &["ctx"]].concat());
    let said = build(&["--build-context", &base, "--build-context", &files]).ok();
    assert!(said.err.contains("[context base] load oci-layout://"), "{said:?}");
    let ran = scene.rb(&["--root", &other, "run", "--rm", "--network", "none", "t", "cat", "/word", "/second", "/env"]);
    assert_eq!(ran.ok().out, "one\ntwo\none\n");
    // What was lent for one build is no image of the store.
    assert_eq!(scene.rb(&["--root", &other, "images", "-a", "-q"]).ok().out.lines().count(), 1);

    let index: serde_json::Value = serde_json::from_slice(&std::fs::read(dir.join("index.json")).unwrap()).unwrap();
    let digest = index["manifests"][1]["digest"].as_str().unwrap();
    let pinned = format!("base=oci-layout://{}@{digest}", dir.display());
    build(&["--build-context", &pinned, "--build-context", &files]).ok();
    let ran = scene.rb(&["--root", &other, "run", "--rm", "--network", "none", "t", "cat", "/word"]);
    assert_eq!(ran.ok().out, "two\n");
}

const MANIFEST: &str = r#"{"schemaVersion":2,"mediaType":"application/vnd.oci.image.manifest.v1+json","config":{
    "mediaType":"application/vnd.oci.image.config.v1+json","size":2,
    "digest":"sha256:e3b0c44298fc1c149afbf4c8996fb92427ae41e4649b934ca495991b7852b855"},"layers":[]}"#;

#[test]
fn layouts_that_are_none_are_named() {
    let scene = Scene::with_busybox();
    let dir = layout(&scene);
    scene.write("ctx/Dockerfile", "FROM base\n");
    scene.write("empty/x", "");
    let refused = |place: &str, words: &[&str]| {
        let context = format!("base=oci-layout://{place}");
        let said = scene.rb(&["build", "--build-context", &context, "ctx"]);
        said.refused(1, &[&["oci-layout reference", "could not be resolved"], words].concat());
    };
    refused("no/such", &["no/such: no such file or directory"]);
    refused("empty", &["empty is no OCI layout: it has no index.json"]);
    refused("layout:three", &["the layout has no image three", "it has one, two"]);
    refused("layout", &["the layout has no image latest"]);
    // An index that is none.
    let whole = std::fs::read(dir.join("index.json")).unwrap();
    for (text, words) in [("{", "index.json: "), (MANIFEST, "index.json is a manifest")] {
        std::fs::write(dir.join("index.json"), text).unwrap();
        refused("layout:one", &[words]);
    }
    std::fs::write(dir.join("index.json"), whole).unwrap();
    // A blob that is not what its name says.
    let index: serde_json::Value = serde_json::from_slice(&std::fs::read(dir.join("index.json")).unwrap()).unwrap();
    let digest = index["manifests"][0]["digest"].as_str().unwrap().strip_prefix("sha256:").unwrap();
    let blob = dir.join("blobs/sha256").join(digest);
    let text = std::fs::read_to_string(&blob).unwrap().replace("\"schemaVersion\":2", "\"schemaVersion\": 2");
    std::fs::write(&blob, text).unwrap();
    refused("layout:one", &["its content is not what its name says"]);
    let target = ["build", "--build-context", "base=target:other", "ctx"];
    scene.rb(&target).refused(1, &["unsupported context source target for base", "only bake"]);
}

#[test]
fn archives_of_every_compression_are_contexts() {
    let scene = Scene::with_busybox();
    let tar = scene.write("plain.tar", archive(&[("Dockerfile", "FROM scratch\nCOPY f /f\n"), ("f", "data")]));
    for program in ["gzip", "bzip2", "xz", "zstd"] {
        let packed = std::process::Command::new(program).args(["-c", tar.to_str().unwrap()]).output();
        let Ok(packed) = packed else { continue };
        assert!(packed.status.success(), "{program}");
        scene.rb_with_input(&["build", "-o", program, "-"], &packed.stdout).ok();
        let file = scene.work().join(program).join("f");
        assert_eq!(std::fs::read_to_string(file).unwrap(), "data", "{program}");
    }
}

#[test]
fn the_dockerfiles_own_ignore_file_comes_first() {
    let scene = Scene::new();
    for name in ["a", "b", "c"] {
        scene.write(&format!("ctx/{name}"), name);
    }
    scene.write("ctx/Dockerfile", "FROM scratch\nCOPY . /\n");
    scene.write("ctx/other/Build.file", "FROM scratch\nCOPY . /\n");
    scene.write("ctx/.dockerignore", "a\n*ocker*\nother\n");
    scene.write("ctx/other/Build.file.dockerignore", "b\n**/*ocker*\nother\n");
    scene.write("mine", "c\n*ocker*\n.d*\nother\n");
    let built = |name: &str, options: &[&str]| {
        scene.rb(&[&["build", "-o", name], options, &["ctx"]].concat()).ok();
        let names = std::fs::read_dir(scene.work().join(name)).unwrap();
        let mut names: Vec<String> = names.map(|e| e.unwrap().file_name().into_string().unwrap()).collect();
        names.sort();
        names.join(" ")
    };
    assert_eq!(built("one", &[]), "b c");
    assert_eq!(built("two", &["-f", "ctx/other/Build.file"]), "a c");
    assert_eq!(built("three", &["--ignorefile", "mine"]), "a b");
    scene.rb(&["build", "--ignorefile", "no", "ctx"]).refused(1, &["no: no such file or directory"]);
}
