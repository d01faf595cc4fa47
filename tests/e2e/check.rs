//! Questions about a Dockerfile: `build --check`, `build --call`, `rbuild check`.

use serde_json::{Value, json};

use crate::scene::{Said, Scene};

const UNWISE: &str = "from busybox as Base\nMAINTAINER me\nENV one two\nWORKDIR rel\nCMD echo shell\nCOPY $nothing .\n";
const RULES: [&str; 7] = [
    "ConsistentInstructionCasing",
    "StageNameCasing",
    "MaintainerDeprecated",
    "LegacyKeyValueFormat",
    "WorkdirRelativePath",
    "JSONArgsRecommended",
    "UndefinedVar",
];

const OFFERS: &str = "# TAG is the release\nARG TAG=latest\n# build makes it\nFROM busybox:$TAG AS build\n\
                      # NAME says who\nARG NAME=me\nRUN --mount=type=secret,id=tok,required=true --mount=type=ssh \
                      --mount=type=cache,id=c-$NAME,target=/c true\n\nFROM scratch\nCOPY --from=build / /\n";

fn parsed(said: &Said) -> Value {
    serde_json::from_str(&said.out).unwrap_or_else(|error| panic!("{error}: {said:#?}"))
}

/// The rules that a check found, and whether it failed.
fn rules(said: &Said) -> (Vec<String>, bool) {
    let answer = parsed(said);
    let found = answer["warnings"].as_array().unwrap().iter();
    (found.map(|warning| warning["ruleName"].as_str().unwrap().to_owned()).collect(), said.code == 1)
}

#[test]
fn a_check_says_what_is_unwise_and_builds_nothing() {
    let scene = Scene::with_busybox();
    scene.write("Dockerfile", "FROM busybox\nRUN echo x >/x\n");
    for arguments in [&["build", "--check", "-t", "img", "."][..], &["build", "--call=lint", "."], &["check"]] {
        assert_eq!(scene.rb(arguments).ok().out, "Check complete, no warnings found.\n");
    }
    scene.rb(&["image", "inspect", "img"]).refused(1, &["img"]);

    scene.write("Dockerfile", UNWISE);
    let said = scene.rb(&["build", "--check", "."]);
    assert_eq!(said.code, 1);
    assert!(said.out.starts_with("Check complete, 7 warnings have been found!\n\nWARNING: "), "{said:#?}");
    for rule in RULES {
        assert!(
            said.out.contains(&format!("\nWARNING: {rule} - https://docs.docker.com/go/dockerfile/rule/")),
            "{rule}"
        );
    }
    let last = "/undefined-var/\nUsage of undefined variable '$nothing'\nDockerfile:6\n--------------------\n   \
                4 |     WORKDIR rel\n   5 |     CMD echo shell\n   6 | >>> COPY $nothing .\n--------------------\n";
    assert!(said.out.ends_with(last), "{}", said.out);
    assert_eq!(scene.rb(&["check", "."]).out, said.out, "the two commands say the same");

    scene.write("Dockerfile", "FROM scratch\nMAINTAINER me\n");
    let said = scene.rb(&["check"]);
    assert!(said.out.starts_with("Check complete, 1 warning has been found!\n"), "{said:#?}");
}

#[test]
fn a_check_tells_machines_the_same() {
    let scene = Scene::with_busybox();
    scene.write("Dockerfile", UNWISE);
    let said = scene.rb(&["build", "--call=check,format=json", "."]);
    assert_eq!(rules(&said), (RULES.map(str::to_owned).to_vec(), true));
    let answer = parsed(&said);
    assert_eq!(
        answer["warnings"][3]["location"],
        json!({ "ranges": [{ "start": { "line": 3 }, "end": { "line": 3 } }] })
    );
    assert_eq!(answer["warnings"][3]["url"], "https://docs.docker.com/go/dockerfile/rule/legacy-key-value-format/");
    assert!(answer["warnings"][3]["description"].is_string() && answer["buildError"].is_null());
    assert_eq!(
        (&answer["sources"][0]["filename"], &answer["sources"][0]["language"]),
        (&json!("Dockerfile"), &json!("Dockerfile"))
    );
    let ignored = scene.rb(&["build", "--call=check,format=json,ignorestatus=true", "."]).ok();
    assert_eq!(ignored.out, said.out);
    assert_eq!(scene.rb(&["check", "--format", "json"]).out, said.out);
}

