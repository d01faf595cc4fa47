//! nf_tables on the wire: tables, chains and the few expressions that our rules are made of.
//!
//! A [`Batch`] is atomic: the kernel takes all of it or nothing. Rules are written as in `nft`'s own language, one
//! method for each expression, so that `nft list ruleset` reads like the code.

use std::io;
use std::net::Ipv4Addr;

use rustix::net::netlink::NETFILTER;

use super::netlink::{ACK, APPEND, CREATE, EXCLUSIVE, Messages, REQUEST, Socket};

const SUBSYSTEM: u16 = 10 << 8;
const NEW_TABLE: u16 = SUBSYSTEM;
pub(super) const NEW_CHAIN: u16 = SUBSYSTEM | 3;
pub(super) const GET_CHAIN: u16 = SUBSYSTEM | 4;
const DELETE_CHAIN: u16 = SUBSYSTEM | 5;
const NEW_RULE: u16 = SUBSYSTEM | 6;
pub(super) const GET_RULE: u16 = SUBSYSTEM | 7;
const BATCH_BEGIN: u16 = 0x10;
const BATCH_END: u16 = 0x11;

pub(super) const PRIORITY_DESTINATION_NAT: i32 = -100;
pub(super) const PRIORITY_FILTER: i32 = 0;
pub(super) const PRIORITY_SOURCE_NAT: i32 = 100;
const TABLE_OWNED: u32 = 2;
pub(super) const VERDICT_DROP: u32 = 0;
pub(super) const VERDICT_ACCEPT: u32 = 1;
const META_L4_PROTOCOL: u32 = 16;
const CT_STATE: u32 = 0;
const CT_STATUS: u32 = 2;
const CT_ESTABLISHED_OR_RELATED: u32 = 2 | 4;
const CT_DESTINATION_CHANGED: u32 = 1 << 5;
const ADDRESS_TYPE_LOCAL: u32 = 2;

/// Which packets a table sees.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Family {
    Ip4 = 2,
    Ip6 = 10,
}

/// The place in a packet's way that a base chain hooks into.
#[derive(Clone, Copy, Debug)]
pub(super) enum Hook {
    Prerouting = 0,
    Forward = 2,
    Output = 3,
    Postrouting = 4,
}

/// Which interface of a packet is meant.
#[derive(Clone, Copy, Debug)]
pub(super) enum Side {
    In = 6,
    Out = 7,
}

/// Opens a socket for these messages in the calling thread's network namespace.
pub(super) fn open() -> io::Result<Socket> {
    Socket::open(Some(NETFILTER))
}

/// The kernel was built without netfilter or nf_tables, or is too old for what was asked.
pub(super) fn unsupported(error: &io::Error) -> bool {
    // EPROTONOSUPPORT, EINVAL (no such subsystem), EOPNOTSUPP
    matches!(error.raw_os_error(), Some(93 | 22 | 95))
}

/// The header of every message.
pub(super) fn header(family: u8, resource: u16) -> [u8; 4] {
    let [high, low] = resource.to_be_bytes();
    [family, 0, high, low]
}

/// Changes that happen together.
pub(super) struct Batch {
    messages: Messages,
    family: Family,
    table: String,
}

impl Batch {
    /// Changes of one table, which has to exist or be made by [`table`](Self::table).
    pub(super) fn new(family: Family, table: &str) -> Self {
        let mut messages = Messages::new();
        messages.message(BATCH_BEGIN, REQUEST, &header(0, SUBSYSTEM >> 8));
        Self { messages, family, table: table.to_owned() }
    }

    /// Makes the table unless it is there.
    pub(super) fn table(&mut self) -> &mut Self {
        self.messages.message(NEW_TABLE, ACK | CREATE, &header(self.family as u8, 0)).text(1, &self.table);
        self
    }

    /// Makes a table that nobody else may change and that goes with the socket which sends the batch.
    pub(super) fn owned_table(&mut self) -> &mut Self {
        self.messages
            .message(NEW_TABLE, ACK | CREATE | EXCLUSIVE, &header(self.family as u8, 0))
            .text(1, &self.table)
            .network_number(2, TABLE_OWNED);
        self
    }

