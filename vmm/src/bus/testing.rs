//! The one way to test that a state is complete.

use std::fmt::Debug;

use serde::Serialize;
use serde::de::DeserializeOwned;

/// Saves, mutates, restores, and asserts that mutation and restore both show; the
/// state takes the way through its encoding in between.
pub(crate) fn assert_restores<T, S>(
    subject: &mut T,
    save: impl Fn(&T) -> S,
    mutate: impl FnOnce(&mut T),
    restore: impl FnOnce(&mut T, &S),
) where
    S: Debug + PartialEq + Serialize + DeserializeOwned,
{
    let saved = save(subject);
    let bytes = postcard::to_stdvec(&saved).unwrap();
    mutate(subject);
    assert_ne!(save(subject), saved, "the mutation does not show");
    let decoded: S = postcard::from_bytes(&bytes).unwrap();
    assert_eq!(decoded, saved, "the encoding loses something");
    restore(subject, &decoded);
    assert_eq!(save(subject), saved, "the restore loses something");
}
