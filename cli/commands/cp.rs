//! `rbuild cp`.

use std::path::Path;
use std::process::ExitCode;

use rbuild_engine::containers::CopyOptions;

use super::DONE;
use crate::app::App;
use crate::error::CliError;

/// Copy files between a container and the host
///
/// A path in a container is written CONTAINER:PATH. A directory goes into one that is there; with '/.' at its end only what is
/// in it does.
#[derive(Debug, clap::Args)]
pub struct Args {
    /// Keep user and group
    #[arg(short, long)]
    archive: bool,
    /// Copy what a link at the source leads to
    #[arg(short = 'L', long)]
    follow_link: bool,
    #[arg(value_name = "SOURCE")]
    from: String,
    #[arg(value_name = "DESTINATION")]
    to: String,
}

pub async fn run(args: Args, app: &App) -> Result<ExitCode, CliError> {
    if args.from == "-" || args.to == "-" {
        return Err(CliError::new("copying from or to an archive ('-') is not supported yet"));
    }
    let containers = app.engine()?.containers();
    let options = CopyOptions { keep_owner: args.archive, follow_link: args.follow_link };
    match (in_container(&args.from), in_container(&args.to)) {
        (Some((container, path)), None) => {
            containers.copy_out(&containers.find(container)?, Path::new(path), Path::new(&args.to), options)?;
        }
        (None, Some((container, path))) => {
            containers.copy_in(&containers.find(container)?, Path::new(&args.from), Path::new(path), options)?;
        }
        (Some(_), Some(_)) => return Err(CliError::new("copying between containers is not supported")),
        (None, None) => return Err(CliError::new("must specify at least one container source")),
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
