use std::collections::BTreeMap;
use std::io::{IsTerminal as _, Read as _};
use std::path::{Path, PathBuf};
use std::process::ExitCode;
use std::sync::OnceLock;

use rbuild_engine::whole_file::{self, Failure, Like};
use rbuild_engine::{
    BuildContext, BuildRequest, CachePlace, DockerfileSource, ExtraHost, InputStream, Network, ProvenanceMode,
    Question, Squash, Ulimit,
};
use rbuild_oci::{Platform, Reference};

use crate::allowed::Allowed;
use crate::app::App;
use crate::args::key_value;
use crate::attest::AttestArgs;
use crate::caches::CacheArgs;
use crate::call::Call;
use crate::collection;
use crate::commands::DONE;
use crate::diagnostics;
use crate::error::CliError;
use crate::git_context::GitContext;
use crate::lent::LentArgs;
use crate::limits::LimitArgs;
use crate::metadata;
use crate::outputs::{OutputArgs, Outward};
use crate::progress::Mode;
use crate::refused::{self, Missing, Refused};
use crate::registry_access::RegistryAccess;
use crate::settings::Settings;
use crate::values;
use crate::watched::watched;

/// The time that counts as now for everything a build dates.
const EPOCH: &str = "SOURCE_DATE_EPOCH";

/// Build an image from a Dockerfile
///
/// The argument is the directory of the build's files, a git repository (https://host/repo.git#ref:dir), the URL of a
/// tar archive or a Dockerfile, or '-' for either of these on standard input.
#[derive(Debug, clap::Args)]
pub struct Args {
    /// Where the build's files are: a directory, a URL, or '-'
    #[arg(value_name = "PATH | URL | -", required = true)]
    context: String,
    /// Name of the result, with or without a tag; may be repeated
    #[arg(short, long = "tag", value_name = "NAME")]
    tags: Vec<String>,
    /// The Dockerfile, as a path or a URL (default: PATH/Dockerfile); '-' reads it from standard input
    #[arg(short, long, value_name = "FILE")]
    file: Option<String>,
    /// Stage to build (default: the last one)
    #[arg(long, value_name = "STAGE")]
    target: Option<String>,
    /// Value for an ARG; a bare name takes it from the environment
    #[arg(long = "build-arg", value_name = "NAME[=VALUE]")]
    build_args: Vec<std::ffi::OsString>,
    /// Label for the result
    #[arg(long = "label", value_name = "NAME=VALUE")]
    labels: Vec<std::ffi::OsString>,
    /// Run every step again
    #[arg(long)]
    no_cache: bool,
    /// Ask the registry for the base images even if they are here
    #[arg(long)]
    pull: bool,
    /// Write the id of the image to a file
    #[arg(long, value_name = "FILE")]
    iidfile: Option<PathBuf>,
    /// Make one layer of those that the build adds to its base image
    #[arg(long)]
    squash: bool,
    /// Make one layer of all, those of the base image included
    #[arg(long)]
    squash_all: bool,
    /// Say afterwards why each step ran that did not come from the cache
    #[arg(long)]
    explain: bool,
    /// Print nothing but the id of the image
    #[arg(short, long)]
    quiet: bool,
    /// How to show progress: auto, tty, plain, rawjson, quiet or none (default: $BUILDKIT_PROGRESS, else auto)
    #[arg(long, value_name = "MODE")]
    progress: Option<String>,
    /// Network of the RUN steps: default, none or host
    #[arg(long, value_name = "MODE", default_value = "default")]
    network: String,
    /// Allow the Dockerfile network.host, security.insecure, device or device=NAME[,alias=OTHER]; allow an output
    /// buildx.local.delete
    #[arg(long, value_name = "PRIVILEGE")]
    allow: Vec<String>,
    /// Name for an address in the RUN steps' hosts file; the address 'host-gateway' is this machine
    #[arg(long = "add-host", value_name = "NAME:ADDRESS", value_parser = values::extra_host)]
    extra_hosts: Vec<ExtraHost>,
    /// Size of /dev/shm in RUN steps
    #[arg(long, value_name = "BYTES", value_parser = values::bytes)]
    shm_size: Option<u64>,
    /// Limit for the processes of RUN steps
    #[arg(long = "ulimit", value_name = "NAME=SOFT[:HARD]", value_parser = values::ulimit)]
    ulimits: Vec<Ulimit>,
    /// Parent of the RUN steps' cgroups
    #[arg(long, value_name = "CGROUP")]
    cgroup_parent: Option<String>,
    /// How many steps may run at once (default: the number of processors)
    #[arg(long, short, value_name = "N")]
    jobs: Option<std::num::NonZeroUsize>,
    /// Platforms to build for; several make one image with an index
    #[arg(long, value_name = "OS/ARCH[/VARIANT][,...]")]
    platform: Vec<String>,
    /// File with patterns of what to leave out of the context, instead of its own ignore file
    #[arg(long = "ignorefile", value_name = "FILE")]
    ignore_file: Option<PathBuf>,
    /// Stage whose steps all run again; may be repeated
    #[arg(long, value_name = "STAGE", value_delimiter = ',')]
    no_cache_filter: Vec<String>,
    /// Ask about the Dockerfile and build nothing: check, outline, targets or subrequests.describe
    #[arg(long, alias = "print", value_name = "REQUEST[,format=json]")]
    call: Option<String>,
    /// Say what is unwise in the Dockerfile and build nothing; the same as --call=check
    #[arg(long)]
    check: bool,
    #[command(flatten)]
    lent: LentArgs,
    #[command(flatten)]
    caches: CacheArgs,
    #[command(flatten)]
    outputs: OutputArgs,
    #[command(flatten)]
    attest: AttestArgs,
    #[command(flatten)]
    limits: LimitArgs,
    #[command(flatten)]
    access: RegistryAccess,
    /// Where to build; there is one place, called default
    #[arg(long, value_name = "NAME", hide = true)]
    builder: Option<String>,
    #[command(flatten)]
    legacy: Legacy,
    #[command(flatten)]
    refused: Refused<NotYet>,
}

