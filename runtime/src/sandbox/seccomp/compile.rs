//! Profile to BPF: a binary search over call numbers whose leaves are actions, some after a look at arguments.
//!
//! Rules for one call are tried in order; without a match the default action holds. Numbers above every known one are
//! newer than the list and answer ENOSYS where the default is an error, so that programs use what they used before.

use std::collections::BTreeMap;

use oci_spec::runtime::{LinuxSeccomp, LinuxSeccompAction, LinuxSeccompArg, LinuxSeccompOperator};

use super::super::sys::Instruction;
use super::syscalls;
use crate::error::{Error, Result};

const LOAD: u16 = 0x20;
const JUMP: u16 = 0x05;
const EQUAL: u16 = 0x15;
const GREATER: u16 = 0x25;
const GREATER_OR_EQUAL: u16 = 0x35;
const AND: u16 = 0x54;
const RETURN: u16 = 0x06;

// Offsets in seccomp_data.
const NUMBER: u32 = 0;
const ARCHITECTURE: u32 = 4;
const ARGUMENTS: u32 = 16;

#[cfg(target_arch = "x86_64")]
const NATIVE: u32 = 0xc000_003e;
#[cfg(target_arch = "aarch64")]
const NATIVE: u32 = 0xc000_00b7;

const ENOSYS: u32 = libc::SECCOMP_RET_ERRNO | libc::ENOSYS as u32;

/// What happens at a call: answers with conditions in order, then one without.
#[derive(Debug, Clone, PartialEq, Eq)]
struct Leaf {
    tests: Vec<(Vec<LinuxSeccompArg>, u32)>,
    otherwise: u32,
}

/// Compiles a profile to instructions, packed eight bytes each; see [`unpack`].
pub(in super::super) fn compile(profile: &LinuxSeccomp) -> Result<Vec<u64>> {
    refuse_unsupported(profile)?;
    let default = answer(profile.default_action(), profile.default_errno_ret())?;
    let leaves = leaves(profile, default)?;
    let newer = if profile.default_action() == LinuxSeccompAction::ScmpActErrno { ENOSYS } else { default };
    let mut program = vec![
        plain(LOAD, ARCHITECTURE),
        jump(EQUAL, NATIVE, 1, 0),
        // Another architecture's numbers mean other calls.
        plain(RETURN, ENOSYS),
        plain(LOAD, NUMBER),
    ];
    program.extend(search(&segments(leaves, default, newer))?);
    if program.len() > 4096 {
        return Err(Error::Refused(format!("the seccomp profile needs {} instructions of 4096", program.len())));
    }
    Ok(program.iter().map(pack).collect())
}

fn refuse_unsupported(profile: &LinuxSeccomp) -> Result<()> {
    if profile.listener_path().is_some() {
        return Err(Error::Unsupported("a seccomp listener".to_owned()));
    }
    if profile.flags().as_ref().is_some_and(|flags| !flags.is_empty()) {
        return Err(Error::Unsupported("a seccomp filter flag".to_owned()));
    }
    Ok(())
}

fn leaves(profile: &LinuxSeccomp, default: u32) -> Result<BTreeMap<u32, Leaf>> {
    let mut leaves: BTreeMap<u32, (Leaf, bool)> = BTreeMap::new();
    let mut numbers = std::collections::HashMap::new();
    for (name, number) in syscalls::all() {
        numbers.insert(name, number as u32);
    }
    for rule in profile.syscalls().iter().flatten() {
        let answer = answer(rule.action(), rule.errno_ret())?;
        let arguments = rule.args().clone().unwrap_or_default();
        for name in rule.names() {
            // A call of other architectures.
            let Some(&number) = numbers.get(name.as_str()) else { continue };
            let new = || (Leaf { tests: Vec::new(), otherwise: default }, false);
            let (leaf, closed) = leaves.entry(number).or_insert_with(new);
            if *closed {
                continue;
            }
            if arguments.is_empty() {
                (leaf.otherwise, *closed) = (answer, true);
            } else {
                leaf.tests.push((arguments.clone(), answer));
            }
        }
    }
    Ok(leaves.into_iter().map(|(number, (leaf, _))| (number, leaf)).collect())
}

