//! Layers that want out of their directory, or into somebody else's: each is refused in words, or harmless.

mod fixture;

use std::collections::BTreeMap;
use std::path::Path;

use fixture::{DRIVERS, TestStore, dir, entry, file, hard_link, symlink, tar};
use rbuild_store::layers::read::Reader;
use rbuild_store::layers::tar::{Entry, EntryKind};
use rbuild_store::{Driver, Snapshot};

type Member = (Entry, Vec<u8>);

/// Everything below a directory that an attack could have changed: names, modes, owners, content, attributes.
fn state(of: &Path) -> BTreeMap<String, String> {
    let script = "find . -exec stat -c '%n %f %u %g %Y %s' {} + | sort; find . -type f -exec sha256sum {} + | sort; getfattr -hR -m - -d .";
    let output = std::process::Command::new("sh").args(["-c", script]).current_dir(of).output().unwrap();
    assert!(output.status.success());
    String::from_utf8_lossy(&output.stdout)
        .lines()
        .enumerate()
        .map(|(n, line)| (n.to_string(), line.to_owned()))
        .collect()
}

/// Applies hostile layers on each other beside a victim directory, and checks that the victim is as it was.
fn attack(driver: Driver, layers: &[&[Member]]) -> Result<(TestStore, Snapshot), String> {
    let store = TestStore::new(driver);
    let victim = store.outside().join("victim");
    std::fs::create_dir_all(victim.join("dir")).unwrap();
    std::fs::write(victim.join("file"), "precious").unwrap();
    let before = state(&victim);
    let victim_path = victim.to_str().unwrap();
    let mut top: Option<Snapshot> = None;
    let mut failure = None;
    for members in layers {
        // `VICTIM` stands for the host path of the victim, which these tests know and real attackers guess.
        let aimed: Vec<Member> = members.iter().map(|(entry, body)| (aim(entry, victim_path), body.clone())).collect();
        match store.apply(&tar(&aimed), top.as_ref()) {
            Ok(snapshot) => top = Some(snapshot),
            Err(error) => {
                failure = Some(error.to_string());
                break;
            }
        }
    }
    assert_eq!(state(&victim), before, "the victim changed");
    assert!(std::fs::symlink_metadata("/planted").is_err() && std::fs::symlink_metadata("/tmp/planted").is_err());
    match failure {
        Some(error) => Err(error),
        None => Ok((store, top.unwrap())),
    }
}

fn aim(entry: &Entry, victim: &str) -> Entry {
    let aim = |bytes: &[u8]| String::from_utf8(bytes.to_vec()).unwrap().replace("VICTIM", victim).into_bytes();
    let kind = match &entry.kind {
        EntryKind::Symlink { target } => EntryKind::Symlink { target: aim(target) },
        EntryKind::HardLink { target } => EntryKind::HardLink { target: aim(target) },
        other => other.clone(),
    };
    Entry { path: aim(&entry.path), kind, ..entry.clone() }
}

fn with(mut member: Member, change: impl FnOnce(&mut Entry)) -> Member {
    change(&mut member.0);
    member
}

fn node(path: &str, kind: EntryKind) -> Member {
    (entry(path, kind), Vec::new())
}

