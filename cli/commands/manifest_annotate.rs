//! `rbuild manifest annotate`.

use std::process::ExitCode;

use rbuild_engine::oci::Platform;

use super::DONE;
use crate::app::App;
use crate::commands::reference;
use crate::error::CliError;

/// Say for which platform a manifest of a list is
#[derive(Debug, clap::Args)]
pub struct Args {
    /// The list
    #[arg(value_name = "MANIFEST_LIST")]
    list: String,
    /// The manifest
    #[arg(value_name = "MANIFEST")]
    manifest: String,
    /// Architecture
    #[arg(long, value_name = "TEXT")]
    arch: Option<String>,
    /// Operating system
    #[arg(long, value_name = "TEXT")]
    os: Option<String>,
    /// Features that the operating system must have
    #[arg(long, value_name = "TEXT", value_delimiter = ',')]
    os_features: Vec<String>,
    /// Version of the operating system
    #[arg(long, value_name = "TEXT")]
    os_version: Option<String>,
    /// Variant of the architecture
    #[arg(long, value_name = "TEXT")]
    variant: Option<String>,
}

pub async fn run(args: Args, app: &App) -> Result<ExitCode, CliError> {
    let (list, name) = (reference(&args.list)?, reference(&args.manifest)?);
    let lists = app.manifest_lists()?;
    let mut listed = lists.get(&list, &name)?.ok_or_else(|| {
        let (name, list) = (name.canonical(), list.canonical());
        CliError::new(format!("manifest for image {name} does not exist in {list}"))
    })?;
    let mut platform = listed.descriptor.platform.take().unwrap_or_else(|| Platform::new("", ""));
    let text = |new: &Option<String>, old: &mut String| old.clone_from(new.as_ref().unwrap_or(&old.clone()));
    text(&args.os, &mut platform.os);
    text(&args.arch, &mut platform.architecture);
    if args.variant.is_some() {
        platform.variant.clone_from(&args.variant);
    }
    if args.os_version.is_some() {
        platform.os_version.clone_from(&args.os_version);
    }
    for feature in &args.os_features {
        if !platform.os_features.contains(feature) {
            platform.os_features.push(feature.clone());
        }
    }
    if !Platform::parse(&format!("{}/{}", platform.os, platform.architecture)).is_ok_and(|p| is_known(&p)) {
        let pair = format!("{}/{}", platform.os, platform.architecture);
        return Err(CliError::new(format!("manifest entry for image has unsupported os/arch combination: {pair}")));
    }
    listed.descriptor.platform = Some(platform);
    lists.put(&list, &listed)?;
    DONE
}

/// Whether there is software for such a platform at all: what is mistyped would never be chosen by anybody.
fn is_known(platform: &Platform) -> bool {
    const SYSTEMS: [&str; 14] = [
        "linux",
        "windows",
        "darwin",
        "freebsd",
        "netbsd",
        "openbsd",
        "dragonfly",
        "solaris",
        "illumos",
        "aix",
        "android",
        "ios",
        "plan9",
        "js",
    ];
    const ARCHITECTURES: [&str; 14] = [
        "amd64", "arm64", "arm", "386", "ppc64", "ppc64le", "s390x", "riscv64", "mips", "mipsle", "mips64", "mips64le",
        "loong64", "wasm",
    ];
    SYSTEMS.contains(&platform.os.as_str()) && ARCHITECTURES.contains(&platform.architecture.as_str())
}
