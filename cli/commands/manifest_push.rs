//! `rbuild manifest push`.

use std::collections::BTreeMap;
use std::process::ExitCode;

use rbuild_engine::registry::{Fetched, Part, compose};

use super::DONE;
use crate::app::App;
use crate::commands::reference;
use crate::error::CliError;

/// Send a list, with what its registry lacks of its manifests
#[derive(Debug, clap::Args)]
pub struct Args {
    /// The list
    #[arg(value_name = "MANIFEST_LIST")]
    list: String,
    /// Forget the list when it was sent
    #[arg(short, long)]
    purge: bool,
    /// Speak plain HTTP, or TLS with any certificate, where nothing better is spoken
    #[arg(long)]
    insecure: bool,
}

pub async fn run(args: Args, app: &App) -> Result<ExitCode, CliError> {
    let list = reference(&args.list)?;
    let lists = app.manifest_lists()?;
    let listed = lists.all(&list)?;
    if listed.is_empty() {
        return Err(CliError::new(format!("{} not found", list.canonical())));
    }
    let failed = |e: rbuild_engine::registry::Error| CliError::new(e.to_string());
    let mut names = vec![list.clone()];
    let mut parts = Vec::new();
    for one in &listed {
        let name = one.name()?;
        if one.descriptor.platform.as_ref().is_none_or(|p| p.os.is_empty() || p.architecture.is_empty()) {
            let name = name.canonical();
            return Err(CliError::new(format!(
                "manifest {name} must have an OS and Architecture to be pushed to a registry"
            )));
        }
        parts.push(Part { from: name.clone(), descriptor: one.descriptor.clone() });
        names.push(name);
    }
    let client = app.client_for(&names, args.insecure)?;
    for (one, part) in listed.iter().zip(&parts) {
        let fetched =
            Fetched { descriptor: one.descriptor.clone(), bytes: one.bytes()?.into(), document: one.document()? };
        client.relay(&part.from, &fetched, &list).await.map_err(failed)?;
        let digest = &one.descriptor.digest;
        app.tell(&format!("Pushed ref {}@{digest} with digest: {digest}", list.without_tag().canonical()));
    }
    let index = compose(&parts, BTreeMap::new()).map_err(failed)?;
    let pushed = client.put_manifest(&list, &index.media_type, index.bytes).await.map_err(failed)?;
    app.print(&format!("{}\n", pushed.digest))?;
    if args.purge {
        lists.remove(&list)?;
    }
    DONE
}
