//! PID 1 of the guest that another VMM snapshots and restores beside Snapback: the
//! same kernel, the same root file system and the same function, and as little else
//! as can be, so that the other's figures are its best.
//!
//! ```text
//!  boot ─► mount root (vda) and code (vdb) ─► start the function ─► listen on vsock
//!  each connection: one line in ─► one line out
//!     "ping"  answered here          anything else  an event: answered by the function
//! ```

#![forbid(unsafe_code)]

use std::fs;
use std::io::{BufRead as _, BufReader, Write as _};
use std::process::{Child, ChildStdin, ChildStdout, Command, Stdio};
use std::time::Duration;

use anyhow::{Context as _, Result, bail};
use rustix::mount::{MountFlags, mount};
use vsock::{VMADDR_CID_ANY, VsockListener, VsockStream};

/// Where the host connects to.
const PORT: u32 = 5000;
const ROOT: &str = "/newroot";
/// How often a disk is looked for, and how long in between.
const TRIES: u32 = 500;
const INTERVAL: Duration = Duration::from_millis(10);
/// How long a caller may take for its line.
const PATIENCE: Duration = Duration::from_secs(30);

/// Calls the handler with each line, without a runtime interface in between.
const DRIVER: &str = "import sys, json
sys.path.insert(0, '/var/task')
from app import handler
print('ready', flush=True)
for line in sys.stdin:
    print(json.dumps(handler(json.loads(line), None)), flush=True)
";

fn main() {
    if let Err(error) = serve() {
        say(&format!("{error:#}"));
    }
    // PID 1 must not end by itself; its host kills the machine.
    loop {
        std::thread::park();
    }
}

fn serve() -> Result<()> {
    attach("devtmpfs", "/dev", "devtmpfs")?;
    disk("/dev/vda", ROOT)?;
    disk("/dev/vdb", &format!("{ROOT}/var/task"))?;
    rustix::process::chroot(ROOT).context("entering the root file system")?;
    rustix::process::chdir("/").context("entering the root file system")?;
    attach("devtmpfs", "/dev", "devtmpfs")?;
    attach("proc", "/proc", "proc")?;
    attach("tmpfs", "/tmp", "tmpfs")?;
    let mut function = Function::start()?;
    let listener =
        VsockListener::bind_with_cid_port(VMADDR_CID_ANY, PORT).context("listening on vsock")?;
    say("ready");
    for stream in listener.incoming() {
        // A caller that goes away (its machine was saved) is not the last one.
        if let Err(error) = stream
            .map_err(Into::into)
            .and_then(|s| answer(s, &mut function))
        {
            say(&format!("{error:#}"));
        }
    }
    Ok(())
}

fn answer(mut stream: VsockStream, function: &mut Function) -> Result<()> {
    stream
        .set_read_timeout(Some(PATIENCE))
        .context("limiting a caller")?;
    let mut line = String::new();
    BufReader::new(&stream)
        .read_line(&mut line)
        .context("reading an event")?;
    let answer = match line.as_str() {
        "ping\n" => "pong\n".to_owned(),
        "" => return Ok(()),
        event => function.call(event)?,
    };
    stream
        .write_all(answer.as_bytes())
        .context("sending an answer")
}

/// The function's process.
struct Function {
    _process: Child,
    input: ChildStdin,
    output: BufReader<ChildStdout>,
}

impl Function {
    fn start() -> Result<Self> {
        let mut process = Command::new("/usr/bin/python3")
            .args(["-c", DRIVER])
            .stdin(Stdio::piped())
            .stdout(Stdio::piped())
            .spawn()
            .context("starting the function")?;
        let (Some(input), Some(output)) = (process.stdin.take(), process.stdout.take()) else {
            bail!("the function has no pipes");
        };
        let mut function = Self {
            _process: process,
            input,
            output: BufReader::new(output),
        };
        match function.line()?.as_str() {
            "ready\n" => Ok(function),
            other => bail!("the function began with {other:?}"),
        }
    }

    fn call(&mut self, event: &str) -> Result<String> {
        self.input
            .write_all(event.as_bytes())
            .context("sending the function its event")?;
        self.line()
    }

    fn line(&mut self) -> Result<String> {
        let mut line = String::new();
        self.output
            .read_line(&mut line)
            .context("reading the function's answer")?;
        Ok(line)
    }
}

/// To the console, when the machine has one.
fn say(what: &str) {
    // Nobody else could be told.
    let _ = writeln!(std::io::stderr(), "peer-init: {what}");
}

fn attach(what: &str, target: &str, kind: &str) -> Result<()> {
    mount(what, target, kind, MountFlags::empty(), c"")
        .with_context(|| format!("mounting {what} on {target}"))
}

fn disk(device: &str, target: &str) -> Result<()> {
    for _ in 0..TRIES {
        if fs::exists(device).unwrap_or(false) {
            return mount(device, target, "erofs", MountFlags::RDONLY, c"")
                .with_context(|| format!("mounting {device} on {target}"));
        }
        std::thread::sleep(INTERVAL);
    }
    bail!("{device} did not appear")
}
