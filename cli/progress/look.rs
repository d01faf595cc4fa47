//! How progress looks on a terminal: its colours and how much of a step's output it shows.
//!
//! What is wrong in these variables is told on the log and otherwise ignored, as in BuildKit: a typing mistake in a shell's
//! start file is no reason not to build.

use console::Style;

use crate::settings::Settings;

/// Lines of a running step's output that are shown.
const LINES: usize = 6;
/// More than this fits no screen.
const MOST_LINES: usize = 1000;

/// Styles by what they tell, and the number of lines.
#[derive(Debug, Clone)]
pub struct Look {
    /// Steps that run or are done.
    pub run: Style,
    pub cancel: Style,
    pub error: Style,
    /// The count of warnings.
    pub warning: Style,
    pub lines: usize,
}

impl Default for Look {
    fn default() -> Look {
        Look {
            run: Style::new().blue(),
            cancel: Style::new().yellow(),
            error: Style::new().red(),
            warning: Style::new().yellow(),
            lines: LINES,
        }
    }
}

impl Look {
    /// From `BUILDKIT_COLORS` (`run=green:error=light-red:cancel=255,165,0`) and `BUILDKIT_TTY_LOG_LINES`.
    pub fn of(settings: &Settings) -> Look {
        let mut look = Look::default();
        for field in settings.non_empty("BUILDKIT_COLORS").into_iter().flat_map(|all| all.split(':')) {
            if let Err(why) = look.set(field) {
                tracing::warn!("BUILDKIT_COLORS: {why}");
            }
        }
        if let Some(text) = settings.non_empty("BUILDKIT_TTY_LOG_LINES") {
            match text.parse() {
                Ok(lines) if lines > 0 => look.lines = std::cmp::min(lines, MOST_LINES),
                _ => tracing::warn!("BUILDKIT_TTY_LOG_LINES: {text} is not a number of lines"),
            }
        }
        look
    }

    fn set(&mut self, field: &str) -> Result<(), String> {
        let (key, value) = field.split_once('=').ok_or_else(|| format!("{field} is not key=colour"))?;
        let style = style(&value.to_lowercase()).ok_or_else(|| format!("{value} is no colour"))?;
        match key.to_lowercase().as_str() {
            "run" => self.run = style,
            "cancel" => self.cancel = style,
            "error" => self.error = style,
            "warning" => self.warning = style,
            _ => return Err(format!("{key} is none of run, cancel, error and warning")),
        }
        Ok(())
    }
}

/// A colour by its name, or three numbers of one byte each.
fn style(text: &str) -> Option<Style> {
    let (name, bright) = text.strip_prefix("light-").map_or((text, false), |name| (name, true));
    let plain = Style::new();
    let coloured = match name {
        "default" if !bright => return Some(plain),
        "black" => plain.black(),
        "blue" => plain.blue(),
        "cyan" => plain.cyan(),
        "green" => plain.green(),
        "magenta" => plain.magenta(),
        "red" => plain.red(),
        "white" => plain.white(),
        "yellow" => plain.yellow(),
        _ => {
            let numbers: Vec<u8> = text.split(',').map(|part| part.trim().parse().ok()).collect::<Option<_>>()?;
            let [red, green, blue] = numbers[..] else { return None };
            // The cube of 216 colours, six steps a side, that every terminal has.
            let step = |value: u8| (u16::from(value) * 6 / 256) as u8;
            return Some(plain.color256(16 + 36 * step(red) + 6 * step(green) + step(blue)));
        }
    };
    Some(if bright { coloured.bright() } else { coloured })
}

#[cfg(test)]
mod tests {
    use super::*;

    fn painted(style: &Style) -> String {
        style.clone().force_styling(true).apply_to("x").to_string()
    }

    #[test]
    fn colours_by_name_and_number() {
        let mut look = Look::default();
        for field in ["run=green", "ERROR=Light-Red", "cancel=255,0,0", "warning=default"] {
            look.set(field).unwrap();
        }
        assert_eq!(painted(&look.run), "\u{1b}[32mx\u{1b}[0m");
        assert_eq!(painted(&look.error), painted(&Style::new().red().bright()));
        assert_eq!(painted(&look.cancel), "\u{1b}[38;5;196mx\u{1b}[0m");
        assert_eq!(painted(&look.warning), "x");
        for (field, want) in [
            ("run", "run is not key=colour"),
            ("run=purple", "purple is no colour"),
            ("run=1,2", "1,2 is no colour"),
            ("run=1,2,256", "1,2,256 is no colour"),
            ("light=red", "light is none of run, cancel, error and warning"),
        ] {
            assert_eq!(look.set(field).unwrap_err(), want);
        }
    }
}
