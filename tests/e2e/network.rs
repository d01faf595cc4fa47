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
    scene.rb(&["port", "web", "81"]).refused(1, &["no public port '81' published for web"]);
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

/// A network of the user's, removed when the test ends. Its name is its own: interfaces are the machine's.
struct Net<'a> {
    scene: &'a Scene,
    name: &'a str,
}

impl<'a> Net<'a> {
    fn create(scene: &'a Scene, name: &'a str, options: &[&str]) -> Net<'a> {
        let said = scene.rb(&[&["network", "create"], options, &[name]].concat()).ok();
        assert_eq!(said.out.trim_end().len(), 64, "an id: {said:#?}");
        Net { scene, name }
    }

    fn field(&self, template: &str) -> String {
        self.scene.rb(&["network", "inspect", "-f", template, self.name]).ok().out.trim_end().to_owned()
    }
}

impl Drop for Net<'_> {
    fn drop(&mut self) {
        self.scene.rb(&["network", "rm", self.name]);
    }
}

/// The address of a container in a network.
fn address(server: &Server<'_>, network: &str) -> String {
    server.field(&format!("{{{{(index .NetworkSettings.Networks \"{network}\").IPAddress}}}}"))
}

#[test]
fn containers_of_a_network_find_each_other_by_name() {
    let scene = Scene::with_busybox();
    let _net = Net::create(&scene, "net", &[]);
    let web = Server::start(&scene, "web", &["--network", "net", "--network-alias", "www", "-h", "shown"]);
    let other = Server::start(&scene, "other", &["--network", "net"]);
    let own = address(&web, "net");
    let short = web.field("{{.Id}}")[..12].to_owned();
    for name in ["web", "WWW", "shown", short.as_str(), "web.net"] {
        let said = other.exec(&format!("nslookup -type=a {name}")).ok();
        assert!(said.out.contains(&format!("Address: {own}\n")), "{name}: {said:#?}");
    }
    assert!(web.exec("nslookup web").ok().out.contains(&own), "itself");
    let back = other.exec(&format!("nslookup {own}")).ok();
    assert!(back.out.contains("name = web.net"), "{back:#?}");
    assert_eq!(other.exec("cat /etc/resolv.conf | head -n 1").ok().out, "nameserver 127.0.0.11\n");
    assert_ne!(other.exec("nslookup nobody.invalid").code, 0);
    // A name that has no address of the other family exists all the same.
    let none = other.exec("nslookup -type=aaaa web").ok();
    assert!(!none.out.contains("NXDOMAIN") && !none.out.contains("Address: "), "{none:#?}");
    // The port is the container's to have.
    other.exec("nc -l -p 53 -w 1 </dev/null & sleep 0.2; kill $!").ok();
    scene.rb(&["rename", "web", "renamed"]).ok();
    let _renamed = Server { scene: &scene, name: "renamed" };
    assert!(other.exec("nslookup -type=a renamed").ok().out.contains(&own));
    assert_ne!(other.exec("nslookup -type=a web").code, 0);
    scene.rb(&["rm", "-f", "renamed"]).ok();
    assert_ne!(other.exec("nslookup -type=a renamed").code, 0, "gone with its container");
}

#[test]
fn networks_are_apart_and_joined_and_left_while_running() {
    let scene = Scene::with_busybox();
    let (_one, two) = (Net::create(&scene, "one", &[]), Net::create(&scene, "two", &[]));
    let web = Server::start(&scene, "web", &["--network", "one"]);
    let asker = Server::start(&scene, "asker", &["--network", "two"]);
    let inside = address(&web, "one");
    assert_eq!(asker.exec(&ask_inside(&inside, 80)).out, "", "networks are apart");
    assert_ne!(asker.exec("nslookup -type=a web").code, 0);
    scene.rb(&["network", "connect", "--alias", "visitor", "two", "web"]).ok();
    let there = address(&web, "two");
    assert!(asker.exec("nslookup -type=a visitor").ok().out.contains(&there));
    until(|| asker.exec(&ask_inside(&there, 80)).out == "web\n");
    assert!(web.exec("nslookup -type=a asker").ok().out.contains(&address(&asker, "two")));
    assert!(two.field("{{range .Containers}}{{.Name}} {{end}}").contains("web"));
    scene
        .rb(&["network", "connect", "two", "web"])
        .refused(1, &["endpoint with name web already exists in network two"]);
    // The way out moves to the network that is left.
    scene.rb(&["network", "disconnect", "one", "web"]).ok();
    assert!(web.exec("ip route").ok().out.starts_with("default via "));
    scene.rb(&["network", "disconnect", "one", "web"]).refused(1, &["is not connected to network one"]);
    // What was joined is joined again after a restart.
    scene.rb(&["restart", "-t", "0", "web"]).ok();
    let there = address(&web, "two");
    assert!(asker.exec("nslookup -type=a visitor").ok().out.contains(&there));
    scene.rb(&["network", "disconnect", "two", "web"]).ok();
    assert_eq!(web.exec("ls /sys/class/net").ok().out, "lo\n");
    assert_ne!(asker.exec("nslookup -type=a visitor").code, 0);
}

