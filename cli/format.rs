//! `--format`: Go templates over a command's rows, and the tables that listings print by default.
//!
//! A listing describes itself once, as [`Column`]s (placeholder name and heading); the default table, `table …`
//! templates, `json` and plain templates all come from that description, so they cannot drift apart.

use std::collections::BTreeMap;
use std::sync::Arc;

use gotmpl::{Template, TemplateError, Value};
use serde::Serialize;

use crate::error::CliError;
use crate::terminal::clean_line;

/// A placeholder of a listing: `{{.Repository}}` with the heading `REPOSITORY`.
#[derive(Debug, Clone, Copy)]
pub struct Column {
    pub name: &'static str,
    pub heading: &'static str,
}

/// Shorthand for a table of columns.
pub const fn column(name: &'static str, heading: &'static str) -> Column {
    Column { name, heading }
}

/// One line of a listing: placeholder name to text, plus labels for `{{.Label "key"}}`.
#[derive(Debug, Clone, Default)]
pub struct Row {
    pub cells: BTreeMap<&'static str, String>,
    pub labels: BTreeMap<String, String>,
}

impl Row {
    pub fn set(mut self, name: &'static str, value: impl Into<String>) -> Self {
        self.cells.insert(name, value.into());
        self
    }
}

/// Renders `rows`. `format` is the user's `--format` (`None`: a table of the columns named in `default`);
/// `header` false leaves the heading line out (docker's behaviour for plain templates is built in).
///
/// # Errors
/// A template that does not parse, or names a placeholder that the listing does not have.
pub fn listing(format: Option<&str>, columns: &[Column], default: &[&str], rows: &[Row]) -> Result<String, CliError> {
    let format = format.map(|f| f.replace("\\t", "\t").replace("\\n", "\n"));
    match format.as_deref().map(str::trim_start) {
        None | Some("" | "table") => Ok(default_table(columns, default, rows)),
        Some("json") => Ok(rows.iter().map(|row| json_line(columns, row) + "\n").collect()),
        Some(text) => match text.strip_prefix("table").filter(|rest| rest.starts_with([' ', '\t'])) {
            Some(template) => table_of_template(template.trim_start(), columns, rows),
            None => {
                let template = compile(text)?;
                rows.iter().map(|row| Ok(execute(&template, &value_of_row(columns, row))? + "\n")).collect()
            }
        },
    }
}

fn default_table(columns: &[Column], default: &[&str], rows: &[Row]) -> String {
    let heading = |name: &&str| columns.iter().find(|c| c.name == *name).map_or(*name, |c| c.heading).to_owned();
    let mut lines = vec![default.iter().map(heading).collect::<Vec<_>>()];
    for row in rows {
        lines.push(default.iter().map(|name| row.cells.get(name).cloned().unwrap_or_default()).collect());
    }
    tabulate(&lines)
}

fn table_of_template(template: &str, columns: &[Column], rows: &[Row]) -> Result<String, CliError> {
    let template = compile(template)?;
    let headings =
        Row { cells: columns.iter().map(|c| (c.name, c.heading.to_owned())).collect(), labels: BTreeMap::new() };
    let mut lines = Vec::new();
    let heading_value = value_of_columns(columns, &headings, |key| key.rsplit('.').next().unwrap_or(key).to_owned());
    for value in std::iter::once(heading_value).chain(rows.iter().map(|row| value_of_row(columns, row))) {
        lines.push(execute(&template, &value)?.split('\t').map(str::to_owned).collect());
    }
    Ok(tabulate(&lines))
}

fn json_line(columns: &[Column], row: &Row) -> String {
    let object: BTreeMap<&str, &str> =
        columns.iter().map(|c| (c.name, row.cells.get(c.name).map_or("", String::as_str))).collect();
    escaped(&serde_json::to_string(&object).unwrap_or_default())
}

/// JSON of a row as Go writes it, which minds browsers: without `<`, `>` and `&`.
fn escaped(json: &str) -> String {
    json.replace('<', "\\u003c").replace('>', "\\u003e").replace('&', "\\u0026")
}

fn value_of_row(columns: &[Column], row: &Row) -> Value {
    let labels = row.labels.clone();
    value_of_columns(columns, row, move |key| labels.get(key).cloned().unwrap_or_default())
}

