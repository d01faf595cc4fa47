//! From stages to a graph.
//!
//! Pure: the same file, options and facts give the same outcome, so a caller asks, finds out what is missing and asks
//! again. Lowering goes on after a mistake in an instruction, as if the instruction were not there, so that the
//! mistakes of all instructions come at once.

mod arguments;
pub(crate) mod check;
mod draft;
mod env;
mod further;
pub(crate) mod git;
pub(crate) mod owner;
pub(crate) mod paths;
pub(crate) mod plan;
pub(crate) mod stage;
pub(crate) mod words;

use std::collections::{HashMap, HashSet};
use std::rc::Rc;

use rbuild_graph::{Edge, VertexMeta};
use rbuild_oci::{ContainerConfig, ImageConfig, Platform, Reference};
use time::OffsetDateTime;
use time::format_description::well_known::Rfc3339;

use crate::instructions::Command;
use crate::lint::{self, Once};
use crate::syntax::words::{Budget, Variables};
use crate::{
    BaseImage, Diagnostic, Dockerfile, FactRequest, Facts, HistoryStep, LowerOptions, Lowered, Outcome, Purpose,
};
pub(crate) use arguments::globals;
use arguments::{invalid_defaults, unused_args};
use check::Check;
use draft::Draft;
pub(crate) use env::Env;
use plan::{Plan, Planner, Tree};
use rbuild_graph::pattern::Patterns;
use stage::{StageRun, State};

/// What the process of an image without PATH finds its programs by.
const DEFAULT_PATH: &str = "/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin";

/// Lowers the target of a file for each platform asked for.
///
/// With [`Outcome::Failed`] the diagnostics hold an error; else they are warnings. A file that had mistakes when it
/// was parsed fails at once and without saying them again, or asking for facts; what else is surely wrong is said.
pub fn lower(file: &Dockerfile, options: &LowerOptions, facts: &Facts) -> (Outcome, Vec<Diagnostic>) {
    let dated = arguments::dated(options);
    let options = dated.as_ref().unwrap_or(options);
    if let Some(problem) = foreign_frontend(file, options) {
        return (Outcome::Failed, vec![problem]);
    }
    if file.has_mistakes || file.stages.is_empty() {
        return (Outcome::Failed, of_a_broken_file(file, options));
    }
    let check = match Check::of(file, options) {
        Ok(check) => check,
        Err(problem) => return (Outcome::Failed, vec![problem]),
    };
    let mut round = Round::of(file, options, facts, Thoroughness::Build);
    let mut problems = file.warnings.clone();
    problems.extend(invalid_defaults(file, options));
    problems.append(&mut round.problems);
    problems.extend(unused_args(file, options));
    if options.purpose == Purpose::Check {
        problems.extend(check.unknown_rules());
    }
    check.apply(&mut problems, &file.local_checks, options.purpose);
    if round.stopped && problems.iter().any(Diagnostic::is_error) {
        problems.extend(further::mistakes(file, options));
    }
    problems.sort_by_key(|problem| problem.span.map_or(usize::MAX, |span| span.start));
    // Each platform says the same again.
    let mut said = HashSet::new();
    problems.retain(|problem| said.insert((problem.span, problem.message.clone())));
    let outcome = match (problems.iter().any(Diagnostic::is_error), round.missing.is_empty()) {
        (true, _) => Outcome::Failed,
        (false, false) => Outcome::Missing(round.missing),
        (false, true) => Outcome::Lowered(round.lowered),
    };
    (outcome, problems)
}

/// How far a mistake in the plan of a build stops its lowering.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Thoroughness {
    /// Altogether: what is built on a wrong plan is wrong.
    Build,
    /// Not at all: only mistakes are looked for.
    Mistakes,
}

/// What one look at a file with certain facts gives.
#[derive(Default)]
struct Round {
    lowered: Vec<Lowered>,
    problems: Vec<Diagnostic>,
    missing: Vec<FactRequest>,
    /// Whether a mistake in the plan kept instructions from being looked at.
    stopped: bool,
}

impl Round {
    fn of(file: &Dockerfile, options: &LowerOptions, facts: &Facts, thoroughness: Thoroughness) -> Round {
        let explicit = !options.platforms.is_empty();
        let mut platforms: Vec<Platform> = options.platforms.iter().map(|p| p.clone().normalized()).collect();
        if !explicit {
            platforms.push(options.build_platform.clone().normalized());
        }
        let mut round = Round::default();
        for platform in &platforms {
            let multiplatform = platforms.len() > 1;
            let one = OnePlatform { file, options, facts, platform, explicit, multiplatform };
            let lowered = one.lower(&mut round, thoroughness);
            round.lowered.extend(lowered);
        }
        let mut seen = HashSet::new();
        round.missing.retain(|request| {
            let FactRequest::ImageConfig { reference, platform, .. } = request;
            seen.insert((reference.clone(), platform.clone()))
        });
        round
    }
}

