//! Manifests that refer to another one: signatures, bills of materials (distribution specification 1.1, "Referrers").
//!
//! Registries that know them are asked. For those that do not, the specification has a list under a tag that is made of
//! the digest: it is read here, and written when a manifest with a subject is pushed.

use std::pin::Pin;

use bytes::Bytes;
use rbuild_oci::{Descriptor, Digest, Document, Index, MediaType, Reference, limits};
use reqwest::{Method, StatusCode};

use crate::auth::Scope;
use crate::client::{Access, Client, failure, header, next_page, pull_failure};
use crate::transport::{self, Ask};
use crate::upload::Destination;
use crate::{Error, clean};

/// Pages of a list, at most.
const PAGES: usize = 100;

impl Client {
    /// The manifests of the repository of `reference` whose subject is `subject`; of one artifact type, if it is given.
    ///
    /// # Errors
    /// The registry cannot be asked. That it knows no referrers is no error.
    pub async fn referrers(
        &self,
        reference: &Reference,
        subject: &Digest,
        artifact_type: Option<&str>,
    ) -> Result<Vec<Descriptor>, Error> {
        let access = self.access(&self.origin_of(reference.registry())?).await?;
        let mut found = match self.asked(&access, reference, subject).await? {
            Some(found) => found,
            None => listed(self, &access, reference, subject).await?.map(|index| index.manifests).unwrap_or_default(),
        };
        found.retain(|one| artifact_type.is_none() || one.artifact_type.as_deref() == artifact_type);
        Ok(found)
    }

    /// What the registry answers; `None` when it does not know the question.
    async fn asked(
        &self,
        access: &Access,
        reference: &Reference,
        subject: &Digest,
    ) -> Result<Option<Vec<Descriptor>>, Error> {
        let scope = Scope::pull(reference.repository());
        let mut next = Some(access.url(&format!("{}/referrers/{subject}", reference.repository()))?);
        let mut found = Vec::new();
        for _ in 0..PAGES {
            let Some(url) = next.take() else { break };
            let ask = Ask::new(Method::GET, url, access.insecure);
            let request = ask.shown();
            let answer = self.call(access, &scope, &ask).await?;
            match answer.status() {
                StatusCode::OK => {}
                StatusCode::NOT_FOUND | StatusCode::METHOD_NOT_ALLOWED | StatusCode::BAD_REQUEST => return Ok(None),
                _ => return Err(failure(&request, answer).await),
            }
            next = next_page(access, &ask.url, answer.headers());
            let kind = header(answer.headers(), &reqwest::header::CONTENT_TYPE).map(MediaType::from);
            let body = transport::body(answer, limits::INDEX, &request).await?;
            let Document::Index(index) = Document::parse(&body, kind.as_ref())? else {
                return Err(Error::Document { what: request, reason: "the list of referrers is no index".into() });
            };
            found.extend(index.manifests);
        }
        Ok(Some(found))
    }
}

/// The list under the tag of `subject`, if there is one.
async fn listed(
    client: &Client,
    access: &Access,
    reference: &Reference,
    subject: &Digest,
) -> Result<Option<Index>, Error> {
    let tag = reference.with_tag(&list_tag(subject))?;
    let ask = client.manifest_ask(access, Method::GET, &tag)?;
    let request = ask.shown();
    let answer = client.call(access, &Scope::pull(reference.repository()), &ask).await?;
    match answer.status() {
        StatusCode::NOT_FOUND => return Ok(None),
        StatusCode::OK => {}
        _ => return Err(pull_failure(&tag, &request, answer).await),
    }
    let body = transport::body(answer, limits::INDEX, &request).await?;
    match Document::parse(&body, None)? {
        Document::Index(index) => Ok(Some(index)),
        Document::Manifest(_) => {
            let reason = format!("the tag {} holds no list of referrers", clean(&list_tag(subject)));
            Err(Error::Document { what: request, reason })
        }
    }
}

/// `sha256-<hex>`, as much of it as a tag may have.
fn list_tag(subject: &Digest) -> String {
    let (algorithm, hex) = (subject.algorithm().name(), subject.hex());
    format!("{}-{}", &algorithm[..algorithm.len().min(32)], &hex[..hex.len().min(64)])
}

/// Adds a manifest that was pushed, and whose registry said nothing about its subject, to the subject's list.
pub(crate) fn note<'a>(
    destination: &'a Destination,
    manifest: &'a Bytes,
    digest: &'a Digest,
) -> Pin<Box<dyn Future<Output = Result<(), Error>> + Send + 'a>> {
    Box::pin(async move {
        let document = Document::parse(manifest, None)?;
        let (subject, artifact_type, annotations) = match &document {
            Document::Manifest(m) => {
                let implied = Some(m.config.media_type.as_str().to_owned()).filter(|t| !t.is_empty());
                (&m.subject, m.artifact_type.clone().or(implied), &m.annotations)
            }
            Document::Index(i) => (&i.subject, i.artifact_type.clone(), &i.annotations),
        };
        let Some(subject) = subject else { return Ok(()) };
        let mut entry = Descriptor::new(document.media_type(), digest.clone(), manifest.len() as u64);
        entry.artifact_type = artifact_type;
        entry.annotations = annotations.clone();
        let repository = Reference::parse_untagged(&format!("{}/{}", host(destination), destination.repository))?;
        let list = listed(&destination.client, &destination.access, &repository, &subject.digest).await?;
        let mut list = list.unwrap_or_else(|| Index::new(Vec::new()));
        if list.manifests.iter().any(|one| one.digest == *digest) {
            return Ok(());
        }
        list.manifests.push(entry);
        let bytes = serde_json::to_vec(&list).map_err(|e| Error::Options(format!("writing a list: {e}")))?;
        destination.manifest(Some(&list_tag(&subject.digest)), &MediaType::OciIndex, bytes.into()).await.map(drop)
    })
}

/// The registry's name, as references have it.
fn host(destination: &Destination) -> &str {
    &destination.access.credentials
}
