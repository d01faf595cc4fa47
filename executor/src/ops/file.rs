//! File operations as the solver sees them.
//!
//! **In the key:** each action with its fields: destination, modes, owners as they are written, patterns, flags, the
//! text of files the Dockerfile holds itself; what is copied by content (path, kind, mode, owner, bytes, extended
//! attributes: see `files::hash`); the tree that is changed, by its own key; a tree that only names are looked up in,
//! by the numbers they stand for.
//! **Left out:** times of copied files, the name shown for the step, where in the Dockerfile it stands, which stage or
//! context the files came from, and everything of a source that is not selected. A `--link` copy changes no tree at all:
//! it starts from nothing and is stacked afterwards (`ops::merge`), so what it will lie on is no part of its key.

use std::os::fd::{AsFd, OwnedFd};
use std::sync::{Arc, Mutex, PoisonError};

use futures::FutureExt;
use futures::future::BoxFuture;
use rbuild_graph::ops::{ChangeOwner, Copy, FileAction, FileOp, Mkdir, Mkfile, Owner};
use rbuild_graph::pattern::Patterns;
use rbuild_solver::{
    ContentHash, ContentParts, InputContent, InputKey, KeyPart, KeySpec, OpError, Ran, RunContext, RunOp,
};
use rbuild_store::{Driver, Mounts, Root};

use super::recopy::Recopy;
use super::source::fail;
use crate::files::below::Below;
use crate::files::copy::{CopyRules, copy};
use crate::files::hash;
use crate::files::index::StatIndex;
use crate::files::select::{Query, Selected, select};
use crate::files::walk::PathFilter;
use crate::files::writer::{Found, Look, TreeWriter};
use crate::{Executor, ExecutorError, Value};

/// 1980-01-02 00:00:00 UTC: the time of directories nobody gave a time. The day after the first that zip can hold.
const IMPLIED_TIME: i64 = 315_619_200;
/// With more paths than this a record names directories only: what is written down must not outgrow what is copied.
const RECORDED_PATHS: usize = 500_000;

/// Entries that may be written with the layers below looked through one by one.
const LITTLE: usize = 16;
const LITTLE_BYTES: u64 = 256 << 10;
/// Layers that may be looked through so: each is a descriptor.
const FEW_LAYERS: usize = 48;

pub(crate) struct FileRun {
    pub(crate) executor: Arc<Executor>,
    pub(crate) op: FileOp,
    /// For each action, what `content` selected, so that exactly that is copied.
    selections: Mutex<Vec<Option<Chosen>>>,
}

/// What a copy selected.
pub(super) struct Chosen {
    pub(super) selected: Vec<Selected>,
    /// Of each path of the last of them.
    pub(super) hashes: Vec<ContentHash>,
}

impl FileRun {
    pub(crate) fn new(executor: Arc<Executor>, op: FileOp) -> FileRun {
        let selections = Mutex::new(op.actions.iter().map(|_| None).collect());
        FileRun { executor, op, selections }
    }

    /// The highest input that is named.
    fn inputs(&self) -> usize {
        let owner = |owner: &Option<ChangeOwner>| owner.as_ref().and_then(|owner| owner.names_from);
        let of = |action: &FileAction| match action {
            FileAction::Copy(c) => c.input.into_iter().chain(owner(&c.owner)).max(),
            FileAction::Mkdir(m) => owner(&m.owner),
            FileAction::Mkfile(m) => owner(&m.owner),
            _ => None,
        };
        self.op.actions.iter().filter_map(of).chain(self.op.base).max().map_or(0, |highest| highest + 1)
    }

    /// The owners whose names are looked up in `input`.
    fn named_in(&self, input: usize) -> impl Iterator<Item = &ChangeOwner> {
        let owners = self.op.actions.iter().filter_map(|action| match action {
            FileAction::Copy(copy) => copy.owner.as_ref(),
            FileAction::Mkdir(mkdir) => mkdir.owner.as_ref(),
            FileAction::Mkfile(mkfile) => mkfile.owner.as_ref(),
            _ => None,
        });
        owners.filter(move |owner| owner.names_from == Some(input))
    }

