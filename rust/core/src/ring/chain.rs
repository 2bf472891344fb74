//! One chain of buffers: its segments in our memory, and two cursors through them.
//!
//! # Safety
//! A [`Segment`] is made by the walk, which translated and checked the range. A [`QueueChain`] keeps the
//! memory table from which it was translated, so that the range stays mapped. No reference is made into
//! a segment: bytes are copied by pointer, or by the kernel.
#![allow(unsafe_code)]

use std::{os::fd::BorrowedFd, ptr::NonNull, sync::Arc};

use super::{chain_error::ChainError, queue::VirtQueue, transfer};
use crate::memory::{GuestMemory, Hold, Lease, Source, Target};

/// A piece of a buffer: a range of our memory that was checked.
#[derive(Clone, Copy, Debug)]
pub struct Segment {
    /// Where it begins. The guest may write to it at any time: make no reference to it.
    pub base: *mut u8,
    /// Length in bytes, at least one.
    pub len: u32,
    /// May the device write to it? If not, it must not: the region may be mapped read-only.
    pub writable: bool,
}

// SAFETY: the pointer leads to shared memory; whoever holds the segment keeps the mapping.
unsafe impl Send for Segment {}
// SAFETY: as above; nothing is read or written through a `&Segment` but by raw copies.
unsafe impl Sync for Segment {}

/// How much of a list of segments a chain has.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub(super) struct Extent {
    pub head: u16,
    /// How many segments are readable: these come first.
    pub readable_segments: u32,
    pub segments: u32,
    /// Bytes.
    pub readable: u64,
    pub writable: u64,
}

/// A chain as it was taken from the ring: validated and translated.
#[derive(Debug, Default)]
pub struct Chain {
    /// Index of its first descriptor: how driver and device call it.
    pub head: u16,
    /// The pieces of its buffers; the readable ones come first.
    pub segments: Vec<Segment>,
    /// How many of the segments are readable.
    pub readable_segments: usize,
    /// Device-readable bytes.
    pub readable: u64,
    /// Device-writable bytes.
    pub writable: u64,
}

/// A place in a list of segments.
#[derive(Clone, Copy, Debug, Default)]
struct Cursor {
    segment: usize,
    offset: u32,
}

impl Cursor {
    /// The pieces of the next `len` bytes.
    fn pieces(self, segments: &[Segment], len: u64) -> impl Iterator<Item = Segment> {
        let mut offset = self.offset;
        let mut left = len;
        segments.iter().skip(self.segment).map_while(move |segment| {
            let rest = segment.len - offset;
            let len = u64::from(rest).min(left) as u32;
            let base = segment.base.wrapping_add(offset as usize);
            offset = 0;
            left -= u64::from(len);
            (len > 0).then_some(Segment { base, len, writable: segment.writable })
        })
    }

    fn advance(&mut self, segments: &[Segment], mut len: u64) {
        while let Some(segment) = segments.get(self.segment) {
            let rest = u64::from(segment.len - self.offset);
            if len < rest {
                self.offset += len as u32;
                return;
            }
            len -= rest;
            self.segment += 1;
            self.offset = 0;
        }
    }
}

/// A chain that the device has. It is read and written from front to back.
///
/// Dropped without having been completed, it stays with the device for ever (until the queue is reset).
#[derive(Debug)]
pub struct QueueChain {
    queue: Arc<VirtQueue>,
    generation: u64,
    /// Keeps the segments mapped.
    memory: GuestMemory,
    chain: Chain,
    read_at: Cursor,
    write_at: Cursor,
    read: u64,
    written: u64,
    completed: bool,
}

impl QueueChain {
    pub(super) fn new(queue: Arc<VirtQueue>, generation: u64, memory: GuestMemory, chain: Chain) -> Self {
        let write_at = Cursor { segment: chain.readable_segments, offset: 0 };
        Self {
            queue,
            generation,
            memory,
            chain,
            read_at: Cursor::default(),
            write_at,
            read: 0,
            written: 0,
            completed: false,
        }
    }

    /// Index of the first descriptor: how driver and device call the chain.
    pub fn head(&self) -> u16 {
        self.chain.head
    }

    /// The queue it came from.
    pub fn queue(&self) -> &Arc<VirtQueue> {
        &self.queue
    }

