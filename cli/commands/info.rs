use std::process::ExitCode;

use rbuild_engine::containers::Status;
use rustix::system::{sysinfo, uname};
use serde::Serialize;

use crate::app::App;
use crate::commands::DONE;
use crate::error::CliError;
use crate::{format, units};

/// Show what is in the state directory and what this machine offers
#[derive(Debug, clap::Args)]
pub struct Args {
    /// Format with a Go template, or 'json'
    #[arg(short, long, value_name = "TEMPLATE")]
    format: Option<String>,
}

/// Under docker's names, for templates and scripts.
#[derive(Serialize)]
#[serde(rename_all = "PascalCase")]
struct Information {
    containers: usize,
    containers_running: usize,
    containers_paused: usize,
    containers_stopped: usize,
    images: usize,
    driver: String,
    /// Names and values.
    driver_status: Vec<(&'static str, String)>,
    #[serde(rename = "DockerRootDir")]
    root: String,
    kernel_version: String,
    operating_system: String,
    #[serde(rename = "OSType")]
    os_type: &'static str,
    architecture: String,
    #[serde(rename = "NCPU")]
    processors: usize,
    mem_total: u64,
    name: String,
    cgroup_version: &'static str,
    server_version: &'static str,
    registry_config: RegistryConfig,
}

/// Where images come from.
#[derive(Serialize)]
#[serde(rename_all = "PascalCase")]
struct RegistryConfig {
    mirrors: Vec<String>,
    #[serde(rename = "InsecureRegistryCIDRs")]
    insecure: Vec<String>,
}

pub async fn run(args: Args, app: &App) -> Result<ExitCode, CliError> {
    let information = gather(app)?;
    match args.format {
        Some(template) => app.print(&(format::object(&template, &information)? + "\n"))?,
        None => app.print(&information.text())?,
    }
    DONE
}

fn gather(app: &App) -> Result<Information, CliError> {
    let engine = app.engine()?;
    let config = app.settings.daemon_config()?;
    let containers = engine.containers().list()?;
    let count = |wanted: &[Status]| containers.iter().filter(|seen| wanted.contains(&seen.status)).count();
    let images = engine.store().images().list().map_err(|e| CliError::new(e.to_string()))?;
    let system = uname();
    let text = |part: &std::ffi::CStr| part.to_string_lossy().into_owned();
    let memory = sysinfo();
    Ok(Information {
        containers: containers.len(),
        containers_running: count(&[Status::Running]),
        containers_paused: count(&[Status::Paused]),
        containers_stopped: count(&[Status::Created, Status::Exited]),
        images: images.len(),
        driver: engine.store().driver().to_string(),
        driver_status: vec![("Backing Filesystem", backing_filesystem(engine.store().root()))],
        root: engine.store().root().display().to_string(),
        kernel_version: text(system.release()),
        operating_system: operating_system(),
        os_type: std::env::consts::OS,
        architecture: text(system.machine()),
        processors: std::thread::available_parallelism().map_or(1, std::num::NonZeroUsize::get),
        mem_total: memory.totalram as u64 * u64::from(memory.mem_unit),
        name: text(system.nodename()),
        cgroup_version: if std::path::Path::new("/sys/fs/cgroup/cgroup.controllers").exists() { "2" } else { "1" },
        server_version: env!("CARGO_PKG_VERSION"),
        registry_config: RegistryConfig { mirrors: config.registry_mirrors, insecure: config.insecure_registries },
    })
}

impl Information {
    fn text(&self) -> String {
        let rows = [
            ("Containers", self.containers.to_string()),
            (" Running", self.containers_running.to_string()),
            (" Paused", self.containers_paused.to_string()),
            (" Stopped", self.containers_stopped.to_string()),
            ("Images", self.images.to_string()),
            ("Version", self.server_version.to_owned()),
            ("Storage Driver", self.driver.clone()),
            (" Backing Filesystem", self.driver_status[0].1.clone()),
            ("Root Dir", self.root.clone()),
            ("Cgroup Version", self.cgroup_version.to_owned()),
            ("Kernel Version", self.kernel_version.clone()),
            ("Operating System", self.operating_system.clone()),
            ("OSType", self.os_type.to_owned()),
            ("Architecture", self.architecture.clone()),
            ("CPUs", self.processors.to_string()),
            ("Total Memory", units::size(self.mem_total)),
            ("Name", self.name.clone()),
        ];
        let mut text: String = rows.iter().map(|(name, value)| format!("{name}: {value}\n")).collect();
        for (heading, hosts) in [
            ("Registry Mirrors", &self.registry_config.mirrors),
            ("Insecure Registries", &self.registry_config.insecure),
        ] {
            if !hosts.is_empty() {
                text.push_str(&format!("{heading}:\n"));
                text.extend(hosts.iter().map(|host| format!("  {host}\n")));
            }
        }
        text
    }
}

/// What the state directory lies on, by docker's names.
fn backing_filesystem(root: &std::path::Path) -> String {
    const KNOWN: [(u32, &str); 9] = [
        (0xef53, "extfs"),
        (0x5846_5342, "xfs"),
        (0x9123_683e, "btrfs"),
        (0x0102_1994, "tmpfs"),
        (0x2fc1_2fc1, "zfs"),
        (0x794c_7630, "overlayfs"),
        (0xf2f5_2010, "f2fs"),
        (0xca45_1a4e, "bcachefs"),
        (0x6969, "nfs"),
    ];
    let magic = rustix::fs::statfs(root).map_or(0, |fs| fs.f_type as u32);
    let known = KNOWN.iter().find(|(number, _)| *number == magic);
    known.map_or_else(|| format!("unknown (0x{magic:x})"), |(_, name)| (*name).to_owned())
}

/// The name the distribution gives itself.
fn operating_system() -> String {
    let text = std::fs::read_to_string("/etc/os-release").unwrap_or_default();
    let name = text.lines().find_map(|line| line.strip_prefix("PRETTY_NAME="));
    name.map_or_else(|| "Linux".to_owned(), |name| name.trim_matches('"').to_owned())
}
