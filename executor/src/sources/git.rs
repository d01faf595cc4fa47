//! Revisions of git repositories, by the user's own `git`.
//!
//! Git is spoken to, not obeyed: it is found once by the caller, runs in an environment made here, reads no configuration
//! but the one written here, and that one knows no hooks, filters, credential helpers or protocols besides https, ssh
//! and git (and http, where the server is on this machine's loopback). Nothing that a repository says runs a program.
//!
//! A library that speaks the protocol would be one process fewer; the program is what people's servers, proxies and ssh
//! set-ups are known to work with.

use std::collections::BTreeMap;
use std::ffi::OsString;
use std::net::IpAddr;
use std::os::fd::AsFd;
use std::path::{Path, PathBuf};
use std::process::Stdio;
use std::sync::Arc;
use std::time::Duration;

use base64::Engine as _;
use base64::engine::general_purpose::STANDARD;
use rbuild_graph::ops::{GitSource, ModeChange};
use rustix::fs::{Mode, OFlags};
use tokio::io::AsyncReadExt;

use crate::error::show;
use crate::files::copy::{CopyRules, copy};
use crate::files::select::Selected;
use crate::files::walk::{PathFilter, open_dir_beneath, walk};
use crate::files::writer::TreeWriter;
use crate::{ExecutorError, Secret};

/// Asking for a server's references takes no longer than this.
const LIST_DEADLINE: Duration = Duration::from_secs(120);
/// A fetch may take long, but not for ever.
const FETCH_DEADLINE: Duration = Duration::from_secs(2 * 3600);
/// Bytes of git's output that are kept: references of a very large repository fit.
const OUTPUT: u64 = 64 << 20;
/// Where the programs are that git itself needs.
const PATH: &str = "/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin";

/// All that git is told on every call, by every process it starts: it goes into the only configuration file it reads.
const CONFIG: &str = "\
[core]
\thooksPath = /dev/null
\tfsmonitor = false
\tattributesFile = /dev/null
\texcludesFile = /dev/null
\tautocrlf = false
\tsymlinks = true
\tlogAllRefUpdates = false
\tprotectHFS = true
\tprotectNTFS = true
[init]
\tdefaultBranch = master
[credential]
\thelper =
[http]
\tfollowRedirects = initial
\tlowSpeedLimit = 1
\tlowSpeedTime = 120
[protocol]
\tallow = never
\tversion = 2
[submodule]
\trecurse = false
[transfer]
\tbundleURI = false
[gc]
\tauto = 0
[maintenance]
\tauto = false
[advice]
\tdetachedHead = false
";

/// How to run git.
#[derive(Debug, Clone)]
pub struct GitOptions {
    /// The program, found once, by its absolute path.
    pub program: PathBuf,
    /// Proxies and certificates: variables that git and what it starts may see, besides those made here.
    pub environment: Vec<(String, OsString)>,
    /// For `ssh://` and `user@host:path`; `None` when there is no ssh.
    pub ssh: Option<GitSsh>,
    /// Secrets that servers are shown, as `GIT_AUTH_TOKEN` and `GIT_AUTH_HEADER`, each also with a dot and a host.
    pub secrets: BTreeMap<String, Secret>,
}

/// How git reaches servers through ssh.
#[derive(Debug, Clone)]
pub struct GitSsh {
    pub program: PathBuf,
    /// The socket of the agent with the keys.
    pub agent: Option<PathBuf>,
    /// Files with the keys of hosts; a host that is in none is not spoken to.
    pub known_hosts: Vec<PathBuf>,
}

/// A reference that was resolved.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Pinned {
    pub commit: String,
    /// The server's name for it, by which servers that give no bare commits give it.
    reference: Option<String>,
}

/// One repository, as one source wants it.
pub struct Repository<'a> {
    options: &'a GitOptions,
    source: &'a GitSource,
    /// A directory of our own; everything git writes is below it.
    work: PathBuf,
}