#[test]
fn refused_in_words() {
    let up = "../".repeat(30);
    let cases: Vec<(&str, Vec<Vec<Member>>, &str)> = vec![
        ("dots", vec![vec![file(&format!("{up}tmp/planted"), "x")]], "a name with .. in it"),
        ("dots inside", vec![vec![file("a/../b", "x")]], "a name with .. in it"),
        ("dots in a hard link", vec![vec![hard_link("h", &format!("{up}VICTIM/file"))]], "a name with .. in it"),
        (
            "through a link",
            vec![vec![symlink("l", "VICTIM"), file("l/file", "x")]],
            "l/file: its directory lies behind",
        ),
        (
            "through a link inside",
            vec![vec![dir("d"), symlink("l", "d"), file("l/f", "x")]],
            "l/f: its directory lies behind",
        ),
        ("directory through a link", vec![vec![symlink("l", "VICTIM"), dir("l/dir/new")]], "l/dir/new: its directory"),
        (
            "through a chain",
            vec![vec![symlink("a", "b"), symlink("b", "VICTIM"), file("a/dir/f", "x")]],
            "its directory lies",
        ),
        ("through a file", vec![vec![file("f", "x"), file("f/g", "x")]], "f/g: its directory lies behind"),
        (
            "hard link through a link",
            vec![vec![symlink("l", "VICTIM"), hard_link("h", "l/file")]],
            "h: its link target lies",
        ),
        (
            "whiteout through a link",
            vec![vec![symlink("l", "VICTIM"), file("l/.wh.file", "")]],
            "its directory lies behind",
        ),
        (
            "opaque through a link",
            vec![vec![symlink("l", "VICTIM"), file("l/.wh..wh..opq", "")]],
            "its directory lies behind",
        ),
        ("whiteout of dots", vec![vec![file("d/.wh...", "")]], "no valid whiteout"),
        ("whiteout of itself", vec![vec![file("d/.wh..", "")]], "no valid whiteout"),
        ("whiteout of nothing", vec![vec![file("d/.wh.", "")]], "no valid whiteout"),
        ("in a whiteout", vec![vec![file(".wh.d/f", "")]], "a whiteout holds nothing"),
        ("hard link to nothing", vec![vec![hard_link("h", "nothing")]], "which is not in this layer"),
        ("hard link to a directory", vec![vec![dir("d"), hard_link("h", "d")]], "a hard link to a directory"),
        ("hard link to itself", vec![vec![file("f", "x"), hard_link("f", "f")]], "a hard link to itself"),
        ("the root as a file", vec![vec![file(".", "x")]], "root of the archive is no directory"),
        ("the root as a link", vec![vec![symlink("./", "VICTIM")]], "root of the archive is no directory"),
        ("long component", vec![vec![file(&"n".repeat(256), "x")]], "over the limit of 255 bytes"),
        ("long path", vec![vec![file(&vec!["n"; 2100].join("/"), "x")]], "over the limit of 4096 bytes"),
        ("no such owner", vec![vec![with(file("f", "x"), |e| e.uid = u32::MAX)]], "there is no owner 4294967295"),
    ];
    for (what, layers, message) in cases {
        for driver in DRIVERS {
            let layers: Vec<&[Member]> = layers.iter().map(Vec::as_slice).collect();
            let error = attack(driver, &layers).err().unwrap_or_else(|| panic!("{what} was accepted by {driver}"));
            assert!(error.contains(message), "{what} with {driver}: {error}");
        }
    }
}

