//! Images: listings, names, removal, archives.

use crate::scene::Scene;

/// Imports an image whose only file has this content; gives its id.
fn import(scene: &Scene, name: &str, content: &str) -> String {
    let mut archive = tar::Builder::new(Vec::new());
    let mut header = tar::Header::new_ustar();
    header.set_mode(0o644);
    header.set_size(content.len() as u64);
    archive.append_data(&mut header, "file", content.as_bytes()).expect("tar");
    let said = scene.rb_with_input(&["import", "-", name], &archive.into_inner().expect("tar")).ok();
    let id = said.out.trim().to_owned();
    assert!(id.starts_with("sha256:") && id.len() == 71, "{id}");
    id
}

fn short(id: &str) -> &str {
    &id["sha256:".len()..][..12]
}

#[test]
fn listings_have_dockers_columns() {
    let scene = Scene::with_busybox();
    let said = scene.rb(&["images"]).ok();
    let lines: Vec<Vec<&str>> = said.out.lines().map(|l| l.split_whitespace().collect()).collect();
    assert_eq!(lines[0], ["REPOSITORY", "TAG", "IMAGE", "ID", "CREATED", "SIZE"]);
    assert_eq!(lines[1][..2], ["busybox", "latest"]);
    assert!(lines[1].last().is_some_and(|size| size.ends_with("MB")), "{said:?}");
    assert_eq!(scene.rb(&["image", "ls", "busybox"]).ok().out, scene.rb(&["images"]).ok().out);
    assert_eq!(scene.rb(&["images", "-q", "nothing"]).ok().out, "");

    let format = "{{.ID}}|{{.Repository}}:{{.Tag}}|{{.Digest}}|{{.CreatedAt}}";
    let said = scene.rb(&["images", "--format", format]).ok();
    assert!(said.out.ends_with("|busybox:latest|<none>|2024-01-01 00:00:00 +0000 UTC\n"), "{said:?}");
    let id = scene.rb(&["images", "-q", "--no-trunc"]).ok().out;
    assert_eq!(scene.rb(&["inspect", "-f", "{{.Id}}", "busybox"]).ok().out, id);
    let whole: serde_json::Value =
        serde_json::from_str(&scene.rb(&["images", "--format", "json"]).ok().out).expect("JSON");
    assert_eq!(whole["Repository"], "busybox");
    scene.rb(&["images", "--format", "{{.Nope}}"]).refused(1, &["template parsing error"]);
    scene.rb(&["images", "-f", "colour=red"]).refused(1, &["invalid filter 'colour'"]);
}

#[test]
fn the_size_of_an_image_is_that_of_its_files() {
    let scene = Scene::new();
    import(&scene, "small", "seven b");
    assert_eq!(scene.rb(&["images", "--format", "{{.Size}}"]).ok().out, "7B\n");
    assert_eq!(scene.inspect("small")["Size"], 7);
    let said = scene.rb(&["history", "-H=false", "--format", "{{.Size}} {{.ID}} {{.Comment}}", "small"]).ok();
    assert!(said.out.starts_with("7 ") && said.out.ends_with("Imported from -\n"), "{said:?}");
}

