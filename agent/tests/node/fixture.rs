//! An agent's program with a state directory of its own.

use std::fs;
use std::io::Write as _;
use std::os::unix::fs::PermissionsExt as _;
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Output, Stdio};
use std::time::{Duration, Instant};

use serde_json::Value;

/// Nothing here takes longer.
pub const LIMIT: Duration = Duration::from_secs(60);

/// How a command ended.
#[derive(Debug)]
pub struct Run {
    pub success: bool,
    pub stdout: String,
    pub stderr: String,
}

impl Run {
    pub fn json(&self) -> Value {
        serde_json::from_str(&self.stdout).unwrap()
    }
}

impl From<Output> for Run {
    fn from(output: Output) -> Self {
        Self {
            success: output.status.success(),
            stdout: String::from_utf8(output.stdout).unwrap(),
            stderr: String::from_utf8(output.stderr).unwrap(),
        }
    }
}

pub struct Fixture {
    folder: tempfile::TempDir,
    tag: String,
}

/// A running agent; killed when it is dropped.
pub struct Agent(Child);

impl Agent {
    /// As an operator stops it.
    pub fn terminate(mut self) {
        let pid = rustix::process::Pid::from_child(&self.0);
        rustix::process::kill_process(pid, rustix::process::Signal::TERM).unwrap();
        let start = Instant::now();
        while self.0.try_wait().unwrap().is_none() {
            assert!(start.elapsed() < LIMIT, "the agent does not end");
            std::thread::sleep(Duration::from_millis(10));
        }
        assert!(self.0.wait().unwrap().success());
    }

    /// As a crash stops it.
    pub fn kill(mut self) {
        self.0.kill().unwrap();
        self.0.wait().unwrap();
    }
}

impl Drop for Agent {
    fn drop(&mut self) {
        let _ = self.0.kill();
        let _ = self.0.wait();
    }
}

impl Fixture {
    /// `None`, with the reason told, where the agent cannot run at all.
    pub fn new() -> Option<Self> {
        for path in ["/dev/kvm", "/dev/userfaultfd"] {
            if let Err(error) = fs::File::options().read(true).write(true).open(path) {
                eprintln!("skipped: {path}: {error}");
                return None;
            }
        }
        if Command::new("mkfs.erofs").arg("--help").output().is_err() {
            eprintln!("skipped: mkfs.erofs is not installed");
            return None;
        }
        let folder = tempfile::tempdir().unwrap();
        let tag = folder
            .path()
            .file_name()
            .unwrap()
            .to_str()
            .unwrap()
            .to_owned();
        let at = |name: &str| folder.path().join(name);
        fs::create_dir_all(at("assets/rootfs")).unwrap();
        for name in ["vmlinux", "guest-init.cpio", "rootfs/python.erofs"] {
            fs::write(at("assets").join(name), name).unwrap();
        }
        fs::create_dir(at("code")).unwrap();
        fs::write(at("code/app.py"), "def handler(event, context): pass\n").unwrap();
        // The tag is only there to be found in the list of processes.
        let own = std::env::current_exe().unwrap();
        let own = own.to_str().unwrap();
        let script = format!(
            "#!/bin/sh\nexec '{own}' --exact act_as_vmm --ignored --nocapture --skip '{tag}'\n"
        );
        fs::write(at("snapback-vmm"), script).unwrap();
        fs::set_permissions(at("snapback-vmm"), fs::Permissions::from_mode(0o755)).unwrap();
        Some(Self { folder, tag })
    }

    pub fn state(&self) -> PathBuf {
        self.folder.path().join("state")
    }

    pub fn socket(&self) -> PathBuf {
        self.folder.path().join("api.sock")
    }

    fn agent_command(&self) -> Command {
        let at = |name: &str| self.folder.path().join(name);
        let mut command = Command::new(env!("CARGO_BIN_EXE_snapback"));
        command.arg("agent").arg("--state-dir").arg(at("state"));
        command.arg("--assets").arg(at("assets"));
        command.arg("--vmm").arg(at("snapback-vmm"));
        command.arg("--cgroup-root").arg(at("no-cgroup"));
        command
    }

