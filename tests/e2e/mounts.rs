//! What RUN steps are lent: what must not stay behind, and what processes must do one after the other.

use std::io::{BufRead as _, BufReader};
use std::path::Path;
use std::process::{Child, Command, Stdio};
use std::time::{Duration, Instant};

use rustix::process::{Pid, Signal, kill_process};

use rbuild_engine::registry::memory::{Access, Behaviour};

use crate::registry::Registry;
use crate::scene::Scene;

const SECRET: &str = "correct-horse-battery-staple-8d1f";

fn build<'a>(extra: &[&'a str]) -> Vec<&'a str> {
    [&["build", "--network", "none", "--progress", "plain", "-t", "made"][..], extra, &["."]].concat()
}

/// Files below `dir` that hold `bytes`.
fn holding(dir: &Path, bytes: &str) -> Vec<String> {
    let found = Command::new("grep").args(["-rlaF", bytes]).arg(dir).output().expect("grep");
    String::from_utf8_lossy(&found.stdout).lines().map(str::to_owned).collect()
}

/// Runs a build until its step has said `word`.
fn until(mut command: Command, word: &str) -> Child {
    let mut child = command.stdout(Stdio::null()).stderr(Stdio::piped()).spawn().expect("the program starts");
    let mut lines = BufReader::new(child.stderr.take().expect("piped")).lines().map_while(Result::ok);
    let said = lines.by_ref().any(|line| line.ends_with(&format!(" {word}")) && !line.contains("RUN"));
    assert!(said, "the step never said {word}: {:?}", child.wait());
    // Reading goes on, so that the program never blocks on a full pipe.
    std::thread::spawn(move || lines.for_each(drop));
    child
}

#[test]
fn a_secret_leaves_no_byte() {
    let scene = Scene::with_busybox();
    scene.write("secret", SECRET);
    scene.write(".dockerignore", "secret\n");
    scene.write(
        "Dockerfile",
        "FROM busybox\n\
         RUN --mount=type=secret,id=s --mount=type=secret,id=v,env=V,target=/v \\\n\
           test \"$(wc -c </run/secrets/s) $V $(stat -c %a /v)\" = \"33 $(cat /run/secrets/s) 400\" && echo seen >/seen\n\
         RUN test -z \"$V\" -a ! -e /v -a ! -e /run/secrets\n",
    );
    let mut command = scene.command(&build(&["--secret", "id=s,src=secret", "--secret", "id=v,env=OF_V"]));
    command.env("OF_V", SECRET);
    let said = command.output().unwrap();
    assert!(said.status.success(), "{said:?}");
    assert!(!String::from_utf8_lossy(&said.stderr).contains(SECRET));
    assert_eq!(holding(&scene.root(), SECRET), [""; 0]);
    assert_eq!(scene.in_image("made", "ls -A / | grep -c -e '^run$' -e '^v$'; cat /seen"), "0\nseen\n");

    // Another secret is another run of nobody's: its value is in no key.
    scene.write("secret", "something else");
    let said = scene.rb(&build(&["--secret", "id=s,src=secret"])).ok();
    assert!(said.err.contains("CACHED"), "{said:?}");
}

#[test]
fn a_killed_build_takes_its_secret_along() {
    let scene = Scene::with_busybox();
    scene.write("secret", SECRET);
    scene.write("Dockerfile", "FROM busybox\nRUN --mount=type=secret,id=s,env=S echo is-ready; sleep 1000\n");
    let mut child = until(scene.command(&build(&["--secret", "id=s,src=secret"])), "is-ready");
    assert_eq!(holding(&scene.root(), SECRET), [""; 0], "while it runs");
    child.kill().unwrap();
    child.wait().unwrap();
    scene.settle();
    assert_eq!(holding(&scene.root(), SECRET), [""; 0], "after kill -9");
}

#[test]
fn what_is_not_lent_is_named() {
    let scene = Scene::with_busybox();
    scene.write("Dockerfile", "FROM busybox\nRUN --mount=type=secret,id=tok,required=true true\n");
    scene.rb(&build(&[])).refused(1, &["Dockerfile:2", "secret tok: not found", "hint: lend it with --secret id=tok,"]);
    scene.write("Dockerfile", "FROM busybox\nRUN --mount=type=ssh,id=deploy,required=true true\n");
    scene.rb(&build(&[])).refused(1, &["no SSH key \"deploy\" forwarded from the client", "--ssh deploy"]);
    scene.write("Dockerfile", "FROM busybox\nRUN --security=insecure true\n");
    scene.rb(&build(&[])).refused(1, &["security.insecure is not allowed", "--allow security.insecure"]);
    scene.write(
        "Dockerfile",
        "FROM busybox\nRUN --mount=type=bind,target=/src --mount=type=cache,target=/src/out true\n",
    );
    scene.rb(&build(&[])).refused(1, &["/src/out does not exist in the read-only mount /src", "hint: add rw"]);
}

