//! The processor architecture: tables to boot with, and the state of a machine's
//! processors and interrupt controllers as explicit structs.

pub mod x86_64;
