//! `build --call` and `build --check`: what there is to say about a Dockerfile, as text or JSON, in BuildKit's shapes.
//!
//! Scripts and editors read both, so the words, columns and member names are those of BuildKit's subrequests. Members
//! without a value are left out, as there.

use std::process::ExitCode;

use base64::Engine as _;
use base64::prelude::BASE64_STANDARD;
use rbuild_engine::described::{Outline, OutlineMount, Target};
use rbuild_engine::{Answer, Checked, Diagnostic, Question, SourceText, Span, lint};
use serde_json::{Map, Value, json};

use crate::app::App;
use crate::commands::DONE;
use crate::diagnostics;
use crate::error::CliError;
use crate::mounts::split_fields;
use crate::terminal::clean_line;

/// The requests that are answered: name, version, description.
const REQUESTS: [(&str, &str, &str); 4] = [
    ("lint", "1.0.0", "Say what is unwise in the Dockerfile"),
    ("outline", "1.0.0", "List what a build of the target can be given"),
    ("targets", "1.0.0", "List the stages that can be built"),
    ("subrequests.describe", "1.0.0", "List these requests"),
];

/// What `--call` asks for.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Call {
    /// `None` asks which requests there are.
    pub question: Option<Question>,
    json: bool,
    /// Findings do not make the command fail.
    ignore_status: bool,
}

impl Call {
    /// A check that is told as text.
    pub const CHECK: Call = Call { question: Some(Question::Check), json: false, ignore_status: false };

    /// Reads `check`, `outline,format=json` and the like; `None` is a plain build.
    ///
    /// # Errors
    /// A request, a field or a format that does not exist.
    pub fn read(text: &str) -> Result<Option<Call>, CliError> {
        let mut call = Call { question: None, json: false, ignore_status: false };
        let mut name = String::new();
        for field in split_fields(text).into_iter().filter(|_| !text.is_empty()) {
            match field.split_once('=') {
                Some(("format", format)) => call.json = is_json(format)?,
                Some(("ignorestatus", value)) => {
                    call.ignore_status = boolean(value).ok_or_else(|| {
                        CliError::new(format!("invalid ignorestatus print value: {}", clean_line(value)))
                            .with_hint("values are true and false")
                    })?;
                }
                Some(_) => {
                    return Err(CliError::new(format!("invalid print field: {}", clean_line(&field)))
                        .with_hint("fields are format=json|text and ignorestatus=true|false"));
                }
                None if !name.is_empty() => {
                    return Err(CliError::new(format!("invalid print value: {}", clean_line(text)))
                        .with_hint("one request at a time"));
                }
                None => name = field,
            }
        }
        call.question = match name.as_str() {
            "" | "build" => return Ok(None),
            "check" | "lint" => Some(Question::Check),
            "outline" => Some(Question::Outline),
            "targets" => Some(Question::Targets),
            "subrequests.describe" => None,
            other => {
                return Err(CliError::new(format!("unsupported request frontend.{}", clean_line(other)))
                    .with_hint("requests are build, check, outline, targets and subrequests.describe"));
            }
        };
        Ok(Some(call))
    }

    /// The same, answered as JSON or not.
    ///
    /// # Errors
    /// A format that does not exist.
    pub fn with_format(self, format: &str) -> Result<Call, CliError> {
        Ok(Call { json: is_json(format)?, ..self })
    }

    /// Prints which requests there are.
    ///
    /// # Errors
    /// Standard output.
    pub fn show_requests(self, app: &App) -> Result<ExitCode, CliError> {
        app.print(&if self.json { pretty(&requests_json()) } else { requests_text() })?;
        DONE
    }

    /// Prints an answer; findings are a failure, as with buildx.
    ///
    /// # Errors
    /// Standard output, and for a check of a file that cannot be built, why.
    pub fn show(self, answer: &Answer, source: &SourceText, app: &App) -> Result<ExitCode, CliError> {
        match answer {
            Answer::Check(checked) => self.show_checked(checked, source, app),
            _ => {
                app.print(&self.text(answer, source))?;
                DONE
            }
        }
    }

