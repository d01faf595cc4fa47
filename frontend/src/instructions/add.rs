//! `ADD`: as COPY, and archives are unpacked, URLs fetched, git repositories checked out.

use super::Instruction;
use super::flags::{FlagKind, FlagSpec};
use super::input::Input;
use super::transfer::{Kind, Transfer};

pub(super) const FLAGS: &[FlagSpec] = &[
    FlagSpec { name: "chown", help: "sets user[:group] of what is added", kind: FlagKind::Text },
    FlagSpec { name: "chmod", help: "sets the permissions of what is added", kind: FlagKind::Text },
    FlagSpec { name: "link", help: "makes a layer that does not depend on what is below", kind: FlagKind::Switch },
    FlagSpec { name: "keep-git-dir", help: "keeps the .git directory of a repository", kind: FlagKind::Switch },
    FlagSpec { name: "checksum", help: "is the digest or commit the source must have", kind: FlagKind::Text },
    FlagSpec { name: "unpack", help: "says whether archives are unpacked", kind: FlagKind::Switch },
    FlagSpec { name: "exclude", help: "leaves out what matches a pattern", kind: FlagKind::Texts },
];

pub(super) fn read(input: &mut Input<'_>) -> Option<Instruction> {
    let mut transfer = Transfer::read(input, Kind::Add)?;
    transfer.keep_git_dir = input.flags.switch("keep-git-dir");
    transfer.checksum = input.flags.take("checksum");
    transfer.unpack = input.flags.switch("unpack");
    Some(Instruction::Transfer(transfer))
}
