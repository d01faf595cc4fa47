//! Ports as docker writes them: `-p [[ADDRESS:][HOST]:]CONTAINER[/PROTOCOL]`, each port perhaps a range, and `--expose`.

use std::net::IpAddr;

use rbuild_engine::runtime::network::{PortRequest, Protocol};

/// What one `--publish` asks for: a range of several ports asks for each of them.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Publish(pub Vec<PortRequest>);

/// What one `--expose` names, `80/tcp`.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Expose(pub Vec<String>);

/// # Errors
/// What is wrong with it, in docker's words.
pub fn publish(text: &str) -> Result<Publish, String> {
    if text.contains('=') {
        return long_form(text);
    }
    let (rest, protocol) = protocol(text)?;
    let (ahead, container) = rest.rsplit_once(':').unwrap_or(("", rest));
    let (address, host) = ahead.rsplit_once(':').unwrap_or(("", ahead));
    requests(text, address, host, container, protocol)
}

/// # Errors
/// What is wrong with it, in docker's words.
pub fn expose(text: &str) -> Result<Expose, String> {
    if text.contains(':') {
        return Err(format!("invalid port format for --expose: {text}"));
    }
    let invalid = |reason: String| format!("invalid range format for --expose: {text}, error: {reason}");
    let (rest, protocol) = protocol(text)?;
    let (first, last) = range(rest).map_err(invalid)?;
    Ok(Expose((first..=last).map(|port| format!("{port}/{protocol}")).collect()))
}

/// `published=8080,target=80,protocol=tcp`
fn long_form(text: &str) -> Result<Publish, String> {
    let (mut host, mut container, mut protocol) = ("", "", Protocol::Tcp);
    for part in text.split(',') {
        let (key, value) = part
            .split_once('=')
            .ok_or_else(|| format!("invalid publish opts format (should be name=value but got '{part}')"))?;
        match key {
            "published" => host = value,
            "target" => container = value,
            "protocol" => protocol = known(value)?,
            _ => return Err(format!("invalid publish opts: {key} is not one of published, target, protocol")),
        }
    }
    requests(text, "", host, container, protocol)
}

/// The text without its `/PROTOCOL`, and that.
fn protocol(text: &str) -> Result<(&str, Protocol), String> {
    match text.split_once('/') {
        None => Ok((text, Protocol::Tcp)),
        Some((rest, name)) => Ok((rest, known(name)?)),
    }
}

fn known(name: &str) -> Result<Protocol, String> {
    let lower = name.to_ascii_lowercase();
    match lower.as_str() {
        "" => Ok(Protocol::Tcp),
        "sctp" => Err("the protocol sctp is not supported: tcp and udp are".to_owned()),
        _ => lower.parse().map_err(|()| format!("invalid proto: {name}")),
    }
}

fn requests(text: &str, address: &str, host: &str, container: &str, protocol: Protocol) -> Result<Publish, String> {
    if container.is_empty() {
        return Err(format!("no port specified: {text}<empty>"));
    }
    let host_ip = match address.strip_prefix('[').and_then(|a| a.strip_suffix(']')).unwrap_or(address) {
        "" => None,
        bare => Some(bare.parse::<IpAddr>().map_err(|_| format!("invalid IP address: {address}"))?),
    };
    let (first, last) = range(container).map_err(|_| format!("invalid containerPort: {container}"))?;
    let host_ports = match host {
        "" | "0" => None,
        host => Some(range(host).map_err(|_| format!("invalid hostPort: {host}"))?),
    };
    let count = last - first;
    let each = |n: u16| match host_ports {
        None => Ok(None),
        // Several for one: the first that is free.
        Some(range) if count == 0 => Ok(Some(range)),
        Some((begin, end)) if end - begin == count => Ok(Some((begin + n, begin + n))),
        Some(_) => Err(format!("invalid ranges specified for container and host Ports: {container} and {host}")),
    };
    let requests =
        (0..=count).map(|n| Ok(PortRequest { container_port: first + n, protocol, host_ip, host_ports: each(n)? }));
    requests.collect::<Result<_, String>>().map(Publish)
}

/// `80` or `80-90`.
fn range(text: &str) -> Result<(u16, u16), String> {
    let (first, last) = text.split_once('-').unwrap_or((text, text));
    let number = |part: &str| match part.parse::<u16>() {
        Ok(number) if number > 0 && part.bytes().all(|b| b.is_ascii_digit()) => Ok(number),
        _ => Err(format!("invalid port: '{part}'")),
    };
    match (number(first)?, number(last)?) {
        (first, last) if first <= last => Ok((first, last)),
        _ => Err(format!("invalid range specified for port: {text}")),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn shown(text: &str) -> Result<Vec<String>, String> {
        let one = |p: &PortRequest| {
            let address = p.host_ip.map(|a| a.to_string()).unwrap_or_default();
            let host = p.host_ports.map(|(a, b)| format!("{a}-{b}")).unwrap_or_default();
            format!("{address}|{host}|{}/{}", p.container_port, p.protocol)
        };
        Ok(publish(text)?.0.iter().map(one).collect())
    }

    #[test]
    fn all_forms() {
        for (text, want) in [
            ("80", &["||80/tcp"][..]),
            ("8080:80", &["|8080-8080|80/tcp"]),
            ("0:80", &["||80/tcp"]),
            ("53:53/UDP", &["|53-53|53/udp"]),
            ("127.0.0.1:8080:80", &["127.0.0.1|8080-8080|80/tcp"]),
            ("127.0.0.1::80", &["127.0.0.1||80/tcp"]),
            ("[::1]:8080:80", &["::1|8080-8080|80/tcp"]),
            ("[fe80::1]::80/udp", &["fe80::1||80/udp"]),
            ("::1:8080:80", &["::1|8080-8080|80/tcp"]),
            ("80-81", &["||80/tcp", "||81/tcp"]),
            ("90-91:80-81", &["|90-90|80/tcp", "|91-91|81/tcp"]),
            ("8000-8010:80", &["|8000-8010|80/tcp"]),
            ("published=8080,target=80", &["|8080-8080|80/tcp"]),
            ("target=53,protocol=udp", &["||53/udp"]),
        ] {
            assert_eq!(
                shown(text).as_deref(),
                Ok(&want.iter().map(|&w| w.to_owned()).collect::<Vec<_>>()[..]),
                "{text}"
            );
        }
    }

    #[test]
    fn what_is_wrong_is_named() {
        for (text, want) in [
            ("", "no port specified: <empty>"),
            ("8080:", "no port specified: 8080:<empty>"),
            ("x", "invalid containerPort: x"),
            ("65536", "invalid containerPort: 65536"),
            ("0", "invalid containerPort: 0"),
            ("+80", "invalid containerPort: +80"),
            ("81-80", "invalid containerPort: 81-80"),
            ("x:80", "invalid hostPort: x"),
            ("70000:80", "invalid hostPort: 70000"),
            ("nowhere:80:80", "invalid IP address: nowhere"),
            ("80/icmp", "invalid proto: icmp"),
            ("80/sctp", "the protocol sctp is not supported: tcp and udp are"),
            ("8000-8001:80-82", "invalid ranges specified for container and host Ports: 80-82 and 8000-8001"),
            ("published=1,x=2", "invalid publish opts: x is not one of published, target, protocol"),
        ] {
            assert_eq!(publish(text).map(drop), Err(want.to_owned()), "{text}");
        }
        assert_eq!(expose("80-81/udp"), Ok(Expose(vec!["80/udp".into(), "81/udp".into()])));
        assert!(expose("80:80").is_err() && expose("x").is_err() && expose("").is_err());
    }
}
