//! The one thing that faces and embedders call.
//!
//! A face (the command line, later BuildKit's gRPC API and Docker's HTTP API) decodes requests, lends a session, encodes
//! events and errors, and does nothing else. Everything it needs is here or re-exported here.
//!
//! The engine is made of explicit parts: it reads no environment, prints nothing and starts no async runtime. Dropping
//! a future cancels what it does.

mod advice;
mod agent;
mod attest;
mod build;
mod causes;
pub mod containers;
mod context;
mod describe;
pub mod doctor;
mod emulation;
mod engine;
pub mod error;
mod exchange;
pub mod explain;
mod export;
mod frontends;
pub mod history;
pub mod images;
mod layers;
mod layout;
mod lending;
pub mod networks;
mod output;
mod remote;
mod request;
mod resolve;
mod stored;
pub mod usage;
pub mod volumes;
pub mod whole_file;

pub use agent::check_key_file;
pub use attest::Attestations;
pub use attest::provenance::{ProvenanceMode, ProvenanceOptions, SlsaVersion};
pub use containers::helper_main;
pub use describe::{Answer, Checked, Fixes, Question};
pub use engine::{Engine, EngineOptions};
pub use error::{Error, FailedStep, Kind, SourceText};
pub use exchange::{CacheMode, CachePlace, CacheSource, CacheTarget};
pub use export::squash::Squash;
pub use lending::LONGEST_SECRET;
pub use output::{
    Annotated, Annotation, Destination, FilesMode, ImageOutput, Keep, MediaTypes, Output, OutputStream, Packing, Push,
};
pub use request::{
    AgentSource, BuildContext, BuildRequest, BuildResult, DeviceGrants, DockerfileSource, InputStream, LayoutImage,
    Lent, NamedContext, ResourceLimits, Secret, SecretSource,
};

pub use rbuild_cache::{KEEP_AT_LEAST, PublishOptions, portable::MediaFamily};
pub use rbuild_executor::sources::git::{GitOptions, GitSsh};
pub use rbuild_frontend::fix::Fixed;
pub use rbuild_frontend::{Diagnostic, Severity, describe as described, lint};
pub use rbuild_graph::Span;
pub use rbuild_graph::ops::{ExtraHost, Network, Ulimit};
pub use rbuild_oci as oci;
pub use rbuild_registry as registry;
pub use rbuild_runtime as runtime;
pub use rbuild_solver::{Event, EventStream, Events, LogStream, Outcome, StepId, StepKind, Unit};
pub use rbuild_store as store;