impl<'a> Repository<'a> {
    /// `work` is a path where nothing is; who made it removes what is made there.
    ///
    /// # Errors
    /// An address or a reference that git must not be given.
    pub fn new(
        options: Option<&'a GitOptions>,
        source: &'a GitSource,
        work: PathBuf,
    ) -> Result<Repository<'a>, ExecutorError> {
        check_remote(&source.remote)?;
        if let Some(reference) = &source.reference {
            check_reference(reference)?;
        }
        let options = options.ok_or_else(|| ExecutorError::Git {
            remote: redacted(&source.remote),
            message: "git is not installed".to_owned(),
        })?;
        let repository = Repository { options, source, work };
        repository.prepare().map_err(|error| repository.failed(format!("cannot prepare git: {error}")))?;
        Ok(repository)
    }

    fn prepare(&self) -> std::io::Result<()> {
        std::fs::create_dir_all(self.tree())?;
        let mut config = CONFIG.to_owned();
        for protocol in protocols(&self.source.remote) {
            config.push_str(&format!("[protocol \"{protocol}\"]\n\tallow = always\n"));
        }
        std::fs::write(self.work.join(".gitconfig"), config)
    }

    fn tree(&self) -> PathBuf {
        self.work.join("tree")
    }

    /// Which commit the source means, and whether that is the one it says it must be.
    ///
    /// # Errors
    /// The server cannot be reached, has no such reference, or the commit is another.
    pub async fn pin(&self) -> Result<Pinned, ExecutorError> {
        let wanted = self.source.reference.as_deref();
        let (pinned, tag) = match wanted.filter(|reference| is_commit(reference)) {
            Some(commit) => (Pinned { commit: commit.to_ascii_lowercase(), reference: None }, None),
            None => self.resolve(wanted).await?,
        };
        if let Some(checksum) = &self.source.checksum {
            let checksum = checksum.to_ascii_lowercase();
            let matches = |commit: &str| checksum.len() >= 4 && commit.starts_with(&checksum);
            if !matches(&pinned.commit) && !tag.as_deref().is_some_and(matches) {
                return Err(ExecutorError::Invalid(format!(
                    "expected checksum to match {checksum}, got {}",
                    pinned.commit
                )));
            }
        }
        Ok(pinned)
    }

    /// The commit of a name and, if that is an annotated tag, the tag's own object.
    async fn resolve(&self, wanted: Option<&str>) -> Result<(Pinned, Option<String>), ExecutorError> {
        let remote = self.source.remote.as_str();
        let mut arguments = vec!["ls-remote", "--end-of-options", remote];
        let peeled;
        match wanted {
            None => arguments.push("HEAD"),
            Some(reference) => {
                peeled = format!("{reference}^{{}}");
                arguments.extend([reference, peeled.as_str()]);
            }
        }
        let listing = self.git(&arguments, LIST_DEADLINE).await?;
        let found = choose(&listing, wanted);
        found.ok_or_else(|| match wanted {
            Some(reference) => self.failed(format!("repository does not contain ref {reference}")),
            None => self.failed("repository has no default branch".to_owned()),
        })
    }

    /// Writes the files of the commit to the directory `dest`: owned by root, dated to the commit, and with a `.git` only
    /// if that was asked for.
    ///
    /// # Errors
    /// The server does not give the commit; the source's directory is not in it.
    pub async fn check_out(&self, pinned: &Pinned, dest: PathBuf) -> Result<(), ExecutorError> {
        self.fetch(pinned).await?;
        let commit = pinned.commit.as_str();
        self.in_tree(&["checkout", "--quiet", "--force", "--detach", commit]).await?;
        if self.source.submodules && self.has_submodules() {
            let update = ["submodule", "--quiet", "update", "--init", "--recursive", "--checkout", "--force"];
            let shallow: Vec<&str> = update.iter().copied().chain(["--depth=1"]).collect();
            if self.in_tree(&shallow).await.is_err() {
                self.in_tree(&update).await?;
            }
        }
        let time = self.in_tree(&["show", "--no-patch", "--format=%ct", commit]).await?;
        let time: i64 = time.trim().parse().map_err(|_| self.failed("the commit has no time".to_owned()))?;
        let keep = self.keeps_git_dir();
        if keep {
            self.tidy().await?;
        }
        let (tree, subdir) = (self.tree(), self.source.subdir.clone().unwrap_or_default());
        let copied = tokio::task::spawn_blocking(move || copy_tree(&tree, &subdir, &dest, time, keep)).await;
        copied.map_err(|_| ExecutorError::Cancelled("the build was cancelled"))?
    }

    /// A directory of a repository is not a work tree, so it gets no `.git`.
    fn keeps_git_dir(&self) -> bool {
        self.source.keep_git_dir && clean_subdir(self.source.subdir.as_deref().unwrap_or_default()).is_empty()
    }

    /// Shallow where the server allows it, by name where it gives no bare commits, else all of it.
    async fn fetch(&self, pinned: &Pinned) -> Result<(), ExecutorError> {
        let commit = pinned.commit.as_str();
        let format = if commit.len() == 64 { "--object-format=sha256" } else { "--object-format=sha1" };
        self.in_tree(&["init", "--quiet", "--template=", format]).await?;
        self.in_tree(&["config", "--local", "remote.origin.url", &self.source.remote]).await?;
        let has = ["cat-file", "-e", "--end-of-options", commit];
        let shallow = ["fetch", "--quiet", "--no-tags", "--depth=1", "--end-of-options", "origin"];
        let names: Vec<&str> = std::iter::once(commit).chain(pinned.reference.as_deref()).collect();
        for name in names {
            let arguments: Vec<&str> = shallow.iter().copied().chain([name]).collect();
            if self.in_tree(&arguments).await.is_ok() && self.in_tree(&has).await.is_ok() {
                return Ok(());
            }
        }
        let all = ["fetch", "--quiet", "--tags", "--end-of-options", "origin", "+refs/heads/*:refs/remotes/origin/*"];
        self.in_tree(&all).await?;
        match self.in_tree(&has).await {
            Ok(_) => Ok(()),
            Err(_) => Err(self.failed(format!("repository does not contain commit {commit}"))),
        }
    }

    fn has_submodules(&self) -> bool {
        std::fs::symlink_metadata(self.tree().join(".gitmodules")).is_ok_and(|found| found.is_file())
    }

    /// Makes `.git` the same whenever it is fetched: an index remembers inodes and times, and addresses hold passwords.
    async fn tidy(&self) -> Result<(), ExecutorError> {
        let remote = redacted(&self.source.remote);
        self.in_tree(&["config", "--local", "remote.origin.url", &remote]).await?;
        let again = "rm -f \"$(git rev-parse --git-path index)\" && git read-tree HEAD";
        if self.has_submodules() {
            self.in_tree(&["submodule", "--quiet", "foreach", "--recursive", again]).await?;
        }
        let git = self.tree().join(".git");
        for name in ["index", "FETCH_HEAD", "ORIG_HEAD"] {
            match std::fs::remove_file(git.join(name)) {
                Err(error) if error.kind() != std::io::ErrorKind::NotFound => {
                    return Err(self.failed(format!("cannot tidy {name}: {error}")));
                }
                _ => {}
            }
        }
        self.in_tree(&["read-tree", "HEAD"]).await.map(drop)
    }

    async fn in_tree(&self, arguments: &[&str]) -> Result<String, ExecutorError> {
        self.git(arguments, FETCH_DEADLINE).await
    }

    /// Runs git to its end and gives what it wrote.
    async fn git(&self, arguments: &[&str], deadline: Duration) -> Result<String, ExecutorError> {
        let unable = |error: &dyn std::fmt::Display| self.failed(format!("cannot run git: {error}"));
        let mut command = tokio::process::Command::new(&self.options.program);
        command.args(arguments).current_dir(self.tree()).env_clear().envs(self.environment());
        command.stdin(Stdio::null()).stdout(Stdio::piped()).stderr(Stdio::piped());
        command.process_group(0).kill_on_drop(true);
        let mut child = command.spawn().map_err(|error| unable(&error))?;
        let _group = Group::of(&child);
        let (out, err) = (child.stdout.take(), child.stderr.take());
        let work = async {
            let (out, err) = tokio::join!(read_all(out), read_all(err));
            Ok::<_, std::io::Error>((out?, err?, child.wait().await?))
        };
        let (out, err, status) = match tokio::time::timeout(deadline, work).await {
            Ok(done) => done.map_err(|error| unable(&error))?,
            Err(_) => return Err(self.failed(format!("git did not end within {} s", deadline.as_secs()))),
        };
        if status.success() {
            return Ok(String::from_utf8_lossy(&out).into_owned());
        }
        let said = String::from_utf8_lossy(&err);
        let said = said.replace(&self.source.remote, &redacted(&self.source.remote));
        let said: Vec<String> =
            said.lines().map(|line| show(line.trim_end().as_bytes())).filter(|l| !l.is_empty()).collect();
        Err(self.failed(if said.is_empty() { format!("git: {status}") } else { said.join("; ") }))
    }

    fn environment(&self) -> Vec<(String, OsString)> {
        let mut path = OsString::from(PATH);
        if let Some(dir) = self.options.program.parent() {
            path = [dir.as_os_str(), path.as_os_str()].join(&OsString::from(":"));
        }
        let allowed = protocols(&self.source.remote).join(":");
        let fixed: [(&str, OsString); 13] = [
            ("PATH", path),
            ("HOME", self.work.clone().into()),
            ("XDG_CONFIG_HOME", self.work.clone().into()),
            ("GIT_CONFIG_GLOBAL", self.work.join(".gitconfig").into()),
            ("GIT_CONFIG_NOSYSTEM", "1".into()),
            ("GIT_ATTR_NOSYSTEM", "1".into()),
            ("GIT_TERMINAL_PROMPT", "0".into()),
            ("GIT_ASKPASS", "true".into()),
            ("GIT_LFS_SKIP_SMUDGE", "1".into()),
            ("GIT_ALLOW_PROTOCOL", allowed.into()),
            ("GIT_CEILING_DIRECTORIES", self.work.clone().into()),
            ("GIT_NO_REPLACE_OBJECTS", "1".into()),
            ("LC_ALL", "C".into()),
        ];
        let mut all: Vec<(String, OsString)> = self.options.environment.clone();
        all.extend(fixed.map(|(name, value)| (name.to_owned(), value)));
        if let Some((key, value)) = self.options.authorization(&self.source.remote) {
            // By the environment, which only this user can read: arguments everybody can, and files stay.
            let one = [("GIT_CONFIG_COUNT", "1".to_owned()), ("GIT_CONFIG_KEY_0", key), ("GIT_CONFIG_VALUE_0", value)];
            all.extend(one.map(|(name, value)| (name.to_owned(), value.into())));
        }
        if is_loopback_http(&self.source.remote) {
            all.extend(["no_proxy", "NO_PROXY"].map(|name| (name.to_owned(), "*".into())));
        }
        match &self.options.ssh {
            Some(ssh) => {
                all.push(("GIT_SSH_COMMAND".to_owned(), ssh.command()));
                all.push(("GIT_SSH_VARIANT".to_owned(), "ssh".into()));
                all.extend(ssh.agent.iter().map(|at| ("SSH_AUTH_SOCK".to_owned(), at.clone().into())));
            }
            None => all.push(("GIT_SSH_COMMAND".to_owned(), "echo ssh is not installed >&2; false".into())),
        }
        all
    }

    fn failed(&self, message: String) -> ExecutorError {
        ExecutorError::Git { remote: redacted(&self.source.remote), message }
    }
}