    /// [`Call::show`] of a check.
    ///
    /// # Errors
    /// As there.
    pub fn show_checked(self, checked: &Checked, source: &SourceText, app: &App) -> Result<ExitCode, CliError> {
        app.print(&if self.json { pretty(&check_json(checked, source)) } else { check_text(checked, source) })?;
        checked.notes.iter().for_each(|note| app.tell(&format!("WARNING: {}", clean_line(&note.message))));
        match &checked.error {
            Some(error) => Err(diagnostics::build_failure(error)),
            None if !checked.warnings.is_empty() && !self.ignore_status => Ok(ExitCode::FAILURE),
            None => DONE,
        }
    }

    fn text(self, answer: &Answer, source: &SourceText) -> String {
        match (answer, self.json) {
            (Answer::Check(checked), false) => check_text(checked, source),
            (Answer::Check(checked), true) => pretty(&check_json(checked, source)),
            (Answer::Outline(outline), false) => outline_text(outline),
            (Answer::Outline(outline), true) => pretty(&outline_json(outline, source)),
            (Answer::Targets(targets), false) => targets_text(targets),
            (Answer::Targets(targets), true) => pretty(&targets_json(targets, source)),
        }
    }
}

fn is_json(format: &str) -> Result<bool, CliError> {
    match format {
        "json" => Ok(true),
        "text" | "" => Ok(false),
        other => {
            Err(CliError::new(format!("invalid format: {}", clean_line(other))).with_hint("formats are text and json"))
        }
    }
}

/// The words that Go's `strconv.ParseBool` takes.
fn boolean(word: &str) -> Option<bool> {
    match word {
        "1" | "t" | "T" | "true" | "TRUE" | "True" => Some(true),
        "0" | "f" | "F" | "false" | "FALSE" | "False" => Some(false),
        _ => None,
    }
}

fn requests_text() -> String {
    let mut rows = vec![["NAME", "VERSION", "DESCRIPTION"].map(String::from).to_vec()];
    rows.extend(REQUESTS.map(|(name, version, about)| vec![name.into(), version.into(), about.into()]));
    columns(&rows, 1)
}

fn requests_json() -> Value {
    let named = |name: &str| json!({ "name": name, "description": "" });
    let request = |(name, version, about): (&str, &str, &str)| {
        let options = match name {
            "outline" => json!([{ "name": "target", "description": "the stage to build" }]),
            _ => json!([]),
        };
        let mut results = vec![named("result.json"), named("result.txt")];
        if name == "lint" {
            results.push(named("result.statuscode"));
        }
        json!({
            "name": format!("frontend.{name}"), "version": version, "type": "rpc", "description": about,
            "opts": options, "inputs": [], "metadata": results, "refs": [],
        })
    };
    Value::Array(REQUESTS.into_iter().map(request).collect())
}

fn check_text(checked: &Checked, source: &SourceText) -> String {
    let mut text = match (checked.warnings.len(), &checked.error) {
        (0, Some(_)) => return String::new(),
        (0, None) => return "Check complete, no warnings found.\n".to_owned(),
        (1, _) => "Check complete, 1 warning has been found!\n".to_owned(),
        (many, _) => format!("Check complete, {many} warnings have been found!\n"),
    };
    for warning in &checked.warnings {
        text.push_str(&format!("\nWARNING: {}", warning.rule.unwrap_or_default()));
        text.extend(warning.url.map(|url| format!(" - {url}")));
        text.push_str(&format!("\n{}\n", clean_line(&warning.message)));
        if let Some(span) = warning.span {
            let lines = span.line as usize..=span.end_line as usize;
            text.push_str(&diagnostics::excerpt(&source.name, &source.text, lines));
        }
        text.extend(warning.hints.iter().map(|hint| format!("  hint: {}\n", clean_line(hint))));
    }
    if checked.error.is_some() {
        text.push('\n');
    }
    text
}