/// Options that scripts still pass to docker and that change nothing: what they ask for is what rbuild does.
#[derive(Debug, clap::Args)]
struct Legacy {
    #[arg(long, hide = true)]
    rm: bool,
    #[arg(long, hide = true)]
    force_rm: bool,
    #[arg(long, hide = true)]
    compress: bool,
    #[arg(long, hide = true)]
    disable_content_trust: bool,
    #[arg(long, hide = true, value_parser = ["", "default"])]
    isolation: Option<String>,
}

/// Options of `docker buildx build`, and of `buildah build`, that are not there yet.
#[derive(Debug)]
struct NotYet;

impl refused::Table for NotYet {
    const OPTIONS: &'static [Missing] = &[
        Missing::maybe_valued("build-arg-file"),
        Missing::maybe_valued("cap-add"),
        Missing::maybe_valued("cap-drop"),
        Missing::maybe_valued("device"),
        Missing::maybe_valued("group-add"),
        Missing::maybe_valued("policy"),
        Missing::maybe_valued("security-opt"),
    ];
}

pub async fn run(args: Args, app: &App) -> Result<ExitCode, CliError> {
    let call = call(&args).map_err(|e| e.with_prefix("ERROR"))?;
    let (request, mode) = prepare(&args, app).map_err(|e| e.with_prefix("ERROR"))?;
    if let Some(call) = call {
        return ask(call, request, mode, app, &args.access).await;
    }
    if let Some(path) = args.iidfile.as_ref().filter(|path| !whole_file::is_special(path)) {
        // A failed build must not leave the id of an older one behind.
        match std::fs::remove_file(path) {
            Err(e) if e.kind() != std::io::ErrorKind::NotFound => return Err(cannot_write(path, &e)),
            _ => {}
        }
    }
    let engine = app.engine_with(&args.access)?;
    let recorded = OnceLock::new();
    let result = watched(mode, app, |events| async {
        let built = engine.build(request, events).await;
        let id = built.as_ref().map_or_else(|error| error.build.clone(), |result| Some(result.build.clone()));
        id.into_iter().for_each(|id| drop(recorded.set(id)));
        built
    })
    .await;
    if let (true, Some(id)) = (args.explain, recorded.get()) {
        app.tell(super::explain::after_build(&engine.builds(), id)?.trim_end());
    }
    collection::after_build(app);
    let result = result?;
    if let Some(path) = &args.iidfile {
        write_whole(path, &result.image_id.to_string())?;
    }
    if let Some(path) = &args.outputs.metadata_file {
        let with_warnings =
            app.settings.non_empty("BUILDX_METADATA_WARNINGS").is_some_and(|v| !matches!(v, "0" | "false"));
        write_whole(path, &metadata::written(&result, with_warnings))?;
    }
    if !matches!(mode, Mode::Json) {
        for note in &result.notes {
            app.tell(&format!("WARNING: {}", crate::terminal::clean_line(note)));
        }
    }
    match mode {
        // Where the result itself went to standard output, its id has no place there.
        Mode::Quiet if args.quiet && args.outputs.uses_stdout() => {}
        Mode::Quiet if args.quiet => app.print(&format!("{}\n", result.image_id))?,
        Mode::Terminal | Mode::Plain if !result.warnings.is_empty() => {
            app.tell(diagnostics::warnings(&result.warnings).trim_end())
        }
        _ => {}
    }
    DONE
}

