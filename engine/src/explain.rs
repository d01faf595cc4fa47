//! Why each step of a build ran, or where its result came from.
//!
//! The build's journal says which keys its steps had; a trace says what a key was made of. A step that ran is compared
//! with the step in its place in the builds of the same project before, and with earlier steps written the same way
//! anywhere; the nearest gives the reason. Found by index, and only when somebody asks: a build itself pays for one row.

use std::collections::HashMap;
use std::time::SystemTime;

use rbuild_cache::trace::{self, Trace};
use rbuild_solver::{CacheKey, PartValue, RecordedInput, RunRecord};
use rbuild_store::rusqlite::OptionalExtension;
use serde::Serialize;

use crate::causes::{Difference, differences, distance};
use crate::error::Error;
use crate::history::journal::{Ended, Journal, Keyed, Step};
use crate::history::{BuildRecord, Builds};

pub use crate::causes::{Cause, Change, FileChange};

/// Builds of the project before this one that are looked at.
const BUILDS: u32 = 8;
/// Earlier steps written the same way that are looked at.
const ALIKE: u32 = 8;

/// A step of a build, explained.
#[derive(Debug, Clone, PartialEq, Serialize)]
pub struct Explained {
    /// Its number among the build's steps, from 1.
    pub n: usize,
    pub name: String,
    pub outcome: StepOutcome,
    /// Where the result of a hit was made.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub from: Option<Origin>,
    /// Why it ran.
    #[serde(skip_serializing_if = "Vec::is_empty")]
    pub causes: Vec<Cause>,
    /// The build whose step it was compared with.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub compared_with: Option<String>,
}

/// What became of a step.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize)]
#[serde(rename_all = "lowercase")]
pub enum StepOutcome {
    Hit,
    Miss,
    Failed,
    Canceled,
    /// It was not come to.
    Waiting,
}

/// Where a result came from.
#[derive(Debug, Clone, PartialEq, Serialize)]
pub struct Origin {
    /// The cache it was imported from; `None` when it was made on this machine.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub import: Option<String>,
    /// The build that ran it.
    pub build: String,
    #[serde(serialize_with = "seconds")]
    pub made: SystemTime,
    /// Nanoseconds it took then.
    pub cost: u64,
}

fn seconds<S: serde::Serializer>(time: &SystemTime, serializer: S) -> Result<S::Ok, S::Error> {
    serializer.serialize_u64(time.duration_since(SystemTime::UNIX_EPOCH).map_or(0, |since| since.as_secs()))
}

/// Something to compare with: a step that ran before.
struct Candidate<'a> {
    record: RunRecord,
    /// Its place in a build, where that is known.
    place: Option<(&'a BuildRecord, &'a Journal, &'a Step)>,
}

impl Builds {
    /// Every step of a build, in order.
    ///
    /// # Errors
    /// The store cannot be read.
    pub fn explain(&self, build: &BuildRecord) -> Result<Vec<Explained>, Error> {
        let journal = Journal::read(&self.journal(&build.id)?);
        let mut before = Vec::new();
        if journal.shown().any(|step| step.key.as_ref().is_some_and(|key| key.missed)) {
            for earlier in self.before(build, BUILDS)? {
                let journal = Journal::read(&self.journal(&earlier.id)?);
                before.push((earlier, journal));
            }
        }
        let view = View { builds: self, build, journal: &journal, before: &before };
        let steps: Vec<&Step> = journal.shown().collect();
        steps.iter().enumerate().map(|(n, step)| view.explain(n, step)).collect()
    }

    fn origin(&self, key: CacheKey) -> Result<Option<Origin>, Error> {
        #[derive(serde::Deserialize)]
        struct Made {
            build: String,
        }
        let row: Option<(String, Option<String>, i64, i64)> = self.store().db().read(|tx| {
            let mut query = tx.prepare_cached(
                "SELECT record, origin, created, cost FROM records WHERE key = ?1 UNION ALL
                 SELECT record, origin, created, cost FROM aliases JOIN records ON key = to_key WHERE from_key = ?1 LIMIT 1",
            )?;
            let found = query.query_row([key.to_string()], |row| Ok((row.get(0)?, row.get(1)?, row.get(2)?, row.get(3)?)));
            Ok(found.optional()?)
        })?;
        Ok(row.map(|(record, import, created, cost)| Origin {
            import,
            build: serde_json::from_str::<Made>(&record).map_or_else(|_| String::new(), |made| made.build),
            made: rbuild_store::db::time(created),
            cost: cost.unsigned_abs(),
        }))
    }
}

struct View<'a> {
    builds: &'a Builds,
    build: &'a BuildRecord,
    journal: &'a Journal,
    /// Earlier builds of the project, the newest first.
    before: &'a [(BuildRecord, Journal)],
}

