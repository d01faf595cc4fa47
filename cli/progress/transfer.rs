//! Layers on their way to or from a registry: docker's lines, or on a terminal a bar for each layer.

use std::collections::{BTreeMap, HashSet};
use std::io::IsTerminal as _;
use std::sync::Mutex;
use std::sync::atomic::{AtomicBool, Ordering};

use indicatif::{MultiProgress, ProgressBar, ProgressStyle};
use rbuild_engine::registry::{Progress, ProgressSink, Stage};

use crate::app::App;
use crate::error::CliError;

/// Shows what it is told, from whichever task.
pub struct Transfer<'a> {
    app: &'a App,
    view: View,
}

enum View {
    Quiet,
    /// The layers and words that were printed.
    Lines(Mutex<HashSet<(String, String)>>),
    Bars(MultiProgress, Mutex<BTreeMap<String, ProgressBar>>),
}

impl<'a> Transfer<'a> {
    /// Does `work`, which tells what happens to layers. `title`, if it is not empty, is printed above that, and only when
    /// there is something to tell or all went well: what fails before has no lines but those of its error.
    ///
    /// # Errors
    /// Those of `work`; standard output that cannot be written.
    pub async fn show<T, E: Into<CliError>>(
        app: &'a App,
        quiet: bool,
        title: &str,
        work: impl AsyncFnOnce(ProgressSink<'_>) -> Result<T, E>,
    ) -> Result<T, CliError> {
        let told = Transfer::new(app, quiet);
        let due = AtomicBool::new(!quiet && !title.is_empty());
        let entitle = || match due.swap(false, Ordering::Relaxed) {
            true => app.print(&format!("{title}\n")),
            false => Ok(()),
        };
        let done = work(&|progress| {
            // Who reads this may go away; the transfer goes on.
            drop(entitle());
            told.tell(progress);
        })
        .await;
        drop(told);
        let done = done.map_err(Into::into)?;
        entitle()?;
        Ok(done)
    }

    fn new(app: &'a App, quiet: bool) -> Self {
        let view = match (quiet, std::io::stdout().is_terminal() && std::io::stderr().is_terminal()) {
            (true, _) => View::Quiet,
            (false, false) => View::Lines(Mutex::default()),
            (false, true) => View::Bars(MultiProgress::new(), Mutex::default()),
        };
        Self { app, view }
    }

    fn tell(&self, progress: Progress) {
        let layer = progress.blob.short().to_owned();
        match &self.view {
            View::Quiet => {}
            View::Lines(said) => {
                let Some(words) = words(&progress.stage) else { return };
                let mut said = said.lock().unwrap_or_else(|e| e.into_inner());
                if said.insert((layer.clone(), words.clone())) {
                    // Who reads this may go away; the transfer goes on.
                    drop(self.app.print(&format!("{layer}: {words}\n")));
                }
            }
            View::Bars(all, bars) => {
                let mut bars = bars.lock().unwrap_or_else(|e| e.into_inner());
                let bar = bars.entry(layer.clone()).or_insert_with(|| all.add(new_bar(&layer)));
                advance(bar, &progress);
            }
        }
    }
}

impl Drop for Transfer<'_> {
    /// What is printed next begins on a line of its own.
    fn drop(&mut self) {
        if let View::Bars(_, bars) = &self.view
            && !bars.lock().unwrap_or_else(|e| e.into_inner()).is_empty()
        {
            self.app.tell("");
        }
    }
}

/// A bar over bytes that are read from somewhere; hidden unless a terminal wants it.
pub fn bytes_bar(total: Option<u64>, quiet: bool) -> ProgressBar {
    if quiet || !std::io::stderr().is_terminal() {
        return ProgressBar::hidden();
    }
    let bar = total.map_or_else(ProgressBar::new_spinner, ProgressBar::new);
    bar.with_style(style("{bar:30} {bytes}/{total_bytes}"))
}

fn new_bar(layer: &str) -> ProgressBar {
    ProgressBar::new(0).with_prefix(layer.to_owned()).with_style(style("{prefix}: {msg}"))
}

fn advance(bar: &ProgressBar, progress: &Progress) {
    let moves = matches!(progress.stage, Stage::Downloading | Stage::Pushing);
    if moves {
        bar.set_style(match progress.total {
            Some(_) => style("{prefix}: {msg} [{bar:30}] {bytes}/{total_bytes}"),
            None => style("{prefix}: {msg} {bytes}"),
        });
        bar.set_length(progress.total.unwrap_or(progress.current));
        bar.set_position(progress.current);
        bar.set_message(if progress.stage == Stage::Pushing { "Pushing" } else { "Downloading" });
    } else {
        bar.set_style(style("{prefix}: {msg}"));
        bar.set_message(words(&progress.stage).unwrap_or_else(|| "Extracting".to_owned()));
    }
    if progress.done {
        bar.abandon();
    }
}

fn style(template: &str) -> ProgressStyle {
    ProgressStyle::with_template(template).unwrap_or_else(|_| ProgressStyle::default_bar()).progress_chars("=> ")
}

/// Docker's words for a stage; nothing for those that docker shows on terminals only.
fn words(stage: &Stage) -> Option<String> {
    let words = match stage {
        Stage::PullingLayer => "Pulling fs layer",
        Stage::AlreadyExists => "Already exists",
        Stage::DownloadComplete => "Download complete",
        Stage::PullComplete => "Pull complete",
        Stage::Preparing => "Preparing",
        Stage::Pushed => "Pushed",
        Stage::SkippedForeign => "Skipped foreign layer",
        Stage::LayerAlreadyExists => "Layer already exists",
        Stage::Mounted { from } => return Some(format!("Mounted from {from}")),
        _ => return None,
    };
    Some(words.to_owned())
}
