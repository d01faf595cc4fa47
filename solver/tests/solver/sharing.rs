//! What builds of one solver promise each other, and what happens at once.

use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicUsize, Ordering};
use std::time::Duration;

use crate::integers::{Counted, Int, Sums};
use futures::future::join;
use rbuild_graph::{Edge, VertexId};
use rbuild_solver::{Cache, Entry, Event, Events, Keep, SolveError, Solver};
use tokio::sync::{Barrier, Notify};

/// Long enough for anything that happens; only reached when something never does.
const NEVER: Duration = Duration::from_secs(20);

async fn in_time<T>(work: impl Future<Output = T>) -> T {
    tokio::time::timeout(NEVER, work).await.expect("it hangs")
}

#[tokio::test]
async fn two_builds_share_an_execution_and_both_see_it() {
    let (started, go) = (Arc::new(Notify::new()), Arc::new(Notify::new()));
    let hooks = (started.clone(), go.clone());
    let slow = Arc::new(Int::new("slow", 1).hook(move |_, context| {
        let (started, go) = hooks.clone();
        async move {
            started.notify_one();
            go.notified().await;
            context.events.log(context.step, rbuild_solver::LogStream::Stdout, *b"x");
            Ok(vec![1])
        }
    }));
    let graph = || {
        let mut sums = Sums::new();
        let v = sums.add(&slow, &[]);
        (sums.done(), v)
    };
    let solver = Solver::new(Counted::new(), 4);
    let (one, mut seen_by_one) = Events::channel();
    let (two, mut seen_by_two) = Events::channel();
    let (first, second) = (solver.build(one), solver.build(two));
    let ((a, va), (b, vb)) = (graph(), graph());
    let work = join(a.value(&first, va), async {
        started.notified().await;
        join(b.value(&second, vb), async { go.notify_one() }).await.0
    });
    assert_eq!(in_time(work).await, (1, 1));
    assert_eq!(slow.runs(), 1);
    for stream in [&mut seen_by_one, &mut seen_by_two] {
        let mut logged = false;
        while let Some(event) = stream.try_next() {
            logged |= matches!(event, Event::Log { .. });
        }
        assert!(logged);
    }
}

/// One of two builds goes away: the work goes on for the other. Both go: it is cancelled.
#[tokio::test]
async fn the_last_to_let_go_cancels() {
    struct Dropped(Arc<AtomicBool>);
    impl Drop for Dropped {
        fn drop(&mut self) {
            self.0.store(true, Ordering::SeqCst);
        }
    }
    let (started, dropped) = (Arc::new(Notify::new()), Arc::new(AtomicBool::new(false)));
    let told = Arc::new(AtomicBool::new(false));
    let hooks = (started.clone(), dropped.clone(), told.clone());
    let endless = Arc::new(Int::new("endless", 1).hook(move |_, mut context| {
        let (started, dropped, told) = hooks.clone();
        async move {
            let _dropped = Dropped(dropped);
            tokio::spawn(async move {
                context.cancel.cancelled().await;
                told.store(true, Ordering::SeqCst);
            });
            started.notify_one();
            std::future::pending().await
        }
    }));
    let graph = || {
        let mut sums = Sums::new();
        let v = sums.add(&endless, &[]);
        let t = sums.add(&Arc::new(Int::new("top", 1)), &[v]);
        (sums.done(), t)
    };
    let solver = Solver::new(Counted::new(), 4);
    let (first, second) = (solver.build(Events::null()), solver.build(Events::null()));
    let ((a, va), (b, vb)) = (graph(), graph());
    let mut one = Box::pin(a.solve(&first, va));
    let mut two = Box::pin(b.solve(&second, vb));
    assert!(futures::poll!(&mut one).is_pending());
    in_time(started.notified()).await;
    assert!(futures::poll!(&mut two).is_pending());
    for _ in 0..20 {
        tokio::task::yield_now().await;
    }
    drop(one);
    for _ in 0..20 {
        tokio::task::yield_now().await;
    }
    assert!(!dropped.load(Ordering::SeqCst));
    drop(two);
    in_time(async {
        while !(dropped.load(Ordering::SeqCst) && told.load(Ordering::SeqCst)) {
            tokio::task::yield_now().await;
        }
    })
    .await;
    assert_eq!(endless.runs(), 1);
}

