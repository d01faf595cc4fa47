//! `rbuild doctor`.

use std::path::{Path, PathBuf};
use std::process::ExitCode;

use rbuild_engine::doctor::{self, Finding, Verdict};

use super::DONE;
use crate::app::App;
use crate::error::{CliError, exit};
use crate::whole_file;

/// Look at this machine: what rbuild needs, what is there, what to do
///
/// The exit code is 1 when something is found without which containers or builds do not work.
#[derive(Debug, clap::Args)]
pub struct Args {
    /// Write the systemd unit into a directory, by default /etc/systemd/system
    #[arg(long, value_name = "DIRECTORY", num_args = 0..=1, require_equals = true,
          default_missing_value = "/etc/systemd/system", conflicts_with = "systemd_unit")]
    install_systemd_unit: Option<PathBuf>,
    /// Print it as JSON
    #[arg(long)]
    json: bool,
    /// Print the systemd unit that starts containers with the machine, as their restart policies say
    #[arg(long)]
    systemd_unit: bool,
}

const UNIT: &str = "rbuild-restart.service";

pub async fn run(args: Args, app: &App) -> Result<ExitCode, CliError> {
    if args.systemd_unit {
        app.print(&unit(app)?)?;
        return DONE;
    }
    if let Some(directory) = &args.install_systemd_unit {
        return install(directory, app);
    }
    let findings = doctor::examine(&app.settings.root, &|program| app.settings.program(program).is_some());
    if args.json {
        let text = serde_json::to_string_pretty(&findings).map_err(|e| CliError::new(e.to_string()))?;
        app.print(&(text + "\n"))?;
    } else {
        app.print(&text(&findings))?;
    }
    let is_ill = findings.iter().any(|finding| finding.verdict == Verdict::Problem);
    Ok(if is_ill { ExitCode::from(exit::FAILURE) } else { ExitCode::SUCCESS })
}

/// A line for each thing, below it what to do; at the end the sum.
fn text(findings: &[Finding]) -> String {
    let widest = findings.iter().map(|finding| finding.name.len()).max().unwrap_or(0);
    let mut text = String::new();
    for finding in findings {
        let word = match finding.verdict {
            Verdict::Ok => "ok",
            Verdict::Warning => "warning",
            Verdict::Problem => "PROBLEM",
        };
        text.push_str(&format!("{word:<8} {:<widest$}  {}\n", finding.name, finding.says));
        if let Some(advice) = &finding.advice {
            text.push_str(&format!("{:8} {:<widest$}  -> {advice}\n", "", ""));
        }
    }
    let count = |verdict| findings.iter().filter(|finding| finding.verdict == verdict).count();
    let sum = match (count(Verdict::Problem), count(Verdict::Warning)) {
        (0, 0) => "Everything that rbuild needs is there.".to_owned(),
        (0, warnings) => format!("Everything that rbuild needs is there; {warnings} warning(s)."),
        (problems, warnings) => format!("{problems} problem(s), {warnings} warning(s)."),
    };
    text + "\n" + &sum + "\n"
}

/// What systemd is to do at the start of the machine. At its end it asks every process to end, and a monitor that is asked
/// ends its container as `stop` would, except that the container does not count as stopped by anybody.
fn unit(app: &App) -> Result<String, CliError> {
    let program = std::fs::read_link("/proc/self/exe")?;
    let (program, root) = (quoted(&program)?, quoted(&app.settings.root)?);
    Ok(format!(
        "[Unit]\n\
         Description=Start the containers of rbuild that are to run, as their restart policies say\n\
         Wants=network-online.target\n\
         After=network-online.target local-fs.target\n\
         \n\
         [Service]\n\
         Type=oneshot\n\
         RemainAfterExit=yes\n\
         ExecStart={program} --root {root} start --all --filter should-start-on-boot=true\n\
         TimeoutStopSec=120\n\
         Delegate=yes\n\
         TasksMax=infinity\n\
         LimitNOFILE=1048576\n\
         \n\
         [Install]\n\
         WantedBy=multi-user.target\n"
    ))
}

/// A word of a unit's command line: in quotes, with what means something to systemd taken literally.
fn quoted(path: &Path) -> Result<String, CliError> {
    let text = path.to_str().filter(|text| !text.contains(char::is_control));
    let text = text.ok_or_else(|| CliError::new(format!("a unit cannot name {}", path.display())))?;
    let mut word = String::from("\"");
    for c in text.chars() {
        match c {
            '"' | '\\' => word.extend(['\\', c]),
            '%' | '$' => word.extend([c, c]),
            c => word.push(c),
        }
    }
    word.push('"');
    Ok(word)
}

fn install(directory: &Path, app: &App) -> Result<ExitCode, CliError> {
    let path = directory.join(UNIT);
    let text = unit(app)?;
    whole_file::write(&path, |out| Ok(out.write_all(text.as_bytes())?))?;
    app.print(&format!("{}\nEnable it with: systemctl daemon-reload && systemctl enable {UNIT}\n", path.display()))?;
    DONE
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn words_of_a_unit() {
        assert_eq!(quoted(Path::new("/a b/%i$x\"\\")).unwrap(), r#""/a b/%%i$$x\"\\""#);
        assert!(quoted(Path::new("/a\nb")).is_err());
    }
}
