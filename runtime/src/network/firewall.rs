//! The two rules a bridge needs: masquerade what leaves it, and let what it forwards through.
//!
//! They are nf_tables messages of our own, in a table of our own, made in one atomic batch; a chain's presence is
//! asked for by one message, so the check costs nothing on the way of every container. An accept in our table cannot
//! overrule a drop in another one (each base chain judges on its own), so where somebody, docker for one, set the policy of
//! `ip filter FORWARD` to drop, the accepting rules go to the head of that chain, in the form `iptables` writes and
//! lists itself. The `iptables` program is started only where the kernel has no nf_tables, and for rules of the
//! older kind, which nf_tables cannot see; both only when the bridge is made.

use std::io;
use std::net::Ipv4Addr;
use std::process::{Command, Stdio};

use rustix::net::netlink::NETFILTER;

use super::netlink::{ACK, APPEND, CREATE, DUMP, Messages, REQUEST, Socket, attributes};
use super::{Error, Subnet};

const SUBSYSTEM: u16 = 10 << 8;
const NEW_TABLE: u16 = SUBSYSTEM;
const NEW_CHAIN: u16 = SUBSYSTEM | 3;
const GET_CHAIN: u16 = SUBSYSTEM | 4;
const NEW_RULE: u16 = SUBSYSTEM | 6;
const GET_RULE: u16 = SUBSYSTEM | 7;
const BATCH_BEGIN: u16 = 0x10;
const BATCH_END: u16 = 0x11;

const IPV4: u8 = 2;
const TABLE: &str = "rbuild";
const HOOK_FORWARD: u32 = 2;
const HOOK_POSTROUTING: u32 = 4;
const PRIORITY_FILTER: i32 = 0;
const PRIORITY_SOURCE_NAT: i32 = 100;
const VERDICT_DROP: u32 = 0;
const VERDICT_ACCEPT: u32 = 1;
const META_IN: u32 = 6;
const META_OUT: u32 = 7;

/// What the rules are about.
#[derive(Clone, Copy)]
pub(super) struct Rules<'a> {
    pub(super) bridge: &'a str,
    pub(super) subnet: Subnet,
}

