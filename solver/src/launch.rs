//! Starting work without a task where none is needed.

use std::task::{Context, Poll, Waker};

use futures::future::BoxFuture;
use tokio::task::AbortHandle;

/// Polls `work` once where it is; if it has to wait, it goes on in a task of its own, whose handle comes back.
///
/// Nothing waits in a build whose results are all known, so such a build starts no task at all. Whoever starts work that
/// may start more work in turn puts a [`leave`] between, or a chain of 50,000 would nest on one stack.
pub(crate) fn launch(mut work: BoxFuture<'static, ()>) -> Option<AbortHandle> {
    // The waker is of no use to anybody, but the task polls again before it sleeps and leaves its own.
    match work.as_mut().poll(&mut Context::from_waker(Waker::noop())) {
        Poll::Ready(()) => None,
        Poll::Pending => Some(tokio::spawn(work).abort_handle()),
    }
}

/// Continues later: in a task of its own, if this is still the stack of whoever called [`launch`].
pub(crate) async fn leave() {
    let mut left = false;
    std::future::poll_fn(|context| {
        if std::mem::replace(&mut left, true) {
            return Poll::Ready(());
        }
        context.waker().wake_by_ref();
        Poll::Pending
    })
    .await;
}
