use std::process::ExitCode;

use rustix::system::uname;
use serde::Serialize;

use crate::app::App;
use crate::commands::DONE;
use crate::error::CliError;
use crate::format;

/// Show the version of rbuild
#[derive(Debug, clap::Args)]
pub struct Args {
    /// Format with a Go template, or 'json'
    #[arg(short, long, value_name = "TEMPLATE")]
    format: Option<String>,
}

/// There is no daemon: client and server are the same program.
#[derive(Serialize)]
#[serde(rename_all = "PascalCase")]
struct Version {
    client: Program,
    server: Program,
}

/// Under docker's names. It has an API's version too, which rbuild has not.
#[derive(Serialize, Clone)]
#[serde(rename_all = "PascalCase")]
struct Program {
    platform: Named,
    version: &'static str,
    os: &'static str,
    arch: &'static str,
    kernel_version: String,
    context: &'static str,
    components: Vec<Component>,
}

#[derive(Serialize, Clone)]
#[serde(rename_all = "PascalCase")]
struct Named {
    name: &'static str,
}

#[derive(Serialize, Clone)]
#[serde(rename_all = "PascalCase")]
struct Component {
    name: &'static str,
    version: &'static str,
}

pub async fn run(args: Args, app: &App) -> Result<ExitCode, CliError> {
    let program = Program {
        platform: Named { name: "rbuild" },
        version: env!("CARGO_PKG_VERSION"),
        os: std::env::consts::OS,
        arch: go_architecture(),
        kernel_version: uname().release().to_string_lossy().into_owned(),
        context: "default",
        components: vec![Component { name: "Engine", version: env!("CARGO_PKG_VERSION") }],
    };
    match args.format {
        Some(template) => {
            let text = format::object(&template, &Version { client: program.clone(), server: program })?;
            app.print(&(text + "\n"))?;
        }
        None => app.print(&format!(
            "rbuild\n Version:           {}\n OS/Arch:           {}/{}\n Kernel Version:    {}\n",
            program.version, program.os, program.arch, program.kernel_version
        ))?,
    }
    DONE
}

/// The architecture in the words that images use.
fn go_architecture() -> &'static str {
    match std::env::consts::ARCH {
        "x86_64" => "amd64",
        "aarch64" => "arm64",
        other => other,
    }
}
