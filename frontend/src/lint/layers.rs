//! What a layer carries for nothing. These rules are not the reference's; they are about what a step wrote, which is
//! known only once it ran, so the caller says what was found and gets the words.

use super::Rule;
use crate::Diagnostic;

pub(super) const DELETED_FILES_REMAIN: Rule = Rule {
    name: "DeletedFilesRemain",
    description: "Files should be deleted in the step that made them, for layers below keep them",
    url: "",
    experimental: false,
};

pub(super) const FILES_STORED_AGAIN: Rule = Rule {
    name: "FilesStoredAgain",
    description: "Owner and mode should be set where files are made, for a change stores them a second time",
    url: "",
    experimental: false,
};

pub(super) const PACKAGE_CACHE_IN_LAYER: Rule = Rule {
    name: "PackageCacheInLayer",
    description: "Caches of package managers should not be in an image",
    url: "",
    experimental: false,
};

/// Files that this build made and a later step deleted.
pub fn deleted_files_remain(path: &str, files: u64, bytes: u64) -> Diagnostic {
    let (size, files) = (size(bytes), count(files));
    let message = format!("Deleting /{path} makes the image no smaller: an earlier layer keeps {size} in {files}");
    DELETED_FILES_REMAIN.warn(message).hint("delete it in the RUN that makes it, or make it in another stage")
}

/// Files that have the content they had, and another owner, mode or time.
pub fn files_stored_again(path: &str, files: u64, bytes: u64) -> Diagnostic {
    let more = if files > 1 { format!(" and {} more", files - 1) } else { String::new() };
    let message = format!(
        "{} of unchanged files are stored again for their new owner, mode or time (/{path}{more})",
        size(bytes)
    );
    FILES_STORED_AGAIN.warn(message).hint("use COPY --chown=… --chmod=…, or chown and chmod in the RUN that makes them")
}

/// `owner` is the package manager, `remedy` what leaves its cache out.
pub fn package_cache_in_layer(owner: &str, path: &str, bytes: u64, remedy: &str) -> Diagnostic {
    let message = format!("The cache of {owner} takes {} of the layer (/{path})", size(bytes));
    PACKAGE_CACHE_IN_LAYER.warn(message).hint(remedy)
}

fn count(files: u64) -> String {
    if files == 1 { "1 file".to_owned() } else { format!("{files} files") }
}

/// In decimal units, as docker shows sizes.
fn size(bytes: u64) -> String {
    const UNITS: [&str; 5] = ["B", "kB", "MB", "GB", "TB"];
    let mut scaled = bytes as f64;
    let mut unit = 0;
    while scaled >= 999.5 && unit + 1 < UNITS.len() {
        scaled /= 1000.0;
        unit += 1;
    }
    let digits = if unit == 0 || scaled >= 100.0 { 0 } else { 1 };
    format!("{scaled:.digits$}{}", UNITS[unit])
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn findings_have_sizes() {
        for (bytes, want) in [(7, "7B"), (999, "999B"), (1000, "1.0kB"), (999_999, "1.0MB"), (123_456_789, "123MB")] {
            assert_eq!(size(bytes), want);
        }
        let one = deleted_files_remain("big", 1, 2_500_000);
        assert_eq!(one.message, "Deleting /big makes the image no smaller: an earlier layer keeps 2.5MB in 1 file");
        assert_eq!((one.rule, one.url), (Some("DeletedFilesRemain"), None));
        let two = files_stored_again("app/a", 2, 1_000_000);
        let want = "1.0MB of unchanged files are stored again for their new owner, mode or time (/app/a and 1 more)";
        assert_eq!(two.message, want);
        let apt = package_cache_in_layer("apt", "var/lib/apt/lists", 20_000_000, "remove it");
        assert_eq!(apt.message, "The cache of apt takes 20.0MB of the layer (/var/lib/apt/lists)");
    }
}
