//! Whether this machine can run programs of another architecture.
//!
//! The kernel does it through `binfmt_misc`, when an emulator is registered there. The emulator has to be opened at
//! registration (flag `F`), for it is not in the images. Asking before the build starts gives an error that says what to
//! install, in place of `exec format error` in the middle of it.

use std::path::Path;

use rbuild_graph::BuildGraph;
use rbuild_graph::ops::Op;
use rbuild_oci::Platform;

use crate::error::Error;

const REGISTERED: &str = "/proc/sys/fs/binfmt_misc";

/// Architectures as the image specification calls them: the numbers of their ELF headers (class, byte order, machine),
/// and what emulators are called after.
const MACHINES: [(&str, u8, u8, u16, &str); 9] = [
    ("amd64", 2, 1, 62, "x86_64"),
    ("386", 1, 1, 3, "i386"),
    ("arm64", 2, 1, 183, "aarch64"),
    ("arm", 1, 1, 40, "arm"),
    ("riscv64", 2, 1, 243, "riscv64"),
    ("ppc64le", 2, 1, 21, "ppc64le"),
    ("s390x", 2, 2, 22, "s390x"),
    ("mips64le", 2, 1, 8, "mips64el"),
    ("loong64", 2, 1, 258, "loongarch64"),
];

/// Looks at every step of the graph that runs a program.
///
/// # Errors
/// The first platform whose programs cannot run here, with what to install.
pub(crate) fn check(graph: &BuildGraph) -> Result<(), Error> {
    let host = Platform::host();
    for id in graph.ids() {
        let vertex = graph.vertex(id);
        let wanted = &vertex.meta.platform;
        if matches!(vertex.op, Op::Exec(_)) && !runs_here(wanted, &host, Path::new(REGISTERED)) {
            return Err(refusal(wanted, &host));
        }
    }
    Ok(())
}

fn refusal(wanted: &Platform, host: &Platform) -> Error {
    if wanted.os != host.os {
        return Error::unsupported(format!("programs for {wanted} cannot run on {host}"));
    }
    let name = MACHINES.iter().find(|machine| machine.0 == wanted.architecture).map(|machine| machine.4);
    let error = Error::unsupported(format!(
        "programs for {wanted} cannot run on this machine ({host}): no emulator is registered with binfmt_misc"
    ));
    match name {
        Some(name) => error.with_hint(format!(
            "install one that provides qemu-{name}: on Debian and Ubuntu the packages qemu-user-static and binfmt-support"
        )),
        None => error,
    }
}

fn runs_here(wanted: &Platform, host: &Platform, registered: &Path) -> bool {
    if wanted.os != host.os {
        return false;
    }
    // These processors run the older architecture themselves.
    let native = [("amd64", "386"), ("arm64", "arm")];
    if wanted.architecture == host.architecture
        || native.contains(&(host.architecture.as_str(), wanted.architecture.as_str()))
    {
        return true;
    }
    let Some(header) = elf_header(&wanted.architecture) else { return false };
    let Ok(entries) = std::fs::read_dir(registered) else { return false };
    entries.filter_map(Result::ok).any(|entry| {
        // `register` and `status` cannot be read, or say nothing of the kind.
        std::fs::read_to_string(entry.path()).is_ok_and(|text| takes(&text, &header))
    })
}

/// The first bytes of a program of this architecture.
fn elf_header(architecture: &str) -> Option<[u8; 20]> {
    let (_, class, order, machine, _) = MACHINES.iter().find(|machine| machine.0 == architecture)?;
    let number = |value: u16| if *order == 1 { value.to_le_bytes() } else { value.to_be_bytes() };
    let mut header = [0; 20];
    header[..7].copy_from_slice(&[0x7f, b'E', b'L', b'F', *class, *order, 1]);
    header[16..18].copy_from_slice(&number(2));
    header[18..].copy_from_slice(&number(*machine));
    Some(header)
}

/// Whether a registration, as the kernel shows it, is switched on, needs no file of the image, and takes `header`.
fn takes(registration: &str, header: &[u8]) -> bool {
    let value = |name: &str| registration.lines().find_map(|line| line.strip_prefix(name)).map(str::trim);
    let bytes = |name: &str| value(name).and_then(from_hex);
    let Some(magic) = bytes("magic ") else { return false };
    let mask = bytes("mask ").unwrap_or_else(|| vec![0xff; magic.len()]);
    let offset = value("offset ").and_then(|text| text.parse().ok()).unwrap_or(0_usize);
    let fixed = value("flags:").is_some_and(|flags| flags.contains('F'));
    let Some(part) = header.get(offset..).filter(|part| part.len() >= magic.len()) else { return false };
    let same = magic.iter().zip(&mask).zip(part).all(|((magic, mask), byte)| byte & mask == magic & mask);
    registration.lines().next() == Some("enabled") && fixed && same
}

fn from_hex(text: &str) -> Option<Vec<u8>> {
    let digits: Vec<u32> = text.chars().map(|c| c.to_digit(16)).collect::<Option<_>>()?;
    Some(digits.chunks(2).map(|pair| pair.iter().fold(0, |byte, digit| byte << 4 | *digit as u8)).collect())
}

#[cfg(test)]
mod tests {
    use super::*;

    /// As the kernel shows what Debian's qemu-user registers for arm64.
    const ARM64: &str = "enabled\ninterpreter /usr/libexec/qemu-binfmt/aarch64-binfmt-P\nflags: POCF\noffset 0\n\
        magic 7f454c460201010000000000000000000200b700\nmask ffffffffffffff00fffffffffffffffffeffffff\n";

    fn platform(text: &str) -> Platform {
        Platform::parse(text).unwrap()
    }

    #[test]
    fn registrations_are_read() {
        let header = elf_header("arm64").unwrap();
        assert!(takes(ARM64, &header));
        assert!(!takes(ARM64, &elf_header("s390x").unwrap()));
        assert!(!takes(&ARM64.replace("POCF", "POC"), &header));
        assert!(!takes(&ARM64.replace("enabled", "disabled"), &header));
        assert!(!takes("enabled\n", &header));
    }

    #[test]
    fn what_runs_and_what_to_install() {
        let dir = tempfile::tempdir().unwrap();
        let (amd, arm) = (platform("linux/amd64"), platform("linux/arm64"));
        assert!(runs_here(&amd, &amd, dir.path()));
        assert!(runs_here(&platform("linux/386"), &amd, dir.path()));
        assert!(!runs_here(&arm, &amd, dir.path()));
        assert!(!runs_here(&platform("windows/amd64"), &amd, dir.path()));
        std::fs::write(dir.path().join("qemu-aarch64"), ARM64).unwrap();
        assert!(runs_here(&arm, &amd, dir.path()));
        let error = refusal(&arm, &amd);
        assert!(error.message.starts_with("programs for linux/arm64 cannot run on this machine (linux/amd64)"));
        assert!(error.hints[0].contains("qemu-aarch64") && error.hints[0].contains("qemu-user-static"));
    }
}
