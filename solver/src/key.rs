//! Names of computations: what an operation is made of, and the hash over it.
//!
//! A key is made of named parts and hashed last, so that what went into it can be written down beside it
//! ([`RunRecord`](crate::RunRecord)) and two keys can be compared part by part. Everything hashed carries its length, so
//! no two different lists of parts give the same bytes. The hash is blake3: nobody outside compares it.

use std::fmt;
use std::str::FromStr;

use serde::{Deserialize, Serialize};

/// Version of the way keys are computed. Changing what is hashed, or how, changes this, and every old key misses.
const DOMAIN: &[u8] = b"rbuild cache key 1";

macro_rules! hash_type {
    ($(#[$doc:meta])* $name:ident) => {
        $(#[$doc])*
        #[derive(Clone, Copy, PartialEq, Eq, Hash, PartialOrd, Ord)]
        pub struct $name([u8; 32]);

        impl $name {
            pub const fn from_bytes(bytes: [u8; 32]) -> $name {
                $name(bytes)
            }

            pub const fn as_bytes(&self) -> &[u8; 32] {
                &self.0
            }

            /// The hash of these bytes, as they are.
            pub fn of(bytes: &[u8]) -> $name {
                $name(*blake3::hash(bytes).as_bytes())
            }
        }

        impl From<blake3::Hash> for $name {
            fn from(hash: blake3::Hash) -> $name {
                $name(*hash.as_bytes())
            }
        }

        impl fmt::Display for $name {
            fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
                f.write_str(blake3::Hash::from_bytes(self.0).to_hex().as_str())
            }
        }

        impl fmt::Debug for $name {
            fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
                write!(f, "{}({:.12})", stringify!($name), blake3::Hash::from_bytes(self.0).to_hex())
            }
        }

        impl FromStr for $name {
            type Err = ParseKeyError;

            fn from_str(text: &str) -> Result<$name, ParseKeyError> {
                let hash = blake3::Hash::from_hex(text).map_err(|_| ParseKeyError(text.into()))?;
                Ok($name(*hash.as_bytes()))
            }
        }

        impl Serialize for $name {
            fn serialize<S: serde::Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
                serializer.collect_str(self)
            }
        }

        impl<'de> Deserialize<'de> for $name {
            fn deserialize<D: serde::Deserializer<'de>>(deserializer: D) -> Result<$name, D::Error> {
                let text = std::borrow::Cow::<'de, str>::deserialize(deserializer)?;
                text.parse().map_err(serde::de::Error::custom)
            }
        }
    };
}

hash_type! {
    /// Names a computation, or one output of it.
    CacheKey
}

hash_type! {
    /// Names file content as our own operations see it. Only ever compared with others of its kind.
    ContentHash
}

/// A text that should have been a key and is not.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[error("{0:?} is not a key: 64 hexadecimal digits are")]
pub struct ParseKeyError(String);

impl CacheKey {
    /// The key of output `output` of the computation that this key names. Output 0 is the computation itself.
    pub fn output(self, output: u32) -> CacheKey {
        if output == 0 {
            return self;
        }
        let mut hasher = blake3::Hasher::new();
        hasher.update(DOMAIN).update(b" output").update(&self.0).update(&output.to_le_bytes());
        hasher.finalize().into()
    }
}

/// One named thing a key is made of.
#[derive(Debug, Clone, PartialEq, Eq, Hash, PartialOrd, Ord, Serialize, Deserialize)]
#[serde(from = "(String, PartValue)", into = "(String, PartValue)")]
pub struct KeyPart {
    pub name: String,
    pub value: PartValue,
}

/// What a part holds.
#[derive(Debug, Clone, PartialEq, Eq, Hash, PartialOrd, Ord, Serialize, Deserialize)]
pub enum PartValue {
    #[serde(rename = "t")]
    Text(String),
    #[serde(rename = "c")]
    Content(ContentHash),
    /// A digest that others can check, in its usual text form.
    #[serde(rename = "d")]
    Digest(String),
}

impl KeyPart {
    pub fn text(name: impl Into<String>, value: impl Into<String>) -> KeyPart {
        KeyPart { name: name.into(), value: PartValue::Text(value.into()) }
    }

    pub fn content(name: impl Into<String>, value: ContentHash) -> KeyPart {
        KeyPart { name: name.into(), value: PartValue::Content(value) }
    }

    pub fn digest(name: impl Into<String>, value: impl fmt::Display) -> KeyPart {
        KeyPart { name: name.into(), value: PartValue::Digest(value.to_string()) }
    }
}

impl From<(String, PartValue)> for KeyPart {
    fn from((name, value): (String, PartValue)) -> KeyPart {
        KeyPart { name, value }
    }
}

impl From<KeyPart> for (String, PartValue) {
    fn from(part: KeyPart) -> (String, PartValue) {
        (part.name, part.value)
    }
}

/// How an operation is cached: what it is, and how each of its inputs counts.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct KeySpec {
    /// Everything that can change the result, save the inputs. Order counts.
    pub parts: Vec<KeyPart>,
    /// One for each input of the vertex, in the vertex's order.
    pub inputs: Vec<InputKey>,
    /// Other names of the same computation: each stands in place of `parts`. (A source that has several digests.)
    pub aliases: Vec<Vec<KeyPart>>,
    /// False when the operation rests on something unpinned (one session's context): then its own key, and keys that
    /// rest on it other than by content, are never written down; they could never be found again, and would only pile up.
    pub durable: bool,
}

impl KeySpec {
    /// A durable key of these parts, without inputs and other names.
    pub fn new(parts: Vec<KeyPart>) -> KeySpec {
        KeySpec { parts, inputs: Vec::new(), aliases: Vec::new(), durable: true }
    }
}

