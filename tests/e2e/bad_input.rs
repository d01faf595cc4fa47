//! Whatever is wrong with what rbuild is given: a clear error, exit code 1 or 125, and a store that still works.

use crate::scene::{Scene, busybox_archive};

#[test]
fn dockerfiles_that_are_wrong() {
    let scene = Scene::with_busybox();
    for (text, words) in [
        (&b""[..], &["empty"][..]),
        (b"# only a comment\n", &["no instructions"]),
        (b"RUN echo x\nFROM busybox\n", &["Dockerfile:1"]),
        (
            b"FROM busybox\nRUNN echo x\n",
            &["Dockerfile:2", "2 | >>> RUNN echo x", "unknown instruction", "RUNN", "RUN"],
        ),
        (b"FROM ${NOPE}\nRUN true\n", &["Dockerfile:1", "NOPE"]),
        (b"FROM busybox\nCOPY nope.txt /\n", &["nope.txt", "not found", "Dockerfile:2"]),
        (b"FROM busybox AS self\nCOPY --from=self /etc/passwd /x\n", &["self", "Dockerfile:2"]),
        (b"FROM a AS b\nFROM b AS a\nRUN true\n", &["a"]),
        (b"FROM busybox\nRUN echo \xff\xfe\n", &["UTF-8"]),
        (b"FROM busybox\nRUN --security=insecure true\n", &["insecure", "not allowed"]),
        (b"FROM busybox\nRUN --nope=x true\n", &["unknown flag", "nope"]),
    ] {
        scene.write("Dockerfile", text);
        scene.rb(&["build", "--network", "none", "-t", "bad", "."]).refused(1, words);
        scene.rb(&["image", "inspect", "bad"]).refused(1, &["bad"]);
    }
}

#[test]
fn all_mistakes_of_a_file_are_told_at_once() {
    let scene = Scene::with_busybox();
    scene.write("Dockerfile", "FROM busybox\nRUNN echo x\nENV\nEXPOSE what\n");
    scene.rb(&["build", "."]).refused(1, &["Dockerfile:2", "Dockerfile:3", "RUNN", "ENV"]);
}

#[test]
fn contexts_that_are_wrong() {
    let scene = Scene::with_busybox();
    scene.rb(&["build", "missing"]).refused(1, &["unable to prepare context: path \"missing\" not found"]);
    let file = scene.write("file", "x");
    scene.rb(&["build", file.to_str().unwrap()]).refused(1, &["context must be a directory"]);
    scene.rb(&["build", "."]).refused(1, &["Dockerfile", "no such file"]);
    scene.rb(&["build", "-f", "nope.Dockerfile", "."]).refused(1, &["nope.Dockerfile"]);
    // A port of this machine where nobody listens.
    scene.rb(&["build", "http://127.0.0.1:9/x.git"]).refused(1, &["failed to load build context"]);
}

/// Mistakes of the language that the frontend finds: the message, the line, and what stands there instead.
const MISTAKES: &[(&str, &str, &[&str])] = &[
    ("COPY --frm=x a /", "unknown flag: --frm (did you mean from?)", &["--from copies from a stage"]),
    ("COPY --from=a --from=b a /", "duplicate flag specified: --from", &[]),
    ("RUN --chown=0 true", "unknown flag: --chown", &["hint: RUN has --mount, --network, --security, --device"]),
    ("COPY --chmod=888 a /", "invalid chmod parameter: '888'", &["expected octal digits"]),
    ("ARG", "ARG requires at least one argument", &[]),
    ("FROM --platform=a/b/c/d scratch", "failed to parse platform a/b/c/d: invalid platform", &["linux/amd64"]),
    ("FROM Upper/Case", "invalid reference format: repository name (Case) must be lowercase", &["an image or a stage"]),
    ("ENV A=${NEEDED:?}", "NEEDED: is not allowed to be unset", &["hint: give it with --build-arg NEEDED=<value>"]),
    ("ENV A=\"${NEEDED?say it}\"", "NEEDED: say it", &["hint: give it with --build-arg NEEDED=<value>"]),
    ("FROM scratch AS me\nCOPY --from=me a /", "circular dependency detected on stage: me", &["cannot use itself"]),
    ("ADD --checksum=sha256:1 https://h/x /", "invalid digest \"sha256:1\"", &[]),
    ("LABEL a=\u{0}", "an instruction cannot hold a NUL byte", &["expected text"]),
];

