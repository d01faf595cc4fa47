//! One random change at a time to projects as people have them: a C program, a Python service, a web shop of several stages,
//! a bag of tools (an ARG in FROM, `--parents`, mounts, a heredoc).
//!
//! `mutations.rs` tries each kind of change on one project and knows its outcome by hand. Here the outcome follows from two
//! lists for each step: which paths of the context it reads, and which of them show in what it takes from another step.
//! `RBUILD_MUTATIONS=1000` makes that many changes to each project.

use std::os::unix::fs::PermissionsExt as _;
use std::path::PathBuf;
use std::time::{Duration, SystemTime};

use rustix::fs::XattrFlags;

use crate::recopy::Dice;
use crate::scene::Scene;

/// In [`Step::on`]: the base image.
const BASE: usize = usize::MAX;

struct Step {
    /// The end of its name.
    shows: &'static str,
    /// Steps, or the base, whose result is part of its key.
    on: &'static [usize],
    /// Paths whose content and attributes it reads: files, directories with a slash, `""` for all.
    reads: &'static [&'static str],
    /// Paths whose content shows in what it reads of other steps.
    takes: &'static [&'static str],
}

struct Project {
    dockerfile: &'static str,
    ignore: &'static str,
    files: &'static [(&'static str, &'static str)],
    /// Not seen by any step.
    ignored: &'static [&'static str],
    /// Directories that files come to and go from, with the ending of those.
    directories: &'static [(&'static str, &'static str)],
    steps: &'static [Step],
}

const fn step(
    shows: &'static str,
    on: &'static [usize],
    reads: &'static [&'static str],
    takes: &'static [&'static str],
) -> Step {
    Step { shows, on, reads, takes }
}

const C: Project = Project {
    dockerfile: "FROM base AS build\nWORKDIR /src\nCOPY Makefile configure.sh ./\nRUN sh configure.sh > config.h\n\
        COPY include/ include/\nCOPY src/ src/\nRUN cat include/*.h src/*.c | sort > app\n\
        FROM base AS test\nCOPY --from=build /src/app /app\nRUN md5sum /app > /result\n\
        FROM base\nCOPY --from=build /src/app /bin/app\nCOPY --from=test /result /result\n\
        COPY --link LICENSE /LICENSE\nCOPY --chmod=644 man/ /man/\nCMD [\"/bin/app\"]\n",
    ignore: "**/*.o\n.git\ndoc/\n!doc/keep\n",
    files: &[
        ("Makefile", "all:\n"),
        ("configure.sh", "# configure\n"),
        ("include/a.h", "ah\n"),
        ("include/b.h", "bh\n"),
        ("src/main.c", "main\n"),
        ("src/util.c", "util\n"),
        ("src/deep/net.c", "net\n"),
        ("LICENSE", "MIT\n"),
        ("man/app.1", "man\n"),
        ("doc/keep", "kept\n"),
    ],
    ignored: &["src/main.o", ".git/HEAD", "doc/manual", "src/deep/x.o", "doc/keep"],
    directories: &[("include", ".h"), ("src", ".c"), ("man", ".1")],
    steps: &[
        step("COPY Makefile configure.sh ./", &[BASE], &["Makefile", "configure.sh"], &[]),
        step("RUN sh configure.sh > config.h", &[0], &[], &[]),
        step("COPY include/ include/", &[1], &["include/"], &[]),
        step("COPY src/ src/", &[2], &["src/"], &[]),
        step("RUN cat include/*.h src/*.c | sort > app", &[3], &[], &[]),
        step("COPY --from=build /src/app /app", &[BASE], &[], &["include/", "src/!deep"]),
        step("RUN md5sum /app > /result", &[5], &[], &[]),
        step("COPY --from=build /src/app /bin/app", &[BASE], &[], &["include/", "src/!deep"]),
        step("COPY --from=test /result /result", &[7], &[], &["include/", "src/!deep"]),
        step("] COPY --link LICENSE /LICENSE", &[], &["LICENSE"], &[]),
        step("LINK COPY --link LICENSE /LICENSE", &[8, 9], &[], &[]),
        step("COPY --chmod=644 man/ /man/", &[10], &["man/"], &[]),
    ],
};

