//! What one build promises: what runs, what does not, and under which names results are found again.

use std::sync::Arc;
use std::sync::atomic::{AtomicI64, Ordering};

use crate::integers::{Counted, Int, Sums};
use rbuild_graph::Edge;
use rbuild_solver::{Build, Event, Events, Outcome, SolveError, Solver, StepId};

fn solver(cache: &Arc<Counted>) -> Solver<i64> {
    Solver::new(cache.clone(), 4)
}

fn build(cache: &Arc<Counted>) -> Build<i64> {
    solver(cache).build(Events::null())
}

#[tokio::test]
async fn a_diamond_runs_its_base_once() {
    let [base, left, right, top] =
        [("base", 1), ("left", 10), ("right", 100), ("top", 1000)].map(|(name, value)| Arc::new(Int::new(name, value)));
    let mut sums = Sums::new();
    let b = sums.add(&base, &[]);
    let (l, r) = (sums.add(&left, &[b]), sums.add(&right, &[b]));
    let t = sums.add(&top, &[l, r]);
    assert_eq!(sums.done().value(&build(&Counted::new()), t).await, 1112);
    assert_eq!([&base, &left, &right, &top].map(|int| int.runs()), [1; 4]);
}

#[tokio::test]
async fn a_known_graph_loads_one_record_and_runs_nothing() {
    let cache = Counted::new();
    let ints: Vec<Arc<Int>> = (0..1000).map(|n| Arc::new(Int::new(&format!("n{n}"), n))).collect();
    let graph = || {
        let mut sums = Sums::new();
        let mut last = sums.add(&ints[0], &[]);
        for int in &ints[1..] {
            last = sums.add(int, &[last]);
        }
        (sums.done(), last)
    };
    let (sum, last) = graph();
    let first = sum.value(&build(&cache), last).await;
    cache.lookups();
    cache.hits.store(0, Ordering::SeqCst);
    let (sum, last) = graph();
    let second = sum.solve(&build(&cache), last).await.unwrap();
    assert_eq!((second.value, second.cached), (first, true));
    assert_eq!(cache.hits.load(Ordering::SeqCst), 1);
    // The first vertex may have another name; all others follow from it.
    assert_eq!(cache.lookups(), 2);
    assert!(ints.iter().all(|int| int.runs() == 1));
}

/// A thousand stages that each copy from a context and from the stage before: at most one lookup for each, no writes.
#[tokio::test]
async fn a_known_graph_of_copies_needs_a_lookup_per_copy() {
    let cache = Counted::new();
    let run = async || {
        let context = Arc::new(Int { needs_permit: false, ..Int::new("context", 5) }.unpinned());
        let base = Arc::new(Int::new("base", 1));
        let mut sums = Sums::new();
        let c = sums.add(&context, &[]);
        let b = sums.add(&base, &[]);
        let mut last = b;
        let mut copies = Vec::new();
        for n in 0..1000 {
            let copy = Arc::new(Int::new(&format!("copy {n}"), n).by_content(&[1]));
            let stage = sums.add(&copy, &[b, c]);
            let join = Arc::new(Int::new(&format!("join {n}"), n).by_content(&[1]));
            last = sums.add(&join, &[last, stage]);
            copies.extend([copy, join]);
        }
        let value = sums.done().value(&build(&cache), last).await;
        (value, copies.iter().map(|copy| copy.runs()).sum::<usize>())
    };
    let (first, ran) = run().await;
    assert_eq!(ran, 2000);
    cache.lookups();
    cache.saves.store(0, Ordering::SeqCst);
    cache.aliases.store(0, Ordering::SeqCst);
    let (second, ran) = run().await;
    assert_eq!((second, ran), (first, 0));
    let lookups = cache.lookups();
    assert!(lookups <= 2100, "{lookups} lookups");
    assert_eq!(cache.saves.load(Ordering::SeqCst), 0);
    assert_eq!(cache.aliases.load(Ordering::SeqCst), 0);
}

#[tokio::test]
async fn equal_keys_run_once_though_vertices_differ() {
    let same = Arc::new(Int::new("same", 3).hook(async |_, _| {
        tokio::task::yield_now().await;
        Ok(vec![3])
    }));
    let top = Arc::new(Int::new("top", 0));
    let mut sums = Sums::new();
    let inputs = [sums.add(&same, &[]), sums.add(&same, &[]), sums.add(&same, &[])];
    let t = sums.add(&top, &inputs);
    assert_eq!(sums.done().value(&build(&Counted::new()), t).await, 9);
    assert_eq!(same.runs(), 1);
}

