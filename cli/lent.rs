//! What a build's caller lends to its steps: `--secret`, `--ssh` and `--build-context`, in buildx's syntax and words.

use std::collections::BTreeMap;
use std::ffi::OsStr;
use std::os::unix::ffi::OsStrExt;
use std::os::unix::fs::FileTypeExt;
use std::path::{Path, PathBuf};

use rbuild_engine::{AgentSource, LONGEST_SECRET, LayoutImage, Lent, NamedContext, Secret, SecretSource};
use rbuild_oci::Reference;

use crate::commands::build::is_remote;
use crate::error::CliError;
use crate::mounts::split_fields;
use crate::settings::Settings;
use crate::terminal::clean_line;

/// The agent that `RUN --mount=type=ssh` means when it names none.
const DEFAULT_AGENT: &str = "default";

/// The options themselves.
#[derive(Debug, clap::Args)]
pub struct LentArgs {
    /// Secret for 'RUN --mount=type=secret': id=NAME with src=FILE or env=VARIABLE (default: whichever is called NAME)
    #[arg(long = "secret", value_name = "id=NAME[,src=FILE|,env=VARIABLE]")]
    secrets: Vec<String>,
    /// ssh agent for 'RUN --mount=type=ssh': 'default' for $SSH_AUTH_SOCK, or NAME with a socket or key files
    #[arg(long = "ssh", value_name = "default|NAME[=SOCKET|KEY[,KEY]]")]
    agents: Vec<String>,
    /// What a name in FROM and --from stands for: a directory, docker-image://IMAGE, oci-layout://DIR[:TAG|@DIGEST], a git
    /// repository, the URL of an archive
    #[arg(long = "build-context", value_name = "NAME=PLACE")]
    contexts: Vec<String>,
}

impl LentArgs {
    /// # Errors
    /// An option that is no such thing, a file or socket that is not there.
    pub fn lent(&self, settings: &Settings) -> Result<Lent, CliError> {
        Ok(Lent {
            contexts: self.contexts.iter().map(|text| named_context(text)).collect::<Result<_, _>>()?,
            secrets: self.secrets.iter().map(|text| secret(text, settings)).collect::<Result<_, _>>()?,
            agents: agents(&self.agents, settings)?,
        })
    }
}

fn secret(text: &str, settings: &Settings) -> Result<(String, SecretSource), CliError> {
    let (mut kind, mut id) = (String::new(), String::new());
    let (mut file, mut env) = (String::new(), String::new());
    for field in split_fields(text) {
        let Some((key, value)) = field.split_once('=') else {
            return Err(CliError::new(format!("invalid field '{}' must be a key=value pair", clean_line(&field))));
        };
        match key.to_lowercase().as_str() {
            "type" if value == "file" || value == "env" => value.clone_into(&mut kind),
            "type" => return Err(CliError::new(format!("unsupported secret type \"{}\"", clean_line(value)))),
            "id" => value.clone_into(&mut id),
            "source" | "src" => value.clone_into(&mut file),
            "env" => value.clone_into(&mut env),
            other => {
                let message = format!("unexpected key '{}' in '{}'", clean_line(other), clean_line(&field));
                return Err(CliError::new(message).with_hint("keys are id, src, env and type"));
            }
        }
    }
    if id.is_empty() {
        return Err(CliError::new("secret missing ID"));
    }
    if kind == "env" && env.is_empty() {
        env = std::mem::take(&mut file);
    }
    if env.is_empty() && file.is_empty() {
        // Whatever is called so: a variable first.
        let variable = kind != "file" && settings.raw_variable(&id).is_some();
        id.clone_into(if variable || kind == "env" { &mut env } else { &mut file });
    }
    if !env.is_empty() {
        let value = settings.raw_variable(&env).map(OsStr::as_bytes).unwrap_or_default();
        return Ok((id, SecretSource::Value(Secret::new(value))));
    }
    let path = PathBuf::from(&file);
    let shown = clean_line(&file);
    let found = std::fs::metadata(&path)
        .map_err(|error| CliError::new(format!("failed to stat {shown}: stat {shown}: {}", words(&error))))?;
    if found.is_dir() {
        return Err(CliError::new(format!("secret {}: {shown} is a directory", clean_line(&id))));
    }
    if found.len() > LONGEST_SECRET {
        return Err(CliError::new(format!("secret {} too big. max size 500KB", clean_line(&id))));
    }
    Ok((id, SecretSource::File(path)))
}

