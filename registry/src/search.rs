//! Searches for repositories, as docker's `search` does: an interface of Docker Hub and of few others.

use reqwest::{Method, StatusCode};
use serde::Deserialize;

use crate::auth::Scope;
use crate::client::{Client, failure};
use crate::mirrors::{DOCKER_IO, Mirrors};
use crate::{Error, transport};

/// A repository that fits.
#[derive(Debug, Clone, PartialEq, Eq, Deserialize)]
pub struct Match {
    #[serde(default)]
    pub name: String,
    #[serde(default)]
    pub description: String,
    #[serde(default)]
    pub star_count: u64,
    #[serde(default)]
    pub is_official: bool,
    #[serde(default)]
    pub is_automated: bool,
}

/// Where Docker Hub's search is: at neither of the hosts that have its images.
const HUB_INDEX: &str = "index.docker.io";
const ANSWER: u64 = 4 << 20;

impl Client {
    /// The first `limit` repositories that fit `term`, the most popular first. `term` may begin with a registry's host.
    ///
    /// # Errors
    /// The registry cannot be asked, or cannot be searched.
    pub async fn search(&self, term: &str, limit: u32) -> Result<Vec<Match>, Error> {
        let (registry, term) = match term.split_once('/') {
            Some((host, rest)) if host == "localhost" || host.contains(['.', ':']) => (host, rest),
            _ => (DOCKER_IO, term),
        };
        let mut endpoint = self.origin_of(registry)?;
        if registry == DOCKER_IO {
            endpoint = Mirrors::default().origin(HUB_INDEX)?;
        }
        let access = self.access(&endpoint).await?;
        let mut ask = access.ask(Method::GET, "")?;
        ask.url.set_path("/v1/search");
        ask.url.query_pairs_mut().append_pair("q", term).append_pair("n", &limit.to_string());
        let request = ask.shown();
        let answer = self.call(&access, &Scope::default(), &ask).await?;
        if answer.status() == StatusCode::NOT_FOUND {
            return Err(Error::Refused { request, what: format!("the registry {registry} cannot be searched") });
        }
        if !answer.status().is_success() {
            return Err(failure(&request, answer).await);
        }
        #[derive(Deserialize)]
        struct Answer {
            #[serde(default)]
            results: Vec<Match>,
        }
        let body = transport::body(answer, ANSWER, &request).await?;
        let answer: Answer = serde_json::from_slice(&body)
            .map_err(|e| Error::Document { what: request, reason: crate::clean(&e.to_string()) })?;
        Ok(answer.results)
    }
}