impl Rules<'_> {
    /// Chains are named after bridge and range, so that a bridge made again with another range gets its own.
    fn chain(&self, role: &str) -> String {
        format!("{role}_{}_{}_{}", self.bridge, self.subnet.first(), self.subnet.prefix())
    }

    /// Sees to it that the rules are there. Two messages when they are.
    pub(super) fn ensure(&self) -> Result<(), Error> {
        let mut socket = match Socket::open(Some(NETFILTER)) {
            Ok(socket) => socket,
            Err(error) if unsupported(&error) => return self.by_program("iptables"),
            Err(error) => return Err(Error::kernel("open a netfilter socket", error)),
        };
        let state = match state(&mut socket, &self.chain("nat")) {
            Ok(state) => state,
            Err(error) if unsupported(&error) => return self.by_program("iptables"),
            Err(error) => return Err(Error::kernel("read the firewall", error)),
        };
        if !state.ours {
            match self.create(&mut socket) {
                Ok(()) => {}
                // Another process made it meanwhile.
                Err(error) if error.kind() == io::ErrorKind::AlreadyExists => {}
                Err(error) if unsupported(&error) => return self.by_program("iptables"),
                Err(error) => return Err(Error::kernel("make the masquerading rules", error)),
            }
            if legacy_filter_in_use() {
                // Best effort: the older tables may be there with an accepting policy and no program to change them.
                if let Err(error) = self.by_program("iptables-legacy") {
                    tracing::debug!(%error, "older firewall rules left as they are");
                }
            }
        }
        if state.forward_drops && !self.accepted(&mut socket)? {
            self.accept(&mut socket).map_err(|e| Error::kernel("accept forwarding in ip filter FORWARD", e))?;
        }
        Ok(())
    }

    fn create(&self, socket: &mut Socket) -> io::Result<()> {
        let (nat, forward) = (self.chain("nat"), self.chain("forward"));
        let mut batch = Messages::new();
        batch.message(BATCH_BEGIN, REQUEST, &header(0, SUBSYSTEM >> 8));
        batch.message(NEW_TABLE, ACK | CREATE, &header(IPV4, 0)).text(1, TABLE);
        base_chain(&mut batch, &nat, "nat", HOOK_POSTROUTING, PRIORITY_SOURCE_NAT);
        base_chain(&mut batch, &forward, "filter", HOOK_FORWARD, PRIORITY_FILTER);
        rule(&mut batch, APPEND, TABLE, &nat, |m| {
            source_in(m, self.subnet);
            interface(m, META_OUT, self.bridge, false);
            expression(m, "masq", |_| {});
        });
        for direction in [META_IN, META_OUT] {
            rule(&mut batch, APPEND, TABLE, &forward, |m| {
                interface(m, direction, self.bridge, true);
                verdict(m, VERDICT_ACCEPT);
            });
        }
        batch.message(BATCH_END, REQUEST, &header(0, SUBSYSTEM >> 8));
        socket.command(batch)
    }

    /// Puts the two accepting rules at the head of `ip filter FORWARD`.
    fn accept(&self, socket: &mut Socket) -> io::Result<()> {
        let mut batch = Messages::new();
        batch.message(BATCH_BEGIN, REQUEST, &header(0, SUBSYSTEM >> 8));
        for direction in [META_IN, META_OUT] {
            // Neither APPEND nor a position: at the head.
            rule(&mut batch, 0, "filter", "FORWARD", |m| {
                interface(m, direction, self.bridge, true);
                expression(m, "counter", |m| {
                    m.attribute(1, &[0; 8]).attribute(2, &[0; 8]);
                });
                verdict(m, VERDICT_ACCEPT);
            });
        }
        batch.message(BATCH_END, REQUEST, &header(0, SUBSYSTEM >> 8));
        socket.command(batch)
    }

    /// Whether `ip filter FORWARD` has a rule that compares an interface with our bridge's name.
    fn accepted(&self, socket: &mut Socket) -> Result<bool, Error> {
        let mut request = Messages::new();
        request.message(GET_RULE, REQUEST | DUMP, &header(IPV4, 0)).text(1, "filter").text(2, "FORWARD");
        let name = interface_name(self.bridge);
        let mut found = false;
        socket
            .exchange(request, |_, _, payload| {
                found |= payload.windows(name.len()).any(|w| w == name);
            })
            .map_err(|e| Error::kernel("list ip filter FORWARD", e))?;
        Ok(found)
    }

    /// The same rules by the `iptables` program.
    fn by_program(&self, program: &'static str) -> Result<(), Error> {
        let subnet = self.subnet.to_string();
        let rules: [&[&str]; 3] = [
            &["-t", "nat", "POSTROUTING", "-s", &subnet, "!", "-o", self.bridge, "-j", "MASQUERADE"],
            &["-t", "filter", "FORWARD", "-i", self.bridge, "-j", "ACCEPT"],
            &["-t", "filter", "FORWARD", "-o", self.bridge, "-j", "ACCEPT"],
        ];
        for rule in rules {
            if !iptables(program, "-C", rule)? && !iptables(program, "-I", rule)? {
                return Err(Error::Program { program });
            }
        }
        Ok(())
    }
}

/// Runs the program by absolute path with no environment; whether it succeeded.
fn iptables(program: &'static str, action: &str, rule: &[&str]) -> Result<bool, Error> {
    let path = ["/usr/sbin/", "/sbin/", "/usr/bin/", "/usr/local/sbin/"]
        .iter()
        .map(|folder| format!("{folder}{program}"))
        .find(|path| std::path::Path::new(path).exists())
        .ok_or(Error::NoFirewall)?;
    let status = Command::new(path)
        .env_clear()
        .args(["-w", rule[0], rule[1], action])
        .args(&rule[2..])
        .stdin(Stdio::null())
        .stdout(Stdio::null())
        .stderr(Stdio::null())
        .status()
        .map_err(|e| Error::kernel(program, e))?;
    Ok(status.success())
}

struct State {
    ours: bool,
    forward_drops: bool,
}

