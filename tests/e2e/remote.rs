//! Commands about what is in registries: `manifest`, `imagetools`, `search`.

use rbuild_engine::registry::memory::Behaviour;
use serde_json::Value;

use crate::registry::Registry;
use crate::scene::Scene;

/// Two images of different platforms, pushed under `:amd64` and `:arm64` of a repository.
fn two_platforms(scene: &Scene, registry: &Registry, repository: &str) {
    for architecture in ["amd64", "arm64"] {
        let name = registry.name(&format!("{repository}:{architecture}"));
        scene.write("Dockerfile", "FROM scratch\nCOPY file /\n");
        scene.write("file", architecture);
        let platform = format!("linux/{architecture}");
        scene.rb(&["build", "-q", "--platform", &platform, "-t", &name, "."]).ok();
        scene.rb(&["push", "-q", "--platform", &platform, &name]).ok();
    }
}

fn json(text: &str) -> Value {
    serde_json::from_str(text).expect("JSON")
}

#[test]
fn a_manifest_list_is_made_annotated_pushed_and_forgotten() {
    let scene = Scene::new();
    let registry = Registry::start();
    two_platforms(&scene, &registry, "app");
    let (list, amd64, arm64) = (registry.name("list:v1"), registry.name("app:amd64"), registry.name("app:arm64"));
    let said = scene.rb(&["manifest", "create", &list, &amd64, &arm64]).ok();
    assert_eq!(said.out, format!("Created manifest list {list}\n"));
    scene.rb(&["manifest", "create", &list, &amd64]).refused(1, &["no --amend flag"]);
    scene.rb(&["manifest", "create", "--amend", &list, &amd64]).ok();
    scene.rb(&["manifest", "annotate", "--variant", "v8", &list, &arm64]).ok();
    scene.rb(&["manifest", "annotate", "--arch", "pdp11", &list, &arm64]).refused(1, &["unsupported os/arch"]);
    scene.rb(&["manifest", "annotate", &list, &registry.name("app:none")]).refused(1, &["does not exist in"]);
    let here = scene.rb(&["manifest", "inspect", &list]).ok().out;
    assert!(here.starts_with("{\n   \"schemaVersion\": 2"), "{here}");

    let pushed = scene.rb(&["manifest", "push", "--purge", &list]).ok();
    assert!(pushed.out.starts_with("sha256:") && pushed.out.lines().count() == 1, "{pushed:?}");
    scene.rb(&["manifest", "push", &list]).refused(1, &["not found"]);
    let there = json(&scene.rb(&["manifest", "inspect", &list]).ok().out);
    assert_eq!(there, json(&here), "what was shown is what was pushed");
    let platforms: Vec<&Value> =
        there["manifests"].as_array().expect("a list").iter().map(|m| &m["platform"]).collect();
    assert_eq!(platforms[1]["variant"], "v8");
    let verbose = json(&scene.rb(&["manifest", "inspect", "-v", &list]).ok().out);
    assert_eq!(verbose[0]["Descriptor"]["platform"]["architecture"], "amd64");
    assert!(verbose[1]["Ref"].as_str().expect("a name").contains("@sha256:"));
    assert_eq!(verbose[1]["SchemaV2Manifest"]["schemaVersion"], 2);
    // The platforms can be pulled from it.
    let other = Scene::new();
    other.rb(&["pull", "-q", "--platform", "linux/arm64", &list]).ok();
    assert_eq!(other.inspect(&list)["Architecture"], "arm64");

    scene.rb(&["manifest", "create", &list, &amd64]).ok();
    scene.rb(&["manifest", "rm", &list, "absent"]).refused(1, &["No such manifest: docker.io/library/absent:latest"]);
    scene.rb(&["manifest", "rm", &list]).refused(1, &["No such manifest"]);
    let missing = registry.name("app:none");
    scene.rb(&["manifest", "inspect", &missing]).refused(1, &[&format!("no such manifest: {missing}")]);
}