    /// The copies that read `input`.
    fn copies(&self, input: usize) -> impl Iterator<Item = (usize, &Copy)> {
        self.op.actions.iter().enumerate().filter_map(move |(n, action)| match action {
            FileAction::Copy(copy) if copy.input == Some(input) => Some((n, copy)),
            _ => None,
        })
    }
}

impl RunOp<Value> for FileRun {
    fn key(&self) -> BoxFuture<'_, Result<KeySpec, OpError>> {
        let mut parts = vec![KeyPart::text("op", "file")];
        for action in &self.op.actions {
            match action_part(action) {
                Ok(part) => parts.push(part),
                Err(error) => return futures::future::ready(Err(fail(error))).boxed(),
            }
        }
        let mut spec = KeySpec::new(parts);
        spec.inputs = (0..self.inputs())
            .map(|input| {
                let sources: Vec<String> = self
                    .copies(input)
                    .flat_map(|(_, copy)| &copy.sources)
                    .map(|source| String::from_utf8_lossy(source).into_owned())
                    .collect();
                let by_content =
                    self.op.base != Some(input) && (!sources.is_empty() || self.named_in(input).next().is_some());
                InputKey { selector: by_content.then(|| sources.join("\0")), by_content }
            })
            .collect();
        futures::future::ready(Ok(spec)).boxed()
    }

    fn content(&self, input: usize, value: &Value) -> BoxFuture<'_, Result<InputContent, OpError>> {
        let (executor, value) = (self.executor.clone(), value.clone());
        let copies: Vec<(usize, Copy)> = self.copies(input).map(|(n, copy)| (n, copy.clone())).collect();
        let named: Vec<ChangeOwner> = self.named_in(input).filter(|owner| owner.has_name()).cloned().collect();
        async move {
            let work = move || -> Result<_, ExecutorError> {
                let mut all = Vec::new();
                for owner in &named {
                    let (uid, gid) = look_up(&Source::open(&executor, &value)?, owner)?;
                    let ids = format!("{uid}:{gid}");
                    all.push((format!("owner {}", written(owner)).into_bytes(), ContentHash::of(ids.as_bytes())));
                }
                let mut selections = Vec::new();
                let mut source = Source::open_files(&executor, &value)?;
                for (n, copy) in copies {
                    let mut selected = source.select(&copy)?;
                    if source.bare && selected.iter().any(|one| one.tree.has_whiteouts()) {
                        source = Source::open(&executor, &value)?;
                        selected = source.select(&copy)?;
                    }
                    let mut last = Vec::new();
                    for one in &selected {
                        // What a match is called at the destination counts, so it leads its tree.
                        all.push((one.path.clone(), ContentHash::of(&one.name)));
                        let hashes = hash::tree(source.fd.as_fd(), &one.tree, source.reading())?;
                        last = hashes.iter().map(|found| found.hash).collect();
                        all.extend(
                            hashes
                                .into_iter()
                                .map(|found| (relative(&found.path, &one.tree.path, &one.path), found.hash)),
                        );
                    }
                    selections.push((n, Chosen { selected, hashes: last }));
                }
                let hash = hash::combine(all.iter().map(|(path, hash)| (path.as_slice(), hash)));
                Ok((InputContent { hash, parts: ContentParts::new(move || record_parts(&all)) }, selections))
            };
            let (content, selections) = crate::blocking(work).await?;
            let mut kept = self.selections.lock().unwrap_or_else(PoisonError::into_inner);
            for (n, chosen) in selections {
                kept[n] = Some(chosen);
            }
            Ok(content)
        }
        .boxed()
    }

    fn is_brief(&self) -> bool {
        is_little(&self.op, &self.selections.lock().unwrap_or_else(PoisonError::into_inner))
    }

    fn run(&self, inputs: Vec<Value>, context: RunContext) -> BoxFuture<'_, Result<Ran<Value>, OpError>> {
        let selections = std::mem::take(&mut *self.selections.lock().unwrap_or_else(PoisonError::into_inner));
        let (executor, op) = (self.executor.clone(), self.op.clone());
        crate::blocking(move || apply(&executor, &op, &inputs, selections, context.fresh).map(Ran::one)).boxed()
    }
}