/// Asks for our chain and for the policy of `ip filter FORWARD` in one go.
fn state(socket: &mut Socket, chain: &str) -> io::Result<State> {
    let mut request = Messages::new();
    for (table, chain) in [(TABLE, chain), ("filter", "FORWARD")] {
        request.message(GET_CHAIN, ACK, &header(IPV4, 0)).text(1, table).text(3, chain);
    }
    let mut state = State { ours: false, forward_drops: false };
    let answers = socket.exchange(request, |position, kind, payload| {
        if kind != NEW_CHAIN || payload.len() < 4 {
            return;
        }
        if position == 0 {
            state.ours = true;
        } else {
            let policy = attributes(&payload[4..]).find(|(k, _)| *k == 5);
            state.forward_drops = policy.is_some_and(|(_, v)| v == VERDICT_DROP.to_be_bytes());
        }
    })?;
    for answer in answers {
        match answer {
            Err(error) if error.kind() == io::ErrorKind::NotFound => {}
            other => other?,
        }
    }
    Ok(state)
}

/// The kernel was built without netfilter or nf_tables.
fn unsupported(error: &io::Error) -> bool {
    // EPROTONOSUPPORT, EINVAL (no such subsystem), EOPNOTSUPP
    matches!(error.raw_os_error(), Some(93 | 22 | 95))
}

/// Whether the older iptables has a filter table in this namespace.
fn legacy_filter_in_use() -> bool {
    std::fs::read_to_string("/proc/net/ip_tables_names").is_ok_and(|names| names.lines().any(|name| name == "filter"))
}

fn header(family: u8, resource: u16) -> [u8; 4] {
    let [high, low] = resource.to_be_bytes();
    [family, 0, high, low]
}

fn base_chain(batch: &mut Messages, name: &str, kind: &str, hook: u32, priority: i32) {
    batch
        .message(NEW_CHAIN, ACK | CREATE | super::netlink::EXCLUSIVE, &header(IPV4, 0))
        .text(1, TABLE)
        .text(3, name)
        .nested(4, |m| {
            m.network_number(1, hook).network_number(2, priority as u32);
        })
        .network_number(5, VERDICT_ACCEPT)
        .text(7, kind);
}

fn rule(batch: &mut Messages, place: u16, table: &str, chain: &str, expressions: impl FnOnce(&mut Messages)) {
    batch
        .message(NEW_RULE, ACK | CREATE | place, &header(IPV4, 0))
        .text(1, table)
        .text(2, chain)
        .nested(4, expressions);
}

fn expression(m: &mut Messages, name: &str, data: impl FnOnce(&mut Messages)) {
    m.nested(1, |m| {
        m.text(1, name).nested(2, data);
    });
}

/// `ip saddr SUBNET`
fn source_in(m: &mut Messages, subnet: Subnet) {
    expression(m, "payload", |m| {
        m.network_number(1, 1).network_number(2, 1).network_number(3, 12).network_number(4, 4);
    });
    expression(m, "bitwise", |m| {
        m.network_number(1, 1).network_number(2, 1).network_number(3, 4);
        m.nested(4, |m| {
            m.attribute(1, &subnet.mask().octets());
        });
        m.nested(5, |m| {
            m.attribute(1, &Ipv4Addr::UNSPECIFIED.octets());
        });
    });
    compare(m, true, &subnet.first().octets());
}

/// `iifname NAME` or `oifname NAME`, or their negation.
fn interface(m: &mut Messages, key: u32, name: &str, equal: bool) {
    expression(m, "meta", |m| {
        m.network_number(2, key).network_number(1, 1);
    });
    compare(m, equal, &interface_name(name));
}

fn interface_name(name: &str) -> [u8; 16] {
    let mut bytes = [0; 16];
    let length = name.len().min(15);
    bytes[..length].copy_from_slice(&name.as_bytes()[..length]);
    bytes
}

fn compare(m: &mut Messages, equal: bool, value: &[u8]) {
    expression(m, "cmp", |m| {
        m.network_number(1, 1).network_number(2, u32::from(!equal)).nested(3, |m| {
            m.attribute(1, value);
        });
    });
}

fn verdict(m: &mut Messages, code: u32) {
    expression(m, "immediate", |m| {
        m.network_number(1, 0).nested(2, |m| {
            m.nested(2, |m| {
                m.network_number(1, code);
            });
        });
    });
}
