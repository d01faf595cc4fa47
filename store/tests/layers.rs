//! Layers out of snapshots and back, with both drivers and GNU tar as judge.

mod fixture;

use std::io::Read as _;

use fixture::{DRIVERS, TestStore, run, stores};
use rbuild_oci::Compression;
use rbuild_store::layers::Change;
use rbuild_store::layers::compress::DEFAULT_LEVEL;
use rbuild_store::layers::read::Reader;
use rbuild_store::layers::tar::EntryKind;
use rbuild_store::{Driver, Snapshot, StoreError};

const BASE: &str = r#"
    mkdir -p etc/conf.d usr/lib var/cache/old opt/full; chmod 1777 var; chown 5:6 opt
    echo one >etc/one; echo two >etc/two; echo x >etc/conf.d/x
    echo a >usr/lib/a; ln usr/lib/a usr/lib/b; ln -s a usr/lib/s
    for i in 1 2 3; do echo $i >var/cache/old/$i; echo $i >opt/full/$i; done
    mkdir keep; echo k >keep/k
    find . -depth -exec touch -h -d @1600000000 {} +
"#;

/// A tree of everything that a file system can hold and a tar can ship.
const TORTURE: &str = r#"
    mkdir d; mkfifo -m 640 d/fifo; mknod d/null c 1 3; mknod d/loop b 7 200; chown 5:6 d/fifo
    cp /bin/true d/suid; chmod 4751 d/suid; setcap cap_net_raw+ep d/suid
    echo acl >d/attr; setfattr -n user.note -v $'a=b\nc' d/attr; setfattr -n user.dir -v 1 d
    truncate -s 1M d/sparse; printf data | dd of=d/sparse bs=1 seek=500000 conv=notrunc status=none
    long=$(printf 'n%.0s' {1..200}); mkdir -p d/$long/$long; echo deep >d/$long/$long/file
    ln -s $(printf 't/%.0s' {1..90}) d/longlink; ln -s /absolute/../weird d/dangling
    echo raw >$'d/\xff\xfe raw'; echo nl >$'d/new\nline'; echo u >d/ünï; echo ' ' >'d/ space '
    echo one >d/h1; ln d/h1 d/h2; ln d/h1 d/$long/h3
    : >d/empty; chown 4000000:3000000 d/empty; mkdir -m 0 d/closed
    ln -s x d/owned; chown -h 7:8 d/owned; echo old >d/old
    find d -depth -exec touch -h -d @1700000000 {} +; touch -d '1960-01-01 00:00:00.5 UTC' d/old; t d .
"#;

const CHANGE_NOTHING: &str = "t .";

const CHANGE: &str = r#"
    echo more >>etc/one; t etc/one                            # changed
    printf 'TWO\n' >etc/two; t etc/two                        # changed, same size
    cat etc/conf.d/x >/dev/null; chmod 600 etc/conf.d/x; chmod 644 etc/conf.d/x; touch -d @1600000000 etc/conf.d/x
    rm -rf var/cache/old; mkdir var/cache/old; echo n >var/cache/old/n; t var/cache/old/n var/cache/old var/cache
    rm opt/full/2; t opt/full                                 # one of several
    rm -r keep; echo file >keep; t keep                       # a directory becomes a file
    rm usr/lib/s; mkdir usr/lib/s; echo in >usr/lib/s/in; t usr/lib/s/in usr/lib/s usr/lib
    ln etc/two etc/zwei; t etc
    mkdir gone; rmdir gone; mkdir -p new/sub; touch new/sub/f; chmod 700 new; t new/sub/f new/sub new .
"#;

fn names(tar: &[u8]) -> Vec<String> {
    let mut reader = Reader::new(tar);
    let mut names = Vec::new();
    while let Some(entry) = reader.next().unwrap() {
        let arrow = match &entry.kind {
            EntryKind::HardLink { target } => format!(" -> {}", String::from_utf8_lossy(target)),
            EntryKind::Directory => "/".into(),
            _ => String::new(),
        };
        let path = if entry.path.is_empty() { b"." } else { entry.path.as_slice() };
        names.push(String::from_utf8_lossy(path).into_owned() + &arrow);
    }
    names
}

/// Base, torture and change on top of each other.
fn three(store: &TestStore) -> [Snapshot; 3] {
    let base = store.change(None, BASE);
    let torture = store.change(Some(&base), TORTURE);
    let change = store.change(Some(&torture), CHANGE);
    [base, torture, change]
}

