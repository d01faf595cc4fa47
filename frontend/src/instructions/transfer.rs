//! What COPY and ADD have in common: sources, heredocs, a destination, and how they become a file operation.
//!
//! Each source is an action of its own, so that `COPY a b /d` means the same as two lines.

use rbuild_graph::Edge;
use rbuild_graph::ops::{
    ChangeOwner, Copy, FileAction, FileOp, GitSource, HttpSource, MergeOp, Mkfile, ModeChange, Op, SourceOp,
};
use rbuild_oci::Digest;

use super::input::{Input, heredoc_of};
use super::{Command, Text};
use crate::Diagnostic;
use crate::glob::Pattern;
use crate::lint::ignored_source;
use crate::lower::git::GitUrl;
use crate::lower::stage::{Inputs, StageRun};
use crate::lower::{owner, paths};
use crate::syntax::heredoc::Heredoc;

/// Which of the two it is.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Kind {
    Copy,
    Add,
}

impl Kind {
    fn name(self) -> &'static str {
        match self {
            Kind::Copy => "COPY",
            Kind::Add => "ADD",
        }
    }
}

#[derive(Debug, Clone)]
pub(crate) struct Transfer {
    kind: Kind,
    sources: Vec<Text>,
    heredocs: Vec<Heredoc>,
    dest: Text,
    pub(crate) from: Option<Text>,
    chown: Option<Text>,
    chmod: Option<Text>,
    link: bool,
    pub(super) parents: bool,
    exclude: Vec<Text>,
    pub(super) keep_git_dir: Option<bool>,
    pub(super) checksum: Option<Text>,
    pub(super) unpack: Option<bool>,
}

/// The flags and the destination with their variables known.
struct Target {
    dest: Vec<u8>,
    owner: Option<ChangeOwner>,
    mode: Option<ModeChange>,
    exclude: Vec<String>,
    checksum: Option<Text>,
    /// For the history.
    words: String,
}

impl Transfer {
    pub(super) fn read(input: &mut Input<'_>, kind: Kind) -> Option<Transfer> {
        let mut words = input.paths()?;
        let Some(dest) = words.pop().filter(|_| !words.is_empty()) else {
            return input.refuse(format!(
                "{} requires at least two arguments, but only one was provided. Destination could not be determined",
                kind.name()
            ));
        };
        if heredoc_of(&dest.value, &input.line.heredocs).is_some() {
            let problem = Diagnostic::error(format!("{} cannot accept a heredoc as a destination", kind.name()));
            return input.report(problem.at(dest.span).expected("a path in the image"));
        }
        let (mut sources, mut heredocs) = (Vec::new(), Vec::new());
        for word in words {
            match heredoc_of(&word.value, &input.line.heredocs) {
                Some(heredoc) => heredocs.push(heredoc),
                None => sources.push(word),
            }
        }
        let exclude = input.flags.all("exclude");
        for pattern in &exclude {
            if let Err(bad) = Pattern::ignore(pattern.value.as_bytes()) {
                let problem = Diagnostic::error(format!("{bad}: {}", pattern.value)).at(pattern.span);
                return input.report(problem);
            }
        }
        Some(Transfer {
            kind,
            sources,
            heredocs,
            dest,
            from: None,
            chown: input.flags.take("chown"),
            chmod: input.flags.take("chmod"),
            link: input.flags.switch("link").unwrap_or(false),
            parents: false,
            exclude,
            keep_git_dir: None,
            checksum: None,
            unpack: None,
        })
    }