/// The content of whole paths of an input, as mounts show them; and each path as it was found, with its own content.
pub(crate) fn content_of(
    executor: &Executor,
    value: &Value,
    selectors: &[Vec<u8>],
) -> Result<(InputContent, Vec<(Selected, ContentHash)>), ExecutorError> {
    let source = Source::open(executor, value)?;
    let combine =
        |all: &[(Vec<u8>, ContentHash)]| hash::combine(all.iter().map(|(path, hash)| (path.as_slice(), hash)));
    let (mut all, mut found) = (Vec::new(), Vec::new());
    for path in selectors {
        let one = source.select_path(path)?;
        let first = all.len();
        let hashes = hash::tree(source.fd.as_fd(), &one.tree, source.reading())?;
        all.extend(hashes.into_iter().map(|found| (relative(&found.path, &one.tree.path, &one.path), found.hash)));
        let content = combine(&all[first..]);
        found.push((one, content));
    }
    Ok((InputContent { hash: combine(&all), parts: ContentParts::new(move || record_parts(&all)) }, found))
}

/// The path of an entry as the Dockerfile would write it, links on the way not resolved.
fn relative(path: &[u8], resolved: &[u8], written: &[u8]) -> Vec<u8> {
    let below = path[resolved.len()..].strip_prefix(b"/").unwrap_or(&path[resolved.len()..]);
    crate::files::walk::join(written, below)
}

fn action_part(action: &FileAction) -> Result<KeyPart, ExecutorError> {
    let text = serde_json::to_string(action).map_err(|error| ExecutorError::Invalid(error.to_string()))?;
    Ok(match action {
        FileAction::Copy(_) => KeyPart::text("copy", text),
        FileAction::Mkfile(_) => KeyPart::text("file", text),
        FileAction::Mkdir(_) => KeyPart::text("directory", text),
        FileAction::Remove(_) => KeyPart::text("remove", text),
        _ => return Err(ExecutorError::Unsupported { what: "this kind of file operation".into() }),
    })
}

/// Named parts for the record: every path, or, of very many, one hash for each directory.
fn record_parts(all: &[(Vec<u8>, ContentHash)]) -> Vec<KeyPart> {
    let show = |path: &[u8]| String::from_utf8_lossy(path).into_owned();
    if all.len() <= RECORDED_PATHS {
        return all.iter().map(|(path, hash)| KeyPart::content(show(path), *hash)).collect();
    }
    let mut parts = Vec::new();
    for group in all.chunk_by(|a, b| parent(&a.0) == parent(&b.0)) {
        let hash = hash::combine(group.iter().map(|(path, hash)| (path.as_slice(), hash)));
        parts.push(KeyPart::content(format!("{}/", show(parent(&group[0].0))), hash));
    }
    parts
}

fn parent(path: &[u8]) -> &[u8] {
    crate::files::walk::split_parent(path).0
}

/// An input as a tree to read from.
pub(crate) struct Source {
    pub(crate) fd: OwnedFd,
    hidden: Option<Arc<dyn PathFilter>>,
    index: Option<Arc<StatIndex>>,
    /// It is the user's own, whose owners do not arrive.
    lent: bool,
    /// It is one layer's own directory, where overlay's marks of what is gone show.
    bare: bool,
}

impl Source {
    pub(crate) fn open(executor: &Executor, value: &Value) -> Result<Source, ExecutorError> {
        let plain = |fd| Source { fd, hidden: None, index: None, lent: false, bare: false };
        Ok(match value {
            Value::Context(context) => {
                let fd = context.root().try_clone_to_owned().map_err(|e| ExecutorError::Invalid(e.to_string()))?;
                Source {
                    fd,
                    hidden: context.hidden().cloned(),
                    index: context.index().cloned(),
                    lent: true,
                    bare: false,
                }
            }
            Value::Snapshot(snapshot) => {
                plain(rbuild_runtime::mount_detached(&executor.store.snapshots().view(snapshot.id())?)?)
            }
            Value::Scratch => plain(executor.empty_directory()?),
            Value::Lazy(_) => return Err(ExecutorError::not_brought()),
        })
    }