#[test]
fn names_come_move_and_go() {
    let scene = Scene::new();
    let first = import(&scene, "a:1", "one");
    let second = import(&scene, "b:1", "two");
    scene.rb(&["tag", "a:1", "localhost:5999/team/a:x"]).ok();
    scene.rb(&["tag", short(&first), "docker.io/library/c"]).ok();
    scene.rb(&["tag", "nope", "x"]).refused(1, &["No such image: nope:latest"]);
    let words = "error parsing reference: \"UPPER\" is not a valid repository/tag: invalid reference format";
    scene.rb(&["tag", "a:1", "UPPER"]).refused(1, &[words, "must be lowercase"]);
    let names = scene.rb(&["images", "--format", "{{.Repository}}:{{.Tag}}"]).ok().out;
    for name in ["a:1\n", "c:latest\n", "localhost:5999/team/a:x\n"] {
        assert!(names.contains(name), "{names}");
    }

    // A name that moves leaves the other image dangling.
    for name in ["localhost:5999/team/a:x", "c"] {
        assert!(!scene.rb(&["rmi", name]).ok().out.contains("Deleted"));
    }
    scene.rb(&["tag", "b:1", "a:1"]).ok();
    assert_eq!(scene.rb(&["images", "-q", "--no-trunc", "-f", "dangling=true"]).ok().out.trim(), first);
    assert_eq!(scene.inspect("a:1")["Id"], second.as_str());
    assert_eq!(scene.inspect(&first)["RepoTags"], serde_json::json!([]));

    // By its id, an image with two names goes only by force.
    scene.rb(&["rmi", &second]).refused(1, &["must be forced", "multiple repositories"]);
    let layer = |id: &str| scene.inspect(id)["RootFS"]["Layers"][0].as_str().expect("a layer").to_owned();
    let (lower, upper) = (layer(&first), layer(&second));
    let said = scene.rb(&["rmi", "-f", &second]).ok();
    assert_eq!(said.out, format!("Untagged: a:1\nUntagged: b:1\nDeleted: {second}\nDeleted: {upper}\n"));
    let said = scene.rb(&["image", "prune", "-f"]).ok();
    let lines = format!("Deleted Images:\ndeleted: {first}\ndeleted: {lower}\n\nTotal reclaimed space: ");
    assert!(said.out.starts_with(&lines), "{said:?}");
    assert_eq!(scene.rb(&["images", "-aq"]).ok().out, "");
}

#[test]
fn what_is_not_there() {
    let scene = Scene::new();
    let id = import(&scene, "a", "x");
    let said = scene.rb(&["inspect", "nope"]).refused(1, &["No such object: nope"]);
    assert_eq!(said.out, "[]\n");
    let said = scene.rb(&["inspect", "a", "nope"]).refused(1, &["nope"]);
    assert_eq!(serde_json::from_str::<serde_json::Value>(&said.out).expect("JSON").as_array().map(Vec::len), Some(1));
    scene.rb(&["history", "nope"]).refused(1, &["No such image: nope:latest"]);
    // The others go all the same.
    let layer = scene.inspect("a")["RootFS"]["Layers"][0].as_str().expect("a layer").to_owned();
    let said = scene.rb(&["rmi", "nope", "a"]).refused(1, &["No such image: nope:latest"]);
    assert_eq!(said.out, format!("Untagged: a:latest\nDeleted: {id}\nDeleted: {layer}\n"));
    scene.rb(&["rmi", "UPPER"]).refused(1, &["invalid reference format", "must be lowercase"]);
    scene.rb(&["rmi", "-f", "nope"]).ok();
    scene.rb(&["save", "-o", "x.tar", "nope"]).refused(1, &["No such image: nope:latest"]);
    assert!(!scene.work().join("x.tar").exists());
}

#[test]
fn archives_bring_back_the_same_image() {
    let scene = Scene::new();
    let one = import(&scene, "a:1", "one");
    let two = import(&scene, "b:2", "two");
    scene.rb(&["save", "-o", "both.tar", "a:1", "b:2"]).ok();
    scene.rb(&["save", "-o", "again.tar", "a:1", "b:2"]).ok();
    let bytes = |name: &str| std::fs::read(scene.work().join(name)).expect("read");
    assert_eq!(bytes("both.tar"), bytes("again.tar"), "the same images give the same archive");
    scene.rb(&["save", "-o", "id.tar", &one]).ok();
    scene.rb(&["rmi", "a:1", "b:2"]).ok();

    let said = scene.rb_with_input(&["load"], &bytes("both.tar")).ok();
    assert_eq!(said.out, "Loaded image: a:1\nLoaded image: b:2\n");
    assert_eq!((scene.inspect("a:1")["Id"].as_str(), scene.inspect("b:2")["Id"].as_str()), (Some(&*one), Some(&*two)));
    scene.rb(&["rmi", "a:1", "b:2"]).ok();
    assert_eq!(scene.rb(&["load", "-i", "id.tar"]).ok().out, format!("Loaded image ID: {one}\n"));
    scene.rb(&["rmi", &one]).ok();

    // Half of an archive brings nothing.
    scene.write("cut.tar", &bytes("both.tar")[..3000]);
    assert_eq!(scene.rb(&["load", "-i", "cut.tar"]).code, 1);
    scene.write("junk.tar", [7; 5000]);
    assert_eq!(scene.rb(&["load", "-i", "junk.tar"]).code, 1);
    scene.rb(&["load", "-i", "missing.tar"]).refused(1, &["missing.tar"]);
    assert_eq!(scene.rb(&["images", "-aq"]).ok().out, "");
}

