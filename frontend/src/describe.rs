//! What a file offers: its stages, and what a build of one of them can be given.
//!
//! Both are read from the text alone, without an image being looked up, so they answer at once and without a network.

use std::cell::RefCell;
use std::collections::{BTreeSet, HashSet};

use rbuild_graph::Span;

use crate::instructions::{Declaration, Instruction, RunMount, Text};
use crate::lower::Env;
use crate::lower::words::quoted;
use crate::syntax::words::{Budget, Lexer, Variables};
use crate::{Diagnostic, Dockerfile, LowerOptions, Stage};

/// A stage as something to build.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Target {
    pub name: Option<String>,
    /// It is built when no target is named.
    pub default: bool,
    pub description: Option<String>,
    /// As written.
    pub base: String,
    /// As written.
    pub platform: Option<String>,
    pub span: Span,
}

/// What a build of a target can be given.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Outline {
    pub name: Option<String>,
    pub description: Option<String>,
    pub args: Vec<OutlineArg>,
    pub secrets: Vec<OutlineMount>,
    pub ssh: Vec<OutlineMount>,
    pub caches: Vec<OutlineMount>,
}

/// A build argument.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct OutlineArg {
    pub name: String,
    pub description: Option<String>,
    /// What it is with the caller's arguments; `None` when nobody says.
    pub value: Option<String>,
    pub span: Span,
}

/// A secret, an agent or a cache, by its id.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct OutlineMount {
    pub id: String,
    /// Without it the step fails.
    pub required: bool,
    pub span: Span,
}

/// The stages, in the order of the file.
pub fn targets(file: &Dockerfile) -> Vec<Target> {
    let last = file.stages.len().saturating_sub(1);
    let target = |(index, stage): (usize, &Stage)| Target {
        name: stage.name().map(str::to_owned),
        default: index == last,
        description: stage.description().map(str::to_owned),
        base: stage.base.value.clone(),
        platform: stage.platform.as_ref().map(|platform| platform.value.clone()),
        span: stage.span,
    };
    file.stages.iter().enumerate().map(target).collect()
}

/// What the target of these options, and the stages it is made from, can be given.
///
/// # Errors
/// A target that does not exist.
pub fn outline(file: &Dockerfile, options: &LowerOptions) -> Result<Outline, Diagnostic> {
    let Some(target) = target(file, options)? else { return Ok(Outline::default()) };
    let stage = &file.stages[target];
    let mut outline = Outline {
        name: stage.name().map(str::to_owned),
        description: stage.description().map(str::to_owned),
        ..Outline::default()
    };
    let mut reader = Reader { file, options, globals: crate::lower::globals(file, options), budget: Budget::new() };
    let (stages, used) = reader.reach(target);
    for declaration in file.global_args.iter().flat_map(|arg| &arg.0).filter(|one| used.contains(&one.name)) {
        let value = reader.globals.value(&declaration.name).map(str::to_owned);
        outline.args.push(arg(declaration, value));
    }
    reader.stages(&stages, &mut outline);
    let mut seen = HashSet::new();
    outline.args.retain(|arg| seen.insert(arg.name.clone()));
    for mounts in [&mut outline.secrets, &mut outline.ssh, &mut outline.caches] {
        let mut seen = HashSet::new();
        mounts.retain(|mount| seen.insert(mount.id.clone()));
    }
    Ok(outline)
}

fn target(file: &Dockerfile, options: &LowerOptions) -> Result<Option<usize>, Diagnostic> {
    let Some(name) = &options.target else { return Ok(file.stages.len().checked_sub(1)) };
    match find(file, name, file.stages.len()) {
        Some(index) => Ok(Some(index)),
        None => {
            let problem = Diagnostic::error(format!("target stage {} could not be found", quoted(name)));
            Err(problem.suggest(&name.to_lowercase(), file.stages.iter().filter_map(Stage::name)))
        }
    }
}

