//! `EXPOSE`: ports that a container listens on.

use rbuild_oci::EmptyObject;

use super::input::Input;
use super::{Instruction, Text};
use crate::Diagnostic;
use crate::lint::{invalid_format, proto_casing};
use crate::lower::stage::StageRun;

#[derive(Debug, Clone)]
pub(crate) struct Expose(Vec<Text>);

pub(super) fn read(input: &mut Input<'_>) -> Option<Instruction> {
    let mut ports = input.bare_words()?;
    ports.sort_by(|a, b| a.value.cmp(&b.value));
    Some(Instruction::Expose(Expose(ports)))
}

impl Expose {
    pub(super) fn lower(&self, stage: &mut StageRun<'_, '_>) -> Result<(), Diagnostic> {
        let mut exposed = Vec::new();
        for text in &self.0 {
            for word in stage.expand_words(text)? {
                let ports = Ports::parse(&word).map_err(|problem| problem.at(text.span))?;
                if ports.published {
                    stage.warn([invalid_format(&word).at(text.span)]);
                }
                stage.warn(proto_casing(&word).map(|warning| warning.at(text.span)));
                exposed.extend((ports.first..=ports.last).map(|port| format!("{port}/{}", ports.protocol)));
            }
        }
        for port in &exposed {
            stage.state.config.exposed_ports.insert(port.clone(), EmptyObject {});
        }
        stage.metadata(format!("EXPOSE [{}]", exposed.join(" ")));
        Ok(())
    }
}

/// `[ip:][host-port:]first[-last][/protocol]`.
struct Ports {
    first: u16,
    last: u16,
    protocol: &'static str,
    /// Whether there was an address or a port of the host, which mean nothing here.
    published: bool,
}

impl Ports {
    fn parse(text: &str) -> Result<Ports, Diagnostic> {
        let refuse = |message: String| Diagnostic::error(message).expected("port[-port][/protocol]");
        let (outer, inner) = match text.rsplit_once(':') {
            Some((outer, inner)) => (Some(outer), inner),
            None => (None, text),
        };
        let (range, protocol) = inner.split_once('/').unwrap_or((inner, ""));
        if range.is_empty() {
            return Err(refuse(format!("invalid port: {text:?}: no port specified")));
        }
        let protocol = match protocol.to_ascii_lowercase().as_str() {
            "" | "tcp" => "tcp",
            "udp" => "udp",
            "sctp" => "sctp",
            _ => return Err(refuse(format!("invalid port: {text:?}: invalid proto: {protocol}"))),
        };
        let (first, last) = port_range(range).ok_or_else(|| refuse(format!("invalid containerPort: {range}")))?;
        if let Some(outer) = outer {
            check_published(outer, last - first).map_err(refuse)?;
        }
        Ok(Ports { first, last, protocol, published: outer.is_some() })
    }
}

fn port_range(text: &str) -> Option<(u16, u16)> {
    let (first, last) = text.split_once('-').unwrap_or((text, text));
    let number = |text: &str| text.bytes().all(|b| b.is_ascii_digit()).then(|| text.parse().ok()).flatten();
    Some((number(first)?, number(last)?)).filter(|(first, last): &(u16, u16)| first <= last)
}

/// Checks `[ip:]host-port`.
fn check_published(outer: &str, count: u16) -> Result<(), String> {
    let (ip, host) = outer.rsplit_once(':').unwrap_or(("", outer));
    let bare = ip.strip_prefix('[').and_then(|ip| ip.strip_suffix(']')).unwrap_or(ip);
    if !bare.is_empty() && bare.parse::<std::net::IpAddr>().is_err() {
        return Err(format!("invalid IP address: {bare}"));
    }
    if host.is_empty() {
        return Ok(());
    }
    let (first, last) = port_range(host).ok_or_else(|| format!("invalid hostPort: {host}"))?;
    if count != 0 && last - first != count {
        return Err(format!("invalid ranges specified for container and host Ports: {host}"));
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn ports_are_read() {
        let read = |text: &str| match Ports::parse(text) {
            Ok(p) => format!("{}-{}/{} {}", p.first, p.last, p.protocol, p.published),
            Err(problem) => problem.message,
        };
        for (text, want) in [
            ("80", "80-80/tcp false"),
            ("53/UDP", "53-53/udp false"),
            ("7000-7002", "7000-7002/tcp false"),
            ("8080:80", "80-80/tcp true"),
            ("127.0.0.1::80", "80-80/tcp true"),
            ("[::1]:1:2", "2-2/tcp true"),
            ("x", "invalid containerPort: x"),
            ("65536", "invalid containerPort: 65536"),
            ("3-2", "invalid containerPort: 3-2"),
            ("+1", "invalid containerPort: +1"),
            ("80/foo", "invalid port: \"80/foo\": invalid proto: foo"),
            ("/tcp", "invalid port: \"/tcp\": no port specified"),
            ("a.b:1:2", "invalid IP address: a.b"),
        ] {
            assert_eq!(read(text), want, "{text}");
        }
    }
}
