//! Finding keys: *known* and *settled*, and what can be said while a key is not settled yet.

use std::sync::Arc;

use futures::future::try_join_all;
use futures::stream::{FuturesUnordered, StreamExt};
use rbuild_graph::{Edge, VertexId};

use crate::key::{self, CacheKey, InputName, KeySpec};
use crate::ladder::{Answer, Ladder};
use crate::launch::leave;
use crate::op::{InputContent, RunOp};

/// The key from definitions.
pub(crate) struct Known<R> {
    pub(crate) op: Arc<dyn RunOp<R>>,
    pub(crate) spec: KeySpec,
    /// The key as the definitions give it, before any lookup.
    pub(crate) definition: CacheKey,
    /// The best there is: what the lookup gave, else `definition`.
    pub(crate) key: CacheKey,
    /// `key` is the one that the result is saved under.
    pub(crate) canonical: bool,
    /// `key` rests on nothing unpinned.
    pub(crate) durable: bool,
    /// It is run again, whatever is known.
    pub(crate) fresh: bool,
    /// Something it is defined by runs again, so that what was known under `key` may be of another time.
    pub(crate) stale: bool,
    /// Other names that do not lead to `key` yet.
    pub(crate) aliases: Vec<CacheKey>,
}

/// The key a result is saved under.
pub(crate) struct Settled {
    pub(crate) key: CacheKey,
    pub(crate) durable: bool,
    pub(crate) fresh: bool,
    /// Names it was looked for under, which do not lead to `key` yet.
    pub(crate) aliases: Vec<CacheKey>,
    /// Names of its inputs as inputs of such a computation; written down when anything is.
    pub(crate) links: Vec<CacheKey>,
    /// Per input, where content stood in the key; empty when no content was needed.
    pub(crate) contents: Vec<Option<InputContent>>,
}

