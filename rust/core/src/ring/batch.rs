//! Many chains in one go: columns of header fields, and copies between a buffer (or a file) and all of
//! the requests at once.
//!
//! # Safety
//! The segments of a batch were checked by the walk, and the batch keeps the memory table from which
//! they were translated. They are copied from and to by pointer, or by the kernel, while the queue
//! cannot be stopped.
#![allow(unsafe_code)]

use std::{
    collections::HashMap,
    sync::{
        Arc, Mutex, MutexGuard, PoisonError,
        atomic::{AtomicBool, Ordering},
    },
};

use super::{
    chain_error::BatchError,
    queue::VirtQueue,
    requests::{BatchLayout, Request, Requests},
    transfer,
};
use crate::memory::GuestMemory;

/// How far a request is.
#[derive(Clone, Copy, Debug, Default)]
pub(super) struct Progress {
    /// Bytes of the writable data that were written, from its beginning without a gap.
    pub written: u64,
    /// Bytes of the readable data that were read.
    pub read: u64,
    pub trailer: bool,
    pub completed: bool,
}

/// What a batch and the parts of it share.
#[derive(Debug)]
pub(super) struct Shared {
    pub queue: Arc<VirtQueue>,
    pub generation: u64,
    /// Keeps the segments mapped.
    pub memory: GuestMemory,
    pub requests: Requests,
    /// Empty while nothing was done with single requests: then all of them are as they came, or finished.
    progress: Mutex<Vec<Progress>>,
    /// All of it was completed at once: nobody has to look for what was not.
    finished: AtomicBool,
}

/// Which requests of the whole a batch has.
#[derive(Clone, Debug)]
pub(super) enum Rows {
    All,
    Some(Arc<[u32]>),
}

/// Chains that were taken together, or a part of them. Parts share the storage of the whole; a chain
/// that was completed in one is completed in all. What is dropped without having been completed stays
/// with the device until the queue is reset.
#[derive(Clone, Debug)]
pub struct QueueBatch {
    pub(super) shared: Arc<Shared>,
    pub(super) rows: Rows,
}

/// Which requests of a batch something holds for; one entry for each, in the order of the batch.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Mask(pub Vec<bool>);

impl QueueBatch {
    pub(super) fn new(
        queue: Arc<VirtQueue>,
        generation: u64,
        memory: GuestMemory,
        storage: BatchStorage,
    ) -> Self {
        let BatchStorage { requests, mut progress } = storage;
        progress.clear();
        let (progress, finished) = (Mutex::new(progress), AtomicBool::new(false));
        let shared = Shared { queue, generation, memory, requests, progress, finished };
        Self { shared: Arc::new(shared), rows: Rows::All }
    }

    /// The queue it came from.
    pub fn queue(&self) -> &Arc<VirtQueue> {
        &self.shared.queue
    }

    /// How many requests.
    pub fn len(&self) -> usize {
        match &self.rows {
            Rows::All => self.shared.requests.list.len(),
            Rows::Some(rows) => rows.len(),
        }
    }

    /// True for a part without a request; a batch that was popped has at least one.
    pub fn is_empty(&self) -> bool {
        self.len() == 0
    }

    /// The layout it was popped with.
    pub fn layout(&self) -> BatchLayout {
        self.shared.requests.layout
    }

    fn row(&self, index: usize) -> usize {
        match &self.rows {
            Rows::All => index,
            Rows::Some(rows) => rows.get(index).map_or(usize::MAX, |&row| row as usize),
        }
    }

    /// Index in the whole batch, and request.
    fn requests(&self) -> impl Iterator<Item = (usize, &Request)> {
        let list = self.shared.requests.list.as_slice();
        let (all, some) = match &self.rows {
            Rows::All => (list, &[][..]),
            Rows::Some(rows) => (&[][..], &rows[..]),
        };
        let some = some.iter().filter_map(|&row| Some((row as usize, list.get(row as usize)?)));
        all.iter().enumerate().chain(some)
    }

    /// The heads of the chains.
    pub fn heads(&self) -> impl Iterator<Item = u16> {
        self.requests().map(|(_, request)| request.head)
    }

    /// Bytes of readable data of each request, without the header.
    pub fn readable(&self) -> impl Iterator<Item = u64> {
        self.requests().map(|(_, request)| request.readable)
    }

    /// Bytes of writable data of each request, without the trailer.
    pub fn writable(&self) -> impl Iterator<Item = u64> {
        self.requests().map(|(_, request)| request.writable)
    }