/// Another way to the same content: what reads it by content is known.
#[tokio::test]
async fn equal_content_skips_what_is_downstream() {
    let cache = Counted::new();
    let copy = Arc::new(Int::new("copy", 10).by_content(&[0]));
    let after = Arc::new(Int::new("after", 100));
    let run = async |source: &str| {
        let source = Arc::new(Int::new(source, 7));
        let mut sums = Sums::new();
        let s = sums.add(&source, &[]);
        let c = sums.add(&copy, &[s]);
        let a = sums.add(&after, &[c]);
        (sums.done().value(&build(&cache), a).await, source.runs())
    };
    assert_eq!(run("one").await, (117, 1));
    assert_eq!(run("two").await, (117, 1));
    assert_eq!((copy.runs(), after.runs(), copy.contents()), (1, 1, 2));
    // By now both definitions lead there: content is not read when the definition hits.
    assert_eq!((run("one").await, run("two").await), ((117, 0), (117, 0)));
    assert_eq!(copy.contents(), 2);
}

#[tokio::test]
async fn other_content_is_a_miss() {
    let cache = Counted::new();
    let copy = Arc::new(Int::new("copy", 10).by_content(&[0]));
    for value in [7, 8, 7] {
        let source = Arc::new(Int::new("context", value).unpinned());
        let mut sums = Sums::new();
        let s = sums.add(&source, &[]);
        let c = sums.add(&copy, &[s]);
        assert_eq!(sums.done().value(&build(&cache), c).await, value + 10);
    }
    assert_eq!(copy.runs(), 2);
}

#[tokio::test]
async fn selectors_and_outputs_are_part_of_the_key() {
    let cache = Counted::new();
    let mut sums = Sums::new();
    let twofold = Arc::new(Int::new("twofold", 0).hook(async |_, _| Ok(vec![1, 2])));
    let v = sums.add_twofold(&twofold);
    let plain = Arc::new(Int::new("reader", 0));
    let mut selecting = Int::new("reader", 0);
    selecting.selectors.insert(0, "/x");
    let selecting = Arc::new(selecting);
    let readers = [(&plain, 0), (&plain, 1), (&selecting, 0)]
        .map(|(int, output)| sums.place(int, &[Edge { vertex: v, output }], false));
    let sum = sums.done();
    let build = build(&cache);
    let edges: Vec<Edge> = readers.iter().map(|id| Edge::from(*id)).chain([Edge { vertex: v, output: 1 }]).collect();
    let solved = build.solve(sum.graph.clone(), &edges, sum.ops.clone()).await.unwrap();
    assert_eq!(solved.iter().map(|solved| solved.value).collect::<Vec<_>>(), [1, 2, 1, 2]);
    assert_eq!((twofold.runs(), plain.runs(), selecting.runs()), (1, 2, 1));
    let mut keys: Vec<_> = solved.iter().map(|solved| solved.key).collect();
    keys.sort();
    keys.dedup();
    assert_eq!(keys.len(), 4);
}

#[tokio::test]
async fn too_few_outputs_are_an_error() {
    let mut sums = Sums::new();
    let v = sums.add_twofold(&Arc::new(Int::new("lies", 0)));
    let error = sums.done().solve(&build(&Counted::new()), Edge { vertex: v, output: 1 }).await.unwrap_err();
    assert!(matches!(error, SolveError::Misfit { .. }), "{error}");
}

/// A source under several names: whichever name a later build has, it finds the result of the earlier.
#[tokio::test]
async fn any_name_of_a_source_leads_to_its_result() {
    let cache = Counted::new();
    let after = Arc::new(Int::new("after", 10));
    let run = async |name: &str, aliases: &[&'static str]| {
        let source = Arc::new(Int { aliases: aliases.to_vec(), ..Int::new(name, 1) });
        let mut sums = Sums::new();
        let s = sums.add(&source, &[]);
        let a = sums.add(&after, &[s]);
        let solved = sums.done().solve(&build(&cache), a).await.unwrap();
        (solved.key, source.runs())
    };
    let (key, ran) = run("chain", &["manifest"]).await;
    assert_eq!(ran, 1);
    assert_eq!(run("manifest", &[]).await, (key, 0));
    assert_eq!(run("index", &["manifest"]).await, (key, 0));
    assert_eq!(run("index", &[]).await, (key, 0));
    assert_eq!(after.runs(), 1);
}

