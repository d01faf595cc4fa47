//! Files of containers as archives, and which containers are meant.

use crate::containers::{Background, until};
use crate::scene::Scene;

/// Names and texts of the members of an archive.
fn members(archive: &[u8]) -> Vec<(String, String)> {
    let mut archive = tar::Archive::new(archive);
    let entries = archive.entries().expect("an archive");
    let one = |entry: std::io::Result<tar::Entry<'_, &[u8]>>| {
        let mut entry = entry.expect("an entry");
        let mut text = String::new();
        std::io::Read::read_to_string(&mut entry, &mut text).expect("text");
        (entry.path().expect("a path").display().to_string(), text)
    };
    entries.map(one).collect()
}

fn archive(name: &str, text: &str, owner: u64) -> Vec<u8> {
    let mut builder = tar::Builder::new(Vec::new());
    let mut header = tar::Header::new_ustar();
    header.set_mode(0o640);
    header.set_uid(owner);
    header.set_gid(owner);
    header.set_size(text.len() as u64);
    builder.append_data(&mut header, name, text.as_bytes()).expect("tar");
    builder.into_inner().expect("tar")
}

#[test]
fn cp_follows_links_where_docker_does() {
    let scene = Scene::with_busybox();
    scene.write("new", "new");
    std::os::unix::fs::symlink("new", scene.work().join("link")).expect("symlink");
    let script =
        "mkdir -p /t/dir; echo old > /t/file; ln -s file /t/link; ln -s dir /t/inner; echo in > /t/dir/x; sleep 1000";
    scene.rb(&["run", "-d", "--name", "links", "--network", "none", "--init", "busybox", "sh", "-c", script]).ok();
    let inside = |script: &str| scene.rb(&["exec", "links", "sh", "-c", script]);
    for _ in 0..600 {
        if inside("test -e /t/dir/x").code == 0 {
            break;
        }
        std::thread::sleep(std::time::Duration::from_millis(50));
    }
    // Over a link the file goes to where it leads; a link at the source is copied as one, or with -L under its name.
    scene.rb(&["cp", "new", "links:/t/link"]).ok();
    assert_eq!(inside("test -L /t/link && cat /t/file").ok().out, "new");
    scene.rb(&["cp", "-L", "link", "links:/t/dir/"]).ok();
    assert_eq!(inside("test ! -L /t/dir/link && cat /t/dir/link").ok().out, "new");
    std::fs::create_dir(scene.work().join("out")).expect("mkdir");
    scene.rb(&["cp", "-L", "links:/t/link", "out/"]).ok();
    scene.rb(&["cp", "links:/t/inner", "out/"]).ok();
    assert_eq!(std::fs::read_to_string(scene.work().join("out/link")).expect("read"), "new");
    assert!(scene.work().join("out/inner").is_symlink());
    scene.rb(&["cp", "new", "links:/none/x"]).refused(1, &["Could not find the file /none in container links"]);
    scene.rb(&["cp", "new", "links:/none/"]).refused(1, &["no such directory"]);
    scene.rb(&["cp", "links:/t/file", "none/x"]).refused(1, &["invalid output path: directory \"", "does not exist"]);
    // All its files, and nothing that the kernel makes up.
    let whole = scene.command(&["cp", "links:/", "-"]).output().expect("start");
    assert!(whole.status.success(), "{}", String::from_utf8_lossy(&whole.stderr));
    // Its own group is among its groups; what cannot start is no program's exit code.
    assert_eq!(scene.rb(&["exec", "-u", "55:66", "links", "id", "-G"]).ok().out, "66\n");
    scene.rb(&["exec", "-w", "/none", "links", "true"]).refused(126, &["/none"]);
    scene.rb(&["exec", "-u", "nobody-here", "links", "true"]).refused(126, &["unable to find user nobody-here"]);
    scene.rb(&["rm", "-f", "links"]).ok();
}