fn agents(given: &[String], settings: &Settings) -> Result<BTreeMap<String, AgentSource>, CliError> {
    let mut agents = BTreeMap::new();
    for text in given {
        let (id, places) = text.split_once('=').unwrap_or((text, ""));
        let id = if id.is_empty() { DEFAULT_AGENT } else { id };
        let places = match places {
            "" => settings.non_empty("SSH_AUTH_SOCK").unwrap_or_default(),
            places => places,
        };
        if places.is_empty() {
            return Err(CliError::new("invalid empty ssh agent socket: make sure SSH_AUTH_SOCK is set")
                .with_hint("start one with: eval $(ssh-agent)"));
        }
        let refused = |why: &dyn std::fmt::Display| {
            CliError::new(format!("failed to convert agent config {}: {why}", clean_line(text)))
        };
        let source = agent(places).map_err(|error| CliError { message: refused(&error.message).message, ..error })?;
        if agents.insert(id.to_owned(), source).is_some() {
            return Err(CliError::new(format!("invalid duplicate ID {}", clean_line(id))));
        }
    }
    Ok(agents)
}

/// One socket, or files with keys.
fn agent(places: &str) -> Result<AgentSource, CliError> {
    let (mut socket, mut keys) = (None, Vec::new());
    for place in places.split(',') {
        let shown = clean_line(place);
        let found = std::fs::metadata(place).map_err(|e| CliError::new(format!("stat {shown}: {}", words(&e))))?;
        if !found.file_type().is_socket() {
            let path = PathBuf::from(place);
            rbuild_engine::check_key_file(&path)
                .map_err(|error| CliError { hints: error.hints, ..CliError::new(error.message) })?;
            keys.push(path);
        } else if socket.replace(PathBuf::from(place)).is_some() {
            return Err(CliError::new("only single socket allowed"));
        }
    }
    match socket {
        Some(_) if !keys.is_empty() => Err(CliError::new("invalid combination of keys and sockets")),
        Some(socket) => Ok(AgentSource::Socket(socket)),
        None => Ok(AgentSource::Keys(keys)),
    }
}

fn named_context(text: &str) -> Result<(String, NamedContext), CliError> {
    let Some((name, place)) = text.split_once('=') else {
        return Err(CliError::new(format!("invalid context value: {}, expected key=value", clean_line(text))));
    };
    let invalid =
        |error: &dyn std::fmt::Display| CliError::new(format!("invalid context name {}: {error}", clean_line(name)));
    let reference = Reference::parse(name).map_err(|error| invalid(&error))?;
    let familiar = reference.familiar();
    let name = familiar.strip_suffix(":latest").unwrap_or(&familiar).to_owned();
    if let Some(image) = place.strip_prefix("docker-image://") {
        let image = Reference::parse(image).map_err(|error| {
            CliError::new(format!("invalid image in --build-context {}: {error}", clean_line(text)))
        })?;
        return Ok((name, NamedContext::Image(image)));
    }
    if let Some(layout) = place.strip_prefix("oci-layout://") {
        return Ok((name, NamedContext::Layout(layout_image(layout, text)?)));
    }
    if place.starts_with("target:") && !Path::new(place).exists() {
        let message = format!("unsupported context source target for {name}: only bake can name another target");
        return Err(CliError::new(message)
            .with_hint("a stage of the same Dockerfile needs no context: FROM and --from find it by its name"));
    }
    if is_remote(place) {
        return Ok((name, NamedContext::Remote(place.to_owned())));
    }
    let refused = |why: &dyn std::fmt::Display| CliError::new(format!("failed to get build context {name}: {why}"));
    let shown = clean_line(place);
    match std::fs::metadata(place) {
        Ok(found) if found.is_dir() => Ok((name, NamedContext::Directory(PathBuf::from(place)))),
        Ok(_) => Err(refused(&format_args!("{shown} is not a directory"))),
        Err(error) => Err(refused(&format_args!("stat {shown}: {}", words(&error)))),
    }
}