    /// Bytes of readable data of all requests together, without the headers.
    pub fn total_readable(&self) -> u64 {
        self.readable().fold(0, u64::saturating_add)
    }

    /// The bytes of one header field, a contiguous array: `width` bytes for each request, as the driver
    /// wrote them (little endian). Appended to `column`.
    pub fn column(&self, offset: usize, width: usize, column: &mut Vec<u8>) -> Result<(), BatchError> {
        let header = self.layout().header;
        if width == 0 || offset.checked_add(width).is_none_or(|end| end > header) {
            return Err(BatchError::Field { offset, width, header });
        }
        column.reserve(width * self.len());
        let headers = &self.shared.requests.headers;
        match &self.rows {
            Rows::All => headers
                .chunks_exact(header)
                .for_each(|header| column.extend_from_slice(&header[offset..offset + width])),
            Rows::Some(rows) => rows.iter().for_each(|&row| {
                let at = row as usize * header + offset;
                column.extend_from_slice(&headers[at..at + width]);
            }),
        }
        Ok(())
    }

    /// Parts in which a header field (little endian, at most 8 bytes) has the same value, in the order
    /// in which the values first come; within a part the requests keep their order.
    pub fn group_by(&self, offset: usize, width: usize) -> Result<Vec<(u64, Self)>, BatchError> {
        let header = self.layout().header;
        if width > 8 {
            return Err(BatchError::Field { offset, width, header });
        }
        let mut column = Vec::new();
        self.column(offset, width, &mut column)?;
        let mut values = column.chunks_exact(width).map(|bytes| {
            let mut value = [0; 8];
            value[..width].copy_from_slice(bytes);
            u64::from_le_bytes(value)
        });
        let Some(first) = values.next() else { return Ok(Vec::new()) };
        if values.clone().all(|value| value == first) {
            return Ok(vec![(first, self.clone())]);
        }
        let mut groups: Vec<(u64, Vec<u32>)> = vec![(first, vec![self.row(0) as u32])];
        let mut places = HashMap::from([(first, 0)]);
        for (index, value) in (1..).zip(values) {
            let place = *places.entry(value).or_insert_with(|| {
                groups.push((value, Vec::new()));
                groups.len() - 1
            });
            groups[place].1.push(self.row(index) as u32);
        }
        Ok(groups.into_iter().map(|(value, rows)| (value, self.part(rows))).collect())
    }

    /// The part for which the mask holds.
    pub fn select(&self, mask: &Mask) -> Result<Self, BatchError> {
        self.check_length("mask entries", mask.0.len())?;
        let rows = (0..).zip(&mask.0).filter(|(_, chosen)| **chosen);
        Ok(self.part(rows.map(|(index, _)| self.row(index) as u32).collect()))
    }

    fn part(&self, rows: Vec<u32>) -> Self {
        Self { shared: Arc::clone(&self.shared), rows: Rows::Some(rows.into()) }
    }

    pub(super) fn check_length(&self, what: &'static str, given: usize) -> Result<(), BatchError> {
        let requests = self.len();
        if given == requests { Ok(()) } else { Err(BatchError::Length { what, given, requests }) }
    }