/// The last stage of this name, or the one of this number, before another.
fn find(file: &Dockerfile, name: &str, before: usize) -> Option<usize> {
    let named = |stage: &Stage| stage.name().is_some_and(|other| other.eq_ignore_ascii_case(name));
    let number = || name.parse().ok().filter(|index: &usize| *index < before);
    file.stages[..before].iter().rposition(named).or_else(number)
}

fn arg(declaration: &Declaration, value: Option<String>) -> OutlineArg {
    OutlineArg {
        name: declaration.name.clone(),
        description: declaration.description.clone(),
        value,
        span: declaration.span,
    }
}

struct Reader<'a> {
    file: &'a Dockerfile,
    options: &'a LowerOptions,
    globals: Env,
    budget: Budget,
}

/// Takes note of what is asked for.
struct Noted<'a>(&'a Env, RefCell<HashSet<String>>);

impl Variables for Noted<'_> {
    fn value(&self, name: &str) -> Option<&str> {
        self.1.borrow_mut().insert(name.to_owned());
        self.0.value(name)
    }
}

impl Reader<'_> {
    /// A stage and those it is made from, each with its base; and the arguments that their FROM lines use.
    fn reach(&mut self, target: usize) -> (Vec<(usize, Option<usize>)>, HashSet<String>) {
        let noted = Noted(&self.globals, RefCell::default());
        let lexer = Lexer::new(self.file.escape);
        let mut open = vec![target];
        let mut reached = BTreeSet::from([target]);
        let mut stages = Vec::new();
        while let Some(index) = open.pop() {
            let stage = &self.file.stages[index];
            let mut expand = |text: &Text| lexer.expand(&text.value, &noted, &mut self.budget).unwrap_or_default().text;
            let base = expand(&stage.base);
            if let Some(platform) = &stage.platform {
                expand(platform);
            }
            // A FROM names stages by name only.
            let base = find(self.file, &base, index).filter(|_| base.parse::<usize>().is_err());
            stages.push((index, base));
            let sources = stage.commands.iter().flat_map(|command| command.sources());
            let used = sources.filter_map(|name| find(self.file, &name.value, index));
            open.extend(used.chain(base).filter(|index| reached.insert(*index)));
        }
        stages.sort_unstable();
        (stages, noted.1.into_inner())
    }

    fn stages(&mut self, stages: &[(usize, Option<usize>)], outline: &mut Outline) {
        let mut ends: Vec<(usize, Env)> = Vec::new();
        for (index, base) in stages {
            let below = base.and_then(|base| ends.iter().find(|(index, _)| *index == base));
            let mut env = below.map(|(_, env)| env.clone()).unwrap_or_default();
            // A stage too many of variables too long: what follows is shown without values.
            if self.budget.spend(env.bytes()).is_err() {
                env = Env::default();
            }
            for command in &self.file.stages[*index].commands {
                match &command.instruction {
                    Instruction::Arg(line) => {
                        for declaration in &line.0 {
                            let value = self.value(declaration, &env);
                            if let Some(value) = &value {
                                env.set(&declaration.name, value);
                            }
                            outline.args.push(arg(declaration, value));
                        }
                    }
                    Instruction::Env(line) => {
                        let mut expand = |text: &Text| self.expand(text, &env);
                        let pairs: Vec<_> =
                            line.0.iter().map(|pair| (expand(&pair.name), expand(&pair.value))).collect();
                        for (name, value) in pairs {
                            env.set(&name, &value);
                        }
                    }
                    Instruction::Run(run) => {
                        for mount in &run.mounts {
                            let expand =
                                |text: &str| self.expand(&Text { value: text.to_owned(), span: command.span }, &env);
                            mounted(mount, command.span, expand, outline);
                        }
                    }
                    _ => {}
                }
            }
            ends.push((*index, env));
        }
    }

    fn expand(&mut self, text: &Text, env: &Env) -> String {
        let lexer = Lexer::new(self.file.escape);
        lexer.expand(&text.value, env, &mut self.budget).map_or_else(|_| text.value.clone(), |expanded| expanded.text)
    }

    fn value(&mut self, declaration: &Declaration, env: &Env) -> Option<String> {
        match (self.options.build_args.get(&declaration.name), &declaration.default) {
            (Some(given), _) => Some(given.clone()),
            (None, Some(default)) => Some(self.expand(default, env)),
            (None, None) => self.globals.value(&declaration.name).map(str::to_owned),
        }
    }
}

