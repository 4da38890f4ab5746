//! The recipe of a root file system: `rootfs/NAME.toml`, read strictly.

use std::collections::BTreeMap;
use std::fs;
use std::path::{Path, PathBuf};

use anyhow::{Context, Result, ensure};
use serde::Deserialize;

/// What an image is made of.
#[derive(Debug, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Recipe {
    /// The recipe beside it that is taken first: lists are put together, and of two
    /// directories or links of one name this recipe's is taken.
    pub extends: Option<String>,
    /// Debian packages.
    #[serde(default)]
    pub debian: Debian,
    /// A Python installation with packages from PyPI.
    pub python: Option<Python>,
    /// Something that is compiled.
    pub build: Option<Build>,
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
#[derive(Debug, Default, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Debian {
    /// Packages that are taken with all they depend on.
    #[serde(default)]
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

/// Something that is compiled while the image is made.
#[derive(Debug, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Build {
    /// The script beside the recipe. Its arguments are three folders: the npm packages by
    /// name, the SDK, and the image's tree.
    pub script: String,
    /// Files beside the recipe that the script takes.
    #[serde(default)]
    pub sources: Vec<String>,
    /// Debian packages that only the script needs, without what they depend on.
    pub sdk: Vec<String>,
    /// Packages from the npm registry.
    pub npm: Vec<NpmPackage>,
}

/// A package from the npm registry.
#[derive(Debug, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct NpmPackage {
    /// Its name.
    pub name: String,
    /// Its exact version.
    pub version: String,
    /// The hash of its archive, in hexadecimal.
    pub sha512: String,
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
#[derive(Debug)]
pub struct Loaded {
    /// The recipe, with what it extends.
    pub recipe: Recipe,
    /// The text of both.
    pub text: String,
    /// The directory that other files of the recipe are in.
    pub directory: PathBuf,
}

impl Recipe {
    /// Takes what `base` has first.
    fn extend(&mut self, base: Self) {
        fn before<T>(own: &mut Vec<T>, base: Vec<T>) {
            own.splice(0..0, base);
        }
        before(&mut self.debian.packages, base.debian.packages);
        before(&mut self.debian.without, base.debian.without);
        before(&mut self.image.drop, base.image.drop);
        before(&mut self.busybox.applets, base.busybox.applets);
        before(&mut self.bundles, base.bundles);
        before(&mut self.files, base.files);
        for (path, mode) in base.directories {
            self.directories.entry(path).or_insert(mode);
        }
        for (link, target) in base.links {
            self.links.entry(link).or_insert(target);
        }
    }

    /// The files beside the recipe that it names.
    pub fn inputs(&self) -> impl Iterator<Item = &str> {
        let requirements = self.python.as_ref().map(|p| p.requirements.as_str());
        let script = self.build.as_ref().map(|b| b.script.as_str());
        let sources = self.build.iter().flat_map(|b| &b.sources);
        requirements
            .into_iter()
            .chain(script)
            .chain(sources.map(String::as_str))
    }
}

/// Reads the recipe `NAME.toml` in `directory`, and the one that it extends.
pub fn load(directory: &Path, name: &str) -> Result<Loaded> {
    let (mut recipe, mut text) = read(directory, name)?;
    if let Some(base) = recipe.extends.clone() {
        let (base_recipe, base_text) = read(directory, &base)?;
        ensure!(
            base_recipe.extends.is_none()
                && base_recipe.python.is_none()
                && base_recipe.build.is_none(),
            "the recipe {base} is extended by {name}, so it can neither extend another one nor \
             have a section [python] or [build]"
        );
        recipe.extend(base_recipe);
        text.push_str(&base_text);
    }
    Ok(Loaded {
        recipe,
        text,
        directory: directory.to_owned(),
    })
}

fn read(directory: &Path, name: &str) -> Result<(Recipe, String)> {
    let path = directory.join(format!("{name}.toml"));
    let text = fs::read_to_string(&path)
        .with_context(|| format!("there is no recipe {}", path.display()))?;
    let recipe = toml::from_str(&text)
        .with_context(|| format!("the recipe {} is not valid", path.display()))?;
    Ok((recipe, text))
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
    fn a_recipe_has_what_it_extends_and_its_own_word_counts() {
        let directory = tempfile::tempdir().unwrap();
        let write = |name: &str, text: &str| {
            fs::write(directory.path().join(name), text).unwrap();
        };
        write(
            "base.toml",
            "debian.packages = ['dash']\n[directories]\n'/tmp' = 1\n'/opt' = 2\n",
        );
        write(
            "own.toml",
            "extends = 'base'\ndebian.packages = ['nodejs']\n[directories]\n'/tmp' = 3\n",
        );
        let loaded = load(directory.path(), "own").unwrap();
        assert_eq!(loaded.recipe.debian.packages, ["dash", "nodejs"]);
        assert_eq!(loaded.recipe.directories["/tmp"], 3);
        assert_eq!(loaded.recipe.directories["/opt"], 2);
        // The cache's key is made of both texts.
        assert!(loaded.text.contains("nodejs") && loaded.text.contains("dash"));

        write("deep.toml", "extends = 'own'\n");
        let error = load(directory.path(), "deep").unwrap_err();
        assert!(
            error.to_string().contains("own is extended by deep"),
            "{error}"
        );
    }

    #[test]
    fn unknown_fields_are_refused() {
        assert!(toml::from_str::<Recipe>("[debian]\npackages = []\npackage = []\n").is_err());
    }
}
