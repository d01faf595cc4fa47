//! Questions about a Dockerfile that build nothing.

use std::sync::Arc;

use rbuild_frontend::describe::{self, Outline, Target};
use rbuild_frontend::{Diagnostic, Purpose};
use rbuild_solver::Events;

use crate::build::Inputs;
use crate::engine::Engine;
use crate::error::{Error, SourceText};
use crate::frontends::dockerfile::{lower_options, mistakes, understand};
use crate::remote;
use crate::request::BuildRequest;
use crate::resolve::BaseImages;

/// What to find out.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Question {
    /// What is unwise in it; in all stages, when the request names no target.
    Check,
    /// What a build of the target can be given.
    Outline,
    /// Which stages there are.
    Targets,
}

/// What was found.
#[derive(Debug, Clone)]
pub enum Answer {
    Check(Checked),
    Outline(Outline),
    Targets(Vec<Target>),
}

/// The findings of a check.
#[derive(Debug, Clone)]
pub struct Checked {
    /// Those of the rules, in the order of the file.
    pub warnings: Vec<Diagnostic>,
    /// What else is worth saying: build arguments that nothing asks for, rules that do not exist.
    pub notes: Vec<Diagnostic>,
    /// Why the file cannot be built at all, if so; what there is to warn of is told all the same.
    pub error: Option<Box<Error>>,
}

impl Engine {
    /// Answers a question about the Dockerfile of a request; nothing is built. Only a check looks images up.
    ///
    /// # Errors
    /// As [`Engine::build`] for a Dockerfile that cannot be found or, unless it is checked, cannot be used.
    pub async fn ask(
        &self,
        request: BuildRequest,
        question: Question,
        events: Events,
    ) -> Result<(Answer, SourceText), Error> {
        let lease = self.store().lease("ask")?;
        let (request, brought) = remote::bring(self, request, &lease, &events).await?;
        let inputs = Inputs::load(&request, &lease, &events)?;
        let source = inputs.source;
        let (file, parsed) = rbuild_frontend::parse(source.text.as_bytes(), &source.name);
        let mut options = lower_options(&request, inputs.ignore.patterns().map(str::to_owned).collect());
        if question == Question::Check {
            options.purpose = Purpose::Check;
            let images = Arc::new(BaseImages::new(self.clone(), lease, request.pull, brought.images));
            let understood = understand(&file, &options, &source, parsed, &images, &events).await;
            let (found, error) = match understood {
                Ok(understood) => (understood.warnings, None),
                Err(error) if error.source_text.is_some() => (error.diagnostics.clone(), Some(Box::new(error))),
                Err(error) => return Err(error),
            };
            let found = found.into_iter().filter(|found| !found.is_error());
            let (warnings, notes) = found.partition(|found| found.rule.is_some());
            let checked = Checked { warnings, notes, error };
            return Ok((Answer::Check(checked), source));
        }
        if parsed.iter().any(Diagnostic::is_error) {
            return Err(mistakes(parsed, &source));
        }
        let answer = match question {
            Question::Targets => Answer::Targets(describe::targets(&file)),
            _ => {
                let outline = describe::outline(&file, &options);
                Answer::Outline(outline.map_err(|problem| mistakes(vec![problem], &source))?)
            }
        };
        Ok((answer, source))
    }
}
