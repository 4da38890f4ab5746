//! The recipe of a root file system: `rootfs/NAME.toml`, read strictly.

use std::collections::BTreeMap;
use std::fs;
use std::path::{Path, PathBuf};

use anyhow::{Context, Result};
use serde::Deserialize;

/// What an image is made of.
#[derive(Debug, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Recipe {
    /// Debian packages.
    pub debian: Debian,
    /// A Python installation with packages from PyPI.
    pub python: Option<Python>,
    /// What happens to the tree as a whole.
    #[serde(default)]
    pub image: Image,
    /// Directories with their mode.
    #[serde(default)]
    pub directories: BTreeMap<String, u32>,
    /// Symbolic links with their target.
    #[serde(default)]
    pub links: BTreeMap<String, String>,
    /// Links to busybox.
    #[serde(default)]
    pub busybox: Busybox,
    /// Files that are the concatenation of others.
    #[serde(default)]
    pub bundles: Vec<Bundle>,
    /// Files given in the recipe.
    #[serde(default)]
    pub files: Vec<File>,
}

/// Packages from the Debian archive.
#[derive(Debug, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Debian {
    /// Packages that are taken with all they depend on.
    pub packages: Vec<String>,
    /// Dependencies that are left out.
    #[serde(default)]
    pub without: Vec<String>,
}

/// A Python installation.
#[derive(Debug, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Python {
    /// The interpreter in the image.
    pub interpreter: String,
    /// The standard library, which is compiled ahead.
    pub library: String,
    /// The file beside the recipe that lists packages with their hashes.
    pub requirements: String,
    /// Where those packages go.
    pub site: String,
    /// The language version, for choosing wheels.
    pub version: String,
    /// The platforms whose wheels fit.
    pub platforms: Vec<String>,
}

/// What happens to the tree as a whole.
#[derive(Debug, Default, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Image {
    /// Paths that are removed.
    #[serde(default)]
    pub drop: Vec<String>,
}

/// Small programs.
#[derive(Debug, Default, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Busybox {
    /// Names in `/usr/bin` that become links to busybox unless they exist.
    pub applets: Vec<String>,
}

/// A file that is the concatenation of others.
#[derive(Debug, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Bundle {
    /// The file to write.
    pub into: String,
    /// The directory whose files are concatenated, in the order of their names.
    pub from: String,
}

/// A file given in the recipe.
#[derive(Debug, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct File {
    /// Where it goes.
    pub path: String,
    /// Its permissions.
    #[serde(default = "ordinary")]
    pub mode: u32,
    /// What is in it.
    pub content: String,
}

const fn ordinary() -> u32 {
    0o644
}

/// A recipe, with the bytes that it was read from.
pub struct Loaded {
    /// The recipe.
    pub recipe: Recipe,
    /// The recipe's text.
    pub text: String,
    /// The directory that other files of the recipe are in.
    pub directory: PathBuf,
}

/// Reads the recipe `NAME.toml` in `directory`.
pub fn load(directory: &Path, name: &str) -> Result<Loaded> {
    let path = directory.join(format!("{name}.toml"));
    let text = fs::read_to_string(&path)
        .with_context(|| format!("there is no recipe {}", path.display()))?;
    let recipe = toml::from_str(&text)
        .with_context(|| format!("the recipe {} is not valid", path.display()))?;
    Ok(Loaded {
        recipe,
        text,
        directory: directory.to_owned(),
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_recipes_of_the_tree_are_valid() {
        let directory = crate::workspace::root().join("rootfs");
        let mut seen = 0;
        for entry in fs::read_dir(&directory).unwrap() {
            let path = entry.unwrap().path();
            if path
                .extension()
                .is_some_and(|extension| extension == "toml")
            {
                load(&directory, path.file_stem().unwrap().to_str().unwrap()).unwrap();
                seen += 1;
            }
        }
        assert!(seen > 0);
    }

    #[test]
    fn unknown_fields_are_refused() {
        assert!(toml::from_str::<Recipe>("[debian]\npackages = []\npackage = []\n").is_err());
    }
}
