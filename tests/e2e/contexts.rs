//! Contexts that are not directories: archives, files of a web server.

use std::io::{Read as _, Write as _};

use crate::scene::Scene;

fn archive(files: &[(&str, &str)]) -> Vec<u8> {
    let mut tar = tar::Builder::new(Vec::new());
    for (name, text) in files {
        let mut header = tar::Header::new_ustar();
        header.set_size(text.len() as u64);
        header.set_mode(0o644);
        tar.append_data(&mut header, name, text.as_bytes()).unwrap();
    }
    tar.into_inner().unwrap()
}

/// Answers every request on the loopback with `body`, until the test ends with its process.
fn serve(body: Vec<u8>) -> String {
    let listener = std::net::TcpListener::bind("127.0.0.1:0").unwrap();
    let address = listener.local_addr().unwrap();
    std::thread::spawn(move || {
        for stream in listener.incoming() {
            let mut stream = stream.unwrap();
            let mut request = [0; 4096];
            // One read holds the whole of a small request.
            let _ = stream.read(&mut request).unwrap();
            write!(stream, "HTTP/1.1 200 OK\r\nContent-Length: {}\r\nConnection: close\r\n\r\n", body.len()).unwrap();
            stream.write_all(&body).unwrap();
        }
    });
    format!("http://{address}")
}

#[test]
fn an_archive_is_a_context_without_ignore_file() {
    let scene = Scene::with_busybox();
    let files = [
        ("Dockerfile", "FROM busybox\nCOPY . /c/\n"),
        ("Other", "FROM busybox\nCOPY f /o\n"),
        (".dockerignore", "f\n"),
        ("f", "data"),
    ];
    let tar = archive(&files);
    scene.rb_with_input(&["build", "-t", "a", "-"], &tar).ok();
    assert_eq!(scene.in_image("a", "cat /c/f"), "data");
    scene.rb_with_input(&["build", "-t", "b", "-f", "Other", "-"], &tar).ok();
    assert_eq!(scene.in_image("b", "cat /o"), "data");
    scene.rb_with_input(&["build", "-f", "Missing", "-"], &tar).refused(1, &["Missing", "no such file"]);
    scene.rb_with_input(&["build", "-"], &tar[..700]).refused(1, &["failed to load build context", "archive"]);
    scene.rb_with_input(&["build", "-f", "-", "-"], b"").refused(1, &["can't use stdin for both"]);
    scene.rb_with_input(&["build", "-f", "Other", "-"], b"FROM busybox\n").refused(1, &["is a Dockerfile itself"]);
}

/// What an archive's links point at is beneath the context, and so is what is written through them.
#[test]
fn an_archive_stays_beneath_its_directory() {
    let scene = Scene::with_busybox();
    let victim = scene.write("victim", "untouched");
    let mut tar = tar::Builder::new(Vec::new());
    let mut header = tar::Header::new_ustar();
    header.set_entry_type(tar::EntryType::Symlink);
    header.set_size(0);
    tar.append_link(&mut header, "out", victim.parent().unwrap()).unwrap();
    let mut header = tar::Header::new_ustar();
    header.set_size(4);
    header.set_mode(0o644);
    tar.append_data(&mut header, "out/victim", &b"evil"[..]).unwrap();
    let text = b"FROM busybox\nCOPY . /c/\n";
    let mut header = tar::Header::new_ustar();
    header.set_size(text.len() as u64);
    header.set_mode(0o644);
    tar.append_data(&mut header, "Dockerfile", &text[..]).unwrap();
    scene.rb_with_input(&["build", "-"], &tar.into_inner().unwrap());
    assert_eq!(std::fs::read_to_string(victim).unwrap(), "untouched");
}

#[test]
fn a_web_server_gives_archives_and_dockerfiles() {
    let scene = Scene::with_busybox();
    let tar = serve(archive(&[("Dockerfile", "FROM busybox\nCOPY f /f\n"), ("f", "data")]));
    scene.rb(&["build", "-t", "a", &format!("{tar}/context.tar")]).ok();
    assert_eq!(scene.in_image("a", "cat /f"), "data");
    let text = serve(b"FROM busybox\nLABEL from=web\n".to_vec());
    scene.rb(&["build", "-t", "b", &format!("{text}/Dockerfile")]).ok();
    assert_eq!(scene.inspect("b")["Config"]["Labels"]["from"], "web");
    let text = serve(b"FROM busybox\nCOPY g /g\nCOPY --from=named f /f\n".to_vec());
    scene.write("ctx/g", "here");
    let named = format!("named={tar}/context.tar");
    scene.rb(&["build", "-t", "c", "--build-context", &named, "-f", &format!("{text}/Dockerfile"), "ctx"]).ok();
    assert_eq!(scene.in_image("c", "cat /g /f"), "heredata");
    scene.rb(&["build", "http://127.0.0.1:1/x.tar"]).refused(1, &["127.0.0.1:1"]);
}