/// What else is wrong; and what the rules say of it, for whoever checks a file wants to know that also when it has
/// mistakes.
fn of_a_broken_file(file: &Dockerfile, options: &LowerOptions) -> Vec<Diagnostic> {
    let mut found = further::mistakes(file, options);
    if let (Purpose::Check, Ok(check)) = (options.purpose, Check::of(file, options)) {
        found.extend(file.warnings.iter().cloned());
        check.apply(&mut found, &file.local_checks, options.purpose);
    }
    found
}

/// A `# syntax=` that names another frontend than this one. A tag of the language's own frontend is this one.
fn foreign_frontend(file: &Dockerfile, options: &LowerOptions) -> Option<Diagnostic> {
    let (name, span) = match (options.build_args.get("BUILDKIT_SYNTAX"), &file.syntax) {
        (Some(name), _) => (name.as_str(), None),
        (None, Some(directive)) => (directive.value.as_str(), Some(directive.span)),
        (None, None) => return None,
    };
    let name = name.split(' ').next().unwrap_or(name);
    let own = ["docker/dockerfile", "docker/dockerfile-upstream"];
    let known = name == "dockerfile.v0"
        || Reference::parse(name)
            .is_ok_and(|reference| reference.registry() == "docker.io" && own.contains(&reference.repository()));
    if known {
        return None;
    }
    let problem = Diagnostic::error(format!("frontend image {name} is not supported"))
        .expected("docker/dockerfile, or no syntax line")
        .hint("the Dockerfile language is built in and needs no frontend image");
    Some(Diagnostic { span, ..problem })
}

/// One platform of one call.
struct OnePlatform<'a> {
    file: &'a Dockerfile,
    options: &'a LowerOptions,
    facts: &'a Facts,
    platform: &'a Platform,
    /// Whether the caller asked for it.
    explicit: bool,
    multiplatform: bool,
}

/// A lowering under way.
pub(crate) struct Lowering<'a> {
    file: &'a Dockerfile,
    options: &'a LowerOptions,
    facts: &'a Facts,
    platform: Platform,
    multiplatform: bool,
    plan: Plan,
    draft: Draft,
    budget: Budget,
    problems: Vec<Diagnostic>,
    /// The arguments before the first FROM and the predefined ones.
    globals: Env,
    proxy_env: Vec<String>,
    epoch: Option<i64>,
    /// The same as the history writes it.
    created: Option<String>,
    /// Base images, one for all stages on it.
    bases: HashMap<(Reference, Platform), Rc<BaseImage>>,
    /// What `.dockerignore` hides.
    ignored: Patterns,
    /// The stages that are done.
    ends: Vec<Option<State>>,
}

impl OnePlatform<'_> {
    fn lower(&self, round: &mut Round, thoroughness: Thoroughness) -> Option<Lowered> {
        let mut budget = Budget::new();
        let globals = self.globals(&mut budget, &mut round.problems);
        let epoch = self.epoch(&globals).unwrap_or_else(|problem| {
            round.problems.push(problem);
            None
        });
        let planner = Planner {
            file: self.file,
            options: self.options,
            facts: self.facts,
            globals: &globals,
            platform: self.platform,
            problems: &mut round.problems,
            budget: &mut budget,
            missing: &mut round.missing,
        };
        let plan = planner.plan();
        let wrong = round.problems.iter().any(Diagnostic::is_error);
        round.stopped |= wrong;
        let plan = plan.filter(|_| round.missing.is_empty() && !(wrong && thoroughness == Thoroughness::Build))?;
        let mut lowering = Lowering {
            file: self.file,
            options: self.options,
            facts: self.facts,
            platform: self.platform.clone(),
            multiplatform: self.multiplatform,
            bases: HashMap::new(),
            // Patterns of a caller that are none hide nothing here; whoever walks the files reports them.
            ignored: Patterns::new(self.options.ignore.iter().map(String::as_str)).unwrap_or_default(),
            ends: vec![None; plan.stages.len()],
            plan,
            draft: Draft::default(),
            budget,
            problems: std::mem::take(&mut round.problems),
            globals,
            proxy_env: self.proxy_env(),
            epoch,
            created: epoch.and_then(written),
        };
        for index in 0..lowering.plan.stages.len() {
            if lowering.plan.stages[index].reachable && !lowering.stage(index) {
                break;
            }
        }
        round.problems = std::mem::take(&mut lowering.problems);
        if round.problems.iter().any(Diagnostic::is_error) {
            return None;
        }
        lowering.finish(self.explicit).map_err(|problem| round.problems.push(problem)).ok()
    }
}