const PYTHON: Project = Project {
    dockerfile: "FROM base AS deps\nWORKDIR /app\nCOPY requirements.txt .\n\
        RUN --mount=type=cache,target=/root/.cache/pip cat requirements.txt > /deps\n\
        FROM base\nWORKDIR /srv\nCOPY --from=deps /deps /site-packages/deps\n\
        COPY <<EOF /etc/app.conf\nlevel=1\nEOF\nCOPY . .\nRUN cat app/*.py > /compiled\nUSER 1000\n",
    ignore: "Dockerfile\n.dockerignore\n**/__pycache__\n*.pyc\ntests/*\n!tests/smoke.py\nvenv\n",
    files: &[
        ("requirements.txt", "flask\n"),
        ("setup.cfg", "[x]\n"),
        ("app/main.py", "main\n"),
        ("app/views.py", "views\n"),
        ("app/static/site.css", "css\n"),
        ("tests/smoke.py", "smoke\n"),
    ],
    ignored: &["app/__pycache__/main.pyc", "x.pyc", "tests/unit.py", "venv/bin/python"],
    directories: &[("app", ".py"), ("app/static", ".css")],
    steps: &[
        step("COPY requirements.txt .", &[BASE], &["requirements.txt"], &[]),
        step("cat requirements.txt > /deps", &[0], &[], &[]),
        step("COPY --from=deps /deps /site-packages/deps", &[BASE], &[], &["requirements.txt"]),
        step("COPY <<EOF /etc/app.conf", &[2], &[], &[]),
        step("COPY . .", &[3], &[""], &[]),
        step("RUN cat app/*.py > /compiled", &[4], &[], &[]),
    ],
};

const WEB: Project = Project {
    dockerfile: "FROM base AS modules\nCOPY package.json package-lock.json ./\nRUN cat package*.json > /modules\n\
        FROM base AS assets\nADD vendor.tar /vendor/\n\
        FROM modules AS web\nCOPY --exclude=*.map web/ /web/\nRUN cat /web/*.js | sort > /bundle\n\
        FROM base AS server\nRUN --mount=type=bind,source=server,target=/server cat /server/*.go | sort > /server.bin\n\
        FROM base\nCOPY --from=web /bundle /srv/bundle\nCOPY --from=server /server.bin /srv/server\n\
        COPY --from=assets /vendor /srv/vendor\nRUN --mount=from=modules,target=/m cat /srv/bundle /m/modules > /all\n",
    ignore: "node_modules\n**/*.log\n",
    files: &[
        ("package.json", "{}\n"),
        ("package-lock.json", "{ }\n"),
        ("web/index.js", "index\n"),
        ("web/shop.js", "shop\n"),
        ("web/img/logo.svg", "svg\n"),
        ("server/main.go", "main\n"),
        ("server/db.go", "db\n"),
        ("vendor.tar", ""),
    ],
    ignored: &["node_modules/x/index.js", "web/debug.log", "web/index.js.map", "server/y.log"],
    directories: &[("web", ".js"), ("server", ".go"), ("web/img", ".svg")],
    steps: &[
        step("COPY package.json package-lock.json ./", &[BASE], &["package.json", "package-lock.json"], &[]),
        step("RUN cat package*.json > /modules", &[0], &[], &[]),
        step("ADD vendor.tar /vendor/", &[BASE], &["vendor.tar"], &[]),
        step("COPY --exclude=*.map web/ /web/", &[1], &["web/"], &[]),
        step("RUN cat /web/*.js | sort > /bundle", &[3], &[], &[]),
        step("cat /server/*.go | sort > /server.bin", &[BASE], &["server/"], &[]),
        step("COPY --from=web /bundle /srv/bundle", &[BASE], &[], &["web/!img"]),
        step("COPY --from=server /server.bin /srv/server", &[6], &[], &["server/"]),
        step("COPY --from=assets /vendor /srv/vendor", &[7], &[], &["vendor.tar"]),
        step("cat /srv/bundle /m/modules > /all", &[8, 1], &[], &[]),
    ],
};

