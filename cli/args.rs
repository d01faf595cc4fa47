//! The command line: the clap root, global options, and docker's manners on top of clap.
//!
//! clap's derive describes the commands; what docker does differently is done here once for all of them, by
//! transforming the described command tree: switches take `=true` and `=false`, a repeated option replaces the
//! earlier one, values may begin with a dash, `-h` is free for commands that want it, and errors have the
//! words that docker's users and scripts know.

use std::ffi::{OsStr, OsString};
use std::path::PathBuf;

use clap::builder::TypedValueParser as _;
use clap::error::{ContextKind, ContextValue, ErrorKind};
use clap::{Arg, ArgAction, CommandFactory, FromArgMatches, Parser};

use crate::commands::Command;
use crate::error::{CliError, exit};
use crate::terminal::clean_line;

/// Build, store and run container images: one binary, no daemon
#[derive(Debug, Parser)]
#[command(name = "rbuild", version, disable_version_flag = true, subcommand_required = true, max_term_width = 110)]
pub struct Cli {
    #[command(flatten)]
    pub globals: Globals,
    #[command(subcommand)]
    pub command: Command,
}

/// The root without its commands.
#[derive(Debug, Parser)]
#[command(name = "rbuild", version, disable_version_flag = true, subcommand_required = true, max_term_width = 110)]
struct Bare {
    #[command(flatten)]
    _globals: Globals,
}

/// Options of every command; they stand before the command's name.
#[derive(Debug, Default, Clone, clap::Args)]
pub struct Globals {
    /// State directory (default: $RBUILD_ROOT, else /var/lib/rbuild for root, else rbuild in the XDG data home)
    #[arg(long, value_name = "DIR")]
    pub root: Option<PathBuf>,
    /// Show what the program does (the same as --log-level debug)
    #[arg(short = 'D', long)]
    pub debug: bool,
    /// How much the program tells about itself on standard error
    #[arg(short = 'l', long, value_name = "LEVEL", value_parser = ["trace", "debug", "info", "warn", "error", "fatal"])]
    pub log_level: Option<String>,
    /// How a new state directory keeps file trees (default: btrfs on btrfs, else overlay where it works)
    #[arg(long, value_name = "DRIVER", value_parser = ["overlay", "overlay2", "btrfs", "vfs"])]
    pub storage_driver: Option<String>,
    /// Directory of files that describe devices (default: /etc/cdi, /var/run/cdi, /etc/buildkit/cdi); may be repeated
    #[arg(long = "cdi-spec-dir", value_name = "DIR")]
    pub cdi_spec_dirs: Vec<PathBuf>,
    /// Print version information and quit
    #[arg(short = 'v', long, action = ArgAction::SetTrue)]
    pub version: bool,
}

/// What the command line asks for.
#[derive(Debug)]
pub enum Parsed {
    Run(Box<Cli>),
    /// Text for standard output, then success: help and version.
    Print(String),
}

/// Parses the arguments (the first is the program's name).
///
/// # Errors
/// Wrong use, in docker's words and with its codes: 125 for a flag that is unknown or has a wrong value, 1 for arguments
/// and commands.
pub fn parse(arguments: Vec<OsString>) -> Result<Parsed, CliError> {
    let tree = tree_for(&arguments);
    let arguments = with_implied_build(&tree, arguments);
    let route = Route::of(&tree, &arguments[1.min(arguments.len())..]);
    if route.version {
        return Ok(Parsed::Print(version_line()));
    }
    if route.path.is_empty() && route.rest.is_none() {
        return Ok(Parsed::Print(help(&command_tree(), &route)));
    }
    // Only the commands on the way are transformed: the whole tree has a thousand options, and starting must be quick.
    match docker_manners(tree, Some(&route.path)).try_get_matches_from(&arguments) {
        Ok(matches) => match Cli::from_arg_matches(&matches) {
            Ok(cli) => Ok(Parsed::Run(Box::new(cli))),
            Err(error) => Err(CliError::usage(clean_line(&error.to_string()), exit::ENGINE)),
        },
        Err(error)
            if matches!(error.kind(), ErrorKind::DisplayHelp | ErrorKind::DisplayHelpOnMissingArgumentOrSubcommand) =>
        {
            Ok(Parsed::Print(help(&command_tree(), &route)))
        }
        Err(error) => Err(in_docker_words(&command_tree(), &route, &error)),
    }
}

