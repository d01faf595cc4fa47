//! A client for container registries (distribution specification 1.1).
//!
//! What: names to manifests and blobs over HTTP, both ways, and the two whole journeys `pull` (registry to store) and
//! `push` (store to registry). Why apart from the store: a program that only keeps images needs no TLS stack.
//!
//! * [`Client`] is the entry; it holds connections, tokens and what was learnt about hosts.
//! * [`mirrors`] turns a reference into the places to ask, in order.
//! * [`hosts`] is what is configured for single registries.
//! * [`auth`] answers challenges. A credential is shown to the origin it was stored for and to nobody else.
//! * [`transport`] sends one request: redirects, retries and bounds live there and nowhere else.
//! * [`download`] is a blob's body that survives cuts.
//! * `web` fetches plain files (`ADD https://…`).
//! * `relay` copies from registry to registry, `compose` makes indexes of what is there, `referrers` finds what refers
//!   to an image.
//! * `reading` lends a registry to the store's copy as a source of images.
//! * [`daemon`] speaks to a docker daemon, which gives and takes archives.
//! * [`serve`] is a registry over a store.
//! * [`memory`] is a strict registry in memory, on loopback, for tests of this crate and of its users.
//!
//! The crate reads no environment and no files: certificates, proxies, mirrors and credentials come in
//! [`ClientOptions`].

pub mod auth;
mod client;
mod compose;
pub mod daemon;
mod download;
mod error;
pub mod hosts;
mod ledger;
pub mod memory;
pub mod mirrors;
mod reading;
mod referrers;
mod relay;
mod remove;
mod search;
mod sending;
pub mod serve;
mod sink;
mod source;
mod text;
mod tls;
mod transport;
mod upload;
mod web;
mod wire;

pub use auth::{CredentialSource, Credentials, anonymous};
pub use client::{Client, ClientOptions, Fetched, Resolved};
pub use compose::{Composed, Part, compose};
pub use download::BlobStream;
pub use error::Error;
pub use hosts::{Offers, Place, Rules, RulesSource, Trust};
pub use mirrors::Mirrors;
pub use reading::RegistrySource;
pub use relay::LayerSource;
pub use search::Match;
pub use sending::{LayerPacking, Sending};
pub use sink::Pushed;
pub use source::{PackedLayer, Progress, ProgressSink, Pulled, Stage, choose};
pub use text::clean;
pub use tls::Roots;
pub use transport::{Proxies, Retry};
pub use upload::Produce;
pub use web::WebFile;