/// A time as the history writes it; `None` when no calendar has it.
fn written(epoch: i64) -> Option<String> {
    OffsetDateTime::from_unix_timestamp(epoch).ok()?.format(&Rfc3339).ok()
}

impl Lowering<'_> {
    /// Lowers one stage; says whether there is any sense in going on.
    fn stage(&mut self, index: usize) -> bool {
        let planned = &self.plan.stages[index];
        let (replaced, platform, total) = (planned.replaced, planned.platform.clone(), planned.steps);
        let triggers = std::mem::take(&mut self.plan.stages[index].triggers);
        let file = self.file;
        let stage = &file.stages[index];
        let name = match (self.plan.single, stage.name()) {
            (true, _) => String::new(),
            (false, Some(name)) => name.to_owned(),
            (false, None) => format!("stage-{index}"),
        };
        let no_cache = |filter: &String| stage.name().is_some_and(|name| filter.eq_ignore_ascii_case(name));
        let ignore_cache = self.options.no_cache || self.options.no_cache_filter.iter().any(no_cache);
        let done = 0;
        let (mut state, done) = match self.base(index, &name, total, done) {
            Ok(base) => base,
            Err(problem) => {
                self.problems.push(problem.at(stage.span));
                return false;
            }
        };
        if !replaced {
            begin(&mut state);
            let (once, span) = (Once::default(), stage.span);
            let mut run = StageRun {
                lowering: self,
                state,
                name,
                platform,
                total,
                done,
                ignore_cache,
                onbuild: true,
                once,
                span,
            };
            run.apply(&triggers);
            run.onbuild = false;
            run.apply(&stage.commands);
            state = run.state;
        }
        self.ends[index] = Some(state);
        true
    }

    /// What a stage starts from, and how many of its steps that took.
    fn base(&mut self, index: usize, name: &str, total: usize, done: usize) -> Result<(State, usize), Diagnostic> {
        let tree = self.plan.stages[index].base.clone();
        let platform = self.plan.stages[index].platform.clone();
        match tree {
            Tree::Stage(base) => {
                let Some(end) = &self.ends[base] else {
                    return Err(Diagnostic::error("the base stage could not be lowered"));
                };
                self.budget.spend(end.bytes()).map_err(|error| Diagnostic::error(error.to_string()))?;
                // History is put together at the end; triggers and the mark of CMD are a stage's own.
                let history = Vec::new();
                let mut state = State { history, cmd_set: false, ..end.clone() };
                state.config.on_build.clear();
                Ok((state, done))
            }
            Tree::Scratch => Ok((self.scratch(None), done)),
            Tree::Context(context) => {
                let edge = self.context(&context, ".");
                Ok((self.scratch(Some(edge)), done))
            }
            Tree::Image(reference) => {
                let (state, done) = self.image(&reference, platform, index, name, total);
                self.budget.spend(state.bytes()).map_err(|error| Diagnostic::error(error.to_string()))?;
                Ok((state, done))
            }
        }
    }

    fn scratch(&self, edge: Option<Edge>) -> State {
        let config = ContainerConfig { working_dir: "/".into(), ..ContainerConfig::default() };
        let env = Env::of(&[format!("PATH={DEFAULT_PATH}")]);
        State {
            edge,
            image_env: env.clone(),
            env,
            config,
            author: String::new(),
            image_platform: self.platform.clone(),
            args: Vec::new(),
            cmd_set: false,
            workdir_set: false,
            history: Vec::new(),
            base: None,
        }
    }

    fn image(
        &mut self,
        reference: &Reference,
        platform: Platform,
        index: usize,
        name: &str,
        total: usize,
    ) -> (State, usize) {
        let fact = &self.facts.images[&(reference.clone(), platform.clone())];
        let source = self.image_source(reference, &platform);
        let edge = source.map(|source| {
            let span = Some(self.file.stages[index].span);
            let width = total.max(1).ilog10() as usize + 1;
            let shown = if self.multiplatform { format!("{platform} ") } else { String::new() };
            let stage = if name.is_empty() { String::new() } else { format!("{name} ") };
            let name = match total {
                0 => format!("FROM {}", stage::image_name(&source)),
                _ => format!("[{shown}{stage}{:width$}/{total}] FROM {}", 1, stage::image_name(&source)),
            };
            self.draft.image(source, VertexMeta { name, span, ignore_cache: false, platform: platform.clone() })
        });
        let key = (reference.clone(), platform.clone());
        let base = self.bases.entry(key).or_insert_with_key(|(reference, platform)| {
            let (reference, platform) = (reference.clone(), platform.clone());
            Rc::new(BaseImage { reference, platform, digest: fact.digest.clone(), config: fact.config.clone(), edge })
        });
        let written = &self.file.stages[index].base.value;
        let shown = if written.contains('$') { reference.familiar() } else { written.clone() };
        let mismatch = lint::base_platform(&shown, &platform, &fact.config.platform());
        self.problems.extend(mismatch.map(|warning| warning.at(self.file.stages[index].span)));
        let mut config = fact.config.config.clone();
        let image_env = Env::of(&std::mem::take(&mut config.env));
        config.working_dir = stage::working_dir(&config);
        config.on_build.clear();
        let state = State {
            edge,
            env: Env::default(),
            image_env,
            config,
            author: fact.config.author.clone(),
            image_platform: fact.config.platform(),
            args: Vec::new(),
            cmd_set: false,
            workdir_set: false,
            history: Vec::new(),
            base: Some(Rc::clone(base)),
        };
        (state, usize::from(edge.is_some()))
    }

    fn finish(mut self, explicit: bool) -> Result<Lowered, Diagnostic> {
        let target = self.plan.target;
        let state = self.ends[target].take().ok_or_else(|| Diagnostic::error("the target could not be lowered"))?;
        let mut chain = vec![state.history];
        let mut stage = target;
        while let Tree::Stage(base) = self.plan.stages[stage].base {
            stage = base;
            chain.push(self.ends[base].take().map(|end| end.history).unwrap_or_default());
        }
        let history: Vec<HistoryStep> = chain.into_iter().rev().flatten().collect();
        let mut config = state.config;
        config.env = state.image_env.strings();
        config.labels.extend(self.options.labels.iter().cloned());
        let image = state.image_platform;
        let platform = if explicit { on_target(&image, &self.platform) } else { image };
        let old = state.base.iter().flat_map(|base| base.config.history.iter().cloned());
        let config = ImageConfig {
            architecture: platform.architecture,
            author: state.author,
            config,
            cache: None,
            created: None,
            history: old.chain(history.iter().map(|step| step.entry.clone())).collect(),
            os: platform.os,
            os_features: platform.os_features,
            os_version: platform.os_version.unwrap_or_default(),
            rootfs: Default::default(),
            variant: platform.variant.unwrap_or_default(),
        };
        let base = state.base.map(Rc::unwrap_or_clone);
        let (graph, contexts) = self.draft.finish()?;
        Ok(Lowered {
            platform: self.platform,
            graph,
            result: state.edge,
            config,
            base,
            history,
            contexts,
            source_date_epoch: self.epoch,
        })
    }
}

