//! What the machine offers and what the program says of itself: doctor, info, version, manual pages.

use crate::scene::Scene;

#[test]
fn the_doctor_says_what_is_there_and_what_to_do() {
    let scene = Scene::new();
    let said = scene.rb(&["doctor"]);
    for name in ["kernel", "cgroups", "state directory", "disk space", "overlay", "packet filter", "emulators"] {
        let line = said.out.lines().find(|line| line.get(9..).is_some_and(|rest| rest.starts_with(name)));
        let line = line.unwrap_or_else(|| panic!("nothing of {name}: {said:#?}"));
        assert!(["ok ", "warning ", "PROBLEM "].iter().any(|word| line.starts_with(word)), "{line}");
    }
    assert_eq!(said.code, i32::from(said.out.contains("PROBLEM ")), "{said:#?}");
    assert!(!scene.root().exists(), "looking makes no state directory");
    let json = scene.rb(&["doctor", "--json"]).out;
    let json: serde_json::Value = serde_json::from_str(&json).expect("JSON");
    assert!(json.as_array().expect("a list").iter().all(|one| one["name"].is_string() && one["verdict"].is_string()));
    // A place that cannot be used is a problem with advice.
    let file = scene.write("file", "");
    let under = file.join("root");
    let said = scene.rb(&["--root", under.to_str().expect("UTF-8"), "doctor"]);
    assert!(said.out.contains("state directory"), "{said:#?}");
}

#[test]
fn a_systemd_unit_starts_what_is_to_run() {
    let scene = Scene::new();
    let unit = scene.rb(&["doctor", "--systemd-unit"]).ok().out;
    let start = unit.lines().find_map(|line| line.strip_prefix("ExecStart=")).expect("what it does");
    assert!(start.ends_with("start --all --filter should-start-on-boot=true"), "{start}");
    assert!(start.contains(scene.root().to_str().expect("UTF-8")), "{start}");
    scene.rb(&["doctor", "--install-systemd-unit=."]).ok();
    let written = std::fs::read_to_string(scene.work().join("rbuild-restart.service")).expect("the unit");
    assert_eq!(written, unit);
    scene.rb(&["doctor", "--install-systemd-unit=none/here"]).refused(1, &["none/here"]);
}

#[test]
fn info_and_version_have_dockers_fields() {
    let scene = Scene::new();
    let fields =
        "{{.Driver}} {{.CgroupDriver}} {{.LoggingDriver}} {{.OSType}} {{.DefaultRuntime}} {{len .Plugins.Network}}";
    let info = scene.rb(&["info", "--format", fields]).ok().out;
    assert!(info.ends_with(" cgroupfs json-file linux rbuild 3\n"), "{info}");
    let json: serde_json::Value = serde_json::from_str(&scene.rb(&["info", "-f", "json"]).ok().out).expect("JSON");
    for name in ["MemoryLimit", "SwapLimit", "PidsLimit", "IPv4Forwarding", "LiveRestoreEnabled", "Debug"] {
        assert!(json[name].is_boolean(), "{name}: {json}");
    }
    assert!(json["DriverStatus"][0][1].is_string() && json["NCPU"].is_u64() && json["Warnings"].is_array(), "{json}");
    let version =
        scene.rb(&["version", "--format", "{{.Server.Version}} {{.Server.Os}} {{.Client.KernelVersion}}"]).ok();
    assert_eq!(version.out.split_whitespace().count(), 3, "{version:#?}");
    scene.rb(&["version", "--format", "{{.Nope}}"]).refused(1, &["template parsing error"]);
}

#[test]
fn manual_pages_come_from_the_commands() {
    let scene = Scene::new();
    let page = scene.rb(&["man", "container", "ls"]).ok().out;
    assert!(page.contains(".TH rbuild") && page.contains("List containers") && page.contains("no\\-trunc"), "{page}");
    scene.rb(&["man", "container", "nope"]).refused(1, &["no manual entry for rbuild-container nope"]);
    scene.rb(&["man", "--output", "pages"]).ok();
    let names: Vec<String> = std::fs::read_dir(scene.work().join("pages"))
        .expect("the pages")
        .map(|entry| entry.expect("an entry").file_name().to_string_lossy().into_owned())
        .collect();
    for name in ["rbuild.1", "rbuild-run.1", "rbuild-container-ls.1", "rbuild-network-create.1"] {
        assert!(names.iter().any(|other| other == name), "{name} of {names:?}");
    }
}
