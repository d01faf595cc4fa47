//! A registry as a source of the store's copy: documents and blobs of one repository, asked for on a thread that may block.

use std::io::{self, Read};

use bytes::Bytes;
use rbuild_oci::{Descriptor, Reference};
use rbuild_store::StoreError;
use rbuild_store::transfer::ImageSource;
use tokio::runtime::Handle;

use crate::{BlobStream, Client, Error};

/// The images of a repository. What it gives is proved against the digests that were asked for.
pub struct RegistrySource {
    client: Client,
    repository: Reference,
    runtime: Handle,
}

impl RegistrySource {
    /// The repository of `reference`. Called within the runtime; the source is for threads that it may block.
    pub fn new(client: &Client, reference: &Reference) -> RegistrySource {
        RegistrySource { client: client.clone(), repository: reference.without_tag(), runtime: Handle::current() }
    }
}

impl ImageSource for RegistrySource {
    fn document(&self, descriptor: &Descriptor) -> Result<Option<Vec<u8>>, StoreError> {
        let by_digest = self.repository.with_digest(descriptor.digest.clone());
        match self.runtime.block_on(self.client.fetch_manifest(&by_digest)) {
            Ok(fetched) => Ok(Some(fetched.bytes.to_vec())),
            Err(Error::ManifestNotFound { .. }) => Ok(None),
            Err(error) => Err(failed(descriptor, error)),
        }
    }

    fn open(&self, blob: &Descriptor) -> Result<Box<dyn Read + Send>, StoreError> {
        let stream = self.runtime.block_on(self.client.fetch_blob(&self.repository, blob));
        let stream = stream.map_err(|error| failed(blob, error))?;
        Ok(Box::new(Incoming { stream, piece: Bytes::new(), runtime: self.runtime.clone() }))
    }
}

fn failed(content: &Descriptor, error: Error) -> StoreError {
    match error {
        Error::Store(error) => error,
        error => StoreError::io(format!("fetching {}", content.digest), io::Error::other(error)),
    }
}

/// A blob on its way; its end comes only when its digest is right.
struct Incoming {
    stream: BlobStream,
    piece: Bytes,
    runtime: Handle,
}

impl Read for Incoming {
    fn read(&mut self, out: &mut [u8]) -> io::Result<usize> {
        while self.piece.is_empty() && !out.is_empty() {
            match self.runtime.block_on(self.stream.chunk()).map_err(io::Error::other)? {
                Some(piece) => self.piece = piece,
                None => return Ok(0),
            }
        }
        let len = self.piece.len().min(out.len());
        out[..len].copy_from_slice(&self.piece.split_to(len));
        Ok(len)
    }
}
