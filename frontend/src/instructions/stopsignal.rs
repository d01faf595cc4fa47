//! `STOPSIGNAL`: how a container is told to end.

use super::input::Input;
use super::{Instruction, Text};
use crate::Diagnostic;
use crate::lower::stage::StageRun;

#[derive(Debug, Clone)]
pub(crate) struct StopSignal(Text);

/// Linux's names without `SIG`; real-time signals are `RTMIN+n` and `RTMAX-n`.
const NAMES: [&str; 35] = [
    "ABRT", "ALRM", "BUS", "CHLD", "CLD", "CONT", "FPE", "HUP", "ILL", "INT", "IO", "IOT", "KILL", "PIPE", "POLL",
    "PROF", "PWR", "QUIT", "SEGV", "STKFLT", "STOP", "SYS", "TERM", "TRAP", "TSTP", "TTIN", "TTOU", "URG", "USR1",
    "USR2", "VTALRM", "WINCH", "XCPU", "XFSZ", "RTMIN",
];

/// The kernel's highest signal.
const HIGHEST: u32 = 64;

pub(super) fn read(input: &mut Input<'_>) -> Option<Instruction> {
    Some(Instruction::StopSignal(StopSignal(input.one()?)))
}

impl StopSignal {
    pub(super) fn lower(&self, stage: &mut StageRun<'_, '_>) -> Result<(), Diagnostic> {
        let signal = stage.expand(&self.0)?;
        if !is_signal(&signal) {
            return Err(Diagnostic::error(format!("invalid signal: {signal}"))
                .at(self.0.span)
                .expected("a name such as SIGTERM, or a number from 1 to 64"));
        }
        stage.metadata(format!("STOPSIGNAL {signal}"));
        stage.state.config.stop_signal = signal;
        Ok(())
    }
}

fn is_signal(text: &str) -> bool {
    if let Ok(number) = text.parse::<u32>() {
        return (1..=HIGHEST).contains(&number);
    }
    let upper = text.to_uppercase();
    let name = upper.strip_prefix("SIG").unwrap_or(&upper);
    let real_time = |prefix: &str, most: u32| {
        name.strip_prefix(prefix).and_then(|n| n.parse::<u32>().ok()).is_some_and(|n| (1..=most).contains(&n))
    };
    NAMES.contains(&name) || name == "RTMAX" || real_time("RTMIN+", 15) || real_time("RTMAX-", 14)
}

#[cfg(test)]
mod tests {
    #[test]
    fn signals_have_names_and_numbers() {
        for good in ["9", "SIGKILL", "term", "sigrtmin+3", "RTMAX"] {
            assert!(super::is_signal(good), "{good}");
        }
        for bad in ["0", "65", "-1", "", "SIG", "SIGFOO", "RTMIN+16", "999999999999"] {
            assert!(!super::is_signal(bad), "{bad}");
        }
    }
}