#[test]
fn harmless() {
    let opaque = |e: &mut Entry| {
        for name in [
            "trusted.overlay.opaque",
            "user.overlay.opaque",
            "trusted.overlay.redirect",
            "security.evil",
            "trusted.md5",
        ] {
            e.xattrs.insert(name.into(), b"y".to_vec());
        }
    };
    let list = "find . -mindepth 1 | sort | tr '\\n' ' '";
    let base: Vec<Member> =
        vec![dir("d"), file("d/old", "old"), symlink("out", "VICTIM"), symlink("lib", "d"), file("f", "f")];
    let cases: Vec<(&str, Vec<Member>, &str, &str)> = vec![
        ("absolute names stay inside", vec![file("/tmp/planted", "x")], "cat tmp/planted", "x"),
        (
            "a link below is replaced by a directory",
            vec![file("out/dir/f", "x")],
            "stat -c %F out; cat out/dir/f",
            "directory\nx",
        ),
        ("and so is one that stays inside", vec![file("lib/f", "x")], "stat -c %F lib; ls d", "directory\nold\n"),
        (
            "a file replaces a link and does not write through it",
            vec![file("out", "x")],
            "stat -c %F out",
            "regular file\n",
        ),
        (
            "links have looks of their own",
            vec![with(symlink("out", "VICTIM"), |e| {
                e.uid = 9;
                e.mode = 0o777;
            })],
            "stat -c %u out",
            "9\n",
        ),
        ("within one layer too", vec![symlink("l", "VICTIM/file"), file("l", "x")], "cat l", "x"),
        (
            "a hard link to a link is a link",
            vec![symlink("l", "VICTIM/file"), hard_link("h", "l")],
            "stat -c %F h",
            "symbolic link\n",
        ),
        ("a directory replaces a link", vec![symlink("l", "VICTIM"), dir("l"), file("l/f", "x")], "cat l/f", "x"),
        (
            "a link replaces a directory",
            vec![dir("n"), file("n/f", "x"), symlink("n", "VICTIM"), file("other", "x")],
            "readlink n | grep -c victim",
            "1\n",
        ),
        (
            "no overlay attribute is taken",
            vec![with(dir("d"), opaque), file("d/new", "x")],
            "ls d; getfattr -m - -d d",
            "new\nold\n",
        ),
        ("no device is a whiteout", vec![node("f", EntryKind::CharDevice { major: 0, minor: 0 })], "cat f", "f"),
        (
            "nor at another name",
            vec![node("w", EntryKind::CharDevice { major: 0, minor: 0 })],
            "ls",
            "d\nf\nlib\nout\n",
        ),
        (
            "whiteouts of what is not there",
            vec![file(".wh.nothing", ""), file("d/.wh.nothing", "")],
            list,
            "./d ./d/old ./f ./lib ./out ",
        ),
        ("a whiteout before its name", vec![file(".wh.d", ""), file("d/new", "x")], "find d | sort", "d\nd/new\n"),
        ("a whiteout after its name", vec![file("d/new", "x"), file(".wh.d", "")], "find d | sort", "d\nd/new\n"),
        ("a whiteout and a file", vec![file("f", "new"), file(".wh.f", "")], "cat f", "new"),
        (
            "an opaque root",
            vec![file(".wh..wh..opq", ""), file("only", "x"), file("d/n", "n")],
            list,
            "./d ./d/n ./only ",
        ),
        ("aufs left-overs", vec![file(".wh..wh.plnk/1.2", "x"), file(".wh..wh.aufs", "")], "ls", "d\nf\nlib\nout\n"),
        ("a hard link to what lies below", vec![hard_link("h", "d/old")], "cat h; stat -c %h h; ls d", "old2\nold\n"),
        ("twice the same name", vec![file("t", "one"), file("t", "two")], "cat t", "two"),
    ];
    for (what, layer, script, want) in cases {
        for driver in DRIVERS {
            let (store, top) = attack(driver, &[&base, &layer]).unwrap_or_else(|e| panic!("{what} with {driver}: {e}"));
            assert_eq!(store.show(&top, script), want, "{what} with {driver}");
        }
    }
}

#[test]
fn set_uid_and_devices_arrive_exactly() {
    let layer = [
        with(file("suid", "x"), |e| {
            (e.mode, e.uid, e.gid) = (0o6755, 1000, 4_000_000_000);
            e.xattrs
                .insert(b"security.capability".to_vec(), b"\x01\0\0\x02\0\x20\0\0\0\0\0\0\0\0\0\0\0\0\0\0".to_vec());
        }),
        with(dir("sticky"), |e| e.mode = 0o3777),
        with(node("disk", EntryKind::BlockDevice { major: 8, minor: 0 }), |e| (e.mode, e.uid) = (0o660, 5)),
        with(node("null", EntryKind::CharDevice { major: 1, minor: 3 }), |e| e.mode = 0o666),
        with(node("pipe", EntryKind::Fifo), |e| e.mode = 0o1622),
        with(file("old", ""), |e| e.mtime.seconds = -86400),
    ];
    for driver in DRIVERS {
        let (store, top) = attack(driver, &[&layer]).unwrap();
        let shown = store.show(&top, "stat -c '%n %a %u:%g %t:%T' *; stat -c %Y old; getcap suid");
        let want = "disk 660 5:0 8:0\nnull 666 0:0 1:3\nold 644 0:0 0:0\npipe 1622 0:0 0:0\n\
                    sticky 3777 0:0 0:0\nsuid 6755 1000:4000000000 0:0\n-86400\nsuid cap_net_raw=ep\n";
        assert_eq!(shown, want, "{driver}");
    }
}

