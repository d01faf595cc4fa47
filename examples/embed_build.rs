//! Builds an image through the engine, without the command line:
//!
//! ```text
//! cargo run --example embed_build -- STATE_DIRECTORY CONTEXT [NAME]
//! ```
//!
//! An embedder needs two things: its `main` gives sandboxes the helper they are set up with, before anything else; and
//! it has an async runtime. What the engine is to know it is told: it reads no environment and prints nothing.

use std::path::PathBuf;
use std::process::ExitCode;

use rbuild_engine::oci::Reference;
use rbuild_engine::registry::ClientOptions;
use rbuild_engine::runtime::network::BridgeOptions;
use rbuild_engine::{BuildContext, BuildRequest, DockerfileSource, Engine, EngineOptions, Event, Events, Outcome};

fn main() -> ExitCode {
    if let Some(code) = rbuild_engine::helper_main() {
        return ExitCode::from(u8::try_from(code).unwrap_or(1));
    }
    let arguments: Vec<String> = std::env::args().skip(1).collect();
    let [root, context, names @ ..] = arguments.as_slice() else {
        eprintln!("usage: embed_build STATE_DIRECTORY CONTEXT [NAME]");
        return ExitCode::FAILURE;
    };
    let runtime = tokio::runtime::Runtime::new().expect("an async runtime");
    match runtime.block_on(build(root, context, names)) {
        Ok(id) => {
            println!("{id}");
            ExitCode::SUCCESS
        }
        Err(error) => {
            eprintln!("{error}");
            ExitCode::FAILURE
        }
    }
}

async fn build(root: &str, context: &str, names: &[String]) -> Result<String, Box<dyn std::error::Error>> {
    let engine = Engine::open(EngineOptions {
        root: std::path::absolute(root)?,
        driver: None,
        helper: PathBuf::from("/proc/self/exe"),
        resolv_conf: std::fs::read_to_string("/etc/resolv.conf").unwrap_or_default(),
        registry: ClientOptions::default(),
        bridge: BridgeOptions::default(),
        device_specs: Vec::new(),
        git: None,
    })?;
    let request = BuildRequest {
        tags: names.iter().map(|name| Reference::parse(name)).collect::<Result<_, _>>()?,
        build_args: [("BUILT_BY".to_owned(), "embed_build".to_owned())].into(),
        labels: vec![("example".to_owned(), "embedded".to_owned())],
        ..BuildRequest::new(BuildContext::Directory(PathBuf::from(context)), DockerfileSource::File(None))
    };
    // Events are a stream that ends with the build. Here: a line for each step that is done.
    let (events, mut stream) = Events::channel();
    let watcher = tokio::spawn(async move {
        let mut names = std::collections::HashMap::new();
        while let Some(event) = stream.next().await {
            match event {
                Event::Step { id, name, .. } => drop(names.insert(id, name)),
                Event::Finished { id, outcome, .. } => {
                    let cached = if outcome == Outcome::Cached { " (cached)" } else { "" };
                    eprintln!("{}{cached}", names.get(&id).map_or("?", String::as_str));
                }
                _ => {}
            }
        }
    });
    let result = engine.build(request, events).await?;
    watcher.await?;
    Ok(result.image_id.to_string())
}
