//! The bridge: found or made, with its range, its rules, and forwarding switched on.

use std::fs;
use std::io;
use std::net::{IpAddr, Ipv4Addr, Ipv6Addr};
use std::path::{Path, PathBuf};
use std::thread;
use std::time::{Duration, Instant};

use serde::{Deserialize, Serialize};

use super::firewall::Rules;
use super::netlink::Socket;
use super::{Error, Mac, Subnet, Subnet6, link};

/// The name of the bridge that containers and RUN steps get unless told otherwise.
pub const DEFAULT_BRIDGE: &str = "rbuild0";

/// A namespace whose last process ended is gone by then, however much there is to take apart.
const FREED_WITHIN: Duration = Duration::from_secs(10);

/// Before the state directory in the note on an interface.
const NOTE: &str = "rbuild ";
/// The longest note the kernel takes, in bytes.
const LONGEST_NOTE: usize = 254;

const FORWARDING: &str = "/proc/sys/net/ipv4/ip_forward";
const INTERFACES6: &str = "/proc/sys/net/ipv6/conf";

/// Which bridge is wanted.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct BridgeOptions {
    /// Interface name, at most 15 bytes.
    pub name: String,
    /// The range; `None` takes the first free private one.
    pub subnet: Option<Subnet>,
    /// The bridge's own address; `None` takes the first of the range.
    pub gateway: Option<Ipv4Addr>,
    /// A range and the bridge's address in it, for a bridge with IPv6 too.
    pub subnet6: Option<(Subnet6, Ipv6Addr)>,
    /// The largest packet; `None` takes that of the machine's way out.
    pub mtu: Option<u32>,
    /// No way out and none in.
    pub internal: bool,
    /// Those attached reach the bridge and what is behind it, but not each other.
    pub separate: bool,
    /// What leaves it keeps its address: somebody else knows the way back.
    #[serde(default)]
    pub routed: bool,
    /// The state directory it belongs to, noted on the interface: without it the bridge is nobody's, see
    /// [`Bridge::remove_orphans`].
    #[serde(default)]
    pub home: Option<PathBuf>,
}

impl Default for BridgeOptions {
    fn default() -> Self {
        Self {
            name: DEFAULT_BRIDGE.to_owned(),
            subnet: None,
            gateway: None,
            subnet6: None,
            mtu: None,
            internal: false,
            separate: false,
            routed: false,
            home: None,
        }
    }
}

/// A bridge that is up, has an address, and, unless it is internal, reaches the outside by address translation.
#[derive(Clone, Debug)]
pub struct Bridge {
    pub name: String,
    pub subnet: Subnet,
    pub gateway: Ipv4Addr,
    pub subnet6: Option<(Subnet6, Ipv6Addr)>,
    pub internal: bool,
    pub(super) separate: bool,
    routed: bool,
    pub(super) index: u32,
    pub(super) mtu: u32,
}

impl Bridge {
    /// Finds or makes the bridge in the calling thread's network namespace. Cheap when it is there: four questions to
    /// the kernel. Any number of processes may do so at once.
    pub fn ensure(options: &BridgeOptions) -> Result<Self, Error> {
        let mut socket = link::open().map_err(|e| Error::kernel("open a netlink socket", e))?;
        let bridge = match existing(&mut socket, options)? {
            Some(bridge) => bridge,
            None => create(&mut socket, options)?,
        };
        bridge.rules().ensure()?;
        if !options.internal {
            forward()?;
            if options.subnet6.is_some() {
                forward6()?;
            }
        }
        Ok(bridge)
    }

