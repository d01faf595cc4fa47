//! The collection policy of the build cache, as docker's `daemon.json` writes it, and starting a collection.

use std::process::{Command, Stdio};
use std::time::{Duration, SystemTime};

use rbuild_engine::usage::filter::CacheFilter;
use rbuild_engine::usage::policy::{CachePolicy, PolicyRule, Space};
use serde::Deserialize;

use crate::app::App;
use crate::error::CliError;
use crate::{units, values};

/// The member `builder` of the configuration file.
#[derive(Debug, Default, Clone, Deserialize)]
#[serde(default)]
pub struct BuilderConfig {
    gc: Option<GcConfig>,
}

#[derive(Debug, Clone, Deserialize)]
#[serde(default, rename_all = "camelCase")]
struct GcConfig {
    enabled: bool,
    #[serde(alias = "defaultKeepStorage")]
    default_reserved_space: Option<SpaceText>,
    default_max_used_space: Option<SpaceText>,
    default_min_free_space: Option<SpaceText>,
    policy: Vec<RuleConfig>,
}

impl Default for GcConfig {
    fn default() -> GcConfig {
        GcConfig {
            enabled: true,
            default_reserved_space: None,
            default_max_used_space: None,
            default_min_free_space: None,
            policy: Vec::new(),
        }
    }
}

#[derive(Debug, Default, Clone, Deserialize)]
#[serde(default, rename_all = "camelCase", deny_unknown_fields)]
struct RuleConfig {
    all: bool,
    #[serde(alias = "filters")]
    filter: Vec<String>,
    keep_duration: Option<String>,
    #[serde(alias = "keepStorage", alias = "keepBytes")]
    reserved_space: Option<SpaceText>,
    max_used_space: Option<SpaceText>,
    min_free_space: Option<SpaceText>,
}

/// `"10GB"`, `"20%"`, or a number of bytes.
#[derive(Debug, Clone, Deserialize)]
#[serde(untagged)]
enum SpaceText {
    Text(String),
    Bytes(u64),
}

impl BuilderConfig {
    /// The policy that is written; the usual one where none is.
    ///
    /// # Errors
    /// A size, time or filter that is none.
    pub fn cache_policy(&self) -> Result<CachePolicy, CliError> {
        let mut policy = CachePolicy::default();
        let Some(gc) = &self.gc else { return Ok(policy) };
        policy.enabled = gc.enabled;
        policy.written = true;
        if !gc.policy.is_empty() {
            policy.rules = gc.policy.iter().map(RuleConfig::rule).collect::<Result<_, _>>()?;
        }
        for rule in policy.rules.iter_mut().filter(|rule| gc.policy.is_empty() && rule.any_of.is_empty()) {
            let set = |to: &mut Space, from: &Option<SpaceText>| -> Result<(), CliError> {
                if let Some(text) = from {
                    *to = space(text)?;
                }
                Ok(())
            };
            set(&mut rule.reserved, &gc.default_reserved_space)?;
            set(&mut rule.max_used, &gc.default_max_used_space)?;
            set(&mut rule.min_free, &gc.default_min_free_space)?;
        }
        Ok(policy)
    }
}

impl RuleConfig {
    fn rule(&self) -> Result<PolicyRule, CliError> {
        let mut rule = PolicyRule { all: self.all, ..PolicyRule::default() };
        rule.unused_for = self.keep_duration.as_deref().map(duration).transpose()?;
        for filters in &self.filter {
            let mut all = Vec::new();
            for filter in filters.split(',') {
                match filter.strip_prefix("unused-for=").or_else(|| filter.strip_prefix("until=")) {
                    Some(age) => rule.unused_for = Some(duration(age)?),
                    None => all.push(CacheFilter::parse(filter)?),
                }
            }
            if !all.is_empty() {
                rule.any_of.push(all);
            }
        }
        let or_nothing = |text: &Option<SpaceText>| text.as_ref().map_or(Ok(Space::default()), space);
        rule.reserved = or_nothing(&self.reserved_space)?;
        rule.max_used = or_nothing(&self.max_used_space)?;
        rule.min_free = or_nothing(&self.min_free_space)?;
        Ok(rule)
    }
}

