use std::process::Command;

use super::*;

fn source(remote: &str) -> GitSource {
    GitSource {
        remote: remote.to_owned(),
        reference: None,
        subdir: None,
        checksum: None,
        keep_git_dir: false,
        submodules: true,
    }
}

#[test]
fn addresses_that_git_may_be_given() {
    for good in [
        "https://h/r.git",
        "ssh://git@h/r",
        "git://h/r",
        "git@h:r.git",
        "http://127.0.0.1:8080/r.git",
        "http://localhost/r.git",
        "http://[::1]:1/r.git",
    ] {
        assert!(check_remote(good).is_ok(), "{good}");
    }
    for bad in [
        "--upload-pack=x",
        "file:///r",
        "ext::sh -c x",
        "ext::x@y:z",
        "http://h/r.git",
        "http://127.0.0.1@evil/r.git",
        "http://127.0.0.1.evil/r.git",
        "https://h/r.git\n",
        "ssh://-oProxyCommand=x/r",
        "/local/path",
    ] {
        assert!(check_remote(bad).is_err(), "{bad}");
    }
}

#[test]
fn references_that_are_none() {
    for bad in ["--exec=x", "-v", "a..b", "a b", "a:b", "a^{}", "*", "", "x@{1}"] {
        assert!(check_reference(bad).unwrap_err().to_string().starts_with("invalid git ref"), "{bad}");
    }
    assert!(check_reference("feature/x-1.2").is_ok());
}

#[test]
fn passwords_are_not_shown() {
    assert_eq!(redacted("https://user:pw@h/r.git"), "https://h/r.git");
    assert_eq!(redacted("https://token@h/r@x.git"), "https://h/r@x.git");
    assert_eq!(redacted("ssh://git@h/r"), "ssh://git@h/r");
    assert_eq!(redacted("git@h:r.git"), "git@h:r.git");
}

#[test]
fn branches_go_before_tags_and_tags_mean_their_commit() {
    let name = |digit: char| std::iter::repeat_n(digit, 40).collect::<String>();
    let listing = format!(
        "{}\trefs/tags/v1\n{}\trefs/tags/v1^{{}}\n{}\trefs/heads/both\n{}\trefs/tags/both\n{}\trefs/heads/x/v1\n",
        name('1'),
        name('2'),
        name('3'),
        name('4'),
        name('5')
    );
    let (pinned, tag) = choose(&listing, Some("v1")).unwrap();
    assert_eq!((pinned.commit, tag), (name('2'), Some(name('1'))));
    assert_eq!(choose(&listing, Some("both")).unwrap().0.commit, name('3'));
    assert_eq!(choose(&listing, Some("refs/tags/both")).unwrap().0.commit, name('4'));
    assert_eq!(choose(&listing, Some("tags/both")).unwrap().0.commit, name('4'));
    assert_eq!(choose(&listing, Some("none")), None);
}

/// A repository with a hook, a filter and a submodule, served by git's own daemon on the loopback.
struct Served {
    dir: tempfile::TempDir,
    daemon: std::process::Child,
    port: u16,
}

impl Served {
    fn new() -> Served {
        let dir = tempfile::tempdir().unwrap();
        let port = std::net::TcpListener::bind("127.0.0.1:0").unwrap().local_addr().unwrap().port();
        // The daemon itself, not `git daemon`: that would be its parent, and killed alone.
        let programs = Command::new("git").arg("--exec-path").output().unwrap().stdout;
        let daemon = Path::new(std::str::from_utf8(&programs).unwrap().trim()).join("git-daemon");
        let daemon = Command::new(daemon)
            .args(["--reuseaddr", "--listen=127.0.0.1", "--export-all"])
            .arg(format!("--port={port}"))
            .arg(format!("--base-path={}", dir.path().display()))
            .arg(dir.path())
            .stdout(Stdio::null())
            .stderr(Stdio::null())
            .spawn()
            .unwrap();
        let served = Served { dir, daemon, port };
        while std::net::TcpStream::connect(("127.0.0.1", port)).is_err() {
            std::thread::sleep(Duration::from_millis(20));
        }
        served
    }