impl View<'_> {
    fn explain(&self, n: usize, step: &Step) -> Result<Explained, Error> {
        let missed = step.key.as_ref().is_some_and(|key| key.missed);
        let outcome = match &step.ended {
            Some((_, Ended::Cached)) => StepOutcome::Hit,
            Some((_, Ended::Failed(_))) => StepOutcome::Failed,
            Some((_, Ended::Cancelled)) => StepOutcome::Canceled,
            Some((_, Ended::Done)) => StepOutcome::Miss,
            None if step.started.is_some() => StepOutcome::Canceled,
            None => StepOutcome::Waiting,
        };
        let mut explained = Explained {
            n: n + 1,
            name: step.name.clone(),
            outcome,
            from: None,
            causes: Vec::new(),
            compared_with: None,
        };
        match &step.key {
            Some(key) if outcome == StepOutcome::Hit => explained.from = self.builds.origin(key.key)?,
            Some(key) if missed => (explained.causes, explained.compared_with) = self.causes(step, key)?,
            _ => {}
        }
        Ok(explained)
    }

    fn causes(&self, step: &Step, key: &Keyed) -> Result<(Vec<Cause>, Option<String>), Error> {
        if key.ignored {
            return Ok((vec![Cause::NoCache], None));
        }
        if key.fresh {
            return Ok((self.ran_again(key), None));
        }
        let kept = trace::find(self.builds.store().db(), key.key)?;
        if kept.as_ref().is_some_and(|trace| trace.made < self.build.started) {
            return Ok((vec![Cause::Removed], None));
        }
        let failed = |(_, journal): &&(BuildRecord, Journal)| {
            let mut steps = journal.shown().filter(|step| step.key.as_ref().is_some_and(|other| other.key == key.key));
            steps.any(|step| matches!(step.ended, Some((_, Ended::Failed(_) | Ended::Cancelled))))
        };
        if let Some((build, _)) = self.before.iter().find(failed) {
            return Ok((vec![Cause::FailedBefore], Some(build.id.clone())));
        }
        let new = match (&key.made_of, kept) {
            (Some(made_of), _) => (**made_of).clone(),
            (None, Some(trace)) if trace.record.build != self.build.id && !trace.record.build.is_empty() => {
                return Ok((vec![Cause::Shared], Some(trace.record.build)));
            }
            (None, Some(trace)) => trace.record,
            (None, None) => return Ok((vec![Cause::First], None)),
        };
        self.nearest(step, key, &new)
    }

    /// Compares with everything worth it and takes what is nearest.
    fn nearest(&self, step: &Step, key: &Keyed, new: &RunRecord) -> Result<(Vec<Cause>, Option<String>), Error> {
        let arguments = &self.journal.arguments;
        let is_argument = |name: &str| arguments.iter().any(|argument| argument == name);
        let mut best: Option<(usize, Vec<Difference>, Candidate<'_>)> = None;
        for candidate in self.candidates(step, key)? {
            let found = differences(&candidate.record, new, &is_argument);
            let far = distance(&found);
            // Of several that are as near, the one in the newest build.
            if far > 0 && best.as_ref().is_none_or(|(nearest, _, _)| far < *nearest) {
                best = Some((far, found, candidate));
            }
        }
        let Some((_, found, candidate)) = best else { return Ok((vec![Cause::First], None)) };
        let build = candidate.place.map_or_else(|| candidate.record.build.clone(), |(build, _, _)| build.id.clone());
        let causes = found.into_iter().map(|difference| self.cause(difference, key, &candidate));
        Ok((causes.collect(), Some(build).filter(|build| !build.is_empty())))
    }

    /// The steps in this one's place in earlier builds, then earlier steps that were written the same way.
    fn candidates(&self, step: &Step, key: &Keyed) -> Result<Vec<Candidate<'_>>, Error> {
        let db = self.builds.store().db();
        let mut seen = vec![key.key];
        let mut found = Vec::new();
        for (build, journal) in self.before {
            let Some(other) = counterpart(self.journal, step, journal) else { continue };
            let Some(keyed) = other.key.as_ref().filter(|keyed| !seen.contains(&keyed.key)) else { continue };
            seen.push(keyed.key);
            let record = match &keyed.made_of {
                Some(made_of) => Some((**made_of).clone()),
                None => {
                    let canonical = self.canonical(keyed.key)?;
                    let here = trace::find(db, canonical)?;
                    let known = here.map_or_else(|| trace::find_imported(db, canonical), |here| Ok(Some(here)))?;
                    known.map(|trace| trace.record)
                }
            };
            found.extend(record.map(|record| Candidate { record, place: Some((build, journal, other)) }));
        }
        let mut alike = trace::like(db, trace::label(&step.name), self.build.started, ALIKE)?;
        // What this build imported came while it ran.
        alike.extend(trace::like_imported(db, &step.name, self.build.started + self.build.duration(), ALIKE)?);
        for alike in alike {
            if !seen.contains(&alike)
                && let Some(Trace { record, .. }) = trace::find(db, alike)?
            {
                found.push(Candidate { record, place: None });
            }
        }
        Ok(found)
    }

    /// The key a result is saved under, where it is known by this one.
    fn canonical(&self, key: CacheKey) -> Result<CacheKey, Error> {
        let found: Option<String> = self.builds.store().db().read(|tx| {
            let mut query = tx.prepare_cached("SELECT to_key FROM aliases WHERE from_key = ?")?;
            Ok(query.query_row([key.to_string()], |row| row.get(0)).optional()?)
        })?;
        Ok(found.and_then(|found| found.parse().ok()).unwrap_or(key))
    }

    fn cause(&self, difference: Difference, key: &Keyed, with: &Candidate<'_>) -> Cause {
        let input = |index: usize| key.inputs.get(index).and_then(|id| self.journal.step(*id));
        match difference {
            Difference::Cause(cause) => cause,
            Difference::Files(index, changes) => {
                let from = input(index).filter(|step| !step.internal).map(|step| step.name.clone());
                if changes.is_empty() { Cause::Content { from } } else { Cause::Files { from, changes } }
            }
            Difference::Input(index) => {
                let Some(step) = input(index) else {
                    return Cause::Before { step: None, name: "another step".into(), missed: false };
                };
                let old =
                    with.place.and_then(|(_, journal, step)| journal.step(*step.key.as_ref()?.inputs.get(index)?));
                let noted = with.record.inputs.get(index).and_then(base_image);
                self.base(step, old, noted).unwrap_or_else(|| self.before_it(step))
            }
        }
    }

    /// The cause when both steps are base images.
    fn base(&self, new: &Step, old: Option<&Step>, noted: Option<(String, String)>) -> Option<Cause> {
        let image = |step: &Step| step.key.as_ref()?.image.clone();
        let (name, digest) = image(new)?;
        let (old_name, old_digest) = old.and_then(image).or(noted).unwrap_or((name.clone(), "another image".into()));
        Some(Cause::Base { old_image: old_name, image: name, old: old_digest, new: digest })
    }

    fn before_it(&self, step: &Step) -> Cause {
        let n = self.journal.shown().position(|shown| shown.id == step.id).map(|n| n + 1);
        let missed = step.key.as_ref().is_some_and(|key| key.missed);
        Cause::Before { step: n, name: step.name.clone(), missed }
    }

    /// For a step that ran because what it reads did.
    fn ran_again(&self, key: &Keyed) -> Vec<Cause> {
        let inputs = key.inputs.iter().filter_map(|id| self.journal.step(*id));
        let again = inputs.filter(|step| step.key.as_ref().is_some_and(|key| key.ignored || key.fresh));
        again.take(1).map(|step| self.before_it(step)).collect()
    }
}

