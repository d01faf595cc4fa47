//! A registry over a store: what is in the store can be pulled, what is pushed is in the store.
//!
//! What: the distribution specification 1.1 whole (pull, push, content discovery, content management) with basic
//! authentication and TLS. Why over the store and not beside it: an image that was pushed is an ordinary image, to be
//! run, listed and removed, and one that was built here can be pulled without being pushed anywhere first. Which name of
//! the store a repository means is one rule ([`Names`]).
//!
//! * `listen` takes connections, `entry` decides who may ask what, [`Passwords`] who somebody is;
//! * `manifests`, `blobs`, `uploads` and `lists` answer;
//! * `contents` knows what documents consist of, `shelf` keeps what the store's images cannot say: manifests that are no
//!   images, or not yet parts of one.
//!
//! A blob belongs to a repository when an image or artifact of the repository has it, or when it was just pushed there:
//! the rest of the store cannot be read through the registry.

mod blobs;
mod contents;
mod entry;
mod listen;
mod lists;
mod manifests;
mod names;
mod passwords;
mod shelf;
mod uploads;

use std::sync::Arc;

use rbuild_store::Store;
use tokio::net::TcpListener;

pub use listen::Tls;
pub use names::Names;
pub use passwords::Passwords;

use crate::Error;
use shelf::Shelf;

/// What is served, and to whom.
#[derive(Debug, Default)]
pub struct ServeOptions {
    /// Which names of the store the repositories have.
    pub names: Names,
    /// Who may come in; everybody, when nothing is said.
    pub passwords: Option<Passwords>,
    /// Nothing can be pushed or deleted.
    pub read_only: bool,
    /// Speak TLS.
    pub tls: Option<Tls>,
}

/// Serves `store` on `listener` until `stop` ends; requests that are under way then get some time to finish.
///
/// # Errors
/// The store cannot be used.
pub async fn serve(
    listener: TcpListener,
    store: Store,
    options: ServeOptions,
    stop: impl Future<Output = ()>,
) -> Result<(), Error> {
    let ServeOptions { names, passwords, read_only, tls } = options;
    let shelf = Shelf::new(store)?;
    let registry = Arc::new(entry::Registry::new(shelf, names, passwords, read_only));
    listen::run(listener, tls, entry::router(registry), stop).await;
    Ok(())
}
