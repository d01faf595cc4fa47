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
use rustix::fs::{Mode, OFlags};
use rustix::io::Errno;

use crate::context::{Directory, ignore_file};
use crate::error::Error;
use crate::request::{BuildRequest, NamedContext, SecretSource};

/// The longest secret, in bytes: BuildKit's number.
pub const LONGEST_SECRET: u64 = 500 << 10;

/// What one build can ask for.
#[derive(Default)]
pub(crate) struct Lending {
    pub(crate) contexts: HashMap<String, Directory>,
    secrets: BTreeMap<String, SecretSource>,
    agents: BTreeMap<String, PathBuf>,
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
                NamedContext::Image(_) | NamedContext::Remote(_) => continue,
            };
            contexts.insert(name.clone(), Directory::new(root, ignore, indexes));
        }
        let (secrets, agents) = (request.lent.secrets.clone(), request.lent.agents.clone());
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
        let Some(path) = self.agents.get(id) else { return Ok(None) };
        match tokio::net::UnixStream::connect(path).await {
            Ok(stream) => Ok(Some(Box::new(stream))),
            Err(error) => Err(not_lent(format!("cannot reach the ssh agent {id} at {}: {error}", path.display()))),
        }
    }
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
        let lending = Lending { agents: [("default".to_owned(), socket)].into(), ..Lending::default() };
        assert!(lending.agent("default").await.unwrap().is_some());
        assert!(lending.agent("x").await.unwrap().is_none());
        drop(listener);
        assert!(lending.agent("default").await.err().unwrap().to_string().starts_with("cannot reach the ssh agent"));
    }
}
