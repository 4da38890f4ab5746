//! Starting a Linux kernel at its 64-bit entry point (kernel document
//! `arch/x86/boot.rst`, "64-bit boot protocol").
//!
//! ```text
//!  0x500   GDT            0x7000  boot parameters     0x20000  command line
//!  0x9000  page tables    0xe0000 VM generation id    0xe1000  ACPI tables
//!  1 MiB   kernel         the end of low RAM: initramfs
//! ```

use std::fs::File;
use std::io::{Seek, SeekFrom};

use linux_loader::loader::bootparam::{boot_e820_entry, boot_params};
use linux_loader::loader::elf::Elf;
use linux_loader::loader::{Error as LoaderError, KernelLoader};
use vm_memory::{
    Bytes, GuestAddress, GuestMemoryBackend, GuestMemoryError, GuestMemoryRegion, ReadVolatile,
    VolatileMemoryError,
};

use super::acpi;
use super::registers::{RegsV1, SegmentV1, SregsV1, TableV1};
use crate::bus::layout::{GED_GSI, GENERATION_ID};
use crate::memory::{GuestRam, PAGE_SIZE};

const GDT: u64 = 0x500;
const BOOT_PARAMS: u64 = 0x7000;
const PAGE_TABLES: u64 = 0x9000;
const BOOT_STACK: u64 = 0x8ff0;
const COMMAND_LINE: u64 = 0x2_0000;
const ACPI_TABLES: u32 = 0xe_1000;
const ACPI_END: u32 = 0x10_0000;
const LOW_RAM_END: u64 = 0x9_fc00;
const HIGH_RAM: u64 = 0x10_0000;

/// Longest command line, in bytes, with its end mark.
pub const MAX_COMMAND_LINE: usize = 2048;

const E820_RAM: u32 = 1;
const E820_ACPI: u32 = 3;
/// Memory that firmware keeps using: the generation id must lie in such
/// ("Virtual Machine Generation ID", requirements on its memory).
const E820_NVS: u32 = 4;

const _: () = assert!(GENERATION_ID + PAGE_SIZE as u64 == ACPI_TABLES as u64);