/// As much of the command tree as these arguments need: describing the thousand options of all commands takes longer than
/// some commands do. What is no command by its own name gets the whole tree.
fn tree_for(arguments: &[OsString]) -> clap::Command {
    let bare = Bare::command();
    let Some(at) = first_own_word(&bare, arguments) else { return Cli::command() };
    let word = arguments[at].to_string_lossy();
    let wanted = match Command::add(bare, &word) {
        Err(bare) if word != "--help" && word != "-h" && stands_for_build(&word) => Command::add(bare, "build"),
        found => found,
    };
    wanted.unwrap_or_else(|_| Cli::command())
}

/// Whether a first word that is no command's name is an option or a place of `build`.
fn stands_for_build(word: &str) -> bool {
    word.starts_with('-') || word.starts_with('.') || word.contains('/') || std::path::Path::new(word).is_dir()
}

/// The whole command tree as it is written, with its help flags: for help, usage and completion scripts.
pub fn command_tree() -> clap::Command {
    fn of(command: clap::Command) -> clap::Command {
        let names: Vec<String> = command.get_subcommands().map(|c| c.get_name().to_owned()).collect();
        names.into_iter().fold(with_help_flag(command), |command, name| command.mut_subcommand(name, of))
    }
    of(Cli::command())
}

pub fn version_line() -> String {
    format!("rbuild version {}\n", env!("CARGO_PKG_VERSION"))
}

/// `rbuild -t x .` and `rbuild .` mean `rbuild build …`: when the first word that is no global option is an
/// option too, or names a place instead of a command.
fn with_implied_build(root: &clap::Command, mut arguments: Vec<OsString>) -> Vec<OsString> {
    let Some(at) = first_own_word(root, &arguments) else { return arguments };
    let word = arguments[at].to_string_lossy().into_owned();
    let is_command = word == "help" || root.find_subcommand(&word).is_some();
    let is_help = matches!(word.as_str(), "--help" | "-h");
    if !is_command && !is_help && stands_for_build(&word) {
        arguments.insert(at, "build".into());
    }
    arguments
}

/// Index of the first argument that neither is a global option nor a value of one.
fn first_own_word(root: &clap::Command, arguments: &[OsString]) -> Option<usize> {
    let mut at = 1;
    while at < arguments.len() {
        let word = arguments[at].to_string_lossy();
        let (name, has_value) = word.split_once('=').map_or((&*word, false), |(name, _)| (name, true));
        let known = root.get_arguments().find(|arg| is_option(arg, name));
        match known {
            Some(arg) if arg.get_action().takes_values() && !has_value => at += 2,
            Some(_) => at += 1,
            None => return Some(at),
        }
    }
    None
}

fn is_option(arg: &Arg, name: &str) -> bool {
    name.strip_prefix("--").is_some_and(|long| arg.get_long() == Some(long))
        || (name.len() == 2
            && name
                .strip_prefix('-')
                .and_then(|s| s.chars().next())
                .is_some_and(|short| arg.get_short() == Some(short)))
}

/// Which command the arguments are about, found without parsing them.
struct Route {
    /// Names from below the root: `["image", "ls"]`.
    path: Vec<String>,
    /// The first word that should have been a command's name.
    rest: Option<String>,
    version: bool,
}

impl Route {
    fn of(root: &clap::Command, arguments: &[OsString]) -> Self {
        let mut route = Self { path: Vec::new(), rest: None, version: false };
        let (mut command, mut words) = (root, arguments.iter().map(|a| a.to_string_lossy()).peekable());
        while let Some(word) = words.next() {
            let name = word.split('=').next().unwrap_or(&word);
            if let Some(arg) =
                command.get_arguments().find(|arg| is_option(arg, name)).filter(|_| command.has_subcommands())
            {
                route.version |= arg.get_id() == "version" && route.path.is_empty();
                if arg.get_action().takes_values() && !word.contains('=') {
                    words.next();
                }
            } else if command.has_subcommands() {
                if route.path.is_empty() && word == "help" {
                    continue;
                }
                match command.find_subcommand(&*word) {
                    Some(found) => {
                        route.path.push(found.get_name().to_owned());
                        command = found;
                    }
                    None => {
                        route.rest = Some(word.into_owned());
                        break;
                    }
                }
            } else {
                route.rest = Some(word.into_owned());
                break;
            }
        }
        route
    }

    fn command<'a>(&self, root: &'a clap::Command) -> &'a clap::Command {
        self.path.iter().fold(root, |command, name| command.find_subcommand(name).unwrap_or(command))
    }

    /// `rbuild image ls`
    fn name(&self) -> String {
        self.path.iter().fold(String::from("rbuild"), |name, word| name + " " + word)
    }
}

