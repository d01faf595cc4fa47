//! The Dockerfile frontend's driver: asks the frontend, finds out what it lacks, asks again.

use std::sync::Arc;

use futures::future::try_join_all;
use rbuild_frontend::NamedContext as Replacement;
use rbuild_frontend::{Diagnostic, Dockerfile, FactRequest, Facts, LowerOptions, Lowered, Outcome as Asked};
use rbuild_oci::Platform;
use rbuild_solver::{Events, Outcome, StepKind};

use crate::error::{Error, Kind, SourceText};
use crate::request::{BuildRequest, NamedContext};
use crate::resolve::BaseImages;

/// Asking more often than this means that facts do not help; each round names new images, so even long chains of ON
/// BUILD triggers stay below.
const ROUNDS: usize = 64;

/// A Dockerfile understood.
pub(crate) struct Understood {
    /// One for each platform.
    pub(crate) lowered: Vec<Lowered>,
    pub(crate) warnings: Vec<Diagnostic>,
    /// What was found out about images.
    pub(crate) facts: Facts,
}

/// What lowering depends on besides the file.
pub(crate) fn lower_options(request: &BuildRequest, ignore: Vec<String>) -> LowerOptions {
    let mut options = LowerOptions::new(Platform::host());
    options.build_args = request.build_args.clone();
    options.target = request.target.clone();
    options.labels = request.labels.clone();
    options.platforms = request.platforms.clone();
    options.no_cache = request.no_cache;
    options.no_cache_filter = request.no_cache_filter.clone();
    options.contexts =
        request.lent.contexts.iter().map(|(name, context)| (name.clone(), replacement(context))).collect();
    options.network = request.network;
    options.extra_hosts = request.extra_hosts.clone();
    options.shm_size = request.shm_size;
    options.ulimits = request.ulimits.clone();
    options.cgroup_parent = request.cgroup_parent.clone();
    options.source_date_epoch = request.source_date_epoch;
    options.ignore = ignore;
    options
}

fn replacement(context: &NamedContext) -> Replacement {
    match context {
        NamedContext::Image(reference) | NamedContext::Lent(reference) => Replacement::Image(reference.clone()),
        NamedContext::Directory(_) | NamedContext::Remote(_) | NamedContext::Unpacked(_) | NamedContext::Layout(_) => {
            Replacement::Local
        }
    }
}

/// Lowers the file, resolving images as the frontend asks for them.
///
/// # Errors
/// The mistakes of the file, all of them; an image that cannot be found, with its line.
pub(crate) async fn understand(
    file: &Dockerfile,
    options: &LowerOptions,
    source: &SourceText,
    parsed: Vec<Diagnostic>,
    images: &Arc<BaseImages>,
    events: &Events,
) -> Result<Understood, Error> {
    let mut facts = Facts::default();
    for _ in 0..ROUNDS {
        let (outcome, diagnostics) = rbuild_frontend::lower(file, options, &facts);
        let all: Vec<Diagnostic> = parsed.iter().chain(&diagnostics).cloned().collect();
        if all.iter().any(Diagnostic::is_error) {
            return Err(mistakes(all, source));
        }
        match outcome {
            Asked::Lowered(lowered) => {
                return Ok(Understood { lowered, warnings: all, facts });
            }
            Asked::Missing(requests) => {
                let found = requests.into_iter().map(|request| resolve(request, images, source, events));
                let found = try_join_all(found).await;
                // What was found out about the text is worth telling also when an image is not to be had.
                facts.images.extend(found.map_err(|error| Error { diagnostics: all, ..error })?);
            }
            Asked::Failed => return Err(mistakes(all, source)),
        }
    }
    Err(Error::internal("the Dockerfile keeps naming further images"))
}

async fn resolve(
    request: FactRequest,
    images: &Arc<BaseImages>,
    source: &SourceText,
    events: &Events,
) -> Result<((rbuild_oci::Reference, Platform), rbuild_frontend::ImageFact), Error> {
    match request {
        FactRequest::ImageConfig { reference, platform, span, near } => {
            let name = format!("[internal] load metadata for {}", reference.canonical());
            let step = events.step(name, Vec::new(), None, StepKind::Internal);
            events.started(step);
            let found = images.fact(&reference, &platform).await;
            match found {
                Ok(fact) => {
                    events.finished(step, Outcome::Done);
                    Ok(((reference, platform), fact))
                }
                Err(mut error) => {
                    events.finished(step, Outcome::Failed(error.message.clone()));
                    error.span = span;
                    error.source_text = Some(source.clone());
                    if let Some(near) = near {
                        error.hints.push(format!("did you mean the stage {near}?"));
                    }
                    Err(error)
                }
            }
        }
        other => Err(Error::unsupported(format!("the frontend asks for something unknown: {other:?}"))),
    }
}

pub(crate) fn mistakes(mut diagnostics: Vec<Diagnostic>, source: &SourceText) -> Error {
    diagnostics.sort_by_key(|diagnostic| diagnostic.span.map_or(usize::MAX, |span| span.start));
    let errors: Vec<&Diagnostic> = diagnostics.iter().filter(|diagnostic| diagnostic.is_error()).collect();
    let message = match errors.as_slice() {
        [one] => one.message.clone(),
        [first, rest @ ..] => format!("{} (and {} more)", first.message, rest.len()),
        [] => "the Dockerfile cannot be used".to_owned(),
    };
    let mut error = Error::new(Kind::Invalid, message);
    error.span = errors.first().and_then(|first| first.span);
    error.source_text = Some(source.clone());
    error.diagnostics = diagnostics;
    error
}