#[test]
fn cp_takes_and_gives_archives() {
    let scene = Scene::with_busybox();
    let one =
        Background::start(&scene, "one", &["-v", "/vol"], "mkdir -p /d/e; echo f > /d/e/f; ln -s d /l; sleep 1000");
    one.until("test -L /l");
    let out = |path: &str| {
        let output = scene.command(&["cp", path, "-"]).output().expect("start");
        assert!(output.status.success(), "{output:?}");
        members(&output.stdout)
    };
    let pair = |name: &str, text: &str| (name.to_owned(), text.to_owned());
    assert_eq!(out("one:/d"), [pair("d/", ""), pair("d/e/", ""), pair("d/e/f", "f\n")]);
    assert_eq!(out("one:/d/e/f"), [pair("f", "f\n")]);
    assert_eq!(out("one:/l").len(), 1, "the link alone");
    scene.rb_with_input(&["cp", "-", "one:/vol"], &archive("x/new", "text", 1234)).ok();
    assert_eq!(one.exec("cat /vol/x/new; stat -c '%u %a' /vol/x/new").ok().out, "text1234 640\n");
    scene.rb_with_input(&["cp", "-", "one:/d/e/f"], &archive("a", "", 0)).refused(1, &["must be a directory"]);
    scene
        .rb_with_input(&["cp", "-", "one:/none"], &archive("a", "", 0))
        .refused(1, &["\"one:/none\" must be a directory"]);
    scene.rb_with_input(&["cp", "-", "one:/d"], b"no archive").refused(1, &["tar archive"]);
    scene.rb(&["cp", "one:/none", "-"]).refused(1, &["Could not find the file /none in container one"]);
    scene.rb(&["stop", "-t", "0", "one"]).ok();
    assert_eq!(out("one:/vol/x"), [pair("x/", ""), pair("x/new", "text")]);
    scene.rb_with_input(&["cp", "-", "one:/d"], &archive("late", "l", 0)).ok();
    assert_eq!(out("one:/d/late"), [pair("late", "l")]);
}

#[test]
fn filters_choose_what_is_shown_started_and_removed() {
    let scene = Scene::with_busybox();
    let make = |name: &str, options: &[&str]| {
        let mut arguments = vec!["create", "--network", "none", "--name", name];
        arguments.extend(options);
        arguments.extend(["busybox", "sleep", "1000"]);
        scene.rb(&arguments).ok();
    };
    make("web-1", &["--restart", "always"]);
    make("web-2", &["--restart", "unless-stopped", "-l", "keep"]);
    make("db", &["--restart", "on-failure:3"]);
    let names = |filters: &[&str]| {
        let mut arguments = vec!["ps", "-a", "--format", "{{.Names}}"];
        filters.iter().for_each(|filter| arguments.extend(["--filter", filter]));
        let mut names: Vec<String> = scene.rb(&arguments).ok().out.lines().map(str::to_owned).collect();
        names.sort();
        names.join(" ")
    };
    assert_eq!(names(&["name=^web-[0-9]$"]), "web-1 web-2");
    assert_eq!(names(&["restart-policy=on-failure"]), "db");
    assert_eq!(names(&["is-task=true"]), "");
    assert_eq!(names(&["is-task=false", "name=db"]), "db");
    assert_eq!(names(&["should-start-on-boot=true"]), "", "none was ever started");
    // As after a stop by hand and a start of the machine.
    scene.rb(&["start", "web-1", "web-2", "db"]).ok();
    scene.rb(&["stop", "-t", "0", "web-1", "web-2"]).ok();
    scene.rb(&["kill", "db"]).ok();
    until(|| names(&["status=running"]).is_empty());
    assert_eq!(names(&["should-start-on-boot=true"]), "web-1");
    let started = scene.rb(&["start", "--all", "--filter", "should-start-on-boot=true"]).ok().out;
    assert_eq!(started.trim_end().len(), 64, "its id: {started}");
    assert_eq!(names(&["status=running"]), "web-1");
    scene.rb(&["start", "--all", "web-1"]).refused(1, &["take no names"]);
    scene.rb(&["wait", "--condition", "running", "web-1"]).ok();
    assert_eq!(scene.rb(&["wait", "--condition", "exited", "db"]).ok().out, "137\n");
    scene.rb(&["wait", "--condition", "odd", "db"]).refused(125, &["unknown condition \"odd\""]);
    let said = scene.rb(&["container", "prune", "-f", "--filter", "label!=keep"]).ok().out;
    assert!(said.starts_with("Deleted Containers:\n") && said.contains("Total reclaimed space:"), "{said}");
    assert_eq!(names(&[]), "web-1 web-2");
    scene.rb(&["container", "prune", "-f", "--filter", "until=24h"]).ok();
    scene.rb(&["container", "prune", "-f", "--filter", "x=y"]).refused(1, &["invalid filter 'x'"]);
    assert_eq!(names(&[]), "web-1 web-2");
    scene.rb(&["rm", "-f", "web-1", "web-2"]).ok();
}