    /// As [`Source::open`], for reading files that a walk has selected and nothing else: a tree of one layer is that layer's
    /// directory, and needs no mount.
    fn open_files(executor: &Executor, value: &Value) -> Result<Source, ExecutorError> {
        let snapshots = executor.store.snapshots();
        if let Value::Snapshot(snapshot) = value
            && snapshot.parent().is_none()
            && executor.store.driver() == Driver::Overlay
            && snapshots.stack(snapshot.id())?.len() == 1
        {
            let fd = snapshots.open(snapshot.id())?.top().readable().map_err(io)?;
            return Ok(Source { fd, hidden: None, index: None, lent: false, bare: true });
        }
        Source::open(executor, value)
    }

    fn reading(&self) -> hash::Reading<'_> {
        hash::Reading { index: self.index.as_deref(), without_owners: self.lent }
    }

    /// One path with all below it, as a mount shows it.
    pub(crate) fn select_path(&self, path: &[u8]) -> Result<Selected, ExecutorError> {
        let query = Query {
            sources: &[path.to_vec()],
            wildcards: false,
            deep: false,
            allow_empty: false,
            follow_links: true,
            hidden: self.hidden.as_ref(),
            exclude: None,
        };
        let selected = select(self.fd.as_fd(), &query)?.into_iter().next();
        selected.ok_or_else(|| ExecutorError::SourceNotFound { path: crate::error::show(path), hints: Vec::new() })
    }

    fn select(&self, copy: &Copy) -> Result<Vec<Selected>, ExecutorError> {
        let exclude = exclude_filter(&copy.exclude)?;
        let query = Query {
            sources: &copy.sources,
            wildcards: copy.wildcards,
            deep: copy.parents,
            allow_empty: copy.allow_empty,
            follow_links: copy.follow_links,
            hidden: self.hidden.as_ref(),
            exclude: exclude.as_ref(),
        };
        select(self.fd.as_fd(), &query)
    }
}

struct Excluded(Patterns);

impl PathFilter for Excluded {
    fn excludes(&self, path: &[u8], is_dir: bool) -> bool {
        self.0.excludes(path, is_dir)
    }

    fn reincludes_below(&self, path: &[u8]) -> bool {
        self.0.may_bring_back_below(path)
    }
}

fn exclude_filter(patterns: &[String]) -> Result<Option<Arc<dyn PathFilter>>, ExecutorError> {
    if patterns.is_empty() {
        return Ok(None);
    }
    let patterns = Patterns::new(patterns.iter().map(String::as_str))
        .map_err(|error| ExecutorError::Invalid(error.to_string()))?;
    Ok(Some(Arc::new(Excluded(patterns))))
}

