//! What happens in a build, as it happens.
//!
//! One enum for all of it. Each face turns it into what its clients see; nothing reads it back. Sending never waits and
//! never fails: a receiver that went away is nobody's trouble. Logs of the program itself go to `tracing`, never here.

use std::fmt;
use std::pin::Pin;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::sync::{Arc, Mutex, PoisonError};
use std::task::{Context, Poll};
use std::time::{Duration, Instant};

use rbuild_graph::Span;
use tokio::sync::mpsc;

/// A step of one stream of events.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub struct StepId(pub u64);

/// Something that happened. Times are since the start of the stream, by a clock that never jumps.
#[derive(Debug, Clone, PartialEq)]
#[non_exhaustive]
pub enum Event {
    /// There is such a step. Comes once for each step, after the steps it names as inputs and before anything else
    /// about it.
    Step { id: StepId, name: String, inputs: Vec<StepId>, span: Option<Span>, kind: StepKind },
    /// Work on it began. A step whose result was at hand is finished without being started.
    Started { id: StepId, at: Duration },
    /// It is over, one way or another.
    Finished { id: StepId, at: Duration, outcome: Outcome },
    /// Output of a step. Cut anywhere, lines and characters included.
    Log { id: StepId, stream: LogStream, bytes: Vec<u8>, at: Duration },
    /// How far one item of a step has come: a layer, a file.
    Progress { id: StepId, item: String, current: u64, total: Option<u64>, unit: Unit, done: bool },
    /// Something people should know that is no failure.
    Warning { id: Option<StepId>, message: String, span: Option<Span>, url: Option<String> },
}

/// What kind of step it is.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub enum StepKind {
    /// An instruction of the user's.
    Build,
    /// Work of our own: reading the context, exporting.
    Internal,
}

/// How a step ended.
#[derive(Debug, Clone, PartialEq, Eq)]
#[non_exhaustive]
pub enum Outcome {
    Done,
    /// Its result was known.
    Cached,
    /// It failed, and why.
    Failed(String),
    /// Nobody wanted it any more.
    Cancelled,
}

/// Which of its two streams a process wrote to.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub enum LogStream {
    Stdout,
    Stderr,
}

/// What progress counts.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub enum Unit {
    Bytes,
    Files,
}

/// The sending end of a stream of events. Cheap to clone; the stream ends when the last clone is gone.
#[derive(Clone)]
pub struct Events {
    target: Target,
    clock: Arc<Clock>,
}

impl Target {
    fn send(&self, event: Event) {
        match self {
            Target::Nowhere => {}
            // Fails only when the receiver is gone, which is its own business.
            Target::Channel(sender) => drop(sender.send(event)),
            Target::Observed(inner, observer) => {
                observer(&event);
                inner.send(event);
            }
            Target::Audience(audience) => audience.send(event),
        }
    }
}

#[derive(Clone)]
enum Target {
    Nowhere,
    Channel(mpsc::UnboundedSender<Event>),
    Observed(Box<Target>, Observer),
    Audience(Arc<Audience>),
}

type Observer = Arc<dyn Fn(&Event) + Send + Sync>;

#[derive(Debug)]
struct Clock {
    start: Instant,
    steps: AtomicU64,
}

impl Clock {
    fn new() -> Arc<Clock> {
        Arc::new(Clock { start: Instant::now(), steps: AtomicU64::new(0) })
    }
}

impl Events {
    /// A stream, starting now.
    pub fn channel() -> (Events, EventStream) {
        let (sender, receiver) = mpsc::unbounded_channel();
        (Events { target: Target::Channel(sender), clock: Clock::new() }, EventStream(receiver))
    }

    /// Events that nobody sees.
    pub fn null() -> Events {
        Events { target: Target::Nowhere, clock: Clock::new() }
    }

    /// The same stream, with somebody who sees each event before it is sent. The observer is called where the event happens
    /// and must not take long.
    pub fn observed(self, observer: impl Fn(&Event) + Send + Sync + 'static) -> Events {
        Events { target: Target::Observed(Box::new(self.target), Arc::new(observer)), clock: self.clock }
    }

    /// Events of one execution, for everybody in `audience`; steps are those of `first`.
    pub(crate) fn audience(first: &Events, audience: Arc<Audience>) -> Events {
        Events { target: Target::Audience(audience), clock: first.clock.clone() }
    }

    /// An id that no other step of this stream has.
    pub fn new_step(&self) -> StepId {
        StepId(self.clock.steps.fetch_add(1, Ordering::Relaxed) + 1)
    }

    /// Time since the start of the stream.
    pub fn now(&self) -> Duration {
        self.clock.start.elapsed()
    }

    pub fn send(&self, event: Event) {
        self.target.send(event);
    }

    /// Announces a step and gives its id.
    pub fn step(&self, name: impl Into<String>, inputs: Vec<StepId>, span: Option<Span>, kind: StepKind) -> StepId {
        let id = self.new_step();
        self.send(Event::Step { id, name: name.into(), inputs, span, kind });
        id
    }

    pub fn started(&self, id: StepId) {
        self.send(Event::Started { id, at: self.now() });
    }