#[test]
fn mistakes_are_named_with_their_line_and_build_nothing() {
    let scene = Scene::new();
    scene.write("a", "x");
    for (text, message, more) in MISTAKES {
        let line = 1 + text.lines().count();
        scene.write("Dockerfile", format!("FROM scratch\n{text}\nCOPY a /\n"));
        let place = [format!("Dockerfile:{line}\n"), format!(" {line:>3} | >>> ")];
        let said = scene.rb(&["build", "-t", "bad", "."]).refused(1, &[message, &place[0], &place[1]]);
        said.says(more);
    }
    assert_eq!(scene.rb(&["images", "-q"]).ok().out, "", "nothing is built");
}

/// Files that are no Dockerfile or ignore file, and stages that are not there.
#[test]
fn files_of_a_build_that_are_wrong() {
    let scene = Scene::new();
    scene.write("Dockerfile", "FROM scratch\nCOPY Dockerfile /\n");
    let huge = scene.write("huge", "");
    std::fs::File::options().write(true).open(&huge).unwrap().set_len((16 << 20) + 1).unwrap();
    std::fs::create_dir(scene.work().join("dir")).unwrap();
    let build = |more: &[&str], words: &[&str]| {
        scene.rb(&[&["build", "-t", "bad"], more, &["."]].concat()).refused(1, words);
    };
    build(&["-f", "huge"], &["cannot read huge: it has 16777217 bytes, over the limit of 16777216"]);
    build(&["-f", "dir"], &["cannot read dir: it is no regular file"]);
    build(&["-f", "huge/x"], &["cannot read huge/x: Not a directory"]);
    build(
        &["-f", "absent"],
        &["open absent: no such file or directory", "looked for absent; name another file with -f"],
    );
    build(&["--target", "nope"], &["target stage \"nope\" could not be found", "no stage of this file has a name"]);
    scene.write("latin", b"FROM scratch\nLABEL a=\xff\n");
    build(&["-f", "latin"], &["latin:2: the line is not valid UTF-8", "hint: save the file as UTF-8"]);
    scene.write(".dockerignore", "fine\n[\n");
    build(&[], &["error reading .dockerignore: line 2: syntax error in pattern: ["]);
    assert_eq!(scene.rb(&["images", "-q"]).ok().out, "", "nothing is built");
}