/// A kernel could not be put into guest memory.
#[derive(Debug, thiserror::Error)]
pub enum BootError {
    /// The kernel file is not one that can be loaded.
    #[error("the kernel cannot be loaded: it must be an uncompressed 64-bit ELF file (vmlinux)")]
    Kernel(#[source] LoaderError),
    /// The command line is too long.
    #[error("the kernel's command line has {0} bytes, more than {MAX_COMMAND_LINE} with its end")]
    CommandLine(usize),
    /// The initramfs cannot be read.
    #[error("the initramfs cannot be read")]
    Initramfs(#[source] std::io::Error),
    /// The initramfs does not fit.
    #[error(
        "the initramfs of {length} bytes does not fit into the guest's memory beside the kernel"
    )]
    InitramfsTooLarge {
        /// Its length, in bytes.
        length: u64,
    },
    /// The ACPI tables do not fit.
    #[error("the ACPI tables of {0} bytes do not fit into their place")]
    AcpiTables(usize),
    /// A write to guest memory failed.
    #[error("the boot structures cannot be written to guest memory")]
    Memory(#[from] GuestMemoryError),
    /// Reading into guest memory failed.
    #[error("the initramfs cannot be copied to guest memory")]
    Copy(#[from] VolatileMemoryError),
}

/// What the first vCPU starts with.
#[derive(Debug, Clone, Copy)]
pub struct EntryPoint {
    address: u64,
}

/// Loads kernel and initramfs and writes everything that the kernel reads.
///
/// # Errors
/// When a file is not what it should be or does not fit.
pub fn load(
    ram: &GuestRam,
    kernel: &mut File,
    initramfs: &mut File,
    command_line: &str,
    vcpus: u8,
    devices: &[acpi::MmioDevice],
) -> Result<EntryPoint, BootError> {
    let loaded = Elf::load(ram, None, kernel, Some(GuestAddress(HIGH_RAM)));
    let loaded = loaded.map_err(BootError::Kernel)?;
    let mut params = boot_params::default();
    write_command_line(ram, command_line, &mut params)?;
    write_initramfs(ram, initramfs, loaded.kernel_end, &mut params)?;
    write_acpi(ram, vcpus, devices, &mut params)?;
    write_memory_map(ram, &mut params);
    params.hdr.type_of_loader = 0xff;
    params.hdr.boot_flag = 0xaa55;
    params.hdr.header = 0x5372_6448;
    params.hdr.kernel_alignment = 0x100_0000;
    ram.write_obj(params, GuestAddress(BOOT_PARAMS))?;
    write_page_tables(ram)?;
    for (index, entry) in (0_u64..).zip(GDT_ENTRIES) {
        ram.write_obj(entry, GuestAddress(GDT + index * 8))?;
    }
    Ok(EntryPoint {
        address: loaded.kernel_load.0,
    })
}

fn write_command_line(
    ram: &GuestRam,
    line: &str,
    params: &mut boot_params,
) -> Result<(), BootError> {
    if line.len() >= MAX_COMMAND_LINE || line.contains('\0') {
        return Err(BootError::CommandLine(line.len()));
    }
    ram.write_slice(line.as_bytes(), GuestAddress(COMMAND_LINE))?;
    ram.write_obj(0_u8, GuestAddress(COMMAND_LINE + line.len() as u64))?;
    params.hdr.cmd_line_ptr = low_half(COMMAND_LINE);
    params.hdr.cmdline_size = low_half(line.len() as u64);
    Ok(())
}

/// The initramfs goes to the end of the first stretch of RAM, as far from the
/// kernel as it can be.
fn write_initramfs(
    ram: &GuestRam,
    file: &mut File,
    kernel_end: u64,
    params: &mut boot_params,
) -> Result<(), BootError> {
    let length = file.seek(SeekFrom::End(0)).map_err(BootError::Initramfs)?;
    file.seek(SeekFrom::Start(0))
        .map_err(BootError::Initramfs)?;
    let too_large = || BootError::InitramfsTooLarge { length };
    let page = PAGE_SIZE as u64;
    let start = low_ram_end(ram)
        .checked_sub(length)
        .map(|start| start / page * page);
    let start = start
        .filter(|start| *start > kernel_end)
        .ok_or_else(too_large)?;
    let count = usize::try_from(length).map_err(|_| too_large())?;
    let mut slice = ram.get_slice(GuestAddress(start), count)?;
    file.read_exact_volatile(&mut slice)?;
    params.hdr.ramdisk_image = low_half(start);
    params.hdr.ramdisk_size = low_half(length);
    Ok(())
}

fn write_acpi(
    ram: &GuestRam,
    vcpus: u8,
    devices: &[acpi::MmioDevice],
    params: &mut boot_params,
) -> Result<(), BootError> {
    let generation = acpi::GenerationId {
        address: GENERATION_ID,
        gsi: GED_GSI,
    };
    let tables = acpi::build(ACPI_TABLES, vcpus, devices, generation);
    if tables.bytes.len() as u64 > u64::from(ACPI_END - ACPI_TABLES) {
        return Err(BootError::AcpiTables(tables.bytes.len()));
    }
    ram.write_slice(&tables.bytes, GuestAddress(u64::from(ACPI_TABLES)))?;
    params.acpi_rsdp_addr = tables.rsdp;
    Ok(())
}

fn write_memory_map(ram: &GuestRam, params: &mut boot_params) {
    let mut entries = vec![
        (0, LOW_RAM_END, E820_RAM),
        (GENERATION_ID, PAGE_SIZE as u64, E820_NVS),
        (
            u64::from(ACPI_TABLES),
            u64::from(ACPI_END - ACPI_TABLES),
            E820_ACPI,
        ),
        (HIGH_RAM, low_ram_end(ram) - HIGH_RAM, E820_RAM),
    ];
    let high = ram.iter().filter(|region| region.start_addr().0 != 0);
    entries.extend(high.map(|region| (region.start_addr().0, region.len(), E820_RAM)));
    for (slot, (addr, size, kind)) in params.e820_table.iter_mut().zip(&entries) {
        *slot = boot_e820_entry {
            addr: *addr,
            size: *size,
            r#type: *kind,
        };
    }
    params.e820_entries = u8::try_from(entries.len()).unwrap_or(u8::MAX);
}

fn low_ram_end(ram: &GuestRam) -> u64 {
    ram.iter()
        .find(|region| region.start_addr().0 == 0)
        .map_or(0, GuestMemoryRegion::len)
}

fn low_half(address: u64) -> u32 {
    // Everything here lies below 4 GiB: the devices' range begins at 3 GiB.
    u32::try_from(address).unwrap_or(u32::MAX)
}

/// One gigabyte, mapped to itself by large pages: the kernel builds its own
/// tables before it looks further.
fn write_page_tables(ram: &GuestRam) -> Result<(), BootError> {
    const PRESENT_WRITABLE: u64 = 0b11;
    const LARGE: u64 = 1 << 7;
    let (pml4, pdpt, directory) = (
        PAGE_TABLES,
        PAGE_TABLES + PAGE_SIZE as u64,
        PAGE_TABLES + 2 * PAGE_SIZE as u64,
    );
    ram.write_obj(pdpt | PRESENT_WRITABLE, GuestAddress(pml4))?;
    ram.write_obj(directory | PRESENT_WRITABLE, GuestAddress(pdpt))?;
    for index in 0..512_u64 {
        let entry = (index << 21) | PRESENT_WRITABLE | LARGE;
        ram.write_obj(entry, GuestAddress(directory + index * 8))?;
    }
    Ok(())
}

/// Flat segments (Intel SDM volume 3, 3.4.5): null, unused, 64-bit code, data,
/// as the boot protocol names them (`__BOOT_CS` 0x10, `__BOOT_DS` 0x18).
const GDT_ENTRIES: [u64; 4] = [0, 0, 0x00af_9b00_0000_ffff, 0x00cf_9300_0000_ffff];

const CODE: SegmentV1 = SegmentV1 {
    base: 0,
    limit: 0xffff_ffff,
    selector: 0x10,
    type_: 0xb,
    present: 1,
    dpl: 0,
    db: 0,
    s: 1,
    l: 1,
    g: 1,
    avl: 0,
    unusable: 0,
};

const DATA: SegmentV1 = SegmentV1 {
    selector: 0x18,
    type_: 0x3,
    db: 1,
    l: 0,
    ..CODE
};

const CR0_PE: u64 = 1;
const CR0_ET: u64 = 1 << 4;
const CR0_PG: u64 = 1 << 31;
const CR4_PAE: u64 = 1 << 5;
const EFER_LME: u64 = 1 << 8;
const EFER_LMA: u64 = 1 << 10;

impl EntryPoint {
    /// General registers at the entry point.
    #[must_use]
    pub fn registers(&self) -> RegsV1 {
        RegsV1 {
            rip: self.address,
            rsi: BOOT_PARAMS,
            rsp: BOOT_STACK,
            rbp: BOOT_STACK,
            rflags: 2,
            ..RegsV1::default()
        }
    }

    /// `reset`, changed to 64-bit mode with flat segments and our page tables.
    #[must_use]
    pub fn system_registers(&self, reset: &SregsV1) -> SregsV1 {
        let limit = u16::try_from(size_of_val(&GDT_ENTRIES) - 1).unwrap_or(0);
        SregsV1 {
            cs: CODE,
            ds: DATA,
            es: DATA,
            fs: DATA,
            gs: DATA,
            ss: DATA,
            gdt: TableV1 { base: GDT, limit },
            idt: TableV1::default(),
            cr0: reset.cr0 | CR0_PE | CR0_ET | CR0_PG,
            cr3: PAGE_TABLES,
            cr4: reset.cr4 | CR4_PAE,
            efer: reset.efer | EFER_LME | EFER_LMA,
            ..reset.clone()
        }
    }
}
