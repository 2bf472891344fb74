//! A disk over a file, or over a block device of the host.
//!
//! # What happens to operations when a driver goes away
//! An operation of io_uring reads or writes guest memory while no thread of ours does anything. The request that it
//! is for is *kept* by the device, so GET_VRING_BASE waits for it, and the driver gets its answer before the
//! ring stops. When the driver does not wait (a reset, a connection that ended, a deadline that has passed),
//! [`VirtQueue::stop`](crate::ring::VirtQueue::stop) makes the requests stale, so that nothing new begins, and then has each
//! queue [settle](crate::ring::Background::settle): what the kernel has not begun is cancelled, what it has begun is
//! waited for. When the stop returns, nobody touches the guest's memory. A disk that does not answer makes a stop
//! wait as long; so it would with a system call. When it is the server that goes away, while the queues run,
//! [`FileBlock::reset`] waits for what was begun and answers it.
//!
//! A region that is taken out of the memory table stays mapped until the requests that lie in it have ended.

use std::{
    os::fd::OwnedFd,
    sync::{Arc, Mutex, MutexGuard, PoisonError},
};

use rustix::{
    fs::{OFlags, fcntl_getfl},
    io::Errno,
};

use super::{
    block::ID_SIZE,
    file_queue::FileQueue,
    storage::{IoCounters, ProcessError, Settings, Storage, Trouble},
    uring::Uring,
};
use crate::{
    memory::Owner,
    ring::{Background, VirtQueue},
};

#[derive(Debug)]
struct Active {
    queue: Arc<VirtQueue>,
    worker: Arc<FileQueue>,
}

/// A disk whose byte 0 is the file's byte 0. All methods may be called from any thread.
#[derive(Debug)]
pub struct FileBlock {
    settings: Arc<Settings>,
    file: Mutex<Option<Arc<OwnedFd>>>,
    active: Mutex<Vec<Active>>,
    owner: Owner,
}

fn lock<T>(mutex: &Mutex<T>) -> MutexGuard<'_, T> {
    mutex.lock().unwrap_or_else(PoisonError::into_inner)
}

impl FileBlock {
    /// A disk over an open file, of `size` bytes, of which a tail that is no sector is left alone.
    ///
    /// With `io_uring` whatever has to wait is done by it, where the kernel allows that; [`Self::storage`] says.
    /// Without, and else, each request is a system call.
    ///
    /// What the page cache can do is a system call in both cases. Many file systems make io_uring hand each
    /// buffered write to a thread, which costs several times what the copy does; and a read that finds its
    /// data is cheaper without a completion. A file that was opened with O_DIRECT has no page cache.
    pub fn new(file: OwnedFd, size: u64, read_only: bool, id: [u8; ID_SIZE], io_uring: bool) -> Self {
        let storage = match io_uring.then(Uring::new) {
            Some(Ok(_)) => Storage::IoUring,
            Some(Err(errno)) => Storage::NoIoUring(errno),
            None => Storage::InPlace,
        };
        let cached = fcntl_getfl(&file).is_ok_and(|flags| !flags.contains(OFlags::DIRECT));
        let settings = Settings::new(size, read_only, id, storage, cached);
        let (file, active) = (Mutex::new(Some(Arc::new(file))), Mutex::default());
        Self { settings: Arc::new(settings), file, active, owner: Owner::this_process() }
    }

    /// Who moves the bytes.
    pub fn storage(&self) -> Storage {
        self.settings.storage
    }

    /// What was done.
    pub fn counters(&self) -> IoCounters {
        self.settings.counters()
    }

    /// The disk has another size, in bytes, from now on.
    pub fn set_size(&self, size: u64) {
        self.settings.set_size(size);
    }

    /// Whether writes are made durable before they are answered (section 5.2.6.2).
    pub fn set_write_through(&self, write_through: bool) {
        self.settings.set_write_through(write_through);
    }

    /// The driver is ready. Returns descriptors for each queue: when one is readable, [`Self::process`] is to be
    /// called for the queue. Close them at the reset.
    ///
    /// # Errors
    /// The kernel gave no descriptor; the disk is closed (EBADF).
    pub fn activate(&self, queues: &[Arc<VirtQueue>]) -> Result<Vec<Vec<OwnedFd>>, Errno> {
        self.reset();
        let file = lock(&self.file).clone().ok_or(Errno::BADF)?;
        let mut active = lock(&self.active);
        for queue in queues {
            let worker = Arc::new(FileQueue::new(Arc::clone(&file), Arc::clone(&self.settings))?);
            queue.set_background(Some(Arc::clone(&worker) as Arc<dyn Background>));
            active.push(Active { queue: Arc::clone(queue), worker });
        }
        active.iter().map(|one| one.worker.wake_fds()).collect()
    }

    /// Answers what is in the ring, or begins to, and ends what the storage has done since. What the storage
    /// refused is told.
    ///
    /// # Errors
    /// The driver broke a rule of the ring, or the kernel takes no operations: the queue cannot go on.
    pub fn process(&self, queue: &Arc<VirtQueue>) -> Result<Vec<Trouble>, ProcessError> {
        let index = queue.index();
        let worker = lock(&self.active).get(usize::from(index)).map(|one| Arc::clone(&one.worker));
        worker.ok_or(ProcessError::NotActive { index })?.process(queue)
    }

    /// The session ends. On queues that still run what was begun is waited for and answered; on those that were
    /// stopped nothing is left.
    pub fn reset(&self) {
        self.end(true);
    }

    fn end(&self, answer: bool) {
        let active = std::mem::take(&mut *lock(&self.active));
        for Active { queue, worker } in active {
            if answer && queue.is_started() {
                worker.drain(&queue);
            }
            queue.set_background(None);
            worker.settle();
        }
    }

    /// As [`Self::reset`], and lets go of the file.
    pub fn close(&self) {
        self.reset();
        lock(&self.file).take();
    }
}

impl Drop for FileBlock {
    fn drop(&mut self) {
        // A child may have forked while somebody held a lock.
        if self.owner.is_this_process() {
            self.end(false);
        }
    }
}
