//! `--output` and its relatives, as buildx reads them.

use std::path::PathBuf;

use rbuild_engine::{
    Annotated, Annotation, Destination, FilesMode, ImageOutput, Keep, MediaTypes, Output, OutputStream, Packing, Push,
    oci::Compression, oci::Platform, oci::Reference,
};

use crate::commands::build::tag;
use crate::error::CliError;
use crate::terminal::clean_line;

/// What becomes of the result.
#[derive(Debug, Default, clap::Args)]
pub struct OutputArgs {
    /// What becomes of the result: a directory, '-' for a tar archive on standard output, or
    /// type=local|tar|oci|docker|image|registry|cacheonly[,dest=PATH][,...]; may be repeated
    #[arg(short, long = "output", value_name = "OUTPUT")]
    outputs: Vec<String>,
    /// Send the image to its registry
    #[arg(long)]
    push: bool,
    /// Put the image into the store, besides other outputs
    #[arg(long)]
    load: bool,
    /// Annotation; TYPE is manifest (default), index, manifest-descriptor or index-descriptor
    #[arg(long = "annotation", value_name = "[TYPE[PLATFORM]:]KEY=VALUE")]
    annotations: Vec<String>,
    /// Write what the build made, as JSON, to a file
    #[arg(long, value_name = "FILE")]
    pub metadata_file: Option<PathBuf>,
}

/// What outputs may do to this machine.
#[derive(Debug, Clone, Copy, Default)]
pub struct Outward {
    /// No archive goes there.
    pub stdout_is_terminal: bool,
    /// `--allow buildx.local.delete`.
    pub may_delete: bool,
}

impl OutputArgs {
    /// The outputs of a build whose result has these tags. None means the store.
    ///
    /// # Errors
    /// An output that is none, in buildx's words; one that may not be.
    pub fn read(&self, tags: &[String], outward: Outward) -> Result<Vec<Output>, CliError> {
        let annotations = self.annotations.iter().map(|text| annotation(text)).collect::<Result<Vec<_>, _>>()?;
        let annotations: Vec<Annotation> = annotations.into_iter().flatten().collect();
        let reader = Reader { tags, annotations: &annotations, outward };
        let mut outputs = self.outputs.iter().map(|text| reader.output(text)).collect::<Result<Vec<_>, _>>()?;
        if self.push {
            let mut used = false;
            for output in &mut outputs {
                if let Output::Image(image) = output {
                    image.push.get_or_insert_default();
                    used = true;
                }
            }
            if !used {
                outputs.push(reader.image(Some(Push::default()))?);
            }
        }
        let mut image = false;
        for output in &mut outputs {
            if let Output::Image(own) = output {
                image = true;
                if self.load {
                    own.keep = Keep::Always;
                }
            }
        }
        if self.load && !image || outputs.is_empty() && !annotations.is_empty() {
            outputs.push(reader.image(None)?);
        }
        two_to_one_place(&outputs)?;
        if self.uses_stdout() && self.outputs.iter().filter(|text| to_stdout(text)).count() > 1 {
            return Err(CliError::new("several outputs cannot all go to standard output"));
        }
        Ok(outputs)
    }

    /// Whether a result goes to standard output.
    pub fn uses_stdout(&self) -> bool {
        self.outputs.iter().any(|text| to_stdout(text))
    }
}

/// # Errors
/// A file or directory that two outputs would write.
fn two_to_one_place(outputs: &[Output]) -> Result<(), CliError> {
    let mut seen: Vec<PathBuf> = Vec::new();
    for output in outputs {
        let dest = match output {
            Output::Archive { dest: Destination::File(path), .. }
            | Output::Tar { dest: Destination::File(path), .. } => path,
            Output::Layout { dest, .. } | Output::Files { dest, .. } => dest,
            _ => continue,
        };
        let place = std::path::absolute(dest).unwrap_or_else(|_| dest.clone());
        if seen.contains(&place) {
            let shown = clean_line(&dest.display().to_string());
            return Err(CliError::new(format!("duplicate output destination: {shown}")));
        }
        seen.push(place);
    }
    Ok(())
}