    /// Device-readable bytes that were not read yet.
    pub fn readable(&self) -> u64 {
        self.chain.readable - self.read
    }

    /// Device-writable bytes that were not written yet.
    pub fn writable(&self) -> u64 {
        self.chain.writable - self.written
    }

    /// Bytes written so far: the used length, unless [`Self::complete`] is told another.
    pub fn written(&self) -> u64 {
        self.written
    }

    /// Was it completed?
    pub fn completed(&self) -> bool {
        self.completed
    }

    /// Is the chain still the device's: neither completed nor stale?
    pub fn check(&self) -> Result<(), ChainError> {
        self.access(|_| ())
    }

    fn readable_part(&self) -> &[Segment] {
        self.chain.segments.get(..self.chain.readable_segments).unwrap_or_default()
    }

    /// Reads the next bytes into `target`, and returns how many: fewer than asked only at the end.
    pub fn read(&mut self, target: &mut [u8]) -> Result<usize, ChainError> {
        self.read_into(target.into())
    }

    /// [`Self::read`], into bytes that others may look at meanwhile.
    pub fn read_into(&mut self, mut target: Target<'_>) -> Result<usize, ChainError> {
        let len = self.readable().min(target.len() as u64);
        let target = target.take(len as usize);
        self.access(|chain| {
            let pieces = chain.read_at.pieces(chain.readable_part(), len);
            // SAFETY: the pieces are mapped, and together they are as long as the target.
            unsafe { transfer::drain(pieces, target) };
        })?;
        self.skip_read(len);
        Ok(len as usize)
    }

    fn skip_read(&mut self, len: u64) {
        let readable = self.chain.segments.get(..self.chain.readable_segments).unwrap_or_default();
        self.read_at.advance(readable, len);
        self.read += len;
    }

    /// Writes all of `source` to the next bytes, or nothing when it does not fit.
    pub fn write(&mut self, source: &[u8]) -> Result<(), ChainError> {
        self.write_from(source.into())
    }

    /// [`Self::write`], from bytes that others may change meanwhile.
    pub fn write_from(&mut self, source: Source<'_>) -> Result<(), ChainError> {
        let (len, room) = (source.len() as u64, self.writable());
        if len > room {
            return Err(ChainError::DoesNotFit { head: self.head(), len, room });
        }
        self.access(|chain| {
            let pieces = chain.write_at.pieces(&chain.chain.segments, len);
            // SAFETY: the pieces are mapped and writable, and together they are as long as the source.
            unsafe { transfer::fill(pieces, source) };
        })?;
        self.write_at.advance(&self.chain.segments, len);
        self.written += len;
        Ok(())
    }

    /// Runs a copy while the chain cannot become stale, and asks afterwards whether the memory held.
    fn access<T>(&self, copy: impl FnOnce(&Self) -> T) -> Result<T, ChainError> {
        let head = self.head();
        if self.completed {
            return Err(ChainError::Completed { head });
        }
        if self.memory.check_owner().is_err() {
            return Err(ChainError::Forked { head });
        }
        let copied = self.queue.while_current(self.generation, || copy(self));
        let result = copied.ok_or(ChainError::Stale { head })?;
        if self.memory.poisoned() { Err(ChainError::Fault { head }) } else { Ok(result) }
    }

    /// Moves up to `len` bytes of a file to the next writable bytes, straight into guest memory, and
    /// returns how many: fewer at the end of the file. `offset` is a place in the file; without one the
    /// descriptor is read as a stream, which should not block: stopping the queue waits for it.
    pub fn write_from_fd(
        &mut self,
        fd: BorrowedFd<'_>,
        offset: Option<u64>,
        len: u64,
    ) -> Result<u64, ChainError> {
        let len = len.min(self.writable());
        let moved = self.access(|chain| {
            let pieces = chain.write_at.pieces(&chain.chain.segments, len);
            // SAFETY: the pieces are mapped and writable.
            unsafe { transfer::from_file(fd, pieces, offset) }
        })?;
        let moved = moved.map_err(|errno| ChainError::Io { head: self.head(), errno })?;
        self.write_at.advance(&self.chain.segments, moved);
        self.written += moved;
        Ok(moved)
    }

