//! What a build needs: the base of each stage, the target, and everything it reaches.
//!
//! Triggers of base images bring instructions of their own, which may name more stages and images; so reaching goes
//! on until nothing new comes, and stops with requests where a config is not known yet.

use std::collections::{HashMap, HashSet, VecDeque};

use rbuild_graph::Span;
use rbuild_oci::{Platform, Reference};

use super::env::Env;
use crate::instructions::{self, Command, Instruction, Text};
use crate::lower::words::quoted;
use crate::syntax::words::{Budget, Lexer};
use crate::{Diagnostic, Dockerfile, FactRequest, Facts, LowerOptions, NamedContext, Purpose, lint};

/// Where a file tree comes from.
#[derive(Debug, Clone, PartialEq)]
pub(crate) enum Tree {
    Scratch,
    /// An earlier stage.
    Stage(usize),
    Image(Reference),
    /// Files lent under this name.
    Context(String),
}

/// A stage and what is known of it before its instructions are lowered.
#[derive(Debug)]
pub(crate) struct PlannedStage {
    pub(crate) base: Tree,
    /// A named context stands in for the whole stage.
    pub(crate) replaced: bool,
    pub(crate) platform: Platform,
    /// Instructions of the base's ON BUILD triggers.
    pub(crate) triggers: Vec<Command>,
    /// How many steps are counted.
    pub(crate) steps: usize,
    pub(crate) reachable: bool,
}

/// An image or context that is named but is no stage.
#[derive(Debug)]
pub(crate) struct External {
    pub(crate) tree: Tree,
    pub(crate) span: Span,
}

/// What a name in `--from` means.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Source {
    Stage(usize),
    External(usize),
}

/// The plan of one build for one platform.
#[derive(Debug)]
pub(crate) struct Plan {
    pub(crate) stages: Vec<PlannedStage>,
    pub(crate) externals: Vec<External>,
    pub(crate) target: usize,
    /// Stages are not named in steps when there is only one of everything.
    pub(crate) single: bool,
    by_name: HashMap<String, usize>,
    external_names: HashMap<String, usize>,
}

impl Plan {
    /// What a name in `--from` means; `None` only for names that were refused while planning.
    pub(crate) fn source(&self, name: &str) -> Option<Source> {
        if let Some(index) = self.by_name.get(&name.to_lowercase()) {
            return Some(Source::Stage(*index));
        }
        match name.parse::<i64>() {
            Ok(number) => usize::try_from(number).ok().filter(|i| *i < self.stages.len()).map(Source::Stage),
            Err(_) => self.external_names.get(name).map(|index| Source::External(*index)),
        }
    }
}

/// The most stages that a message names.
const MOST_NAMED: usize = 10;

/// About what an instruction takes in memory, in bytes.
const TRIGGER_COST: usize = 1024;

/// The inputs of planning.
pub(super) struct Planner<'a> {
    pub(super) file: &'a Dockerfile,
    pub(super) options: &'a LowerOptions,
    pub(super) facts: &'a Facts,
    pub(super) globals: &'a Env,
    pub(super) platform: &'a Platform,
    pub(super) problems: &'a mut Vec<Diagnostic>,
    pub(super) budget: &'a mut Budget,
    pub(super) missing: &'a mut Vec<FactRequest>,
}