/// Answers what `--call` asks, and builds nothing.
pub(crate) async fn ask(
    call: Call,
    request: BuildRequest,
    mode: Mode,
    app: &App,
    access: &RegistryAccess,
) -> Result<ExitCode, CliError> {
    let Some(question) = call.question else { return call.show_requests(app) };
    let named = match &request.dockerfile {
        DockerfileSource::File(Some(path)) if matches!(request.context, BuildContext::Directory(_)) => {
            Some(path.display().to_string())
        }
        _ => None,
    };
    let engine = app.engine_with(access)?;
    let (answer, mut source) = watched(mode, app, |events| engine.ask(request, question, events)).await?;
    if let Some(name) = named {
        // Editors jump to the file that the excerpt names.
        source.name = name;
    }
    call.show(&answer, &source, app)
}

/// What `--call` and `--check` ask for; `None` is a build.
fn call(args: &Args) -> Result<Option<Call>, CliError> {
    let call = args.call.as_deref().map(Call::read).transpose()?.flatten();
    match (call, args.check) {
        (call, false) => Ok(call),
        (None, true) => Ok(Some(Call::CHECK)),
        (Some(call), true) if call.question == Some(Question::Check) => Ok(Some(call)),
        (Some(_), true) => Err(CliError::new("--check and --call of something else cannot be used together")),
    }
}

/// The request, from validated arguments; nothing is built yet.
fn prepare(args: &Args, app: &App) -> Result<(BuildRequest, Mode), CliError> {
    args.refused.check()?;
    let mode = Mode::choose(args.quiet, args.progress.as_deref(), &app.settings)?;
    let network = network(&args.network)?;
    let tags = args.tags.iter().map(|t| tag(t)).collect::<Result<Vec<_>, _>>()?;
    let platforms = platforms(&args.platform)?;
    let mut build_args = build_args(&args.build_args, |name| app.settings.variable(name).map(str::to_owned));
    if let Some(epoch) = app.settings.non_empty(EPOCH) {
        source_date_epoch(epoch)?;
        // The environment's word is a build argument like any other, so an ARG can take it.
        build_args.entry(EPOCH.to_owned()).or_insert_with(|| epoch.to_owned());
    }
    let allowed = Allowed::read(&args.allow)?;
    let to = Outward { stdout_is_terminal: std::io::stdout().is_terminal(), may_delete: allowed.local_delete };
    let outputs = args.outputs.read(&args.tags, to)?;
    builder(args.builder.as_deref().or(app.settings.non_empty("BUILDX_BUILDER")))?;
    if args.no_cache && !args.no_cache_filter.is_empty() {
        return Err(CliError::new("--no-cache and --no-cache-filter cannot currently be used together"));
    }
    let cache_to = args.caches.to()?;
    if (args.squash || args.squash_all) && cache_to.iter().any(|to| to.place == CachePlace::Inline) {
        return Err(CliError::new("--squash and --cache-to type=inline cannot be used together")
            .with_hint("an inline cache is about the layers of the image, and a squashed one has others"));
    }
    let lent = args.lent.lent(&app.settings)?;
    let (context, dockerfile) = source(&args.context, args.file.as_deref())?;
    let attestations = args.attest.read()?;
    let report = args.outputs.metadata_file.as_ref().and_then(|_| report(&app.settings));
    let git = match &context {
        BuildContext::Directory(dir) => {
            let file = match &dockerfile {
                DockerfileSource::File(path) => path.as_deref(),
                _ => None,
            };
            GitContext::of(dir, file, attestations.provenance.is_some() || report.is_some(), &app.settings)
        }
        _ => GitContext::default(),
    };
    let labels = args.labels.iter().map(|l| key_value(l)).map(|(k, v)| (k, v.unwrap_or_default()));
    let request = BuildRequest {
        context,
        dockerfile,
        tags,
        target: args.target.clone(),
        build_args,
        labels: git.labels.into_iter().chain(labels).collect(),
        platforms,
        outputs,
        no_cache: args.no_cache,
        pull: args.pull,
        allow_host_network: network == Network::Host || allowed.host_network,
        allow_insecure: allowed.insecure,
        devices: allowed.devices,
        no_cache_filter: args.no_cache_filter.clone(),
        lent,
        network,
        jobs: args.jobs.map(std::num::NonZeroUsize::get),
        extra_hosts: args.extra_hosts.clone(),
        shm_size: args.shm_size,
        ulimits: args.ulimits.clone(),
        cgroup_parent: args.cgroup_parent.as_deref().map(cgroup_parent),
        limits: args.limits.read()?,
        attestations,
        vcs: git.vcs,
        squash: match (args.squash_all, args.squash) {
            (true, _) => Some(Squash::All),
            (false, true) => Some(Squash::New),
            (false, false) => None,
        },
        report,
        ignore_file: args.ignore_file.clone(),
        source_date_epoch: None,
        cache_from: args.caches.from()?,
        cache_to,
    };
    Ok((request, mode))
}

