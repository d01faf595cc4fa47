//! What is written down about an execution.
//!
//! One record per execution, saved with its result. Explaining a miss, provenance, collection that knows what a result
//! cost, scheduling by memory: all of them read records, none walks the solver. It cannot be added later, so it is here
//! from the first day.

use std::time::{Duration, SystemTime};

use serde::{Deserialize, Serialize};

use crate::key::{CacheKey, ContentHash, KeyPart};
use crate::op::InputContent;

/// One execution of an operation.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct RunRecord {
    /// The step as people were shown it.
    pub name: String,
    /// The build that ran it ([`Build::named`](crate::Build::named)).
    pub build: String,
    /// What the operation's key was made of, save the inputs.
    pub parts: Vec<KeyPart>,
    /// What was read, in the order of the vertex's inputs.
    pub inputs: Vec<RecordedInput>,
    /// Names of the results as the cache knows them; the cache fills this in when it saves the record.
    #[serde(default)]
    pub results: Vec<String>,
    /// When it started, by the wall clock. For people only: nothing is decided by it.
    pub started: SystemTime,
    /// How long it ran.
    pub took: Duration,
    pub usage: Usage,
}

/// One input as an execution saw it.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct RecordedInput {
    /// The key of the input, also where its content stood in the key.
    pub key: CacheKey,
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub selector: Option<String>,
    /// The hash that stood in the key in place of the input's own key.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub content: Option<ContentHash>,
    /// What `content` was made of, such as a hash for each path.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub parts: Vec<KeyPart>,
}

/// What a computation is made of, while it is at work.
pub(crate) struct MadeOf {
    /// The step as people were shown it.
    pub(crate) name: String,
    pub(crate) parts: Vec<KeyPart>,
    pub(crate) inputs: Vec<ReadInput>,
}

/// One input that was read.
pub(crate) struct ReadInput {
    pub(crate) key: CacheKey,
    pub(crate) selector: Option<String>,
    pub(crate) content: Option<InputContent>,
}

impl MadeOf {
    pub(crate) fn record(&self, build: String, started: SystemTime, took: Duration, usage: Usage) -> RunRecord {
        let inputs = self.inputs.iter().map(|input| RecordedInput {
            key: input.key,
            selector: input.selector.clone(),
            content: input.content.as_ref().map(|content| content.hash),
            parts: input.content.as_ref().map(|content| content.parts.list()).unwrap_or_default(),
        });
        let (name, parts, inputs) = (self.name.clone(), self.parts.clone(), inputs.collect());
        RunRecord { name, build, parts, inputs, results: Vec::new(), started, took, usage }
    }
}

/// What an execution used. Absent is not measured.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct Usage {
    /// Exit status of the process, if the operation ran one.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub exit: Option<i32>,
    /// Highest resident memory, in bytes.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub peak_memory: Option<u64>,
    /// Processor time, user and system.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub cpu: Option<Duration>,
    /// Bytes read from storage.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub bytes_read: Option<u64>,
    /// Bytes written to storage.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub bytes_written: Option<u64>,
}