impl GitOptions {
    /// The same, with this agent and no other: what a Dockerfile names is fetched with what the caller lent to it.
    #[must_use]
    pub fn with_agent(mut self, agent: Option<PathBuf>) -> GitOptions {
        if let Some(ssh) = &mut self.ssh {
            ssh.agent = agent;
        }
        self
    }

    /// The same, with these secrets for servers.
    #[must_use]
    pub fn with_secrets(mut self, secrets: BTreeMap<String, Secret>) -> GitOptions {
        self.secrets = secrets;
        self
    }

    /// The server's name in the configuration, and the header it is shown. Only https, and http to this machine: elsewhere
    /// everybody on the way would read it.
    fn authorization(&self, remote: &str) -> Option<(String, String)> {
        let url = url::Url::parse(remote).ok()?;
        let host = url.host_str()?;
        let local = matches!(host, "localhost" | "127.0.0.1" | "[::1]");
        if !(url.scheme() == "https" || url.scheme() == "http" && local) || self.secrets.is_empty() {
            return None;
        }
        let text = |id: &str| self.secrets.get(id).map(|s| String::from_utf8_lossy(s.expose()).into_owned());
        let of = |suffix: &str| {
            let token = |token: String| format!("basic {}", STANDARD.encode(format!("x-access-token:{token}")));
            text(&format!("GIT_AUTH_HEADER{suffix}")).or_else(|| text(&format!("GIT_AUTH_TOKEN{suffix}")).map(token))
        };
        let header = of(&format!(".{host}")).or_else(|| of(""))?;
        let server = url.join("/").ok()?;
        Some((format!("http.{server}.extraHeader"), format!("Authorization: {header}")))
    }
}