fn answer(action: LinuxSeccompAction, errno: Option<u32>) -> Result<u32> {
    use LinuxSeccompAction as A;
    Ok(match action {
        A::ScmpActKill | A::ScmpActKillThread => libc::SECCOMP_RET_KILL_THREAD,
        A::ScmpActKillProcess => libc::SECCOMP_RET_KILL_PROCESS,
        A::ScmpActTrap => libc::SECCOMP_RET_TRAP,
        A::ScmpActErrno => libc::SECCOMP_RET_ERRNO | errno.unwrap_or(libc::EPERM as u32) & 0xffff,
        A::ScmpActTrace => libc::SECCOMP_RET_TRACE | errno.unwrap_or(libc::EPERM as u32) & 0xffff,
        A::ScmpActLog => libc::SECCOMP_RET_LOG,
        A::ScmpActAllow => libc::SECCOMP_RET_ALLOW,
        A::ScmpActNotify => return Err(Error::Unsupported("a seccomp rule that notifies".to_owned())),
    })
}

/// First numbers of ranges that are treated alike, in order, from 0 on.
fn segments(leaves: BTreeMap<u32, Leaf>, default: u32, newer: u32) -> Vec<(u32, Leaf)> {
    let simple = |otherwise| Leaf { tests: Vec::new(), otherwise };
    let mut segments: Vec<(u32, Leaf)> = Vec::new();
    let mut push = |start: u32, leaf: Leaf| match segments.last_mut() {
        Some((_, last)) if *last == leaf => {}
        Some((at, last)) if *at == start => *last = leaf,
        _ => segments.push((start, leaf)),
    };
    push(0, simple(default));
    for (number, leaf) in leaves {
        push(number, leaf);
        push(number + 1, simple(default));
    }
    push(syscalls::highest() + 1, simple(newer));
    // Replacing one start may have made two neighbours alike.
    segments.dedup_by(|later, earlier| later.1 == earlier.1);
    segments
}

fn search(segments: &[(u32, Leaf)]) -> Result<Vec<Instruction>> {
    let [(_, leaf)] = segments else {
        let (below, above) = segments.split_at(segments.len() / 2);
        let start = above[0].0;
        let (below, above) = (search(below)?, search(above)?);
        let mut code = Vec::with_capacity(below.len() + above.len() + 2);
        match u8::try_from(below.len()) {
            Ok(skip) => code.push(jump(GREATER_OR_EQUAL, start, skip, 0)),
            Err(_) => {
                code.push(jump(GREATER_OR_EQUAL, start, 0, 1));
                code.push(plain(JUMP, below.len() as u32));
            }
        }
        code.extend(below);
        code.extend(above);
        return Ok(code);
    };
    let mut code = Vec::new();
    for (arguments, answer) in &leaf.tests {
        let mut rule = vec![plain(RETURN, *answer)];
        for argument in arguments.iter().rev() {
            let mut test = condition(argument, rule.len())?;
            test.append(&mut rule);
            rule = test;
        }
        code.extend(rule);
    }
    code.push(plain(RETURN, leaf.otherwise));
    Ok(code)
}