#[test]
fn images_are_copied_and_joined_between_registries() {
    let scene = Scene::new();
    let (from, to) = (Registry::start(), Registry::start());
    two_platforms(&scene, &from, "app");
    let (amd64, arm64, joined) = (from.name("app:amd64"), from.name("app:arm64"), to.name("team/app:all"));
    scene.rb(&["imagetools", "create", &amd64]).refused(1, &["--tag or --dry-run"]);
    let shown = json(&scene.rb(&["imagetools", "create", "--dry-run", "-t", &joined, &amd64, &arm64]).ok().out);
    assert_eq!(shown["manifests"].as_array().map(Vec::len), Some(2));
    assert_eq!(to.get().count("PUT", ""), 0, "a dry run pushes nothing");

    scene.rb(&["imagetools", "create", "-t", &joined, &amd64]).ok();
    scene.rb(&["buildx", "imagetools", "create", "--append", "-t", &joined, &arm64]).ok();
    let raw = scene.rb(&["imagetools", "inspect", "--raw", &joined]).ok().out;
    assert_eq!(json(&raw)["manifests"], shown["manifests"]);
    let text = scene.rb(&["imagetools", "inspect", &joined]).ok().out;
    assert!(
        text.starts_with(&format!("Name:      {joined}\nMediaType: application/vnd.docker.distribution.manifest.list")),
        "{text}"
    );
    assert!(text.contains("\nManifests:\n  Name:      ") && text.contains("  Platform:  linux/arm64\n"), "{text}");
    let digest = text.lines().find_map(|line| line.strip_prefix("Digest:    ")).expect("a digest");
    let format = |template: &str| scene.rb(&["imagetools", "inspect", "--format", template, &joined]).ok().out;
    assert_eq!(format("{{.Manifest.Digest}} {{.Name}}"), format!("{digest} {joined}\n"));
    let images = json(&format("{{json .Image}}"));
    assert_eq!(images["linux/arm64"]["architecture"], "arm64");

    // A copy is what it was, also under another tag and from there to the first registry.
    let again = from.name("copy:v2");
    scene.rb(&["imagetools", "create", "-t", &again, &joined]).ok();
    assert_eq!(scene.rb(&["imagetools", "inspect", "--raw", &again]).ok().out, raw);
    let one = to.name("team/app:one");
    scene.rb(&["imagetools", "create", "--prefer-index=false", "-t", &one, &amd64]).ok();
    assert_eq!(json(&scene.rb(&["manifest", "inspect", &one]).ok().out)["schemaVersion"], 2);
    let arm = to.name("team/app:arm");
    scene.rb(&["imagetools", "create", "--platform", "linux/arm64", "-t", &arm, &joined]).ok();
    let other = Scene::new();
    other.rb(&["pull", "-q", "--platform", "linux/arm64", &arm]).ok();
    scene.rb(&["imagetools", "create", "--platform", "linux/s390x", "-t", &arm, &joined]).refused(1, &["linux/s390x"]);
    scene.rb(&["imagetools", "create", "--dry-run", digest]).refused(1, &["--tag"]);
    let by_digest = scene.rb(&["imagetools", "create", "--dry-run", "-t", &joined, digest]).ok().out;
    assert_eq!(json(&by_digest), json(&raw));
}

#[test]
fn images_of_several_platforms_stay_whole() {
    let scene = Scene::new();
    let registry = Registry::start();
    let name = registry.name("multi:v1");
    scene.write("Dockerfile", "FROM scratch\nARG TARGETARCH\nCOPY $TARGETARCH /file\n");
    scene.write("amd64", "one");
    scene.write("arm64", "two");
    scene.rb(&["build", "-q", "--platform", "linux/amd64,linux/arm64", "-t", &name, "."]).ok();
    scene.rb(&["push", &name]).ok();
    let index = json(&scene.rb(&["manifest", "inspect", &name]).ok().out);
    let architectures: Vec<&str> = index["manifests"]
        .as_array()
        .expect("an index")
        .iter()
        .filter_map(|m| m["platform"]["architecture"].as_str())
        .collect();
    assert_eq!(architectures, ["amd64", "arm64"]);
    for architecture in architectures {
        let other = Scene::new();
        other.rb(&["pull", "-q", "--platform", &format!("linux/{architecture}"), &name]).ok();
        assert_eq!(other.inspect(&name)["Architecture"], architecture);
    }
    let one = registry.name("multi:one");
    scene.rb(&["tag", &name, &one]).ok();
    scene.rb(&["push", "-q", "--platform", "linux/arm64", &one]).ok();
    assert!(json(&scene.rb(&["manifest", "inspect", &one]).ok().out)["layers"].is_array());
}

#[test]
fn search_shows_what_the_registry_finds() {
    let scene = Scene::new();
    let long = "x".repeat(60);
    let found = serde_json::json!({ "num_results": 3, "results": [
        { "name": "few", "description": "a\nb", "star_count": 2, "is_official": false, "is_automated": true },
        { "name": "nginx", "description": long, "star_count": 900, "is_official": true, "is_automated": false },
    ]});
    let registry = Registry::with(Behaviour { search: Some(found.to_string()), ..Behaviour::default() });
    let term = registry.name("web");
    let said = scene.rb(&["search", &term]).ok().out;
    let lines: Vec<&str> = said.lines().collect();
    assert!(lines[0].starts_with("NAME      DESCRIPTION"), "{said}");
    assert!(lines[1].starts_with("nginx     xxx") && lines[1].contains("…   900       [OK]"), "{said}");
    assert!(lines[2].starts_with("few       a b "), "{said}");
    assert!(registry.get().log().iter().any(|r| r.path == "/v1/search?q=web&n=25"));
    let format = "{{.Name}} {{.StarCount}} {{.IsOfficial}}";
    let said = scene.rb(&["search", "--format", format, "--filter", "stars=3", "--limit", "5", &term]).ok();
    assert_eq!(said.out, "nginx 900 [OK]\n");
    assert!(scene.rb(&["search", "--no-trunc", &term]).ok().out.contains(&long));
    scene.rb(&["search", "--limit", "0", &term]).refused(1, &["limit 0 is outside the range of [1, 100]"]);
    scene.rb(&["search", "--filter", "colour=red", &term]).refused(1, &["invalid filter 'colour'"]);
    let silent = Registry::start();
    scene.rb(&["search", &silent.name("x")]).refused(1, &["cannot be searched"]);
}
