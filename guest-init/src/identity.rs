//! The names that programs take a machine by: host name, machine id, boot id, and
//! whom it asks for addresses.
//!
//! A snapshot has those of the machine that it was made in, and every microVM of it
//! would have the same. So each file is one of a small ramfs, mounted over its place
//! before the function starts: at a resume it is written in place through a
//! descriptor that is open already. `boot_id` cannot be written at all where the
//! kernel has it, and is covered in the same way.

use std::fs::{self, File};
use std::io;
use std::net::IpAddr;
use std::os::unix::fs::FileExt as _;
use std::path::Path;

use rustix::mount::{MountFlags, mount, mount_bind, mount_remount};
use rustix::system::sethostname;
use snapback_proto::guest::{Identity, MAX_NAME_SERVERS};

/// The files, in a ramfs that the function can only read. Every request writes them, and
/// pages of a tmpfs would lie among those of programs, which are only read: a ramfs has its
/// pages from the blocks of the kernel's own memory.
const FOLDER: &str = "/run/identity";
const HOSTNAME: &str = "/etc/hostname";
const HOSTS: &str = "/etc/hosts";
const MACHINE_ID: &str = "/etc/machine-id";
const BOOT_ID: &str = "/proc/sys/kernel/random/boot_id";
const RESOLV_CONF: &str = "/etc/resolv.conf";

/// Longest host name that the kernel takes.
const MAX_HOSTNAME: usize = 64;

/// A file that covers another one.
#[derive(Debug)]
struct Cover {
    file: File,
    text: String,
}

/// The files that hold the names, open.
#[derive(Debug)]
pub struct IdentityFiles {
    hostname: Cover,
    hosts: Cover,
    machine_id: Cover,
    boot_id: Cover,
    resolv_conf: Cover,
}

impl IdentityFiles {
    /// Puts the files in place.
    ///
    /// # Errors
    /// When the kernel refuses.
    pub fn put_in_place() -> io::Result<Self> {
        fs::create_dir_all(FOLDER)?;
        let flags = MountFlags::NOSUID | MountFlags::NODEV | MountFlags::NOEXEC;
        mount("ramfs", FOLDER, "ramfs", flags, c"mode=0755")?;
        let over = |place: &'static str| cover(Path::new(place));
        let mut files = Self {
            hostname: over(HOSTNAME)?,
            hosts: over(HOSTS)?,
            machine_id: over(MACHINE_ID)?,
            boot_id: over(BOOT_ID)?,
            resolv_conf: over(RESOLV_CONF)?,
        };
        files.give(&Identity {
            hostname: "localhost".to_owned(),
            ..Identity::default()
        })?;
        Ok(files)
    }

    /// Gives the machine its names.
    ///
    /// # Errors
    /// When the kernel refuses, or a name cannot be one.
    pub fn give(&mut self, identity: &Identity) -> io::Result<()> {
        let name = &identity.hostname;
        let allowed = |c: char| c.is_ascii_alphanumeric() || matches!(c, '-' | '.');
        if name.is_empty() || name.len() > MAX_HOSTNAME || !name.chars().all(allowed) {
            return Err(io::ErrorKind::InvalidInput.into());
        }
        sethostname(name.as_bytes())?;
        self.hostname.write(format!("{name}\n"))?;
        self.hosts.write(hosts(name))?;
        let machine_id = hex(&identity.machine_id);
        self.machine_id.write(format!("{machine_id}\n"))?;
        let boot_id = uuid(&identity.boot_id);
        self.boot_id.write(format!("{boot_id}\n"))?;
        self.resolv_conf.write(resolv_conf(&identity.name_servers))
    }
}

/// Mounts a new file over a place. The file behind the returned descriptor can be
/// written; through the place it is read-only.
fn cover(place: &Path) -> io::Result<Cover> {
    let name = place.file_name().unwrap_or_default();
    let file = Path::new(FOLDER).join(name);
    let open = Cover::new(File::create_new(&file)?);
    if !place.exists() {
        File::create(place)?;
    }
    mount_bind(&file, place)?;
    let sealed = MountFlags::BIND
        | MountFlags::RDONLY
        | MountFlags::NOSUID
        | MountFlags::NODEV
        | MountFlags::NOEXEC;
    mount_remount(place, sealed, c"")?;
    Ok(open)
}

impl Cover {
    /// Takes an empty file.
    const fn new(file: File) -> Self {
        let text = String::new();
        Self { file, text }
    }

    /// Replaces the content, in as few calls as that takes.
    fn write(&mut self, text: String) -> io::Result<()> {
        if text == self.text {
            return Ok(());
        }
        self.file.write_all_at(text.as_bytes(), 0)?;
        if text.len() < self.text.len() {
            let length = u64::try_from(text.len()).unwrap_or(0);
            self.file.set_len(length)?;
        }
        self.text = text;
        Ok(())
    }
}

fn hosts(name: &str) -> String {
    // `sandbox` is what Lambda's documentation calls the address of its own APIs'
    // counterpart within the environment.
    format!("127.0.0.1 localhost sandbox sandbox.localdomain {name}\n::1 localhost\n")
}

fn resolv_conf(servers: &[IpAddr]) -> String {
    let lines = servers.iter().take(MAX_NAME_SERVERS);
    lines.map(|ip| format!("nameserver {ip}\n")).collect()
}

fn hex(bytes: &[u8]) -> String {
    bytes.iter().map(|byte| format!("{byte:02x}")).collect()
}

/// In the form of a version 4 UUID (RFC 9562), as the kernel makes its own.
#[must_use]
pub fn uuid(bytes: &[u8; 16]) -> String {
    let mut bytes = *bytes;
    bytes[6] = (bytes[6] & 0x0f) | 0x40;
    bytes[8] = (bytes[8] & 0x3f) | 0x80;
    let text = hex(&bytes);
    let parts = [
        &text[..8],
        &text[8..12],
        &text[12..16],
        &text[16..20],
        &text[20..],
    ];
    parts.join("-")
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn ids_have_the_forms_that_programs_expect() {
        assert_eq!(hex(&[0xab; 16]), "ab".repeat(16));
        assert_eq!(uuid(&[0xff; 16]), "ffffffff-ffff-4fff-bfff-ffffffffffff");
    }

    #[test]
    fn a_shorter_text_leaves_nothing_of_a_longer_one() {
        let mut cover = Cover::new(tempfile::tempfile().unwrap());
        for text in ["long enough\n", "short\n", "", "long again\n"] {
            cover.write(text.to_owned()).unwrap();
            let mut read = vec![0; 64];
            let length = cover.file.read_at(&mut read, 0).unwrap();
            assert_eq!(&read[..length], text.as_bytes());
        }
    }

    #[test]
    fn a_resolver_gets_as_many_servers_as_it_looks_at() {
        let servers: Vec<IpAddr> = (1..=5).map(|n| IpAddr::from([10, 0, 0, n])).collect();
        let text = resolv_conf(&servers);
        assert_eq!(text.lines().count(), MAX_NAME_SERVERS);
        assert!(text.starts_with("nameserver 10.0.0.1\n"));
    }
}