/// There is one builder, this program.
fn builder(name: Option<&str>) -> Result<(), CliError> {
    match name {
        None | Some("" | "default") => Ok(()),
        Some(other) => Err(CliError::new(format!("no builder {:?} found", crate::terminal::clean_line(other)))
            .with_hint("rbuild builds by itself; the only builder is default")),
    }
}

/// What of its provenance a build tells in the metadata file (`BUILDX_METADATA_PROVENANCE`, buildx's words).
fn report(settings: &Settings) -> Option<ProvenanceMode> {
    match settings.non_empty("BUILDX_METADATA_PROVENANCE") {
        Some("max") => Some(ProvenanceMode::Max),
        Some("disabled" | "false" | "0") => None,
        _ => Some(ProvenanceMode::Min),
    }
}

fn network(word: &str) -> Result<Network, CliError> {
    match word {
        "default" | "bridge" => Ok(Network::Default),
        "none" => Ok(Network::None),
        "host" => Ok(Network::Host),
        other => {
            Err(CliError::new(format!("network mode \"{}\" is not supported yet", crate::terminal::clean_line(other)))
                .with_hint("modes are default, none and host"))
        }
    }
}

/// A parent's path begins at the root of the hierarchies, written so or not.
fn cgroup_parent(text: &str) -> String {
    format!("/{}", text.trim_start_matches('/'))
}

/// Checks the build's own time, as the reproducible builds project defines the variable.
fn source_date_epoch(text: &str) -> Result<(), CliError> {
    // The context's own date is found out by the build.
    if text == "context" {
        return Ok(());
    }
    text.parse::<i64>()
        .map(drop)
        .map_err(|_| CliError::new(format!("invalid SOURCE_DATE_EPOCH: {}", crate::terminal::clean_line(text))))
}

pub(crate) fn tag(text: &str) -> Result<Reference, CliError> {
    let refuse = |why: &dyn std::fmt::Display| {
        CliError::new(format!("invalid tag \"{}\": {why}", crate::terminal::clean_line(text)))
    };
    let reference = Reference::parse(text).map_err(|e| refuse(&e))?;
    if reference.digest().is_some() {
        return Err(refuse(&"a name with a digest cannot be given to a result"));
    }
    Ok(reference)
}