/// Rule 3: build and tasks do not hold each other. When the future of a solve and the build are gone, so is all they had;
/// what runs on as a thread is waited for.
#[tokio::test]
async fn nothing_outlives_a_build() {
    let (started, ended) = (Arc::new(Notify::new()), Arc::new(AtomicBool::new(false)));
    let hooks = (started.clone(), ended.clone());
    let stubborn = Arc::new(Int::new("stubborn", 1).hook(move |_, context| {
        let (started, ended) = hooks.clone();
        async move {
            let thread = tokio::task::spawn_blocking(move || {
                started.notify_one();
                while !context.cancel.is_cancelled() {
                    std::thread::sleep(Duration::from_millis(1));
                }
                std::thread::sleep(Duration::from_millis(50));
                ended.store(true, Ordering::SeqCst);
                drop(context);
            });
            thread.await.map_err(|_| crate::integers::failure("panicked"))?;
            Ok(vec![1])
        }
    }));
    let above = Arc::new(Int::new("above", 1).by_content(&[0]));
    let mut sums = Sums::new();
    let mut last = sums.add(&stubborn, &[]);
    for _ in 0..10 {
        last = sums.add(&above, &[last]);
    }
    let (sum, solver) = (sums.done(), Solver::new(Counted::new(), 1));
    let build = solver.build(Events::null());
    let mut solve = Box::pin(sum.solve(&build, last));
    assert!(futures::poll!(&mut solve).is_pending());
    in_time(started.notified()).await;
    drop(solve);
    drop((build, sum));
    in_time(solver.idle()).await;
    assert!(ended.load(Ordering::SeqCst));
    in_time(async {
        while Arc::strong_count(&above) + Arc::strong_count(&stubborn) > 2 {
            tokio::task::yield_now().await;
        }
    })
    .await;
}

/// After a cancelled solve the same build can be asked again.
#[tokio::test]
async fn a_cancelled_build_starts_again() {
    let cache = Counted::new();
    let stuck = Arc::new(AtomicBool::new(true));
    let hook = stuck.clone();
    let step = Arc::new(Int::new("step", 1).hook(move |_, _| {
        let stuck = hook.load(Ordering::SeqCst);
        async move { if stuck { std::future::pending().await } else { Ok(vec![1]) } }
    }));
    let mut sums = Sums::new();
    let v = sums.add(&step, &[]);
    let t = sums.add(&Arc::new(Int::new("top", 1).by_content(&[0])), &[v]);
    let sum = sums.done();
    let build = Solver::new(cache, 1).build(Events::null());
    for _ in 0..3 {
        let mut solve = Box::pin(sum.solve(&build, t));
        for _ in 0..20 {
            assert!(futures::poll!(&mut solve).is_pending());
            tokio::task::yield_now().await;
        }
        drop(solve);
        for _ in 0..20 {
            tokio::task::yield_now().await;
        }
    }
    assert_eq!(step.runs(), 3);
    stuck.store(false, Ordering::SeqCst);
    // The only permit came back from each of the cancelled.
    assert_eq!(in_time(sum.value(&build, t)).await, 2);
}

/// Another build's failure, once it is over, is not what the next gets.
#[tokio::test]
async fn a_finished_failure_is_not_handed_on() {
    let cache = Counted::new();
    let bad = Arc::new(Int::new("bad", 1));
    bad.fails.store(true, Ordering::SeqCst);
    let solver = Solver::new(cache, 1);
    let graph = || {
        let mut sums = Sums::new();
        let v = sums.add(&bad, &[]);
        (sums.done(), v)
    };
    let (first, second) = (solver.build(Events::null()), solver.build(Events::null()));
    let ((a, va), (b, vb)) = (graph(), graph());
    assert!(a.solve(&first, va).await.is_err());
    bad.fails.store(false, Ordering::SeqCst);
    assert_eq!(b.value(&second, vb).await, 1);
}