/// What an image says it is for, when the caller asked for a platform.
fn on_target(image: &Platform, target: &Platform) -> Platform {
    let same = image.os == target.os && image.architecture == target.architecture;
    let keep = |target: &Option<String>, image: &Option<String>| {
        if same { target.clone().or_else(|| image.clone()) } else { target.clone() }
    };
    Platform {
        architecture: target.architecture.clone(),
        os: target.os.clone(),
        os_version: keep(&target.os_version, &image.os_version),
        os_features: if target.os_features.is_empty() { image.os_features.clone() } else { target.os_features.clone() },
        variant: keep(&target.variant, &image.variant),
    }
    .normalized()
}

/// What every stage has before its first instruction.
fn begin(state: &mut State) {
    if state.image_env.value("PATH").is_none() {
        state.image_env.set("PATH", DEFAULT_PATH);
    }
    // Variables of the image go before arguments that came with the base stage.
    for (name, value) in state.image_env.iter() {
        state.env.set(name, value);
    }
}

impl StageRun<'_, '_> {
    fn apply(&mut self, commands: &[Command]) {
        for command in commands {
            self.span = command.span;
            if let Err(problem) = command.lower(self) {
                let problem = if problem.span.is_none() { problem.at(command.span) } else { problem };
                self.lowering.problems.push(problem);
            }
        }
    }
}
