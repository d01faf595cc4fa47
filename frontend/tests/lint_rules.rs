//! What each rule says, and of what it says nothing: a table per rule, hits before misses before corners. The behaviour
//! is the reference's, compared with its own tests of its rules where it has them.

use rbuild_frontend::{
    Facts, ImageFact, LowerOptions, NamedContext, Outcome, Purpose, fix, ignore, lint, lower, parse,
};
use rbuild_oci::{Digest, ImageConfig, Platform, Reference};

/// What a text is looked at with.
struct Look {
    options: LowerOptions,
    config: ImageConfig,
}

fn plain() -> Look {
    let config = ImageConfig { os: "linux".into(), architecture: "amd64".into(), ..ImageConfig::default() };
    Look { options: LowerOptions::new(Platform::new("linux", "amd64")), config }
}

impl Look {
    fn given(mut self, name: &str, value: &str) -> Look {
        self.options.build_args.insert(name.into(), value.into());
        self
    }

    fn hiding(mut self, text: &str) -> Look {
        let (file, problems) = ignore::IgnoreFile::parse(text.as_bytes());
        assert_eq!(problems, [], "{text}");
        self.options.ignore = file.patterns().map(str::to_owned).collect();
        self
    }

    fn all(mut self) -> Look {
        self.options.purpose = Purpose::Check;
        self
    }

    /// The findings of one rule, as `line: message`, and what makes the build fail.
    fn found(&self, rule: &str, text: &str) -> Vec<String> {
        let (file, problems) = parse(text.as_bytes(), "Dockerfile");
        let mut facts = Facts::default();
        let (outcome, found) = loop {
            let (outcome, found) = lower(&file, &self.options, &facts);
            let Outcome::Missing(requests) = outcome else { break (outcome, found) };
            for request in requests {
                let rbuild_frontend::FactRequest::ImageConfig { reference, platform, .. } = request else {
                    unreachable!()
                };
                let fact = ImageFact { digest: Digest::sha256_of(b"x"), config: self.config.clone(), pinned: true };
                facts.images.insert((reference, platform), fact);
            }
        };
        let shown = problems.iter().chain(&found).filter(|found| found.is_error() || found.rule == Some(rule));
        let line = |found: &rbuild_frontend::Diagnostic| {
            let mark = if found.is_error() { "error " } else { "" };
            format!("{mark}{}: {}", found.span.map_or(0, |span| span.line), found.message)
        };
        let shown: Vec<String> = shown.map(line).collect();
        let failed = shown.iter().any(|line| line.starts_with("error"));
        assert_eq!(matches!(outcome, Outcome::Failed), failed, "{text}: {shown:?}");
        shown
    }

    #[track_caller]
    fn says(&self, rule: &str, text: &str, want: &[&str]) {
        assert!(lint::rule(rule).is_some(), "{rule}");
        assert_eq!(self.found(rule, text), want, "{text}");
    }
}

#[track_caller]
fn says(rule: &str, text: &str, want: &[&str]) {
    plain().says(rule, text, want);
}

#[test]
fn consistent_instruction_casing() {
    let rule = "ConsistentInstructionCasing";
    let upper = |line: u32, name: &str| {
        format!("{line}: Command '{name}' should match the case of the command majority (uppercase)")
    };
    let lower = |line: u32, name: &str| {
        format!("{line}: Command '{name}' should match the case of the command majority (lowercase)")
    };
    says(rule, "FROM scratch\ncopy a /\nCOPY b /", &[&upper(2, "copy")]);
    says(rule, "From scratch\nFROM scratch", &[&upper(1, "From")]);
    says(rule, "frOM scratch\nfrom scratch", &[&lower(1, "frOM")]);
    says(rule, "from scratch\nCOPY a /\ncopy b /", &[&lower(2, "COPY")]);
    says(rule, "from scratch\nCOPY a /\nCOPY b /", &[&upper(1, "from")]);
    says(rule, "FROM scratch\nCOPY a /", &[]);
    says(rule, "from scratch\ncopy a /", &[]);
    // As many of each: capitals. Content of a heredoc is no instruction.
    says(rule, "from scratch\nCOPY a /", &[&upper(1, "from")]);
    says(rule, "FROM busybox\nRUN <<E\nenv\nE", &[]);
    says(rule, "FROM scratch\nOnBuild copy a /", &[&upper(2, "OnBuild")]);
}

