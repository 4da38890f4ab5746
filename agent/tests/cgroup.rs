//! Control groups of environments, in a real hierarchy.

#![allow(clippy::unwrap_used, reason = "tests")]

use std::fs;
use std::path::PathBuf;
use std::process::Command;

use snapback::config;
use snapback::ids::EnvironmentId;
use snapback::process::{CgroupError, CgroupRoot};

#[tokio::test]
async fn what_an_earlier_agent_left_is_killed_and_removed() {
    let path = PathBuf::from(format!(
        "/sys/fs/cgroup/snapback-left-{}",
        std::process::id()
    ));
    let limits = config::Cgroup {
        root: Some(path.clone()),
        ..Default::default()
    };
    let id = EnvironmentId::from_number(7);
    let mut sleeper = Command::new("sleep").arg("1000").spawn().unwrap();
    {
        let root = CgroupRoot::open(&limits).unwrap();
        let cgroup = root.create(id, 128).unwrap().unwrap();
        cgroup.add(sleeper.id()).unwrap();
        let second = CgroupRoot::open(&limits);
        assert!(matches!(second, Err(CgroupError::InUse { .. })));
    }
    // Reaps it, as init does for an agent that was killed.
    let reaped = std::thread::spawn(move || sleeper.wait().unwrap());
    let root = CgroupRoot::open(&limits).unwrap();
    assert!(!reaped.join().unwrap().success());
    assert!(!path.join(id.to_string()).exists());
    root.create(id, 128).unwrap().unwrap().remove().await;
    drop(root);
    fs::remove_dir(path).unwrap();
}
