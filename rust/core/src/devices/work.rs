//! One request on its way through the storage, as a series of steps; each is one system call or one operation of
//! io_uring.

use std::{collections::VecDeque, os::fd::BorrowedFd};

use rustix::{
    fs::{FallocateFlags, fallocate, fdatasync},
    io::{Errno, pwrite},
};

use super::{
    block::{IOERR, OK, Range},
    storage::{Io, Trouble},
};
use crate::ring::{Outcome, QueueRequest};

/// Zeroes to be written where the storage has no way to zero a range.
pub(super) static ZEROES: [u8; 1 << 16] = [0; 1 << 16];

const PUNCH: FallocateFlags = FallocateFlags::PUNCH_HOLE.union(FallocateFlags::KEEP_SIZE);
const ZERO: FallocateFlags = FallocateFlags::ZERO_RANGE.union(FallocateFlags::KEEP_SIZE);

/// What is to be done next.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Step {
    /// Fill the writable data behind the bytes that were moved already, from this byte of the file on.
    Read { offset: u64 },
    /// Store the readable data behind the bytes that were moved already, from this byte of the file on.
    Write { offset: u64 },
    /// fdatasync.
    Sync,
    /// fallocate.
    Allocate { mode: FallocateFlags, offset: u64, len: u64 },
    /// Write the first of [`ZEROES`].
    WriteZeroes { offset: u64, len: usize },
}

/// How a range is made zero: the next one is tried where the storage lacks the one before.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Method {
    Punch,
    Zero,
    Write,
}

#[derive(Debug)]
enum Task {
    Read { offset: u64 },
    Write { offset: u64 },
    Ranges { left: VecDeque<Range>, discard: bool, method: Method },
    Flush,
}

/// A request and how far it is.
#[derive(Debug)]
pub(super) struct Work {
    pub request: QueueRequest,
    task: Task,
    /// Bytes of its data that were moved.
    moved: u64,
    /// fdatasync is to come at the end.
    sync: bool,
}

/// How a request ended, if it was not well.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Failure {
    /// The file ended: it was truncated.
    Short,
    /// The storage refused.
    Storage(Trouble),
}

impl Work {
    pub(super) fn read(request: QueueRequest, offset: u64) -> Self {
        Self { request, task: Task::Read { offset }, moved: 0, sync: false }
    }

    pub(super) fn write(request: QueueRequest, offset: u64, sync: bool) -> Self {
        Self { request, task: Task::Write { offset }, moved: 0, sync }
    }

    pub(super) fn flush(request: QueueRequest) -> Self {
        Self { request, task: Task::Flush, moved: 0, sync: true }
    }

    pub(super) fn ranges(request: QueueRequest, ranges: Vec<Range>, discard: bool, sync: bool) -> Self {
        let left = ranges.into_iter().filter(|range| range.len > 0).collect();
        let mut work =
            Self { request, task: Task::Ranges { left, discard, method: Method::Punch }, moved: 0, sync };
        work.choose_method();
        work
    }

    /// With the range that comes now, the search begins anew.
    fn choose_method(&mut self) {
        if let Task::Ranges { left, discard, method } = &mut self.task {
            let punch = *discard || left.front().is_some_and(|range| range.unmap);
            *method = if punch { Method::Punch } else { Method::Zero };
        }
    }

    /// What comes next; None when everything is done.
    pub(super) fn step(&self) -> Option<Step> {
        let next = match &self.task {
            Task::Read { offset } if self.moved < self.request.writable() => {
                Some(Step::Read { offset: offset + self.moved })
            }
            Task::Write { offset } if self.moved < self.request.readable() => {
                Some(Step::Write { offset: offset + self.moved })
            }
            Task::Ranges { left, method, .. } => {
                left.front().map(|&Range { offset, len, .. }| match method {
                    Method::Punch => Step::Allocate { mode: PUNCH, offset, len },
                    Method::Zero => Step::Allocate { mode: ZERO, offset, len },
                    Method::Write => Step::WriteZeroes { offset, len: (len as usize).min(ZEROES.len()) },
                })
            }
            _ => None,
        };
        next.or(self.sync.then_some(Step::Sync))
    }

