//! `rbuild top`.

use std::collections::BTreeSet;
use std::fmt::Write as _;
use std::process::{Command, ExitCode};
use std::time::{Duration, SystemTime};

use rbuild_engine::containers::Listed;
use time::OffsetDateTime;

use super::DONE;
use crate::app::App;
use crate::error::CliError;
use crate::format;

/// Show the processes of a container
///
/// Numbers and users are those of this machine. With options the machine's own ps is asked, which has to show the column PID.
#[derive(Debug, clap::Args)]
pub struct Args {
    /// The container, and options of ps
    #[arg(value_name = "CONTAINER [PS OPTIONS]", required = true, num_args = 1.., trailing_var_arg = true)]
    words: Vec<String>,
}

/// The least width of a column, docker's number.
const WIDTH: usize = 20;

pub async fn run(args: Args, app: &App) -> Result<ExitCode, CliError> {
    let options = args.words[1..].join(" ");
    check(&options)?;
    let containers = app.engine()?.containers();
    let processes = containers.processes(&containers.find(&args.words[0])?)?;
    let lines = if options.trim().is_empty() { full_list(&processes) } else { of_ps(app, &options, &processes)? };
    app.print(&format::aligned(&lines, WIDTH))?;
    DONE
}

/// Refuses a column that is called PID and is another one: docker's rule, and words.
fn check(options: &str) -> Result<(), CliError> {
    let words = options.split([' ', ',']).filter_map(|word| word.split_once('='));
    for (column, title) in words {
        if title.starts_with("PID") && column != "pid" {
            return Err(CliError::new(format!("specifying \"{column}={title}\" is not allowed")));
        }
    }
    Ok(())
}

/// As `ps -ef` has it, without asking anybody.
fn full_list(processes: &[Listed]) -> Vec<Vec<String>> {
    let users = std::fs::read_to_string("/etc/passwd").unwrap_or_default();
    let now = SystemTime::now();
    let titles = ["UID", "PID", "PPID", "C", "STIME", "TTY", "TIME", "CMD"].map(str::to_owned).to_vec();
    let line = |process: &Listed| {
        vec![
            user(&users, process.uid),
            process.pid.to_string(),
            process.parent.to_string(),
            process.share.min(99).to_string(),
            start(process.started, now),
            process.terminal.clone(),
            clock(process.cpu),
            process.command.clone(),
        ]
    };
    std::iter::once(titles).chain(processes.iter().map(line)).collect()
}

/// A user's name, cut as ps does; the number of one that has none.
fn user(passwd: &str, uid: u32) -> String {
    let mut users = passwd.lines().map(|line| line.split(':').collect::<Vec<_>>());
    let found = users.find(|fields| fields.get(2).is_some_and(|number| number.parse() == Ok(uid)));
    match found.and_then(|fields| fields.first().copied()) {
        Some(name) if name.chars().count() > 8 => name.chars().take(7).chain(['+']).collect(),
        Some(name) => name.to_owned(),
        None => uid.to_string(),
    }
}

/// The time of a start of today, the day of one of this year, else the year.
fn start(then: SystemTime, now: SystemTime) -> String {
    let (then, now) = (OffsetDateTime::from(then), OffsetDateTime::from(now));
    match () {
        () if then.date() == now.date() => format!("{:02}:{:02}", then.hour(), then.minute()),
        () if then.year() == now.year() => {
            let month: String = then.month().to_string().chars().take(3).collect();
            format!("{month}{:02}", then.day())
        }
        () => then.year().to_string(),
    }
}

/// `00:01:30`, with days before it where there are any.
fn clock(time: Duration) -> String {
    let seconds = time.as_secs();
    let mut text = String::new();
    if seconds >= 86_400 {
        let _ = write!(text, "{}-", seconds / 86_400);
    }
    let _ = write!(text, "{:02}:{:02}:{:02}", seconds / 3600 % 24, seconds / 60 % 60, seconds % 60);
    text
}

