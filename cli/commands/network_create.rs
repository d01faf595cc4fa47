//! `rbuild network create`.

use std::collections::BTreeMap;
use std::net::IpAddr;
use std::process::ExitCode;

use rbuild_engine::networks::NetworkRequest;

use super::DONE;
use crate::app::App;
use crate::error::CliError;
use crate::refused::{self, Missing};

/// Make a network
#[derive(Debug, clap::Args)]
pub struct Args {
    /// Say that containers of a swarm may be connected by hand; here any may
    #[arg(long)]
    attachable: bool,
    /// Address in a subnet that is somebody else's
    #[arg(long = "aux-address", value_name = "NAME=ADDRESS", value_parser = auxiliary)]
    auxiliary: Vec<(String, IpAddr)>,
    /// How it is made: only 'bridge'
    #[arg(short, long, value_name = "DRIVER", default_value = "bridge")]
    driver: String,
    /// The bridge's own address in a subnet
    #[arg(long, value_name = "ADDRESS", value_parser = address)]
    gateway: Vec<IpAddr>,
    /// No way out of it, and none in
    #[arg(long)]
    internal: bool,
    /// Part of a subnet that addresses are taken from; one of each family
    #[arg(long = "ip-range", value_name = "RANGE", value_parser = range)]
    ip_ranges: Vec<Range>,
    /// Give containers IPv6 addresses too
    #[arg(long, value_name = "BOOL", num_args = 0..=1, require_equals = true, default_value = "false",
          default_missing_value = "true", action = clap::ArgAction::Set)]
    ipv6: bool,
    /// Label of the network
    #[arg(long = "label", value_name = "NAME[=VALUE]")]
    labels: Vec<String>,
    /// Option of the driver: com.docker.network.bridge.name, .enable_icc, .enable_ip_masquerade,
    /// .host_binding_ipv4, com.docker.network.driver.mtu
    #[arg(short, long = "opt", value_name = "NAME=VALUE")]
    options: Vec<String>,
    /// Range of addresses, 10.1.0.0/16; one of each family
    #[arg(long = "subnet", value_name = "RANGE", value_parser = range)]
    subnets: Vec<Range>,
    #[command(flatten)]
    refused: refused::Refused<NotYet>,
    #[arg(value_name = "NETWORK")]
    name: String,
}

/// A range as one value of the command line.
#[derive(Debug, Clone, Copy)]
pub struct Range(IpAddr, u8);

/// Options of `docker network create` that are not there.
#[derive(Debug)]
pub struct NotYet;

impl refused::Table for NotYet {
    const OPTIONS: &'static [Missing] = &[
        Missing::valued("config-from"),
        Missing::switch("config-only"),
        Missing::switch("ingress"),
        Missing::valued("ipam-driver").harmless("default"),
        Missing::valued("ipam-opt"),
        Missing::maybe_valued("ipv4").harmless("true"),
        Missing::valued("scope").harmless("local"),
    ];
}

pub async fn run(args: Args, app: &App) -> Result<ExitCode, CliError> {
    args.refused.check()?;
    if args.driver != "bridge" {
        return Err(CliError::new(no_driver(&crate::terminal::clean_line(&args.driver))));
    }
    let pairs = |texts: &[String]| -> BTreeMap<String, String> {
        let pair = |text: &String| {
            let (key, value) = text.split_once('=').unwrap_or((text, ""));
            (key.to_owned(), value.to_owned())
        };
        texts.iter().map(pair).collect()
    };
    let request = NetworkRequest {
        name: args.name,
        subnets: args.subnets.iter().map(|range| (range.0, range.1)).collect(),
        gateways: args.gateway,
        ip_ranges: args.ip_ranges.iter().map(|range| (range.0, range.1)).collect(),
        auxiliary: args.auxiliary.into_iter().collect(),
        attachable: args.attachable,
        ipv6: args.ipv6,
        internal: args.internal,
        labels: pairs(&args.labels),
        options: pairs(&args.options),
    };
    let network = app.engine()?.networks().create(&request)?;
    app.print(&format!("{}\n", network.id))?;
    DONE
}

fn no_driver(driver: &str) -> String {
    match driver {
        "host" | "null" => format!("only one instance of \"{driver}\" network is allowed"),
        "ipvlan" | "macvlan" | "overlay" => format!("the network driver \"{driver}\" is not supported: only bridge"),
        _ => format!("plugin \"{driver}\" not found"),
    }
}

fn auxiliary(text: &str) -> Result<(String, IpAddr), String> {
    let (name, value) = text.split_once('=').ok_or_else(|| format!("invalid aux-address: {text}"))?;
    Ok((name.to_owned(), address(value)?))
}

fn address(text: &str) -> Result<IpAddr, String> {
    text.parse().map_err(|_| format!("invalid address: {text}"))
}

fn range(text: &str) -> Result<Range, String> {
    let invalid = || format!("invalid CIDR address: {text}");
    let (address, prefix) = text.split_once('/').ok_or_else(invalid)?;
    let address: IpAddr = address.parse().map_err(|_| invalid())?;
    let longest = if address.is_ipv4() { 32 } else { 128 };
    let prefix = prefix.parse().ok().filter(|prefix| *prefix <= longest).ok_or_else(invalid)?;
    Ok(Range(address, prefix))
}
