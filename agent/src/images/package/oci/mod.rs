//! Container images: an OCI image layout, and what becomes of it.
//!
//! ```text
//!  index.json ─► manifest for linux/amd64 ─► config: Entrypoint, Cmd, Env, WorkingDir
//!                                        └─► layers, lowest first ─► root/
//! ```
//!
//! Every blob is checked against its digest and length, every layer against its `diff_id`.
//! Specification: OCI Image Format 1.1, `image-layout.md`, `manifest.md`, `layer.md`.

mod error;
mod image;
mod layer;
mod layout;

pub use error::OciError;
pub use image::Image;

use super::budget::Budget;
use super::refused::UnpackError;
use super::spool::Spool;
use super::tree::{Links, Tree};
use layout::Layout;

/// Most layers of an image. Container engines stop at 127.
const MAX_LAYERS: usize = 127;

/// Whether an unpacked archive is a layout.
pub fn is_layout(tree: &Tree) -> bool {
    tree.file_at(&[b"oci-layout"]).is_some() && tree.file_at(&[b"index.json"]).is_some()
}

/// Puts the image's layers together; at most `max_bytes` of content.
///
/// # Errors
/// When the image or one of its layers is refused.
pub fn apply(layout: &Tree, spool: &mut Spool, max_bytes: u64) -> Result<Image, UnpackError> {
    let layout = Layout::new(layout);
    let manifest = layout.manifest(spool)?;
    let config = layout.config(spool, &manifest)?;
    let layers = manifest.layers();
    if layers.len() > MAX_LAYERS {
        return Err(OciError::TooManyLayers(layers.len()).into());
    }
    let diff_ids = config.rootfs().diff_ids();
    if diff_ids.len() != layers.len() {
        return Err(OciError::LayerCount {
            layers: layers.len(),
            diff_ids: diff_ids.len(),
        }
        .into());
    }
    let mut tree = Tree::new(Links::FollowedInside);
    let mut budget = Budget::new(max_bytes, 0);
    for (descriptor, diff_id) in layers.iter().zip(diff_ids) {
        tree.next_layer();
        budget.next_archive(descriptor.size());
        let blob = layout.checked_blob(spool, descriptor)?;
        layer::apply(&blob, diff_id, &mut tree, spool, &mut budget)?;
    }
    Image::new(tree, &config).map_err(UnpackError::from)
}
