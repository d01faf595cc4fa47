//! Digests that others can check, and the ids made of them.

use std::fmt;
use std::str::FromStr;
use std::sync::Arc;

use serde::{Deserialize, Deserializer, Serialize, Serializer};
use sha2::Digest as _;

use crate::OciError;

/// A hash function of the image specification ("Digests": registered algorithms).
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub enum Algorithm {
    Sha256,
    Sha512,
}

impl Algorithm {
    /// The name before the colon.
    pub fn name(self) -> &'static str {
        match self {
            Algorithm::Sha256 => "sha256",
            Algorithm::Sha512 => "sha512",
        }
    }

    /// How many hexadecimal digits follow the colon.
    pub fn hex_len(self) -> usize {
        match self {
            Algorithm::Sha256 => 64,
            Algorithm::Sha512 => 128,
        }
    }
}

/// `algorithm:hex` of bytes that anybody can hash again (image specification, "Digests").
///
/// Only sha256 and sha512 exist here, in lower case and of the right length; a `Digest` can therefore be used as a file
/// name or a URL component as it is.
#[derive(Clone, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub struct Digest {
    algorithm: Algorithm,
    hex: Arc<str>,
}

impl Digest {
    /// The sha256 digest of `bytes`.
    pub fn sha256_of(bytes: &[u8]) -> Digest {
        let mut hasher = Sha256::new();
        hasher.update(bytes);
        hasher.finish()
    }

    /// A sha256 digest from its 32 raw bytes.
    pub fn from_sha256_bytes(raw: &[u8; 32]) -> Digest {
        Digest { algorithm: Algorithm::Sha256, hex: to_hex(raw).into() }
    }

    pub fn algorithm(&self) -> Algorithm {
        self.algorithm
    }

    /// The hexadecimal part.
    pub fn hex(&self) -> &str {
        &self.hex
    }

    /// The first twelve hexadecimal digits, docker's short form.
    pub fn short(&self) -> &str {
        &self.hex[..12]
    }

    /// Whether `bytes` have this digest.
    pub fn matches(&self, bytes: &[u8]) -> bool {
        match self.algorithm {
            Algorithm::Sha256 => to_hex(&sha2::Sha256::digest(bytes)) == *self.hex,
            Algorithm::Sha512 => to_hex(&sha2::Sha512::digest(bytes)) == *self.hex,
        }
    }
}

fn to_hex(raw: &[u8]) -> String {
    const DIGITS: &[u8; 16] = b"0123456789abcdef";
    let mut out = String::with_capacity(raw.len() * 2);
    for byte in raw {
        out.push(DIGITS[usize::from(byte >> 4)] as char);
        out.push(DIGITS[usize::from(byte & 15)] as char);
    }
    out
}

impl FromStr for Digest {
    type Err = OciError;

    fn from_str(text: &str) -> Result<Digest, OciError> {
        let bad = |why| OciError::Digest(text.chars().take(160).collect(), why);
        let (name, hex) = text.split_once(':').ok_or_else(|| bad("expected algorithm:hex"))?;
        let algorithm = match name {
            "sha256" => Algorithm::Sha256,
            "sha512" => Algorithm::Sha512,
            _ => return Err(bad("unsupported digest algorithm, expected sha256 or sha512")),
        };
        if hex.len() != algorithm.hex_len() {
            return Err(bad("invalid checksum digest length"));
        }
        if !hex.bytes().all(|b| b.is_ascii_digit() || (b'a'..=b'f').contains(&b)) {
            return Err(bad("expected lower-case hexadecimal digits"));
        }
        Ok(Digest { algorithm, hex: hex.into() })
    }
}

impl fmt::Display for Digest {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}:{}", self.algorithm.name(), self.hex)
    }
}

impl fmt::Debug for Digest {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        fmt::Display::fmt(self, f)
    }
}

impl Serialize for Digest {
    fn serialize<S: Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        serializer.collect_str(self)
    }
}

impl<'de> Deserialize<'de> for Digest {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Digest, D::Error> {
        let text = std::borrow::Cow::<'de, str>::deserialize(deserializer)?;
        text.parse().map_err(serde::de::Error::custom)
    }
}

/// A sha256 hasher that ends in a [`Digest`].
#[derive(Clone, Default)]
pub struct Sha256(sha2::Sha256);

impl Sha256 {
    pub fn new() -> Sha256 {
        Sha256::default()
    }

    pub fn update(&mut self, bytes: &[u8]) {
        self.0.update(bytes);
    }

    pub fn finish(self) -> Digest {
        Digest { algorithm: Algorithm::Sha256, hex: to_hex(&self.0.finalize()).into() }
    }
}

impl std::io::Write for Sha256 {
    fn write(&mut self, bytes: &[u8]) -> std::io::Result<usize> {
        self.update(bytes);
        Ok(bytes.len())
    }

    fn flush(&mut self) -> std::io::Result<()> {
        Ok(())
    }
}

macro_rules! digest_id {
    ($(#[$doc:meta])* $name:ident) => {
        $(#[$doc])*
        #[derive(Clone, Debug, PartialEq, Eq, Hash, PartialOrd, Ord, Serialize, Deserialize)]
        #[serde(transparent)]
        pub struct $name(pub Digest);

        impl fmt::Display for $name {
            fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
                fmt::Display::fmt(&self.0, f)
            }
        }

        impl FromStr for $name {
            type Err = OciError;
            fn from_str(text: &str) -> Result<$name, OciError> {
                text.parse().map($name)
            }
        }
    };
}

digest_id! {
    /// The digest of a layer's uncompressed tar (image specification, "Layer DiffID").
    DiffId
}
digest_id! {
    /// The name of a stack of layers (image specification, "Layer ChainID").
    ChainId
}
digest_id! {
    /// The digest of an image's config, docker's `IMAGE ID` (image specification, "ImageID").
    ImageId
}

impl ChainId {
    /// The chain of `layers`, lowest first. No layers, no chain.
    pub fn of(layers: &[DiffId]) -> Option<ChainId> {
        let (first, rest) = layers.split_first()?;
        Some(rest.iter().fold(ChainId(first.0.clone()), |chain, layer| chain.then(layer)))
    }

    /// The chain with one more layer on top.
    pub fn then(&self, layer: &DiffId) -> ChainId {
        ChainId(Digest::sha256_of(format!("{self} {layer}").as_bytes()))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn digests_are_checked_when_they_are_parsed() {
        let empty = "sha256:e3b0c44298fc1c149afbf4c8996fb92427ae41e4649b934ca495991b7852b855";
        assert_eq!(Digest::sha256_of(b"").to_string(), empty);
        assert!(empty.parse::<Digest>().unwrap().matches(b""));
        for bad in [
            "",
            "sha256",
            "sha256:",
            "sha256:abc",
            "md5:d41d8cd98f00b204e9800998ecf8427e",
            &empty.to_uppercase(),
            "sha256:../../../../etc/passwd",
        ] {
            assert!(bad.parse::<Digest>().is_err(), "{bad:?} was accepted");
        }
    }

    #[test]
    fn a_chain_is_folded_from_its_layers() {
        let (a, b) = (DiffId(Digest::sha256_of(b"a")), DiffId(Digest::sha256_of(b"b")));
        assert_eq!(ChainId::of(&[]), None);
        assert_eq!(ChainId::of(std::slice::from_ref(&a)).unwrap().0, a.0);
        let both = ChainId::of(&[a.clone(), b.clone()]).unwrap();
        assert_eq!(both.0, Digest::sha256_of(format!("{a} {b}").as_bytes()));
    }
}
