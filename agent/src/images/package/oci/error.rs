//! Why a container image cannot be used.

use std::io;

use oci_spec::OciSpecError;

/// A container image cannot be used.
#[derive(Debug, thiserror::Error)]
pub enum OciError {
    /// A JSON file cannot be understood.
    #[error("{name} cannot be understood")]
    Json {
        /// Which one.
        name: String,
        /// Why.
        #[source]
        source: OciSpecError,
    },
    /// A JSON file is longer than any.
    #[error("{name} is too long")]
    TooLong {
        /// Which one.
        name: String,
    },
    /// The layout is of another version.
    #[error("the image layout has version {0:?}; this build reads 1.0.0")]
    Version(String),
    /// There is no image for this machine.
    #[error("it has no image for linux/amd64: build it with `--platform linux/amd64`")]
    NoImage,
    /// There are several images.
    #[error("it has {0} images for linux/amd64: keep the one that is meant")]
    SeveralImages(usize),
    /// A blob is not there.
    #[error("the blob {0} is missing: was the layout copied whole?")]
    NoBlob(String),
    /// A digest of another kind.
    #[error("the digest {0} is not of the kind sha256")]
    Algorithm(String),
    /// A blob is not what it should be.
    #[error("the blob {0} does not have the length or hash that its descriptor says")]
    WrongBlob(String),
    /// A layer's content is not what the configuration says.
    #[error("the layer {0} is not the one that the image's configuration names")]
    WrongLayer(String),
    /// A layer is compressed in a way that is not known.
    #[error("the layer {digest} has the media type {media_type:?}: tar, gzip and zstd are known")]
    MediaType {
        /// Which layer.
        digest: String,
        /// What it is.
        media_type: String,
    },
    /// A layer cannot be decompressed.
    #[error("the layer {digest} cannot be decompressed")]
    Decompress {
        /// Which layer.
        digest: String,
        /// Why.
        #[source]
        source: io::Error,
    },
    /// Too many layers.
    #[error("it has {0} layers, and may have 127")]
    TooManyLayers(usize),
    /// Manifest and configuration differ.
    #[error("its manifest has {layers} layers, its configuration {diff_ids}")]
    LayerCount {
        /// In the manifest.
        layers: usize,
        /// In the configuration.
        diff_ids: usize,
    },
    /// There is nothing to run.
    #[error("it has neither an Entrypoint nor a Cmd: there is nothing to run")]
    NoCommand,
    /// A word, variable or folder of the configuration cannot be passed on.
    #[error("its configuration's {0} has a zero byte, or is too long")]
    Unusable(&'static str),
}
