//! No progress at all. The build's result and its errors are told by the command.

use std::time::Duration;

use super::{Event, Renderer};

pub struct Quiet;

impl Renderer for Quiet {
    fn event(&mut self, _: &Event) {}
    fn tick(&mut self, _: Duration) {}
    fn finish(&mut self, _: bool, _: Duration) {}
}