/// What the layer of a snapshot does to files, those of the lowest `base` layers left out where they are removed.
fn changes(store: &TestStore, snapshot: &Snapshot, base: usize) -> Vec<String> {
    let mut told = Vec::new();
    let mut tell = |change: Change<'_>| {
        told.push(match change {
            Change::Written { path, bytes } => format!("written {} {bytes}", String::from_utf8_lossy(path)),
            Change::Repeated { path, bytes } => format!("repeated {} {bytes}", String::from_utf8_lossy(path)),
            Change::Removed { path, files, bytes } => {
                format!("removed {} {files} {bytes}", String::from_utf8_lossy(path))
            }
        });
    };
    store.store.layers().changes(snapshot.id(), base, &mut tell).unwrap();
    told.sort();
    told
}

#[test]
fn what_a_layer_repeats_and_removes_is_told_by_its_bytes() {
    for store in stores() {
        let driver = store.store.driver();
        let base = store.change(None, "mkdir -p d o; printf 12345 >d/base; printf 1 >keep; printf 22 >o/x; : >empty");
        let own = store.change(
            Some(&base),
            "printf 123 >d/own; mkdir -p d/sub/deep; printf 1234567 >d/sub/deep/f; printf 1234 >c; printf same >s; ln s t",
        );
        let last = store.change(
            Some(&own),
            "rm -r d; chmod 600 c s; printf 22 >keep; printf n >new; rm -r o; mkdir o; printf 4444 >o/y; chmod 600 empty",
        );
        let want = |removed: &str| {
            let mut all = vec!["removed o 1 2", removed, "repeated c 4", "repeated s 4", "written keep 2"];
            all.extend(["written new 1", "written o/y 4"]);
            all.iter().map(|&text| text.to_owned()).collect::<Vec<_>>()
        };
        let mut all = want("removed d 3 15");
        all.sort();
        assert_eq!(changes(&store, &last, 0), all, "{driver}");
        if driver == Driver::Overlay {
            let mut above = want("removed d 2 10");
            above.retain(|told| told != "removed o 1 2");
            above.sort();
            assert_eq!(changes(&store, &last, 1), above, "of what the base holds nothing counts");
        }
        assert_eq!(changes(&store, &base, 0), ["written d/base 5", "written keep 1", "written o/x 2"], "{driver}");
    }
}

#[test]
fn all_drivers_give_the_same_layers() {
    let stores = stores();
    let overlay = &stores[0];
    let in_overlay = three(overlay);
    for other in &stores[1..] {
        for (a, b) in in_overlay.iter().zip(&three(other)) {
            let (a, b) = (overlay.tar(a), other.tar(b));
            assert_eq!(names(&a), names(&b));
            assert!(a == b, "same names, other bytes");
        }
    }
    let want = "etc/ etc/one etc/two etc/zwei -> etc/two keep new/ new/sub/ new/sub/f opt/ opt/full/ opt/full/.wh.2 \
                usr/ usr/lib/ usr/lib/s/ usr/lib/s/in var/ var/cache/ var/cache/old/ var/cache/old/.wh..wh..opq var/cache/old/n";
    assert_eq!(names(&overlay.tar(&in_overlay[2])).join(" "), want);
}

