//! The walk along the descriptors of a chain: each is loaded once, checked, and translated.
//!
//! # Safety
//! The descriptor table was leased for all of its entries by whoever made the walker; an indirect table is
//! translated, leased or copied for all of its own. An index is checked before it is used.
#![allow(unsafe_code)]

use std::collections::HashMap;

use super::{
    RingFeatures,
    access::load_descriptor,
    chain::{Extent, Segment},
    error::RingError,
    layout::{self, INDIRECT, NEXT, WRITE},
};
use crate::memory::{Access, GuestMemory, Lease, MemoryError, Translator};

/// The most descriptors of an indirect chain, where the queue itself is smaller.
const INDIRECT_LIMIT: u32 = 1024;

/// What a walk needs to know, and what it has mapped.
#[derive(Debug)]
pub(super) struct Walker {
    memory: GuestMemory,
    translator: Translator,
    features: RingFeatures,
    /// The descriptor table, of `size` entries.
    descriptors: *const u8,
    size: u16,
    /// What is mapped for single chains only, by head: given back before the driver gets the chain. None
    /// for memory that is always mapped.
    leases: HashMap<u16, Vec<Lease>>,
    /// The copy of an indirect table that does not lie in one region.
    gathered: Vec<u8>,
}

impl Walker {
    /// A walker over a descriptor table of `size` entries, which stays mapped as long as it is used.
    pub(super) fn new(
        memory: &GuestMemory,
        features: RingFeatures,
        descriptors: *const u8,
        size: u16,
    ) -> Self {
        Self {
            memory: memory.clone(),
            translator: memory.translator(),
            features,
            descriptors,
            size,
            leases: HashMap::new(),
            gathered: Vec::new(),
        }
    }

    /// The memory table changed, and the descriptor table is elsewhere.
    pub(super) fn move_to(&mut self, memory: &GuestMemory, descriptors: *const u8) {
        self.memory = memory.clone();
        self.translator = memory.translator();
        self.descriptors = descriptors;
    }

    /// What is mapped for this chain alone, to be kept longer.
    pub(super) fn leases(&self, head: u16) -> &[Lease] {
        self.leases.get(&head).map_or(&[], Vec::as_slice)
    }

    /// Unmaps what was mapped for this chain alone, unless somebody keeps it longer.
    #[inline(always)]
    pub(super) fn let_go(&mut self, head: u16) {
        if !self.leases.is_empty() {
            self.leases.remove(&head);
        }
    }

    /// Follows the descriptors of a chain, checks and translates each.
    #[inline(always)]
    pub(super) fn walk(&mut self, head: u16, segments: &mut Vec<Segment>) -> Result<Extent, RingError> {
        let first = segments.len();
        let mut table = self.descriptors;
        let mut entries = u32::from(self.size);
        let mut limit = entries;
        let mut left = entries;
        let mut indirect = false;
        let mut index = head;
        let mut bytes = 0u64;
        let (mut readable, mut readable_segments) = (0u64, 0);
        let mut writable_seen = false;
        loop {
            if left == 0 || bytes > 1 << 32 {
                return Err(too_long(head, limit, bytes));
            }
            left -= 1;
            // SAFETY: index < entries, and the table was translated for all of them.
            let descriptor =
                unsafe { load_descriptor(table.wrapping_add(usize::from(index) * layout::DESCRIPTOR)) };
            let flags = descriptor.flags;
            if flags & INDIRECT != 0 {
                if indirect || flags & NEXT != 0 || !self.features.indirect {
                    return Err(self.bad_indirect(head, index, indirect));
                }
                let len = descriptor.len;
                if len == 0 || !len.is_multiple_of(layout::DESCRIPTOR as u32) {
                    return Err(RingError::IndirectLength { head, len });
                }
                let address = descriptor.address;
                table = match self.translator.translate(address, len.into(), Access::Read) {
                    Some(base) => base.as_ptr().cast_const(),
                    None => self.reach_table(head, address, len)?,
                };
                entries = len / layout::DESCRIPTOR as u32;
                limit = entries.min(INDIRECT_LIMIT.max(self.size.into()));
                left = limit;
                indirect = true;
                index = 0;
                continue;
            }
            let (address, len) = (descriptor.address, descriptor.len);
            bytes += u64::from(len);
            let writable = flags & WRITE != 0;
            if !writable && writable_seen {
                return Err(RingError::ReadableAfterWritable { head, descriptor: index });
            }
            if len != 0 {
                let access = if writable { Access::Write } else { Access::Read };
                match self.translator.translate(address, len.into(), access) {
                    Some(base) => segments.push(Segment { base: base.as_ptr(), len, writable }),
                    None => self.pieces(head, address, len, writable, segments)?,
                }
            }
            if writable {
                writable_seen = true;
            } else {
                readable = bytes;
                readable_segments = segments.len() - first;
            }
            if flags & NEXT == 0 {
                break;
            }
            let next = descriptor.next;
            if u32::from(next) >= entries {
                return Err(RingError::NextIndex { head, next, entries });
            }
            if self.features.in_order && !indirect {
                let expected = index.wrapping_add(1) & (self.size - 1);
                if next != expected {
                    return Err(RingError::InOrderNext { descriptor: index, next, expected });
                }
            }
            index = next;
        }
        if bytes > 1 << 32 {
            return Err(too_long(head, limit, bytes));
        }
        Ok(Extent {
            head,
            readable_segments: readable_segments as u32,
            segments: (segments.len() - first) as u32,
            readable,
            writable: bytes - readable,
        })
    }

