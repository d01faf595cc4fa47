//! The eighteen instructions: typed, not yet expanded, with the place of every word.
//!
//! One file per instruction: its flag table, how its line is read, and how it is lowered. To add a flag, add a row to
//! the instruction's table, a field, and its lowering. Reading never stops at a mistake; the instruction that has one
//! is left out, and the diagnostics say why.

mod add;
mod arg;
mod cmd;
mod copy;
mod entrypoint;
mod env;
mod expose;
pub(crate) mod flags;
mod from;
mod healthcheck;
pub(crate) mod input;
mod label;
mod maintainer;
mod onbuild;
pub(crate) mod run;
mod run_device;
mod run_mount;
mod shell;
mod stopsignal;
mod transfer;
mod user;
mod volume;
mod workdir;

use rbuild_graph::Span;

pub(crate) use arg::{Arg, Declaration};
pub(crate) use from::From;
pub(crate) use input::{CommandLine, Pair};
pub(crate) use onbuild::OnBuild;
pub(crate) use run_mount::RunMount;
pub(crate) use transfer::Transfer;

use crate::Diagnostic;
use crate::lower::stage::StageRun;
use crate::syntax::lines::{self, Line};
use flags::{FlagSpec, Flags};
use input::Input;

/// A piece of the file and where it stands.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct Text {
    pub(crate) value: String,
    pub(crate) span: Span,
}

/// An instruction with what surrounds it.
#[derive(Debug, Clone)]
pub(crate) struct Command {
    pub(crate) instruction: Instruction,
    /// As written, joined: what steps are called by.
    pub(crate) text: String,
    pub(crate) span: Span,
    /// The comment lines before it, for descriptions of stages and arguments.
    pub(crate) comments: Vec<String>,
}

/// What an instruction says.
#[derive(Debug, Clone)]
pub(crate) enum Instruction {
    Transfer(Transfer),
    Arg(Arg),
    Cmd(cmd::Cmd),
    Entrypoint(entrypoint::Entrypoint),
    Env(env::Env),
    Expose(expose::Expose),
    From(From),
    Healthcheck(healthcheck::Health),
    Label(label::Label),
    Maintainer(maintainer::Maintainer),
    OnBuild(OnBuild),
    Run(run::Run),
    Shell(shell::Shell),
    StopSignal(stopsignal::StopSignal),
    User(user::User),
    Volume(volume::Volume),
    Workdir(workdir::Workdir),
}

