//! `-v`, `--mount` and `--tmpfs`: docker's three ways to say what is mounted where.

use std::collections::BTreeMap;
use std::path::{Component, PathBuf};

use rbuild_engine::containers::{BindDepth, Looks, MountRequest, MountWish, Relabel, VolumeTerms};

const PROPAGATIONS: [&str; 6] = ["private", "rprivate", "shared", "rshared", "slave", "rslave"];

/// `-v [SOURCE:]PATH[:OPTIONS]`.
///
/// # Errors
/// The reason, in docker's words.
pub fn volume(text: &str) -> Result<MountRequest, String> {
    let invalid = || format!("invalid volume specification: '{text}'");
    let parts: Vec<&str> = text.split(':').collect();
    let (source, destination, options) = match parts[..] {
        [destination] => (None, destination, ""),
        [source, destination] => (Some(source), destination, ""),
        [source, destination, options] => (Some(source), destination, options),
        _ => return Err(invalid()),
    };
    if destination.is_empty() || source == Some("") {
        return Err(invalid());
    }
    if !destination.starts_with('/') {
        return Err(format!("{}: mount path must be absolute: '{destination}'", invalid()));
    }
    let (mut read_only, mut copy, mut propagation, mut looks) = (false, true, None, Looks::default());
    for option in options.split(',').filter(|o| !o.is_empty()) {
        match option {
            "ro" => read_only = true,
            // What the caches of other systems do; Linux has none here.
            "rw" | "consistent" | "cached" | "delegated" => {}
            "nocopy" => copy = false,
            "z" | "Z" if looks.label.is_some() => return Err(format!("invalid mode: {options}")),
            "z" => looks.label = Some(Relabel::Shared),
            "Z" => looks.label = Some(Relabel::Private),
            "idmap" => looks.idmap = true,
            other if PROPAGATIONS.contains(&other) => propagation = Some(other.to_owned()),
            other => return Err(format!("invalid mode: {other}")),
        }
    }
    let source = match source {
        Some(path) if path.starts_with('/') => bind(PathBuf::from(path), propagation),
        Some(path) if path.starts_with('.') => bind(absolute(path)?, propagation),
        name => MountWish::Volume { name: name.map(str::to_owned), copy, terms: None },
    };
    Ok(MountRequest { source, destination: destination.to_owned(), read_only, subpath: None, looks })
}

fn bind(source: PathBuf, propagation: Option<String>) -> MountWish {
    MountWish::Bind { source, make: true, propagation, depth: BindDepth::Whole }
}

fn absolute(path: &str) -> Result<PathBuf, String> {
    std::path::absolute(path).map_err(|e| format!("invalid volume source '{path}': {e}"))
}

/// `--tmpfs PATH[:OPTIONS]`.
///
/// # Errors
/// A path that is not absolute.
pub fn tmpfs(text: &str) -> Result<MountRequest, String> {
    let (path, options) = text.split_once(':').unwrap_or((text, ""));
    if !path.starts_with('/') {
        return Err(format!("invalid tmpfs mount: mount path must be absolute: '{path}'"));
    }
    let options: Vec<String> = options.split(',').filter(|o| !o.is_empty()).map(str::to_owned).collect();
    let read_only = options.iter().any(|o| o == "ro");
    let options = options.into_iter().filter(|o| o != "ro" && o != "rw").collect();
    let (destination, looks) = (path.to_owned(), Looks::default());
    Ok(MountRequest { source: MountWish::Tmpfs { options }, destination, read_only, subpath: None, looks })
}

