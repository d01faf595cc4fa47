//! An ssh agent that serves key files of the caller's to the steps of one build.
//!
//! It lives in this process and answers the two questions a step may ask (the ssh agent protocol,
//! draft-ietf-sshm-ssh-agent): which keys there are, and a signature. The keys never leave its memory. Why not start
//! `ssh-agent`: it would have to be installed, found, fed through a socket, and killed whatever happens.

mod key;

use std::os::fd::{AsFd, AsRawFd, OwnedFd};
use std::path::{Path, PathBuf};
use std::sync::Arc;

use rbuild_executor::AgentStream;
use rbuild_store::Lease;
use rustix::fs::{Mode, OFlags};
use tokio::io::{AsyncRead, AsyncReadExt, AsyncWrite, AsyncWriteExt, DuplexStream};
use tokio::net::UnixListener;
use tokio::task::JoinHandle;

use crate::error::Error;
use key::{Key, Signing};

const FAILURE: u8 = 5;
const REQUEST_IDENTITIES: u8 = 11;
const IDENTITIES_ANSWER: u8 = 12;
const SIGN_REQUEST: u8 = 13;
const SIGN_RESPONSE: u8 = 14;
/// Flags of a request to sign with an RSA key.
const SHA256: u32 = 2;
const SHA512: u32 = 4;
/// The longest message, in bytes: OpenSSH's number.
const LONGEST: usize = 256 << 10;
/// The longest key file, in bytes: BuildKit's number.
const LONGEST_FILE: u64 = 100 << 10;
const PIPE: usize = 64 << 10;

/// Whether a file holds a private key that can be lent.
///
/// # Errors
/// What is wrong with it.
pub fn check_key_file(path: &Path) -> Result<(), Error> {
    read_key(path).map(drop)
}

fn read_key(path: &Path) -> Result<Key, Error> {
    let refused = |why: &dyn std::fmt::Display| Error::invalid(format!("failed to parse {}: {why}", path.display()));
    let mut text = String::new();
    let file = std::fs::File::open(path).map_err(|error| refused(&error))?;
    std::io::Read::read_to_string(&mut std::io::Read::take(file, LONGEST_FILE + 1), &mut text)
        .map_err(|error| refused(&error))?;
    if text.len() as u64 > LONGEST_FILE {
        return Err(refused(&"it is too long for a key"));
    }
    Key::parse(&text).map_err(|error| refused(&error).with_hint(error.hint(path)))
}

/// The keys of one id. Cheap to clone.
#[derive(Clone)]
pub(crate) struct KeyAgent(Arc<Vec<Key>>);

impl KeyAgent {
    /// # Errors
    /// A file is no private key that can be used.
    pub(crate) fn load(files: &[PathBuf]) -> Result<KeyAgent, Error> {
        Ok(KeyAgent(Arc::new(files.iter().map(|path| read_key(path)).collect::<Result<_, _>>()?)))
    }

    /// A connection to it.
    pub(crate) fn connect(&self) -> Box<dyn AgentStream> {
        let (ours, theirs): (DuplexStream, DuplexStream) = tokio::io::duplex(PIPE);
        tokio::spawn(serve(self.clone(), ours));
        Box::new(theirs)
    }

    fn answer(&self, request: &[u8]) -> Vec<u8> {
        match request.split_first() {
            Some((&REQUEST_IDENTITIES, [])) => {
                let mut answer = vec![IDENTITIES_ANSWER];
                answer.extend((self.0.len() as u32).to_be_bytes());
                for key in self.0.iter() {
                    key::put(&mut answer, key.public());
                    key::put(&mut answer, key.comment().as_bytes());
                }
                answer
            }
            Some((&SIGN_REQUEST, mut rest)) => self.sign(&mut rest).unwrap_or_else(|| vec![FAILURE]),
            _ => vec![FAILURE],
        }
    }

    fn sign(&self, request: &mut &[u8]) -> Option<Vec<u8>> {
        let (public, data) = (key::take(request)?, key::take(request)?);
        let flags = u32::from_be_bytes(request.get(..4)?.try_into().ok()?);
        let how = match flags {
            flags if flags & SHA512 != 0 => Signing::Sha512,
            flags if flags & SHA256 != 0 => Signing::Sha256,
            _ => Signing::Usual,
        };
        let signature = self.0.iter().find(|key| key.public() == public)?.sign(data, how)?;
        let mut answer = vec![SIGN_RESPONSE];
        key::put(&mut answer, &signature);
        Some(answer)
    }
}

