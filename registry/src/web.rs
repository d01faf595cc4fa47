//! Files from web servers (`ADD https://…`), over the same careful transport as registries.
//!
//! Only http and https; no credentials; bounded redirects; a body that ends early is an error, never a short file.

use std::time::SystemTime;

use bytes::Bytes;
use reqwest::header::{CONTENT_DISPOSITION, CONTENT_LENGTH, HeaderName, LAST_MODIFIED};
use reqwest::{Method, Response};
use url::Url;

use crate::transport::Ask;
use crate::{Client, Error};

/// A file on its way.
pub struct WebFile {
    /// What the server says about its last change.
    pub last_modified: Option<SystemTime>,
    /// The name the server gives it.
    pub filename: Option<String>,
    response: Response,
    shown: String,
    expected: Option<u64>,
    received: u64,
}

impl Client {
    /// Asks for a file; its bytes come from [`WebFile::chunk`].
    ///
    /// # Errors
    /// No URL of http or https, no server, an answer other than success (its status is named).
    pub async fn open_web(&self, url: &str) -> Result<WebFile, Error> {
        let url = Url::parse(url).map_err(|error| Error::Options(format!("invalid URL {url:?}: {error}")))?;
        if !matches!(url.scheme(), "http" | "https") {
            return Err(Error::Options(format!("{:?} is no http or https URL", url.scheme())));
        }
        let ask = Ask::new(Method::GET, url, false);
        let response = self.inner.transport.send(&ask, None).await?;
        let status = response.status();
        if !status.is_success() {
            return Err(Error::Refused { request: ask.shown(), what: format!("invalid response status {status}") });
        }
        let header = |name: HeaderName| response.headers().get(name).and_then(|value| value.to_str().ok());
        Ok(WebFile {
            last_modified: header(LAST_MODIFIED).and_then(|text| httpdate::parse_http_date(text).ok()),
            filename: header(CONTENT_DISPOSITION).and_then(filename),
            expected: header(CONTENT_LENGTH).and_then(|text| text.parse().ok()),
            shown: ask.shown(),
            response,
            received: 0,
        })
    }
}

impl WebFile {
    /// How many bytes there will be, if the server says so.
    pub fn size(&self) -> Option<u64> {
        self.expected
    }

    /// The next bytes; `None` at the end.
    ///
    /// # Errors
    /// The connection broke, or the body is shorter than announced.
    pub async fn chunk(&mut self) -> Result<Option<Bytes>, Error> {
        let broken = |reason: String| Error::Unreachable { request: self.shown.clone(), reason };
        match tokio::time::timeout(crate::transport::IDLE, self.response.chunk()).await {
            Err(_) => Err(broken("the peer is silent".into())),
            Ok(Err(error)) => Err(broken(error.to_string())),
            Ok(Ok(Some(bytes))) => {
                self.received += bytes.len() as u64;
                Ok(Some(bytes))
            }
            Ok(Ok(None)) => match self.expected {
                Some(expected) if expected != self.received => {
                    Err(broken(format!("the body ended after {} of {expected} bytes", self.received)))
                }
                _ => Ok(None),
            },
        }
    }
}

/// The last clean component of the file name in a `Content-Disposition`.
fn filename(header: &str) -> Option<String> {
    let value = header.split(';').map(str::trim).find_map(|part| part.strip_prefix("filename="))?;
    let name = value.trim_matches('"').rsplit(['/', '\\']).next()?;
    (!name.is_empty() && name != "." && name != ".." && !name.contains(char::is_control)).then(|| name.to_owned())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_file_name_is_one_component() {
        assert_eq!(filename("attachment; filename=\"a.tar\"").as_deref(), Some("a.tar"));
        assert_eq!(filename("attachment; filename=../../etc/passwd").as_deref(), Some("passwd"));
        assert_eq!(filename("attachment; filename=\"..\""), None);
        assert_eq!(filename("inline"), None);
    }
}