#[test]
fn a_network_is_made_listed_shown_and_removed() {
    let scene = Scene::with_busybox();
    // A range of its own, should these tests run twice at once on a machine.
    let third = format!("{}.{}", 200 + std::process::id() / 250 % 50, std::process::id() % 250);
    let subnet = format!("10.{third}.0/24");
    let net = Net::create(
        &scene,
        "mine",
        &[
            "--subnet",
            &subnet,
            "--ip-range",
            &format!("10.{third}.64/28"),
            "--gateway",
            &format!("10.{third}.9"),
            "--label",
            "a=b",
            "--opt",
            "com.docker.network.driver.mtu=1400",
            "--ipv6",
            "--attachable",
            "--aux-address",
            &format!("router=10.{third}.64"),
            "--opt",
            "com.docker.network.bridge.host_binding_ipv4=127.0.0.1",
            "--opt",
            "com.docker.network.bridge.enable_ip_masquerade=false",
        ],
    );
    let listed = scene.rb(&["network", "ls", "--format", "{{.Name}} {{.Driver}} {{.Scope}}"]).ok().out;
    assert_eq!(listed, "bridge bridge local\nhost host local\nmine bridge local\nnone null local\n");
    assert_eq!(scene.rb(&["network", "ls", "--filter", "label=a=b", "--format", "{{.Name}}"]).ok().out, "mine\n");
    assert_eq!(scene.rb(&["network", "ls", "-q", "--filter", "type=builtin"]).ok().out.lines().count(), 3);
    let config = net.field("{{json (index .IPAM.Config 0)}}");
    let want = format!(
        r#"{{"AuxiliaryAddresses":{{"router":"10.{third}.64"}},"Gateway":"10.{third}.9","IPRange":"10.{third}.64/28","Subnet":"{subnet}"}}"#
    );
    assert_eq!(config, want);
    let chosen = format!("10.{third}.200");
    let fixed =
        Server::start(&scene, "fixed", &["--network", "mine", "--ip", &chosen, "--mac-address", "02:11:22:33:44:55"]);
    assert_eq!(address(&fixed, "mine"), chosen);
    scene.rb(&["restart", "-t", "0", "fixed"]).ok();
    assert_eq!(address(&fixed, "mine"), chosen);
    let said = fixed.exec("ip addr show eth0; ip route; ip -6 route").ok().out;
    for word in ["mtu 1400", "02:11:22:33:44:55", &format!("default via 10.{third}.9"), "default via fd"] {
        assert!(said.contains(word), "{word}: {said}");
    }
    let any = Server::start(&scene, "any", &["--network", "mine"]);
    let last: u8 = address(&any, "mine").rsplit('.').next().expect("four").parse().expect("a number");
    assert!((65..80).contains(&last), "within the range, and not the router's: {last}");
    assert_eq!(net.field("{{.Attachable}}"), "true");
    scene
        .rb(&["run", "--rm", "--network", "mine", "--ip", &format!("10.{third}.64"), "busybox", "true"])
        .refused(125, &["no configured subnet contains the address"]);
    let bound = Server::start(&scene, "bound", &["--network", "mine", "-p", "80"]);
    let port = scene.rb(&["port", "bound", "80"]).ok().out;
    assert!(port.starts_with("127.0.0.1:") && port.lines().count() == 1, "{port}");
    drop(bound);
    scene
        .rb(&["run", "--rm", "--network", "mine", "--ip", &chosen, "busybox", "true"])
        .refused(125, &["Address already in use"]);
    let six = any.field("{{.NetworkSettings.Networks.mine.GlobalIPv6Address}}");
    fixed.exec(&format!("ping6 -c 1 -w 10 {six}")).ok();
    assert!(fixed.exec("nslookup -type=aaaa any").ok().out.contains(&six));
    let words = ["error while removing network: network mine has active endpoints", "fixed", "any"];
    scene.rb(&["network", "rm", "mine"]).refused(1, &words);
    scene.rb(&["network", "create", "mine"]).refused(1, &["network with name mine already exists"]);
    scene.rb(&["network", "create", "--subnet", &subnet, "again"]).refused(1, &["Pool overlaps with other one"]);
    scene.rb(&["rm", "-f", "any", "fixed"]).ok();
    scene.rb(&["create", "--name", "later", "--network", "mine", "busybox", "true"]).ok();
    assert_eq!(scene.rb(&["network", "rm", "mine"]).ok().out, "mine\n");
    scene.rb(&["network", "inspect", "mine"]).refused(1, &["network mine not found"]);
    scene.rb(&["start", "later"]).refused(1, &["network mine not found"]);
}

