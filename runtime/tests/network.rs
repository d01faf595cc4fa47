//! Bridges, namespaces and the pool against the kernel, each test in a network namespace of its own: the test's thread
//! unshares one, and all that is made in it goes with the thread.

use std::net::{IpAddr, Ipv4Addr, SocketAddr, TcpListener, TcpStream, UdpSocket};
use std::os::fd::AsFd;
use std::process::Command;
use std::thread;
use std::time::{Duration, Instant};

use rbuild_runtime::network::{
    Bridge, BridgeOptions, Error, Namespace, Pool, PortRequest, Protocol, Published, Subnet,
};
use rustix::thread::{LinkNameSpaceType, move_into_link_name_space};

/// Runs the test in a fresh network namespace; does nothing for an ordinary user, who may not make one.
fn in_namespace(test: impl FnOnce() + Send + 'static) {
    if !rustix::process::geteuid().is_root() {
        return;
    }
    thread::spawn(move || {
        let own = Namespace::isolated().expect("a namespace");
        enter(&own);
        test();
    })
    .join()
    .unwrap_or_else(|panic| std::panic::resume_unwind(panic));
}

fn enter(namespace: &Namespace) {
    move_into_link_name_space(namespace.as_fd(), Some(LinkNameSpaceType::Network)).expect("setns");
}

/// Runs `work` inside the namespace.
fn inside<T: Send>(namespace: &Namespace, work: impl FnOnce() -> T + Send) -> T {
    thread::scope(|s| {
        s.spawn(|| {
            enter(namespace);
            work()
        })
        .join()
        .expect("the thread inside")
    })
}

fn output(program: &str, args: &[&str]) -> String {
    let output = Command::new(program).args(args).output().expect("a program of the test machine");
    String::from_utf8_lossy(&output.stdout).into_owned() + &String::from_utf8_lossy(&output.stderr)
}

fn default_bridge() -> Bridge {
    Bridge::ensure(&BridgeOptions::default()).expect("the bridge")
}

#[test]
fn two_namespaces_reach_each_other_and_the_host() {
    in_namespace(|| {
        let bridge = default_bridge();
        assert_eq!(bridge.gateway, Ipv4Addr::new(172, 17, 0, 1));
        let one = Namespace::attached(&bridge, None).expect("one");
        let two = Namespace::attached(&bridge, None).expect("two");
        let (a, b) = (one.endpoint().expect("attached"), two.endpoint().expect("attached"));
        assert_ne!(a.address, b.address);
        let listener = inside(&one, || TcpListener::bind((a.address, 80)).expect("bind"));
        let timeout = Duration::from_secs(5);
        inside(&two, || TcpStream::connect_timeout(&(a.address, 80).into(), timeout).map(|_| ())).expect("sibling");
        TcpStream::connect_timeout(&(a.address, 80).into(), timeout).expect("host");
        drop(listener);
        let routes = inside(&one, || output("ip", &["route"]));
        assert!(routes.contains("default via 172.17.0.1 dev eth0"), "{routes}");
        assert!(std::fs::read_to_string("/proc/sys/net/ipv4/ip_forward").is_ok_and(|v| v.trim() == "1"));
    });
}

#[test]
fn an_address_is_given_out_once_and_is_free_again_after_its_end() {
    in_namespace(|| {
        let options =
            BridgeOptions { subnet: Some(Subnet::around(Ipv4Addr::new(10, 9, 8, 0), 29)), ..BridgeOptions::default() };
        let bridge = Bridge::ensure(&options).expect("the bridge");
        let mut held: Vec<Namespace> =
            (0..5).map(|n| Namespace::attached(&bridge, None).unwrap_or_else(|e| panic!("{n}: {e}"))).collect();
        assert!(matches!(Namespace::attached(&bridge, None), Err(Error::Exhausted(_))));
        let last = held.pop().expect("five");
        let address = last.endpoint().expect("attached").address;
        assert!(matches!(Namespace::attached(&bridge, Some(address)), Err(Error::Taken(_))));
        assert!(matches!(Namespace::attached(&bridge, Some(bridge.gateway)), Err(Error::OutOfRange { .. })));
        drop(last);
        let until = Instant::now() + Duration::from_secs(10);
        let again = loop {
            match Namespace::attached(&bridge, Some(address)) {
                Err(Error::Taken(_)) if Instant::now() < until => thread::sleep(Duration::from_millis(10)),
                other => break other.expect("the address again"),
            }
        };
        assert_eq!(again.endpoint().expect("attached").address, address);
    });
}

