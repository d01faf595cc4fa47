//! Arguments of the build: predefined ones, those before the first FROM, and the caller's.

use std::collections::HashSet;

use super::env::Env;
use super::{OnePlatform, stage, written};
use crate::instructions::Instruction;
use crate::syntax::words::{Budget, Lexer, Variables};
use crate::{Diagnostic, Dockerfile, Facts, LowerOptions, lint};

/// Arguments that nobody asked for are often mistyped.
pub(super) fn unused_args(file: &Dockerfile, options: &LowerOptions) -> Option<Diagnostic> {
    let in_stages =
        file.stages.iter().flat_map(|stage| &stage.commands).filter_map(|command| match &command.instruction {
            Instruction::Arg(arg) => Some(arg),
            _ => None,
        });
    let declared: HashSet<&str> =
        file.global_args.iter().chain(in_stages).flat_map(|arg| &arg.0).map(|one| one.name.as_str()).collect();
    let predefined = |name: &str| {
        name.starts_with("BUILDKIT_")
            || name == EPOCH
            || is_proxy(name)
            || ["TARGET", "BUILD"]
                .iter()
                .any(|start| name.strip_prefix(start).is_some_and(|end| PLATFORM_ARGS.contains(&end)))
    };
    let unused: Vec<&str> = options
        .build_args
        .keys()
        .map(String::as_str)
        .filter(|name| !declared.contains(name) && !predefined(name))
        .collect();
    if unused.is_empty() {
        return None;
    }
    let message = format!("one or more build-args [{}] were not consumed", unused.join(" "));
    let near = unused.iter().find_map(|name| crate::nearest(name, declared.iter().copied()));
    let warning = Diagnostic::warning(message);
    Some(match near {
        Some(near) => warning.hint(format!("the file has ARG {near}")),
        None => warning,
    })
}

/// Bases whose names make no sense with the defaults of their arguments alone.
pub(super) fn invalid_defaults(file: &Dockerfile, options: &LowerOptions) -> Vec<Diagnostic> {
    let mut plain = LowerOptions::new(options.build_platform.clone());
    plain.platforms.clone_from(&options.platforms);
    let (mut budget, mut mistakes) = (Budget::new(), Vec::new());
    let globals = for_first_platform(file, &plain, &mut budget, &mut mistakes);
    if !mistakes.is_empty() {
        return Vec::new();
    }
    let lexer = Lexer::new(file.escape);
    lint::invalid_defaults(&file.stages, |text| {
        lexer.expand(&text.value, &globals, &mut budget).ok().map(|expanded| expanded.text)
    })
}

/// The options with the build argument `SOURCE_DATE_EPOCH=context` replaced by what it stands for: the date of the main
/// context, or nothing where that has none, as a directory of this machine has not. `None` when it says something else.
pub(super) fn dated(options: &LowerOptions) -> Option<LowerOptions> {
    if options.build_args.get(EPOCH).map(String::as_str) != Some(CONTEXT) {
        return None;
    }
    let mut dated = options.clone();
    dated.build_args.insert(EPOCH.to_owned(), options.context_date.map(|date| date.to_string()).unwrap_or_default());
    Some(dated)
}

/// The arguments before the first FROM, for the first platform; one whose default is a mistake has no value.
pub(crate) fn globals(file: &Dockerfile, options: &LowerOptions) -> Env {
    for_first_platform(file, options, &mut Budget::new(), &mut Vec::new())
}

fn for_first_platform(
    file: &Dockerfile,
    options: &LowerOptions,
    budget: &mut Budget,
    mistakes: &mut Vec<Diagnostic>,
) -> Env {
    let platform = options.platforms.first().unwrap_or(&options.build_platform).clone().normalized();
    let (facts, platform) = (&Facts::default(), &platform);
    OnePlatform { file, options, facts, platform, explicit: false, multiplatform: false }.globals(budget, mistakes)
}

