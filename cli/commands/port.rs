//! `rbuild port`.

use std::process::ExitCode;

use rbuild_engine::runtime::network::{PortBinding, Protocol};

use super::DONE;
use crate::app::App;
use crate::error::CliError;

/// Show the published ports of a container, or what leads to one of its ports
#[derive(Debug, clap::Args)]
pub struct Args {
    #[arg(value_name = "CONTAINER")]
    container: String,
    #[arg(value_name = "PORT[/PROTOCOL]")]
    port: Option<String>,
}

pub async fn run(args: Args, app: &App) -> Result<ExitCode, CliError> {
    let seen = app.engine()?.containers().find(&args.container)?;
    let address = |b: &PortBinding| std::net::SocketAddr::new(b.host_ip, b.host_port);
    let text: String = match &args.port {
        None => {
            seen.ports().iter().map(|b| format!("{}/{} -> {}\n", b.container_port, b.protocol, address(b))).collect()
        }
        Some(text) => {
            let asked = text;
            let (port, protocol) = wanted(asked)?;
            let found = seen.ports().iter().filter(|b| (b.container_port, b.protocol) == (port, protocol));
            let text: String = found.map(|b| format!("{}\n", address(b))).collect();
            if text.is_empty() {
                let message = format!("no public port '{asked}' published for {}", args.container);
                return Err(CliError::new(message));
            }
            text
        }
    };
    app.print(&text)?;
    DONE
}

fn wanted(text: &str) -> Result<(u16, Protocol), CliError> {
    let (port, protocol) = text.split_once('/').unwrap_or((text, "tcp"));
    let invalid = || CliError::new(format!("invalid port: {text}"));
    Ok((port.parse().map_err(|_| invalid())?, protocol.parse().map_err(|()| invalid())?))
}