#[tokio::test]
async fn a_lost_record_is_made_again() {
    let cache = Counted::new();
    let (base, copy, top) = (
        Arc::new(Int::new("base", 1)),
        Arc::new(Int::new("copy", 10).by_content(&[0])),
        Arc::new(Int::new("top", 100)),
    );
    let mut sums = Sums::new();
    let b = sums.add(&base, &[]);
    let c = sums.add(&copy, &[b]);
    let t = sums.add(&top, &[c]);
    let sum = sums.done();
    let key = sum.solve(&build(&cache), t).await.unwrap().key;
    cache.memory.forget(key);
    assert_eq!(sum.value(&build(&cache), t).await, 111);
    assert_eq!((base.runs(), copy.runs(), top.runs()), (1, 1, 2));
    for key in cache.memory.keys() {
        cache.memory.forget(key);
    }
    let again = sum.solve(&build(&cache), t).await.unwrap();
    assert_eq!((again.value, again.key), (111, key));
    assert_eq!((base.runs(), copy.runs(), top.runs()), (2, 2, 3));
}

/// A builder whose record is gone gives something else when it runs again: what is saved then says so.
#[tokio::test]
async fn what_is_saved_names_what_it_came_from() {
    let cache = Counted::new();
    let clock = Arc::new(AtomicI64::new(1));
    let ticks = clock.clone();
    let builder = Arc::new(Int::new("builder", 0).hook(move |_, _| {
        let now = ticks.load(Ordering::SeqCst);
        async move { Ok(vec![now]) }
    }));
    let copy = Arc::new(Int::new("copy", 10).by_content(&[0]));
    let mut sums = Sums::new();
    let b = sums.add(&builder, &[]);
    let c = sums.add(&copy, &[b]);
    let sum = sums.done();
    let first = sum.solve(&build(&cache), c).await.unwrap();
    for key in cache.memory.keys() {
        cache.memory.forget(key);
    }
    clock.store(2, Ordering::SeqCst);
    let second = sum.solve(&build(&cache), c).await.unwrap();
    assert_eq!((first.value, second.value), (11, 12));
    assert_ne!(first.key, second.key);
    let third = sum.solve(&build(&cache), c).await.unwrap();
    assert_eq!((third.value, third.key, third.cached), (12, second.key, true));
    assert_eq!(copy.runs(), 2);
}

#[tokio::test]
async fn errors_are_told_and_not_kept() {
    let cache = Counted::new();
    let (bad, top) = (Arc::new(Int::new("bad", 1)), Arc::new(Int::new("top", 10)));
    bad.fails.store(true, Ordering::SeqCst);
    let mut sums = Sums::new();
    let b = sums.add(&bad, &[]);
    let t = sums.add(&top, &[b]);
    let sum = sums.done();
    let build = build(&cache);
    let error = sum.solve(&build, t).await.unwrap_err();
    let SolveError::Failed { vertex, source, .. } = error else { panic!("{error}") };
    assert_eq!((vertex, source.to_string().as_str()), (b, "it was told to fail"));
    bad.fails.store(false, Ordering::SeqCst);
    assert_eq!(sum.value(&build, t).await, 11);
    assert_eq!((bad.runs(), top.runs()), (2, 1));
}

#[tokio::test]
async fn a_panic_is_a_failure_of_its_step() {
    let bad = Arc::new(Int::new("bad", 1).hook(async |_, _| panic!("no")));
    let mut sums = Sums::new();
    let b = sums.add(&bad, &[]);
    let error = sums.done().solve(&build(&Counted::new()), b).await.unwrap_err();
    let SolveError::Failed { source, .. } = error else { panic!("{error}") };
    assert_eq!(source.to_string(), "panicked: no");
}

#[tokio::test]
async fn a_broken_cache_fails_the_build() {
    let cache = Counted::new();
    cache.broken.store(true, Ordering::SeqCst);
    let mut sums = Sums::new();
    let v = sums.add(&Arc::new(Int::new("v", 1)), &[]);
    let error = sums.done().solve(&build(&cache), v).await.unwrap_err();
    assert!(matches!(error, SolveError::Cache { .. }), "{error}");
}

