//! What a running sandbox uses, and which processes are in it.
//!
//! The cgroup knows best, and is asked first. On a hybrid machine a sandbox is in a v1 hierarchy only for a limit that was
//! asked for; where the cgroup knows nothing the processes' own files in `/proc` are added up, which misses those that
//! have ended.

use std::fs;
use std::path::Path;
use std::time::{Duration, Instant, SystemTime};

use super::cgroups::Cgroup;

/// What a sandbox uses at one instant. Times and bytes are counted since its start, but for memory and processes.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub struct Usage {
    /// When it was looked at.
    pub at: Option<Instant>,
    /// Processor time.
    pub cpu: Duration,
    /// Bytes of memory in use, without files that are only cached.
    pub memory: u64,
    /// The most it may use: its limit, or what the machine has.
    pub memory_limit: u64,
    /// Bytes through its network interfaces, but for the loopback one.
    pub received: u64,
    pub sent: u64,
    /// Bytes from and to block devices.
    pub read: u64,
    pub written: u64,
    /// Processes and threads.
    pub processes: u64,
}

/// A process, as `ps -ef` on this machine shows it.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Listed {
    pub uid: u32,
    pub pid: i32,
    pub parent: i32,
    /// Processor time in percent of its life.
    pub share: u64,
    pub started: SystemTime,
    /// `pts/0`, `tty1`; `?` without one.
    pub terminal: String,
    pub cpu: Duration,
    /// Its arguments, or in brackets its name.
    pub command: String,
}

impl Usage {
    /// What the sandbox in `cgroup` uses, whose first process is `pid`. `own_network` says that the network it is in is not
    /// the machine's.
    pub fn of(cgroup: &Cgroup, pid: i32, own_network: bool) -> Usage {
        let processes = cgroup.all_processes();
        let sum = |one: &dyn Fn(i32) -> Option<u64>| processes.iter().filter_map(|pid| one(*pid)).sum::<u64>();
        let machine = memory_of_machine();
        let (received, sent) = if own_network { network(pid) } else { (0, 0) };
        let (read, written) = cgroup.block_io().unwrap_or_else(|| {
            let io = |name: &'static str| sum(&move |pid| number_in(pid, "io", name));
            (io("read_bytes:"), io("write_bytes:"))
        });
        let cpu = || Duration::from_millis(sum(&|pid| Stat::read(pid).map(|stat| stat.cpu_milliseconds())));
        Usage {
            at: Some(Instant::now()),
            cpu: cgroup.cpu_time().unwrap_or_else(cpu),
            memory: cgroup.memory().unwrap_or_else(|| sum(&memory)),
            memory_limit: cgroup.memory_limit().map_or(machine, |limit| limit.min(machine)),
            received,
            sent,
            read,
            written,
            processes: cgroup.pids().unwrap_or_else(|| sum(&|pid| number_in(pid, "status", "Threads:"))),
        }
    }
}

impl Cgroup {
    /// Its processes, by their numbers on this machine; none for one that is gone.
    pub fn listed(&self) -> Vec<Listed> {
        let now = SystemTime::now();
        let boot = uptime().and_then(|up| now.checked_sub(up)).unwrap_or(SystemTime::UNIX_EPOCH);
        self.all_processes().into_iter().filter_map(|pid| listed(pid, boot, now)).collect()
    }
}

fn listed(pid: i32, boot: SystemTime, now: SystemTime) -> Option<Listed> {
    let stat = Stat::read(pid)?;
    let started = boot + Duration::from_millis(stat.started * MILLISECONDS);
    let life = now.duration_since(started).unwrap_or_default().as_millis().max(1);
    let cpu = stat.cpu_milliseconds();
    let arguments = fs::read(format!("/proc/{pid}/cmdline")).ok()?;
    let words: Vec<_> = arguments.split(|b| *b == 0).map(String::from_utf8_lossy).collect();
    let command = words.join(" ").trim_end().to_owned();
    Some(Listed {
        uid: u32::try_from(number_in(pid, "status", "Uid:")?).ok()?,
        pid,
        parent: stat.parent,
        share: u64::try_from(u128::from(cpu) * 100 / life).unwrap_or(u64::MAX),
        started,
        terminal: terminal(stat.terminal),
        cpu: Duration::from_millis(cpu),
        command: if command.is_empty() { format!("[{}]", stat.name) } else { command },
    })
}

/// A clock tick of `/proc`: the kernel shows a hundred a second on every machine this runs on.
const MILLISECONDS: u64 = 10;

/// The fields of `/proc/<pid>/stat` that are of use.
#[derive(Debug, PartialEq, Eq)]
struct Stat {
    name: String,
    parent: i32,
    terminal: u64,
    /// Clock ticks in user and kernel mode.
    ticks: u64,
    /// Clock ticks since the machine was started.
    started: u64,
}

