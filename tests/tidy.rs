//! What the design promises about the source itself: who may import whom, where `unsafe` and the environment are,
//! that no test is asleep. A broken promise here is a failing test, not a remark in a review.

use std::collections::{BTreeMap, BTreeSet};
use std::path::{Path, PathBuf};
use std::process::Command;

use serde_json::Value;

/// Each crate of ours and what it may import of the others: the table of ARCHITECTURE.md.
const MAY_IMPORT: &[(&str, &[&str])] = &[
    ("rbuild-oci", &[]),
    ("rbuild-graph", &["oci"]),
    ("rbuild-frontend", &["oci", "graph"]),
    ("rbuild-solver", &["graph"]),
    ("rbuild-cache", &["oci", "solver", "store", "registry"]),
    ("rbuild-store", &["oci"]),
    ("rbuild-registry", &["oci", "store"]),
    ("rbuild-runtime", &["oci", "store"]),
    ("rbuild-executor", &["oci", "graph", "solver", "store", "registry", "runtime"]),
    ("rbuild-engine", &["oci", "graph", "frontend", "solver", "cache", "store", "registry", "runtime", "executor"]),
    ("rbuild", &["oci", "engine"]),
];

/// Crates that must stay usable without an async runtime.
const SYNC: [&str; 3] = ["rbuild-oci", "rbuild-graph", "rbuild-frontend"];

fn root() -> &'static Path {
    Path::new(env!("CARGO_MANIFEST_DIR"))
}

fn metadata(arguments: &[&str]) -> Value {
    let output = Command::new(env!("CARGO"))
        .args(["metadata", "--format-version", "1", "--offline"])
        .args(arguments)
        .current_dir(root())
        .output()
        .expect("cargo runs");
    assert!(output.status.success(), "{}", String::from_utf8_lossy(&output.stderr));
    serde_json::from_slice(&output.stdout).expect("cargo metadata is JSON")
}

fn list<'a>(value: &'a Value, member: &str) -> impl Iterator<Item = &'a Value> {
    value[member].as_array().into_iter().flatten()
}

fn text<'a>(value: &'a Value, member: &str) -> &'a str {
    value[member].as_str().unwrap_or_default()
}

#[test]
fn crates_import_only_what_the_table_allows() {
    let metadata = metadata(&["--no-deps"]);
    let mut seen = BTreeSet::new();
    for package in list(&metadata, "packages") {
        let name = text(package, "name");
        seen.insert(name.to_owned());
        let Some((_, allowed)) = MAY_IMPORT.iter().find(|(known, _)| *known == name) else {
            panic!("{name} is not in the table of crates: add it to ARCHITECTURE.md and here, or do without it");
        };
        for dependency in list(package, "dependencies").filter(|d| d["kind"] != "dev") {
            if let Some(ours) = text(dependency, "name").strip_prefix("rbuild-") {
                assert!(
                    allowed.contains(&ours),
                    "{name} imports rbuild-{ours}, which the table of crates does not allow"
                );
            }
        }
    }
    let known: BTreeSet<String> = MAY_IMPORT.iter().map(|(name, _)| (*name).to_owned()).collect();
    assert_eq!(seen, known, "the table names crates that do not exist");
}

#[test]
fn the_architecture_page_has_the_same_table() {
    let page = std::fs::read_to_string(root().join("ARCHITECTURE.md")).expect("ARCHITECTURE.md");
    for (name, allowed) in MAY_IMPORT {
        let short = if *name == "rbuild" { "cli" } else { name.strip_prefix("rbuild-").unwrap_or(name) };
        let row = page.lines().find(|line| line.starts_with(&format!("| `{short}` |")));
        let row = row.unwrap_or_else(|| panic!("ARCHITECTURE.md has no row for {short}"));
        let cell = row.split('|').nth(2).unwrap_or_default();
        let named: BTreeSet<&str> =
            cell.split_whitespace().map(|word| word.trim_matches('`')).filter(|w| *w != "—").collect();
        assert_eq!(named, allowed.iter().copied().collect(), "imports of {short} in ARCHITECTURE.md");
    }
}

#[test]
fn text_and_graph_crates_pull_in_no_async_runtime() {
    let metadata = metadata(&["--filter-platform", "x86_64-unknown-linux-gnu"]);
    let names: BTreeMap<&str, &str> = list(&metadata, "packages").map(|p| (text(p, "id"), text(p, "name"))).collect();
    let mut normal: BTreeMap<&str, Vec<&str>> = BTreeMap::new();
    for node in list(&metadata["resolve"], "nodes") {
        let dependencies = list(node, "deps").filter(|d| list(d, "dep_kinds").any(|kind| kind["kind"].is_null()));
        normal.insert(text(node, "id"), dependencies.map(|d| text(d, "pkg")).collect());
    }
    for start in SYNC {
        let id = names.iter().find(|(_, name)| **name == start).map(|(id, _)| *id).expect("a crate of ours");
        let (mut reached, mut open) = (BTreeSet::new(), vec![id]);
        while let Some(id) = open.pop() {
            if reached.insert(id) {
                open.extend(normal.get(id).into_iter().flatten());
            }
        }
        let found = reached.iter().find(|id| names.get(**id) == Some(&"tokio"));
        assert!(found.is_none(), "{start} pulls in tokio");
    }
}

