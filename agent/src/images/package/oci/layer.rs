//! One layer: its entries, and the marks by which it removes what is below.

use std::io::{self, BufReader, Read};

use flate2::read::MultiGzDecoder;
use oci_spec::image::MediaType;
use ruzstd::decoding::StreamingDecoder;
use sha2::{Digest as _, Sha256};

use super::error::OciError;
use super::layout::Blob;
use crate::images::package::budget::Budget;
use crate::images::package::path::{Name, parse};
use crate::images::package::refused::{UnpackError, io_error};
use crate::images::package::spool::Spool;
use crate::images::package::tarball::{self, Item};
use crate::images::package::tree::Tree;

/// An entry whose name begins like this removes the one whose name is the rest.
const WHITEOUT: &[u8] = b".wh.";
/// An entry of this name removes all that lower layers have in its folder.
const OPAQUE: &[u8] = b".wh..wh..opq";
/// What container engines used themselves begins like this.
const INTERNAL: &[u8] = b".wh..wh.";

/// Much of a zstd frame has to be kept to decompress the next part.
const MAX_WINDOW: u64 = 8 * 1024 * 1024;

/// Media types from before there were OCI's.
const DOCKER_GZIP: &str = "application/vnd.docker.image.rootfs.diff.tar.gzip";
const DOCKER_PLAIN: &str = "application/vnd.docker.image.rootfs.diff.tar";

/// Puts a layer on top of `tree`.
///
/// # Errors
/// When the layer is damaged, refused, or another one than `diff_id`.
pub fn apply(
    blob: &Blob,
    diff_id: &str,
    tree: &mut Tree,
    spool: &mut Spool,
    budget: &mut Budget,
) -> Result<(), UnpackError> {
    let compressed = BufReader::new(spool.open(blob.content)?);
    let mut hash = Sha256::new();
    let mut plain = Hashed {
        inner: decompress(blob, compressed)?,
        hash: &mut hash,
        left: budget.longest_tar(),
    };
    tarball::each(&mut plain, budget, |item, budget| {
        entry(item, tree, spool, budget)
    })?;
    rest(&mut plain, budget)?;
    if format!("sha256:{:x}", hash.finalize()) != diff_id {
        return Err(OciError::WrongLayer(blob.digest.clone()).into());
    }
    Ok(())
}

/// Reads what stands after the archive's end, which its hash covers, too.
fn rest(plain: &mut impl Read, budget: &mut Budget) -> Result<(), UnpackError> {
    let mut buffer = [0; 8192];
    loop {
        let read = plain
            .read(&mut buffer)
            .map_err(io_error("reading a layer"))?;
        if read == 0 {
            return Ok(());
        }
        budget.take(u64::try_from(read).unwrap_or(u64::MAX))?;
    }
}

fn entry<R: Read>(
    item: Item<'_, '_, R>,
    tree: &mut Tree,
    spool: &mut Spool,
    budget: &mut Budget,
) -> Result<(), UnpackError> {
    match item {
        Item::Folder(path) => tree.add_folder(&path),
        Item::File(path, executable, content) => {
            if let Some(removed) = whiteout(&path) {
                return match removed {
                    Removed::One(path) => tree.remove(&path),
                    Removed::All(folder) => tree.clear(folder),
                    Removed::Nothing => Ok(()),
                };
            }
            let content = spool.keep(content, executable, budget)?;
            tree.add_file(&path, content)
        }
        Item::Link(path, target) => tree.add_link(&path, &target),
        Item::HardLink(path, target) => tree.add_hard_link(&path, &parse(&target)?),
    }
}

/// What a whiteout removes.
enum Removed<'a> {
    One(Vec<Name>),
    All(&'a [Name]),
    Nothing,
}

fn whiteout(path: &[Name]) -> Option<Removed<'_>> {
    let (name, folder) = path.split_last()?;
    if name == OPAQUE {
        return Some(Removed::All(folder));
    }
    if name.starts_with(INTERNAL) {
        return Some(Removed::Nothing);
    }
    let removed = name.strip_prefix(WHITEOUT)?;
    // `.wh.` and `.wh...` name nothing, or something outside.
    if matches!(removed, b"" | b"." | b"..") {
        return Some(Removed::Nothing);
    }
    let mut path = folder.to_vec();
    path.push(removed.to_vec());
    Some(Removed::One(path))
}

fn decompress<'a>(
    blob: &Blob,
    compressed: impl Read + 'a,
) -> Result<Box<dyn Read + 'a>, UnpackError> {
    let unknown = |media_type: &str| OciError::MediaType {
        digest: blob.digest.clone(),
        media_type: media_type.to_owned(),
    };
    match &blob.media_type {
        MediaType::ImageLayer => Ok(Box::new(compressed)),
        MediaType::ImageLayerGzip => Ok(Box::new(MultiGzDecoder::new(compressed))),
        MediaType::ImageLayerZstd => {
            let decoder = StreamingDecoder::new_with_max_window_size(compressed, MAX_WINDOW);
            let decoder = decoder.map_err(|error| OciError::Decompress {
                digest: blob.digest.clone(),
                source: io::Error::other(error),
            })?;
            Ok(Box::new(decoder))
        }
        MediaType::Other(kind) if kind == DOCKER_GZIP => {
            Ok(Box::new(MultiGzDecoder::new(compressed)))
        }
        MediaType::Other(kind) if kind == DOCKER_PLAIN => Ok(Box::new(compressed)),
        other => Err(unknown(other.as_ref()).into()),
    }
}

/// Hashes what is read, and ends what is too long: an entry that is skipped is decompressed,
/// too.
struct Hashed<'a, R> {
    inner: R,
    hash: &'a mut Sha256,
    left: u64,
}

impl<R: Read> Read for Hashed<'_, R> {
    fn read(&mut self, buffer: &mut [u8]) -> io::Result<usize> {
        let read = self.inner.read(buffer)?;
        let len = u64::try_from(read).unwrap_or(u64::MAX);
        self.left = self
            .left
            .checked_sub(len)
            .ok_or_else(|| io::Error::other("the layer is longer than its files can be"))?;
        self.hash.update(&buffer[..read]);
        Ok(read)
    }
}