#[test]
fn an_internal_network_has_no_way_out() {
    let scene = Scene::with_busybox();
    let _inner = Net::create(&scene, "inner", &["--internal"]);
    let one = Server::start(&scene, "one", &["--network", "inner", "-p", "127.0.0.1::80"]);
    let two = Server::start(&scene, "two", &["--network", "inner"]);
    assert!(!one.exec("ip route").ok().out.contains("default"));
    until(|| one.exec(&ask_inside(&address(&two, "inner"), 80)).out == "two\n");
    assert_eq!(scene.rb(&["port", "one"]).ok().out, "", "nothing is published from there");
    assert!(one.exec("nslookup -type=a example.invalid").out.contains("SERVFAIL"), "nobody outside is asked");
}

#[test]
fn neighbours_do_not_reach_each_other_where_that_is_switched_off() {
    let scene = Scene::with_busybox();
    let _apart = Net::create(&scene, "apart", &["-o", "com.docker.network.bridge.enable_icc=false"]);
    let one = Server::start(&scene, "one", &["--network", "apart", "-p", "127.0.0.1::80"]);
    let two = Server::start(&scene, "two", &["--network", "apart"]);
    one.answers(one.ports()[0]);
    assert_eq!(two.exec(&ask_inside(&address(&one, "apart"), 80)).out, "");
}

#[test]
fn links_and_shared_networks() {
    let scene = Scene::with_busybox();
    let db = Server::start(&scene, "db", &["--expose", "5432", "-e", "COLOUR=red"]);
    let address = db.field("{{.NetworkSettings.IPAddress}}");
    let said = scene.rb(&["run", "--rm", "--link", "db:store", "busybox", "sh", "-c", "env; cat /etc/hosts"]).ok();
    for want in
        [format!("STORE_PORT=tcp://{address}:5432"), "STORE_ENV_COLOUR=red".into(), format!("{address}\tstore ")]
    {
        assert!(said.out.contains(&want), "{want}: {said:#?}");
    }
    // Who shares a network shares its files and its ports.
    let shared = ask_inside("127.0.0.1", 80);
    let said = scene.rb(&["run", "--rm", "--network", "container:db", "busybox", "sh", "-c", &shared]).ok();
    assert_eq!(said.out, "db\n");
    let said = scene.rb(&["run", "--rm", "--network", "container:db", "busybox", "cat", "/etc/hosts"]).ok();
    assert!(said.out.contains(&address), "{said:#?}");
    let net = Net::create(&scene, "net", &[]);
    let web = Server::start(&scene, "web", &["--network", net.name]);
    let linked = Server::start(&scene, "linked", &["--network", net.name, "--link", "web:other"]);
    let there = web.field("{{.NetworkSettings.Networks.net.IPAddress}}");
    assert!(linked.exec("nslookup -type=a other").ok().out.contains(&there));
    assert_ne!(web.exec("nslookup -type=a other").code, 0, "only the one who has the link");
}