fn help(root: &clap::Command, route: &Route) -> String {
    let mut command = route.command(root).clone().bin_name(route.name()).disable_help_subcommand(true);
    command.render_long_help().to_string()
}

/// clap's tree with docker's conventions, for parsing only; help is rendered from the tree as written. With a `path`
/// only the commands along it are changed.
fn docker_manners(command: clap::Command, path: Option<&[String]>) -> clap::Command {
    let is_on_path = |name: &str| path.is_none_or(|path| path.first().is_some_and(|first| first == name));
    let names: Vec<String> =
        command.get_subcommands().map(|c| c.get_name().to_owned()).filter(|name| is_on_path(name)).collect();
    let mut command = with_help_flag(command).args_override_self(true).infer_long_args(false).mut_args(docker_option);
    for name in names {
        let rest = path.map(|path| &path[1..]);
        command = command.mut_subcommand(name, |inner| docker_manners(inner, rest));
    }
    command
}

fn docker_option(arg: Arg) -> Arg {
    match arg.get_action() {
        ArgAction::SetTrue => arg
            .action(ArgAction::Set)
            .num_args(0..=1)
            .require_equals(true)
            .default_missing_value("true")
            .default_value("false")
            .value_parser(clap::builder::StringValueParser::new().try_map(|s| go_bool(&s))),
        ArgAction::Set | ArgAction::Append if !arg.is_positional() && arg.get_num_args().is_none() => {
            arg.allow_hyphen_values(true)
        }
        _ => arg,
    }
}

/// `--help`, and `-h` where the command has no other use for it.
fn with_help_flag(command: clap::Command) -> clap::Command {
    let taken = command.get_arguments().any(|arg| arg.get_short() == Some('h'));
    let flag = Arg::new("help").long("help").action(ArgAction::Help).help("Print help");
    command.disable_help_flag(true).arg(if taken { flag } else { flag.short('h') })
}

/// What Go's `strconv.ParseBool` takes.
fn go_bool(text: &str) -> Result<bool, String> {
    match text {
        "1" | "t" | "T" | "true" | "TRUE" | "True" => Ok(true),
        "0" | "f" | "F" | "false" | "FALSE" | "False" => Ok(false),
        _ => Err("invalid syntax".into()),
    }
}

fn in_docker_words(root: &clap::Command, route: &Route, error: &clap::Error) -> CliError {
    let context = |kind| match error.get(kind) {
        Some(ContextValue::String(text)) => Some(text.clone()),
        Some(ContextValue::Strings(texts)) => texts.first().cloned(),
        _ => None,
    };
    let name = route.name();
    let command = route.command(root);
    let see = format!("See '{name} --help'.");
    let flag = context(ContextKind::InvalidArg).unwrap_or_default();
    let message = match error.kind() {
        ErrorKind::UnknownArgument if flag.starts_with("--") => {
            format!("unknown flag: {}\n{see}", flag.split('=').next().unwrap_or(&flag))
        }
        ErrorKind::UnknownArgument if flag.starts_with('-') && flag != "-" => {
            let short = flag.chars().nth(1).unwrap_or('-');
            format!("unknown shorthand flag: '{short}' in {flag}\n{see}")
        }
        ErrorKind::InvalidSubcommand | ErrorKind::UnknownArgument if command.has_subcommands() => {
            return unknown_command(command, route);
        }
        ErrorKind::UnknownArgument | ErrorKind::TooManyValues => return wrong_count(command, &name),
        ErrorKind::MissingRequiredArgument if missing_is_option(&flag) => {
            let message = format!("required flag(s) \"{}\" not set\n{see}", flag_name(&flag));
            return CliError::usage(message, exit::FAILURE);
        }
        ErrorKind::MissingRequiredArgument => return wrong_count(command, &name),
        ErrorKind::InvalidValue
        | ErrorKind::ValueValidation
        | ErrorKind::NoEquals
        | ErrorKind::TooFewValues
        | ErrorKind::WrongNumberOfValues => {
            let value = context(ContextKind::InvalidValue).unwrap_or_default();
            if value.is_empty() && error.kind() == ErrorKind::InvalidValue {
                format!("flag needs an argument: {}\n{see}", flag_name_dashed(&flag))
            } else if flag.starts_with('-') {
                format!(
                    "invalid argument \"{value}\" for \"{}\" flag: {}\n{see}",
                    both_names(command, root, &flag),
                    why(error, &context)
                )
            } else {
                format!("invalid argument \"{value}\": {}\n{see}", why(error, &context))
            }
        }
        _ => {
            let text = error.to_string();
            let first = text.lines().next().unwrap_or_default();
            format!("{}\n{see}", first.strip_prefix("error: ").unwrap_or(first))
        }
    };
    let message: Vec<String> = message.lines().map(clean_line).collect();
    CliError::usage(message.join("\n"), exit::ENGINE)
}