fn to_stdout(text: &str) -> bool {
    if text == "-" {
        return true;
    }
    let fields = fields(text);
    let value = |name: &str| {
        let pairs = fields.iter().filter_map(|field| field.split_once('='));
        pairs.filter(|(key, _)| key.trim() == name).map(|(_, value)| value.to_owned()).next_back()
    };
    match (value("type").as_deref(), value("dest").as_deref()) {
        (Some("tar" | "oci" | "docker"), Some("-")) => true,
        (Some("tar" | "oci"), None) => value("tar").is_none_or(|tar| boolean("tar", &tar).unwrap_or(true)),
        _ => false,
    }
}

struct Reader<'a> {
    tags: &'a [String],
    annotations: &'a [Annotation],
    outward: Outward,
}

/// One output as it is being read.
struct Draft<'a> {
    reader: &'a Reader<'a>,
    kind: String,
    dest: Option<String>,
    names: Option<Vec<String>>,
    push: bool,
    how: Push,
    keep: Keep,
    canonical: bool,
    dangling: Option<Reference>,
    tar: bool,
    split: Option<bool>,
    mode: FilesMode,
    packing: Packing,
}

impl Reader<'_> {
    fn image(&self, push: Option<Push>) -> Result<Output, CliError> {
        let packing = Packing { annotations: self.annotations.to_vec(), ..Packing::default() };
        let names = self.tags.iter().map(|name| tag(name)).collect::<Result<_, _>>()?;
        Ok(Output::Image(ImageOutput { names, push, packing, ..ImageOutput::default() }))
    }

    fn output(&self, text: &str) -> Result<Output, CliError> {
        let fields = fields(text);
        if let [one] = fields.as_slice()
            && !one.contains('=')
        {
            return match one.as_str() {
                "-" => Ok(Output::Tar { dest: self.stream("tar")?, split: None }),
                "" => Err(CliError::new("type is required for output")),
                dir if std::path::Path::new(dir).is_file() => {
                    Err(CliError::new(format!("destination directory {} is a file", clean_line(dir))))
                }
                dir => Ok(Output::Files { dest: PathBuf::from(dir), split: None, mode: FilesMode::Copy }),
            };
        }
        let packing = Packing { annotations: self.annotations.to_vec(), ..Packing::default() };
        let mut draft = Draft {
            reader: self,
            kind: String::new(),
            dest: None,
            names: None,
            push: false,
            how: Push::default(),
            keep: Keep::default(),
            canonical: false,
            dangling: None,
            tar: true,
            split: None,
            mode: FilesMode::Copy,
            packing,
        };
        let mut attributes = Vec::new();
        for field in &fields {
            let Some((key, value)) = field.split_once('=') else {
                return Err(CliError::new(format!("invalid value {}", clean_line(field))));
            };
            match key.trim().to_ascii_lowercase().as_str() {
                "type" => value.clone_into(&mut draft.kind),
                _ => attributes.push((key.trim(), value)),
            }
        }
        if draft.kind.is_empty() {
            return Err(CliError::new("type is required for output"));
        }
        for (key, value) in attributes {
            draft.set(key, value)?;
        }
        draft.finish()
    }

    fn stream(&self, kind: &str) -> Result<Destination, CliError> {
        if self.outward.stdout_is_terminal {
            let message = format!("dest file is required for {kind} exporter. refusing to write to console");
            return Err(CliError::new(message));
        }
        Ok(Destination::Stream(OutputStream::new(std::io::stdout())))
    }
}

