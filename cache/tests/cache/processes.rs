//! Several processes on one store. A process here is a handle on the store with a lease of its own: the kernel locks
//! lease files by open file, and the database sees connections, so that neither can tell.

use std::fs::File;
use std::process::{Command, Stdio};
use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::time::Duration;

use futures::future::{BoxFuture, FutureExt};
use rbuild_graph::ops::MergeOp;
use rbuild_graph::{BuildGraph, Op, VertexMeta};
use rbuild_oci::Platform;
use rbuild_solver::{
    Cache, Claim, Events, InputContent, InputKey, Keep, KeyPart, KeySpec, OpError, OpFactory, Ran, RunContext, RunOp,
    Solved, Solver,
};
use rbuild_store::Durability;
use rbuild_store::lock::{Lock, try_lock};
use tempfile::TempDir;

use crate::{Process, entry, key};

/// Takes its time, counts, and gives how often it ran before.
struct Slow {
    inputs: usize,
    runs: Arc<AtomicUsize>,
}

impl RunOp<i64> for Slow {
    fn key(&self) -> BoxFuture<'_, Result<KeySpec, OpError>> {
        let mut spec = KeySpec::new(vec![KeyPart::text("op", "slow")]);
        spec.inputs = vec![InputKey::default(); self.inputs];
        async move { Ok(spec) }.boxed()
    }

    fn content(&self, _: usize, _: &i64) -> BoxFuture<'_, Result<InputContent, OpError>> {
        unreachable!("nothing is read by content")
    }

    fn run(&self, _: Vec<i64>, _: RunContext) -> BoxFuture<'_, Result<Ran<i64>, OpError>> {
        async move {
            let before = self.runs.fetch_add(1, Ordering::SeqCst);
            tokio::time::sleep(Duration::from_millis(100)).await;
            Ok(Ran::one(before as i64))
        }
        .boxed()
    }
}

async fn build(process: &Process, runs: &Arc<AtomicUsize>, steps: usize) -> Solved<i64> {
    let mut graph = BuildGraph::new();
    let mut last = None;
    for _ in 0..steps {
        let meta = VertexMeta {
            name: "slow".into(),
            span: None,
            ignore_cache: false,
            platform: Platform::new("linux", "amd64"),
        };
        let inputs: Vec<_> = last.into_iter().map(rbuild_graph::Edge::from).collect();
        last = Some(graph.add(Op::Merge(MergeOp { inputs: inputs.len() }), inputs, meta).unwrap());
    }
    let runs = runs.clone();
    let ops: OpFactory<i64> =
        Arc::new(move |vertex| Ok(Arc::new(Slow { inputs: vertex.inputs.len(), runs: runs.clone() })));
    let build = Solver::new(process.cache.clone(), 4).build(Events::null());
    build.solve(Arc::new(graph), &[last.unwrap().into()], ops).await.unwrap().remove(0)
}

/// Each process has a runtime and threads of its own; both start at once; the work is done once.
#[test]
fn two_processes_run_a_key_once() {
    let root = TempDir::new().unwrap();
    let runs = Arc::new(AtomicUsize::new(0));
    let solved: Vec<Solved<i64>> = std::thread::scope(|scope| {
        let threads: Vec<_> = (0..4)
            .map(|_| {
                scope.spawn(|| {
                    let process = Process::start(&root);
                    let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build().unwrap();
                    runtime.block_on(build(&process, &runs, 3))
                })
            })
            .collect();
        threads.into_iter().map(|thread| thread.join().unwrap()).collect()
    });
    assert_eq!(runs.load(Ordering::SeqCst), 3);
    assert!(solved.iter().all(|one| (one.value, one.key) == (2, solved[0].key)));
    let process = Process::start(&root);
    let claims: i64 =
        process.store.db().read(|tx| Ok(tx.query_row("SELECT count(*) FROM claims", [], |row| row.get(0))?)).unwrap();
    assert_eq!(claims, 0);
}