fn why(error: &clap::Error, context: &dyn Fn(ContextKind) -> Option<String>) -> String {
    if let Some(source) = std::error::Error::source(error) {
        return source.to_string();
    }
    match error.get(ContextKind::ValidValue) {
        Some(ContextValue::Strings(values)) => format!("must be one of {}", values.join(", ")),
        _ => context(ContextKind::ValidValue).unwrap_or_else(|| "invalid value".into()),
    }
}

/// `--tag <NAME>` as clap writes it, to `tag`.
fn flag_name(flag: &str) -> String {
    flag_name_dashed(flag).trim_start_matches('-').to_owned()
}

fn flag_name_dashed(flag: &str) -> String {
    flag.split([' ', '=', '[']).next().unwrap_or(flag).to_owned()
}

fn missing_is_option(flag: &str) -> bool {
    flag.starts_with('-')
}

/// `-t, --tag`, the way docker names a flag whose value is wrong.
fn both_names(command: &clap::Command, root: &clap::Command, flag: &str) -> String {
    let dashed = flag_name_dashed(flag);
    let found = command.get_arguments().chain(root.get_arguments()).find(|arg| is_option(arg, &dashed));
    match found.map(|arg| (arg.get_short(), arg.get_long())) {
        Some((Some(short), Some(long))) => format!("-{short}, --{long}"),
        _ => dashed,
    }
}

fn unknown_command(command: &clap::Command, route: &Route) -> CliError {
    let word = clean_line(route.rest.as_deref().unwrap_or_default());
    let name = route.name();
    let inner = route.path.join(" ");
    let full = if inner.is_empty() { word.clone() } else { format!("{inner} {word}") };
    let mut text = format!("rbuild: '{full}' is not a rbuild command.\nSee '{name} --help'");
    let candidates = command.get_subcommands().map(clap::Command::get_name);
    if let Some(near) = nearest(&word, candidates) {
        text.push_str(&format!("\n\nDid you mean this?\n\t{near}"));
    }
    CliError::usage(text, exit::FAILURE)
}

/// Docker's sentence about the number of arguments, from the positionals the command has.
fn wrong_count(command: &clap::Command, name: &str) -> CliError {
    let positionals: Vec<&Arg> = command.get_positionals().collect();
    let least = positionals.iter().filter(|a| a.is_required_set()).count();
    let open = positionals
        .iter()
        .any(|a| a.get_num_args().is_some_and(|n| n.max_values() > 1) || matches!(a.get_action(), ArgAction::Append));
    let plural = |n: usize| if n == 1 { "argument" } else { "arguments" };
    let demand = match (least, positionals.len(), open) {
        (_, 0, _) => "accepts no arguments".to_owned(),
        (n, _, true) => format!("requires at least {n} {}", plural(n)),
        (n, most, false) if n == most => format!("requires exactly {n} {}", plural(n)),
        (0, most, false) => format!("requires at most {most} {}", plural(most)),
        (n, most, false) => format!("requires at least {n} and at most {most} arguments"),
    };
    let usage = command.clone().bin_name(name).render_usage().to_string();
    let about = command.get_about().map(|a| format!("\n\n{a}")).unwrap_or_default();
    let message = format!("\"{name}\" {demand}.\nSee '{name} --help'.\n\n{usage}{about}");
    CliError::usage(message.lines().map(clean_line).collect::<Vec<_>>().join("\n"), exit::FAILURE)
}

/// The candidate that is at most two edits away, or that `word` begins.
fn nearest<'a>(word: &str, candidates: impl Iterator<Item = &'a str>) -> Option<&'a str> {
    candidates
        .map(|c| (edits(word, c), c))
        .filter(|(n, c)| *n <= 2.min(c.len() / 2) || (word.len() > 2 && c.starts_with(word)))
        .min()
        .map(|(_, c)| c)
}

/// Levenshtein distance.
fn edits(a: &str, b: &str) -> usize {
    let b: Vec<char> = b.chars().collect();
    let mut row: Vec<usize> = (0..=b.len()).collect();
    for (i, x) in a.chars().enumerate() {
        let mut corner = row[0];
        row[0] = i + 1;
        for (j, &y) in b.iter().enumerate() {
            let above = row[j + 1];
            row[j + 1] = (corner + usize::from(x != y)).min(above + 1).min(row[j] + 1);
            corner = above;
        }
    }
    row[b.len()]
}

