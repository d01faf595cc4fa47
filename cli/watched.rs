//! Letting the engine work on a Dockerfile while the user watches.

use rbuild_engine::{Error, Events, Kind};

use crate::app::App;
use crate::diagnostics;
use crate::error::CliError;
use crate::progress::{self, Mode};
use crate::signals::Signals;

/// Runs `work` while progress is shown, until its end or a signal. Dropping its future stops all it started.
///
/// # Errors
/// Those of the work, as they are shown for a build; a signal.
pub async fn watched<T, F>(mode: Mode, app: &App, work: impl FnOnce(Events) -> F) -> Result<T, CliError>
where
    F: Future<Output = Result<T, Error>>,
{
    let mut signals = Signals::new()?;
    let (events, stream) = Events::channel();
    let clock = events.clone();
    let shown = tokio::spawn(progress::follow(stream, mode.renderer(&app.settings)));
    let result = tokio::select! {
        result = work(events) => result.map_err(|error| match error.kind {
            Kind::Cancelled => CliError::new("failed to build: canceled").with_prefix("ERROR"),
            _ => diagnostics::build_failure(&error),
        }),
        code = signals.next() => Err(CliError::new("failed to build: canceled").with_prefix("ERROR").with_code(code)),
    };
    let now = clock.now();
    drop(clock);
    // Steps that were stopped still report their end; a second signal does not wait for them.
    tokio::select! {
        renderer = shown => if let Ok(mut renderer) = renderer { renderer.finish(result.is_err(), now) },
        code = signals.next() => return Err(CliError::silent(code)),
    }
    result
}
