//! The metadata file of a build: what it made, under buildx's names.

use base64::Engine as _;
use base64::engine::general_purpose::STANDARD;
use rbuild_engine::BuildResult;
use rbuild_oci::Reference;
use serde_json::{Map, Value, json};

/// The text of the file.
pub fn written(result: &BuildResult, with_warnings: bool) -> String {
    let mut all = Map::new();
    for (platform, provenance) in &result.provenance {
        let key = match result.provenance.len() {
            1 => "buildx.build.provenance".to_owned(),
            _ => format!("buildx.build.provenance/{platform}"),
        };
        all.insert(key, provenance.clone());
    }
    all.insert("buildx.build.ref".into(), format!("default/default/{}", result.build).into());
    if with_warnings {
        all.insert("buildx.build.warnings".into(), warnings(result));
    }
    let digest = result.pushed.last().map_or(&result.target.digest, |(_, digest)| digest);
    all.insert("containerimage.config.digest".into(), result.image_id.to_string().into());
    all.insert("containerimage.descriptor".into(), serde_json::to_value(&result.target).unwrap_or_default());
    all.insert("containerimage.digest".into(), digest.to_string().into());
    if !result.names.is_empty() {
        let names: Vec<String> = result.names.iter().map(Reference::canonical).collect();
        all.insert("image.name".into(), names.join(",").into());
    }
    format!("{}\n", serde_json::to_string_pretty(&all).unwrap_or_default())
}

/// As BuildKit's protocol writes them: texts are base64.
fn warnings(result: &BuildResult) -> Value {
    let source = || {
        json!({
            "filename": result.source_text.name,
            "data": STANDARD.encode(&result.source_text.text),
            "language": "Dockerfile",
        })
    };
    result
        .warnings
        .iter()
        .map(|warning| {
            let mut shown = json!({"level": 1, "short": STANDARD.encode(&warning.message)});
            if let Some(url) = &warning.url {
                shown["url"] = url.to_string().into();
            }
            if let Some(span) = warning.span {
                shown["sourceInfo"] = source();
                shown["range"] = json!([{"start": {"line": span.line}, "end": {"line": span.end_line}}]);
            }
            shown
        })
        .collect()
}