fn mounted(mount: &RunMount, span: Span, mut expand: impl FnMut(&str) -> String, outline: &mut Outline) {
    let base_name = |path: String| path.rsplit('/').next().unwrap_or_default().to_owned();
    let mut option = |names: &[&str]| mount.option(names).map(&mut expand);
    let target = ["target", "dst", "destination"];
    let id = option(&["id"]);
    let required = option(&["required"]).is_some_and(|value| value.is_empty() || value == "true");
    let (list, id) = match option(&["type"]).unwrap_or_default().to_lowercase().as_str() {
        "secret" => {
            let mut source = || option(&["source", "src"]).or_else(|| option(&target)).map(base_name);
            (&mut outline.secrets, id.or_else(&mut source))
        }
        "ssh" => (&mut outline.ssh, id.or_else(|| Some("default".into()))),
        "cache" => (&mut outline.caches, id.or_else(|| option(&target))),
        _ => return,
    };
    list.extend(id.map(|id| OutlineMount { id, required, span }));
}

#[cfg(test)]
mod tests {
    use rbuild_oci::Platform;

    use super::*;

    const FILE: &str = "# TAG is the release\nARG TAG=1\nARG OTHER=2\n# build makes it\nFROM busybox:$TAG AS build\n\
                        # NAME says who\nARG NAME=me LONG=$NAME-x\nRUN --mount=type=secret,id=tok-$NAME,required=true \
                        --mount=type=ssh --mount=type=cache,target=/c true\nFROM scratch\nARG LOST\nFROM scratch AS last\n\
                        COPY --from=build / /\nARG TAG";

    fn read(target: Option<&str>) -> Result<Outline, Diagnostic> {
        let (file, problems) = crate::parse(FILE.as_bytes(), "Dockerfile");
        assert_eq!(problems, []);
        let mut options = LowerOptions::new(Platform::new("linux", "amd64"));
        options.target = target.map(str::to_owned);
        options.build_args.insert("NAME".into(), "you".into());
        outline(&file, &options)
    }

    #[test]
    fn stages_are_listed() {
        let (file, _) = crate::parse(FILE.as_bytes(), "Dockerfile");
        let shown: Vec<_> = targets(&file).into_iter().map(|t| (t.name, t.default, t.description, t.base)).collect();
        let row = |name: &str, default, about: &str, base: &str| {
            let text = |text: &str| Some(text.to_owned()).filter(|text| !text.is_empty());
            (text(name), default, text(about), base.to_owned())
        };
        let want = [
            row("build", false, "makes it", "busybox:$TAG"),
            row("", false, "", "scratch"),
            row("last", true, "", "scratch"),
        ];
        assert_eq!(shown, want);
    }

    #[test]
    fn a_target_is_outlined_with_what_it_is_made_from() {
        let last = read(None).unwrap();
        let args: Vec<_> = last.args.iter().map(|a| (a.name.as_str(), a.value.as_deref(), a.span.line)).collect();
        let want = [("TAG", Some("1"), 2), ("NAME", Some("you"), 7)];
        assert_eq!(args[0], want[0]);
        assert_eq!(args[1], want[1]);
        assert_eq!((args[2], args.len()), (("LONG", Some("you-x"), 7), 3), "LOST is of a stage that is not needed");
        assert_eq!(last.args[0].description.as_deref(), Some("is the release"));
        assert_eq!((last.secrets[0].id.as_str(), last.secrets[0].required), ("tok-you", true));
        assert_eq!((last.ssh[0].id.as_str(), last.caches[0].id.as_str()), ("default", "/c"));
        assert_eq!(read(Some("1")).unwrap().args[0].value, None);
        let error = read(Some("biuld")).unwrap_err();
        assert_eq!(error.message, "target stage \"biuld\" could not be found (did you mean build?)");
    }
}