/// `DIR[:TAG][@DIGEST]`; buildx's rule, by which a directory's name can hold neither sign.
fn layout_image(layout: &str, text: &str) -> Result<LayoutImage, CliError> {
    let invalid = |why: &dyn std::fmt::Display| {
        CliError::new(format!("invalid OCI layout in --build-context {}: {why}", clean_line(text)))
    };
    let (place, digest) = match layout.split_once('@') {
        Some((place, digest)) => (place, Some(digest.parse().map_err(|error| invalid(&error))?)),
        None => (layout, None),
    };
    let (dir, tag) = place.split_once(':').map_or((place, None), |(dir, tag)| (dir, Some(tag.to_owned())));
    if dir.is_empty() {
        return Err(invalid(&"it names no directory"));
    }
    Ok(LayoutImage { dir: PathBuf::from(dir), tag, digest, what: layout.to_owned() })
}

/// Why a file could not be looked at, in the words everybody knows.
fn words(error: &std::io::Error) -> String {
    match error.kind() {
        std::io::ErrorKind::NotFound => "no such file or directory".to_owned(),
        std::io::ErrorKind::PermissionDenied => "permission denied".to_owned(),
        _ => error.to_string(),
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::args::Globals;

    fn settings(variables: &[(&str, &str)]) -> Settings {
        let variables = variables.iter().map(|(k, v)| ((*k).into(), (*v).into())).collect();
        Settings::from_variables(&Globals::default(), variables, true).unwrap()
    }

    #[test]
    fn secrets() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("s");
        std::fs::write(&path, "x").unwrap();
        let (shown, settings) = (path.to_str().unwrap(), settings(&[("A", "of a"), ("B", "of b")]));
        let get = |text: &str| secret(text, &settings).map_err(|error| error.message);
        let value = |text: &str| match get(text).unwrap() {
            (id, SecretSource::Value(secret)) => (id, String::from_utf8(secret.expose().to_vec()).unwrap()),
            (id, SecretSource::File(path)) => (id, path.display().to_string()),
        };
        for (text, id, want) in [
            ("id=A", "A", "of a"),
            ("id=x,env=B", "x", "of b"),
            ("type=env,id=x,src=B", "x", "of b"),
            ("ID=x,env=UNSET", "x", ""),
            (&format!("id=x,src={shown}"), "x", shown),
            (&format!("type=file,id=x,source={shown}"), "x", shown),
            (&format!("id={shown}"), shown, shown),
        ] {
            assert_eq!(value(text), (id.to_owned(), want.to_owned()), "{text}");
        }
        for (text, want) in [
            ("x", "invalid field 'x' must be a key=value pair"),
            ("env=A", "secret missing ID"),
            ("id=x,type=y", "unsupported secret type \"y\""),
            ("id=x,a=b", "unexpected key 'a' in 'a=b'"),
            ("id=x,src=/no/such", "failed to stat /no/such: stat /no/such: no such file or directory"),
            ("type=file,id=A", "failed to stat A: stat A: no such file or directory"),
        ] {
            assert_eq!(get(text).unwrap_err(), want, "{text}");
        }
        std::fs::write(&path, vec![0; 500 * 1024 + 1]).unwrap();
        assert_eq!(get(&format!("id=x,src={shown}")).unwrap_err(), "secret x too big. max size 500KB");
    }

    #[test]
    fn agents_by_name() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("s");
        let _listener = std::os::unix::net::UnixListener::bind(&path).unwrap();
        let socket = path.to_str().unwrap();
        let find = |given: &[&str], env: &[(&str, &str)]| {
            let given: Vec<String> = given.iter().map(|&text| text.to_owned()).collect();
            agents(&given, &settings(env)).map_err(|error| error.message)
        };
        let found = find(&["default", &format!("b={socket}")], &[("SSH_AUTH_SOCK", socket)]).unwrap();
        assert_eq!(found.into_keys().collect::<Vec<_>>(), ["b", "default"]);
        let unset = find(&["default"], &[]).unwrap_err();
        assert_eq!(unset, "invalid empty ssh agent socket: make sure SSH_AUTH_SOCK is set");
        let twice = find(&["default", "default"], &[("SSH_AUTH_SOCK", socket)]).unwrap_err();
        assert_eq!(twice, "invalid duplicate ID default");
        let key = find(&["a=/dev/null"], &[]).unwrap_err();
        let want = "failed to convert agent config a=/dev/null: failed to parse /dev/null: it is no private key";
        assert_eq!(key, want);
        let file = concat!(env!("CARGO_MANIFEST_DIR"), "/engine/testdata/keys/key_");
        let keys = find(&[&format!("k={file}ed25519,{file}rsa")], &[]).unwrap();
        assert!(matches!(&keys["k"], AgentSource::Keys(files) if files.len() == 2));
        let locked = find(&[&format!("k={file}locked")], &[]).unwrap_err();
        assert!(locked.ends_with("the key is protected by a passphrase, which a build cannot ask for"), "{locked}");
        let mixed = find(&[&format!("k={file}rsa,{socket}")], &[]).unwrap_err();
        assert!(mixed.ends_with("invalid combination of keys and sockets"), "{mixed}");
        let two = find(&[&format!("k={socket},{socket}")], &[]).unwrap_err();
        assert!(two.ends_with("only single socket allowed"), "{two}");
        let none = find(&["a=/no/such"], &[]).unwrap_err();
        assert_eq!(none, "failed to convert agent config a=/no/such: stat /no/such: no such file or directory");
    }

    #[test]
    fn contexts_by_name() {
        let get = |text: &str| named_context(text).map_err(|error| error.message);
        assert!(matches!(get("a=/").unwrap(), (name, NamedContext::Directory(_)) if name == "a"));
        match get("docker.io/library/a:latest=docker-image://busybox").unwrap() {
            (name, NamedContext::Image(image)) => {
                assert_eq!((name.as_str(), &*image.familiar()), ("a", "busybox:latest"))
            }
            other => panic!("{other:?}"),
        }
        for (text, want) in [
            ("a", "invalid context value: a, expected key=value"),
            ("a=/no/such", "failed to get build context a: stat /no/such: no such file or directory"),
            ("a=/dev/null", "failed to get build context a: /dev/null is not a directory"),
            ("a=oci-layout://", "invalid OCI layout in --build-context a=oci-layout://: it names no directory"),
            ("a=target:b", "unsupported context source target for a: only bake can name another target"),
        ] {
            assert_eq!(get(text).unwrap_err(), want, "{text}");
        }
        assert!(matches!(get("a=https://x/y.git").unwrap(), (_, NamedContext::Remote(_))));
        let layout = |text: &str| match get(text).unwrap() {
            (_, NamedContext::Layout(image)) => (image.dir.display().to_string(), image.tag, image.digest.is_some()),
            other => panic!("{other:?}"),
        };
        assert_eq!(layout("a=oci-layout://d/e"), ("d/e".to_owned(), None, false));
        assert_eq!(layout("a=oci-layout:///d:v1"), ("/d".to_owned(), Some("v1".to_owned()), false));
        let digest = rbuild_oci::Digest::sha256_of(b"");
        assert_eq!(layout(&format!("a=oci-layout://d@{digest}")), ("d".to_owned(), None, true));
        assert!(get("a=oci-layout://d@sha256:x").unwrap_err().starts_with("invalid OCI layout in --build-context"));
        assert!(get("A B=/").unwrap_err().starts_with("invalid context name A B: "));
    }
}
