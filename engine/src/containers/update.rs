//! Changing the limits and the restart policy of a container, running or not.

use oci_spec::runtime::LinuxResources;
use rbuild_runtime::container::{Change, NewTerms, RestartPolicy};
use rbuild_store::Durability;

use super::record::{self, Container, Seen};
use super::request::HostSettings;
use super::{Containers, create, isolation, process};
use crate::error::{Error, Kind};

/// What is to be changed; `None` stays. Units as in [`HostSettings`].
#[derive(Debug, Clone, Default, PartialEq)]
pub struct UpdateRequest {
    pub memory: Option<i64>,
    pub memory_swap: Option<i64>,
    pub memory_reservation: Option<i64>,
    pub nano_cpus: Option<i64>,
    pub cpu_shares: Option<u64>,
    pub cpu_period: Option<u64>,
    pub cpu_quota: Option<i64>,
    pub cpuset_cpus: Option<String>,
    pub cpuset_mems: Option<String>,
    pub pids_limit: Option<i64>,
    /// From 10 to 1000.
    pub blkio_weight: Option<u16>,
    pub restart: Option<RestartPolicy>,
}

impl Containers {
    /// Changes a container, at once if it runs.
    ///
    /// # Errors
    /// `Invalid` for limits that make no sense beside the others, in docker's words; what the kernel refuses. Then nothing
    /// is changed.
    pub fn update(&self, seen: &Seen, request: &UpdateRequest) -> Result<(), Error> {
        let container = &seen.container;
        let failed = |error: Error| Error {
            message: format!("Cannot update container {}: {}", container.id, error.message),
            ..error
        };
        let (before, after) = self.rewrite(&container.id, |host| request.over(host)).map_err(failed)?;
        let limits_change = UpdateRequest { restart: None, ..request.clone() } != UpdateRequest::default();
        let resources = if limits_change { Some(resources(&after.host)?) } else { None };
        let terms = NewTerms { resources, restart: request.restart };
        if let Err(error) = self.change_running(&after, Change::Terms(Box::new(terms))) {
            self.rewrite(&container.id, |_| Ok(before.host.clone()))?;
            return Err(failed(error));
        }
        self.tell(&after, "update", &[]);
        Ok(())
    }

    /// Replaces the settings in a container's row; the container before and after.
    fn rewrite(
        &self,
        id: &str,
        change: impl FnOnce(&HostSettings) -> Result<HostSettings, Error>,
    ) -> Result<(Container, Container), Error> {
        self.store.db().write(Durability::Named, |tx| {
            let Some(before) = record::by_id(tx, id)? else {
                return Ok(Err(Error::not_found(format!("No such container: {id}"))));
            };
            let host = match change(&before.host) {
                Ok(host) => host,
                Err(error) => return Ok(Err(error)),
            };
            let after = Container { host, ..before.clone() };
            record::update(tx, &after)?;
            Ok(Ok((before, after)))
        })?
    }
}

impl UpdateRequest {
    /// The settings with this over them.
    fn over(&self, old: &HostSettings) -> Result<HostSettings, Error> {
        let conflict = |message: &str| Err(Error::new(Kind::Conflict, message.to_owned()));
        let given = |value: Option<i64>| value.filter(|value| *value > 0).is_some();
        let period = |host: &HostSettings| host.cpu_period.filter(|period| *period > 0).is_some();
        if given(self.nano_cpus) && (period(old) || self.cpu_period.is_some()) {
            return conflict("Conflicting options: Nano CPUs cannot be updated as CPU Period has already been set");
        }
        if given(self.nano_cpus) && (given(old.cpu_quota) || self.cpu_quota.is_some()) {
            return conflict("Conflicting options: Nano CPUs cannot be updated as CPU Quota has already been set");
        }
        if self.cpu_period.is_some() && given(old.nano_cpus) {
            return conflict("Conflicting options: CPU Period cannot be updated as NanoCPUs has already been set");
        }
        if self.cpu_quota.is_some() && given(old.nano_cpus) {
            return conflict("Conflicting options: CPU Quota cannot be updated as NanoCPUs has already been set");
        }
        if self.restart.is_some_and(|policy| policy != RestartPolicy::Never) && old.auto_remove {
            return Err(Error::invalid(
                "Restart policy cannot be updated because AutoRemove is enabled for the container",
            ));
        }
        let mut host = old.clone();
        // What was not said at the beginning is settled by now.
        let swap = old.memory.map(|memory| old.memory_swap.unwrap_or(memory.saturating_mul(2)));
        if let Some(memory) = self.memory {
            if self.memory_swap.is_none() && swap.is_some_and(|swap| swap >= 0 && memory > swap) {
                return conflict(
                    "Memory limit should be smaller than already set memoryswap limit, update the memoryswap at the same time",
                );
            }
            host.memory = Some(memory);
            host.memory_swap = swap;
        }
        host.memory_swap = self.memory_swap.or(host.memory_swap);
        host.memory_reservation = self.memory_reservation.or(host.memory_reservation);
        if host.memory_reservation.zip(host.memory).is_some_and(|(reservation, memory)| memory < reservation) {
            return Err(Error::invalid(
                "Minimum memory limit can not be less than memory reservation limit, see usage",
            ));
        }
        host.nano_cpus = self.nano_cpus.or(host.nano_cpus);
        host.cpu_shares = self.cpu_shares.or(host.cpu_shares);
        host.cpu_period = self.cpu_period.or(host.cpu_period);
        host.cpu_quota = self.cpu_quota.or(host.cpu_quota);
        host.cpuset_cpus = self.cpuset_cpus.clone().or(host.cpuset_cpus);
        host.cpuset_mems = self.cpuset_mems.clone().or(host.cpuset_mems);
        host.pids_limit = self.pids_limit.or(host.pids_limit);
        host.block_io.weight = self.blkio_weight.or(host.block_io.weight);
        if host.block_io.weight.is_some_and(|weight| weight != 0 && !(10..=1000).contains(&weight)) {
            return Err(Error::invalid("Range of blkio weight is from 10 to 1000"));
        }
        host.restart = self.restart.unwrap_or(host.restart);
        create::check_limits(&host)?;
        Ok(host)
    }
}

