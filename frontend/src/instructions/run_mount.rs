//! `RUN --mount=type=…`: a list of keys and values, checked once their variables are known.

use rbuild_graph::ops::{CacheSharing, Mount, MountKind};

use super::Text;
use crate::Diagnostic;
use crate::lower::paths;
use crate::lower::stage::{Inputs, StageRun};
use rbuild_graph::pattern::clean_path;

/// A mount as written.
#[derive(Debug, Clone)]
pub(crate) struct RunMount {
    fields: Vec<Field>,
    pub(crate) from: Option<Text>,
    /// The whole flag.
    flag: Text,
}

#[derive(Debug, Clone)]
struct Field {
    text: String,
    key: String,
    value: Option<String>,
}

const TYPES: [&str; 5] = ["bind", "cache", "tmpfs", "secret", "ssh"];
const SHARING: [&str; 3] = ["shared", "private", "locked"];
const KEYS: [&str; 19] = [
    "type",
    "from",
    "source",
    "target",
    "readonly",
    "id",
    "sharing",
    "required",
    "size",
    "mode",
    "uid",
    "gid",
    "src",
    "dst",
    "destination",
    "ro",
    "rw",
    "readwrite",
    "env",
];

/// The values of a mount.
#[derive(Debug, Default)]
struct Values {
    kind: String,
    source: String,
    target: String,
    read_only: Option<bool>,
    id: String,
    sharing: Option<CacheSharing>,
    required: bool,
    size: Option<u64>,
    mode: Option<u32>,
    uid: Option<u32>,
    gid: Option<u32>,
    env: Option<String>,
}

impl RunMount {
    /// An option as written, by any of its names; empty when it has no value.
    pub(crate) fn option(&self, names: &[&str]) -> Option<&str> {
        let field = self.fields.iter().rev().find(|field| names.contains(&field.key.as_str()))?;
        Some(field.value.as_deref().unwrap_or_default())
    }

    pub(super) fn read(flag: &Text) -> Result<RunMount, Diagnostic> {
        let mut mount = RunMount { fields: Vec::new(), from: None, flag: flag.clone() };
        for text in comma_separated(&flag.value, "mounts").map_err(|problem| problem.at(flag.span))? {
            let (key, value) = match text.split_once('=') {
                Some((key, value)) => (key, Some(value.to_owned())),
                None => (text.as_str(), None),
            };
            let key = key.to_lowercase();
            if key != "from" {
                mount.fields.push(Field { key, value, text });
                continue;
            }
            let value = value.unwrap_or_default();
            if value.find('$').is_some_and(|at| at + 1 != value.len()) {
                let message = "'from' doesn't support variable expansion, define alias stage instead";
                return Err(Diagnostic::error(message).at(flag.span));
            }
            mount.from = Some(Text { value, span: flag.span }).filter(|from| !from.value.is_empty());
        }
        Ok(mount)
    }

    /// `agents` is how many ssh mounts came before.
    pub(super) fn lower(
        &self,
        stage: &mut StageRun<'_, '_>,
        inputs: &mut Inputs,
        agents: usize,
    ) -> Result<Mount, Diagnostic> {
        let mut values = Values { kind: "bind".into(), ..Values::default() };
        for field in &self.fields {
            let expanded = match &field.value {
                Some(value) => Some(stage.expand_path(&Text { value: value.clone(), span: self.flag.span })?.value),
                None => None,
            };
            values.set(field, expanded).map_err(|problem| problem.at(self.flag.span))?;
        }
        values.check(self.from.as_ref()).map_err(|problem| problem.at(self.flag.span))?;
        match values.kind.as_str() {
            "secret" => values.secret(stage).map_err(|problem| problem.at(self.flag.span)),
            "ssh" => Ok(values.ssh(stage, agents)),
            _ => self.files(values, stage, inputs),
        }
    }

    /// Bind, cache and tmpfs.
    fn files(&self, values: Values, stage: &mut StageRun<'_, '_>, inputs: &mut Inputs) -> Result<Mount, Diagnostic> {
        let target = paths::absolute(stage.cwd(), &values.target);
        if target == "/" {
            let problem = Diagnostic::error(format!("invalid mount target {target:?}")).at(self.flag.span);
            return Err(problem.expected("target=<path in the container>"));
        }
        let source = paths::source(&values.source);
        let tree = match (&self.from, values.kind.as_str()) {
            (_, "tmpfs") | (None, "cache") => None,
            (Some(from), _) => Some(stage.source_tree(from, &source)?),
            (None, _) => Some(Some(stage.context(&source))),
        };
        let input = tree.flatten().map(|edge| inputs.index(edge));
        let cache = values.kind == "cache";
        let kind = match values.kind.as_str() {
            "tmpfs" => MountKind::Tmpfs { size: values.size.filter(|size| *size > 0) },
            "cache" => MountKind::Cache {
                id: stage.cache_id(if values.id.is_empty() { clean_path(&values.target) } else { values.id }),
                sharing: values.sharing.unwrap_or(CacheSharing::Shared),
                mode: values.mode.unwrap_or(0o755),
                uid: values.uid.unwrap_or(0),
                gid: values.gid.unwrap_or(0),
            },
            _ => MountKind::Bind,
        };
        Ok(Mount {
            target: target.into_bytes(),
            input,
            output: None,
            read_only: values.read_only.unwrap_or(!cache && values.kind != "tmpfs"),
            selector: (source != "." && values.kind != "tmpfs").then(|| source.into_bytes()),
            kind,
        })
    }
}