impl Draft<'_> {
    fn set(&mut self, key: &str, value: &str) -> Result<(), CliError> {
        let kind = self.kind.clone();
        let image = matches!(kind.as_str(), "image" | "registry" | "docker" | "oci");
        let in_store = matches!(kind.as_str(), "image" | "registry");
        let unknown = || {
            let (key, kind) = (clean_line(key), clean_line(&kind));
            Err(CliError::new(format!("option {key} of output type={kind} is not supported yet")))
        };
        match key {
            "dest" if !matches!(kind.as_str(), "image" | "registry" | "cacheonly") => {
                self.dest = Some(value.to_owned())
            }
            "name" if image => {
                let names = value.split(',').map(str::trim).filter(|name| !name.is_empty());
                self.names = Some(names.map(str::to_owned).collect());
            }
            "push" if in_store => self.push = boolean(key, value)?,
            "push-by-digest" if in_store => self.how.by_digest = boolean(key, value)?,
            "insecure" | "registry.insecure" if in_store => self.how.insecure = boolean(key, value)?,
            "name-canonical" if in_store => self.canonical = boolean(key, value)?,
            "dangling-name-prefix" if in_store => self.dangling = Some(tag(value)?),
            "tar" if matches!(kind.as_str(), "oci" | "docker") => self.tar = boolean(key, value)?,
            "platform-split" if matches!(kind.as_str(), "local" | "tar") => self.split = Some(boolean(key, value)?),
            "mode" if kind == "local" => {
                self.mode = match value {
                    "copy" => FilesMode::Copy,
                    "delete" if self.reader.outward.may_delete => FilesMode::Delete,
                    "delete" => {
                        let message = "mode=delete of output type=local removes files that the result does not have";
                        return Err(CliError::new(message).with_hint("allow it with --allow buildx.local.delete"));
                    }
                    other => return Err(CliError::new(format!("invalid local output mode {:?}", clean_line(other)))),
                }
            }
            "oci-mediatypes" if image => {
                self.packing.media_types =
                    Some(if boolean(key, value)? { MediaTypes::Oci } else { MediaTypes::Docker });
            }
            "oci-artifact" if image => self.packing.artifacts = boolean(key, value)?,
            "store" if in_store => {
                self.keep = if boolean(key, value)? { Keep::Always } else { Keep::Never };
            }
            // The store keeps every image unpacked.
            "unpack" if image => drop(boolean(key, value)?),
            "compression" if image => self.packing.compression = Some(compression(value)?),
            "compression-level" if image => {
                let level = value.parse().map_err(|_| {
                    CliError::new(format!("non-integer value {} specified for compression-level", clean_line(value)))
                })?;
                self.packing.level = Some(level);
            }
            "force-compression" if image => self.packing.force = boolean(key, value)?,
            "rewrite-timestamp" if image => self.packing.rewrite_timestamps = boolean(key, value)?,
            key if image && key.starts_with("annotation") => {
                let Some(note) = annotation_attribute(key, value)? else { return unknown() };
                self.packing.annotations.push(note);
            }
            _ => return unknown(),
        }
        Ok(())
    }

    /// The image's names; without tags where it is pushed by its digest.
    fn named(&self) -> Result<Vec<Reference>, CliError> {
        let names = self.names.as_deref().unwrap_or(self.reader.tags);
        let named = |name: &String| {
            let reference = tag(name)?;
            if !self.how.by_digest {
                return Ok(reference);
            }
            match Reference::parse_untagged(name) {
                Ok(untagged) if untagged.tag().is_none() => Ok(untagged),
                _ => Err(CliError::new(format!("can't push tagged ref {} by digest", clean_line(name)))),
            }
        };
        names.iter().map(named).collect()
    }

    fn image(self) -> Result<Output, CliError> {
        let names = self.named()?;
        let push = (self.push || self.kind == "registry").then_some(self.how);
        if push.is_none() && self.how.by_digest {
            return Err(CliError::new("push-by-digest needs push=true"));
        }
        let Draft { keep, canonical, dangling, packing, .. } = self;
        Ok(Output::Image(ImageOutput { names, push, keep, canonical, dangling, packing }))
    }

    fn finish(self) -> Result<Output, CliError> {
        if matches!((self.kind.as_str(), self.tar, &self.dest), ("image" | "registry", ..) | ("docker", true, None)) {
            check_packing(&self.packing)?;
            return self.image();
        }
        let names = self.named()?;
        let packing = self.packing;
        check_packing(&packing)?;
        let kind = self.kind.as_str();
        let dest = self.dest;
        let file = |dest: Option<String>| match dest.as_deref() {
            None | Some("-" | "") => self.reader.stream(kind),
            Some(path) => match std::path::Path::new(path).is_dir() {
                true => Err(CliError::new(format!("destination file {} is a directory", clean_line(path)))),
                false => Ok(Destination::File(PathBuf::from(path))),
            },
        };
        let dir = |dest: Option<String>| match dest.as_deref() {
            None | Some("") => Err(CliError::new(format!("dest is required for {kind} exporter"))),
            Some("-") => Err(CliError::new(format!("dest cannot be stdout for {kind} exporter"))),
            Some(path) => match std::path::Path::new(path).is_file() {
                true => Err(CliError::new(format!("destination directory {} is a file", clean_line(path)))),
                false => Ok(PathBuf::from(path)),
            },
        };
        Ok(match kind {
            "local" => Output::Files { dest: dir(dest)?, split: self.split, mode: self.mode },
            "tar" => Output::Tar { dest: file(dest)?, split: self.split },
            "oci" | "docker" if !self.tar => Output::Layout { names, dest: dir(dest)?, packing },
            "oci" | "docker" => Output::Archive { names, dest: file(dest)?, packing, several: kind == "oci" },
            "cacheonly" => Output::CacheOnly,
            other => {
                return Err(CliError::new(format!("exporter \"{}\" could not be found", clean_line(other)))
                    .with_hint("outputs are local, tar, oci, docker, image, registry and cacheonly"));
            }
        })
    }
}

