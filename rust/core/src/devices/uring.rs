//! io_uring: the kernel moves bytes between the file and guest memory while we do something else.
//!
//! # Safety
//! The kernel reads and writes guest memory, and our lists of its pieces, until it reports the end of an operation.
//! So until then a [`Slot`] holds the [`Work`], which keeps the guest memory mapped, and its list, which is not
//! changed. [`Uring::settle`] cancels what can be cancelled and waits for the rest; dropping does it too.
//! Should the kernel refuse to wait, the slots are leaked: memory that stays mapped for ever is better than
//! memory that the kernel writes to when it is somebody else's.
//!
//! A forked child has neither the rings' mappings (DONTFORK) nor their operations: it touches nothing here.
#![allow(unsafe_code)]

use std::{
    mem::ManuallyDrop,
    os::fd::{AsRawFd, BorrowedFd},
};

use io_uring::{IoUring, Probe, opcode, squeue::Entry, types};
use rustix::io::Errno;

use super::work::{Step, Work, ZEROES};
use crate::{memory::Owner, ring::Segment};

/// Operations that are handed to the kernel with one call.
const ENTRIES: u32 = 256;
/// Operations that the kernel has at most; the completion queue has room for all of them.
pub(super) const CAPACITY: usize = 512;
/// The most pieces of memory in one operation (IOV_MAX).
const PIECES: usize = 1024;
/// What operations are named that nobody waits for.
const NOBODY: u64 = u64::MAX;
/// How often a call is tried again while the kernel has no memory for it.
const PATIENCE: u32 = 1000;

/// What the kernel has of one request.
#[derive(Debug, Default)]
struct Slot {
    work: Option<(Work, Step)>,
    pieces: Vec<libc::iovec>,
}

// SAFETY: the pieces lead to shared memory, which the work keeps; no thread but the kernel's uses them.
unsafe impl Send for Slot {}

/// A step of a request that has ended, and how.
pub(super) type Finished = (Work, Step, Result<u64, Errno>);

/// An instance of io_uring.
pub(super) struct Uring {
    ring: ManuallyDrop<IoUring>,
    slots: Vec<Slot>,
    free: Vec<usize>,
    owner: Owner,
}

impl std::fmt::Debug for Uring {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        write!(f, "Uring of {} operations, {} in flight", self.slots.len(), self.in_flight())
    }
}

fn errno(error: &std::io::Error) -> Errno {
    Errno::from_io_error(error).unwrap_or(Errno::IO)
}

impl Uring {
    /// Asks the kernel for one.
    ///
    /// # Errors
    /// ENOSYS or EPERM where io_uring is not there or not allowed; OPNOTSUPP where it lacks what is needed.
    pub(super) fn new() -> Result<Self, Errno> {
        let mut builder = IoUring::builder();
        let ring = builder.dontfork().setup_cqsize(2 * CAPACITY as u32).build(ENTRIES);
        let ring = ring.map_err(|error| errno(&error))?;
        let mut probe = Probe::new();
        ring.submitter().register_probe(&mut probe).map_err(|error| errno(&error))?;
        let needed = [
            opcode::Read::CODE,
            opcode::Readv::CODE,
            opcode::Write::CODE,
            opcode::Writev::CODE,
            opcode::Fsync::CODE,
            opcode::Fallocate::CODE,
            opcode::AsyncCancel::CODE,
        ];
        if !needed.into_iter().all(|code| probe.is_supported(code)) || !ring.params().is_feature_nodrop() {
            return Err(Errno::OPNOTSUPP);
        }
        Ok(Self {
            ring: ManuallyDrop::new(ring),
            slots: (0..CAPACITY).map(|_| Slot::default()).collect(),
            free: (0..CAPACITY).collect(),
            owner: Owner::this_process(),
        })
    }

    /// Operations that the kernel has.
    pub(super) fn in_flight(&self) -> usize {
        self.slots.len() - self.free.len()
    }

