//! `RUN --mount=type=ssh`: the client's ssh agent, lent to one process.
//!
//! The process gets a socket of ours. What it asks is read message by message, and only two questions reach the agent:
//! which keys there are, and a signature with one. Everything else is answered with failure: an agent that can be told
//! to load a provider or an identity runs code of whoever tells it (CVE-2023-38408). Why not hand over the agent's own
//! socket: a socket cannot be lent in part.

use std::io;
use std::os::fd::AsRawFd;
use std::os::unix::net::UnixListener as BoundListener;
use std::sync::Arc;
use std::time::Duration;

use rbuild_graph::ops::{Mount, MountKind};
use rbuild_runtime::MountSource;
use rustix::fs::{AtFlags, Gid, Mode, OFlags, Uid};
use tokio::io::{AsyncRead, AsyncReadExt, AsyncWrite, AsyncWriteExt};
use tokio::net::{UnixListener, UnixStream};
use tokio::task::{JoinHandle, JoinSet};

use super::{Step, ask, local};
use crate::{ExecutorError, Session};

/// Requests of the ssh agent protocol that are passed on.
const REQUEST_IDENTITIES: u8 = 11;
const SIGN_REQUEST: u8 = 13;
/// A whole message: one byte long, "failure".
const FAILURE: [u8; 5] = [0, 0, 0, 1, 5];
/// The longest message OpenSSH's agent takes, in bytes.
const LONGEST: usize = 256 << 10;
/// Connections of one process at a time; more wait.
const MOST: usize = 32;

/// A socket that answers; dropping it ends it and all connections.
pub(crate) struct Proxy(JoinHandle<()>);

impl Drop for Proxy {
    fn drop(&mut self) {
        self.0.abort();
    }
}

/// The socket to show, if the client lends such an agent.
pub(super) fn lend(step: &Step<'_>, n: usize, mount: &Mount) -> Result<Option<(MountSource, Proxy)>, ExecutorError> {
    let MountKind::Ssh { id, required, mode, uid, gid } = &mount.kind else { return Ok(None) };
    let session = step.executor.session.clone();
    // Whether it can be reached is better known now than by a puzzling failure inside.
    if ask(step.context, session.ssh(id))?.is_none() {
        return match required {
            true => Err(ExecutorError::not_lent(
                format!("no SSH key {id:?} forwarded from the client"),
                format!("lend an agent with --ssh {id}"),
            )),
            false => Ok(None),
        };
    }
    let serve = || -> io::Result<(MountSource, Proxy)> {
        let flags = OFlags::PATH | OFlags::DIRECTORY | OFlags::CLOEXEC;
        let dir = rustix::fs::open(step.workspace, flags, Mode::empty())?;
        let name = format!("ssh{n}");
        // A socket's address is short; the workspace's path may not be.
        let listener = BoundListener::bind(format!("/proc/self/fd/{}/{name}", dir.as_raw_fd()))?;
        listener.set_nonblocking(true)?;
        rustix::fs::chownat(
            &dir,
            &name,
            Some(Uid::from_raw(*uid)),
            Some(Gid::from_raw(*gid)),
            AtFlags::SYMLINK_NOFOLLOW,
        )?;
        rustix::fs::chmodat(&dir, &name, Mode::from_raw_mode(*mode), AtFlags::empty())?;
        let shown = rustix::fs::openat(&dir, &name, OFlags::PATH | OFlags::NOFOLLOW | OFlags::CLOEXEC, Mode::empty())?;
        let runtime = tokio::runtime::Handle::current();
        let _inside = runtime.enter();
        let task = runtime.spawn(answer(UnixListener::from_std(listener)?, session.clone(), id.clone()));
        Ok((MountSource::Opened(shown), Proxy(task)))
    };
    serve().map(Some).map_err(local)
}