/// How an instruction is read.
struct Spec {
    name: &'static str,
    flags: &'static [FlagSpec],
    read: fn(&mut Input<'_>) -> Option<Instruction>,
}

const INSTRUCTIONS: [Spec; 18] = [
    Spec { name: "ADD", flags: add::FLAGS, read: add::read },
    Spec { name: "ARG", flags: &[], read: arg::read },
    Spec { name: "CMD", flags: &[], read: cmd::read },
    Spec { name: "COPY", flags: copy::FLAGS, read: copy::read },
    Spec { name: "ENTRYPOINT", flags: &[], read: entrypoint::read },
    Spec { name: "ENV", flags: &[], read: env::read },
    Spec { name: "EXPOSE", flags: &[], read: expose::read },
    Spec { name: "FROM", flags: from::FLAGS, read: from::read },
    Spec { name: "HEALTHCHECK", flags: healthcheck::FLAGS, read: healthcheck::read },
    Spec { name: "LABEL", flags: &[], read: label::read },
    Spec { name: "MAINTAINER", flags: &[], read: maintainer::read },
    Spec { name: "ONBUILD", flags: &[], read: onbuild::read },
    Spec { name: "RUN", flags: run::FLAGS, read: run::read },
    Spec { name: "SHELL", flags: &[], read: shell::read },
    Spec { name: "STOPSIGNAL", flags: &[], read: stopsignal::read },
    Spec { name: "USER", flags: &[], read: user::read },
    Spec { name: "VOLUME", flags: &[], read: volume::read },
    Spec { name: "WORKDIR", flags: &[], read: workdir::read },
];

/// Reads one line.
pub(crate) fn read(line: &Line, escape: char, problems: &mut Vec<Diagnostic>) -> Option<Command> {
    let written = line.name();
    let Some(spec) = INSTRUCTIONS.iter().find(|spec| spec.name.eq_ignore_ascii_case(written)) else {
        let upper = written.to_uppercase();
        let near = crate::nearest(&upper, INSTRUCTIONS.map(|spec| spec.name)).map(|near| {
            let lower = written.chars().all(|c| !c.is_uppercase());
            if lower { near.to_lowercase() } else { near.to_owned() }
        });
        let mut message = format!("unknown instruction: {written}");
        if let Some(near) = near {
            message.push_str(&format!(" (did you mean {near}?)"));
        }
        let span = line.span_of(line.head.name.clone());
        problems.push(Diagnostic::error(message).at(span).expected("an instruction"));
        return None;
    };
    let before = problems.len();
    let flags = Flags::read(spec.name, spec.flags, line, problems);
    let instruction = (spec.read)(&mut Input { name: spec.name, line, flags, escape, problems });
    debug_assert!(instruction.is_some() || problems.len() > before, "{} was refused without a word", spec.name);
    if problems[before..].iter().any(Diagnostic::is_error) {
        return None;
    }
    Some(Command {
        instruction: instruction?,
        text: line.text.trim().to_owned(),
        span: line.span,
        comments: line.comments.clone(),
    })
}

/// Reads the trigger of a base; mistakes in it stand at the FROM line that brought it.
pub(crate) fn read_trigger(text: &str, span: Span, problems: &mut Vec<Diagnostic>) -> Option<Command> {
    let lines = lines::read_trigger(text, span, problems);
    match &lines[..] {
        [line] => read(line, '\\', problems),
        _ => {
            problems.push(Diagnostic::error("onbuild trigger should be a single expression").at(span));
            None
        }
    }
}

impl Command {
    /// Whether it is counted as a step of its stage.
    pub(crate) fn is_step(&self) -> bool {
        matches!(self.instruction, Instruction::Transfer(_) | Instruction::Run(_) | Instruction::Workdir(_))
    }

    /// Names of stages, images and contexts it reads.
    pub(crate) fn sources(&self) -> Vec<&Text> {
        match &self.instruction {
            Instruction::Transfer(transfer) => transfer.from.iter().collect(),
            Instruction::Run(run) => run.mounts.iter().filter_map(|mount| mount.from.as_ref()).collect(),
            _ => Vec::new(),
        }
    }

    /// Applies it to the stage.
    ///
    /// # Errors
    /// What is wrong with it, once its variables are known.
    pub(crate) fn lower(&self, stage: &mut StageRun<'_, '_>) -> Result<(), Diagnostic> {
        match &self.instruction {
            Instruction::Transfer(transfer) => transfer.lower(self, stage),
            Instruction::Arg(arg) => arg.lower(stage),
            Instruction::Cmd(cmd) => cmd.lower(stage),
            Instruction::Entrypoint(entrypoint) => entrypoint.lower(stage),
            Instruction::Env(env) => env.lower(stage),
            Instruction::Expose(expose) => expose.lower(stage),
            Instruction::From(from) => unreachable!("FROM {} starts a stage and is in none", from.base.value),
            Instruction::Healthcheck(health) => health.lower(stage),
            Instruction::Label(label) => label.lower(stage),
            Instruction::Maintainer(maintainer) => maintainer.lower(stage),
            Instruction::OnBuild(trigger) => trigger.lower(stage),
            Instruction::Run(run) => run.lower(self, stage),
            Instruction::Shell(shell) => shell.lower(stage),
            Instruction::StopSignal(signal) => signal.lower(stage),
            Instruction::User(user) => user.lower(stage),
            Instruction::Volume(volume) => volume.lower(stage),
            Instruction::Workdir(workdir) => workdir.lower(self, stage),
        }
    }
}