/// Blocks made by hand, for what our writer cannot write.
fn raw(blocks: &[(&[u8], u8, &[u8])]) -> Vec<u8> {
    let mut bytes = Vec::new();
    for (name, kind, body) in blocks {
        let mut header = ::tar::Header::new_ustar();
        header.as_old_mut().name[..name.len()].copy_from_slice(name);
        header.set_mode(0o644);
        header.set_uid(0);
        header.set_gid(0);
        header.set_mtime(0);
        header.set_size(body.len() as u64);
        header.as_old_mut().linkflag = [*kind];
        header.set_cksum();
        bytes.extend_from_slice(header.as_bytes());
        bytes.extend_from_slice(body);
        bytes.resize(bytes.len().next_multiple_of(512), 0);
    }
    bytes.resize(bytes.len() + 1024, 0);
    bytes
}

fn read_all(bytes: &[u8]) -> Result<Vec<(String, u64)>, String> {
    let mut reader = Reader::new(bytes);
    let mut entries = Vec::new();
    while let Some(entry) = reader.next().map_err(|e| e.to_string())? {
        let body = reader.read_body(1 << 20).map_err(|e| e.to_string())?;
        entries.push((String::from_utf8_lossy(&entry.path).into_owned(), body.len() as u64));
    }
    Ok(entries)
}

#[test]
fn an_archive_has_one_meaning() {
    // A size that only PAX tells: whoever ignores it reads the body as entries.
    let inner = raw(&[(b"smuggled", b'0', b"evil")]);
    let mut hidden = raw(&[(b"x", b'x', format!("13 size={}\n", inner.len()).as_bytes()), (b"outer", b'0', b"")]);
    hidden.truncate(hidden.len() - 1024);
    hidden.extend_from_slice(&inner);
    hidden.resize(hidden.len() + 1024, 0);
    assert_eq!(read_all(&hidden), Ok(vec![("outer".into(), inner.len() as u64)]));

    let huge = vec![b'x'; (1 << 20) + 1];
    let good = raw(&[(b"f", b'0', b"x")]);
    let mut broken = good.clone();
    broken[0] = b'g';
    let mut continued = good.clone();
    continued.extend_from_slice(&good);
    let sparse = |map: &str| {
        let record = |key: &str, value: &str| {
            let rest = key.len() + value.len() + 3;
            let len = (rest + 1..).find(|len| rest + len.to_string().len() == *len).unwrap();
            format!("{len} {key}={value}\n")
        };
        let pax = record("GNU.sparse.size", "100") + &record("GNU.sparse.map", map);
        raw(&[(b"x", b'x', pax.as_bytes()), (b"s", b'0', b"0123456789")])
    };
    assert_eq!(read_all(&sparse("0,5,50,5")), Ok(vec![("s".into(), 100)]));
    let cases: Vec<(&str, Vec<u8>, &str)> = vec![
        ("bad checksum", broken, "checksum"),
        ("two archives", continued, "after the end mark"),
        ("half an end mark", good[..good.len() - 512].to_vec(), "half of its end mark"),
        ("no end mark", good[..good.len() - 1024].to_vec(), "no end mark"),
        ("cut in a body", good[..700].to_vec(), "truncated within f"),
        ("cut in a header", good[..100].to_vec(), "truncated"),
        ("huge record", raw(&[(b"x", b'x', &huge), (b"f", b'0', b"")]), "over the limit of 1048576 bytes"),
        ("huge long name", raw(&[(b"x", b'L', &huge), (b"f", b'0', b"")]), "over the limit of 1048576 bytes"),
        (
            "two records",
            raw(&[(b"x", b'x', b"9 path=a\n"), (b"x", b'x', b"9 path=b\n"), (b"f", b'0', b"")]),
            "two PAX headers",
        ),
        ("two long names", raw(&[(b"x", b'L', b"a"), (b"x", b'L', b"b"), (b"f", b'0', b"")]), "two long names"),
        ("a record for nothing", raw(&[(b"x", b'x', b"9 path=a\n")]), "no entry after it"),
        ("a global path", raw(&[(b"g", b'g', b"9 path=a\n"), (b"f", b'0', b"")]), "sets path for all entries"),
        ("a directory with a body", raw(&[(b"d", b'5', b"body")]), "it has a body"),
        ("a link with a body", raw(&[(b"h", b'1', b"body")]), "it has a body"),
        ("a file that ends in a slash", raw(&[(b"f/", b'0', b"x")]), "ends with a slash"),
        ("an unknown type", raw(&[(b"m", b'M', b"x")]), "type 'M' is not supported"),
        ("an old device", raw(&[(b"", b'0', b"")]), "its name is empty"),
        (
            "negative size",
            {
                let mut bytes = good.clone();
                bytes[124..136].copy_from_slice(b"\xff\xff\xff\xff\xff\xff\xff\xff\xff\xff\xff\xff");
                resealed(bytes)
            },
            "its size is no number",
        ),
        ("overlapping sparse map", sparse("0,5,3,5"), "overlaps or leaves the file"),
        ("sparse map backwards", sparse("50,5,0,5"), "overlaps or leaves the file"),
        ("sparse map outside", sparse("0,5,99,5"), "overlaps or leaves the file"),
        ("sparse map that lies", sparse("0,5,50,4"), "does not fit its content"),
        ("sparse map that overflows", sparse("9223372036854775807,9223372036854775807"), "overlaps or leaves the file"),
    ];
    for (what, bytes, message) in cases {
        let error = read_all(&bytes).expect_err(what);
        assert!(error.contains(message), "{what}: {error}");
    }
}