/// A source file of ours, and its code without comments, insides of strings and the tests at its end.
struct Source {
    path: String,
    text: String,
    code: String,
}

impl Source {
    fn folder(&self) -> &str {
        self.path.split('/').next().unwrap_or_default()
    }

    /// Test code may do what libraries may not.
    fn is_test(&self) -> bool {
        let parts = ["/tests/", "/testing/", "/benches/", "/examples/"];
        let is_below = parts.iter().any(|part| format!("/{}", self.path).contains(part));
        is_below || self.path.ends_with("/tests.rs") || self.path.ends_with("/testing.rs")
    }
}

fn sources() -> Vec<Source> {
    let mut found = Vec::new();
    let mut open: Vec<PathBuf> = vec![root().to_owned()];
    while let Some(directory) = open.pop() {
        for entry in std::fs::read_dir(&directory).expect("a readable directory") {
            let path = entry.expect("an entry").path();
            let name = path.file_name().unwrap_or_default().to_string_lossy().into_owned();
            if path.is_dir() && !path.is_symlink() {
                if name != "target" && !name.starts_with('.') && name != "testdata" {
                    open.push(path);
                }
            } else if name.ends_with(".rs") {
                let text = std::fs::read_to_string(&path).expect("UTF-8 source");
                let path = path.strip_prefix(root()).expect("below the root").to_string_lossy().into_owned();
                let code = code_of(&text);
                found.push(Source { path, text, code });
            }
        }
    }
    assert!(found.len() > 20, "the sources are where this test looks");
    found
}

/// The code of a file up to its test module, with comments and strings blanked.
fn code_of(text: &str) -> String {
    let mut code = String::with_capacity(text.len());
    let mut rest = text.split("\n#[cfg(test)]\nmod ").next().unwrap_or(text);
    while let Some(c) = rest.chars().next() {
        let skip = if rest.starts_with("//") {
            rest.find('\n').unwrap_or(rest.len())
        } else if rest.starts_with("/*") {
            rest.find("*/").map_or(rest.len(), |n| n + 2)
        } else if let Some(hashes) = raw_string(rest) {
            let end = format!("\"{}", "#".repeat(hashes));
            let start = 2 + hashes;
            rest[start..].find(&end).map_or(rest.len(), |n| start + n + end.len())
        } else if c == '"' {
            string_end(rest)
        } else if rest.starts_with("'\"'") {
            3
        } else {
            code.push(c);
            rest = &rest[c.len_utf8()..];
            continue;
        };
        code.extend(rest[..skip].chars().filter(|c| *c == '\n'));
        rest = &rest[skip..];
    }
    code
}

/// The number of `#` when `rest` begins a raw string.
fn raw_string(rest: &str) -> Option<usize> {
    let after = rest.strip_prefix('r')?;
    let hashes = after.bytes().take_while(|b| *b == b'#').count();
    after[hashes..].starts_with('"').then_some(hashes)
}

fn string_end(rest: &str) -> usize {
    let bytes = rest.as_bytes();
    let mut at = 1;
    while at < bytes.len() {
        match bytes[at] {
            b'\\' => at += 2,
            b'"' => return at + 1,
            _ => at += 1,
        }
    }
    rest.len()
}

fn lines_with(source: &Source, words: &[&str]) -> Vec<String> {
    let lines = source.code.lines().enumerate();
    let found =
        lines.filter(|(_, line)| words.iter().any(|word| contains_word(&line.replace("std::env::consts", ""), word)));
    found.map(|(n, line)| format!("{}:{}: {}", source.path, n + 1, line.trim())).collect()
}

/// Whether `line` has `word` with no name directly before it.
fn contains_word(line: &str, word: &str) -> bool {
    line.match_indices(word).any(|(at, _)| !line[..at].ends_with(|c: char| c.is_alphanumeric() || c == '_'))
}

fn manifests() -> Vec<(String, String)> {
    let metadata = metadata(&["--no-deps"]);
    let read = |package: &Value| {
        let path = text(package, "manifest_path");
        (text(package, "name").to_owned(), std::fs::read_to_string(path).expect("a manifest"))
    };
    list(&metadata, "packages").map(read).collect()
}

#[test]
fn unsafe_lives_in_runtime() {
    let words = ["unsafe {", "unsafe fn", "unsafe impl", "unsafe extern", "unsafe(", "allow(unsafe_code"];
    let sources = sources();
    let found: Vec<String> =
        sources.iter().filter(|s| s.folder() != "runtime").flat_map(|s| lines_with(s, &words)).collect();
    assert!(found.is_empty(), "unsafe code outside runtime:\n{}", found.join("\n"));
    for (package, manifest) in manifests() {
        assert!(manifest.contains("[lints]\nworkspace = true"), "{package} does not take the workspace's lints");
    }
}

