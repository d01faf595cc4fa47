//! Operating system and processor an image is for.

use std::fmt;

use serde::{Deserialize, Serialize};

use crate::OciError;

/// A platform (image specification, "platform" of a descriptor; containerd's normalisation rules).
#[derive(Debug, Clone, PartialEq, Eq, Hash, PartialOrd, Ord, Serialize, Deserialize)]
pub struct Platform {
    #[serde(default)]
    pub architecture: String,
    #[serde(default)]
    pub os: String,
    #[serde(default, rename = "os.version", skip_serializing_if = "Option::is_none")]
    pub os_version: Option<String>,
    #[serde(default, rename = "os.features", skip_serializing_if = "Vec::is_empty")]
    pub os_features: Vec<String>,
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub variant: Option<String>,
}

impl Platform {
    /// `os` on `architecture` without a variant, normalised.
    pub fn new(os: &str, architecture: &str) -> Platform {
        Platform {
            architecture: architecture.into(),
            os: os.into(),
            os_version: None,
            os_features: Vec::new(),
            variant: None,
        }
        .normalized()
    }

    /// The platform of the machine this program was compiled for.
    pub fn host() -> Platform {
        let architecture = match std::env::consts::ARCH {
            "x86_64" => "amd64",
            "x86" => "386",
            "aarch64" => "arm64",
            "powerpc64" => "ppc64le",
            other => other,
        };
        Platform::new("linux", architecture)
    }

    /// Reads `os`, `arch`, `os/arch` or `os/arch/variant`, as docker's `--platform` takes it.
    ///
    /// # Errors
    /// Empty or odd components, more than three of them, and words that are neither a known system nor a known processor.
    pub fn parse(text: &str) -> Result<Platform, OciError> {
        let bad = |why| OciError::Platform(text.chars().take(80).collect(), why);
        if text == "local" {
            return Ok(Platform::host());
        }
        let parts: Vec<String> = text.split('/').map(str::to_ascii_lowercase).collect();
        let word = |w: &String| !w.is_empty() && w.bytes().all(|b| b.is_ascii_alphanumeric() || b"_-.".contains(&b));
        if parts.len() > 3 || !parts.iter().all(word) {
            return Err(bad("expected os/architecture or os/architecture/variant"));
        }
        let known_os = |w: &str| {
            matches!(
                w,
                "linux"
                    | "windows"
                    | "darwin"
                    | "macos"
                    | "freebsd"
                    | "netbsd"
                    | "openbsd"
                    | "solaris"
                    | "illumos"
                    | "aix"
                    | "android"
                    | "plan9"
                    | "wasip1"
                    | "js"
            )
        };
        match parts.as_slice() {
            [one] if known_os(one) => Ok(Platform::new(one, &Platform::host().architecture)),
            [one] => {
                let platform = Platform::new("linux", one);
                known_architecture(&platform.architecture)
                    .then_some(platform)
                    .ok_or_else(|| bad("unknown operating system or architecture"))
            }
            [os, architecture, variant @ ..] => Ok(Platform {
                architecture: architecture.clone(),
                os: os.clone(),
                os_version: None,
                os_features: Vec::new(),
                variant: variant.first().cloned(),
            }
            .normalized()),
            [] => Err(bad("it is empty")),
        }
    }

