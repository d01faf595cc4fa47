//! `rbuild images`, `rbuild image ls`.

use std::collections::BTreeMap;
use std::process::ExitCode;
use std::time::SystemTime;

use rbuild_engine::images::{Image, Images};
use rbuild_engine::oci::Reference;

use super::DONE;
use super::image_prune::image_filter;
use crate::app::App;
use crate::error::CliError;
use crate::format::{self, Column, Row, column};
use crate::units;

/// List images
#[derive(Debug, clap::Args)]
pub struct Args {
    /// Only images of this name
    #[arg(value_name = "REPOSITORY[:TAG]")]
    name: Option<String>,
    /// Show all images (there are no hidden ones: layers between two steps are no images here)
    #[arg(short, long)]
    all: bool,
    /// Show the digests that registries know images by
    #[arg(long)]
    digests: bool,
    /// Show what fits: dangling=BOOL, label=KEY[=VALUE], since=IMAGE, before=IMAGE, until=TIME,
    /// reference=PATTERN
    #[arg(short, long, value_name = "FILTER")]
    filter: Vec<String>,
    /// Format with a Go template, 'table TEMPLATE' or 'json'
    #[arg(long, value_name = "TEMPLATE")]
    format: Option<String>,
    /// Show ids in full
    #[arg(long)]
    no_trunc: bool,
    /// Show ids only
    #[arg(short, long)]
    quiet: bool,
    /// Show the platforms of each image
    #[arg(long, conflicts_with_all = ["quiet", "digests", "no_trunc", "format"])]
    tree: bool,
}

const COLUMNS: [Column; 11] = [
    column("Containers", "CONTAINERS"),
    column("CreatedAt", "CREATED AT"),
    column("CreatedSince", "CREATED"),
    column("Digest", "DIGEST"),
    column("ID", "IMAGE ID"),
    column("Repository", "REPOSITORY"),
    column("SharedSize", "SHARED SIZE"),
    column("Size", "SIZE"),
    column("Tag", "TAG"),
    column("UniqueSize", "UNIQUE SIZE"),
    column("VirtualSize", "SIZE"),
];
const DEFAULT: [&str; 5] = ["Repository", "Tag", "ID", "CreatedSince", "Size"];
const WITH_DIGESTS: [&str; 6] = ["Repository", "Tag", "Digest", "ID", "CreatedSince", "Size"];
const NONE: &str = "<none>";

pub async fn run(args: Args, app: &App) -> Result<ExitCode, CliError> {
    let mut filter = image_filter(&args.filter)?;
    filter.references.extend(args.name.clone());
    let images = app.images()?;
    let digests = args.digests || args.format.as_deref().is_some_and(|f| f.contains(".Digest") || f == "json");
    if args.tree {
        let listed = images.list(&filter)?;
        return app.print(&tree(&images, &listed)?).map(|()| ExitCode::SUCCESS);
    }
    let mut rows = Vec::new();
    for image in images.list(&filter)? {
        let size = if args.quiet { 0 } else { images.size(&image)? };
        for (repository, tag, digest) in lines(&image, digests) {
            rows.push(row(&image, size, repository, tag, digest, args.no_trunc));
        }
    }
    if args.quiet {
        let ids: String = rows.iter().filter_map(|r| r.cells.get("ID")).map(|id| format!("{id}\n")).collect();
        app.print(&ids)?;
        return DONE;
    }
    let default: &[&str] = if args.digests { &WITH_DIGESTS } else { &DEFAULT };
    app.print(&format::listing(args.format.as_deref(), &COLUMNS, default, &rows)?)?;
    DONE
}

/// Each image with its names, and below it its platforms.
fn tree(images: &Images, listed: &[Image]) -> Result<String, CliError> {
    let heading = ["IMAGE", "ID", "DISK USAGE", "CONTENT SIZE", "EXTRA"];
    let mut lines = vec![heading.map(str::to_owned).to_vec()];
    for image in listed {
        let variants = images.variants(image)?;
        let sum = |of: fn(&(u64, u64)) -> u64| variants.iter().filter_map(|v| v.sizes.as_ref()).map(of).sum::<u64>();
        let (disk, content) = (units::short_size(sum(|s| s.0)), units::short_size(sum(|s| s.1)));
        let used = if images.is_used(image)? { "U" } else { "" };
        let mut names: Vec<String> = image.tags.iter().map(Reference::familiar).collect();
        if names.is_empty() {
            names.push("<untagged>".to_owned());
        }
        for name in names {
            lines.push(vec![name, image.id.0.short().to_owned(), disk.clone(), content.clone(), used.to_owned()]);
            for (at, variant) in variants.iter().enumerate() {
                let branch = if at + 1 == variants.len() { "└─" } else { "├─" };
                let (disk, content) = match variant.sizes {
                    Some((disk, content)) => (units::short_size(disk), units::short_size(content)),
                    None => ("-".to_owned(), "-".to_owned()),
                };
                let platform = format!("{branch} {}", variant.platform);
                lines.push(vec![platform, variant.digest.short().to_owned(), disk, content, String::new()]);
            }
        }
    }
    Ok(format::tabulate(&lines).lines().map(|line| format!("{}\n", line.trim_end())).collect())
}

/// Repository, tag and digest of each line that an image takes: a line for each tag, and for each repository where only
/// a digest is known.
pub(super) fn lines(image: &Image, digests: bool) -> Vec<(String, String, String)> {
    let mut repositories: BTreeMap<String, (Vec<&Reference>, Vec<&Reference>)> = BTreeMap::new();
    for name in &image.tags {
        repositories.entry(name.familiar_name()).or_default().0.push(name);
    }
    for name in &image.digests {
        repositories.entry(name.familiar_name()).or_default().1.push(name);
    }
    let digest_of = |name: &Reference| name.digest().map_or(NONE.to_owned(), ToString::to_string);
    let mut lines = Vec::new();
    for (repository, (tags, known)) in repositories {
        let mut known: Vec<String> = known.into_iter().map(digest_of).collect();
        if known.is_empty() || (!digests && !tags.is_empty()) {
            known = vec![NONE.to_owned()];
        } else if !digests {
            known.truncate(1);
        }
        let mut tags: Vec<String> = tags.into_iter().filter_map(|t| t.tag().map(str::to_owned)).collect();
        if tags.is_empty() {
            tags.push(NONE.to_owned());
        }
        for tag in tags {
            lines.extend(known.iter().map(|digest| (repository.clone(), tag.clone(), digest.clone())));
        }
    }
    if lines.is_empty() {
        lines.push((NONE.to_owned(), NONE.to_owned(), NONE.to_owned()));
    }
    lines
}

/// The cells of a line.
pub(super) fn row(image: &Image, size: u64, repository: String, tag: String, digest: String, no_trunc: bool) -> Row {
    let id = if no_trunc { image.id.0.to_string() } else { image.id.0.short().to_owned() };
    let created = image.created.unwrap_or(SystemTime::UNIX_EPOCH);
    Row { labels: image.config.config.labels.clone(), ..Row::default() }
        .set("Containers", "N/A")
        .set("CreatedAt", units::timestamp(created))
        .set("CreatedSince", units::ago(created, SystemTime::now()))
        .set("Digest", digest)
        .set("ID", id)
        .set("Repository", repository)
        .set("SharedSize", "N/A")
        .set("Size", units::short_size(size))
        .set("Tag", tag)
        .set("UniqueSize", "N/A")
        .set("VirtualSize", units::short_size(size))
}
