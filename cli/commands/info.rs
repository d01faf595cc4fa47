use std::collections::BTreeMap;
use std::process::ExitCode;
use std::time::SystemTime;

use rbuild_engine::containers::Status;
use rbuild_engine::doctor;
use rbuild_engine::runtime::sandbox::Hierarchies;
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
    driver_status: Vec<[String; 2]>,
    plugins: Plugins,
    #[serde(flatten)]
    limits: BTreeMap<&'static str, bool>,
    #[serde(rename = "IPv4Forwarding")]
    forwarding: bool,
    debug: bool,
    system_time: String,
    logging_driver: &'static str,
    cgroup_driver: &'static str,
    cgroup_version: &'static str,
    #[serde(rename = "DockerRootDir")]
    root: String,
    kernel_version: String,
    operating_system: String,
    #[serde(rename = "OSVersion")]
    os_version: String,
    #[serde(rename = "OSType")]
    os_type: &'static str,
    architecture: String,
    index_server_address: &'static str,
    #[serde(rename = "NCPU")]
    processors: usize,
    mem_total: u64,
    name: String,
    http_proxy: String,
    https_proxy: String,
    no_proxy: String,
    labels: Vec<String>,
    experimental_build: bool,
    server_version: &'static str,
    default_runtime: &'static str,
    runtimes: BTreeMap<&'static str, BTreeMap<String, String>>,
    /// Containers live on without the program that started them.
    live_restore_enabled: bool,
    isolation: &'static str,
    init_binary: &'static str,
    security_options: Vec<&'static str>,
    registry_config: RegistryConfig,
    warnings: Vec<String>,
}

/// What could be plugged in with docker, and is built in here.
#[derive(Serialize)]
#[serde(rename_all = "PascalCase")]
struct Plugins {
    volume: [&'static str; 1],
    network: [&'static str; 3],
    log: [&'static str; 2],
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
        None => {
            app.print(&information.text())?;
            information.warnings.iter().for_each(|warning| app.tell(warning));
        }
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
    let cgroups = Hierarchies::detect().unwrap_or_default();
    let limits: BTreeMap<&str, bool> = [
        ("MemoryLimit", cgroups.has("memory")),
        ("SwapLimit", cgroups.has_swap_limit()),
        ("CpuCfsPeriod", cgroups.has("cpu")),
        ("CpuCfsQuota", cgroups.has("cpu")),
        ("CPUShares", cgroups.has("cpu")),
        ("CPUSet", cgroups.has("cpuset")),
        ("PidsLimit", cgroups.has("pids")),
        ("OomKillDisable", cgroups.is_first_version("memory")),
    ]
    .into();
    let missing = [
        ("MemoryLimit", "memory limit"),
        ("SwapLimit", "swap limit"),
        ("CPUSet", "cpuset"),
        ("PidsLimit", "pids limit"),
    ];
    let missing = missing.iter().filter(|(key, _)| limits.get(key) == Some(&false));
    let root = engine.store().root();
    let backing = match doctor::file_system_of(root).as_str() {
        "ext4" => "extfs".to_owned(),
        "overlay" => "overlayfs".to_owned(),
        other => other.to_owned(),
    };
    let proxy = |name| app.settings.either_case(name).unwrap_or_default().to_owned();
    Ok(Information {
        driver_status: vec![["Backing Filesystem".to_owned(), backing]],
        plugins: Plugins { volume: ["local"], network: ["bridge", "host", "null"], log: ["json-file", "none"] },
        forwarding: std::fs::read_to_string("/proc/sys/net/ipv4/ip_forward").is_ok_and(|text| text.trim() == "1"),
        debug: false,
        system_time: units::rfc3339(SystemTime::now()),
        logging_driver: "json-file",
        cgroup_driver: "cgroupfs",
        os_version: os_release("VERSION_ID").unwrap_or_default(),
        index_server_address: "https://index.docker.io/v1/",
        http_proxy: proxy("HTTP_PROXY"),
        https_proxy: proxy("HTTPS_PROXY"),
        no_proxy: proxy("NO_PROXY"),
        labels: Vec::new(),
        experimental_build: false,
        default_runtime: "rbuild",
        runtimes: BTreeMap::from([("rbuild", BTreeMap::new())]),
        live_restore_enabled: true,
        isolation: "",
        init_binary: "rbuild",
        security_options: ["name=seccomp,profile=builtin"]
            .into_iter()
            .chain(config.userns_remap.as_ref().filter(|word| !word.is_empty()).map(|_| "name=userns"))
            .collect(),
        warnings: missing.map(|(_, what)| format!("WARNING: No {what} support")).collect(),
        limits,
        containers: containers.len(),
        containers_running: count(&[Status::Running]),
        containers_paused: count(&[Status::Paused]),
        containers_stopped: count(&[Status::Created, Status::Exited]),
        images: images.len(),
        driver: engine.store().driver().to_string(),
        root: root.display().to_string(),
        kernel_version: text(system.release()),
        operating_system: os_release("PRETTY_NAME").unwrap_or_else(|| "Linux".to_owned()),
        os_type: std::env::consts::OS,
        architecture: text(system.machine()),
        processors: std::thread::available_parallelism().map_or(1, std::num::NonZeroUsize::get),
        mem_total: memory.totalram as u64 * u64::from(memory.mem_unit),
        name: text(system.nodename()),
        cgroup_version: if doctor::cgroup_mode() == Some("v2") { "2" } else { "1" },
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
            (" Backing Filesystem", self.driver_status[0][1].clone()),
            ("Logging Driver", self.logging_driver.to_owned()),
            ("Cgroup Driver", self.cgroup_driver.to_owned()),
            ("Cgroup Version", self.cgroup_version.to_owned()),
            ("Runtimes", self.default_runtime.to_owned()),
            ("Security Options", self.security_options.join(" ")),
            ("Kernel Version", self.kernel_version.clone()),
            ("Operating System", self.operating_system.clone()),
            ("OSType", self.os_type.to_owned()),
            ("Architecture", self.architecture.clone()),
            ("CPUs", self.processors.to_string()),
            ("Total Memory", units::size(self.mem_total)),
            ("Name", self.name.clone()),
            ("Root Dir", self.root.clone()),
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

/// What the distribution says of itself.
fn os_release(key: &str) -> Option<String> {
    let text = std::fs::read_to_string("/etc/os-release").ok()?;
    let value = text.lines().find_map(|line| line.strip_prefix(key)?.strip_prefix('='))?;
    Some(value.trim_matches('"').to_owned())
}