impl Planner<'_> {
    /// Plans. `None` when there is nothing to plan; else look at problems and missing facts first.
    pub(super) fn plan(mut self) -> Option<Plan> {
        let (stages, by_name) = self.stages();
        let mut plan =
            Plan { stages, externals: Vec::new(), target: 0, single: false, by_name, external_names: HashMap::new() };
        plan.target = self.target(&plan)?;
        let uses = self.uses(&mut plan);
        self.refuse_cycles(&plan, &uses);
        self.reach(&mut plan, uses);
        Some(plan)
    }

    fn stages(&mut self) -> (Vec<PlannedStage>, HashMap<String, usize>) {
        let mut by_name: HashMap<String, usize> = HashMap::new();
        let mut stages = Vec::with_capacity(self.file.stages.len());
        let file = self.file;
        for (index, stage) in file.stages.iter().enumerate() {
            let platform = stage.platform.as_ref().and_then(|text| self.stage_platform(stage.span, text));
            self.problems.extend(lint::platform_flag(stage));
            let own = stage.name().and_then(|name| find_context(self.options, name));
            let (base, replaced) = match own {
                Some((name, context)) => (context_tree(name, context), true),
                None => (self.base(stage.span, &stage.base, &by_name), false),
            };
            let counts_base = !replaced && !matches!(base, Tree::Scratch | Tree::Stage(_));
            let steps = stage.commands.iter().filter(|command| command.is_step()).count();
            let inherited = match &base {
                Tree::Stage(base) => stages.get(*base).map(|base: &PlannedStage| base.platform.clone()),
                _ => None,
            };
            stages.push(PlannedStage {
                base,
                replaced,
                platform: inherited.or(platform).unwrap_or_else(|| self.platform.clone()),
                triggers: Vec::new(),
                steps: if replaced { 0 } else { steps + usize::from(counts_base) },
                reachable: false,
            });
            if let Some(name) = stage.name() {
                by_name.insert(name.to_owned(), index);
            }
        }
        (stages, by_name)
    }

    fn base(&mut self, span: Span, base: &Text, by_name: &HashMap<String, usize>) -> Tree {
        let Some(name) = self.expand(base) else { return Tree::Scratch };
        self.warn_undefined(&name, span);
        if name.value.is_empty() {
            let message = format!("base name ({}) should not be blank", base.value);
            let mut problem = Diagnostic::error(message).at(span).expected("an image or a stage");
            for unset in &name.unset {
                problem = problem.hint(match crate::nearest(unset, self.globals.names()) {
                    Some(near) => format!("{unset} is not set before the first FROM, {near} is"),
                    None => format!("set it before the first FROM: ARG {unset}=<value>"),
                });
            }
            self.problems.push(problem);
            return Tree::Scratch;
        }
        if let Some(index) = by_name.get(&name.value).or_else(|| by_name.get(&name.value.to_lowercase())) {
            return Tree::Stage(*index);
        }
        self.tree(&name.value, base.span)
    }

    /// What a name is that is no stage.
    fn tree(&mut self, name: &str, span: Span) -> Tree {
        if name == "scratch" {
            return Tree::Scratch;
        }
        if let Some((key, context)) = find_context(self.options, name) {
            return context_tree(key, context);
        }
        match Reference::parse(name) {
            Ok(reference) => Tree::Image(reference),
            Err(error) => {
                let message = format!("failed to parse stage name {}: {error}", quoted(name));
                self.problems.push(Diagnostic::error(message).at(span).expected("an image or a stage"));
                Tree::Scratch
            }
        }
    }

    fn stage_platform(&mut self, span: Span, text: &Text) -> Option<Platform> {
        let expanded = self.expand(text)?;
        self.warn_undefined(&expanded, span);
        let problem = if expanded.value.is_empty() {
            Diagnostic::error(format!("empty platform value from expression {}", text.value))
        } else {
            match Platform::parse(&expanded.value) {
                Ok(platform) => return Some(platform.normalized()),
                Err(error) => Diagnostic::error(format!("failed to parse platform {}: {error}", text.value)),
            }
        };
        let problem = problem.at(text.span).expected("os/architecture, such as linux/amd64");
        self.problems.push(match expanded.unset.first() {
            Some(unset) => problem.suggest(unset, self.globals.names()),
            None => problem,
        });
        None
    }

    fn expand(&mut self, text: &Text) -> Option<Name> {
        match Lexer::new(self.file.escape).expand(&text.value, self.globals, self.budget) {
            Ok(expanded) => Some(Name { value: expanded.text, unset: expanded.unmatched }),
            Err(error) => {
                let message = format!("failed to process {}: {error}", super::stage::shown(&text.value));
                self.problems.push(Diagnostic::error(message).at(text.span));
                None
            }
        }
    }

    fn warn_undefined(&mut self, name: &Name, span: Span) {
        let args = &self.file.global_args;
        if self.budget.spend(name.unset.len().saturating_mul(args.len())).is_err() {
            return;
        }
        let declared = |name: &str| args.iter().flat_map(|arg| &arg.0).any(|one| one.name == name);
        self.problems.extend(lint::undefined_args(&name.unset, declared, self.globals.names(), span));
    }

    fn target(&mut self, plan: &Plan) -> Option<usize> {
        let last = plan.stages.len().checked_sub(1)?;
        let Some(target) = &self.options.target else { return Some(last) };
        if let Some(Source::Stage(index)) = plan.source(target) {
            return Some(index);
        }
        let problem = Diagnostic::error(format!("target stage {} could not be found", quoted(target)));
        let names = || self.file.stages.iter().filter_map(|stage| stage.name());
        let problem = problem.suggest(&target.to_lowercase(), names());
        let names: Vec<&str> = names().take(20).collect();
        self.problems.push(match names[..] {
            [] => problem.hint("no stage of this file has a name"),
            _ => problem.hint(format!("its stages are {}", names.join(", "))),
        });
        None
    }

    /// The sources of each stage's instructions, and where they are named.
    fn uses(&mut self, plan: &mut Plan) -> Vec<Vec<(Source, Span)>> {
        let file = self.file;
        let mut mounts = false;
        let uses = file
            .stages
            .iter()
            .map(|stage| {
                mounts |= stage.commands.iter().any(
                    |c| matches!(&c.instruction, Instruction::Run(run) if run.mounts.iter().any(|m| m.from.is_none())),
                );
                stage.commands.iter().flat_map(|command| self.sources(plan, command)).collect()
            })
            .collect();
        plan.single = plan.stages.len() == 1 && plan.externals.is_empty() && !mounts;
        uses
    }

    fn sources(&mut self, plan: &mut Plan, command: &Command) -> Vec<(Source, Span)> {
        let mut found = Vec::new();
        for text in command.sources() {
            if let Some(source) = plan.source(&text.value) {
                found.push((source, text.span));
            } else if text.value.parse::<i64>().is_ok() {
                let problem = Diagnostic::error(format!("invalid stage index {}", text.value)).at(text.span);
                self.problems.push(problem.expected(format!("0 to {}", plan.stages.len() - 1)));
            } else {
                let tree = self.tree(&text.value, text.span);
                plan.externals.push(External { tree, span: text.span });
                plan.external_names.insert(text.value.clone(), plan.externals.len() - 1);
                found.push((Source::External(plan.externals.len() - 1), text.span));
            }
        }
        found
    }

    /// Reports stages that need themselves. Depth first with a stack of its own: a file may have 100,000 stages.
    fn refuse_cycles(&mut self, plan: &Plan, uses: &[Vec<(Source, Span)>]) {
        #[derive(Clone, Copy, PartialEq)]
        enum Seen {
            No,
            OnPath,
            Done,
        }
        // What a stage needs: what its instructions use, then its base.
        let need = |stage: usize, n: usize| match plan.stages[stage].base {
            Tree::Stage(base) if n == uses[stage].len() => {
                Some((Source::Stage(base), self.file.stages[stage].base.span))
            }
            _ => uses[stage].get(n).copied(),
        };
        let mut seen = vec![Seen::No; plan.stages.len()];
        for start in 0..plan.stages.len() {
            let mut path = vec![(start, 0)];
            while let Some((stage, next)) = path.pop() {
                if next == 0 {
                    if seen[stage] != Seen::No {
                        continue;
                    }
                    seen[stage] = Seen::OnPath;
                }
                let Some((source, _)) = need(stage, next) else {
                    seen[stage] = Seen::Done;
                    continue;
                };
                path.push((stage, next + 1));
                let Source::Stage(used) = source else { continue };
                match seen[used] {
                    Seen::No => path.push((used, 0)),
                    Seen::OnPath => {
                        let first = path.iter().position(|(stage, _)| *stage == used).unwrap_or_default();
                        let needs =
                            path[first..].iter().filter_map(|(stage, next)| Some((*stage, need(*stage, next - 1)?)));
                        let needs: Vec<(usize, Span)> = needs.map(|(stage, (_, span))| (stage, span)).collect();
                        let problem = self.cycle(start, &needs);
                        self.problems.push(problem);
                        return;
                    }
                    Seen::Done => {}
                }
            }
        }
    }

    /// `needs` are the stages of the cycle, each with where it names the next.
    fn cycle(&self, start: usize, needs: &[(usize, Span)]) -> Diagnostic {
        let name = |stage: usize| self.file.stages[stage].name().map_or(format!("stage-{stage}"), str::to_owned);
        let problem = Diagnostic::error(format!("circular dependency detected on stage: {}", name(start)));
        // Somewhere it goes down the file, and that is what no builder can do.
        let down = (0..needs.len()).find(|i| needs[(i + 1) % needs.len()].0 >= needs[*i].0).unwrap_or_default();
        let problem = problem.at(needs[down].1);
        match needs {
            [_] => problem.hint("a stage cannot use itself; what it needs must come from an earlier one"),
            _ => {
                let names: Vec<String> = needs.iter().take(MOST_NAMED).map(|(stage, _)| name(*stage)).collect();
                let dots = if needs.len() > MOST_NAMED { ", …" } else { "" };
                problem.hint(format!("these stages need each other: {}{dots}", names.join(", ")))
            }
        }
    }

    fn reach(&mut self, plan: &mut Plan, uses: Vec<Vec<(Source, Span)>>) {
        let all = self.options.purpose == Purpose::Check && self.options.target.is_none();
        let mut queue: VecDeque<usize> = if all { (0..plan.stages.len()).collect() } else { [plan.target].into() };
        for index in &queue {
            plan.stages[*index].reachable = true;
        }
        let mut asked = HashSet::new();
        let file = self.file;
        while let Some(index) = queue.pop_front() {
            let stage = &file.stages[index];
            let platform = plan.stages[index].platform.clone();
            let base = plan.stages[index].base.clone();
            let triggers: Vec<String> = match &base {
                Tree::Stage(base) => {
                    let commands = file.stages[*base].commands.iter();
                    let trigger = |command: &Command| match &command.instruction {
                        Instruction::OnBuild(onbuild) => Some(onbuild.trigger.clone()),
                        _ => None,
                    };
                    commands.filter_map(trigger).collect()
                }
                Tree::Image(reference) => {
                    let fact = self.facts.images.get(&(reference.clone(), platform.clone()));
                    match fact {
                        Some(fact) => fact.config.config.on_build.clone(),
                        None => {
                            self.ask(reference, &platform, stage.base.span, &mut asked);
                            Vec::new()
                        }
                    }
                }
                Tree::Scratch | Tree::Context(_) => Vec::new(),
            };
            let replaced = plan.stages[index].replaced;
            // A thousand stages on one with a thousand triggers are a million instructions.
            let cost: usize = triggers.iter().map(|text| text.len() + TRIGGER_COST).sum();
            if let Err(error) = self.budget.spend(cost) {
                self.problems.push(Diagnostic::error(error.to_string()).at(stage.span));
                return;
            }
            let mut needed = if replaced { Vec::new() } else { uses[index].clone() };
            for text in triggers.iter().filter(|_| !replaced) {
                if let Some(command) = instructions::read_trigger(text, stage.span, self.problems) {
                    needed.extend(self.sources(plan, &command));
                    plan.stages[index].triggers.push(command);
                }
            }
            plan.stages[index].steps += plan.stages[index].triggers.len();
            if let Tree::Stage(base) = base {
                needed.push((Source::Stage(base), stage.base.span));
            }
            for (source, _) in needed {
                match source {
                    Source::Stage(used) if !plan.stages[used].reachable => {
                        plan.stages[used].reachable = true;
                        queue.push_back(used);
                    }
                    Source::Stage(_) => {}
                    Source::External(external) => {
                        let External { tree, span } = &plan.externals[external];
                        if let Tree::Image(reference) = tree
                            && !self.facts.images.contains_key(&(reference.clone(), self.platform.clone()))
                        {
                            self.ask(reference, self.platform, *span, &mut asked);
                        }
                    }
                }
            }
        }
    }

    fn ask(
        &mut self,
        reference: &Reference,
        platform: &Platform,
        span: Span,
        asked: &mut HashSet<(Reference, Platform)>,
    ) {
        if !asked.insert((reference.clone(), platform.clone())) {
            return;
        }
        let names = self.file.stages.iter().filter_map(|stage| stage.name());
        let near = crate::nearest(&reference.familiar_name(), names).map(str::to_owned);
        let (reference, platform) = (reference.clone(), platform.clone());
        self.missing.push(FactRequest::ImageConfig { reference, platform, span: Some(span), near });
    }
}

struct Name {
    value: String,
    unset: Vec<String>,
}

fn context_tree(name: &str, context: &NamedContext) -> Tree {
    match context {
        NamedContext::Image(reference) => Tree::Image(reference.clone()),
        NamedContext::Local => Tree::Context(name.to_owned()),
    }
}

/// The named context that replaces a name: by the name as written, or as the reference it is short for.
fn find_context<'a>(options: &'a LowerOptions, name: &str) -> Option<(&'a str, &'a NamedContext)> {
    if options.contexts.is_empty() || name.eq_ignore_ascii_case("scratch") || name.eq_ignore_ascii_case("context") {
        return None;
    }
    let mut names = vec![name.to_lowercase()];
    if let Ok(reference) = Reference::parse(name) {
        let familiar = reference.familiar();
        names.extend(familiar.strip_suffix(":latest").map(str::to_owned));
        names.extend([familiar, reference.canonical()]);
    }
    names.iter().find_map(|name| options.contexts.get_key_value(name)).map(|(name, context)| (name.as_str(), context))
}