impl Values {
    fn set(&mut self, field: &Field, value: Option<String>) -> Result<(), Diagnostic> {
        let key = field.key.as_str();
        let Some(value) = value else {
            match key {
                "readonly" | "ro" => self.read_only = Some(true),
                "readwrite" | "rw" => self.read_only = Some(false),
                "required" => {
                    self.only_for(key, &["secret", "ssh"])?;
                    self.required = true;
                }
                _ => {
                    let message = format!("invalid field '{}' must be a key=value pair", field.text);
                    return Err(Diagnostic::error(message).suggest(key, KEYS));
                }
            }
            return Ok(());
        };
        let invalid = || Diagnostic::error(format!("invalid value for {key}: {value}"));
        let invalid_number = || Diagnostic::error(format!("invalid value {value} for {key}"));
        match key {
            "type" => {
                self.kind = value.to_lowercase();
                if !TYPES.contains(&self.kind.as_str()) {
                    let problem = Diagnostic::error(format!("unsupported mount type {value:?}"));
                    return Err(problem.suggest(&self.kind, TYPES).expected(TYPES.join(", ")));
                }
            }
            "source" | "src" => self.source = value,
            "target" | "dst" | "destination" => self.target = value,
            "readonly" | "ro" => self.read_only = Some(boolean(&value).ok_or_else(invalid)?),
            "readwrite" | "rw" => self.read_only = Some(!boolean(&value).ok_or_else(invalid)?),
            "required" => {
                self.only_for(key, &["secret", "ssh"])?;
                self.required = boolean(&value).ok_or_else(invalid)?;
            }
            "size" => {
                self.only_for(key, &["tmpfs"])?;
                self.size = Some(bytes(&value).ok_or_else(invalid)?);
            }
            "id" => self.id = value,
            "sharing" => {
                self.sharing = Some(match value.to_lowercase().as_str() {
                    "shared" => CacheSharing::Shared,
                    "private" => CacheSharing::Private,
                    "locked" => CacheSharing::Locked,
                    other => {
                        let problem = Diagnostic::error(format!("unsupported sharing value {value:?}"));
                        return Err(problem.suggest(other, SHARING).expected(SHARING.join(", ")));
                    }
                });
            }
            "mode" => {
                let mode = u32::from_str_radix(&value, 8).ok().filter(|mode| *mode <= 0o7777);
                self.mode = Some(mode.ok_or_else(invalid_number)?);
            }
            "uid" => self.uid = Some(id(&value).ok_or_else(invalid_number)?),
            "gid" => self.gid = Some(id(&value).ok_or_else(invalid_number)?),
            "env" => self.env = Some(value),
            _ => {
                let problem = Diagnostic::error(format!("unexpected key '{key}' in '{}'", field.text));
                return Err(problem.suggest(key, KEYS));
            }
        }
        Ok(())
    }

    fn only_for(&self, key: &str, kinds: &[&str]) -> Result<(), Diagnostic> {
        if kinds.contains(&self.kind.as_str()) {
            return Ok(());
        }
        Err(Diagnostic::error(format!("unexpected key '{key}' for mount type '{}'", self.kind)))
    }

    fn check(&self, from: Option<&Text>) -> Result<(), Diagnostic> {
        let owned = matches!(self.kind.as_str(), "secret" | "ssh" | "cache");
        let numbers = [("mode", self.mode), ("uid", self.uid), ("gid", self.gid)];
        if let Some((key, _)) = numbers.iter().find(|(_, value)| !owned && value.is_some()) {
            return Err(Diagnostic::error(format!("{key} not allowed for {:?} type mounts", self.kind)));
        }
        let secret = self.kind == "secret";
        let message = if secret && from.is_some() {
            "secret mount should not have a from".to_owned()
        } else if secret && self.sharing.is_some() {
            "secret mount should not define sharing".to_owned()
        } else if secret && self.source.is_empty() && self.target.is_empty() && self.id.is_empty() {
            "invalid secret mount. one of source, target required".to_owned()
        } else if secret && !self.source.is_empty() && !self.id.is_empty() {
            "both source and id can't be set".to_owned()
        } else if self.sharing.is_some() && self.kind != "cache" {
            format!("invalid cache sharing set for {} mount", self.kind)
        } else {
            return Ok(());
        };
        Err(Diagnostic::error(message))
    }