#[test]
fn binds_show_what_the_context_has_and_take_nothing_back() {
    let scene = Scene::with_busybox();
    scene.write("a", "a\n");
    scene.write("hidden", "h\n");
    scene.write(".dockerignore", "hidden\n");
    scene.write(
        "Dockerfile",
        "FROM busybox\n\
         RUN --mount=target=/src,rw ls /src >/names; stat -c %u:%g /src/a >>/names; echo b >/src/a; rm /src/Dockerfile\n\
         RUN --mount=target=/src ls /src >>/names; cat /src/a >>/names\n",
    );
    std::os::unix::fs::chown(scene.work().join("a"), Some(77), Some(88)).unwrap();
    scene.rb(&build(&[])).ok();
    assert_eq!(scene.in_image("made", "cat /names"), "Dockerfile\na\n0:0\nDockerfile\na\na\n");
    assert_eq!(std::fs::read_to_string(scene.work().join("a")).unwrap(), "a\n");
    // What is not shown is in no key, what is shown is, even if it is thrown away afterwards.
    scene.write("hidden", "H\n");
    assert!(scene.rb(&build(&[])).ok().was_cached("rm /src/Dockerfile"));
    scene.write("a", "A\n");
    assert!(!scene.rb(&build(&[])).ok().was_cached("rm /src/Dockerfile"));
    scene.write("Dockerfile", "FROM busybox\nRUN --mount=source=hidden,target=/src true\n");
    scene.rb(&build(&[])).refused(1, &["\"/hidden\": not found", ".dockerignore leaves it out"]);
}

const LOCKED: &str = "FROM busybox\nARG WHO\n\
    RUN --mount=type=cache,id=one,target=/c,sharing=locked echo $WHO >>/c/log; echo is-ready; sleep ${WHO#*-}; echo $WHO >>/c/log; cp /c/log /log\n";

#[test]
fn builds_take_turns_at_a_locked_cache() {
    let scene = Scene::with_busybox();
    scene.write("Dockerfile", LOCKED);
    let mut first = until(scene.command(&build(&["--build-arg", "WHO=first-2"])), "is-ready");
    scene.rb(&build(&["--build-arg", "WHO=second-0"])).ok();
    assert!(first.wait().unwrap().success());
    assert_eq!(
        scene.in_image("made", "cat /log").lines().take(4).collect::<Vec<_>>(),
        ["first-2", "first-2", "second-0", "second-0"]
    );
}

#[test]
fn waiting_for_a_cache_can_be_given_up() {
    let scene = Scene::with_busybox();
    scene.write("Dockerfile", LOCKED);
    let mut holder = until(scene.command(&build(&["--build-arg", "WHO=first-1000"])), "is-ready");
    let mut waiter = scene.command(&build(&["--build-arg", "WHO=second-0"]));
    let mut waiter = waiter.stdout(Stdio::null()).stderr(Stdio::null()).spawn().unwrap();
    std::thread::sleep(Duration::from_millis(1500));
    assert!(waiter.try_wait().unwrap().is_none(), "it waits");
    let start = Instant::now();
    kill_process(Pid::from_child(&waiter), Signal::INT).unwrap();
    assert_eq!(waiter.wait().unwrap().code(), Some(130));
    assert!(start.elapsed() < Duration::from_secs(10), "{:?}", start.elapsed());
    // The death of a holder frees what it held.
    holder.kill().unwrap();
    holder.wait().unwrap();
    scene.rb(&build(&["--build-arg", "WHO=third-0"])).ok();
    assert_eq!(scene.in_image("made", "cat /log"), "first-1000\nthird-0\nthird-0\n");
}

#[test]
fn an_unconfined_step_needs_the_callers_word() {
    let scene = Scene::with_busybox();
    scene.write(
        "Dockerfile",
        "FROM busybox\n\
         RUN --security=insecure mkdir /m && mount -t tmpfs x /m && grep Seccomp: /proc/self/status >/s && umount /m\n\
         RUN ! mount -t tmpfs x /m 2>/dev/null && grep Seccomp: /proc/self/status >>/s\n",
    );
    scene.rb(&build(&["--allow", "security.insecure"])).ok();
    assert_eq!(scene.in_image("made", "cat /s"), "Seccomp:\t0\nSeccomp:\t2\n");
}

