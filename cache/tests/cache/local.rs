//! What only a cache in a store promises.

use std::time::{Duration, Instant, SystemTime};

use rbuild_solver::{Cache, ContentHash, Keep, KeyPart, PartValue, RecordedInput};
use rbuild_store::db::nanos;
use rbuild_store::{CollectOptions, Durability, Records};
use tempfile::TempDir;

use crate::{Process, entry, key};

/// The number of rows that `sql` counts.
fn count(process: &Process, sql: &str) -> i64 {
    process.store.db().read(|tx| Ok(tx.query_row(sql, [], |row| row.get(0))?)).unwrap()
}

fn change(process: &Process, sql: &str) {
    process.store.db().write(Durability::Cache, |tx| Ok(tx.execute(sql, [])?)).unwrap();
}

/// What a record names stays after the process that made it, and goes with the record.
#[tokio::test]
async fn a_record_keeps_what_it_names() {
    let root = TempDir::new().unwrap();
    let first = Process::start(&root);
    first.cache.save(entry("a", &["a1"], 42, Keep::First)).await.unwrap();
    drop(first);
    let second = Process::start(&root);
    second.store.collect(&CollectOptions { records: Records::None }).unwrap();
    assert_eq!(second.cache.load(key("a")).await.unwrap(), Some(vec![42]));
    let (record, origin) = second.cache.record(key("a")).unwrap().unwrap();
    assert_eq!(origin, None, "it ran here");
    assert_eq!((record.name.as_str(), record.results.len()), ("step a", 1));
    drop(second);
    let third = Process::start(&root);
    third.store.collect(&CollectOptions { records: Records::All }).unwrap();
    assert_eq!(third.cache.resolve(key("a1")).await.unwrap(), None);
    for table in ["records", "aliases", "refs", "blobs"] {
        assert_eq!(count(&third, &format!("SELECT count(*) FROM {table}")), 0, "{table}");
    }
}

/// What is lost is a miss, its row goes, and it can be saved again.
#[tokio::test]
async fn what_is_lost_is_forgotten() {
    let root = TempDir::new().unwrap();
    let process = Process::start(&root);
    for damage in ["DELETE FROM blobs", "UPDATE records SET result = '[\"'", "UPDATE records SET result = '{}'"] {
        process.cache.save(entry("a", &[], 7, Keep::First)).await.unwrap();
        assert_eq!(process.cache.load(key("a")).await.unwrap(), Some(vec![7]));
        let other = Process::start(&root);
        change(&other, damage);
        assert_eq!(other.cache.load(key("a")).await.unwrap(), None, "{damage}");
        assert_eq!(other.cache.resolve(key("a")).await.unwrap(), None, "{damage}");
        assert_eq!(count(&other, "SELECT count(*) FROM refs WHERE owner LIKE 'record:%'"), 0);
        // The blob's file is still there and its row is not: to make it again is what the next run does.
        change(&other, "DELETE FROM refs");
    }
}

/// Until the flush a row carries the mark by which a reboot drops it.
#[tokio::test]
async fn rows_are_marked_until_they_are_flushed() {
    let root = TempDir::new().unwrap();
    let process = Process::start(&root);
    process.cache.save(entry("a", &[], 7, Keep::First)).await.unwrap();
    let marked = "SELECT count(*) FROM records WHERE volatile IS NOT NULL";
    assert_eq!(count(&process, marked), 1);
    process.store.flush().unwrap();
    assert_eq!(count(&process, marked), 0);
    process.cache.save(entry("b", &[], 8, Keep::First)).await.unwrap();
    // Another boot.
    change(&process, "UPDATE state SET boot = 'another'");
    drop(process);
    let process = Process::start(&root);
    assert_eq!(process.cache.resolve(key("a")).await.unwrap(), Some(key("a")));
    assert_eq!(process.cache.resolve(key("b")).await.unwrap(), None);
}

#[tokio::test]
async fn names_do_not_grow_without_bound() {
    let root = TempDir::new().unwrap();
    let process = Process::start(&root);
    process.cache.save(entry("a", &["first"], 7, Keep::First)).await.unwrap();
    for n in 0..200 {
        let name = format!("name {n}");
        process.cache.alias(vec![key(&name)], key("a")).await.unwrap();
        assert_eq!(process.cache.resolve(key(&name)).await.unwrap(), Some(key("a")));
    }
    assert_eq!(count(&process, "SELECT count(*) FROM aliases"), 64);
}

/// What a record's inputs are made of is kept apart, and comes back with it.
#[tokio::test]
async fn a_record_names_the_paths_of_its_inputs() {
    let root = TempDir::new().unwrap();
    let process = Process::start(&root);
    for (name, parts) in [("few", 100), ("many", 20_000)] {
        let mut entry = entry(name, &[], 7, Keep::First);
        let content = ContentHash::of(b"x");
        let mut short = [0; 32];
        short[..8].copy_from_slice(&content.as_bytes()[..8]);
        let parts: Vec<KeyPart> = (0..parts).map(|n| KeyPart::content(format!("f{n}"), content)).collect();
        entry.record.inputs =
            vec![RecordedInput { key: key("i"), selector: None, content: Some(content), parts: parts.clone() }];
        process.cache.save(entry).await.unwrap();
        let (record, _) = process.cache.record(key(name)).unwrap().unwrap();
        assert_eq!(record.inputs[0].content, Some(content));
        let content = ContentHash::from_bytes(short);
        assert!(record.inputs[0].parts.iter().all(|part| part.value == PartValue::Content(content)));
        let names = |parts: &[KeyPart]| parts.iter().map(|part| part.name.clone()).collect::<Vec<_>>();
        assert_eq!(names(&record.inputs[0].parts), names(&parts), "{name}");
    }
}

#[tokio::test]
async fn what_cannot_be_kept_is_not_saved() {
    let root = TempDir::new().unwrap();
    let process = Process::start(&root);
    process.cache.save(entry("a", &["a1"], -1, Keep::First)).await.unwrap();
    assert_eq!(count(&process, "SELECT count(*) FROM records"), 0);
    assert_eq!(count(&process, "SELECT count(*) FROM aliases"), 0);
}

/// The time of last use is written down, but not by every build that finds its result.
#[tokio::test]
async fn the_last_use_is_written_now_and_then() {
    let root = TempDir::new().unwrap();
    let process = Process::start(&root);
    process.cache.save(entry("a", &[], 7, Keep::First)).await.unwrap();
    let used = || count(&process, "SELECT used FROM records");
    for (ago, moves) in [(60, false), (7200, true)] {
        let then = nanos(SystemTime::now() - Duration::from_secs(ago));
        change(&process, &format!("UPDATE records SET used = {then}"));
        let other = Process::start(&root);
        other.cache.load(key("a")).await.unwrap();
        assert_eq!(used(), then);
        drop(other);
        assert_eq!(used() > then, moves, "{ago} seconds ago");
    }
}

/// A thousand lookups are far less than a build may take.
#[tokio::test]
async fn lookups_are_short() {
    let root = TempDir::new().unwrap();
    let process = Process::start(&root);
    process.cache.save(entry("a", &["a1"], 7, Keep::First)).await.unwrap();
    let start = Instant::now();
    for _ in 0..1000 {
        assert!(process.cache.resolve(key("a1")).await.unwrap().is_some());
    }
    // Some 10 ms here; this is for mistakes of another order, on the slowest machine.
    assert!(start.elapsed() < Duration::from_secs(2), "{:?}", start.elapsed());
}
