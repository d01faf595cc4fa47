//! One change at a time to a project, and exactly the steps that have to run again do: no other, and for the right reason.
//!
//! What must miss is worked out here from what each step of the project reads, by hand and not from keys. Every change is
//! to a value that was never there before, so that nothing can be known of it. `RBUILD_MUTATIONS=3000` makes that many.

use std::collections::BTreeSet;
use std::os::unix::fs::PermissionsExt as _;
use std::path::PathBuf;
use std::time::{Duration, SystemTime};

use crate::scene::Scene;

/// The steps in the order in which they are shown, with what each builds on.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
enum S {
    From,
    Workdir,
    CopySrc,
    RunAll,
    RunExtra,
    AddBundle,
    Heredoc,
    RunMade,
    CopyAll,
    CopyReadme,
    LinkReadme,
    CopyMade,
    RunLast,
}

const STEPS: [S; 13] = [
    S::From,
    S::Workdir,
    S::CopySrc,
    S::RunAll,
    S::RunExtra,
    S::AddBundle,
    S::Heredoc,
    S::RunMade,
    S::CopyAll,
    S::CopyReadme,
    S::LinkReadme,
    S::CopyMade,
    S::RunLast,
];

impl S {
    /// What its name has in the unchanged project.
    fn text(self) -> &'static str {
        match self {
            S::From => "FROM ",
            S::Workdir => "WORKDIR /w",
            S::CopySrc => "] COPY src/ /src/",
            S::RunAll => "RUN cat /src/*.c > /all",
            S::RunExtra => "RUN echo 0 > /extra",
            S::AddBundle => "ADD bundle.tar /assets/",
            S::Heredoc => "COPY --chmod=644 <<EOF /conf",
            S::RunMade => "sh /tool/x.sh > /made",
            S::CopyAll => "COPY --from=build /all /all",
            S::CopyReadme => "] COPY --link README /doc/README",
            S::LinkReadme => "LINK COPY --link README",
            S::CopyMade => "COPY --from=assets /made /made",
            S::RunLast => "RUN cat /all /made",
        }
    }

    fn builds_on(self) -> &'static [S] {
        match self {
            S::From | S::CopyReadme => &[],
            S::Workdir | S::AddBundle | S::CopyAll => &[S::From],
            S::CopySrc => &[S::Workdir],
            S::RunAll => &[S::CopySrc],
            S::RunExtra => &[S::RunAll],
            S::Heredoc => &[S::AddBundle],
            S::RunMade => &[S::Heredoc],
            S::LinkReadme => &[S::CopyAll, S::CopyReadme],
            S::CopyMade => &[S::LinkReadme],
            S::RunLast => &[S::CopyMade],
        }
    }
}

/// The Dockerfile's text, with a place for each thing that is changed.
#[derive(Clone)]
struct Text {
    stage: String,
    version: String,
    mode: String,
    command: String,
    extra_line: String,
    heredoc: String,
    label: String,
    entrypoint: String,
    readme_at: String,
    noise: String,
    copy: String,
}

impl Text {
    fn plain() -> Text {
        let text = |text: &str| text.to_owned();
        Text {
            stage: text("build"),
            version: text("1"),
            mode: text("fast"),
            command: text("cat /src/*.c > /all"),
            extra_line: text(""),
            heredoc: text("level=1"),
            label: text("1"),
            entrypoint: text("[\"true\"]"),
            readme_at: text("/doc/README"),
            noise: text(""),
            copy: text("COPY"),
        }
    }

    fn render(&self) -> String {
        let Text { stage, version, mode, command, extra_line, heredoc, label, entrypoint, readme_at, noise, copy } =
            self;
        format!(
            "FROM busybox AS {stage}\nARG VERSION={version}\nENV MODE={mode}\nWORKDIR /w\n{noise}{copy} src/ /src/\n\
             {extra_line}RUN {command}\nARG EXTRA=0\nRUN echo $EXTRA > /extra\n\
             FROM busybox AS assets\nADD bundle.tar /assets/\nCOPY --chmod=644 <<EOF /conf\n{heredoc}\nEOF\n\
             RUN --mount=type=bind,source=tool,target=/tool --mount=type=secret,id=s --mount=type=cache,target=/c \
             sh /tool/x.sh > /made\n\
             FROM busybox\nLABEL l={label}\nENTRYPOINT {entrypoint}\nCOPY --from={stage} /all /all\n\
             COPY --link README {readme_at}\nCOPY --from=assets /made /made\nRUN cat /all /made\n"
        )
    }
}

