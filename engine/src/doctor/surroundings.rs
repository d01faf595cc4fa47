//! What is around: the network, users' ids, emulators, and programs that some things need.

use std::fs;
use std::path::Path;

use rbuild_runtime::network::{Filter, packet_filter};

use super::Finding;

pub(super) fn examine(has: &dyn Fn(&str) -> bool) -> Vec<Finding> {
    vec![bridge(), filter(has), forwarding(), name_servers(), ids(), emulators(), programs(has)]
}

fn bridge() -> Finding {
    let modules = [("bridge", "/sys/module/bridge"), ("veth", "/sys/module/veth")];
    let release = rustix::system::uname().release().to_string_lossy().into_owned();
    let built_in = fs::read_to_string(format!("/lib/modules/{release}/modules.builtin")).unwrap_or_default();
    let loadable = fs::read_to_string(format!("/lib/modules/{release}/modules.dep")).unwrap_or_default();
    let known = |name: &str, path: &str| {
        let file = format!("/{name}.ko");
        Path::new(path).exists() || built_in.contains(&file) || loadable.contains(&file)
    };
    let missing: Vec<&str> = modules.iter().filter(|(name, path)| !known(name, path)).map(|(name, _)| *name).collect();
    match &missing[..] {
        [] => Finding::ok("bridges", "bridge veth"),
        // Without a list of modules nobody knows what the kernel would load.
        missing if loadable.is_empty() => Finding::ok("bridges", format!("not loaded yet: {}", missing.join(", "))),
        missing => Finding::problem(
            "bridges",
            format!("the kernel has not: {}", missing.join(", ")),
            "install the modules of the running kernel (it may have been updated since the start: then start it anew)",
        ),
    }
}

fn filter(has: &dyn Fn(&str) -> bool) -> Finding {
    match packet_filter() {
        Filter::Nftables => Finding::ok("packet filter", "nftables"),
        Filter::Missing if has("iptables") => Finding::ok("packet filter", "iptables"),
        Filter::Missing => Finding::problem(
            "packet filter",
            "neither nftables in the kernel nor the program iptables: containers have no way out and publish no ports",
            "load nf_tables (modprobe nf_tables) or install iptables; or use --network host",
        ),
    }
}

fn forwarding() -> Finding {
    let read = |path: &str| fs::read_to_string(path).unwrap_or_default().trim().to_owned();
    let v4 = read("/proc/sys/net/ipv4/ip_forward");
    match v4.as_str() {
        "1" => Finding::ok("forwarding", "on"),
        "0" => Finding::ok("forwarding", "off; the first network turns it on"),
        _ => Finding::warning("forwarding", "not known", "look at sysctl net.ipv4.ip_forward"),
    }
}

fn name_servers() -> Finding {
    let text = fs::read_to_string("/etc/resolv.conf").unwrap_or_default();
    let servers: Vec<&str> =
        text.lines().filter_map(|line| line.trim().strip_prefix("nameserver")).map(str::trim).collect();
    let local = |server: &&str| server.starts_with("127.") || *server == "::1";
    match &servers[..] {
        [] => Finding::warning(
            "name servers",
            "none in /etc/resolv.conf: containers find no names",
            "name one, or use --dns",
        ),
        all if all.iter().all(local) => Finding::ok(
            "name servers",
            format!("{} (of this machine: containers ask through rbuild or --dns)", all.join(" ")),
        ),
        all => Finding::ok("name servers", all.join(" ")),
    }
}

fn ids() -> Finding {
    let lines =
        |path: &str| fs::read_to_string(path).map(|text| text.lines().filter(|line| !line.trim().is_empty()).count());
    match (lines("/etc/subuid"), lines("/etc/subgid")) {
        (Ok(users), Ok(groups)) if users > 0 && groups > 0 => {
            Finding::ok("subordinate ids", format!("{users} of users, {groups} of groups"))
        }
        _ => Finding::warning(
            "subordinate ids",
            "none in /etc/subuid and /etc/subgid",
            "only needed for user namespaces: usermod --add-subuids 100000-165535 --add-subgids 100000-165535 USER",
        ),
    }
}

fn emulators() -> Finding {
    let advice = "only needed for images of other machines: install qemu-user-static and binfmt-support";
    let place = Path::new("/proc/sys/fs/binfmt_misc");
    if !place.join("register").exists() {
        return Finding::warning("emulators", "binfmt_misc is not mounted", advice);
    }
    let names = fs::read_dir(place).into_iter().flatten().flatten();
    let mut emulators: Vec<String> = names
        .map(|entry| entry.file_name().to_string_lossy().into_owned())
        .filter_map(|name| name.strip_prefix("qemu-").map(str::to_owned))
        .collect();
    emulators.sort();
    if emulators.is_empty() {
        return Finding::warning("emulators", "none is registered with binfmt_misc", advice);
    }
    Finding::ok("emulators", emulators.join(" "))
}

fn programs(has: &dyn Fn(&str) -> bool) -> Finding {
    let missing: Vec<&str> = ["git", "ssh"].into_iter().filter(|name| !has(name)).collect();
    if missing.is_empty() {
        return Finding::ok("programs", "git ssh");
    }
    Finding::warning(
        "programs",
        format!("not installed: {}", missing.join(", ")),
        "only needed for builds from git repositories: install them",
    )
}
