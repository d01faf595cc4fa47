//! Lists: tags, repositories, referrers. Ordered, and given out in pages to those who ask for pages.

use axum::response::Response;
use rbuild_oci::{Digest, Index, MediaType};

use super::entry::{Answer, Call, Refusal, Repository};
use crate::wire::{json, with_header};

pub(super) async fn tags(call: Call, repository: Repository) -> Answer {
    let local = repository.local.clone();
    let (tags, known) = call
        .blocking(move |registry| {
            let tags = registry.shelf.tags(&local)?;
            let known = !tags.is_empty() || !registry.shelf.roots(&local)?.is_empty();
            Ok((tags, known))
        })
        .await?;
    if !known {
        return Err(Refusal::no_repository(&repository.name));
    }
    let (page, more) = page(&call, tags.into_keys().collect())?;
    let answer = json(&serde_json::json!({ "name": repository.name, "tags": page }));
    Ok(linked(&call, answer, page.last().filter(|_| more)))
}

pub(super) async fn catalog(call: Call) -> Answer {
    let mut names = call
        .blocking(|registry| {
            let local = registry.shelf.repositories()?;
            Ok(local.iter().filter_map(|name| registry.names.repository(name)).collect::<Vec<_>>())
        })
        .await?;
    names.sort();
    let (page, more) = page(&call, names)?;
    let answer = json(&serde_json::json!({ "repositories": page }));
    Ok(linked(&call, answer, page.last().filter(|_| more)))
}

pub(super) async fn referrers(call: Call, repository: Repository, subject: Digest) -> Answer {
    let found = call.blocking(move |registry| Ok(registry.shelf.referrers(&repository.local, &subject)?)).await?;
    let wanted = call.query("artifactType").map(str::to_owned);
    let found = found.into_iter().filter(|one| wanted.is_none() || one.artifact_type == wanted).collect();
    let index = serde_json::to_value(Index::new(found)).map_err(|error| Refusal::internal(&error))?;
    let answer = with_header(json(&index), "content-type", MediaType::OciIndex.as_str());
    Ok(match wanted {
        Some(_) => with_header(answer, "oci-filters-applied", "artifactType"),
        None => answer,
    })
}

/// The part of a sorted list that `n` and `last` ask for, and whether there is more.
fn page(call: &Call, mut all: Vec<String>) -> Result<(Vec<String>, bool), Refusal> {
    if let Some(last) = call.query("last") {
        all.retain(|one| one.as_str() > last);
    }
    let Some(n) = call.query("n") else { return Ok((all, false)) };
    let n: usize = n.parse().map_err(|_| Refusal::bad("PAGINATION_NUMBER_INVALID", "n must be a number"))?;
    let more = all.len() > n && n > 0;
    all.truncate(n);
    Ok((all, more))
}

/// With the address of the next page (RFC 5988), when there is one.
fn linked(call: &Call, answer: Response, last: Option<&String>) -> Response {
    let (Some(last), Some(n)) = (last, call.query("n")) else { return answer };
    let query =
        url::form_urlencoded::Serializer::new(String::new()).append_pair("n", n).append_pair("last", last).finish();
    with_header(answer, "link", &format!("<{}?{query}>; rel=\"next\"", call.parts.uri.path()))
}