async fn answer(listener: UnixListener, session: Arc<dyn Session>, id: String) {
    let mut connections = JoinSet::new();
    loop {
        while connections.len() >= MOST {
            connections.join_next().await;
        }
        tokio::select! {
            accepted = listener.accept() => match accepted {
                Ok((client, _)) => {
                    connections.spawn(connection(client, session.clone(), id.clone()));
                }
                // Out of descriptors, say: it passes.
                Err(_) => tokio::time::sleep(Duration::from_millis(50)).await,
            },
            Some(_) = connections.join_next() => {}
        }
    }
}

async fn connection(client: UnixStream, session: Arc<dyn Session>, id: String) {
    let agent = match session.ssh(&id).await {
        Ok(Some(agent)) => agent,
        Ok(None) => return,
        Err(error) => return tracing::debug!(%error, "an ssh agent is gone"),
    };
    if let Err(error) = relay(client, agent).await {
        tracing::debug!(%error, "a connection to an ssh agent ended");
    }
}

/// Passes permitted requests to `agent` and its answers back, one after the other, until either side closes.
async fn relay(
    mut client: impl AsyncRead + AsyncWrite + Unpin,
    mut agent: impl AsyncRead + AsyncWrite + Unpin,
) -> io::Result<()> {
    while let Some(request) = message(&mut client).await? {
        if !matches!(request[4], REQUEST_IDENTITIES | SIGN_REQUEST) {
            client.write_all(&FAILURE).await?;
            continue;
        }
        agent.write_all(&request).await?;
        let Some(response) = message(&mut agent).await? else { return Ok(()) };
        client.write_all(&response).await?;
    }
    Ok(())
}

/// The next message with its length before it; `None` at the end.
async fn message(from: &mut (impl AsyncRead + Unpin)) -> io::Result<Option<Vec<u8>>> {
    let mut length = [0; 4];
    match from.read_exact(&mut length).await {
        Err(error) if error.kind() == io::ErrorKind::UnexpectedEof => return Ok(None),
        read => read?,
    };
    let count = u32::from_be_bytes(length) as usize;
    if count == 0 || count > LONGEST {
        return Err(io::Error::new(io::ErrorKind::InvalidData, format!("an agent message of {count} bytes")));
    }
    let mut whole = vec![0; 4 + count];
    whole[..4].copy_from_slice(&length);
    from.read_exact(&mut whole[4..]).await?;
    Ok(Some(whole))
}

#[cfg(test)]
mod tests {
    use super::*;

    fn framed(body: &[u8]) -> Vec<u8> {
        [&(body.len() as u32).to_be_bytes()[..], body].concat()
    }

    #[tokio::test]
    async fn an_agent_only_lists_and_signs() {
        let (mut client, near) = tokio::io::duplex(1 << 10);
        let (far, mut agent) = tokio::io::duplex(1 << 10);
        let relay = tokio::spawn(relay(near, far));
        // Every request that exists and some that do not: add, remove, smartcards, lock, extension.
        for kind in (0..=40).chain([255]) {
            if kind == REQUEST_IDENTITIES || kind == SIGN_REQUEST {
                continue;
            }
            client.write_all(&framed(&[kind, 1, 2, 3])).await.unwrap();
            assert_eq!(message(&mut client).await.unwrap().unwrap(), FAILURE, "request {kind}");
        }
        for kind in [REQUEST_IDENTITIES, SIGN_REQUEST] {
            client.write_all(&framed(&[kind, 7])).await.unwrap();
            // Nothing of what was refused has come before it.
            assert_eq!(message(&mut agent).await.unwrap().unwrap(), framed(&[kind, 7]));
            agent.write_all(&framed(&[kind + 1, 9])).await.unwrap();
            assert_eq!(message(&mut client).await.unwrap().unwrap(), framed(&[kind + 1, 9]));
        }
        drop(client);
        relay.await.unwrap().unwrap();
    }

    #[tokio::test]
    async fn messages_are_bounded() {
        for bad in [0u32, LONGEST as u32 + 1, u32::MAX] {
            let (mut client, near) = tokio::io::duplex(64);
            let (far, _agent) = tokio::io::duplex(64);
            client.write_all(&bad.to_be_bytes()).await.unwrap();
            assert_eq!(relay(near, far).await.unwrap_err().kind(), io::ErrorKind::InvalidData);
        }
    }
}
