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
    }
    program.push(instruction(MOVE_WORD_IMMEDIATE, RESULT, 0, 0, 0));
    program.push(instruction(EXIT, 0, 0, 0, 0));
    Ok(program)
}
