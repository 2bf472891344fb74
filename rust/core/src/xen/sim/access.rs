//! An access of a vCPU to addresses where no memory is.

use std::{
    fmt,
    ops::RangeInclusive,
    sync::{Arc, Condvar, Mutex, PoisonError},
    time::Instant,
};

use super::machine::Kind;
use crate::xen::{
    RequestData, RequestKind,
    abi::{
        dm_op::{IO_RANGE_MEMORY, IO_RANGE_PORT},
        ioreq::{IS_BACKWARDS, IS_POINTER, IS_READ, Ioreq, TYPE_INVALIDATE, TYPE_MEMORY, TYPE_PORT},
    },
};

/// What a vCPU wants.
#[derive(Clone, Copy, Debug)]
pub struct VcpuAccess {
    /// Memory, a port, or that what is mapped is given back.
    pub kind: RequestKind,
    /// Guest physical address or I/O port, of the first access.
    pub address: u64,
    /// Bytes of each: 1, 2, 4 or 8.
    pub size: u8,
    /// How many, for an instruction with a rep prefix.
    pub count: u32,
    /// Does it read?
    pub is_read: bool,
    /// Do addresses go down?
    pub backwards: bool,
    /// The value, or where in guest memory the values are.
    pub data: RequestData,
}

impl fmt::Display for VcpuAccess {
    fn fmt(&self, formatter: &mut fmt::Formatter<'_>) -> fmt::Result {
        let Self { kind, address, size, count, is_read, .. } = self;
        let verb = if *is_read { "reading" } else { "writing" };
        write!(formatter, "{verb} {count} times {size} bytes ({kind:?}) at {address:#x} by a vCPU")
    }
}

impl VcpuAccess {
    /// What is wrong with it, if anything is.
    pub(super) fn check(&self) -> Result<(), String> {
        let Self { kind, address, size, count, .. } = *self;
        if !matches!(size, 1 | 2 | 4 | 8) || kind == RequestKind::Port && size == 8 {
            return Err(format!("{size} bytes: an access is of 1, 2 or 4 bytes, of memory also of 8"));
        }
        if count == 0 || count > 4096 {
            return Err(format!("{count} accesses: 1 to 4096 are wanted"));
        }
        let first_beyond = if kind == RequestKind::Port { 1 << 16 } else { 1 << 52 };
        if address >= first_beyond {
            return Err(format!("address {address:#x}: it lies below {first_beyond:#x}"));
        }
        match kind {
            RequestKind::Port | RequestKind::Memory | RequestKind::Invalidate => Ok(()),
            other => Err(format!("{other:?}: a vCPU accesses memory or ports")),
        }
    }

    /// All that it touches; None if it is about no addresses.
    pub(super) fn place(&self) -> Option<(u32, RangeInclusive<u64>)> {
        let size = u64::from(self.size);
        match self.kind {
            RequestKind::Port => Some((IO_RANGE_PORT, self.address..=self.address + size - 1)),
            RequestKind::Memory => {
                let more = size * (u64::from(self.count) - 1);
                let first = if self.backwards { self.address.saturating_sub(more) } else { self.address };
                Some((IO_RANGE_MEMORY, first..=first + more + size - 1))
            }
            _ => None,
        }
    }

    /// What Xen puts into the slot of the vCPU.
    pub(super) fn request(&self) -> Ioreq {
        let (data, pointer) = match self.data {
            RequestData::Value(value) => (value, 0),
            RequestData::At(address) => (address, IS_POINTER),
        };
        let read = if self.is_read { IS_READ } else { 0 };
        let backwards = if self.backwards { IS_BACKWARDS } else { 0 };
        let kind = match self.kind {
            RequestKind::Port => TYPE_PORT,
            RequestKind::Invalidate => TYPE_INVALIDATE,
            _ => TYPE_MEMORY,
        };
        Ioreq {
            address: self.address,
            data,
            count: self.count,
            size: self.size.into(),
            port: 0,
            padding: 0,
            bits: pointer | read | backwards,
            kind,
        }
    }

    /// How it ends where no server has the address: Arm gives the guest a data abort, x86 what an empty bus does.
    pub(super) fn of_nobody(&self, kind: Kind) -> AccessResult {
        match (kind, self.kind) {
            (Kind::Arm, RequestKind::Memory) => AccessResult::Abort,
            _ => AccessResult::Answered(u64::MAX),
        }
    }
}

/// How an access ended.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum AccessResult {
    /// What was read, in the lowest bytes.
    Answered(u64),
    /// Nobody serves the address, and on Arm that is the guest's end.
    Abort,
    /// The domain was destroyed meanwhile.
    DomainGone,
}

/// Where the end of an access is told.
#[derive(Debug, Default)]
pub(super) struct Outcome {
    result: Mutex<Option<AccessResult>>,
    told: Condvar,
}

impl Outcome {
    pub(super) fn set(&self, result: AccessResult) {
        *self.result.lock().unwrap_or_else(PoisonError::into_inner) = Some(result);
        self.told.notify_all();
    }
}

/// An access on its way.
#[derive(Clone, Debug)]
pub struct Access {
    outcome: Arc<Outcome>,
}

impl Access {
    pub(super) fn new(outcome: Arc<Outcome>) -> Self {
        Self { outcome }
    }

    /// How it ended; None while it has not.
    pub fn result(&self) -> Option<AccessResult> {
        *self.outcome.result.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Waits until it has ended, or it is this late; None then. None for the deadline waits for ever.
    pub fn wait(&self, deadline: Option<Instant>) -> Option<AccessResult> {
        let mut result = self.outcome.result.lock().unwrap_or_else(PoisonError::into_inner);
        while result.is_none() {
            let told = &self.outcome.told;
            result = match deadline.map(|deadline| deadline.saturating_duration_since(Instant::now())) {
                None => told.wait(result).unwrap_or_else(PoisonError::into_inner),
                Some(left) if left.is_zero() => break,
                Some(left) => told.wait_timeout(result, left).unwrap_or_else(PoisonError::into_inner).0,
            };
        }
        *result
    }
}
