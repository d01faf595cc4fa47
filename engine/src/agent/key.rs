//! Private keys in OpenSSH's own format (PROTOCOL.key), and signatures with them.
//!
//! The signing is ring's, which this program has for TLS already. Why no crate for the format: the ones there are bring
//! a second set of cryptography along, and the format is a dozen fields.

use std::fmt;
use std::path::Path;

use base64::Engine as _;
use base64::engine::general_purpose::STANDARD;
use ring::rand::SystemRandom;
use ring::rsa::{KeyPairComponents, PublicKeyComponents};
use ring::signature::{self, EcdsaKeyPair, Ed25519KeyPair};

const BEGIN: &str = "-----BEGIN OPENSSH PRIVATE KEY-----";
const END: &str = "-----END OPENSSH PRIVATE KEY-----";
const MAGIC: &[u8] = b"openssh-key-v1\0";

/// A private key.
pub(super) struct Key {
    public: Vec<u8>,
    comment: String,
    pair: Pair,
}

enum Pair {
    Ed25519(Ed25519KeyPair),
    Rsa(Box<signature::RsaKeyPair>),
    Ecdsa(EcdsaKeyPair, &'static str),
}

/// Which hash to sign with; RSA keys have a choice.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Signing {
    Usual,
    Sha256,
    Sha512,
}

/// Why a text is no key that can be used.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) enum KeyError {
    NoKey,
    OldFormat,
    Encrypted,
    Unsupported(String),
    Broken,
}

impl fmt::Display for KeyError {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            KeyError::NoKey => f.write_str("it is no private key"),
            KeyError::OldFormat => f.write_str("its format is not OpenSSH's"),
            KeyError::Encrypted => f.write_str("the key is protected by a passphrase, which a build cannot ask for"),
            KeyError::Unsupported(kind) => write!(f, "keys of type {kind} are not supported"),
            KeyError::Broken => f.write_str("the key is damaged"),
        }
    }
}

impl KeyError {
    pub(super) fn hint(&self, path: &Path) -> String {
        match self {
            KeyError::OldFormat => format!("convert it with: ssh-keygen -p -N '' -f {}", path.display()),
            KeyError::Encrypted => format!("give it to an agent: ssh-add {}; then --ssh default", path.display()),
            _ => "give --ssh the socket of an agent that has the key".to_owned(),
        }
    }
}

impl Key {
    /// # Errors
    /// The text is no key, is protected, or is of a type that ring cannot sign with.
    pub(super) fn parse(text: &str) -> Result<Key, KeyError> {
        let text = text.trim();
        if text.starts_with("-----BEGIN ") && text.contains("PRIVATE KEY-----") && !text.starts_with(BEGIN) {
            return Err(if text.contains("ENCRYPTED") { KeyError::Encrypted } else { KeyError::OldFormat });
        }
        let body = text.strip_prefix(BEGIN).and_then(|text| text.strip_suffix(END)).ok_or(KeyError::NoKey)?;
        let body: String = body.split_whitespace().collect();
        let body = STANDARD.decode(body).map_err(|_| KeyError::Broken)?;
        Key::unpack(body.strip_prefix(MAGIC).ok_or(KeyError::NoKey)?)
    }

    fn unpack(mut bytes: &[u8]) -> Result<Key, KeyError> {
        let bytes = &mut bytes;
        let (cipher, kdf) = (string(bytes)?, string(bytes)?);
        string(bytes)?;
        if cipher != b"none" || kdf != b"none" {
            return Err(KeyError::Encrypted);
        }
        if number(bytes)? != 1 {
            return Err(KeyError::Broken);
        }
        let public = string(bytes)?.to_vec();
        let private = &mut string(bytes)?;
        // Two equal numbers, by which a wrong passphrase would show.
        if number(private)? != number(private)? {
            return Err(KeyError::Broken);
        }
        let kind = String::from_utf8_lossy(string(private)?).into_owned();
        let pair = match kind.as_str() {
            "ssh-ed25519" => ed25519(private)?,
            "ssh-rsa" => rsa(private)?,
            "ecdsa-sha2-nistp256" => ecdsa(private, "ecdsa-sha2-nistp256")?,
            "ecdsa-sha2-nistp384" => ecdsa(private, "ecdsa-sha2-nistp384")?,
            _ => return Err(KeyError::Unsupported(kind)),
        };
        let comment = String::from_utf8_lossy(string(private)?).into_owned();
        Ok(Key { public, comment, pair })
    }

    /// The public key as the protocol writes it.
    pub(super) fn public(&self) -> &[u8] {
        &self.public
    }

    pub(super) fn comment(&self) -> &str {
        &self.comment
    }

