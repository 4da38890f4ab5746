//! ACPI tables of a hardware-reduced machine (ACPI 6.5, chapter 4.1): no power
//! management hardware but the registers to power off and reset, no legacy timers;
//! the kernel learns of its processors, the I/O APIC, the serial port, the panic
//! notifier, the virtio-mmio devices and the VM generation id.

use acpi_tables::aml;
use acpi_tables::fadt::{FADT, FADTBuilder, Flags};
use acpi_tables::gas::{AccessSize, AddressSpace, GAS};
use acpi_tables::madt::{
    EnabledStatus, IoApic, LocalInterruptController, MADT, ProcessorLocalApic,
};
use acpi_tables::rsdp::Rsdp;
use acpi_tables::sdt::Sdt;
use acpi_tables::xsdt::XSDT;
use acpi_tables::{Aml, AmlSink};

use super::{IOAPIC_ADDRESS, LAPIC_ADDRESS};
use crate::bus::layout::{POWER_PORT, PVPANIC_PORT, SERIAL_GSI, SERIAL_PORT};
use crate::devices::power;

const OEM_ID: [u8; 6] = *b"SNAPBK";
const OEM_TABLE_ID: [u8; 8] = *b"SNAPBKVM";
const OEM_REVISION: u32 = 1;

/// Every table begins at a multiple of this, in bytes.
const ALIGNMENT: u64 = 64;

/// A virtio-mmio device as the tables name it.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct MmioDevice {
    /// Guest-physical address of its registers.
    pub address: u32,
    /// Length of its registers, in bytes.
    pub length: u32,
    /// Its interrupt (edge triggered).
    pub gsi: u32,
}

/// The VM generation id as the tables name it.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct GenerationId {
    /// Guest-physical address of the id.
    pub address: u64,
    /// The interrupt that tells of a new one (edge triggered).
    pub gsi: u32,
}

/// All tables, to be copied to one address.
#[derive(Debug)]
pub struct Tables {
    /// The bytes.
    pub bytes: Vec<u8>,
    /// Guest-physical address of the root pointer (RSDP).
    pub rsdp: u64,
}

struct Bytes(Vec<u8>);

impl AmlSink for Bytes {
    fn byte(&mut self, byte: u8) {
        self.0.push(byte);
    }
}

/// Builds the tables for `vcpus` processors, `devices` and the generation id, to
/// lie at `base`.
#[must_use]
pub fn build(base: u32, vcpus: u8, devices: &[MmioDevice], generation: GenerationId) -> Tables {
    let mut tables = Layout {
        base: u64::from(base),
        bytes: Vec::new(),
    };
    let dsdt = tables.add(&dsdt(devices, generation));
    let fadt = tables.add(&fadt(dsdt));
    let madt = tables.add(&madt(vcpus));
    let mut xsdt = XSDT::new(OEM_ID, OEM_TABLE_ID, OEM_REVISION);
    xsdt.add_entry(fadt);
    xsdt.add_entry(madt);
    let xsdt = tables.add(&xsdt);
    let rsdp = tables.add(&Rsdp::new(OEM_ID, xsdt));
    Tables {
        bytes: tables.bytes,
        rsdp,
    }
}

struct Layout {
    base: u64,
    bytes: Vec<u8>,
}

impl Layout {
    /// Appends a table and returns its address.
    fn add(&mut self, table: &dyn Aml) -> u64 {
        while !self.end().is_multiple_of(ALIGNMENT) {
            self.bytes.push(0);
        }
        let address = self.end();
        let mut bytes = Bytes(std::mem::take(&mut self.bytes));
        table.to_aml_bytes(&mut bytes);
        self.bytes = bytes.0;
        address
    }

    fn end(&self) -> u64 {
        self.base + u64::try_from(self.bytes.len()).unwrap_or(0)
    }
}

fn fadt(dsdt: u64) -> FADT {
    let register = |register: u8| {
        let port = u64::from(POWER_PORT) + u64::from(register);
        GAS::new(AddressSpace::SystemIo, 8, 0, AccessSize::ByteAccess, port)
    };
    let mut fadt = FADTBuilder::new(OEM_ID, OEM_TABLE_ID, OEM_REVISION)
        .dsdt_64(dsdt)
        .flag(Flags::HwReducedAcpi)
        .flag(Flags::PwrButton)
        .flag(Flags::SlpButton)
        .flag(Flags::ResetRegSup);
    fadt.reset_reg = register(power::RESET);
    fadt.reset_value = power::RESET_VALUE;
    fadt.sleep_control_reg = register(power::SLEEP_CONTROL);
    fadt.sleep_status_reg = register(power::SLEEP_STATUS);
    fadt.finalize()
}

