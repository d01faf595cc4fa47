//! Contexts and Dockerfiles that are not directories of this machine: archives, git repositories, files of web servers.
//!
//! They are brought here before anything else happens, into a directory of the build's lease, and the request then names
//! that; so the rest of a build knows directories only. An archive is unpacked by the reader that ADD uses, a repository
//! checked out as ADD does it.

use std::fs::File;
use std::io::{Read, Write};
use std::path::PathBuf;
use std::time::SystemTime;

use rbuild_executor::sources::git::{GitOptions, Repository, redacted};
use rbuild_executor::{ExecutorError, starts_tar, unpack_into};
use rbuild_graph::ops::GitSource;
use rbuild_oci::{Platform, Reference, Sha256, limits};
use rbuild_solver::{Event, Events, LogStream, Outcome, StepId, StepKind, Unit};
use rbuild_store::layers::compress::Codec;
use rbuild_store::root::{self, Dir};
use rbuild_store::{Lease, Root};

use crate::attest::materials::Material;
use crate::engine::Engine;
use crate::error::{Error, Kind};
use crate::layout;
use crate::lending::{self, GitAgent};
use crate::request::{BuildContext, BuildRequest, DockerfileSource, NamedContext};
use crate::resolve::LentImages;

/// Directories within each other that are looked through for the date of a context.
const DEEPEST: usize = 200;

/// What was brought here.
pub(crate) struct Brought {
    /// How git fetches what the Dockerfile names: with what the caller lent.
    pub(crate) git: Option<GitOptions>,
    /// Serves git as long as it lives.
    pub(crate) agent: GitAgent,
    /// The repository or archive that is the context.
    pub(crate) context: Option<Material>,
    /// Everything else.
    pub(crate) materials: Vec<Material>,
    pub(crate) images: LentImages,
    /// When a web server says that the context was changed, in seconds since 1970.
    pub(crate) modified: Option<i64>,
}

/// The request with all that it names from elsewhere brought here.
///
/// # Errors
/// What was named cannot be had, or is no archive, repository or Dockerfile.
pub(crate) async fn bring(
    engine: &Engine,
    mut request: BuildRequest,
    lease: &Lease,
    events: &Events,
) -> Result<(BuildRequest, Brought), Error> {
    let secrets = lending::git_secrets(&request).await?;
    let git = engine.options().git.clone().map(|git| git.with_secrets(secrets));
    let agent = GitAgent::open(&request, lease)?;
    let lent = agent.path();
    // A context that the caller names may also be fetched with the agent of the caller's own shell.
    let of_caller = match &lent {
        Some(path) => git.clone().map(|git| git.with_agent(Some(path.clone()))),
        None => git.clone(),
    };
    let bringing = Bringing { engine, git: of_caller.as_ref(), lease, events };
    let git = git.map(|git| git.with_agent(lent));
    let mut brought =
        Brought { git, agent, context: None, materials: Vec::new(), images: LentImages::new(), modified: None };
    if let DockerfileSource::Remote(url) = &request.dockerfile {
        let url = url.clone();
        let name = format!("[internal] load remote build definition {}", redacted(&url));
        let read = |step| async move {
            let (file, material, _) = bringing.download(&url, step).await?;
            Ok((blocking(move || read_text(File::open(file).map_err(Error::internal)?)).await?, material))
        };
        let (text, material) = bringing.step(&name, read).await?;
        request.dockerfile = DockerfileSource::Text(text);
        brought.materials.push(material);
    }
    bringing.named(&mut request, &mut brought).await?;
    let arrived = match &request.context {
        BuildContext::Stream(stream) => {
            let input = stream.take().ok_or_else(|| Error::invalid("the build context was read already"))?;
            bringing.step("[internal] load build context from the caller", |_| bringing.stream(input)).await?
        }
        BuildContext::Remote(address) => {
            let title = format!("[internal] load remote build context {}", redacted(address));
            let (arrived, material, modified) = bringing.remote(address, &title).await?;
            (brought.context, brought.modified) = (Some(material), modified);
            arrived
        }
        _ => return Ok((request, brought)),
    };
    match (arrived, &request.dockerfile) {
        (Arrived::Directory(path), _) => request.context = BuildContext::Unpacked(path),
        (Arrived::Dockerfile(text), DockerfileSource::File(None)) => {
            request.context = BuildContext::Empty;
            request.dockerfile = DockerfileSource::Text(text);
        }
        (Arrived::Dockerfile(_), _) => {
            return Err(Error::invalid("the build context is a Dockerfile itself, and another one was named"));
        }
    }
    Ok((request, brought))
}

/// What a context turned out to be.
enum Arrived {
    Directory(PathBuf),
    Dockerfile(Vec<u8>),
}

#[derive(Clone, Copy)]
struct Bringing<'a> {
    engine: &'a Engine,
    git: Option<&'a GitOptions>,
    lease: &'a Lease,
    events: &'a Events,
}