/// A bare name takes its value from the environment; when it is not there, the argument stays unset.
pub(crate) fn build_args(
    given: &[std::ffi::OsString],
    environment: impl Fn(&str) -> Option<String>,
) -> BTreeMap<String, String> {
    given
        .iter()
        .map(|arg| key_value(arg))
        .filter_map(|(name, value)| Some((name.clone(), value.or_else(|| environment(&name))?)))
        .collect()
}

pub(crate) fn platforms(given: &[String]) -> Result<Vec<Platform>, CliError> {
    let names = given.iter().flat_map(|list| list.split(',')).map(str::trim).filter(|name| !name.is_empty());
    let mut platforms: Vec<Platform> = Vec::new();
    for name in names {
        let platform = match name {
            "local" => Platform::host(),
            name => Platform::parse(name).map_err(|e| CliError::new(e.to_string()))?.normalized(),
        };
        if !platforms.contains(&platform) {
            platforms.push(platform);
        }
    }
    Ok(platforms)
}

/// Where the files and the Dockerfile come from. A Dockerfile's path is relative to the working directory.
pub(crate) fn source(context: &str, file: Option<&str>) -> Result<(BuildContext, DockerfileSource), CliError> {
    let unable = |why: String| CliError::new(format!("unable to prepare context: {why}"));
    if context == "-" {
        if file == Some("-") {
            return Err(CliError::new("invalid argument: can't use stdin for both build context and dockerfile"));
        }
        let input = InputStream::new(std::io::stdin());
        return Ok((BuildContext::Stream(input), dockerfile(file)?));
    }
    if is_remote(context) {
        return Ok((BuildContext::Remote(context.to_owned()), dockerfile(file)?));
    }
    let shown = crate::terminal::clean_line(context);
    match std::fs::metadata(context) {
        Ok(found) if found.is_dir() => {}
        Ok(_) => return Err(unable(format!("context must be a directory: {shown}"))),
        Err(e) if e.kind() == std::io::ErrorKind::NotFound => {
            return Err(unable(format!("path \"{shown}\" not found")));
        }
        Err(e) => return Err(unable(format!("path \"{shown}\": {e}"))),
    }
    if let Err(e) = std::fs::read_dir(context) {
        return Err(unable(format!("path \"{shown}\": {e}")));
    }
    Ok((BuildContext::Directory(PathBuf::from(context)), dockerfile(file)?))
}

fn dockerfile(file: Option<&str>) -> Result<DockerfileSource, CliError> {
    Ok(match file {
        Some("-") => DockerfileSource::Text(standard_input()?),
        Some(file) if file.starts_with("http://") || file.starts_with("https://") => {
            DockerfileSource::Remote(file.to_owned())
        }
        file => DockerfileSource::File(file.map(PathBuf::from)),
    })
}

/// Whether a context is somewhere else, by the form of its name.
pub(crate) fn is_remote(context: &str) -> bool {
    let is = |prefixes: &[&str]| prefixes.iter().any(|p| context.starts_with(p));
    is(&["http://", "https://", "git://", "ssh://", "git@"])
        || is(&["github.com/"]) && !Path::new(context.split('#').next().unwrap_or(context)).exists()
}

/// Read to a bound: a Dockerfile has a few kilobytes.
fn standard_input() -> Result<Vec<u8>, CliError> {
    const MOST: u64 = 512 << 20;
    let mut bytes = Vec::new();
    let read = std::io::stdin().lock().take(MOST + 1).read_to_end(&mut bytes);
    let count = read.map_err(|e| CliError::new(format!("reading standard input: {e}")))?;
    if count as u64 > MOST {
        return Err(CliError::new("standard input is larger than 512MiB"));
    }
    Ok(bytes)
}

/// Puts `text` into a file that is either not there or complete.
fn write_whole(path: &Path, text: &str) -> Result<(), CliError> {
    let written = whole_file::write(path, Like::Mode(0o666), |out| out.write_all(text.as_bytes()));
    written.map_err(|failure| match failure {
        Failure::Content(error) | Failure::File(error) => cannot_write(path, &error),
    })
}