/// Does the actions one after the other; a tree that nothing changed is the tree that was there.
fn apply(
    executor: &Executor,
    op: &FileOp,
    inputs: &[Value],
    mut selections: Vec<Option<Chosen>>,
    fresh: bool,
) -> Result<Value, ExecutorError> {
    let base = op.base.map_or(&Value::Scratch, |input| &inputs[input]);
    let parent = match base {
        Value::Scratch => None,
        Value::Snapshot(snapshot) => Some(snapshot.id()),
        Value::Context(_) => return Err(ExecutorError::Invalid("a build context cannot be changed".into())),
        Value::Lazy(_) => return Err(ExecutorError::not_brought()),
    };
    let mut copied = None;
    if let ([FileAction::Copy(action)], [Some(chosen)]) = (op.actions.as_slice(), selections.as_slice()) {
        let owner = Names { executor, inputs, base }.owner(&action.owner)?;
        let rules = rules_of(action, inputs, owner);
        if let Some(again) = Recopy::of(executor, parent, action, &rules, chosen)? {
            let source = Source::open(executor, read_by(action, inputs))?;
            if !fresh && let Some(value) = again.on_earlier(source.fd.as_fd())? {
                return Ok(value);
            }
            copied = Some(again.into_note());
        }
    }
    let mut active = executor.store.snapshots().prepare(&executor.lease, parent)?;
    let below = active.below().map(|mounts| below(mounts, is_little(op, &selections))).transpose()?;
    let mut writer = TreeWriter::new(active.upper(), below)?;
    for (n, action) in op.actions.iter().enumerate() {
        let selected = selections.get_mut(n).and_then(Option::take).map(|chosen| chosen.selected);
        let names = Names { executor, inputs, base };
        match action {
            FileAction::Copy(action) => {
                let owner = names.owner(&action.owner)?;
                let source = Source::open_files(executor, read_by(action, inputs))?;
                copy_action(&mut writer, action, &source, selected, owner, &rules_of(action, inputs, owner))?;
            }
            FileAction::Mkfile(action) => {
                let owner = names.owner(&action.owner)?.unwrap_or((0, 0));
                mkfile(&mut writer, action, owner)?;
            }
            FileAction::Mkdir(action) => {
                let owner = names.owner(&action.owner)?.unwrap_or((0, 0));
                mkdir(&mut writer, action, owner)?;
            }
            FileAction::Remove(action) => {
                if action.wildcards {
                    return Err(ExecutorError::Unsupported { what: "removing by wildcard".into() });
                }
                let path = resolve(&writer, &action.path)?;
                match writer.remove(&path) {
                    Err(ExecutorError::Write { errno: rustix::io::Errno::NOENT, .. }) if action.allow_missing => {}
                    done => done?,
                }
            }
            _ => return Err(ExecutorError::Unsupported { what: "this kind of file operation".into() }),
        }
    }
    if !writer.finish()? {
        return Ok(base.clone());
    }
    if let Some((copied, note)) = copied {
        active.set_copied(&copied, &note.to_bytes())?;
    }
    Ok(Value::Snapshot(executor.store.snapshots().commit(active)?))
}

/// Whether it is about few entries and few bytes, as far as is known by now.
fn is_little(op: &FileOp, selections: &[Option<Chosen>]) -> bool {
    let (mut entries, mut bytes) = (0, 0);
    for (n, action) in op.actions.iter().enumerate() {
        match action {
            FileAction::Copy(copy) if copy.unpack.is_some() => return false,
            FileAction::Copy(_) => {
                let Some(Some(chosen)) = selections.get(n) else { return false };
                for one in &chosen.selected {
                    entries += one.tree.len();
                    bytes += one.tree.bytes();
                }
            }
            _ => entries += 1,
        }
    }
    entries <= LITTLE && bytes <= LITTLE_BYTES
}

fn below(mounts: &Mounts, little: bool) -> Result<Below, ExecutorError> {
    match mounts {
        Mounts::Overlay { lowers, upper: None, .. } if little && lowers.len() <= FEW_LAYERS => Below::stacked(lowers),
        _ => Ok(rbuild_runtime::mount_detached(mounts)?.into()),
    }
}

fn copy_action(
    writer: &mut TreeWriter,
    action: &Copy,
    source: &Source,
    selected: Option<Vec<Selected>>,
    owner: Option<(u32, u32)>,
    rules: &CopyRules,
) -> Result<(), ExecutorError> {
    let selected = match selected {
        Some(selected) => selected,
        None => source.select(action)?,
    };
    match action.unpack {
        None => copy(writer, source.fd.as_fd(), &selected, rules),
        Some(required) => super::unpack::copy_or_unpack(writer, source.fd.as_fd(), &selected, rules, owner, required),
    }
}

/// The tree that a copy reads.
fn read_by<'a>(action: &Copy, inputs: &'a [Value]) -> &'a Value {
    action.input.map_or(&Value::Scratch, |input| &inputs[input])
}

