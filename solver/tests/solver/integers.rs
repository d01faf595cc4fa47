//! Operations on integers, which say how often they were asked and can be told to wait, to fail and to change.

use std::collections::HashMap;
use std::sync::Arc;
use std::sync::Mutex;
use std::sync::atomic::{AtomicBool, AtomicUsize, Ordering};

use futures::future::{BoxFuture, FutureExt};
use rbuild_graph::ops::{ExecOp, MergeOp, Mount, MountKind, Network, Security};
use rbuild_graph::{BuildGraph, Edge, Op, VertexId, VertexMeta};
use rbuild_oci::Platform;
use rbuild_solver::{
    Build, Cache, CacheError, CacheKey, Claim, ContentHash, Entry, InputContent, InputKey, KeyPart, KeySpec,
    MemoryCache, OpError, OpFactory, Ran, RunContext, RunOp, SolveError, Solved, Usage,
};

type Hook = Arc<dyn Fn(Vec<i64>, RunContext) -> BoxFuture<'static, Result<Vec<i64>, OpError>> + Send + Sync>;

/// One operation. By default its result is its own value plus the sum of its inputs.
pub(crate) struct Int {
    pub(crate) identity: String,
    pub(crate) value: i64,
    pub(crate) by_content: Vec<usize>,
    pub(crate) selectors: HashMap<usize, &'static str>,
    pub(crate) aliases: Vec<&'static str>,
    pub(crate) durable: bool,
    pub(crate) needs_permit: bool,
    pub(crate) fails: AtomicBool,
    pub(crate) hook: Option<Hook>,
    pub(crate) keys: AtomicUsize,
    pub(crate) contents: AtomicUsize,
    pub(crate) runs: AtomicUsize,
}

impl Int {
    pub(crate) fn new(identity: &str, value: i64) -> Int {
        Int {
            identity: identity.into(),
            value,
            by_content: Vec::new(),
            selectors: HashMap::new(),
            aliases: Vec::new(),
            durable: true,
            needs_permit: true,
            fails: AtomicBool::new(false),
            hook: None,
            keys: AtomicUsize::new(0),
            contents: AtomicUsize::new(0),
            runs: AtomicUsize::new(0),
        }
    }

    pub(crate) fn by_content(mut self, inputs: &[usize]) -> Int {
        self.by_content = inputs.to_vec();
        self
    }

    pub(crate) fn unpinned(mut self) -> Int {
        self.durable = false;
        self
    }

    pub(crate) fn hook<F>(mut self, hook: impl Fn(Vec<i64>, RunContext) -> F + Send + Sync + 'static) -> Int
    where
        F: Future<Output = Result<Vec<i64>, OpError>> + Send + 'static,
    {
        self.hook = Some(Arc::new(move |inputs, context| hook(inputs, context).boxed()));
        self
    }

    pub(crate) fn runs(&self) -> usize {
        self.runs.load(Ordering::SeqCst)
    }

    pub(crate) fn contents(&self) -> usize {
        self.contents.load(Ordering::SeqCst)
    }
}

#[derive(Debug, thiserror::Error)]
#[error("{0}")]
pub(crate) struct Failure(pub String);

pub(crate) fn failure(text: &str) -> OpError {
    Arc::new(Failure(text.into()))
}

struct Placed {
    int: Arc<Int>,
    inputs: usize,
}

impl RunOp<i64> for Placed {
    fn key(&self) -> BoxFuture<'_, Result<KeySpec, OpError>> {
        self.int.keys.fetch_add(1, Ordering::SeqCst);
        let part = |name: &str| vec![KeyPart::text("identity", name)];
        let input = |index| InputKey {
            selector: self.int.selectors.get(&index).map(|selector| selector.to_string()),
            by_content: self.int.by_content.contains(&index),
        };
        let spec = KeySpec {
            parts: part(&self.int.identity),
            inputs: (0..self.inputs).map(input).collect(),
            aliases: self.int.aliases.iter().map(|alias| part(alias)).collect(),
            durable: self.int.durable,
        };
        async move { Ok(spec) }.boxed()
    }