#[test]
fn the_range_evades_what_is_there_and_the_rules_are_made_once() {
    in_namespace(|| {
        output("ip", &["link", "add", "other", "type", "bridge"]);
        output("ip", &["addr", "add", "172.17.5.1/24", "dev", "other"]);
        let bridges: Vec<Bridge> = (0..4).map(|_| default_bridge()).collect();
        assert!(bridges.iter().all(|b| b.subnet.to_string() == "172.18.0.0/16"), "{bridges:?}");
        let rules = output("nft", &["list", "table", "ip", "rbuild"]);
        assert_eq!(rules.matches("masquerade").count(), 1, "{rules}");
        assert!(rules.contains(r#"ip saddr 172.18.0.0/16 oifname != "rbuild0" masquerade"#), "{rules}");
        assert_eq!(rules.matches("drop\n").count(), 1, "{rules}");
    });
}

#[test]
fn packets_are_no_larger_than_the_way_out_takes_also_after_the_last_port_went() {
    in_namespace(|| {
        output("ip", &["link", "add", "out0", "mtu", "1280", "type", "bridge"]);
        output("ip", &["addr", "add", "192.0.2.2/24", "dev", "out0"]);
        output("ip", &["link", "set", "out0", "up"]);
        output("ip", &["route", "add", "default", "via", "192.0.2.1"]);
        for _ in 0..2 {
            let one = Namespace::attached(&default_bridge(), None).expect("one");
            let links = inside(&one, || output("ip", &["-o", "link", "show", "eth0"]));
            assert!(links.contains("mtu 1280"), "{links}");
            let host = one.endpoint().expect("attached").host_interface.clone();
            drop(one);
            output("ip", &["link", "del", &host]);
        }
    });
}

#[test]
fn many_at_once_agree_on_one_bridge() {
    in_namespace(|| {
        let bridges: Vec<Bridge> = thread::scope(|s| {
            let threads: Vec<_> = (0..8).map(|_| s.spawn(default_bridge)).collect();
            threads.into_iter().map(|t| t.join().expect("ensure")).collect()
        });
        assert!(bridges.iter().all(|b| b.subnet == bridges[0].subnet));
        let rules = output("nft", &["list", "table", "ip", "rbuild"]);
        assert_eq!(rules.matches("masquerade").count(), 1, "{rules}");
    });
}

#[test]
fn a_dropping_forward_chain_of_others_gets_our_accept_once() {
    in_namespace(|| {
        output("iptables", &["-P", "FORWARD", "DROP"]);
        default_bridge();
        default_bridge();
        let listed = output("iptables", &["-S", "FORWARD"]);
        assert!(listed.contains("-A FORWARD -i rbuild0 -j ACCEPT"), "{listed}");
        assert_eq!(listed.matches("rbuild0").count(), 2, "{listed}");
    });
}

#[test]
fn traffic_to_the_outside_is_masqueraded() {
    in_namespace(|| {
        // "Outside" is another namespace behind a bridge of another name, which knows no way back to ours.
        let outside = Bridge::ensure(&BridgeOptions {
            name: "uplink".into(),
            subnet: Some(Subnet::around(Ipv4Addr::new(192, 0, 2, 0), 24)),
            ..BridgeOptions::default()
        })
        .expect("uplink");
        // It stands for a net that is none of ours.
        output("nft", &["delete", "chain", "ip", "rbuild", "in_uplink_192.0.2.0_24"]);
        let server = Namespace::attached(&outside, None).expect("server");
        inside(&server, || output("ip", &["route", "del", "default"]));
        let address = server.endpoint().expect("attached").address;
        let listener = inside(&server, || TcpListener::bind((address, 8080)).expect("bind"));
        let client = Namespace::attached(&default_bridge(), None).expect("client");
        let timeout = Duration::from_secs(5);
        inside(&client, || TcpStream::connect_timeout(&(address, 8080).into(), timeout).map(|_| ())).expect("connect");
        let (_, peer) = listener.accept().expect("accepted");
        assert_eq!(peer.ip(), outside.gateway, "the peer is the bridge's host, not the container");
    });
}

#[test]
fn the_pool_gives_each_user_a_namespace_of_its_own() {
    in_namespace(|| {
        let pool = Pool::new(BridgeOptions::default(), 2);
        pool.warm();
        let taken: Vec<Namespace> = (0..6).map(|_| pool.take().expect("take")).collect();
        let mut addresses: Vec<_> = taken.iter().map(|n| n.endpoint().expect("attached").address).collect();
        addresses.sort();
        addresses.dedup();
        assert_eq!(addresses.len(), 6);
        drop((taken, pool));
        let until = Instant::now() + Duration::from_secs(10);
        while output("ip", &["-o", "link"]).contains("veth") {
            assert!(Instant::now() < until, "interfaces stay after the pool");
            thread::sleep(Duration::from_millis(20));
        }
    });
}

#[test]
fn an_isolated_namespace_has_loopback_only() {
    in_namespace(|| {
        let own = Namespace::isolated().expect("a namespace");
        let links = inside(&own, || output("ip", &["-o", "link"]));
        assert!(links.lines().count() == 1 && links.contains("lo: <LOOPBACK,UP"), "{links}");
    });
}

/// A server that sends each datagram back, from which address it came besides.
fn echo_datagrams(namespace: &Namespace, port: u16) {
    let socket = inside(namespace, || UdpSocket::bind((Ipv4Addr::UNSPECIFIED, port)).expect("bind"));
    thread::spawn(move || {
        let mut buffer = [0; 512];
        while let Ok((length, from)) = socket.recv_from(&mut buffer) {
            if length == 0 {
                return;
            }
            let _ = socket
                .send_to(format!("{} from {}", String::from_utf8_lossy(&buffer[..length]), from.ip()).as_bytes(), from);
        }
    });
}

fn ask_datagram(to: SocketAddr) -> String {
    let socket = UdpSocket::bind(if to.is_ipv4() { "0.0.0.0:0" } else { "[::]:0" }).expect("bind");
    socket.set_read_timeout(Some(Duration::from_millis(500))).expect("timeout");
    // The connected socket takes answers of nobody else than who was asked.
    socket.connect(to).expect("connect");
    let mut buffer = [0; 512];
    for _ in 0..20 {
        socket.send(b"hello").expect("send");
        if let Ok(length) = socket.recv(&mut buffer) {
            return String::from_utf8_lossy(&buffer[..length]).into_owned();
        }
    }
    "nothing".to_owned()
}

#[test]
fn datagrams_reach_a_published_port_from_everywhere() {
    in_namespace(|| {
        let bridge = default_bridge();
        let server = Namespace::attached(&bridge, None).expect("server");
        let neighbour = Namespace::attached(&bridge, None).expect("neighbour");
        let endpoint = server.endpoint().expect("attached");
        output("ip", &["link", "add", "out0", "type", "bridge"]);
        output("ip", &["addr", "add", "192.0.2.2/24", "dev", "out0"]);
        output("ip", &["link", "set", "out0", "up"]);
        echo_datagrams(&server, 5000);
        let request = PortRequest {
            container_port: 5000,
            protocol: Protocol::Udp,
            host_ip: None,
            host_ports: Some((7000, 7000)),
        };
        let published = Published::open("test", &[request], endpoint).expect("published");
        let to = |ip: &str| SocketAddr::new(ip.parse::<IpAddr>().expect("an address"), 7000);
        let gateway = bridge.gateway;
        assert_eq!(ask_datagram(to("127.0.0.1")), format!("hello from {gateway}"));
        assert_eq!(ask_datagram(to("192.0.2.2")), "hello from 192.0.2.2");
        let from = inside(&neighbour, || ask_datagram(to("192.0.2.2")));
        assert_eq!(from, format!("hello from {gateway}"), "a neighbour asks the host's other address");
        let own = inside(&server, || ask_datagram(to(&gateway.to_string())));
        assert_eq!(own, format!("hello from {gateway}"), "the container asks itself");
        assert!(published.bindings().len() > 1, "IPv6 too: {:?}", published.bindings());
        assert_eq!(ask_datagram(to("::1")), format!("hello from {gateway}"));
        assert_eq!(output("nft", &["list", "tables"]).matches("rbuild_test").count(), 1);
        drop(published);
        assert_eq!(output("nft", &["list", "tables"]).matches("rbuild_test").count(), 0);
    });
}

#[test]
fn a_bridge_lets_in_what_was_asked_for_or_published_and_nothing_else() {
    in_namespace(|| {
        let other = Bridge::ensure(&BridgeOptions {
            name: "other".into(),
            subnet: Some(Subnet::around(Ipv4Addr::new(10, 9, 8, 0), 24)),
            ..BridgeOptions::default()
        })
        .expect("other");
        let server = Namespace::attached(&default_bridge(), None).expect("server");
        let stranger = Namespace::attached(&other, None).expect("stranger");
        let endpoint = server.endpoint().expect("attached");
        let listener = inside(&server, || TcpListener::bind((Ipv4Addr::UNSPECIFIED, 80)).expect("bind"));
        thread::spawn(move || while listener.accept().is_ok() {});
        let reaches = |address: SocketAddr, patience| {
            inside(&stranger, || TcpStream::connect_timeout(&address, Duration::from_millis(patience)).is_ok())
        };
        assert!(!reaches((endpoint.address, 80).into(), 300), "networks are apart");
        let request =
            PortRequest { container_port: 80, protocol: Protocol::Tcp, host_ip: None, host_ports: Some((7000, 7000)) };
        let _published = Published::open("test", &[request], endpoint).expect("published");
        assert!(reaches((other.gateway, 7000).into(), 5000), "published ports are for all");
        assert!(!reaches((endpoint.address, 80).into(), 300), "by the host's address only");
    });
}
