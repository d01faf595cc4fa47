//! Large, long and odd graphs.

use std::collections::HashMap;
use std::sync::Arc;

use crate::integers::{Counted, Int, Sums};
use rbuild_graph::VertexId;
use rbuild_solver::{Events, Solver};

/// A small generator of numbers that are the same every time.
struct Numbers(u64);

impl Numbers {
    fn next(&mut self, below: usize) -> usize {
        self.0 = self.0.wrapping_mul(6364136223846793005).wrapping_add(1442695040888963407);
        (self.0 >> 33) as usize % below.max(1)
    }
}

/// A random graph, and what plain recursion says its vertices are.
fn random(seed: u64, ints: &mut HashMap<String, Arc<Int>>) -> (Sums, Vec<VertexId>, Vec<i64>) {
    let mut numbers = Numbers(seed);
    let mut sums = Sums::new();
    let (mut ids, mut values): (Vec<VertexId>, Vec<i64>) = (Vec::new(), Vec::new());
    for n in 0..300 {
        let inputs: Vec<usize> = match n {
            0 => vec![],
            n => (0..numbers.next(4)).map(|_| n - 1 - numbers.next(n.min(20))).collect(),
        };
        // Few identities, so that equal keys occur; small values, so that equal contents do.
        let value = numbers.next(3) as i64;
        let by_content: Vec<usize> = (0..inputs.len()).filter(|_| numbers.next(3) == 0).collect();
        let unpinned = seed % 2 == 1 && inputs.is_empty() && numbers.next(4) == 0;
        let identity = format!("{value} {by_content:?} {} {unpinned}", inputs.len());
        let int = ints.entry(identity.clone()).or_insert_with(|| {
            let int = Int::new(&identity, value).by_content(&by_content);
            Arc::new(if unpinned { Int { needs_permit: false, ..int.unpinned() } } else { int })
        });
        values.push(inputs.iter().fold(value, |sum, input| sum.wrapping_add(values[*input])));
        let inputs: Vec<VertexId> = inputs.iter().map(|input| ids[*input]).collect();
        ids.push(sums.add(int, &inputs));
    }
    (sums, ids, values)
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn random_graphs_equal_plain_recursion_and_run_nothing_twice() {
    for seed in 0..60 {
        let cache = Counted::new();
        let mut ints = HashMap::new();
        for round in 0..2 {
            let (sums, ids, values) = random(seed, &mut ints);
            let sum = sums.done();
            let before: usize = ints.values().filter(|int| int.durable).map(|int| int.runs()).sum();
            let build = Solver::new(cache.clone(), 3).build(Events::null());
            let edges: Vec<_> = ids.iter().rev().take(40).map(|id| (*id).into()).collect();
            let solved = build.solve(sum.graph.clone(), &edges, sum.ops.clone()).await.unwrap();
            for (solved, expected) in solved.iter().zip(values.iter().rev()) {
                assert_eq!(solved.value, *expected, "seed {seed}, round {round}");
            }
            let after: usize = ints.values().filter(|int| int.durable).map(|int| int.runs()).sum();
            // In every other graph something is unpinned, and what rests on that by key has no result to find.
            if round == 1 && seed % 2 == 0 {
                assert_eq!(after, before, "seed {seed}");
                assert!(solved.iter().all(|solved| solved.cached), "seed {seed}");
            }
        }
    }
}

async fn chain(length: usize, content: bool, rounds: usize) {
    let cache = Counted::new();
    for round in 0..rounds {
        let (base, step) = (Arc::new(Int::new("base", 1)), Int::new("step", 1));
        let step = Arc::new(if content { step.by_content(&[0]) } else { step });
        let mut sums = Sums::new();
        let mut last = sums.add(&base, &[]);
        for _ in 1..length {
            last = sums.add(&step, &[last]);
        }
        let sum = sums.done();
        let build = Solver::new(cache.clone(), 4).build(Events::null());
        assert_eq!(sum.value(&build, last).await, length as i64);
        let expected = [length - 1, 0, length - 1][round];
        assert_eq!(step.runs(), expected, "round {round}");
        if round == 1 {
            for key in cache.memory.keys() {
                cache.memory.forget(key);
            }
        }
    }
}

/// Neither solving nor finding again nor losing everything nests 50,000 deep.
#[tokio::test]
async fn a_chain_of_fifty_thousand() {
    chain(50_000, false, 2).await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_chain_of_ten_thousand_contents() {
    chain(10_000, true, 3).await;
}

/// Cancelled in the middle.
#[tokio::test]
async fn a_long_chain_is_dropped_without_nesting() {
    let endless = Arc::new(Int::new("endless", 1).hook(async |_, _| std::future::pending().await));
    let step = Arc::new(Int::new("step", 1));
    let mut sums = Sums::new();
    let mut last = sums.add(&endless, &[]);
    for _ in 1..50_000 {
        last = sums.add(&step, &[last]);
    }
    let sum = sums.done();
    let build = Solver::new(Counted::new(), 4).build(Events::null());
    let mut solve = Box::pin(sum.solve(&build, last));
    while endless.runs() == 0 {
        assert!(futures::poll!(&mut solve).is_pending());
        tokio::task::yield_now().await;
    }
    drop(solve);
}