    fn content(&self, _input: usize, value: &i64) -> BoxFuture<'_, Result<InputContent, OpError>> {
        self.int.contents.fetch_add(1, Ordering::SeqCst);
        let hash = ContentHash::of(&value.to_le_bytes());
        async move { Ok(InputContent { hash, parts: vec![KeyPart::content("value", hash)].into() }) }.boxed()
    }

    fn run(&self, inputs: Vec<i64>, context: RunContext) -> BoxFuture<'_, Result<Ran<i64>, OpError>> {
        self.int.runs.fetch_add(1, Ordering::SeqCst);
        async move {
            if self.int.fails.load(Ordering::SeqCst) {
                return Err(failure("it was told to fail"));
            }
            let outputs = match &self.int.hook {
                Some(hook) => hook(inputs, context).await?,
                None => vec![inputs.iter().fold(self.int.value, |sum, input| sum.wrapping_add(*input))],
            };
            Ok(Ran { outputs, usage: Usage { exit: Some(0), ..Usage::default() } })
        }
        .boxed()
    }

    fn needs_permit(&self) -> bool {
        self.int.needs_permit
    }
}

/// A graph of such operations, found by the names of its vertices.
#[derive(Default)]
pub(crate) struct Sums {
    graph: BuildGraph,
    ints: HashMap<String, Arc<Int>>,
}

impl Sums {
    pub(crate) fn new() -> Sums {
        Sums::default()
    }

    fn meta(name: String, ignore_cache: bool) -> VertexMeta {
        VertexMeta { name, span: None, ignore_cache, platform: Platform::new("linux", "amd64") }
    }

    pub(crate) fn place(&mut self, int: &Arc<Int>, inputs: &[Edge], ignore_cache: bool) -> VertexId {
        let name = format!("{} {}", self.graph.len(), int.identity);
        self.ints.insert(name.clone(), int.clone());
        let op = Op::Merge(MergeOp { inputs: inputs.len() });
        self.graph.add(op, inputs.to_vec(), Sums::meta(name, ignore_cache)).unwrap()
    }

    pub(crate) fn add(&mut self, int: &Arc<Int>, inputs: &[VertexId]) -> VertexId {
        let edges: Vec<Edge> = inputs.iter().map(|id| Edge::from(*id)).collect();
        self.place(int, &edges, false)
    }

    pub(crate) fn add_ignoring(&mut self, int: &Arc<Int>, inputs: &[VertexId]) -> VertexId {
        let edges: Vec<Edge> = inputs.iter().map(|id| Edge::from(*id)).collect();
        self.place(int, &edges, true)
    }

    /// A vertex with two outputs.
    pub(crate) fn add_twofold(&mut self, int: &Arc<Int>) -> VertexId {
        let mount = |target: &[u8], output| Mount {
            target: target.to_vec(),
            input: None,
            output: Some(output),
            read_only: false,
            selector: None,
            kind: MountKind::Bind,
        };
        let exec = ExecOp {
            args: vec!["x".into()],
            env: vec![],
            cwd: "/".into(),
            user: String::new(),
            hostname: None,
            network: Network::Default,
            security: Security::Sandbox,
            mounts: vec![mount(b"/", 0), mount(b"/x", 1)],
            extra_hosts: vec![],
            proxy_env: vec![],
            shm_size: None,
            ulimits: vec![],
            cgroup_parent: None,
            valid_exit_codes: vec![],
            devices: vec![],
        };
        let name = format!("{} {}", self.graph.len(), int.identity);
        self.ints.insert(name.clone(), int.clone());
        self.graph.add(Op::Exec(exec), vec![], Sums::meta(name, false)).unwrap()
    }

