//! Finding results: *solved*.

use std::sync::Arc;

use futures::future::{Either, FutureExt, select, try_join, try_join_all};
use rbuild_graph::VertexId;

use crate::event::{Member, Outcome};
use crate::key::{self, CacheKey, InputName};
use crate::ladder::{Answer, Ladder, Outputs, Reply};
use crate::launch::leave;
use crate::record::{MadeOf, ReadInput};
use crate::settle::{Known, Settled, has_links, reads_content};
use crate::show::Showing;
use crate::solver::{Fault, Finished, SolveError, Work};

impl<R: Clone + Send + Sync + 'static> Ladder<R> {
    pub(crate) async fn find_solved(self: Arc<Self>, id: VertexId) -> Answer<Outputs<R>> {
        let known = self.known(id).get().await?;
        let settled = match self.settled(id) {
            Reply::Now(settled) => settled?,
            Reply::Later(settled) => self.settle_while_inputs_run(id, Reply::Later(settled)).await?,
        };
        if let Some(outputs) = self.at_hand(id, &settled).await? {
            return Ok(outputs);
        }
        let edges = self.graph.inputs(id);
        if !edges.is_empty() {
            leave().await;
        }
        let inputs = try_join_all(edges.iter().map(|edge| self.solved(edge.vertex).get())).await?;
        let settled = self.settle_again(id, &known, settled, &inputs).await?;
        if let Some(outputs) = self.at_hand(id, &settled).await? {
            return Ok(outputs);
        }
        self.run(id, &known, &settled, &inputs).await
    }

    /// Waits for the settled key. If it can be said before that the vertex has to run, its inputs start meanwhile.
    async fn settle_while_inputs_run(
        self: &Arc<Self>,
        id: VertexId,
        settled: Reply<Arc<Settled>>,
    ) -> Answer<Arc<Settled>> {
        let settled = settled.get().boxed();
        let settled = match select(settled, self.hopeless(id).get().boxed()).await {
            Either::Left((settled, _)) => return settled,
            Either::Right((hopeless, settled)) => match hopeless? {
                true => settled,
                false => return settled.await,
            },
        };
        leave().await;
        let inputs = self.graph.inputs(id).iter().map(|edge| self.solved(edge.vertex).get());
        // Joined, so that a failing input ends the build while others still run.
        let (settled, _) = try_join(settled, try_join_all(inputs)).await?;
        Ok(settled)
    }

    /// A result that is there already: this build's own, or the cache's.
    async fn at_hand(self: &Arc<Self>, id: VertexId, settled: &Settled) -> Answer<Option<Outputs<R>>> {
        if let Some(outputs) = self.site.done(settled.key) {
            self.show_cached(id);
            return Ok(Some(outputs));
        }
        if settled.fresh || !settled.durable {
            return Ok(None);
        }
        let values = self.site.workshop.cache.load(settled.key).await.map_err(|error| self.cache_failed(id, error))?;
        let Some(values) = values else { return Ok(None) };
        self.write_aliases(id, settled).await?;
        self.show_cached(id);
        let (key, durable) = (settled.key, settled.durable);
        Ok(Some(Outputs { key, values: values.into(), durable, cached: true }))
    }

    /// The settled key once more, now from the inputs' results.
    ///
    /// The same as before, unless a record was lost: one found by definition names inputs that nobody looked at, and
    /// running them again may give something else. What is saved must not claim to come from what it does not.
    async fn settle_again(
        self: &Arc<Self>,
        id: VertexId,
        known: &Known<R>,
        settled: Arc<Settled>,
        inputs: &[Outputs<R>],
    ) -> Answer<Arc<Settled>> {
        let edges = self.graph.inputs(id);
        let contents = match reads_content(&known.spec) && settled.contents.is_empty() {
            true => self.contents(id, known).await?,
            false => settled.contents.clone(),
        };
        let keys: Vec<CacheKey> = inputs.iter().zip(edges).map(|(input, edge)| input.key.output(edge.output)).collect();
        let name = |index: usize| match contents.get(index).and_then(Option::as_ref) {
            Some(content) => InputName::Content(content.hash),
            None => InputName::Key(keys[index]),
        };
        let names: Vec<InputName> = (0..edges.len()).map(name).collect();
        let key = key::hash(&known.spec.parts, &known.spec, &names);
        let counts = |index: &usize| !known.spec.inputs[*index].by_content;
        let durable = known.spec.durable && (0..edges.len()).filter(counts).all(|index| inputs[index].durable);
        let mut aliases = settled.aliases.clone();
        if key != settled.key {
            aliases.extend(known.durable.then_some(known.definition));
            aliases.retain(|alias| *alias != key);
        }
        let linked = (0..edges.len()).filter(|index| has_links(&known.spec) && inputs[*index].durable);
        let links = linked.map(|index| key::link(&known.spec, index, keys[index])).collect();
        Ok(Arc::new(Settled { key, durable, fresh: settled.fresh, aliases, links, contents }))
    }

    async fn run(
        self: &Arc<Self>,
        id: VertexId,
        known: &Known<R>,
        settled: &Settled,
        inputs: &[Outputs<R>],
    ) -> Answer<Outputs<R>> {
        let vertex = self.graph.vertex(id);
        let edges = vertex.inputs.iter().zip(inputs);
        let values = edges.clone().map(|(edge, outputs)| self.output(*edge, outputs)).collect::<Answer<Vec<R>>>()?;
        let read = edges.zip(&known.spec.inputs).enumerate().map(|(index, ((edge, outputs), input))| ReadInput {
            key: outputs.key.output(edge.output),
            selector: input.selector.clone(),
            content: settled.contents.get(index).cloned().flatten(),
        });
        let made_of = Arc::new(MadeOf {
            name: vertex.meta.name.clone(),
            parts: known.spec.parts.clone(),
            inputs: read.collect(),
        });
        let work = Work {
            op: known.op.clone(),
            inputs: values,
            key: settled.key,
            aliases: [settled.aliases.as_slice(), &settled.links].concat(),
            durable: settled.durable,
            fresh: settled.fresh,
            made_of: made_of.clone(),
        };
        let step = self.shown_step(id);
        self.rungs()[id.0 as usize].tried = Some((settled.key, made_of));
        let member = Member::new(self.site.events.clone(), step);
        let mut showing = Showing::new(member.clone());
        let execution = self.site.execute(work, member);
        match execution.finished().await {
            Ok(Finished { outputs: values, cached }) => {
                showing.end(if cached { Outcome::Cached } else { Outcome::Done });
                let outputs = Outputs { key: settled.key, values, durable: settled.durable, cached };
                self.site.keep(&outputs, execution.clone());
                Ok(outputs)
            }
            Err(Fault::Op(error)) => {
                showing.end(Outcome::Failed(error.to_string()));
                Err(self.failed(id, error))
            }
            Err(Fault::Cache(error)) => {
                showing.end(Outcome::Failed(error.to_string()));
                Err(self.cache_failed(id, error))
            }
            Err(Fault::Cancelled) => Err(SolveError::Cancelled),
        }
    }
}
