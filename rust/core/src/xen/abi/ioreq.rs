//! The page of an IOREQ server: xen/include/public/hvm/ioreq.h.

use bytemuck::{Pod, Zeroable};

/// `struct ioreq`: what one vCPU waits for. The page has one for each vCPU.
#[repr(C)]
#[derive(Clone, Copy, Debug, Zeroable, Pod)]
pub struct Ioreq {
    /// Guest physical address, or I/O port.
    pub address: u64,
    /// The value, or the guest physical address of the values.
    pub data: u64,
    /// How often, for an instruction with a rep prefix.
    pub count: u32,
    /// Bytes of each access.
    pub size: u32,
    /// The port that Xen notifies, in the numbers of the domain; 0 until the server is enabled.
    pub port: u32,
    /// Zero.
    pub padding: u16,
    /// State, and `IS_POINTER`, `IS_READ`, `IS_BACKWARDS`.
    pub bits: u8,
    /// `TYPE_*`.
    pub kind: u8,
}

/// Where the state is in `bits`.
pub const STATE_MASK: u8 = 0xf;
/// `STATE_IOREQ_NONE`: no request.
pub const STATE_NONE: u8 = 0;
/// `STATE_IOREQ_READY`: Xen has written a request.
pub const STATE_READY: u8 = 1;
/// `STATE_IOREQ_INPROCESS`: we have taken it.
pub const STATE_IN_PROCESS: u8 = 2;
/// `STATE_IORESP_READY`: we have answered.
pub const STATE_ANSWERED: u8 = 3;
/// `data_is_ptr`.
pub const IS_POINTER: u8 = 1 << 4;
/// `dir`: IOREQ_READ.
pub const IS_READ: u8 = 1 << 5;
/// `df`: addresses go down.
pub const IS_BACKWARDS: u8 = 1 << 6;

/// `IOREQ_TYPE_PIO`.
pub const TYPE_PORT: u8 = 0;
/// `IOREQ_TYPE_COPY`.
pub const TYPE_MEMORY: u8 = 1;
/// `IOREQ_TYPE_INVALIDATE`.
pub const TYPE_INVALIDATE: u8 = 8;

#[cfg(test)]
mod tests {
    use super::*;
    use std::mem::offset_of;

    #[test]
    fn the_layout_is_that_of_xen() {
        assert_eq!(size_of::<Ioreq>(), 32);
        assert_eq!(
            [
                offset_of!(Ioreq, data),
                offset_of!(Ioreq, count),
                offset_of!(Ioreq, size),
                offset_of!(Ioreq, port),
                offset_of!(Ioreq, bits),
                offset_of!(Ioreq, kind)
            ],
            [8, 16, 20, 24, 30, 31]
        );
    }
}
