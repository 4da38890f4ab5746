//! The command line of the emulated machine.

use std::path::Path;
use std::process::{Command, Stdio};

use super::console::{PORTS, Ports};
use super::kernel_image::KernelImage;
use super::scripts::share_tag;

/// How time passes in the box.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Clock {
    /// As fast as emulation goes. Times mean nothing.
    Fast,
    /// One instruction is one virtual nanosecond: the same work takes the same time
    /// whatever else the host does.
    Counted,
}

impl Clock {
    fn options(self) -> &'static [&'static str] {
        match self {
            // One processor: with two, QEMU 7.2 now and then runs a stale breakpoint after
            // the kernel has patched its own code, which ends in an oops of the host.
            Self::Fast => &["-accel", "tcg,thread=multi", "-smp", "1", "-cpu", PROCESSOR],
            Self::Counted => &[
                "-accel",
                "tcg,thread=single",
                "-smp",
                "1",
                "-icount",
                // While all wait for a file of the host, time goes on like the host's. With
                // sleep=off it would leap to the next timer: every bound would be over.
                "shift=0,sleep=on",
                "-cpu",
                PROCESSOR,
            ],
        }
    }
}

/// Without erms and fsrm, copies use plain moves: a `rep movsb` is emulated byte by byte, and
/// counts one nanosecond for each, ten times dearer than it is.
const PROCESSOR: &str = "max,-erms,-fsrm";

/// What the box's kernel is told.
const COMMAND_LINE: &str = "console=ttyS0 panic=-1 mitigations=off nokaslr tsc=reliable quiet \
     loglevel=4 no_timer_check random.trust_cpu=on";

impl Clock {
    /// The kernel's command line.
    fn command_line(self) -> String {
        match self {
            // With any check of its objects, the allocator does not use CMPXCHG16B. QEMU 7.2
            // computes the flags after it from those of an earlier instruction, and may leave
            // an address in their place: an interrupt right there saves a word of flags that
            // ends in an oops. What a check costs has no place in a measurement.
            //
            // Pages are not cleared when they are allocated, either: that takes a twentieth
            // of the tests' time, and nothing here looks for old bytes in a host's memory.
            Self::Fast => format!("{COMMAND_LINE} slab_debug=Z init_on_alloc=0"),
            Self::Counted => COMMAND_LINE.to_owned(),
        }
    }
}

/// Files and sockets of one run.
pub struct Machine<'a> {
    /// How time passes.
    pub clock: Clock,
    /// The host's processor that all of it runs on: see [`super::processor`].
    pub processor: usize,
    /// Memory, in MiB.
    pub memory_mib: u32,
    /// The kernel to boot.
    pub kernel: &'a KernelImage,
    /// The initramfs to boot.
    pub initramfs: &'a Path,
    /// Sockets for the ports.
    pub ports: &'a Ports,
    /// Where the kernel's console goes.
    pub console_log: &'a Path,
    /// The job's script.
    pub job: &'a Path,
    /// The script that mounts host directories.
    pub mounts: &'a Path,
    /// Writable host directories.
    pub shares: &'a [std::path::PathBuf],
}

impl Machine<'_> {
    /// The command that runs the machine until it is killed.
    ///
    /// It runs under `setpriv --pdeathsig`: when this process dies, however it dies, the
    /// machine does too.
    pub fn command(&self) -> Command {
        let mut command = Command::new("setpriv");
        command.args(["--pdeathsig", "KILL"]);
        command.args(["taskset", "--cpu-list", &self.processor.to_string()]);
        command.arg("qemu-system-x86_64");
        command.args(self.clock.options());
        command.args(["-M", "q35", "-m", &self.memory_mib.to_string()]);
        command.args([
            "-nodefaults",
            "-no-user-config",
            "-display",
            "none",
            "-no-reboot",
        ]);
        command.arg("-kernel").arg(self.kernel.vmlinuz());
        command.arg("-initrd").arg(self.initramfs);
        command.args(["-append", &self.clock.command_line()]);
        command.args(["-serial", &format!("file:{}", option(self.console_log))]);
        command.args(["-device", "virtio-serial-pci"]);
        for (name, number) in PORTS.into_iter().zip(1..) {
            let socket = option(&self.ports.socket(name));
            command.args(["-chardev", &format!("socket,id={name},path={socket}")]);
            command.args([
                "-device",
                &format!("virtserialport,nr={number},chardev={name},name=snapback.{name}"),
            ]);
        }
        for (name, file) in [("job", self.job), ("mounts", self.mounts)] {
            let file = option(file);
            command.args([
                "-fw_cfg",
                &format!("name=opt/org.snapback/{name},file={file}"),
            ]);
        }
        command.args([
            "-virtfs",
            "local,path=/,mount_tag=root,security_model=none,readonly=on,multidevs=remap",
        ]);
        for (index, share) in self.shares.iter().enumerate() {
            let (path, tag) = (option(share), share_tag(index));
            command.args([
                "-virtfs",
                &format!("local,path={path},mount_tag={tag},security_model=none,multidevs=remap"),
            ]);
        }
        command.stdin(Stdio::null()).stdout(Stdio::null());
        command
    }
}

/// A path as the value of a QEMU option, in which a comma is written twice.
fn option(path: &Path) -> String {
    path.to_string_lossy().replace(',', ",,")
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn commas_in_paths_are_doubled() {
        assert_eq!(option(Path::new("/a,b/c")), "/a,,b/c");
    }
}
