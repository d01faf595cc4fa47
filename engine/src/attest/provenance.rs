//! How a result was made, as SLSA provenance (<https://slsa.dev/spec/v1.1/provenance>) with BuildKit's extensions.
//!
//! Written here and not by a library: the two versions of the format are a few dozen members, and what BuildKit adds is
//! in none. No value of a secret is known here. Credentials in addresses, which also stand in commands and in the text
//! of the Dockerfile, are taken out of everything at the end, so that no member can be forgotten; proxies, which say
//! how to reach the world, are never taken in.

use std::collections::BTreeMap;
use std::time::SystemTime;

use base64::Engine as _;
use base64::engine::general_purpose::STANDARD;
use rbuild_executor::sources::git::redacted;
use rbuild_graph::ops::{ContextSource, MountKind, Network, Op, SourceOp};
use rbuild_graph::{BuildGraph, Edge, VertexId};
use rbuild_oci::{Descriptor, Platform};
use serde_json::{Map, Value, json};
use time::OffsetDateTime;
use time::format_description::well_known::Rfc3339;

use super::materials::Material;
use super::steps;
use crate::error::SourceText;
use crate::request::{BuildRequest, DockerfileSource, NamedContext};

const FRONTEND: &str = "dockerfile.v0";
const BUILD_TYPE_V02: &str = "https://mobyproject.org/buildkit@v1";
const BUILD_TYPE_V1: &str = "https://github.com/moby/buildkit/blob/master/docs/attestations/slsa-definitions.md";

/// What provenance is to say.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct ProvenanceOptions {
    pub mode: ProvenanceMode,
    pub version: SlsaVersion,
    /// Who built it, as a URL.
    pub builder_id: String,
    /// The caller's word that another build would give the same bytes. The time of the build is left out then.
    pub reproducible: bool,
    /// For images only, not for results that are files.
    pub inline_only: bool,
    /// Where the result is files, this one.
    pub filename: String,
}

impl Default for ProvenanceOptions {
    fn default() -> ProvenanceOptions {
        ProvenanceOptions {
            mode: ProvenanceMode::Max,
            version: SlsaVersion::V1,
            builder_id: String::new(),
            reproducible: false,
            inline_only: false,
            filename: "provenance.json".to_owned(),
        }
    }
}

/// How much provenance says.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum ProvenanceMode {
    /// What the result was made from; no value of the caller's.
    Min,
    /// Build arguments, names of secrets, the Dockerfile and every step as well, and when it was built.
    Max,
}

/// The version of SLSA's format.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum SlsaVersion {
    V02,
    V1,
}

impl SlsaVersion {
    pub(crate) fn predicate_type(self) -> &'static str {
        match self {
            SlsaVersion::V02 => "https://slsa.dev/provenance/v0.2",
            SlsaVersion::V1 => "https://slsa.dev/provenance/v1",
        }
    }
}

/// What was asked, before anything was brought here.
#[derive(Debug, Clone, Default)]
pub(crate) struct Asked {
    arguments: BTreeMap<String, String>,
    /// The Dockerfile's path within its context.
    path: String,
    vcs: BTreeMap<String, String>,
}