#[test]
fn libraries_print_nothing_and_read_no_environment() {
    let words = [
        "println!",
        "eprintln!",
        "print!",
        "eprint!",
        "dbg!",
        "std::env::",
        "env::var",
        "env::args",
        "io::stdout(",
        "io::stderr(",
    ];
    let sources = sources();
    let libraries = sources.iter().filter(|s| s.folder() != "cli" && !s.is_test() && s.path.contains("/src/"));
    let found = libraries.flat_map(|s| lines_with(s, &words));
    // The helper is a program in the program: how it was started is its only argument.
    let is_helper_entry =
        |line: &String| line.starts_with("runtime/") && line.contains("env::args_os().next()? != MARKER");
    let found: Vec<String> = found.filter(|line| !is_helper_entry(line)).collect();
    assert!(found.is_empty(), "libraries print or read the environment:\n{}", found.join("\n"));
    let settings = "cli/settings.rs";
    let program = sources.iter().filter(|s| s.folder() == "cli" && s.path != settings);
    let found: Vec<String> = program.flat_map(|s| lines_with(s, &["env::var", "env::home_dir"])).collect();
    assert!(found.is_empty(), "only {settings} reads the environment:\n{}", found.join("\n"));
}

#[test]
fn nothing_is_unfinished_and_no_test_sleeps() {
    for source in sources().iter().filter(|s| s.path != "tests/tidy.rs") {
        let found = lines_with(source, &["todo!(", "unimplemented!(", "dbg!("]);
        assert!(found.is_empty(), "unfinished code:\n{}", found.join("\n"));
        assert!(!source.text.contains("#[ignore"), "{} has an ignored test", source.path);
    }
}

#[test]
fn every_crate_says_what_it_is() {
    let metadata = metadata(&["--no-deps"]);
    for package in list(&metadata, "packages") {
        let is_main = |t: &&Value| list(t, "kind").any(|kind| kind == "lib" || kind == "bin");
        let target = list(package, "targets").find(is_main).expect("a library or a program");
        let source = std::fs::read_to_string(text(target, "src_path")).expect("its source");
        let lines = source.lines().take_while(|line| line.starts_with("//!")).count();
        assert!(lines >= 2, "the crate comment of {} does not say what it is and why", text(package, "name"));
    }
}

/// A name in the table of `docs/security.md` that no test has would promise what nobody looks at.
#[test]
fn tests_of_the_promises_exist() {
    let page = std::fs::read_to_string(root().join("docs/security.md")).expect("the page");
    let (_, table) = page.split_once("\n## Promises and their tests\n").expect("the table");
    let code: String = sources().into_iter().map(|source| source.text).collect();
    let is_name = |word: &str| word.bytes().all(|b| b.is_ascii_lowercase() || b.is_ascii_digit() || b == b'_');
    let rows = table.lines().filter(|line| line.starts_with("| S"));
    let (mut promises, mut missing) = (0, Vec::new());
    for row in rows {
        promises += 1;
        let tests = row.rsplit(" | ").next().unwrap_or_default();
        let names =
            tests.split('`').skip(1).step_by(2).filter(|word| is_name(word) && *word != "unsafe" && *word != "rbuild");
        missing.extend(names.filter(|name| !code.contains(&format!("fn {name}("))).map(str::to_owned));
    }
    assert!(promises > 50, "the table has {promises} rows");
    assert_eq!(missing, Vec::<String>::new(), "tests that docs/security.md names and nobody wrote");
}

#[test]
fn every_end_to_end_file_is_listed() {
    let folder = root().join("tests/e2e");
    let main = std::fs::read_to_string(folder.join("main.rs")).expect("tests/e2e/main.rs");
    for entry in std::fs::read_dir(&folder).expect("tests/e2e") {
        let name = entry.expect("an entry").file_name().to_string_lossy().into_owned();
        if let Some(module) = name.strip_suffix(".rs").filter(|module| *module != "main") {
            assert!(
                main.lines().any(|line| line == format!("mod {module};")),
                "tests/e2e/main.rs does not list {module}"
            );
        }
    }
}

#[test]
fn comments_and_strings_are_not_code() {
    let code = code_of(
        "let a = \"unsafe {\"; // unsafe {\nlet b = r#\"println!(\"x\")\"#; /* todo!() */ call('\"');\n#[cfg(test)]\nmod tests { unsafe {} }",
    );
    for word in ["unsafe", "println", "todo"] {
        assert!(!code.contains(word), "{code}");
    }
    assert!(code.contains("let a = ;") && code.contains("call("), "{code}");
    assert!(contains_word("x = unsafe { y }", "unsafe {") && !contains_word("not_println!(", "println!"));
}
