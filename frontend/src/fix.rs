//! Putting right what the rules of [`lint`](crate::lint) find, where the text alone says how.
//!
//! A fix is a few replaced bytes at places the parser knows, so comments, line breaks and alignment stay as the author
//! wrote them. It is not a printer of Dockerfiles: that would be simpler, and would rewrite what nobody asked about.
//!
//! Whether a fix is safe is not argued but tried: the changed text is lowered, stage by stage, and must give the same
//! operations and the same config as before, but for what the rule itself wants changed. A fix that fails this is
//! dropped. So a rule's editor in [`edits`] may be simple and need not know every corner of quoting.

mod edits;
mod meaning;

use crate::{Diagnostic, Facts, LowerOptions, Outcome, Purpose, lower, parse};
use edits::{Edit, Place};
use meaning::Meaning;

/// Rules with fixes, in the order in which these are applied: casing before what compares casings, lines taken out last,
/// so that the numbers of all lines are those of the text as it was.
const FIXED: [&str; 10] = [
    "ConsistentInstructionCasing",
    "FromAsCasing",
    "StageNameCasing",
    "RedundantTargetPlatform",
    "MaintainerDeprecated",
    "LegacyKeyValueFormat",
    "ExposeProtoCasing",
    "WorkdirRelativePath",
    "JSONArgsRecommended",
    "NoEmptyContinuation",
];

/// So many findings of a rule are tried one by one when they cannot be fixed together.
const MOST_TRIED: usize = 100;

/// A text after its fixes.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Fixed {
    pub text: String,
    /// In the order of the file.
    pub fixes: Vec<Fix>,
}

/// A finding that is none any more.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Fix {
    pub rule: &'static str,
    /// From 1, in the text as it was.
    pub line: u32,
    /// What the rule said.
    pub message: String,
}

/// Whether there are fixes for a rule.
pub fn is_fixable(rule: &str) -> bool {
    FIXED.contains(&rule)
}

/// Fixes what can be fixed safely; of a text with mistakes nothing. Rules that the file or the caller skips are left
/// alone. `facts` must be those with which the text was checked.
pub fn fix(text: &str, options: &LowerOptions, facts: &Facts) -> Fixed {
    let options = LowerOptions { purpose: Purpose::Check, ..options.clone() };
    let mut fixed = Fixed { text: text.to_owned(), fixes: Vec::new() };
    let Some(mut meaning) = Meaning::of(text, &options, facts) else { return fixed };
    for rule in FIXED {
        let mut found = candidates(&fixed.text, rule, &options, facts);
        if found.is_empty() {
            continue;
        }
        let attempt = |chosen: &[Candidate]| {
            let edited = edits::apply(&fixed.text, chosen.iter().flat_map(|one| &one.edits));
            let after = Meaning::of(&edited, &options, facts)?;
            after.keeps(&meaning, rule).then_some((edited, after))
        };
        let mut kept = attempt(&found);
        if kept.is_none() && found.len() <= MOST_TRIED {
            found.retain(|one| attempt(std::slice::from_ref(one)).is_some());
            kept = attempt(&found);
        }
        if let Some((edited, after)) = kept.filter(|(edited, _)| *edited != fixed.text) {
            (fixed.text, meaning) = (edited, after);
            fixed.fixes.extend(found.into_iter().map(|one| one.fix));
        }
    }
    fixed.fixes.sort_by_key(|fix| fix.line);
    fixed
}

/// A finding, and what would do away with it.
struct Candidate {
    fix: Fix,
    edits: Vec<Edit>,
}

fn candidates(text: &str, rule: &'static str, options: &LowerOptions, facts: &Facts) -> Vec<Candidate> {
    let (file, _) = parse(text.as_bytes(), "Dockerfile");
    let (Outcome::Lowered(_), found) = lower(&file, options, facts) else { return Vec::new() };
    let place = Place::new(text, &file, options, facts);
    let of_rule = found.iter().filter(|found| found.rule == Some(rule));
    let candidate = |found: &Diagnostic| {
        let fix = Fix { rule, line: found.span?.line, message: found.message.clone() };
        Some(Candidate { fix, edits: edits::of(found, &place)? })
    };
    of_rule.filter_map(candidate).collect()
}

