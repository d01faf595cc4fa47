//! Capabilities of a process: numbers for OCI's names, and the order in which the sets may shrink.

use oci_spec::runtime::{Capabilities, Capability, LinuxCapabilities};
use rustix::io::Errno;
use rustix::thread::{
    CapabilitySet, CapabilitySets, capabilities, clear_ambient_capability_set, configure_capability_in_ambient_set,
    remove_capability_from_bounding_set, set_capabilities, set_keep_capabilities,
};

use crate::error::{Doing, Failure};

/// The five sets as bits.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) struct Sets {
    bounding: u64,
    effective: u64,
    permitted: u64,
    inheritable: u64,
    ambient: u64,
}

impl Sets {
    /// Nothing given is nothing allowed.
    pub(super) fn of(sets: Option<&LinuxCapabilities>) -> Self {
        let bits = |get: fn(&LinuxCapabilities) -> &Option<Capabilities>| {
            sets.and_then(|sets| get(sets).as_ref()).into_iter().flatten().fold(0, |bits, &one| bits | bit(one))
        };
        Sets {
            bounding: bits(LinuxCapabilities::bounding),
            effective: bits(LinuxCapabilities::effective),
            permitted: bits(LinuxCapabilities::permitted),
            inheritable: bits(LinuxCapabilities::inheritable),
            ambient: bits(LinuxCapabilities::ambient),
        }
    }

    /// Takes one out of all five.
    pub(super) fn remove(&mut self, capability: Capability) {
        let Sets { bounding, effective, permitted, inheritable, ambient } = self;
        for set in [bounding, effective, permitted, inheritable, ambient] {
            *set &= !bit(capability);
        }
    }

    /// Takes from the bounding set what is not in it here. Needs CAP_SETPCAP, so it comes first.
    pub(super) fn limit_bounding(&self) -> Result<(), Failure> {
        for number in 0..64 {
            if self.bounding & (1 << number) == 0 {
                match remove_capability_from_bounding_set(CapabilitySet::from_bits_retain(1 << number)) {
                    // Past the kernel's last.
                    Err(Errno::INVAL) => break,
                    removed => removed.doing(|| format!("drop capability {number}"))?,
                }
            }
        }
        Ok(())
    }

    /// Sets the others. What this process itself lacks (root of an outer container) it cannot give.
    pub(super) fn apply(&self) -> Result<(), Failure> {
        let action = || "set the capabilities".to_owned();
        let ours = capabilities(None).doing(action)?.permitted.bits();
        let permitted = self.permitted & ours;
        set_capabilities(
            None,
            CapabilitySets {
                effective: CapabilitySet::from_bits_retain(self.effective & permitted),
                permitted: CapabilitySet::from_bits_retain(permitted),
                inheritable: CapabilitySet::from_bits_retain(self.inheritable & ours),
            },
        )
        .doing(action)?;
        clear_ambient_capability_set().doing(action)?;
        let ambient = self.ambient & permitted & self.inheritable;
        for number in (0..64).filter(|number| ambient & (1 << number) != 0) {
            configure_capability_in_ambient_set(CapabilitySet::from_bits_retain(1 << number), true).doing(action)?;
        }
        Ok(())
    }
}

/// Whether permitted capabilities survive becoming another user.
pub(super) fn keep_across_identity(keep: bool) -> Result<(), Failure> {
    set_keep_capabilities(keep).doing(|| "keep the capabilities".to_owned())
}

/// Makes every permitted capability effective: becoming another user cleared them, and the filter still needs one.
pub(super) fn raise_permitted() -> Result<(), Failure> {
    let action = || "raise the capabilities".to_owned();
    let mut sets = capabilities(None).doing(action)?;
    sets.effective = sets.permitted;
    set_capabilities(None, sets).doing(action)
}

/// The kernel's bit of a capability.
pub(super) fn bit(capability: Capability) -> u64 {
    use Capability as C;
    let number = match capability {
        C::Chown => 0,
        C::DacOverride => 1,
        C::DacReadSearch => 2,
        C::Fowner => 3,
        C::Fsetid => 4,
        C::Kill => 5,
        C::Setgid => 6,
        C::Setuid => 7,
        C::Setpcap => 8,
        C::LinuxImmutable => 9,
        C::NetBindService => 10,
        C::NetBroadcast => 11,
        C::NetAdmin => 12,
        C::NetRaw => 13,
        C::IpcLock => 14,
        C::IpcOwner => 15,
        C::SysModule => 16,
        C::SysRawio => 17,
        C::SysChroot => 18,
        C::SysPtrace => 19,
        C::SysPacct => 20,
        C::SysAdmin => 21,
        C::SysBoot => 22,
        C::SysNice => 23,
        C::SysResource => 24,
        C::SysTime => 25,
        C::SysTtyConfig => 26,
        C::Mknod => 27,
        C::Lease => 28,
        C::AuditWrite => 29,
        C::AuditControl => 30,
        C::Setfcap => 31,
        C::MacOverride => 32,
        C::MacAdmin => 33,
        C::Syslog => 34,
        C::WakeAlarm => 35,
        C::BlockSuspend => 36,
        C::AuditRead => 37,
        C::Perfmon => 38,
        C::Bpf => 39,
        C::CheckpointRestore => 40,
    };
    1 << number
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::sandbox::spec::{DEFAULT_CAPABILITIES, capability_sets};

    #[test]
    fn the_default_set_is_dockers() {
        let sets = Sets::of(Some(&capability_sets(&DEFAULT_CAPABILITIES)));
        assert_eq!(sets.bounding, 0xa804_25fb);
        assert_eq!(sets.effective, sets.bounding);
        assert_eq!((sets.inheritable, sets.ambient), (0, 0));
        assert_eq!(Sets::of(None).bounding, 0);
    }
}