    /// A file below `/run/secrets`, unless it is only a variable.
    fn secret(self, stage: &StageRun<'_, '_>) -> Result<Mount, Diagnostic> {
        let last = |path: &str| clean_path(path).rsplit('/').next().unwrap_or_default().to_owned();
        let named = [&self.source, &self.id].into_iter().find(|name| !name.is_empty()).cloned();
        let id = named.unwrap_or_else(|| last(&self.target));
        let file = self.env.is_none() || !self.target.is_empty();
        // A variable without a name has the secret's.
        let env = self.env.map(|name| if name.is_empty() { id.clone() } else { name });
        let target = match self.target.as_str() {
            "" => format!("/run/secrets/{}", last(&id)),
            target => paths::absolute(stage.cwd(), target),
        };
        if target == "/" {
            return Err(Diagnostic::error(format!("invalid mount target {target:?}")));
        }
        Ok(Mount {
            target: target.into_bytes(),
            input: None,
            output: None,
            read_only: true,
            selector: None,
            kind: MountKind::Secret {
                id,
                env,
                file,
                required: self.required,
                mode: self.mode.unwrap_or(0o400),
                uid: self.uid.unwrap_or(0),
                gid: self.gid.unwrap_or(0),
            },
        })
    }

    fn ssh(self, stage: &StageRun<'_, '_>, agents: usize) -> Mount {
        let target = match self.target.as_str() {
            "" => format!("/run/buildkit/ssh_agent.{agents}"),
            target => paths::absolute(stage.cwd(), target),
        };
        Mount {
            target: target.into_bytes(),
            input: None,
            output: None,
            read_only: true,
            selector: None,
            kind: MountKind::Ssh {
                id: if self.id.is_empty() { "default".into() } else { self.id },
                required: self.required,
                mode: self.mode.unwrap_or(0o600),
                uid: self.uid.unwrap_or(0),
                gid: self.gid.unwrap_or(0),
            },
        }
    }
}

/// Fields between commas; one in quotes may hold commas, and quotes doubled.
pub(super) fn comma_separated(text: &str, what: &str) -> Result<Vec<String>, Diagnostic> {
    let unclosed =
        || Diagnostic::error(format!("failed to parse csv {what}: extraneous or missing \" in quoted-field"));
    let mut fields = Vec::new();
    let mut rest = text;
    loop {
        let mut field = String::new();
        if let Some(mut quoted) = rest.strip_prefix('"') {
            loop {
                let (inner, after) = quoted.split_once('"').ok_or_else(unclosed)?;
                field.push_str(inner);
                match after.strip_prefix('"') {
                    Some(more) => {
                        field.push('"');
                        quoted = more;
                    }
                    None => {
                        rest = after;
                        break;
                    }
                }
            }
        } else {
            let end = rest.find(',').unwrap_or(rest.len());
            field.push_str(&rest[..end]);
            rest = &rest[end..];
        }
        fields.push(field);
        match rest.strip_prefix(',') {
            Some(more) => rest = more,
            None if rest.is_empty() => return Ok(fields),
            None => return Err(unclosed()),
        }
    }
}

pub(super) fn boolean(text: &str) -> Option<bool> {
    match text {
        "1" | "t" | "T" | "TRUE" | "true" | "True" => Some(true),
        "0" | "f" | "F" | "FALSE" | "false" | "False" => Some(false),
        _ => None,
    }
}

/// The highest id is a mark of the kernel's and nobody's.
fn id(text: &str) -> Option<u32> {
    text.parse().ok().filter(|id| *id != u32::MAX)
}

/// `2m`, `1.5g`, `100`, as docker reads sizes of memory.
fn bytes(text: &str) -> Option<u64> {
    let lower = text.trim().to_lowercase();
    let number = lower.trim_end_matches(|c: char| c.is_ascii_alphabetic());
    let unit = lower[number.len()..].trim_end_matches('b').trim_end_matches('i');
    let shift = match unit {
        "" => 0,
        "k" => 10,
        "m" => 20,
        "g" => 30,
        "t" => 40,
        "p" => 50,
        _ => return None,
    };
    let number: f64 = number.trim().parse().ok()?;
    let size = number * (1u64 << shift) as f64;
    (size.is_finite() && size >= 0.0 && size < i64::MAX as f64).then_some(size as u64)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn fields_and_sizes() {
        assert_eq!(comma_separated(r#"a=1,"b=2,""3""",c"#, "mounts").unwrap(), ["a=1", "b=2,\"3\"", "c"]);
        assert!(comma_separated("\"a", "x").is_err() && comma_separated("\"a\"b", "x").is_err());
        assert_eq!(bytes("2m"), Some(2 << 20));
        assert_eq!(bytes("1.5KiB"), Some(1536));
        assert_eq!(bytes("100"), Some(100));
        for bad in ["", "x", "-1", "1x", "nan", "9999999p"] {
            assert_eq!(bytes(bad), None, "{bad}");
        }
        assert_eq!(id("4294967295"), None);
    }
}
