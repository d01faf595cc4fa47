//! `rbuild builder gc`.

use std::process::ExitCode;
use std::time::SystemTime;

use super::{DONE, builder_du};
use crate::app::App;
use crate::error::CliError;
use crate::units;

/// Apply the collection policy of the build cache now
///
/// Builds do this by themselves, in the background, when a limit is passed. The policy is "builder": {"gc": …} in the
/// configuration file, in docker's terms.
#[derive(Debug, clap::Args)]
pub struct Args {
    /// Print nothing
    #[arg(short, long)]
    quiet: bool,
}

pub async fn run(args: Args, app: &App) -> Result<ExitCode, CliError> {
    let policy = app.settings.daemon_config()?.cache_policy()?;
    if !policy.enabled {
        return Err(CliError::new("the collection policy is not enabled")
            .with_hint("remove \"enabled\": false from \"builder\": {\"gc\": …} in the configuration file"));
    }
    if args.quiet {
        // In the background of somebody's build: what runs in front comes first.
        let _: Result<i32, _> = rustix::process::nice(10);
    }
    let Some(pruned) = app.engine()?.collect_cache(&policy)? else {
        if !args.quiet {
            app.tell("another process is collecting");
        }
        return DONE;
    };
    if args.quiet {
        return DONE;
    }
    let mut text = match pruned.entries.is_empty() {
        true => String::new(),
        false => builder_du::table(&pruned.entries, SystemTime::now())?,
    };
    text.push_str(&format!("Total:\t{}\n", units::size(pruned.bytes)));
    app.print(&text)?;
    DONE
}
