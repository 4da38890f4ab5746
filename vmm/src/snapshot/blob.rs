//! Opaque bytes inside a section.

use std::fmt;

use serde::de::{Error, Visitor};
use serde::{Deserialize, Deserializer, Serialize, Serializer};

/// Bytes that are stored as one length and one copy. A plain `Vec<u8>` has the
/// same form in the file but is handled one byte at a time, which a register
/// area of several KiB feels.
#[derive(Clone, Default, PartialEq, Eq)]
pub struct Blob(pub Vec<u8>);

impl fmt::Debug for Blob {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "Blob({} bytes)", self.0.len())
    }
}

impl Serialize for Blob {
    fn serialize<S: Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        serializer.serialize_bytes(&self.0)
    }
}

impl<'de> Deserialize<'de> for Blob {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        struct Bytes;

        impl Visitor<'_> for Bytes {
            type Value = Blob;

            fn expecting(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
                f.write_str("bytes")
            }

            fn visit_bytes<E: Error>(self, bytes: &[u8]) -> Result<Blob, E> {
                Ok(Blob(bytes.to_vec()))
            }
        }

        deserializer.deserialize_bytes(Bytes)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_blob_has_the_form_of_a_vector_of_bytes() {
        let bytes: Vec<u8> = (0..=255).collect();
        let blob = postcard::to_stdvec(&Blob(bytes.clone())).unwrap();
        assert_eq!(blob, postcard::to_stdvec(&bytes).unwrap());
        assert_eq!(postcard::from_bytes::<Blob>(&blob).unwrap(), Blob(bytes));
    }

    #[test]
    fn a_blob_longer_than_its_input_is_refused() {
        // The length says 2^28, one byte follows.
        assert!(postcard::from_bytes::<Blob>(&[0x80, 0x80, 0x80, 0x80, 0x01, 0x00]).is_err());
    }
}