#[test]
fn from_as_casing() {
    let rule = "FromAsCasing";
    says(rule, "FROM scratch as a", &["1: 'as' and 'FROM' keywords' casing do not match"]);
    says(rule, "from scratch AS a", &["1: 'AS' and 'from' keywords' casing do not match"]);
    says(rule, "FROM scratch As a", &["1: 'As' and 'FROM' keywords' casing do not match"]);
    says(rule, "FROM scratch AS a\nFROM a", &[]);
    says(rule, "from scratch as a", &[]);
    says(rule, "From scratch as a", &[]);
    says(rule, "FROM --platform=linux/amd64 scratch \\\n as a", &["1: 'as' and 'FROM' keywords' casing do not match"]);
}

#[test]
fn stage_names() {
    says("StageNameCasing", "FROM scratch AS Bad", &["1: Stage name 'Bad' should be lowercase"]);
    says("StageNameCasing", "FROM scratch AS good-1_x.y", &[]);
    says("StageNameCasing", "FROM scratch AS base\nFROM Base", &[]);
    let rule = "DuplicateStageName";
    says(
        rule,
        "FROM scratch AS b\nFROM scratch AS b",
        &["2: Duplicate stage name \"b\", stage names should be unique"],
    );
    says(
        rule,
        "FROM scratch AS b\nFROM scratch AS B",
        &["2: Duplicate stage name \"b\", stage names should be unique"],
    );
    says(rule, "FROM scratch AS b1\nFROM scratch AS b2\nFROM scratch\nFROM scratch", &[]);
    let reserved =
        |line: u32, name: &str| format!("{line}: Stage name should not use the same name as reserved stage {name:?}");
    let rule = "ReservedStageName";
    says(rule, "FROM scratch AS scratch\nFROM scratch AS Context", &[&reserved(1, "scratch"), &reserved(2, "context")]);
    says(rule, "FROM scratch\nFROM scratch AS a", &[]);
}

#[test]
fn json_args_recommended() {
    let rule = "JSONArgsRecommended";
    let want = |line: u32, name: &str| {
        format!("{line}: JSON arguments recommended for {name} to prevent unintended behavior related to OS signals")
    };
    says(rule, "FROM scratch\nCMD mycommand", &[&want(2, "CMD")]);
    says(rule, "FROM scratch\nENTRYPOINT mycommand", &[&want(2, "ENTRYPOINT")]);
    // What is no array after all.
    says(rule, "FROM scratch\nCMD [\"a\", ]", &[&want(2, "CMD")]);
    says(rule, "FROM scratch\nCMD [\"a\"]\nENTRYPOINT []", &[]);
    for instruction in ["CMD x", "ENTRYPOINT x"] {
        says(rule, &format!("FROM scratch\nSHELL [\"/own\"]\n{instruction}"), &[]);
        says(rule, &format!("FROM scratch AS base\nSHELL [\"/own\"]\nFROM base\n{instruction}"), &[]);
    }
    says(rule, "FROM scratch\nHEALTHCHECK CMD x", &[]);
}

#[test]
fn multiple_instructions_disallowed() {
    let rule = "MultipleInstructionsDisallowed";
    let want = |line: u32, name: &str| {
        format!(
            "{line}: Multiple {name} instructions should not be used in the same stage because only the last one will be used"
        )
    };
    let all = "ENTRYPOINT [\"a\"]\nCMD [\"b\"]\nHEALTHCHECK CMD [\"c\"]\n";
    let all_but_the_last = [want(2, "ENTRYPOINT"), want(3, "CMD"), want(4, "HEALTHCHECK")];
    let all_but_the_last: Vec<&str> = all_but_the_last.iter().map(String::as_str).collect();
    says(rule, &format!("FROM scratch\n{all}COPY a /\n{all}"), &all_but_the_last);
    says(rule, "FROM scratch\nCMD [\"a\"]\nCMD [\"b\"]\nCMD [\"c\"]", &[&want(2, "CMD"), &want(3, "CMD")]);
    says(rule, &format!("FROM scratch AS a\n{all}FROM a\n{all}"), &[]);
    says(rule, "FROM scratch\nUSER a\nUSER b\nENV a=b\nENV a=b", &[]);
    says(rule, "FROM scratch\nONBUILD CMD [\"a\"]\nONBUILD CMD [\"b\"]\nCMD [\"c\"]", &[]);
}

