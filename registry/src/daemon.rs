//! Images out of a docker daemon and into it, over its Engine API: `GET /images/get` and `POST /images/load`.
//!
//! Both bodies are archives as `docker save` writes them, and both go through as streams. A daemon is no registry: it is
//! spoken to over a socket of this machine, or plain TCP, without credentials, mirrors or retries, and as patiently as it
//! takes, since it says nothing for minutes while it packs a large image.

use std::io::{self, BufWriter, Write};
use std::path::PathBuf;

use bytes::Bytes;
use rbuild_store::StoreError;
use reqwest::{Method, Response, StatusCode};
use serde::Deserialize;
use tokio::sync::mpsc;
use url::Url;

use crate::tls::{self, Roots};
use crate::transport::{deepest, reason, refused};
use crate::{Error, Trust, text};

/// Where docker's daemon listens unless somebody said otherwise.
pub const USUAL_ADDRESS: &str = "unix:///var/run/docker.sock";

/// Bytes handed over at once, and pieces under way: memory stays flat whatever the image's size.
const PIECE: usize = 256 << 10;
const PIECES: usize = 4;
/// What a daemon says about a load is read this far.
const SAID: usize = 1 << 20;

/// A docker daemon.
#[derive(Debug, Clone)]
pub struct Daemon {
    /// As the user wrote it.
    address: String,
    base: Url,
    client: reqwest::Client,
}

/// An archive of images that a daemon sends.
pub struct Exported {
    response: Response,
    address: String,
}

impl Daemon {
    /// The daemon at an address as `DOCKER_HOST` has it: `unix:///path` or `tcp://host:port`.
    ///
    /// # Errors
    /// Another kind of address.
    pub fn new(address: &str) -> Result<Daemon, Error> {
        let tls = tls::checked(&Roots::BuiltIn, &[], &Trust::default())?;
        let mut builder = reqwest::Client::builder()
            .tls_backend_preconfigured(tls)
            .redirect(reqwest::redirect::Policy::none())
            .retry(reqwest::retry::never())
            .no_proxy()
            .http1_only();
        let base = match address.split_once("://") {
            Some(("unix", path)) if path.starts_with('/') => {
                builder = builder.unix_socket(PathBuf::from(path));
                "http://docker/".to_owned()
            }
            Some(("tcp" | "http", host)) if !host.is_empty() => format!("http://{}/", host.trim_end_matches('/')),
            Some((scheme @ ("ssh" | "fd" | "npipe" | "https"), _)) => {
                let reason =
                    format!("the docker daemon at {address}: {scheme}:// is not supported, unix:// and tcp:// are");
                return Err(Error::Options(text::clean(&reason)));
            }
            _ => return Err(Error::Options(text::clean(&format!("unable to parse docker host `{address}`")))),
        };
        let bad =
            |reason: String| Error::Options(text::clean(&format!("unable to parse docker host `{address}`: {reason}")));
        let base = Url::parse(&base).map_err(|e| bad(e.to_string()))?;
        let client = builder.build().map_err(|e| bad(deepest(&e)))?;
        Ok(Daemon { address: address.to_owned(), base, client })
    }

    /// Asks for the archive of one image, by its name or id.
    ///
    /// # Errors
    /// No daemon answers; it has no such image.
    pub async fn export(&self, image: &str) -> Result<Exported, Error> {
        let mut url = self.at("images/get")?;
        url.query_pairs_mut().append_pair("names", image);
        let response = self.client.request(Method::GET, url).send().await.map_err(|e| self.failure(&e))?;
        match response.status() {
            status if status.is_success() => Ok(Exported { response, address: self.address.clone() }),
            status => match said(status, response).await {
                Error::Daemon { found: false, reason } if !reason.contains(image) => {
                    Err(Error::Daemon { found: false, reason: text::clean(&format!("{image}: {reason}")) })
                }
                error => Err(error),
            },
        }
    }

    /// Has the daemon load the archive that `write` writes. Gives the lines with which it says what it loaded.
    ///
    /// # Errors
    /// Those of `write`; no daemon answers, or it refuses the archive.
    pub async fn load<W>(&self, write: W) -> Result<Vec<String>, Error>
    where
        W: FnOnce(&mut dyn Write) -> Result<(), StoreError> + Send + 'static,
    {
        let (sender, receiver) = mpsc::channel::<io::Result<Bytes>>(PIECES);
        let writing = tokio::task::spawn_blocking(move || {
            let mut out = BufWriter::with_capacity(PIECE, Pieces(sender.clone()));
            let written = write(&mut out).and_then(|()| {
                out.flush().map_err(|error| StoreError::io("sending the archive to the docker daemon", error))
            });
            if written.is_err() {
                // So that the daemon does not take what it has for all of it. It may be gone.
                drop(sender.blocking_send(Err(io::Error::other("the archive could not be written"))));
            }
            drop(out.into_parts());
            written
        });
        let body = futures::stream::unfold(receiver, |mut receiver| async {
            let piece = receiver.recv().await?;
            Some((piece, receiver))
        });
        let mut url = self.at("images/load")?;
        url.query_pairs_mut().append_pair("quiet", "1");
        let request = self.client.request(Method::POST, url).header("Content-Type", "application/x-tar");
        let answer = request.body(reqwest::Body::wrap_stream(body)).send().await;
        let written =
            writing.await.map_err(|e| Error::Options(format!("the task that writes the archive failed: {e}")))?;
        let answer = match (answer, written) {
            // What the daemon says is why no more could be written.
            (Ok(answer), _) if !answer.status().is_success() => return Err(said(answer.status(), answer).await),
            (Err(error), _) if error.is_connect() => return Err(self.failure(&error)),
            (_, Err(error)) if !is_closed(&error) => return Err(error.into()),
            (Ok(answer), _) => answer,
            (Err(error), _) => return Err(self.failure(&error)),
        };
        self.told(answer).await
    }

