//! What one RUN step may use: `--resource`, and docker's options of old, which say the same.

use rbuild_engine::ResourceLimits;

use crate::error::CliError;
use crate::mounts::split_fields;
use crate::terminal::clean_line;
use crate::values;

/// The least memory a process can be started with, in bytes: docker's number.
const LEAST_MEMORY: i64 = 6 << 20;

/// The options themselves.
#[derive(Debug, Default, clap::Args)]
pub struct LimitArgs {
    /// Limit for each RUN step: memory, memory-swap, cpu-shares, cpu-period, cpu-quota, cpuset-cpus or cpuset-mems
    #[arg(long = "resource", value_name = "NAME=VALUE[,...]")]
    resources: Vec<String>,
    /// Memory of each RUN step
    #[arg(long, short, value_name = "BYTES")]
    memory: Option<String>,
    /// Memory and swap of each RUN step together; -1 is without limit
    #[arg(long, value_name = "BYTES")]
    memory_swap: Option<String>,
    /// Weight of each RUN step's processes against others (usual: 1024)
    #[arg(long, short = 'c', value_name = "WEIGHT")]
    cpu_shares: Option<String>,
    /// Length of a period for --cpu-quota, in microseconds
    #[arg(long, value_name = "MICROSECONDS")]
    cpu_period: Option<String>,
    /// Processor time of each RUN step in each period, in microseconds
    #[arg(long, value_name = "MICROSECONDS")]
    cpu_quota: Option<String>,
    /// Processors that RUN steps may use, such as 0-2,7
    #[arg(long, value_name = "LIST")]
    cpuset_cpus: Option<String>,
    /// Memory nodes that RUN steps may use
    #[arg(long, value_name = "LIST")]
    cpuset_mems: Option<String>,
}

impl LimitArgs {
    /// # Errors
    /// A limit that is none, or that makes no sense beside another.
    pub fn read(&self) -> Result<ResourceLimits, CliError> {
        let mut limits = ResourceLimits::default();
        for (name, value) in [
            ("memory", &self.memory),
            ("memory-swap", &self.memory_swap),
            ("cpu-shares", &self.cpu_shares),
            ("cpu-period", &self.cpu_period),
            ("cpu-quota", &self.cpu_quota),
            ("cpuset-cpus", &self.cpuset_cpus),
            ("cpuset-mems", &self.cpuset_mems),
        ] {
            if let Some(value) = value {
                set(&mut limits, name, value)?;
            }
        }
        for text in &self.resources {
            let mut list: Vec<(String, String)> = Vec::new();
            for field in split_fields(text) {
                match field.split_once('=') {
                    Some((name, value)) => list.push((name.trim().to_owned(), value.to_owned())),
                    // A list of processors has commas of its own.
                    None => match list.last_mut().filter(|(name, _)| name.starts_with("cpuset-")) {
                        Some((_, value)) => value.push_str(&format!(",{field}")),
                        None => {
                            let message = format!("invalid resource {:?}, expected name=value", clean_line(&field));
                            return Err(CliError::new(message));
                        }
                    },
                }
            }
            for (name, value) in list {
                set(&mut limits, &name, &value)?;
            }
        }
        match (limits.memory, limits.memory_swap) {
            (Some(memory), _) if memory < LEAST_MEMORY => Err(CliError::new("Minimum memory limit allowed is 6MB")),
            (None, Some(_)) => Err(CliError::new("You should always set the Memory limit when using Memoryswap limit")),
            (Some(memory), Some(swap)) if swap != -1 && swap < memory => {
                Err(CliError::new("Minimum memoryswap limit should be larger than memory limit"))
            }
            _ => Ok(limits),
        }
    }
}

fn set(limits: &mut ResourceLimits, name: &str, value: &str) -> Result<(), CliError> {
    let invalid = || CliError::new(format!("invalid value {:?} for resource {name}", clean_line(value)));
    let bytes = || match value {
        "-1" if name == "memory-swap" => Ok(-1),
        _ => values::bytes(value).ok().and_then(|bytes| i64::try_from(bytes).ok()).ok_or_else(invalid),
    };
    let list = || {
        let is_list = !value.is_empty() && value.bytes().all(|b| b.is_ascii_digit() || b"-,".contains(&b));
        is_list.then(|| value.to_owned()).ok_or_else(invalid)
    };
    match name {
        "memory" => limits.memory = Some(bytes()?),
        "memory-swap" => limits.memory_swap = Some(bytes()?),
        "cpu-shares" => limits.cpu_shares = Some(value.parse().map_err(|_| invalid())?),
        "cpu-period" => limits.cpu_period = Some(value.parse().map_err(|_| invalid())?),
        "cpu-quota" => limits.cpu_quota = Some(value.parse().map_err(|_| invalid())?),
        "cpuset-cpus" => limits.cpuset_cpus = Some(list()?),
        "cpuset-mems" => limits.cpuset_mems = Some(list()?),
        other => {
            return Err(CliError::new(format!("unknown resource {:?}", clean_line(other))).with_hint(
                "resources are memory, memory-swap, cpu-shares, cpu-period, cpu-quota, cpuset-cpus and cpuset-mems",
            ));
        }
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;

    fn read(resources: &[&str]) -> Result<ResourceLimits, String> {
        let resources = resources.iter().map(|text| (*text).to_owned()).collect();
        LimitArgs { resources, ..LimitArgs::default() }.read().map_err(|error| error.message)
    }

    #[test]
    fn limits_by_either_name() {
        let limits = read(&["memory=1g,cpu-shares=512", "cpuset-cpus=0-1,3,cpu-quota=50000,memory-swap=-1"]).unwrap();
        assert_eq!((limits.memory, limits.memory_swap, limits.cpu_shares), (Some(1 << 30), Some(-1), Some(512)));
        assert_eq!((limits.cpuset_cpus.as_deref(), limits.cpu_quota), (Some("0-1,3"), Some(50_000)));
        let args = LimitArgs { memory: Some("64m".to_owned()), ..LimitArgs::default() };
        assert_eq!(args.read().unwrap().memory, Some(64 << 20));
    }

    #[test]
    fn limits_that_are_none() {
        for (text, want) in [
            ("memory", "invalid resource \"memory\", expected name=value"),
            ("memory=x", "invalid value \"x\" for resource memory"),
            ("cpuset-cpus=a", "invalid value \"a\" for resource cpuset-cpus"),
            ("gpu=1", "unknown resource \"gpu\""),
            ("memory=1m", "Minimum memory limit allowed is 6MB"),
            ("memory-swap=1g", "You should always set the Memory limit when using Memoryswap limit"),
            ("memory=1g,memory-swap=64m", "Minimum memoryswap limit should be larger than memory limit"),
        ] {
            assert_eq!(read(&[text]).unwrap_err(), want, "{text}");
        }
    }
}