    #[cold]
    fn bad_indirect(&self, head: u16, descriptor: u16, indirect: bool) -> RingError {
        if !self.features.indirect {
            RingError::IndirectNotNegotiated { head, descriptor }
        } else if indirect {
            RingError::IndirectNested { head, descriptor }
        } else {
            RingError::IndirectWithNext { head, descriptor }
        }
    }

    /// A buffer that does not lie in one region, or in one that is mapped only on demand.
    #[cold]
    fn pieces(
        &mut self,
        head: u16,
        address: u64,
        len: u32,
        writable: bool,
        segments: &mut Vec<Segment>,
    ) -> Result<(), RingError> {
        let access = if writable { Access::Write } else { Access::Read };
        let mut leases = Vec::new();
        let reached = self.memory.reach(address, len.into(), access, &mut leases, |base, len| {
            // A piece is not longer than the buffer.
            segments.push(Segment { base: base.as_ptr(), len: len as u32, writable });
        });
        reached.map_err(|error| match error {
            MemoryError::ReadOnly { .. } => RingError::BufferReadOnly { head, address, len },
            _ => RingError::BufferAddress { head, address, len },
        })?;
        self.keep(head, leases);
        Ok(())
    }

    /// An indirect table in memory that is mapped only on demand, or one that goes on in the region that
    /// touches the first: then a copy of as much of it as an index can name.
    #[cold]
    fn reach_table(&mut self, head: u16, address: u64, len: u32) -> Result<*const u8, RingError> {
        let refused = |error| match error {
            MemoryError::Fault { .. } => RingError::MemoryFault,
            _ => RingError::IndirectAddress { head, address, len },
        };
        match self.memory.lease(address, len.into(), Access::Read) {
            Ok(lease) => {
                let base = lease.base().as_ptr();
                self.keep(head, vec![lease]);
                Ok(base)
            }
            Err(MemoryError::Crossing { .. }) => {
                self.gathered.resize((len as usize).min(layout::DESCRIPTOR << 16), 0);
                self.memory.read(address, &mut self.gathered).map_err(refused)?;
                Ok(self.gathered.as_ptr())
            }
            Err(error) => Err(refused(error)),
        }
    }

    fn keep(&mut self, head: u16, mut leases: Vec<Lease>) {
        if !leases.is_empty() {
            self.leases.entry(head).or_default().append(&mut leases);
        }
    }
}

#[cold]
fn too_long(head: u16, limit: u32, bytes: u64) -> RingError {
    if bytes > 1 << 32 {
        RingError::ChainBytes { head, bytes }
    } else {
        RingError::ChainLength { head, limit }
    }
}