#[test]
fn old_forms() {
    let rule = "MaintainerDeprecated";
    says(
        rule,
        "FROM scratch\nMAINTAINER me@example.org",
        &["2: Maintainer instruction is deprecated in favor of using label"],
    );
    says(rule, "FROM scratch\nLABEL org.opencontainers.image.authors=\"me@example.org\"", &[]);
    let rule = "LegacyKeyValueFormat";
    let want = |line: u32, name: &str| {
        format!("{line}: \"{name} key=value\" should be used instead of legacy \"{name} key value\" format")
    };
    says(rule, "FROM scratch\nENV a b\nLABEL c d", &[&want(2, "ENV"), &want(3, "LABEL")]);
    says(rule, "FROM scratch\nENV a=b\nLABEL c=d", &[]);
    says(rule, "FROM scratch\nENV a b=c", &[&want(2, "ENV")]);
    says(rule, "FROM scratch\nENV a=b \\\n  c=\"d e\"", &[]);
    let rule = "NoEmptyContinuation";
    says(rule, "FROM scratch\n# c\nCOPY a \\\n\n.\nCOPY a \\\n.", &["4: Empty continuation line"]);
    says(rule, "FROM scratch\nCOPY a \\\n# a comment\n.\n\nCOPY b /", &[]);
    says(rule, "FROM busybox\nRUN <<E\na\n\nb\nE", &[]);
}

#[test]
fn undefined_arg_in_from() {
    let rule = "UndefinedArgInFrom";
    says(rule, "ARG base=scratch\nFROM $base", &[]);
    says(rule, "ARG BUILDPLATFORM=linux/amd64\nFROM --platform=$BUILDPLATFORM scratch", &[]);
    says(rule, "FROM --platform=$BUILDPLATFORM scratch", &[]);
    says(rule, "ARG DEBUG\nFROM scratch${DEBUG}", &[]);
    says(rule, "ARG DEBUG\nFROM scra${DEBUG:-tch}", &[]);
    says(rule, "ARG DEBUG=\"\"\nFROM scratch${DEBUG-@bogus}", &[]);
    says(rule, "ARG tag=latest\nFROM busybox:${tag}${version} AS b", &["2: FROM argument 'version' is not declared"]);
    let said = plain().found(rule, "FROM --platform=$BULIDPLATFORM scratch");
    let near = "1: FROM argument 'BULIDPLATFORM' is not declared (did you mean BUILDPLATFORM?)";
    let error = "error 1: empty platform value from expression $BULIDPLATFORM (did you mean BUILDPLATFORM?)";
    assert!(said.contains(&near.to_owned()) && said.contains(&error.to_owned()), "{said:?}");
    let said = plain().found(rule, "ARG MY_OS=linux\nARG MY_ARCH=amd64\nFROM --platform=linux/${MYARCH} busybox");
    assert!(said.contains(&"3: FROM argument 'MYARCH' is not declared (did you mean MY_ARCH?)".to_owned()), "{said:?}");
    assert!(said.iter().any(|line| line.starts_with("error 3: ") && line.contains("linux/${MYARCH}")), "{said:?}");
}

#[test]
fn invalid_default_arg_in_from() {
    let rule = "InvalidDefaultArgInFrom";
    let want = |line: u32, name: &str| {
        format!("{line}: Default value for ARG {name} results in empty or invalid base image name")
    };
    let latest = || plain().given("VERSION", "latest");
    latest().says(rule, "ARG VERSION\nFROM busybox:$VERSION", &[&want(2, "busybox:$VERSION")]);
    plain().given("IMAGE", "busybox").says(rule, "ARG IMAGE\nFROM $IMAGE", &[&want(2, "$IMAGE")]);
    plain().given("SFX", "box:latest").says(rule, "ARG SFX=\"box:\"\nFROM busy${SFX}", &[&want(2, "busy${SFX}")]);
    latest().says(rule, "ARG VERSION=\"latest\"\nFROM busybox:${VERSION}", &[]);
    let variant = || plain().given("VARIANT", "-musl");
    variant().says(rule, "ARG VARIANT=\"\"\nFROM busybox:stable${VARIANT}", &[]);
    variant().says(rule, "ARG VARIANT\nFROM busybox:stable${VARIANT}", &[]);
    latest().says(rule, "ARG VERSION\nFROM busybox:${VERSION:-1}", &[]);
}

