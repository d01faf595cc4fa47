//! `rbuild registry serve`.

use std::path::{Path, PathBuf};
use std::process::ExitCode;

use rbuild_engine::registry::serve::{Names, Passwords, ServeOptions, Tls, serve};
use tokio::net::TcpListener;

use super::DONE;
use crate::app::App;
use crate::error::CliError;
use crate::signals::Signals;

/// Serve the images of the state directory as a registry, until interrupted
///
/// Every image here can be pulled from it under the name it has here, and what is pushed to it becomes an image here.
#[derive(Debug, clap::Args)]
pub struct Args {
    /// Where to listen; port 0 takes a free one
    #[arg(long, value_name = "ADDRESS:PORT", default_value = "127.0.0.1:5000")]
    listen: String,
    /// Serve names that begin so, without that beginning: with "registry.lan:5000/" the image
    /// "registry.lan:5000/team/app" is the repository "team/app"
    #[arg(long, value_name = "PREFIX", default_value = "")]
    name_prefix: String,
    /// Let in only users of this file (made by htpasswd -B)
    #[arg(long, value_name = "FILE")]
    htpasswd: Option<PathBuf>,
    /// Refuse pushes and deletions
    #[arg(long)]
    read_only: bool,
    /// Speak TLS with this certificate chain (PEM)
    #[arg(long, value_name = "FILE", requires = "tls_key")]
    tls_cert: Option<PathBuf>,
    /// The certificate's private key (PEM)
    #[arg(long, value_name = "FILE", requires = "tls_cert")]
    tls_key: Option<PathBuf>,
    /// Let in only clients with a certificate of this authority (PEM)
    #[arg(long, value_name = "FILE", requires = "tls_cert")]
    tls_client_ca: Option<PathBuf>,
}

pub async fn run(args: Args, app: &App) -> Result<ExitCode, CliError> {
    let options = options(&args)?;
    let store = app.engine()?.store().clone();
    let failed = |e: std::io::Error| CliError::new(format!("listening on {}: {e}", args.listen));
    let listener = TcpListener::bind(&args.listen).await.map_err(failed)?;
    let address = listener.local_addr().map_err(failed)?;
    let mut signals = Signals::new()?;
    let scheme = if options.tls.is_some() { "https" } else { "http" };
    app.print(&format!("Serving images on {scheme}://{address}\n"))?;
    if !address.ip().is_loopback() && options.passwords.is_none() && !options.read_only && args.tls_client_ca.is_none()
    {
        app.tell("WARNING: whoever reaches this address may push and delete images; see --htpasswd and --read-only");
    }
    let stop = async {
        signals.next().await;
    };
    serve(listener, store, options, stop).await.map_err(rbuild_engine::Error::from)?;
    DONE
}

fn options(args: &Args) -> Result<ServeOptions, CliError> {
    let invalid = |e: rbuild_engine::registry::Error| CliError::new(e.to_string());
    let passwords = match &args.htpasswd {
        Some(path) => {
            let text = String::from_utf8(read(path)?);
            let text = text.map_err(|_| CliError::new(format!("{}: not text", path.display())))?;
            Some(Passwords::parse(&text).map_err(|e| CliError::new(format!("{}: {e}", path.display())))?)
        }
        None => None,
    };
    let tls = match (&args.tls_cert, &args.tls_key) {
        (Some(certificate), Some(key)) => {
            let clients = args.tls_client_ca.as_deref().map(read).transpose()?;
            Some(Tls::new(&read(certificate)?, &read(key)?, clients.as_deref()).map_err(invalid)?)
        }
        _ => None,
    };
    let names = Names::behind(&args.name_prefix).map_err(invalid)?;
    Ok(ServeOptions { names, passwords, read_only: args.read_only, tls })
}

fn read(path: &Path) -> Result<Vec<u8>, CliError> {
    std::fs::read(path).map_err(|e| CliError::new(format!("{}: {e}", path.display())))
}