    pub(super) fn lower(&self, command: &Command, stage: &mut StageRun<'_, '_>) -> Result<(), Diagnostic> {
        let mut target = self.target(stage)?;
        let sources = self.sources.iter().map(|text| stage.expand_path(text)).collect::<Result<Vec<Text>, _>>()?;
        self.check_checksum(&target, &sources)?;
        let name = stage.step_name(&command.text);
        // An independent layer: made from nothing, so that its key does not hold the tree below, then stacked on it.
        let below = stage.state.edge.filter(|_| self.link);
        let mut inputs = Inputs::new(stage.state.edge.filter(|_| below.is_none()));
        if let (Some(below), Some(owner)) = (below, &mut target.owner)
            && owner.has_name()
        {
            owner.names_from = Some(inputs.index(below));
        }
        let mut actions = Vec::with_capacity(sources.len() + self.heredocs.len());
        for source in &sources {
            target.words.push_str(&format!(" {}", source.value));
            actions.push(self.action(source, &target, &name, stage, &mut inputs)?);
        }
        for heredoc in &self.heredocs {
            target.words.push_str(&format!(" <<{}", heredoc.name));
            actions.push(self.inline(heredoc, &target, stage)?);
        }
        let op = FileOp { base: inputs.base(), actions };
        let mut edge = stage.add(Op::File(op), inputs.edges, name.clone(), command.span);
        if let Some(below) = below {
            let stacking = Op::Merge(MergeOp { inputs: 2 });
            edge = stage.add(stacking, vec![below, edge], stacking_name(&name), command.span);
        }
        stage.state.edge = Some(edge);
        let dest = stage.expand(&self.dest)?;
        stage.layer(format!("{} {dest} # buildkit", target.words));
        Ok(())
    }

    fn target(&self, stage: &mut StageRun<'_, '_>) -> Result<Target, Diagnostic> {
        let mut words = self.kind.name().to_owned();
        if self.parents {
            words.push_str(" --parents");
        }
        let mut flag = |name: &str, text: &Option<Text>| -> Result<Option<Text>, Diagnostic> {
            let Some(text) = text else { return Ok(None) };
            let text = stage.expand_text(text)?;
            if text.value.is_empty() {
                return Ok(None);
            }
            if !name.is_empty() {
                words.push_str(&format!(" --{name}={}", text.value));
            }
            Ok(Some(text))
        };
        let chown = flag("chown", &self.chown)?;
        let chmod = flag("chmod", &self.chmod)?;
        let checksum = flag("", &self.checksum)?;
        let owner = chown.map_or(Ok(None), |text| owner::parse(&text.value).map_err(|p| p.at(text.span)))?;
        let mode = chmod.map(|text| owner::mode(&text.value).map_err(|p| p.at(text.span))).transpose()?;
        let exclude = self.exclude.iter().map(|pattern| pattern.value.clone()).collect();
        let dest = stage.expand_path(&self.dest)?.value;
        let dest = paths::destination(stage.cwd(), &dest);
        Ok(Target { dest: dest.into_bytes(), owner, mode, exclude, checksum, words })
    }

    fn check_checksum(&self, target: &Target, sources: &[Text]) -> Result<(), Diagnostic> {
        let Some(checksum) = &target.checksum else { return Ok(()) };
        let message = match sources {
            [source] if is_url(&source.value) || GitUrl::recognise(&source.value) => return Ok(()),
            [_] => "checksum requires HTTP(S) or Git sources",
            _ => "checksum can't be specified for multiple sources",
        };
        Err(Diagnostic::error(message).at(checksum.span))
    }

    fn action(
        &self,
        source: &Text,
        target: &Target,
        name: &str,
        stage: &mut StageRun<'_, '_>,
        inputs: &mut Inputs,
    ) -> Result<FileAction, Diagnostic> {
        let git = GitUrl::recognise(&source.value);
        if self.kind == Kind::Copy && (git || is_url(&source.value)) {
            let what = if git { "git ref" } else { "URL" };
            let problem = Diagnostic::error(format!("source can't be a {what} for COPY")).at(source.span);
            return Err(problem.hint("ADD takes URLs and git repositories"));
        }
        let copy = if git {
            let edge = self.git(source, target, name, stage)?;
            Copy { sources: vec![b".".to_vec()], contents_only: true, ..self.copy_of(edge, target, inputs) }
        } else if is_url(&source.value) {
            let (edge, file) = self.http(source, target, name, stage)?;
            let unpack = self.unpack.filter(|unpack| *unpack).map(|_| false);
            Copy { sources: vec![file.into_bytes()], unpack, ..self.copy_of(edge, target, inputs) }
        } else {
            let edge = match &self.from {
                Some(from) => stage.source(from, &paths::source(&source.value))?,
                None => {
                    let path = paths::source(&source.value);
                    let verb = if self.kind == Kind::Add { "Add" } else { "Copy" };
                    let warning = ignored_source(verb, &path, stage.ignored());
                    stage.warn(warning.map(|warning| warning.at(source.span)));
                    stage.context(&path)
                }
            };
            let sources = vec![match self.parents {
                true => paths::source_with_pivot(&source.value).into_bytes(),
                false => paths::source(&source.value).into_bytes(),
            }];
            let unpack = self.unpack.unwrap_or(self.kind == Kind::Add).then_some(false);
            Copy {
                sources,
                wildcards: true,
                allow_empty: true,
                contents_only: true,
                follow_links: true,
                parents: self.parents,
                unpack,
                ..self.copy_of(edge, target, inputs)
            }
        };
        Ok(FileAction::Copy(copy))
    }

