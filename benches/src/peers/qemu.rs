//! QEMU's microvm machine, at its best: its memory in a file that a snapshot leaves
//! where it is (`x-ignore-shared`), virtio-mmio devices, no firmware device beyond
//! what a boot needs.

use std::fs;
use std::io::{BufRead as _, BufReader, Write as _};
use std::os::unix::net::UnixStream;
use std::path::{Path, PathBuf};
use std::process::Command;
use std::time::Instant;

use serde_json::{Value, json};

use super::process::{Process, remove};
use super::{CID, Dial, Guest, PATIENCE, PeerError, Start, Times, Vmm};

pub(super) const PEER: &str = "qemu";
const PROGRAM: &str = "qemu-system-x86_64";
const COMMAND_LINE: &str = "console=ttyS0 quiet loglevel=4 reboot=k panic=-1 nomodule \
     random.trust_cpu=on i8042.noaux i8042.nokbd";

pub(super) fn prepare(doing: impl Into<String>) -> impl FnOnce(std::io::Error) -> PeerError {
    super::prepare(PEER, doing)
}

/// QEMU's microvm.
#[derive(Debug, Clone, Copy)]
pub struct Qemu;

impl Vmm for Qemu {
    fn peer(&self) -> &'static str {
        PEER
    }

    fn name(&self) -> Result<String, PeerError> {
        Ok(format!("{PEER}-microvm {}", version()?))
    }

    fn save(&self, guest: &Guest) -> Result<(), PeerError> {
        load_vsock()?;
        save(guest)
    }

    fn restore(&self, guest: &Guest, start: Start) -> Result<Times, PeerError> {
        restore(guest, start)
    }
}

/// The host's side of a guest's vsock is a module that nothing else loads.
pub(super) fn load_vsock() -> Result<(), PeerError> {
    const DEVICE: &str = "/dev/vhost-vsock";
    if Path::new(DEVICE).exists() {
        return Ok(());
    }
    let output = Command::new("modprobe")
        .arg("vhost_vsock")
        .output()
        .map_err(prepare("run modprobe"))?;
    if Path::new(DEVICE).exists() {
        return Ok(());
    }
    Err(PeerError::Refused {
        peer: PEER,
        command: "modprobe vhost_vsock".to_owned(),
        answer: String::from_utf8_lossy(&output.stderr).into_owned(),
    })
}

pub(super) fn version() -> Result<String, PeerError> {
    let output = Command::new(PROGRAM)
        .arg("--version")
        .output()
        .map_err(prepare(format!("run {PROGRAM}")))?;
    let text = String::from_utf8_lossy(&output.stdout).into_owned();
    let version = text.split_whitespace().nth(3).unwrap_or("of no version");
    Ok(version.to_owned())
}

fn memory_file(guest: &Guest) -> PathBuf {
    guest.scratch.join("qemu-memory")
}

fn saved_memory(guest: &Guest) -> PathBuf {
    guest.scratch.join("qemu-memory-saved")
}

fn state_file(guest: &Guest) -> PathBuf {
    guest.scratch.join("qemu-state")
}

/// Boots once and leaves memory and state in their files.
fn save(guest: &Guest) -> Result<(), PeerError> {
    let mut machine = Machine::start(guest, &[])?;
    machine.times(Instant::now())?;
    let mut control = machine.control()?;
    control.ignore_shared_memory()?;
    let target = format!("exec:cat > {}", state_file(guest).display());
    control.command("migrate", &json!({ "uri": target }))?;
    control.wait_for_migration()?;
    // Until the machine is gone, its memory may change.
    drop(machine);
    fs::rename(memory_file(guest), saved_memory(guest)).map_err(prepare("keep the memory"))
}

/// Restores once.
fn restore(guest: &Guest, start: Start) -> Result<Times, PeerError> {
    fs::copy(saved_memory(guest), memory_file(guest)).map_err(prepare("copy the memory"))?;
    let source = format!("exec:cat {}", state_file(guest).display());
    let mut begin = Instant::now();
    let mut machine = Machine::start(guest, &["-incoming", "defer"])?;
    let mut control = machine.control()?;
    control.ignore_shared_memory()?;
    if start == Start::Waiting {
        begin = Instant::now();
    }
    control.command("migrate-incoming", &json!({ "uri": source }))?;
    // A connection that is made earlier may be lost with the transport's reset.
    control.wait_for_event("RESUME")?;
    machine.times(begin)
}

/// A QEMU process with its control socket.
pub(super) struct Machine {
    process: Process,
    socket: PathBuf,
}

impl Machine {
    fn start(guest: &Guest, more: &[&str]) -> Result<Self, PeerError> {
        Self::start_with(guest, false, more)
    }

    /// With its memory as its own (`private`), or in its file.
    pub(super) fn start_with(
        guest: &Guest,
        private: bool,
        more: &[&str],
    ) -> Result<Self, PeerError> {
        let socket = guest.scratch.join("qmp");
        remove(PEER, &socket)?;
        let mut command = Command::new(PROGRAM);
        command.args(arguments(guest, &socket, private)).args(more);
        let process = Process::start(PEER, &mut command, &guest.scratch.join("qemu.log"))?;
        Ok(Self { process, socket })
    }

    /// Waits until the guest answers `line`.
    pub(super) fn answers(&mut self, line: &str) -> Result<(), PeerError> {
        self.process
            .answers(&Dial::Vsock { cid: CID }, line, PATIENCE)
    }

