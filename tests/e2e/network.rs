//! Networks: published ports, names, isolation, and that nothing of them outlives its container.

use std::io::{Read as _, Write as _};
use std::net::{IpAddr, SocketAddr, TcpListener, TcpStream};
use std::time::{Duration, Instant};

use crate::scene::{Said, Scene};

/// A container in the background, removed when the test ends, whichever way.
struct Server<'a> {
    scene: &'a Scene,
    name: &'a str,
}

impl<'a> Server<'a> {
    /// A web server on port 80 that says its own name.
    fn start(scene: &'a Scene, name: &'a str, options: &[&str]) -> Server<'a> {
        let script = format!("echo {name} > /index.html; exec httpd -f -h / -p 80");
        let server = Server { scene, name };
        scene.rb(&[&["run", "-d", "--name", name], options, &["busybox", "sh", "-c", &script]].concat()).ok();
        server
    }

    fn field(&self, template: &str) -> String {
        self.scene.rb(&["container", "inspect", "-f", template, self.name]).ok().out.trim_end().to_owned()
    }

    fn exec(&self, script: &str) -> Said {
        self.scene.rb(&["exec", self.name, "sh", "-c", script])
    }

    /// The host's ports that lead to its port 80.
    fn ports(&self) -> Vec<SocketAddr> {
        let said = self.scene.rb(&["port", self.name, "80"]).ok();
        said.out.lines().map(|line| line.parse().expect("an address")).collect()
    }

    /// Whether it answers there, asked until it does.
    fn answers(&self, address: SocketAddr) {
        let want = format!("\r\n\r\n{}\n", self.name);
        until(|| ask(address).is_some_and(|answer| answer.ends_with(&want)));
    }
}

impl Drop for Server<'_> {
    fn drop(&mut self) {
        self.scene.rb(&["rm", "-fv", self.name]);
    }
}

fn until(mut holds: impl FnMut() -> bool) {
    let start = Instant::now();
    while !holds() {
        assert!(start.elapsed() < Duration::from_secs(30), "not within time");
        std::thread::sleep(Duration::from_millis(30));
    }
}

/// What a web server says to a plain question.
fn ask(address: SocketAddr) -> Option<String> {
    let mut stream = TcpStream::connect_timeout(&address, Duration::from_secs(5)).ok()?;
    stream.set_read_timeout(Some(Duration::from_secs(5))).ok()?;
    stream.write_all(b"GET / HTTP/1.0\r\n\r\n").ok()?;
    let mut answer = String::new();
    stream.read_to_string(&mut answer).ok()?;
    Some(answer)
}

/// The same question as a script for inside a container.
fn ask_inside(host: &str, port: u16) -> String {
    format!("printf 'GET / HTTP/1.0\\r\\n\\r\\n' | nc -w 5 {host} {port} | tail -n 1")
}

/// A listener on a port that no program gets by chance: once it is let go, nobody else takes it.
fn held_port() -> TcpListener {
    let since = std::time::SystemTime::now().duration_since(std::time::UNIX_EPOCH).expect("after 1970");
    let start = since.subsec_micros();
    let mut ports = (0..10_000).map(|n| 10_000 + ((start + n * 17) % 10_000) as u16);
    ports.find_map(|port| TcpListener::bind(("127.0.0.1", port)).ok()).expect("a free port")
}

fn port_of(addresses: &[SocketAddr], ip: &str) -> SocketAddr {
    let ip: IpAddr = ip.parse().expect("an address");
    *addresses.iter().find(|a| a.ip() == ip).unwrap_or_else(|| panic!("{ip} in {addresses:?}"))
}

#[test]
fn a_port_is_reached_from_the_host_from_neighbours_and_from_itself() {
    let scene = Scene::with_busybox();
    let web = Server::start(&scene, "web", &["-p", "80", "-p", "127.0.0.1::80"]);
    let addresses = web.ports();
    let everywhere = port_of(&addresses, "0.0.0.0").port();
    web.answers((IpAddr::from([127, 0, 0, 1]), everywhere).into());
    web.answers(port_of(&addresses, "127.0.0.1"));
    if std::path::Path::new("/proc/net/if_inet6").exists() {
        assert_eq!(port_of(&addresses, "::").port(), everywhere, "one port for both families");
        web.answers(SocketAddr::new(IpAddr::from([0, 0, 0, 0, 0, 0, 0, 1]), everywhere));
    }
    let gateway = web.field("{{.NetworkSettings.Gateway}}");
    web.answers(SocketAddr::new(gateway.parse().expect("an address"), everywhere));
    let other = scene.rb(&["run", "--rm", "busybox", "sh", "-c", &ask_inside(&gateway, everywhere)]).ok();
    assert_eq!(other.out, "web\n");
    assert_eq!(web.exec(&ask_inside(&gateway, everywhere)).ok().out, "web\n");
    // Only the address that was named.
    let only_loopback = port_of(&addresses, "127.0.0.1").port();
    assert!(
        TcpStream::connect_timeout(&SocketAddr::new(gateway.parse().unwrap(), only_loopback), Duration::from_secs(5))
            .is_err()
    );
}