const TOOLS: Project = Project {
    dockerfile: "ARG BASE=base\nFROM $BASE AS parents\nCOPY --parents src/ lib/ /p/\nRUN cat /p/src/*.c /p/lib/*.c | sort > /all\n\
        FROM base AS scripts\nCOPY <<EOF /etc/conf\nlevel=1\nEOF\n\
        RUN --mount=type=cache,target=/c --mount=type=secret,id=none --mount=type=bind,source=bin,target=/bind cat /bind/*.sh | sort > /made\n\
        FROM base\nCOPY --from=parents /all /all\nCOPY --from=scripts /made /made\n\
        COPY --link --exclude=*.tmp docs/ /docs/\n",
    ignore: "**/*.bak\n",
    files: &[
        ("src/a.c", "a\n"),
        ("src/b.c", "b\n"),
        ("lib/c.c", "c\n"),
        ("bin/run.sh", "run\n"),
        ("bin/test.sh", "test\n"),
        ("docs/one.txt", "one\n"),
    ],
    ignored: &["src/a.bak", "docs/x.tmp", "elsewhere"],
    directories: &[("src", ".c"), ("lib", ".c"), ("bin", ".sh"), ("docs", ".txt")],
    steps: &[
        step("COPY --parents src/ lib/ /p/", &[BASE], &["src/", "lib/"], &[]),
        step("RUN cat /p/src/*.c /p/lib/*.c | sort > /all", &[0], &[], &[]),
        step("COPY <<EOF /etc/conf", &[BASE], &[], &[]),
        step("cat /bind/*.sh | sort > /made", &[2], &["bin/"], &[]),
        step("COPY --from=parents /all /all", &[BASE], &[], &["src/", "lib/"]),
        step("COPY --from=scripts /made /made", &[4], &[], &["bin/"]),
        step("] COPY --link --exclude=*.tmp docs/ /docs/", &[], &["docs/"], &[]),
        step("LINK COPY --link --exclude=*.tmp docs/ /docs/", &[5, 6], &[], &[]),
    ],
};

/// Whether a path is one of those named; `a/!b` is what is in `a` save what is in `a/b`.
fn names(paths: &[&str], path: &str) -> bool {
    paths.iter().any(|named| match named.split_once('!') {
        Some((dir, without)) => path.starts_with(dir) && !path[dir.len()..].starts_with(&format!("{without}/")),
        None => *named == path || named.is_empty() || named.ends_with('/') && path.starts_with(named),
    })
}

/// What was changed, as far as the steps care.
#[derive(Debug)]
enum Changed {
    Nothing,
    Base,
    /// The path, with the words of the reason; what it holds, or only how it looks or is called.
    Path {
        path: String,
        why: String,
        content: bool,
    },
}

struct Campaign<'a> {
    scene: &'a Scene,
    project: &'a Project,
    dice: Dice,
    undo: Vec<Box<dyn FnOnce()>>,
}

