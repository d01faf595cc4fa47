//! Values of options that docker writes in its own way: sizes, hosts, limits. Each function is a value parser; its
//! error is docker's reason, without the option's name.

use std::net::IpAddr;
use std::time::Duration;

use rbuild_engine::{ExtraHost, Ulimit};

use crate::units;

/// A size in bytes: `512`, `64k`, `1.5g`, `10MiB`; all multiples are of 1024.
///
/// # Errors
/// Not such a size, negative, or more than fits.
pub fn bytes(text: &str) -> Result<u64, String> {
    let refuse = || format!("invalid size: '{text}'");
    let split = text.find(|c: char| !(c.is_ascii_digit() || c == '.')).unwrap_or(text.len());
    let (number, unit) = (&text[..split], text[split..].trim_start().to_ascii_lowercase());
    let power = match unit.strip_suffix("ib").or_else(|| unit.strip_suffix('b')).unwrap_or(&unit) {
        "" => 0,
        "k" => 1,
        "m" => 2,
        "g" => 3,
        "t" => 4,
        "p" => 5,
        _ => return Err(refuse()),
    };
    let factor = 1u64 << (10 * power);
    if let Ok(whole) = number.parse::<u64>() {
        return whole.checked_mul(factor).ok_or_else(refuse);
    }
    let value = number.parse::<f64>().map_err(|_| refuse())? * factor as f64;
    if value.is_finite() && value < 9e18 { Ok(value as u64) } else { Err(refuse()) }
}

/// `name:address` or `name=address`; an IPv6 address may stand in brackets; `host-gateway` is the host as seen from a container.
///
/// # Errors
/// No name, or no address.
pub fn extra_host(text: &str) -> Result<ExtraHost, String> {
    let split = text.split_once('=').or_else(|| text.split_once(':'));
    let (host, address) =
        split.filter(|(host, _)| !host.is_empty()).ok_or_else(|| format!("bad format for add-host: \"{text}\""))?;
    let bare = address.strip_prefix('[').and_then(|a| a.strip_suffix(']')).unwrap_or(address);
    if bare != "host-gateway" && bare.parse::<IpAddr>().is_err() {
        return Err(format!("invalid IP address in add-host: \"{address}\""));
    }
    let plain = |c: char| c.is_ascii_graphic() && c != '#';
    if !host.chars().all(plain) {
        return Err(format!("bad format for add-host: \"{text}\""));
    }
    Ok(ExtraHost { host: host.to_owned(), address: bare.to_owned() })
}

/// `nofile=1024` or `nofile=1024:2048`; -1 is unlimited.
///
/// # Errors
/// An unknown limit, no number, or a soft limit over the hard one.
pub fn ulimit(text: &str) -> Result<Ulimit, String> {
    const NAMES: [&str; 15] = [
        "core",
        "cpu",
        "data",
        "fsize",
        "locks",
        "memlock",
        "msgqueue",
        "nice",
        "nofile",
        "nproc",
        "rss",
        "rtprio",
        "rttime",
        "sigpending",
        "stack",
    ];
    let (name, limits) = text.split_once('=').ok_or_else(|| format!("invalid ulimit argument: {text}"))?;
    if !NAMES.contains(&name) {
        return Err(format!("invalid ulimit type: {name}"));
    }
    let number = |part: &str| match part.parse::<i64>() {
        Ok(number) if number >= -1 => Ok(number),
        _ => Err(format!("invalid ulimit argument: {text}")),
    };
    let (soft, hard) = match limits.split_once(':') {
        Some((soft, hard)) => (number(soft)?, number(hard)?),
        None => (number(limits)?, number(limits)?),
    };
    if hard != -1 && (soft > hard || soft == -1) {
        return Err(format!("ulimit soft limit must be less than or equal to hard limit: {soft} > {hard}"));
    }
    Ok(Ulimit { name: name.to_owned(), soft, hard })
}

/// A time in Go's form: `1m30s`, `250ms`.
///
/// # Errors
/// In docker's words.
pub fn duration(text: &str) -> Result<Duration, String> {
    match units::duration(text) {
        Some(time) => Ok(time),
        None if text.starts_with('-') => Err(format!("{text} is negative")),
        None => Err(format!("time: invalid duration \"{text}\"")),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn sizes() {
        for (text, want) in
            [("0", 0), ("512", 512), ("64k", 65_536), ("1.5g", 1_610_612_736), ("10MiB", 10_485_760), ("1 Gb", 1 << 30)]
        {
            assert_eq!(bytes(text), Ok(want), "{text}");
        }
        for text in ["", "x", "-1", "1x", "k", "99999999999p", "1.2.3m"] {
            assert_eq!(bytes(text), Err(format!("invalid size: '{text}'")), "{text}");
        }
    }

    #[test]
    fn hosts() {
        for (text, host, address) in [
            ("a:10.0.0.1", "a", "10.0.0.1"),
            ("a=10.0.0.1", "a", "10.0.0.1"),
            ("a:::1", "a", "::1"),
            ("a=[::1]", "a", "::1"),
            ("gateway.internal:host-gateway", "gateway.internal", "host-gateway"),
        ] {
            assert_eq!(extra_host(text), Ok(ExtraHost { host: host.into(), address: address.into() }), "{text}");
        }
        for text in ["", "a", ":10.0.0.1", "a:b", "a:10.0.0.256", "a b:10.0.0.1", "a\n:10.0.0.1"] {
            assert!(extra_host(text).is_err(), "{text}");
        }
    }

    #[test]
    fn limits() {
        assert_eq!(ulimit("nofile=1024:2048"), Ok(Ulimit { name: "nofile".into(), soft: 1024, hard: 2048 }));
        assert_eq!(ulimit("core=-1"), Ok(Ulimit { name: "core".into(), soft: -1, hard: -1 }));
        for text in ["nofile", "nofile=", "nofile=x", "nofile=3:2", "what=1", "nofile=-2", "nofile=-1:5"] {
            assert!(ulimit(text).is_err(), "{text}");
        }
    }
}