    /// Makes a bridge that is not there yet, in a range that nobody on the machine has and that overlaps with none of
    /// `avoid`. Without a range in the options, two processes that do so at once get different ones.
    ///
    /// # Errors
    /// `Exists` for the name, `Overlaps` for a range.
    pub fn make(options: &BridgeOptions, avoid: &[Subnet]) -> Result<Self, Error> {
        let name = &options.name;
        let failed = |e: io::Error| Error::kernel(format!("make bridge {name}"), e);
        let mut socket = link::open().map_err(failed)?;
        let mut taken = in_use(&mut socket).map_err(failed)?;
        taken.extend(avoid);
        if let Some(subnet) = options.subnet.filter(|s| taken.iter().any(|t| t.overlaps(s))) {
            return Err(Error::Overlaps(subnet.to_string()));
        }
        if let Some((subnet, _)) = options.subnet6 {
            let theirs = link::addresses6(&mut socket).map_err(failed)?;
            if theirs.iter().any(|(_, address, prefix)| Subnet6::around(*address, *prefix).overlaps(&subnet)) {
                return Err(Error::Overlaps(subnet.to_string()));
            }
        }
        match link::create_bridge(&mut socket, name) {
            Err(error) if error.kind() == io::ErrorKind::AlreadyExists => return Err(Error::Exists(name.clone())),
            other => other.map_err(failed)?,
        }
        let made = claim_range(&mut socket, options, taken)
            .and_then(|subnet| Self::ensure(&BridgeOptions { subnet: Some(subnet), ..options.clone() }));
        if made.is_err() {
            // Nobody knows of it yet, so nobody misses it.
            let index = link::find(&mut socket, name).map_err(failed)?.map(|l| l.index);
            index.map_or(Ok(()), |index| link::remove(&mut socket, index)).map_err(failed)?;
        }
        made
    }

    /// Removes a bridge with its rules, unless something is attached to it. Whether it is gone.
    pub fn remove(options: &BridgeOptions) -> Result<bool, Error> {
        let failed = |e: io::Error| Error::kernel(format!("remove bridge {}", options.name), e);
        let mut socket = link::open().map_err(failed)?;
        if let Some(found) = link::find(&mut socket, &options.name).map_err(failed)? {
            if link::has_ports(&mut socket, found.index).map_err(failed)? {
                return Ok(false);
            }
            link::remove(&mut socket, found.index).map_err(failed)?;
        }
        if let Some(subnet) = options.subnet {
            let subnet6 = options.subnet6.map(|(subnet, _)| subnet);
            Rules { bridge: &options.name, subnet, subnet6, internal: options.internal, routed: options.routed }
                .remove()?;
        }
        Ok(true)
    }

    /// Removes a bridge that nobody connects to any more. What ended containers had on it is there a little longer than they
    /// are: the kernel takes their namespaces apart in its own time, which is waited for. Whether it is gone.
    ///
    /// # Errors
    /// Those of [`Bridge::remove`].
    pub fn remove_freed(options: &BridgeOptions) -> Result<bool, Error> {
        let start = Instant::now();
        loop {
            let gone = Self::remove(options)?;
            if gone || start.elapsed() >= FREED_WITHIN {
                return Ok(gone);
            }
            thread::sleep(Duration::from_millis(5));
        }
    }

    /// Bridges, nothing attached to them, whose state directory was removed by hand: nobody else will remove them. What is
    /// wrong with one does not keep the others.
    pub fn remove_orphans() -> Vec<String> {
        let mut removed = Vec::new();
        for name in orphans(Path::new("/sys/class/net")) {
            let subnet = link::open()
                .ok()
                .and_then(|mut socket| {
                    existing(&mut socket, &BridgeOptions { name: name.clone(), ..Default::default() }).ok()?
                })
                .map(|bridge| bridge.subnet);
            match Self::remove(&BridgeOptions { name: name.clone(), subnet, ..BridgeOptions::default() }) {
                Ok(true) => removed.push(name),
                Ok(false) => {}
                Err(error) => tracing::debug!(%error, name, "a bridge without a state directory stays"),
            }
        }
        removed
    }

    fn rules(&self) -> Rules<'_> {
        Rules {
            bridge: &self.name,
            subnet: self.subnet,
            subnet6: self.subnet6.map(|(subnet, _)| subnet),
            internal: self.internal,
            routed: self.routed,
        }
    }
}

/// Interfaces that note a state directory which is not there any more.
fn orphans(interfaces: &Path) -> Vec<String> {
    let entries = fs::read_dir(interfaces).into_iter().flatten().flatten();
    let names = entries.map(|entry| entry.file_name().to_string_lossy().into_owned());
    let is_orphan = |name: &String| {
        let note = fs::read_to_string(interfaces.join(name).join("ifalias")).unwrap_or_default();
        let home = note.trim_end_matches(['\n', '\0']).strip_prefix(NOTE);
        // What cannot be looked at (no right, a network's disk that is away) is not taken for gone.
        home.is_some_and(|home| Path::new(home).is_absolute() && matches!(Path::new(home).try_exists(), Ok(false)))
    };
    names.filter(|name| name.starts_with("rb-")).filter(is_orphan).collect()
}

