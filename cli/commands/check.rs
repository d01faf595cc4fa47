//! `build --check` and `build --call`: what there is to say about a Dockerfile, as text or JSON, in BuildKit's shapes.

use std::process::ExitCode;

use base64::Engine as _;
use base64::prelude::BASE64_STANDARD;
use rbuild_engine::describe::{Outline, OutlineMount, Target};
use rbuild_engine::{Answer, Diagnostic, Question, SourceText, Span, lint};
use serde_json::{Map, Value, json};

use crate::app::App;
use crate::commands::DONE;
use crate::diagnostics;
use crate::error::CliError;
use crate::terminal::clean_line;

/// What `--call` asks for.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) struct Call {
    pub(crate) question: Question,
    json: bool,
}

impl Call {
    /// Reads `check`, `outline,format=json` and the like; `None` is a plain build.
    pub(crate) fn read(call: Option<&str>, check: bool) -> Result<Option<Call>, CliError> {
        let refuse = |what: &str| CliError::new(format!("invalid --call value: {}", clean_line(what)));
        let mut parts = call.unwrap_or("build").split(',');
        let question = match parts.next().unwrap_or_default().trim().trim_start_matches("subrequest:") {
            "build" | "" => None,
            "check" | "lint" => Some(Question::Check),
            "outline" => Some(Question::Outline),
            "targets" => Some(Question::Targets),
            other => {
                return Err(refuse(other).with_hint("calls are build, check, outline and targets"));
            }
        };
        let question = match (question, check) {
            (None | Some(Question::Check), true) => Some(Question::Check),
            (Some(_), true) => return Err(CliError::new("--check and another --call cannot be used together")),
            (question, false) => question,
        };
        let mut json = false;
        for part in parts {
            match part.trim() {
                "format=json" => json = true,
                "format=text" => json = false,
                other => return Err(refuse(other).with_hint("formats are format=text and format=json")),
            }
        }
        Ok(question.map(|question| Call { question, json }))
    }

    pub(crate) fn show(self, answer: &Answer, source: &SourceText, app: &App) -> Result<ExitCode, CliError> {
        let text = match (answer, self.json) {
            (Answer::Check(found), false) => violations(found, source),
            (Answer::Check(found), true) => pretty(&violations_json(found, source)),
            (Answer::Outline(outline), false) => outline_text(outline),
            (Answer::Outline(outline), true) => pretty(&outline_json(outline, source)),
            (Answer::Targets(targets), false) => targets_text(targets),
            (Answer::Targets(targets), true) => pretty(&targets_json(targets, source)),
        };
        app.print(&text)?;
        match answer {
            Answer::Check(found) if !found.is_empty() => Ok(ExitCode::FAILURE),
            _ => DONE,
        }
    }
}

fn violations(found: &[Diagnostic], source: &SourceText) -> String {
    let mut text = match found.len() {
        0 => return "Check complete, no warnings found.\n".to_owned(),
        1 => "Check complete, 1 warning has been found!\n".to_owned(),
        many => format!("Check complete, {many} warnings have been found!\n"),
    };
    for warning in found {
        text.push_str(&format!("\nWARNING: {}", warning.rule.unwrap_or("Build")));
        text.extend(warning.url.map(|url| format!(" - {url}")));
        text.push_str(&format!("\n{}\n", clean_line(&warning.message)));
        if let Some(span) = warning.span {
            let lines = span.line as usize..=span.end_line as usize;
            text.push_str(&diagnostics::excerpt(&source.name, &source.text, lines));
        }
        text.extend(warning.hints.iter().map(|hint| format!("  hint: {}\n", clean_line(hint))));
    }
    text
}

fn violations_json(found: &[Diagnostic], source: &SourceText) -> Value {
    let warning = |warning: &Diagnostic| {
        let rule = warning.rule.and_then(lint::rule);
        object([
            ("ruleName", warning.rule.map(Into::into)),
            ("description", rule.map(|rule| rule.description.into())),
            ("url", warning.url.map(Into::into)),
            ("detail", Some(warning.message.as_str().into())),
            ("location", Some(warning.span.map_or_else(|| json!({}), location))),
        ])
    };
    let warnings: Vec<Value> = found.iter().map(warning).collect();
    let source = json!({ "filename": source.name, "language": "Dockerfile", "data": encoded(source) });
    json!({ "warnings": warnings, "sources": [source] })
}

fn outline_text(outline: &Outline) -> String {
    let optional = |text: &Option<String>| clean_line(text.as_deref().unwrap_or_default());
    let mut text = String::new();
    if outline.name.is_some() || outline.description.is_some() {
        let mut rows = vec![vec!["TARGET:".into(), clean_line(outline.name.as_deref().unwrap_or("(default)"))]];
        if outline.description.is_some() {
            rows.push(vec!["DESCRIPTION:".into(), optional(&outline.description)]);
        }
        text.push_str(&(columns(&rows) + "\n"));
    }
    if !outline.args.is_empty() {
        let mut rows = vec![["BUILD ARG", "VALUE", "DESCRIPTION"].map(String::from).to_vec()];
        let row = |name: &str, value, about| vec![clean_line(name), optional(value), optional(about)];
        rows.extend(outline.args.iter().map(|arg| row(&arg.name, &arg.value, &arg.description)));
        text.push_str(&(columns(&rows) + "\n"));
    }
    for (title, mounts) in [("SECRET", &outline.secrets), ("SSH", &outline.ssh), ("CACHE", &outline.caches)] {
        if mounts.is_empty() {
            continue;
        }
        let mut rows = vec![vec![title.to_owned(), "REQUIRED".to_owned()]];
        let required = |mount: &OutlineMount| if mount.required { "true" } else { "" }.to_owned();
        rows.extend(mounts.iter().map(|mount| vec![clean_line(&mount.id), required(mount)]));
        text.push_str(&(columns(&rows) + "\n"));
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
    columns(&rows)
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

fn encoded(source: &SourceText) -> String {
    BASE64_STANDARD.encode(&source.text)
}

fn pretty(value: &Value) -> String {
    format!("{value:#}\n")
}

/// Rows with their columns three spaces apart.
fn columns(rows: &[Vec<String>]) -> String {
    let count = rows.iter().map(Vec::len).max().unwrap_or_default();
    let length = |text: &String| text.chars().count();
    let width = |column: usize| rows.iter().filter_map(|row| row.get(column).map(length)).max().unwrap_or_default();
    let widths: Vec<usize> = (0..count).map(width).collect();
    let mut text = String::new();
    for row in rows {
        for (column, cell) in row.iter().enumerate() {
            let pad = if column + 1 == row.len() { 0 } else { widths[column] + 3 - length(cell) };
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
        let read = |call: Option<&str>, check| Call::read(call, check).map(|call| call.map(|c| (c.question, c.json)));
        assert_eq!(read(None, false).unwrap(), None);
        assert_eq!(read(Some("build"), true).unwrap(), Some((Question::Check, false)));
        assert_eq!(read(Some("check,format=json"), false).unwrap(), Some((Question::Check, true)));
        assert_eq!(read(Some("targets"), false).unwrap(), Some((Question::Targets, false)));
        assert!(read(Some("outline"), true).is_err());
        assert_eq!(read(Some("nothing"), false).unwrap_err().message, "invalid --call value: nothing");
    }

    #[test]
    fn columns_stand_below_each_other() {
        let rows = [vec!["TARGET".into(), "DESCRIPTION".into()], vec!["a".to_owned(), String::new()]];
        assert_eq!(columns(&rows), "TARGET   DESCRIPTION\na        \n");
    }
}
