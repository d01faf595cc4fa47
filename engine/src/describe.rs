//! Questions about a Dockerfile that build nothing.

use std::sync::Arc;

use rbuild_frontend::describe::{self, Outline, Target};
use rbuild_frontend::fix::{self, Fixed};
use rbuild_frontend::{Diagnostic, Dockerfile, LowerOptions, Purpose};
use rbuild_solver::Events;

use crate::build::Inputs;
use crate::engine::Engine;
use crate::error::{Error, SourceText};
use crate::frontends::dockerfile::{Understood, lower_options, mistakes, understand};
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

/// What a check can put right.
#[derive(Debug, Clone)]
pub struct Fixes {
    /// The Dockerfile as it is.
    pub source: SourceText,
    pub fixed: Fixed,
    /// The findings in the text after its fixes.
    pub left: Checked,
}

impl Checked {
    fn new(found: Vec<Diagnostic>, error: Option<Error>) -> Checked {
        let found = found.into_iter().filter(|found| !found.is_error());
        let (warnings, notes) = found.partition(|found| found.rule.is_some());
        Checked { warnings, notes, error: error.map(Box::new) }
    }

    /// Of a Dockerfile that could not be understood; a failure that has nothing to do with its text stays one.
    fn broken(error: Error) -> Result<Checked, Error> {
        match error.source_text {
            Some(_) => Ok(Checked::new(error.diagnostics.clone(), Some(error))),
            None => Err(error),
        }
    }
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
        let asked = Asked::load(self, request, &events).await?;
        let answer = match question {
            Question::Check => Answer::Check(match asked.understood(&events).await {
                Ok(understood) => Checked::new(understood.warnings, None),
                Err(error) => Checked::broken(error)?,
            }),
            Question::Targets => Answer::Targets(describe::targets(&asked.usable()?)),
            Question::Outline => {
                let outline = describe::outline(&asked.usable()?, &asked.options);
                Answer::Outline(outline.map_err(|problem| mistakes(vec![problem], &asked.source))?)
            }
        };
        Ok((answer, asked.source))
    }

    /// Checks the Dockerfile of a request and gives the text it would have with all that can be fixed safely. Nothing
    /// is written: where the text came from is the caller's to know.
    ///
    /// # Errors
    /// As [`Engine::ask`] for a check.
    pub async fn fix(&self, request: BuildRequest, events: Events) -> Result<Fixes, Error> {
        let mut asked = Asked::load(self, request, &events).await?;
        asked.options.purpose = Purpose::Check;
        let text = &asked.source.text;
        let (fixed, left) = match asked.understood(&events).await {
            Ok(understood) => {
                let fixed = fix::fix(text, &asked.options, &understood.facts);
                let (file, _) = rbuild_frontend::parse(fixed.text.as_bytes(), &asked.source.name);
                let (_, found) = rbuild_frontend::lower(&file, &asked.options, &understood.facts);
                (fixed, Checked::new(found, None))
            }
            Err(error) => (Fixed { text: text.clone(), fixes: Vec::new() }, Checked::broken(error)?),
        };
        Ok(Fixes { source: asked.source, fixed, left })
    }
}

/// A Dockerfile, and what is needed to understand it.
struct Asked {
    source: SourceText,
    options: LowerOptions,
    images: Arc<BaseImages>,
}

impl Asked {
    async fn load(engine: &Engine, request: BuildRequest, events: &Events) -> Result<Asked, Error> {
        let lease = engine.store().lease("ask")?;
        let (request, brought) = remote::bring(engine, request, &lease, events).await?;
        let inputs = Inputs::load(&request, &lease, events)?;
        let mut options = lower_options(&request, inputs.ignore.patterns().map(str::to_owned).collect());
        options.context_date = remote::context_date(&request, brought.modified, &inputs.source.text);
        let images = Arc::new(BaseImages::new(engine.clone(), lease, request.pull, brought.images));
        Ok(Asked { source: inputs.source, options, images })
    }

    async fn understood(&self, events: &Events) -> Result<Understood, Error> {
        let (file, parsed) = self.parsed();
        let options = LowerOptions { purpose: Purpose::Check, ..self.options.clone() };
        understand(&file, &options, &self.source, parsed, &self.images, events).await
    }

    /// The file, if it has no mistakes.
    fn usable(&self) -> Result<Dockerfile, Error> {
        let (file, parsed) = self.parsed();
        if parsed.iter().any(Diagnostic::is_error) { Err(mistakes(parsed, &self.source)) } else { Ok(file) }
    }

    fn parsed(&self) -> (Dockerfile, Vec<Diagnostic>) {
        rbuild_frontend::parse(self.source.text.as_bytes(), &self.source.name)
    }
}