/// The fields of a `--mount` as far as they were given.
#[derive(Default)]
struct Fields {
    kind: Option<String>,
    source: Option<String>,
    target: Option<String>,
    read_only: bool,
    propagation: Option<String>,
    depth: BindDepth,
    /// `bind-recursive=readonly`.
    read_only_below: bool,
    make: bool,
    no_copy: bool,
    driver: Option<String>,
    terms: VolumeTerms,
    tmpfs_size: Option<u64>,
    tmpfs_mode: Option<String>,
    /// For which type, and which.
    subpath: Option<(&'static str, PathBuf)>,
    looks: Looks,
}

/// `--mount type=…,source=…,target=…`.
///
/// # Errors
/// The reason, in docker's words.
pub fn mount(text: &str) -> Result<MountRequest, String> {
    let mut fields = Fields::default();
    for field in split_fields(text) {
        let (key, value) = match field.split_once('=') {
            Some((key, value)) => (key.to_ascii_lowercase(), Some(value)),
            None => (field.to_ascii_lowercase(), None),
        };
        fields.take(&key, value, &field)?;
    }
    fields.finish()
}

/// The comma-separated fields of CSV: one in quotes may hold commas.
pub fn split_fields(text: &str) -> Vec<String> {
    let (mut fields, mut field, mut quoted) = (Vec::new(), String::new(), false);
    for c in text.chars() {
        match c {
            '"' => quoted = !quoted,
            ',' if !quoted => fields.push(std::mem::take(&mut field)),
            c => field.push(c),
        }
    }
    fields.push(field);
    fields
}

/// Takes in `KEY[=VALUE]`.
fn set(pairs: &mut BTreeMap<String, String>, text: &str) {
    let (key, value) = text.split_once('=').unwrap_or((text, ""));
    pairs.insert(key.to_owned(), value.to_owned());
}

/// A path below something: relative, and not leading out of it.
fn below(key: &str, value: &str) -> Result<PathBuf, String> {
    let path = PathBuf::from(value);
    let stays = path.components().all(|part| matches!(part, Component::Normal(_) | Component::CurDir));
    if value.is_empty() || !stays {
        return Err(format!("invalid value for {key}: {value}: it must be a relative path below the mounted tree"));
    }
    Ok(path)
}

impl Fields {
    fn take(&mut self, key: &str, value: Option<&str>, field: &str) -> Result<(), String> {
        let switch = || match value {
            None | Some("true" | "1") => Ok(true),
            Some("false" | "0") => Ok(false),
            Some(other) => Err(format!("invalid value for {key}: {other}")),
        };
        match key {
            "readonly" | "ro" => return switch().map(|on| self.read_only = on),
            "volume-nocopy" => return switch().map(|on| self.no_copy = on),
            "idmap" => return switch().map(|on| self.looks.idmap = on),
            "bind-nonrecursive" => {
                return switch().map(|on| self.depth = if on { BindDepth::Single } else { BindDepth::Whole });
            }
            "bind-create-src" => return switch().map(|on| self.make = on),
            _ => {}
        }
        let value = value.ok_or_else(|| format!("invalid field '{field}' must be a key=value pair"))?;
        match key {
            "type" => self.kind = Some(value.to_ascii_lowercase()),
            "source" | "src" => self.source = Some(value.to_owned()),
            "target" | "dst" | "destination" => self.target = Some(value.to_owned()),
            "bind-propagation" if PROPAGATIONS.contains(&value) => self.propagation = Some(value.to_owned()),
            "relabel" if value == "shared" => self.looks.label = Some(Relabel::Shared),
            "relabel" if value == "private" => self.looks.label = Some(Relabel::Private),
            "bind-recursive" => {
                (self.depth, self.read_only_below) = match value {
                    "enabled" => (BindDepth::Whole, false),
                    "disabled" => (BindDepth::Single, false),
                    "writable" => (BindDepth::WritableBelow, false),
                    // What a read-only bind is anyway.
                    "readonly" => (BindDepth::Whole, true),
                    _ => {
                        return Err(format!(
                            "invalid value for {key}: {value} (must be \"enabled\", \"disabled\", \"writable\", or \"readonly\")"
                        ));
                    }
                }
            }
            // What the caches of other systems do; Linux has none here.
            "consistency" if ["default", "consistent", "cached", "delegated"].contains(&value) => {}
            "tmpfs-size" => self.tmpfs_size = Some(crate::values::bytes(value)?),
            "tmpfs-mode" if value.bytes().all(|b| (b'0'..=b'7').contains(&b)) => {
                self.tmpfs_mode = Some(value.to_owned());
            }
            "volume-driver" => self.driver = Some(value.to_owned()),
            "volume-opt" => set(&mut self.terms.options, value),
            "volume-label" => set(&mut self.terms.labels, value),
            "volume-subpath" => self.subpath = Some(("volume", below(key, value)?)),
            "image-subpath" => self.subpath = Some(("image", below(key, value)?)),
            "bind-propagation" | "tmpfs-mode" | "consistency" | "relabel" => {
                return Err(format!("invalid value for {key}: {value}"));
            }
            _ => return Err(format!("unexpected key '{key}' in '{field}'")),
        }
        Ok(())
    }

