//! Records outside this machine.
//!
//! A document is an ordinary image: its layers are results of build steps, its config says which steps they are in a
//! member of its own. So every registry takes it, every tool can look at it, and the very same member in the config of a
//! built image is the inline cache. A record names layers by their position in its own document and in no other way:
//! whatever it says, it cannot name bytes that the document does not bring along.
//!
//! Three kinds of document are alike: one record under a name made of what it says, many records under the cache's
//! own name, and an image that carries its own.

use std::collections::{BTreeMap, HashMap, HashSet};
use std::time::{Duration, SystemTime};

use rbuild_oci::{Descriptor, DiffId, Digest, ImageConfig, Manifest, MediaType, Platform, limits};
use rbuild_registry::PackedLayer;
use rbuild_solver::{CacheKey, RunRecord};
use serde::{Deserialize, Serialize};

use crate::error::Error;

/// Of the member in the config. A document of a later version is refused by name.
const VERSION: u32 = 1;
/// Records in one document.
const RECORDS: usize = 65_536;
/// Names one record may have besides its key.
pub(crate) const ALIASES: usize = 256;
/// Records that one was put together from.
const COVERS: usize = 1024;
/// Records beside a document of many that are gone.
const GONE: usize = 20_000;
/// Outputs of one step.
const OUTPUTS: usize = 64;
/// Bytes of a step's name.
const NAME: usize = 64 << 10;
/// Layers of a document of many records: a stack that any tool still takes.
const MANY_LAYERS: usize = 400;
/// Bytes of the config of a document of many records, below what any reader refuses.
const MANY_BYTES: usize = 6 << 20;
/// An execution's description up to this size stands beside its record in a document of many.
const SHORT_RUN: usize = 4 << 10;
/// Hexadecimal digits of a record's identity in a name.
const IDENTITY: usize = 40;

/// One step's result as it travels.
#[derive(Debug, Clone, PartialEq)]
pub struct PortableRecord {
    pub key: CacheKey,
    /// Sorted.
    pub aliases: Vec<CacheKey>,
    /// The step as people were shown it.
    pub name: String,
    /// For each output its layers, the lowest first; `None` is the empty tree.
    pub outputs: Vec<Option<Vec<PackedLayer>>>,
    /// What is known of the execution, if the document has it.
    pub run: Option<RunRecord>,
    /// The config of the record's own document, which has it.
    pub detail: Option<Descriptor>,
    /// Identities of the records that this one was put together from.
    pub covers: Vec<String>,
    /// When a build was last seen to use it, in seconds since 1970. Only a document of many says so, and not to the hour.
    pub used: Option<u64>,
}

impl PortableRecord {
    /// What the record says, as a name: key, aliases and content. When it ran and how it was compressed are no part of it, so
    /// the same record written twice has one name.
    pub fn identity(&self) -> String {
        let outputs: Vec<Option<Vec<&DiffId>>> = self
            .outputs
            .iter()
            .map(|output| output.as_ref().map(|layers| layers.iter().map(|layer| &layer.diff_id).collect()))
            .collect();
        let text = serde_json::to_vec(&(&self.key, &self.aliases, outputs))
            .unwrap_or_else(|error| unreachable!("keys and digests are text: {error}"));
        Digest::sha256_of(&text).hex()[..IDENTITY].to_owned()
    }

    /// When it was made or last used, as far as that is known.
    pub fn last_use(&self) -> Option<SystemTime> {
        let made = self.run.as_ref().map(|run| run.started).filter(|made| *made > SystemTime::UNIX_EPOCH);
        let used = self.used.and_then(|used| SystemTime::UNIX_EPOCH.checked_add(Duration::from_secs(used)));
        made.max(used)
    }

    /// The same record with all names of `other`. Two results of one key may differ; of those the one that was first made
    /// stays, so that all who read the same documents take the same.
    fn joined(self, other: PortableRecord) -> PortableRecord {
        let age = |record: &PortableRecord| (record.run.as_ref().map(|run| run.started), record.identity());
        let (mut first, second) = if age(&other) < age(&self) { (other, self) } else { (self, other) };
        first.aliases.extend(second.aliases);
        first.aliases.sort_unstable();
        first.aliases.dedup();
        first.aliases.truncate(ALIASES);
        first.used = first.used.max(second.used);
        first.covers.extend(second.covers);
        first.covers.sort_unstable();
        first.covers.dedup();
        first.covers.truncate(COVERS);
        first
    }
}

