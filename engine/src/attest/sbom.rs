//! The packages in a result, from the databases that package managers keep there.
//!
//! BuildKit runs an image with a scanner. Here the databases of dpkg and apk, which are text, are read where they are:
//! no image, no network, the same list every time. Why not rpm: its database is binary, in one of three formats; a
//! result that has one gets a warning instead of a list that looks complete.

use std::io::Read;
use std::path::Path;

use rbuild_store::root::{Root, Walk};
use serde_json::Value;

use super::spdx::{Package, document};
use crate::error::Error;

/// No database of a distribution is anywhere near as long; in bytes.
const LONGEST: u64 = 256 << 20;
const RPM: [&str; 3] = ["var/lib/rpm/rpmdb.sqlite", "var/lib/rpm/Packages", "usr/lib/sysimage/rpm/rpmdb.sqlite"];

/// What was found.
pub(crate) struct Scanned {
    pub(crate) document: Value,
    /// What the list lacks, for people.
    pub(crate) warning: Option<&'static str>,
}

/// Lists the packages of the tree at `root`. `created` (RFC 3339) dates the list.
///
/// # Errors
/// A database cannot be read or is too long.
pub(crate) fn scan(root: &Root, created: &str) -> Result<Scanned, Error> {
    let system = read(root, "etc/os-release")?.or(read(root, "usr/lib/os-release")?).unwrap_or_default();
    let system = System::of(&system);
    let mut packages = Vec::new();
    let mut dpkg = vec!["var/lib/dpkg/status".to_owned()];
    // One file for each package: images without dpkg itself.
    if let Ok(dir) = root.open_dir(Path::new("var/lib/dpkg/status.d"), Walk::InRoot) {
        for entry in dir.entries().map_err(Error::internal)? {
            let name = entry.map_err(Error::internal)?.name.to_string_lossy().into_owned();
            if !name.ends_with(".md5sums") {
                dpkg.push(format!("var/lib/dpkg/status.d/{name}"));
            }
        }
    }
    for path in dpkg {
        packages.extend(read(root, &path)?.iter().flat_map(|text| debian(text, &system)));
    }
    packages.extend(read(root, "lib/apk/db/installed")?.iter().flat_map(|text| alpine(text, &system)));
    packages.sort();
    packages.dedup();
    let has_rpm = RPM.iter().any(|path| root.open_file(Path::new(path), Walk::InRoot).is_ok());
    let warning = has_rpm.then_some("the result has packages of rpm, which the SBOM does not list");
    Ok(Scanned { document: document(&packages, created)?, warning })
}

fn read(root: &Root, path: &str) -> Result<Option<String>, Error> {
    let Ok(file) = root.open_file(Path::new(path), Walk::InRoot) else { return Ok(None) };
    let mut bytes = Vec::new();
    let read = file.take(LONGEST + 1).read_to_end(&mut bytes);
    read.map_err(|error| Error::invalid(format!("cannot read /{path} of the result: {error}")))?;
    if bytes.len() as u64 > LONGEST {
        return Err(Error::invalid(format!("/{path} of the result is over the limit of {LONGEST} bytes")));
    }
    Ok(Some(String::from_utf8_lossy(&bytes).into_owned()))
}

/// The distribution, as `os-release` has it.
#[derive(Default)]
struct System {
    id: String,
    version: String,
}

impl System {
    fn of(text: &str) -> System {
        let value = |name: &str| {
            let line = text.lines().find_map(|line| line.strip_prefix(name)?.strip_prefix('='));
            line.unwrap_or_default().trim().trim_matches(['"', '\'']).to_owned()
        };
        System { id: value("ID"), version: value("VERSION_ID") }
    }

    /// A package URL (purl specification) of a package of this system.
    fn url(&self, kind: &str, usual: &str, name: &str, version: &str, architecture: &str) -> String {
        let id = if self.id.is_empty() { usual } else { &self.id };
        let mut url = format!("pkg:{kind}/{id}/{}@{}", escaped(name), escaped(version));
        url.push_str(&format!("?arch={}", escaped(architecture)));
        if !self.version.is_empty() {
            url.push_str(&format!("&distro={id}-{}", escaped(&self.version)));
        }
        url
    }
}

/// What a package URL may not hold as it is.
fn escaped(text: &str) -> String {
    let keep = |b: u8| b.is_ascii_alphanumeric() || b"-._~:".contains(&b);
    text.bytes().map(|b| if keep(b) { char::from(b).to_string() } else { format!("%{b:02X}") }).collect()
}