fn check_packing(packing: &Packing) -> Result<(), CliError> {
    match packing.force && packing.compression.is_none() {
        true => Err(CliError::new("force-compression needs compression=gzip, zstd or uncompressed")),
        false => Ok(()),
    }
}

/// Fields between commas; a field in double quotes may hold commas, and a quote is written as two.
fn fields(text: &str) -> Vec<String> {
    let mut fields = vec![String::new()];
    let (mut quoted, mut characters) = (false, text.chars().peekable());
    while let Some(character) = characters.next() {
        let last = fields.len() - 1;
        match character {
            '"' if quoted && characters.peek() == Some(&'"') => {
                characters.next();
                fields[last].push('"');
            }
            '"' if quoted || fields[last].is_empty() => quoted = !quoted,
            ',' if !quoted => fields.push(String::new()),
            other => fields[last].push(other),
        }
    }
    fields
}

pub(crate) fn boolean(key: &str, value: &str) -> Result<bool, CliError> {
    match value {
        "1" | "t" | "T" | "true" | "TRUE" | "True" | "" => Ok(true),
        "0" | "f" | "F" | "false" | "FALSE" | "False" => Ok(false),
        _ => Err(CliError::new(format!("non-bool value {} specified for {key}", clean_line(value)))),
    }
}

pub(crate) fn compression(word: &str) -> Result<Compression, CliError> {
    match word {
        "uncompressed" => Ok(Compression::None),
        "gzip" => Ok(Compression::Gzip),
        "zstd" => Ok(Compression::Zstd),
        other => Err(CliError::new(format!("unsupported compression type {}", clean_line(other)))
            .with_hint("compressions are uncompressed, gzip and zstd")),
    }
}

fn annotated(word: &str) -> Result<Annotated, CliError> {
    match word {
        "manifest" => Ok(Annotated::Manifest),
        "index" => Ok(Annotated::Index),
        "manifest-descriptor" => Ok(Annotated::ManifestDescriptor),
        "index-descriptor" => Ok(Annotated::IndexDescriptor),
        other => Err(CliError::new(format!("unknown annotation type \"{}\"", clean_line(other)))),
    }
}