impl Seen {
    /// Whether a container that does not run should, now that the machine was started anew: docker's rules for the start
    /// of its daemon.
    pub fn starts_with_machine(&self) -> bool {
        match self.container.host.restart {
            _ if self.state.started.is_none() => false,
            RestartPolicy::Never => false,
            RestartPolicy::Always => true,
            RestartPolicy::UnlessStopped => !self.state.stopped,
            RestartPolicy::OnFailure { .. } => !self.state.stopped && self.state.exit_code != 0,
        }
    }
}

/// The limits of a request, as the runtime has them.
fn resources(host: &HostSettings) -> Result<LinuxResources, Error> {
    let mut resources = LinuxResources::default();
    process::limit(&mut resources, host)?;
    isolation::limit(&mut resources, host)?;
    resources.set_devices(None);
    Ok(resources)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn host(change: impl FnOnce(&mut HostSettings)) -> HostSettings {
        let mut host = HostSettings::default();
        change(&mut host);
        host
    }

    #[test]
    fn memory_and_swap_stay_in_order() {
        let limited = host(|h| h.memory = Some(64 << 20));
        let ask =
            |memory: i64, swap| UpdateRequest { memory: Some(memory << 20), memory_swap: swap, ..Default::default() };
        let swap = |request: UpdateRequest, old: &HostSettings| request.over(old).map(|host| host.memory_swap);
        assert_eq!(swap(ask(100, None), &limited).unwrap(), Some(128 << 20));
        let refused = swap(ask(200, None), &limited).unwrap_err();
        assert!(refused.message.starts_with("Memory limit should be smaller than already set memoryswap limit"));
        assert_eq!(swap(ask(200, Some(-1)), &limited).unwrap(), Some(-1));
        assert_eq!(swap(ask(200, None), &HostSettings::default()).unwrap(), None);
        assert!(swap(ask(200, Some(100 << 20)), &limited).unwrap_err().message.contains("larger than memory limit"));
        assert!(swap(ask(1, None), &limited).unwrap_err().message.contains("allowed is 6MB"));
    }

    #[test]
    fn ways_to_limit_processors_exclude_each_other() {
        let refused = |old: &HostSettings, request: UpdateRequest| request.over(old).unwrap_err().message;
        let cpus = UpdateRequest { nano_cpus: Some(1), ..Default::default() };
        let quota = UpdateRequest { cpu_quota: Some(1000), ..Default::default() };
        assert!(refused(&host(|h| h.cpu_quota = Some(5)), cpus.clone()).contains("as CPU Quota has already been set"));
        assert!(
            refused(&host(|h| h.cpu_period = Some(5)), cpus.clone()).contains("as CPU Period has already been set")
        );
        assert!(refused(&host(|h| h.nano_cpus = Some(5)), quota).contains("as NanoCPUs has already been set"));
        assert_eq!(cpus.over(&host(|h| h.nano_cpus = Some(5))).unwrap().nano_cpus, Some(1));
        let again = UpdateRequest { restart: Some(RestartPolicy::Always), ..Default::default() };
        assert!(refused(&host(|h| h.auto_remove = true), again).contains("AutoRemove is enabled"));
        let light = UpdateRequest { blkio_weight: Some(5), ..Default::default() };
        assert_eq!(refused(&HostSettings::default(), light), "Range of blkio weight is from 10 to 1000");
    }

    #[test]
    fn what_is_not_updated_stays_among_the_limits() {
        let old = host(|h| h.memory_swappiness = Some(7));
        let new = UpdateRequest { memory: Some(64 << 20), blkio_weight: Some(300), ..Default::default() }.over(&old);
        let limits = resources(&new.unwrap()).unwrap();
        assert_eq!(limits.memory().unwrap().swappiness(), Some(7));
        assert_eq!(limits.memory().unwrap().limit(), Some(64 << 20));
        assert_eq!(limits.block_io().as_ref().unwrap().weight(), Some(300));
    }
}