/// Code that falls through when the condition holds and jumps over `rest` instructions after itself when not.
fn condition(argument: &LinuxSeccompArg, rest: usize) -> Result<Vec<Instruction>> {
    use LinuxSeccompOperator as O;
    let index = u32::try_from(argument.index()).ok().filter(|&index| index < 6);
    let Some(index) = index else {
        return Err(Error::Refused("a seccomp rule about an argument past the sixth".to_owned()));
    };
    let fail = u8::try_from(rest).ok().filter(|&rest| rest < 240);
    let Some(fail) = fail else {
        return Err(Error::Refused("a seccomp rule with too many conditions".to_owned()));
    };
    let low = ARGUMENTS + 8 * index;
    let (load_high, load_low) = (plain(LOAD, low + 4), plain(LOAD, low));
    let halves = |value: u64| ((value >> 32) as u32, value as u32);
    let (high_value, low_value) = halves(argument.value());
    // Jumps count from the next instruction; the last of these four has `fail` to jump.
    let compare = |code, pass_if: bool| {
        let (greater, differs) = if pass_if { (2, fail + 2) } else { (fail + 2, 2) };
        let last = if pass_if { jump(code, low_value, 0, fail) } else { jump(code, low_value, fail, 0) };
        vec![load_high, jump(GREATER, high_value, greater + 1, 0), jump(EQUAL, high_value, 0, differs), load_low, last]
    };
    Ok(match argument.op() {
        O::ScmpCmpEq => {
            vec![load_high, jump(EQUAL, high_value, 0, fail + 2), load_low, jump(EQUAL, low_value, 0, fail)]
        }
        O::ScmpCmpNe => vec![load_high, jump(EQUAL, high_value, 0, 2), load_low, jump(EQUAL, low_value, fail, 0)],
        O::ScmpCmpMaskedEq => {
            let (high, low) = halves(argument.value_two().unwrap_or(0));
            vec![
                load_high,
                plain(AND, high_value),
                jump(EQUAL, high, 0, fail + 3),
                load_low,
                plain(AND, low_value),
                jump(EQUAL, low, 0, fail),
            ]
        }
        O::ScmpCmpGt => compare(GREATER, true),
        O::ScmpCmpGe => compare(GREATER_OR_EQUAL, true),
        O::ScmpCmpLe => compare(GREATER, false),
        O::ScmpCmpLt => compare(GREATER_OR_EQUAL, false),
    })
}

fn plain(code: u16, k: u32) -> Instruction {
    Instruction { code, jt: 0, jf: 0, k }
}

fn jump(code: u16, k: u32, jt: u8, jf: u8) -> Instruction {
    Instruction { code, jt, jf, k }
}

fn pack(one: &Instruction) -> u64 {
    u64::from(one.code) | u64::from(one.jt) << 16 | u64::from(one.jf) << 24 | u64::from(one.k) << 32
}

/// The instructions of a packed program.
pub(in super::super) fn unpack(program: &[u64]) -> Vec<Instruction> {
    let one = |&packed: &u64| Instruction {
        code: packed as u16,
        jt: (packed >> 16) as u8,
        jf: (packed >> 24) as u8,
        k: (packed >> 32) as u32,
    };
    program.iter().map(one).collect()
}

#[cfg(test)]
mod tests {
    use oci_spec::runtime::{
        Capabilities, Capability, LinuxSeccompArgBuilder, LinuxSeccompBuilder, LinuxSyscallBuilder,
    };

    use super::super::default_profile;
    use super::*;

    /// The kernel's interpreter, for the few operations used.
    fn run(program: &[u64], architecture: u32, number: u32, arguments: [u64; 6]) -> u32 {
        let mut data = [0u8; 64];
        data[0..4].copy_from_slice(&number.to_le_bytes());
        data[4..8].copy_from_slice(&architecture.to_le_bytes());
        for (n, argument) in arguments.iter().enumerate() {
            data[16 + 8 * n..24 + 8 * n].copy_from_slice(&argument.to_le_bytes());
        }
        let (program, mut at, mut a) = (unpack(program), 0usize, 0u32);
        loop {
            let Instruction { code, jt, jf, k } = program[at];
            at += 1;
            let branch = |holds: bool| usize::from(if holds { jt } else { jf });
            match code {
                LOAD => a = u32::from_le_bytes(data[k as usize..k as usize + 4].try_into().unwrap()),
                AND => a &= k,
                JUMP => at += k as usize,
                EQUAL => at += branch(a == k),
                GREATER => at += branch(a > k),
                GREATER_OR_EQUAL => at += branch(a >= k),
                RETURN => return k,
                other => panic!("operation {other:#x}"),
            }
        }
    }

    const ALLOW: u32 = libc::SECCOMP_RET_ALLOW;
    const EPERM: u32 = libc::SECCOMP_RET_ERRNO | libc::EPERM as u32;

