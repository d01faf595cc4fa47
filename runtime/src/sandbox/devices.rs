//! Device rules: lines for the v1 controller, an eBPF program for v2.
//!
//! The last rule that matches decides, as in v1's files written in order; what none matches is refused.

use oci_spec::runtime::{LinuxDeviceCgroup, LinuxDeviceType};

use crate::error::Failure;

/// `c 1:3 rwm`, as `devices.allow` and `devices.deny` take it.
pub(super) fn line(rule: &LinuxDeviceCgroup) -> Result<String, Failure> {
    let kind = match kind(rule) {
        Kind::All => return Ok("a".to_owned()),
        Kind::Char => 'c',
        Kind::Block => 'b',
    };
    let number = |number: Option<i64>| number.filter(|&n| n >= 0).map_or("*".to_owned(), |n| n.to_string());
    let access = access(rule)?;
    let letters: String = "rwm".chars().filter(|&letter| access & bit(letter) != 0).collect();
    Ok(format!("{kind} {}:{} {letters}", number(rule.major()), number(rule.minor())))
}

enum Kind {
    All,
    Char,
    Block,
}

fn kind(rule: &LinuxDeviceCgroup) -> Kind {
    match rule.typ() {
        Some(LinuxDeviceType::B) => Kind::Block,
        Some(LinuxDeviceType::C | LinuxDeviceType::U) => Kind::Char,
        _ => Kind::All,
    }
}

/// Bits of the kernel's `BPF_DEVCG_ACC_*`.
fn bit(letter: char) -> u32 {
    match letter {
        'm' => 1,
        'r' => 2,
        'w' => 4,
        _ => 0,
    }
}

fn access(rule: &LinuxDeviceCgroup) -> Result<u32, Failure> {
    let text = rule.access().as_deref().unwrap_or("rwm");
    if text.is_empty() || text.chars().any(|letter| bit(letter) == 0) {
        return Err(Failure::refused(format!("the device access {text:?} is not of the letters r, w and m")));
    }
    Ok(text.chars().fold(0, |bits, letter| bits | bit(letter)))
}

// eBPF: operation codes, and registers by use.
const LOAD_WORD: u8 = 0x61;
const MOVE: u8 = 0xbf;
const MOVE_WORD_IMMEDIATE: u8 = 0xb4;
const AND_IMMEDIATE: u8 = 0x54;
const SHIFT_RIGHT: u8 = 0x74;
const JUMP_NOT_EQUAL: u8 = 0x55;
const JUMP_NOT_EQUAL_REGISTER: u8 = 0x5d;
const EXIT: u8 = 0x95;
const RESULT: u8 = 0;
const CONTEXT: u8 = 1;
const TYPE: u8 = 2;
const ACCESS: u8 = 3;
const MAJOR: u8 = 4;
const MINOR: u8 = 5;
const SCRATCH: u8 = 6;

fn instruction(code: u8, to: u8, from: u8, offset: i16, immediate: i32) -> u64 {
    u64::from(code)
        | u64::from(to | from << 4) << 8
        | u64::from(offset.cast_unsigned()) << 16
        | u64::from(immediate.cast_unsigned()) << 32
}

/// The rules as a `BPF_PROG_TYPE_CGROUP_DEVICE` program, the last rule tested first.
pub(super) fn program(rules: &[LinuxDeviceCgroup]) -> Result<Vec<u64>, Failure> {
    let mut program = vec![
        instruction(LOAD_WORD, TYPE, CONTEXT, 0, 0),
        instruction(AND_IMMEDIATE, TYPE, 0, 0, 0xffff),
        instruction(LOAD_WORD, ACCESS, CONTEXT, 0, 0),
        instruction(SHIFT_RIGHT, ACCESS, 0, 0, 16),
        instruction(LOAD_WORD, MAJOR, CONTEXT, 4, 0),
        instruction(LOAD_WORD, MINOR, CONTEXT, 8, 0),
    ];
    for rule in rules.iter().rev() {
        let mut tests = Vec::new();
        match kind(rule) {
            Kind::All => {}
            Kind::Block => tests.push((JUMP_NOT_EQUAL, TYPE, 0, 1)),
            Kind::Char => tests.push((JUMP_NOT_EQUAL, TYPE, 0, 2)),
        }
        let everything = matches!(kind(rule), Kind::All);
        let mut block = Vec::new();
        let access = access(rule)?;
        if access != 7 && !everything {
            // Every kind of access asked for must be among the rule's.
            block.push(instruction(MOVE, SCRATCH, ACCESS, 0, 0));
            block.push(instruction(AND_IMMEDIATE, SCRATCH, 0, 0, access.cast_signed()));
            tests.push((JUMP_NOT_EQUAL_REGISTER, SCRATCH, ACCESS, 0));
        }
        if !everything {
            for (register, number) in [(MAJOR, rule.major()), (MINOR, rule.minor())] {
                if let Some(number) = number.filter(|&number| number >= 0) {
                    let number = i32::try_from(number).map_err(|_| Failure::refused("a device number out of range"))?;
                    tests.push((JUMP_NOT_EQUAL, register, 0, number));
                }
            }
        }
        block.extend(tests.iter().map(|&(code, register, from, value)| instruction(code, register, from, 0, value)));
        // Each failed test jumps behind the block's two last instructions.
        let length = block.len() + 2;
        for (at, word) in block.iter_mut().enumerate() {
            let code = (*word & 0xff) as u8;
            if code == JUMP_NOT_EQUAL || code == JUMP_NOT_EQUAL_REGISTER {
                *word |= ((length - at - 1) as u64) << 16;
            }
        }
        block.push(instruction(MOVE_WORD_IMMEDIATE, RESULT, 0, 0, i32::from(rule.allow())));
        block.push(instruction(EXIT, 0, 0, 0, 0));
        program.extend(block);
        if everything {
            // Earlier rules never decide, and the kernel refuses code that cannot be reached.
            return Ok(program);
        }
    }
    program.push(instruction(MOVE_WORD_IMMEDIATE, RESULT, 0, 0, 0));
    program.push(instruction(EXIT, 0, 0, 0, 0));
    Ok(program)
}