impl<R: Clone + Send + Sync + 'static> Ladder<R> {
    pub(crate) async fn find_known(self: Arc<Self>, id: VertexId) -> Answer<Arc<Known<R>>> {
        let vertex = self.graph.vertex(id);
        let op = (self.ops)(vertex).map_err(|error| self.failed(id, error))?;
        let spec = op.key().await.map_err(|error| self.failed(id, error))?;
        if spec.inputs.len() != vertex.inputs.len() {
            let (said, is) = (spec.inputs.len(), vertex.inputs.len());
            return Err(self.misfit(id, format!("its key speaks of {said} inputs, it has {is}")));
        }
        let inputs = try_join_all(vertex.inputs.iter().map(|edge| self.known(edge.vertex).get())).await?;
        let names: Vec<InputName> = inputs
            .iter()
            .zip(&vertex.inputs)
            .map(|(input, edge)| InputName::Key(input.key.output(edge.output)))
            .collect();
        let durable = spec.durable && inputs.iter().all(|input| input.durable);
        let by_key = || inputs.iter().zip(&spec.inputs).filter(|(_, input)| !input.by_content);
        let fresh = vertex.meta.ignore_cache || by_key().any(|(input, _)| input.fresh);
        let stale = fresh || inputs.iter().any(|input| input.stale);
        let certain = by_key().count() == inputs.len() && inputs.iter().all(|input| input.canonical);
        let definition = key::hash(&spec.parts, &spec, &names);
        let aliases = if durable { other_names(&spec, &names) } else { Vec::new() };
        let mut known =
            Known { op, spec, definition, key: definition, canonical: certain, durable, fresh, stale, aliases };
        if durable && !stale && (!certain || inputs.is_empty() || !known.aliases.is_empty()) {
            self.look_up(id, &mut known).await?;
        }
        Ok(Arc::new(known))
    }

    /// Takes the canonical key in place of the one from definitions, if the cache knows one.
    async fn look_up(&self, id: VertexId, known: &mut Known<R>) -> Answer<()> {
        if let Some(canonical) = self.resolve(id, known.key).await? {
            (known.key, known.canonical) = (canonical, true);
            // They were written down with it.
            known.aliases.clear();
            return Ok(());
        }
        for index in 0..known.aliases.len() {
            if let Some(canonical) = self.resolve(id, known.aliases[index]).await? {
                known.aliases.remove(index);
                known.aliases.push(known.key);
                self.alias(id, std::mem::take(&mut known.aliases), canonical).await?;
                (known.key, known.canonical) = (canonical, true);
                return Ok(());
            }
        }
        Ok(())
    }

    pub(crate) async fn find_settled(self: Arc<Self>, id: VertexId) -> Answer<Arc<Settled>> {
        let known = self.known(id).get().await?;
        if known.canonical {
            return Ok(Arc::new(Settled {
                key: known.key,
                durable: known.durable,
                fresh: known.fresh,
                aliases: known.aliases.clone(),
                links: Vec::new(),
                contents: Vec::new(),
            }));
        }
        let edges = self.graph.inputs(id);
        if !self.are_settling(edges) {
            leave().await;
        }
        let spec = &known.spec;
        // Rule 2: keys settle without results. Only content asks for one, and only when no name is enough.
        let inputs = self.settled_inputs(id, &known).await?;
        // Rule 1: a key that is saved is derived only from settled keys. A provisional one in it would give the vertex
        // two names, and the next build, which knows the final name of the input, would run it again.
        let keys: Vec<CacheKey> = inputs.iter().zip(edges).map(|(input, edge)| input.key.output(edge.output)).collect();
        let mut names: Vec<InputName> = keys.iter().map(|key| InputName::Key(*key)).collect();
        let by_key = key::hash(&spec.parts, spec, &names);
        let durable = |counts: &dyn Fn(usize) -> bool| {
            spec.durable && (0..inputs.len()).filter(|index| counts(*index)).all(|index| inputs[index].durable)
        };
        let mut settled = Settled {
            key: by_key,
            durable: durable(&|_| true),
            fresh: known.fresh,
            // Rule 7: what rests on something unpinned is not written down; it could never be found again.
            aliases: known.durable.then_some(known.definition).into_iter().collect(),
            links: (0..edges.len())
                .filter(|index| has_links(spec) && inputs[*index].durable)
                .map(|index| key::link(spec, index, keys[index]))
                .collect(),
            contents: Vec::new(),
        };
        let looked_up = known.durable && !known.stale && known.definition == by_key;
        if settled.durable {
            let others = other_names(spec, &names);
            let fresh = known.fresh || inputs.iter().any(|input| input.fresh);
            if !looked_up && !fresh && (reads_content(spec) || !others.is_empty()) {
                let candidates = [&[by_key], others.as_slice()].concat();
                if self.find(id, &candidates, &mut settled).await? {
                    return Ok(Arc::new(settled));
                }
            }
            settled.aliases.extend(others);
        }
        if reads_content(spec) {
            settled.aliases.extend(settled.durable.then_some(by_key));
            settled.durable = durable(&|index| !spec.inputs[index].by_content);
            self.settle_by_content(id, &known, &mut names, &mut settled).await?;
        }
        settled.aliases.retain(|alias| *alias != settled.key);
        settled.aliases.sort_unstable();
        settled.aliases.dedup();
        Ok(Arc::new(settled))
    }

    /// Puts content in place of the names of inputs that count by content. The key with that is canonical as it is; it is
    /// looked up only so that the other names lead there at once.
    async fn settle_by_content(
        self: &Arc<Self>,
        id: VertexId,
        known: &Known<R>,
        names: &mut [InputName],
        settled: &mut Settled,
    ) -> Answer<()> {
        let spec = &known.spec;
        settled.contents = self.contents(id, known).await?;
        for (name, content) in names.iter_mut().zip(&settled.contents) {
            if let Some(content) = content {
                *name = InputName::Content(content.hash);
            }
        }
        settled.key = key::hash(&spec.parts, spec, names);
        if settled.durable {
            let others = other_names(spec, names);
            let more_names = !settled.aliases.is_empty() || !others.is_empty();
            let candidates = [&[settled.key], others.as_slice()].concat();
            if known.fresh || !more_names || !self.find(id, &candidates, settled).await? {
                settled.aliases.extend(others);
            }
        }
        Ok(())
    }

    /// The settled inputs. What is read by content and cannot be found by name is solved meanwhile: its content will be
    /// asked for, whatever the other inputs turn out to be, and stages that are copied from must not wait for each other.
    async fn settled_inputs(self: &Arc<Self>, id: VertexId, known: &Known<R>) -> Answer<Vec<Arc<Settled>>> {
        let edges = self.graph.inputs(id);
        let inputs = edges.iter().enumerate().map(|(index, edge)| async move {
            let input = self.settled(edge.vertex).get().await?;
            if known.spec.inputs[index].by_content && self.is_new(id, known, index, &input).await? {
                self.solved(edge.vertex).get().await?;
            }
            Ok(input)
        });
        try_join_all(inputs).await
    }

    /// Whether no key that has this input's name in it can be known.
    async fn is_new(&self, id: VertexId, known: &Known<R>, index: usize, input: &Settled) -> Answer<bool> {
        let spec = &known.spec;
        if known.fresh || input.fresh || !spec.durable || !input.durable {
            return Ok(true);
        }
        let key = input.key.output(self.graph.inputs(id)[index].output);
        let sign = match has_links(spec) {
            true => key::link(spec, index, key),
            false => key::hash(&spec.parts, spec, &[InputName::Key(key)]),
        };
        Ok(self.resolve(id, sign).await?.is_none())
    }

    /// Whether the vertex will have to run, as far as can be said before its key is settled.
    pub(crate) async fn find_hopeless(self: Arc<Self>, id: VertexId) -> Answer<bool> {
        leave().await;
        let known = self.known(id).get().await?;
        if known.fresh || !known.spec.durable {
            return Ok(true);
        }
        if known.canonical {
            return Ok(false);
        }
        let by_key = |(index, _): &(usize, _)| !known.spec.inputs[*index].by_content;
        let inputs = self.graph.inputs(id).iter().enumerate().filter(by_key).map(|(index, edge)| {
            let (ladder, known) = (&self, &known);
            async move {
                if ladder.hopeless(edge.vertex).get().await? {
                    return Ok(true);
                }
                let input = ladder.settled(edge.vertex).get().await?;
                ladder.is_new(id, known, index, &input).await
            }
        });
        let mut inputs: FuturesUnordered<_> = inputs.collect();
        while let Some(hopeless) = inputs.next().await {
            if hopeless? {
                return Ok(true);
            }
        }
        Ok(false)
    }

    fn are_settling(&self, edges: &[Edge]) -> bool {
        let rungs = self.rungs();
        edges.iter().all(|edge| rungs[edge.vertex.0 as usize].settled.is_asked())
    }

    /// Whether the cache has a result by one of these keys. If so, that is the canonical key, and the names that did not
    /// lead there do from now on.
    async fn find(&self, id: VertexId, candidates: &[CacheKey], settled: &mut Settled) -> Answer<bool> {
        for (index, candidate) in candidates.iter().enumerate() {
            if let Some(canonical) = self.resolve(id, *candidate).await? {
                settled.key = canonical;
                // Those before it missed. Those behind it were written down with it.
                settled.aliases.extend_from_slice(&candidates[..index]);
                settled.aliases.retain(|alias| *alias != canonical);
                self.write_aliases(id, settled).await?;
                settled.aliases.clear();
                return Ok(true);
            }
        }
        Ok(false)
    }

    pub(crate) async fn write_aliases(&self, id: VertexId, settled: &Settled) -> Answer<()> {
        if settled.aliases.is_empty() {
            return Ok(());
        }
        self.alias(id, [settled.aliases.as_slice(), &settled.links].concat(), settled.key).await
    }

    /// The content of each input that counts by content.
    pub(crate) async fn contents(
        self: &Arc<Self>,
        id: VertexId,
        known: &Known<R>,
    ) -> Answer<Vec<Option<InputContent>>> {
        let edges = self.graph.inputs(id);
        let contents = known.spec.inputs.iter().enumerate().map(|(index, input)| async move {
            if !input.by_content {
                return Ok(None);
            }
            let value = self.output(edges[index], &self.solved(edges[index].vertex).get().await?)?;
            let content = known.op.content(index, &value).await;
            content.map(Some).map_err(|error| self.failed(id, error))
        });
        try_join_all(contents).await
    }
}

/// The other names of a computation with these inputs.
fn other_names(spec: &KeySpec, names: &[InputName]) -> Vec<CacheKey> {
    spec.aliases.iter().map(|parts| key::hash(parts, spec, names)).collect()
}

/// Whether an input counts by its content.
pub(crate) fn reads_content(spec: &KeySpec) -> bool {
    spec.inputs.iter().any(|input| input.by_content)
}

/// Whether computations of this kind leave a name per input. One that reads a single input by key needs none: with that
/// input its own key is known.
pub(crate) fn has_links(spec: &KeySpec) -> bool {
    spec.inputs.len() > 1 || reads_content(spec)
}