/// What a change makes run again.
#[derive(Default)]
struct Expected {
    /// The steps it concerns, each with words of its reason.
    seeds: Vec<(S, String)>,
    /// `/all` of the first stage comes out differently.
    all: bool,
    /// `/made` of the second stage comes out differently.
    made: bool,
    /// A step that was not there.
    added: Option<String>,
}

impl Expected {
    fn at(steps: &[S], why: impl Into<String>) -> Expected {
        let why = why.into();
        Expected { seeds: steps.iter().map(|step| (*step, why.clone())).collect(), ..Expected::default() }
    }

    fn nothing() -> Expected {
        Expected::default()
    }

    /// Every step that has to run, from what each builds on.
    fn missed(&self) -> BTreeSet<S> {
        let mut missed: BTreeSet<S> = self.seeds.iter().map(|(step, _)| *step).collect();
        missed.extend(self.all.then_some(S::CopyAll));
        missed.extend(self.made.then_some(S::CopyMade));
        for step in STEPS {
            if step.builds_on().iter().any(|below| missed.contains(below)) {
                missed.insert(step);
            }
        }
        missed
    }

    fn reason(&self, step: S) -> String {
        if let Some((_, why)) = self.seeds.iter().find(|(seed, _)| *seed == step) {
            return why.clone();
        }
        match step {
            S::CopyAll if self.all => "all changed (in ".into(),
            S::CopyMade if self.made => "made changed (in ".into(),
            _ => "the step before it ran again".into(),
        }
    }
}

struct Project {
    scene: Scene,
    text: Text,
    options: Vec<String>,
    /// Undoes the change.
    undo: Vec<Box<dyn FnOnce()>>,
}

impl Project {
    fn new() -> Project {
        let scene = Scene::with_busybox();
        scene.write(".dockerignore", "**/*.log\ndocs\n");
        for (path, text) in [
            ("src/a.c", "a\n"),
            ("src/b.c", "b\n"),
            ("src/notes.txt", "n\n"),
            ("src/same.txt", "000000\n"),
            ("src/deep/er/x.h", "h\n"),
            ("src/debug.log", "l\n"),
            ("docs/d", "d\n"),
            ("tool/x.sh", "echo made\n"),
            ("README", "r\n"),
            ("secret", "s\n"),
        ] {
            scene.write(path, text);
        }
        std::os::unix::fs::symlink("a.c", scene.work().join("src/ln")).unwrap();
        let project = Project { scene, text: Text::plain(), options: Vec::new(), undo: Vec::new() };
        project.bundle("1");
        project
    }

    fn bundle(&self, content: &str) {
        let mut archive = tar::Builder::new(Vec::new());
        let mut header = tar::Header::new_ustar();
        header.set_size(content.len() as u64);
        header.set_mode(0o644);
        archive.append_data(&mut header, "inside", content.as_bytes()).unwrap();
        self.scene.write("bundle.tar", archive.into_inner().unwrap());
    }

    fn path(&self, name: &str) -> PathBuf {
        self.scene.work().join(name)
    }

    /// Writes a file and puts the old one back later, as if it had never been touched.
    fn replace(&mut self, name: &str, text: &str) {
        let path = self.path(name);
        let before = std::fs::read(&path).unwrap();
        std::fs::write(&path, text).unwrap();
        self.undo.push(Box::new(move || std::fs::write(path, before).unwrap()));
    }

    /// Builds; gives the name, the outcome and the causes of each step.
    fn build(&self) -> Vec<(String, String, Vec<String>)> {
        self.scene.write("Dockerfile", self.text.render());
        let fixed = ["build", "-q", "--secret", "id=s,src=secret"];
        let options = self.options.iter().map(String::as_str);
        let network =
            if self.options.iter().any(|option| option == "--network") { None } else { Some("--network=none") };
        let arguments: Vec<&str> = fixed.into_iter().chain(network).chain(options).chain(["."]).collect();
        self.scene.rb(&arguments).ok();
        let said = self.scene.rb(&["explain", "--format", "json"]).ok();
        let all: serde_json::Value = serde_json::from_str(&said.out).unwrap();
        let text = |value: &serde_json::Value| value.as_str().unwrap_or_default().to_owned();
        let of = |step: &serde_json::Value| {
            let causes = step["causes"].as_array().into_iter().flatten().map(|cause| text(&cause["text"])).collect();
            (text(&step["name"]), text(&step["outcome"]), causes)
        };
        all["steps"].as_array().unwrap().iter().map(of).collect()
    }