impl Stat {
    fn read(pid: i32) -> Option<Stat> {
        Stat::parse(&fs::read_to_string(format!("/proc/{pid}/stat")).ok()?)
    }

    fn parse(text: &str) -> Option<Stat> {
        // A name may have brackets and spaces in it, what follows has not.
        let (head, tail) = text.rsplit_once(')')?;
        let name = head.split_once('(')?.1.to_owned();
        let fields: Vec<&str> = tail.split_whitespace().collect();
        let number = |at: usize| fields.get(at)?.parse::<u64>().ok();
        Some(Stat {
            name,
            parent: fields.get(1)?.parse().ok()?,
            terminal: number(4)?,
            ticks: number(11)? + number(12)?,
            started: number(19)?,
        })
    }

    fn cpu_milliseconds(&self) -> u64 {
        self.ticks * MILLISECONDS
    }
}

/// The first number after `name` in a file of a process's.
fn number_in(pid: i32, file: &str, name: &str) -> Option<u64> {
    let text = fs::read_to_string(format!("/proc/{pid}/{file}")).ok()?;
    let rest = text.lines().find_map(|line| line.strip_prefix(name))?;
    rest.split_whitespace().next()?.parse().ok()
}

/// Bytes of memory that are a process's: what it shares with others in part.
fn memory(pid: i32) -> Option<u64> {
    number_in(pid, "smaps_rollup", "Pss:")
        .or_else(|| number_in(pid, "status", "VmRSS:"))
        .map(|kibibytes| kibibytes << 10)
}

fn memory_of_machine() -> u64 {
    let info = rustix::system::sysinfo();
    info.totalram as u64 * u64::from(info.mem_unit)
}

fn uptime() -> Option<Duration> {
    let text = fs::read_to_string(Path::new("/proc/uptime")).ok()?;
    Duration::try_from_secs_f64(text.split(' ').next()?.parse().ok()?).ok()
}

/// Bytes received and sent in the network of a process.
fn network(pid: i32) -> (u64, u64) {
    sum_of_interfaces(&fs::read_to_string(format!("/proc/{pid}/net/dev")).unwrap_or_default())
}

fn sum_of_interfaces(text: &str) -> (u64, u64) {
    let lines = text.lines().filter_map(|line| line.split_once(':')).filter(|(name, _)| name.trim() != "lo");
    lines.fold((0, 0), |(received, sent), (_, numbers)| {
        let mut numbers = numbers.split_whitespace().map(|number| number.parse::<u64>().unwrap_or(0));
        (received + numbers.next().unwrap_or(0), sent + numbers.nth(7).unwrap_or(0))
    })
}

/// The name of a terminal by its device number as `stat` has it.
fn terminal(number: u64) -> String {
    let (major, minor) = ((number >> 8) & 0xfff, (number & 0xff) | ((number >> 12) & 0xf_ff00));
    match major {
        4 if minor < 64 => format!("tty{minor}"),
        4 => format!("ttyS{}", minor - 64),
        136..=143 => format!("pts/{}", (major - 136) * 256 + minor),
        _ => "?".to_owned(),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_fields_of_stat() {
        let text = "17 (a) (b) S 1 17 17 34816 17 4194304 9 0 0 0 12 30 0 0 20 0 1 0 500 1000 2";
        let found = Stat::parse(text).unwrap();
        assert_eq!(found, Stat { name: "a) (b".into(), parent: 1, terminal: 34816, ticks: 42, started: 500 });
        assert_eq!(terminal(found.terminal), "pts/0");
        assert_eq!((terminal(0).as_str(), terminal((4 << 8) | 2).as_str()), ("?", "tty2"));
        assert_eq!(Stat::parse("17 (cut"), None);
    }

    #[test]
    fn interfaces_are_added_up_but_for_the_loopback_one() {
        let text = "Inter-| Receive | Transmit\n face |bytes packets\n    lo: 9 9 0 0 0 0 0 0 9 9 0 0 0 0 0 0\n  \
                    eth0: 100 1 0 0 0 0 0 0 20 1 0 0 0 0 0 0\n  eth1:5 1 0 0 0 0 0 0 7 1 0 0 0 0 0 0\n";
        assert_eq!(sum_of_interfaces(text), (105, 27));
    }

    #[test]
    fn this_process_is_described() {
        let own = i32::try_from(std::process::id()).unwrap();
        let boot = SystemTime::now() - uptime().unwrap();
        let found = listed(own, boot, SystemTime::now()).unwrap();
        assert_eq!(found.uid, rustix::process::getuid().as_raw());
        assert_eq!(found.parent, rustix::process::getppid().unwrap().as_raw_nonzero().get());
        assert!(found.command.contains(&std::env::args().next().unwrap()));
        assert!(memory(own).unwrap() > 0 && found.started <= SystemTime::now() + Duration::from_secs(2));
    }
}
