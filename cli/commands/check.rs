//! `rbuild check`.

use std::process::ExitCode;

use rbuild_engine::BuildRequest;

use crate::app::App;
use crate::call::Call;
use crate::commands::build;
use crate::error::CliError;
use crate::lent::LentArgs;
use crate::progress::Mode;

/// Say what is unwise in a Dockerfile
///
/// Nothing is built. The rules are those of 'build --check'; a comment '# check=skip=RULE,RULE' at the top of the file
/// silences some of them.
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
    #[command(flatten)]
    lent: LentArgs,
}

pub async fn run(args: Args, app: &App) -> Result<ExitCode, CliError> {
    let (call, request) = prepare(&args, app).map_err(|e| e.with_prefix("ERROR"))?;
    build::ask(call, request, Mode::Quiet, app).await
}

fn prepare(args: &Args, app: &App) -> Result<(Call, BuildRequest), CliError> {
    let call = Call::CHECK.with_format(&args.format)?;
    let (context, dockerfile) = build::source(&args.context, args.file.as_deref())?;
    let request = BuildRequest {
        target: args.target.clone(),
        build_args: build::build_args(&args.build_args, |name| app.settings.variable(name).map(str::to_owned)),
        platforms: build::platforms(&args.platform)?,
        lent: args.lent.lent(&app.settings)?,
        ..BuildRequest::new(context, dockerfile)
    };
    Ok((call, request))
}