/// Paragraphs of `Name: value`; a package that was removed keeps its paragraph.
fn debian(text: &str, system: &System) -> Vec<Package> {
    let of = |paragraph: &str| {
        let value =
            |name: &str| paragraph.lines().find_map(|line| line.strip_prefix(name)?.strip_prefix(": ")).map(str::trim);
        if value("Status").is_some_and(|status| !status.ends_with(" installed")) {
            return None;
        }
        let (name, version) = (value("Package")?, value("Version")?);
        let architecture = value("Architecture").unwrap_or("all");
        Some(Package {
            name: name.to_owned(),
            version: version.to_owned(),
            url: system.url("deb", "debian", name, version, architecture),
            supplier: value("Maintainer").map(str::to_owned),
            license: None,
        })
    };
    text.split("\n\n").filter_map(of).collect()
}

/// Paragraphs of one letter, a colon, and a value.
fn alpine(text: &str, system: &System) -> Vec<Package> {
    let of = |paragraph: &str| {
        let value = |letter: &str| paragraph.lines().find_map(|line| line.strip_prefix(letter)?.strip_prefix(':'));
        let (name, version) = (value("P")?, value("V")?);
        Some(Package {
            name: name.to_owned(),
            version: version.to_owned(),
            url: system.url("apk", "alpine", name, version, value("A").unwrap_or("noarch")),
            supplier: value("m").map(str::to_owned),
            license: value("L").map(str::to_owned),
        })
    };
    text.split("\n\n").filter_map(of).collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    const STATUS: &str = "Package: bash\nStatus: install ok installed\nMaintainer: M <m@x>\nArchitecture: amd64\n\
        Version: 5.2+dfsg-1\n\nPackage: gone\nStatus: deinstall ok config-files\nArchitecture: amd64\nVersion: 1\n";
    const INSTALLED: &str =
        "C:Q1x=\nP:musl\nV:1.2.5-r0\nA:x86_64\nL:MIT\nm:A <a@x>\nF:lib\nR:x\n\nP:zlib\nV:1\nA:x86_64\n";

    #[test]
    fn databases_are_read_where_they_are() {
        let dir = tempfile::tempdir().unwrap();
        let write = |name: &str, text: &str| {
            let path = dir.path().join(name);
            std::fs::create_dir_all(path.parent().unwrap()).unwrap();
            std::fs::write(path, text).unwrap();
        };
        write("usr/lib/os-release", "NAME=\"Debian\"\nID=debian\nVERSION_ID=\"12\"\n");
        // A link as distributions have it, followed within the tree.
        std::fs::create_dir_all(dir.path().join("etc")).unwrap();
        std::os::unix::fs::symlink("/usr/lib/os-release", dir.path().join("etc/os-release")).unwrap();
        write("var/lib/dpkg/status", STATUS);
        write("var/lib/dpkg/status.d/tzdata", "Package: tzdata\nVersion: 2024a\nArchitecture: all\n");
        write("var/lib/dpkg/status.d/tzdata.md5sums", "junk");
        write("lib/apk/db/installed", INSTALLED);
        let root = Root::open(dir.path()).unwrap();
        let scanned = scan(&root, "2024-01-01T00:00:00Z").unwrap();
        let packages = scanned.document["packages"].as_array().unwrap();
        let urls: Vec<&str> =
            packages.iter().filter_map(|p| p["externalRefs"][0]["referenceLocator"].as_str()).collect();
        assert_eq!(
            urls,
            [
                "pkg:deb/debian/bash@5.2%2Bdfsg-1?arch=amd64&distro=debian-12",
                "pkg:apk/debian/musl@1.2.5-r0?arch=x86_64&distro=debian-12",
                "pkg:deb/debian/tzdata@2024a?arch=all&distro=debian-12",
                "pkg:apk/debian/zlib@1?arch=x86_64&distro=debian-12",
            ]
        );
        assert_eq!(packages[1]["licenseDeclared"], "MIT");
        assert_eq!(scanned.warning, None);
        assert_eq!(scanned.document, scan(&root, "2024-01-01T00:00:00Z").unwrap().document);
        write("var/lib/rpm/rpmdb.sqlite", "");
        assert!(scan(&root, "2024-01-01T00:00:00Z").unwrap().warning.is_some());
    }

    #[test]
    fn an_empty_tree_has_an_empty_list() {
        let dir = tempfile::tempdir().unwrap();
        let scanned = scan(&Root::open(dir.path()).unwrap(), "2024-01-01T00:00:00Z").unwrap();
        assert_eq!(scanned.document["packages"].as_array().unwrap().len(), 0);
        assert_eq!(scanned.document["spdxVersion"], "SPDX-2.3");
    }
}
