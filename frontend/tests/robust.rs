//! Any bytes give a value or an error with a place; large files are read in one go.
//!
//! There are no clocks here: sizes are chosen so that anything worse than linear would not end.

#[path = "campaign/pieces.rs"]
mod pieces;

use proptest::prelude::*;
use rbuild_frontend::ignore::IgnoreFile;
use rbuild_frontend::{Diagnostic, FactRequest, Facts, ImageFact, LowerOptions, Lowered, Outcome, lower, parse};
use rbuild_oci::{Digest, ImageConfig, Platform};

/// Lowers with a made-up image for every request.
fn build(text: &[u8]) -> (Outcome, Vec<Diagnostic>) {
    let (file, parsed) = parse(text, "Dockerfile");
    let options = LowerOptions::new(Platform::new("linux", "amd64"));
    let mut facts = Facts::default();
    loop {
        let (outcome, problems) = lower(&file, &options, &facts);
        let Outcome::Missing(requests) = outcome else {
            return (outcome, parsed.into_iter().chain(problems).collect());
        };
        for request in requests {
            let FactRequest::ImageConfig { reference, platform, .. } = request else { unreachable!() };
            let config = ImageConfig {
                history: vec![Default::default()],
                config: rbuild_oci::ContainerConfig { on_build: vec!["RUN x".into()], ..Default::default() },
                ..Default::default()
            };
            let digest = Digest::sha256_of(b"x");
            facts.images.insert((reference, platform), ImageFact { digest, config, pinned: true });
        }
    }
}

fn lowered(text: &str) -> Lowered {
    match build(text.as_bytes()) {
        (Outcome::Lowered(mut all), _) => all.remove(0),
        (outcome, problems) => panic!("{outcome:?} {:?}", problems.first()),
    }
}

fn first_error(text: &str) -> String {
    let (outcome, problems) = build(text.as_bytes());
    assert!(matches!(outcome, Outcome::Failed));
    problems.into_iter().find(Diagnostic::is_error).unwrap().message
}

/// Pieces that files are made of, so that chance gets further than the first word.
fn pieces() -> impl Strategy<Value = String> {
    let piece = prop::sample::select(pieces::PIECES.as_slice());
    prop::collection::vec(piece, 0..60).prop_map(|pieces| pieces.concat())
}

proptest! {
    #![proptest_config(ProptestConfig { cases: 500, ..ProptestConfig::default() })]

    #[test]
    fn random_bytes_are_no_crash(bytes in prop::collection::vec(any::<u8>(), 0..400)) {
        build(&bytes);
        IgnoreFile::parse(&bytes);
    }

    #[test]
    fn likely_files_are_no_crash(text in pieces()) {
        let (outcome, problems) = build(text.as_bytes());
        let failed = matches!(outcome, Outcome::Failed);
        prop_assert_eq!(failed, problems.iter().any(Diagnostic::is_error), "{:?}", problems);
        for problem in problems {
            if let Some(span) = problem.span {
                prop_assert!(span.start <= span.end && span.end <= text.len(), "{:?}", problem);
                prop_assert!(text.get(span.start..span.end).is_some(), "{:?}", problem);
                prop_assert!(span.line >= 1 && span.line <= span.end_line, "{:?}", problem);
            }
        }
    }

    #[test]
    fn likely_files_behind_a_stage_are_no_crash(text in pieces()) {
        build(format!("FROM busybox AS a\n{text}").as_bytes());
    }
}

#[test]
fn a_hundred_thousand_lines() {
    let mut text = String::from("FROM scratch\n");
    for i in 0..15_000 {
        text.push_str(&format!("LABEL l{i}=v\nENV V{i}=${{V{}}}x\n\n# a\n# b\n\n# c\n", i + 1));
    }
    assert!(text.lines().count() > 100_000);
    assert_eq!(lowered(&text).config.config.env.len(), 15_001);
}

#[test]
fn many_stages_each_on_the_one_before() {
    let mut text = String::from("FROM scratch AS s0\n");
    for i in 1..10_000 {
        text.push_str(&format!("FROM s{} AS s{i}\nCOPY --from=s{} a b\n", i - 1, i - 1));
    }
    assert_eq!(lowered(&text).history.len(), 9_999);
}

#[test]
fn many_mistakes_and_long_lines() {
    let text = format!("FROM scratch\n{}", "RUNN x\n".repeat(20_000));
    assert_eq!(build(text.as_bytes()).1.len(), 20_000);
    let words = "a".repeat(8).replace('a', "a ").repeat(20_000);
    assert_eq!(lowered(&format!("FROM scratch\nRUN {words}\n")).graph.len(), 1);
    let joined = "\\\n x".repeat(50_000);
    assert_eq!(lowered(&format!("FROM scratch\nRUN a {joined}\n")).graph.len(), 1);
    let heredocs = "COPY <<A /x\ny\nA\n".repeat(20_000);
    assert_eq!(lowered(&format!("FROM scratch\n{heredocs}")).graph.len(), 20_000);
}

