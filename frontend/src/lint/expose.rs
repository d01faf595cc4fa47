//! EXPOSE: ports of the container, nothing of the host, protocols in small letters.

use super::Rule;
use crate::Diagnostic;

pub(super) const EXPOSE_INVALID_FORMAT: Rule = Rule {
    name: "ExposeInvalidFormat",
    description: "EXPOSE should name no address and no port of the host",
    url: "https://docs.docker.com/go/dockerfile/rule/expose-invalid-format/",
    experimental: false,
};

pub(super) const EXPOSE_PROTO_CASING: Rule = Rule {
    name: "ExposeProtoCasing",
    description: "The protocol of EXPOSE should be in small letters",
    url: "https://docs.docker.com/go/dockerfile/rule/expose-proto-casing/",
    experimental: false,
};

pub(crate) fn invalid_format(word: &str) -> Diagnostic {
    let message = format!("EXPOSE instruction should not define an IP address or host-port mapping, found '{word}'");
    EXPOSE_INVALID_FORMAT.warn(message).hint("publish ports when the container is run")
}

pub(crate) fn proto_casing(word: &str) -> Option<Diagnostic> {
    let (_, protocol) = word.rsplit_once('/')?;
    let message = format!("Defined protocol '{word}' in EXPOSE instruction should be lowercase");
    protocol.chars().any(char::is_uppercase).then(|| EXPOSE_PROTO_CASING.warn(message))
}