async fn ends(over: BoxFuture<'static, ()>) {
    tokio::time::timeout(Duration::from_secs(20), over).await.expect("the wait does not end");
}

/// The claimant gives up, saves, or dies: the wait is over in each case.
#[tokio::test]
async fn a_wait_ends_with_the_claimant() {
    let root = TempDir::new().unwrap();
    let waiter = Process::start(&root);
    let claim = async |process: &Process| process.cache.claim(key("a")).await.unwrap();

    let other = Process::start(&root);
    let Claim::Mine(mine) = claim(&other).await else { panic!("nobody has it") };
    let Claim::Theirs { pid, over } = claim(&waiter).await else { panic!("the other has it") };
    assert_eq!(pid, Some(std::process::id()));
    let mut over = over;
    let still = tokio::time::timeout(Duration::from_millis(200), &mut over).await;
    assert!(still.is_err(), "it ended while the claimant was at work");
    drop(mine);
    ends(over).await;

    let Claim::Mine(mine) = claim(&other).await else { panic!("it was let go") };
    let Claim::Theirs { over, .. } = claim(&waiter).await else { panic!("the other has it") };
    other.cache.save(entry("a", &[], 1, Keep::First)).await.unwrap();
    ends(over).await;
    drop(mine);

    // A process that dies lets go of its lease and nothing else.
    let row = "INSERT INTO claims (key, lease) VALUES (?, ?)";
    let write = |lease: &str| {
        let key = key("a").to_string();
        waiter.store.db().write(Durability::Cache, |tx| Ok(tx.execute(row, [key.as_str(), lease])?)).unwrap();
    };
    write("1x0000000000000000");
    let Claim::Mine(mine) = claim(&waiter).await else { panic!("its claimant is dead") };
    drop(mine);
    let lease = format!("{}x0000000000000001", std::process::id());
    let file = File::create(waiter.store.root().join("leases").join(&lease)).unwrap();
    assert!(try_lock(&file, Lock::Alone).unwrap());
    write(&lease);
    let Claim::Theirs { over, .. } = claim(&waiter).await else { panic!("its claimant lives") };
    drop(file);
    ends(over).await;
    assert!(matches!(claim(&waiter).await, Claim::Mine(_)));
}

/// Nobody waits for a process that is stopped; when it goes on and finishes second, the first result stays.
#[tokio::test]
async fn a_stopped_claimant_is_not_waited_for() {
    let root = TempDir::new().unwrap();
    let process = Process::start(&root);
    let mut stopped = Command::new("sleep").arg("60").stdin(Stdio::null()).spawn().unwrap();
    let signal = |name: &str| {
        assert!(Command::new("kill").args([name, &stopped.id().to_string()]).status().unwrap().success());
    };
    let lease = format!("{}x0000000000000002", stopped.id());
    let file = File::create(process.store.root().join("leases").join(&lease)).unwrap();
    assert!(try_lock(&file, Lock::Alone).unwrap());
    let name = key("a").to_string();
    process
        .store
        .db()
        .write(Durability::Cache, |tx| Ok(tx.execute("INSERT INTO claims VALUES (?, ?)", [&name, &lease])?))
        .unwrap();
    let claim = process.cache.claim(key("a")).await.unwrap();
    let Claim::Theirs { pid, over } = claim else { panic!("it runs") };
    assert_eq!(pid, Some(stopped.id()));
    signal("-STOP");
    ends(over).await;
    assert!(matches!(process.cache.claim(key("a")).await.unwrap(), Claim::Mine(_)));
    process.cache.save(entry("a", &[], 1, Keep::First)).await.unwrap();
    process.cache.save(entry("a", &[], 2, Keep::First)).await.unwrap();
    assert_eq!(process.cache.load(key("a")).await.unwrap(), Some(vec![1]));
    stopped.kill().unwrap();
    stopped.wait().unwrap();
}