/// How an input counts in a key.
#[derive(Debug, Clone, Default, PartialEq, Eq, Hash, Serialize, Deserialize)]
pub struct InputKey {
    /// The part of the input that is read; two operations that read different parts have different keys.
    pub selector: Option<String>,
    /// The content of what is read stands in place of the input's key: then what made the content does not matter.
    pub by_content: bool,
}

/// What stands for one input in a key.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum InputName {
    Key(CacheKey),
    Content(ContentHash),
}

/// The key of `parts` with these inputs; `inputs` is as long as `spec.inputs`.
pub(crate) fn hash(parts: &[KeyPart], spec: &KeySpec, inputs: &[InputName]) -> CacheKey {
    let mut hasher = blake3::Hasher::new();
    hasher.update(DOMAIN);
    number(&mut hasher, parts.len());
    for part in parts {
        let (kind, value): (u8, &[u8]) = match &part.value {
            PartValue::Text(text) => (b't', text.as_bytes()),
            PartValue::Content(hash) => (b'c', hash.as_bytes()),
            PartValue::Digest(digest) => (b'd', digest.as_bytes()),
        };
        hasher.update(&[kind]);
        prefixed(&mut hasher, part.name.as_bytes());
        prefixed(&mut hasher, value);
    }
    number(&mut hasher, inputs.len());
    for (input, name) in spec.inputs.iter().zip(inputs) {
        match name {
            InputName::Key(key) => hasher.update(b"k").update(key.as_bytes()),
            InputName::Content(content) => hasher.update(b"c").update(content.as_bytes()),
        };
        match &input.selector {
            Some(selector) => {
                hasher.update(b"s");
                prefixed(&mut hasher, selector.as_bytes());
            }
            None => {
                hasher.update(b"-");
            }
        }
    }
    hasher.finalize().into()
}

/// A name for "some computation of this kind reads this input": known where no name of the whole can be yet.
pub(crate) fn link(spec: &KeySpec, index: usize, input: CacheKey) -> CacheKey {
    let own = hash(&spec.parts, spec, &[]);
    let mut hasher = blake3::Hasher::new();
    hasher.update(DOMAIN).update(b" link").update(own.as_bytes());
    number(&mut hasher, index);
    hasher.update(input.as_bytes());
    let selector = spec.inputs.get(index).and_then(|input| input.selector.as_deref());
    prefixed(&mut hasher, selector.unwrap_or_default().as_bytes());
    hasher.finalize().into()
}

fn number(hasher: &mut blake3::Hasher, number: usize) {
    hasher.update(&(number as u64).to_le_bytes());
}

fn prefixed(hasher: &mut blake3::Hasher, bytes: &[u8]) {
    number(hasher, bytes.len());
    hasher.update(bytes);
}

#[cfg(test)]
mod tests {
    use super::*;

    fn key(parts: &[(&str, &str)], inputs: &[(Option<&str>, InputName)]) -> CacheKey {
        let parts: Vec<KeyPart> = parts.iter().map(|(name, value)| KeyPart::text(*name, *value)).collect();
        let mut spec = KeySpec::new(parts.clone());
        spec.inputs =
            inputs.iter().map(|(s, _)| InputKey { selector: s.map(String::from), by_content: false }).collect();
        hash(&parts, &spec, &inputs.iter().map(|(_, name)| *name).collect::<Vec<_>>())
    }

    /// Whatever is moved from one field to its neighbour, the key changes.
    #[test]
    fn different_parts_have_different_keys() {
        let one = InputName::Key(CacheKey::of(b"1"));
        let content = InputName::Content(ContentHash::of(b"1"));
        let keys = [
            key(&[], &[]),
            key(&[("a", "b")], &[]),
            key(&[("ab", "")], &[]),
            key(&[("", "ab")], &[]),
            key(&[("a", "b"), ("", "")], &[]),
            key(&[("a", ""), ("b", "")], &[]),
            key(&[("a", "b")], &[(None, one)]),
            key(&[("a", "b")], &[(None, content)]),
            key(&[("a", "b")], &[(Some(""), one)]),
            key(&[("a", "b")], &[(Some("/x"), one)]),
            key(&[("a", "b")], &[(None, one), (None, one)]),
        ];
        for (i, a) in keys.iter().enumerate() {
            assert!(keys[i + 1..].iter().all(|b| a != b), "key {i} is not the only one of its kind");
        }
        let text = KeySpec::new(vec![KeyPart::text("a", "b")]);
        let digest = KeySpec::new(vec![KeyPart::digest("a", "b")]);
        assert_ne!(hash(&text.parts, &text, &[]), hash(&digest.parts, &digest, &[]));
    }

    #[test]
    fn outputs_have_their_own_keys() {
        let key = CacheKey::of(b"x");
        assert_eq!(key.output(0), key);
        assert_ne!(key.output(1), key);
        assert_ne!(key.output(1), key.output(2));
    }

    #[test]
    fn a_key_is_read_back_from_its_text() {
        let key = CacheKey::of(b"x");
        assert_eq!(key.to_string().parse(), Ok(key));
        assert_eq!(serde_json::from_str::<CacheKey>(&serde_json::to_string(&key).unwrap()).unwrap(), key);
        assert!("12".parse::<CacheKey>().unwrap_err().to_string().contains("\"12\""));
        let part = KeyPart::content("f", ContentHash::of(b""));
        assert_eq!(serde_json::from_str::<KeyPart>(&serde_json::to_string(&part).unwrap()).unwrap(), part);
    }
}
