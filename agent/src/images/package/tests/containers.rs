//! Container images: layouts made here, blob by blob.

use flate2::Compression;
use flate2::write::GzEncoder;
use serde_json::{Value, json};
use sha2::{Digest as _, Sha256};

use super::archives::*;
use super::*;

const MANIFEST: &str = "application/vnd.oci.image.manifest.v1+json";
const INDEX: &str = "application/vnd.oci.image.index.v1+json";
const PLAIN: &str = "application/vnd.oci.image.layer.v1.tar";
const GZIP: &str = "application/vnd.oci.image.layer.v1.tar+gzip";
const ZSTD: &str = "application/vnd.oci.image.layer.v1.tar+zstd";

fn sha256(bytes: &[u8]) -> String {
    format!("{:x}", Sha256::digest(bytes))
}

fn gzip(bytes: &[u8]) -> Vec<u8> {
    let mut encoder = GzEncoder::new(Vec::new(), Compression::default());
    encoder.write_all(bytes).unwrap();
    encoder.finish().unwrap()
}

fn zstd(bytes: &[u8]) -> Vec<u8> {
    use ruzstd::encoding::{CompressionLevel, compress_to_vec};
    compress_to_vec(bytes, CompressionLevel::Fastest)
}

/// A layout that is being made.
struct Layout {
    entries: Vec<Vec<u8>>,
    layers: Vec<Value>,
    diff_ids: Vec<String>,
    config: Value,
}