/// Answers until the other side closes or talks nonsense.
async fn serve(agent: KeyAgent, mut stream: impl AsyncRead + AsyncWrite + Unpin) {
    loop {
        let Ok(length) = stream.read_u32().await else { return };
        let length = length as usize;
        if length == 0 || length > LONGEST {
            return;
        }
        let mut request = vec![0; length];
        if stream.read_exact(&mut request).await.is_err() {
            return;
        }
        let answer = agent.answer(&request);
        let mut framed = (answer.len() as u32).to_be_bytes().to_vec();
        framed.extend(answer);
        if stream.write_all(&framed).await.is_err() {
            return;
        }
    }
}

/// An agent on a socket, for programs of ours that want a path (git's ssh). Dropping it ends it.
pub(crate) struct AgentSocket {
    path: PathBuf,
    task: JoinHandle<()>,
    /// The path goes through this directory, for an address of a socket is short and the store's path may not be.
    _dir: OwnedFd,
}

impl AgentSocket {
    /// # Errors
    /// The lease's directory takes no socket.
    pub(crate) fn open(agent: &KeyAgent, lease: &Lease) -> Result<AgentSocket, Error> {
        let dir = lease.ingest_path("agent")?;
        std::fs::create_dir(&dir).map_err(Error::internal)?;
        rustix::fs::chmod(&dir, Mode::from_raw_mode(0o700)).map_err(Error::internal)?;
        let flags = OFlags::PATH | OFlags::DIRECTORY | OFlags::CLOEXEC;
        let dir = rustix::fs::open(&dir, flags, Mode::empty()).map_err(Error::internal)?;
        let number = dir.as_fd().as_raw_fd();
        let listener = UnixListener::bind(format!("/proc/self/fd/{number}/agent")).map_err(Error::internal)?;
        let agent = agent.clone();
        let task = tokio::spawn(async move {
            while let Ok((stream, _)) = listener.accept().await {
                tokio::spawn(serve(agent.clone(), stream));
            }
        });
        let path = PathBuf::from(format!("/proc/{}/fd/{number}/agent", std::process::id()));
        Ok(AgentSocket { path, task, _dir: dir })
    }

    pub(crate) fn path(&self) -> &Path {
        &self.path
    }
}

impl Drop for AgentSocket {
    fn drop(&mut self) {
        self.task.abort();
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn agent() -> KeyAgent {
        let dir = Path::new(env!("CARGO_MANIFEST_DIR")).join("testdata/keys");
        KeyAgent::load(&["key_ed25519", "key_rsa"].map(|name| dir.join(name))).unwrap()
    }

    async fn ask(stream: &mut (impl AsyncRead + AsyncWrite + Unpin), request: &[u8]) -> Vec<u8> {
        stream.write_u32(request.len() as u32).await.unwrap();
        stream.write_all(request).await.unwrap();
        let mut answer = vec![0; stream.read_u32().await.unwrap() as usize];
        stream.read_exact(&mut answer).await.unwrap();
        answer
    }

    #[tokio::test]
    async fn it_lists_and_signs_and_does_nothing_else() {
        let agent = agent();
        let mut stream = agent.connect();
        let listed = ask(&mut stream, &[REQUEST_IDENTITIES]).await;
        assert_eq!(listed[..5], [IDENTITIES_ANSWER, 0, 0, 0, 2]);
        let mut rest = &listed[5..];
        let public = key::take(&mut rest).unwrap().to_vec();
        assert_eq!(key::take(&mut rest).unwrap(), b"for tests only");
        let mut request = vec![SIGN_REQUEST];
        key::put(&mut request, &public);
        key::put(&mut request, b"data");
        request.extend([0; 4]);
        assert_eq!(ask(&mut stream, &request).await[0], SIGN_RESPONSE);
        // Adding and removing keys, and what is no message at all.
        for request in [&[17, 0][..], &[19], &[SIGN_REQUEST], &[SIGN_REQUEST, 0, 0, 0, 9, 1], &[27]] {
            assert_eq!(ask(&mut stream, request).await, [FAILURE], "{request:?}");
        }
    }

    #[tokio::test]
    async fn a_message_that_is_too_long_ends_the_connection() {
        let mut stream = agent().connect();
        stream.write_u32(u32::MAX).await.unwrap();
        assert!(stream.read_u32().await.is_err());
    }

    #[test]
    fn files_that_are_no_keys() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("k");
        std::fs::write(&path, "no key").unwrap();
        assert!(check_key_file(&path).unwrap_err().message.starts_with("failed to parse "));
        std::fs::write(&path, vec![b'x'; LONGEST_FILE as usize + 1]).unwrap();
        assert!(check_key_file(&path).unwrap_err().message.ends_with("it is too long for a key"));
        assert!(check_key_file(Path::new("/no/such")).is_err());
    }
}
