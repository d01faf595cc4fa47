//! What the caller of a build lends besides its main context: named contexts, secrets, ssh agents.
//!
//! Named directories are opened when the build starts, so that a mistake in a name is told before any work. Secrets are
//! read when a step asks for one: a build that takes the step from the cache reads none.

use std::collections::{BTreeMap, HashMap};
use std::io::Read;
use std::os::fd::OwnedFd;
use std::path::{Path, PathBuf};

use rbuild_executor::{AgentStream, ExecutorError, Secret};
use rbuild_frontend::ignore::IgnoreFile;
use rbuild_store::Lease;
use rustix::fs::{Mode, OFlags};
use rustix::io::Errno;

use crate::agent::{AgentSocket, KeyAgent};
use crate::context::{Directory, ignore_file};
use crate::error::Error;
use crate::request::{AgentSource, BuildRequest, NamedContext, SecretSource};

/// The longest secret, in bytes: BuildKit's number.
pub const LONGEST_SECRET: u64 = 500 << 10;

/// What one build can ask for.
#[derive(Default)]
pub(crate) struct Lending {
    pub(crate) contexts: HashMap<String, Directory>,
    secrets: BTreeMap<String, SecretSource>,
    agents: BTreeMap<String, Agent>,
}

/// What answers for an id.
#[derive(Clone)]
pub(crate) enum Agent {
    Socket(PathBuf),
    Keys(KeyAgent),
}

impl Agent {
    fn open(source: &AgentSource) -> Result<Agent, Error> {
        Ok(match source {
            AgentSource::Socket(path) => Agent::Socket(path.clone()),
            AgentSource::Keys(files) => Agent::Keys(KeyAgent::load(files)?),
        })
    }
}

/// The agent that git gets for what a Dockerfile names: `--ssh default`.
pub(crate) enum GitAgent {
    None,
    Socket(PathBuf),
    /// Ours; it answers as long as this lives.
    Keys(AgentSocket),
}

impl GitAgent {
    /// # Errors
    /// A file that is no key.
    pub(crate) fn open(request: &BuildRequest, lease: &Lease) -> Result<GitAgent, Error> {
        Ok(match request.lent.agents.get("default").map(Agent::open).transpose()? {
            None => GitAgent::None,
            Some(Agent::Socket(path)) => GitAgent::Socket(path),
            Some(Agent::Keys(keys)) => GitAgent::Keys(AgentSocket::open(&keys, lease)?),
        })
    }

    pub(crate) fn path(&self) -> Option<PathBuf> {
        match self {
            GitAgent::None => None,
            GitAgent::Socket(path) => Some(path.clone()),
            GitAgent::Keys(socket) => Some(socket.path().to_owned()),
        }
    }
}

impl Lending {
    /// Opens what the request lends. `indexes` is where what is known of directories is kept.
    ///
    /// # Errors
    /// A directory that is not there, or whose ignore file cannot be read.
    pub(crate) fn open(request: &BuildRequest, indexes: &Path) -> Result<Lending, Error> {
        let mut contexts = HashMap::new();
        for (name, context) in &request.lent.contexts {
            let (root, ignore, indexes) = match context {
                NamedContext::Directory(path) => {
                    let root = open_named(name, path)?;
                    let ignore = ignore_file(&root, None)?;
                    (root, ignore, Some(indexes))
                }
                NamedContext::Unpacked(path) => (open_named(name, path)?, IgnoreFile::default(), None),
                NamedContext::Image(_) | NamedContext::Remote(_) | NamedContext::Layout(_) | NamedContext::Lent(_) => {
                    continue;
                }
            };
            contexts.insert(name.clone(), Directory::new(root, ignore, indexes));
        }
        let secrets = request.lent.secrets.clone();
        let agents = request.lent.agents.iter().map(|(id, source)| Ok((id.clone(), Agent::open(source)?)));
        let agents = agents.collect::<Result<_, Error>>()?;
        Ok(Lending { contexts, secrets, agents })
    }

    pub(crate) async fn secret(&self, id: &str) -> Result<Option<Secret>, ExecutorError> {
        match self.secrets.get(id) {
            None => Ok(None),
            Some(SecretSource::Value(secret)) => Ok(Some(secret.clone())),
            Some(SecretSource::File(path)) => {
                let (id, path) = (id.to_owned(), path.clone());
                // It may be a pipe whose writer takes its time.
                let read = tokio::task::spawn_blocking(move || read_secret(&id, &path)).await;
                read.map_err(|error| ExecutorError::Invalid(error.to_string()))?.map(Some)
            }
        }
    }

    pub(crate) async fn agent(&self, id: &str) -> Result<Option<Box<dyn AgentStream>>, ExecutorError> {
        let path = match self.agents.get(id) {
            None => return Ok(None),
            Some(Agent::Keys(keys)) => return Ok(Some(keys.connect())),
            Some(Agent::Socket(path)) => path,
        };
        match tokio::net::UnixStream::connect(path).await {
            Ok(stream) => Ok(Some(Box::new(stream))),
            Err(error) => Err(not_lent(format!("cannot reach the ssh agent {id} at {}: {error}", path.display()))),
        }
    }
}

