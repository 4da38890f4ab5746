//! PID 1 of the guest that the reset benchmark has write pages: a Linux with its root
//! disk mounted, its network up and a vsock stream open, and nothing else that writes
//! memory, so that the pages of a request are those that it was asked for and the few
//! that a kernel needs.
//!
//! ```text
//!  boot ─► make a pool of pages ─► root (vda), network (eth0, if there is one)
//!   ├─ `channel=PORT` on the kernel's command line: connect to the host
//!   └─ else: listen on vsock, one caller after the other
//!  each line:  "N K"      write N pages of the pool, its K-th choice ─► nanoseconds
//!              "devices"  read the disk, send to the network         ─► 0
//! ```

#![forbid(unsafe_code)]

use std::fs::File;
use std::io::{BufRead as _, BufReader, Read, Write};
use std::net::UdpSocket;
use std::os::unix::fs::FileExt as _;
use std::process::Command;
use std::time::{Duration, Instant};

use anyhow::{Context as _, Result, bail};
use rustix::mount::{MountFlags, mount};
use vsock::{VMADDR_CID_ANY, VMADDR_CID_HOST, VsockListener, VsockStream};

/// Where a host connects to that opens no channel.
const PORT: u32 = 5000;
const PAGE: usize = 4096;
/// Pages that can be written: 80 MiB.
const POOL: usize = 20_480;
/// Two neighbours of a choice lie so many pages apart. It has no divisor in common with
/// the pool's size: a choice of all pages has each of them once.
const STRIDE: usize = 7_919;
/// How often a disk is looked for, and how long in between.
const TRIES: u32 = 500;
const INTERVAL: Duration = Duration::from_millis(10);
/// The guest's address, the host's, and a port where nobody listens.
const GUEST: &str = "10.0.0.2/24";
const HOST: &str = "10.0.0.1:9";
/// What `devices` reads and sends.
const BLOCKS: usize = 8;
const BLOCK: usize = 16 * 1024;
const DATAGRAMS: usize = 8;

fn main() {
    if let Err(error) = serve() {
        say(&format!("{error:#}"));
    }
    // PID 1 must not end by itself; its host kills the machine.
    loop {
        std::thread::park();
    }
}

/// To the console, through the kernel's log, as an error of the kernel's.
fn say(what: &str) {
    // Nobody else could be told.
    let _ = std::fs::write("/dev/kmsg", format!("<3>dirty-init: {what}"));
}

fn serve() -> Result<()> {
    let mut machine = Machine::set_up()?;
    if let Ok(port) = std::env::var("channel") {
        let port = port.parse().context("the channel's port")?;
        let stream = VsockStream::connect_with_cid_port(VMADDR_CID_HOST, port);
        let mut stream = stream.context("connecting to the host")?;
        stream
            .write_all(b"ready\n")
            .context("saying that it is ready")?;
        return machine.answer(stream);
    }
    let listener =
        VsockListener::bind_with_cid_port(VMADDR_CID_ANY, PORT).context("listening on vsock")?;
    for stream in listener.incoming() {
        // A caller that goes away (its machine was saved) is not the last one.
        let answered = stream.map_err(Into::into).and_then(|s| machine.answer(s));
        if let Err(error) = answered {
            say(&format!("{error:#}"));
        }
    }
    Ok(())
}

struct Machine {
    pool: Vec<u8>,
    disk: File,
    socket: Option<UdpSocket>,
    /// Where the next read of the disk begins, in blocks.
    block: u64,
}

impl Machine {
    fn set_up() -> Result<Self> {
        // Not zero: every page of the pool is there, and its own.
        let pool = vec![1; POOL * PAGE];
        device_files()?;
        let disk = open_disk()?;
        mount("/dev/vda", "/newroot", "erofs", MountFlags::RDONLY, c"").context("mounting vda")?;
        rustix::process::chroot("/newroot").context("entering the root file system")?;
        rustix::process::chdir("/").context("entering the root file system")?;
        device_files()?;
        let socket = network()?;
        Ok(Self {
            pool,
            disk,
            socket,
            block: 0,
        })
    }

    /// Serves one stream to its end.
    fn answer(&mut self, mut stream: VsockStream) -> Result<()> {
        let reader = stream.try_clone().context("sharing the stream")?;
        let mut reader = BufReader::with_capacity(256, reader);
        let mut line = String::with_capacity(256);
        loop {
            line.clear();
            let read = reader.by_ref().take(200).read_line(&mut line);
            if read.context("reading a line")? == 0 {
                return Ok(());
            }
            let took = match line.trim_end().split_once(' ') {
                Some((count, choice)) => self.write_pages(count.parse()?, choice.parse()?),
                None => self.use_devices()?,
            };
            let answer = format!("{}\n", took.as_nanos());
            stream.write_all(answer.as_bytes()).context("answering")?;
        }
    }

    /// Changes one byte in each of `count` pages.
    fn write_pages(&mut self, count: usize, choice: usize) -> Duration {
        let begin = Instant::now();
        for nth in 0..count.min(POOL) {
            let page = (choice * count + nth) * STRIDE % POOL;
            if let Some(byte) = self.pool.get_mut(page * PAGE) {
                *byte = byte.wrapping_add(1);
            }
        }
        begin.elapsed()
    }

    fn use_devices(&mut self) -> Result<Duration> {
        let mut buffer = vec![0; BLOCK];
        for _ in 0..BLOCKS {
            let at = self.block * u64::try_from(BLOCK)?;
            self.disk
                .read_exact_at(&mut buffer, at)
                .context("reading the disk")?;
            self.block += 1;
        }
        if let Some(socket) = &self.socket {
            for _ in 0..DATAGRAMS {
                socket.send_to(&buffer[..1000], HOST).context("sending")?;
            }
        }
        Ok(Duration::ZERO)
    }
}

fn device_files() -> Result<()> {
    mount("devtmpfs", "/dev", "devtmpfs", MountFlags::empty(), c"").context("mounting /dev")
}

fn open_disk() -> Result<File> {
    for _ in 0..TRIES {
        match File::open("/dev/vda") {
            Ok(disk) => return Ok(disk),
            Err(_) => std::thread::sleep(INTERVAL),
        }
    }
    bail!("/dev/vda did not appear")
}

/// The link, if there is one, up and with an address.
fn network() -> Result<Option<UdpSocket>> {
    let ip = |words: &str| {
        Command::new("busybox")
            .arg("ip")
            .args(words.split(' '))
            .stderr(std::process::Stdio::null())
            .status()
    };
    let added = ip(&format!("addr add {GUEST} dev eth0")).context("running busybox")?;
    if !added.success() {
        return Ok(None);
    }
    ip("link set eth0 up").context("running busybox")?;
    let socket = UdpSocket::bind("0.0.0.0:0").context("making a socket")?;
    Ok(Some(socket))
}
