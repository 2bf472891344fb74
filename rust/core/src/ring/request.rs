//! One request of a batch on its own, for who works on requests out of their order: a native device whose
//! storage answers when it likes.
//!
//! # Safety
//! As in [`batch`](super::batch): segments were checked by the walk and are copied from and to by pointer or
//! by the kernel, while the queue cannot be stopped. Segments that are handed out are used by code that
//! holds the request, and that the queue settles (see [`Background`](super::Background)) before a stop returns.
#![allow(unsafe_code)]

use std::{os::fd::BorrowedFd, sync::Arc};

use rustix::io::Errno;

use super::{
    batch::{QueueBatch, Rows, Shared},
    chain::Segment,
    chain_error::BatchError,
    queue::VirtQueue,
    requests::{BatchLayout, Request},
    transfer,
};
use crate::memory::{Source, Target};

/// One request of a [`QueueBatch`]. It keeps the memory of the request mapped. Dropped without having been
/// finished, it stays with the device until the queue is reset.
#[derive(Debug)]
pub struct QueueRequest {
    shared: Arc<Shared>,
    row: u32,
}

/// How a request ended.
#[derive(Debug)]
pub struct Outcome {
    /// The request.
    pub request: QueueRequest,
    /// Bytes of its readable data that were read.
    pub read: u64,
    /// Bytes of its writable data that were written, from the first without a gap.
    pub written: u64,
    /// The trailer, little endian.
    pub trailer: u8,
}

impl QueueBatch {
    /// The generation of the queue to which it belongs.
    pub fn generation(&self) -> u64 {
        self.shared.generation
    }

    /// The requests one by one.
    pub fn into_requests(self) -> impl ExactSizeIterator<Item = QueueRequest> {
        let (shared, rows) = (self.shared, self.rows);
        let count = match &rows {
            Rows::All => shared.requests.list.len(),
            Rows::Some(rows) => rows.len(),
        };
        (0..count).map(move |index| {
            let row = match &rows {
                Rows::All => index as u32,
                Rows::Some(rows) => rows.get(index).copied().unwrap_or(u32::MAX),
            };
            QueueRequest { shared: Arc::clone(&shared), row }
        })
    }
}

impl QueueRequest {
    fn request(&self) -> Option<&Request> {
        self.shared.requests.list.get(self.row as usize)
    }

    /// The generation of the queue to which it belongs.
    pub fn generation(&self) -> u64 {
        self.shared.generation
    }

    /// The header, as it was read once.
    pub fn header(&self) -> &[u8] {
        let size = self.shared.requests.layout.header;
        let at = self.row as usize * size;
        self.shared.requests.headers.get(at..at + size).unwrap_or_default()
    }

    /// Bytes of readable data, after the header.
    pub fn readable(&self) -> u64 {
        self.request().map_or(0, |request| request.readable)
    }

    /// Bytes of writable data, before the trailer.
    pub fn writable(&self) -> u64 {
        self.request().map_or(0, |request| request.writable)
    }

    /// What is left of the readable data after `skipped` bytes.
    pub fn readable_segments(&self, skipped: u64) -> impl Iterator<Item = Segment> {
        let segments = self.request().map(|request| self.shared.requests.readable(request));
        transfer::skip(segments.into_iter().flatten(), skipped)
    }

    /// What is left of the writable data after `skipped` bytes.
    pub fn writable_segments(&self, skipped: u64) -> impl Iterator<Item = Segment> {
        let segments = self.request().map(|request| self.shared.requests.writable(request));
        transfer::skip(segments.into_iter().flatten(), skipped)
    }

    fn access<T>(&self, copy: impl FnOnce() -> T) -> Result<T, BatchError> {
        let memory = &self.shared.memory;
        memory.check_owner().map_err(|_| BatchError::Forked)?;
        let done = self.shared.queue.while_current(self.shared.generation, copy).ok_or(BatchError::Stale)?;
        if memory.poisoned() { Err(BatchError::Fault) } else { Ok(done) }
    }

    /// Copies the first bytes of the readable data; as many as `target` has, or as there are.
    pub fn read(&self, target: &mut [u8]) -> Result<usize, BatchError> {
        let len = self.readable().min(target.len() as u64) as usize;
        let Some(target) = target.get_mut(..len) else { return Ok(0) };
        self.access(|| {
            let mut target = Target::from(target);
            let mut left = len;
            let pieces = self.readable_segments(0).map_while(|piece| {
                let len = left.min(piece.len as usize);
                left -= len;
                (len > 0).then_some(Segment { len: len as u32, ..piece })
            });
            // SAFETY: the pieces are mapped, and together they are as long as the target.
            unsafe { transfer::drain(pieces, target.take(len)) };
        })?;
        Ok(len)
    }