#[test]
fn what_takes_room_is_counted_and_removed() {
    let scene = Scene::new();
    import(&scene, "a", &"x".repeat(3000));
    import(&scene, "b", &"y".repeat(1000));
    let said = scene.rb(&["system", "df"]).ok();
    let lines: Vec<Vec<&str>> = said.out.lines().map(|l| l.split_whitespace().collect()).collect();
    assert_eq!(lines[0], ["TYPE", "TOTAL", "ACTIVE", "SIZE", "RECLAIMABLE"]);
    assert_eq!(lines[1], ["Images", "2", "0", "4kB", "4kB", "(100%)"]);
    assert_eq!(lines[2], ["Containers", "0", "0", "0B", "0B"]);
    scene
        .rb(&["builder", "prune", "-f", "--filter", "until=never"])
        .refused(1, &["\"until\" filter expects a duration"]);
    scene.rb(&["builder", "prune", "-af"]).ok();
    scene.rb(&["system", "prune", "-f"]).ok();
    assert_eq!(scene.rb(&["images", "-q"]).ok().out.lines().count(), 2, "what has a name stays");
    let said = scene.rb(&["system", "prune", "-af"]).ok();
    assert!(said.out.contains("untagged: a:latest\n"), "{said:?}");
    assert_eq!(scene.rb(&["images", "-aq"]).ok().out, "");
}

/// Layers that nothing else uses are told, the topmost first; a layer goes with the last image that has it.
#[test]
fn layers_are_told_when_they_go() {
    let scene = Scene::new();
    scene.write("f", "f");
    scene.write("Dockerfile", "FROM scratch\nCOPY f /one\n");
    scene.rb(&["build", "-q", "-t", "base", "."]).ok();
    for name in ["left", "right"] {
        scene.write("Dockerfile", format!("FROM base\nCOPY f /{name}\n"));
        scene.rb(&["build", "-q", "-t", name, "."]).ok();
    }
    // The cache of builds has them, too.
    scene.rb(&["builder", "prune", "-af"]).ok();
    let deleted = |said: String| said.lines().filter(|line| line.starts_with("Deleted: ")).count();
    assert_eq!(deleted(scene.rb(&["rmi", "base"]).ok().out), 1, "its layer is below two others");
    assert_eq!(deleted(scene.rb(&["rmi", "left"]).ok().out), 2);
    let said = scene.rb(&["image", "prune", "-af"]).ok().out;
    assert_eq!(said.lines().filter(|line| line.starts_with("deleted: ")).count(), 3, "{said}");
}

#[test]
fn templates_and_listings_are_as_docker_has_them() {
    let scene = Scene::with_busybox();
    let row = scene.rb(&["images", "--format", "{{json .}}"]).ok().out;
    assert!(row.contains(r#""Digest":"\u003cnone\u003e""#), "{row}");
    assert_eq!(scene.rb(&["images", "--format", "{{json .Digest}}"]).ok().out, "\"<none>\"\n");
    assert_eq!(scene.rb(&["images", "--format", r#"{{split .Tag ""}}"#]).ok().out, "[l a t e s t]\n");
    let table = scene.rb(&["history", "-H=false", "busybox"]).ok().out;
    assert!(table.starts_with("IMAGE") && table.contains("CREATED AT  "), "{table}");
    scene.rb(&["inspect", "-f", "{{", "busybox"]).refused(64, &["template parsing error"]);
    let nowhere = scene.work().join("no/where.tar").display().to_string();
    scene
        .rb(&["save", "-o", &nowhere, "busybox"])
        .refused(1, &["failed to save image: invalid output path: directory"]);
    scene.rb(&["create", "--name", "user", "busybox"]).ok();
    let id = scene.inspect("busybox")["Id"].as_str().expect("an id").to_owned();
    let words = [
        "unable to remove repository reference \"busybox\" (must force) - container ",
        " is using its referenced image ",
    ];
    scene.rb(&["rmi", "busybox"]).refused(1, &words);
    let words = format!(
        "conflict: unable to delete {} (must be forced) - image is being used by stopped container",
        short(&id)
    );
    scene.rb(&["rmi", &id["sha256:".len()..][..7]]).refused(1, &[&words]);
}