fn value_of_columns(columns: &[Column], row: &Row, label: impl Fn(&str) -> String + Send + Sync + 'static) -> Value {
    let mut map: BTreeMap<Arc<str>, Value> = BTreeMap::new();
    for c in columns {
        map.insert(c.name.into(), Value::from(row.cells.get(c.name).cloned().unwrap_or_default()));
    }
    let label: gotmpl::ValueFunc = Arc::new(move |args: &[Value]| {
        Ok(Value::from(label(args.first().and_then(Value::as_str).unwrap_or_default())))
    });
    map.insert("Label".into(), Value::Function(label));
    Value::from(map)
}

/// Renders one object with a template, as `inspect -f` and `info --format` do. `json` gives compact JSON.
///
/// # Errors
/// A template that does not parse or execute; docker's words before the reason.
pub fn object(format: &str, value: &impl Serialize) -> Result<String, CliError> {
    let format = format.trim();
    if format == "json" || format == "{{json .}}" {
        return serde_json::to_string(value).map_err(|e| CliError::new(e.to_string()));
    }
    let template = compile(format)?;
    let value = gotmpl::ser::to_value(value).map_err(|e| CliError::new(e.to_string()))?;
    execute(&template, &value)
}

/// A `--format` template, checked before any work is done.
///
/// # Errors
/// Docker's `template parsing error: …`.
pub fn compile(text: &str) -> Result<Template, CliError> {
    let text = method_calls(text);
    functions(Template::new("").missing_key(gotmpl::MissingKey::Error))
        .parse(&text)
        .map_err(|e| CliError::new(format!("template parsing error: {}", reason(&e))))
}

fn execute(template: &Template, value: &Value) -> Result<String, CliError> {
    template.execute_to_string(value).map_err(|e| CliError::new(format!("template parsing error: {}", reason(&e))))
}

fn reason(error: &TemplateError) -> String {
    clean_line(&error.to_string())
}

/// `.Label "x"` is a method call in Go; here it is a function in a map, which needs `call`.
fn method_calls(text: &str) -> String {
    text.replace(".Label \"", "call .Label \"")
}

/// Docker's additions to Go's own template functions.
fn functions(template: Template) -> Template {
    fn text(args: &[Value], n: usize) -> String {
        args.get(n).map(ToString::to_string).unwrap_or_default()
    }
    fn number(args: &[Value], n: usize) -> usize {
        args.get(n).and_then(Value::as_int).and_then(|i| usize::try_from(i).ok()).unwrap_or(0)
    }
    template
        .func("json", |args| {
            let given = args.first().unwrap_or(&Value::Nil);
            let json = serde_json::to_string(&to_json(given)).unwrap_or_default();
            // A whole row, which alone has methods, is written by other means in docker than what it consists of.
            let row = matches!(given, Value::Map(map) if map.values().any(|v| matches!(v, Value::Function(_))));
            Ok(Value::from(if row { escaped(&json) } else { json }))
        })
        .func("split", |args| {
            let (given, separator) = (text(args, 0), text(args, 1));
            let parts: Vec<Value> = match separator.as_str() {
                "" => given.chars().map(|c| Value::from(c.to_string())).collect(),
                separator => given.split(separator).map(Value::from).collect(),
            };
            Ok(Value::from(parts))
        })
        .func("join", |args| {
            let separator = text(args, 1);
            let parts = match args.first() {
                Some(Value::List(list)) => list.iter().map(ToString::to_string).collect::<Vec<_>>(),
                _ => Vec::new(),
            };
            Ok(Value::from(parts.join(&separator)))
        })
        .func("lower", |args| Ok(Value::from(text(args, 0).to_lowercase())))
        .func("upper", |args| Ok(Value::from(text(args, 0).to_uppercase())))
        .func("title", |args| {
            let given = text(args, 0);
            let mut chars = given.chars();
            Ok(Value::from(chars.next().map(|c| c.to_uppercase().chain(chars).collect::<String>()).unwrap_or_default()))
        })
        .func("pad", |args| {
            let given = text(args, 0);
            if given.is_empty() {
                return Ok(Value::from(given));
            }
            Ok(Value::from(format!("{}{given}{}", " ".repeat(number(args, 1)), " ".repeat(number(args, 2)))))
        })
        .func("truncate", |args| Ok(Value::from(text(args, 0).chars().take(number(args, 1)).collect::<String>())))
}