impl GitSsh {
    /// Nothing of the user's ssh configuration is read; it can name programs.
    fn command(&self) -> OsString {
        let quote = |path: &Path| format!("'{}'", path.display().to_string().replace('\'', "'\\''"));
        let mut line = format!("{} -F /dev/null -o BatchMode=yes", quote(&self.program));
        // Keys of the caller's come from the agent that was lent, never from files.
        line.push_str(
            " -o IdentityFile=none -o ConnectTimeout=30 -o ServerAliveInterval=15 -o StrictHostKeyChecking=yes",
        );
        let files: Vec<String> = self.known_hosts.iter().map(|path| path.display().to_string()).collect();
        let files = if files.is_empty() { "none".to_owned() } else { files.join(" ") };
        line.push_str(&format!(" -o {}", quote(Path::new(&format!("UserKnownHostsFile={files}")))));
        line.into()
    }
}

/// All processes that git starts; they end with it.
struct Group(Option<rustix::process::Pid>);

impl Group {
    fn of(child: &tokio::process::Child) -> Group {
        Group(child.id().and_then(|id| rustix::process::Pid::from_raw(id as i32)))
    }
}

impl Drop for Group {
    fn drop(&mut self) {
        if let Some(group) = self.0 {
            // Nobody is left in it when git ended as it should.
            let _ = rustix::process::kill_process_group(group, rustix::process::Signal::KILL);
        }
    }
}

