//! The rules of a virtqueue that the other side can break, one variant each.

use crate::memory::MapError;

/// One of the three parts of a split ring (virtio 1.3, 2.7).
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum RingPart {
    /// The descriptor table: 16 bytes an entry.
    Descriptors,
    /// The available ring, written by the driver.
    Available,
    /// The used ring, written by the device.
    Used,
}

impl std::fmt::Display for RingPart {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str(match self {
            Self::Descriptors => "descriptor table",
            Self::Available => "available ring",
            Self::Used => "used ring",
        })
    }
}

/// A rule that was broken: what was found, and what is allowed.
///
/// A device gets one when the driver (or the frontend that sets the ring up) breaks a rule; the queue
/// is then in its error state until it is stopped. A driver gets one of the last three when the
/// *device* breaks a rule. Nobody gets one for what the specification lets pass: a buffer of length
/// zero, unknown flags in a descriptor, an indirect table at any alignment and of any number of
/// entries, an indirect descriptor at the end of direct ones.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
#[non_exhaustive]
pub enum RingError {
    /// 2.7: a power of two, at most 32768, and not more than the device has.
    #[error("queue size {size} is not a power of two between 1 and {max}")]
    QueueSize {
        /// The size that was asked for, in descriptors.
        size: u32,
        /// What the device allows.
        max: u16,
    },
    /// 2.7: descriptor table 16, available ring 2, used ring 4.
    #[error("{part} at {address:#x}: the address must be a multiple of {align}")]
    RingAlignment {
        /// Which part.
        part: RingPart,
        /// Guest physical address.
        address: u64,
        /// The alignment that it must have.
        align: u64,
    },
    /// Each part lies in one region of guest memory.
    #[error("{part} at {address:#x}..+{len:#x} is not in one region of guest memory")]
    RingAddress {
        /// Which part.
        part: RingPart,
        /// Guest physical address.
        address: u64,
        /// Length in bytes that the part needs.
        len: u64,
    },
    /// The device writes to the used ring.
    #[error("used ring at {address:#x} lies in a region that is mapped read-only")]
    RingReadOnly {
        /// Guest physical address.
        address: u64,
    },
    /// What was taken and not given back when the ring starts cannot be more than the ring holds.
    #[error("ring starts at available index {next}, used index {used}: more than {size} apart")]
    ResumeIndex {
        /// Where the device is to go on.
        next: u16,
        /// What the used ring says.
        used: u16,
        /// Queue size.
        size: u16,
    },
    /// A ring whose device is gone is taken up at the used index, which says nothing of chains that were given back before
    /// others that are older.
    #[error(
        "up to used index {used} chains were given back out of their order: nobody knows which are still to be done"
    )]
    OutOfOrder {
        /// What the used ring says.
        used: u16,
    },
    /// 2.7.13.3.1: the available index only grows, and the driver has no more chains than descriptors.
    #[error("available index {index} is not between {seen}, which it was before, and {limit}")]
    AvailableIndex {
        /// What the driver wrote.
        index: u16,
        /// What it was when we last looked.
        seen: u16,
        /// The queue size more than what we have taken. The three wrap at 2^16.
        limit: u16,
    },
    /// 2.7.6: an entry of the available ring is the index of a descriptor.
    #[error("chain head {head} is not below the queue size {size}")]
    HeadIndex {
        /// What the driver wrote.
        head: u16,
        /// Queue size.
        size: u16,
    },
    /// 2.7.13.1: a descriptor that the device has is not free to be used again.
    #[error("chain head {head} was made available while the device still has it")]
    HeadInFlight {
        /// The head.
        head: u16,
    },
    /// 2.7.5: `next` is an index into the table.
    #[error("chain {head}: next descriptor {next} is not below {entries}, the entries of its table")]
    NextIndex {
        /// Head of the chain.
        head: u16,
        /// What the driver wrote.
        next: u16,
        /// Entries of the table, direct or indirect.
        entries: u32,
    },
    /// 2.7.5.2, 2.7.5.3.1: no loops. Direct descriptors: at most the queue size. An indirect table: at
    /// most its entries, and at most 1024 or the queue size, whichever is more (the specification says
    /// the queue size, but Linux goes by the device's own limit of segments, and QEMU takes 1024).
    #[error("chain {head} loops or is longer than {limit} descriptors")]
    ChainLength {
        /// Head of the chain.
        head: u16,
        /// The most that it may have.
        limit: u32,
    },
    /// 2.7.5.2: a chain has at most 2^32 bytes in total.
    #[error("chain {head} has {bytes:#x} bytes, more than 2^32")]
    ChainBytes {
        /// Head of the chain.
        head: u16,
        /// The sum at which we stopped.
        bytes: u64,
    },
    /// 2.7.4.2: device-writable descriptors come after all device-readable ones.
    #[error("chain {head}: descriptor {descriptor} is device-readable, after a device-writable one")]
    ReadableAfterWritable {
        /// Head of the chain.
        head: u16,
        /// Index within its table.
        descriptor: u16,
    },
    /// 2.7.5: a buffer lies in guest memory.
    #[error("chain {head}: buffer {address:#x}..+{len:#x} is not in guest memory")]
    BufferAddress {
        /// Head of the chain.
        head: u16,
        /// Guest physical address.
        address: u64,
        /// Length in bytes.
        len: u32,
    },
    /// What the driver named lies where memory can be, and could not be mapped: a grant that it did not make.
    #[error("memory {address:#x}..+{len:#x} that the driver named cannot be mapped: {source}")]
    Unreachable {
        /// Guest address.
        address: u64,
        /// Length in bytes.
        len: u64,
        /// Why.
        source: Box<MapError>,
    },
    /// A device-writable buffer lies in memory that we may write.
    #[error("chain {head}: device-writable buffer {address:#x}..+{len:#x} lies in a read-only region")]
    BufferReadOnly {
        /// Head of the chain.
        head: u16,
        /// Guest physical address.
        address: u64,
        /// Length in bytes.
        len: u32,
    },
    /// 2.7.5.3.1: no indirect descriptor unless the feature was negotiated.
    #[error("chain {head}: descriptor {descriptor} is indirect, but INDIRECT_DESC was not negotiated")]
    IndirectNotNegotiated {
        /// Head of the chain.
        head: u16,
        /// Index in the descriptor table.
        descriptor: u16,
    },
    /// 2.7.5.3.1: no indirect descriptor in an indirect table.
    #[error("chain {head}: descriptor {descriptor} of the indirect table is indirect itself")]
    IndirectNested {
        /// Head of the chain.
        head: u16,
        /// Index in the indirect table.
        descriptor: u16,
    },
    /// 2.7.5.3.1: an indirect descriptor is the last of its chain.
    #[error("chain {head}: descriptor {descriptor} has both INDIRECT and NEXT")]
    IndirectWithNext {
        /// Head of the chain.
        head: u16,
        /// Index in the descriptor table.
        descriptor: u16,
    },
    /// 2.7.5.3: the table has a whole number of descriptors, at least one.
    #[error("chain {head}: indirect table of {len} bytes: must be a multiple of 16, and not 0")]
    IndirectLength {
        /// Head of the chain.
        head: u16,
        /// Length in bytes.
        len: u32,
    },
    /// 2.7.5.3: the table lies in guest memory.
    #[error("chain {head}: indirect table {address:#x}..+{len:#x} is not in guest memory")]
    IndirectAddress {
        /// Head of the chain.
        head: u16,
        /// Guest physical address.
        address: u64,
        /// Length in bytes.
        len: u32,
    },
    /// 2.7.4.3: with IN_ORDER, a direct chain goes through the table in order.
    #[error("descriptor {descriptor}: next is {next}, but with IN_ORDER it must be {expected}")]
    InOrderNext {
        /// Index in the descriptor table.
        descriptor: u16,
        /// What the driver wrote.
        next: u16,
        /// What it must be.
        expected: u16,
    },
    /// A device that works by batch wants a header at the start of the readable part.
    #[error("chain {head}: {readable} readable bytes are too few for a header of {header}")]
    ChainHeader {
        /// Head of the chain.
        head: u16,
        /// Device-readable bytes of the chain.
        readable: u64,
        /// What the device wants.
        header: usize,
    },
    /// A device that works by batch wants a trailer at the end of the writable part.
    #[error("chain {head}: {writable} writable bytes are too few for a trailer of {trailer}")]
    ChainTrailer {
        /// Head of the chain.
        head: u16,
        /// Device-writable bytes of the chain.
        writable: u64,
        /// What the device wants.
        trailer: usize,
    },
    /// The memory of the ring, or of a header, went away (a truncated file).
    #[error("the guest memory of the queue is gone: what backed it was truncated or taken away")]
    MemoryFault,
    /// Not the driver's fault: this process was forked from the one whose queue it is.
    #[error("the queue belongs to the process that this one was forked from")]
    Forked,
    /// Not the driver's fault: the device itself failed (an exception in its code).
    #[error("the device failed while it handled the queue")]
    DeviceFailed,
    /// Driver side, 2.7.14: the device gives back at most what it has.
    #[error("used index {index} is not within {outstanding} of {next}: more than the device has")]
    UsedIndex {
        /// What the device wrote.
        index: u16,
        /// The next index that we take.
        next: u16,
        /// Chains that the device has.
        outstanding: u16,
    },
    /// Driver side, 2.7.8: a used entry names the head of a chain that the device has.
    #[error("used entry names chain {id}, which the device does not have")]
    UsedId {
        /// What the device wrote.
        id: u32,
    },
}

