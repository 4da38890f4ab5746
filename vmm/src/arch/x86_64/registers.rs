//! The registers of a vCPU as explicit structs. Field names are KVM's (kernel
//! document `virt/kvm/api.rst`, the `KVM_GET_…` of each).

use serde::{Deserialize, Serialize};

/// Declares a V1 struct that mirrors fields of a kernel struct, with the
/// conversions both ways. A field the kernel adds later is padding today, so the
/// rest of the kernel's struct is zero.
macro_rules! mirror {
    ($(#[$doc:meta])* $name:ident of $kernel:ident { $($field:ident: $kind:ty = $as:ident,)* }) => {
        $(#[$doc])*
        #[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
        #[expect(missing_docs, reason = "the names are the kernel's")]
        pub struct $name { $(pub $field: $kind,)* }

        impl From<&kvm_bindings::$kernel> for $name {
            fn from(kernel: &kvm_bindings::$kernel) -> Self {
                Self { $($field: mirror!(@read $as, kernel.$field),)* }
            }
        }

        impl From<&$name> for kvm_bindings::$kernel {
            fn from(own: &$name) -> Self {
                let mut kernel = Self::default();
                $(kernel.$field = mirror!(@write $as, own.$field);)*
                kernel
            }
        }
    };
    (@read plain, $value:expr) => { $value };
    (@read nested, $value:expr) => { (&$value).into() };
    (@write plain, $value:expr) => { $value };
    (@write nested, $value:expr) => { (&$value).into() };
}

mirror! {
    /// General registers (`struct kvm_regs`).
    RegsV1 of kvm_regs {
        rax: u64 = plain, rbx: u64 = plain, rcx: u64 = plain, rdx: u64 = plain,
        rsi: u64 = plain, rdi: u64 = plain, rsp: u64 = plain, rbp: u64 = plain,
        r8: u64 = plain, r9: u64 = plain, r10: u64 = plain, r11: u64 = plain,
        r12: u64 = plain, r13: u64 = plain, r14: u64 = plain, r15: u64 = plain,
        rip: u64 = plain, rflags: u64 = plain,
    }
}

mirror! {
    /// A segment register with its hidden part (`struct kvm_segment`).
    SegmentV1 of kvm_segment {
        base: u64 = plain, limit: u32 = plain, selector: u16 = plain, type_: u8 = plain,
        present: u8 = plain, dpl: u8 = plain, db: u8 = plain, s: u8 = plain,
        l: u8 = plain, g: u8 = plain, avl: u8 = plain, unusable: u8 = plain,
    }
}

mirror! {
    /// A descriptor table register (`struct kvm_dtable`).
    TableV1 of kvm_dtable { base: u64 = plain, limit: u16 = plain, }
}

mirror! {
    /// Segment, table and control registers (`struct kvm_sregs`).
    SregsV1 of kvm_sregs {
        cs: SegmentV1 = nested, ds: SegmentV1 = nested, es: SegmentV1 = nested,
        fs: SegmentV1 = nested, gs: SegmentV1 = nested, ss: SegmentV1 = nested,
        tr: SegmentV1 = nested, ldt: SegmentV1 = nested,
        gdt: TableV1 = nested, idt: TableV1 = nested,
        cr0: u64 = plain, cr2: u64 = plain, cr3: u64 = plain, cr4: u64 = plain,
        cr8: u64 = plain, efer: u64 = plain, apic_base: u64 = plain,
        interrupt_bitmap: [u64; 4] = plain,
    }
}

mirror! {
    /// Debug registers (`struct kvm_debugregs`).
    DebugRegsV1 of kvm_debugregs {
        db: [u64; 4] = plain, dr6: u64 = plain, dr7: u64 = plain, flags: u64 = plain,
    }
}

/// Pending events (`struct kvm_vcpu_events`).
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
#[expect(missing_docs, reason = "the names are the kernel's")]
pub struct EventsV1 {
    pub exception: [u8; 4],
    pub exception_error_code: u32,
    pub exception_has_payload: u8,
    pub exception_payload: u64,
    pub interrupt: [u8; 4],
    pub nmi: [u8; 3],
    pub sipi_vector: u32,
    pub flags: u32,
    pub smi: [u8; 4],
    pub triple_fault: u8,
}

impl From<&kvm_bindings::kvm_vcpu_events> for EventsV1 {
    fn from(kernel: &kvm_bindings::kvm_vcpu_events) -> Self {
        let (e, i, n, s) = (
            &kernel.exception,
            &kernel.interrupt,
            &kernel.nmi,
            &kernel.smi,
        );
        Self {
            exception: [e.injected, e.nr, e.has_error_code, e.pending],
            exception_error_code: e.error_code,
            exception_has_payload: kernel.exception_has_payload,
            exception_payload: kernel.exception_payload,
            interrupt: [i.injected, i.nr, i.soft, i.shadow],
            nmi: [n.injected, n.pending, n.masked],
            sipi_vector: kernel.sipi_vector,
            flags: kernel.flags,
            smi: [s.smm, s.pending, s.smm_inside_nmi, s.latched_init],
            triple_fault: kernel.triple_fault.pending,
        }
    }
}

impl From<&EventsV1> for kvm_bindings::kvm_vcpu_events {
    fn from(own: &EventsV1) -> Self {
        let mut kernel = Self::default();
        let (e, i) = (&mut kernel.exception, &mut kernel.interrupt);
        [e.injected, e.nr, e.has_error_code, e.pending] = own.exception;
        e.error_code = own.exception_error_code;
        [i.injected, i.nr, i.soft, i.shadow] = own.interrupt;
        kernel.exception_has_payload = own.exception_has_payload;
        kernel.exception_payload = own.exception_payload;
        let (n, s) = (&mut kernel.nmi, &mut kernel.smi);
        [n.injected, n.pending, n.masked] = own.nmi;
        [s.smm, s.pending, s.smm_inside_nmi, s.latched_init] = own.smi;
        kernel.sipi_vector = own.sipi_vector;
        kernel.flags = own.flags;
        kernel.triple_fault.pending = own.triple_fault;
        kernel
    }
}

// A kernel header that adds fields must be looked at, not padded over.
const _: () = {
    assert!(size_of::<kvm_bindings::kvm_regs>() == 144);
    assert!(size_of::<kvm_bindings::kvm_segment>() == 24);
    assert!(size_of::<kvm_bindings::kvm_sregs>() == 312);
    assert!(size_of::<kvm_bindings::kvm_debugregs>() == 128);
    assert!(size_of::<kvm_bindings::kvm_vcpu_events>() == 64);
};

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn events_come_back_field_by_field() {
        let own = EventsV1 {
            exception: [1, 2, 3, 4],
            exception_error_code: 5,
            exception_has_payload: 6,
            exception_payload: 7,
            interrupt: [8, 9, 10, 11],
            nmi: [12, 13, 14],
            sipi_vector: 15,
            flags: 16,
            smi: [17, 18, 19, 20],
            triple_fault: 21,
        };
        assert_eq!(
            EventsV1::from(&kvm_bindings::kvm_vcpu_events::from(&own)),
            own
        );
    }

    #[test]
    fn system_registers_come_back_field_by_field() {
        let segment = SegmentV1 {
            base: 1,
            limit: 2,
            selector: 3,
            unusable: 1,
            ..Default::default()
        };
        let own = SregsV1 {
            cs: segment.clone(),
            ldt: segment,
            gdt: TableV1 { base: 4, limit: 5 },
            cr0: 6,
            efer: 7,
            interrupt_bitmap: [8, 9, 10, 11],
            ..Default::default()
        };
        assert_eq!(SregsV1::from(&kvm_bindings::kvm_sregs::from(&own)), own);
    }
}
