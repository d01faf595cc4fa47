//! Diagnostics and outcomes as text that one can read.

use std::fmt::Write;

use rbuild_frontend::{Diagnostic, Lowered, Outcome, Severity};
use rbuild_graph::ops::{ChangeOwner, ExecOp, FileAction, MountKind, Op, Owner, SourceOp};
use rbuild_graph::{Edge, Vertex};

pub(crate) fn diagnostics(out: &mut String, text: &[u8], problems: &[Diagnostic]) {
    for problem in problems {
        let severity = if problem.severity == Severity::Error { "error" } else { "warning" };
        let place = problem.span.map_or(String::new(), |span| {
            let excerpt = String::from_utf8_lossy(&text[span.start..span.end]);
            let lines = if span.line == span.end_line {
                span.line.to_string()
            } else {
                format!("{}-{}", span.line, span.end_line)
            };
            format!(" {lines} {excerpt:?}")
        });
        writeln!(out, "{severity}{place}: {}", problem.message).unwrap();
        let rule = problem.rule.map(|rule| format!("rule {rule}"));
        let label = problem.label.iter().map(|label| format!("expected {label}"));
        for line in label.chain(problem.hints.iter().map(|hint| format!("hint {hint}"))).chain(rule) {
            writeln!(out, "  {line}").unwrap();
        }
    }
}

pub(crate) fn outcome(out: &mut String, outcome: &Outcome) {
    match outcome {
        Outcome::Lowered(all) => all.iter().for_each(|one| lowered(out, one)),
        other => writeln!(out, "{other:?}").unwrap(),
    }
}

fn lowered(out: &mut String, one: &Lowered) {
    writeln!(out, "for {}, contexts {:?}", one.platform, one.contexts).unwrap();
    for id in one.graph.ids() {
        write!(out, "v{} ", id.0).unwrap();
        vertex(out, one.graph.vertex(id));
    }
    writeln!(out, "result {}", edge(one.result)).unwrap();
    let base = one.base.as_ref();
    writeln!(out, "base {}", base.map_or("none".into(), |b| format!("{} {}", b.reference, edge(b.edge)))).unwrap();
    for step in &one.history {
        let entry = &step.entry;
        let layer = if entry.empty_layer { "empty".into() } else { edge(step.edge) };
        let created = entry.created.as_ref().map_or(String::new(), |created| format!(" at {created}"));
        writeln!(out, "history {layer}{created} {:?} ({})", entry.created_by, entry.comment).unwrap();
    }
    let mut config = one.config.clone();
    config.history.clear();
    writeln!(out, "config {}", String::from_utf8(config.to_canonical_json()).unwrap()).unwrap();
}

fn edge(edge: Option<Edge>) -> String {
    edge.map_or("scratch".into(), |edge| format!("v{}:{}", edge.vertex.0, edge.output))
}

fn vertex(out: &mut String, vertex: &Vertex) {
    let inputs: Vec<String> = vertex.inputs.iter().map(|input| edge(Some(*input))).collect();
    let lines = vertex.meta.span.map_or(String::new(), |span| format!(" lines {}-{}", span.line, span.end_line));
    let no_cache = if vertex.meta.ignore_cache { " no-cache" } else { "" };
    writeln!(out, "{:?} <- [{}] {}{lines}{no_cache}", vertex.meta.name, inputs.join(" "), vertex.meta.platform)
        .unwrap();
    match &vertex.op {
        Op::Source(SourceOp::Image(image)) => writeln!(out, "  image {} {}", image.reference, image.platform).unwrap(),
        Op::Source(SourceOp::Context(context)) => {
            writeln!(out, "  context {} include {:?} exclude {:?}", context.name, context.include, context.exclude)
                .unwrap();
        }
        Op::Source(other) => writeln!(out, "  {other:?}").unwrap(),
        Op::Exec(exec) => process(out, exec),
        Op::File(file) => {
            writeln!(out, "  on {}", file.base.map_or("nothing".into(), |base| format!("input {base}"))).unwrap();
            file.actions.iter().for_each(|action| change(out, action));
        }
        other => writeln!(out, "  {other:?}").unwrap(),
    }
}

fn process(out: &mut String, exec: &ExecOp) {
    writeln!(out, "  args {:?}", exec.args).unwrap();
    writeln!(out, "  env {:?}", exec.env).unwrap();
    writeln!(out, "  cwd {} user {:?} network {:?} {:?}", exec.cwd, exec.user, exec.network, exec.security).unwrap();
    if !exec.proxy_env.is_empty() || exec.hostname.is_some() {
        writeln!(out, "  proxy {:?} hostname {:?}", exec.proxy_env, exec.hostname).unwrap();
    }
    for device in &exec.devices {
        writeln!(out, "  {device:?}").unwrap();
    }
    for mount in &exec.mounts {
        let kind = match &mount.kind {
            MountKind::Inline { content, mode } => format!("Inline {mode:o} {:?}", String::from_utf8_lossy(content)),
            other => format!("{other:?}"),
        };
        writeln!(
            out,
            "  mount {} input {:?} output {:?} {} selector {:?} {kind}",
            String::from_utf8_lossy(&mount.target),
            mount.input,
            mount.output,
            if mount.read_only { "ro" } else { "rw" },
            mount.selector.as_ref().map(|path| String::from_utf8_lossy(path)),
        )
        .unwrap();
    }
}

fn change(out: &mut String, action: &FileAction) {
    let text = |bytes: &[u8]| String::from_utf8_lossy(bytes).into_owned();
    match action {
        FileAction::Copy(copy) => {
            let sources: Vec<String> = copy.sources.iter().map(|source| text(source)).collect();
            let flags = [
                (copy.wildcards, "wildcards"),
                (copy.allow_empty, "allow-empty"),
                (copy.contents_only, "contents"),
                (copy.follow_links, "follow"),
                (copy.parents, "parents"),
            ];
            let flags: Vec<&str> = flags.iter().filter(|(set, _)| *set).map(|(_, name)| *name).collect();
            write!(out, "  copy {sources:?} of input {:?} to {} {flags:?}", copy.input, text(&copy.dest)).unwrap();
            write!(out, "{} mode {:?}", owner(&copy.owner), copy.mode).unwrap();
            writeln!(out, " exclude {:?} unpack {:?} time {:?}", copy.exclude, copy.unpack, copy.timestamp).unwrap();
        }
        FileAction::Mkfile(file) => {
            let name = file.name_in_dir.as_ref().map(|name| text(name));
            write!(out, "  file {} (or in it {name:?}) {:o} {:?}", text(&file.path), file.mode, file.symbolic_mode)
                .unwrap();
            writeln!(out, "{} time {:?} {:?}", owner(&file.owner), file.timestamp, text(&file.content)).unwrap();
        }
        FileAction::Mkdir(dir) => {
            writeln!(
                out,
                "  directory {} {:o}{} time {:?}",
                text(&dir.path),
                dir.mode,
                owner(&dir.owner),
                dir.timestamp
            )
            .unwrap();
        }
        other => writeln!(out, "  {other:?}").unwrap(),
    }
}

fn owner(owner: &Option<ChangeOwner>) -> String {
    let part = |part: &Option<Owner>| match part {
        None => "-".to_owned(),
        Some(Owner::Id(id)) => id.to_string(),
        Some(Owner::Name(name)) => name.clone(),
    };
    owner.as_ref().map_or(String::new(), |owner| format!(" owner {}:{}", part(&owner.user), part(&owner.group)))
}