    /// In a child the lock may have been held by a thread of the parent.
    fn progress(&self) -> Result<MutexGuard<'_, Vec<Progress>>, BatchError> {
        self.shared.memory.check_owner().map_err(|_| BatchError::Forked)?;
        Ok(self.shared.lock())
    }

    /// Does `act` for each request, while the queue cannot be stopped; none of them may be completed.
    pub(super) fn each(&self, mut act: impl FnMut(usize, &Request, &mut Progress)) -> Result<(), BatchError> {
        // In this order: progress, then the queue; as in `complete`, which holds it while it takes the lock
        // that a stop holds when it waits for us.
        let mut progress = self.progress()?;
        let done = self.shared.queue.while_current(self.shared.generation, || {
            if let Some((_, done)) = self.requests().find(|(row, _)| progress[*row].completed) {
                return Err(BatchError::Completed { head: done.head });
            }
            for (index, (row, request)) in self.requests().enumerate() {
                act(index, request, &mut progress[row]);
            }
            Ok(())
        });
        done.unwrap_or(Err(BatchError::Stale))?;
        if self.shared.memory.poisoned() { Err(BatchError::Fault) } else { Ok(()) }
    }

    /// Puts all requests that were not completed yet in the used ring, publishes them together, and
    /// calls the driver at most once.
    ///
    /// The used length is what was written from the beginning without a gap. A driver must not look
    /// beyond it (2.7.8.3), so where a trailer was written and not all of the data before it, the rest
    /// of the data is filled with zeroes: the driver shall see the trailer.
    pub fn complete(&self) -> Result<(), BatchError> {
        let BatchLayout { header, trailer } = self.layout();
        if let Some(all) = self.untouched()? {
            let chains = all.iter().map(|request| (request.head, 0, header as u64));
            return self.shared.queue.complete_all(self.shared.generation, chains).ok_or(BatchError::Stale);
        }
        let mut progress = self.progress()?;
        if trailer > 0 {
            self.fill_gaps(&mut progress)?;
        }
        let open = |request: &Request, state: &mut Progress| {
            if std::mem::replace(&mut state.completed, true) {
                return None;
            }
            let written = state.written + if state.trailer { trailer as u64 } else { 0 };
            Some((request.head, written, header as u64 + state.read))
        };
        let list = &self.shared.requests.list;
        let (queue, generation) = (&self.shared.queue, self.shared.generation);
        let completed = match &self.rows {
            Rows::All => {
                self.shared.finished.store(true, Ordering::Relaxed);
                let all = list.iter().zip(progress.iter_mut());
                queue.complete_all(generation, all.filter_map(|(request, state)| open(request, state)))
            }
            Rows::Some(rows) => {
                let some = rows
                    .iter()
                    .filter_map(|&row| open(list.get(row as usize)?, progress.get_mut(row as usize)?));
                queue.complete_all(generation, some)
            }
        };
        completed.ok_or(BatchError::Stale)
    }

    /// The requests of the whole, which are finished from now on, if nothing was done with any of them: a device
    /// that drops them, say, or that only looks at their headers.
    fn untouched(&self) -> Result<Option<&[Request]>, BatchError> {
        self.shared.memory.check_owner().map_err(|_| BatchError::Forked)?;
        let progress = self.shared.progress.lock().unwrap_or_else(PoisonError::into_inner);
        let whole = matches!(self.rows, Rows::All) && progress.is_empty();
        // Who comes later, also to a part, finds them completed.
        let first = whole && !self.shared.finished.swap(true, Ordering::Relaxed);
        Ok(first.then_some(self.shared.requests.list.as_slice()))
    }

    /// Zeroes in the place of data that was not written before a trailer that was.
    fn fill_gaps(&self, progress: &mut [Progress]) -> Result<(), BatchError> {
        let filled = self.shared.queue.while_current(self.shared.generation, || {
            for (row, request) in self.requests() {
                let state = &mut progress[row];
                if state.trailer && !state.completed && state.written < request.writable {
                    let rest = transfer::skip(self.shared.requests.writable(request), state.written);
                    // SAFETY: the segments are mapped and writable.
                    unsafe { transfer::zero(rest) };
                    state.written = request.writable;
                }
            }
        });
        filled.ok_or(BatchError::Stale)
    }
}

/// What a batch needs, for the next one to use again.
#[derive(Debug, Default)]
pub(super) struct BatchStorage {
    pub requests: Requests,
    progress: Vec<Progress>,
}

impl Shared {
    /// How far each request is.
    pub(super) fn lock(&self) -> MutexGuard<'_, Vec<Progress>> {
        let mut progress = self.progress.lock().unwrap_or_else(PoisonError::into_inner);
        if progress.is_empty() {
            let completed = self.finished.load(Ordering::Relaxed);
            progress.resize(self.requests.list.len(), Progress { completed, ..Progress::default() });
        }
        progress
    }
}

impl Drop for Shared {
    fn drop(&mut self) {
        let requests = std::mem::take(&mut self.requests);
        let progress = std::mem::take(self.progress.get_mut().unwrap_or_else(PoisonError::into_inner));
        let finished = *self.finished.get_mut();
        // Of those with which nothing was done there is no progress.
        let open = |row: usize| !finished && progress.get(row).is_none_or(|state| !state.completed);
        let abandoned = requests.list.iter().enumerate().filter(|(row, _)| open(*row));
        let heads: Vec<u16> = abandoned.map(|(_, request)| request.head).collect();
        self.queue.give_back_batch(self.generation, &heads, BatchStorage { requests, progress });
    }
}