impl Bringing<'_> {
    async fn step<T, F: Future<Output = Result<T, Error>>>(
        &self,
        name: &str,
        work: impl FnOnce(StepId) -> F,
    ) -> Result<T, Error> {
        as_step(self.events, name, work).await
    }

    /// The named contexts.
    async fn named(&self, request: &mut BuildRequest, brought: &mut Brought) -> Result<(), Error> {
        let mut platforms = request.platforms.clone();
        platforms.push(Platform::host());
        for (name, context) in &mut request.lent.contexts {
            match &*context {
                NamedContext::Remote(address) => {
                    let title = format!("[context {name}] load {}", redacted(address));
                    let (arrived, material, _) = self.remote(address, &title).await?;
                    let Arrived::Directory(path) = arrived else {
                        let address = redacted(address);
                        let why = format!("failed to get build context {name}: {address} is no archive");
                        return Err(Error::invalid(why));
                    };
                    brought.materials.push(material);
                    *context = NamedContext::Unpacked(path);
                }
                NamedContext::Layout(image) => {
                    let title = format!("[context {name}] load oci-layout://{}", image.what);
                    let (image, platforms) = (image.clone(), platforms.clone());
                    let (store, lease) = (self.engine.store().clone(), self.lease.clone());
                    let work = move || layout::bring(&image, &platforms, &store, &lease);
                    let found = self.step(&title, |_| blocking(work)).await?;
                    let reference = Reference::parse(name).map_err(|error| Error::invalid(error.to_string()))?;
                    let reference = reference.without_tag().with_digest(found.digest);
                    brought.images.insert(reference.clone(), found.manifests);
                    *context = NamedContext::Lent(reference);
                }
                _ => {}
            }
        }
        Ok(())
    }

    /// A git repository, or what a web server has, with the time the server gives it.
    async fn remote(&self, address: &str, title: &str) -> Result<(Arrived, Material, Option<i64>), Error> {
        let source = git(address)?;
        self.step(title, |step| async move {
            if let Some(source) = source {
                let (path, material) = self.repository(source, step).await?;
                return Ok((Arrived::Directory(path), material, None));
            }
            let (file, material, modified) = self.download(address, step).await?;
            let arrived = self.stream(Box::new(File::open(file).map_err(Error::internal)?)).await?;
            Ok((arrived, material, modified))
        })
        .await
    }

    fn directory(&self) -> Result<PathBuf, Error> {
        let path = self.lease.ingest_path("context")?;
        std::fs::create_dir(&path).map_err(Error::internal)?;
        Ok(path)
    }

    /// An archive is unpacked, anything else taken for a Dockerfile.
    async fn stream(&self, mut input: Box<dyn Read + Send>) -> Result<Arrived, Error> {
        let path = self.directory()?;
        blocking(move || {
            let mut start = Vec::with_capacity(512);
            (&mut input).take(512).read_to_end(&mut start).map_err(unreadable)?;
            let is_archive = Codec::detect(&start) != Codec::Plain || starts_tar(&start);
            let whole = std::io::Cursor::new(start).chain(input);
            if !is_archive {
                return read_text(whole).map(Arrived::Dockerfile);
            }
            unpack_into(whole, &path).map_err(|error| failed(&error))?;
            Ok(Arrived::Directory(path))
        })
        .await
    }

    async fn repository(&self, source: GitSource, step: StepId) -> Result<(PathBuf, Material), Error> {
        let path = self.directory()?;
        let bad = |error: ExecutorError| failed(&error);
        let work = self.lease.ingest_path("git")?;
        let repository = Repository::new(self.git, &source, work.clone()).map_err(bad)?;
        let pinned = repository.pin().await.map_err(bad)?;
        let name = source.reference.as_deref().unwrap_or("HEAD");
        self.events.log(step, LogStream::Stdout, format!("{} {name}\n", pinned.commit));
        repository.check_out(&pinned, path.clone()).await.map_err(bad)?;
        // The lease would take it as well, only later.
        drop(std::fs::remove_dir_all(work));
        Ok((path, Material::repository(&source, &pinned.commit)))
    }

    /// A file of a web server, as a file here, and when it was changed there.
    async fn download(&self, url: &str, step: StepId) -> Result<(PathBuf, Material, Option<i64>), Error> {
        let path = self.lease.ingest_path("download")?;
        let mut web = self.engine.registry()?.open_web(url).await?;
        let modified = web.last_modified.and_then(|time| time.duration_since(SystemTime::UNIX_EPOCH).ok());
        let mut file = File::create_new(&path).map_err(Error::internal)?;
        let (mut current, total, mut hash) = (0, web.size(), Sha256::new());
        while let Some(bytes) = web.chunk().await? {
            // A write of one network chunk to the page cache is short.
            file.write_all(&bytes).map_err(Error::internal)?;
            hash.update(&bytes);
            current += bytes.len() as u64;
            let item = redacted(url);
            self.events.send(Event::Progress { id: step, item, current, total, unit: Unit::Bytes, done: false });
        }
        Ok((path, Material::file(url, &hash.finish()), modified.and_then(|since| i64::try_from(since.as_secs()).ok())))
    }
}