#[cfg(test)]
mod tests {
    use rbuild_oci::{Digest, ImageConfig, Platform, Reference};

    use super::*;
    use crate::ImageFact;

    fn facts() -> Facts {
        let reference = Reference::parse("busybox").unwrap();
        let platform = Platform::new("linux", "amd64");
        let mut config = ImageConfig { os: "linux".into(), architecture: "amd64".into(), ..ImageConfig::default() };
        config.config.working_dir = "/home".into();
        config.config.cmd = Some(vec!["sh".into()]);
        let fact = ImageFact { digest: Digest::sha256_of(b"busybox"), config, pinned: true };
        Facts { images: [((reference, platform), fact)].into() }
    }

    /// The text after its fixes, and the rules of these.
    fn fixed(text: &str) -> (String, Vec<&'static str>) {
        let options = LowerOptions::new(Platform::new("linux", "amd64"));
        let fixed = fix(text, &options, &facts());
        let again = fix(&fixed.text, &options, &facts());
        assert_eq!(again.fixes, [], "once is enough: {}", fixed.text);
        assert_eq!(again.text, fixed.text);
        (fixed.text, fixed.fixes.iter().map(|fix| fix.rule).collect())
    }

    #[track_caller]
    fn becomes(text: &str, want: &str, rule: &str) {
        let (got, rules) = fixed(text);
        assert_eq!(got, want);
        assert!(!rules.is_empty() && rules.iter().all(|other| *other == rule), "{rules:?}");
    }

    #[track_caller]
    fn stays(text: &str) {
        assert_eq!(fixed(text), (text.to_owned(), Vec::new()));
    }

    #[test]
    fn casing() {
        becomes(
            "FROM scratch\n# c\n  copy a /\nCOPY b /\n",
            "FROM scratch\n# c\n  COPY a /\nCOPY b /\n",
            "ConsistentInstructionCasing",
        );
        becomes(
            "from scratch\nCopy a \\\n  /\ncopy b /\n",
            "from scratch\ncopy a \\\n  /\ncopy b /\n",
            "ConsistentInstructionCasing",
        );
        becomes("FROM scratch as one\n", "FROM scratch AS one\n", "FromAsCasing");
        becomes("from scratch AS one\n", "from scratch as one\n", "FromAsCasing");
        becomes("FROM scratch AS One\nFROM One\n", "FROM scratch AS one\nFROM One\n", "StageNameCasing");
        becomes("\u{feff}FROM scratch as a\n", "\u{feff}FROM scratch AS a\n", "FromAsCasing");
        let (text, rules) = fixed("From scratch as One\nLABEL a=b\n");
        assert_eq!(text, "FROM scratch AS one\nLABEL a=b\n");
        assert_eq!(rules, ["ConsistentInstructionCasing", "FromAsCasing", "StageNameCasing"]);
    }

    #[test]
    fn old_pairs() {
        let rule = "LegacyKeyValueFormat";
        becomes("FROM scratch\nENV a b\n", "FROM scratch\nENV a=b\n", rule);
        becomes("FROM scratch\nENV  a \t b c  d \n", "FROM scratch\nENV  a=\"b c  d\" \n", rule);
        becomes("FROM scratch\nLABEL a it is $x\n", "FROM scratch\nLABEL a=\"it is $x\"\n", rule);
        becomes("FROM scratch\nENV a \"b c\"\n", "FROM scratch\nENV a=\"b c\"\n", rule);
        becomes("FROM scratch\nENV a b\\ c\n", "FROM scratch\nENV a=b\\ c\n", rule);
        becomes("FROM scratch\nENV a b \\\n  # no\n  c\n", "FROM scratch\nENV a=\"b \\\n  # no\n  c\"\n", rule);
        // Quotes in the middle would need thought; what reads the same in both forms does not.
        stays("FROM scratch\nENV a b 'c d' e\n");
        stays("# check=skip=LegacyKeyValueFormat\nFROM scratch\nENV a b\n");
        let (text, rules) = fixed("FROM scratch\nENV a b 'c' d\nENV e f\n");
        assert_eq!((text.as_str(), rules), ("FROM scratch\nENV a b 'c' d\nENV e=f\n", vec![rule]));
    }

