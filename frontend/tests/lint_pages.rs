//! Each rule has a page in `docs/lint`, each page a rule, and what a page shows is true.

use std::path::{Path, PathBuf};

use rbuild_frontend::lint::{LAYER_RULES, RULES, Rule};
use rbuild_frontend::{FactRequest, Facts, ImageFact, LowerOptions, Outcome, fix, ignore, lower, parse};
use rbuild_oci::{Digest, ImageConfig, Platform};

fn folder() -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).join("../docs/lint")
}

fn page(rule: &Rule) -> String {
    let path = folder().join(format!("{}.md", rule.name));
    std::fs::read_to_string(&path).unwrap_or_else(|error| panic!("{}: {error}", path.display()))
}

/// The code blocks of a language.
fn blocks<'a>(page: &'a str, language: &str) -> Vec<&'a str> {
    let start = format!("```{language}\n");
    page.split(&start).skip(1).map(|rest| rest.split("```").next().unwrap_or_default()).collect()
}

/// The rules that have something to say about a text. Every image exists and is empty; one has another platform.
fn found(text: &str, hidden: &str) -> Vec<&'static str> {
    let (file, problems) = parse(text.as_bytes(), "Dockerfile");
    assert_eq!(problems, [], "{text}");
    let mut options = LowerOptions::new(Platform::new("linux", "amd64"));
    options.ignore = ignore::IgnoreFile::parse(hidden.as_bytes()).0.patterns().map(str::to_owned).collect();
    options.build_args.insert("VERSION".into(), "1".into());
    let mut facts = Facts::default();
    loop {
        match lower(&file, &options, &facts) {
            (Outcome::Lowered(_), found) => return found.iter().filter_map(|found| found.rule).collect(),
            (Outcome::Failed, problems) => panic!("{text}: {problems:?}"),
            (Outcome::Missing(requests), _) => {
                for request in requests {
                    let FactRequest::ImageConfig { reference, platform, .. } = request else { unreachable!() };
                    let other = reference.repository().ends_with("other-platform");
                    let mut config = ImageConfig { os: "linux".into(), ..ImageConfig::default() };
                    config.architecture = if other { "s390x".into() } else { platform.architecture.clone() };
                    let fact = ImageFact { digest: Digest::sha256_of(b"image"), config, pinned: true };
                    facts.images.insert((reference, platform), fact);
                }
            }
        }
    }
}

#[test]
fn each_rule_has_a_page_and_each_page_a_rule() {
    let index = std::fs::read_to_string(folder().join("README.md")).unwrap();
    for rule in RULES.into_iter().chain(LAYER_RULES) {
        let (page, name) = (page(rule), rule.name);
        assert!(page.starts_with(&format!("# {name}\n\n")), "{name}: its title");
        for part in
            ["\n## Why\n", "\n## Not so good\n", "\n## Better\n", "\n## Skip\n", &format!("# check=skip={name}`")]
        {
            assert!(page.contains(part), "{name}: {part:?} is missing");
        }
        let says_fix = page.contains("`rbuild check --fix`");
        assert_eq!(says_fix, fix::is_fixable(name), "{name}: whether there is a fix");
        assert_eq!(page.contains("# check=experimental="), rule.experimental, "{name}: whether it is experimental");
        let what = page.lines().nth(2).unwrap();
        assert!(index.contains(&format!("| [{name}]({name}.md) | {what} |\n")), "{name}: its row in the index");
    }
    for entry in std::fs::read_dir(folder()).unwrap() {
        let name = entry.unwrap().file_name().into_string().unwrap();
        let rule = name.strip_suffix(".md").unwrap_or_else(|| panic!("{name} is no page"));
        let known = RULES.into_iter().chain(LAYER_RULES).any(|known| known.name == rule);
        assert!(known || rule == "README", "{name} explains no rule");
    }
}

#[test]
fn the_examples_are_what_they_are_called() {
    for rule in RULES {
        let page = page(rule);
        let hidden = blocks(&page, "dockerignore").concat();
        let [bad, good] = blocks(&page, "dockerfile")[..] else { panic!("{}: two examples", rule.name) };
        let in_bad = found(bad, &hidden);
        assert!(in_bad.contains(&rule.name), "{}: the first example is fine: {in_bad:?}", rule.name);
        assert!(in_bad.iter().all(|other| *other == rule.name), "{}: other rules mind as well: {in_bad:?}", rule.name);
        assert_eq!(found(good, &hidden), Vec::<&str>::new(), "{}: the second example", rule.name);
    }
    // What steps write is known after them; here it is enough that the examples are Dockerfiles without other faults.
    for rule in LAYER_RULES {
        let page = page(rule);
        let examples = blocks(&page, "dockerfile");
        assert_eq!(examples.len(), 2, "{}", rule.name);
        for example in examples {
            assert_eq!(found(example, ""), Vec::<&str>::new(), "{}", rule.name);
        }
    }
}