/// The names of all rules, as [`RingError::rule`] gives them.
pub const RULES: [&str; 29] = [
    "queue-size",
    "ring-alignment",
    "ring-address",
    "ring-read-only",
    "resume-index",
    "out-of-order",
    "available-index",
    "head-index",
    "head-in-flight",
    "next-index",
    "chain-length",
    "chain-bytes",
    "readable-after-writable",
    "buffer-address",
    "unreachable",
    "buffer-read-only",
    "indirect-not-negotiated",
    "indirect-nested",
    "indirect-with-next",
    "indirect-length",
    "indirect-address",
    "in-order-next",
    "chain-header",
    "chain-trailer",
    "memory-fault",
    "forked",
    "device-failed",
    "used-index",
    "used-id",
];

impl RingError {
    /// The stable name of the rule.
    pub fn rule(&self) -> &'static str {
        match self {
            Self::QueueSize { .. } => "queue-size",
            Self::RingAlignment { .. } => "ring-alignment",
            Self::RingAddress { .. } => "ring-address",
            Self::RingReadOnly { .. } => "ring-read-only",
            Self::ResumeIndex { .. } => "resume-index",
            Self::OutOfOrder { .. } => "out-of-order",
            Self::AvailableIndex { .. } => "available-index",
            Self::HeadIndex { .. } => "head-index",
            Self::HeadInFlight { .. } => "head-in-flight",
            Self::NextIndex { .. } => "next-index",
            Self::ChainLength { .. } => "chain-length",
            Self::ChainBytes { .. } => "chain-bytes",
            Self::ReadableAfterWritable { .. } => "readable-after-writable",
            Self::BufferAddress { .. } => "buffer-address",
            Self::Unreachable { .. } => "unreachable",
            Self::BufferReadOnly { .. } => "buffer-read-only",
            Self::IndirectNotNegotiated { .. } => "indirect-not-negotiated",
            Self::IndirectNested { .. } => "indirect-nested",
            Self::IndirectWithNext { .. } => "indirect-with-next",
            Self::IndirectLength { .. } => "indirect-length",
            Self::IndirectAddress { .. } => "indirect-address",
            Self::InOrderNext { .. } => "in-order-next",
            Self::ChainHeader { .. } => "chain-header",
            Self::ChainTrailer { .. } => "chain-trailer",
            Self::MemoryFault => "memory-fault",
            Self::Forked => "forked",
            Self::DeviceFailed => "device-failed",
            Self::UsedIndex { .. } => "used-index",
            Self::UsedId { .. } => "used-id",
        }
    }
}