impl Layout {
    fn new() -> Self {
        Self {
            entries: vec![holding("oci-layout", r#"{"imageLayoutVersion":"1.0.0"}"#)],
            layers: Vec::new(),
            diff_ids: Vec::new(),
            config: json!({"Entrypoint": ["/app"]}),
        }
    }

    fn with(layers: &[&[Vec<u8>]]) -> Self {
        let mut layout = Self::new();
        for entries in layers {
            layout.layer(PLAIN, &tar(entries), |plain| plain.to_vec());
        }
        layout
    }

    fn blob(&mut self, media_type: &str, bytes: &[u8]) -> Value {
        let digest = sha256(bytes);
        let name = format!("blobs/sha256/{digest}");
        let blob = entry(tar::EntryType::Regular, &name, "", 0o644, bytes);
        if !self.entries.contains(&blob) {
            self.entries.push(blob);
        }
        json!({"mediaType": media_type, "digest": format!("sha256:{digest}"), "size": bytes.len()})
    }

    fn layer(&mut self, media_type: &str, plain: &[u8], compress: fn(&[u8]) -> Vec<u8>) {
        let layer = self.blob(media_type, &compress(plain));
        self.layers.push(layer);
        self.diff_ids.push(format!("sha256:{}", sha256(plain)));
    }

    /// A descriptor of the manifest of all that.
    fn manifest(&mut self) -> Value {
        let config = json!({
            "architecture": "amd64", "os": "linux", "config": self.config,
            "rootfs": {"type": "layers", "diff_ids": self.diff_ids},
        });
        let kind = "application/vnd.oci.image.config.v1+json";
        let config = self.blob(kind, config.to_string().as_bytes());
        let manifest = json!({
            "schemaVersion": 2, "mediaType": MANIFEST, "config": config, "layers": self.layers,
        });
        self.blob(MANIFEST, manifest.to_string().as_bytes())
    }

    fn index(manifests: &[Value]) -> Vec<u8> {
        let index = json!({"schemaVersion": 2, "mediaType": INDEX, "manifests": manifests});
        index.to_string().into_bytes()
    }

    fn finish(mut self) -> Vec<u8> {
        let manifest = self.manifest();
        self.finish_with(&[manifest])
    }

    fn finish_with(mut self, manifests: &[Value]) -> Vec<u8> {
        let index = Self::index(manifests);
        self.entries.push(entry(
            tar::EntryType::Regular,
            "index.json",
            "",
            0o644,
            &index,
        ));
        tar(&self.entries)
    }

    fn unpacked(self) -> Unpacked {
        Unpacked::new(&self.finish())
    }
}

fn layers(layers: &[&[Vec<u8>]]) -> Unpacked {
    Layout::with(layers).unpacked()
}

#[test]
fn an_image_has_its_files_and_its_command() {
    let mut layout = Layout::with(&[&[
        folder("./"),
        folder("./usr/"),
        program("./usr/app"),
        link("./bin", "usr"),
        hard_link("./second", "usr/app"),
        file("./etc/motd"),
    ]]);
    layout.config = json!({
        "Entrypoint": ["/usr/app", "--fast"], "Cmd": ["handler"],
        "Env": ["PATH=/usr", "EMPTY="], "WorkingDir": "/var/task", "User": "1000",
    });
    let unpacked = layout.unpacked();
    assert_eq!(unpacked.result.as_ref().unwrap(), &Kind::Container);
    let expected = [
        "bin -> usr",
        "etc/",
        "etc/motd",
        "second",
        "usr/",
        "usr/app",
    ];
    assert_eq!(unpacked.list("root"), expected);
    assert_eq!(
        unpacked.text("process/arguments"),
        "/usr/app\0--fast\0handler\0"
    );
    assert_eq!(unpacked.text("process/environment"), "PATH=/usr\0EMPTY=\0");
    assert_eq!(unpacked.text("process/folder"), "/var/task");
}

#[test]
fn layers_come_in_their_order_however_they_are_compressed() {
    let mut layout = Layout::new();
    let lowest = [holding("f", "1"), holding("one", "1")];
    layout.layer(PLAIN, &tar(&lowest), |plain| plain.to_vec());
    let middle = [holding("f", "2"), holding("two", "2")];
    layout.layer(GZIP, &tar(&middle), gzip);
    layout.layer(
        ZSTD,
        &tar(&[holding("f", "3"), holding("three", "3")]),
        zstd,
    );
    let docker = "application/vnd.docker.image.rootfs.diff.tar.gzip";
    layout.layer(docker, &tar(&[holding("four", "4")]), gzip);
    let unpacked = layout.unpacked();
    assert_eq!(unpacked.list("root"), ["f", "four", "one", "three", "two"]);
    assert_eq!(unpacked.text("root/f"), "3");
}

#[test]
fn whiteouts_remove_what_is_below_and_only_that() {
    let lower: &[_] = &[
        file("a/1"),
        file("a/2"),
        file("b/c/3"),
        file("keep"),
        link("l", "a"),
    ];
    let one = layers(&[
        lower,
        &[
            file("a/.wh.1"),
            file(".wh.b"),
            file(".wh.l"),
            file(".wh.none"),
        ],
    ]);
    assert_eq!(one.list("root"), ["a/", "a/2", "keep"]);
    // What the same layer brings stays, whichever of the two comes first.
    for entries in [
        [file("b/new"), file(".wh.b"), file("a/1"), file("a/.wh.1")],
        [file(".wh.b"), file("b/new"), file("a/.wh.1"), file("a/1")],
    ] {
        let both = layers(&[lower, &entries]);
        let expected = ["a/", "a/1", "a/2", "b/", "b/new", "keep", "l -> a"];
        assert_eq!(both.list("root"), expected);
    }
}

#[test]
fn opaque_folders_lose_what_is_below_and_only_that() {
    let lower: &[_] = &[file("a/1"), file("a/d/2"), file("a/d/3"), file("keep")];
    for entries in [
        [file("a/.wh..wh..opq"), file("a/new"), file("a/d/4")],
        [file("a/d/4"), file("a/new"), file("a/.wh..wh..opq")],
    ] {
        let opaque = layers(&[lower, &entries]);
        let expected = ["a/", "a/d/", "a/d/4", "a/new", "keep"];
        assert_eq!(opaque.list("root"), expected);
    }
    let whole = layers(&[lower, &[file(".wh..wh..opq"), file("only")]]);
    assert_eq!(whole.list("root"), ["only"]);
    // Engines' own marks are no files.
    let marked = layers(&[
        lower,
        &[file("a/.wh..wh.plnk"), file(".wh."), file(".wh...")],
    ]);
    assert_eq!(marked.list("root"), layers(&[lower]).list("root"));
}

#[test]
fn an_upper_layer_replaces_files_folders_and_links() {
    let lower: &[_] = &[file("f"), file("d/x"), link("l", "d")];
    let upper: &[_] = &[folder("f/"), holding("d", "file"), file("l")];
    assert_eq!(layers(&[lower, upper]).list("root"), ["d", "f/", "l"]);
}

#[test]
fn links_on_the_way_lead_where_they_would_in_the_image_and_never_out_of_it() {
    let lower: &[_] = &[
        folder("usr/lib/"),
        link("lib", "usr/lib"),
        link("absolute", "/usr/lib"),
        link("out", "../../../../usr"),
        link("host", "/"),
        link("gone", "/nowhere"),
    ];
    let upper: &[_] = &[
        file("lib/1"),
        file("absolute/2"),
        file("out/3"),
        file("host/4"),
        file("gone/5"),
    ];
    let unpacked = layers(&[lower, upper]);
    let mut expected = layers(&[lower]).list("root");
    for more in [
        "usr/lib/1",
        "usr/lib/2",
        "usr/3",
        "4",
        "nowhere/",
        "nowhere/5",
    ] {
        expected.push(more.to_owned());
    }
    expected.sort();
    assert_eq!(unpacked.list("root"), expected);
    let circle: &[_] = &[link("a", "b"), link("b", "a")];
    layers(&[circle, &[file("a/f")]]).refused("too many symbolic links");
    layers(&[lower, &[file("../out")]]).refused("has a `..`");
    layers(&[lower, &[file("/out")]]).refused("is absolute");
    layers(&[lower, &[file("f"), file("f")]]).refused("is there twice");
}

#[test]
fn what_would_take_long_to_follow_is_refused() {
    // Each link leads through hundreds of names to the next one.
    let detour = "d/../".repeat(90);
    let chain: Vec<_> = (0..40)
        .map(|number| {
            let next = format!("{detour}l{}", number + 1);
            let long = pax("linkpath", &next);
            [long, link(&format!("l{number}"), "")].concat()
        })
        .chain([folder("d")])
        .collect();
    layers(&[&chain, &[file("l0/f")]]).refused("too many symbolic links");
    // To remove a thing twice says nothing new.
    let twice = [file(".wh.f"), file(".wh.f")];
    layers(&[&[file("f")], &twice]).refused("is there twice");
    let twice = [file("a/.wh..wh..opq"), file("l/.wh..wh..opq")];
    layers(&[&[file("a/f"), link("l", "a")], &twice]).refused("is there twice");
}

#[test]
fn hard_links_lead_to_files_of_the_image_only() {
    let lower: &[_] = &[holding("f", "one"), link("dir", "."), folder("d/")];
    let linked = layers(&[lower, &[hard_link("g", "dir/f")]]);
    assert_eq!(linked.text("root/g"), "one");
    for target in ["nothing", "d", "dir", "dir/../../etc/passwd"] {
        let refusal = layers(&[lower, &[hard_link("g", target)]]).refusal();
        assert!(
            refusal.contains("which is no file of the package") || refusal.contains("`..`"),
            "{target}: {refusal}"
        );
    }
    layers(&[lower, &[hard_link("g", "/etc/passwd")]]).refused("is absolute");
}

#[test]
fn devices_and_pipes_are_refused() {
    for kind in [
        tar::EntryType::Char,
        tar::EntryType::Block,
        tar::EntryType::Fifo,
    ] {
        layers(&[&[entry(kind, "dev/x", "", 0o600, b"")]]).refused("\"dev/x\" is a ");
    }
}

#[test]
fn a_damaged_image_is_refused_by_the_name_of_its_blob() {
    let layer: &[_] = &[file("f")];
    let digest = sha256(&tar(layer));
    // A byte of the blob, while its name stays.
    let mut layout = Layout::with(&[layer]);
    let blob = layout.entries.last_mut().unwrap();
    blob[512 + 515] ^= 1;
    layout
        .unpacked()
        .refused(&format!("the blob sha256:{digest} does not have"));
    let mut layout = Layout::with(&[layer]);
    layout.entries.pop();
    layout
        .unpacked()
        .refused(&format!("the blob sha256:{digest} is missing"));
    let mut layout = Layout::with(&[layer]);
    layout.layers[0]["size"] = json!(7);
    layout.unpacked().refused("does not have the length");
    let mut layout = Layout::with(&[layer]);
    layout.layers[0]["digest"] = json!("sha512:".to_owned() + &"0".repeat(128));
    layout.unpacked().refused("is not of the kind sha256");
    let mut layout = Layout::with(&[layer]);
    layout.diff_ids[0] = format!("sha256:{}", "0".repeat(64));
    layout
        .unpacked()
        .refused("is not the one that the image's configuration names");
    let mut layout = Layout::with(&[layer]);
    layout.diff_ids.pop();
    layout.unpacked().refused("1 layers, its configuration 0");
    let mut layout = Layout::with(&[layer]);
    layout.layers[0]["mediaType"] = json!("application/x-other");
    layout
        .unpacked()
        .refused("\"application/x-other\": tar, gzip and zstd are known");
    let mut layout = Layout::new();
    layout.layer(GZIP, &tar(layer), |_| b"no gzip".to_vec());
    layout.unpacked().refused("reading the tar archive");
    let mut layout = Layout::new();
    layout.layer(ZSTD, &tar(layer), |_| b"no zstd".to_vec());
    layout.unpacked().refused("cannot be decompressed");
}

#[test]
fn an_image_for_another_machine_or_two_images_are_refused() {
    let with = |change: fn(&mut Layout) -> Vec<Value>| {
        let mut layout = Layout::with(&[&[file("f")]]);
        let manifests = change(&mut layout);
        Unpacked::new(&layout.finish_with(&manifests))
    };
    with(|_| Vec::new()).refused("no image for linux/amd64");
    with(|layout| {
        let mut manifest = layout.manifest();
        manifest["platform"] = json!({"architecture": "arm64", "os": "linux"});
        vec![manifest]
    })
    .refused("no image for linux/amd64");
    with(|layout| {
        let one = layout.manifest();
        layout.config = json!({"Cmd": ["other"]});
        vec![one, layout.manifest()]
    })
    .refused("2 images for linux/amd64");
    // The right one among others, and below an index of its own.
    let nested = with(|layout| {
        let mut other = layout.manifest();
        other["platform"] = json!({"architecture": "unknown", "os": "unknown"});
        let mut right = layout.manifest();
        right["platform"] = json!({"architecture": "amd64", "os": "linux"});
        let index = Layout::index(&[other, right]);
        vec![layout.blob(INDEX, &index)]
    });
    assert_eq!(nested.list("root"), ["f"]);
}

#[test]
fn an_image_without_a_command_or_with_an_impossible_one_is_refused() {
    let with = |config: Value| {
        let mut layout = Layout::with(&[&[file("f")]]);
        layout.config = config;
        layout.unpacked()
    };
    with(json!({})).refused("neither an Entrypoint nor a Cmd");
    with(json!({"Cmd": ["a\0b"]})).refused("Entrypoint or Cmd has a zero byte");
    with(json!({"Cmd": ["a"], "Env": ["x".repeat(65_536)]})).refused("Env");
    let only = with(json!({"Cmd": ["/app"]}));
    assert_eq!(only.text("process/arguments"), "/app\0");
    assert_eq!(only.text("process/folder"), "/");
}

#[test]
fn a_bomb_in_a_layer_is_refused() {
    let zeroes = vec![0; 48 * 1024 * 1024];
    let plain = tar(&[entry(tar::EntryType::Regular, "zeroes", "", 0o600, &zeroes)]);
    let mut layout = Layout::new();
    layout.layer(GZIP, &plain, gzip);
    let bytes = layout.finish();
    assert!(bytes.len() < 200 * 1024);
    Unpacked::within(&bytes, 1024 * MAX).refused("decompression bomb");
    // A folder with content, which is only skipped, counts, too.
    let mut layout = Layout::new();
    let long = vec![0; 160 * 1024 * 1024];
    let skipped = tar(&[
        file("f"),
        entry(tar::EntryType::Directory, "d", "", 0o700, &long),
    ]);
    layout.layer(GZIP, &skipped, gzip);
    Unpacked::within(&layout.finish(), MAX).refused("longer than its files can be");
    // Zeroes after the archive's end count, too.
    let mut layout = Layout::new();
    let long = [tar(&[file("f")]), zeroes].concat();
    layout.layer(GZIP, &long, gzip);
    Unpacked::within(&layout.finish(), 8 * MAX).refused("larger than 8388608 bytes");
}

#[test]
fn json_that_is_none_is_refused_by_its_name() {
    let good = Layout::with(&[&[file("f")]]);
    let mut entries = good.entries;
    entries.push(holding("index.json", "{"));
    Unpacked::new(&tar(&entries)).refused("index.json cannot be understood");
    entries.pop();
    entries[0] = holding("oci-layout", r#"{"imageLayoutVersion":"2.0.0"}"#);
    entries.push(holding(
        "index.json",
        r#"{"schemaVersion":2,"manifests":[]}"#,
    ));
    Unpacked::new(&tar(&entries)).refused("the image layout has version \"2.0.0\"");
}
