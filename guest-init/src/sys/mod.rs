//! The only unsafe code of this crate: kernel interfaces that no safe wrapper has.
//!
//! * [`entropy`]: crediting and reseeding the kernel's generator.
//! * [`heap`]: handing freed memory back to the kernel.
//! * [`signals`]: SIGCHLD as a descriptor, and a clean mask for children.
//! * [`vsock`]: connecting a stream to the host.

pub mod entropy;
pub mod heap;
pub mod signals;
pub mod vsock;