fn check_json(checked: &Checked, source: &SourceText) -> Value {
    let warning = |warning: &Diagnostic| {
        let rule = warning.rule.and_then(lint::rule);
        object([
            ("ruleName", warning.rule.map(Into::into)),
            ("description", rule.map(|rule| rule.description.into())),
            ("url", warning.url.map(Into::into)),
            ("detail", Some(warning.message.as_str().into())),
            ("location", Some(warning.span.map_or_else(nowhere, location))),
        ])
    };
    let warnings: Vec<Value> = checked.warnings.iter().map(warning).collect();
    let text = json!({ "filename": source.name, "language": "Dockerfile", "data": encoded(source) });
    let error = checked
        .error
        .as_ref()
        .map(|error| json!({ "message": error.message, "location": error.span.map_or_else(nowhere, location) }));
    object([("warnings", Some(warnings.into())), ("sources", Some(json!([text]))), ("buildError", error)])
}

fn outline_text(outline: &Outline) -> String {
    let optional = |text: &Option<String>| clean_line(text.as_deref().unwrap_or_default());
    let mut text = String::new();
    if outline.name.is_some() || outline.description.is_some() {
        let mut rows = vec![vec!["TARGET:".into(), clean_line(outline.name.as_deref().unwrap_or("(default)"))]];
        if outline.description.is_some() {
            rows.push(vec!["DESCRIPTION:".into(), optional(&outline.description)]);
        }
        text.push_str(&(columns(&rows, 1) + "\n"));
    }
    if !outline.args.is_empty() {
        let mut rows = vec![["BUILD ARG", "VALUE", "DESCRIPTION"].map(String::from).to_vec()];
        let row = |name: &str, value, about| vec![clean_line(name), optional(value), optional(about)];
        rows.extend(outline.args.iter().map(|arg| row(&arg.name, &arg.value, &arg.description)));
        text.push_str(&(columns(&rows, 3) + "\n"));
    }
    for (title, mounts) in [("SECRET", &outline.secrets), ("SSH", &outline.ssh)] {
        if mounts.is_empty() {
            continue;
        }
        let mut rows = vec![vec![title.to_owned(), "REQUIRED".to_owned()]];
        let required = |mount: &OutlineMount| if mount.required { "true" } else { "" }.to_owned();
        rows.extend(mounts.iter().map(|mount| vec![clean_line(&mount.id), required(mount)]));
        text.push_str(&(columns(&rows, 3) + "\n"));
    }
    if !outline.caches.is_empty() {
        let ids = outline.caches.iter().map(|mount| clean_line(&mount.id) + "\n");
        text.push_str(&format!("CACHE MOUNT\n{}\n", ids.collect::<String>()));
    }
    text
}

fn outline_json(outline: &Outline, source: &SourceText) -> Value {
    let text = |text: &Option<String>| text.as_deref().filter(|text| !text.is_empty()).map(Value::from);
    let list = |list: Vec<Value>| (!list.is_empty()).then_some(Value::Array(list));
    let args = outline.args.iter().map(|arg| {
        object([
            ("name", Some(arg.name.as_str().into())),
            ("description", text(&arg.description)),
            ("value", text(&arg.value)),
            ("location", Some(location(arg.span))),
        ])
    });
    let mounts = |key: &'static str, mounts: &[OutlineMount]| {
        let mount = |mount: &OutlineMount| {
            object([
                (key, Some(mount.id.as_str().into())),
                ("required", mount.required.then_some(Value::Bool(true))),
                ("location", Some(location(mount.span))),
            ])
        };
        list(mounts.iter().map(mount).collect())
    };
    object([
        ("name", text(&outline.name)),
        ("description", text(&outline.description)),
        ("args", list(args.collect())),
        ("secrets", mounts("name", &outline.secrets)),
        ("ssh", mounts("name", &outline.ssh)),
        ("cache", mounts("ID", &outline.caches)),
        ("sources", Some(json!([encoded(source)]))),
    ])
}