/// Options of a build with a value that is none: what is said, and what to write instead.
const OPTIONS: &[(&[&str], i32, &[&str])] = &[
    (
        &["--no-cache", "--no-cache-filter=x"],
        1,
        &["--no-cache and --no-cache-filter cannot currently be used together"],
    ),
    (
        &["--squash", "--cache-to=type=inline"],
        1,
        &["--squash and --cache-to type=inline cannot be used together", "hint: an inline cache is about the layers"],
    ),
    (&["--builder=other"], 1, &["no builder \"other\" found", "hint: rbuild builds by itself"]),
    (&["--network=moon"], 1, &["network mode \"moon\" is not supported yet", "hint: modes are default, none and host"]),
    (&["--tag=a b"], 1, &["invalid tag \"a b\": invalid reference format"]),
    (
        &["--tag=a@sha256:e3b0c44298fc1c149afbf4c8996fb92427ae41e4649b934ca495991b7852b855"],
        1,
        &["invalid tag \"a@sha256:e3b0", "a name with a digest cannot be given to a result"],
    ),
    (&["--platform=a/b/c/d"], 1, &["invalid platform \"a/b/c/d\": expected os/architecture"]),
    (&["--add-host=a"], 125, &["\"--add-host\" flag: bad format for add-host: \"a\""]),
    (&["--add-host=a b:10.0.0.1"], 125, &["bad format for add-host: \"a b:10.0.0.1\""]),
    (&["--add-host=a:b"], 125, &["invalid IP address in add-host: \"b\""]),
    (&["--ulimit=nofile"], 125, &["invalid ulimit argument: nofile"]),
    (&["--ulimit=nofile=x"], 125, &["invalid ulimit argument: nofile=x"]),
    (&["--ulimit=what=1"], 125, &["invalid ulimit type: what"]),
    (&["--ulimit=nofile=3:2"], 125, &["ulimit soft limit must be less than or equal to hard limit: 3 > 2"]),
    (&["--output=type=x"], 1, &["exporter \"x\" could not be found", "hint: outputs are local, tar, oci"]),
    (&["--output=type=image,force-compression=true"], 1, &["force-compression needs compression=gzip, zstd or unc"]),
    (
        &["--output=type=image,compression=lz4"],
        1,
        &["unsupported compression type lz4", "hint: compressions are uncompressed, gzip and zstd"],
    ),
    (&["--output=type=tar", "--output=type=oci"], 1, &["several outputs cannot all go to standard output"]),
    (&["--output=file"], 1, &["destination directory", "is a file"]),
    (&["--annotation=x"], 1, &["invalid annotation \"x\", expected key=value"]),
    (&["--push"], 1, &["tag is needed when pushing to registry"]),
    (
        &["--platform=linux/amd64,linux/arm64", "--output=type=docker,dest=o.tar"],
        1,
        &["docker exporter does not currently support exporting manifest lists", "hint: type=oci does"],
    ),
    (
        &["--provenance=filename=Dockerfile", "--output=result"],
        1,
        &["the result has a file /Dockerfile itself", "hint: name another one: --provenance filename=NAME"],
    ),
    (&["--allow=everything"], 1, &["unknown entitlement everything", "hint: privileges are network.host"]),
    (&["--secret=id=x,a=b"], 1, &["unexpected key 'a' in 'a=b'", "hint: keys are id, src, env and type"]),
    (&["--secret=id=x,src=."], 1, &["secret x: . is a directory"]),
    (&["--build-context=a=docker-image://UPPER"], 1, &["invalid image in --build-context a=docker-image://UPPER"]),
    (
        &["--build-context=a=target:b"],
        1,
        &["unsupported context source target for a", "hint: a stage of the same Dock"],
    ),
    (&["--call=nothing"], 1, &["unsupported request frontend.nothing", "hint: requests are build, check, outline"]),
    (&["--call=check,format=xml"], 1, &["invalid format: xml", "hint: formats are text and json"]),
    (&["--call=check,colour=red"], 1, &["invalid print field: colour=red", "hint: fields are format=json|text"]),
    (
        &["--call=check,ignorestatus=perhaps"],
        1,
        &["invalid ignorestatus print value", "hint: values are true and false"],
    ),
    (&["--call=check,outline"], 1, &["invalid print value: check,outline", "hint: one request at a time"]),
    (&["--attest=type=x"], 1, &["attestations of type x are not supported", "hint: types are provenance and sbom"]),
    (&["--provenance=version=v3"], 1, &["invalid provenance SLSA version: v3", "hint: versions are v1 and v0.2"]),
    (&["--provenance=speed=1"], 1, &["option speed of attestation", "hint: options are mode, version, builder-id"]),
    (&["--sbom=generator=img"], 1, &["option generator of attestation", "hint: no image with a scanner is run"]),
    (&["--resource=gpu=1"], 1, &["unknown resource \"gpu\"", "hint: resources are memory, memory-swap"]),
];

#[test]
fn options_of_a_build_that_are_wrong() {
    let scene = Scene::new();
    scene.write("Dockerfile", "FROM scratch\nCOPY Dockerfile /\n");
    scene.write("file", "x");
    for (options, code, words) in OPTIONS {
        scene.rb(&[&["build"], *options, &["."]].concat()).refused(*code, words);
    }
    assert_eq!(scene.rb(&["images", "-q"]).ok().out, "", "nothing is built");
}

#[test]
fn archives_that_are_wrong() {
    let scene = Scene::with_busybox();
    let good = std::fs::read(busybox_archive()).unwrap();
    scene.write("noise.tar", b"this is no archive".repeat(100));
    scene.write("empty.tar", b"");
    scene.write("short.tar", &good[..good.len() / 2]);
    let mut flipped = good.clone();
    let at = flipped.len() / 3;
    flipped[at] ^= 1;
    scene.write("flipped.tar", flipped);
    // Where the layers are not there yet: what is, is not read again.
    let empty = scene.work().join("empty");
    let empty = empty.to_str().unwrap();
    for name in ["noise.tar", "empty.tar", "short.tar", "flipped.tar", "absent.tar"] {
        let said = scene.rb(&["--root", empty, "load", "-i", name]);
        assert_eq!(said.code, 1, "{name}: {said:?}");
        assert!(!said.err.contains("panicked") && !said.err.is_empty(), "{name}: {said:?}");
    }
    assert_eq!(scene.rb(&["--root", empty, "images", "-q"]).ok().out, "");
    assert_eq!(scene.in_image("busybox", "echo intact"), "intact\n");
}