/// A file that cannot be built is told why, after what is unwise in it.
#[test]
fn a_check_of_a_broken_file_says_both() {
    let scene = Scene::new();
    scene.write("Dockerfile", "FROM scratch AS Bad\nMAINTAINER me\nBADCMD\n");
    let said = scene.rb(&["build", "--check", "."]).refused(1, &["Dockerfile:3", "unknown instruction: BADCMD"]);
    assert!(said.out.starts_with("Check complete, 2 warnings have been found!\n"), "{said:#?}");
    let said = scene.rb(&["build", "--call=check,format=json", "."]).refused(1, &["unknown instruction: BADCMD"]);
    assert_eq!(rules(&said).0, ["StageNameCasing", "MaintainerDeprecated"]);
    let error = &parsed(&said)["buildError"];
    assert_eq!(error["message"], "unknown instruction: BADCMD");
    assert_eq!(error["location"]["ranges"][0]["start"]["line"], 3);
}

#[test]
fn rules_are_silenced_by_directive_comment_and_argument() {
    let scene = Scene::new();
    scene.write(
        "Dockerfile",
        "# check=skip=MaintainerDeprecated;error=true\nFROM scratch AS Bad\nMAINTAINER me\n# check=skip=all\nCMD x\n",
    );
    let check = |more: &[&str]| rules(&scene.rb(&[&["build", "--call=check,format=json"], more, &["."]].concat()));
    assert_eq!(check(&[]), (vec!["StageNameCasing".into()], true));
    assert_eq!(check(&["--build-arg", "BUILDKIT_DOCKERFILE_CHECK=skip=all"]), (Vec::new(), false));
    let both = vec!["StageNameCasing".to_owned(), "MaintainerDeprecated".to_owned()];
    assert_eq!(check(&["--build-arg", "BUILDKIT_DOCKERFILE_CHECK=skip=Nothing"]), (both, true));
    scene.rb(&["build", "."]).refused(1, &["lint violation found for rules: StageNameCasing"]);
    let unknown =
        scene.rb(&["build", "--check", "--build-arg", "BUILDKIT_DOCKERFILE_CHECK=skip=StageNameCassing", "."]);
    unknown.refused(1, &["check= names \"StageNameCassing\"", "(did you mean StageNameCasing?)"]);
    let wrong = scene.rb(&["build", "--check", "--build-arg", "BUILDKIT_DOCKERFILE_CHECK=skipp=X", "."]);
    wrong.refused(1, &["failed to parse check options", "skip"]);
}

