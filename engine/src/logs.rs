//! Keeps the whole log of every step on disk, whatever the screen shows of it.

use std::fs::File;
use std::io::Write;
use std::path::PathBuf;

use rbuild_executor::{StepLog, StepLogs};
use rbuild_solver::{LogStream, RunContext};

/// The logs of one build: `builds/<id>/<n>.log`.
pub(crate) struct BuildLogs {
    dir: PathBuf,
}

impl BuildLogs {
    pub(crate) fn new(dir: PathBuf) -> BuildLogs {
        BuildLogs { dir }
    }
}

impl StepLogs for BuildLogs {
    fn open(&self, context: &RunContext) -> Box<dyn StepLog> {
        let path = self.dir.join(format!("{}.log", context.step.0));
        let made = std::fs::create_dir_all(&self.dir).and_then(|()| File::create(path));
        if let Err(error) = &made {
            tracing::warn!(%error, dir = %self.dir.display(), "the log of a step is not kept");
        }
        Box::new(Log { file: made.ok() })
    }
}

struct Log {
    file: Option<File>,
}

impl StepLog for Log {
    fn write(&mut self, _stream: LogStream, bytes: &[u8]) {
        if let Some(file) = &mut self.file
            && let Err(error) = file.write_all(bytes)
        {
            tracing::warn!(%error, "the log of a step is cut short");
            self.file = None;
        }
    }
}