    pub fn finished(&self, id: StepId, outcome: Outcome) {
        self.send(Event::Finished { id, at: self.now(), outcome });
    }

    pub fn log(&self, id: StepId, stream: LogStream, bytes: impl Into<Vec<u8>>) {
        self.send(Event::Log { id, stream, bytes: bytes.into(), at: self.now() });
    }
}

impl fmt::Debug for Events {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Events").finish_non_exhaustive()
    }
}

/// The receiving end of a stream of events.
#[derive(Debug)]
pub struct EventStream(mpsc::UnboundedReceiver<Event>);

impl EventStream {
    /// The next event; `None` when the last sender is gone.
    pub async fn next(&mut self) -> Option<Event> {
        self.0.recv().await
    }

    /// The next event if it is there already.
    pub fn try_next(&mut self) -> Option<Event> {
        self.0.try_recv().ok()
    }

    /// The next event, blocking this thread; not for threads of an async runtime.
    pub fn blocking_next(&mut self) -> Option<Event> {
        self.0.blocking_recv()
    }
}

impl futures::Stream for EventStream {
    type Item = Event;

    fn poll_next(mut self: Pin<&mut Self>, context: &mut Context<'_>) -> Poll<Option<Event>> {
        self.0.poll_recv(context)
    }
}

/// Everybody who waits for one execution: each has its own stream, and its own step there.
#[derive(Debug, Default)]
pub(crate) struct Audience {
    /// The step that the execution itself speaks of.
    members: Mutex<Members>,
}

#[derive(Debug, Default)]
struct Members {
    list: Vec<Member>,
    started: bool,
    over: bool,
}

#[derive(Debug, Clone)]
pub(crate) struct Member {
    pub(crate) events: Events,
    pub(crate) step: StepId,
    /// Whether it has been told that the step started.
    pub(crate) started: Arc<AtomicBool>,
}

impl Member {
    pub(crate) fn new(events: Events, step: StepId) -> Member {
        Member { events, step, started: Arc::new(AtomicBool::new(false)) }
    }

    fn start(&self) {
        if !self.started.swap(true, Ordering::Relaxed) {
            self.events.started(self.step);
        }
    }
}

impl Audience {
    /// Whoever joins later hears of the start at once, and of what comes from now on.
    pub(crate) fn join(&self, member: Member) {
        let mut members = self.members.lock().unwrap_or_else(PoisonError::into_inner);
        if members.started {
            member.start();
        }
        if !members.over {
            members.list.push(member);
        }
    }

    /// Lets everybody go: there is nothing more to hear, and a stream ends only when nobody holds it.
    pub(crate) fn over(&self) {
        let mut members = self.members.lock().unwrap_or_else(PoisonError::into_inner);
        members.over = true;
        members.list.clear();
    }

    pub(crate) fn started(&self) {
        let mut members = self.members.lock().unwrap_or_else(PoisonError::into_inner);
        members.started = true;
        members.list.iter().for_each(Member::start);
    }

    /// Events about the execution's own step reach everybody, under the step each knows it by; events about further
    /// steps an operation announces reach the first, in whose stream those steps have their ids.
    fn send(&self, mut event: Event) {
        let members = self.members.lock().unwrap_or_else(PoisonError::into_inner);
        let Some((first, others)) = members.list.split_first() else { return };
        for member in others {
            let mut copy = match step_of(&mut event) {
                Some(step) if *step == first.step => event.clone(),
                _ => break,
            };
            if let Some(step) = step_of(&mut copy) {
                *step = member.step;
            }
            member.events.send(copy);
        }
        first.events.send(event);
    }
}

fn step_of(event: &mut Event) -> Option<&mut StepId> {
    match event {
        Event::Step { id, .. }
        | Event::Started { id, .. }
        | Event::Finished { id, .. }
        | Event::Log { id, .. }
        | Event::Progress { id, .. } => Some(id),
        Event::Warning { id, .. } => id.as_mut(),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_receiver_that_went_away_hurts_nobody() {
        let (events, stream) = Events::channel();
        drop(stream);
        events.started(events.new_step());
        Events::null().started(StepId(1));
    }

    #[test]
    fn everybody_sees_an_execution_as_their_own_step() {
        let (one, mut first) = Events::channel();
        let (two, mut second) = Events::channel();
        two.new_step();
        let (a, b) = (one.new_step(), two.new_step());
        assert_ne!(a, b);
        let audience = Arc::new(Audience::default());
        audience.join(Member::new(one.clone(), a));
        let shared = Events::audience(&one, audience.clone());
        audience.started();
        audience.join(Member::new(two, b));
        shared.log(a, LogStream::Stdout, *b"x");
        shared.log(shared.new_step(), LogStream::Stdout, *b"only the first knows this step");
        let ids = |stream: &mut EventStream| {
            std::iter::from_fn(|| stream.try_next().map(|mut event| *step_of(&mut event).unwrap())).collect::<Vec<_>>()
        };
        let seen = ids(&mut first);
        assert_eq!(seen[..2], [a, a]);
        assert_eq!(seen.len(), 3);
        assert_eq!(ids(&mut second), [b, b]);
    }
}
