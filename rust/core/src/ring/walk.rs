//! The walk along the descriptors of a chain: each is loaded once, checked, and translated.
//!
//! # Safety
//! The descriptor table was leased for all of its entries by whoever made the walker; an indirect table is
//! translated, leased or copied for all of its own. An index is checked before it is used.
#![allow(unsafe_code)]

use std::{collections::HashMap, mem, ptr};

use super::{
    RingFeatures,
    access::{Descriptor, load_descriptor},
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
    /// Buffers of the chain at hand that are yet to be mapped: all of them together.
    pending: Vec<Pending>,
    /// The copy of an indirect table that does not lie in one region, or is not aligned.
    gathered: Vec<u64>,
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
            pending: Vec::new(),
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

    /// Brings to the guest what was written for this chain to copies, then lets go.
    #[inline(always)]
    pub(super) fn finish(&mut self, head: u16) -> Result<(), Refusal> {
        if self.leases.is_empty() { Ok(()) } else { self.settle(head) }
    }

    #[cold]
    fn settle(&mut self, head: u16) -> Result<(), Refusal> {
        let leases = self.leases.remove(&head).unwrap_or_default();
        let settled = leases.iter().try_for_each(Lease::settle);
        settled.map_err(|error| bad_buffer(head, 0, 0, error))
    }

    /// Follows the descriptors of a chain, checks and translates each.
    #[inline(always)]
    pub(super) fn walk(&mut self, head: u16, segments: &mut Vec<Segment>) -> Result<Extent, Refusal> {
        let mut trail = Trail { head, first: segments.len(), ..Trail::default() };
        let entries = self.size.into();
        match self.follow::<false>(self.descriptors, entries, head, &mut trail, segments)? {
            Some(table) => return self.walk_table(table, trail, segments),
            None if self.pending.is_empty() => {}
            None => self.map_pending(head, segments)?,
        }
        trail.end(segments.len())
    }

    #[inline(never)]
    fn walk_table(
        &mut self,
        Descriptor { address, len, .. }: Descriptor,
        mut trail: Trail,
        segments: &mut Vec<Segment>,
    ) -> Result<Extent, Refusal> {
        let head = trail.head;
        if len == 0 || !len.is_multiple_of(layout::DESCRIPTOR as u32) {
            return Err(refuse(RingError::IndirectLength { head, len }));
        }
        let table = match self.translator.translate(address, len.into(), Access::Read) {
            Some(base) if base.cast::<u64>().is_aligned() => base.as_ptr().cast_const(),
            _ => self.reach_table(head, address, len)?,
        };
        self.follow::<true>(table, len / layout::DESCRIPTOR as u32, 0, &mut trail, segments)?;
        if !self.pending.is_empty() {
            self.map_pending(head, segments)?;
        }
        trail.end(segments.len())
    }

    /// Follows the descriptors of one table, from `index` on. `TABLE` is true for an indirect one. Returns
    /// the descriptor that refers to a table, where the chain goes on in one.
    #[inline(always)]
    fn follow<const TABLE: bool>(
        &mut self,
        table: *const u8,
        entries: u32,
        mut index: u16,
        trail: &mut Trail,
        segments: &mut Vec<Segment>,
    ) -> Result<Option<Descriptor>, Refusal> {
        let head = trail.head;
        let limit = if TABLE { entries.min(INDIRECT_LIMIT.max(self.size.into())) } else { entries };
        // As many as there may be: who comes by here more often goes in a circle.
        for _ in 0..limit {
            // SAFETY: index < entries, and the table was translated for all of them; aligned.
            let descriptor =
                unsafe { load_descriptor(table.wrapping_add(usize::from(index) * layout::DESCRIPTOR)) };
            let Descriptor { address, len, flags, next } = descriptor;
            if flags & INDIRECT != 0 {
                if TABLE || flags & NEXT != 0 || !self.features.indirect {
                    return Err(refuse(self.bad_indirect(head, index, TABLE)));
                }
                return Ok(Some(descriptor));
            }
            let writable = flags & WRITE != 0;
            if writable != trail.writing {
                if !writable {
                    return Err(refuse(RingError::ReadableAfterWritable { head, descriptor: index }));
                }
                trail.turn(segments.len());
            }
            trail.bytes = trail.bytes.wrapping_add(len.into());
            if len != 0 {
                let access = if writable { Access::Write } else { Access::Read };
                match self.translator.translate(address, len.into(), access) {
                    Some(base) => segments.push(Segment { base: base.as_ptr(), len, writable }),
                    None => self.pieces(head, address, len, writable, segments)?,
                }
            }
            if flags & NEXT == 0 {
                return Ok(None);
            }
            if u32::from(next) >= entries {
                return Err(refuse(RingError::NextIndex { head, next, entries }));
            }
            if !TABLE && self.features.in_order {
                let expected = index.wrapping_add(1) & (self.size - 1);
                if next != expected {
                    return Err(refuse(RingError::InOrderNext { descriptor: index, next, expected }));
                }
            }
            index = next;
        }
        Err(refuse(RingError::ChainLength { head, limit }))
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
    ) -> Result<(), Refusal> {
        if self.memory.is_on_demand(address, len.into()) {
            self.pending.push(Pending { segment: segments.len(), address, len });
            segments.push(Segment { base: ptr::null_mut(), len, writable });
            return Ok(());
        }
        let access = if writable { Access::Write } else { Access::Read };
        let mut leases = Vec::new();
        let reached = self.memory.reach(address, len.into(), access, &mut leases, |base, len| {
            // A piece is not longer than the buffer.
            segments.push(Segment { base: base.as_ptr(), len: len as u32, writable });
        });
        reached.map_err(|error| bad_buffer(head, address, len, error))?;
        self.keep(head, leases);
        Ok(())
    }

    /// Maps the buffers of a chain that are mapped only on demand, those for each kind of access together.
    #[cold]
    fn map_pending(&mut self, head: u16, segments: &mut [Segment]) -> Result<(), Refusal> {
        let pending = mem::take(&mut self.pending);
        for (access, writable) in [(Access::Read, false), (Access::Write, true)] {
            let is_wanted =
                |one: &&Pending| segments.get(one.segment).is_some_and(|it| it.writable == writable);
            let wanted: Vec<Pending> = pending.iter().filter(is_wanted).copied().collect();
            let ranges: Vec<_> = wanted.iter().map(|one| (one.address, u64::from(one.len))).collect();
            let leases = self.memory.lease_for_request(&ranges, access).map_err(|error| {
                let Pending { address, len, .. } = wanted.first().copied().unwrap_or_default();
                bad_buffer(head, address, len, error)
            })?;
            for (one, lease) in wanted.iter().zip(&leases) {
                if let Some(segment) = segments.get_mut(one.segment) {
                    segment.base = lease.base().as_ptr();
                }
            }
            self.keep(head, leases);
        }
        Ok(())
    }

    /// An indirect table in memory that is mapped only on demand, or else one that goes on in the region
    /// that touches the first, or is not aligned (it need not be): then a copy of as much of it as an index
    /// can name.
    #[cold]
    fn reach_table(&mut self, head: u16, address: u64, len: u32) -> Result<*const u8, Refusal> {
        let refused = |error| {
            refuse(match error {
                MemoryError::Fault { .. } => RingError::MemoryFault,
                MemoryError::Unreachable { address, len, source } => {
                    RingError::Unreachable { address, len, source: source.into() }
                }
                _ => RingError::IndirectAddress { head, address, len },
            })
        };
        let leased = self.memory.lease_for_request(&[(address, len.into())], Access::Read);
        match leased.map(|mut leases| leases.pop().unwrap_or_else(Lease::empty)) {
            Ok(lease) if lease.base().cast::<u64>().is_aligned() => {
                let base = lease.base().as_ptr();
                self.keep(head, vec![lease]);
                Ok(base)
            }
            Ok(_) | Err(MemoryError::Crossing { .. }) => {
                let bytes = (len as usize).min(layout::DESCRIPTOR << 16);
                self.gathered.resize(bytes / size_of::<u64>(), 0);
                let gathered: &mut [u8] = bytemuck::cast_slice_mut(&mut self.gathered);
                self.memory.read(address, gathered).map_err(refused)?;
                Ok(gathered.as_ptr())
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

/// A buffer that is yet to be mapped.
#[derive(Clone, Copy, Debug, Default)]
struct Pending {
    /// Which segment it is.
    segment: usize,
    address: u64,
    len: u32,
}

/// Why a buffer cannot be reached; which it is, where the error does not say.
#[cold]
fn bad_buffer(head: u16, address: u64, len: u32, error: MemoryError) -> Refusal {
    refuse(match error {
        // A buffer is not longer than 2^32 - 1.
        MemoryError::ReadOnly { address, len } => {
            RingError::BufferReadOnly { head, address, len: len as u32 }
        }
        MemoryError::Fault { .. } => RingError::MemoryFault,
        MemoryError::Unreachable { address, len, source } => {
            RingError::Unreachable { address, len, source: source.into() }
        }
        _ => RingError::BufferAddress { head, address, len },
    })
}

/// A broken rule, kept small: the way of a chain that breaks none shall not make room for it.
pub(super) type Refusal = Box<RingError>;

#[cold]
#[inline(never)]
pub(super) fn refuse(error: RingError) -> Refusal {
    Box::new(error)
}

/// What a walk has seen so far.
#[derive(Default)]
struct Trail {
    head: u16,
    /// Where its segments begin in the list.
    first: usize,
    bytes: u64,
    /// The readable part has ended; it had so many bytes, and its segments end here in the list.
    writing: bool,
    readable: u64,
    readable_end: usize,
}

impl Trail {
    /// From here on the device writes.
    #[inline(always)]
    fn turn(&mut self, segments: usize) {
        self.writing = true;
        self.readable = self.bytes;
        self.readable_end = segments;
    }

    #[inline(always)]
    fn end(mut self, segments: usize) -> Result<Extent, Refusal> {
        if !self.writing {
            self.turn(segments);
        }
        let Self { head, bytes, .. } = self;
        // At most 32768 direct ones and as many in a table, of less than 2^32 bytes each: no overflow.
        if bytes > 1 << 32 {
            return Err(refuse(RingError::ChainBytes { head, bytes }));
        }
        Ok(Extent {
            head,
            readable_segments: (self.readable_end - self.first) as u32,
            segments: (segments - self.first) as u32,
            readable: self.readable,
            writable: bytes - self.readable,
        })
    }
}
