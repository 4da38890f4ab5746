//! A program that enters the jail and then does what its first argument says: what
//! `tests/jail.rs` watches from outside. A test cannot jail itself, because the
//! test harness has threads.

use std::fs::File;
use std::io::{IsTerminal as _, Read as _, Write as _};
use std::os::fd::AsFd as _;
use std::process::{Command, ExitCode};
use std::sync::{Arc, Mutex, mpsc};
use std::time::{Duration, Instant};

use anyhow::{Context as _, ensure};
use kvm_bindings::{KVM_MAX_CPUID_ENTRIES, KVM_PIT_SPEAKER_DUMMY, kvm_pit_config};
use kvm_ioctls::{IoEventAddress, Kvm, NoDatamatch};
use rustix::event::EventfdFlags;
use snapback_vmm::jail::{self, Identity, JailConfig, Jailed};
use snapback_vmm::poll::{HostPoll, Interest};
use snapback_vmm::sys::uffd::Uffd;
use vmm_sys_util::eventfd::EventFd;

fn main() -> ExitCode {
    let what = std::env::args().nth(1).unwrap_or_default();
    match run(&what) {
        Ok(()) => ExitCode::SUCCESS,
        Err(error) => {
            println!("error: {error:#}");
            ExitCode::FAILURE
        }
    }
}

fn run(what: &str) -> anyhow::Result<()> {
    let full = JailConfig::full();
    match what {
        "wait" => wait(&full),
        "wait-as-other" => wait(&JailConfig {
            identity: Some(Identity {
                uid: 64_321,
                gid: 64_322,
            }),
            ..full
        }),
        "work" => work(jail::enter(&full)?),
        "kvm" => kvm(&full),
        "twice" => {
            let config = JailConfig::none();
            jail::enter(&config)?;
            jail::enter(&config).map(drop).map_err(Into::into)
        }
        "with-thread" => {
            let (_sender, receiver) = mpsc::channel::<()>();
            let thread = std::thread::spawn(move || receiver.recv());
            let entered = jail::enter(&full);
            drop(thread);
            entered.map(drop).map_err(Into::into)
        }
        "landlock-only" => {
            jail::enter(&JailConfig {
                landlock: true,
                ..JailConfig::none()
            })?;
            File::open("/proc/self/status")
                .map(drop)
                .context("opening a path")
        }
        "namespaces-only" => {
            jail::enter(&JailConfig {
                namespaces: true,
                ..JailConfig::none()
            })?;
            let names = std::fs::read_dir("/").context("listing the root")?.count();
            let written = File::create("/file").is_ok();
            println!("entries {names}, written {written}");
            Ok(())
        }
        forbidden => {
            let jailed = jail::enter(&full)?;
            println!("jailed");
            forbidden_act(forbidden, jailed)?;
            println!("survived");
            Ok(())
        }
    }
}

/// Is looked at from outside until its input ends.
fn wait(config: &JailConfig) -> anyhow::Result<()> {
    jail::enter(config)?;
    println!("jailed");
    std::io::stdin().read_to_end(&mut Vec::new())?;
    Ok(())
}

fn forbidden_act(what: &str, jailed: Jailed) -> anyhow::Result<()> {
    match what {
        "open" => drop(File::open("/")),
        "exec" => drop(Command::new("/bin/true").status()),
        "connect" => drop(std::os::unix::net::UnixStream::connect("/x")),
        "tcp" => drop(std::net::TcpStream::connect("127.0.0.1:1")),
        "terminal" => println!("{}", std::io::stdin().is_terminal()),
        "signal" => drop(rustix::process::kill_process(
            rustix::process::Pid::INIT,
            rustix::process::Signal::TERM,
        )),
        "memfd" => drop(snapback_vmm::sys::memfd::create("x", 4096)),
        "blocking" => drop(rustix::fs::fcntl_setfl(
            std::io::stdin(),
            rustix::fs::OFlags::empty(),
        )),
        "blocking-by-ioctl" => drop(rustix::io::ioctl_fionbio(std::io::stdin(), false)),
        "another-threads-place" => drop(rustix::thread::sched_setaffinity(
            Some(rustix::process::getpid()),
            &rustix::thread::CpuSet::new(),
        )),
        "vcpu-thread" => {
            jailed.confine_vcpu_thread()?;
            drop(std::thread::Builder::new().spawn(|| ()));
        }
        other => anyhow::bail!("{other:?} is not known"),
    }
    Ok(())
}