    /// The canonical spelling: `x86_64` is `amd64`, `arm64/v8` is `arm64`, `arm` is `arm/v7`, `macos` is `darwin`.
    pub fn normalized(mut self) -> Platform {
        self.os = self.os.to_ascii_lowercase();
        if self.os == "macos" {
            self.os = "darwin".into();
        }
        let architecture = self.architecture.to_ascii_lowercase();
        let variant = self.variant.take().map(|v| v.to_ascii_lowercase()).filter(|v| !v.is_empty());
        let (architecture, variant) = match (architecture.as_str(), variant.as_deref()) {
            ("i386" | "i686" | "x86", _) => ("386", None),
            ("x86_64" | "x86-64" | "amd64", None | Some("v1")) => ("amd64", None),
            ("x86_64" | "x86-64" | "amd64", Some(v)) => ("amd64", Some(v)),
            ("aarch64" | "arm64", None | Some("8" | "v8" | "v8.0")) => ("arm64", None),
            ("aarch64" | "arm64", Some("9" | "v9.0")) => ("arm64", Some("v9")),
            ("aarch64" | "arm64", Some(v)) => ("arm64", Some(v)),
            ("armhf", _) => ("arm", Some("v7")),
            ("armel", _) => ("arm", Some("v6")),
            ("arm", None | Some("7")) => ("arm", Some("v7")),
            ("arm", Some("5")) => ("arm", Some("v5")),
            ("arm", Some("6")) => ("arm", Some("v6")),
            ("arm", Some("8")) => ("arm", Some("v8")),
            (other, v) => (other, v),
        };
        self.variant = variant.map(str::to_owned);
        self.architecture = architecture.to_owned();
        self
    }

    /// Whether an image for this platform runs where `want` is wanted (same system and processor, and a variant that is
    /// not newer).
    pub fn matches(&self, want: &Platform) -> bool {
        self.rank_for(want).is_some()
    }

    /// How well an image for this platform suits `want`: 0 is exact, larger is worse, `None` does not run.
    ///
    /// A processor runs code for its older variants: `arm/v7` takes `v6` and `v5`, `amd64/v3` takes `v2` and plain.
    pub fn rank_for(&self, want: &Platform) -> Option<u32> {
        let (have, want) = (self.clone().normalized(), want.clone().normalized());
        if have.os != want.os || have.architecture != want.architecture {
            return None;
        }
        let level = |p: &Platform| -> Option<u32> {
            let default = match p.architecture.as_str() {
                "arm64" => 8,
                _ => 1,
            };
            match &p.variant {
                None => Some(default),
                Some(v) => v.trim_start_matches('v').split('.').next()?.parse().ok(),
            }
        };
        if have.variant == want.variant {
            return Some(0);
        }
        match (level(&have), level(&want)) {
            (Some(have), Some(want)) if have <= want => Some(want - have),
            _ => None,
        }
    }
}

fn known_architecture(name: &str) -> bool {
    matches!(
        name,
        "386"
            | "amd64"
            | "arm"
            | "arm64"
            | "loong64"
            | "mips"
            | "mipsle"
            | "mips64"
            | "mips64le"
            | "ppc64"
            | "ppc64le"
            | "riscv64"
            | "s390x"
            | "wasm"
    )
}

impl fmt::Display for Platform {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}/{}", self.os, self.architecture)?;
        match &self.variant {
            Some(variant) => write!(f, "/{variant}"),
            None => Ok(()),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn platforms_are_normalised() {
        for (text, want) in [
            ("linux/x86_64", "linux/amd64"),
            ("linux/arm64/v8", "linux/arm64"),
            ("aarch64", "linux/arm64"),
            ("linux/arm", "linux/arm/v7"),
            ("LINUX/AMD64", "linux/amd64"),
            ("macos/arm64", "darwin/arm64"),
            ("linux/arm/v6", "linux/arm/v6"),
        ] {
            assert_eq!(Platform::parse(text).unwrap().to_string(), want);
        }
        for bad in ["", "/", "linux/", "linux/amd64/v2/x", "foo", "a b/c"] {
            assert!(Platform::parse(bad).is_err(), "{bad:?} was accepted");
        }
    }

    #[test]
    fn older_variants_run_on_newer_processors() {
        let p = |t| Platform::parse(t).unwrap();
        assert_eq!(p("linux/arm/v6").rank_for(&p("linux/arm/v7")), Some(1));
        assert_eq!(p("linux/arm/v7").rank_for(&p("linux/arm/v6")), None);
        assert!(p("linux/amd64").matches(&p("linux/amd64/v3")));
        assert!(!p("linux/arm64").matches(&p("linux/amd64")));
    }
}