    fn times(&mut self, begin: Instant) -> Result<Times, PeerError> {
        Times::of(begin, |line| self.answers(line))
    }

    /// Connects to the process as soon as it listens.
    pub(super) fn control(&mut self) -> Result<Control, PeerError> {
        let begin = Instant::now();
        loop {
            match UnixStream::connect(&self.socket) {
                Ok(stream) => return Control::open(stream),
                Err(error) if begin.elapsed() > PATIENCE => {
                    return Err(prepare("reach QEMU's control socket")(error));
                }
                Err(_) => self.process.check()?,
            }
            std::thread::sleep(std::time::Duration::from_micros(500));
        }
    }
}

fn arguments(guest: &Guest, socket: &Path, private: bool) -> Vec<String> {
    let memory = guest.memory_mib;
    let backend = if private {
        format!("memory-backend-ram,id=ram,size={memory}M")
    } else {
        format!(
            "memory-backend-file,id=ram,size={memory}M,share=on,mem-path={}",
            memory_file(guest).display()
        )
    };
    let disk = |id: &str, path: &Path| {
        [
            "-drive".to_owned(),
            format!(
                "id={id},file={},format=raw,if=none,readonly=on",
                path.display()
            ),
            "-device".to_owned(),
            format!("virtio-blk-device,drive={id}"),
        ]
    };
    let mut words: Vec<String> = [
        "-machine",
        "microvm,accel=kvm,pit=off,pic=off,rtc=off,memory-backend=ram",
        "-cpu",
        "host",
        "-smp",
        "1",
        "-nodefaults",
        "-no-user-config",
        "-nographic",
        "-serial",
        "null",
        "-no-reboot",
        "-append",
        COMMAND_LINE,
    ]
    .map(str::to_owned)
    .to_vec();
    words.extend([
        "-m".to_owned(),
        format!("{memory}"),
        "-object".to_owned(),
        backend,
        "-kernel".to_owned(),
        guest.kernel.display().to_string(),
        "-initrd".to_owned(),
        guest.initramfs.display().to_string(),
        "-device".to_owned(),
        format!("vhost-vsock-device,guest-cid={CID}"),
        "-qmp".to_owned(),
        format!("unix:{},server=on,wait=off", socket.display()),
    ]);
    words.extend(disk("root", &guest.root));
    words.extend(disk("code", &guest.code));
    words
}

/// QEMU's machine protocol.
pub(super) struct Control {
    reader: BufReader<UnixStream>,
    /// Names of the events that came before an answer.
    events: Vec<String>,
}

impl Control {
    fn open(stream: UnixStream) -> Result<Self, PeerError> {
        stream
            .set_read_timeout(Some(PATIENCE))
            .map_err(prepare("limit QEMU's control socket"))?;
        let mut control = Self {
            reader: BufReader::new(stream),
            events: Vec::new(),
        };
        control.message()?;
        control.command("qmp_capabilities", &json!({}))?;
        Ok(control)
    }

    /// Leaves shared memory where it is when the machine is saved and loaded.
    fn ignore_shared_memory(&mut self) -> Result<(), PeerError> {
        let capability = json!([{ "capability": "x-ignore-shared", "state": true }]);
        let arguments = json!({ "capabilities": capability });
        self.command("migrate-set-capabilities", &arguments)
            .map(drop)
    }

    fn wait_for_migration(&mut self) -> Result<(), PeerError> {
        let begin = Instant::now();
        loop {
            let answer = self.command("query-migrate", &json!({}))?;
            match answer["status"].as_str() {
                Some("completed") => return Ok(()),
                Some("failed" | "cancelled") => {
                    return Err(refused("query-migrate", &answer));
                }
                _ if begin.elapsed() > PATIENCE => {
                    return Err(refused("query-migrate", &answer));
                }
                _ => std::thread::sleep(std::time::Duration::from_millis(5)),
            }
        }
    }

    pub(super) fn command(&mut self, name: &str, arguments: &Value) -> Result<Value, PeerError> {
        self.events.clear();
        let mut text = json!({ "execute": name, "arguments": arguments }).to_string();
        text.push('\n');
        let stream = self.reader.get_mut();
        stream
            .write_all(text.as_bytes())
            .map_err(prepare(format!("send {name}")))?;
        loop {
            let message = self.message()?;
            if let Some(answer) = message.get("return") {
                return Ok(answer.clone());
            }
            if message.get("error").is_some() {
                return Err(refused(name, &message));
            }
            self.events.extend(event_name(&message));
        }
    }

    /// Waits for an event that came after the last command or comes now. Bounded by
    /// the socket's limit, and by what QEMU can say.
    fn wait_for_event(&mut self, name: &str) -> Result<(), PeerError> {
        while !self.events.iter().any(|event| event == name) {
            let message = self.message()?;
            self.events.extend(event_name(&message));
        }
        Ok(())
    }

    fn message(&mut self) -> Result<Value, PeerError> {
        let mut line = String::new();
        let read = self.reader.read_line(&mut line);
        read.map_err(prepare("read QEMU's control socket"))?;
        serde_json::from_str(&line).map_err(|source| prepare("understand QEMU")(source.into()))
    }
}

fn event_name(message: &Value) -> Option<String> {
    Some(message.get("event")?.as_str()?.to_owned())
}

pub(super) fn refused(command: &str, answer: &Value) -> PeerError {
    PeerError::Refused {
        peer: PEER,
        command: command.to_owned(),
        answer: answer.to_string(),
    }
}
