//! Single instructions applied to a config: `commit --change` and `import --change`.

use std::collections::BTreeMap;

use rbuild_oci::{ContainerConfig, Digest, HistoryEntry, ImageConfig, Platform, Reference};

use crate::instructions::Instruction;
use crate::{Diagnostic, Facts, ImageFact, LowerOptions, Outcome, lower, parse};

/// A name that no registry has: the config that is changed stands under it.
const SUBJECT: &str = "changed.invalid/config:latest";

/// Applies lines of a Dockerfile that only concern the config: CMD, ENTRYPOINT, ENV, EXPOSE, HEALTHCHECK, LABEL,
/// ONBUILD, STOPSIGNAL, USER, VOLUME and WORKDIR. Triggers the config has stay and are not run.
///
/// # Errors
/// What is wrong with the lines; an instruction that builds. Spans count from the first line.
pub fn change(config: &ContainerConfig, lines: &[String]) -> Result<ContainerConfig, Vec<Diagnostic>> {
    let mut errors = Vec::new();
    let mut changed = config.clone();
    for line in lines {
        match one(&changed, line) {
            Ok(config) => changed = config,
            Err(problems) => errors.extend(problems.into_iter().map(|problem| Diagnostic { span: None, ..problem })),
        }
    }
    if errors.is_empty() { Ok(changed) } else { Err(errors) }
}

/// A stage of one instruction on the config; the tree it would make is thrown away.
fn one(config: &ContainerConfig, line: &str) -> Result<ContainerConfig, Vec<Diagnostic>> {
    let (file, problems) = parse(format!("FROM {SUBJECT}\n{line}\n").as_bytes(), "change");
    let errors: Vec<Diagnostic> = problems.into_iter().filter(Diagnostic::is_error).collect();
    let word = line.split_whitespace().next().unwrap_or_default().to_lowercase();
    if errors.iter().any(|error| error.message.starts_with("unknown instruction: ")) {
        return Err(vec![Diagnostic::error(format!("{word} is not a valid change command"))]);
    }
    if !errors.is_empty() {
        return Err(errors);
    }
    let allowed = |instruction: &Instruction| {
        !matches!(
            instruction,
            Instruction::Transfer(_)
                | Instruction::Arg(_)
                | Instruction::From(_)
                | Instruction::Maintainer(_)
                | Instruction::Run(_)
                | Instruction::Shell(_)
        )
    };
    let commands: Vec<_> = file.stages.iter().flat_map(|stage| &stage.commands).collect();
    if file.stages.len() != 1 || commands.len() != 1 || !commands.iter().all(|c| allowed(&c.instruction)) {
        return Err(vec![Diagnostic::error(format!("{word} is not a valid change command"))]);
    }
    let fail = |problem: &str| vec![Diagnostic::error(problem)];
    let reference = Reference::parse(SUBJECT).map_err(|error| fail(&error.to_string()))?;
    let platform = Platform::new("linux", "amd64").normalized();
    let subject = ContainerConfig { on_build: Vec::new(), ..config.clone() };
    let image = ImageConfig { config: subject, history: vec![HistoryEntry::default()], ..ImageConfig::default() };
    let fact = ImageFact { digest: Digest::sha256_of(b""), config: image, pinned: false };
    let facts = Facts { images: [((reference, platform.clone()), fact)].into() };
    let options = LowerOptions { build_args: BTreeMap::new(), ..LowerOptions::new(platform) };
    let (outcome, mut problems) = lower(&file, &options, &facts);
    problems.retain(Diagnostic::is_error);
    let Outcome::Lowered(lowered) = outcome else { return Err(problems) };
    let mut changed = lowered.into_iter().next().ok_or_else(|| fail("nothing came of the change"))?.config.config;
    if config.env_value("PATH").is_none() && !line.contains("PATH") {
        changed.env.retain(|entry| !entry.starts_with("PATH="));
    }
    changed.args_escaped &= config.args_escaped;
    let mut triggers = config.on_build.clone();
    triggers.append(&mut changed.on_build);
    changed.on_build = triggers;
    Ok(changed)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn lines_change_a_config() {
        let config = ContainerConfig { on_build: vec!["RUN old".into()], ..ContainerConfig::default() };
        let lines = [
            "ENV A=1 B=2",
            "WORKDIR /tmp",
            "USER 33",
            "EXPOSE 8080",
            "LABEL x=y",
            "VOLUME /v",
            "entrypoint [\"echo\"]",
            "CMD [\"c\", \"$A\"]",
            "ONBUILD RUN true",
            "ENV C=$A",
        ];
        let changed = change(&config, &lines.map(str::to_owned)).unwrap();
        assert_eq!(changed.env, ["A=1", "B=2", "C=1"]);
        assert_eq!((changed.working_dir.as_str(), changed.user.as_str()), ("/tmp", "33"));
        assert_eq!(changed.on_build, ["RUN old", "RUN true"]);
        assert_eq!(changed.cmd.unwrap(), ["c", "$A"]);
        assert!(!changed.args_escaped && changed.volumes.contains_key("/v") && changed.labels["x"] == "y");
    }

    #[test]
    fn what_builds_is_no_change() {
        for (line, want) in [
            ("RUN echo no", "run is not a valid change command"),
            ("FROM busybox", "from is not a valid change command"),
            ("CMD a\nCMD b", "cmd is not a valid change command"),
            ("", " is not a valid change command"),
            ("XYZZY x", "xyzzy is not a valid change command"),
            ("EXPOSE x", "invalid containerPort: x"),
        ] {
            let problems = change(&ContainerConfig::default(), &[line.to_owned()]).unwrap_err();
            assert_eq!(problems[0].message, want, "{line}");
        }
    }
}
