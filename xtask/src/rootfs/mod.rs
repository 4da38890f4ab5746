//! Root file systems of functions: read-only EROFS images made from Debian packages (and, for
//! Python, wheels; for Node.js, npm packages) by the recipes in `rootfs/`. No root privilege and no
//! chroot is needed: the packages are unpacked, none of their scripts runs.

mod native;
mod recipe;
mod tree;

use std::path::{Path, PathBuf};
use std::process::Command;

use anyhow::{Context, Result};

use crate::cache::{Cache, Key};
use crate::packages;
use crate::process;
use crate::progress::Step;
use crate::workspace;
use recipe::Loaded;

/// The kind of the cache's entries, and the start of the resolutions' names.
const KIND: &str = "rootfs";

/// Part of the key: to be raised when this module makes something else from the same recipe.
const VERSION: &str = "3";

/// Between the image's packages and the SDK's in what a recipe was resolved to.
const SDK_MARK: &str = " | ";

/// The image's UUID. The same for all: the image's bytes depend on its content only.
const UUID: &str = "00000000-0000-0000-0000-000000000000";

/// The EROFS image of the recipe `name`, made if the cache lacks it.
pub fn make(cache: &Cache, name: &str) -> Result<PathBuf> {
    let loaded = recipe::load(&workspace::root().join("rootfs"), name)?;
    let base = base_key(&loaded)?;
    let key = |resolved: &str| base.clone().with("packages", resolved);
    let resolved = cache.resolve(
        &format!("{KIND}-{name}"),
        |resolved| cache.has(KIND, &key(resolved)),
        || {
            let debian = &loaded.recipe.debian;
            let closure = packages::closure(&debian.packages, &debian.without)?;
            let sdk = native::resolve_sdk(loaded.recipe.build.as_ref())?;
            Ok([closure.join(" "), sdk.join(" ")].join(SDK_MARK))
        },
    )?;
    let entry = cache.entry(KIND, &key(&resolved), |dir, scratch| {
        let step = Step::start(format!("root file system {name}: download packages"));
        let (wanted, sdk) = resolved.split_once(SDK_MARK).unwrap_or((&resolved, ""));
        let download = |list: &str, folder: &str| {
            let list: Vec<String> = list.split_whitespace().map(str::to_owned).collect();
            match list.is_empty() {
                true => Ok(Vec::new()),
                false => packages::download(&list, &scratch.join(folder)),
            }
        };
        let archives = download(wanted, "packages")?;
        let sdk = download(sdk, "sdk-packages")?;
        step.done();
        let step = Step::start(format!("root file system {name}: build the image"));
        let staging = scratch.join("tree");
        tree::build(&loaded, &archives, &sdk, &staging)?;
        pack(&staging, &dir.join("image.erofs"))?;
        step.done();
        Ok(())
    })?;
    Ok(entry.join("image.erofs"))
}

fn base_key(loaded: &Loaded) -> Result<Key> {
    let key = Key::new()
        .with("version", VERSION)
        .with("recipe", &loaded.text);
    loaded
        .recipe
        .inputs()
        .try_fold(key, |key, name| key.with_file(&loaded.directory.join(name)))
}

/// Packs a tree so that the same tree gives the same bytes: all times zero, all owned by root.
fn pack(staging: &Path, image: &Path) -> Result<()> {
    process::quiet(
        packages::tool("mkfs.erofs")
            .args(["-T0", "--all-root", "-U", UUID])
            .arg(image)
            .arg(staging),
    )
    .with_context(|| format!("cannot pack {}", image.display()))
}

/// A command for an interpreter in the staged tree, run on the host with the staged libraries.
fn staged(staging: &Path, program: &str) -> Command {
    let mut command = Command::new(staging.join("usr/lib/x86_64-linux-gnu/ld-linux-x86-64.so.2"));
    command
        .arg("--library-path")
        .arg(staging.join("usr/lib/x86_64-linux-gnu"))
        .arg(staging.join(program.trim_start_matches('/')));
    command
}