    fn finish(self) -> Result<MountRequest, String> {
        let destination = self.target.clone().filter(|t| !t.is_empty()).ok_or("target is required")?;
        let kind = self.kind.as_deref().unwrap_or("volume");
        let for_others = [
            ("bind", self.propagation.is_some() || self.depth != BindDepth::Whole || self.read_only_below || self.make),
            ("volume", self.no_copy || self.driver.is_some() || self.terms != VolumeTerms::default()),
            ("tmpfs", self.tmpfs_size.is_some() || self.tmpfs_mode.is_some()),
            ("volume", self.subpath.as_ref().is_some_and(|(of, _)| *of == "volume")),
            ("image", self.subpath.as_ref().is_some_and(|(of, _)| *of == "image")),
        ];
        if let Some((other, _)) = for_others.iter().find(|(other, given)| *given && *other != kind) {
            return Err(format!("cannot mix '{other}-*' options with mount type '{kind}'"));
        }
        if self.looks != Looks::default() && !matches!(kind, "bind" | "volume") {
            return Err(format!("cannot mix 'idmap' or 'relabel' with mount type '{kind}'"));
        }
        if let Some(driver) = self.driver.filter(|driver| !["", "local"].contains(&driver.as_str())) {
            return Err(format!("error looking up volume plugin {driver}: plugin \"{driver}\" not found"));
        }
        let of_read_only = [("writable", self.depth == BindDepth::WritableBelow), ("readonly", self.read_only_below)];
        if let Some((value, _)) = of_read_only.iter().find(|(_, given)| *given && !self.read_only) {
            return Err(format!("option 'bind-recursive={value}' requires 'readonly' to be specified in conjunction"));
        }
        if self.read_only_below && self.propagation.as_deref() != Some("rprivate") {
            return Err(
                "option 'bind-recursive=readonly' requires 'bind-propagation=rprivate' to be specified in conjunction"
                    .into(),
            );
        }
        let source = match (kind, self.source) {
            ("bind", None) => {
                return Err("invalid mount config for type \"bind\": field Source must not be empty".into());
            }
            ("bind", Some(source)) => {
                let path = if source.starts_with('.') { absolute(&source)? } else { PathBuf::from(source) };
                MountWish::Bind { source: path, make: self.make, propagation: self.propagation, depth: self.depth }
            }
            ("volume", name) => {
                let terms = Some(self.terms).filter(|terms| *terms != VolumeTerms::default()).map(Box::new);
                MountWish::Volume { name: name.filter(|n| !n.is_empty()), copy: !self.no_copy, terms }
            }
            ("tmpfs", None) => {
                let size = self.tmpfs_size.map(|bytes| format!("size={bytes}"));
                let mode = self.tmpfs_mode.map(|mode| format!("mode={mode}"));
                MountWish::Tmpfs { options: size.into_iter().chain(mode).collect() }
            }
            ("tmpfs", Some(_)) => {
                return Err("invalid mount config for type \"tmpfs\": field Source must not be specified".into());
            }
            ("image", Some(name)) if !name.is_empty() => MountWish::Image { name },
            ("image", _) => {
                return Err("invalid mount config for type \"image\": field Source must not be empty".into());
            }
            (other, _) => return Err(format!("invalid mount config: mount type unknown: \"{other}\"")),
        };
        let subpath = self.subpath.map(|(_, path)| path);
        Ok(MountRequest { source, destination, read_only: self.read_only, subpath, looks: self.looks })
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn named(name: &str, copy: bool) -> MountWish {
        MountWish::Volume { name: Some(name.into()), copy, terms: None }
    }

    fn made_of_memory() -> VolumeTerms {
        let pairs = |pairs: &[(&str, &str)]| pairs.iter().map(|(k, v)| ((*k).to_owned(), (*v).to_owned())).collect();
        VolumeTerms {
            options: pairs(&[("type", "tmpfs"), ("device", "tmpfs"), ("o", "size=1m,uid=1")]),
            labels: pairs(&[("a", "b"), ("c", "")]),
        }
    }

    #[test]
    fn volumes() {
        for (text, source, destination, read_only) in [
            ("/h:/c", bind("/h".into(), None), "/c", false),
            ("/h:/c:ro,rslave", bind("/h".into(), Some("rslave".into())), "/c", true),
            ("v:/c", named("v", true), "/c", false),
            ("v:/c:nocopy,ro", named("v", false), "/c", true),
            ("/c", MountWish::Volume { name: None, copy: true, terms: None }, "/c", false),
        ] {
            let want = MountRequest {
                source,
                destination: destination.into(),
                read_only,
                subpath: None,
                looks: Looks::default(),
            };
            assert_eq!(volume(text), Ok(want), "{text}");
        }
        for (text, label, idmap) in [
            ("/h:/c:z", Some(Relabel::Shared), false),
            ("v:/c:ro,Z", Some(Relabel::Private), false),
            ("/h:/c:idmap", None, true),
        ] {
            assert_eq!(volume(text).map(|request| request.looks), Ok(Looks { label, idmap }), "{text}");
        }
        assert!(mount("type=bind,source=/h,target=/c,idmap").unwrap().looks.idmap);
        assert!(mount("type=tmpfs,target=/c,idmap").unwrap_err().contains("cannot mix"));
        assert!(mount("type=volume,source=h,target=/c,relabel=shared").unwrap().looks.label == Some(Relabel::Shared));
        for wrong in ["/a:/b:z,Z", "", ":", "a:", ":/c", "a:b", "/a:/b:ro:x", "/a:/b:nope", "rel"] {
            assert!(volume(wrong).is_err(), "{wrong}");
        }
    }

    #[test]
    fn mounts() {
        for (text, source, read_only) in [
            (
                "type=bind,source=/h,target=/c,readonly",
                MountWish::Bind { source: "/h".into(), make: false, propagation: None, depth: BindDepth::Whole },
                true,
            ),
            (
                "type=bind,source=/h,target=/c,readonly,bind-recursive=writable",
                MountWish::Bind {
                    source: "/h".into(),
                    make: false,
                    propagation: None,
                    depth: BindDepth::WritableBelow,
                },
                true,
            ),
            (
                "type=bind,source=/h,target=/c,bind-nonrecursive,consistency=cached",
                MountWish::Bind { source: "/h".into(), make: false, propagation: None, depth: BindDepth::Single },
                false,
            ),
            (
                "source=v,target=/c,volume-driver=local,volume-opt=type=tmpfs,volume-opt=device=tmpfs,\"volume-opt=o=size=1m,uid=1\",volume-label=a=b,volume-label=c",
                MountWish::Volume { name: Some("v".into()), copy: true, terms: Some(Box::new(made_of_memory())) },
                false,
            ),
            ("type=volume,src=v,dst=/c,volume-nocopy", named("v", false), false),
            ("target=/c", MountWish::Volume { name: None, copy: true, terms: None }, false),
            (
                "type=tmpfs,destination=/c,tmpfs-size=2m,tmpfs-mode=1770",
                MountWish::Tmpfs { options: vec!["size=2097152".into(), "mode=1770".into()] },
                false,
            ),
        ] {
            let want =
                MountRequest { source, destination: "/c".into(), read_only, subpath: None, looks: Looks::default() };
            assert_eq!(mount(text), Ok(want), "{text}");
        }
        for (text, part) in [
            ("source=/x", "target is required"),
            ("type=nosuch,target=/x", "mount type unknown"),
            ("type=bind,target=/x", "Source must not be empty"),
            ("type=tmpfs,source=a,target=/x", "must not be specified"),
            ("type=volume,target=/x,tmpfs-size=1", "cannot mix"),
            ("target", "must be a key=value pair"),
            ("target=/x,nope=1", "unexpected key 'nope'"),
            ("target=/x,volume-driver=nfs", "plugin \"nfs\" not found"),
            ("type=bind,source=/a,target=/x,volume-label=b", "cannot mix 'volume-*' options"),
            ("type=bind,source=/a,target=/x,bind-recursive=some", "invalid value for bind-recursive: some"),
            ("type=bind,source=/a,target=/x,bind-recursive=writable", "requires 'readonly'"),
            ("type=bind,source=/a,target=/x,ro,bind-recursive=readonly", "requires 'bind-propagation=rprivate'"),
            ("type=npipe,source=/a,target=/x", "mount type unknown: \"npipe\""),
            ("target=/x,consistency=some", "invalid value for consistency: some"),
            ("target=/x,volume-subpath=../y", "must be a relative path"),
            ("type=image,target=/x", "Source must not be empty"),
            ("type=bind,source=/a,target=/x,image-subpath=b", "cannot mix"),
        ] {
            let message = mount(text).expect_err(text);
            assert!(message.contains(part), "{text}: {message}");
        }
    }
}
