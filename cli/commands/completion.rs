//! `rbuild completion`.
//!
//! Words and options come from the command tree; names of images, containers, volumes and networks are asked for when they
//! are needed, by the script, for every command whose argument is called so in its usage.

use std::fmt::Write as _;
use std::process::ExitCode;

use clap_complete::Shell;

use crate::app::App;
use crate::args;
use crate::commands::DONE;
use crate::error::CliError;

/// Print the completion script for a shell
#[derive(Debug, clap::Args)]
pub struct Args {
    #[arg(value_name = "SHELL")]
    shell: Shell,
}

pub async fn run(args: Args, app: &App) -> Result<ExitCode, CliError> {
    let mut tree = args::command_tree();
    let mut script = Vec::new();
    clap_complete::generate(args.shell, &mut tree, "rbuild", &mut script);
    match args.shell {
        Shell::Bash => script.extend_from_slice(bash(&tree).as_bytes()),
        Shell::Fish => script.extend_from_slice(fish(&tree).as_bytes()),
        Shell::Zsh => script = zsh(&String::from_utf8_lossy(&script), &tree).into_bytes(),
        _ => {}
    }
    app.write_out(&script)?;
    DONE
}

/// Things that have names: the beginning of the argument's name in usage, and the command that lists them.
const KINDS: [(&str, &str); 4] = [
    ("IMAGE", "images --format {{.Repository}}:{{.Tag}}"),
    ("CONTAINER", "ps -a --format {{.Names}}"),
    ("VOLUME", "volume ls -q"),
    ("NETWORK", "network ls --format {{.Name}}"),
];