    #[test]
    fn maintainers() {
        let rule = "MaintainerDeprecated";
        let label = "org.opencontainers.image.authors";
        becomes(
            "FROM scratch\nMAINTAINER Me <me@x.org>\n",
            &format!("FROM scratch\nLABEL {label}=\"Me <me@x.org>\"\n"),
            rule,
        );
        becomes(
            "from scratch\nmaintainer a \"b\" $c \\d\n",
            &format!("from scratch\nlabel {label}=\"a \\\"b\\\" \\$c \\\\d\"\n"),
            rule,
        );
        stays(&format!("FROM scratch\nMAINTAINER me\nLABEL {label}=you\n"));
    }

    #[test]
    fn platforms_and_ports() {
        becomes("FROM --platform=$TARGETPLATFORM busybox AS a\n", "FROM busybox AS a\n", "RedundantTargetPlatform");
        becomes(
            "FROM scratch\nEXPOSE 80/TCP 53/Udp 1\n",
            "FROM scratch\nEXPOSE 80/tcp 53/udp 1\n",
            "ExposeProtoCasing",
        );
        stays("FROM scratch\nARG p=80/TCP\nEXPOSE $p\n");
    }

    #[test]
    fn directories() {
        let rule = "WorkdirRelativePath";
        becomes("FROM busybox\nWORKDIR app\nWORKDIR sub\n", "FROM busybox\nWORKDIR /home/app\nWORKDIR sub\n", rule);
        becomes("FROM scratch AS one\nWORKDIR app/ \n", "FROM scratch AS one\nWORKDIR /app \n", rule);
        stays("FROM scratch\nARG d=app\nWORKDIR $d\n");
    }

    #[test]
    fn commands() {
        let rule = "JSONArgsRecommended";
        becomes("FROM busybox\nCMD  nginx -g /etc/x \n", "FROM busybox\nCMD  [\"nginx\", \"-g\", \"/etc/x\"] \n", rule);
        becomes("FROM scratch\nENTRYPOINT app\n", "FROM scratch\nENTRYPOINT [\"app\"]\n", rule);
        for unclear in [
            "FROM scratch\nCMD echo $HOME\n",
            "FROM scratch\nCMD a && b\n",
            "FROM scratch\nCMD exec a\n",
            "FROM scratch\nCMD A=b c\n",
            "FROM scratch\nCMD a \\\n b\n",
            "FROM scratch\nENTRYPOINT [\"x\"]\nCMD a\n",
            "FROM scratch\nENTRYPOINT a\nCMD [\"b\"]\n",
        ] {
            stays(unclear);
        }
    }

    #[test]
    fn empty_lines() {
        let rule = "NoEmptyContinuation";
        becomes(
            "FROM scratch\nCOPY a \\\n\n  \n# c\n  b /\n\nCOPY c /\n",
            "FROM scratch\nCOPY a \\\n# c\n  b /\n\nCOPY c /\n",
            rule,
        );
        becomes("FROM busybox\r\nRUN a \\\r\n\r\n && b\r\n", "FROM busybox\r\nRUN a \\\r\n && b\r\n", rule);
        becomes("FROM busybox\nRUN <<E cat \\\n\n - \n\nx\nE\n", "FROM busybox\nRUN <<E cat \\\n - \n\nx\nE\n", rule);
    }

    #[test]
    fn what_is_fixed_is_told_with_its_old_line() {
        let text = "FROM scratch as a\nCOPY a \\\n\n b /\nMAINTAINER me\n";
        let fixed = fix(text, &LowerOptions::new(Platform::new("linux", "amd64")), &Facts::default());
        let told: Vec<_> = fixed.fixes.iter().map(|fix| (fix.rule, fix.line)).collect();
        assert_eq!(told, [("FromAsCasing", 1), ("NoEmptyContinuation", 3), ("MaintainerDeprecated", 5)]);
        assert_eq!(fixed.fixes[0].message, "'as' and 'FROM' keywords' casing do not match");
    }

    #[test]
    fn a_text_with_mistakes_stays() {
        stays("FROM scratch as a\nNOPE\n");
        stays("FROM scratch as a\nCOPY --from=nowhere.invalid/x a /\n");
        stays("");
    }
}