    pub(crate) fn done(self) -> Arc<Sum> {
        let ints = self.ints;
        let graph = Arc::new(self.graph);
        let ops: OpFactory<i64> = Arc::new(move |vertex| {
            let int = ints.get(&vertex.meta.name).cloned().ok_or_else(|| failure("no such operation"))?;
            Ok(Arc::new(Placed { int, inputs: vertex.inputs.len() }))
        });
        Arc::new(Sum { graph, ops })
    }
}

/// A finished graph.
pub(crate) struct Sum {
    pub(crate) graph: Arc<BuildGraph>,
    pub(crate) ops: OpFactory<i64>,
}

impl Sum {
    pub(crate) async fn solve(&self, build: &Build<i64>, edge: impl Into<Edge>) -> Result<Solved<i64>, SolveError> {
        let solved = build.solve(self.graph.clone(), &[edge.into()], self.ops.clone()).await?;
        Ok(solved.into_iter().next().unwrap())
    }

    pub(crate) async fn value(&self, build: &Build<i64>, edge: impl Into<Edge>) -> i64 {
        self.solve(build, edge).await.unwrap().value
    }
}

/// A cache in memory that counts.
#[derive(Default)]
pub(crate) struct Counted {
    pub(crate) memory: MemoryCache<i64>,
    pub(crate) resolves: AtomicUsize,
    pub(crate) loads: AtomicUsize,
    pub(crate) hits: AtomicUsize,
    pub(crate) saves: AtomicUsize,
    pub(crate) aliases: AtomicUsize,
    pub(crate) broken: AtomicBool,
    /// Keys whose claim somebody else has, until the sender says so.
    pub(crate) claimed: Mutex<HashMap<CacheKey, futures::channel::oneshot::Receiver<()>>>,
}

impl Counted {
    pub(crate) fn new() -> Arc<Counted> {
        Arc::new(Counted::default())
    }

    /// Lookups so far, and none from now on.
    pub(crate) fn lookups(&self) -> usize {
        self.resolves.swap(0, Ordering::SeqCst) + self.loads.swap(0, Ordering::SeqCst)
    }

    fn check(&self) -> Result<(), CacheError> {
        match self.broken.load(Ordering::SeqCst) {
            true => Err(failure("the disk is gone")),
            false => Ok(()),
        }
    }
}

impl Cache<i64> for Counted {
    fn resolve(&self, key: CacheKey) -> BoxFuture<'_, Result<Option<CacheKey>, CacheError>> {
        self.resolves.fetch_add(1, Ordering::SeqCst);
        async move {
            self.check()?;
            self.memory.resolve(key).await
        }
        .boxed()
    }

    fn load(&self, canonical: CacheKey) -> BoxFuture<'_, Result<Option<Vec<i64>>, CacheError>> {
        self.loads.fetch_add(1, Ordering::SeqCst);
        async move {
            self.check()?;
            let found = self.memory.load(canonical).await?;
            self.hits.fetch_add(found.is_some() as usize, Ordering::SeqCst);
            Ok(found)
        }
        .boxed()
    }

    fn save(&self, entry: Entry<i64>) -> BoxFuture<'_, Result<(), CacheError>> {
        self.saves.fetch_add(1, Ordering::SeqCst);
        async move {
            self.check()?;
            self.memory.save(entry).await
        }
        .boxed()
    }

    fn alias(&self, from: Vec<CacheKey>, canonical: CacheKey) -> BoxFuture<'_, Result<(), CacheError>> {
        self.aliases.fetch_add(from.len(), Ordering::SeqCst);
        self.memory.alias(from, canonical)
    }

    fn claim(&self, key: CacheKey) -> BoxFuture<'_, Result<Claim, CacheError>> {
        let theirs = self.claimed.lock().unwrap().remove(&key);
        match theirs {
            Some(over) => {
                let over = over.map(|_| ()).boxed();
                async move { Ok(Claim::Theirs { pid: Some(7), over }) }.boxed()
            }
            None => self.memory.claim(key),
        }
    }
}