impl Campaign<'_> {
    fn path(&self, name: &str) -> PathBuf {
        self.scene.work().join(name)
    }

    fn write(&mut self, name: &str, content: &[u8]) {
        let path = self.path(name);
        match std::fs::read(&path) {
            Ok(before) => {
                std::fs::write(&path, content).expect("write");
                self.undo.push(Box::new(move || std::fs::write(path, before).expect("write")));
            }
            Err(_) => {
                self.scene.write(name, content);
                self.undo.push(Box::new(move || std::fs::remove_file(path).expect("remove")));
            }
        }
    }

    fn change(&mut self, n: usize) -> Changed {
        let file = self.project.files[self.dice.roll(self.project.files.len())].0;
        let (dir, ending) = self.project.directories[self.dice.roll(self.project.directories.len())];
        let in_dir: Vec<&str> = self.project.files.iter().map(|(path, _)| *path).collect();
        let in_dir: Vec<&str> =
            in_dir.into_iter().filter(|path| path.rsplit_once('/').is_some_and(|(at, _)| at == dir)).collect();
        let of_dir = in_dir[self.dice.roll(in_dir.len())];
        let path = |path: &str, why: String, content| Changed::Path { path: path.to_owned(), why, content };
        match self.dice.roll(12) {
            0 | 1 if file == "vendor.tar" => {
                self.write(file, &archive(n));
                path(file, format!("{file} changed"), true)
            }
            0 | 1 => {
                self.write(file, format!("# v{n}\n").as_bytes());
                path(file, format!("{file} changed"), true)
            }
            2 => {
                let name = format!("{dir}/new{n}{ending}");
                self.write(&name, format!("# new {n}\n").as_bytes());
                path(&name, format!("{name} added"), true)
            }
            3 => {
                let at = self.path(of_dir);
                let (before, mode) = (std::fs::read(&at).expect("read"), at.metadata().expect("stat").permissions());
                std::fs::remove_file(&at).expect("remove");
                // What was there before this is known; another file more makes it a state that never was.
                self.undo.push(Box::new(move || {
                    std::fs::write(&at, before).expect("write");
                    std::fs::set_permissions(&at, mode).expect("chmod");
                }));
                let name = format!("{dir}/else{n}{ending}");
                self.write(&name, format!("# else {n}\n").as_bytes());
                path(of_dir, format!("{of_dir} (removed)"), true)
            }
            4 => {
                let at = self.path(file);
                let before = at.metadata().expect("stat").permissions();
                // Each mode is given once, those with set-user-id and the like included.
                let mode = 0o400 + (n as u32 % 0o7377);
                std::fs::set_permissions(&at, std::fs::Permissions::from_mode(mode)).expect("chmod");
                let same = before.mode() & 0o7777 == mode;
                self.undo.push(Box::new(move || std::fs::set_permissions(at, before).expect("chmod")));
                if same { Changed::Nothing } else { path(file, format!("{file} changed"), false) }
            }
            5 => {
                let at = self.path(file);
                if rustix::fs::setxattr(&at, c"user.note", format!("{n}").as_bytes(), XattrFlags::empty()).is_err() {
                    return Changed::Nothing;
                }
                self.undo.push(Box::new(move || rustix::fs::removexattr(at, c"user.note").expect("removexattr")));
                path(file, format!("{file} changed"), false)
            }
            6 => {
                for (name, _) in self.project.files {
                    let file = std::fs::File::options().write(true).open(self.path(name)).expect("open");
                    file.set_modified(SystemTime::now() - Duration::from_secs(n as u64 + 60)).expect("touch");
                }
                Changed::Nothing
            }
            8 => {
                // Another name, in capitals: sorted, the content of all is what it was.
                let stem = of_dir.rsplit('/').next().and_then(|name| name.split('.').next()).unwrap_or("x");
                let (from, to) = (self.path(of_dir), self.path(&format!("{dir}/{}{n}{ending}", stem.to_uppercase())));
                std::fs::rename(&from, &to).expect("rename");
                self.undo.push(Box::new(move || std::fs::rename(to, from).expect("rename")));
                path(of_dir, format!("{of_dir} (removed)"), false)
            }
            9 => {
                let name = format!("{dir}/hard{n}{ending}");
                let to = self.path(&name);
                std::fs::hard_link(self.path(of_dir), &to).expect("link");
                self.undo.push(Box::new(move || std::fs::remove_file(to).expect("remove")));
                // The same content twice may have been there before; another file more makes it a state that never was.
                self.write(&format!("{dir}/else{n}{ending}"), format!("# else {n}\n").as_bytes());
                // Of two names, the later one in order counts as changed.
                path(&name, name.clone(), true)
            }
            10 => {
                let name = format!("{dir}/soft{n}");
                let to = self.path(&name);
                std::os::unix::fs::symlink(format!("nowhere{n}"), &to).expect("symlink");
                self.undo.push(Box::new(move || std::fs::remove_file(to).expect("remove")));
                path(&name, format!("{name} added"), false)
            }
            7 => {
                let ignored = self.project.ignored[self.dice.roll(self.project.ignored.len())];
                self.write(ignored, format!("{n}").as_bytes());
                Changed::Nothing
            }
            _ => {
                self.scene.write("../base/Dockerfile", format!("FROM busybox\nRUN echo {n} > /moved\n"));
                let base = self.path("../base").display().to_string();
                self.scene.rb(&["build", "-q", "--network=none", "-t", "base", &base]).ok();
                Changed::Base
            }
        }
    }

    /// Which steps have to run, and whether by something of their own.
    fn expected(&self, changed: &Changed) -> Vec<(bool, bool)> {
        let mut all: Vec<(bool, bool)> = Vec::new();
        for step in self.project.steps {
            let own = match changed {
                Changed::Path { path, content, .. } => names(step.reads, path) || *content && names(step.takes, path),
                Changed::Nothing | Changed::Base => false,
            };
            let on = |on: &usize| if *on == BASE { matches!(changed, Changed::Base) } else { all[*on].0 };
            all.push((own || step.on.iter().any(on), own));
        }
        all
    }

    /// Name, outcome and causes of each step.
    fn build(&self) -> Vec<(String, String, Vec<String>)> {
        self.scene.rb(&["build", "-q", "--network=none", "."]).ok();
        let said = self.scene.rb(&["explain", "--format", "json"]).ok();
        let all: serde_json::Value = serde_json::from_str(&said.out).expect("JSON");
        let text = |value: &serde_json::Value| value.as_str().unwrap_or_default().to_owned();
        let of = |step: &serde_json::Value| {
            let causes = step["causes"].as_array().into_iter().flatten().map(|cause| text(&cause["text"])).collect();
            (text(&step["name"]), text(&step["outcome"]), causes)
        };
        all["steps"].as_array().into_iter().flatten().map(of).collect()
    }

    fn revert(&mut self) {
        self.undo.drain(..).rev().for_each(|undo| undo());
        self.scene.rb(&["tag", "busybox", "base"]).ok();
    }
}

