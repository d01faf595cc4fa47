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
    /// What is unwise in it; all stages, when the request names no target.
    Check,
    /// What a build of the target can be given.
    Outline,
    /// Which stages there are.
    Targets,
}

/// What was found.
#[derive(Debug, Clone)]
pub enum Answer {
    Check(Vec<Diagnostic>),
    Outline(Outline),
    Targets(Vec<Target>),
}

impl Engine {
    /// Answers a question about the Dockerfile of a request; nothing is built. Only a check looks images up.
    ///
    /// # Errors
    /// As [`Engine::build`] for a Dockerfile that cannot be used.
    pub async fn ask(
        &self,
        request: BuildRequest,
        question: Question,
        events: Events,
    ) -> Result<(Answer, SourceText), Error> {
        let lease = self.store().lease("ask")?;
        let request = remote::bring(self, request, &lease, &events).await?;
        let inputs = Inputs::load(&request, &lease, &events)?;
        let source = inputs.source;
        let (file, parsed) = rbuild_frontend::parse(source.text.as_bytes(), &source.name);
        if parsed.iter().any(Diagnostic::is_error) {
            return Err(mistakes(parsed, &source));
        }
        let mut options = lower_options(&request, inputs.ignore.patterns().map(str::to_owned).collect());
        let answer = match question {
            Question::Check => {
                options.purpose = Purpose::Check;
                let images = Arc::new(BaseImages::new(self.clone(), lease, request.pull));
                Answer::Check(understand(&file, &options, &source, parsed, &images, &events).await?.warnings)
            }
            Question::Outline => {
                Answer::Outline(describe::outline(&file, &options).map_err(|problem| mistakes(vec![problem], &source))?)
            }
            Question::Targets => Answer::Targets(describe::targets(&file)),
        };
        Ok((answer, source))
    }
}