#[test]
fn what_is_published_is_shown_as_docker_does() {
    let scene = Scene::with_busybox();
    let web = Server::start(&scene, "web", &["-p", "127.0.0.1::80", "--expose", "443", "--expose", "53/udp"]);
    let port = web.ports()[0].port();
    assert_eq!(scene.rb(&["port", "web"]).ok().out, format!("80/tcp -> 127.0.0.1:{port}\n"));
    let column = scene.rb(&["ps", "--format", "{{.Ports}}"]).ok().out;
    assert_eq!(column, format!("53/udp, 443/tcp, 127.0.0.1:{port}->80/tcp\n"));
    let json: serde_json::Value = serde_json::from_str(&web.field("{{json .NetworkSettings.Ports}}")).expect("JSON");
    let bound = serde_json::json!([{"HostIp": "127.0.0.1", "HostPort": port.to_string()}]);
    assert_eq!(json, serde_json::json!({"80/tcp": bound, "443/tcp": null, "53/udp": null}));
    assert_eq!(web.field("{{json .HostConfig.PortBindings}}"), r#"{"80/tcp":[{"HostIp":"127.0.0.1","HostPort":""}]}"#);
    scene.rb(&["port", "web", "81"]).refused(1, &["no public port '81/tcp' published for web"]);
    scene.rb(&["stop", "-t", "0", "web"]).ok();
    assert_eq!(scene.rb(&["port", "web"]).ok().out, "");
    assert_eq!(web.field("{{json .NetworkSettings.Ports}}"), "{}");
    scene.rb(&["start", "web"]).ok();
    web.answers(web.ports()[0]);
}

#[test]
fn a_port_that_is_taken_fails_the_start_and_leaves_nothing() {
    let scene = Scene::alone_with_busybox();
    let holder = held_port();
    let port = holder.local_addr().expect("an address").port();
    let publish = format!("127.0.0.1:{port}:80");
    // One that could be had, and must be given back.
    let said =
        scene.rb(&["run", "-d", "--name", "late", "-p", "127.0.0.1::81", "-p", &publish, "busybox", "sleep", "100"]);
    let words = format!("Bind for 127.0.0.1:{port} failed: port is already allocated");
    said.refused(125, &["driver failed programming external connectivity on endpoint late", &words]);
    assert_eq!(scene.rb(&["ps", "-q"]).ok().out, "");
    let said = scene.rb(&["start", "late"]);
    assert_ne!(said.code, 0, "{said:#?}");
    drop(holder);
    scene.rb(&["start", "late"]).ok();
    assert_eq!(scene.rb(&["port", "late", "80"]).ok().out, format!("127.0.0.1:{port}\n"));
    scene.rb(&["rm", "-f", "late"]).ok();
    TcpListener::bind(("127.0.0.1", port)).expect("the port is free again");
}

#[test]
fn a_range_takes_the_first_port_that_is_free() {
    let scene = Scene::with_busybox();
    let first = held_port();
    let port = first.local_addr().expect("an address").port();
    let range = format!("127.0.0.1:{port}-{}:80", port + 300);
    scene.rb(&["run", "-d", "--rm", "--name", "one", "-p", &range, "busybox", "sleep", "100"]).ok();
    let one = Server { scene: &scene, name: "one" };
    let got = one.ports()[0].port();
    assert!(got > port && got <= port + 300, "{got}");
    let only = format!("127.0.0.1:{port}-{port}:80");
    scene.rb(&["run", "--rm", "-p", &only, "busybox", "true"]).refused(125, &["already allocated"]);
}

#[test]
fn every_exposed_port_is_published_when_asked_for() {
    let scene = Scene::with_busybox();
    scene.write("Dockerfile", "FROM busybox\nEXPOSE 80 5353/udp\nCMD echo all > /index.html; exec httpd -f -h /\n");
    scene.rb(&["build", "-q", "-t", "exposing", "."]).ok();
    scene.rb(&["run", "-d", "--name", "all", "-P", "exposing"]).ok();
    let all = Server { scene: &scene, name: "all" };
    all.answers(SocketAddr::new([127, 0, 0, 1].into(), port_of(&all.ports(), "0.0.0.0").port()));
    assert!(scene.rb(&["port", "all", "5353/udp"]).ok().out.starts_with("0.0.0.0:"));
}

#[test]
fn wrong_ports_are_refused_by_name() {
    let scene = Scene::new();
    for (options, word) in [
        (&["-p", "x"][..], "invalid containerPort: x"),
        (&["-p", "1-2:3-5"], "invalid ranges specified for container and host Ports: 3-5 and 1-2"),
        (&["-p", "80/sctp"], "sctp is not supported"),
        (&["-p", "nowhere:80:80"], "invalid IP address: nowhere"),
        (&["--expose", "80:80"], "invalid port format for --expose: 80:80"),
    ] {
        let arguments = [&["run", "--rm"], options, &["busybox", "true"]].concat();
        scene.rb(&arguments).refused(125, &[word]);
    }
}
