//! Sizes, ages and durations in docker's words.

use std::time::{Duration, SystemTime};

/// Decimal size with four significant digits: `0B`, `1.84kB`, `4.26MB`, `1.234GB`.
pub fn size(bytes: u64) -> String {
    size_with(bytes, 4)
}

/// Decimal size with three significant digits, as listings show it.
pub fn short_size(bytes: u64) -> String {
    size_with(bytes, 3)
}

/// Binary size with four significant digits, as `stats` shows memory: `0B`, `1.5MiB`.
pub fn binary_size(bytes: u64) -> String {
    const UNITS: [&str; 7] = ["B", "KiB", "MiB", "GiB", "TiB", "PiB", "EiB"];
    let mut value = bytes as f64;
    let mut unit = 0;
    while value >= 1024.0 && unit < UNITS.len() - 1 {
        value /= 1024.0;
        unit += 1;
    }
    format!("{}{}", significant(value, 4), UNITS[unit])
}

fn size_with(bytes: u64, digits: usize) -> String {
    const UNITS: [&str; 7] = ["B", "kB", "MB", "GB", "TB", "PB", "EB"];
    let mut value = bytes as f64;
    let mut unit = 0;
    while value >= 1000.0 && unit < UNITS.len() - 1 {
        value /= 1000.0;
        unit += 1;
    }
    format!("{}{}", significant(value, digits), UNITS[unit])
}

/// Go's `%.Ng`: N significant digits, trailing zeros dropped.
fn significant(value: f64, digits: usize) -> String {
    let whole = if value < 1.0 { 1 } else { value.log10().floor() as usize + 1 };
    let text = format!("{value:.*}", digits.saturating_sub(whole));
    if text.contains('.') { text.trim_end_matches('0').trim_end_matches('.').to_owned() } else { text }
}

/// How long, in docker's rough words: `Less than a second`, `About a minute`, `3 hours`, `2 weeks`.
pub fn rough(duration: Duration) -> String {
    let seconds = duration.as_secs();
    let (minutes, hours) = (seconds / 60, (seconds as f64 / 3600.0).round() as u64);
    match () {
        () if seconds < 1 => "Less than a second".into(),
        () if seconds == 1 => "1 second".into(),
        () if seconds < 60 => format!("{seconds} seconds"),
        () if minutes == 1 => "About a minute".into(),
        () if minutes < 60 => format!("{minutes} minutes"),
        () if hours == 1 => "About an hour".into(),
        () if hours < 48 => format!("{hours} hours"),
        () if hours < 24 * 7 * 2 => format!("{} days", hours / 24),
        () if hours < 24 * 30 * 2 => format!("{} weeks", hours / 24 / 7),
        () if hours < 24 * 365 * 2 => format!("{} months", hours / 24 / 30),
        () => format!("{} years", hours / 24 / 365),
    }
}

/// `3 hours ago`; a time in the future counts as now. The Unix epoch and before, which images without a date
/// carry, is `N/A`.
pub fn ago(then: SystemTime, now: SystemTime) -> String {
    if then <= SystemTime::UNIX_EPOCH {
        return "N/A".into();
    }
    format!("{} ago", rough(now.duration_since(then).unwrap_or_default()))
}

/// Local-free timestamp of listings: `2024-05-01 12:00:00 +0000 UTC`.
pub fn timestamp(then: SystemTime) -> String {
    let t = time::OffsetDateTime::from(then);
    format!(
        "{:04}-{:02}-{:02} {:02}:{:02}:{:02} +0000 UTC",
        t.year(),
        t.month() as u8,
        t.day(),
        t.hour(),
        t.minute(),
        t.second()
    )
}

/// RFC 3339 in UTC with nanoseconds, trailing zeros dropped: `2024-05-01T12:00:00.5Z`.
pub fn rfc3339(then: SystemTime) -> String {
    let t = time::OffsetDateTime::from(then);
    let mut text = format!(
        "{:04}-{:02}-{:02}T{:02}:{:02}:{:02}",
        t.year(),
        t.month() as u8,
        t.day(),
        t.hour(),
        t.minute(),
        t.second()
    );
    if t.nanosecond() != 0 {
        let fraction = format!(".{:09}", t.nanosecond());
        text.push_str(fraction.trim_end_matches('0'));
    }
    text.push('Z');
    text
}

/// Go's durations: `300ms`, `1.5h`, `2h45m`.
pub fn duration(text: &str) -> Option<Duration> {
    let mut total = Duration::ZERO;
    let mut rest = text;
    while !rest.is_empty() {
        let digits = rest.find(|c: char| !(c.is_ascii_digit() || c == '.'))?;
        let number: f64 = rest[..digits].parse().ok()?;
        rest = &rest[digits..];
        let unit = rest.find(|c: char| c.is_ascii_digit() || c == '.').unwrap_or(rest.len());
        let seconds = match &rest[..unit] {
            "ns" => 1e-9,
            "us" | "µs" => 1e-6,
            "ms" => 1e-3,
            "s" => 1.0,
            "m" => 60.0,
            "h" => 3600.0,
            _ => return None,
        };
        rest = &rest[unit..];
        total = total.checked_add(Duration::try_from_secs_f64(number * seconds).ok()?)?;
    }
    (!text.is_empty()).then_some(total)
}

