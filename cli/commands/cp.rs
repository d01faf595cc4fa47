//! `rbuild cp`.

use std::io::{BufWriter, IsTerminal as _, Write as _};
use std::path::Path;
use std::process::ExitCode;

use rbuild_engine::containers::CopyOptions;

use super::DONE;
use crate::app::App;
use crate::error::CliError;

/// Copy files between a container and the host
///
/// A path in a container is written CONTAINER:PATH. A directory goes into one that is there; with '/.' at its end only what is
/// in it does. '-' is a tar archive: on standard output of what is at the source, on standard input for a directory.
#[derive(Debug, clap::Args)]
pub struct Args {
    /// Keep user and group
    #[arg(short, long)]
    archive: bool,
    /// Copy what a link at the source leads to
    #[arg(short = 'L', long)]
    follow_link: bool,
    /// Do not say on a terminal that it is done
    #[arg(short, long)]
    quiet: bool,
    #[arg(value_name = "SOURCE")]
    from: String,
    #[arg(value_name = "DESTINATION")]
    to: String,
}

pub async fn run(args: Args, app: &App) -> Result<ExitCode, CliError> {
    let containers = app.engine()?.containers();
    let options = CopyOptions { keep_owner: args.archive, follow_link: args.follow_link };
    match (in_container(&args.from), in_container(&args.to)) {
        (Some((container, path)), None) if args.to == "-" => {
            let mut out = BufWriter::new(std::io::stdout().lock());
            containers.copy_out_as_tar(&containers.find(container)?, Path::new(path), options, &mut out)?;
            out.flush()?;
            return DONE;
        }
        (None, Some((container, path))) if args.from == "-" => {
            containers.copy_in_from_tar(&containers.find(container)?, std::io::stdin(), Path::new(path))?;
        }
        (Some((container, path)), None) => {
            containers.copy_out(&containers.find(container)?, Path::new(path), Path::new(&args.to), options)?;
        }
        (None, Some((container, path))) => {
            containers.copy_in(&containers.find(container)?, Path::new(&args.from), Path::new(path), options)?;
        }
        (Some(_), Some(_)) => return Err(CliError::new("copying between containers is not supported")),
        (None, None) => return Err(CliError::new("must specify at least one container source")),
    }
    // Only for people: a script has the exit code.
    if !args.quiet && std::io::stderr().is_terminal() {
        app.tell(&format!("Successfully copied to {}", args.to));
    }
    DONE
}

/// Container and path; a path of the host's is absolute or has a `.` or `/` before its first colon.
fn in_container(text: &str) -> Option<(&str, &str)> {
    if text.starts_with('/') || text.starts_with('.') {
        return None;
    }
    let (container, path) = text.split_once(':')?;
    (!container.is_empty() && !container.contains('/')).then_some((container, path))
}

#[cfg(test)]
mod tests {
    use super::in_container;

    #[test]
    fn what_is_in_a_container() {
        assert_eq!(in_container("c:/a/b"), Some(("c", "/a/b")));
        assert_eq!(in_container("c:rel"), Some(("c", "rel")));
        for host in ["/a:b", "./a:b", "a/b:c", "plain", ":/x"] {
            assert_eq!(in_container(host), None, "{host}");
        }
    }
}
