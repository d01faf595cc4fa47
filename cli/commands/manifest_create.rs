//! `rbuild manifest create`.

use std::process::ExitCode;

use rbuild_engine::oci::Document;

use super::DONE;
use crate::app::App;
use crate::commands::reference;
use crate::error::CliError;
use crate::manifest_lists::Listed;

/// Begin a list of manifests that are in registries; 'manifest push' sends it
#[derive(Debug, clap::Args)]
pub struct Args {
    /// The list
    #[arg(value_name = "MANIFEST_LIST")]
    list: String,
    /// Its manifests
    #[arg(value_name = "MANIFEST", required = true)]
    manifests: Vec<String>,
    /// Add to a list that is there
    #[arg(short, long)]
    amend: bool,
    /// Speak plain HTTP, or TLS with any certificate, where nothing better is spoken
    #[arg(long)]
    insecure: bool,
}

pub async fn run(args: Args, app: &App) -> Result<ExitCode, CliError> {
    let list = reference(&args.list)?;
    let lists = app.manifest_lists()?;
    if lists.has(&list) && !args.amend {
        return Err(CliError::new("refusing to amend an existing manifest list with no --amend flag"));
    }
    let names = args.manifests.iter().map(|name| reference(name)).collect::<Result<Vec<_>, _>>()?;
    let client = app.client_for(&names, args.insecure)?;
    let mut listed = Vec::new();
    for name in &names {
        let fetched = super::manifest_inspect::fetch(&client, name).await?;
        if matches!(fetched.document, Document::Index(_)) {
            return Err(CliError::new(format!("{} is a manifest list", name.canonical())));
        }
        let mut descriptor = fetched.descriptor.clone();
        descriptor.platform = client.platform_of(name, &fetched).await.map_err(|e| CliError::new(e.to_string()))?;
        listed.push(Listed::new(name, descriptor, &fetched.bytes));
    }
    for one in &listed {
        lists.put(&list, one)?;
    }
    app.print(&format!("Created manifest list {}\n", list.canonical()))?;
    DONE
}
