//! Stopping, signalling, waiting, removing; and clearing away what killed processes left.

use std::fs;
use std::io::ErrorKind;
use std::time::{Duration, Instant};

use rbuild_runtime::container::{Attached, Attachment, Change, ContainerLock, State, is_locked};
use rbuild_store::Durability;

use super::record::{self, Container, MountKind, Seen, Status};
use super::{Containers, create};
use crate::error::{Error, Kind};
use crate::volumes;

/// How long a killed container may take to be gone before that is an error.
const PATIENCE: Duration = Duration::from_secs(30);

/// Seconds between the stop signal and the kill, when nobody says otherwise.
const STOP_TIMEOUT: i64 = 10;

/// How a container is removed.
#[derive(Debug, Clone, Copy, Default)]
pub struct Removal {
    /// Kill it first if it runs.
    pub force: bool,
    /// Remove its anonymous volumes.
    pub volumes: bool,
}

impl Containers {
    /// Attaches to a running container.
    ///
    /// # Errors
    /// `Conflict` for one that does not run.
    pub fn attach(&self, container: &Container, stdin: bool) -> Result<Attachment, Error> {
        let found = Attachment::to(&self.directory(&container.id), stdin, true).map_err(Error::internal)?;
        let attached = found.ok_or_else(|| {
            Error::new(Kind::Conflict, "You cannot attach to a stopped container, start it first".to_owned())
        })?;
        self.tell(container, "attach", &[]);
        Ok(attached)
    }

    /// Sends a signal to the container's first process.
    pub fn kill(&self, container: &Container, signal: i32) -> Result<(), Error> {
        let attached = Attachment::to(&self.directory(&container.id), false, false).map_err(Error::internal)?;
        let Some(attached) = attached else {
            let message =
                format!("cannot kill container: {}: container {} is not running", container.name, container.id);
            return Err(Error::new(Kind::Conflict, message));
        };
        attached.input().and_then(|mut input| input.signal(signal)).map_err(Error::internal)?;
        self.tell(container, "kill", &[("signal", &signal.to_string())]);
        self.wake_for(container, signal)
    }

    /// A paused process dies only when it may go on.
    fn wake_for(&self, container: &Container, signal: i32) -> Result<(), Error> {
        match self.see(container.clone()).status {
            Status::Paused if signal == KILL => self.thaw(container),
            _ => Ok(()),
        }
    }

    /// Asks the container to end, and kills it after the timeout (seconds; negative waits for ever; `None` is the
    /// container's own or ten). Quiet for one that does not run.
    pub fn stop(&self, container: &Container, signal: Option<i32>, timeout: Option<i64>) -> Result<(), Error> {
        let attached = Attachment::to(&self.directory(&container.id), false, false).map_err(Error::internal)?;
        let Some(mut attached) = attached else { return Ok(()) };
        let mut input = attached.input().map_err(Error::internal)?;
        let signal = signal.or_else(|| signal_number(&container.config.stop_signal)).unwrap_or(15);
        let timeout = timeout.or(container.config.stop_timeout).unwrap_or(STOP_TIMEOUT);
        // A failed write means that it ended meanwhile, which is what is wanted.
        let _ = input.signal(signal);
        self.tell(container, "kill", &[("signal", &signal.to_string())]);
        if self.see(container.clone()).status == Status::Paused {
            self.thaw(container)?;
        }
        let patience = u64::try_from(timeout).ok().map(Duration::from_secs);
        let mut ended = ended_within(&mut attached, patience)?;
        if !ended {
            let _ = input.signal(KILL);
            self.tell(container, "kill", &[("signal", "9")]);
            ended = ended_within(&mut attached, Some(PATIENCE))?;
        }
        if ended {
            self.tell(container, "stop", &[]);
            return Ok(());
        }
        Err(Error::internal(format!("container {} does not end although it was killed", container.name)))
    }

    /// Waits for the end of a container; its exit code.
    pub fn wait(&self, container: &Container) -> Result<i32, Error> {
        let directory = self.directory(&container.id);
        if let Some(mut attached) = Attachment::to(&directory, false, false).map_err(Error::internal)? {
            while let Some(event) = attached.next_event().map_err(Error::internal)? {
                if let Attached::Ended(ended) = event {
                    return Ok(ended.status);
                }
            }
        }
        Ok(self.see(container.clone()).state.exit_code)
    }