fn rules_of(action: &Copy, inputs: &[Value], owner: Option<(u32, u32)>) -> CopyRules {
    let from_context = matches!(read_by(action, inputs), Value::Context(_));
    CopyRules {
        dest: action.dest.clone(),
        // What comes from the user's machine belongs to root; what comes from an image keeps its owner.
        owner: owner.or(from_context.then_some((0, 0))),
        mode: action.mode.clone(),
        timestamp: action.timestamp,
        implied_time: IMPLIED_TIME,
        contents_only: action.contents_only,
        parents: action.parents,
        replace: false,
    }
}

fn resolve(writer: &TreeWriter, path: &[u8]) -> Result<Vec<u8>, ExecutorError> {
    writer.resolve(path, true).map(|resolved| resolved.path).map_err(|errno| ExecutorError::write(path, errno))
}

fn mkfile(writer: &mut TreeWriter, action: &Mkfile, (uid, gid): (u32, u32)) -> Result<(), ExecutorError> {
    let time = action.timestamp.unwrap_or(IMPLIED_TIME);
    let mode = match &action.symbolic_mode {
        Some(change) => crate::files::mode::apply(change, action.mode, false).map_err(ExecutorError::Invalid)?,
        None => action.mode,
    };
    let mut path = resolve(writer, &action.path)?;
    if let Some(name) = &action.name_in_dir
        && matches!(writer.look(&path), Ok(Found::Directory(_)))
    {
        path = crate::files::walk::join(&path, name);
    }
    let implied = Look { mode: 0o755, uid, gid, mtime: (time, 0) };
    writer.make_dirs(parent(&path), &implied)?;
    writer.write_file(&path, &action.content, &Look { mode, ..implied })
}

fn mkdir(writer: &mut TreeWriter, action: &Mkdir, (uid, gid): (u32, u32)) -> Result<(), ExecutorError> {
    let resolved = writer.resolve(&action.path, true).map_err(|errno| ExecutorError::write(&action.path, errno))?;
    match resolved.found {
        Found::Directory(_) => Ok(()),
        _ => {
            let time = action.timestamp.unwrap_or(IMPLIED_TIME);
            writer.make_dirs(&resolved.path, &Look { mode: action.mode, uid, gid, mtime: (time, 0) })
        }
    }
}

/// Looks up names of users and groups.
struct Names<'a> {
    executor: &'a Executor,
    inputs: &'a [Value],
    base: &'a Value,
}

impl Names<'_> {
    fn owner(&self, owner: &Option<ChangeOwner>) -> Result<Option<(u32, u32)>, ExecutorError> {
        let Some(owner) = owner else { return Ok(None) };
        if !owner.has_name() {
            let id = |owner: &Option<Owner>| match owner {
                Some(Owner::Id(id)) => Some(*id),
                _ => None,
            };
            let uid = id(&owner.user).unwrap_or(0);
            return Ok(Some((uid, id(&owner.group).unwrap_or(uid))));
        }
        let tree = owner.names_from.map_or(self.base, |input| &self.inputs[input]);
        look_up(&Source::open(self.executor, tree)?, owner).map(Some)
    }
}

/// What the names of an owner stand for in a tree.
fn look_up(tree: &Source, owner: &ChangeOwner) -> Result<(u32, u32), ExecutorError> {
    let root = Root::from_fd(tree.fd.try_clone().map_err(io)?).map_err(io)?;
    let found = rbuild_runtime::users::resolve(&root, &written(owner))?;
    Ok((found.uid, found.gid))
}

/// An owner as a Dockerfile has it.
fn written(owner: &ChangeOwner) -> String {
    let word = |owner: &Option<Owner>| match owner {
        Some(Owner::Id(id)) => id.to_string(),
        Some(Owner::Name(name)) => name.clone(),
        None => String::new(),
    };
    let (user, group) = (word(&owner.user), word(&owner.group));
    if group.is_empty() { user } else { format!("{user}:{group}") }
}

fn io(error: std::io::Error) -> ExecutorError {
    ExecutorError::Invalid(error.to_string())
}
