//! The solver on integers.

mod integers;
mod ladder;
mod sharing;
mod sizes;