    /// Removes a container.
    ///
    /// # Errors
    /// `Conflict` for one that runs, unless forced.
    pub fn remove(&self, container: &Container, removal: Removal) -> Result<(), Error> {
        let directory = self.directory(&container.id);
        let taken = ContainerLock::try_take(&directory).and_then(|lock| {
            if lock.is_some() || !removal.force {
                return Ok(lock);
            }
            // Nobody listening means that it is just ending, or being started: then the lock comes, or not, by itself.
            let _ = self.kill(container, KILL);
            ContainerLock::take_within(&directory, PATIENCE)
        });
        let lock = match taken {
            Ok(lock) => lock,
            // Its own `--rm`, or somebody else, was quicker. Who forces wants it gone, which it is.
            Err(error) if error.kind() == ErrorKind::NotFound && removal.force => return Ok(()),
            Err(error) if error.kind() == ErrorKind::NotFound => {
                return Err(Error::not_found(format!("No such container: {}", container.name)));
            }
            Err(error) => return Err(Error::internal(error)),
        };
        let Some(_lock) = lock else {
            let message = format!(
                "cannot remove container \"/{}\": container is running: stop the container before removing or force remove",
                container.name
            );
            return Err(Error::new(Kind::Conflict, message));
        };
        let durability = if container.host.auto_remove { Durability::Cache } else { Durability::Named };
        self.remove_locked(&container.id, removal.volumes || container.host.auto_remove, durability)
    }

    /// Removes rows, then files, of a container whose lock the caller holds. On a full disk too.
    pub(super) fn remove_locked(&self, id: &str, anonymous_volumes: bool, durability: Durability) -> Result<(), Error> {
        let rows = |tx: &rbuild_store::rusqlite::Transaction<'_>| {
            let Some(container) = record::by_id(tx, id)? else { return Ok((None, Vec::new())) };
            record::delete(tx, id)?;
            let mut gone = Vec::new();
            if anonymous_volumes && !container.mounts.is_empty() {
                let used = volumes::used(&record::all(tx)?);
                for mount in &container.mounts {
                    if let MountKind::Volume { name, anonymous: true } = &mount.kind
                        && !used.contains(name)
                    {
                        volumes::delete(tx, name)?;
                        gone.push(name.clone());
                    }
                }
            }
            Ok((Some(container), gone))
        };
        let (container, volumes) = match self.store.db().write(durability, rows) {
            Err(error) if error.is_full() => self.store.remove_durably(rows),
            removed => removed,
        }?;
        if let Some(container) = &container {
            self.release_volumes(container);
        }
        self.remove_directory(&self.directory(id));
        for volume in volumes {
            self.volumes().remove_files(&volume);
        }
        if let Some(container) = container {
            self.tell(&container, "destroy", &[]);
        }
        Ok(())
    }

    /// Notes that a container was stopped and started as one.
    pub fn restarted(&self, container: &Container) {
        self.tell(container, "restart", &[]);
    }

    /// Gives a container another name.
    pub fn rename(&self, container: &Container, name: &str) -> Result<(), Error> {
        if name.is_empty() {
            return Err(Error::invalid("neither old nor new names may be empty"));
        }
        if name.trim_start_matches('/') == container.name {
            return Err(Error::invalid("Renaming a container with the same name as its current name"));
        }
        super::names::check(name)?;
        let taken = self.store.db().write(Durability::Named, |tx| {
            if let Some(other) = record::by_name(tx, name)? {
                return Ok(Some(other.id));
            }
            record::update(tx, &Container { name: name.to_owned(), ..container.clone() })?;
            Ok(None)
        })?;
        if let Some(other) = taken {
            return Err(create::name_conflict(name, &other));
        }
        let renamed = Container { name: name.to_owned(), ..container.clone() };
        let change = Change::Rename { from: container.name.clone(), to: name.to_owned() };
        self.change_running(&renamed, change)?;
        self.tell(&renamed, "rename", &[("oldName", &format!("/{}", container.name))]);
        Ok(())
    }

    /// Clears away what killed processes left: containers that ended unseen are marked so (and removed, if they were to
    /// be), and directories that no container has go. Never fails: what resists is met again.
    pub fn sweep(&self) {
        let Ok(all) = self.store.db().read(|tx| Ok(record::all(tx)?)) else { return };
        for container in &all {
            let directory = self.directory(&container.id);
            let state = State::read(&directory);
            let was_run = state.started.is_some() || !state.error.is_empty() || directory.join(create::BEGUN).exists();
            let unseen = state.started.is_some() && state.finished.is_none();
            if !was_run || !(unseen || container.host.auto_remove) || is_locked(&directory) {
                continue;
            }
            if let Ok(Some(_lock)) = ContainerLock::try_take(&directory) {
                self.bury(container, unseen);
            }
        }
        let Ok(entries) = fs::read_dir(self.store.root().join("containers")) else { return };
        for entry in entries.flatten() {
            let known = entry.file_name().to_str().is_some_and(|name| all.iter().any(|c| c.id == name));
            if known || is_locked(&entry.path()) {
                continue;
            }
            // Locked first, then asked again: it may have been made after the list was read.
            let Ok(Some(_lock)) = ContainerLock::try_take(&entry.path()) else { continue };
            let name = entry.file_name().to_string_lossy().into_owned();
            let row = self.store.db().read(|tx| Ok(record::by_id(tx, &name)?));
            if matches!(row, Ok(None)) {
                self.remove_directory(&entry.path());
            }
        }
    }

    /// Writes down the unseen end of a container whose lock the caller holds, or removes it.
    fn bury(&self, container: &Container, unseen: bool) {
        let directory = self.directory(&container.id);
        if unseen {
            let cgroup = self.cgroup(container);
            if let Ok(cgroup) = cgroup {
                cgroup.kill();
                cgroup.remove();
            }
            self.release_volumes(container);
            let Seen { mut state, .. } = container.clone().see_dead(&directory);
            state.finished = state.started.clone();
            if let Err(error) = state.write(&directory) {
                tracing::warn!(%error, "the end of a container is not written down");
            }
        }
        if container.host.auto_remove
            && let Err(error) = self.remove_locked(&container.id, true, Durability::Cache)
        {
            tracing::warn!(%error, "a container that should be gone is not removed");
        }
    }

    /// Refuses a container that does not run, in docker's words.
    pub(super) fn running(&self, seen: &Seen) -> Result<(), Error> {
        match seen.status {
            Status::Running => Ok(()),
            Status::Paused => {
                let message = format!("Container {} is paused, unpause the container before exec", seen.container.id);
                Err(Error::new(Kind::Conflict, message))
            }
            Status::Restarting => {
                let message =
                    format!("Container {} is restarting, wait until the container is running", seen.container.id);
                Err(Error::new(Kind::Conflict, message))
            }
            _ => Err(Error::new(Kind::Conflict, format!("container {} is not running", seen.container.id))),
        }
    }
}

