//! Images of packages, and of code with layers.

use tar::{Builder, Header};

use super::*;

const MAX: u64 = 1024 * 1024;
const LIMIT: Duration = Duration::from_secs(60);

fn images(state: &tempfile::TempDir) -> Images {
    Images::open(state.path().join("images"), MAX, LIMIT).unwrap()
}

/// A tar archive of files with their content.
fn tar(files: &[(&str, &str)]) -> Vec<u8> {
    let mut builder = Builder::new(Vec::new());
    for (name, content) in files {
        let mut header = Header::new_gnu();
        header.set_size(u64::try_from(content.len()).unwrap());
        header.set_mode(0o644);
        builder
            .append_data(&mut header, name, content.as_bytes())
            .unwrap();
    }
    builder.into_inner().unwrap()
}

async fn import(images: &Images, files: &[(&str, &str)]) -> Digest {
    let workspace = images.workspace().unwrap();
    let archive = workspace.path().join("archive");
    fs::write(&archive, tar(files)).unwrap();
    images.import(&workspace, archive).await.unwrap()
}

/// What an image has at its top level.
async fn extracted(images: &Images, image: &Digest) -> tempfile::TempDir {
    let to = tempfile::tempdir().unwrap();
    pack::extract(&images.path(image), &to.path().join("all"), LIMIT)
        .await
        .unwrap();
    to
}

fn count(images: &Images) -> usize {
    fs::read_dir(&images.directory).unwrap().count()
}

#[tokio::test]
async fn the_same_code_is_one_image_which_stays_the_same_file() {
    use std::os::unix::fs::MetadataExt as _;

    let state = tempfile::tempdir().unwrap();
    let images = images(&state);
    let first = import(&images, &[("app.py", "app")]).await;
    let inode = || fs::metadata(images.path(&first)).unwrap().ino();
    let before = inode();
    assert_eq!(import(&images, &[("app.py", "app")]).await, first);
    // MicroVMs that run have this very file open.
    assert_eq!(inode(), before);
    assert_eq!(count(&images), 1);

    // A damaged one is replaced.
    fs::write(images.path(&first), "damaged").unwrap();
    assert_eq!(import(&images, &[("app.py", "app")]).await, first);
    let whole = Digest::of_reader(File::open(images.path(&first)).unwrap()).unwrap();
    assert_eq!(whole, first);

    images.keep_only(&[first]);
    assert!(images.contains(&first));
    images.keep_only(&[]);
    assert_eq!(count(&images), 0);
}

#[tokio::test]
async fn layers_are_put_together_below_opt_the_last_one_on_top() {
    let state = tempfile::tempdir().unwrap();
    let images = images(&state);
    let code = import(&images, &[("app.py", "app")]).await;
    let one = [("python/a.py", "1"), ("python/b.py", "1"), ("bin", "file")];
    let other = [("python/b.py", "2"), ("bin/tool", "2")];
    let layers = [import(&images, &one).await, import(&images, &other).await];
    let whole = images.compose(&code, &layers).await.unwrap();
    assert_eq!(images.kind(&whole).unwrap(), Kind::Folder);
    let tree = extracted(&images, &whole).await;
    let text = |path: &str| fs::read_to_string(tree.path().join("all").join(path)).unwrap();
    assert_eq!(text("task/app.py"), "app");
    assert_eq!(text("opt/python/a.py"), "1");
    assert_eq!(text("opt/python/b.py"), "2");
    assert_eq!(text("opt/bin/tool"), "2");
    // The same again is the same image; another order is another one.
    assert_eq!(images.compose(&code, &layers).await.unwrap(), whole);
    let [one, other] = layers;
    let swapped = images.compose(&code, &[other, one]).await.unwrap();
    assert_ne!(swapped, whole);
    let tree = extracted(&images, &swapped).await;
    let bin = tree.path().join("all/opt/bin");
    assert_eq!(fs::read_to_string(bin).unwrap(), "file");
}

#[tokio::test]
async fn code_and_layers_that_are_too_large_together_are_refused() {
    let state = tempfile::tempdir().unwrap();
    let images = images(&state);
    let large = "x".repeat(usize::try_from(MAX).unwrap() * 2 / 3);
    let code = import(&images, &[("a", &large)]).await;
    let layer = import(&images, &[("b", &large)]).await;
    let refused = images.compose(&code, &[layer]).await.unwrap_err();
    assert!(
        matches!(
            refused,
            ImageError::Compose(ComposeError::TooLarge { max_bytes: MAX, .. })
        ),
        "{refused:?}"
    );
    // Nothing is left of the attempt.
    assert_eq!(count(&images), 2);
}
