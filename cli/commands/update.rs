//! `rbuild update`.

use std::process::ExitCode;

use rbuild_engine::containers::{RestartPolicy, UpdateRequest};

use crate::app::App;
use crate::batch::each_named;
use crate::container_options::{bytes_or_unlimited, cpus};
use crate::error::CliError;
use crate::refused::{self, Missing, Refused};
use crate::supervision::restart_policy;
use crate::values;

/// Change the limits and the restart policy of containers, whether they run or not
#[derive(Debug, clap::Args)]
pub struct Args {
    /// Weight among the containers that want the disks, from 10 to 1000
    #[arg(long, value_name = "WEIGHT")]
    blkio_weight: Option<u16>,
    /// Length of the period of the processor quota, in microseconds
    #[arg(long, value_name = "N")]
    cpu_period: Option<u64>,
    /// Processor time in each period, in microseconds
    #[arg(long, value_name = "N")]
    cpu_quota: Option<i64>,
    /// Weight among the containers that want the processors
    #[arg(short = 'c', long, value_name = "N")]
    cpu_shares: Option<u64>,
    /// How many processors' time they may use
    #[arg(long, value_name = "NUMBER", value_parser = cpus)]
    cpus: Option<i64>,
    /// Processors they may run on: 0-3, 0,1
    #[arg(long, value_name = "LIST")]
    cpuset_cpus: Option<String>,
    /// Memory nodes they may use: 0-3, 0,1
    #[arg(long, value_name = "LIST")]
    cpuset_mems: Option<String>,
    /// Most memory they may use
    #[arg(short, long, value_name = "BYTES", value_parser = values::bytes)]
    memory: Option<u64>,
    /// Memory they are held to when memory is scarce
    #[arg(long, value_name = "BYTES", value_parser = values::bytes)]
    memory_reservation: Option<u64>,
    /// Most memory and swap together; -1 is without limit
    #[arg(long, value_name = "BYTES", value_parser = bytes_or_unlimited)]
    memory_swap: Option<i64>,
    /// Most processes they may have; -1 is without limit
    #[arg(long, value_name = "N")]
    pids_limit: Option<i64>,
    /// When to start them again after their end: no, always, unless-stopped, on-failure or on-failure:N
    #[arg(long, value_name = "POLICY", value_parser = restart_policy)]
    restart: Option<RestartPolicy>,
    #[command(flatten)]
    refused: Refused<NotYet>,
    #[arg(value_name = "CONTAINER", required = true, num_args = 1..)]
    containers: Vec<String>,
}

pub async fn run(args: Args, app: &App) -> Result<ExitCode, CliError> {
    args.refused.check()?;
    let signed = |bytes: Option<u64>| bytes.map(|b| i64::try_from(b).unwrap_or(i64::MAX)).filter(|b| *b > 0);
    let request = UpdateRequest {
        memory: signed(args.memory),
        memory_swap: args.memory_swap.filter(|bytes| *bytes != 0),
        memory_reservation: signed(args.memory_reservation),
        nano_cpus: args.cpus.filter(|n| *n > 0),
        cpu_shares: args.cpu_shares.filter(|n| *n > 0),
        cpu_period: args.cpu_period.filter(|n| *n > 0),
        cpu_quota: args.cpu_quota.filter(|n| *n != 0),
        cpuset_cpus: args.cpuset_cpus.filter(|list| !list.is_empty()),
        cpuset_mems: args.cpuset_mems.filter(|list| !list.is_empty()),
        blkio_weight: args.blkio_weight.filter(|n| *n != 0),
        pids_limit: args.pids_limit.filter(|n| *n != 0),
        restart: args.restart,
    };
    if request == UpdateRequest::default() {
        return Err(CliError::new("You must provide one or more flags when using this command.").with_prefix(""));
    }
    let containers = app.engine()?.containers();
    each_named(app, &args.containers, |name| Ok(containers.update(&containers.find(name)?, &request)?))
}

/// Options of `docker update` that are not there yet.
#[derive(Debug)]
pub struct NotYet;

impl refused::Table for NotYet {
    const OPTIONS: &'static [Missing] = &[Missing::valued("cpu-rt-period"), Missing::valued("cpu-rt-runtime")];
}