impl Asked {
    pub(crate) fn of(request: &BuildRequest) -> Asked {
        let mut arguments = BTreeMap::new();
        let given = request.build_args.iter().filter(|(name, _)| !is_proxy(name));
        arguments.extend(given.map(|(name, value)| (format!("build-arg:{name}"), value.clone())));
        arguments.extend(request.labels.iter().map(|(name, value)| (format!("label:{name}"), value.clone())));
        arguments.extend(request.lent.contexts.iter().map(|(name, context)| {
            let value = match context {
                NamedContext::Image(reference) => format!("docker-image://{}", reference.canonical()),
                NamedContext::Remote(address) => address.clone(),
                NamedContext::Layout(layout) => format!("oci-layout://{}", layout.what),
                NamedContext::Directory(_) | NamedContext::Unpacked(_) | NamedContext::Lent(_) => {
                    format!("local:{name}")
                }
            };
            (format!("context:{name}"), value)
        }));
        arguments.extend(request.target.iter().map(|target| ("target".to_owned(), target.clone())));
        if request.no_cache || !request.no_cache_filter.is_empty() {
            arguments.insert("no-cache".to_owned(), request.no_cache_filter.join(","));
        }
        if request.network != Network::Default {
            let mode = if request.network == Network::Host { "host" } else { "none" };
            arguments.insert("force-network-mode".to_owned(), mode.to_owned());
        }
        let hosts: Vec<String> = request.extra_hosts.iter().map(|h| format!("{}={}", h.host, h.address)).collect();
        if !hosts.is_empty() {
            arguments.insert("add-hosts".to_owned(), hosts.join(","));
        }
        arguments.extend(request.shm_size.map(|size| ("shm-size".to_owned(), size.to_string())));
        let limits: Vec<String> =
            request.ulimits.iter().map(|limit| format!("{}={}:{}", limit.name, limit.soft, limit.hard)).collect();
        if !limits.is_empty() {
            arguments.insert("ulimit".to_owned(), limits.join(","));
        }
        let path = match &request.dockerfile {
            // A path of this machine says nothing elsewhere; its name does.
            DockerfileSource::File(Some(path)) => path.file_name().map(|name| name.to_string_lossy().into_owned()),
            DockerfileSource::Remote(url) => Some(redacted(url)),
            DockerfileSource::File(None) | DockerfileSource::Text(_) => None,
        };
        let path = path.unwrap_or_else(|| "Dockerfile".to_owned());
        Asked { arguments, path, vcs: request.vcs.clone() }
    }
}

fn is_proxy(name: &str) -> bool {
    ["HTTP_PROXY", "HTTPS_PROXY", "FTP_PROXY", "NO_PROXY", "ALL_PROXY"].iter().any(|p| p.eq_ignore_ascii_case(name))
}

/// What is known of one platform's build when it is over.
#[derive(Debug, Clone)]
pub(crate) struct Evidence {
    pub(crate) asked: Asked,
    /// The repository or archive that was the context.
    pub(crate) context: Option<Material>,
    pub(crate) materials: Vec<Material>,
    pub(crate) dockerfile: SourceText,
    pub(crate) graph: Graph,
    /// The build's own name, and when it began; `None` where that is not to be told.
    pub(crate) run: Option<(String, SystemTime)>,
}

/// What a graph says about itself.
#[derive(Debug, Clone, Default)]
pub(crate) struct Graph {
    steps: Vec<Value>,
    locations: Map<String, Value>,
    /// The step whose result is the image's file tree.
    result: Option<String>,
    /// Names, and whether the build does without.
    secrets: BTreeMap<String, bool>,
    agents: BTreeMap<String, bool>,
    contexts: Vec<String>,
    uses_network: bool,
}

impl Graph {
    pub(crate) fn of(graph: &BuildGraph, result: Option<Edge>, vertices: &[VertexId]) -> Graph {
        let numbers: BTreeMap<VertexId, usize> = vertices.iter().enumerate().map(|(n, id)| (*id, n)).collect();
        let mut seen = Graph::default();
        let name = |edge: &Edge| numbers.get(&edge.vertex).map(|n| format!("step{n}:{}", edge.output));
        seen.result = result.as_ref().and_then(name);
        for (n, id) in vertices.iter().enumerate() {
            let vertex = graph.vertex(*id);
            let inputs: Vec<String> = vertex.inputs.iter().filter_map(name).collect();
            let mut step = json!({"id": format!("step{n}"), "op": steps::describe(vertex)});
            if !inputs.is_empty() {
                step["inputs"] = inputs.into();
            }
            seen.steps.push(step);
            if let Some(span) = vertex.meta.span {
                let range = json!({"start": {"line": span.line}, "end": {"line": span.end_line}});
                seen.locations.insert(format!("step{n}"), json!({"locations": [{"ranges": [range]}]}));
            }
            seen.notice(&vertex.op);
        }
        seen.contexts.sort();
        seen.contexts.dedup();
        seen
    }

