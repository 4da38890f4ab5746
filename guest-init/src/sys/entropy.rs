//! The kernel's random number generator, from the side that feeds it.

use std::fs::File;
use std::io;

use rustix::ioctl::{self, NoArg, Opcode, Setter};
use snapback_proto::guest::ENTROPY_LEN;

/// `RNDADDENTROPY`, as `linux/random.h` has it: `_IOW('R', 0x03, int[2])`.
const ADD_ENTROPY: Opcode = ioctl::opcode::write::<[i32; 2]>(b'R', 0x03);
/// `RNDRESEEDCRNG`: `_IO('R', 0x07)`.
const RESEED: Opcode = ioctl::opcode::none(b'R', 0x07);

const _: () = assert!(ADD_ENTROPY == 0x4008_5203 && RESEED == 0x5207);
const _: () = assert!(size_of::<PoolInfo>() == 2 * size_of::<i32>() + ENTROPY_LEN);

/// `struct rand_pool_info` with a buffer of the length that a resume carries.
#[repr(C)]
struct PoolInfo {
    entropy_bits: i32,
    buffer_len: i32,
    buffer: [u8; ENTROPY_LEN],
}

/// The generator, opened once so that a resume looks up no path.
#[derive(Debug)]
pub struct EntropyPool {
    device: File,
}

impl EntropyPool {
    /// Opens the generator's device.
    ///
    /// # Errors
    /// When `/dev/urandom` cannot be opened.
    pub fn open() -> io::Result<Self> {
        let device = File::options().write(true).open("/dev/urandom")?;
        Ok(Self { device })
    }

    /// Mixes `fresh` in, credits all its bits, and makes every further random
    /// number depend on it.
    ///
    /// # Errors
    /// When the kernel refuses (it wants `CAP_SYS_ADMIN`).
    pub fn reseed(&self, fresh: &[u8; ENTROPY_LEN]) -> io::Result<()> {
        const LEN: i32 = 64;
        const _: () = assert!(ENTROPY_LEN == 64);
        let info = PoolInfo {
            entropy_bits: LEN * 8,
            buffer_len: LEN,
            buffer: *fresh,
        };
        // SAFETY: the opcode is RNDADDENTROPY (asserted above), whose argument is a
        // pointer to a `rand_pool_info` that the kernel only reads: two ints, then
        // `buf_size` bytes. `PoolInfo` is exactly that, and `buffer_len` is the size
        // of its buffer (asserted above), so nothing beyond it is read.
        unsafe { ioctl::ioctl(&self.device, Setter::<ADD_ENTROPY, PoolInfo>::new(info))? };
        // SAFETY: the opcode is RNDRESEEDCRNG (asserted above), which takes no
        // argument and touches no memory of this process.
        unsafe { ioctl::ioctl(&self.device, NoArg::<RESEED>::new())? };
        Ok(())
    }
}