#[test]
fn platforms_of_bases() {
    let rule = "FromPlatformFlagConstDisallowed";
    let want = "1: FROM --platform flag should not use constant value \"linux/amd64\"";
    says(rule, "FROM --platform=linux/amd64 scratch", &[want]);
    says(rule, "FROM --platform=linux/amd64 scratch AS my_amd64_stage", &[]);
    says(rule, "FROM --platform=linux/amd64 scratch AS linux", &[]);
    says(rule, "FROM --platform=$BUILDPLATFORM scratch", &[]);
    let rule = "RedundantTargetPlatform";
    for written in ["$TARGETPLATFORM", "${TARGETPLATFORM}"] {
        let want =
            format!("1: Setting platform to predefined {written} in FROM is redundant as this is the default behavior");
        says(rule, &format!("FROM --platform={written} scratch"), &[&want]);
    }
    says(rule, "FROM --platform=$BUILDPLATFORM scratch", &[]);
    says(
        rule,
        "# check=skip=InvalidDefinitionDescription\n\n# check=skip=RedundantTargetPlatform\nFROM --platform=$TARGETPLATFORM scratch",
        &[],
    );
    let rule = "InvalidBaseImagePlatform";
    let mut other = plain();
    other.config.architecture = "arm64".into();
    let want =
        "1: Base image busybox was pulled with platform \"linux/arm64\", expected \"linux/amd64\" for current build";
    other.says(rule, "FROM busybox", &[want]);
    other.says(rule, "FROM scratch", &[]);
    says(rule, "FROM busybox", &[]);
    other.config.architecture.clear();
    other.says(rule, "FROM busybox", &[]);
}

#[test]
fn workdir_relative_path() {
    let rule = "WorkdirRelativePath";
    let want = "2: Relative workdir \"app/\" can have unexpected results if the base image changes";
    says(rule, "FROM scratch\nWORKDIR app/", &[want]);
    says(rule, "FROM scratch AS a\nWORKDIR /app\nFROM a\nWORKDIR sub/", &[]);
    says(rule, "FROM scratch\nARG d=/x\nWORKDIR $d\nWORKDIR y", &[]);
    says(
        rule,
        "FROM scratch AS a\nWORKDIR /app\nFROM scratch\nWORKDIR app/",
        &["4: Relative workdir \"app/\" can have unexpected results if the base image changes"],
    );
}

#[test]
fn undefined_var() {
    let rule = "UndefinedVar";
    let want = |line: u32, name: &str, near: &str| {
        let near = if near.is_empty() { String::new() } else { format!(" (did you mean ${near}?)") };
        format!("{line}: Usage of undefined variable '${name}'{near}")
    };
    says(rule, "FROM scratch\nARG foo\nCOPY a${foo} .", &[]);
    says(rule, "FROM busybox AS base\nARG foo=a\nFROM base\nCOPY $foo .", &[]);
    says(rule, "FROM busybox\nRUN echo $PATH $nothing", &[]);
    says(rule, "FROM busybox\nCOPY $foo .\nARG foo=bar\nRUN echo $foo", &[&want(2, "foo", "")]);
    says(
        rule,
        "FROM busybox\nARG DIR_ASSETS=a/\nARG DIR_CONFIG=c/\nCOPY $DIR_ASSET .",
        &[&want(4, "DIR_ASSET", "DIR_ASSETS")],
    );
    says(rule, "FROM scratch\nENV PATH=$PAHT:/tmp/bin", &[&want(2, "PAHT", "PATH")]);
    says(rule, "FROM scratch\nENV a=${b:-c} d=${e-f}", &[]);
    let two = "FROM scratch AS first\nCOPY $foo .\nFROM scratch\nCOPY $bar .";
    says(rule, two, &[&want(4, "bar", "")]);
    plain().all().says(rule, two, &[&want(2, "foo", ""), &want(4, "bar", "")]);
    let mut known = plain();
    known.config.config.env = vec!["HOME_OF_BASE=/x".into()];
    known.says(rule, "FROM busybox\nWORKDIR $HOME_OF_BASE", &[]);
}

