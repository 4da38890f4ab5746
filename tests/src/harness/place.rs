//! Where an agent keeps everything: state, socket, log, configuration, cgroup.

use std::fs;
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};
use std::sync::atomic::{AtomicU32, Ordering};

use super::agent::Agent;
use super::cli::Run;
use super::{LIMIT, given, processes, wait_for};

/// A folder and a cgroup of an agent's own. Both go when it is dropped.
pub struct Place {
    folder: tempfile::TempDir,
    cgroup: PathBuf,
}

impl Default for Place {
    fn default() -> Self {
        Self::new()
    }
}

impl Place {
    /// An empty one.
    pub fn new() -> Self {
        static COUNT: AtomicU32 = AtomicU32::new(0);
        let number = COUNT.fetch_add(1, Ordering::Relaxed);
        let name = format!("snapback-tests-{}-{number}", std::process::id());
        let place = Self {
            folder: tempfile::tempdir().unwrap(),
            cgroup: processes::cgroup_mount().join(name),
        };
        fs::create_dir(place.code()).unwrap();
        place
    }

    /// One with the state that another one kept.
    pub fn copy(other: &Self) -> Self {
        let place = Self::new();
        copy_tree(&other.template(), &place.state());
        place
    }

    /// Keeps a copy of the state, which no agent uses now, for [`Self::copy`].
    pub fn keep_template(&self) {
        copy_tree(&self.state(), &self.template());
    }

    pub fn folder(&self) -> &Path {
        self.folder.path()
    }

    pub fn state(&self) -> PathBuf {
        self.folder().join("state")
    }

    pub fn socket(&self) -> PathBuf {
        self.folder().join("api.sock")
    }

    pub fn cgroup(&self) -> &Path {
        &self.cgroup
    }

    fn code(&self) -> PathBuf {
        self.folder().join("code")
    }

    fn template(&self) -> PathBuf {
        self.folder().join("template")
    }

    /// A folder with code of a test's own.
    pub fn write_code(&self, name: &str, app: &str) -> PathBuf {
        let folder = self.code().join(name);
        fs::create_dir_all(&folder).unwrap();
        fs::write(folder.join("app.py"), app).unwrap();
        folder
    }

    /// Names of what is in a folder of the state.
    pub fn entries(&self, folder: &str) -> Vec<String> {
        let mut names: Vec<_> = fs::read_dir(self.state().join(folder))
            .unwrap()
            .map(|entry| entry.unwrap().file_name().into_string().unwrap())
            .collect();
        names.sort();
        names
    }

    /// What the agents in this place have logged.
    pub fn log(&self) -> String {
        fs::read_to_string(self.folder().join("log")).unwrap_or_default()
    }

    /// Starts an agent, with a configuration beyond the paths (TOML), and waits until it serves.
    pub fn start(self, config: &str) -> Agent {
        Agent::start(self, config)
    }

    /// The agent's command line in this place.
    pub fn agent_command(&self, config: &str) -> Command {
        let file = self.folder().join("config.toml");
        // A comparison after one reset in a hundred would make tests differ from run to run.
        let unsampled = match config.contains("[reset]") {
            true => "",
            false => "[reset]\nverify_fraction = 0\n",
        };
        fs::write(&file, format!("{config}\n{unsampled}")).unwrap();
        let programs = given("SNAPBACK_BIN_DIR");
        let mut command = Command::new(programs.join("snapback"));
        command
            .arg("agent")
            .arg("--config")
            .arg(file)
            .arg("--state-dir")
            .arg(self.state())
            .arg("--assets")
            .arg(given("SNAPBACK_ASSETS"))
            .arg("--vmm")
            .arg(programs.join("snapback-vmm"))
            .env("SNAPBACK_LOG", "debug")
            .stdin(Stdio::null());
        command
    }

    /// Runs an agent that is expected to end by itself.
    pub fn refused_agent(&self, socket: &Path, cgroup: &Path) -> Run {
        let mut child = self
            .agent_command("")
            .arg("--socket")
            .arg(socket)
            .arg("--cgroup-root")
            .arg(cgroup)
            .stdout(Stdio::piped())
            .stderr(Stdio::piped())
            .spawn()
            .unwrap();
        let start = std::time::Instant::now();
        while child.try_wait().unwrap().is_none() {
            if start.elapsed() > LIMIT {
                let _ = child.kill();
                panic!(
                    "an agent that should be refused runs: {:?}",
                    child.wait_with_output()
                );
            }
            std::thread::sleep(std::time::Duration::from_millis(20));
        }
        child.wait_with_output().unwrap().into()
    }

    /// Waits until no unfinished snapshot or image is there.
    pub fn wait_for_no_draft(&self) {
        wait_for("the end of every draft", || {
            let mut names = self.entries("snapshots");
            names.extend(self.entries("images"));
            let is_draft = |name: &String| name.starts_with(".draft-");
            (!names.iter().any(is_draft)).then_some(())
        });
    }

    /// Waits until no VMM process of this place runs.
    pub fn wait_for_no_machine(&self) {
        wait_for("the end of every VMM process", || {
            processes::machines_in(&self.cgroup)
                .is_empty()
                .then_some(())
        });
    }
}

impl Drop for Place {
    fn drop(&mut self) {
        // An agent that was killed leaves cgroups; they are empty when its processes are gone.
        for cgroup in processes::environments_in(&self.cgroup) {
            let _ = fs::write(cgroup.join("cgroup.kill"), "1");
            let gone = || fs::remove_dir(&cgroup).is_ok() || !cgroup.exists();
            for _ in 0..100 {
                if gone() {
                    break;
                }
                std::thread::sleep(std::time::Duration::from_millis(20));
            }
        }
        let _ = fs::remove_dir(&self.cgroup);
    }
}

/// Copies a folder; holes stay holes.
fn copy_tree(from: &Path, to: &Path) {
    let copied = Command::new("cp")
        .arg("-a")
        .args([from, to])
        .output()
        .unwrap();
    assert!(copied.status.success(), "{copied:?}");
}
