//! A registry over a store of its own, on a free port of the loopback interface, and requests to it.

use std::io::Write as _;

use rbuild_oci::{Descriptor, Digest, MediaType};
use rbuild_registry::serve::{ServeOptions, serve};
use rbuild_store::{Lease, Store, StoreOptions};
use reqwest::{Method, RequestBuilder, Response, StatusCode};
use rustls::pki_types::pem::PemObject as _;
use rustls::pki_types::{CertificateDer, PrivateKeyDer};

pub(crate) struct Served {
    pub(crate) store: Store,
    pub(crate) lease: Lease,
    address: std::net::SocketAddr,
    http: reqwest::Client,
    task: tokio::task::JoinHandle<()>,
    _dir: tempfile::TempDir,
}

impl Served {
    pub(crate) async fn start() -> Served {
        Served::start_with(ServeOptions::default()).await
    }

    pub(crate) async fn start_with(options: ServeOptions) -> Served {
        let dir = tempfile::tempdir().unwrap();
        let store = Store::open(StoreOptions::new(dir.path().join("root"))).unwrap();
        let lease = store.lease("test").unwrap();
        let listener = tokio::net::TcpListener::bind(("127.0.0.1", 0)).await.unwrap();
        let address = listener.local_addr().unwrap();
        let served = store.clone();
        let task = tokio::spawn(async move {
            serve(listener, served, options, std::future::pending()).await.unwrap();
        });
        let http = http(&[], None);
        Served { store, lease, address, http, task, _dir: dir }
    }

    pub(crate) fn host(&self) -> String {
        self.address.to_string()
    }

    /// A request about a path below `/v2/`.
    pub(crate) fn request(&self, method: Method, path: &str) -> RequestBuilder {
        self.request_at(method, &format!("/v2/{path}"))
    }

    /// A request about an absolute path, as a `Location` has it.
    pub(crate) fn request_at(&self, method: Method, path: &str) -> RequestBuilder {
        self.http.request(method, format!("http://{}{path}", self.address))
    }

    pub(crate) async fn ask(&self, method: Method, path: &str) -> Response {
        self.request(method, path).send().await.unwrap()
    }

    pub(crate) async fn post(&self, path: &str, body: Vec<u8>) -> Response {
        self.request(Method::POST, path).body(body).send().await.unwrap()
    }

    pub(crate) async fn put(&self, path: &str, kind: &str, body: Vec<u8>) -> Response {
        self.request(Method::PUT, path).header("content-type", kind).body(body).send().await.unwrap()
    }

    /// Begins an upload; gives its place.
    pub(crate) async fn begin(&self, repository: &str) -> String {
        let answer = self.post(&format!("{repository}/blobs/uploads/"), Vec::new()).await;
        assert_eq!(answer.status(), StatusCode::ACCEPTED);
        answer.headers()["location"].to_str().unwrap().to_owned()
    }

    pub(crate) async fn push_blob(&self, repository: &str, bytes: &[u8]) -> Descriptor {
        let digest = Digest::sha256_of(bytes);
        let place = self.begin(repository).await;
        let put = self.request_at(Method::PUT, &format!("{place}?digest={digest}"));
        let answer = put.body(bytes.to_vec()).send().await.unwrap();
        assert_eq!(answer.status(), StatusCode::CREATED);
        Descriptor::new(MediaType::from("application/octet-stream"), digest, bytes.len() as u64)
    }
}

/// A client that believes the authority in `roots` (PEM) and shows a certificate, given with its key, if it has one.
pub(crate) fn http(roots: &[u8], shows: Option<(&[u8], &[u8])>) -> reqwest::Client {
    let mut store = rustls::RootCertStore::empty();
    for root in CertificateDer::pem_slice_iter(roots) {
        store.add(root.unwrap()).unwrap();
    }
    let builder = rustls::ClientConfig::builder_with_provider(rustls::crypto::ring::default_provider().into())
        .with_safe_default_protocol_versions()
        .unwrap()
        .with_root_certificates(store);
    let tls = match shows {
        None => builder.with_no_client_auth(),
        Some((certificate, key)) => {
            let chain = CertificateDer::pem_slice_iter(certificate).map(Result::unwrap).collect();
            builder.with_client_auth_cert(chain, PrivateKeyDer::from_pem_slice(key).unwrap()).unwrap()
        }
    };
    reqwest::Client::builder().tls_backend_preconfigured(tls).no_proxy().build().unwrap()
}

impl Drop for Served {
    fn drop(&mut self) {
        self.task.abort();
    }
}

pub(crate) fn tar_of(path: &str, content: &[u8]) -> Vec<u8> {
    let mut builder = tar::Builder::new(Vec::new());
    let mut header = tar::Header::new_ustar();
    header.set_size(content.len() as u64);
    header.set_mode(0o644);
    builder.append_data(&mut header, path, content).unwrap();
    builder.into_inner().unwrap()
}

pub(crate) fn gzip(bytes: &[u8]) -> Vec<u8> {
    let mut encoder = flate2::write::GzEncoder::new(Vec::new(), flate2::Compression::fast());
    encoder.write_all(bytes).unwrap();
    encoder.finish().unwrap()
}

/// The config of an image with these layers.
pub(crate) fn config_of(layers: &[Digest]) -> String {
    let ids: Vec<String> = layers.iter().map(|digest| format!("\"{digest}\"")).collect();
    format!(
        r#"{{"architecture":"amd64","os":"linux","config":{{}},"rootfs":{{"type":"layers","diff_ids":[{}]}}}}"#,
        ids.join(",")
    )
}