fn targets_text(targets: &[Target]) -> String {
    let mut rows = vec![["TARGET", "DESCRIPTION"].map(String::from).to_vec()];
    for target in targets {
        let name = match (target.name.as_deref().map(clean_line), target.default) {
            (None, false) => String::new(),
            (None, true) => "(default)".to_owned(),
            (Some(name), false) => name,
            (Some(name), true) => format!("{name} (default)"),
        };
        rows.push(vec![name, clean_line(target.description.as_deref().unwrap_or_default())]);
    }
    columns(&rows, 1)
}

fn targets_json(targets: &[Target], source: &SourceText) -> Value {
    let text = |text: &Option<String>| text.as_deref().map(Value::from);
    let target = |target: &Target| {
        object([
            ("name", text(&target.name)),
            ("default", target.default.then_some(Value::Bool(true))),
            ("description", text(&target.description)),
            ("base", Some(target.base.as_str().into())),
            ("platform", text(&target.platform)),
            ("location", Some(location(target.span))),
        ])
    };
    let targets: Vec<Value> = targets.iter().map(target).collect();
    json!({ "targets": targets, "sources": [encoded(source)] })
}

fn object<const N: usize>(fields: [(&str, Option<Value>); N]) -> Value {
    let given = fields.into_iter().filter_map(|(name, value)| Some((name.to_owned(), value?)));
    Value::Object(given.collect::<Map<String, Value>>())
}

fn location(span: Span) -> Value {
    json!({ "ranges": [{ "start": { "line": span.line }, "end": { "line": span.end_line } }] })
}

/// Of what is about no line of the file.
fn nowhere() -> Value {
    json!({ "sourceIndex": -1 })
}

fn encoded(source: &SourceText) -> String {
    BASE64_STANDARD.encode(&source.text)
}

fn pretty(value: &Value) -> String {
    format!("{value:#}\n")
}

/// Rows with `gap` spaces between their columns.
fn columns(rows: &[Vec<String>], gap: usize) -> String {
    let count = rows.iter().map(Vec::len).max().unwrap_or_default();
    let length = |text: &String| text.chars().count();
    let width = |column: usize| rows.iter().filter_map(|row| row.get(column).map(length)).max().unwrap_or_default();
    let widths: Vec<usize> = (0..count).map(width).collect();
    let mut text = String::new();
    for row in rows {
        for (column, cell) in row.iter().enumerate() {
            let pad = if column + 1 == row.len() { 0 } else { widths[column] + gap - length(cell) };
            text.push_str(cell);
            text.push_str(&" ".repeat(pad));
        }
        text.push('\n');
    }
    text
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn calls_are_read() {
        let read = |text: &str| Call::read(text).unwrap().map(|call| (call.question, call.json, call.ignore_status));
        assert_eq!((read(""), read("build"), read("build,format=json")), (None, None, None));
        assert_eq!(read("check,format=json"), Some((Some(Question::Check), true, false)));
        assert_eq!(read("format=text,lint,ignorestatus=1"), Some((Some(Question::Check), false, true)));
        assert_eq!(read("outline"), Some((Some(Question::Outline), false, false)));
        assert_eq!(read("subrequests.describe"), Some((None, false, false)));
        for (bad, want) in [
            ("nothing", "unsupported request frontend.nothing"),
            ("check,format=xml", "invalid format: xml"),
            ("check,colour=red", "invalid print field: colour=red"),
            ("check,ignorestatus=perhaps", "invalid ignorestatus print value: perhaps"),
            ("check,outline", "invalid print value: check,outline"),
        ] {
            assert_eq!(Call::read(bad).unwrap_err().message, want, "{bad}");
        }
    }

    #[test]
    fn columns_stand_below_each_other() {
        let rows = [vec!["TARGET".into(), "DESCRIPTION".into()], vec!["a".to_owned(), String::new()]];
        assert_eq!(columns(&rows, 1), "TARGET DESCRIPTION\na      \n");
    }
}
