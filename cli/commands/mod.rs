//! The commands: one file each, and one line each in the lists below.
//!
//! A command's file has `Args`, whose doc comment is its help, and `run`. To add one, write the file, name its
//! module here and add its line to the list of the root or of its group; dispatch comes from the same line.

mod build;
mod builder;
mod completion;
mod image;
mod login;
mod logout;
mod version;

use std::process::ExitCode;

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
        Build(build),
        Builder(builder),
        Completion(completion),
        Image(image),
        Login(login),
        Logout(logout),
        Version(version),
    }
}

/// Success, for commands that have nothing else to say.
pub(crate) const DONE: Result<ExitCode, CliError> = Ok(ExitCode::SUCCESS);
