//! `RUN`: runs a command and keeps what it changed.

use rbuild_graph::ops::{Device, ExecOp, Mount, MountKind, Network, Op, Security};

use super::flags::{FlagKind, FlagSpec};
use super::input::{CommandLine, Input};
use super::run_device;
use super::run_mount::RunMount;
use super::{Command, Instruction, Text};
use crate::Diagnostic;
use crate::lower::stage::{Inputs, StageRun};
use crate::syntax::heredoc::Heredoc;

pub(super) const FLAGS: &[FlagSpec] = &[
    FlagSpec {
        name: "mount",
        help: "shows the step something: bind, cache, tmpfs, secret or ssh",
        kind: FlagKind::Texts,
    },
    FlagSpec { name: "network", help: "is default, none or host", kind: FlagKind::Text },
    FlagSpec { name: "security", help: "is sandbox or insecure", kind: FlagKind::Text },
    FlagSpec { name: "device", help: "gives the step a device of the machine", kind: FlagKind::Texts },
];

#[derive(Debug, Clone)]
pub(crate) struct Run {
    line: CommandLine,
    heredocs: Vec<Heredoc>,
    pub(crate) mounts: Vec<RunMount>,
    network: Option<Network>,
    security: Security,
    devices: Vec<Device>,
}

/// Where scripts of heredocs are shown to the step.
const PIPES: &str = "/dev/pipes";

pub(super) fn read(input: &mut Input<'_>) -> Option<Instruction> {
    let line = input.command_line()?;
    let network = match input.flags.take("network").map(|text| (text.value.clone(), text)) {
        None => None,
        Some((mode, text)) => match mode.as_str() {
            "default" => None,
            "none" => Some(Network::None),
            "host" => Some(Network::Host),
            _ => return invalid(input, &text, format!("invalid network mode {mode:?}"), "default, none or host"),
        },
    };
    let security = match input.flags.take("security").map(|text| (text.value.clone(), text)) {
        None => Security::Sandbox,
        Some((mode, text)) => match mode.as_str() {
            "sandbox" => Security::Sandbox,
            "insecure" => Security::Insecure,
            _ => return invalid(input, &text, format!("security {mode:?} is not valid"), "sandbox or insecure"),
        },
    };
    let mut mounts = Vec::new();
    for flag in input.flags.all("mount") {
        match RunMount::read(&flag) {
            Ok(mount) => mounts.push(mount),
            Err(problem) => return input.report(problem),
        }
    }
    let mut devices = Vec::new();
    for flag in input.flags.all("device") {
        match run_device::read(&flag) {
            Ok(device) => devices.push(device),
            Err(problem) => return input.report(problem),
        }
    }
    Some(Instruction::Run(Run { line, heredocs: input.line.heredocs.clone(), mounts, network, security, devices }))
}

fn invalid(input: &mut Input<'_>, text: &Text, message: String, expected: &str) -> Option<Instruction> {
    input.report(Diagnostic::error(message).at(text.span).expected(expected))
}

/// What the process is started with.
struct Script {
    line: CommandLine,
    /// The script of a heredoc that names its own interpreter.
    file: Option<Mount>,
    /// What the step is called by, behind its text.
    summary: String,
}

impl Run {
    pub(super) fn lower(&self, command: &Command, stage: &mut StageRun<'_, '_>) -> Result<(), Diagnostic> {
        let script = self.script();
        let args = stage.argv(&script.line);
        let mut inputs = Inputs::new(stage.state.edge);
        let root = Mount {
            target: b"/".to_vec(),
            input: inputs.base(),
            output: Some(0),
            read_only: false,
            selector: None,
            kind: MountKind::Bind,
        };
        let mut env = stage.environment(command.span)?;
        let mut mounts = vec![root];
        mounts.extend(script.file);
        let mut secrets = Vec::new();
        let mut agents = 0;
        for mount in &self.mounts {
            let mount = mount.lower(stage, &mut inputs, agents)?;
            match &mount.kind {
                MountKind::Ssh { .. } => {
                    if agents == 0 && !env.iter().any(|entry| entry.starts_with("SSH_AUTH_SOCK=")) {
                        env.push(format!("SSH_AUTH_SOCK={}", String::from_utf8_lossy(&mount.target)));
                    }
                    agents += 1;
                }
                MountKind::Secret { env: Some(name), .. } => secrets.push(name.clone()),
                _ => {}
            }
            mounts.push(mount);
        }
        let name = stage.run_step_name(&format!("{}{}", command.text, script.summary), &secrets);
        let op = ExecOp {
            args: args.clone(),
            env,
            cwd: stage.cwd().to_owned(),
            user: stage.state.config.user.clone(),
            hostname: stage.hostname(),
            network: self.network.unwrap_or(stage.options().network),
            security: self.security,
            mounts,
            extra_hosts: stage.options().extra_hosts.clone(),
            proxy_env: stage.proxy_env(),
            shm_size: stage.options().shm_size,
            ulimits: stage.options().ulimits.clone(),
            cgroup_parent: stage.options().cgroup_parent.clone(),
            valid_exit_codes: vec![0],
            devices: self.devices.clone(),
        };
        let edge = stage.add(Op::Exec(op), inputs.edges, name, command.span);
        stage.state.edge = Some(edge);
        let entry = format!("RUN {}{} # buildkit", stage.args_in_scope(command.span)?, args.join(" "));
        stage.layer(entry);
        Ok(())
    }

    /// A line that is one heredoc is a script of its own; else the shell gets line and heredocs back.
    fn script(&self) -> Script {
        let plain = |line: &CommandLine| Script { line: line.clone(), file: None, summary: String::new() };
        let (CommandLine::Shell(text), [first, ..]) = (&self.line, &self.heredocs[..]) else {
            return plain(&self.line);
        };
        if !matches!(Heredoc::open(text), Ok(Some(_))) {
            let mut whole = text.clone();
            for heredoc in &self.heredocs {
                whole.push_str(&format!("\n{}{}", heredoc.content, heredoc.name));
            }
            return plain(&CommandLine::Shell(whole));
        }
        let content = first.text();
        let summary = format!(" ({})", summarise(&first.content));
        if !content.starts_with("#!") {
            return Script { line: CommandLine::Shell(content), file: None, summary };
        }
        let path = format!("{PIPES}/{}", first.name);
        let file = Mount {
            target: path.clone().into_bytes(),
            input: None,
            output: None,
            read_only: true,
            selector: None,
            kind: MountKind::Inline { content: content.into_bytes(), mode: 0o755 },
        };
        Script { line: CommandLine::Exec(vec![path]), file: Some(file), summary }
    }
}

/// The first line, and dots when there are more.
fn summarise(content: &str) -> String {
    let content = content.trim();
    match content.split_once('\n') {
        Some((first, _)) => format!("{}...", first.trim_end_matches('\r')),
        None => content.to_owned(),
    }
}
