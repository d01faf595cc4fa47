//! `RUN --mount=type=tmpfs`: an empty file system in memory, gone with the process.

use rbuild_runtime::MountSource;

pub(super) fn source(size: Option<u64>) -> MountSource {
    MountSource::Tmpfs { size }
}