/// What `SOURCE_DATE_EPOCH=context` stands for, if the build says that: the date of the commit, what the web server says, or
/// the newest file of the archive. A directory of this machine has no such date.
pub(crate) fn context_date(request: &BuildRequest, modified: Option<i64>, dockerfile: &str) -> Option<i64> {
    const EPOCH: &str = "SOURCE_DATE_EPOCH";
    if !request.build_args.contains_key(EPOCH) && !dockerfile.contains(EPOCH) {
        return None;
    }
    modified.or_else(|| match &request.context {
        // A checkout's files all have the time of the commit.
        BuildContext::Unpacked(path) => newest(Root::open(path).ok()?.top(), DEEPEST),
        _ => None,
    })
}

/// When the file changed last was changed.
fn newest(dir: &Dir, levels: usize) -> Option<i64> {
    let times = dir.entries().ok()?.flatten().filter_map(|entry| {
        let found = dir.stat(&entry.name).ok()?;
        match found.kind {
            root::Kind::File => Some(found.modified.seconds),
            root::Kind::Dir if levels > 0 => newest(&dir.open_dir(&entry.name).ok()?, levels - 1),
            _ => None,
        }
    });
    times.max()
}

/// Does a part of a build as a step that is shown.
///
/// # Errors
/// That of the work.
pub(crate) async fn as_step<T, F: Future<Output = Result<T, Error>>>(
    events: &Events,
    name: &str,
    work: impl FnOnce(StepId) -> F,
) -> Result<T, Error> {
    let step = events.step(name, Vec::new(), None, StepKind::Internal);
    events.started(step);
    let done = work(step).await;
    let outcome = done.as_ref().map_or_else(|error| Outcome::Failed(error.message.clone()), |_| Outcome::Done);
    events.finished(step, outcome);
    done
}

/// The repository that a context's address means, if it means one.
fn git(address: &str) -> Result<Option<GitSource>, Error> {
    // What people copy out of a browser.
    let https = address.starts_with("github.com/").then(|| format!("https://{address}"));
    let address = match &https {
        Some(https) if !https.split('#').next().unwrap_or_default().ends_with(".git") => {
            let (remote, fragment) = https.split_once('#').unwrap_or((https, ""));
            format!("{remote}.git#{fragment}")
        }
        Some(https) => https.clone(),
        None => address.to_owned(),
    };
    match rbuild_frontend::git_source(&address) {
        Some(Ok(source)) => Ok(Some(source)),
        Some(Err(mistake)) => Err(Error::invalid(format!("invalid git context: {}", mistake.message))),
        None if address.starts_with("http://") || address.starts_with("https://") => Ok(None),
        None => Err(Error::invalid(format!("unable to prepare context: {address:?} is no address of a build context"))),
    }
}

fn read_text(input: impl Read) -> Result<Vec<u8>, Error> {
    let mut text = Vec::new();
    input.take(limits::DOCKERFILE + 1).read_to_end(&mut text).map_err(unreadable)?;
    if text.len() as u64 > limits::DOCKERFILE {
        return Err(Error::invalid(format!("the Dockerfile is over the limit of {} bytes", limits::DOCKERFILE)));
    }
    Ok(text)
}

fn unreadable(error: std::io::Error) -> Error {
    Error::invalid(format!("cannot read the build context: {error}"))
}

fn failed(error: &ExecutorError) -> Error {
    let kind = match error {
        ExecutorError::Git { .. } => Kind::Unavailable,
        ExecutorError::Cancelled(_) => Kind::Cancelled,
        _ => Kind::Invalid,
    };
    let mut failed = Error::new(kind, format!("failed to load build context: {error}"));
    failed.hints = error.hints();
    failed
}

async fn blocking<T: Send + 'static>(work: impl FnOnce() -> Result<T, Error> + Send + 'static) -> Result<T, Error> {
    tokio::task::spawn_blocking(work).await.map_err(Error::internal)?
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn addresses_of_contexts() {
        let parts = |address: &str| {
            let source = git(address).unwrap().unwrap();
            (source.remote, source.reference, source.subdir)
        };
        let some = |text: &str| Some(text.to_owned());
        assert_eq!(parts("https://h/r.git#v1:d"), ("https://h/r.git".into(), some("v1"), some("d")));
        assert_eq!(parts("github.com/a/b#v1"), ("https://github.com/a/b.git".into(), some("v1"), None));
        assert_eq!(parts("github.com/a/b.git"), ("https://github.com/a/b.git".into(), None, None));
        assert_eq!(parts("git@h:a/b.git#:d"), ("git@h:a/b.git".into(), None, some("d")));
        assert!(git("https://h/context.tgz").unwrap().is_none());
        assert!(git("s3://bucket/x").is_err());
    }

    #[test]
    fn a_dockerfile_has_a_bound() {
        assert_eq!(read_text(&b"FROM x"[..]).unwrap(), b"FROM x");
        let error = read_text(std::io::repeat(b'#').take(limits::DOCKERFILE + 1)).unwrap_err();
        assert!(error.message.contains("over the limit"));
    }
}