    fn notice(&mut self, op: &Op) {
        match op {
            Op::Source(SourceOp::Context(ContextSource { name, .. })) => self.contexts.push(name.clone()),
            Op::Exec(exec) => {
                self.uses_network |= exec.network != Network::None;
                for mount in &exec.mounts {
                    match &mount.kind {
                        MountKind::Secret { id, required, .. } => {
                            *self.secrets.entry(id.clone()).or_insert(true) &= !required;
                        }
                        MountKind::Ssh { id, required, .. } => {
                            *self.agents.entry(id.clone()).or_insert(true) &= !required;
                        }
                        _ => {}
                    }
                }
            }
            _ => {}
        }
    }
}

impl Evidence {
    /// The predicate about a result with these layers.
    pub(crate) fn predicate(&self, options: &ProvenanceOptions, layers: &[Descriptor]) -> Value {
        let mut predicate = match options.version {
            SlsaVersion::V1 => self.v1(options, layers),
            SlsaVersion::V02 => self.v02(options, layers),
        };
        redact(&mut predicate);
        predicate
    }

    fn v1(&self, options: &ProvenanceOptions, layers: &[Descriptor]) -> Value {
        let mut internal = json!({"builderPlatform": Platform::host().to_string()});
        let mut metadata = self.run_metadata(options, ["invocationId", "startedOn", "finishedOn"]);
        metadata["buildkit_hermetic"] = self.is_hermetic().into();
        metadata["buildkit_reproducible"] = options.reproducible.into();
        metadata["buildkit_completeness"] = json!({
            "request": self.is_request_complete(options.mode),
            "resolvedDependencies": self.knows_all_materials(),
        });
        metadata["buildkit_metadata"] = self.extra(options.mode, layers);
        if options.mode == ProvenanceMode::Max {
            internal["buildConfig"] = json!({"llbDefinition": self.graph.steps});
        }
        json!({
            "buildDefinition": {
                "buildType": BUILD_TYPE_V1,
                "externalParameters": {
                    "configSource": self.config_source("path"),
                    "request": self.parameters(options.mode),
                },
                "internalParameters": internal,
                "resolvedDependencies": self.materials(),
            },
            "runDetails": {"builder": {"id": options.builder_id}, "metadata": metadata},
        })
    }

    fn v02(&self, options: &ProvenanceOptions, layers: &[Descriptor]) -> Value {
        let mut metadata = self.run_metadata(options, ["buildInvocationID", "buildStartedOn", "buildFinishedOn"]);
        metadata["completeness"] = json!({
            "parameters": self.is_request_complete(options.mode),
            "environment": true,
            "materials": self.knows_all_materials(),
        });
        metadata["reproducible"] = options.reproducible.into();
        metadata[format!("{BUILD_TYPE_V02}#hermetic")] = self.is_hermetic().into();
        metadata[format!("{BUILD_TYPE_V02}#metadata")] = self.extra(options.mode, layers);
        let mut predicate = json!({
            "builder": {"id": options.builder_id},
            "buildType": BUILD_TYPE_V02,
            "materials": self.materials(),
            "invocation": {
                "configSource": self.config_source("entryPoint"),
                "parameters": self.parameters(options.mode),
                "environment": {"platform": Platform::host().to_string()},
            },
            "metadata": metadata,
        });
        if options.mode == ProvenanceMode::Max {
            predicate["buildConfig"] = json!({"llbDefinition": self.graph.steps});
        }
        predicate
    }

    fn materials(&self) -> Vec<Value> {
        let mut all: Vec<&Material> = self.materials.iter().chain(&self.context).collect();
        all.sort();
        all.dedup();
        all.into_iter().map(Material::to_json).collect()
    }

    fn config_source(&self, path: &str) -> Value {
        let mut source = self.context.as_ref().map_or_else(|| json!({}), Material::to_json);
        source[path] = self.asked.path.clone().into();
        source
    }