#[test]
fn secrets_used_in_arg_or_env() {
    let rule = "SecretsUsedInArgOrEnv";
    let want = |line: u32, instruction: &str, name: &str| {
        format!("{line}: Do not use ARG or ENV instructions for sensitive data ({instruction} {name:?})")
    };
    says(rule, "FROM scratch\nARG SECRET_PASSPHRASE", &[&want(2, "ARG", "SECRET_PASSPHRASE")]);
    says(rule, "FROM scratch\nENV password=bar secret=baz", &[&want(2, "ENV", "password"), &want(2, "ENV", "secret")]);
    says(
        rule,
        "FROM scratch\nARG long_secret_token=foo auth=bar",
        &[&want(2, "ARG", "long_secret_token"), &want(2, "ARG", "auth")],
    );
    says(
        rule,
        "FROM scratch\nENV apikey=bar sunflower=foo\nENV git_key=",
        &[&want(2, "ENV", "apikey"), &want(3, "ENV", "git_key")],
    );
    says(rule, "FROM scratch\nENV PUBLIC_KEY=\nARG public_token\nARG SECRET_PASSPHRASE_FILE", &[]);
    says(rule, "FROM scratch\nENV password_file=bar secret_File=baz\nARG AUTH_MODULE_VERSION", &[]);
    says(rule, "FROM scratch\nENV keyboard=us monkey=1 author=me", &[]);
    let local = "# check=skip=SecretsUsedInArgOrEnv // allowed\nENV password=bar\n# check=skip=all // only here\nARG password\n";
    says(rule, &format!("FROM scratch\n{local}ENV token=x"), &[&want(6, "ENV", "token")]);
}

#[test]
fn copy_ignored_file() {
    let rule = "CopyIgnoredFile";
    let want = |line: u32, verb: &str, file: &str| {
        format!("{line}: Attempting to {verb} file {file:?} that is excluded by .dockerignore")
    };
    let text = "FROM scratch\nCOPY Dockerfile .\nADD Dockerfile /windy";
    let both = [want(2, "Copy", "Dockerfile"), want(3, "Add", "Dockerfile")];
    plain().hiding("Dockerfile").says(rule, text, &[&both[0], &both[1]]);
    plain().hiding("Dockerfile").says(rule, &format!("# check=skip={rule}\n{text}"), &[]);
    plain().hiding("**\n!Dockerfile").says(rule, "FROM scratch\nCOPY ./Dockerfile .", &[]);
    let stages = "FROM scratch AS base\nCOPY Dockerfile /foobar\nFROM base\nCOPY --from=base /foobar /x";
    plain().hiding("foobar").says(rule, stages, &[]);
    plain().hiding(".*").says(rule, "FROM scratch\nCOPY . .", &[]);
    plain().hiding("*").says(rule, "FROM scratch\nCOPY . .", &[&want(2, "Copy", ".")]);
    plain().hiding("**\n!Dockerfile").says(rule, "FROM scratch\nCOPY . .", &[]);
    plain().hiding("a").says(rule, "FROM scratch\nCOPY <<a <<b /d/\nx\na\ny\nb", &[]);
    plain().hiding("x").says(rule, "FROM scratch\nADD https://example.com/x /", &[]);
}

#[test]
fn expose() {
    let rule = "ExposeProtoCasing";
    let want = |port: &str| format!("2: Defined protocol '{port}' in EXPOSE instruction should be lowercase");
    says(rule, "FROM scratch\nEXPOSE 80/TcP 8080/TCP 8080/udp", &[&want("80/TcP"), &want("8080/TCP")]);
    says(rule, "FROM scratch\nEXPOSE 80 81/tcp 82/sctp", &[]);
    let rule = "ExposeInvalidFormat";
    let want = |port: &str| {
        format!("2: EXPOSE instruction should not define an IP address or host-port mapping, found '{port}'")
    };
    let said = plain().found(rule, "FROM scratch\nEXPOSE 127.0.0.1:80:80 [::1]:8080:8080 5000:5000 8000");
    for port in ["127.0.0.1:80:80", "[::1]:8080:8080", "5000:5000"] {
        assert!(said.contains(&want(port)), "{port}: {said:?}");
    }
    assert_eq!(said.len(), 3, "{said:?}");
    says(rule, "FROM scratch\nEXPOSE 80 81-90/udp", &[]);
}

#[test]
fn invalid_definition_description() {
    let rule = "InvalidDefinitionDescription";
    let wrong =
        "# bar is it\nARG foo=bar\n# Base is it\nFROM scratch AS base\n# bad\nARG version=latest\n# bad\nARG a=b c=d\n";
    let want = |line: u32, what: &str, name: &str| {
        format!("{line}: Comment for {what} should follow the format: `# {name} <description>`")
    };
    let all = [want(3, "ARG", "foo"), want(5, "FROM", "base"), want(7, "ARG", "version"), want(9, "ARG", "<arg_key>")];
    let all: Vec<&str> = all.iter().map(String::as_str).collect();
    for on in [rule, "all"] {
        says(rule, &format!("# check=experimental={on}\n{wrong}"), &all);
    }
    says(rule, &format!("#\n{wrong}"), &[]);
    let right = "# foo is it\nARG foo=bar\n# base is it\nFROM scratch AS base\n# c is it\nARG a=b c=d\n#\nARG e\n\
                 # about what follows\n\nARG f\n# of no stage\nCOPY a /\n";
    let said = plain().found(rule, &format!("# check=experimental=all\n{right}"));
    assert!(said.iter().all(|line| line.starts_with("12: ")), "{said:?}");
}