    /// Starts an agent and waits until it serves.
    pub fn start(&self) -> Agent {
        let log = fs::File::options()
            .create(true)
            .append(true)
            .open(self.folder.path().join("log"))
            .unwrap();
        let child = self
            .agent_command()
            .arg("--socket")
            .arg(self.socket())
            .env("SNAPBACK_LOG", "debug")
            .stdin(Stdio::null())
            .stderr(log)
            .spawn()
            .unwrap();
        let mut agent = Agent(child);
        let start = Instant::now();
        while !self.snapback(&["function", "list"]).success {
            let ended = agent.0.try_wait().unwrap();
            assert!(ended.is_none(), "{ended:?}: {}", self.log());
            assert!(start.elapsed() < LIMIT, "{}", self.log());
            std::thread::sleep(Duration::from_millis(10));
        }
        agent
    }

    fn log(&self) -> String {
        fs::read_to_string(self.folder.path().join("log")).unwrap_or_default()
    }

    /// Runs an agent that is expected to end by itself.
    pub fn agent_now(&self, arguments: &[&str]) -> Run {
        let mut command = self.agent_command();
        if !arguments.contains(&"--socket") {
            command.arg("--socket").arg(self.socket());
        }
        command.args(arguments).output().unwrap().into()
    }

    /// Runs a client command.
    pub fn snapback(&self, arguments: &[&str]) -> Run {
        self.client(arguments, b"")
    }

    fn client(&self, arguments: &[&str], input: &[u8]) -> Run {
        let mut child = Command::new(env!("CARGO_BIN_EXE_snapback"))
            .args(arguments)
            .arg("--socket")
            .arg(self.socket())
            .stdin(Stdio::piped())
            .stdout(Stdio::piped())
            .stderr(Stdio::piped())
            .spawn()
            .unwrap();
        let mut stdin = child.stdin.take().unwrap();
        // It may end without reading.
        let _ = stdin.write_all(input);
        drop(stdin);
        child.wait_with_output().unwrap().into()
    }

    pub fn create(&self, name: &str, more: &[&str]) -> Run {
        self.create_from(name, &self.folder.path().join("code"), more)
    }

    pub fn create_from(&self, name: &str, code: &Path, more: &[&str]) -> Run {
        let mut arguments = vec!["function", "create", name, "--handler", "app.handler"];
        if !more.contains(&"--runtime") {
            arguments.extend(["--runtime", "python3.11"]);
        }
        arguments.extend(["--code", code.to_str().unwrap()]);
        arguments.extend(more);
        self.snapback(&arguments)
    }

    pub fn invoke(&self, name: &str, event: &[u8]) -> Run {
        self.client(&["invoke", name, "--payload", "-"], event)
    }

    /// The run, and what it cost.
    pub fn invoke_recorded(&self, name: &str, event: &Value) -> (Run, Value) {
        let file = tempfile::NamedTempFile::new_in(self.folder.path()).unwrap();
        let path = file.path().to_str().unwrap();
        let arguments = ["invoke", name, "--payload", "-", "--record", path];
        let run = self.client(&arguments, event.to_string().as_bytes());
        let record = fs::read(path).unwrap();
        let record = serde_json::from_slice(&record).unwrap_or_else(|_| panic!("{run:?}"));
        (run, record)
    }

    /// How many VMM processes of this fixture there are.
    pub fn vmm_processes(&self) -> usize {
        let process = |entry: fs::DirEntry| fs::read(entry.path().join("cmdline")).ok();
        fs::read_dir("/proc")
            .unwrap()
            .flatten()
            .filter_map(process)
            .filter(|line| {
                let line = String::from_utf8_lossy(line);
                line.contains("act_as_vmm") && line.contains(&self.tag)
            })
            .count()
    }

    pub fn wait_for_no_vmm(&self) {
        let start = Instant::now();
        while self.vmm_processes() > 0 {
            assert!(start.elapsed() < LIMIT, "VMM processes are left behind");
            std::thread::sleep(Duration::from_millis(10));
        }
    }
}

impl Drop for Fixture {
    fn drop(&mut self) {
        if std::thread::panicking() {
            eprintln!("the agent's log:\n{}", self.log());
        }
    }
}