/// The union of records: one for each key, with all names it was given anywhere.
pub fn union(records: impl IntoIterator<Item = PortableRecord>) -> Vec<PortableRecord> {
    let mut all: BTreeMap<CacheKey, PortableRecord> = BTreeMap::new();
    for record in records {
        let joined = match all.remove(&record.key) {
            Some(known) => known.joined(record),
            None => record,
        };
        all.insert(joined.key, joined);
    }
    all.into_values().collect()
}

/// The name of a record's own document beside a cache called `base`.
pub fn record_name(base: &str, identity: &str) -> String {
    format!("{}{identity}", record_prefix(base))
}

/// What the names of all records of a cache begin with.
pub fn record_prefix(base: &str) -> String {
    // A name has 128 characters at most.
    const LONGEST: usize = 128 - ".r-".len() - IDENTITY;
    if base.len() <= LONGEST {
        return format!("{base}.r-");
    }
    format!("{}.r-", &Digest::sha256_of(base.as_bytes()).hex()[..IDENTITY])
}

/// Which names for types a document uses.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub enum MediaFamily {
    #[default]
    Oci,
    /// Docker's, for tools that know no others. They have no word for zstd.
    Docker,
}

/// A document ready to be stored.
#[derive(Debug, Clone)]
pub struct Written {
    pub media_type: MediaType,
    pub manifest: Vec<u8>,
    pub config: Vec<u8>,
    /// Records that found room.
    pub records: usize,
}

/// The member in the config.
#[derive(Debug, Serialize, Deserialize)]
struct Table {
    version: u32,
    /// For each layer of the document: bytes of its tar, and its newest time.
    layers: Vec<(u64, Option<i64>)>,
    records: Vec<Row>,
    /// Identities of records beside this document that are not to be read any more.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    gone: Vec<String>,
}

#[derive(Debug, Serialize, Deserialize)]
struct Row {
    key: CacheKey,
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    aliases: Vec<CacheKey>,
    name: String,
    outputs: Vec<Option<Vec<usize>>>,
    #[serde(default, skip_serializing_if = "Option::is_none")]
    run: Option<RunRecord>,
    #[serde(default, skip_serializing_if = "Option::is_none")]
    detail: Option<(Digest, u64)>,
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    covers: Vec<String>,
    #[serde(default, skip_serializing_if = "Option::is_none")]
    used: Option<u64>,
}

/// The document of one record.
///
/// # Errors
/// A layer whose compression docker's types have no word for.
pub fn write_record(record: &PortableRecord, family: MediaFamily) -> Result<Written, Error> {
    let mut draft = Draft::default();
    draft.add(&PortableRecord { covers: Vec::new(), used: None, ..record.clone() }, record.run.clone());
    draft.finish(family)
}

/// A document of as many of `records` as have room in it, those in front first. It says that those called `gone` are not to
/// be read any more.
///
/// # Errors
/// As [`write_record`].
pub fn write_records(records: &[PortableRecord], gone: &[String], family: MediaFamily) -> Result<Written, Error> {
    let mut draft = Draft { gone: gone[..gone.len().min(GONE)].to_vec(), ..Draft::default() };
    let mut bytes = draft.gone.len() * 43;
    for record in records {
        let json = |run: &RunRecord| serde_json::to_vec(run).map_or(usize::MAX, |text| text.len());
        // Long lists of paths stay in the record's own document: only who compares asks for them.
        let bare = || record.run.as_ref().map(crate::trace::without_parts).filter(|run| json(run) <= SHORT_RUN);
        let short = record.run.as_ref().filter(|run| json(run) <= SHORT_RUN).cloned().or_else(bare);
        // Generous: the digests of layers, an alias of 67 bytes, an execution counted whole.
        let size = 400
            + record.name.len()
            + record.aliases.len() * 67
            + record.covers.len() * 43
            + short.as_ref().map_or(0, json);
        let new = draft.new_layers(record);
        if bytes + size + (draft.layers.len() + new) * 120 > MANY_BYTES || draft.layers.len() + new > MANY_LAYERS {
            continue;
        }
        bytes += size;
        draft.add(record, short);
    }
    draft.finish(family)
}