fn space(text: &SpaceText) -> Result<Space, CliError> {
    let refuse = |text: &str| CliError::new(format!("configuration file: invalid size '{text}' in \"builder\""));
    match text {
        SpaceText::Bytes(bytes) => Ok(Space::Bytes(*bytes)),
        SpaceText::Text(text) => match text.strip_suffix('%') {
            Some(percent) => {
                let percent = percent.trim().parse().ok().filter(|percent| *percent <= 100);
                percent.map(Space::Percent).ok_or_else(|| refuse(text))
            }
            None => values::bytes(text).map(Space::Bytes).map_err(|_| refuse(text)),
        },
    }
}

fn duration(text: &str) -> Result<Duration, CliError> {
    let now = SystemTime::now();
    let seconds = text.parse().ok().and_then(|seconds| now.checked_sub(Duration::from_secs(seconds)));
    let then = seconds.or_else(|| units::time_before(text, now));
    let then =
        then.ok_or_else(|| CliError::new(format!("configuration file: invalid time '{text}' in \"builder\"")))?;
    Ok(now.duration_since(then).unwrap_or_default())
}

/// Starts a collection as a process of its own, if one is due. What goes wrong with it is no business of the build before.
pub fn after_build(app: &App) {
    let due = || -> Result<bool, CliError> {
        let policy = app.settings.daemon_config()?.cache_policy()?;
        Ok(app.engine()?.is_collection_due(&policy))
    };
    match due() {
        Ok(false) => {}
        Ok(true) => {
            use std::os::unix::process::CommandExt as _;
            let mut command = Command::new("/proc/self/exe");
            command.arg("--root").arg(&app.settings.root).args(["builder", "gc", "--quiet"]);
            command.stdin(Stdio::null()).stdout(Stdio::null()).stderr(Stdio::null()).process_group(0);
            if let Err(error) = command.spawn() {
                tracing::warn!(%error, "the build cache is not collected");
            }
        }
        Err(error) => tracing::warn!(error = %error.message, "the build cache is not collected"),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn policy(json: &str) -> Result<CachePolicy, CliError> {
        serde_json::from_str::<BuilderConfig>(json).unwrap().cache_policy()
    }

    #[test]
    fn policies_as_docker_writes_them() {
        let usual = policy("{}").unwrap();
        assert!(usual.enabled && !usual.written && usual.rules.len() == 3);
        assert!(!policy(r#"{"gc": {"enabled": false}}"#).unwrap().enabled);
        let kept = policy(r#"{"gc": {"defaultKeepStorage": "20GB"}}"#).unwrap();
        assert_eq!(kept.rules[2].reserved, Space::Bytes(20 << 30));
        let written = policy(
            r#"{"gc": {"enabled": true, "policy": [
                {"keepStorage": "10GB", "filter": ["unused-for=2200h"]},
                {"filter": ["type==source.local,mutable", "type==exec.cachemount"], "keepDuration": "48h"},
                {"reservedSpace": 1024, "maxUsedSpace": "20%", "minFreeSpace": "5GB", "all": true}
            ]}}"#,
        )
        .unwrap();
        assert!(written.written);
        assert_eq!(written.rules[0].reserved, Space::Bytes(10 << 30));
        assert_eq!(written.rules[0].unused_for.map(|age| age.as_secs()), Some(2200 * 3600));
        assert_eq!(written.rules[1].any_of.iter().map(Vec::len).collect::<Vec<_>>(), [2, 1]);
        assert_eq!(written.rules[1].unused_for.map(|age| age.as_secs()), Some(48 * 3600));
        let last = &written.rules[2];
        assert!(last.all);
        assert_eq!(
            (last.reserved, last.max_used, last.min_free),
            (Space::Bytes(1024), Space::Percent(20), Space::Bytes(5 << 30))
        );
        for wrong in [
            r#"{"gc": {"policy": [{"keepStorage": "much"}]}}"#,
            r#"{"gc": {"policy": [{"maxUsedSpace": "200%"}]}}"#,
            r#"{"gc": {"policy": [{"filter": ["nonsense=1"]}]}}"#,
            r#"{"gc": {"policy": [{"keepDuration": "long"}]}}"#,
        ] {
            assert!(policy(wrong).is_err(), "{wrong}");
        }
    }
}