    fn of(capabilities: &[Capability], name: &str, first: u64) -> u32 {
        let set: Capabilities = capabilities.iter().copied().collect();
        let program = compile(&default_profile(&set)).unwrap();
        run(&program, NATIVE, syscalls::number(name).unwrap(), [first, 0, 0, 0, 0, 0])
    }

    #[test]
    fn the_default_profile_answers_as_promised() {
        let table: &[(&[Capability], &str, u64, u32)] = &[
            (&[], "read", 0, ALLOW),
            (&[], "writev", 7, ALLOW),
            (&[], "mount", 0, EPERM),
            (&[Capability::SysAdmin], "mount", 0, ALLOW),
            (&[], "io_uring_setup", 0, EPERM),
            (&[Capability::SysAdmin], "io_uring_setup", 0, EPERM),
            (&[], "userfaultfd", 0, EPERM),
            (&[], "keyctl", 0, EPERM),
            (&[], "bpf", 0, EPERM),
            (&[], "fsopen", 0, EPERM),
            (&[], "open_by_handle_at", 0, EPERM),
            (&[], "clone3", 0, ENOSYS),
            (&[], "clone", libc::SIGCHLD as u64, ALLOW),
            (&[], "clone", libc::CLONE_NEWUSER as u64, EPERM),
            (&[], "socket", libc::AF_INET as u64, ALLOW),
            (&[], "socket", libc::AF_ALG as u64, EPERM),
            (&[], "socket", libc::AF_VSOCK as u64 | 1 << 32, EPERM),
            (&[], "personality", 0xffff_ffff, ALLOW),
            (&[], "personality", 0x0040_0000, EPERM),
            (&[], "chroot", 0, EPERM),
            (&[Capability::SysChroot], "chroot", 0, ALLOW),
        ];
        for &(capabilities, name, first, wanted) in table {
            assert_eq!(of(capabilities, name, first), wanted, "{name} {first:#x}");
        }
        let program = compile(&default_profile(&Capabilities::default())).unwrap();
        assert_eq!(run(&program, NATIVE, 5000, [0; 6]), ENOSYS);
        assert_eq!(run(&program, NATIVE, 0x4000_0000, [0; 6]), ENOSYS, "x32");
        assert_eq!(run(&program, 0x4000_0003, 3, [0; 6]), ENOSYS, "i386");
    }

    #[test]
    fn comparisons_are_of_64_bits() {
        use LinuxSeccompOperator as O;
        let edge = 5 << 32 | 7;
        let values = [0, 7, 5 << 32, edge - 1, edge, edge + 1, 6 << 32, u64::MAX];
        type Holds = fn(u64, u64) -> bool;
        let holds: [(O, Holds); 6] = [
            (O::ScmpCmpEq, |a, b| a == b),
            (O::ScmpCmpNe, |a, b| a != b),
            (O::ScmpCmpGt, |a, b| a > b),
            (O::ScmpCmpGe, |a, b| a >= b),
            (O::ScmpCmpLt, |a, b| a < b),
            (O::ScmpCmpLe, |a, b| a <= b),
        ];
        for (op, holds) in holds {
            let argument = LinuxSeccompArgBuilder::default().index(1usize).value(edge).op(op).build().unwrap();
            let rule = LinuxSyscallBuilder::default()
                .names(vec!["read".to_owned()])
                .action(LinuxSeccompAction::ScmpActAllow)
                .args(vec![argument])
                .build()
                .unwrap();
            let profile = LinuxSeccompBuilder::default()
                .default_action(LinuxSeccompAction::ScmpActErrno)
                .syscalls(vec![rule])
                .build()
                .unwrap();
            let program = compile(&profile).unwrap();
            for value in values {
                let allowed = run(&program, NATIVE, libc::SYS_read as u32, [0, value, 0, 0, 0, 0]) == ALLOW;
                assert_eq!(allowed, holds(value, edge), "{op:?} {value:#x}");
            }
        }
    }
}