    /// Change number `n`, of kind `kind`.
    fn change(&mut self, kind: usize, n: usize) -> (&'static str, Expected) {
        let value = format!("v{n}");
        let contents = ["src/a.c", "src/b.c"];
        match kind {
            0 => {
                let file = contents[n % 2];
                self.replace(file, &format!("{value}\n"));
                (
                    "content of a source",
                    Expected { all: true, ..Expected::at(&[S::CopySrc], format!("{file} changed")) },
                )
            }
            1 => {
                let file = ["src/notes.txt", "src/deep/er/x.h"][n % 2];
                self.replace(file, &value);
                ("content that the output does not show", Expected::at(&[S::CopySrc], format!("{file} changed")))
            }
            2 => {
                let path = self.path("src/a.c");
                let before = std::fs::metadata(&path).unwrap().permissions();
                // A file is read whatever its mode: root does. Each mode is used once.
                std::fs::set_permissions(&path, std::fs::Permissions::from_mode((n / KINDS % 0o600) as u32)).unwrap();
                self.undo.push(Box::new(move || std::fs::set_permissions(path, before).unwrap()));
                ("mode", Expected::at(&[S::CopySrc], "src/a.c changed"))
            }
            3 => {
                let path = self.path("src/a.c");
                std::os::unix::fs::chown(&path, Some(1000 + n as u32), Some(7)).unwrap();
                self.undo.push(Box::new(move || std::os::unix::fs::chown(path, Some(0), Some(0)).unwrap()));
                ("owner", Expected::nothing())
            }
            4 => {
                for name in ["src/a.c", "README", "tool/x.sh", "bundle.tar"] {
                    let file = std::fs::File::options().write(true).open(self.path(name)).unwrap();
                    file.set_modified(SystemTime::now() - Duration::from_secs(n as u64 + 60)).unwrap();
                }
                ("times", Expected::nothing())
            }
            5 => {
                self.replace(["src/debug.log", "docs/d"][n % 2], &value);
                ("an ignored file", Expected::nothing())
            }
            6 => {
                let (ending, all) = if n.is_multiple_of(2) { ("c", true) } else { ("txt", false) };
                let name = format!("src/new{n}.{ending}");
                self.scene.write(&name, &value);
                let path = self.path(&name);
                self.undo.push(Box::new(move || std::fs::remove_file(path).unwrap()));
                ("a file more", Expected { all, ..Expected::at(&[S::CopySrc], format!("{name} added")) })
            }
            7 => {
                let (from, to) = (self.path("src/b.c"), self.path(&format!("src/b{n}.c")));
                std::fs::rename(&from, &to).unwrap();
                self.undo.push(Box::new(move || std::fs::rename(to, from).unwrap()));
                ("another name", Expected::at(&[S::CopySrc], format!("src/b.c (removed), src/b{n}.c (added)")))
            }
            8 => {
                let path = self.path("src/ln");
                std::fs::remove_file(&path).unwrap();
                std::os::unix::fs::symlink(&value, &path).unwrap();
                self.undo.push(Box::new(move || {
                    std::fs::remove_file(&path).unwrap();
                    std::os::unix::fs::symlink("a.c", path).unwrap();
                }));
                ("where a link leads", Expected::at(&[S::CopySrc], "src/ln changed"))
            }
            9 => {
                self.options = vec!["--build-arg".into(), format!("VERSION={value}")];
                ("an argument", Expected::at(&[S::RunAll, S::RunExtra], format!("ARG VERSION 1 → {value}")))
            }
            10 => {
                self.options = vec!["--build-arg".into(), format!("EXTRA={value}")];
                ("a late argument", Expected::at(&[S::RunExtra], format!("ARG EXTRA 0 → {value}")))
            }
            11 => {
                let name = ["UNRELATED", "http_proxy", "NO_PROXY"][n % 3];
                self.options = vec!["--build-arg".into(), format!("{name}={value}")];
                ("an argument that no step has", Expected::nothing())
            }
            12 => {
                self.replace("secret", &value);
                ("a secret", Expected::nothing())
            }
            13 => {
                self.text.label = value;
                ("a label", Expected::nothing())
            }
            14 => {
                self.text.noise = format!("# {value}\n\n   \n");
                ("a comment", Expected::nothing())
            }
            15 => {
                self.text.stage = format!("stage{n}");
                ("the name of a stage", Expected::nothing())
            }
            16 => {
                self.text.mode = value.clone();
                ("a variable", Expected::at(&[S::RunAll, S::RunExtra], format!("ENV MODE fast → {value}")))
            }
            17 => {
                self.text.command = format!("cat /src/*.c > /all; : {value}");
                ("a command", Expected::at(&[S::RunAll], "command changed: cat /src/*.c > /all → "))
            }
            18 => {
                self.text.heredoc = value;
                ("a heredoc", Expected::at(&[S::Heredoc], "the text of a heredoc changed"))
            }
            19 => {
                self.replace("tool/x.sh", &format!("echo {value}\n"));
                ("what a bind mount shows", Expected { made: true, ..Expected::at(&[S::RunMade], "tool/x.sh changed") })
            }
            20 => {
                self.text.readme_at = format!("/doc/{value}");
                let why = format!("destination /doc/README → /doc/{value}");
                ("a destination", Expected::at(&[S::CopyReadme], why))
            }
            21 => {
                self.bundle(&value);
                ("an archive", Expected::at(&[S::AddBundle], "bundle.tar changed"))
            }
            22 => {
                self.text.extra_line = format!("RUN : {value}\n");
                let next = Expected::at(&[S::RunAll], "the step before it ran again");
                ("a step more", Expected { added: Some(format!("RUN : {value}")), ..next })
            }
            23 => {
                self.text.entrypoint = format!("[\"{value}\"]");
                ("the entrypoint", Expected::nothing())
            }
            24 => {
                self.text.copy = ["copy", "Copy  ", "COPY \\\n ", "cOpY\t"][n % 4].into();
                ("how an instruction is written", Expected::nothing())
            }
            25 => {
                self.replace("README", &value);
                ("a linked file", Expected::at(&[S::CopyReadme], "README changed"))
            }
            26 => {
                self.options = vec!["--no-cache-filter".into(), "build".into()];
                ("no cache", Expected::at(&[S::Workdir, S::CopySrc, S::RunAll, S::RunExtra], "--no-cache was given"))
            }
            27 => {
                // As an editor that keeps times: size and times are the same, and the kernel's own time tells.
                let path = self.path("src/same.txt");
                let mtime = std::fs::metadata(&path).unwrap().modified().unwrap();
                self.replace("src/same.txt", &format!("{:06}\n", n + 1));
                std::fs::File::options().write(true).open(path).unwrap().set_modified(mtime).unwrap();
                ("content of the same size and time", Expected::at(&[S::CopySrc], "src/same.txt changed"))
            }
            _ => {
                self.scene.write(".dockerignore", format!("**/*.log\ndocs\n# {value}\nnothing{n}\n"));
                ("ignoring what is not there", Expected::nothing())
            }
        }
    }

