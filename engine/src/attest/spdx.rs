//! A list of packages as an SPDX 2.3 document (<https://spdx.github.io/spdx-spec/v2.3/>), in its JSON form.

use rbuild_oci::Digest;
use serde_json::{Value, json};

use crate::error::Error;

const NOT_SAID: &str = "NOASSERTION";

/// A package that is installed.
#[derive(Debug, Clone, PartialEq, Eq, PartialOrd, Ord)]
pub(super) struct Package {
    pub(super) name: String,
    pub(super) version: String,
    /// A package URL.
    pub(super) url: String,
    pub(super) supplier: Option<String>,
    /// As the package says it.
    pub(super) license: Option<String>,
}

/// The document. Its name space, which must be its own, is made of its content, so equal lists are equal documents.
///
/// # Errors
/// None that is known of: the value cannot be written as JSON.
pub(super) fn document(packages: &[Package], created: &str) -> Result<Value, Error> {
    let listed: Vec<Value> = packages.iter().map(entry).collect();
    let relationships: Vec<Value> = listed
        .iter()
        .map(|package| {
            json!({
                "spdxElementId": "SPDXRef-DOCUMENT",
                "relationshipType": "DESCRIBES",
                "relatedSpdxElement": package["SPDXID"],
            })
        })
        .collect();
    let content = Digest::sha256_of(&serde_json::to_vec(&listed).map_err(Error::internal)?);
    Ok(json!({
        "spdxVersion": "SPDX-2.3",
        "dataLicense": "CC0-1.0",
        "SPDXID": "SPDXRef-DOCUMENT",
        "name": "sbom",
        "documentNamespace": format!("https://spdx.org/spdxdocs/rbuild-{}", content.hex()),
        "creationInfo": {
            "created": created,
            "creators": [concat!("Tool: rbuild-", env!("CARGO_PKG_VERSION"))],
        },
        "packages": listed,
        "relationships": relationships,
    }))
}

fn entry(package: &Package) -> Value {
    let id = Digest::sha256_of(package.url.as_bytes());
    let supplier = package.supplier.as_ref().map_or(NOT_SAID.to_owned(), |name| format!("Organization: {name}"));
    json!({
        "SPDXID": format!("SPDXRef-Package-{}", &id.hex()[..16]),
        "name": package.name,
        "versionInfo": package.version,
        "supplier": supplier,
        "downloadLocation": NOT_SAID,
        "filesAnalyzed": false,
        "licenseConcluded": NOT_SAID,
        // Distributions have names of their own for licences, which are no SPDX expressions.
        "licenseDeclared": package.license.as_deref().filter(|text| is_expression(text)).unwrap_or(NOT_SAID),
        "copyrightText": NOT_SAID,
        "externalRefs": [{
            "referenceCategory": "PACKAGE-MANAGER",
            "referenceType": "purl",
            "referenceLocator": package.url,
        }],
    })
}

/// Whether a text has the form of a licence expression: identifiers between operators.
fn is_expression(text: &str) -> bool {
    let words: Vec<&str> = text.split_whitespace().collect();
    let identifier =
        |word: &str| !word.is_empty() && word.bytes().all(|b| b.is_ascii_alphanumeric() || b"-.+()".contains(&b));
    words.len() % 2 == 1
        && words.iter().enumerate().all(|(n, word)| match n % 2 {
            0 => identifier(word),
            _ => matches!(*word, "AND" | "OR" | "WITH"),
        })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn licences_that_are_expressions() {
        for (text, want) in
            [("MIT", true), ("GPL-2.0-only AND MIT", true), ("custom license", false), ("", false), ("MIT AND", false)]
        {
            assert_eq!(is_expression(text), want, "{text}");
        }
    }
}