async fn read_all(from: Option<impl tokio::io::AsyncRead + Unpin>) -> std::io::Result<Vec<u8>> {
    let mut all = Vec::new();
    let Some(mut from) = from else { return Ok(all) };
    (&mut from).take(OUTPUT).read_to_end(&mut all).await?;
    // The rest is not kept, but git must not stop at a full pipe.
    tokio::io::copy(&mut from, &mut tokio::io::sink()).await?;
    Ok(all)
}

/// The line of a listing that `wanted` means: a branch goes before a tag, as with `git checkout`.
fn choose(listing: &str, wanted: Option<&str>) -> Option<(Pinned, Option<String>)> {
    let lines: Vec<(&str, &str)> =
        listing.lines().filter_map(|line| line.split_once('\t')).filter(|(commit, _)| is_commit(commit)).collect();
    let find = |name: &str| lines.iter().find(|(_, found)| *found == name).map(|(commit, _)| (*commit).to_owned());
    let candidates = match wanted {
        None => vec!["HEAD".to_owned()],
        Some("HEAD") => vec!["HEAD".to_owned()],
        Some(name) => {
            let plain = name.strip_prefix("refs/").unwrap_or(name);
            vec![format!("refs/{plain}"), format!("refs/heads/{name}"), format!("refs/tags/{name}")]
        }
    };
    candidates.into_iter().find_map(|name| {
        let object = find(&name)?;
        let peeled = find(&format!("{name}^{{}}"));
        let tag = peeled.is_some().then(|| object.clone());
        Some((Pinned { commit: peeled.unwrap_or(object), reference: Some(name) }, tag))
    })
}

/// A whole name of an object, in either of git's hashes.
fn is_commit(text: &str) -> bool {
    matches!(text.len(), 40 | 64) && text.bytes().all(|byte| byte.is_ascii_hexdigit())
}

/// What git may speak for a source at `remote`, submodules included.
fn protocols(remote: &str) -> Vec<&'static str> {
    let mut all = vec!["https", "ssh", "git"];
    if is_loopback_http(remote) {
        all.push("http");
    }
    all
}

/// Plain http proves nothing about who answers, except on this machine.
fn is_loopback_http(remote: &str) -> bool {
    let Some(rest) = remote.strip_prefix("http://") else { return false };
    let authority = rest.split(['/', '?', '#']).next().unwrap_or_default();
    let host = authority.rsplit_once('@').map_or(authority, |(_, host)| host);
    let host = match host.strip_prefix('[') {
        Some(inner) => inner.split(']').next().unwrap_or_default(),
        None => host.split(':').next().unwrap_or_default(),
    };
    host == "localhost" || host.parse::<IpAddr>().is_ok_and(|address| address.is_loopback())
}

