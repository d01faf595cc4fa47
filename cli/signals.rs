//! The signals by which people and supervisors end a command.

use tokio::signal::unix::{Signal, SignalKind, signal};

use crate::error::{CliError, exit};

/// Receives them from when it is made; until then they end the program at once.
pub struct Signals {
    interrupt: Signal,
    terminate: Signal,
    hangup: Signal,
}

impl Signals {
    /// # Errors
    /// The kernel refuses the handlers.
    pub fn new() -> Result<Self, CliError> {
        let of = |kind| signal(kind).map_err(|e| CliError::new(format!("signal handlers: {e}")));
        let (interrupt, terminate) = (of(SignalKind::interrupt())?, of(SignalKind::terminate())?);
        Ok(Self { interrupt, terminate, hangup: of(SignalKind::hangup())? })
    }

    /// Waits for the next one and gives the exit code that tells of it.
    pub async fn next(&mut self) -> u8 {
        tokio::select! {
            _ = self.interrupt.recv() => exit::SIGNAL + 2,
            _ = self.terminate.recv() => exit::SIGNAL + 15,
            _ = self.hangup.recv() => exit::SIGNAL + 1,
        }
    }
}