/// The member for the config of an image that has exactly these layers. Records with other layers are left out, and with
/// them all times, so that the image says the same whenever it is built.
pub fn inline_member(records: &[PortableRecord], layers: &[PackedLayer]) -> Option<serde_json::Value> {
    let positions = |output: &Option<Vec<PackedLayer>>| match output {
        None => Some(None),
        Some(own) => {
            let same = own.len() <= layers.len() && own.iter().zip(layers).all(|(a, b)| a.diff_id == b.diff_id);
            same.then(|| Some((0..own.len()).collect()))
        }
    };
    let rows: Vec<Row> = records
        .iter()
        .filter_map(|record| {
            let outputs = record.outputs.iter().map(positions).collect::<Option<Vec<_>>>()?;
            let run = record.run.clone().map(|run| RunRecord {
                build: String::new(),
                started: std::time::SystemTime::UNIX_EPOCH,
                took: std::time::Duration::ZERO,
                usage: rbuild_solver::Usage { exit: run.usage.exit, ..Default::default() },
                results: Vec::new(),
                ..run
            });
            let (key, aliases, name) = (record.key, record.aliases.clone(), record.name.clone());
            Some(Row { key, aliases, name, outputs, run, detail: None, covers: Vec::new(), used: None })
        })
        .collect();
    let notes = layers.iter().map(|layer| (layer.size, layer.newest)).collect();
    let table = Table { version: VERSION, layers: notes, records: rows, gone: Vec::new() };
    serde_json::to_value(table).ok().filter(|_| !layers.is_empty())
}

/// Whether more may be known of an execution than this says.
pub(crate) fn lacks_parts(run: Option<&RunRecord>) -> bool {
    run.is_none_or(|run| run.inputs.iter().any(|input| input.content.is_some() && input.parts.is_empty()))
}

/// A document being put together.
#[derive(Default)]
struct Draft {
    layers: Vec<PackedLayer>,
    positions: HashMap<DiffId, usize>,
    rows: Vec<Row>,
    gone: Vec<String>,
}

impl Draft {
    fn new_layers(&self, record: &PortableRecord) -> usize {
        let all = record.outputs.iter().flatten().flatten().map(|layer| &layer.diff_id);
        all.filter(|diff_id| !self.positions.contains_key(diff_id)).collect::<HashSet<_>>().len()
    }

    fn add(&mut self, record: &PortableRecord, run: Option<RunRecord>) {
        let outputs = record.outputs.iter().map(|output| {
            output.as_ref().map(|layers| layers.iter().map(|layer| self.position(layer)).collect::<Vec<_>>())
        });
        let outputs = outputs.collect();
        let detail = record.detail.as_ref().filter(|_| lacks_parts(run.as_ref())).map(|d| (d.digest.clone(), d.size));
        let (key, aliases, name) = (record.key, record.aliases.clone(), record.name.clone());
        let covers = record.covers.clone();
        self.rows.push(Row { key, aliases, name, outputs, run, detail, covers, used: record.used });
    }

    fn position(&mut self, layer: &PackedLayer) -> usize {
        let next = self.layers.len();
        let position = *self.positions.entry(layer.diff_id.clone()).or_insert(next);
        if position == next {
            self.layers.push(layer.clone());
        }
        position
    }

    fn finish(self, family: MediaFamily) -> Result<Written, Error> {
        let host = Platform::host();
        let mut config = ImageConfig { architecture: host.architecture, os: host.os, ..ImageConfig::default() };
        config.rootfs.diff_ids = self.layers.iter().map(|layer| layer.diff_id.clone()).collect();
        let records = self.rows.len();
        let notes = self.layers.iter().map(|layer| (layer.size, layer.newest)).collect();
        let table = Table { version: VERSION, layers: notes, records: self.rows, gone: self.gone };
        config.cache = Some(to_value(&table)?);
        let mut described = config.descriptor();
        let blobs = self.layers.iter().map(|layer| family.layer(&layer.blob)).collect::<Result<Vec<_>, _>>()?;
        let media_type = match family {
            MediaFamily::Oci => MediaType::OciManifest,
            MediaFamily::Docker => MediaType::DockerManifest,
        };
        if family == MediaFamily::Docker {
            described.media_type = MediaType::DockerConfig;
        }
        let manifest = Manifest { media_type: Some(media_type.clone()), ..Manifest::new(described, blobs) };
        let manifest =
            serde_json::to_vec(&manifest).map_err(|error| Error::refused("the record", error.to_string()))?;
        Ok(Written { media_type, manifest, config: config.to_canonical_json(), records })
    }
}

fn to_value(table: &Table) -> Result<serde_json::Value, Error> {
    serde_json::to_value(table).map_err(|error| Error::refused("the record", error.to_string()))
}