    /// Moves up to `len` of the next readable bytes to a file, straight from guest memory, and returns
    /// how many; see [`Self::write_from_fd`].
    pub fn read_to_fd(
        &mut self,
        fd: BorrowedFd<'_>,
        offset: Option<u64>,
        len: u64,
    ) -> Result<u64, ChainError> {
        let len = len.min(self.readable());
        let moved = self.access(|chain| {
            let pieces = chain.read_at.pieces(chain.readable_part(), len);
            // SAFETY: the pieces are mapped.
            unsafe { transfer::to_file(fd, pieces, offset) }
        })?;
        let moved = moved.map_err(|errno| ChainError::Io { head: self.head(), errno })?;
        self.skip_read(moved);
        Ok(moved)
    }

    /// What was not read yet, a lease for each piece of memory. Who holds one can look at the memory also
    /// after the chain was completed or became stale: let go of it before.
    pub fn readable_leases(&self) -> Result<Vec<Lease>, ChainError> {
        let hold = self.hold();
        self.access(|chain| leases(&hold, chain.read_at.pieces(chain.readable_part(), chain.readable())))
    }

    /// What was not written yet, a lease for each piece of memory; see [`Self::readable_leases`].
    pub fn writable_leases(&self) -> Result<Vec<Lease>, ChainError> {
        let hold = self.hold();
        self.access(|chain| leases(&hold, chain.write_at.pieces(&chain.chain.segments, chain.writable())))
    }

    /// What keeps all of the chain's pieces mapped.
    fn hold(&self) -> Arc<dyn Hold> {
        let leases = self.queue.leases(self.generation, self.head());
        Arc::new(Held { memory: self.memory.clone(), leases })
    }

    /// Puts the chain in the used ring and calls the driver if it wants. The used length is what was
    /// written, or `written`: for who wrote through views.
    pub fn complete(&mut self, written: Option<u64>) -> Result<(), ChainError> {
        let head = self.head();
        if self.completed {
            return Err(ChainError::Completed { head });
        }
        let len = written.unwrap_or(self.written);
        if len > self.chain.writable {
            return Err(ChainError::DoesNotFit { head, len, room: self.chain.writable });
        }
        self.queue.complete(self.generation, head, len, self.read, &mut self.chain.segments)?;
        self.completed = true;
        Ok(())
    }

    /// Puts several chains of one queue in the used ring, in their order, publishes them together and
    /// calls at most once: for what spans several chains, the driver must see all of it or nothing.
    /// Either all are completed or none.
    pub fn complete_together(chains: &mut [&mut Self]) -> Result<(), ChainError> {
        let Some(first) = chains.first() else { return Ok(()) };
        let (queue, generation, head) = (Arc::clone(&first.queue), first.generation, first.head());
        for chain in chains.iter() {
            let head = chain.head();
            if chain.completed {
                return Err(ChainError::Completed { head });
            }
            if !Arc::ptr_eq(&chain.queue, &queue) || chain.generation != generation {
                return Err(ChainError::Stale { head });
            }
        }
        first.memory.check_owner().map_err(|_| ChainError::Forked { head })?;
        let used = chains.iter().map(|chain| (chain.head(), chain.written, chain.read));
        queue.complete_all(generation, used).ok_or(ChainError::Stale { head })?;
        for chain in chains {
            chain.completed = true;
        }
        Ok(())
    }
}

/// Keeps the memory of a chain mapped, beyond the chain's own life.
#[derive(Debug)]
struct Held {
    memory: GuestMemory,
    leases: Vec<Lease>,
}

impl Hold for Held {
    fn poisoned(&self) -> bool {
        self.memory.poisoned() || self.leases.iter().any(Lease::poisoned)
    }
}

/// One for each piece, all of them kept by the same.
fn leases(hold: &Arc<dyn Hold>, pieces: impl Iterator<Item = Segment>) -> Vec<Lease> {
    let lease = |piece: Segment| {
        let base = NonNull::new(piece.base)?;
        // SAFETY: a checked range of the chain, which `hold` keeps; writable, where that is looked for.
        Some(unsafe { Lease::new(base, piece.len.into(), Arc::clone(hold)) })
    };
    pieces.filter_map(lease).collect()
}

impl Drop for QueueChain {
    fn drop(&mut self) {
        if !self.completed {
            let segments = std::mem::take(&mut self.chain.segments);
            self.queue.give_back(self.generation, self.chain.head, segments);
        }
    }
}