/// Everything that a build can be lent at once, with the statement that says most, and a step that fails.
#[test]
fn nothing_lent_is_in_a_statement_or_a_record() {
    let scene = Scene::with_busybox();
    let access = Access::Basic { username: "user".into(), password: SECRET.into() };
    let registry = Registry::with(Behaviour { access, ..Behaviour::default() });
    let host = registry.get().host().to_string();
    let password = format!("{SECRET}\n");
    scene.rb_with_input(&["login", "-u", "user", "--password-stdin", &host], password.as_bytes()).ok();
    let base = registry.name("base:1");
    scene.rb(&["tag", "busybox", &base]).ok();
    scene.rb(&["push", &base]).ok();
    scene.rb(&["rmi", &base]).ok();
    scene.write("secret", SECRET);
    scene.write(".dockerignore", "secret\n");
    let key = concat!(env!("CARGO_MANIFEST_DIR"), "/engine/testdata/keys/key_ed25519");
    let key_text = std::fs::read_to_string(key).unwrap();
    let key_line = key_text.lines().nth(2).unwrap();
    let text = |last: &str| {
        format!(
            "FROM {base}\n\
             RUN --mount=type=secret,id=s --mount=type=secret,id=v,env=V --mount=type=ssh \\\n\
               test -n \"$V\" -a -s /run/secrets/s -a -S \"$SSH_AUTH_SOCK\" && echo ok >/seen\n\
             RUN --mount=type=secret,id=v,env=V {last}\n"
        )
    };
    let ssh = format!("default={key}");
    let lent = ["--secret", "id=s,src=secret", "--secret", "id=v,env=OF_V", "--ssh", &ssh, "--pull"];
    let told = ["--provenance=mode=max", "--metadata-file", "meta.json", "--no-cache"];
    for (last, code) in [("true", 0), ("test -z \"$V\"", 1)] {
        scene.write("Dockerfile", text(last));
        let mut command = scene.command(&build(&[&lent[..], &told].concat()));
        command.env("OF_V", SECRET).env("BUILDX_METADATA_PROVENANCE", "max");
        let said = command.output().unwrap();
        assert_eq!(said.status.code(), Some(code), "{said:?}");
        assert!(!String::from_utf8_lossy(&said.stderr).contains(SECRET), "{said:?}");
    }
    let meta = std::fs::read_to_string(scene.work().join("meta.json")).unwrap();
    assert!(meta.contains("\"id\": \"default\"") && meta.contains("\"id\": \"s\"") && !meta.contains(SECRET), "{meta}");
    scene.rb(&["save", "-o", "made.tar", "made"]).ok();
    for place in [scene.root(), scene.work().join("made.tar")] {
        for lent in [SECRET, key_line] {
            assert_eq!(holding(&place, lent), [""; 0]);
        }
    }
}

/// A git server's token reaches that server, and nothing else.
#[test]
fn a_token_for_git_goes_to_the_server_alone() {
    use std::io::{Read as _, Write as _};
    if Command::new("git").arg("--version").output().is_err() {
        return;
    }
    let scene = Scene::with_busybox();
    let listener = std::net::TcpListener::bind("127.0.0.1:0").unwrap();
    let address = listener.local_addr().unwrap();
    let (send, receive) = std::sync::mpsc::channel();
    std::thread::spawn(move || {
        for stream in listener.incoming().map_while(Result::ok) {
            let mut stream = stream;
            let mut request = [0; 4096];
            let length = stream.read(&mut request).unwrap_or(0);
            // The receiver goes with the test.
            drop(send.send(String::from_utf8_lossy(&request[..length]).into_owned()));
            drop(stream.write_all(b"HTTP/1.1 404 Not Found\r\nContent-Length: 0\r\nConnection: close\r\n\r\n"));
        }
    });
    let context = format!("http://{address}/r.git#main");
    let mut command = scene.command(&["build", "--secret", "id=GIT_AUTH_TOKEN,env=TOKEN", &context]);
    let said = command.env("TOKEN", SECRET).output().unwrap();
    assert_eq!(said.status.code(), Some(1), "{said:?}");
    let asked = receive.recv_timeout(Duration::from_secs(60)).expect("git asks the server");
    let shown = base64::Engine::encode(&base64::engine::general_purpose::STANDARD, format!("x-access-token:{SECRET}"));
    assert!(asked.to_lowercase().contains("authorization: basic ") && asked.contains(&shown), "{asked}");
    for token in [SECRET, &shown] {
        assert!(!String::from_utf8_lossy(&said.stderr).contains(token), "{said:?}");
        assert_eq!(holding(&scene.root(), token), [""; 0]);
    }
    let bad = ["build", "--secret", "id=GIT_AUTH_TOKEN,src=two-lines", &context];
    scene.write("two-lines", "a\nb\n");
    scene.rb(&bad).refused(1, &["secret GIT_AUTH_TOKEN is not one line of text"]);
}

/// A URL's password is used and told to nobody.
#[test]
fn a_password_in_an_address_stays_there() {
    let scene = Scene::new();
    let place = format!("http://user:{SECRET}@127.0.0.1:1/context.tar");
    let said = scene.rb(&["build", "--provenance=mode=max", &place]).refused(1, &["127.0.0.1:1"]);
    assert!(!said.err.contains(SECRET) && !said.out.contains(SECRET), "{said:?}");
    assert_eq!(holding(&scene.root(), SECRET), [""; 0]);
    scene.write("ctx/Dockerfile", format!("FROM scratch\nADD http://user:{SECRET}@127.0.0.1:1/f /f\n"));
    scene.rb(&["build", "ctx"]).refused(1, &["127.0.0.1:1"]);
}
