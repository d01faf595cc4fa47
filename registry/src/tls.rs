//! Which certificates are believed.

use std::sync::Arc;

use rustls::client::danger::{HandshakeSignatureValid, ServerCertVerified, ServerCertVerifier};
use rustls::crypto::{CryptoProvider, WebPkiSupportedAlgorithms, verify_tls12_signature, verify_tls13_signature};
use rustls::pki_types::pem::PemObject;
use rustls::pki_types::{CertificateDer, PrivateKeyDer, ServerName, UnixTime};
use rustls::{ClientConfig, DigitallySignedStruct, RootCertStore, SignatureScheme};

use crate::{Error, Trust};

/// The roots a registry's certificate must lead to.
#[derive(Debug, Clone, Default)]
pub enum Roots {
    /// Mozilla's list as of the build of this program: for systems that have none of their own.
    #[default]
    BuiltIn,
    /// A bundle in PEM, usually the system's.
    Pem(Vec<u8>),
}

/// The settings for hosts whose certificates are checked. What `trust` says is for this host alone.
pub(crate) fn checked(roots: &Roots, extra: &[Vec<u8>], trust: &Trust) -> Result<ClientConfig, Error> {
    let mut store = RootCertStore::empty();
    match roots {
        Roots::BuiltIn => {
            store.add_parsable_certificates(webpki_root_certs::TLS_SERVER_ROOT_CERTS.iter().cloned());
        }
        Roots::Pem(pem) => add(&mut store, pem)?,
    }
    for pem in extra.iter().chain(&trust.roots) {
        add(&mut store, pem)?;
    }
    Ok(with_protocols(shown(builder()?.with_root_certificates(store), trust)?))
}

/// The settings for hosts that the user declared insecure: encrypted, but anybody's certificate will do.
pub(crate) fn unchecked(trust: &Trust) -> Result<ClientConfig, Error> {
    let algorithms = provider().signature_verification_algorithms;
    let verifier = Arc::new(AnyCertificate { algorithms });
    let builder = builder()?.dangerous().with_custom_certificate_verifier(verifier);
    Ok(with_protocols(shown(builder, trust)?))
}

/// With the certificate that is to be shown, if there is one.
fn shown(
    builder: rustls::ConfigBuilder<ClientConfig, rustls::client::WantsClientCert>,
    trust: &Trust,
) -> Result<ClientConfig, Error> {
    let Some((certificate, key)) = &trust.identity else { return Ok(builder.with_no_client_auth()) };
    let bad = |e: &dyn std::fmt::Display| Error::Options(format!("the client certificate cannot be used: {e}"));
    let chain: Result<Vec<_>, _> = CertificateDer::pem_slice_iter(certificate).collect();
    let key = PrivateKeyDer::from_pem_slice(key).map_err(|e| bad(&e))?;
    builder.with_client_auth_cert(chain.map_err(|e| bad(&e))?, key).map_err(|e| bad(&e))
}

pub(crate) fn add(store: &mut RootCertStore, pem: &[u8]) -> Result<(), Error> {
    let certificates: Vec<_> = CertificateDer::pem_slice_iter(pem).filter_map(Result::ok).collect();
    let (added, _) = store.add_parsable_certificates(certificates);
    if added == 0 {
        return Err(Error::Options("the certificate bundle holds no usable certificate".into()));
    }
    Ok(())
}

pub(crate) fn provider() -> Arc<CryptoProvider> {
    Arc::new(rustls::crypto::ring::default_provider())
}

fn builder() -> Result<rustls::ConfigBuilder<ClientConfig, rustls::WantsVerifier>, Error> {
    ClientConfig::builder_with_provider(provider())
        .with_safe_default_protocol_versions()
        .map_err(|e| Error::Options(format!("TLS cannot be set up: {e}")))
}

fn with_protocols(mut config: ClientConfig) -> ClientConfig {
    config.alpn_protocols = vec![b"h2".to_vec(), b"http/1.1".to_vec()];
    config
}

/// Accepts any chain, yet still proves that the peer holds the key of the certificate it shows.
#[derive(Debug)]
struct AnyCertificate {
    algorithms: WebPkiSupportedAlgorithms,
}

impl ServerCertVerifier for AnyCertificate {
    fn verify_server_cert(
        &self,
        _end_entity: &CertificateDer<'_>,
        _intermediates: &[CertificateDer<'_>],
        _server_name: &ServerName<'_>,
        _ocsp_response: &[u8],
        _now: UnixTime,
    ) -> Result<ServerCertVerified, rustls::Error> {
        Ok(ServerCertVerified::assertion())
    }

    fn verify_tls12_signature(
        &self,
        message: &[u8],
        certificate: &CertificateDer<'_>,
        signature: &DigitallySignedStruct,
    ) -> Result<HandshakeSignatureValid, rustls::Error> {
        verify_tls12_signature(message, certificate, signature, &self.algorithms)
    }

    fn verify_tls13_signature(
        &self,
        message: &[u8],
        certificate: &CertificateDer<'_>,
        signature: &DigitallySignedStruct,
    ) -> Result<HandshakeSignatureValid, rustls::Error> {
        verify_tls13_signature(message, certificate, signature, &self.algorithms)
    }

    fn supported_verify_schemes(&self) -> Vec<SignatureScheme> {
        self.algorithms.supported_schemes()
    }
}
