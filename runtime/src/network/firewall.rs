//! The rules a bridge needs: masquerade what leaves it, and let in what belongs to it.
//!
//! They are nf_tables messages of our own, in a table of our own, made in one atomic batch; a chain's presence is
//! asked for by one message, so the check costs nothing on the way of every container. A bridge lets in from elsewhere
//! what answers a connection that began inside and what was published, nothing else: networks are apart from each other and
//! from the machine's neighbours by the same rule. An internal network neither sends nor takes anything.
//!
//! An accept in our table cannot
//! overrule a drop in another one (each base chain judges on its own), so where somebody, docker for one, set the policy of
//! `ip filter FORWARD` to drop, accepting rules go to the head of that chain, in the form `iptables` writes and
//! lists itself. The `iptables` program is started only where the kernel has no nf_tables, and for rules of the
//! older kind, which nf_tables cannot see; both only when the bridge is made.

use std::io;
use std::process::{Command, Stdio};

use super::netlink::{ACK, DUMP, Messages, REQUEST, Socket, attributes};
use super::nft::{self, Batch, Family, Hook, Side, VERDICT_ACCEPT, VERDICT_DROP};
use super::{Error, Subnet, Subnet6};

const TABLE: &str = "rbuild";

/// What filters packets in this kernel, as far as it needs no program.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Filter {
    Nftables,
    /// No nf_tables: the program `iptables` is asked.
    Missing,
}

/// Which filter the calling thread's network has.
pub fn packet_filter() -> Filter {
    if nft::open().is_ok() { Filter::Nftables } else { Filter::Missing }
}

/// What the rules are about.
#[derive(Clone, Copy)]
pub(super) struct Rules<'a> {
    pub(super) bridge: &'a str,
    pub(super) subnet: Subnet,
    pub(super) subnet6: Option<Subnet6>,
    /// Nothing goes in or out.
    pub(super) internal: bool,
    /// What leaves it keeps its address.
    pub(super) routed: bool,
}

