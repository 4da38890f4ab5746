//! Keys of a function's description that nobody knows, and what was probably meant.

use crate::function::FunctionConfig;

/// Other names that Lambda, its tools and their files have for our keys: in lower case, without
/// `_` and `-`.
const SYNONYMS: [(&str, &str); 15] = [
    ("functionname", "name"),
    ("memory", "memory_mb"),
    ("memorysize", "memory_mb"),
    ("memorymib", "memory_mb"),
    ("timeout", "timeout_s"),
    ("timeoutseconds", "timeout_s"),
    ("ephemeralstorage", "ephemeral_storage_mb"),
    ("env", "environment"),
    ("envvars", "environment"),
    ("variables", "environment"),
    ("environmentvariables", "environment"),
    ("layer", "layers"),
    ("codeuri", "code"),
    ("entrypoint", "handler"),
    ("loggingconfig", "logging"),
];

/// How alike two names have to be for a hint, from 0 to 1.
const ALIKE: f64 = 0.8;

/// A key that nobody knows.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[error("the key `{key}` is not known{}", hint.map_or_else(String::new, |hint| format!(": is `{hint}` meant?")))]
pub struct UnknownKey {
    /// Which one.
    pub key: String,
    /// What was probably meant.
    pub hint: Option<&'static str>,
}

/// Checks the keys of a function's description; `code` is one of them.
///
/// # Errors
/// Names the first that is not known.
pub fn check<'a>(keys: impl IntoIterator<Item = &'a String>) -> Result<(), UnknownKey> {
    let known =
        |key: &&String| key.as_str() == "code" || FunctionConfig::KEYS.contains(&key.as_str());
    match keys.into_iter().find(|key| !known(key)) {
        None => Ok(()),
        Some(key) => Err(UnknownKey {
            key: key.chars().take(100).collect(),
            hint: hint(key),
        }),
    }
}

fn hint(key: &str) -> Option<&'static str> {
    let plain: String = key
        .chars()
        .filter(char::is_ascii_alphanumeric)
        .take(100)
        .collect::<String>()
        .to_ascii_lowercase();
    if let Some((_, meant)) = SYNONYMS.iter().find(|(other, _)| *other == plain) {
        return Some(meant);
    }
    FunctionConfig::KEYS
        .iter()
        .chain(&["code"])
        .map(|known| {
            (
                strsim::jaro_winkler(&plain, &known.replace('_', "")),
                *known,
            )
        })
        .filter(|(alike, _)| *alike >= ALIKE)
        .max_by(|(one, _), (other, _)| one.total_cmp(other))
        .map(|(_, known)| known)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn told(key: &str) -> String {
        check([&key.to_owned()]).unwrap_err().to_string()
    }

    #[test]
    fn what_was_probably_meant_is_named() {
        for (key, meant) in [
            ("MemorySize", "memory_mb"),
            ("EphemeralStorage", "ephemeral_storage_mb"),
            ("memory", "memory_mb"),
            ("Timeout", "timeout_s"),
            ("timeout_ms", "timeout_s"),
            ("Handler", "handler"),
            ("handlr", "handler"),
            ("env", "environment"),
            ("enviroment", "environment"),
            ("Layers", "layers"),
            ("FunctionName", "name"),
            ("CodeUri", "code"),
        ] {
            let expected = format!("the key `{key}` is not known: is `{meant}` meant?");
            assert_eq!(told(key), expected);
        }
        assert_eq!(told("vpc"), "the key `vpc` is not known");
    }

    #[test]
    fn the_keys_are_those_of_the_description() {
        let keys: Vec<String> = FunctionConfig::KEYS.map(str::to_owned).to_vec();
        check(&keys).unwrap();
        // serde says which ones it would take.
        let error = serde_json::from_str::<FunctionConfig>(r#"{"?": 1}"#).unwrap_err();
        let error = error.to_string();
        let taken: Vec<&str> = error.split('`').skip(3).step_by(2).collect();
        assert_eq!(taken, FunctionConfig::KEYS);
    }
}