impl MediaFamily {
    fn layer(self, blob: &Descriptor) -> Result<Descriptor, Error> {
        use rbuild_oci::Compression;
        let how = blob.media_type.layer_compression();
        let media_type = match (self, how) {
            (MediaFamily::Oci, Some(how)) => MediaType::oci_layer(how),
            (MediaFamily::Docker, Some(Compression::Gzip)) => MediaType::DockerLayerGzip,
            (MediaFamily::Docker, Some(Compression::None)) => MediaType::DockerLayer,
            (MediaFamily::Docker, _) => {
                return Err(Error::refused("oci-mediatypes=false", "docker's media types have none for zstd"));
            }
            (MediaFamily::Oci, None) => blob.media_type.clone(),
        };
        Ok(Descriptor::new(media_type, blob.digest.clone(), blob.size))
    }
}

/// The records of a document; `None` when it is an image without any. `what` names it in errors.
///
/// # Errors
/// [`Error::Refused`] when a record breaks a rule; a document is taken whole or not at all.
pub fn read(what: &str, manifest: &Manifest, config: &ImageConfig) -> Result<Option<Vec<PortableRecord>>, Error> {
    let Some(member) = &config.cache else { return Ok(None) };
    let refuse = |reason: String| Error::refused(what, reason);
    let version = member.get("version").and_then(serde_json::Value::as_u64);
    if version != Some(u64::from(VERSION)) {
        let version = version.map_or_else(|| "no version".to_owned(), |version| format!("version {version}"));
        return Err(refuse(format!("its records have {version}; this program reads version {VERSION}")));
    }
    let table = Table::deserialize(member).map_err(|error| refuse(error.to_string()))?;
    let diff_ids = &config.rootfs.diff_ids;
    if manifest.layers.len() != diff_ids.len() || diff_ids.len() != table.layers.len() {
        let (blobs, named, noted) = (manifest.layers.len(), diff_ids.len(), table.layers.len());
        return Err(refuse(format!("it has {blobs} layers, its config names {named} and its records {noted}")));
    }
    if table.records.len() > RECORDS {
        return Err(refuse(format!("it has {} records, over the limit of {RECORDS}", table.records.len())));
    }
    let parts = manifest.layers.iter().zip(diff_ids).zip(table.layers);
    let layers = parts.map(|((blob, diff_id), (size, newest))| {
        let plain = blob.media_type.is_layer() && !blob.media_type.is_foreign_layer() && blob.urls.is_empty();
        if !plain {
            return Err(refuse(format!("{} is no layer of its own", blob.digest)));
        }
        Ok(PackedLayer { blob: blob.clone(), diff_id: diff_id.clone(), size, newest })
    });
    let layers = layers.collect::<Result<Vec<_>, _>>()?;
    let records = table.records.into_iter().map(|row| row.read(&layers).map_err(&refuse));
    records.collect::<Result<_, _>>().map(Some)
}

/// Identities of records beside a document of many that are not to be read any more.
pub(crate) fn gone(config: &ImageConfig) -> Vec<String> {
    let member = config.cache.as_ref().and_then(|member| member.get("gone"));
    let gone = member.and_then(|member| Vec::<String>::deserialize(member).ok());
    gone.filter(|gone| gone.len() <= GONE).unwrap_or_default()
}

impl Row {
    fn read(self, layers: &[PackedLayer]) -> Result<PortableRecord, String> {
        let Row { key, mut aliases, name, outputs, run, detail, covers, used } = self;
        if aliases.len() > ALIASES
            || covers.len() > COVERS
            || outputs.is_empty()
            || outputs.len() > OUTPUTS
            || name.len() > NAME
        {
            return Err(format!("the record {key} is over a limit"));
        }
        let pick = |positions: Vec<usize>| {
            if positions.is_empty() || positions.len() > limits::LAYERS {
                return Err(format!("a result of the record {key} has {} layers", positions.len()));
            }
            let pick = |at: usize| {
                layers.get(at).cloned().ok_or_else(|| format!("the record {key} names layer {at} of {}", layers.len()))
            };
            positions.into_iter().map(pick).collect::<Result<Vec<_>, _>>()
        };
        let outputs = outputs.into_iter().map(|output| output.map(pick).transpose()).collect::<Result<_, _>>()?;
        if detail.as_ref().is_some_and(|(_, size)| *size > limits::CONFIG) {
            return Err(format!("the description of the record {key} is over the limit of {} bytes", limits::CONFIG));
        }
        aliases.sort_unstable();
        aliases.dedup();
        let detail = detail.map(|(digest, size)| Descriptor::new(MediaType::OciConfig, digest, size));
        Ok(PortableRecord { key, aliases, name, outputs, run, detail, covers, used })
    }
}
