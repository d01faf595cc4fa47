//! The user's directory, and what of it exists for the build.

use std::ffi::OsStr;
use std::os::fd::{AsFd, OwnedFd};
use std::os::unix::ffi::OsStrExt;
use std::path::{Path, PathBuf};
use std::sync::{Arc, OnceLock};

use futures::FutureExt;
use futures::future::BoxFuture;
use rbuild_executor::files::index::StatIndex;
use rbuild_executor::files::walk::PathFilter;
use rbuild_executor::{AgentStream, Context, ExecutorError, Secret, Session};
use rbuild_frontend::ignore::IgnoreFile;
use rbuild_graph::ops::ContextSource;
use rbuild_oci::limits;
use rbuild_store::Lease;
use rustix::fs::{Mode, OFlags};
use rustix::io::Errno;

use crate::error::Error;
use crate::lending::Lending;

/// The main context's name in a graph.
pub(crate) const MAIN: &str = "context";

/// A directory of the caller's, as a build sees it.
pub(crate) struct Directory {
    root: OwnedFd,
    hidden: Option<Arc<dyn PathFilter>>,
    /// Where what is known of contexts' files is kept, a file each; `None` for a context that is here only once.
    indexes: Option<PathBuf>,
    /// Read when the context is first asked for.
    index: OnceLock<Arc<StatIndex>>,
}

impl Directory {
    pub(crate) fn new(root: OwnedFd, ignore: IgnoreFile, indexes: Option<&Path>) -> Directory {
        let hidden = (!ignore.is_empty()).then(|| Arc::new(Hidden(ignore)) as Arc<dyn PathFilter>);
        Directory { root, hidden, indexes: indexes.map(Path::to_owned), index: OnceLock::new() }
    }

    fn context(&self, name: &str) -> Result<Context, ExecutorError> {
        let root = self
            .root
            .try_clone()
            .map_err(|error| ExecutorError::Invalid(format!("cannot open the build context {name:?}: {error}")))?;
        let context = Context::new(name, root, self.hidden.clone());
        Ok(match self.index() {
            Some(index) => context.with_index(index),
            None => context,
        })
    }

    fn index(&self) -> Option<Arc<StatIndex>> {
        let indexes = self.indexes.as_ref()?;
        // By what the directory is, not by what it is called: it may be reached by several names.
        let stat = rustix::fs::fstat(&self.root).ok()?;
        let name = format!("{:x}-{:x}", stat.st_dev, stat.st_ino);
        Some(self.index.get_or_init(|| Arc::new(StatIndex::load(indexes.join(name)))).clone())
    }
}

impl Drop for Directory {
    /// What was learned serves the next build, however this one ended.
    fn drop(&mut self) {
        if let Some(index) = self.index.get() {
            index.save();
        }
    }
}

/// What the caller, on this machine, lends to one build.
pub(crate) struct LocalSession {
    id: String,
    main: Directory,
    lending: Lending,
}

impl LocalSession {
    pub(crate) fn new(id: String, main: Directory, lending: Lending) -> LocalSession {
        LocalSession { id, main, lending }
    }
}

impl Session for LocalSession {
    fn id(&self) -> &str {
        &self.id
    }

    fn context(&self, source: &ContextSource) -> Result<Context, ExecutorError> {
        if source.name == MAIN {
            return self.main.context(MAIN);
        }
        let named = self.lending.contexts.get(&source.name);
        let named =
            named.ok_or_else(|| ExecutorError::Invalid(format!("no build context is named {:?}", source.name)))?;
        named.context(&source.name)
    }

    fn secret<'a>(&'a self, id: &'a str) -> BoxFuture<'a, Result<Option<Secret>, ExecutorError>> {
        self.lending.secret(id).boxed()
    }

    fn ssh<'a>(&'a self, id: &'a str) -> BoxFuture<'a, Result<Option<Box<dyn AgentStream>>, ExecutorError>> {
        self.lending.agent(id).boxed()
    }
}

/// What an ignore file hides.
struct Hidden(IgnoreFile);

impl PathFilter for Hidden {
    fn excludes(&self, path: &[u8], is_dir: bool) -> bool {
        self.0.excludes(path, is_dir)
    }

    fn reincludes_below(&self, path: &[u8]) -> bool {
        self.0.may_bring_back_below(path)
    }
}

/// The context of a build that has no files: a directory of the lease's own, which nobody writes into.
///
/// # Errors
/// The store's directory cannot be written.
pub(crate) fn empty_directory(lease: &Lease) -> Result<OwnedFd, Error> {
    let path = lease.ingest_path("context")?;
    std::fs::create_dir(&path).map_err(|error| Error::internal(format!("{}: {error}", path.display())))?;
    open_directory(&path)
}