/// Commands, as words, with the commands that list what their arguments name.
fn named(tree: &clap::Command) -> Vec<(Vec<String>, Vec<&'static str>)> {
    fn walk(command: &clap::Command, path: &[String], found: &mut Vec<(Vec<String>, Vec<&'static str>)>) {
        for child in command.get_subcommands() {
            for name in std::iter::once(child.get_name()).chain(child.get_all_aliases()) {
                let path: Vec<String> = path.iter().cloned().chain([name.to_owned()]).collect();
                let values = child.get_positionals().flat_map(|arg| arg.get_value_names().unwrap_or_default());
                let mut lists: Vec<&str> = values
                    .filter_map(|value| KINDS.iter().find(|(kind, _)| value.starts_with(kind)).map(|(_, list)| *list))
                    .collect();
                lists.dedup();
                if !lists.is_empty() {
                    found.push((path.clone(), lists));
                }
                walk(child, &path, found);
            }
        }
    }
    let mut found = Vec::new();
    walk(tree, &[], &mut found);
    found
}

/// A function around clap's own that adds the names.
fn bash(tree: &clap::Command) -> String {
    let mut script = String::from(
        r#"
_rbuild_names() {
    local cur="${COMP_WORDS[COMP_CWORD]}" words="" word lists=() list
    _rbuild "$@"
    [[ "$cur" != -* ]] || return 0
    for word in "${COMP_WORDS[@]:1:COMP_CWORD-1}"; do
        [[ "$word" == -* ]] || words="$words $word"
    done
    case "$words " in
"#,
    );
    script.push_str(&choices(tree));
    script.push_str(
        r#"    esac
    for list in "${lists[@]}"; do
        COMPREPLY+=($(compgen -W "$("$1" $list 2>/dev/null | grep -v '<none>')" -- "$cur"))
    done
}
complete -F _rbuild_names -o bashdefault -o default rbuild
"#,
    );
    script
}

/// The arms of a `case` over the words so far, which say by what commands the names are listed.
fn choices(tree: &clap::Command) -> String {
    let mut named = named(tree);
    // The longest first: `image rm x` is not `image`.
    named.sort_by_key(|(path, _)| std::cmp::Reverse(path.len()));
    let mut arms = String::new();
    for (path, lists) in named {
        let lists: Vec<String> = lists.iter().map(|list| format!("\"{list}\"")).collect();
        let _ = writeln!(arms, "        \" {} \"*) lists=({}) ;;", path.join(" "), lists.join(" "));
    }
    arms
}

/// What clap's own function is called here: the completion system knows the other one by the program's name.
const ZSH_WORDS: &str = "_rbuild_words";
const ZSH_START: &str = "\n_rbuild() {\n";
const ZSH_END: &str = "\nif [ \"$funcstack[1]\" = \"_rbuild\" ]; then\n";

/// A function around clap's own that adds the names. That one changes what it is told about the words, so they are looked
/// at before it.
fn zsh(generated: &str, tree: &clap::Command) -> String {
    let renamed = generated.replacen(ZSH_START, &format!("\n{ZSH_WORDS}() {{\n"), 1);
    let (functions, end) = renamed.split_once(ZSH_END).unwrap_or((&renamed, ""));
    let mut script = format!(
        r#"{functions}
_rbuild() {{
    local program=$words[1] said="" word list ret=1
    local -a lists names
    for word in "${{(@)words[2,CURRENT-1]}}"; do
        [[ "$word" == -* ]] || said="$said $word"
    done
    [[ "$words[CURRENT]" == -* ]] || case "$said " in
"#
    );
    script.push_str(&choices(tree));
    let _ = write!(
        script,
        r#"    esac
    {ZSH_WORDS} "$@" && ret=0
    for list in "${{lists[@]}}"; do
        names=("${{(@f)$($program ${{=list}} 2>/dev/null)}}")
        names=("${{(@)names:#*<none>*}}")
        compadd -a names && ret=0
    done
    return ret
}}
{ZSH_END}{end}"#
    );
    script
}

fn fish(tree: &clap::Command) -> String {
    let mut script = String::new();
    for (path, lists) in named(tree) {
        let seen: Vec<String> = path.iter().map(|word| format!("__fish_seen_subcommand_from {word}")).collect();
        for list in lists {
            let _ = writeln!(
                script,
                "complete -c rbuild -n \"{}\" -f -a \"(rbuild {} 2>/dev/null | string match -v '*<none>*')\"",
                seen.join("; and "),
                list.replace('{', "\\{").replace('}', "\\}")
            );
        }
    }
    script
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn commands_that_take_names_are_found_in_the_tree() {
        let named = named(&args::command_tree());
        let lists = |words: &[&str]| {
            let found = named.iter().find(|(path, _)| path == words);
            found.map(|(_, lists)| lists.iter().map(|list| list.split(' ').next().unwrap()).collect::<Vec<_>>())
        };
        assert_eq!(lists(&["rmi"]), Some(vec!["images"]));
        assert_eq!(lists(&["image", "rm"]), Some(vec!["images"]));
        assert_eq!(lists(&["stop"]), Some(vec!["ps"]));
        assert_eq!(lists(&["container", "logs"]), Some(vec!["ps"]));
        assert_eq!(lists(&["volume", "rm"]), Some(vec!["volume"]));
        assert_eq!(lists(&["login"]), None);
    }

    /// What is put around clap's script fits the script that clap writes.
    #[test]
    fn the_function_of_zsh_goes_around_the_one_of_clap() {
        let mut tree = args::command_tree();
        let mut generated = Vec::new();
        clap_complete::generate(Shell::Zsh, &mut tree, "rbuild", &mut generated);
        let generated = String::from_utf8(generated).unwrap();
        assert_eq!((generated.matches(ZSH_START).count(), generated.matches(ZSH_END).count()), (1, 1));
        let script = zsh(&generated, &tree);
        for (line, times) in [("\n_rbuild() {", 1), ("\n_rbuild_words() {", 1), ("\nif [ \"$funcstack[1]\"", 1)] {
            assert_eq!(script.matches(line).count(), times, "{line}");
        }
        let arm = "        \" image rm \"*) lists=(\"images --format {{.Repository}}:{{.Tag}}\") ;;\n";
        assert!(script.contains(arm));
        assert!(script.ends_with("compdef _rbuild rbuild\nfi\n"), "{}", &script[script.len() - 200..]);
        assert!(script.starts_with("#compdef rbuild\n"));
    }
}