    /// A copy of exactly one thing.
    fn copy_of(&self, edge: Edge, target: &Target, inputs: &mut Inputs) -> Copy {
        Copy {
            input: Some(inputs.index(edge)),
            sources: Vec::new(),
            dest: target.dest.clone(),
            owner: target.owner.clone(),
            mode: target.mode.clone(),
            wildcards: false,
            allow_empty: false,
            contents_only: false,
            follow_links: false,
            parents: false,
            exclude: target.exclude.clone(),
            unpack: None,
            timestamp: None,
        }
    }

    fn git(
        &self,
        source: &Text,
        target: &Target,
        name: &str,
        stage: &mut StageRun<'_, '_>,
    ) -> Result<Edge, Diagnostic> {
        let url = GitUrl::parse(&source.value).map_err(|problem| problem.at(source.span))?;
        let disagree = |message: &str| Diagnostic::error(message).at(source.span);
        if matches!((self.keep_git_dir, url.keep_git_dir), (Some(a), Some(b)) if a != b) {
            return Err(disagree("inconsistent keep-git-dir configuration"));
        }
        let checksum = match (&target.checksum, url.checksum) {
            (Some(flag), Some(query)) if flag.value != query => {
                return Err(disagree(&format!("checksum mismatch {:?} != {query:?}", flag.value)));
            }
            (flag, query) => query.or_else(|| flag.as_ref().map(|flag| flag.value.clone())),
        };
        let git = GitSource {
            remote: url.remote,
            reference: url.reference,
            subdir: url.subdir,
            checksum,
            keep_git_dir: url.keep_git_dir.or(self.keep_git_dir).unwrap_or(false),
            submodules: url.submodules.unwrap_or(true),
        };
        Ok(stage.add(Op::Source(SourceOp::Git(git)), Vec::new(), name.to_owned(), source.span))
    }

    fn http(
        &self,
        source: &Text,
        target: &Target,
        name: &str,
        stage: &mut StageRun<'_, '_>,
    ) -> Result<(Edge, String), Diagnostic> {
        let filename = paths::file_of_url(&source.value);
        let digest =
            |text: &Text| text.value.parse::<Digest>().map_err(|e| Diagnostic::error(e.to_string()).at(text.span));
        let http = HttpSource {
            url: source.value.clone(),
            checksum: target.checksum.as_ref().map(digest).transpose()?,
            filename: filename.clone(),
            mode: None,
            uid: 0,
            gid: 0,
        };
        let edge = stage.add(Op::Source(SourceOp::Http(http)), Vec::new(), name.to_owned(), source.span);
        Ok((edge, filename))
    }

    fn inline(
        &self,
        heredoc: &Heredoc,
        target: &Target,
        stage: &mut StageRun<'_, '_>,
    ) -> Result<FileAction, Diagnostic> {
        let text = heredoc.text();
        let content = if heredoc.expand { stage.expand_inline(&text, self.dest.span)? } else { text };
        let mut path = target.dest.clone();
        if path.ends_with(b"/") {
            path.extend_from_slice(heredoc.name.as_bytes());
        }
        let (mode, symbolic_mode) = match &target.mode {
            Some(ModeChange::Bits(bits)) => (*bits, None),
            symbolic => (0o644, symbolic.clone()),
        };
        Ok(FileAction::Mkfile(Mkfile {
            path,
            name_in_dir: Some(heredoc.name.clone().into_bytes()),
            content: content.into_bytes(),
            mode,
            owner: target.owner.clone(),
            symbolic_mode,
            timestamp: stage.epoch(),
        }))
    }
}

/// What the second half of a `--link` step is called: the step, marked behind its number.
fn stacking_name(step: &str) -> String {
    match step.split_once("] ") {
        Some((number, text)) if step.starts_with('[') => format!("{number}] LINK {text}"),
        _ => format!("LINK {step}"),
    }
}

fn is_url(source: &str) -> bool {
    source.starts_with("http://") || source.starts_with("https://")
}
