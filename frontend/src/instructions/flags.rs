//! Flags of instructions: `--name`, `--name=value`.

use super::Text;
use crate::Diagnostic;
use crate::syntax::lines::Line;

/// A row of an instruction's flag table.
#[derive(Debug)]
pub(crate) struct FlagSpec {
    pub(crate) name: &'static str,
    /// What it does, for the hint when a flag is mistyped.
    pub(crate) help: &'static str,
    pub(crate) kind: FlagKind,
}

/// What value a flag takes.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum FlagKind {
    /// Nothing, `true` or `false`.
    Switch,
    /// A value, once.
    Text,
    /// A value, as often as wanted.
    Texts,
}

/// The flags of one line.
#[derive(Debug, Clone, Default)]
pub(crate) struct Flags {
    values: Vec<(&'static str, Text)>,
    /// Each name once.
    seen: Vec<&'static str>,
}

impl Flags {
    /// Reads the flags of a line by its instruction's table.
    pub(crate) fn read(
        instruction: &str,
        specs: &'static [FlagSpec],
        line: &Line,
        problems: &mut Vec<Diagnostic>,
    ) -> Flags {
        let mut flags = Flags::default();
        for word in &line.head.flags {
            let span = line.span_of(word.range.clone());
            match flags.accept(instruction, specs, &word.text) {
                Ok((name, value)) => {
                    flags.values.push((name, Text { value, span }));
                    if !flags.seen.contains(&name) {
                        flags.seen.push(name);
                    }
                }
                Err(problem) => problems.push(problem.at(span)),
            }
        }
        flags
    }

    fn accept(
        &self,
        instruction: &str,
        specs: &'static [FlagSpec],
        word: &str,
    ) -> Result<(&'static str, String), Diagnostic> {
        let (written, value) = match word.split_once('=') {
            Some((name, value)) => (name, Some(value)),
            None => (word, None),
        };
        let bare = written.strip_prefix("--").unwrap_or(written);
        let Some(spec) = specs.iter().find(|spec| spec.name == bare) else {
            return Err(unknown(instruction, specs, written, bare));
        };
        if spec.kind != FlagKind::Texts && self.seen.contains(&spec.name) {
            return Err(Diagnostic::error(format!("duplicate flag specified: {written}")));
        }
        let missing = || Diagnostic::error(format!("missing a value on flag: {written}"));
        let value = match (spec.kind, value) {
            (FlagKind::Switch, None) => "true".to_owned(),
            (FlagKind::Switch, Some(value)) => match value.to_ascii_lowercase().as_str() {
                "" => return Err(missing()),
                bool @ ("true" | "false") => bool.to_owned(),
                _ => {
                    let message = format!("expecting boolean value for flag {written}, not: {value}");
                    return Err(Diagnostic::error(message).expected("true or false"));
                }
            },
            (_, None) => return Err(missing().expected(format!("{written}=<value>"))),
            (_, Some(value)) => value.to_owned(),
        };
        Ok((spec.name, value))
    }

    pub(crate) fn get(&self, name: &str) -> Option<&Text> {
        self.values.iter().find(|(n, _)| *n == name).map(|(_, value)| value)
    }

    pub(crate) fn take(&self, name: &str) -> Option<Text> {
        self.get(name).cloned()
    }

    pub(crate) fn all(&self, name: &str) -> Vec<Text> {
        self.values.iter().filter(|(n, _)| *n == name).map(|(_, value)| value.clone()).collect()
    }

    pub(crate) fn switch(&self, name: &str) -> Option<bool> {
        self.get(name).map(|text| text.value == "true")
    }
}

fn unknown(instruction: &str, specs: &'static [FlagSpec], written: &str, bare: &str) -> Diagnostic {
    let names = || specs.iter().map(|spec| spec.name);
    let problem = Diagnostic::error(format!("unknown flag: {written}")).suggest(bare, names());
    match crate::nearest(bare, names()).and_then(|near| specs.iter().find(|spec| spec.name == near)) {
        Some(near) => problem.hint(format!("--{} {}", near.name, near.help)),
        None if specs.is_empty() => problem.hint(format!("{instruction} has no flags")),
        None => {
            let all: Vec<String> = names().map(|name| format!("--{name}")).collect();
            problem.hint(format!("{instruction} has {}", all.join(", ")))
        }
    }
}