fn cannot_write(path: &Path, error: &std::io::Error) -> CliError {
    CliError::new(format!("writing {}: {error}", path.display())).with_prefix("ERROR")
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::args::{Parsed, parse};
    use crate::commands::Command;

    fn args(line: &str) -> Args {
        let words = std::iter::once("rbuild").chain(line.split_whitespace()).map(Into::into).collect();
        match parse(words).unwrap() {
            Parsed::Run(cli) => match cli.command {
                Command::Build(args) => *args,
                other => panic!("{other:?}"),
            },
            Parsed::Print(text) => panic!("{text}"),
        }
    }

    fn of(args: &Args) -> Result<(BuildContext, DockerfileSource), CliError> {
        source(&args.context, args.file.as_deref())
    }

    #[test]
    fn a_question_takes_the_place_of_the_build() {
        let asked = |line: &str| call(&args(line)).map(|call| call.map(|call| call.question));
        assert_eq!(asked("build .").unwrap(), None);
        assert_eq!(asked("build --check=false --call=build .").unwrap(), None);
        assert_eq!(asked("build --check --call build .").unwrap(), Some(Some(Question::Check)));
        assert_eq!(asked("build --check --call lint,format=json .").unwrap(), Some(Some(Question::Check)));
        assert_eq!(asked("build --print outline .").unwrap(), Some(Some(Question::Outline)));
        assert!(asked("build --check --call outline .").is_err());
    }

    #[test]
    fn options_not_there_yet_are_named() {
        for (line, want) in [
            ("build --device /dev/x .", &["device"][..]),
            ("build --security-opt a --cap-add x --tls-verify=false .", &["cap-add", "security-opt"]),
            ("build --rm --force-rm=false --compress=true --provenance=false --sbom=false --isolation=default .", &[]),
        ] {
            assert_eq!(args(line).refused.names(), want, "{line}");
        }
    }

    #[test]
    fn switches_and_repeats() {
        let given = args(
            "build -q=false --no-cache=true --pull -t a -t b:2 --build-arg A=1 --build-arg B --build-arg C= --target x --target y .",
        );
        assert_eq!((given.quiet, given.no_cache, given.pull), (false, true, true));
        assert_eq!(given.tags, ["a", "b:2"]);
        assert_eq!(given.target.as_deref(), Some("y"));
        let values = build_args(&given.build_args, |name| (name == "B").then(|| "from-env".into()));
        let want = [("A", "1"), ("B", "from-env"), ("C", "")].map(|(k, v)| (k.to_owned(), v.to_owned()));
        assert_eq!(values, want.into());
        assert!(build_args(&["UNSET".into()], |_| None).is_empty());
    }

    #[test]
    fn contexts_that_are_none() {
        for (line, want) in [
            ("build /no/such/place", "unable to prepare context: path \"/no/such/place\" not found"),
            ("build /proc/self/exe", "unable to prepare context: context must be a directory: /proc/self/exe"),
            ("build -f - -", "invalid argument: can't use stdin for both build context and dockerfile"),
        ] {
            assert_eq!(of(&args(line)).unwrap_err().message, want, "{line}");
        }
    }

    #[test]
    fn platforms_and_tags() {
        let both = platforms(&["linux/amd64,linux/arm64".into(), "linux/amd64".into()]).unwrap();
        assert_eq!(both.iter().map(Platform::to_string).collect::<Vec<_>>(), ["linux/amd64", "linux/arm64"]);
        assert!(platforms(&["linux/amd64/x/y/z".into()]).is_err());
        assert!(tag("UPPER").unwrap_err().message.starts_with("invalid tag \"UPPER\": "));
        assert_eq!(tag("name").unwrap().familiar(), "name:latest");
    }

    #[test]
    fn a_parent_of_cgroups_begins_at_the_root() {
        assert_eq!((cgroup_parent("a/b"), cgroup_parent("/a")), ("/a/b".to_owned(), "/a".to_owned()));
    }

    #[test]
    fn contexts_from_elsewhere() {
        for there in ["https://h/x.git#main", "http://h/x.tgz", "git@h:x.git", "ssh://h/x", "github.com/a/b#v1"] {
            assert!(is_remote(there), "{there}");
        }
        for here in [".", "/dir", "dir/https://x", "github.com"] {
            assert!(!is_remote(here), "{here}");
        }
        let (context, file) = of(&args("build -f https://h/Dockerfile -")).unwrap();
        assert!(matches!((context, file), (BuildContext::Stream(_), DockerfileSource::Remote(_))));
    }
}