    fn revert(&mut self) {
        self.undo.drain(..).rev().for_each(|undo| undo());
        self.text = Text::plain();
        self.options.clear();
        self.bundle("1");
        self.scene.write(".dockerignore", "**/*.log\ndocs\n");
    }
}

const KINDS: usize = 29;

#[test]
fn each_change_makes_exactly_its_steps_run_again() {
    let asked = std::env::var("RBUILD_MUTATIONS").ok().and_then(|text| text.parse().ok());
    let count: usize = asked.unwrap_or(KINDS);
    let mut project = Project::new();
    let plain = project.build();
    assert_eq!(plain.len(), STEPS.len(), "{plain:#?}");
    let order: Vec<S> = plain
        .iter()
        .map(|(name, _, _)| *STEPS.iter().find(|step| name.contains(step.text())).unwrap_or_else(|| panic!("{name}")))
        .collect();
    let mut wrong = Vec::new();
    let (mut hits, mut misses, mut reasons) = (0, 0, 0);
    for n in 0..count {
        let (what, expected) = project.change(n % KINDS, n);
        let mut steps = project.build();
        if let Some(added) = &expected.added {
            let at =
                steps.iter().position(|(name, _, _)| name.ends_with(added)).unwrap_or_else(|| panic!("{steps:#?}"));
            let (_, outcome, _) = steps.remove(at);
            if outcome != "miss" {
                wrong.push(format!("{n} ({what}): the added step is a {outcome}"));
            }
        }
        let missed = expected.missed();
        for (step, (name, outcome, causes)) in order.iter().zip(&steps) {
            match (missed.contains(step), outcome.as_str()) {
                (true, "miss") => {
                    misses += 1;
                    let want = expected.reason(*step);
                    reasons += 1;
                    if !causes.iter().any(|cause| cause.contains(&want)) {
                        wrong.push(format!("{n} ({what}): {name} says {causes:?}, not {want:?}"));
                    }
                }
                (false, "hit") => hits += 1,
                (true, _) => wrong.push(format!("{n} ({what}): {name} is a wrong hit")),
                (false, _) => wrong.push(format!("{n} ({what}): {name} is a wrong miss: {causes:?}")),
            }
        }
        project.revert();
        for (name, outcome, causes) in project.build() {
            if outcome != "hit" {
                wrong.push(format!("{n} ({what}) undone: {name} is a {outcome}: {causes:?}"));
            }
        }
        assert!(wrong.len() < 20, "{wrong:#?}");
    }
    println!("{count} changes: {hits} hits, {misses} misses, {reasons} reasons, {} wrong", wrong.len());
    assert!(wrong.is_empty(), "{wrong:#?}");
}