    fn url(&self, name: &str) -> String {
        format!("git://127.0.0.1:{}/{name}", self.port)
    }

    fn sh(&self, script: &str) -> String {
        let out = Command::new("sh")
            .args(["-ec", script])
            .current_dir(self.dir.path())
            .envs(["AUTHOR", "COMMITTER"].map(|who| (format!("GIT_{who}_EMAIL"), "t@example.com")))
            .envs(["AUTHOR", "COMMITTER"].map(|who| (format!("GIT_{who}_NAME"), "t")))
            .envs(["AUTHOR", "COMMITTER"].map(|who| (format!("GIT_{who}_DATE"), "1600000000 +0000")))
            .envs([("GIT_CONFIG_GLOBAL", "/dev/null"), ("GIT_CONFIG_NOSYSTEM", "1")])
            .output()
            .unwrap();
        assert!(out.status.success(), "{}", String::from_utf8_lossy(&out.stderr));
        String::from_utf8(out.stdout).unwrap().trim().to_owned()
    }
}

impl Drop for Served {
    fn drop(&mut self) {
        self.daemon.kill().unwrap();
        self.daemon.wait().unwrap();
    }
}

fn options() -> GitOptions {
    let usual = ["/usr/bin/git", "/usr/local/bin/git", "/bin/git"].map(PathBuf::from);
    let program = usual.into_iter().find(|file| file.is_file()).expect("git is installed");
    GitOptions { program, environment: Vec::new(), ssh: None, secrets: BTreeMap::new() }
}

async fn fetch(served: &Served, source: &GitSource, name: &str) -> Result<PathBuf, ExecutorError> {
    let (work, dest) = (served.dir.path().join(format!("work-{name}")), served.dir.path().join(format!("out-{name}")));
    std::fs::create_dir(&dest).unwrap();
    let options = options();
    let repository = Repository::new(Some(&options), source, work)?;
    let pinned = repository.pin().await?;
    repository.check_out(&pinned, dest.clone()).await?;
    Ok(dest)
}