fn resealed(mut bytes: Vec<u8>) -> Vec<u8> {
    let mut header = ::tar::Header::new_old();
    header.as_mut_bytes().copy_from_slice(&bytes[..512]);
    header.set_cksum();
    bytes[..512].copy_from_slice(header.as_bytes());
    bytes
}

#[test]
fn nothing_stays_of_a_refused_layer() {
    for driver in DRIVERS {
        let store = TestStore::new(driver);
        let layer = tar(&[file("a/b/c", "x"), symlink("l", "/"), file("l/planted", "x")]);
        assert!(store.apply(&layer, None).is_err());
        assert!(store.store.snapshots().list().unwrap().is_empty());
        let ingest = store.lease.ingest().unwrap();
        assert_eq!(std::fs::read_dir(ingest).unwrap().count(), 0, "{driver}");
    }
}

#[test]
fn deep_trees_are_unpacked_and_removed() {
    for driver in DRIVERS {
        let store = TestStore::new(driver);
        let deep = vec!["d"; 2000].join("/");
        let base = store.apply(&tar(&[file(&format!("{deep}/f"), "x")]), None).unwrap();
        let gone = store.apply(&tar(&[file(".wh.d", "")]), Some(&base)).unwrap();
        assert_eq!(store.show(&gone, "ls -A"), "", "{driver}");
        let replaced =
            store.apply(&tar(&[file(&format!("{deep}/g"), "x"), file("d", "now a file")]), Some(&base)).unwrap();
        assert_eq!(store.show(&replaced, "cat d"), "now a file", "{driver}");
    }
}

#[test]
fn names_that_nobody_described_are_bounded() {
    let store = TestStore::new(Driver::Overlay);
    let long = vec!["n".repeat(250); 15].join("/");
    let members: Vec<Member> = (0..1200).map(|n| file(&format!("{n}/{long}/f"), "")).collect();
    let error = store.apply(&tar(&members), None).unwrap_err();
    assert!(error.to_string().contains("over the limit"), "{error}");
}