/// What a snapshot and its delta show is one layer, the same as if it had been written at once.
#[test]
fn a_delta_is_one_layer_with_what_it_is_of() {
    const BELOW: &str =
        "mkdir -p etc srv; echo p >etc/one; echo q >srv/q; find . -depth -exec touch -h -d @1500000000 {} +";
    let [overlay, vfs] = DRIVERS.map(TestStore::new);
    let (below, of, delta) = {
        let below = overlay.change(None, BELOW);
        let of = overlay.change(Some(&below), BASE);
        let delta = overlay.delta(&of, CHANGE).unwrap();
        (below, of, delta)
    };
    let snapshots = overlay.store.snapshots();
    assert_eq!(delta.parent(), Some(below.id()));
    assert_eq!(snapshots.chain(delta.id()).unwrap(), [below.id().clone(), delta.id().clone()]);
    assert_eq!(snapshots.stack(delta.id()).unwrap(), [below.id().clone(), of.id().clone(), delta.id().clone()]);

    let base = vfs.change(None, BELOW);
    let whole = vfs.change(Some(&base), &format!("{BASE}\n{CHANGE}"));
    let (in_two, in_one) = (overlay.tar(&delta), vfs.tar(&whole));
    assert_eq!(names(&in_two), names(&in_one));
    assert!(in_two == in_one, "same names, other bytes");
    let bytes = |store: &TestStore, snapshot: &Snapshot| store.store.layers().content_bytes(snapshot.id()).unwrap();
    // BASE touches all that lies below, so the layer has it all.
    assert_eq!(bytes(&overlay, &delta), bytes(&vfs, &whole));
    assert!(changes(&overlay, &delta, 1).iter().any(|told| told.contains("etc/one")));

    // On top of it is an ordinary one, which sees one tree below.
    let above = overlay.change(Some(&delta), "rm etc/one; t etc; echo later >>keep; t keep .");
    assert_eq!(names(&overlay.tar(&above)).join(" "), "etc/ etc/.wh.one keep");

    // It needs what it is of, and is nothing to make another delta of.
    let refused = snapshots.remove(of.id()).unwrap_err();
    assert!(matches!(refused, StoreError::SnapshotInUse(_)), "{refused}");
    assert_eq!(snapshots.users(of.id()).unwrap().iter().filter(|user| user.starts_with("snapshot:")).count(), 1);
    assert!(overlay.delta(&delta, ":").is_none());
    assert!(vfs.delta(&whole, ":").is_none());
}

#[test]
fn layers_come_back_as_they_went() {
    let origin = TestStore::new(Driver::Overlay);
    let snapshots = three(&origin);
    let tars: Vec<Vec<u8>> = snapshots.iter().map(|snapshot| origin.tar(snapshot)).collect();
    let list = "find . ! -type d -exec stat -c '%N %F %a %u:%g %Y %s %h %t:%T' {} + | sort; \
                find . -type d -exec stat -c '%N %a %u:%g %Y' {} + | sort; getcap -r . | sort; \
                find . -type f -exec sha256sum {} + | sort; getfattr -hR -m - -d d";
    for store in stores() {
        let driver = store.store.driver();
        let mut top: Option<Snapshot> = None;
        for (tar, from) in tars.iter().zip(&snapshots) {
            let applied = store.apply(tar, top.as_ref()).unwrap();
            // What was unpacked regenerates the very bytes it came from.
            let again = store.store.layers().stage(tar.as_slice(), &store.lease).unwrap();
            let again = store.store.layers().stack_anew(again, top.as_ref()).unwrap();
            let (id, same) = (origin.store.layers().diff(from.id()).unwrap(), store.tar(&again.snapshot));
            assert_eq!(names(&same), names(tar), "{driver}");
            assert_eq!((id.diff_id, id.size), (again.diff_id, again.size), "{driver}");
            top = Some(applied);
        }
        let (there, here) = (origin.show(&snapshots[2], list), store.show(&top.unwrap(), list));
        for (a, b) in there.lines().zip(here.lines()) {
            assert_eq!(a, b, "{driver}");
        }
        assert_eq!(there.len(), here.len());
    }
}

#[test]
fn gnu_tar_reads_what_we_write() {
    let store = TestStore::new(Driver::Overlay);
    let snapshot = store.change(None, TORTURE);
    let tar = store.tar(&snapshot);
    let path = store.store.snapshots().path(snapshot.id());
    let (ok, output) = run("tar", &["--compare", "--numeric-owner", "-f", "-", "-C", path.to_str().unwrap()], &tar);
    // Its times have fractions on disk.
    let differences: Vec<&str> = output.lines().filter(|line| !line.ends_with("d/old: Mod time differs")).collect();
    assert!(differences.is_empty() && (ok || output.contains("d/old")), "{output}");
    let out = store.outside().join("out");
    std::fs::create_dir(&out).unwrap();
    let (ok, output) = run("tar", &["--xattrs", "--xattrs-include=*", "-xpf", "-", "-C", out.to_str().unwrap()], &tar);
    assert!(ok, "{output}");
    let (_, attribute) = run(
        "getfattr",
        &["--absolute-names", "--only-values", "-n", "user.note", out.join("d/attr").to_str().unwrap()],
        b"",
    );
    assert_eq!(attribute, "a=b\nc");
    let (_, cap) = run("getcap", &[out.join("d/suid").to_str().unwrap()], b"");
    assert!(cap.contains("cap_net_raw"), "{cap}");
}