#[tokio::test]
async fn a_revision_is_checked_out_and_nothing_of_it_runs() {
    let served = Served::new();
    let commit = served.sh("git init -q -b main lib; cd lib; echo lib >l; git add -A; git commit -qm 1; cd ..
         git init -q -b main r; cd r; mkdir sub; echo s >sub/s; echo x >f; chmod 775 f; ln -s f l
         printf '* filter=evil\\n' >.gitattributes
         printf '[submodule \"lib\"]\\n path = lib\\n url = ../lib\\n' >.gitmodules
         git clone -q ../lib lib; git add -A; git commit -qm 1; git rev-parse HEAD");
    let url = served.url("r");
    let out = fetch(&served, &source(&url), "plain").await.unwrap();
    let look = format!(
        "cd {}; find . ! -name . | sort | xargs stat -c '%n %a %Y'; cat lib/l; readlink l",
        out.file_name().unwrap().to_str().unwrap()
    );
    let want = "./.gitattributes 644 1600000000\n./.gitmodules 644 1600000000\n./f 755 1600000000\n./l 777 1600000000\n\
                ./lib 755 1600000000\n./lib/l 644 1600000000\n./sub 755 1600000000\n./sub/s 644 1600000000\nlib\nf";
    assert_eq!(served.sh(&look), want);

    // By its commit, one directory of it, with the right checksum.
    let one = GitSource {
        reference: Some(commit.clone()),
        subdir: Some("/sub/".into()),
        checksum: Some(commit[..12].into()),
        ..source(&url)
    };
    let out = fetch(&served, &one, "sub").await.unwrap();
    assert_eq!(std::fs::read_to_string(out.join("s")).unwrap(), "s\n");

    // With its `.git`, the same bytes each time, and git finds nothing changed.
    let kept = GitSource { keep_git_dir: true, ..source(&url) };
    let (a, b) = (fetch(&served, &kept, "a").await.unwrap(), fetch(&served, &kept, "b").await.unwrap());
    served.sh(&format!("diff -r {} {}", a.display(), b.display()));
    assert_eq!(served.sh(&format!("git -c safe.directory='*' -C {} status --porcelain", a.display())), "");
}

#[tokio::test]
async fn what_cannot_be_fetched_is_named() {
    let served = Served::new();
    served.sh("git init -q -b main r; cd r; mkdir d; ln -s /etc d/out; echo x >f; git add -A; git commit -qm 1
         git init -q -b main ../unborn");
    let url = served.url("r");
    let absent = "0123456789".repeat(4);
    let no_commit = format!("repository does not contain commit {absent}");
    let cases = [
        (source(&served.url("unborn")), "repository has no default branch"),
        (GitSource { reference: Some(absent.clone()), ..source(&url) }, no_commit.as_str()),
        (GitSource { reference: Some("nope".into()), ..source(&url) }, "repository does not contain ref nope"),
        (GitSource { checksum: Some("0123456".into()), ..source(&url) }, "expected checksum to match 0123456, got "),
        (GitSource { subdir: Some("d/out".into()), ..source(&url) }, "failed to open subdir \"d/out\""),
        (GitSource { subdir: Some("../x".into()), ..source(&url) }, "invalid subdir"),
        (source(&served.url("none")), "failed to fetch remote git://127.0.0.1"),
        (source("file:///r"), "protocol file is not one of https, ssh and git"),
    ];
    for (at, (source, want)) in cases.into_iter().enumerate() {
        let error = fetch(&served, &source, &at.to_string()).await.unwrap_err().to_string();
        assert!(error.contains(want), "{error}");
    }
}

#[tokio::test]
async fn a_git_that_cannot_run_is_named() {
    let dir = tempfile::tempdir().unwrap();
    let remote = source("https://127.0.0.1:1/r.git");
    let failed = "failed to fetch remote https://127.0.0.1:1/r.git: ";
    let error = Repository::new(None, &remote, dir.path().join("a")).err().unwrap();
    assert_eq!(error.to_string(), format!("{failed}git is not installed"));
    assert_eq!(error.hints().len(), 1);
    std::fs::write(dir.path().join("file"), "").unwrap();
    let error = Repository::new(Some(&options()), &remote, dir.path().join("file")).err().unwrap().to_string();
    assert!(error.starts_with(&format!("{failed}cannot prepare git: ")), "{error}");
    let absent = GitOptions { program: dir.path().join("no-git"), ..options() };
    let repository = Repository::new(Some(&absent), &remote, dir.path().join("b")).unwrap();
    let error = repository.pin().await.err().unwrap().to_string();
    assert!(error.starts_with(&format!("{failed}cannot run git: No such file or directory")), "{error}");
    let error = check_remote("--upload-pack=x").unwrap_err().to_string();
    assert_eq!(error, "invalid git remote \"--upload-pack=x\": it is no address");
}

#[test]
fn secrets_go_to_the_server_they_are_for() {
    let secret = |text: &str| Secret::new(text.as_bytes().to_vec());
    let options = options().with_secrets(
        [
            ("GIT_AUTH_TOKEN".to_owned(), secret("usual")),
            ("GIT_AUTH_TOKEN.one.example".to_owned(), secret("one")),
            ("GIT_AUTH_HEADER.two.example".to_owned(), secret("bearer two")),
        ]
        .into(),
    );
    let of = |remote: &str| options.authorization(remote);
    let basic = |token: &str| format!("Authorization: basic {}", STANDARD.encode(format!("x-access-token:{token}")));
    assert_eq!(of("https://h:8443/a/b.git").unwrap(), ("http.https://h:8443/.extraHeader".to_owned(), basic("usual")));
    assert_eq!(of("https://one.example/r").unwrap().1, basic("one"));
    assert_eq!(of("https://two.example/r").unwrap().1, "Authorization: bearer two");
    assert_eq!(of("http://127.0.0.1:9/r").unwrap().1, basic("usual"));
    for other in ["http://h/r", "git@h:r", "ssh://git@h/r", "git://h/r"] {
        assert_eq!(of(other), None, "{other}");
    }
    assert!(!format!("{options:?}").contains("usual"));
}