fn madt(vcpus: u8) -> MADT {
    let lapic = LocalInterruptController::Address(LAPIC_ADDRESS);
    let mut madt = MADT::new(OEM_ID, OEM_TABLE_ID, OEM_REVISION, lapic);
    for id in 0..vcpus {
        madt.add_structure(ProcessorLocalApic::new(id, id, EnabledStatus::Enabled));
    }
    madt.add_structure(IoApic::new(vcpus, IOAPIC_ADDRESS, 0));
    madt
}

fn dsdt(devices: &[MmioDevice], generation: GenerationId) -> Sdt {
    let mut body = Bytes(Vec::new());
    serial_port(&mut body);
    panic_notifier(&mut body);
    power_off(&mut body);
    for (index, device) in (0_u8..).zip(devices) {
        virtio_mmio(&mut body, index, *device);
    }
    generation_id(&mut body, generation);
    // A definition block of revision 2 has 64-bit integers.
    let mut dsdt = Sdt::new(*b"DSDT", 36, 2, OEM_ID, OEM_TABLE_ID, OEM_REVISION);
    dsdt.append_slice(&body.0);
    dsdt
}

fn serial_port(sink: &mut Bytes) {
    aml::Device::new(
        "_SB_.COM1".into(),
        vec![
            &aml::Name::new("_HID".into(), &aml::EISAName::new("PNP0501")),
            &aml::Name::new("_UID".into(), &aml::ZERO),
            &aml::Name::new(
                "_CRS".into(),
                &aml::ResourceTemplate::new(vec![
                    &aml::Interrupt::new(true, true, false, false, SERIAL_GSI),
                    &aml::IO::new(SERIAL_PORT, SERIAL_PORT, 0, 8),
                ]),
            ),
        ],
    )
    .to_aml_bytes(sink);
}

/// The device by whose id kernels find the notifier (QEMU, `docs/specs/pvpanic.rst`).
fn panic_notifier(sink: &mut Bytes) {
    aml::Device::new(
        "_SB_.PEVT".into(),
        vec![
            &aml::Name::new("_HID".into(), &"QEMU0001"),
            &aml::Name::new("_UID".into(), &aml::ZERO),
            &aml::Name::new(
                "_CRS".into(),
                &aml::ResourceTemplate::new(vec![&aml::IO::new(PVPANIC_PORT, PVPANIC_PORT, 0, 1)]),
            ),
        ],
    )
    .to_aml_bytes(sink);
}

/// The type of the only sleep state, soft off (ACPI 6.5, chapter 7.4.2.6).
fn power_off(sink: &mut Bytes) {
    let values = aml::Package::new(vec![&power::S5_TYPE, &aml::ZERO, &aml::ZERO, &aml::ZERO]);
    aml::Name::new("_S5_".into(), &values).to_aml_bytes(sink);
}

fn virtio_mmio(sink: &mut Bytes, index: u8, device: MmioDevice) {
    let name = format!("_SB_.VM{index:02X}");
    aml::Device::new(
        name.as_str().into(),
        vec![
            &aml::Name::new("_HID".into(), &"LNRO0005"),
            &aml::Name::new("_UID".into(), &index),
            &aml::Name::new("_CCA".into(), &aml::ONE),
            &aml::Name::new(
                "_CRS".into(),
                &aml::ResourceTemplate::new(vec![
                    &aml::Memory32Fixed::new(true, device.address, device.length),
                    &aml::Interrupt::new(true, true, false, false, device.gsi),
                ]),
            ),
        ],
    )
    .to_aml_bytes(sink);
}