const EPOCH: &str = "SOURCE_DATE_EPOCH";
/// The value that asks for the date of the main context.
const CONTEXT: &str = "context";
const PLATFORM_ARGS: [&str; 6] = ["PLATFORM", "OS", "OSVERSION", "ARCH", "VARIANT", "STAGE"];
const PROXIES: [&str; 5] = ["http_proxy", "https_proxy", "ftp_proxy", "no_proxy", "all_proxy"];

fn is_proxy(name: &str) -> bool {
    PROXIES.iter().any(|proxy| proxy.eq_ignore_ascii_case(name))
}

impl OnePlatform<'_> {
    /// Predefined arguments, then those before the first FROM; the caller's values go before defaults.
    pub(super) fn globals(&self, budget: &mut Budget, problems: &mut Vec<Diagnostic>) -> Env {
        let mut globals = Env::default();
        let (build, target) = (self.options.build_platform.clone().normalized(), self.platform);
        let optional = |text: &Option<String>| text.clone().unwrap_or_default();
        for (side, platform) in [("BUILD", &build), ("TARGET", target)] {
            let values = [
                ("PLATFORM", platform.to_string()),
                ("OS", platform.os.clone()),
                ("OSVERSION", optional(&platform.os_version)),
                ("ARCH", platform.architecture.clone()),
                ("VARIANT", optional(&platform.variant)),
            ];
            for (name, value) in values {
                globals.set(&format!("{side}{name}"), &value);
            }
        }
        let last = self.file.stages.last().and_then(|stage| stage.name()).unwrap_or("default");
        globals.set("TARGETSTAGE", self.options.target.as_deref().unwrap_or(last));
        let given: Vec<String> =
            globals.names().filter(|name| self.options.build_args.contains_key(*name)).map(str::to_owned).collect();
        for name in given {
            globals.set(&name, &self.options.build_args[&name]);
        }
        for declaration in self.file.global_args.iter().flat_map(|arg| &arg.0) {
            let value = match (self.options.build_args.get(&declaration.name), &declaration.default) {
                (Some(given), _) => Some(given.clone()),
                (None, None) => None,
                (None, Some(default)) => match Lexer::new(self.file.escape).expand(&default.value, &globals, budget) {
                    Ok(expanded) => Some(expanded.text),
                    Err(error) => {
                        let message = format!("failed to process {}: {error}", stage::shown(&default.value));
                        problems.push(Diagnostic::error(message).at(default.span));
                        None
                    }
                },
            };
            if let Some(value) = value {
                globals.set(&declaration.name, &value);
            }
        }
        if globals.value(EPOCH) == Some(CONTEXT) {
            globals.set(EPOCH, &self.options.context_date.map(|date| date.to_string()).unwrap_or_default());
        }
        globals
    }

    /// The caller's word, else the build argument, else the file's default.
    pub(super) fn epoch(&self, globals: &Env) -> Result<Option<i64>, Diagnostic> {
        if self.options.source_date_epoch.is_some() {
            return Ok(self.options.source_date_epoch);
        }
        let given = self.options.build_args.get(EPOCH).map(String::as_str);
        match given.or_else(|| globals.value(EPOCH)).unwrap_or_default() {
            "" => Ok(None),
            text => match text.parse::<i64>() {
                Ok(epoch) if written(epoch).is_some() => Ok(Some(epoch)),
                _ if self.options.contexts.contains_key(text)
                    || self.file.stages.iter().any(|stage| stage.name() == Some(text)) =>
                {
                    let message =
                        format!("SOURCE_DATE_EPOCH={text}: the date of a stage or a named context is not supported");
                    Err(Diagnostic::error(message)
                        .hint("give seconds since 1970, or context for the date of the main context"))
                }
                _ => Err(Diagnostic::error(format!("invalid SOURCE_DATE_EPOCH: {text}"))
                    .expected("seconds since 1970, or context")),
            },
        }
    }

    pub(super) fn proxy_env(&self) -> Vec<String> {
        let mut env = Env::default();
        for (name, value) in self.options.build_args.iter().filter(|(name, value)| is_proxy(name) && !value.is_empty())
        {
            env.set(&name.to_uppercase(), value);
            env.set(&name.to_lowercase(), value);
        }
        env.strings()
    }
}
