//! A container image, as tools write it: an OCI image layout in a tar archive.

use std::fs;
use std::path::Path;

use serde_json::{Value, json};
use sha2::{Digest as _, Sha256};
use tar::{Builder, Header};

/// An image of two layers, with nothing in it but a program, whose words and variables the
/// configuration gives.
pub fn image(program: &Path) -> Vec<u8> {
    let program = fs::read(program).unwrap();
    let lower = layer(&[("srv/app", &program, 0o755), ("srv/gone", b"gone", 0o644)]);
    let upper = layer(&[
        ("srv/.wh.gone", b"", 0o644),
        ("etc/motd", b"hello\n", 0o644),
    ]);
    let config = json!({
        "architecture": "amd64", "os": "linux",
        "config": {
            "Entrypoint": ["/srv/app"], "Cmd": ["unused"], "WorkingDir": "/srv",
            "Env": ["PATH=/srv", "GREETING=from the image"],
        },
        "rootfs": {"type": "layers", "diff_ids": [name(&lower), name(&upper)]},
    })
    .to_string()
    .into_bytes();
    let layer_type = "application/vnd.oci.image.layer.v1.tar";
    let manifest = json!({
        "schemaVersion": 2,
        "mediaType": "application/vnd.oci.image.manifest.v1+json",
        "config": descriptor("application/vnd.oci.image.config.v1+json", &config),
        "layers": [descriptor(layer_type, &lower), descriptor(layer_type, &upper)],
    })
    .to_string()
    .into_bytes();
    let index = json!({
        "schemaVersion": 2,
        "manifests": [descriptor("application/vnd.oci.image.manifest.v1+json", &manifest)],
    })
    .to_string()
    .into_bytes();

    let mut all = Builder::new(Vec::new());
    let version = br#"{"imageLayoutVersion":"1.0.0"}"#;
    append(&mut all, "oci-layout", version, 0o644);
    append(&mut all, "index.json", &index, 0o644);
    for blob in [&lower, &upper, &config, &manifest] {
        let path = format!("blobs/sha256/{}", hash(blob));
        append(&mut all, &path, blob, 0o644);
    }
    all.into_inner().unwrap()
}

fn layer(files: &[(&str, &[u8], u32)]) -> Vec<u8> {
    let mut layer = Builder::new(Vec::new());
    for (path, content, mode) in files {
        append(&mut layer, path, content, *mode);
    }
    layer.into_inner().unwrap()
}

fn append(archive: &mut Builder<Vec<u8>>, path: &str, content: &[u8], mode: u32) {
    let mut header = Header::new_gnu();
    header.set_size(u64::try_from(content.len()).unwrap());
    header.set_mode(mode);
    archive.append_data(&mut header, path, content).unwrap();
}

fn hash(bytes: &[u8]) -> String {
    format!("{:x}", Sha256::digest(bytes))
}

fn name(bytes: &[u8]) -> String {
    format!("sha256:{}", hash(bytes))
}

fn descriptor(media_type: &str, bytes: &[u8]) -> Value {
    json!({"mediaType": media_type, "digest": name(bytes), "size": bytes.len()})
}