/// `type[platform]`.
fn annotated_on(word: &str) -> Result<(Annotated, Option<Platform>), CliError> {
    match word.strip_suffix(']').and_then(|word| word.split_once('[')) {
        None => Ok((annotated(word)?, None)),
        Some((kind, platform)) => {
            let platform = Platform::parse(platform).map_err(|error| CliError::new(error.to_string()))?;
            Ok((annotated(kind)?, Some(platform.normalized())))
        }
    }
}

/// `--annotation`: one for each type before the colon.
fn annotation(text: &str) -> Result<Vec<Annotation>, CliError> {
    let refuse = || CliError::new(format!("invalid annotation \"{}\", expected key=value", clean_line(text)));
    let (head, value) = text.split_once('=').ok_or_else(refuse)?;
    let (kinds, key) = head.rsplit_once(':').unwrap_or(("manifest", head));
    if key.is_empty() {
        return Err(refuse());
    }
    let on = kinds.split(',').map(annotated_on).collect::<Result<Vec<_>, _>>()?;
    Ok(on.into_iter().map(|(on, platform)| Annotation { on, platform, key: key.into(), value: value.into() }).collect())
}

/// `annotation.KEY`, `annotation-TYPE.KEY` and `annotation-TYPE[PLATFORM].KEY` of an output.
fn annotation_attribute(attribute: &str, value: &str) -> Result<Option<Annotation>, CliError> {
    let Some((head, key)) = attribute.split_once('.') else { return Ok(None) };
    let (on, platform) = match head.strip_prefix("annotation") {
        Some("") => (Annotated::Manifest, None),
        Some(rest) => match rest.strip_prefix('-') {
            Some(word) => annotated_on(word)?,
            None => return Ok(None),
        },
        None => return Ok(None),
    };
    Ok(Some(Annotation { on, platform, key: key.to_owned(), value: value.to_owned() }))
}

#[cfg(test)]
mod tests {
    use super::*;

    fn read(outputs: &[&str]) -> Result<Vec<Output>, CliError> {
        let args =
            OutputArgs { outputs: outputs.iter().map(|text| (*text).to_owned()).collect(), ..Default::default() };
        args.read(&["x".to_owned()], Outward::default())
    }

    #[test]
    fn outputs_are_read_as_buildx_does() {
        for (text, want) in [
            ("out", "Files { dest: \"out\", split: None, mode: Copy }"),
            ("type=local,dest=out,platform-split=true", "Files { dest: \"out\", split: Some(true), mode: Copy }"),
            ("-", "Tar { dest: Stream(OutputStream), split: None }"),
            ("type=tar", "Tar { dest: Stream(OutputStream), split: None }"),
            ("type=tar,dest=o.tar", "Tar { dest: File(\"o.tar\"), split: None }"),
            ("type=cacheonly", "CacheOnly"),
        ] {
            assert_eq!(format!("{:?}", read(&[text]).unwrap()[0]), want, "{text}");
        }
        let image =
            read(&["type=registry,\"name=a,b:1\",compression=zstd,compression-level=3,annotation.k=v"]).unwrap();
        let [Output::Image(ImageOutput { names, push: Some(_), packing, .. })] = image.as_slice() else {
            panic!("{image:?}")
        };
        assert_eq!(names.iter().map(Reference::familiar).collect::<Vec<_>>(), ["a:latest", "b:1"]);
        assert_eq!(
            (packing.compression, packing.level, packing.annotations.len()),
            (Some(Compression::Zstd), Some(3), 1)
        );
        assert!(matches!(&read(&["type=docker"]).unwrap()[0], Output::Image(image) if image.names.len() == 1));
        assert!(matches!(&read(&["type=docker,dest=d"]).unwrap()[0], Output::Archive { several: false, .. }));
        assert!(matches!(&read(&["type=oci,tar=false,dest=d"]).unwrap()[0], Output::Layout { .. }));
    }