#[test]
fn we_read_what_gnu_tar_writes() {
    let store = TestStore::new(Driver::Overlay);
    let made = store.change(None, TORTURE);
    let tree = store.store.snapshots().path(made.id());
    let canonical = store.tar(&made);
    let formats: [&[&str]; 6] = [
        &["--format=pax"],
        &["--format=gnu"],
        &["--format=gnu", "--sparse"],
        &["--format=pax", "--sparse", "--sparse-version=1.0"],
        &["--format=pax", "--sparse", "--sparse-version=0.1"],
        &["--format=pax", "--sparse", "--sparse-version=0.0"],
    ];
    for format in formats {
        let tree = tree.to_str().unwrap();
        let archive = store.outside().join("gnu.tar");
        let common = ["--xattrs", "--xattrs-include=user.*", "--xattrs-include=security.capability", "-cf"];
        let args = [format, &common, &[archive.to_str().unwrap(), "-C", tree, "."]].concat();
        let (ok, output) = run("tar", &args, b"");
        assert!(ok, "{output}");
        let staged = store.store.layers().stage(std::fs::File::open(&archive).unwrap(), &store.lease).unwrap();
        let read = store.store.layers().stack_anew(staged, None).unwrap();
        let got = store.tar(&read.snapshot);
        if format[0] == "--format=gnu" {
            // That format has no attributes.
            assert_eq!(names(&got), names(&canonical), "{format:?}");
        } else {
            assert!(got == canonical, "{format:?}");
        }
        let sparse = store.show(&read.snapshot, "sha256sum d/sparse; stat -c %s d/sparse");
        assert_eq!(sparse, store.show(&made, "sha256sum d/sparse; stat -c %s d/sparse"), "{format:?}");
    }
}

#[test]
fn a_step_that_changes_nothing_is_the_empty_tar() {
    for store in stores() {
        let driver = store.store.driver();
        let base = store.change(None, BASE);
        let same = store.change(Some(&base), "cat etc/one; chmod 755 etc; touch -d @1600000000 etc .");
        assert_eq!(store.tar(&same), vec![0; 1024], "{driver}");
    }
}

#[test]
fn parents_a_layer_does_not_name_look_as_below() {
    for store in stores() {
        let driver = store.store.driver();
        let base =
            store.change(None, "mkdir -m 1777 tmp; chown 3:4 tmp; setfattr -n user.a -v b tmp; t tmp .; chmod 711 .");
        let layer = fixture::tar(&[fixture::file("tmp/sub/file", "x")]);
        let top = store.apply(&layer, Some(&base)).unwrap();
        let shown = store.show(&top, "stat -c '%a %u:%g %Y' . tmp tmp/sub; getfattr --only-values -n user.a tmp");
        assert_eq!(shown, "711 0:0 1700000000\n1777 3:4 1700000000\n755 0:0 315619200\nb", "{driver}");
    }
}

#[test]
fn a_layer_is_checked_while_it_is_read() {
    let store = TestStore::new(Driver::Overlay);
    let snapshot = store.change(None, BASE);
    let layers = store.store.layers();
    let id = layers.diff(snapshot.id()).unwrap();
    let path = store.store.snapshots().path(snapshot.id()).join("etc/one");
    std::fs::write(path, "ONE\n").unwrap();
    let mut tar = layers.open_diff(&id.diff_id).unwrap();
    let error = std::io::copy(&mut tar, &mut std::io::sink()).unwrap_err();
    assert!(error.to_string().contains("expected sha256:"), "{error}");
    assert!(matches!(layers.write_tar(snapshot.id(), &mut std::io::sink()), Err(StoreError::WrongDigest { .. })));
}

