//! Bounds on what comes from outside, in one place with a reason each. An input that is refused names its limit.

/// A Dockerfile, in bytes. The largest real ones are generated and stay below 1 MiB.
pub const DOCKERFILE: u64 = 16 << 20;
/// One expanded word of a Dockerfile, in bytes: forty doublings of a variable must end in an error.
pub const EXPANSION: usize = 1 << 20;
/// Nesting of JSON documents.
pub const JSON_DEPTH: usize = 64;
/// An image manifest, in bytes (the distribution specification asks registries for at least 4 MiB).
pub const MANIFEST: u64 = 4 << 20;
/// An image config, in bytes; thousands of history entries fit.
pub const CONFIG: u64 = 8 << 20;
/// An image index, in bytes.
pub const INDEX: u64 = 4 << 20;
/// Indexes within indexes.
pub const INDEX_DEPTH: usize = 4;
/// A metadata record of an archive (PAX or GNU long name), in bytes.
pub const ARCHIVE_RECORD: u64 = 1 << 20;
/// One path component, in bytes (the kernel's `NAME_MAX`).
pub const COMPONENT: usize = 255;
/// A path, in bytes (the kernel's `PATH_MAX`).
pub const PATH: usize = 4096;
/// Layers of one image: the kernel stacks 500 directories in an overlay, and one overlay on another.
pub const LAYERS: usize = 980;
/// All headers of an HTTP answer, in bytes.
pub const HTTP_HEADERS: usize = 64 << 10;
/// Redirects followed for one request.
pub const REDIRECTS: usize = 10;
/// The window of a zstd stream, as a power of two: 128 MiB.
pub const ZSTD_WINDOW_LOG: u32 = 27;
/// The dictionary of an xz stream, in bytes.
pub const XZ_MEMORY: u64 = 256 << 20;