    /// The signature as the protocol writes it; `None` when this key cannot be used so.
    pub(super) fn sign(&self, data: &[u8], how: Signing) -> Option<Vec<u8>> {
        let random = SystemRandom::new();
        let (name, signature) = match &self.pair {
            Pair::Ed25519(pair) => ("ssh-ed25519", pair.sign(data).as_ref().to_vec()),
            Pair::Rsa(pair) => {
                let (name, encoding): (_, &dyn signature::RsaEncoding) = match how {
                    Signing::Sha512 => ("rsa-sha2-512", &signature::RSA_PKCS1_SHA512),
                    Signing::Sha256 => ("rsa-sha2-256", &signature::RSA_PKCS1_SHA256),
                    // SHA-1, which no server takes any more.
                    Signing::Usual => return None,
                };
                let mut signed = vec![0; pair.public().modulus_len()];
                pair.sign(encoding, &random, data, &mut signed).ok()?;
                (name, signed)
            }
            Pair::Ecdsa(pair, name) => {
                let signed = pair.sign(&random, data).ok()?;
                let (r, s) = signed.as_ref().split_at(signed.as_ref().len() / 2);
                let mut both = Vec::new();
                put(&mut both, &positive(r));
                put(&mut both, &positive(s));
                (*name, both)
            }
        };
        let mut written = Vec::new();
        put(&mut written, name.as_bytes());
        put(&mut written, &signature);
        Some(written)
    }
}

fn ed25519(bytes: &mut &[u8]) -> Result<Pair, KeyError> {
    let (public, both) = (string(bytes)?, string(bytes)?);
    let seed = both.get(..32).ok_or(KeyError::Broken)?;
    Ed25519KeyPair::from_seed_and_public_key(seed, public).map(Pair::Ed25519).map_err(|_| KeyError::Broken)
}

fn rsa(bytes: &mut &[u8]) -> Result<Pair, KeyError> {
    let mut next = || string(bytes).map(unsigned);
    let (n, e, d, q_inv, p, q) = (next()?, next()?, next()?, next()?, next()?, next()?);
    let (d_p, d_q) = (remainder(d, &less_one(p)?), remainder(d, &less_one(q)?));
    let components = KeyPairComponents {
        public_key: PublicKeyComponents { n, e },
        d,
        p,
        q,
        dP: d_p.as_slice(),
        dQ: d_q.as_slice(),
        qInv: q_inv,
    };
    let pair = signature::RsaKeyPair::from_components(&components);
    // ring wants 2048 bits at least, and so do servers.
    pair.map(|pair| Pair::Rsa(Box::new(pair))).map_err(|error| KeyError::Unsupported(format!("ssh-rsa ({error})")))
}

fn ecdsa(bytes: &mut &[u8], name: &'static str) -> Result<Pair, KeyError> {
    let (_curve, public, scalar) = (string(bytes)?, string(bytes)?, unsigned(string(bytes)?));
    let (algorithm, len) = match name {
        "ecdsa-sha2-nistp384" => (&signature::ECDSA_P384_SHA384_FIXED_SIGNING, 48),
        _ => (&signature::ECDSA_P256_SHA256_FIXED_SIGNING, 32),
    };
    let mut padded = vec![0; usize::checked_sub(len, scalar.len()).ok_or(KeyError::Broken)?];
    padded.extend(scalar);
    let pair = EcdsaKeyPair::from_private_key_and_public_key(algorithm, &padded, public, &SystemRandom::new());
    pair.map(|pair| Pair::Ecdsa(pair, name)).map_err(|_| KeyError::Broken)
}

/// Appends a string: its length, then its bytes.
pub(super) fn put(to: &mut Vec<u8>, bytes: &[u8]) {
    to.extend((bytes.len() as u32).to_be_bytes());
    to.extend(bytes);
}

/// Takes a string off the front.
pub(super) fn take<'a>(bytes: &mut &'a [u8]) -> Option<&'a [u8]> {
    let (length, rest) = bytes.split_at_checked(4)?;
    let length = u32::from_be_bytes(length.try_into().ok()?) as usize;
    let (taken, rest) = rest.split_at_checked(length)?;
    *bytes = rest;
    Some(taken)
}

fn string<'a>(bytes: &mut &'a [u8]) -> Result<&'a [u8], KeyError> {
    take(bytes).ok_or(KeyError::Broken)
}

fn number(bytes: &mut &[u8]) -> Result<u32, KeyError> {
    let (number, rest) = bytes.split_at_checked(4).ok_or(KeyError::Broken)?;
    *bytes = rest;
    number.try_into().map(u32::from_be_bytes).map_err(|_| KeyError::Broken)
}

/// A number without the zeros in front.
fn unsigned(bytes: &[u8]) -> &[u8] {
    &bytes[bytes.iter().position(|b| *b != 0).unwrap_or(bytes.len())..]
}

/// A number as the protocol writes one: no zeros in front but the one that says it is not negative.
fn positive(bytes: &[u8]) -> Vec<u8> {
    let bytes = unsigned(bytes);
    let sign = bytes.first().is_some_and(|b| *b >= 0x80).then_some(0);
    sign.into_iter().chain(bytes.iter().copied()).collect()
}

/// An odd number less one: a prime's predecessor.
fn less_one(prime: &[u8]) -> Result<Vec<u8>, KeyError> {
    let mut less = prime.to_vec();
    match less.last_mut() {
        Some(last) if *last & 1 == 1 => *last -= 1,
        _ => return Err(KeyError::Broken),
    }
    Ok(less)
}