/// Opens the directory of a build.
///
/// # Errors
/// In docker's words: it does not exist, or is no directory.
pub(crate) fn open_directory(path: &Path) -> Result<OwnedFd, Error> {
    let flags = OFlags::RDONLY | OFlags::DIRECTORY | OFlags::CLOEXEC;
    rustix::fs::open(path, flags, Mode::empty()).map_err(|errno| match errno {
        Errno::NOENT => {
            Error::not_found(format!("unable to prepare context: path {:?} not found", path.display().to_string()))
        }
        Errno::NOTDIR => {
            Error::invalid(format!("unable to prepare context: {:?} is not a directory", path.display().to_string()))
        }
        errno => {
            Error::invalid(format!("unable to prepare context: cannot read {:?}: {errno}", path.display().to_string()))
        }
    })
}

/// A file of a context, read whole. `None` when it does not exist.
///
/// # Errors
/// It cannot be read, is no file, or is over `limit` bytes.
pub(crate) fn read_file(root: &OwnedFd, path: &Path, limit: u64) -> Result<Option<Vec<u8>>, Error> {
    use rbuild_executor::files::select::resolve;
    use rbuild_executor::files::walk::open_beneath;
    let shown = path.display();
    let bad = |why: &dyn std::fmt::Display| Error::invalid(format!("cannot read {shown}: {why}"));
    let resolved = match resolve(root.as_fd(), path.as_os_str().as_bytes(), true) {
        Ok(Some(resolved)) => resolved,
        Ok(None) | Err(Errno::NOTDIR) => return Ok(None),
        Err(errno) => return Err(bad(&errno)),
    };
    let flags = OFlags::RDONLY | OFlags::NONBLOCK | OFlags::NOCTTY;
    let fd = open_beneath(root.as_fd(), &resolved, flags).map_err(|errno| bad(&errno))?;
    read_fd(fd, limit, &shown).map(Some)
}

/// A file of the caller's, by its own path.
///
/// # Errors
/// As [`read_file`], and that it does not exist.
pub(crate) fn read_host_file(path: &Path, limit: u64) -> Result<Vec<u8>, Error> {
    let flags = OFlags::RDONLY | OFlags::NONBLOCK | OFlags::NOCTTY | OFlags::CLOEXEC;
    let fd = rustix::fs::open(path, flags, Mode::empty()).map_err(|errno| match errno {
        Errno::NOENT => missing_dockerfile(path),
        errno => Error::invalid(format!("cannot read {}: {errno}", path.display())),
    })?;
    read_fd(fd, limit, &path.display())
}

pub(crate) fn missing_dockerfile(path: &Path) -> Error {
    let name = path.file_name().unwrap_or(OsStr::new("Dockerfile")).to_string_lossy().into_owned();
    Error::not_found(format!("failed to read dockerfile: open {name}: no such file or directory"))
        .with_hint(format!("looked for {}; name another file with -f", path.display()))
}

fn read_fd(fd: OwnedFd, limit: u64, shown: &dyn std::fmt::Display) -> Result<Vec<u8>, Error> {
    use std::io::Read;
    let bad = |why: &dyn std::fmt::Display| Error::invalid(format!("cannot read {shown}: {why}"));
    let file = std::fs::File::from(fd);
    let meta = file.metadata().map_err(|error| bad(&error))?;
    if !meta.is_file() {
        return Err(bad(&"it is no regular file"));
    }
    if meta.len() > limit {
        return Err(bad(&format!("it has {} bytes, over the limit of {limit}", meta.len())));
    }
    let mut text = Vec::with_capacity(meta.len() as usize + 1);
    file.take(limit + 1).read_to_end(&mut text).map_err(|error| bad(&error))?;
    Ok(text)
}

/// The ignore file that counts: `<Dockerfile>.dockerignore` beside the Dockerfile, else `.dockerignore` at the root of
/// the context, else `.containerignore`.
///
/// # Errors
/// It cannot be read, or a line of it is no pattern.
pub(crate) fn ignore_file(root: &OwnedFd, beside: Option<Vec<u8>>) -> Result<IgnoreFile, Error> {
    let mut text = beside;
    for name in [".dockerignore", ".containerignore"] {
        if text.is_none() {
            text = read_file(root, &PathBuf::from(name), limits::DOCKERFILE)?;
        }
    }
    let Some(text) = text else { return Ok(IgnoreFile::default()) };
    let (ignore, diagnostics) = IgnoreFile::parse(&text);
    match diagnostics.iter().find(|diagnostic| diagnostic.is_error()) {
        Some(mistake) => {
            let line = mistake.span.map_or(0, |span| span.line);
            Err(Error::invalid(format!("error reading .dockerignore: line {line}: {}", mistake.message)))
        }
        None => Ok(ignore),
    }
}