    fn at(&self, path: &str) -> Result<Url, Error> {
        self.base.join(path).map_err(|e| Error::Options(format!("{path}: {e}")))
    }

    /// The lines of a load's answer, which tells its failure there, too.
    async fn told(&self, mut answer: Response) -> Result<Vec<String>, Error> {
        #[derive(Deserialize)]
        struct Line {
            #[serde(default)]
            stream: String,
            #[serde(default)]
            error: Option<String>,
        }
        let mut body = Vec::new();
        while let Some(piece) = answer.chunk().await.map_err(|e| self.failure(&e))? {
            body.extend_from_slice(&piece);
            if body.len() > SAID {
                return Err(Error::TooLarge { what: "the answer of the docker daemon".into(), limit: SAID as u64 });
            }
        }
        let mut lines = Vec::new();
        for line in serde_json::Deserializer::from_slice(&body).into_iter::<Line>() {
            // Older daemons answer in plain words, or nothing.
            let Ok(line) = line else { break };
            if let Some(error) = line.error {
                return Err(Error::Daemon { found: true, reason: text::clean(&error) });
            }
            lines.extend(line.stream.lines().map(text::clean).filter(|line| !line.is_empty()));
        }
        Ok(lines)
    }

    fn failure(&self, error: &reqwest::Error) -> Error {
        failure(&self.address, error)
    }
}

impl Exported {
    /// The next bytes; `None` at the end.
    ///
    /// # Errors
    /// The connection broke.
    pub async fn chunk(&mut self) -> Result<Option<Bytes>, Error> {
        self.response.chunk().await.map_err(|error| failure(&self.address, &error))
    }
}

fn failure(address: &str, error: &reqwest::Error) -> Error {
    let address = text::clean(address);
    let kinds: Vec<io::ErrorKind> =
        causes(error).filter_map(|e| e.downcast_ref::<io::Error>()).map(io::Error::kind).collect();
    let reason = if kinds.contains(&io::ErrorKind::PermissionDenied) {
        format!("permission denied while trying to connect to the Docker daemon socket at {address}")
    } else if error.is_connect() || refused(error) {
        format!("Cannot connect to the Docker daemon at {address}. Is the docker daemon running?")
    } else {
        format!("the Docker daemon at {address} ended the connection: {}", text::clean(&deepest(error)))
    };
    Error::NoDaemon(reason)
}

fn causes<'a>(
    error: &'a (dyn std::error::Error + 'static),
) -> impl Iterator<Item = &'a (dyn std::error::Error + 'static)> {
    std::iter::successors(Some(error), |e| e.source())
}

async fn said(status: StatusCode, answer: Response) -> Error {
    let words = match reason(answer).await {
        words if words.is_empty() => status.to_string(),
        words => words,
    };
    Error::Daemon { found: status != StatusCode::NOT_FOUND, reason: words }
}

/// Whether the other end stopped reading, which has a reason that is told there.
fn is_closed(error: &StoreError) -> bool {
    let mut causes = causes(error);
    causes.any(|e| e.downcast_ref::<io::Error>().is_some_and(|e| e.kind() == io::ErrorKind::BrokenPipe))
}

/// Hands over what is written.
struct Pieces(mpsc::Sender<io::Result<Bytes>>);

impl Write for Pieces {
    fn write(&mut self, bytes: &[u8]) -> io::Result<usize> {
        let piece = Bytes::copy_from_slice(bytes);
        self.0.blocking_send(Ok(piece)).map_err(|_| io::Error::from(io::ErrorKind::BrokenPipe))?;
        Ok(bytes.len())
    }

