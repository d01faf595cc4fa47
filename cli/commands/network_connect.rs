//! `rbuild network connect`.

use std::net::{IpAddr, Ipv4Addr, Ipv6Addr};
use std::process::ExitCode;

use rbuild_engine::containers::Membership;

use super::DONE;
use crate::app::App;
use crate::error::CliError;
use crate::network_options::{self, Link};
use crate::refused::{self, Missing};

/// Connect a container to a network
#[derive(Debug, clap::Args)]
pub struct Args {
    /// Name by which others in the network find it
    #[arg(long = "alias", value_name = "NAME")]
    aliases: Vec<String>,
    /// IPv4 address in the network
    #[arg(long, value_name = "ADDRESS", value_parser = network_options::ipv4)]
    ip: Option<Ipv4Addr>,
    /// IPv6 address in the network
    #[arg(long, value_name = "ADDRESS", value_parser = network_options::ipv6)]
    ip6: Option<Ipv6Addr>,
    /// Address of the link alone that it has beside its own
    #[arg(long = "link-local-ip", value_name = "ADDRESS", value_parser = network_options::link_local)]
    link_local: Vec<IpAddr>,
    /// Container that it knows by a name of its own
    #[arg(long = "link", value_name = "CONTAINER[:NAME]", value_parser = network_options::link)]
    links: Vec<Link>,
    #[command(flatten)]
    refused: refused::Refused<NotYet>,
    #[arg(value_name = "NETWORK")]
    network: String,
    #[arg(value_name = "CONTAINER")]
    container: String,
}

/// Options of `docker network connect` that are not there.
#[derive(Debug)]
pub struct NotYet;

impl refused::Table for NotYet {
    const OPTIONS: &'static [Missing] = &[Missing::valued("driver-opt"), Missing::valued("gw-priority")];
}

pub async fn run(args: Args, app: &App) -> Result<ExitCode, CliError> {
    args.refused.check()?;
    let networks = app.engine()?.networks();
    let network = networks.find(&args.network)?;
    let seen = app.engine()?.containers().find(&args.container)?;
    let membership = Membership {
        aliases: args.aliases,
        ip: args.ip,
        ip6: args.ip6,
        link_local: args.link_local,
        links: args.links.into_iter().map(|link| (link.0, link.1)).collect(),
        ..Membership::default()
    };
    networks.connect(&network, &seen, membership)?;
    DONE
}
