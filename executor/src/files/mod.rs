//! Files between trees: selecting, hashing and copying.

pub mod below;
pub mod changes;
pub mod copy;
pub mod hash;
pub mod index;
pub mod meta;
pub(crate) mod missing;
pub mod mode;
pub mod select;
pub mod walk;
pub mod writer;
pub mod xattrs;