#[cfg(test)]
mod tests {
    use std::fs;
    use std::path::PathBuf;
    use std::process::Command;

    use oci_spec::runtime::{LinuxDeviceCgroupBuilder, Spec, UserBuilder};
    use rustix::fs::{Mode, OFlags, open};

    use super::super::{hierarchies, spec, sys};
    use super::*;

    fn rules(spec: &Spec) -> Vec<LinuxDeviceCgroup> {
        let resources = spec.linux().as_ref().unwrap().resources().as_ref().unwrap();
        resources.devices().clone().unwrap()
    }

    fn default_rules() -> Vec<LinuxDeviceCgroup> {
        let user = UserBuilder::default().build().unwrap();
        rules(&spec::default_spec(Vec::new(), Vec::new(), "/", user))
    }

    #[test]
    fn lines_are_what_the_files_take() {
        let lines: Vec<String> = default_rules().iter().map(|rule| line(rule).unwrap()).collect();
        assert_eq!(lines[..4], ["a", "c *:* m", "b *:* m", "c 1:3 rwm"]);
        assert_eq!(lines.last().unwrap(), "c 136:* rwm");
        let odd = LinuxDeviceCgroupBuilder::default().allow(true).access("rx").typ(LinuxDeviceType::C).build().unwrap();
        assert!(line(&odd).is_err());
    }

    /// The v2 hierarchy takes such programs also where the controllers are v1's.
    #[test]
    fn the_kernel_takes_the_program_and_obeys_it() {
        let unified = hierarchies::Hierarchies::detect().unwrap().unified().map(PathBuf::from);
        let Some(unified) = unified else { return };
        let cgroup = unified.join(format!("rbuild-devices-{}", std::process::id()));
        fs::create_dir(&cgroup).unwrap();
        let mut rules = default_rules();
        let zero = LinuxDeviceCgroupBuilder::default().allow(false).typ(LinuxDeviceType::C).access("w");
        let mut zero = zero.build().unwrap();
        zero.set_major(Some(1));
        zero.set_minor(Some(5));
        rules.push(zero);
        let program = sys::load_device_program(&program(&rules).unwrap()).unwrap();
        let directory = open(&cgroup, OFlags::DIRECTORY | OFlags::CLOEXEC, Mode::empty()).unwrap();
        sys::attach_device_program(&directory, &program).unwrap();
        let dir = tempfile::tempdir().unwrap();
        let script = format!(
            "echo $$ >{}/cgroup.procs; cd {}; mknod k c 1 11; mknod z c 1 5; \
             for f in 'cat /dev/null' 'head -c 1 z' 'head -c 1 k' 'tee /dev/null' 'tee z' 'mknod n b 7 0'; do \
             echo | $f >/dev/null 2>&1 && echo yes || echo no; done",
            cgroup.display(),
            dir.path().display()
        );
        let output = Command::new("/bin/busybox").args(["sh", "-c", &script]).output().unwrap();
        drop((directory, program));
        for _ in 0..100 {
            if fs::remove_dir(&cgroup).is_ok() {
                break;
            }
            std::thread::sleep(std::time::Duration::from_millis(5));
        }
        let text = String::from_utf8(output.stdout).unwrap();
        assert_eq!(text.lines().collect::<Vec<_>>(), ["yes", "yes", "no", "yes", "no", "yes"], "{text}");
    }
}