#[test]
fn stages_and_what_they_take_are_listed() {
    let scene = Scene::new();
    scene.write("Dockerfile", OFFERS);
    let targets = "TARGET    DESCRIPTION\nbuild     makes it\n(default) \n";
    assert_eq!(scene.rb(&["build", "--call=targets", "."]).ok().out, targets);
    let outline = "TARGET:      build\nDESCRIPTION: makes it\n\nBUILD ARG   VALUE    DESCRIPTION\nTAG         latest   is the release\n\
                   NAME        you      says who\n\nSECRET   REQUIRED\ntok      true\n\nSSH       REQUIRED\ndefault   \n\n\
                   CACHE MOUNT\nc-you\n\n";
    let given = scene.rb(&["build", "--call=outline", "--target", "build", "--build-arg", "NAME=you", "."]).ok();
    assert_eq!(given.out, outline);

    let list = parsed(&scene.rb(&["build", "--call=targets,format=json", "."]).ok());
    let at = |line: u32| json!({ "ranges": [{ "start": { "line": line }, "end": { "line": line } }] });
    let want = json!([
        { "name": "build", "description": "makes it", "base": "busybox:$TAG", "location": at(4) },
        { "default": true, "base": "scratch", "location": at(9) },
    ]);
    assert_eq!(list["targets"], want);
    let outline = parsed(&scene.rb(&["build", "--call=outline,format=json", "."]).ok());
    assert_eq!(
        outline["args"][0],
        json!({ "name": "TAG", "value": "latest", "description": "is the release", "location": at(2) })
    );
    assert_eq!(outline["secrets"], json!([{ "name": "tok", "required": true, "location": at(7) }]));
    assert_eq!(outline["ssh"], json!([{ "name": "default", "location": at(7) }]));
    assert_eq!(outline["cache"], json!([{ "ID": "c-me", "location": at(7) }]));
    assert!(outline["sources"][0].is_string() && outline["name"].is_null());

    let requests = parsed(&scene.rb(&["build", "--call=subrequests.describe,format=json", "."]).ok());
    let names: Vec<_> = requests.as_array().unwrap().iter().map(|request| request["name"].as_str().unwrap()).collect();
    assert_eq!(names, ["frontend.lint", "frontend.outline", "frontend.targets", "frontend.subrequests.describe"]);
    let text = scene.rb(&["build", "-q", "--call=subrequests.describe", "."]).ok().out;
    assert!(text.starts_with("NAME                 VERSION DESCRIPTION\nlint                 1.0.0   "), "{text}");
}

/// A name that the caller replaces is looked up nowhere.
#[test]
fn questions_know_the_callers_contexts() {
    let scene = Scene::with_busybox();
    scene.write("Dockerfile", "FROM nowhere.invalid/base AS one\nCOPY --from=files a /\nFROM one\nUSER $U\n");
    scene.write("files/a", "");
    let lent = ["--build-context", "nowhere.invalid/base=docker-image://busybox", "--build-context", "files=files"];
    let said = scene.rb(&[&["check"], &lent[..], &["."]].concat());
    assert!(said.code == 1 && said.out.contains("Usage of undefined variable '$U'"), "{said:#?}");
    scene.rb(&[&["check", "--target", "one"], &lent[..]].concat()).ok();
    scene.rb(&[&["build", "--call=outline", "--target", "one"], &lent[..], &["."]].concat()).ok();
}

#[test]
fn a_dockerfile_is_asked_about_wherever_it_is() {
    let scene = Scene::new();
    let said = scene.rb_with_input(&["build", "--check", "-"], b"FROM scratch\nMAINTAINER me\n");
    assert!(said.code == 1 && said.out.contains("MaintainerDeprecated"), "{said:#?}");
    let said = scene.rb_with_input(&["check", "-f", "-"], b"FROM scratch AS B\n");
    assert!(said.code == 1 && said.out.contains("\nDockerfile:1\n"), "{said:#?}");
    scene.write("sub/Other", "FROM scratch as b\n");
    let said = scene.rb(&["check", "-f", "sub/Other", "."]);
    assert!(said.code == 1 && said.out.contains("\nsub/Other:1\n"), "the excerpt names a file one can open: {said:#?}");
}

#[test]
fn questions_that_make_no_sense() {
    let scene = Scene::new();
    scene.write("Dockerfile", "FROM scratch AS one\n");
    for (arguments, words) in [
        (&["build", "--call=nothing", "."][..], &["ERROR: unsupported request frontend.nothing", "outline"][..]),
        (&["build", "--call=check,format=xml", "."], &["invalid format: xml", "text and json"]),
        (&["check", "--format=xml"], &["invalid format: xml"]),
        (&["build", "--call=check,colour=red", "."], &["invalid print field: colour=red"]),
        (&["build", "--call=check,ignorestatus=perhaps", "."], &["invalid ignorestatus print value: perhaps"]),
        (&["build", "--call=check,outline", "."], &["invalid print value: check,outline"]),
        (&["build", "--check", "--call=outline", "."], &["--check and --call of something else"]),
        (
            &["build", "--call=outline", "--target=oen", "."],
            &["target stage \"oen\" could not be found (did you mean one?)"],
        ),
        (&["check", "--target=oen"], &["target stage \"oen\" could not be found (did you mean one?)"]),
        (&["check", "nowhere"], &["unable to prepare context: path \"nowhere\" not found"]),
        (&["check", "-f", "nothing"], &["failed to read dockerfile: open nothing: no such file or directory"]),
    ] {
        scene.rb(arguments).refused(1, words);
    }
    scene.write("Dockerfile", "FROM scratch\nNOPE\n");
    for call in ["outline", "targets"] {
        scene.rb(&["build", "--call", call, "."]).refused(1, &["Dockerfile:2", "unknown instruction: NOPE"]);
    }
}