/// The secrets that git is to show to servers, by their ids: `GIT_AUTH_TOKEN` and `GIT_AUTH_HEADER`, each also with a
/// dot and a host. They are read when the build starts, if there are any.
///
/// # Errors
/// One that cannot be read, or is no text of one line.
pub(crate) async fn git_secrets(request: &BuildRequest) -> Result<BTreeMap<String, Secret>, Error> {
    let mut found = BTreeMap::new();
    let is_git = |id: &String| {
        ["GIT_AUTH_TOKEN", "GIT_AUTH_HEADER"]
            .iter()
            .any(|name| id.strip_prefix(name).is_some_and(|rest| rest.is_empty() || rest.starts_with('.')))
    };
    for (id, source) in request.lent.secrets.iter().filter(|(id, _)| is_git(id)) {
        let lending = Lending { secrets: [(id.clone(), source.clone())].into(), ..Lending::default() };
        let secret = lending.secret(id).await.map_err(|error| Error::invalid(error.to_string()))?;
        let Some(secret) = secret.map(|secret| secret.expose().trim_ascii().to_vec()) else { continue };
        if secret.iter().any(|byte| byte.is_ascii_control()) {
            return Err(Error::invalid(format!("secret {id} is not one line of text")));
        }
        if !secret.is_empty() {
            found.insert(id.clone(), Secret::new(secret));
        }
    }
    Ok(found)
}

fn open_named(name: &str, path: &Path) -> Result<OwnedFd, Error> {
    let flags = OFlags::RDONLY | OFlags::DIRECTORY | OFlags::CLOEXEC;
    rustix::fs::open(path, flags, Mode::empty()).map_err(|errno| {
        let refused = |why: &dyn std::fmt::Display| format!("failed to get build context {name}: {why}");
        match errno {
            Errno::NOENT => {
                Error::not_found(refused(&format_args!("stat {}: no such file or directory", path.display())))
            }
            Errno::NOTDIR => Error::invalid(refused(&format_args!("{} is not a directory", path.display()))),
            errno => Error::invalid(refused(&format_args!("{}: {errno}", path.display()))),
        }
    })
}

fn not_lent(message: String) -> ExecutorError {
    ExecutorError::NotLent { message, hints: Vec::new() }
}

fn read_secret(id: &str, path: &Path) -> Result<Secret, ExecutorError> {
    let mut bytes = Vec::new();
    let read = std::fs::File::open(path).and_then(|file| file.take(LONGEST_SECRET + 1).read_to_end(&mut bytes));
    read.map_err(|error| not_lent(format!("secret {id}: cannot read {}: {error}", path.display())))?;
    if bytes.len() as u64 > LONGEST_SECRET {
        return Err(not_lent(format!("secret {id} too big. max size 500KB")));
    }
    Ok(Secret::new(bytes))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[tokio::test]
    async fn secrets_are_read_when_asked_for() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("s");
        let file = |path: &Path| SecretSource::File(path.to_owned());
        let secrets = [
            ("late".to_owned(), file(&path)),
            ("gone".to_owned(), file(&dir.path().join("no"))),
            ("value".to_owned(), SecretSource::Value(Secret::new(*b"v"))),
        ];
        let lending = Lending { secrets: secrets.into(), ..Lending::default() };
        std::fs::write(&path, "made after the build began").unwrap();
        assert_eq!(lending.secret("late").await.unwrap().unwrap().expose(), b"made after the build began");
        assert_eq!(lending.secret("value").await.unwrap().unwrap().expose(), b"v");
        assert!(lending.secret("other").await.unwrap().is_none());
        assert!(lending.secret("gone").await.unwrap_err().to_string().starts_with("secret gone: cannot read"));
        std::fs::write(&path, vec![b'x'; LONGEST_SECRET as usize + 1]).unwrap();
        assert_eq!(lending.secret("late").await.unwrap_err().to_string(), "secret late too big. max size 500KB");
    }

    #[tokio::test]
    async fn agents_are_told_apart() {
        let dir = tempfile::tempdir().unwrap();
        let socket = dir.path().join("agent");
        let listener = tokio::net::UnixListener::bind(&socket).unwrap();
        assert!(Lending::default().agent("default").await.unwrap().is_none());
        let lending = Lending { agents: [("default".to_owned(), Agent::Socket(socket))].into(), ..Lending::default() };
        assert!(lending.agent("default").await.unwrap().is_some());
        assert!(lending.agent("x").await.unwrap().is_none());
        drop(listener);
        assert!(lending.agent("default").await.err().unwrap().to_string().starts_with("cannot reach the ssh agent"));
    }
}