/// Sixteen stages, each joined to the last by content: all must be there at once, or the barrier never opens.
async fn all_at_once(ignore: bool, warm: bool) {
    const STAGES: usize = 16;
    let cache = Counted::new();
    let barrier = Arc::new(Barrier::new(STAGES + 1));
    let open = Arc::new(AtomicBool::new(warm));
    let waiting = |name: String| {
        let (barrier, open) = (barrier.clone(), open.clone());
        Arc::new(Int::new(&name, 1).hook(move |_, _| {
            let (barrier, open) = (barrier.clone(), open.clone());
            async move {
                if !open.load(Ordering::SeqCst) {
                    barrier.wait().await;
                }
                Ok(vec![1])
            }
        }))
    };
    let run = async |context: i64| {
        let mut sums = Sums::new();
        let place = |sums: &mut Sums, int: &Arc<Int>, inputs: &[VertexId]| match ignore {
            true => sums.add_ignoring(int, inputs),
            false => sums.add(int, inputs),
        };
        let source = Arc::new(Int::new("context", context).unpinned());
        let source = sums.add(&source, &[]);
        let base = sums.add(&Arc::new(Int::new("base", 0)), &[]);
        let copy = Arc::new(Int::new("copy", 0).by_content(&[1]));
        let copied = place(&mut sums, &copy, &[base, source]);
        // The trunk itself has a slow step below all that is copied into it.
        let mut trunk = place(&mut sums, &waiting("trunk".into()), &[copied]);
        for n in 0..STAGES {
            let stage = place(&mut sums, &waiting(format!("stage {n}")), &[copied]);
            let join = Arc::new(Int::new(&format!("join {n}"), 0).by_content(&[1]));
            trunk = place(&mut sums, &join, &[trunk, stage]);
        }
        let build = Solver::new(cache.clone(), 100).build(Events::null());
        in_time(sums.done().value(&build, trunk)).await
    };
    let value = run(1).await;
    if warm {
        // Everything is known; then the context changes, and every stage with it.
        open.store(false, Ordering::SeqCst);
        assert_eq!(run(1).await, value);
        run(2).await;
    }
}

#[tokio::test]
async fn stages_that_are_copied_from_run_at_once() {
    all_at_once(false, false).await;
}

#[tokio::test]
async fn stages_whose_context_changed_run_at_once() {
    all_at_once(false, true).await;
}

#[tokio::test]
async fn stages_that_ignore_the_cache_run_at_once() {
    all_at_once(true, false).await;
}

/// A permit is held while an operation runs, not while it waits for another that needs one.
#[tokio::test]
async fn one_permit_is_enough_and_is_respected() {
    let (running, most) = (Arc::new(AtomicUsize::new(0)), Arc::new(AtomicUsize::new(0)));
    let step = |name: String| {
        let (running, most) = (running.clone(), most.clone());
        Arc::new(Int::new(&name, 1).hook(move |inputs, _| {
            let (running, most) = (running.clone(), most.clone());
            async move {
                most.fetch_max(running.fetch_add(1, Ordering::SeqCst) + 1, Ordering::SeqCst);
                tokio::task::yield_now().await;
                running.fetch_sub(1, Ordering::SeqCst);
                Ok(vec![1 + inputs.iter().sum::<i64>()])
            }
        }))
    };
    let mut sums = Sums::new();
    let inputs: Vec<VertexId> = (0..8)
        .map(|n| {
            let base = sums.add(&step(format!("base {n}")), &[]);
            sums.add(&step(format!("step {n}")), &[base])
        })
        .collect();
    let top = sums.add(&step("top".into()), &inputs);
    let build = Solver::new(Counted::new(), 1).build(Events::null());
    assert_eq!(in_time(sums.done().value(&build, top)).await, 17);
    assert_eq!(most.load(Ordering::SeqCst), 1);
}