/// A template value as JSON. Floats that are whole numbers print as such, as Go does.
fn to_json(value: &Value) -> serde_json::Value {
    use serde_json::Value as Json;
    match value {
        Value::Nil | Value::Function(_) => Json::Null,
        Value::Bool(b) => Json::Bool(*b),
        Value::Int(i) => Json::from(*i),
        Value::Uint(u) => Json::from(*u),
        Value::Float(f) => Json::from(*f),
        Value::String(s) => Json::String(s.to_string()),
        Value::List(list) => Json::Array(list.iter().map(to_json).collect()),
        Value::Map(map) => Json::Object(
            map.iter()
                .filter(|(_, v)| !matches!(v, Value::Function(_)))
                .map(|(k, v)| (k.to_string(), to_json(v)))
                .collect(),
        ),
    }
}

/// Lines of cells as aligned text: at least ten wide, three spaces apart, the last cell of a line not padded.
pub fn tabulate(lines: &[Vec<String>]) -> String {
    aligned(lines, 10)
}

/// As [`tabulate`], with another least width.
pub fn aligned(lines: &[Vec<String>], least: usize) -> String {
    let lines: Vec<Vec<String>> = lines.iter().map(|cells| cells.iter().map(|c| clean_line(c)).collect()).collect();
    let count = lines.iter().map(Vec::len).max().unwrap_or(0);
    let widths: Vec<usize> = (0..count)
        .map(|n| {
            let widest = lines.iter().filter(|l| l.len() > n + 1).map(|l| console::measure_text_width(&l[n])).max();
            widest.unwrap_or(0).saturating_add(3).max(least)
        })
        .collect();
    let mut out = String::new();
    for cells in &lines {
        for (n, cell) in cells.iter().enumerate() {
            out.push_str(cell);
            if n + 1 < cells.len() {
                out.extend(std::iter::repeat_n(' ', widths[n] - console::measure_text_width(cell)));
            }
        }
        out.push('\n');
    }
    out
}

#[cfg(test)]
mod tests {
    use super::*;

    const COLUMNS: &[Column] = &[column("Name", "NAME"), column("Size", "SIZE"), column("Labels", "LABELS")];

    fn rows() -> Vec<Row> {
        let mut row = Row::default().set("Name", "web").set("Size", "10MB").set("Labels", "a=b");
        row.labels.insert("a".into(), "b".into());
        vec![row, Row::default().set("Name", "a-rather-long-name").set("Size", "1kB")]
    }

    #[test]
    fn the_forms_of_a_listing() {
        let show = |format: Option<&str>| listing(format, COLUMNS, &["Name", "Size"], &rows()).unwrap();
        assert_eq!(show(None), "NAME                 SIZE\nweb                  10MB\na-rather-long-name   1kB\n");
        assert_eq!(show(Some("{{.Name}}|{{.Size}}")), "web|10MB\na-rather-long-name|1kB\n");
        assert_eq!(
            show(Some("table {{.Size}}\\t{{.Name}}")),
            "SIZE      NAME\n10MB      web\n1kB       a-rather-long-name\n"
        );
        assert_eq!(show(Some("{{.Label \"a\"}}")), "b\n\n");
        assert_eq!(show(Some("json")).lines().next().unwrap(), r#"{"Labels":"a=b","Name":"web","Size":"10MB"}"#);
        assert_eq!(show(Some("{{json .}}")).lines().next().unwrap(), r#"{"Labels":"a=b","Name":"web","Size":"10MB"}"#);
        assert_eq!(show(Some("{{upper .Name}} {{.Size | lower}}")).lines().next().unwrap(), "WEB 10mb");
    }

    #[test]
    fn wrong_templates_are_refused() {
        for format in ["{{.Nope}}", "{{", "{{nofunction .Name}}"] {
            let error = listing(Some(format), COLUMNS, &["Name"], &rows()).unwrap_err();
            assert!(error.message.starts_with("template parsing error: "), "{format}: {error}");
        }
    }

    #[test]
    fn objects() {
        let value = serde_json::json!({"Config": {"Cmd": ["echo", "a b"], "Labels": {"com.example.x": "two"}}, "N": 3});
        let show = |format: &str| object(format, &value).unwrap();
        assert_eq!(show(r#"{{join .Config.Cmd "+"}} {{index .Config.Labels "com.example.x"}}"#), "echo+a b two");
        assert_eq!(show("{{json .Config.Cmd}} {{len .Config.Cmd}} {{.N}}"), r#"["echo","a b"] 2 3"#);
        assert_eq!(show("{{range $k, $v := .Config.Labels}}{{$k}}={{$v}};{{end}}"), "com.example.x=two;");
    }
}