/// Everything that the VMM's threads do apart from KVM.
fn work(jailed: Jailed) -> anyhow::Result<()> {
    let total = Arc::new(Mutex::new(0_usize));
    let event = EventFd::new(0)?;
    let poll = HostPoll::new()?;
    let threads: Vec<_> = (0..4)
        .map(|n| {
            let (total, event) = (Arc::clone(&total), event.try_clone()?);
            let ready = rustix::event::eventfd(1, EventfdFlags::empty())?;
            let mut host = poll.device(n).adopt(ready, 0)?;
            std::thread::Builder::new()
                .name(format!("vcpu {n}"))
                .spawn(move || {
                    jailed.confine_vcpu_thread()?;
                    // Large enough for a mapping of its own, grown and given back.
                    let mut bytes = vec![1_u8; 1 << 20];
                    bytes.resize(8 << 20, 1);
                    *total.lock().map_err(|_| anyhow::anyhow!("poisoned"))? += bytes.len();
                    event.write(1)?;
                    std::thread::sleep(Duration::from_millis(1));
                    host.want(Interest::READABLE)?;
                    anyhow::Ok((n > 0).then_some(host))
                })
        })
        .collect::<Result<_, _>>()?;
    let mut hosts = Vec::new();
    for thread in threads {
        let host = thread.join();
        hosts.push(host.map_err(|_| anyhow::anyhow!("a thread panicked"))??);
    }
    ensure!(poll.ready()?.len() == 3, "one thread closed its host end");
    drop(hosts);
    ensure!(poll.ready()?.is_empty());
    ensure!(*total.lock().map_err(|_| anyhow::anyhow!("poisoned"))? == 32 << 20);
    ensure!(event.read()? == 4);
    let random = std::collections::HashMap::from([(1, 2)]);
    ensure!(random.contains_key(&1) && Instant::now().elapsed() < Duration::from_secs(60));
    let unknown = std::panic::catch_unwind(|| std::hint::black_box(Vec::<u8>::new())[0]);
    ensure!(unknown.is_err(), "a panic is caught");
    println!("done");
    std::io::stdout().flush()?;
    Ok(())
}

/// Builds a machine from descriptors that were opened outside.
fn kvm(config: &JailConfig) -> anyhow::Result<()> {
    let kvm = Kvm::new()?;
    let device = File::options()
        .read(true)
        .write(true)
        .open("/dev/userfaultfd")?;
    jail::enter(config)?;
    Uffd::from_device(device.as_fd()).context("userfaultfd")?;
    let vm = kvm.create_vm()?;
    vm.create_irq_chip().context("interrupt controllers")?;
    let pit = kvm_pit_config {
        flags: KVM_PIT_SPEAKER_DUMMY,
        ..Default::default()
    };
    vm.create_pit2(pit).context("timer")?;
    let vcpu = vm.create_vcpu(0).context("virtual processor")?;
    vcpu.set_cpuid2(&kvm.get_supported_cpuid(KVM_MAX_CPUID_ENTRIES)?)
        .context("CPUID")?;
    vcpu.set_regs(&vcpu.get_regs()?).context("registers")?;
    vcpu.set_sregs(&vcpu.get_sregs()?)
        .context("segment registers")?;
    vcpu.set_xcrs(&vcpu.get_xcrs()?).context("XCRs")?;
    vcpu.set_lapic(&vcpu.get_lapic()?).context("local APIC")?;
    vcpu.set_vcpu_events(&vcpu.get_vcpu_events()?)
        .context("events")?;
    vcpu.set_debug_regs(&vcpu.get_debug_regs()?)
        .context("debug registers")?;
    vcpu.set_mp_state(vcpu.get_mp_state()?)
        .context("MP state")?;
    kvm.get_msr_index_list().context("list of MSRs")?;
    vm.set_pit2(&vm.get_pit2()?).context("timer")?;
    vm.get_clock().context("clock")?;
    let event = EventFd::new(0)?;
    vm.register_irqfd(&event, 5).context("irqfd")?;
    vm.register_ioevent(&event, &IoEventAddress::Mmio(0xd000_0000), NoDatamatch)
        .context("ioeventfd")?;
    println!("done");
    Ok(())
}