/// The generation id's device ("Virtual Machine Generation ID", the ACPI part) and
/// the generic event device (ACPI 6.5, chapter 5.6.9) that turns the interrupt into
/// a notification of it: a hardware-reduced machine has no general-purpose events.
fn generation_id(sink: &mut Bytes, generation: GenerationId) {
    let [low, high] = [generation.address & 0xffff_ffff, generation.address >> 32];
    aml::Device::new(
        "_SB_.VGEN".into(),
        vec![
            &aml::Name::new("_HID".into(), &"SNAPVGID"),
            &aml::Name::new("_CID".into(), &"VM_Gen_Counter"),
            &aml::Name::new("_DDN".into(), &"VM_Gen_Counter"),
            &aml::Name::new("ADDR".into(), &aml::Package::new(vec![&low, &high])),
        ],
    )
    .to_aml_bytes(sink);
    aml::Device::new(
        "_SB_.GED_".into(),
        vec![
            &aml::Name::new("_HID".into(), &"ACPI0013"),
            &aml::Name::new("_UID".into(), &aml::ZERO),
            &aml::Name::new(
                "_CRS".into(),
                &aml::ResourceTemplate::new(vec![&aml::Interrupt::new(
                    true,
                    true,
                    false,
                    false,
                    generation.gsi,
                )]),
            ),
            &aml::Method::new(
                "_EVT".into(),
                1,
                true,
                vec![&aml::If::new(
                    &aml::Equal::new(&aml::Arg(0), &generation.gsi),
                    vec![&aml::Notify::new(&aml::Path::new("\\_SB_.VGEN"), &0x80_u8)],
                )],
            ),
        ],
    )
    .to_aml_bytes(sink);
}

#[cfg(test)]
mod tests {
    use super::*;

    fn checksum(bytes: &[u8]) -> u8 {
        bytes.iter().fold(0, |sum, byte| sum.wrapping_add(*byte))
    }

    fn table_at(tables: &Tables, base: u64, address: u64) -> &[u8] {
        let start = usize::try_from(address - base).unwrap();
        let length = u32::from_le_bytes(tables.bytes[start + 4..start + 8].try_into().unwrap());
        &tables.bytes[start..start + usize::try_from(length).unwrap()]
    }

    #[test]
    fn every_table_is_reachable_from_the_root_pointer_and_sums_to_zero() {
        let base = 0xe_0000;
        let device = MmioDevice {
            address: 0xd000_0000,
            length: 0x1000,
            gsi: 5,
        };
        let generation = GenerationId {
            address: 0xdead_f000,
            gsi: 21,
        };
        let tables = build(base, 2, &[device, device], generation);
        let base = u64::from(base);
        let rsdp = usize::try_from(tables.rsdp - base).unwrap();
        assert_eq!(&tables.bytes[rsdp..rsdp + 8], b"RSD PTR ");
        assert_eq!(checksum(&tables.bytes[rsdp..rsdp + 20]), 0);
        let word =
            |at: usize, bytes: &[u8]| u64::from_le_bytes(bytes[at..at + 8].try_into().unwrap());
        let xsdt = table_at(&tables, base, word(rsdp + 24, &tables.bytes));
        assert_eq!(&xsdt[..4], b"XSDT");
        let fadt = table_at(&tables, base, word(36, xsdt));
        let madt = table_at(&tables, base, word(44, xsdt));
        let dsdt = table_at(&tables, base, word(140, fadt));
        for (table, signature) in [
            (xsdt, b"XSDT"),
            (fadt, b"FACP"),
            (madt, b"APIC"),
            (dsdt, b"DSDT"),
        ] {
            assert_eq!(&table[..4], signature);
            assert_eq!(checksum(table), 0, "{signature:?}");
        }
        // The reset register and its value; sleep control and sleep status.
        let port = |at: u8| [1, 8, 0, 1, at, 6, 0, 0, 0, 0, 0, 0];
        assert_eq!(fadt[116..128], port(2));
        assert_eq!(fadt[128], 1);
        assert_eq!(fadt[244..256], port(0));
        assert_eq!(fadt[256..268], port(1));
        let s5 = b"_S5_\x12\x07\x04\x0a\x05\0\0\0";
        assert!(dsdt.windows(s5.len()).any(|bytes| bytes == s5));
        // Package of two: the address's halves.
        let id = [b"ADDR\x12".as_slice(), &[8, 2, 0xc, 0, 0xf0, 0xad, 0xde, 0]].concat();
        assert!(dsdt.windows(id.len()).any(|bytes| bytes == id));
    }
}
