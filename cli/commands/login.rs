//! `rbuild login`.

use std::io::{IsTerminal as _, Read as _, Write as _};
use std::process::ExitCode;

use rbuild_engine::registry::Credentials;
use rustix::termios::{LocalModes, OptionalActions, tcgetattr, tcsetattr};

use super::DONE;
use crate::app::App;
use crate::credentials::{Kept, Secret, registry_name};
use crate::error::CliError;

/// Log in to a registry
#[derive(Debug, clap::Args)]
pub struct Args {
    /// The registry (default: docker.io)
    #[arg(value_name = "SERVER")]
    server: Option<String>,
    /// User name
    #[arg(short, long, value_name = "NAME")]
    username: Option<String>,
    /// Password or access token; other users of this machine may see it on the command line
    #[arg(short, long, value_name = "TEXT")]
    password: Option<String>,
    /// Take the password from standard input
    #[arg(long)]
    password_stdin: bool,
}

/// A password that is longer is a mistake.
const PASSWORD_LIMIT: u64 = 64 << 10;

pub async fn run(args: Args, app: &App) -> Result<ExitCode, CliError> {
    let registry = registry_name(args.server.as_deref().unwrap_or("docker.io")).to_owned();
    let (username, password) = ask(&args, app, &registry)?;
    let given = Credentials::Password { username: username.clone(), password: password.clone() };
    let client = app.registry_client()?;
    let identity = client.log_in(&registry, &given).await.map_err(|e| CliError::new(e.to_string()))?;
    let secret = identity.map_or(Secret::Password(password), Secret::IdentityToken);
    match app.credentials().put(&registry, &username, &secret).map_err(CliError::new)? {
        Kept::InFile(path) => app.tell(&format!(
            "\nWARNING! Your credentials are stored unencrypted in '{}'.\nConfigure a credential helper to remove this warning.\n",
            path.display()
        )),
        Kept::ByHelper => {}
    }
    app.print("Login Succeeded\n")?;
    DONE
}

/// The user name and password, from wherever they come.
fn ask(args: &Args, app: &App, registry: &str) -> Result<(String, String), CliError> {
    if args.password.is_some() && args.password_stdin {
        return Err(CliError::new("--password and --password-stdin are mutually exclusive"));
    }
    if args.password_stdin {
        let username = args.username.clone().filter(|u| !u.is_empty());
        let username = username.ok_or_else(|| CliError::new("Must provide --username with --password-stdin"))?;
        let mut password = String::new();
        std::io::stdin().lock().take(PASSWORD_LIMIT).read_to_string(&mut password)?;
        let password = password.trim_end_matches(['\n', '\r']).to_owned();
        if password.is_empty() {
            return Err(CliError::new("the password on standard input is empty"));
        }
        return Ok((username, password));
    }
    if args.password.is_some() {
        app.tell("WARNING! Using --password via the CLI is insecure. Use --password-stdin.");
    }
    if let (Some(username), Some(password)) = (&args.username, &args.password) {
        return Ok((username.clone(), password.clone()));
    }
    if !std::io::stdin().is_terminal() {
        return Err(CliError::new("Cannot perform an interactive login from a non TTY device"));
    }
    if args.username.is_none() {
        app.print(&format!("Log in to {registry} with your user name and password.\n"))?;
    }
    let username = match &args.username {
        Some(username) => username.clone(),
        None => prompt(app, "Username: ")?,
    };
    let password = match &args.password {
        Some(password) => password.clone(),
        None => {
            let _quiet = Quiet::begin()?;
            let password = prompt(app, "Password: ")?;
            app.print("\n")?;
            password
        }
    };
    if username.is_empty() || password.is_empty() {
        return Err(CliError::new("user name and password must not be empty"));
    }
    Ok((username, password))
}

fn prompt(app: &App, text: &str) -> Result<String, CliError> {
    app.print(text)?;
    std::io::stdout().flush()?;
    let mut line = String::new();
    std::io::stdin().read_line(&mut line)?;
    Ok(line.trim_end_matches(['\n', '\r']).to_owned())
}

/// The terminal without echo, until it is dropped.
struct Quiet(rustix::termios::Termios);

impl Quiet {
    fn begin() -> Result<Quiet, CliError> {
        let before = tcgetattr(std::io::stdin()).map_err(std::io::Error::from)?;
        let mut quiet = before.clone();
        quiet.local_modes.remove(LocalModes::ECHO);
        tcsetattr(std::io::stdin(), OptionalActions::Flush, &quiet).map_err(std::io::Error::from)?;
        Ok(Quiet(before))
    }
}

impl Drop for Quiet {
    fn drop(&mut self) {
        let _ = tcsetattr(std::io::stdin(), OptionalActions::Now, &self.0);
    }
}
