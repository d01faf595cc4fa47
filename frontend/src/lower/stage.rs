//! A stage while its instructions are applied: the state they change and what they ask of their surroundings.

use std::collections::HashMap;
use std::rc::Rc;

use rbuild_graph::ops::{ImageSource, Op};
use rbuild_graph::{Edge, Span, VertexMeta};
use rbuild_oci::{ContainerConfig, HistoryEntry, Platform, limits};

use super::env::Env;
use super::plan::{Source, Tree};
use super::words::quoted;
use super::{Lowering, paths};
use crate::instructions::{CommandLine, Pair, Text};
use crate::lint::{Once, undefined_vars};
use crate::syntax::words::{Expanded, Lexer, Variables, WordError};
use crate::{BaseImage, Diagnostic, HistoryStep, LowerOptions};
use rbuild_graph::pattern::Patterns;

/// What instructions change.
#[derive(Clone)]
pub(crate) struct State {
    /// The file tree so far; `None` is an empty one.
    pub(crate) edge: Option<Edge>,
    /// What RUN sees: variables of the image and arguments in scope.
    pub(crate) env: Env,
    /// The variables of the image.
    pub(crate) image_env: Env,
    /// The rest of the config; its `env` is filled in at the end.
    pub(crate) config: ContainerConfig,
    pub(crate) author: String,
    /// What the base says it is for.
    pub(crate) image_platform: Platform,
    /// Arguments in scope, in order.
    pub(crate) args: Vec<(String, Option<String>)>,
    /// Whether this stage has a CMD of its own.
    pub(crate) cmd_set: bool,
    /// Whether a WORKDIR of this file came before.
    pub(crate) workdir_set: bool,
    /// What this stage adds to the history of its base.
    pub(crate) history: Vec<HistoryStep>,
    pub(crate) base: Option<Rc<BaseImage>>,
}

impl State {
    /// About how many bytes a copy takes.
    pub(super) fn bytes(&self) -> usize {
        let config = &self.config;
        let lists = [&config.cmd, &config.entrypoint, &config.shell].into_iter().flatten().flatten();
        let texts = lists.chain(&config.on_build).chain(config.exposed_ports.keys()).chain(config.volumes.keys());
        let labels = config.labels.iter().flat_map(|(name, value)| [name, value]);
        let args = self.args.iter().flat_map(|(name, value)| [Some(name), value.as_ref()]).flatten();
        let bytes: usize = texts.chain(labels).chain(args).map(|text| text.len() + 24).sum();
        256 + bytes + self.env.bytes() + self.image_env.bytes()
    }
}

/// The inputs of an operation in the making; the first is the tree it changes, if that is not empty.
pub(crate) struct Inputs {
    pub(crate) edges: Vec<Edge>,
    places: HashMap<Edge, usize>,
    based: bool,
}

impl Inputs {
    pub(crate) fn new(base: Option<Edge>) -> Inputs {
        Inputs {
            edges: base.into_iter().collect(),
            places: base.into_iter().map(|edge| (edge, 0)).collect(),
            based: base.is_some(),
        }
    }

    pub(crate) fn base(&self) -> Option<usize> {
        self.based.then_some(0)
    }

    /// The index of an input, which is added if it is new.
    pub(crate) fn index(&mut self, edge: Edge) -> usize {
        *self.places.entry(edge).or_insert_with(|| {
            self.edges.push(edge);
            self.edges.len() - 1
        })
    }
}

/// A stage being lowered.
pub(crate) struct StageRun<'l, 'a> {
    pub(super) lowering: &'l mut Lowering<'a>,
    pub(crate) state: State,
    /// As steps name it; empty when there is only one stage.
    pub(super) name: String,
    pub(super) platform: Platform,
    /// Steps of the stage, and how many are named already.
    pub(super) total: usize,
    pub(super) done: usize,
    pub(super) ignore_cache: bool,
    /// The instruction is a trigger of the base.
    pub(super) onbuild: bool,
    /// The instruction that is being lowered.
    pub(super) span: Span,
    pub(super) once: Once,
}

