//! `RUN --device=vendor/class=name,required`: a device the step gets, or does without.

use rbuild_graph::ops::Device;

use super::Text;
use super::run_mount::{boolean, comma_separated};
use crate::Diagnostic;

const KEYS: [&str; 2] = ["name", "required"];

/// Reads the flag. The name may stand alone, and may itself hold an equals sign.
pub(super) fn read(flag: &Text) -> Result<Device, Diagnostic> {
    let problem = |message: String| Diagnostic::error(message).at(flag.span);
    let mut device = Device { name: String::new(), required: false };
    for field in comma_separated(&flag.value, "devices").map_err(|problem| problem.at(flag.span))? {
        let (key, value) = field.split_once('=').map_or((field.as_str(), None), |(key, value)| (key, Some(value)));
        match (key.to_lowercase().as_str(), value) {
            ("required", None) => device.required = true,
            ("required", Some(value)) => {
                device.required = boolean(value)
                    .ok_or_else(|| problem(format!("invalid value for required: {value}")).expected("true or false"))?;
            }
            ("name", Some(_)) if !device.name.is_empty() => {
                return Err(problem(format!("device name already set to {}", device.name)));
            }
            ("name", Some(value)) => device.name = value.to_owned(),
            _ if device.name.is_empty() => device.name = field,
            (_, None) => return Err(problem(format!("invalid field '{field}' must be a key=value pair"))),
            (key, Some(_)) => {
                return Err(problem(format!("unexpected key '{key}' in '{field}'")).suggest(key, KEYS));
            }
        }
    }
    if device.name.is_empty() {
        return Err(
            problem("a device needs a name".to_owned()).expected("--device=<vendor>/<class>[=<name>][,required]")
        );
    }
    Ok(device)
}

#[cfg(test)]
mod tests {
    use rbuild_graph::Span;

    use super::*;

    fn of(value: &str) -> Result<(String, bool), String> {
        let read = read(&Text { value: value.to_owned(), span: Span { start: 0, end: 0, line: 1, end_line: 1 } });
        read.map(|device| (device.name, device.required)).map_err(|problem| problem.message)
    }

    #[test]
    fn forms_of_a_device() {
        for (text, name, required) in [
            ("acme.com/gpu=one", "acme.com/gpu=one", false),
            ("acme.com/gpu,required", "acme.com/gpu", true),
            ("required,acme.com/gpu=*", "acme.com/gpu=*", true),
            ("NAME=acme.com/gpu=one,Required=false", "acme.com/gpu=one", false),
            ("required=1,name=fast", "fast", true),
            ("\"fast\"", "fast", false),
        ] {
            assert_eq!(of(text), Ok((name.to_owned(), required)), "{text}");
        }
        for (text, want) in [
            ("", "a device needs a name"),
            ("required", "a device needs a name"),
            ("a/b,c", "invalid field 'c' must be a key=value pair"),
            ("a/b,requird=true", "unexpected key 'requird' in 'requird=true' (did you mean required?)"),
            ("a/b,required=maybe", "invalid value for required: maybe"),
            ("a/b,name=c/d", "device name already set to a/b"),
            ("\"a", "failed to parse csv devices: extraneous or missing \" in quoted-field"),
        ] {
            assert_eq!(of(text), Err(want.to_owned()), "{text}");
        }
    }
}