/// What ignores the cache runs, and so does what reads it by key; what reads it by content is looked up again. (As
/// BuildKit has it.) The next build finds the newest results.
#[tokio::test]
async fn ignoring_the_cache_spreads_by_key_and_ends_at_equal_content() {
    let cache = Counted::new();
    let clock = Arc::new(AtomicI64::new(1));
    let ticks = clock.clone();
    let step = Arc::new(Int::new("step", 0).hook(move |_, _| {
        let now = ticks.load(Ordering::SeqCst);
        async move { Ok(vec![now]) }
    }));
    let (by_key, by_content) = (Arc::new(Int::new("by key", 10)), Arc::new(Int::new("copy", 100).by_content(&[0])));
    let after = Arc::new(Int::new("after", 1000));
    let run = async |ignore: bool| {
        let mut sums = Sums::new();
        let s = if ignore { sums.add_ignoring(&step, &[]) } else { sums.add(&step, &[]) };
        let k = sums.add(&by_key, &[s]);
        let c = sums.add(&by_content, &[s]);
        let a = sums.add(&after, &[c]);
        let sum = sums.done();
        let edges = [k, a].map(Edge::from);
        let solved = build(&cache).solve(sum.graph.clone(), &edges, sum.ops.clone()).await.unwrap();
        let values: Vec<i64> = solved.iter().map(|solved| solved.value).collect();
        (values, [&step, &by_key, &by_content, &after].map(|int| int.runs()))
    };
    assert_eq!(run(false).await, (vec![11, 1101], [1, 1, 1, 1]));
    // The same content: only readers by key run.
    assert_eq!(run(true).await, (vec![11, 1101], [2, 2, 1, 1]));
    clock.store(2, Ordering::SeqCst);
    assert_eq!(run(true).await, (vec![12, 1102], [3, 3, 2, 2]));
    assert_eq!(run(false).await, (vec![12, 1102], [3, 3, 2, 2]));
}

/// However many graphs of a build name it, what ignores the cache runs once in that build.
#[tokio::test]
async fn ignoring_the_cache_runs_once_per_build() {
    let cache = Counted::new();
    let step = Arc::new(Int::new("step", 1));
    let mut sums = Sums::new();
    let s = sums.add_ignoring(&step, &[]);
    let one = sums.done();
    let mut sums = Sums::new();
    let other = sums.add_ignoring(&step, &[]);
    let two = sums.done();
    let build = build(&cache);
    assert_eq!(one.value(&build, s).await, 1);
    assert_eq!(one.value(&build, s).await, 1);
    assert_eq!(two.value(&build, other).await, 1);
    assert_eq!(step.runs(), 1);
}

/// Only the record of the last vertex is left. Nothing is run, though a copied stage lies between.
#[tokio::test]
async fn the_final_record_alone_skips_the_builder() {
    let cache = Counted::new();
    let ints = ["base", "builder", "copy", "after"].map(|name| match name {
        "copy" => Arc::new(Int::new(name, 1).by_content(&[1])),
        name => Arc::new(Int::new(name, 1)),
    });
    let run = async || {
        let mut sums = Sums::new();
        let base = sums.add(&ints[0], &[]);
        let builder = sums.add(&ints[1], &[base]);
        let copy = sums.add(&ints[2], &[base, builder]);
        let after = sums.add(&ints[3], &[copy]);
        sums.done().solve(&build(&cache), after).await.unwrap()
    };
    let first = run().await;
    for key in cache.memory.keys().into_iter().filter(|key| *key != first.key) {
        cache.memory.forget(key);
    }
    assert_eq!(run().await.value, first.value);
    assert_eq!(ints.each_ref().map(|int| int.runs()), [1; 4]);
}

/// What rests on one session's context by key leaves nothing behind; what rests on its content leaves one record and
/// no name that could not be found again.
#[tokio::test]
async fn unpinned_keys_are_not_written_down() {
    let cache = Counted::new();
    let copy = Arc::new(Int::new("copy", 10).by_content(&[1]));
    let base = Arc::new(Int::new("base", 1));
    let mut grown = Vec::new();
    for session in 0..3 {
        let context = Arc::new(Int::new(&format!("session {session}"), 5).unpinned());
        let reader = Arc::new(Int::new("reader", 100));
        let mut sums = Sums::new();
        let b = sums.add(&base, &[]);
        let s = sums.add(&context, &[]);
        let c = sums.add(&copy, &[b, s]);
        let r = sums.add(&reader, &[s]);
        let sum = sums.done();
        let edges = [c, r].map(Edge::from);
        let solved = build(&cache).solve(sum.graph.clone(), &edges, sum.ops.clone()).await.unwrap();
        assert_eq!([solved[0].value, solved[1].value], [16, 105]);
        assert_eq!((context.runs(), reader.runs()), (1, 1));
        grown.push((cache.memory.keys().len(), cache.memory.aliases()));
    }
    assert_eq!(copy.runs(), 1);
    assert_eq!(grown[0].0, 2, "the base and the copy");
    assert!(grown.iter().all(|size| *size == grown[0]), "{grown:?}");
}

