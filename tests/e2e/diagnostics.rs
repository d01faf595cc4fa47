//! What a build says when an operation fails: the message of each, its line, and what to try.

use crate::scene::Scene;

fn context() -> Scene {
    let scene = Scene::with_busybox();
    let script = "mkdir -p ctx/d/e && cd ctx && echo a > a.txt && echo y > d/e/y && echo x > d/x
        mknod whiteout c 0 0 && ln -s nowhere loose && echo secret.txt > .dockerignore && echo s > secret.txt
        printf '\\377\\376' > binary";
    let output = std::process::Command::new("sh").args(["-ec", script]).current_dir(scene.work()).output().unwrap();
    assert!(output.status.success(), "{output:?}");
    scene
}

/// The last line of each Dockerfile is the one at fault, and what is said of it.
const FAILURES: &[(&str, &[&str])] = &[
    ("COPY a.tx /", &["failed to calculate checksum of ref \"/a.tx\": not found", "hint: did you mean a.txt?"]),
    ("COPY d/ee/y /", &["ref \"/d/ee/y\": not found", "hint: did you mean d/e/y?"]),
    ("COPY a.txt/x /", &["hint: a.txt is a file, not a directory"]),
    ("COPY loose /", &["ref \"/loose\": not found", "hint: loose is a symbolic link to nowhere, which is not there"]),
    ("COPY secret.txt /", &["hint: secret.txt exists, but .dockerignore leaves it out of the build context"]),
    ("COPY whiteout /", &["/whiteout is an overlay whiteout and cannot be copied"]),
    ("COPY --from=busybox /etc/passwdd /", &["ref \"/etc/passwdd\": not found", "hint: did you mean etc/passwd?"]),
    ("COPY d /etc/passwd", &["cannot copy to non-directory: /etc/passwd"]),
    ("RUN mkdir -p /to/x\nCOPY d /to", &["cannot replace to directory /to/x with file"]),
    (
        "COPY a.txt /etc/passwd/x",
        &["cannot write /etc/passwd/x: Not a directory", "hint: a part of the path is a file, not a directory"],
    ),
    (
        "COPY --chown=nobdy a.txt /",
        &["unable to find user nobdy: no matching entries in passwd file", "did you mean nobody?"],
    ),
    (
        "COPY --chown=root:nogrup a.txt /",
        &["unable to find group nogrup: no matching entries in group file", "did you mean nogroup?"],
    ),
    (
        "USER somebody-else\nRUN true",
        &["unable to find user somebody-else: no matching entries in passwd file", "make the user in a step before"],
    ),
    ("RUN --security=insecure true", &["security.insecure is not allowed", "--allow security.insecure"]),
    ("RUN --network=host true", &["network.host is not allowed", "--allow network.host"]),
    (
        "RUN --mount=type=secret,id=other,required true",
        &["secret other: not found", "hint: lend it with --secret id=other,src=FILE or --secret id=other,env=VARIABLE"],
    ),
    ("RUN --mount=type=secret,id=lent,env=S true", &["secret lent: not text, so it cannot be a variable"]),
    ("RUN --mount=type=ssh,required true", &["hint: lend an agent with --ssh default"]),
    ("RUN --mount=type=bind,source=nope,target=/x true", &["ref \"/nope\": not found"]),
    (
        "RUN --mount=type=bind,source=d,target=/x --mount=type=tmpfs,target=/x/new true",
        &["hint: add rw to the mount of /x, or make the directory in its source"],
    ),
    (
        "RUN --mount=type=cache,from=busybox,source=/etc/passwd,target=/x true",
        &["a cache mount cannot begin as /etc/passwd: it is no directory"],
    ),
    ("RUN [\"/nope\"]", &["process \"/nope\" did not complete successfully", "exit code: 127"]),
    ("RUN exit 42", &["process \"/bin/sh -c exit 42\" did not complete successfully: exit code: 42"]),
    ("ADD http://127.0.0.1:1/x /", &["cannot fetch http://127.0.0.1:1/x"]),
    ("ADD http://example.com/x.git /", &["plain http is spoken with this machine only; use https"]),
    ("ADD git@example.com:x.git#-upload-pack /", &["invalid git ref \"-upload-pack\""]),
    ("ADD https://127.0.0.1:1/x.git /", &["failed to fetch remote https://127.0.0.1:1/x.git: fatal: unable to access"]),
];

#[test]
fn each_failure_says_what_and_where_and_what_to_try() {
    let scene = context();
    let mut wrong = Vec::new();
    for (text, words) in FAILURES {
        scene.write("Dockerfile", format!("FROM busybox\n{text}\n"));
        let arguments = ["build", "-f", "Dockerfile", "--secret", "id=lent,src=ctx/binary", "-t", "never", "ctx"];
        let said = scene.rb(&arguments);
        let (line, last) = (1 + text.lines().count(), text.lines().last().unwrap());
        let place = [format!("Dockerfile:{line}\n"), format!(" {line:>3} | >>> {last}\n")];
        let lacks = |word: &&str| !said.err.contains(*word);
        let missing: Vec<&str> = words.iter().copied().chain(place.iter().map(String::as_str)).filter(lacks).collect();
        if said.code != 1 || !missing.is_empty() {
            wrong.push(format!("{text}: {missing:?} is not in\n{}", said.err));
        }
    }
    assert!(wrong.is_empty(), "{}", wrong.join("\n\n"));
    assert_eq!(scene.rb(&["images", "-q", "never"]).ok().out.trim(), "", "something was built");
}

/// Mistakes of the text and those that only lowering finds, in the order of the file, with the part that is meant.
#[test]
fn all_mistakes_of_a_file_come_at_once() {
    let scene = Scene::with_busybox();
    scene.write("Dockerfile", "FROM busybox\nCOPY --form=x a b\nEXPOSE 80/foo\nRUNN true\nSTOPSIGNAL SIGNOPE\n");
    let said = scene.rb(&["build", "."]).refused(1, &["unknown flag: --form (did you mean from?) (and 3 more)"]);
    let want = [
        "   2 | >>> COPY --form=x a b\n     |          ^^^^^^^^\n",
        "error: unknown flag: --form (did you mean from?)\n  hint: --from copies from a stage, an image or a named context\n",
        "     |            ^^^^^^\n",
        "error: invalid port: \"80/foo\": invalid proto: foo\n  expected port[-port][/protocol]\n",
        "     |     ^^^^\n",
        "error: unknown instruction: RUNN (did you mean RUN?)\n  expected an instruction\n",
        "error: invalid signal: SIGNOPE\n  expected a name such as SIGTERM, or a number from 1 to 64\n",
    ];
    let mut rest = said.err.as_str();
    for part in want {
        let at = rest.find(part).unwrap_or_else(|| panic!("{part:?} is not in {rest}"));
        rest = &rest[at + part.len()..];
    }
}