impl<'a> StageRun<'_, 'a> {
    pub(crate) fn options(&self) -> &'a LowerOptions {
        self.lowering.options
    }

    pub(crate) fn cwd(&self) -> &str {
        match self.state.config.working_dir.as_str() {
            "" => "/",
            path => path,
        }
    }

    pub(crate) fn epoch(&self) -> Option<i64> {
        self.lowering.epoch
    }

    pub(crate) fn proxy_env(&self) -> Vec<String> {
        self.lowering.proxy_env.clone()
    }

    pub(crate) fn hostname(&self) -> Option<String> {
        self.options().hostname.clone().or_else(|| self.build_arg("BUILDKIT_SANDBOX_HOSTNAME").map(str::to_owned))
    }

    pub(crate) fn build_arg(&self, name: &str) -> Option<&'a str> {
        self.lowering.options.build_args.get(name).map(String::as_str)
    }

    pub(crate) fn global_arg(&self, name: &str) -> Option<&str> {
        self.lowering.globals.value(name)
    }

    /// Cache mounts of builds with another namespace are others.
    pub(crate) fn cache_id(&self, id: String) -> String {
        match self.build_arg("BUILDKIT_CACHE_MOUNT_NS") {
            Some(namespace) if !namespace.is_empty() => format!("{namespace}/{id}"),
            _ => id,
        }
    }

    /// Warns of the instruction, if it is the file's own: nobody can mend a trigger of a base image here.
    pub(crate) fn warn(&mut self, warnings: impl IntoIterator<Item = Diagnostic>) {
        if self.onbuild {
            return;
        }
        let own = self.span;
        let placed = warnings.into_iter().map(|warning| Diagnostic { span: warning.span.or(Some(own)), ..warning });
        self.lowering.problems.extend(placed);
    }

    /// Marks an instruction of which the last of a stage counts.
    pub(crate) fn once(&mut self, name: &'static str) {
        if !self.onbuild {
            let warning = self.once.seen(name, self.span);
            self.warn(warning);
        }
    }

    /// What `.dockerignore` hides.
    pub(crate) fn ignored(&self) -> &Patterns {
        &self.lowering.ignored
    }

    fn process(&mut self, lexer: Lexer, text: &str, span: Span) -> Result<Expanded, Diagnostic> {
        let expanded = lexer.expand(text, &self.state.env, &mut self.lowering.budget).map_err(|error| {
            let problem = Diagnostic::error(format!("failed to process {}: {error}", shown(text))).at(span);
            match &error {
                WordError::Required { name, .. } => problem.hint(format!("give it with --build-arg {name}=<value>")),
                _ => problem,
            }
        })?;
        let cost = expanded.unmatched.len().saturating_mul(self.state.args.len());
        if !expanded.unmatched.is_empty() && !self.onbuild && self.lowering.budget.spend(cost).is_ok() {
            let declared = |name: &str| self.state.args.iter().any(|(arg, _)| arg == name);
            let unset: Vec<String> = expanded.unmatched.iter().filter(|name| !declared(name)).cloned().collect();
            let warnings: Vec<Diagnostic> = undefined_vars(&unset, self.state.env.names()).collect();
            self.warn(warnings);
        }
        Ok(expanded)
    }

    pub(crate) fn expand(&mut self, text: &Text) -> Result<String, Diagnostic> {
        self.process(Lexer::new(self.lowering.file.escape), &text.value, text.span).map(|expanded| expanded.text)
    }

    pub(crate) fn expand_text(&mut self, text: &Text) -> Result<Text, Diagnostic> {
        Ok(Text { value: self.expand(text)?, span: text.span })
    }

    /// A path, of a length that a file system takes.
    pub(crate) fn expand_path(&mut self, text: &Text) -> Result<Text, Diagnostic> {
        let path = self.expand_text(text)?;
        if path.value.len() > limits::PATH {
            let message = format!("the path has {} bytes, more than the limit of {}", path.value.len(), limits::PATH);
            return Err(Diagnostic::error(message).at(text.span));
        }
        Ok(path)
    }

    /// Expanded and then split.
    pub(crate) fn expand_words(&mut self, text: &Text) -> Result<Vec<String>, Diagnostic> {
        self.process(Lexer::new(self.lowering.file.escape), &text.value, text.span).map(|expanded| expanded.words)
    }

    /// All of them before any of them is set.
    pub(crate) fn expand_pairs(&mut self, pairs: &[Pair]) -> Result<Vec<(String, String)>, Diagnostic> {
        pairs.iter().map(|pair| Ok((self.expand(&pair.name)?, self.expand(&pair.value)?))).collect()
    }

    /// The text of a file: only variables count, quotes are text.
    pub(crate) fn expand_inline(&mut self, text: &str, span: Span) -> Result<String, Diagnostic> {
        let lexer = Lexer { plain_quotes: true, ..Lexer::new('\\') };
        self.process(lexer, text, span).map(|expanded| expanded.text)
    }

    /// What a process is started with.
    pub(crate) fn argv(&self, line: &CommandLine) -> Vec<String> {
        match line {
            CommandLine::Exec(args) => args.clone(),
            CommandLine::Shell(text) => {
                let shell = self.state.config.shell.clone().filter(|shell| !shell.is_empty());
                let mut argv = shell.unwrap_or_else(|| vec!["/bin/sh".into(), "-c".into()]);
                argv.push(text.clone());
                argv
            }
        }
    }

    /// The environment of a step.
    pub(crate) fn environment(&mut self, span: Span) -> Result<Vec<String>, Diagnostic> {
        self.spend(self.state.env.bytes(), span)?;
        Ok(self.state.env.strings())
    }

    /// `|2 A=b C=d ` for the history of a RUN: a change of an argument is a change of the step.
    pub(crate) fn args_in_scope(&mut self, span: Span) -> Result<String, Diagnostic> {
        let mut entries: Vec<(&str, &str)> = Vec::new();
        let mut places = HashMap::new();
        for (name, value) in &self.state.args {
            let value = self.state.env.value(name).or(value.as_deref()).unwrap_or_default();
            match places.get(name.as_str()) {
                Some(place) => entries[*place] = (name.as_str(), value),
                None => {
                    places.insert(name.as_str(), entries.len());
                    entries.push((name.as_str(), value));
                }
            }
        }
        if entries.is_empty() {
            return Ok(String::new());
        }
        let words: Vec<String> = entries.iter().map(|(name, value)| format!("{name}={value}")).collect();
        let text = format!("|{} {} ", words.len(), words.join(" "));
        self.spend(text.len(), span)?;
        Ok(text)
    }

    fn spend(&mut self, amount: usize, span: Span) -> Result<(), Diagnostic> {
        self.lowering.budget.spend(amount).map_err(|error| Diagnostic::error(error.to_string()).at(span))
    }

    pub(crate) fn add(&mut self, op: Op, inputs: Vec<Edge>, name: String, span: Span) -> Edge {
        let meta = self.meta(name, span);
        self.lowering.draft.add(op, inputs, meta)
    }

    fn meta(&self, name: String, span: Span) -> VertexMeta {
        VertexMeta { name, span: Some(span), ignore_cache: self.ignore_cache, platform: self.platform.clone() }
    }

    /// Adds a line to the history that has no layer.
    pub(crate) fn metadata(&mut self, created_by: String) {
        self.history(created_by, true);
    }

    /// Adds a line to the history for the tree as it is now.
    pub(crate) fn layer(&mut self, created_by: String) {
        self.history(created_by, false);
    }

    fn history(&mut self, created_by: String, empty_layer: bool) {
        let entry = HistoryEntry {
            created: self.lowering.created.clone(),
            author: String::new(),
            created_by,
            comment: "buildkit.dockerfile.v0".into(),
            empty_layer,
        };
        self.state.history.push(HistoryStep { entry, edge: self.state.edge });
    }

    /// The name of the next step: variables with their values, number and stage in front.
    pub(crate) fn step_name(&mut self, text: &str) -> String {
        let lexer = Lexer::new(self.lowering.file.escape);
        let expanded = lexer.expand(text, &self.state.env, &mut self.lowering.budget);
        self.numbered(&expanded.map_or_else(|_| text.to_owned(), |expanded| expanded.text))
    }

    /// As [`StageRun::step_name`] for RUN: what a shell will see stays as it is, and values of secrets are starred.
    pub(crate) fn run_step_name(&mut self, text: &str, secrets: &[String]) -> String {
        struct Masked<'e>(&'e Env, &'e [String]);
        impl Variables for Masked<'_> {
            fn value(&self, name: &str) -> Option<&str> {
                if self.1.iter().any(|secret| secret == name) { Some("****") } else { self.0.value(name) }
            }
        }
        let lexer = Lexer { raw_quotes: true, keep_unset: true, ..Lexer::new(self.lowering.file.escape) };
        let variables = Masked(&self.state.env, secrets);
        let expanded = lexer.expand(text, &variables, &mut self.lowering.budget);
        self.numbered(&expanded.map_or_else(|_| text.to_owned(), |expanded| expanded.text))
    }

    fn numbered(&mut self, text: &str) -> String {
        let (first, rest) = text.split_at(text.find(' ').unwrap_or(text.len()));
        let text = format!("{}{rest}", first.to_uppercase());
        if self.total == 0 {
            return text;
        }
        self.done += 1;
        let width = self.total.ilog10() as usize + 1;
        let platform = match self.lowering.multiplatform {
            true => format!("{} ", self.platform),
            false => String::new(),
        };
        let stage = if self.name.is_empty() { String::new() } else { format!("{} ", self.name) };
        let onbuild = if self.onbuild { "ONBUILD " } else { "" };
        format!("[{platform}{stage}{:width$}/{}] {onbuild}{text}", self.done, self.total)
    }

    /// The main context, of which `path` is read.
    pub(crate) fn context(&mut self, path: &str) -> Edge {
        self.lowering.context("context", path)
    }

    /// What `--from` names, of which `path` is read.
    pub(crate) fn source(&mut self, from: &Text, path: &str) -> Result<Edge, Diagnostic> {
        match self.source_tree(from, path)? {
            Some(edge) => Ok(edge),
            None => {
                let meta = self.meta("[internal] empty file system".into(), from.span);
                Ok(self.lowering.draft.empty(meta))
            }
        }
    }

    /// As [`StageRun::source`]; `None` is an empty tree.
    pub(crate) fn source_tree(&mut self, from: &Text, path: &str) -> Result<Option<Edge>, Diagnostic> {
        match self.lowering.plan.source(&from.value) {
            Some(Source::Stage(index)) => match &self.lowering.ends[index] {
                Some(end) => Ok(end.edge),
                None => {
                    let name = if self.name.is_empty() { "stage-0" } else { &self.name };
                    let message = format!(
                        "cannot copy from stage {}, it needs to be defined before current stage {}",
                        quoted(&from.value),
                        quoted(name)
                    );
                    Err(Diagnostic::error(message).at(from.span).hint("move that stage up in the file"))
                }
            },
            Some(Source::External(index)) => Ok(self.lowering.external(index, path)),
            None => Err(Diagnostic::error(format!("invalid from flag value {}", from.value)).at(from.span)),
        }
    }
}

