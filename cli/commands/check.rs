//! `rbuild check`.

use std::process::ExitCode;

use rbuild_engine::{BuildContext, BuildRequest, DockerfileSource, Fixed, Fixes, SourceText};

use crate::app::App;
use crate::call::Call;
use crate::commands::{DONE, build};
use crate::error::CliError;
use crate::lent::LentArgs;
use crate::progress::Mode;
use crate::registry_access::RegistryAccess;
use crate::terminal::clean_line;
use crate::watched::watched;
use crate::{changes, diagnostics, whole_file};

/// Say what is unwise in a Dockerfile
///
/// Nothing is built. The rules are those of 'build --check'; a comment '# check=skip=RULE,RULE' at the top of the file
/// silences some of them. With --fix the Dockerfile is rewritten where that is safe: the same steps, the same image.
#[derive(Debug, clap::Args)]
pub struct Args {
    /// Where the build's files are: a directory, a URL, or '-'
    #[arg(value_name = "PATH | URL | -", default_value = ".")]
    context: String,
    /// The Dockerfile, as a path or a URL (default: PATH/Dockerfile); '-' reads it from standard input
    #[arg(short, long, value_name = "FILE")]
    file: Option<String>,
    /// Stage to look at, with those it needs (default: all)
    #[arg(long, value_name = "STAGE")]
    target: Option<String>,
    /// Value for an ARG; a bare name takes it from the environment
    #[arg(long = "build-arg", value_name = "NAME[=VALUE]")]
    build_args: Vec<std::ffi::OsString>,
    /// Platforms that would be built for
    #[arg(long, value_name = "OS/ARCH[/VARIANT][,...]")]
    platform: Vec<String>,
    /// How to answer: text or json
    #[arg(long, value_name = "FORMAT", default_value = "text")]
    format: String,
    /// Put right in the Dockerfile what can be put right safely, then say what is left
    #[arg(long)]
    fix: bool,
    /// With --fix: show what would change, as a diff, and change nothing
    #[arg(long, requires = "fix")]
    dry_run: bool,
    #[command(flatten)]
    lent: LentArgs,
}

pub async fn run(args: Args, app: &App) -> Result<ExitCode, CliError> {
    let (call, request) = prepare(&args, app).map_err(|e| e.with_prefix("ERROR"))?;
    if args.fix {
        return fix(&args, call, request, app).await;
    }
    build::ask(call, request, Mode::Quiet, app, &RegistryAccess::default()).await
}

async fn fix(args: &Args, call: Call, request: BuildRequest, app: &App) -> Result<ExitCode, CliError> {
    let (context, dockerfile) = (request.context.clone(), request.dockerfile.clone());
    let engine = app.engine()?;
    let Fixes { source, fixed, left } = watched(Mode::Quiet, app, |events| engine.fix(request, events)).await?;
    let path = match (context, dockerfile) {
        (BuildContext::Directory(_), DockerfileSource::File(Some(path))) => path,
        // The directory is searched by several names.
        (BuildContext::Directory(directory), _) => directory.join(&source.name),
        (_, _) => return Err(nowhere()),
    };
    let name = path.strip_prefix(".").unwrap_or(&path).display().to_string();
    if args.dry_run {
        app.print(&changes::diff(&name, &source.text, &fixed.text))?;
        return match &left.error {
            Some(error) => Err(diagnostics::build_failure(error)),
            None => DONE,
        };
    }
    if fixed.text != source.text {
        whole_file::replace(&path, source.text.as_bytes(), fixed.text.as_bytes())?;
    }
    app.print(&told(&name, &fixed, left.warnings.len()))?;
    call.show_checked(&left, &SourceText { name, text: fixed.text }, app)
}

fn told(name: &str, fixed: &Fixed, left: usize) -> String {
    let (done, name) = (fixed.fixes.len(), clean_line(name));
    if done == 0 {
        return String::new();
    }
    let mut text = format!("Fixed {done} of {} warnings in {name}:\n", done + left);
    for fix in &fixed.fixes {
        text.push_str(&format!(" - {}: {} (line {})\n", fix.rule, clean_line(&fix.message), fix.line));
    }
    text + "\n"
}

fn nowhere() -> CliError {
    CliError::new("--fix rewrites a Dockerfile on disk, and this one is not there")
        .with_prefix("ERROR")
        .with_hint("give a directory, and the Dockerfile with -f if it is elsewhere")
}

fn prepare(args: &Args, app: &App) -> Result<(Call, BuildRequest), CliError> {
    let call = Call::CHECK.with_format(&args.format)?;
    if args.fix && args.format != "text" {
        return Err(CliError::new("--fix and --format cannot be used together"));
    }
    if args.fix && (args.file.as_deref() == Some("-") || args.context == "-") {
        return Err(nowhere());
    }
    let (context, dockerfile) = build::source(&args.context, args.file.as_deref())?;
    let on_disk = matches!((&context, &dockerfile), (BuildContext::Directory(_), DockerfileSource::File(_)));
    if args.fix && !on_disk {
        return Err(nowhere());
    }
    let request = BuildRequest {
        target: args.target.clone(),
        build_args: build::build_args(&args.build_args, |name| app.settings.variable(name).map(str::to_owned)),
        platforms: build::platforms(&args.platform)?,
        lent: args.lent.lent(&app.settings)?,
        ..BuildRequest::new(context, dockerfile)
    };
    Ok((call, request))
}
