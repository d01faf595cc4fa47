//! `rbuild image inspect`, and the image half of `rbuild inspect`.

use std::process::ExitCode;

use rbuild_engine::images::{Image, Images};
use rbuild_engine::oci::{ContainerConfig, Reference};
use serde::Serialize;
use serde_json::{Value, json};

use super::inspect;
use crate::app::App;
use crate::error::CliError;
use crate::units;

/// Show all that is known about images
#[derive(Debug, clap::Args)]
pub struct Args {
    /// Names or ids
    #[arg(value_name = "IMAGE", required = true)]
    images: Vec<String>,
    /// Format with a Go template, or 'json'
    #[arg(short, long, value_name = "TEMPLATE")]
    format: Option<String>,
    /// The image of this platform, where there are several
    #[arg(long, value_name = "PLATFORM")]
    platform: Option<String>,
}

pub async fn run(args: Args, app: &App) -> Result<ExitCode, CliError> {
    let images = app.images()?;
    let platform = super::platform(args.platform.as_deref())?;
    let get = |name: &str| match &platform {
        Some(platform) => images.get_for(name, platform),
        None => images.get(name),
    };
    inspect::show(app, &args.images, args.format.as_deref(), |name| match get(name) {
        Ok(image) => detail(&images, &image).map(Some),
        Err(error) => Err(error.into()),
    })
}

/// Docker's JSON about an image, its members in docker's order.
#[derive(Serialize)]
#[serde(rename_all = "PascalCase")]
struct Detail {
    id: String,
    repo_tags: Vec<String>,
    repo_digests: Vec<String>,
    parent: String,
    comment: String,
    created: String,
    docker_version: String,
    author: String,
    config: Value,
    architecture: String,
    #[serde(skip_serializing_if = "String::is_empty")]
    variant: String,
    os: String,
    size: u64,
    virtual_size: u64,
    graph_driver: Value,
    #[serde(rename = "RootFS")]
    root_fs: Value,
    metadata: Value,
}

/// What `inspect` prints about an image.
pub fn detail(images: &Images, image: &Image) -> Result<Value, CliError> {
    let config = &image.config;
    let size = images.size(image)?;
    let names = |all: &[Reference]| all.iter().map(Reference::familiar).collect();
    let detail = Detail {
        id: image.id.0.to_string(),
        repo_tags: names(&image.tags),
        repo_digests: names(&image.digests),
        parent: String::new(),
        comment: config.history.last().map(|h| h.comment.clone()).unwrap_or_default(),
        created: image.created.map_or_else(|| "0001-01-01T00:00:00Z".to_owned(), units::rfc3339),
        docker_version: String::new(),
        author: config.author.clone(),
        config: container_config(&config.config),
        architecture: config.architecture.clone(),
        variant: config.variant.clone(),
        os: config.os.clone(),
        size,
        virtual_size: size,
        graph_driver: json!({ "Data": null, "Name": images.driver() }),
        root_fs: json!({
            "Type": "layers",
            "Layers": config.rootfs.diff_ids.iter().map(|d| d.0.to_string()).collect::<Vec<_>>(),
        }),
        metadata: json!({ "LastTagTime": units::rfc3339(image.made_here) }),
    };
    serde_json::to_value(detail).map_err(|e| CliError::new(e.to_string()))
}

/// The `Config` member: docker names every setting, also those an image cannot have.
fn container_config(config: &ContainerConfig) -> Value {
    let all = |map: &std::collections::BTreeMap<String, _>| match map.is_empty() {
        true => Value::Null,
        false => map.keys().map(|key| (key.clone(), json!({}))).collect::<serde_json::Map<_, _>>().into(),
    };
    let mut value = json!({
        "Hostname": "",
        "Domainname": "",
        "User": config.user,
        "AttachStdin": false,
        "AttachStdout": false,
        "AttachStderr": false,
        "Tty": false,
        "OpenStdin": false,
        "StdinOnce": false,
        "Env": config.env,
        "Cmd": config.cmd,
        "Image": "",
        "Volumes": all(&config.volumes),
        "WorkingDir": config.working_dir,
        "Entrypoint": config.entrypoint,
        "OnBuild": if config.on_build.is_empty() { Value::Null } else { json!(config.on_build) },
        "Labels": if config.labels.is_empty() { Value::Null } else { json!(config.labels) },
    });
    // These are there only when they say something.
    let mut add = |name: &str, said: bool, what: Value| {
        if let (true, Some(map)) = (said, value.as_object_mut()) {
            map.insert(name.to_owned(), what);
        }
    };
    add("ExposedPorts", !config.exposed_ports.is_empty(), all(&config.exposed_ports));
    add("Healthcheck", config.healthcheck.is_some(), serde_json::to_value(&config.healthcheck).unwrap_or_default());
    add("Shell", config.shell.is_some(), json!(config.shell));
    add("StopSignal", !config.stop_signal.is_empty(), json!(config.stop_signal));
    add("StopTimeout", config.stop_timeout.is_some(), json!(config.stop_timeout));
    add("ArgsEscaped", config.args_escaped, json!(true));
    value
}