impl Lowering<'_> {
    pub(super) fn context(&mut self, name: &str, path: &str) -> Edge {
        let main = name == "context";
        let meta = VertexMeta {
            name: if main {
                "[internal] load build context".into()
            } else {
                format!("[context {name}] load from client")
            },
            span: None,
            ignore_cache: false,
            platform: self.platform.clone(),
        };
        let ignore = if main { &self.options.ignore[..] } else { &[] };
        self.draft.context(name, path, ignore, meta)
    }

    /// An image or context that is no stage.
    fn external(&mut self, index: usize, path: &str) -> Option<Edge> {
        let external = &self.plan.externals[index];
        let (tree, span) = (external.tree.clone(), external.span);
        match tree {
            Tree::Scratch | Tree::Stage(_) => None,
            Tree::Context(name) => Some(self.context(&name, path)),
            Tree::Image(reference) => {
                let source = self.image_source(&reference, &self.platform.clone())?;
                let name = format!("FROM {}", image_name(&source));
                let platform = self.platform.clone();
                Some(self.draft.image(source, VertexMeta { name, span: Some(span), ignore_cache: false, platform }))
            }
        }
    }

    /// The source of an image; `None` when it has no layers.
    pub(super) fn image_source(&self, reference: &rbuild_oci::Reference, platform: &Platform) -> Option<ImageSource> {
        let fact = self.facts.images.get(&(reference.clone(), platform.clone()))?;
        let config = &fact.config;
        if config.rootfs.diff_ids.is_empty() && config.history.iter().all(|entry| entry.empty_layer) {
            return None;
        }
        Some(ImageSource {
            reference: reference.clone(),
            platform: platform.clone(),
            digest: fact.pinned.then(|| fact.digest.clone()),
        })
    }
}

/// An image with the digest it was resolved to.
pub(super) fn image_name(source: &ImageSource) -> String {
    match &source.digest {
        Some(digest) if source.reference.digest().is_none() => format!("{}@{digest}", source.reference.canonical()),
        _ => source.reference.canonical(),
    }
}

/// The most of a word that a message shows.
const SHOWN: usize = 200;

/// A word in quotes, cut if it is long.
pub(super) fn shown(word: &str) -> String {
    match word.char_indices().nth(SHOWN) {
        Some((end, _)) => format!("{}…", quoted(&word[..end])),
        None => quoted(word),
    }
}

/// The path of a config's working directory, cleaned as WORKDIR would.
pub(super) fn working_dir(config: &ContainerConfig) -> String {
    match config.working_dir.as_str() {
        "" => String::new(),
        path => paths::absolute("/", path),
    }
}