impl Rules<'_> {
    /// Chains are named after bridge and range, so that a bridge made again with another range gets its own.
    fn chain(&self, role: &str) -> String {
        format!("{role}_{}_{}_{}", self.bridge, self.subnet.first(), self.subnet.prefix())
    }

    fn families(&self) -> impl Iterator<Item = Family> {
        [Family::Ip4].into_iter().chain(self.subnet6.map(|_| Family::Ip6))
    }

    /// Sees to it that the rules are there. Two messages when they are.
    pub(super) fn ensure(&self) -> Result<(), Error> {
        let mut socket = match nft::open() {
            Ok(socket) => socket,
            Err(error) if nft::unsupported(&error) => return self.by_program("iptables"),
            Err(error) => return Err(Error::kernel("open a netfilter socket", error)),
        };
        let state = match state(&mut socket, &self.chain("in")) {
            Ok(state) => state,
            Err(error) if nft::unsupported(&error) => return self.by_program("iptables"),
            Err(error) => return Err(Error::kernel("read the firewall", error)),
        };
        if !state.ours {
            for family in self.families() {
                match self.create(&mut socket, family) {
                    Ok(()) => {}
                    // Another process made it meanwhile.
                    Err(error) if error.kind() == io::ErrorKind::AlreadyExists => {}
                    Err(error) if nft::unsupported(&error) => return self.by_program("iptables"),
                    Err(error) => return Err(Error::kernel("make the firewall rules", error)),
                }
            }
            if legacy_filter_in_use() && !self.internal {
                // Best effort: the older tables may be there with an accepting policy and no program to change them.
                if let Err(error) = self.by_program("iptables-legacy") {
                    tracing::debug!(%error, "older firewall rules left as they are");
                }
            }
        }
        if state.forward_drops && !self.internal && !self.accepted(&mut socket)? {
            self.accept(&mut socket).map_err(|e| Error::kernel("accept forwarding in ip filter FORWARD", e))?;
        }
        Ok(())
    }

    /// Removes the rules. What is not there is no failure.
    pub(super) fn remove(&self) -> Result<(), Error> {
        let failed = |e| Error::kernel(format!("remove the firewall rules of {}", self.bridge), e);
        let mut socket = match nft::open() {
            Ok(socket) => socket,
            Err(error) if nft::unsupported(&error) => return self.remove_by_program(),
            Err(error) => return Err(failed(error)),
        };
        for family in self.families() {
            for role in ["out", "in"] {
                let mut batch = Batch::new(family, TABLE);
                batch.remove_chain(&self.chain(role));
                match batch.send(&mut socket) {
                    Err(error) if error.kind() == io::ErrorKind::NotFound => {}
                    Err(error) if nft::unsupported(&error) => return self.remove_by_program(),
                    other => other.map_err(failed)?,
                }
            }
        }
        if !self.internal && self.accepted(&mut socket)? {
            self.remove_by_program()?;
        }
        Ok(())
    }

    fn masquerade(&self, batch: &mut Batch, chain: &str, family: Family) {
        batch.base_chain(chain, "nat", Hook::Postrouting, nft::PRIORITY_SOURCE_NAT);
        batch.rule(chain, |rule| {
            match (family, self.subnet6) {
                (Family::Ip6, Some(subnet)) => {
                    rule.source_in(&subnet.first().octets(), &subnet.mask().octets());
                }
                _ => {
                    rule.source_in(&self.subnet.first().octets(), &self.subnet.mask().octets());
                }
            }
            rule.interface(Side::Out, self.bridge, false).masquerade();
        });
    }

    fn create(&self, socket: &mut Socket, family: Family) -> io::Result<()> {
        let (out, into) = (self.chain("out"), self.chain("in"));
        let mut batch = Batch::new(family, TABLE);
        batch.table();
        batch.base_chain(&into, "filter", Hook::Forward, nft::PRIORITY_FILTER);
        if self.internal {
            batch.rule(&into, |rule| {
                rule.interface(Side::In, self.bridge, true)
                    .interface(Side::Out, self.bridge, false)
                    .verdict(VERDICT_DROP);
            });
        } else {
            if !self.routed {
                self.masquerade(&mut batch, &out, family);
            }
            batch.rule(&into, |rule| {
                rule.interface(Side::Out, self.bridge, true).answering().verdict(VERDICT_ACCEPT);
            });
            batch.rule(&into, |rule| {
                rule.interface(Side::Out, self.bridge, true).redirected().verdict(VERDICT_ACCEPT);
            });
        }
        batch.rule(&into, |rule| {
            rule.interface(Side::Out, self.bridge, true).interface(Side::In, self.bridge, false).verdict(VERDICT_DROP);
        });
        batch.send(socket)
    }

    /// Puts the two accepting rules at the head of `ip filter FORWARD`.
    fn accept(&self, socket: &mut Socket) -> io::Result<()> {
        let mut batch = Batch::new(Family::Ip4, "filter");
        for side in [Side::In, Side::Out] {
            batch.rule_at_head("FORWARD", |rule| {
                rule.interface(side, self.bridge, true).counter().verdict(VERDICT_ACCEPT);
            });
        }
        batch.send(socket)
    }

    /// Whether `ip filter FORWARD` has a rule that compares an interface with our bridge's name.
    fn accepted(&self, socket: &mut Socket) -> Result<bool, Error> {
        let mut request = Messages::new();
        let header = nft::header(Family::Ip4 as u8, 0);
        request.message(nft::GET_RULE, REQUEST | DUMP, &header).text(1, "filter").text(2, "FORWARD");
        let name = nft::interface_name(self.bridge);
        let mut found = false;
        socket
            .exchange(request, |_, _, payload| {
                found |= payload.windows(name.len()).any(|w| w == name);
            })
            .map_err(|e| Error::kernel("list ip filter FORWARD", e))?;
        Ok(found)
    }

    /// The same rules by the `iptables` program, except that networks are not kept apart: who asks for that is refused.
    fn by_program(&self, program: &'static str) -> Result<(), Error> {
        if self.internal || self.subnet6.is_some() {
            return Err(Error::NeedsNftables);
        }
        for rule in self.program_rules(&self.subnet.to_string()) {
            if !iptables(program, "-C", &rule)? && !iptables(program, "-I", &rule)? {
                return Err(Error::Program { program });
            }
        }
        Ok(())
    }

    fn remove_by_program(&self) -> Result<(), Error> {
        for rule in self.program_rules(&self.subnet.to_string()) {
            if iptables("iptables", "-C", &rule)? && !iptables("iptables", "-D", &rule)? {
                return Err(Error::Program { program: "iptables" });
            }
        }
        Ok(())
    }

    fn program_rules<'a>(&'a self, subnet: &'a str) -> Vec<Vec<&'a str>> {
        let all = vec![
            vec!["-t", "nat", "POSTROUTING", "-s", subnet, "!", "-o", self.bridge, "-j", "MASQUERADE"],
            vec!["-t", "filter", "FORWARD", "-i", self.bridge, "-j", "ACCEPT"],
            vec!["-t", "filter", "FORWARD", "-o", self.bridge, "-j", "ACCEPT"],
        ];
        all.into_iter().skip(usize::from(self.routed)).collect()
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
    let header = nft::header(Family::Ip4 as u8, 0);
    for (table, chain) in [(TABLE, chain), ("filter", "FORWARD")] {
        request.message(nft::GET_CHAIN, ACK, &header).text(1, table).text(3, chain);
    }
    let mut state = State { ours: false, forward_drops: false };
    let answers = socket.exchange(request, |position, kind, payload| {
        if kind != nft::NEW_CHAIN || payload.len() < 4 {
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

/// Whether the older iptables has a filter table in this namespace.
fn legacy_filter_in_use() -> bool {
    std::fs::read_to_string("/proc/net/ip_tables_names").is_ok_and(|names| names.lines().any(|name| name == "filter"))
}