    fn flush(&mut self) -> io::Result<()> {
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use std::io::Read as _;
    use std::os::unix::net::UnixListener;

    use super::*;

    /// Answers one request with `answer` once its body, or its head, is there; gives what was asked.
    fn one_answer(answer: &'static str) -> (tempfile::TempDir, Daemon, std::thread::JoinHandle<String>) {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("sock");
        let listener = UnixListener::bind(&path).unwrap();
        let server = std::thread::spawn(move || {
            let (mut peer, _) = listener.accept().unwrap();
            let mut asked = Vec::new();
            let mut buffer = [0; 4096];
            loop {
                let len = peer.read(&mut buffer).unwrap();
                asked.extend_from_slice(&buffer[..len]);
                let text = String::from_utf8_lossy(&asked);
                let ended =
                    if text.starts_with("GET") { text.ends_with("\r\n\r\n") } else { text.ends_with("0\r\n\r\n") };
                if ended || len == 0 {
                    break;
                }
            }
            peer.write_all(answer.as_bytes()).unwrap();
            String::from_utf8_lossy(&asked).into_owned()
        });
        let daemon = Daemon::new(&format!("unix://{}", path.display())).unwrap();
        (dir, daemon, server)
    }

    #[tokio::test(flavor = "multi_thread", worker_threads = 2)]
    async fn an_image_is_asked_for_by_name_and_streamed() {
        let (_dir, daemon, server) =
            one_answer("HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n3\r\ntar\r\n0\r\n\r\n");
        let mut archive = daemon.export("team/app:v1").await.unwrap();
        let mut got = Vec::new();
        while let Some(piece) = archive.chunk().await.unwrap() {
            got.extend_from_slice(&piece);
        }
        assert_eq!(got, b"tar");
        assert!(server.join().unwrap().starts_with("GET /images/get?names=team%2Fapp%3Av1 HTTP/1.1\r\n"));
    }

    #[tokio::test(flavor = "multi_thread", worker_threads = 2)]
    async fn a_body_that_breaks_off_is_an_error() {
        let (_dir, daemon, server) = one_answer("HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n9\r\ntar\r\n");
        let mut archive = daemon.export("app").await.unwrap();
        let failed = loop {
            match archive.chunk().await {
                Ok(Some(_)) => {}
                Ok(None) => panic!("the end came"),
                Err(error) => break error,
            }
        };
        assert!(failed.to_string().contains("ended the connection"), "{failed}");
        server.join().unwrap();
    }

    #[tokio::test(flavor = "multi_thread", worker_threads = 2)]
    async fn what_the_daemon_refuses_is_told_in_its_words() {
        let (_dir, daemon, server) =
            one_answer("HTTP/1.1 404 Not Found\r\nContent-Length: 34\r\n\r\n{\"message\":\"No such image: x:tag\"}");
        let failed = daemon.export("x:tag").await.err().unwrap();
        assert_eq!(failed.to_string(), "error response from the docker daemon: No such image: x:tag");
        server.join().unwrap();
        let (_dir, daemon, server) = one_answer(
            "HTTP/1.1 200 OK\r\nContent-Length: 62\r\n\r\n{\"errorDetail\":{\"message\":\"no space\"},\"error\":\"no space left\"}\n\n",
        );
        let failed =
            daemon.load(|out| out.write_all(b"archive").map_err(|e| StoreError::io("x", e))).await.unwrap_err();
        assert_eq!(failed.to_string(), "error response from the docker daemon: no space left");
        server.join().unwrap();
    }

    #[tokio::test(flavor = "multi_thread", worker_threads = 2)]
    async fn an_archive_is_sent_while_it_is_written() {
        let (_dir, daemon, server) =
            one_answer("HTTP/1.1 200 OK\r\nContent-Length: 37\r\n\r\n{\"stream\":\"Loaded image: app:latest\"}\n");
        let said = daemon.load(|out| out.write_all(b"archive").map_err(|e| StoreError::io("x", e))).await.unwrap();
        assert_eq!(said, ["Loaded image: app:latest"]);
        let asked = server.join().unwrap();
        assert!(asked.starts_with("POST /images/load?quiet=1 HTTP/1.1\r\n"), "{asked}");
        assert!(asked.ends_with("7\r\narchive\r\n0\r\n\r\n"), "{asked}");
    }

    #[tokio::test(flavor = "multi_thread", worker_threads = 2)]
    async fn an_archive_that_cannot_be_written_is_not_ended() {
        let (_dir, daemon, server) = one_answer("");
        let failed = daemon.load(|out| {
            out.write_all(b"half").map_err(|e| StoreError::io("x", e))?;
            Err(StoreError::invalid("image", "its layer is gone"))
        });
        let failed = failed.await.unwrap_err();
        assert!(failed.to_string().contains("its layer is gone"), "{failed}");
        assert!(!server.join().unwrap().ends_with("0\r\n\r\n"));
    }

    #[tokio::test]
    async fn no_daemon_is_told_with_its_address() {
        let dir = tempfile::tempdir().unwrap();
        let address = format!("unix://{}/none.sock", dir.path().display());
        let failed = Daemon::new(&address).unwrap().export("x").await.err().unwrap();
        assert_eq!(
            failed.to_string(),
            format!("Cannot connect to the Docker daemon at {address}. Is the docker daemon running?")
        );
        for (address, words) in [
            ("ssh://host", "ssh:// is not supported, unix:// and tcp:// are"),
            ("/var/run/docker.sock", "unable to parse docker host `/var/run/docker.sock`"),
            ("unix://relative", "unable to parse docker host"),
        ] {
            let failed = Daemon::new(address).unwrap_err().to_string();
            assert!(failed.contains(words), "{failed}");
        }
    }
}
