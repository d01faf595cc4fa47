//! From a registry into the store.

use rbuild_oci::{Descriptor, Index, Platform};

/// The entry of an index that suits `platform` best: attestations are no images, an exact variant goes before an older
/// one, an entry that names no platform is the last resort.
pub fn choose<'a>(index: &'a Index, platform: &Platform) -> Option<&'a Descriptor> {
    let rank = |d: &Descriptor| match &d.platform {
        Some(have) => have.rank_for(platform),
        None => Some(u32::MAX),
    };
    index
        .manifests
        .iter()
        .filter(|d| !d.is_attestation() && (d.media_type.is_manifest() || d.media_type.is_index()))
        .filter_map(|d| rank(d).map(|r| (r, d)))
        .min_by_key(|(r, _)| *r)
        .map(|(_, d)| d)
}
