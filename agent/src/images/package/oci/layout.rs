//! The layout's files: which manifest is meant, and blobs by their digests.

use std::io::Read as _;

use oci_spec::OciSpecError;
use oci_spec::image::{
    Arch, Descriptor, DigestAlgorithm, ImageConfiguration, ImageIndex, ImageManifest, MediaType,
    OciLayout, Os,
};
use sha2::{Digest as _, Sha256};

use super::error::OciError;
use crate::images::package::refused::{UnpackError, io_error};
use crate::images::package::spool::{Content, Spool};
use crate::images::package::tree::Tree;

/// Longest JSON file, in bytes: what registries take.
const MAX_JSON: u64 = 4 * 1024 * 1024;
/// How many indexes may stand above a manifest.
const MAX_INDEXES: usize = 3;
const VERSION: &str = "1.0.0";

/// An unpacked layout.
pub struct Layout<'a>(&'a Tree);

/// A blob that has the digest and length of its descriptor.
pub struct Blob {
    /// Where it is.
    pub content: Content,
    /// Its digest, for errors.
    pub digest: String,
    /// What it is.
    pub media_type: MediaType,
}

impl<'a> Layout<'a> {
    /// Of a tree that [`super::is_layout`].
    pub const fn new(tree: &'a Tree) -> Self {
        Self(tree)
    }

    /// The manifest of the only image for this machine.
    pub fn manifest(&self, spool: &Spool) -> Result<ImageManifest, UnpackError> {
        let layout = self.file(spool, "oci-layout", |json| OciLayout::from_reader(json))?;
        if layout.image_layout_version() != VERSION {
            let version = layout.image_layout_version().clone();
            return Err(OciError::Version(version).into());
        }
        let index = self.file(spool, "index.json", |json| ImageIndex::from_reader(json))?;
        let mut found = Vec::new();
        self.manifests(spool, &index, 1, &mut found)?;
        found.dedup_by(|one, other| one.digest() == other.digest());
        match found.as_slice() {
            [] => Err(OciError::NoImage.into()),
            [one] => self.json(spool, one, |json| ImageManifest::from_reader(json)),
            several => Err(OciError::SeveralImages(several.len()).into()),
        }
    }

    /// The image's configuration.
    pub fn config(
        &self,
        spool: &Spool,
        manifest: &ImageManifest,
    ) -> Result<ImageConfiguration, UnpackError> {
        let config = self.json(spool, manifest.config(), |json| {
            ImageConfiguration::from_reader(json)
        })?;
        if *config.os() != Os::Linux || *config.architecture() != Arch::Amd64 {
            return Err(OciError::NoImage.into());
        }
        Ok(config)
    }

    fn manifests(
        &self,
        spool: &Spool,
        index: &ImageIndex,
        depth: usize,
        found: &mut Vec<Descriptor>,
    ) -> Result<(), UnpackError> {
        for descriptor in index.manifests() {
            let other = descriptor.platform().as_ref().is_some_and(|platform| {
                *platform.os() != Os::Linux || *platform.architecture() != Arch::Amd64
            });
            if other {
                continue;
            }
            match descriptor.media_type() {
                MediaType::ImageIndex if depth < MAX_INDEXES => {
                    let inner =
                        self.json(spool, descriptor, |json| ImageIndex::from_reader(json))?;
                    self.manifests(spool, &inner, depth + 1, found)?;
                }
                MediaType::ImageManifest => found.push(descriptor.clone()),
                MediaType::Other(kind)
                    if kind == "application/vnd.docker.distribution.manifest.v2+json" =>
                {
                    found.push(descriptor.clone());
                }
                _ => {}
            }
        }
        Ok(())
    }

    /// A blob whose length and hash were checked.
    pub fn checked_blob(
        &self,
        spool: &Spool,
        descriptor: &Descriptor,
    ) -> Result<Blob, UnpackError> {
        let digest = descriptor.digest();
        if *digest.algorithm() != DigestAlgorithm::Sha256 {
            return Err(OciError::Algorithm(digest.to_string()).into());
        }
        let path = [&b"blobs"[..], &b"sha256"[..], digest.digest().as_bytes()];
        let content = self
            .0
            .file_at(&path)
            .ok_or_else(|| OciError::NoBlob(digest.to_string()))?;
        let mut hash = Sha256::new();
        let mut file = spool.open(content)?;
        std::io::copy(&mut file, &mut hash).map_err(io_error("reading a blob"))?;
        let hash = format!("{:x}", hash.finalize());
        if content.len != descriptor.size() || hash != digest.digest() {
            return Err(OciError::WrongBlob(digest.to_string()).into());
        }
        Ok(Blob {
            content,
            digest: digest.to_string(),
            media_type: descriptor.media_type().clone(),
        })
    }

    fn json<T>(
        &self,
        spool: &Spool,
        descriptor: &Descriptor,
        parse: impl FnOnce(&[u8]) -> Result<T, OciSpecError>,
    ) -> Result<T, UnpackError> {
        let blob = self.checked_blob(spool, descriptor)?;
        parse_json(spool, blob.content, &blob.digest, parse)
    }

    fn file<T>(
        &self,
        spool: &Spool,
        name: &str,
        parse: impl FnOnce(&[u8]) -> Result<T, OciSpecError>,
    ) -> Result<T, UnpackError> {
        let content = self.0.file_at(&[name.as_bytes()]);
        let content = content.ok_or_else(|| OciError::NoBlob(name.to_owned()))?;
        parse_json(spool, content, name, parse)
    }
}

fn parse_json<T>(
    spool: &Spool,
    content: Content,
    name: &str,
    parse: impl FnOnce(&[u8]) -> Result<T, OciSpecError>,
) -> Result<T, UnpackError> {
    let name = || name.to_owned();
    if content.len > MAX_JSON {
        return Err(OciError::TooLong { name: name() }.into());
    }
    let mut json = Vec::new();
    spool
        .open(content)?
        .take(MAX_JSON)
        .read_to_end(&mut json)
        .map_err(io_error("reading a blob"))?;
    parse(&json).map_err(|source| {
        let name = name();
        OciError::Json { name, source }.into()
    })
}
