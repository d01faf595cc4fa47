//! A file as stages: the instructions behind each FROM, and the arguments before the first.

use rbuild_graph::Span;

use crate::Diagnostic;
use crate::instructions::{self, Arg, Command, Instruction, Text};
use crate::lint;
use crate::lower::check::LocalCheck;
use crate::syntax::lines::{self, Directive};

/// A Dockerfile that was read. It may have mistakes; the diagnostics that came with it say.
#[derive(Debug, Clone)]
pub struct Dockerfile {
    pub(crate) name: String,
    pub(crate) escape: char,
    pub(crate) syntax: Option<Directive>,
    pub(crate) check: Option<Directive>,
    /// What comments say of rules for single instructions.
    pub(crate) local_checks: Vec<LocalCheck>,
    /// The ARG lines before the first FROM.
    pub(crate) global_args: Vec<Arg>,
    pub(crate) stages: Vec<Stage>,
    pub(crate) has_mistakes: bool,
    /// What rules say of its text; lowering tells, for the caller may skip rules.
    pub(crate) warnings: Vec<Diagnostic>,
}

/// From one FROM to the next.
#[derive(Debug, Clone)]
pub struct Stage {
    /// In lower case.
    pub(crate) name: Option<Text>,
    pub(crate) base: Text,
    pub(crate) platform: Option<Text>,
    pub(crate) span: Span,
    pub(crate) comments: Vec<String>,
    pub(crate) commands: Vec<Command>,
}

impl Dockerfile {
    /// What messages call the file.
    pub fn name(&self) -> &str {
        &self.name
    }

    pub fn stages(&self) -> &[Stage] {
        &self.stages
    }

    /// The frontend that the file asks for with `# syntax=`.
    pub fn syntax(&self) -> Option<&str> {
        self.syntax.as_ref().map(|directive| directive.value.as_str())
    }
}

impl Stage {
    /// In lower case; `None` for a stage that has only its number.
    pub fn name(&self) -> Option<&str> {
        self.name.as_ref().map(|name| name.value.as_str())
    }

    /// The comment that describes the stage: the text behind its own name in a comment right before it.
    pub fn description(&self) -> Option<&str> {
        let name = self.name()?;
        self.comments.iter().find_map(|line| line.strip_prefix(name)?.strip_prefix(' '))
    }
}

/// Reads a file. Never fails: what is wrong is in the diagnostics, all of it, in the order of the file. What is merely
/// unwise is told by [`lower`](crate::lower).
pub fn parse(text: &[u8], name: &str) -> (Dockerfile, Vec<Diagnostic>) {
    let mut problems = Vec::new();
    let lines = lines::read(text, &mut problems);
    let mut file = Dockerfile {
        name: name.to_owned(),
        escape: lines.escape,
        syntax: lines.syntax,
        check: lines.check,
        local_checks: lines.lines.iter().filter_map(|line| LocalCheck::of(&line.comments, line.span)).collect(),
        global_args: Vec::new(),
        stages: Vec::new(),
        has_mistakes: false,
        warnings: Vec::new(),
    };
    if lines.lines.is_empty() && problems.is_empty() {
        problems.push(Diagnostic::error("file with no instructions").hint("the least is a FROM line"));
    }
    let mut stageless = false;
    let mut broken_stage = false;
    for line in &lines.lines {
        let is_from = line.name().eq_ignore_ascii_case("FROM");
        let Some(command) = instructions::read(line, lines.escape, &mut problems) else {
            broken_stage |= is_from;
            continue;
        };
        match command.instruction {
            Instruction::From(from) => file.stages.push(Stage {
                name: from.name,
                base: from.base,
                platform: from.platform,
                span: command.span,
                comments: command.comments,
                commands: Vec::new(),
            }),
            Instruction::Arg(arg) if file.stages.is_empty() => file.global_args.push(arg),
            _ => match file.stages.last_mut() {
                Some(stage) => stage.commands.push(command),
                // One message serves for all lines before the first FROM.
                None if stageless || broken_stage => {}
                None => {
                    stageless = true;
                    let problem = Diagnostic::error("no build stage in current context").at(command.span);
                    problems
                        .push(problem.expected("a FROM line first").hint("only ARG may stand before the first FROM"));
                }
            },
        }
    }
    let has_errors = problems.iter().any(Diagnostic::is_error);
    if file.stages.is_empty() && !has_errors {
        problems.push(Diagnostic::error("dockerfile contains no stages to build").hint("the least is a FROM line"));
    }
    lint::of_file(&lines.lines, &file, &mut problems);
    problems.sort_by_key(|problem| problem.span.map_or(0, |span| span.start));
    (file.warnings, problems) = problems.into_iter().partition(|problem| problem.rule.is_some());
    file.has_mistakes = problems.iter().any(Diagnostic::is_error);
    (file, problems)
}