/// Sources that need no permit run although all permits are taken.
#[tokio::test]
async fn sources_need_no_permit() {
    let go = Arc::new(Notify::new());
    let (hook, opens) = (go.clone(), go.clone());
    let holder = Arc::new(Int::new("holder", 1).hook(move |_, _| {
        let go = hook.clone();
        async move {
            go.notified().await;
            Ok(vec![1])
        }
    }));
    let source = Int { needs_permit: false, ..Int::new("source", 1) }.hook(move |_, _| {
        let go = opens.clone();
        async move {
            tokio::task::yield_now().await;
            go.notify_one();
            Ok(vec![1])
        }
    });
    let mut sums = Sums::new();
    let inputs = [sums.add(&holder, &[]), sums.add(&Arc::new(source), &[])];
    let top = sums.add(&Arc::new(Int::new("top", 0)), &inputs);
    let build = Solver::new(Counted::new(), 1).build(Events::null());
    assert_eq!(in_time(sums.done().value(&build, top)).await, 2);
}

/// Another process has claimed the key: its result is taken when it is there, else the work is done here.
#[tokio::test]
async fn a_claim_of_another_process_is_waited_for() {
    for other_succeeds in [true, false] {
        let cache = Counted::new();
        let step = Arc::new(Int::new("step", 1));
        let graph = || {
            let mut sums = Sums::new();
            let v = sums.add(&step, &[]);
            (sums.done(), v)
        };
        // Learn the key, then forget the result.
        let (sum, v) = graph();
        let key = sum.solve(&Solver::new(cache.clone(), 1).build(Events::null()), v).await.unwrap().key;
        let record = cache.memory.record(key).unwrap();
        cache.memory.forget(key);
        let (over, claimed) = futures::channel::oneshot::channel();
        cache.claimed.lock().unwrap().insert(key, claimed);
        let (events, mut stream) = Events::channel();
        let build = Solver::new(cache.clone(), 1).build(events);
        let mut solve = Box::pin(sum.solve(&build, v));
        for _ in 0..20 {
            assert!(futures::poll!(&mut solve).is_pending());
            tokio::task::yield_now().await;
        }
        assert_eq!(step.runs(), 1);
        if other_succeeds {
            let entry = Entry { key, aliases: vec![], outputs: vec![7], record, keep: Keep::First };
            cache.memory.save(entry).await.unwrap();
        }
        over.send(()).unwrap();
        let solved = in_time(solve).await.unwrap();
        let expected = if other_succeeds { (7, true, 1) } else { (1, false, 2) };
        assert_eq!((solved.value, solved.cached, step.runs()), expected);
        let mut waited = false;
        while let Some(event) = stream.try_next() {
            waited |=
                matches!(event, Event::Log { bytes, .. } if String::from_utf8_lossy(&bytes).contains("process 7"));
        }
        assert!(waited);
    }
}

/// A failure ends the build while other steps still run.
#[tokio::test]
async fn a_failure_does_not_wait_for_others() {
    let endless = Arc::new(Int::new("endless", 1).hook(async |_, _| std::future::pending().await));
    let bad = Arc::new(Int::new("bad", 1));
    bad.fails.store(true, Ordering::SeqCst);
    let mut sums = Sums::new();
    let (e, b) = (sums.add(&endless, &[]), sums.add(&bad, &[]));
    let join = Arc::new(Int::new("join", 1).by_content(&[1]));
    // Whichever of them stands by key and whichever by content.
    let (one, two) = (sums.add(&join, &[e, b]), sums.add(&join, &[b, e]));
    let sum = sums.done();
    for top in [one, two] {
        let build = Solver::new(Counted::new(), 4).build(Events::null());
        let error = in_time(sum.solve(&build, top)).await.unwrap_err();
        assert!(matches!(error, SolveError::Failed { vertex, .. } if vertex == b), "{error}");
    }
}

#[tokio::test]
async fn edges_that_share_work_are_solved_together() {
    let step = Arc::new(Int::new("step", 1));
    let mut sums = Sums::new();
    let mut edges: Vec<Edge> = vec![sums.add(&step, &[]).into()];
    for _ in 0..5 {
        let last = edges[edges.len() - 1].vertex;
        edges.push(sums.add(&step, &[last]).into());
    }
    let sum = sums.done();
    let build = Solver::new(Counted::new(), 4).build(Events::null());
    let solved = build.solve(sum.graph.clone(), &edges, sum.ops.clone()).await.unwrap();
    assert_eq!(solved.iter().map(|solved| solved.value).collect::<Vec<_>>(), [1, 2, 3, 4, 5, 6]);
    assert_eq!(step.runs(), 6);
}