#[tokio::test]
async fn a_record_says_what_went_in() {
    let cache = Counted::new();
    let base = Arc::new(Int::new("base", 1));
    let copy = Arc::new(Int::new("copy", 10).by_content(&[1]));
    let source = Arc::new(Int::new("source", 5));
    let mut sums = Sums::new();
    let inputs = [sums.add(&base, &[]), sums.add(&source, &[])];
    let c = sums.add(&copy, &inputs);
    let sum = sums.done();
    let build = build(&cache).named("b1");
    let base_key = sum.solve(&build, inputs[0]).await.unwrap().key;
    let key = sum.solve(&build, c).await.unwrap().key;
    let record = cache.memory.record(key).unwrap();
    assert_eq!((record.name.as_str(), record.build.as_str(), record.usage.exit), ("2 copy", "b1", Some(0)));
    assert_eq!(record.parts.len(), 1);
    assert_eq!(record.inputs.len(), 2);
    assert_eq!((record.inputs[0].key, record.inputs[0].content), (base_key, None));
    assert!(record.inputs[1].content.is_some() && record.inputs[1].parts.len() == 1);
    assert_eq!(
        serde_json::from_str::<rbuild_solver::RunRecord>(&serde_json::to_string(&record).unwrap()).unwrap(),
        record
    );
}

/// Each step is told of once, after its inputs; a cached path is shown whole, without lookups for what lies below.
#[tokio::test]
async fn events_tell_of_every_step_once() {
    let cache = Counted::new();
    let ints = ["a", "b", "c"].map(|name| Arc::new(Int::new(name, 1)));
    let last = Arc::new(Int::new("d", 1));
    let run = async |more: bool| {
        let (events, mut stream) = Events::channel();
        let mut sums = Sums::new();
        let a = sums.add(&ints[0], &[]);
        let b = sums.add(&ints[1], &[a]);
        let mut top = sums.add(&ints[2], &[b]);
        if more {
            top = sums.add(&last, &[top]);
        }
        let build = solver(&cache).build(events);
        sums.done().value(&build, top).await;
        drop(build);
        let mut seen = Vec::new();
        while let Some(event) = stream.next().await {
            seen.push(match event {
                Event::Step { id, inputs, .. } => format!("step {} {inputs:?}", id.0),
                Event::Started { id, .. } => format!("start {}", id.0),
                Event::Finished { id, outcome, .. } => format!("{outcome:?} {}", id.0),
                other => format!("{other:?}"),
            });
        }
        seen
    };
    let steps = [
        "step 1 []".to_owned(),
        format!("step 2 {:?}", [StepId(1)]),
        format!("step 3 {:?}", [StepId(2)]),
        format!("step 4 {:?}", [StepId(3)]),
    ];
    let done = ["start 1", "Done 1", "start 2", "Done 2", "start 3", "Done 3"].map(String::from);
    assert_eq!(run(false).await, [&steps[..3], &done].concat());
    let cached = ["Cached 1", "Cached 2", "Cached 3"].map(String::from);
    assert_eq!(run(false).await, [&steps[..3], &cached].concat());
    let more = ["start 4", "Done 4"].map(String::from);
    assert_eq!(run(true).await, [&steps[..], &cached, &more].concat());
}

#[tokio::test]
async fn a_cancelled_step_is_shown_as_such() {
    let (events, mut stream) = Events::channel();
    let bad = Arc::new(Int::new("bad", 1).hook(async |_, _| {
        tokio::task::yield_now().await;
        Err(crate::integers::failure("no"))
    }));
    let slow = Arc::new(Int::new("slow", 1).hook(async |_, _| std::future::pending().await));
    let top = Arc::new(Int::new("top", 1));
    let mut sums = Sums::new();
    let inputs = [sums.add(&bad, &[]), sums.add(&slow, &[])];
    let t = sums.add(&top, &inputs);
    let build = solver(&Counted::new()).build(events);
    assert!(sums.done().solve(&build, t).await.is_err());
    drop(build);
    let mut outcomes = Vec::new();
    while let Some(event) = stream.next().await {
        if let Event::Finished { id, outcome, .. } = event {
            outcomes.push((id.0, outcome));
        }
    }
    assert_eq!(outcomes, [(1, Outcome::Failed("no".into())), (2, Outcome::Cancelled)]);
}