#[test]
fn nesting_and_doubling_end_in_an_error() {
    let nested = format!("FROM scratch\nENV A={}x{}\n", "${a:-".repeat(10_000), "}".repeat(10_000));
    assert!(first_error(&nested).ends_with("variables are nested more than 64 levels deep"));
    let mut doubling = String::from("FROM scratch\nENV A0=xxxxxxxx\n");
    for i in 0..40 {
        doubling.push_str(&format!("ENV A{}=$A{i}$A{i}\n", i + 1));
    }
    assert!(first_error(&doubling).ends_with("expands to more than 1048576 bytes"));
    let mut wide = String::from("FROM scratch\nENV A0=xxxxxxxx\n");
    for i in 0..15 {
        wide.push_str(&format!("ENV A{}=$A{i}$A{i}\n", i + 1));
    }
    wide.push_str(&"RUN x\n".repeat(5_000));
    assert!(first_error(&wide).contains("the file expands to more than 268435456 bytes"));
    let huge = vec![b'#'; (16 << 20) + 1];
    assert!(build(&huge).1[0].message.contains("more than the limit of 16777216"));
}

#[test]
fn stages_times_triggers_are_bounded() {
    let triggers = "ONBUILD RUN x\n".repeat(3_000);
    let stages = "FROM a\n".repeat(1_000);
    let copies: String = (0..1_000).map(|i| format!("COPY --from={} x y\n", i + 1)).collect();
    let text = format!("FROM scratch AS a\n{triggers}{stages}FROM scratch\n{copies}");
    assert!(first_error(&text).contains("the file expands to more than"));
}

#[test]
fn a_heredoc_of_ten_megabytes() {
    let line = "x".repeat(99) + "\n";
    let content = line.repeat(100_000);
    let text = format!("FROM scratch\nCOPY <<'EOF' /file\n{content}EOF\nRUN <<EOF\n{content}EOF\n");
    // What a RUN holds must fit into the arguments of a process, which is for the executor to say; a file holds it all.
    let only_file = text.split_once("RUN").unwrap().0;
    assert_eq!(lowered(only_file).graph.len(), 1);
    assert!(text.len() > 16 << 20 && first_error(&text).contains("more than the limit of 16777216"));
    // With variables in it, it is a word, and words have a bound.
    let expanded = only_file.replace("<<'EOF'", "<<EOF");
    assert!(first_error(&expanded).ends_with("a word expands to more than 1048576 bytes"));
    let unterminated = only_file.strip_suffix("EOF\n").unwrap();
    assert_eq!(first_error(unterminated), "unterminated heredoc");
}

#[test]
fn tens_of_thousands_of_stages() {
    let mut text = String::from("FROM scratch AS s0\n");
    for i in 1..30_000 {
        text.push_str(&format!("FROM s{} AS s{i}\n", i - 1));
    }
    text.push_str("COPY --from=s15000 a b\nCOPY --from=29998 a b\n");
    assert_eq!(lowered(&text).history.len(), 2);
    // Each needs the next: a ring.
    let mut ring = String::new();
    for i in 0..5_000 {
        ring.push_str(&format!("FROM scratch AS r{i}\nCOPY --from=r{} a b\n", (i + 1) % 5_000));
    }
    assert_eq!(first_error(&ring), "circular dependency detected on stage: r0");
}

#[test]
fn a_line_of_a_megabyte_in_pieces() {
    let joined = format!("RUN true {}\n", "&& true \\\n".repeat(120_000));
    assert!(joined.len() > 1 << 20);
    assert_eq!(lowered(&format!("FROM scratch\n{joined} && true\n")).graph.len(), 1);
    let commented = "RUN a \\\n".to_owned() + &"# comment\n\n".repeat(100_000) + "  b\n";
    assert_eq!(lowered(&format!("FROM scratch\n{commented}")).graph.len(), 1);
    let flags = "--exclude=x ".repeat(20_000);
    assert_eq!(lowered(&format!("FROM scratch\nCOPY {flags}a b\n")).graph.len(), 2);
    let mounts = "--mount=type=tmpfs,target=/a ".repeat(5_000);
    assert_eq!(lowered(&format!("FROM scratch\nRUN {mounts}true\n")).graph.len(), 1);
}

/// Also patterns that a backtracking matcher would not come back from.
#[test]
fn many_patterns_against_many_paths() {
    let mut text = String::new();
    for i in 0..500 {
        text.push_str(&format!("**/dir{i}/**/*.o\n!keep{i}\n"));
    }
    text.push_str(&format!("{}b\n{}c\n", "a*".repeat(50), "**/a/".repeat(50)));
    let (file, problems) = IgnoreFile::parse(text.as_bytes());
    assert!(problems.is_empty() && file.patterns().count() == 1_002);
    let hidden = |path: String| file.matches(path.as_bytes());
    let count = (0..50).filter(|i| hidden(format!("src/dir{i}/x/y/z.o")) && !hidden(format!("keep{i}"))).count();
    assert_eq!(count, 50);
    assert!(!hidden("a".repeat(1_000)) && !hidden("a/".repeat(100) + "d"));
    let (big, problems) = IgnoreFile::parse("x\n".repeat(100_000).as_bytes());
    assert!(problems.is_empty() && big.matches(b"x") && !big.matches(b"y"));
}
