//! Options of docker and buildx that rbuild knows and does not have yet.
//!
//! They are refused by name, and not by clap's "unexpected argument": a script that was written for docker should learn
//! that the option is known and missing. To accept and ignore them would be worse: a build that quietly went without
//! its cache, a container without its limit.

use std::fmt;
use std::marker::PhantomData;

use crate::error::CliError;

/// A command's list of such options.
pub trait Table {
    const OPTIONS: &'static [Missing];
}

/// An option that is not there yet.
#[derive(Debug)]
pub struct Missing {
    name: &'static str,
    value: Value,
    /// A value that asks for nothing beyond what rbuild does anyway.
    harmless: Option<&'static str>,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Value {
    None,
    Optional,
    Required,
}

impl Missing {
    pub const fn switch(name: &'static str) -> Missing {
        Missing { name, value: Value::None, harmless: None }
    }

    pub const fn valued(name: &'static str) -> Missing {
        Missing { name, value: Value::Required, harmless: None }
    }

    /// `--name` and `--name=value`.
    pub const fn maybe_valued(name: &'static str) -> Missing {
        Missing { name, value: Value::Optional, harmless: None }
    }

    pub const fn harmless(self, value: &'static str) -> Missing {
        Missing { harmless: Some(value), ..self }
    }

    fn arg(&self) -> clap::Arg {
        let arg = clap::Arg::new(self.name).long(self.name).hide(true);
        match self.value {
            Value::None => arg.action(clap::ArgAction::SetTrue),
            // Several may be given; none of it is looked at.
            Value::Optional => arg.action(clap::ArgAction::Append).num_args(0..=1),
            Value::Required => arg.action(clap::ArgAction::Append),
        }
    }

    fn is_asked_for(&self, matches: &clap::ArgMatches) -> bool {
        if matches.value_source(self.name) != Some(clap::parser::ValueSource::CommandLine) {
            return false;
        }
        match (self.value, self.harmless) {
            (Value::None, _) => matches.get_flag(self.name),
            (_, Some(harmless)) => {
                matches.get_many::<String>(self.name).into_iter().flatten().any(|value| value != harmless)
            }
            (_, None) => true,
        }
    }
}

/// The missing options that were asked for, to be flattened into a command's `Args`.
pub struct Refused<T> {
    names: Vec<&'static str>,
    table: PhantomData<T>,
}

impl<T> Refused<T> {
    /// # Errors
    /// One of them was given.
    pub fn check(&self) -> Result<(), CliError> {
        match self.names.first() {
            Some(name) => Err(CliError::new(format!("--{name} is not supported yet"))),
            None => Ok(()),
        }
    }

    #[cfg(test)]
    pub fn names(&self) -> &[&'static str] {
        &self.names
    }
}

impl<T> fmt::Debug for Refused<T> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_tuple("Refused").field(&self.names).finish()
    }
}

impl<T: Table> clap::Args for Refused<T> {
    fn augment_args(command: clap::Command) -> clap::Command {
        T::OPTIONS.iter().fold(command, |command, option| command.arg(option.arg()))
    }

    fn augment_args_for_update(command: clap::Command) -> clap::Command {
        Self::augment_args(command)
    }
}

impl<T: Table> clap::FromArgMatches for Refused<T> {
    fn from_arg_matches(matches: &clap::ArgMatches) -> Result<Self, clap::Error> {
        let asked = T::OPTIONS.iter().filter(|option| option.is_asked_for(matches));
        Ok(Refused { names: asked.map(|option| option.name).collect(), table: PhantomData })
    }

    fn update_from_arg_matches(&mut self, matches: &clap::ArgMatches) -> Result<(), clap::Error> {
        *self = Self::from_arg_matches(matches)?;
        Ok(())
    }
}