/// The step of another build in the place of this one: written the same way, else at the same number of the same stage.
fn counterpart<'j>(journal: &Journal, step: &Step, other: &'j Journal) -> Option<&'j Step> {
    let number = |steps: &Journal, id: u64| {
        let mut counts: HashMap<String, usize> = HashMap::new();
        for step in steps.shown() {
            let count = counts.entry(written(&step.name)).or_default();
            if step.id == id {
                return *count;
            }
            *count += 1;
        }
        0
    };
    let wanted = written(&step.name);
    let nth = number(journal, step.id);
    let mut same = other.shown().filter(|candidate| written(&candidate.name) == wanted);
    if let Some(found) = same.nth(nth) {
        return Some(found);
    }
    let (stage, at) = trace::place(&step.name)?;
    let verb = trace::verb(&step.name);
    let kind = |candidate: &&Step| verb == trace::verb(&candidate.name);
    other.shown().filter(kind).find(|candidate| trace::place(&candidate.name).is_some_and(|found| found == (stage, at)))
}

/// A step's text with its stage, without its number.
fn written(name: &str) -> String {
    let stage = trace::place(name).map_or("", |(stage, _)| stage);
    format!("{stage}\0{}", trace::label(name))
}

/// The base image that an input of a record from elsewhere was: its name, and what that stood for.
fn base_image(input: &RecordedInput) -> Option<(String, String)> {
    let part = input.parts.first().filter(|_| input.content.is_none())?;
    match &part.value {
        PartValue::Digest(digest) => Some((part.name.clone(), digest.clone())),
        _ => None,
    }
}
