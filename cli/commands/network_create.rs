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
    /// How it is made: only 'bridge'
    #[arg(short, long, value_name = "DRIVER", default_value = "bridge")]
    driver: String,
    /// The bridge's own address in a subnet
    #[arg(long, value_name = "ADDRESS", value_parser = address)]
    gateway: Vec<IpAddr>,
    /// No way out of it, and none in
    #[arg(long)]
    internal: bool,
    /// Part of the subnet that addresses are taken from
    #[arg(long, value_name = "RANGE", value_parser = range)]
    ip_range: Option<Range>,
    /// Give containers IPv6 addresses too
    #[arg(long, value_name = "BOOL", num_args = 0..=1, require_equals = true, default_value = "false",
          default_missing_value = "true", action = clap::ArgAction::Set)]
    ipv6: bool,
    /// Label of the network
    #[arg(long = "label", value_name = "NAME[=VALUE]")]
    labels: Vec<String>,
    /// Option of the driver: com.docker.network.bridge.name, .enable_icc, com.docker.network.driver.mtu
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
        Missing::switch("attachable"),
        Missing::valued("aux-address"),
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
        return Err(CliError::new(format!("the network driver \"{}\" is not supported: only bridge", args.driver)));
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
        ip_range: args.ip_range.map(|range| (range.0, range.1)),
        ipv6: args.ipv6,
        internal: args.internal,
        labels: pairs(&args.labels),
        options: pairs(&args.options),
    };
    let network = app.engine()?.networks().create(&request)?;
    app.print(&format!("{}\n", network.id))?;
    DONE
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