    /// The step has ended like this.
    pub(super) fn done(&mut self, step: Step, result: Result<u64, Errno>) -> Result<(), Failure> {
        let result = match result {
            // Nothing was done: the step comes again. When a thread ends, the kernel cancels what it began.
            Err(Errno::INTR | Errno::CANCELED) => return Ok(()),
            other => other,
        };
        let failed = |errno| Failure::Storage(Trouble { io: step.io(), errno });
        match step {
            Step::Read { .. } | Step::Write { .. } => match result.map_err(failed)? {
                0 => return Err(Failure::Short),
                moved => self.moved += moved,
            },
            Step::Sync => {
                result.map_err(failed)?;
                self.sync = false;
            }
            Step::Allocate { .. } => {
                let lacking = match result {
                    Ok(_) => false,
                    Err(Errno::OPNOTSUPP | Errno::NOSYS | Errno::INVAL | Errno::NODEV) => true,
                    Err(errno) => return Err(failed(errno)),
                };
                self.allocated(lacking);
            }
            Step::WriteZeroes { .. } => {
                let written = result.map_err(failed)?;
                if written == 0 {
                    return Err(Failure::Short);
                }
                if let Task::Ranges { left, .. } = &mut self.task
                    && let Some(range) = left.front_mut()
                {
                    range.offset += written;
                    range.len -= written.min(range.len);
                    if range.len == 0 {
                        self.next_range();
                    }
                }
            }
        }
        Ok(())
    }

    fn next_range(&mut self) {
        if let Task::Ranges { left, .. } = &mut self.task {
            left.pop_front();
        }
        self.choose_method();
    }

    /// A range is done, or the storage cannot do it in this way. Storage that cannot free does nothing.
    fn allocated(&mut self, lacking: bool) {
        match &mut self.task {
            Task::Ranges { discard: false, method, .. } if lacking => {
                *method = if *method == Method::Punch { Method::Zero } else { Method::Write };
            }
            _ => self.next_range(),
        }
    }

    /// What the driver is told.
    pub(super) fn outcome(self, result: Result<(), Failure>) -> Outcome {
        let (read, written) = match self.task {
            Task::Read { .. } => (0, self.moved),
            Task::Write { .. } => (self.moved, 0),
            Task::Ranges { .. } => (self.request.readable(), 0),
            Task::Flush => (0, 0),
        };
        Outcome { request: self.request, read, written, trailer: if result.is_ok() { OK } else { IOERR } }
    }

    /// Does a step in place. To be called inside of [`VirtQueue::while_current`](crate::ring::VirtQueue).
    pub(super) fn do_in_place(&self, step: Step, file: BorrowedFd<'_>) -> Result<u64, Errno> {
        match step {
            Step::Read { offset } => self.request.write_from_file(file, offset, self.moved),
            Step::Write { offset } => self.request.read_into_file(file, offset, self.moved),
            Step::Sync => fdatasync(file).map(|()| 0),
            Step::Allocate { mode, offset, len } => fallocate(file, mode, offset, len).map(|()| 0),
            Step::WriteZeroes { offset, len } => {
                pwrite(file, ZEROES.get(..len).unwrap_or_default(), offset).map(|written| written as u64)
            }
        }
    }

    /// Does a step in place if that takes no longer than copying the data: a read from the page cache, a
    /// write into it. None when the storage has to be waited for. To be called as [`Self::do_in_place`].
    pub(super) fn do_in_cache(&self, step: Step, file: BorrowedFd<'_>) -> Option<Result<u64, Errno>> {
        match step {
            Step::Read { offset } => self.request.write_from_cache(file, offset, self.moved).ok().map(Ok),
            Step::Write { .. } => Some(self.do_in_place(step, file)),
            _ => None,
        }
    }

    /// Bytes of its data that were moved.
    pub(super) fn moved(&self) -> u64 {
        self.moved
    }
}

impl Step {
    pub(super) fn io(self) -> Io {
        match self {
            Step::Read { .. } => Io::Read,
            Step::Write { .. } | Step::WriteZeroes { .. } => Io::Write,
            Step::Sync => Io::Sync,
            Step::Allocate { .. } => Io::Allocate,
        }
    }
}