/// The bridge as it is, when it is whole (up and with an address).
fn existing(socket: &mut Socket, options: &BridgeOptions) -> Result<Option<Bridge>, Error> {
    let name = &options.name;
    let found = link::find(socket, name).map_err(|e| Error::kernel(format!("look for {name}"), e))?;
    let Some(found) = found.filter(|link| link.up) else {
        return Ok(None);
    };
    let addresses = link::addresses(socket).map_err(|e| Error::kernel("list addresses", e))?;
    let own = addresses.into_iter().find(|(index, ..)| *index == found.index);
    Ok(own.map(|(_, gateway, subnet)| Bridge {
        name: name.clone(),
        subnet,
        gateway,
        subnet6: options.subnet6,
        internal: options.internal,
        separate: options.separate,
        routed: options.routed,
        index: found.index,
        mtu: found.mtu,
    }))
}

fn create(socket: &mut Socket, options: &BridgeOptions) -> Result<Bridge, Error> {
    let name = &options.name;
    let failed = |e: io::Error| Error::kernel(format!("make bridge {name}"), e);
    let subnet = match options.subnet {
        Some(subnet) => subnet,
        None => {
            let taken = in_use(socket).map_err(failed)?;
            let free = ranges().find(|range| !taken.iter().any(|t| t.overlaps(range)));
            free.ok_or_else(|| Error::NoRange(name.clone()))?
        }
    };
    let gateway = options.gateway.unwrap_or_else(|| subnet.host(1));
    let mtu = match options.mtu {
        Some(mtu) => mtu,
        None => way_out_mtu(socket).map_err(failed)?,
    };
    match link::create_bridge(socket, name) {
        Err(error) if error.kind() != io::ErrorKind::AlreadyExists => return Err(failed(error)),
        // Somebody else is at it, or was killed at it: both do the same now, and the kernel keeps one of each.
        _ => {}
    }
    let found = link::find(socket, name).map_err(failed)?.ok_or_else(|| Error::NoAddress(name.clone()))?;
    let mut addresses = vec![(IpAddr::V4(gateway), subnet.prefix())];
    addresses.extend(options.subnet6.map(|(subnet, gateway)| (IpAddr::V6(gateway), subnet.prefix())));
    link::configure(socket, found.index, &addresses, Some((Mac::of(gateway), mtu))).map_err(failed)?;
    let note = options.home.as_deref().and_then(Path::to_str).map(|home| format!("{NOTE}{home}"));
    if let Some(note) = note.filter(|note| note.len() <= LONGEST_NOTE)
        && let Err(error) = link::set_note(socket, found.index, &note)
    {
        tracing::debug!(%error, bridge = name, "the bridge does not say whose it is");
    }
    // Two that made it at once may have chosen different ranges; the first address listed is the one all use.
    for _ in 0..20 {
        if let Some(bridge) = existing(socket, options)? {
            return Ok(bridge);
        }
        thread::sleep(Duration::from_millis(5));
    }
    Err(Error::NoAddress(name.clone()))
}

/// Takes the range for the bridge, or the first free one, by giving the bridge a second name that says so: the kernel
/// lets only one interface have it, whichever store it is of.
fn claim_range(socket: &mut Socket, options: &BridgeOptions, mut taken: Vec<Subnet>) -> Result<Subnet, Error> {
    let failed = |e: io::Error| Error::kernel(format!("make bridge {}", options.name), e);
    let bridge = link::find(socket, &options.name).map_err(failed)?.ok_or(Error::NoAddress(options.name.clone()))?;
    loop {
        let subnet = match options.subnet {
            Some(subnet) => subnet,
            None => ranges()
                .find(|range| !taken.iter().any(|t| t.overlaps(range)))
                .ok_or_else(|| Error::NoRange(options.name.clone()))?,
        };
        match link::add_name(socket, bridge.index, &format!("rbuild-{}-{}", subnet.first(), subnet.prefix())) {
            Ok(()) => return Ok(subnet),
            Err(error) if error.kind() != io::ErrorKind::AlreadyExists => return Err(failed(error)),
            Err(_) if options.subnet.is_some() => return Err(Error::Overlaps(subnet.to_string())),
            Err(_) => taken.push(subnet),
        }
    }
}

