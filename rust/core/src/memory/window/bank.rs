//! A bank of a guest's RAM: the addresses that are reserved for it, and what the table sees of it.

use std::{ops::Range, ptr::NonNull, sync::Arc};

use rustix::io::Errno;

use super::{
    super::{
        backing::{Access, Backing, Hold, Lease, MemoryKind},
        error::{MapError, MemoryError},
        fork::Owner,
        mapping::Mapping,
    },
    AttachRequest, ForeignWindows,
};
use crate::xen::{abi::FRAME, refused};

/// Guest physical memory without a gap, and the addresses that are reserved for it.
#[derive(Debug)]
pub(super) struct Bank {
    pub(super) first_frame: u64,
    pub(super) frames: u64,
    pub(super) mapping: Mapping,
}

impl Bank {
    pub(super) fn reserve(range: &Range<u64>, request: &AttachRequest) -> Result<Self, MemoryError> {
        let (address, len) = (range.start, range.end.saturating_sub(range.start));
        let frame = FRAME as u64;
        if len == 0 || !address.is_multiple_of(frame) || !len.is_multiple_of(frame) {
            let text = format!("{address:#x} to {:#x} is not a range of whole frames of 4 KiB", range.end);
            return Err(MemoryError::BadTable(text));
        }
        let frames = len / frame;
        let mapping = usize::try_from(len).map_err(|_| Errno::NOMEM);
        let mapping = mapping.and_then(|len| Mapping::reserve(len, request.writable));
        let mapping = mapping.map_err(|errno| {
            let source = refused(request.domain, frames as usize, errno).into();
            MemoryError::Unreachable { address, len, source }
        })?;
        Ok(Self { first_frame: address / frame, frames, mapping })
    }
}

/// A bank as the table sees it.
#[derive(Debug)]
pub(super) struct WindowedBank {
    pub(super) windows: Arc<ForeignWindows>,
    pub(super) bank: usize,
}

impl Hold for WindowedBank {
    fn poisoned(&self) -> bool {
        self.windows.banks[self.bank].mapping.poisoned()
    }
}

impl Backing for WindowedBank {
    fn kind(&self) -> MemoryKind {
        MemoryKind::Foreign { domain: self.windows.domain }
    }
    fn len(&self) -> u64 {
        self.windows.banks[self.bank].frames * FRAME as u64
    }
    fn writable(&self) -> bool {
        self.windows.writable
    }
    fn owner(&self) -> Owner {
        self.windows.owner
    }
    fn resident(&self) -> Option<NonNull<u8>> {
        None
    }
    fn lease(self: Arc<Self>, offset: u64, len: u64, _access: Access) -> Result<Lease, MapError> {
        self.windows.lease(self.bank, offset, len)
    }
}
