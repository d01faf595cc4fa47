//! Records from outside may say anything. Whatever they say, reading them ends, and gives nothing that is not their document's.

use rbuild_cache::portable::{self, MediaFamily, PortableRecord, write_records};
use rbuild_oci::{Descriptor, DiffId, Digest, ImageConfig, Manifest, MediaType};
use rbuild_registry::PackedLayer;
use serde_json::{Value, json};

use crate::{entry, key};

/// A generator that gives the same every time (xorshift).
struct Dice(u64);

impl Dice {
    fn roll(&mut self, sides: usize) -> usize {
        self.0 ^= self.0 << 13;
        self.0 ^= self.0 >> 7;
        self.0 ^= self.0 << 17;
        (self.0 % sides.max(1) as u64) as usize
    }
}

fn layer(name: &str) -> PackedLayer {
    let digest = Digest::sha256_of(name.as_bytes());
    let blob = Descriptor::new(MediaType::OciLayerGzip, digest, 100);
    PackedLayer {
        blob,
        diff_id: DiffId(Digest::sha256_of(format!("tar {name}").as_bytes())),
        size: 512,
        newest: Some(7),
    }
}

fn records() -> Vec<PortableRecord> {
    let record = |name: &str, layers: &[&str]| PortableRecord {
        key: key(name),
        aliases: vec![key("x"), key("y")],
        name: name.to_owned(),
        outputs: vec![Some(layers.iter().map(|name| layer(name)).collect()), None],
        run: Some(entry(name, &[], 1, rbuild_solver::Keep::First).record),
        detail: Some(Descriptor::new(MediaType::OciConfig, Digest::sha256_of(b"detail"), 9)),
        covers: vec!["c".into()],
        used: None,
    };
    vec![record("a", &["one"]), record("b", &["one", "two"]), record("c", &["three"])]
}

/// Every place in a document, as a pointer.
fn places(value: &Value, at: &str, out: &mut Vec<String>) {
    out.push(at.to_owned());
    match value {
        Value::Array(items) => items.iter().enumerate().for_each(|(n, item)| places(item, &format!("{at}/{n}"), out)),
        Value::Object(members) => members.iter().for_each(|(name, item)| places(item, &format!("{at}/{name}"), out)),
        _ => {}
    }
}

fn strange(dice: &mut Dice) -> Value {
    match dice.roll(14) {
        0 => Value::Null,
        1 => json!(-1),
        2 => json!(u64::MAX),
        3 => json!(1e300),
        4 => json!("x".repeat(70_000)),
        5 => json!("../../../../etc/passwd"),
        6 => json!("sha256:../../../../etc/passwd"),
        7 => json!([]),
        8 => json!({}),
        9 => json!([[[[0]]]]),
        10 => json!(vec![0; 2000]),
        11 => json!(["http://127.0.0.1:1/"]),
        12 => json!(dice.roll(9)),
        _ => json!(format!("blake3:{}", "0".repeat(64))),
    }
}

/// One random change of a document.
fn change(value: &mut Value, dice: &mut Dice) {
    let mut all = Vec::new();
    places(value, "", &mut all);
    let place = &all[dice.roll(all.len())];
    let Some(found) = value.pointer_mut(place) else { return };
    match (dice.roll(4), found) {
        (0, Value::Array(items)) if !items.is_empty() => {
            let item = items[dice.roll(items.len())].clone();
            items.push(item);
        }
        (1, Value::Array(items)) if !items.is_empty() => {
            items.remove(dice.roll(items.len()));
        }
        (2, Value::Object(members)) => {
            if let Some(name) = members.keys().nth(dice.roll(members.len())).cloned() {
                members.remove(&name);
            }
        }
        (_, found) => *found = strange(dice),
    }
}

#[test]
fn whatever_a_document_says_it_names_only_its_own_layers() {
    let written = write_records(&records(), &[], MediaFamily::Oci).unwrap();
    let (manifest, config): (Value, Value) =
        (serde_json::from_slice(&written.manifest).unwrap(), serde_json::from_slice(&written.config).unwrap());
    let mut dice = Dice(0x2545_f491_4f6c_dd1d);
    let (mut read, mut refused) = (0, 0);
    for round in 0..4000 {
        let (mut manifest, mut config) = (manifest.clone(), config.clone());
        for _ in 0..=dice.roll(3) {
            let which = if dice.roll(4) == 0 { &mut manifest } else { &mut config };
            change(which, &mut dice);
        }
        let manifest = rbuild_oci::Document::parse(&serde_json::to_vec(&manifest).unwrap(), None);
        let config = ImageConfig::parse(&serde_json::to_vec(&config).unwrap());
        let (Ok(rbuild_oci::Document::Manifest(manifest)), Ok(config)) = (manifest, config) else {
            refused += 1;
            continue;
        };
        match portable::read("it", &manifest, &config) {
            Ok(Some(records)) => {
                read += 1;
                check(round, &records, &manifest, &config);
            }
            Ok(None) | Err(_) => refused += 1,
        }
    }
    assert!(read > 200 && refused > 200, "{read} were read, {refused} refused");
}

/// Bytes that were damaged on their way are no JSON, or say something else; neither harms.
#[test]
fn damaged_bytes_harm_nobody() {
    let written = write_records(&records(), &[], MediaFamily::Oci).unwrap();
    let rbuild_oci::Document::Manifest(manifest) = rbuild_oci::Document::parse(&written.manifest, None).unwrap() else {
        panic!("it is a manifest");
    };
    let mut dice = Dice(0x9e37_79b9_7f4a_7c15);
    for round in 0..4000 {
        let mut bytes = written.config.clone();
        for _ in 0..=dice.roll(4) {
            let at = dice.roll(bytes.len());
            bytes[at] = dice.roll(256) as u8;
        }
        bytes.truncate(bytes.len() - dice.roll(2) * dice.roll(bytes.len()));
        let Ok(config) = ImageConfig::parse(&bytes) else { continue };
        if let Ok(Some(records)) = portable::read("it", &manifest, &config) {
            check(round, &records, &manifest, &config);
        }
    }
}

fn check(round: usize, records: &[PortableRecord], manifest: &Manifest, config: &ImageConfig) {
    for record in records {
        assert!(!record.outputs.is_empty(), "{round}");
        for layer in record.outputs.iter().flatten().flatten() {
            let at = manifest.layers.iter().position(|blob| *blob == layer.blob).expect("a layer of the document");
            assert!(config.rootfs.diff_ids.contains(&layer.diff_id), "{round}: layer {at}");
            assert!(layer.blob.urls.is_empty(), "{round}");
        }
        assert!(record.aliases.is_sorted(), "{round}");
        let union = portable::union(vec![record.clone(), record.clone()]);
        assert_eq!(union.len(), 1, "{round}");
    }
}
