//! The header of every vsock packet (section 5.10.6).

/// Bytes of a header.
pub(super) const HEADER_SIZE: usize = 44;
/// The same, for sums of buffer lengths.
pub(super) const HEADER_LEN: u64 = 44;

const _: () = assert!(HEADER_SIZE == virtio_vsock::packet::PKT_HEADER_SIZE);
const _: () = assert!(HEADER_SIZE == 44 && HEADER_LEN == 44);

/// The context id of the host.
pub(super) const HOST_CID: u64 = 2;
/// The only kind of socket that is served.
pub(super) const TYPE_STREAM: u16 = 1;

/// Connect.
pub(super) const OP_REQUEST: u16 = 1;
/// Connected.
pub(super) const OP_RESPONSE: u16 = 2;
/// Refused, or gone.
pub(super) const OP_RST: u16 = 3;
/// One or both directions end.
pub(super) const OP_SHUTDOWN: u16 = 4;
/// Payload.
pub(super) const OP_RW: u16 = 5;
/// Tells the sender's credit.
pub(super) const OP_CREDIT_UPDATE: u16 = 6;
/// Asks for the receiver's credit.
pub(super) const OP_CREDIT_REQUEST: u16 = 7;

/// Shutdown flag: the sender will receive no more.
pub(super) const SHUTDOWN_RECEIVE: u32 = 1;
/// Shutdown flag: the sender will send no more.
pub(super) const SHUTDOWN_SEND: u32 = 2;
/// Both directions.
pub(super) const SHUTDOWN_BOTH: u32 = SHUTDOWN_RECEIVE | SHUTDOWN_SEND;

/// A header, in the host's byte order.
#[derive(Debug, Default, Clone, Copy, PartialEq, Eq)]
pub(super) struct Header {
    pub src_cid: u64,
    pub dst_cid: u64,
    pub src_port: u32,
    pub dst_port: u32,
    pub len: u32,
    pub kind: u16,
    pub op: u16,
    pub flags: u32,
    pub buf_alloc: u32,
    pub fwd_cnt: u32,
}

impl Header {
    pub(super) fn decode(bytes: &[u8; HEADER_SIZE]) -> Self {
        let mut rest = bytes.as_slice();
        Self {
            src_cid: u64::from_le_bytes(take(&mut rest)),
            dst_cid: u64::from_le_bytes(take(&mut rest)),
            src_port: u32::from_le_bytes(take(&mut rest)),
            dst_port: u32::from_le_bytes(take(&mut rest)),
            len: u32::from_le_bytes(take(&mut rest)),
            kind: u16::from_le_bytes(take(&mut rest)),
            op: u16::from_le_bytes(take(&mut rest)),
            flags: u32::from_le_bytes(take(&mut rest)),
            buf_alloc: u32::from_le_bytes(take(&mut rest)),
            fwd_cnt: u32::from_le_bytes(take(&mut rest)),
        }
    }

    pub(super) fn encode(&self) -> [u8; HEADER_SIZE] {
        let mut bytes = [0; HEADER_SIZE];
        let fields = self
            .src_cid
            .to_le_bytes()
            .into_iter()
            .chain(self.dst_cid.to_le_bytes());
        let fields = fields
            .chain(self.src_port.to_le_bytes())
            .chain(self.dst_port.to_le_bytes());
        let fields = fields
            .chain(self.len.to_le_bytes())
            .chain(self.kind.to_le_bytes());
        let fields = fields
            .chain(self.op.to_le_bytes())
            .chain(self.flags.to_le_bytes());
        let fields = fields
            .chain(self.buf_alloc.to_le_bytes())
            .chain(self.fwd_cnt.to_le_bytes());
        for (byte, value) in bytes.iter_mut().zip(fields) {
            *byte = value;
        }
        bytes
    }
}

/// The next `N` bytes; zeroes behind the end, which the caller's length rules out.
fn take<const N: usize>(rest: &mut &[u8]) -> [u8; N] {
    match rest.split_first_chunk() {
        Some((chunk, after)) => {
            *rest = after;
            *chunk
        }
        None => [0; N],
    }
}
