//! The command line itself: help, version, wrong use.

use crate::scene::Scene;

#[test]
fn help_and_version_go_to_standard_output() {
    let scene = Scene::new();
    assert!(scene.rb(&["--version"]).ok().out.starts_with("rbuild version "));
    assert!(scene.rb(&["--help"]).ok().out.contains("build"));
    let help = scene.rb(&["build", "--help"]).ok().out;
    for option in
        ["--tag", "--file", "--target", "--build-arg", "--label", "--no-cache", "--pull", "--iidfile", "--progress"]
    {
        assert!(help.contains(option), "{option}: {help}");
    }
    assert_eq!(scene.rb(&["version", "--format", "{{.Client.Os}}"]).ok().out, "linux\n");
    assert!(!scene.root().exists(), "asking for help makes no state directory");
}

#[test]
fn wrong_use_is_named() {
    let scene = Scene::new();
    for (line, words) in [
        (&["no-such-command"][..], &["'no-such-command' is not a rbuild command", "rbuild --help"][..]),
        (&["biuld", "."], &["Did you mean this?", "\tbuild"]),
        (&["build"], &["\"rbuild build\" requires exactly 1 argument."]),
        (&["build", "a", "b"], &["\"rbuild build\" requires exactly 1 argument."]),
        (&["build", "--cache-to", "type=s3,bucket=x", "."], &["cache type s3 is not supported yet"]),
        (&["build", "--policy", "x", "."], &["--policy is not supported yet"]),
        (&["build", "--progress", "fancy", "."], &["invalid progress mode fancy"]),
        (&["build", "-t", "UPPER", "."], &["invalid tag \"UPPER\""]),
        (&["build", "--platform", "linux/amd64/v1/more", "."], &["linux/amd64/v1/more"]),
    ] {
        scene.rb(line).refused(1, words);
    }
    scene.rb(&["run"]).refused(1, &["\"rbuild run\" requires at least 1 argument."]);
    for (line, words) in [
        (&["run", "--no-such-flag", "x"][..], "unknown flag: --no-such-flag"),
        (&["build", "--no-such-flag", "."], "unknown flag: --no-such-flag"),
        (&["build", "-X", "."], "unknown shorthand flag: 'X' in -X"),
        (&["images", "--format"], "flag needs an argument: --format"),
        (&["image", "rm", "--no-prune=perhaps", "x"], "invalid argument \"perhaps\" for \"--no-prune\" flag"),
    ] {
        scene.rb(line).refused(125, &[words]);
    }
}

#[test]
fn completion_knows_the_commands() {
    let scene = Scene::new();
    let script = scene.rb(&["completion", "bash"]).ok().out;
    assert!(script.contains("complete -F _rbuild") && script.contains("--build-arg"), "{script}");
}

#[test]
fn a_reader_that_goes_away_is_no_crash() {
    let scene = Scene::new();
    let mut command = scene.command(&["--help"]);
    let mut child = command.stdout(std::process::Stdio::piped()).stderr(std::process::Stdio::piped()).spawn().unwrap();
    drop(child.stdout.take());
    let output = child.wait_with_output().unwrap();
    assert!(!String::from_utf8_lossy(&output.stderr).contains("panicked"), "{output:?}");
}

#[test]
fn info_counts_what_is_there() {
    let scene = Scene::with_busybox();
    let said = scene.rb(&["info", "--format", "{{.Images}} {{.Containers}} {{.OSType}} {{.Driver}}"]).ok();
    let said = said.out.trim_end();
    assert!(said == "1 0 linux overlay" || said == "1 0 linux vfs", "{said}");
    let text = scene.rb(&["info"]).ok().out;
    assert!(text.contains("Storage Driver: ") && text.contains("Kernel Version: "), "{text}");
}