/// The time that an `until` filter names: a Go duration before `now` (`1h30m`) or a timestamp (RFC 3339).
pub fn time_before(text: &str, now: SystemTime) -> Option<SystemTime> {
    if let Ok(time) = time::OffsetDateTime::parse(text, &time::format_description::well_known::Rfc3339) {
        return Some(time.into());
    }
    let before = duration(text)?;
    now.checked_sub(before)
}

/// `2024-05-01T12:00:00Z`, `1714564800.5`, or `1h30m` before now.
///
/// # Errors
/// None of these.
pub fn point_in_time(text: &str) -> Result<SystemTime, String> {
    use time::format_description::well_known::Rfc3339;
    let wrong = || format!("failed to parse value as time or duration: \"{text}\"");
    if let Some(ago) = duration(text) {
        return SystemTime::now().checked_sub(ago).ok_or_else(wrong);
    }
    if let Ok(seconds) = text.parse::<f64>() {
        let since = Duration::try_from_secs_f64(seconds).map_err(|_| wrong())?;
        return SystemTime::UNIX_EPOCH.checked_add(since).ok_or_else(wrong);
    }
    let with_zone = |text: &str| time::OffsetDateTime::parse(text, &Rfc3339).ok();
    // Without a zone it is taken as UTC: the program reads no zone files.
    let parsed = with_zone(text)
        .or_else(|| with_zone(&format!("{text}Z")))
        .or_else(|| with_zone(&format!("{text}:00Z")))
        .or_else(|| with_zone(&format!("{text}T00:00:00Z")));
    parsed.map(SystemTime::from).ok_or_else(wrong)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn durations() {
        for (text, want) in [
            ("10s", Some(10_000)),
            ("1h30m", Some(5_400_000)),
            ("1.5h", Some(5_400_000)),
            ("300ms", Some(300)),
            ("", None),
            ("10", None),
            ("s", None),
            ("10x", None),
        ] {
            assert_eq!(duration(text), want.map(Duration::from_millis), "{text}");
        }
    }

    #[test]
    fn times_before_now() {
        let now = SystemTime::UNIX_EPOCH + Duration::from_secs(1_000_000);
        let before = |text: &str| time_before(text, now).map(|t| now.duration_since(t).unwrap().as_secs());
        assert_eq!(before("24h"), Some(86_400));
        assert_eq!(before("1h30m"), Some(5400));
        assert_eq!(before("1.5h"), Some(5400));
        assert_eq!(before("1970-01-12T13:46:30Z"), Some(10));
        for bad in ["", "24", "h", "3 days", "1d", "-1h"] {
            assert_eq!(time_before(bad, now), None, "{bad}");
        }
    }

    #[test]
    fn sizes_have_docker_digits() {
        for (bytes, want) in [
            (0, "0B"),
            (999, "999B"),
            (1000, "1kB"),
            (1840, "1.84kB"),
            (4_261_550, "4.26MB"),
            (116_999_999, "117MB"),
            (1_234_567_890, "1.23GB"),
        ] {
            assert_eq!(short_size(bytes), want, "{bytes}");
        }
        assert_eq!(size(1_234_567), "1.235MB");
        assert_eq!([0, 1023, 1536, 8_346_607_616].map(binary_size), ["0B", "1023B", "1.5KiB", "7.773GiB"]);
    }

    #[test]
    fn ages_are_rough() {
        for (seconds, want) in [
            (0, "Less than a second"),
            (1, "1 second"),
            (59, "59 seconds"),
            (61, "About a minute"),
            (180, "3 minutes"),
            (3600, "About an hour"),
            (7 * 3600, "7 hours"),
            (3 * 86400, "3 days"),
            (15 * 86400, "2 weeks"),
            (100 * 86400, "3 months"),
            (900 * 86400, "2 years"),
        ] {
            assert_eq!(rough(Duration::from_secs(seconds)), want, "{seconds}");
        }
        let epoch = SystemTime::UNIX_EPOCH;
        assert_eq!(ago(epoch, epoch + Duration::from_secs(9)), "N/A");
        assert_eq!(timestamp(epoch + Duration::from_secs(86_400)), "1970-01-02 00:00:00 +0000 UTC");
        assert_eq!(rfc3339(epoch + Duration::from_millis(1500)), "1970-01-01T00:00:01.5Z");
    }

    #[test]
    fn points_in_time() {
        let at = |seconds| SystemTime::UNIX_EPOCH + Duration::from_secs(seconds);
        for (text, want) in [
            ("0", at(0)),
            ("1714564800", at(1_714_564_800)),
            ("2024-05-01T12:00:00Z", at(1_714_564_800)),
            ("2024-05-01T12:00:00", at(1_714_564_800)),
            ("2024-05-01T12:00", at(1_714_564_800)),
            ("2024-05-01", at(1_714_521_600)),
        ] {
            assert_eq!(point_in_time(text), Ok(want), "{text}");
        }
        for text in ["", "yesterday", "-5", "2024-13-01"] {
            assert!(point_in_time(text).is_err(), "{text}");
        }
    }
}