#[test]
fn rules_are_chosen() {
    let casing = "FROM scratch as base\ncopy a .\n";
    let all = ["ConsistentInstructionCasing", "FromAsCasing"];
    let said = |look: &Look, text: &str| all.iter().filter(|rule| !look.found(rule, text).is_empty()).count();
    assert_eq!(said(&plain(), casing), 2);
    for (directive, want) in [
        ("skip=all", 0),
        ("skip=all;error=true", 0),
        ("skip=ConsistentInstructionCasing,FromAsCasing", 0),
        ("skip=ConsistentInstructionCasing , FromAsCasing;error=true", 0),
        ("skip=ConsistentInstructionCasing", 1),
        ("skip=Unknown", 2),
    ] {
        assert_eq!(said(&plain(), &format!("#check={directive}\n{casing}")), want, "{directive}");
    }
    let error = |look: &Look, text: &str| {
        let said = look.found("FromAsCasing", text);
        said.into_iter().filter(|line| line.starts_with("error")).collect::<Vec<_>>()
    };
    let failing = "error 0: lint violation found for rules: FromAsCasing";
    let strict = format!("#check=skip=ConsistentInstructionCasing;error=true\n{casing}");
    assert_eq!(error(&plain(), &strict), [failing]);
    assert_eq!(error(&plain().all(), &strict), Vec::<String>::new(), "a check tells, it does not fail to understand");
    let argument = || plain().given("BUILDKIT_DOCKERFILE_CHECK", "skip=ConsistentInstructionCasing;error=true");
    assert_eq!(error(&argument(), &format!("#check=skip=all\n{casing}")), [failing]);
    let nothing = plain().given("BUILDKIT_DOCKERFILE_CHECK", "skip=all");
    assert_eq!(said(&nothing, &format!("#check=error=true\n{casing}")), 0);
}

/// A stage that the target does not need is looked at when the file is checked; and one that the caller replaces is not
/// anybody's to mend.
#[test]
fn stages_that_count() {
    let text = "FROM scratch AS a\nFROM a AS b\nENV x y\nWORKDIR rel\nFROM a AS c\n";
    says("WorkdirRelativePath", text, &[]);
    plain().all().says(
        "WorkdirRelativePath",
        text,
        &["4: Relative workdir \"rel\" can have unexpected results if the base image changes"],
    );
    says("LegacyKeyValueFormat", text, &[]);
    plain().all().says(
        "LegacyKeyValueFormat",
        text,
        &["3: \"ENV key=value\" should be used instead of legacy \"ENV key value\" format"],
    );
    let mut replaced = plain().all();
    let image = Reference::parse("busybox").unwrap();
    replaced.options.contexts.insert("b".into(), NamedContext::Image(image));
    replaced.says("WorkdirRelativePath", text, &[]);
}

/// Each rule that has a fix is one of the table above, and the fix leaves nothing for it to say.
#[test]
fn what_is_fixed_is_said_no_more() {
    let text = "From busybox as One\nMAINTAINER me\nENV a b c\nEXPOSE 1/TCP\nWORKDIR w\nCMD sleep \\\n\n 5\nCMD sleep 5\n\
                from --platform=$TARGETPLATFORM busybox\n";
    let look = plain().all();
    let fixed = fix::fix(text, &look.options, &facts(&look));
    let rules: std::collections::BTreeSet<_> = fixed.fixes.iter().map(|fix| fix.rule).collect();
    let fixable = lint::RULES.iter().filter(|rule| fix::is_fixable(rule.name)).map(|rule| rule.name).collect();
    assert_eq!(rules, fixable);
    for rule in fixable {
        let left = look.found(rule, &fixed.text);
        // A command over two lines is more than a fix dares.
        assert_eq!(left.len(), usize::from(rule == "JSONArgsRecommended"), "{rule}: {left:?}\n{}", fixed.text);
    }
}

fn facts(look: &Look) -> Facts {
    let reference = Reference::parse("busybox").unwrap();
    let fact = ImageFact { digest: Digest::sha256_of(b"x"), config: look.config.clone(), pinned: true };
    Facts { images: [((reference, Platform::new("linux", "amd64")), fact)].into() }
}