/// The ranges that interfaces and routes use.
fn in_use(socket: &mut Socket) -> io::Result<Vec<Subnet>> {
    let mut taken: Vec<Subnet> = link::addresses(socket)?.into_iter().map(|(_, _, subnet)| subnet).collect();
    taken.extend(link::routes(socket)?.iter().map(|r| r.to).filter(|to| to.prefix() > 0));
    Ok(taken)
}

/// The largest packet of the interface that the default route leads to. Larger ones would be lost where path discovery is
/// filtered.
fn way_out_mtu(socket: &mut Socket) -> io::Result<u32> {
    let routes = link::routes(socket)?;
    match routes.iter().find(|r| r.to.prefix() == 0).and_then(|r| r.link) {
        Some(index) => Ok(link::by_index(socket, index)?.map_or(1500, |l| l.mtu.min(65535))),
        None => Ok(1500),
    }
}

/// The private ranges that bridges get, in docker's order.
fn ranges() -> impl Iterator<Item = Subnet> {
    let sixteens = (17..=31).map(|n| Subnet::around(Ipv4Addr::new(172, n, 0, 0), 16));
    let twenties = (0..16).map(|n| Subnet::around(Ipv4Addr::new(192, 168, n * 16, 0), 20));
    let tens = (0..=255).map(|n| Subnet::around(Ipv4Addr::new(10, n, 0, 0), 16));
    sixteens.chain(twenties).chain(tens)
}

/// Switches forwarding on in this namespace; reading first, since `/proc/sys` may be read-only with it already on.
fn forward() -> Result<(), Error> {
    if fs::read(FORWARDING).is_ok_and(|v| v.first() == Some(&b'1')) {
        return Ok(());
    }
    fs::write(FORWARDING, "1").map_err(Error::Forwarding)
}

/// The same for IPv6. A machine that forwards no longer listens to routers, unless told to: interfaces that did shall go on.
fn forward6() -> Result<(), Error> {
    let all = format!("{INTERFACES6}/all/forwarding");
    if fs::read(&all).is_ok_and(|v| v.first() == Some(&b'1')) {
        return Ok(());
    }
    for interface in fs::read_dir(INTERFACES6).map_err(Error::Forwarding)?.flatten() {
        let listens = interface.path().join("accept_ra");
        if fs::read(&listens).is_ok_and(|v| v.first() == Some(&b'1')) {
            fs::write(&listens, "2").map_err(Error::Forwarding)?;
        }
    }
    fs::write(&all, "1").map_err(Error::Forwarding)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn bridges_of_a_state_directory_that_is_gone() {
        let dir = tempfile::tempdir().unwrap();
        let here = dir.path().display();
        for (name, note) in [
            ("rb-there", format!("rbuild {here}\n")),
            ("rb-gone", format!("rbuild {here}/gone\n")),
            ("rb-other", "somebody's\n".to_owned()),
            ("rb-silent", "\n".to_owned()),
            ("rb-odd", "rbuild relative\n".to_owned()),
            ("br0", format!("rbuild {here}/gone\n")),
        ] {
            fs::create_dir(dir.path().join(name)).unwrap();
            fs::write(dir.path().join(name).join("ifalias"), note).unwrap();
        }
        assert_eq!(orphans(dir.path()), ["rb-gone"]);
    }

    #[test]
    fn ranges_skip_what_is_taken() {
        let net = |a, b, p| Subnet::around(Ipv4Addr::new(a, b, 0, 0), p);
        let free = |taken: &[Subnet]| ranges().find(|range| !taken.iter().any(|t| t.overlaps(range)));
        assert_eq!(free(&[]), Some(net(172, 17, 16)));
        assert_eq!(free(&[net(172, 17, 24)]), Some(net(172, 18, 16)));
        assert_eq!(free(&[net(172, 16, 12)]), Some(net(192, 168, 20)));
        assert_eq!(free(&[net(0, 0, 1), net(128, 0, 1)]), None);
    }
}