const FIXABLE: &str = "# kept\nFrom busybox as Base\nCOPY f \\\n\n  # a comment\n  /f\nENV one two three\nWORKDIR rel\n\n\
                       FROM base\nEXPOSE 80/TCP\nENV A $nothing\nCMD sleep 5\n";
const IN_ORDER: &str = "# kept\nFROM busybox AS base\nCOPY f \\\n  # a comment\n  /f\nENV one=\"two three\"\nWORKDIR /rel\n\n\
                        FROM base\nEXPOSE 80/tcp\nENV A=$nothing\nCMD [\"sleep\", \"5\"]\n";

#[test]
fn a_dockerfile_is_put_right() {
    use std::os::unix::fs::PermissionsExt as _;
    let scene = Scene::with_busybox();
    scene.write("f", "data");
    let path = scene.write("Dockerfile", FIXABLE);
    std::fs::set_permissions(&path, std::fs::Permissions::from_mode(0o600)).unwrap();
    let diff = scene.rb(&["check", "--fix", "--dry-run"]).ok().out;
    assert!(
        diff.starts_with("--- Dockerfile\n+++ Dockerfile\n@@ -1,13 +1,12 @@\n # kept\n-From busybox as Base\n"),
        "{diff}"
    );
    assert_eq!(std::fs::read_to_string(&path).unwrap(), FIXABLE, "a dry run changes nothing");

    let said = scene.rb(&["check", "--fix"]);
    assert_eq!(std::fs::read_to_string(&path).unwrap(), IN_ORDER);
    assert_eq!(std::fs::metadata(&path).unwrap().permissions().mode() & 0o7777, 0o600);
    assert!(said.code == 1, "what cannot be fixed is left and told: {said:#?}");
    assert!(
        said.out.starts_with("Fixed 9 of 10 warnings in Dockerfile:\n - ConsistentInstructionCasing: "),
        "{said:#?}"
    );
    assert!(said.out.contains("\n - LegacyKeyValueFormat: ") && said.out.contains(" (line 7)\n"), "{said:#?}");
    assert!(said.out.contains("\n\nCheck complete, 1 warning has been found!\n\nWARNING: UndefinedVar"), "{said:#?}");
    assert!(said.out.contains("\n  11 | >>> ENV A=$nothing\n"), "the excerpt is of the new text: {said:#?}");

    let again = scene.rb(&["check", "--fix", "."]);
    assert!(again.out.starts_with("Check complete, 1 warning"), "{again:#?}");
    assert_eq!(scene.rb(&["check", "--fix", "--dry-run"]).ok().out, "");
    assert_eq!(std::fs::read_dir(scene.work()).unwrap().count(), 2, "nothing is left aside");
}

/// The image is the same, step by step, and all of it comes from the cache.
#[test]
fn what_is_put_right_builds_the_same() {
    let scene = Scene::with_busybox();
    scene.write("f", "data");
    let id = |scene: &Scene| scene.rb(&["build", "-q", "."]).ok().out;
    scene.write("Dockerfile", FIXABLE.replace("CMD sleep 5\n", "RUN date +%N >/now\n"));
    let before = id(&scene);
    scene.rb(&["check", "--fix"]);
    assert_eq!(id(&scene), before);
}