const KILL: i32 = 9;

/// Whether the end is told of within the time (`None`: for ever), or the other side is gone.
fn ended_within(attached: &mut Attachment, patience: Option<Duration>) -> Result<bool, Error> {
    let until = patience.map(|patience| Instant::now() + patience);
    loop {
        let left = until.map(|until| until.saturating_duration_since(Instant::now()));
        match attached.next_within(left).map_err(Error::internal)? {
            None => return Ok(false),
            Some(None | Some(Attached::Ended(_))) => return Ok(true),
            Some(Some(_)) => {}
        }
    }
}

/// The number of a signal by name (with or without `SIG`) or number.
pub fn signal_number(text: &str) -> Option<i32> {
    const NAMES: [&str; 31] = [
        "HUP", "INT", "QUIT", "ILL", "TRAP", "ABRT", "BUS", "FPE", "KILL", "USR1", "SEGV", "USR2", "PIPE", "ALRM",
        "TERM", "STKFLT", "CHLD", "CONT", "STOP", "TSTP", "TTIN", "TTOU", "URG", "XCPU", "XFSZ", "VTALRM", "PROF",
        "WINCH", "IO", "PWR", "SYS",
    ];
    if let Ok(number) = text.parse() {
        return (1..=64).contains(&number).then_some(number);
    }
    let name = text.to_ascii_uppercase();
    let name = name.strip_prefix("SIG").unwrap_or(&name);
    if let Some(offset) = name.strip_prefix("RTMIN") {
        let offset: i32 = if offset.is_empty() { 0 } else { offset.strip_prefix('+')?.parse().ok()? };
        return (0..=30).contains(&offset).then_some(34 + offset);
    }
    if let Some(offset) = name.strip_prefix("RTMAX") {
        let offset: i32 = if offset.is_empty() { 0 } else { offset.strip_prefix('-')?.parse().ok()? };
        return (0..=30).contains(&offset).then_some(64 - offset);
    }
    let name = match name {
        "IOT" => "ABRT",
        "CLD" => "CHLD",
        "POLL" => "IO",
        other => other,
    };
    NAMES.iter().position(|known| *known == name).map(|at| at as i32 + 1)
}

#[cfg(test)]
mod tests {
    use super::signal_number;

    #[test]
    fn signals() {
        for (text, want) in [
            ("TERM", Some(15)),
            ("SIGTERM", Some(15)),
            ("sigusr2", Some(12)),
            ("9", Some(9)),
            ("KILL", Some(9)),
            ("SYS", Some(31)),
            ("RTMIN+3", Some(37)),
            ("SIGRTMAX-1", Some(63)),
            ("0", None),
            ("65", None),
            ("NOPE", None),
            ("", None),
        ] {
            assert_eq!(signal_number(text), want, "{text:?}");
        }
    }
}