    fn parameters(&self, mode: ProvenanceMode) -> Value {
        let is_value = |name: &str| name.starts_with("build-arg:") || name.starts_with("label:");
        let told = |name: &str| mode == ProvenanceMode::Max || !is_value(name);
        let arguments: BTreeMap<&String, &String> =
            self.asked.arguments.iter().filter(|(name, _)| told(name)).collect();
        let mut locals: Vec<Value> = self.graph.contexts.iter().map(|name| json!({"name": name})).collect();
        if self.context.is_none() {
            locals.push(json!({"name": "dockerfile"}));
        }
        let mut parameters = json!({"frontend": FRONTEND, "args": arguments});
        if !locals.is_empty() {
            parameters["locals"] = locals.into();
        }
        let ids = |all: &BTreeMap<String, bool>| -> Vec<Value> {
            all.iter()
                .map(|(id, optional)| if *optional { json!({"id": id, "optional": true}) } else { json!({"id": id}) })
                .collect()
        };
        for (name, all) in [("secrets", &self.graph.secrets), ("ssh", &self.graph.agents)] {
            if mode == ProvenanceMode::Max && !all.is_empty() {
                parameters[name] = ids(all).into();
            }
        }
        parameters
    }

    /// When it was built and under what name, if that is to be told.
    fn run_metadata(&self, options: &ProvenanceOptions, names: [&str; 3]) -> Value {
        let mut metadata = json!({});
        if let Some((id, started)) = &self.run
            && options.mode == ProvenanceMode::Max
            && !options.reproducible
        {
            metadata[names[0]] = id.clone().into();
            metadata[names[1]] = written(*started).into();
            metadata[names[2]] = written(SystemTime::now()).into();
        }
        metadata
    }

    /// What BuildKit says beyond the specification.
    fn extra(&self, mode: ProvenanceMode, layers: &[Descriptor]) -> Value {
        let mut extra = json!({});
        if !self.asked.vcs.is_empty() {
            extra["vcs"] = json!(self.asked.vcs);
        }
        if mode == ProvenanceMode::Min {
            return extra;
        }
        let info = json!({
            "filename": self.dockerfile.name,
            "language": "Dockerfile",
            "data": STANDARD.encode(without_credentials(&self.dockerfile.text)),
        });
        extra["source"] = json!({"infos": [info], "locations": self.graph.locations});
        if let Some(result) = &self.graph.result
            && !layers.is_empty()
        {
            extra["layers"] = json!({result: [layers]});
        }
        extra
    }

    fn is_request_complete(&self, mode: ProvenanceMode) -> bool {
        let is_value = |name: &String| name.starts_with("build-arg:") || name.starts_with("label:");
        mode == ProvenanceMode::Max || !self.asked.arguments.keys().any(is_value)
    }

    /// Files of this machine have no name that others could check.
    fn knows_all_materials(&self) -> bool {
        self.graph.contexts.is_empty()
    }

    fn is_hermetic(&self) -> bool {
        self.knows_all_materials() && !self.graph.uses_network
    }
}

fn written(time: SystemTime) -> String {
    OffsetDateTime::from(time).format(&Rfc3339).unwrap_or_default()
}

/// Takes credentials out of every text.
fn redact(value: &mut Value) {
    match value {
        Value::String(text) if text.contains("://") => *text = without_credentials(text),
        Value::Array(all) => all.iter_mut().for_each(redact),
        Value::Object(members) => members.values_mut().for_each(redact),
        _ => {}
    }
}

/// A text whose addresses have no user and no password.
pub(super) fn without_credentials(text: &str) -> String {
    let mut cleaned = String::with_capacity(text.len());
    let mut rest = text;
    while let Some(at) = rest.find("://") {
        let start = rest[..at]
            .rfind(|c: char| !c.is_ascii_alphanumeric() && !"+-.".contains(c))
            .map_or(0, |at| at + rest[at..].chars().next().map_or(1, char::len_utf8));
        let after = at + 3;
        let ends = |c: char| c.is_whitespace() || "\"'`<>|;()/?#".contains(c);
        let end = after + rest[after..].find(ends).unwrap_or(rest.len() - after);
        cleaned.push_str(&rest[..start]);
        cleaned.push_str(&redacted(&rest[start..end]));
        rest = &rest[end..];
    }
    cleaned.push_str(rest);
    cleaned
}

#[cfg(test)]
#[path = "provenance_tests.rs"]
mod tests;