/// What ps says of the container's processes.
fn of_ps(app: &App, options: &str, processes: &[Listed]) -> Result<Vec<Vec<String>>, CliError> {
    let program = app.settings.program("ps").ok_or_else(|| CliError::new("ps: executable file not found in $PATH"))?;
    let pids: BTreeSet<String> = processes.iter().map(|process| process.pid.to_string()).collect();
    let words = || options.split(' ').filter(|word| !word.is_empty());
    let select = format!("-q{}", pids.iter().cloned().collect::<Vec<_>>().join(","));
    let call = |with: Option<&str>| Command::new(&program).args(words()).args(with).output();
    let mut output = call(Some(&select))?;
    if !output.status.success() {
        // Some options, f for one, do not go with a list of processes.
        output = call(None)?;
    }
    if !output.status.success() {
        let said = String::from_utf8_lossy(&output.stderr).into_owned();
        let first = said.lines().find(|line| !line.trim().is_empty()).unwrap_or("it failed");
        return Err(CliError::new(format!("ps: {}", crate::terminal::clean_line(first))));
    }
    select_lines(&String::from_utf8_lossy(&output.stdout), &pids)
}

/// The heading and the lines of these processes, as cells.
fn select_lines(text: &str, pids: &BTreeSet<String>) -> Result<Vec<Vec<String>>, CliError> {
    let mut lines = text.lines();
    let titles: Vec<String> = lines.next().unwrap_or_default().split_ascii_whitespace().map(str::to_owned).collect();
    let at = titles.iter().position(|title| title == "PID");
    let at = at.ok_or_else(|| CliError::new("Couldn't find PID field in ps output"))?;
    let count = titles.len();
    let mut out = vec![titles];
    // A line without a process belongs to the one before it, as with the option m.
    let mut previous = false;
    for line in lines.filter(|line| !line.trim().is_empty()) {
        let words: Vec<&str> = line.split_ascii_whitespace().collect();
        let of_process = words.get(at).is_some_and(|word| pids.contains(*word));
        let of_thread = previous && words.get(at) == Some(&"-");
        previous = of_process || of_thread;
        if previous {
            // Only the last column may have spaces in it.
            let mut cells: Vec<String> = words.iter().take(count - 1).map(|&word| word.to_owned()).collect();
            cells.push(words.get(count - 1..).unwrap_or_default().join(" "));
            out.push(cells);
        }
    }
    Ok(out)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn lines_of_the_containers_processes() {
        let text = "    PID COMMAND\n      1 init\n     70 sleep 10 20\n      - -\n    700 other\n      - -\n";
        let pids = BTreeSet::from(["70".to_owned()]);
        let found = select_lines(text, &pids).unwrap();
        let cells = |line: &[&str]| line.iter().map(|&cell| cell.to_owned()).collect::<Vec<_>>();
        assert_eq!(found, [cells(&["PID", "COMMAND"]), cells(&["70", "sleep 10 20"]), cells(&["-", "-"])]);
        let error = select_lines("CMD\nx\n", &pids).unwrap_err();
        assert_eq!(error.message, "Couldn't find PID field in ps output");
        assert!(check("-o pid=PID,cmd").is_ok() && check("-o ppid=PID").is_err());
    }

    #[test]
    fn times_and_users() {
        let day = Duration::from_secs(86_400);
        let now = SystemTime::UNIX_EPOCH + day * 400;
        assert_eq!(start(now - Duration::from_secs(0), now), "00:00");
        assert_eq!(start(now - day, now), "Feb04");
        assert_eq!(start(SystemTime::UNIX_EPOCH, now), "1970");
        assert_eq!((clock(Duration::from_secs(3700)).as_str(), clock(day).as_str()), ("01:01:40", "1-00:00:00"));
        let passwd = "root:x:0:0::/:/bin/sh\nsystemd-network:x:998:998::/:/x\n";
        assert_eq!([0, 998, 7].map(|uid| user(passwd, uid)), ["root", "systemd+", "7"]);
    }
}