    /// Copies `source` to the beginning of the writable data, as much of it as fits; returns how much.
    pub fn write(&self, source: &[u8]) -> Result<usize, BatchError> {
        let len = self.writable().min(source.len() as u64) as usize;
        let Some(source) = source.get(..len) else { return Ok(0) };
        self.access(|| {
            let mut left = len;
            let pieces = self.writable_segments(0).map_while(|piece| {
                let len = left.min(piece.len as usize);
                left -= len;
                (len > 0).then_some(Segment { len: len as u32, ..piece })
            });
            // SAFETY: the pieces are mapped and writable, and together they are as long as the source.
            unsafe { transfer::fill(pieces, Source::from(source)) };
        })?;
        Ok(len)
    }

    /// Fills the writable data with zeroes.
    pub fn write_zeroes(&self) -> Result<(), BatchError> {
        // SAFETY: the segments are mapped and writable.
        self.access(|| unsafe { transfer::zero(self.writable_segments(0)) })
    }

    /// Moves bytes of a file, from `offset` on, to the writable data after its first `skipped` bytes, and
    /// returns how many: fewer than there is room for at the end of the file. To be called inside of
    /// [`VirtQueue::while_current`].
    pub(crate) fn write_from_file(
        &self,
        fd: BorrowedFd<'_>,
        offset: u64,
        skipped: u64,
    ) -> Result<u64, Errno> {
        // SAFETY: the segments are mapped and writable.
        unsafe { transfer::from_file(fd, self.writable_segments(skipped), Some(offset)) }
    }

    /// As [`Self::write_from_file`], with what is in the page cache; an error when nothing is.
    pub(crate) fn write_from_cache(
        &self,
        fd: BorrowedFd<'_>,
        offset: u64,
        skipped: u64,
    ) -> Result<u64, Errno> {
        // SAFETY: the segments are mapped and writable.
        unsafe { transfer::from_cache(fd, self.writable_segments(skipped), offset) }
    }

    /// Moves the readable data after its first `skipped` bytes to a file; as [`Self::write_from_file`].
    pub(crate) fn read_into_file(&self, fd: BorrowedFd<'_>, offset: u64, skipped: u64) -> Result<u64, Errno> {
        // SAFETY: the segments are mapped.
        unsafe { transfer::to_file(fd, self.readable_segments(skipped), Some(offset)) }
    }

    /// Marks it as completed. False when it was before.
    fn claim(&self) -> bool {
        let mut progress = self.shared.lock();
        let state = progress.get_mut(self.row as usize);
        state.is_some_and(|state| !std::mem::replace(&mut state.completed, true))
    }
}

impl VirtQueue {
    /// Ends requests of this queue, in any order: writes their trailers (where there are any), puts them in the
    /// used ring, publishes them together, and calls the driver at most once. Those of an earlier
    /// generation are dropped: the driver has them back.
    ///
    /// Data before a trailer that was not written is filled with zeroes, as [`QueueBatch::complete`] does.
    pub fn finish(&self, outcomes: &mut Vec<Outcome>) {
        let generation = self.generation();
        let current = |outcome: &Outcome| outcome.request.generation() == generation;
        outcomes.retain(|outcome| current(outcome) && outcome.request.claim());
        if outcomes.is_empty() {
            return;
        }
        let written = self.while_current(generation, || {
            for Outcome { request, written, trailer, .. } in outcomes.iter() {
                let BatchLayout { trailer: size, .. } = request.shared.requests.layout;
                if size == 0 {
                    continue;
                }
                let segments =
                    request.request().map(|one| request.shared.requests.trailer(one)).into_iter().flatten();
                // SAFETY: the segments are mapped and writable; those of the trailer sum up to its size.
                unsafe {
                    if *written < request.writable() {
                        transfer::zero(request.writable_segments(*written));
                    }
                    match size {
                        1 => transfer::fill(segments, [*trailer][..].into()),
                        _ => {
                            let mut bytes = vec![0; size];
                            bytes[0] = *trailer;
                            transfer::fill(segments, bytes[..].into());
                        }
                    }
                }
            }
        });
        if written.is_some() {
            let ended = outcomes.iter().filter_map(|Outcome { request, read, written, .. }| {
                let BatchLayout { header, trailer } = request.shared.requests.layout;
                let written = if trailer > 0 { request.writable() + trailer as u64 } else { *written };
                Some((request.request()?.head, written, header as u64 + read))
            });
            // None: stopped since; then nobody wants them.
            let _ = self.complete_all(generation, ended);
        }
        outcomes.clear();
    }
}