    /// Makes a chain that packets enter at a hook, accepting what no rule decides; `AlreadyExists` when it is there.
    pub(super) fn base_chain(&mut self, name: &str, kind: &str, hook: Hook, priority: i32) -> &mut Self {
        self.messages
            .message(NEW_CHAIN, ACK | CREATE | EXCLUSIVE, &header(self.family as u8, 0))
            .text(1, &self.table)
            .text(3, name)
            .nested(4, |m| {
                m.network_number(1, hook as u32).network_number(2, priority as u32);
            })
            .network_number(5, VERDICT_ACCEPT)
            .text(7, kind);
        self
    }

    /// Removes a chain with its rules.
    pub(super) fn remove_chain(&mut self, name: &str) -> &mut Self {
        self.messages.message(DELETE_CHAIN, ACK, &header(self.family as u8, 0)).text(1, &self.table).text(3, name);
        self
    }

    /// Puts a rule at the end of a chain.
    pub(super) fn rule(&mut self, chain: &str, expressions: impl FnOnce(&mut Rule<'_>)) -> &mut Self {
        self.place_rule(APPEND, chain, expressions)
    }

    /// Puts a rule at the head of a chain.
    pub(super) fn rule_at_head(&mut self, chain: &str, expressions: impl FnOnce(&mut Rule<'_>)) -> &mut Self {
        self.place_rule(0, chain, expressions)
    }

    fn place_rule(&mut self, place: u16, chain: &str, expressions: impl FnOnce(&mut Rule<'_>)) -> &mut Self {
        self.messages
            .message(NEW_RULE, ACK | CREATE | place, &header(self.family as u8, 0))
            .text(1, &self.table)
            .text(2, chain)
            .nested(4, |messages| expressions(&mut Rule { messages }));
        self
    }

    /// Has the kernel make the changes, all or none.
    pub(super) fn send(mut self, socket: &mut Socket) -> io::Result<()> {
        self.messages.message(BATCH_END, REQUEST, &header(0, SUBSYSTEM >> 8));
        socket.command(self.messages)
    }
}

/// The expressions of one rule, in order.
pub(super) struct Rule<'a> {
    messages: &'a mut Messages,
}

impl Rule<'_> {
    fn expression(&mut self, name: &str, data: impl FnOnce(&mut Messages)) -> &mut Self {
        self.messages.nested(1, |m| {
            m.text(1, name).nested(2, data);
        });
        self
    }

    /// Loads bytes of the packet: `base` 1 is the network header, 2 the transport header.
    fn payload(&mut self, base: u32, offset: u32, length: u32) -> &mut Self {
        self.expression("payload", |m| {
            m.network_number(1, 1).network_number(2, base).network_number(3, offset).network_number(4, length);
        })
    }

    fn compare(&mut self, equal: bool, value: &[u8]) -> &mut Self {
        self.expression("cmp", |m| {
            m.network_number(1, 1).network_number(2, u32::from(!equal)).nested(3, |m| {
                m.attribute(1, value);
            });
        })
    }

    fn mask(&mut self, mask: &[u8]) -> &mut Self {
        self.expression("bitwise", |m| {
            m.network_number(1, 1).network_number(2, 1).network_number(3, mask.len() as u32);
            m.nested(4, |m| {
                m.attribute(1, mask);
            });
            m.nested(5, |m| {
                m.attribute(1, &vec![0; mask.len()]);
            });
        })
    }

    fn load(&mut self, register: u32, value: &[u8]) -> &mut Self {
        self.expression("immediate", |m| {
            m.network_number(1, register).nested(2, |m| {
                m.attribute(1, value);
            });
        })
    }

    /// `ip saddr FIRST/MASK`, or of `ip6` by the length of the addresses.
    pub(super) fn source_in(&mut self, first: &[u8], mask: &[u8]) -> &mut Self {
        let offset = if first.len() == 4 { 12 } else { 8 };
        self.payload(1, offset, first.len() as u32).mask(mask).compare(true, first)
    }

    /// `ip saddr != ADDRESS`
    pub(super) fn source_not(&mut self, address: Ipv4Addr) -> &mut Self {
        self.payload(1, 12, 4).compare(false, &address.octets())
    }

    /// `ip daddr ADDRESS`
    pub(super) fn destination(&mut self, address: Ipv4Addr) -> &mut Self {
        self.payload(1, 16, 4).compare(true, &address.octets())
    }

    /// `ip daddr != 127.0.0.0/8`
    pub(super) fn destination_not_loopback(&mut self) -> &mut Self {
        self.payload(1, 16, 4).mask(&[255, 0, 0, 0]).compare(false, &[127, 0, 0, 0])
    }

    /// `fib daddr type local`
    pub(super) fn destination_here(&mut self) -> &mut Self {
        const DESTINATION: u32 = 2;
        const ADDRESS_TYPE: u32 = 3;
        self.expression("fib", |m| {
            m.network_number(1, 1).network_number(2, ADDRESS_TYPE).network_number(3, DESTINATION);
        })
        .compare(true, &ADDRESS_TYPE_LOCAL.to_ne_bytes())
    }

    /// `meta l4proto PROTOCOL th dport PORT`
    pub(super) fn port(&mut self, protocol: u8, port: u16) -> &mut Self {
        self.expression("meta", |m| {
            m.network_number(2, META_L4_PROTOCOL).network_number(1, 1);
        })
        .compare(true, &[protocol]);
        self.payload(2, 2, 2).compare(true, &port.to_be_bytes())
    }

    /// `iifname NAME` or `oifname NAME`, or their negation.
    pub(super) fn interface(&mut self, side: Side, name: &str, equal: bool) -> &mut Self {
        self.expression("meta", |m| {
            m.network_number(2, side as u32).network_number(1, 1);
        })
        .compare(equal, &interface_name(name))
    }

    /// `ct state established,related`
    pub(super) fn answering(&mut self) -> &mut Self {
        self.connection(CT_STATE, CT_ESTABLISHED_OR_RELATED)
    }

    /// `ct status dnat`
    pub(super) fn redirected(&mut self) -> &mut Self {
        self.connection(CT_STATUS, CT_DESTINATION_CHANGED)
    }

    fn connection(&mut self, key: u32, any_of: u32) -> &mut Self {
        self.expression("ct", |m| {
            m.network_number(2, key).network_number(1, 1);
        });
        self.mask(&any_of.to_ne_bytes()).compare(false, &[0; 4])
    }

    /// `masquerade`
    pub(super) fn masquerade(&mut self) {
        self.expression("masq", |_| {});
    }

    /// `dnat to ADDRESS:PORT`
    pub(super) fn redirect_to(&mut self, address: Ipv4Addr, port: u16) {
        const DESTINATION: u32 = 1;
        self.load(1, &address.octets()).load(2, &port.to_be_bytes()).expression("nat", |m| {
            m.network_number(1, DESTINATION).network_number(2, Family::Ip4 as u32);
            m.network_number(3, 1).network_number(4, 1).network_number(5, 2).network_number(6, 2);
        });
    }

    /// `counter`, as `iptables` writes it.
    pub(super) fn counter(&mut self) -> &mut Self {
        self.expression("counter", |m| {
            m.attribute(1, &[0; 8]).attribute(2, &[0; 8]);
        })
    }

    pub(super) fn verdict(&mut self, code: u32) {
        self.expression("immediate", |m| {
            m.network_number(1, 0).nested(2, |m| {
                m.nested(2, |m| {
                    m.network_number(1, code);
                });
            });
        });
    }
}

/// An interface's name as rules compare it.
pub(super) fn interface_name(name: &str) -> [u8; 16] {
    let mut bytes = [0; 16];
    let length = name.len().min(15);
    bytes[..length].copy_from_slice(&name.as_bytes()[..length]);
    bytes
}