#[test]
fn wrong_networks_are_refused_by_name() {
    let scene = Scene::with_busybox();
    for (arguments, code, word) in [
        (&["network", "create", "bridge"][..], 1, "operation is not permitted on predefined bridge network"),
        (&["network", "create", "a b"], 1, "invalid network name \"a b\""),
        (&["network", "create", "-d", "overlay", "x"], 1, "the network driver \"overlay\" is not supported"),
        (&["network", "create", "--config-only", "x"], 1, "--config-only is not supported"),
        (&["network", "create", "-d", "host", "x"], 1, "only one instance of \"host\" network is allowed"),
        (&["network", "create", "-d", "nosuch", "x"], 1, "plugin \"nosuch\" not found"),
        (&["network", "create", "--gateway", "10.9.9.9", "x"], 1, "must have a corresponding subnet"),
        (
            &["network", "create", "--subnet", "10.1.2.0/24", "--aux-address", "a=10.9.9.9", "x"],
            1,
            "no matching subnet for aux-address 10.9.9.9",
        ),
        (&["network", "create", "-o", "parent=eth0", "x"], 1, "parent=eth0 is not supported"),
        (&["network", "create", "--subnet", "10.0.0.1/24", "x"], 1, "it should be 10.0.0.0/24"),
        (
            &["network", "create", "--subnet", "10.1.2.0/24", "--gateway", "10.9.9.9", "x"],
            1,
            "no matching subnet for gateway",
        ),
        (&["network", "rm", "host"], 1, "host is a pre-defined network and cannot be removed"),
        (&["network", "rm", "nowhere"], 1, "network nowhere not found"),
        (&["run", "--rm", "--network", "nowhere", "busybox", "true"], 125, "network nowhere not found"),
        (&["run", "--rm", "--ip", "10.0.0.9", "busybox", "true"], 125, "supported on user defined networks only"),
        (&["run", "--rm", "--network-alias", "x", "busybox", "true"], 125, "only supported for user-defined networks"),
        (
            &["run", "--rm", "--network", "host", "--mac-address", "02:00:00:00:00:01", "busybox", "true"],
            125,
            "mac-address",
        ),
        (&["run", "--rm", "--link", "nobody", "busybox", "true"], 125, "No such container: nobody"),
    ] {
        scene.rb(arguments).refused(code, &[word]);
    }
    assert_eq!(scene.rb(&["network", "ls", "-q"]).ok().out.lines().count(), 3);
    assert_eq!(scene.rb(&["ps", "-aq"]).ok().out, "");
}

/// Thirty at a time on one network: each gets an address of its own, finds another one, and nothing is left.
#[test]
fn many_containers_come_and_go_at_once_without_a_trace() {
    let scene = Scene::alone_with_busybox();
    let net = Net::create(&scene, "crowd", &[]);
    let anchor = Server::start(&scene, "anchor", &["--network", "crowd"]);
    let children: Vec<_> = (0..30)
        .map(|n| {
            let name = format!("c{n}");
            let script = "nslookup -type=a anchor | tail -n 2; ip -4 -o addr show eth0";
            let arguments = ["run", "--rm", "--name", &name, "--network", "crowd", "busybox", "sh", "-c", script];
            let mut command = scene.command(&arguments);
            command.stdout(std::process::Stdio::piped()).stderr(std::process::Stdio::piped());
            command.spawn().expect("start")
        })
        .collect();
    let anchor_address = address(&anchor, "crowd");
    for child in children {
        let said = Said::from(child.wait_with_output().expect("the end")).ok();
        assert!(said.out.contains(&format!("Address: {anchor_address}\n")) && said.out.contains("eth0"), "{said:#?}");
    }
    drop(anchor);
    assert_eq!(scene.rb(&["ps", "-aq"]).ok().out, "");
    let bridge = format!("rb-{}", &net.field("{{.Id}}")[..12]);
    assert!(std::path::Path::new("/sys/class/net").join(&bridge).exists());
    drop(net);
    assert!(!std::path::Path::new("/sys/class/net").join(&bridge).exists(), "its bridge is gone");
}

/// Fifty in the background (or `RBUILD_CROWD`), started at once and stopped at once, each with a port: none is lost, and
/// nothing stays.
#[test]
fn a_crowd_is_started_and_stopped_again_and_leaves_nothing() {
    let scene = Scene::alone_with_busybox();
    let net = Net::create(&scene, "crowd", &[]);
    let asked = std::env::var("RBUILD_CROWD").ok().map(|text| text.parse().expect("a number"));
    let names: Vec<String> = (0..asked.unwrap_or(50)).map(|n: usize| format!("k{n}")).collect();
    let start = |name: &String| {
        let arguments =
            ["run", "-d", "--name", name, "--network", "crowd", "-p", "127.0.0.1::80", "busybox", "sleep", "1000"];
        scene.command(&arguments).stdout(std::process::Stdio::null()).spawn().expect("start")
    };
    let children: Vec<_> = names.iter().map(start).collect();
    for mut child in children {
        assert!(child.wait().expect("the end").success());
    }
    assert_eq!(scene.rb(&["ps", "-q"]).ok().out.lines().count(), names.len());
    let distinct = |text: &str| text.split_whitespace().collect::<std::collections::BTreeSet<_>>().len();
    assert_eq!(distinct(&net.field("{{range .Containers}}{{.IPv4Address}} {{end}}")), names.len());
    assert_eq!(distinct(&scene.rb(&["ps", "--format", "{{.Ports}}"]).ok().out), names.len());
    let all = |command: &[&'static str]| {
        let arguments: Vec<&str> = command.iter().copied().chain(names.iter().map(String::as_str)).collect();
        assert_eq!(scene.rb(&arguments).ok().out.lines().count(), names.len());
    };
    all(&["kill"]);
    until(|| scene.rb(&["ps", "-q"]).ok().out.is_empty());
    assert_eq!(scene.rb(&["ps", "-aq", "--filter", "status=exited"]).ok().out.lines().count(), names.len());
    // Forced: who is said to have ended may still be letting go of its lock.
    all(&["rm", "-f"]);
    drop(net);
    let left = std::fs::read_dir(scene.root().join("containers")).expect("the directory of containers");
    assert_eq!(left.count(), 0);
}

