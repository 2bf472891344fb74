//! What a vCPU wants, taken from its slot.

use crate::xen::abi::{
    FRAME,
    ioreq::{IS_BACKWARDS, IS_POINTER, IS_READ, Ioreq, TYPE_INVALIDATE, TYPE_MEMORY, TYPE_PORT},
};

/// Xen lets a request stay within the pages that its first access touches, so that this is never reached.
const MAX_COUNT: u32 = FRAME as u32;

/// What a request is about.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum RequestKind {
    /// I/O ports.
    Port,
    /// Guest physical addresses.
    Memory,
    /// What is mapped of the domain's memory is to be given back: it may be gone.
    Invalidate,
    /// Another type of Xen's (IOREQ_TYPE_*), which wants no more than to be answered.
    Other(u8),
    /// One that breaks the rules: a size that is not 1 to 8, or a count beyond a page.
    Malformed,
}

/// Where the value of a request is.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum RequestData {
    /// Here, cut to the size; for a read, what stood there before.
    Value(u64),
    /// In guest memory, at this guest physical address: each access has its own place there.
    At(u64),
}

/// What a vCPU wants: one access, or for an instruction with a rep prefix several.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Request {
    /// The vCPU.
    pub vcpu: u32,
    /// What it is about.
    pub kind: RequestKind,
    /// Guest physical address or I/O port, of the first access.
    pub address: u64,
    /// Bytes of each access: 1 to 8.
    pub size: u8,
    /// How many accesses.
    pub count: u32,
    /// True if it reads, so that an answer is wanted.
    pub is_read: bool,
    /// True if addresses go down from one access to the next.
    pub backwards: bool,
    /// The value, or where it is.
    pub data: RequestData,
}

/// One of the accesses of a request.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct SingleAccess {
    /// Guest physical address, or I/O port.
    pub address: u64,
    /// The value, or where it is.
    pub data: RequestData,
}

impl Request {
    pub(super) fn new(vcpu: u32, raw: &Ioreq) -> Self {
        let kind = match raw.kind {
            TYPE_INVALIDATE => RequestKind::Invalidate,
            TYPE_PORT | TYPE_MEMORY if !(1..=8).contains(&raw.size) || raw.count > MAX_COUNT => {
                RequestKind::Malformed
            }
            TYPE_PORT => RequestKind::Port,
            TYPE_MEMORY => RequestKind::Memory,
            other => RequestKind::Other(other),
        };
        let size = u8::try_from(raw.size).unwrap_or(8).clamp(1, 8);
        let data = match raw.bits & IS_POINTER != 0 {
            true => RequestData::At(raw.data),
            false => RequestData::Value(cut(raw.data, size)),
        };
        let count = raw.count.min(MAX_COUNT);
        let is_read = raw.bits & IS_READ != 0;
        Self {
            vcpu,
            kind,
            address: raw.address,
            size,
            count,
            is_read,
            backwards: raw.bits & IS_BACKWARDS != 0,
            data,
        }
    }

    /// Its accesses, in order; none if it is neither about memory nor about ports. A port stays the same from one to the
    /// next, an address moves by the size; and so does where the values are.
    pub fn accesses(&self) -> impl Iterator<Item = SingleAccess> + use<> {
        let request = *self;
        let count = match self.kind {
            RequestKind::Memory | RequestKind::Port => self.count,
            _ => 0,
        };
        (0..u64::from(count)).map(move |index| {
            let distance = index * u64::from(request.size);
            let moved = |start: u64| match request.backwards {
                true => start.wrapping_sub(distance),
                false => start.wrapping_add(distance),
            };
            let address = match request.kind {
                RequestKind::Port => request.address,
                _ => moved(request.address),
            };
            let data = match request.data {
                RequestData::At(start) => RequestData::At(moved(start)),
                value => value,
            };
            SingleAccess { address, data }
        })
    }
}

/// The lowest `size` bytes of a value.
pub(super) fn cut(value: u64, size: u8) -> u64 {
    match size {
        1..8 => value & ((1 << (8 * u32::from(size))) - 1),
        _ => value,
    }
}