/// A layer that travels is read once: what is compressed while it is hashed is what compressing it later gives.
#[test]
fn a_layer_is_compressed_while_it_is_hashed() {
    for driver in DRIVERS {
        for how in [Compression::Gzip, Compression::Zstd] {
            let (ahead, later) = (TestStore::new(driver), TestStore::new(driver));
            let there = ahead.change(None, BASE);
            let layers = ahead.store.layers();
            let id = layers.diff_compressed(there.id(), how, DEFAULT_LEVEL, &ahead.lease).unwrap();
            assert_eq!(layers.diff(there.id()).unwrap(), id);
            let blobs = ahead.store.blobs().list().unwrap();
            let blob = layers.compress(&id.diff_id, how, DEFAULT_LEVEL, &ahead.lease).unwrap();
            assert_eq!(blobs, [(blob.digest.clone(), blob.size)], "made once, and known afterwards");
            assert_eq!(ahead.store.blobs().list().unwrap(), blobs);
            let snapshot = later.change(None, BASE);
            assert_eq!(later.store.layers().diff(snapshot.id()).unwrap(), id, "{driver}, {how:?}");
            let made = later.store.layers().compress(&id.diff_id, how, DEFAULT_LEVEL, &later.lease).unwrap();
            assert_eq!(made, blob, "{driver}, {how:?}");
        }
        // One whose identity is known is not read for it again.
        let store = TestStore::new(driver);
        let known = store.change(None, BASE);
        let id = store.store.layers().diff(known.id()).unwrap();
        let layers = store.store.layers();
        let again = layers.diff_compressed(known.id(), Compression::Gzip, DEFAULT_LEVEL, &store.lease).unwrap();
        assert_eq!(again, id);
        assert_eq!(store.store.blobs().list().unwrap(), [], "nobody asked for it yet");
        let plain = store.change(None, CHANGE_NOTHING);
        layers.diff_compressed(plain.id(), Compression::None, 0, &store.lease).unwrap();
        assert_eq!(store.store.blobs().list().unwrap(), []);
        let wrong = store.change(None, "echo x >x; t x .");
        let error = layers.diff_compressed(wrong.id(), Compression::Gzip, 10, &store.lease).unwrap_err();
        assert!(error.to_string().contains("0 to 9"), "{error}");
    }
}

/// Of several snapshots that are said to be one layer, whichever can give its bytes does.
#[test]
fn a_layer_is_made_from_any_of_its_snapshots() {
    for driver in DRIVERS {
        let store = TestStore::new(driver);
        let base = store.change(None, "echo content >file; t file .");
        let layer = store.store.layers().diff(base.id()).unwrap();
        let expected = store.tar(&base);
        // Three that say they are it: one says so wrongly, one has lost its files, one is it.
        let wrong = store.change(None, "echo other >file; t file .");
        store.store.snapshots().set_layer(wrong.id(), &layer.diff_id, layer.size).unwrap();
        let right = store.change(None, "echo content >file; t file .");
        assert_eq!(store.store.layers().diff(right.id()).unwrap(), layer);
        std::fs::remove_dir_all(store.store.snapshots().path(base.id())).unwrap();
        let mut tar = Vec::new();
        store.store.layers().open_diff(&layer.diff_id).unwrap().read_to_end(&mut tar).unwrap();
        assert_eq!(tar, expected, "{driver}");
        std::fs::remove_dir_all(store.store.snapshots().path(right.id())).unwrap();
        assert!(store.store.layers().open_diff(&layer.diff_id).is_err());
    }
}

#[test]
fn deep_trees_need_few_descriptors() {
    let store = TestStore::new(Driver::Overlay);
    let deep = vec!["a"; 2000].join("/");
    let tar = fixture::tar(&[fixture::file(&(deep.clone() + "/f"), "deep")]);
    let staged = store.store.layers().stage(tar.as_slice(), &store.lease).unwrap();
    let layer = store.store.layers().stack_anew(staged, None).unwrap().snapshot;
    let again = store.change(Some(&layer), "echo more >top; t top .");
    let open = std::fs::read_dir("/proc/self/fd").unwrap().count();
    assert!(open < 200, "{open} descriptors");
    let got = names(&store.tar(&again));
    assert_eq!(got, ["./", "top"]);
    let copied = store.apply(&store.tar(&layer), None).unwrap();
    assert_eq!(store.show(&copied, &format!("cat {deep}/f")), "deep");
}

#[test]
fn many_small_files_are_fast() {
    let store = TestStore::new(Driver::Overlay);
    let active = store.store.snapshots().prepare(&store.lease, None).unwrap();
    for dir in 0..20 {
        let dir = active.upper().join(dir.to_string());
        std::fs::create_dir(&dir).unwrap();
        (0..500).for_each(|n| std::fs::write(dir.join(n.to_string()), n.to_string()).unwrap());
    }
    let snapshot = store.store.snapshots().commit(active).unwrap();
    let start = std::time::Instant::now();
    let id = store.store.layers().diff(snapshot.id()).unwrap();
    let took = start.elapsed();
    assert_eq!(id.size, (10_000 * 1024 + 20 * 512 + 1024) as u64);
    // A fifth of what 50,000 may take, times what an unoptimised build on a busy machine may be slower.
    assert!(took.as_secs() < 4, "{took:?}");
}