/// A state directory on a file system without room: the error says so and what was there still works.
#[test]
fn a_full_disk_is_an_error_and_no_damage() {
    let scene = Scene::with_busybox();
    let small = scene.work().join("small");
    std::fs::create_dir(&small).unwrap();
    let mount = |arguments: &[&str]| std::process::Command::new("mount").args(arguments).arg(&small).status().unwrap();
    assert!(mount(&["-t", "tmpfs", "-o", "size=12m", "none"]).success());
    let unmount = Unmount(small.clone());
    let root = small.join("root");
    let root = root.to_str().unwrap();
    let archive = busybox_archive().to_str().unwrap();
    scene.rb(&["--root", root, "load", "-q", "-i", archive]).ok();
    scene.write("Dockerfile", "FROM busybox\nRUN dd if=/dev/zero of=/big bs=1M count=64\n");
    scene
        .rb(&["--root", root, "build", "--network", "none", "-t", "big", "."])
        .refused(1, &["No space left on device"]);
    let said = scene.rb(&["--root", root, "run", "--rm", "--network", "none", "busybox", "echo", "intact"]).ok();
    assert_eq!(said.out, "intact\n");
    drop(unmount);
}

/// Where an output goes is not the store: a full disk there is told as what it is, and what is no file stays what it is.
#[test]
fn an_output_that_cannot_be_written_is_told_apart_from_a_full_store() {
    use std::os::unix::fs::FileTypeExt as _;
    let scene = Scene::with_busybox();
    scene.write("Dockerfile", "FROM busybox\n");
    // A device of the test's own: a fault must not cost the machine its /dev/full.
    let full = scene.work().join("full");
    rustix::fs::mknodat(
        rustix::fs::CWD,
        &full,
        rustix::fs::FileType::CharacterDevice,
        rustix::fs::Mode::RUSR | rustix::fs::Mode::WUSR,
        rustix::fs::makedev(1, 7),
    )
    .unwrap();
    let container = scene.rb(&["create", "busybox"]).ok().out;
    for (arguments, words) in [
        (&["save", "-o", "full", "busybox"][..], &["no space left", "somewhere else"][..]),
        (&["export", "-o", "full", container.trim()], &["no space left", "somewhere else"]),
        (&["build", "-o", "type=tar,dest=full", "."], &["no space left", "somewhere else"]),
        (&["build", "-o", "type=oci,dest=full", "."], &["no space left", "somewhere else"]),
        (&["build", "--metadata-file", "full", "."], &["no space left"]),
        (&["build", "--iidfile", "full", "."], &["no space left"]),
    ] {
        scene.rb(arguments).refused(1, words);
        assert!(full.symlink_metadata().unwrap().file_type().is_char_device(), "{arguments:?} replaced a device");
    }
}

struct Unmount(std::path::PathBuf);

impl Drop for Unmount {
    fn drop(&mut self) {
        let status = std::process::Command::new("umount").arg("-l").arg(&self.0).status().expect("umount");
        assert!(status.success() || std::thread::panicking());
    }
}

#[test]
fn output_with_escape_sequences_reaches_no_terminal() {
    let scene = Scene::with_busybox();
    scene.write("Dockerfile", "FROM busybox\nRUN printf 'one\\033]0;title\\007two\\n'; exit 1\n");
    let program = env!("CARGO_BIN_EXE_rbuild");
    let line = format!("{program} build --network none --progress tty .");
    let output = std::process::Command::new("script")
        .args(["-qec", &line, "/dev/null"])
        .current_dir(scene.work())
        .env("RBUILD_ROOT", scene.root())
        .stdin(std::process::Stdio::null())
        .output()
        .unwrap();
    let text = String::from_utf8_lossy(&output.stdout);
    assert!(text.contains("onetwo") && !text.contains("\u{1b}]0;title"), "{text}");
}