/// A `KEY=VALUE` or bare `KEY` argument.
pub fn key_value(text: &OsStr) -> (String, Option<String>) {
    let text = text.to_string_lossy();
    match text.split_once('=') {
        Some((key, value)) => (key.to_owned(), Some(value.to_owned())),
        None => (text.into_owned(), None),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn given(line: &str) -> Vec<OsString> {
        std::iter::once("rbuild").chain(line.split_whitespace()).map(OsString::from).collect()
    }

    fn refused(line: &str) -> (String, u8) {
        match parse(given(line)) {
            Err(error) => (error.message, error.code),
            Ok(other) => panic!("{line}: {other:?}"),
        }
    }

    #[test]
    fn the_tree_is_sound() {
        command_tree().debug_assert();
        docker_manners(Cli::command(), None).debug_assert();
    }

    #[test]
    fn a_part_of_the_tree_is_as_in_the_whole() {
        let whole = command_tree();
        for name in whole.get_subcommands().map(clap::Command::get_name) {
            let mut part = tree_for(&given(name));
            assert_eq!(part.get_subcommands().count(), 1, "{name}");
            let shown = |tree: &mut clap::Command| {
                let command = tree.find_subcommand_mut(name).unwrap();
                let aliases: Vec<String> = command.get_all_aliases().map(String::from).collect();
                let help = with_help_flag(std::mem::take(command)).render_long_help().to_string();
                (aliases, help)
            };
            assert_eq!(shown(&mut part), shown(&mut Cli::command()), "{name}");
        }
        let options = |tree: clap::Command| tree.get_arguments().map(|arg| format!("{arg:?}")).collect::<Vec<_>>();
        assert_eq!(options(Bare::command()), options(Cli::command()));
    }

    #[test]
    fn build_is_implied() {
        for (line, want) in [
            ("-t x .", "rbuild build -t x ."),
            ("--root /r -t x .", "rbuild --root /r build -t x ."),
            ("--root=/r -D .", "rbuild --root=/r -D build ."),
            ("./dir", "rbuild build ./dir"),
            ("-", "rbuild build -"),
            ("build .", "rbuild build ."),
            ("version", "rbuild version"),
            ("--help", "rbuild --help"),
            ("nonsense", "rbuild nonsense"),
        ] {
            let words = with_implied_build(&Cli::command(), given(line));
            let words: Vec<_> = words.iter().map(|w| w.to_string_lossy()).collect();
            assert_eq!(words.join(" "), want);
        }
    }

    #[test]
    fn usage_errors_speak_docker() {
        for (line, want) in [
            ("run", "\"rbuild run\" requires at least 1 argument."),
            ("build --nope .", "unknown flag: --nope"),
            ("build --nope=x .", "unknown flag: --nope"),
            ("build -Z .", "unknown shorthand flag: 'Z' in -Z"),
            ("build", "\"rbuild build\" requires exactly 1 argument."),
            ("build a b", "\"rbuild build\" requires exactly 1 argument."),
            ("build . -t", "flag needs an argument: --tag"),
            ("build --jobs x .", "invalid argument \"x\" for \"-j, --jobs\" flag: "),
            ("build --no-cache=maybe .", "invalid argument \"maybe\" for \"--no-cache\" flag: invalid syntax"),
            ("biuld .", "rbuild: 'biuld' is not a rbuild command.\nSee 'rbuild --help'\n\nDid you mean this?\n\tbuild"),
            ("image nonsense", "rbuild: 'image nonsense' is not a rbuild command.\nSee 'rbuild image --help'"),
        ] {
            let (message, code) = refused(line);
            assert!(message.starts_with(want), "{line}: {message}");
            let is_flag = ["unknown", "flag needs", "invalid argument"].iter().any(|start| want.starts_with(start));
            assert_eq!(code, if is_flag { 125 } else { 1 }, "{line}");
        }
    }

    #[test]
    fn help_and_version_are_output() {
        for (line, want) in [
            ("build --help", "--build-arg"),
            ("help build", "--build-arg"),
            ("", "Usage:"),
            ("--version", "rbuild version"),
        ] {
            match parse(given(line)) {
                Ok(Parsed::Print(text)) => assert!(text.contains(want), "{line}: {text}"),
                other => panic!("{line}: {other:?}"),
            }
        }
    }
}