/// `number` modulo `by`, both big-endian: long division, bit by bit, done once for a key.
fn remainder(number: &[u8], by: &[u8]) -> Vec<u8> {
    // One byte more than the divisor, for the bit that is shifted in.
    let mut left = vec![0_u8; by.len() + 1];
    let by: Vec<u8> = std::iter::once(0).chain(by.iter().copied()).collect();
    for bit in number.iter().flat_map(|byte| (0..8).rev().map(move |at| byte >> at & 1)) {
        let mut carry = bit;
        for byte in left.iter_mut().rev() {
            (*byte, carry) = (*byte << 1 | carry, *byte >> 7);
        }
        if left >= by {
            let mut borrow = 0_i16;
            for (byte, less) in left.iter_mut().zip(&by).rev() {
                let difference = i16::from(*byte) - i16::from(*less) - borrow;
                borrow = i16::from(difference < 0);
                *byte = difference.rem_euclid(256) as u8;
            }
        }
    }
    unsigned(&left).to_vec()
}

#[cfg(test)]
mod tests {
    use ring::signature::{
        ECDSA_P256_SHA256_FIXED, ED25519, RSA_PKCS1_2048_8192_SHA256, RSA_PKCS1_2048_8192_SHA512,
        RsaPublicKeyComponents, UnparsedPublicKey,
    };

    use super::*;

    fn text(name: &str) -> String {
        let path = Path::new(env!("CARGO_MANIFEST_DIR")).join("testdata/keys").join(name);
        std::fs::read_to_string(path).unwrap()
    }

    /// The strings of a public key or a signature.
    fn parts(mut bytes: &[u8]) -> Vec<Vec<u8>> {
        std::iter::from_fn(|| take(&mut bytes).map(<[u8]>::to_vec)).collect()
    }

    #[test]
    fn signatures_are_what_the_public_key_expects() {
        let key = Key::parse(&text("key_ed25519")).unwrap();
        let (public, signed) = (parts(key.public()), parts(&key.sign(b"data", Signing::Usual).unwrap()));
        assert_eq!((signed[0].as_slice(), key.comment()), (&b"ssh-ed25519"[..], "for tests only"));
        UnparsedPublicKey::new(&ED25519, &public[1]).verify(b"data", &signed[1]).unwrap();

        let key = Key::parse(&text("key_rsa")).unwrap();
        let public = parts(key.public());
        for (how, name, algorithm) in [
            (Signing::Sha256, "rsa-sha2-256", &RSA_PKCS1_2048_8192_SHA256),
            (Signing::Sha512, "rsa-sha2-512", &RSA_PKCS1_2048_8192_SHA512),
        ] {
            let signed = parts(&key.sign(b"data", how).unwrap());
            assert_eq!(signed[0], name.as_bytes());
            let public = RsaPublicKeyComponents { n: unsigned(&public[2]), e: unsigned(&public[1]) };
            public.verify(algorithm, b"data", &signed[1]).unwrap();
        }
        assert!(key.sign(b"data", Signing::Usual).is_none());

        let key = Key::parse(&text("key_ecdsa")).unwrap();
        let public = parts(key.public());
        for _ in 0..20 {
            let numbers = parts(&parts(&key.sign(b"data", Signing::Usual).unwrap())[1]);
            let fixed: Vec<u8> = numbers
                .iter()
                .flat_map(|number| {
                    let number = unsigned(number);
                    std::iter::repeat_n(0, 32 - number.len()).chain(number.iter().copied())
                })
                .collect();
            UnparsedPublicKey::new(&ECDSA_P256_SHA256_FIXED, &public[2]).verify(b"data", &fixed).unwrap();
        }
    }

    #[test]
    fn keys_that_cannot_be_lent_are_told_apart() {
        let why = |text: &str| Key::parse(text).err().unwrap();
        assert_eq!(why(&text("key_locked")), KeyError::Encrypted);
        assert_eq!(why(&text("key_pem")), KeyError::OldFormat);
        assert_eq!(why("ssh-ed25519 AAAA x"), KeyError::NoKey);
        assert_eq!(why(&format!("{BEGIN}\n!!!\n{END}")), KeyError::Broken);
        let whole = text("key_ed25519");
        let body: String = whole.lines().filter(|line| !line.starts_with('-')).collect();
        let bytes = STANDARD.decode(body).unwrap();
        for cut in [MAGIC.len() + 3, bytes.len() / 2, bytes.len() - 60] {
            let cut = format!("{BEGIN}\n{}\n{END}", STANDARD.encode(&bytes[..cut]));
            assert_eq!(why(&cut), KeyError::Broken);
        }
    }

    #[test]
    fn remainders() {
        let of = |number: u64, by: u64| {
            let (number, by) = (number.to_be_bytes(), by.to_be_bytes());
            remainder(&number, unsigned(&by)).iter().fold(0_u64, |all, byte| all << 8 | u64::from(*byte))
        };
        for (number, by) in [(17, 5), (5, 17), (u64::MAX, 255), (u64::MAX, 0x8000_0001), (1 << 63, 3), (0, 9)] {
            assert_eq!(of(number, by), number % by, "{number} % {by}");
        }
    }
}
