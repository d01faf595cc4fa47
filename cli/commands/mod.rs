//! The commands: one file each, and one line each in the lists below.
//!
//! A command's file has `Args`, whose doc comment is its help, and `run`. To add one, write the file, name its
//! module here and add its line to the list of the root or of its group; dispatch comes from the same line.

mod attach;
pub mod build;
mod builder;
mod builder_du;
mod builder_gc;
mod builder_prune;
mod builds;
mod builds_inspect;
mod builds_logs;
mod builds_ls;
mod builds_prune;
mod builds_rm;
mod buildx;
mod buildx_history;
mod buildx_history_refused;
mod check;
mod commit;
mod completion;
mod container;
mod container_inspect;
mod container_prune;
mod copy;
mod cp;
mod create;
mod diff;
mod doctor;
mod events;
mod exec;
mod explain;
mod export;
mod history;
mod image;
mod image_inspect;
mod image_prune;
mod images;
mod imagetools;
mod imagetools_create;
mod imagetools_inspect;
mod import;
mod info;
mod inspect;
mod kill;
mod load;
mod login;
mod logout;
mod logs;
mod man;
mod manifest;
mod manifest_annotate;
mod manifest_create;
mod manifest_inspect;
mod manifest_push;
mod manifest_rm;
mod network;
mod network_connect;
mod network_create;
mod network_disconnect;
mod network_inspect;
mod network_ls;
mod network_prune;
mod network_rm;
mod pause;
mod port;
mod ps;
mod pull;
mod push;
mod registry;
mod registry_serve;
mod rename;
mod restart;
mod rm;
mod rmi;
mod run;
mod save;
mod search;
mod start;
mod stats;
mod stop;
mod system;
mod system_check;
mod system_df;
mod system_prune;
mod tag;
mod top;
mod unpause;
mod update;
mod version;
mod volume;
mod volume_create;
mod volume_inspect;
mod volume_ls;
mod volume_prune;
mod volume_rm;
mod wait;

use std::process::ExitCode;

use rbuild_engine::oci::{Platform, Reference};

use crate::error::CliError;

/// An enum of commands for clap, with the dispatch to each command's `run`.
macro_rules! commands {
    ($(#[$outer:meta])* $name:ident { $( $(#[$meta:meta])* $variant:ident($module:ident) ),* $(,)? }) => {
        $(#[$outer])*
        #[derive(Debug, clap::Subcommand)]
        pub enum $name {
            $( $(#[$meta])* $variant(Box<$crate::commands::$module::Args>), )*
        }

        impl $name {
            /// Adds the one command of this name to `root`; gives `root` back when there is none. Only for lists in which
            /// commands are called as their files.
            #[allow(dead_code, reason = "the lists of groups are short enough to be described whole")]
            pub fn add(root: clap::Command, name: &str) -> Result<clap::Command, clap::Command> {
                match name {
                    $( stringify!($module) => Ok(root.subcommand(
                        <$crate::commands::$module::Args as clap::Args>::augment_args(clap::Command::new(stringify!($module))),
                    )), )*
                    _ => Err(root),
                }
            }

            /// Runs the chosen command to its exit code.
            ///
            /// # Errors
            /// Whatever the command reports.
            pub async fn run(self, app: &$crate::app::App) -> Result<std::process::ExitCode, $crate::error::CliError> {
                match self {
                    $( Self::$variant(args) => Box::pin($crate::commands::$module::run(*args, app)).await, )*
                }
            }
        }
    };
}
pub(crate) use commands;

commands! {
    /// What stands after `rbuild`.
    Command {
        Attach(attach),
        Build(build),
        Builder(builder),
        Builds(builds),
        Buildx(buildx),
        Check(check),
        Commit(commit),
        Completion(completion),
        Container(container),
        Copy(copy),
        Cp(cp),
        Create(create),
        Diff(diff),
        Doctor(doctor),
        Events(events),
        Exec(exec),
        Explain(explain),
        Export(export),
        History(history),
        Image(image),
        Images(images),
        Imagetools(imagetools),
        Import(import),
        Info(info),
        Inspect(inspect),
        Kill(kill),
        Load(load),
        Login(login),
        Logout(logout),
        Logs(logs),
        Man(man),
        Manifest(manifest),
        Network(network),
        Pause(pause),
        Port(port),
        Ps(ps),
        Pull(pull),
        Push(push),
        Registry(registry),
        Rename(rename),
        Restart(restart),
        Rm(rm),
        Rmi(rmi),
        Run(run),
        Save(save),
        Search(search),
        Start(start),
        Stats(stats),
        Stop(stop),
        System(system),
        Tag(tag),
        Top(top),
        Unpause(unpause),
        Update(update),
        Version(version),
        Volume(volume),
        Wait(wait),
    }
}

/// A name that somebody wrote, with the tag `latest` where it has neither tag nor digest.
pub(crate) fn reference(text: &str) -> Result<Reference, CliError> {
    Reference::parse(text).map_err(|e| CliError::new(crate::terminal::clean_line(&e.to_string())))
}

/// A name that somebody wrote, as it is.
pub(crate) fn reference_untagged(text: &str) -> Result<Reference, CliError> {
    Reference::parse_untagged(text).map_err(|e| CliError::new(crate::terminal::clean_line(&e.to_string())))
}

/// The value of an option `--platform`.
pub(crate) fn platform(text: Option<&str>) -> Result<Option<Platform>, CliError> {
    text.map(Platform::parse).transpose().map_err(|e| CliError::new(e.to_string()))
}

/// Success, for commands that have nothing else to say.
pub(crate) const DONE: Result<ExitCode, CliError> = Ok(ExitCode::SUCCESS);