fn check_remote(remote: &str) -> Result<(), ExecutorError> {
    let refuse = |why: &str| Err(ExecutorError::Invalid(format!("invalid git remote {:?}: {why}", redacted(remote))));
    if remote.starts_with('-') || remote.chars().any(|c| c.is_control() || c.is_whitespace()) {
        return refuse("it is no address");
    }
    match remote.split_once("://") {
        Some(("https" | "ssh" | "git", rest)) if !rest.is_empty() && !rest.starts_with('-') => Ok(()),
        Some(("http", _)) if is_loopback_http(remote) => Ok(()),
        Some(("http", _)) => refuse("plain http is spoken with this machine only; use https"),
        Some((scheme, _)) => refuse(&format!("protocol {scheme} is not one of https, ssh and git")),
        // `user@host:path`, and not `ext::program`.
        None if remote.contains('@') && remote.contains(':') && !remote.contains("::") => Ok(()),
        None => refuse("it is no address"),
    }
}

/// What git itself takes as a name, and nothing that could be an option, a pattern or a range.
fn check_reference(reference: &str) -> Result<(), ExecutorError> {
    let bad = |c: char| c.is_control() || c.is_whitespace() || "~^:?*[\\".contains(c);
    let wrong =
        reference.is_empty() || reference.starts_with('-') || reference.contains("..") || reference.contains("@{");
    if wrong || reference.contains(bad) {
        return Err(ExecutorError::Invalid(format!("invalid git ref {reference:?}")));
    }
    Ok(())
}

/// An address as it may be shown and kept: without user and password.
pub fn redacted(remote: &str) -> String {
    let Some((scheme, rest)) = remote.split_once("://") else { return remote.to_owned() };
    let (authority, path) = rest.split_at(rest.find(['/', '?', '#']).unwrap_or(rest.len()));
    match authority.rsplit_once('@') {
        Some((user, host)) if scheme != "ssh" || user.contains(':') => format!("{scheme}://{host}{path}"),
        _ => remote.to_owned(),
    }
}

fn clean_subdir(subdir: &str) -> String {
    let parts: Vec<&str> = subdir.split('/').filter(|part| !part.is_empty() && *part != ".").collect();
    parts.join("/")
}

/// Leaves out git's own directories, and the files by which submodules point at theirs.
struct GitDirs;

impl PathFilter for GitDirs {
    fn excludes(&self, path: &[u8], _is_dir: bool) -> bool {
        path == b".git" || path.ends_with(b"/.git")
    }

    fn reincludes_below(&self, _path: &[u8]) -> bool {
        false
    }
}

fn copy_tree(tree: &Path, subdir: &str, dest: &Path, time: i64, keep_git: bool) -> Result<(), ExecutorError> {
    let flags = OFlags::RDONLY | OFlags::DIRECTORY | OFlags::NOFOLLOW | OFlags::CLOEXEC;
    let top = rustix::fs::open(tree, flags, Mode::empty()).map_err(|errno| ExecutorError::read(b".", errno))?;
    let subdir = clean_subdir(subdir);
    if subdir.split('/').any(|part| part == ".." || part == ".git") {
        return Err(ExecutorError::Invalid(format!("invalid subdir {subdir:?} of a git repository")));
    }
    let root = open_dir_beneath(top.as_fd(), subdir.as_bytes()).map_err(|errno| {
        ExecutorError::Invalid(format!("failed to open subdir {subdir:?} of the git repository: {errno}"))
    })?;
    let filters: Vec<Arc<dyn PathFilter>> = if keep_git { Vec::new() } else { vec![Arc::new(GitDirs)] };
    let selected = Selected { name: Vec::new(), path: Vec::new(), pivot: 0, tree: walk(root.as_fd(), b"", &filters)? };
    let rules = CopyRules {
        dest: b"/".to_vec(),
        owner: Some((0, 0)),
        // Whatever the umask was.
        mode: Some(ModeChange::Symbolic("u=rwX,go=rX".to_owned())),
        timestamp: Some(time),
        implied_time: time,
        contents_only: true,
        parents: false,
        replace: false,
    };
    let mut writer = TreeWriter::new(dest, None)?;
    copy(&mut writer, root.as_fd(), &[selected], &rules)?;
    writer.finish().map(drop)
}

#[cfg(test)]
#[path = "git_tests.rs"]
mod tests;
