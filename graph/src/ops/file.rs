//! The operation that changes files without running anything.

use serde::{Deserialize, Serialize};

/// Actions on a file tree, one after the other; the tree after the last one is the result.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct FileOp {
    /// Index of the vertex input that is changed; `None` starts from nothing.
    pub base: Option<usize>,
    pub actions: Vec<FileAction>,
}

impl FileOp {
    pub(crate) fn highest_input(&self) -> Option<usize> {
        let of_action = |action: &FileAction| match action {
            FileAction::Copy(copy) => [copy.input, owner_input(&copy.owner)].into_iter().flatten().max(),
            FileAction::Mkdir(mkdir) => owner_input(&mkdir.owner),
            FileAction::Mkfile(mkfile) => owner_input(&mkfile.owner),
            FileAction::Remove(_) => None,
        };
        self.actions.iter().filter_map(of_action).chain(self.base).max()
    }
}

fn owner_input(owner: &Option<ChangeOwner>) -> Option<usize> {
    owner.as_ref().and_then(|owner| owner.names_from)
}

/// One change.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[non_exhaustive]
pub enum FileAction {
    Copy(Copy),
    Mkfile(Mkfile),
    Mkdir(Mkdir),
    Remove(Remove),
}

/// Copies paths of an input into the tree (the rules of COPY and ADD).
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Copy {
    /// Index of the vertex input it reads; `None` reads the tree itself.
    pub input: Option<usize>,
    /// Paths or wildcards, relative to the input's root.
    pub sources: Vec<Vec<u8>>,
    /// Absolute; with a trailing slash it is a directory.
    pub dest: Vec<u8>,
    pub owner: Option<ChangeOwner>,
    pub mode: Option<ModeChange>,
    /// Whether `sources` may hold wildcards.
    pub wildcards: bool,
    /// Whether a wildcard may match nothing.
    pub allow_empty: bool,
    /// A directory gives its entries, not itself (COPY does so).
    pub contents_only: bool,
    /// Follow a source that is itself a symbolic link.
    pub follow_links: bool,
    /// Keep the parents of the source paths below `dest`, from `/./` on.
    pub parents: bool,
    /// Patterns of what to leave out, relative to each source.
    pub exclude: Vec<String>,
    /// Unpack archives instead of copying them; `None` never does, `Some(false)` when it is one, `Some(true)` requires one.
    pub unpack: Option<bool>,
    /// Give every copied entry this time instead of its own (seconds since 1970).
    pub timestamp: Option<i64>,
}

/// Makes a file.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Mkfile {
    pub path: Vec<u8>,
    /// When `path` turns out to be a directory, the file is made in it under this name (a heredoc's) instead.
    #[serde(default)]
    pub name_in_dir: Option<Vec<u8>>,
    pub content: Vec<u8>,
    pub mode: u32,
    pub owner: Option<ChangeOwner>,
    pub symbolic_mode: Option<ModeChange>,
    /// Seconds since 1970; `None` is the time of the Dockerfile.
    pub timestamp: Option<i64>,
}

/// Makes a directory and its parents; one that exists stays as it is.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Mkdir {
    pub path: Vec<u8>,
    pub mode: u32,
    pub owner: Option<ChangeOwner>,
    pub timestamp: Option<i64>,
}

impl Mkdir {
    /// A directory with mode 0755 of root.
    pub fn new(path: &[u8]) -> Mkdir {
        Mkdir { path: path.to_vec(), mode: 0o755, owner: None, timestamp: None }
    }
}

/// Removes a path.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Remove {
    pub path: Vec<u8>,
    pub allow_missing: bool,
    pub wildcards: bool,
}

/// An owner to set.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct ChangeOwner {
    pub user: Option<Owner>,
    pub group: Option<Owner>,
    /// Index of the vertex input in whose `/etc/passwd` and `/etc/group` names are looked up; `None` is the tree itself.
    pub names_from: Option<usize>,
}

impl ChangeOwner {
    /// Whether somebody has to be looked up.
    pub fn has_name(&self) -> bool {
        [&self.user, &self.group].into_iter().flatten().any(|owner| matches!(owner, Owner::Name(_)))
    }
}

/// A user or a group.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub enum Owner {
    Id(u32),
    Name(String),
}

/// A mode to set.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub enum ModeChange {
    /// Permission bits with setuid, setgid and sticky.
    Bits(u32),
    /// As chmod takes it: `u=rwX,go=rX`.
    Symbolic(String),
}
