//! A vertex of the build as BuildKit's tools expect it: the JSON form of an operation of its build graph.
//!
//! A rendering for readers of provenance, not a format this program reads. Members that are absent there are left out.

use base64::Engine as _;
use base64::engine::general_purpose::STANDARD;
use rbuild_graph::Vertex;
use rbuild_graph::ops::{CacheSharing, ExecOp, FileAction, FileOp, MountKind, Network, Op, Security, SourceOp};
use rbuild_oci::{Platform, Reference};
use serde_json::{Value, json};

use super::materials::git_address;
use super::provenance::without_credentials;

/// The operation with its platform.
pub(super) fn describe(vertex: &Vertex) -> Value {
    let op = match &vertex.op {
        Op::Source(source) => json!({"source": {"identifier": identifier(source)}}),
        Op::Exec(exec) => json!({"exec": process(exec)}),
        Op::File(file) => json!({"file": {"actions": actions(file)}}),
        Op::Merge(_) => {
            let inputs: Vec<Value> = (0..vertex.inputs.len()).map(|input| json!({"input": input})).collect();
            json!({"merge": {"inputs": inputs}})
        }
        Op::Diff(diff) => json!({"diff": {"lower": {"input": diff.lower}, "upper": {"input": diff.upper}}}),
        _ => json!({}),
    };
    json!({"Op": op, "platform": platform(&vertex.meta.platform), "name": vertex.meta.name})
}

fn platform(platform: &Platform) -> Value {
    let mut all = json!({"OS": platform.os, "Architecture": platform.architecture});
    if let Some(variant) = platform.variant.as_ref().filter(|variant| !variant.is_empty()) {
        all["Variant"] = variant.clone().into();
    }
    all
}

fn identifier(source: &SourceOp) -> String {
    match source {
        SourceOp::Image(image) => {
            let name = Reference::canonical(&image.reference);
            let pinned = image.digest.as_ref().filter(|_| image.reference.digest().is_none());
            pinned.map_or(format!("docker-image://{name}"), |digest| format!("docker-image://{name}@{digest}"))
        }
        SourceOp::Context(context) => format!("local://{}", context.name),
        SourceOp::Http(http) => http.url.clone(),
        SourceOp::Git(git) => format!("git://{}", git_address(git)),
        SourceOp::OciLayout(layout) => format!("oci-layout://{}@{}", layout.name, layout.digest),
        _ => String::new(),
    }
}

fn process(exec: &ExecOp) -> Value {
    let mut meta = json!({"args": exec.args, "env": exec.env, "cwd": exec.cwd});
    if !exec.user.is_empty() {
        meta["user"] = exec.user.clone().into();
    }
    if let Some(hostname) = &exec.hostname {
        meta["hostname"] = hostname.clone().into();
    }
    if !exec.extra_hosts.is_empty() {
        let hosts: Vec<Value> = exec.extra_hosts.iter().map(|h| json!({"Host": h.host, "IP": h.address})).collect();
        meta["extraHosts"] = hosts.into();
    }
    let mounts: Vec<Value> = exec
        .mounts
        .iter()
        .map(|mount| {
            let mut shown = json!({"dest": text(&mount.target), "input": mount.input.map_or(-1, |i| i as i64)});
            if let Some(output) = mount.output {
                shown["output"] = output.into();
            }
            if mount.read_only {
                shown["readonly"] = true.into();
            }
            if let Some(selector) = &mount.selector {
                shown["selector"] = text(selector).into();
            }
            match &mount.kind {
                MountKind::Cache { id, sharing, .. } => {
                    let sharing = match sharing {
                        CacheSharing::Shared => "SHARED",
                        CacheSharing::Private => "PRIVATE",
                        CacheSharing::Locked => "LOCKED",
                    };
                    shown["mountType"] = "CACHE".into();
                    shown["cacheOpt"] = json!({"ID": id, "sharing": sharing});
                }
                MountKind::Tmpfs { .. } => shown["mountType"] = "TMPFS".into(),
                MountKind::Secret { id, required, .. } => {
                    shown["mountType"] = "SECRET".into();
                    shown["secretOpt"] = json!({"ID": id, "optional": !required});
                }
                MountKind::Ssh { id, required, .. } => {
                    shown["mountType"] = "SSH".into();
                    shown["SSHOpt"] = json!({"ID": id, "optional": !required});
                }
                _ => {}
            }
            shown
        })
        .collect();
    let mut shown = json!({"meta": meta, "mounts": mounts});
    match exec.network {
        Network::Default => {}
        Network::Host => shown["network"] = "HOST".into(),
        Network::None => shown["network"] = "NONE".into(),
    }
    if exec.security == Security::Insecure {
        shown["security"] = "INSECURE".into();
    }
    shown
}

fn actions(file: &FileOp) -> Vec<Value> {
    let shown = |action: &FileAction| match action {
        FileAction::Copy(copy) => {
            let sources: Vec<String> = copy.sources.iter().map(|source| text(source)).collect();
            let mut shown = json!({"src": sources, "dest": text(&copy.dest)});
            if !copy.exclude.is_empty() {
                shown["excludePatterns"] = copy.exclude.clone().into();
            }
            json!({"Action": {"copy": shown}, "secondaryInput": copy.input.map_or(-1, |i| i as i64)})
        }
        FileAction::Mkfile(made) => {
            let data = STANDARD.encode(without_credentials(&text(&made.content)));
            json!({"Action": {"mkfile": {"path": text(&made.path), "mode": made.mode, "data": data}}})
        }
        FileAction::Mkdir(made) => json!({"Action": {"mkdir": {"path": text(&made.path), "mode": made.mode}}}),
        FileAction::Remove(removed) => json!({"Action": {"rm": {"path": text(&removed.path)}}}),
        _ => json!({}),
    };
    let mut all: Vec<Value> = file.actions.iter().map(shown).collect();
    if let Some(first) = all.first_mut() {
        first["input"] = file.base.map_or(-1, |base| base as i64).into();
    }
    all
}

fn text(bytes: &[u8]) -> String {
    String::from_utf8_lossy(bytes).into_owned()
}