    #[test]
    fn outputs_that_are_none() {
        for (text, want) in [
            ("", "type is required for output"),
            ("dest=x", "type is required for output"),
            ("type=local", "dest is required for local exporter"),
            ("type=local,dest=-", "dest cannot be stdout for local exporter"),
            ("type=oci,tar=false", "dest is required for oci exporter"),
            ("type=nope", "exporter \"nope\" could not be found"),
            ("type=tar,dest=/", "destination file / is a directory"),
            ("type=image,push=maybe", "non-bool value maybe specified for push"),
            ("type=image,compression=estargz", "unsupported compression type estargz"),
            ("type=image,compression-level=x", "non-integer value x specified for compression-level"),
            ("type=image,store=perhaps", "non-bool value perhaps specified for store"),
            ("type=image,push-by-digest=true", "push-by-digest needs push=true"),
            ("type=image,push=true,push-by-digest=true,name=a:1", "can't push tagged ref a:1 by digest"),
            ("type=local,dest=x,mode=delete", "mode=delete of output type=local removes files"),
            ("type=local,dest=x,mode=move", "invalid local output mode \"move\""),
            ("/dev/../etc/passwd", "destination directory /dev/../etc/passwd is a file"),
            ("type=oci,name=UPPER", "invalid tag \"UPPER\""),
            ("type=local,dest=x,bare", "invalid value bare"),
            ("type=oci,force-compression=true", "force-compression needs compression"),
        ] {
            let error = read(&[text]).map(|all| format!("{all:?}")).unwrap_err();
            assert!(error.message.starts_with(want), "{text}: {}", error.message);
        }
        let args = OutputArgs { outputs: vec!["-".into()], ..Default::default() };
        let error = args.read(&[], Outward { stdout_is_terminal: true, may_delete: false }).unwrap_err();
        assert_eq!(error.message, "dest file is required for tar exporter. refusing to write to console");
        assert!(read(&["-", "type=oci"]).is_err());
        let twice = read(&["type=tar,dest=a.tar", "type=oci,dest=./a.tar"]).unwrap_err();
        assert_eq!(twice.message, "duplicate output destination: ./a.tar");
    }

    #[test]
    fn pushing_and_loading_add_what_is_not_there() {
        let with = |outputs: &[&str], push, load| {
            let outputs = outputs.iter().map(|text| (*text).to_owned()).collect();
            let all = OutputArgs { outputs, push, load, ..Default::default() }.read(&[], Outward::default()).unwrap();
            all.iter()
                .map(|o| match o {
                    Output::Image(image) => match image.push {
                        Some(_) => 'p',
                        None => 'i',
                    },
                    _ => 'o',
                })
                .collect::<String>()
        };
        assert_eq!(with(&[], true, false), "p");
        assert_eq!(with(&["type=image"], true, true), "p");
        assert_eq!(with(&["out"], true, false), "op");
        assert_eq!(with(&["out"], false, true), "oi");
        assert_eq!(with(&[], false, false), "");
        assert_eq!(with(&[], false, true), "i");
    }

    #[test]
    fn annotations_say_what_they_are_on() {
        let all = annotation("manifest[linux/arm64],index:org.x=a=b").unwrap();
        assert_eq!((all[0].on, all[0].key.as_str(), all[0].value.as_str()), (Annotated::Manifest, "org.x", "a=b"));
        assert_eq!(
            (all[0].platform.as_ref().unwrap().to_string().as_str(), all[1].on),
            ("linux/arm64", Annotated::Index)
        );
        assert_eq!(annotation("k=").unwrap()[0].value, "");
        assert_eq!(annotation("index-descriptor:k=v").unwrap()[0].on, Annotated::IndexDescriptor);
        assert_eq!(annotation("manifest-descriptor[linux/amd64]:k=v").unwrap()[0].on, Annotated::ManifestDescriptor);
        assert!(annotation("nope:k=v").unwrap_err().message.contains("unknown annotation type \"nope\""));
        assert!(annotation("k").unwrap_err().message.contains("expected key=value"));
    }
}