#[test]
fn what_cannot_be_put_right_stays_as_it_is() {
    let scene = Scene::new();
    let text = "from scratch AS a\n";
    for arguments in
        [&["check", "--fix", "-"][..], &["check", "--fix", "-f", "-"], &["check", "--fix", "-f", "-", "--dry-run"]]
    {
        scene
            .rb_with_input(arguments, text.as_bytes())
            .refused(1, &["--fix rewrites a Dockerfile on disk", "hint: give a directory"]);
    }
    scene.rb(&["check", "--fix", "https://example.invalid/x.git"]).refused(1, &["--fix rewrites a Dockerfile on disk"]);
    scene.rb(&["check", "--fix", "--format=json"]).refused(1, &["--fix and --format cannot be used together"]);
    scene.rb(&["check", "--dry-run"]).refused(1, &["required flag(s) \"fix\" not set"]);

    let real = scene.write("real", text);
    std::os::unix::fs::symlink("real", scene.work().join("Dockerfile")).unwrap();
    scene.rb(&["check", "--fix"]).refused(1, &["cannot change ", "Dockerfile: it is a symbolic link", "-f"]);
    assert_eq!(std::fs::read_to_string(&real).unwrap(), text);
    scene.rb(&["check", "--fix", "-f", "real"]).ok();
    assert_eq!(std::fs::read_to_string(&real).unwrap(), "from scratch as a\n");

    let broken = scene.write("Broken", "from scratch AS a\nnope\n");
    scene.rb(&["check", "--fix", "-f", "Broken"]).refused(1, &["Broken:2", "unknown instruction: nope"]);
    scene.rb(&["check", "--fix", "--dry-run", "-f", "Broken"]).refused(1, &["unknown instruction: nope"]);
    assert_eq!(std::fs::read_to_string(&broken).unwrap(), "from scratch AS a\nnope\n");
    let skipped = scene.write("Skipped", "# check=skip=FromAsCasing\nfrom scratch AS a\n");
    scene.rb(&["check", "--fix", "-f", "Skipped"]).ok();
    assert!(std::fs::read_to_string(&skipped).unwrap().ends_with("from scratch AS a\n"));
}

const WASTEFUL: &str = "FROM busybox\nRUN dd if=/dev/zero of=/big bs=1000 count=300 2>/dev/null\nCOPY f /f\nRUN chown 5 /f\n\
                        RUN rm /big\nRUN mkdir -p /var/cache/apk && cp /f /var/cache/apk/index && cp /f /other\n\
                        RUN rm /bin/wget && chmod 600 /etc/passwd\n";

/// Bytes that ship for nothing are told with their numbers by the build whose steps wrote them, and by no other.
#[test]
fn layers_that_waste_bytes_are_named() {
    let scene = Scene::with_busybox();
    scene.write("f", vec![b'x'; 200_000]);
    scene.write("Dockerfile", WASTEFUL);
    let first = scene.rb(&["build", "-t", "a", "."]).ok().says(&[
        " 3 warnings found:\n",
        " - FilesStoredAgain: 200kB of unchanged files are stored again for their new owner, mode or time (/f) (line 4)\n   hint: ",
        " - DeletedFilesRemain: Deleting /big makes the image no smaller: an earlier layer keeps 300kB in 1 file (line 5)\n",
        " - PackageCacheInLayer: The cache of apk takes 200kB of the layer (/var/cache/apk) (line 6)\n   hint: use apk add ",
    ]);
    assert!(!first.err.contains("(line 7)"), "what the base image has is not this file's to mend: {first:#?}");
    let again = scene.rb(&["build", "-t", "a", "."]).ok();
    assert!(!again.err.contains("warning"), "no step ran: {again:#?}");

    scene.write(
        "Dockerfile",
        format!(
            "# check=skip=PackageCacheInLayer;error=true\n{}",
            WASTEFUL.replace("RUN chown", "# check=skip=all\nRUN chown")
        ),
    );
    let skipped = scene.rb(&["build", "--no-cache", "."]).ok();
    assert!(skipped.err.contains(" 1 warning found:\n - DeletedFilesRemain: "), "{skipped:#?}");
    scene.rb(&["check"]).ok();
}