    /// Readable while something has ended that was not [reaped](Self::reap).
    pub(super) fn fd(&self) -> BorrowedFd<'_> {
        // SAFETY: the ring is open as long as `self` lives.
        unsafe { BorrowedFd::borrow_raw(self.ring.as_raw_fd()) }
    }

    /// Prepares a step of a request, for [`Self::enter`]. Gives the work back when there is no place for it.
    pub(super) fn prepare(&mut self, file: BorrowedFd<'_>, work: Work, step: Step) -> Result<(), Work> {
        let Some(index) = self.free.pop() else { return Err(work) };
        let Some(slot) = self.slots.get_mut(index) else { return Err(work) };
        let fd = types::Fd(file.as_raw_fd());
        slot.pieces.clear();
        let entry = match step {
            Step::Read { offset } => {
                fill(&mut slot.pieces, work.request.writable_segments(work.moved()));
                match slot.pieces[..] {
                    [one] => opcode::Read::new(fd, one.iov_base.cast(), length(one)).offset(offset).build(),
                    _ => {
                        let count = slot.pieces.len() as u32;
                        opcode::Readv::new(fd, slot.pieces.as_ptr(), count).offset(offset).build()
                    }
                }
            }
            Step::Write { offset } => {
                fill(&mut slot.pieces, work.request.readable_segments(work.moved()));
                match slot.pieces[..] {
                    [one] => opcode::Write::new(fd, one.iov_base.cast(), length(one)).offset(offset).build(),
                    _ => {
                        let count = slot.pieces.len() as u32;
                        opcode::Writev::new(fd, slot.pieces.as_ptr(), count).offset(offset).build()
                    }
                }
            }
            Step::Sync => opcode::Fsync::new(fd).flags(types::FsyncFlags::DATASYNC).build(),
            Step::Allocate { mode, offset, len } => {
                opcode::Fallocate::new(fd, len).offset(offset).mode(mode.bits() as i32).build()
            }
            Step::WriteZeroes { offset, len } => {
                opcode::Write::new(fd, ZEROES.as_ptr(), len.min(ZEROES.len()) as u32).offset(offset).build()
            }
        };
        if self.push(entry.user_data(index as u64)).is_err() {
            self.free.push(index);
            return Err(work);
        }
        if let Some(slot) = self.slots.get_mut(index) {
            slot.work = Some((work, step));
        }
        Ok(())
    }

    fn push(&mut self, entry: Entry) -> Result<(), Errno> {
        if self.ring.submission().is_full() {
            self.enter()?;
        }
        // SAFETY: what the entry points to belongs to a slot that is left alone until the operation has ended,
        // or is static.
        unsafe { self.ring.submission().push(&entry) }.map_err(|_| Errno::BUSY)
    }

    /// Hands the kernel what was prepared. What it can do without waiting has ended when this returns.
    pub(super) fn enter(&mut self) -> Result<(), Errno> {
        let mut tries = 0;
        while !self.ring.submission().is_empty() {
            match self.ring.submit().map_err(|error| errno(&error)) {
                Ok(_) | Err(Errno::INTR) => {}
                Err(Errno::AGAIN | Errno::BUSY) if tries < PATIENCE => {
                    tries += 1;
                    std::thread::yield_now();
                }
                Err(errno) => return Err(errno),
            }
        }
        Ok(())
    }

    /// Waits until something has ended.
    pub(super) fn wait(&mut self) -> Result<(), Errno> {
        match self.ring.submit_and_wait(1).map_err(|error| errno(&error)) {
            Ok(_) | Err(Errno::INTR) => Ok(()),
            Err(errno) => Err(errno),
        }
    }

    /// Takes what has ended.
    pub(super) fn reap(&mut self, finished: &mut Vec<Finished>) {
        for completion in self.ring.completion() {
            let index = completion.user_data();
            let slot = usize::try_from(index).ok().and_then(|index| self.slots.get_mut(index));
            if let Some((work, step)) = slot.and_then(|slot| slot.work.take()) {
                self.free.push(index as usize);
                let result = completion.result();
                let result = u64::try_from(result).map_err(|_| Errno::from_raw_os_error(-result));
                finished.push((work, step, result));
            }
        }
    }

    /// Cancels what can be cancelled and waits for the end of everything: then the kernel touches no memory of
    /// ours any more.
    pub(super) fn settle(&mut self, finished: &mut Vec<Finished>) {
        if self.in_flight() == 0 {
            return;
        }
        // Kernels before 5.19 do not know "any"; there we wait.
        let _ = self.push(opcode::AsyncCancel2::new(types::CancelBuilder::any()).build().user_data(NOBODY));
        let mut tries = 0;
        loop {
            self.reap(finished);
            if self.in_flight() == 0 {
                return;
            }
            match self.wait() {
                Ok(()) => {}
                Err(Errno::AGAIN | Errno::BUSY) if tries < PATIENCE => {
                    tries += 1;
                    std::thread::yield_now();
                }
                Err(_) => {
                    std::mem::forget(std::mem::take(&mut self.slots));
                    self.free.clear();
                    return;
                }
            }
        }
    }
}

fn fill(pieces: &mut Vec<libc::iovec>, segments: impl Iterator<Item = Segment>) {
    pieces.extend(
        segments
            .take(PIECES)
            .map(|segment| libc::iovec { iov_base: segment.base.cast(), iov_len: segment.len as usize }),
    );
}

/// Of a segment, so it fits.
fn length(piece: libc::iovec) -> u32 {
    u32::try_from(piece.iov_len).unwrap_or(u32::MAX)
}

impl Drop for Uring {
    fn drop(&mut self) {
        if !self.owner.is_this_process() {
            std::mem::forget(std::mem::take(&mut self.slots));
            return;
        }
        self.settle(&mut Vec::new());
        // SAFETY: dropped once, here.
        unsafe { ManuallyDrop::drop(&mut self.ring) };
    }
}