fn archive(n: usize) -> Vec<u8> {
    let mut archive = tar::Builder::new(Vec::new());
    let mut header = tar::Header::new_ustar();
    let content = format!("vendor {n}\n");
    header.set_size(content.len() as u64);
    header.set_mode(0o644);
    archive.append_data(&mut header, "lib/inside.js", content.as_bytes()).expect("tar");
    archive.into_inner().expect("tar")
}

fn campaign(name: &str, project: &Project, seed: u64) {
    let asked = std::env::var("RBUILD_MUTATIONS").ok().and_then(|text| text.parse().ok());
    let scene = Scene::with_busybox();
    for (path, text) in project.files {
        scene.write(path, if *path == "vendor.tar" { archive(0) } else { text.as_bytes().to_vec() });
    }
    scene.write("Dockerfile", project.dockerfile);
    scene.write(".dockerignore", project.ignore);
    scene.rb(&["tag", "busybox", "base"]).ok();
    let mut campaign = Campaign { scene: &scene, project, dice: Dice(seed), undo: Vec::new() };
    campaign.build();
    let (mut wrong, mut hits, mut misses, mut reasons) = (Vec::new(), 0, 0, 0);
    let count = asked.unwrap_or(12);
    for n in 1..=count {
        let changed = campaign.change(n);
        let expected = campaign.expected(&changed);
        let built = campaign.build();
        for (step, (missed, own)) in project.steps.iter().zip(&expected) {
            let Some((shown, outcome, causes)) = built.iter().find(|(shown, ..)| shown.ends_with(step.shows)) else {
                wrong.push(format!("{n}: {} is not there: {built:?}", step.shows));
                continue;
            };
            match (missed, outcome.as_str()) {
                (true, "miss") => misses += 1,
                (false, "hit") => hits += 1,
                (true, _) => wrong.push(format!("{n} {changed:?}: {shown} is a wrong hit")),
                (false, _) => wrong.push(format!("{n} {changed:?}: {shown} is a wrong miss: {causes:?}")),
            }
            if let (true, Changed::Path { path, why, .. }) = (own, &changed)
                && names(step.reads, path)
            {
                reasons += 1;
                if !causes.iter().any(|cause| cause.contains(why)) {
                    wrong.push(format!("{n} {changed:?}: {shown} says {causes:?}"));
                }
            }
        }
        let known = |shown: &str| project.steps.iter().any(|step| shown.ends_with(step.shows));
        for (shown, outcome, _) in built.iter().filter(|(shown, ..)| !known(shown)) {
            if !matches!(changed, Changed::Base) && outcome != "hit" {
                wrong.push(format!("{n} {changed:?}: {shown} is a {outcome}"));
            }
        }
        campaign.revert();
        for (shown, outcome, causes) in campaign.build() {
            if outcome != "hit" {
                wrong.push(format!("{n} {changed:?} undone: {shown} is a {outcome}: {causes:?}"));
            }
        }
        assert!(wrong.len() < 20, "{wrong:#?}");
    }
    println!("{name}: {count} changes: {hits} hits, {misses} misses, {reasons} reasons, {} wrong", wrong.len());
    assert!(wrong.is_empty(), "{wrong:#?}");
}

#[test]
fn a_c_program_runs_what_it_must() {
    campaign("C", &C, 0x9e37_79b9_7f4a_7c15);
}

#[test]
fn a_python_service_runs_what_it_must() {
    campaign("Python", &PYTHON, 0x2545_f491_4f6c_dd1d);
}

#[test]
fn a_bag_of_tools_runs_what_it_must() {
    campaign("tools", &TOOLS, 0xa076_1d64_78bd_642f);
}

#[test]
fn a_web_shop_runs_what_it_must() {
    campaign("web", &WEB, 0xd1b5_4a32_d192_ed03);
}