/// Kills every process of a container at once: what was in the kernel goes with them, and it can be started again.
#[test]
fn a_killed_monitor_leaves_neither_ports_nor_rules_nor_names() {
    let scene = Scene::alone_with_busybox();
    let net = Net::create(&scene, "net", &[]);
    let web = Server::start(&scene, "web", &["--network", "net", "-p", "127.0.0.1::80"]);
    let other = Server::start(&scene, "other", &["--network", "net"]);
    let port = web.ports()[0];
    let pid: i32 = web.field("{{.State.Pid}}").parse().expect("a number");
    let monitor = monitor_of(pid);
    kill(monitor);
    until(|| web.field("{{.State.Running}}") == "false");
    assert_ne!(other.exec("nslookup -type=a web").code, 0);
    until(|| TcpListener::bind(port).is_ok());
    scene.rb(&["start", "web"]).ok();
    web.answers(web.ports()[0]);
    drop((web, other));
    drop(net);
}

fn kill(pid: i32) {
    let pid = rustix::process::Pid::from_raw(pid).expect("a pid");
    rustix::process::kill_process(pid, rustix::process::Signal::KILL).expect("kill");
}

/// The monitor among the parents of a process.
fn monitor_of(mut pid: i32) -> i32 {
    loop {
        let status = std::fs::read_to_string(format!("/proc/{pid}/status")).expect("a living process");
        let parent = status.lines().find_map(|line| line.strip_prefix("PPid:")).expect("a parent");
        pid = parent.trim().parse().expect("a number");
        let command = std::fs::read(format!("/proc/{pid}/cmdline")).expect("a living process");
        if command.starts_with(b"rbuild-monitor") {
            return pid;
        }
        assert!(pid > 1, "no monitor");
    }
}

#[test]
fn an_interface_has_addresses_of_the_link_beside_its_own() {
    let scene = Scene::with_busybox();
    scene.rb(&["network", "create", "linked"]).ok();
    let run = |network: &str, address: &str| {
        scene.rb(&[
            "run",
            "--rm",
            "--network",
            network,
            "--link-local-ip",
            address,
            "busybox",
            "ip",
            "address",
            "show",
            "eth0",
        ])
    };
    let out = run("linked", "169.254.7.9").ok().out;
    assert!(out.contains("inet 169.254.7.9/16") && out.matches("inet ").count() == 2, "{out}");
    run("bridge", "169.254.7.9").refused(125, &["supported on user defined networks only"]);
    run("linked", "10.1.2.3").refused(125, &["invalid link-local address: 10.1.2.3", "--link-local-ip"]);
    scene.rb(&["network", "rm", "linked"]).ok();
}

/// Who removes the state directory by hand leaves bridges: the next command that makes a network takes them away.
#[test]
fn bridges_without_a_state_directory_are_removed() {
    let scene = Scene::with_busybox();
    let id = scene.rb(&["network", "create", "left"]).ok().out;
    let bridge = std::path::Path::new("/sys/class/net").join(format!("rb-{}", &id[..12]));
    let note = std::fs::read_to_string(bridge.join("ifalias")).expect("the bridge says whose it is");
    assert_eq!(note.trim_end_matches(['\n', '\0']), format!("rbuild {}", scene.root().display()));
    std::fs::remove_dir_all(scene.root()).expect("by hand");
    let other = Scene::new();
    let net = Net::create(&other, "next", &[]);
    assert!(!bridge.exists(), "it is gone");
    drop(net);
}
