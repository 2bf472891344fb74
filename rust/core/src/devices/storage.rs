//! What a disk over a file asks of its storage, and what it is told: shared by the disk, its queues and their work.

use std::{
    fmt::{self, Display, Formatter},
    sync::atomic::{AtomicBool, AtomicU64, Ordering},
};

use rustix::io::Errno;

use super::block::{Disk, ID_SIZE, SECTOR};
use crate::ring::RingError;

/// Who moves the bytes.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Storage {
    /// The kernel, beside us.
    IoUring,
    /// We, one system call after the other: as was asked for.
    InPlace,
    /// We, since the kernel allows no io_uring; the error says why.
    NoIoUring(Errno),
}

impl Display for Storage {
    fn fmt(&self, f: &mut Formatter<'_>) -> fmt::Result {
        match self {
            Self::IoUring => f.write_str("io_uring"),
            Self::InPlace => f.write_str("system calls"),
            Self::NoIoUring(errno) => write!(f, "system calls, as io_uring is refused: {errno}"),
        }
    }
}

/// What the storage is asked for.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Io {
    /// Reading.
    Read,
    /// Writing, zeroes included.
    Write,
    /// fdatasync.
    Sync,
    /// fallocate.
    Allocate,
}

impl Io {
    /// How it is called in a log.
    pub fn name(self) -> &'static str {
        match self {
            Self::Read => "reading",
            Self::Write => "writing",
            Self::Sync => "flushing",
            Self::Allocate => "zeroing or freeing a range",
        }
    }
}

/// Something that the storage refused; the driver was told IOERR.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
#[error("{} failed: {errno}", io.name())]
pub struct Trouble {
    /// What was tried.
    pub io: Io,
    /// What the kernel said.
    pub errno: Errno,
}

/// How many operations have ended since the disk was made, well or not.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct IoCounters {
    /// Of reading.
    pub reads: u64,
    /// Of writing.
    pub writes: u64,
    /// Of fdatasync.
    pub syncs: u64,
    /// Of fallocate.
    pub allocates: u64,
}

/// Why a queue could not be served.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
#[non_exhaustive]
pub enum ProcessError {
    /// The driver broke a rule of the ring.
    #[error(transparent)]
    Ring(#[from] RingError),
    /// The kernel took no operations.
    #[error("io_uring took no operations: {0}")]
    Kernel(#[from] Errno),
    /// There is no session, or the disk is closed.
    #[error("queue {index} was not activated")]
    NotActive {
        /// Which queue.
        index: u16,
    },
}

/// What all queues of a disk share.
#[derive(Debug)]
pub(super) struct Settings {
    size: AtomicU64,
    read_only: bool,
    write_through: AtomicBool,
    pub id: [u8; ID_SIZE],
    pub storage: Storage,
    /// The file is read and written through the page cache.
    pub cached: bool,
    counters: [AtomicU64; 4],
}

impl Settings {
    pub(super) fn new(size: u64, read_only: bool, id: [u8; ID_SIZE], storage: Storage, cached: bool) -> Self {
        let settings = Self {
            size: AtomicU64::default(),
            read_only,
            write_through: AtomicBool::new(false),
            id,
            storage,
            cached,
            counters: Default::default(),
        };
        settings.set_size(size);
        settings
    }

    /// In bytes; a tail that is no sector is left alone.
    pub(super) fn set_size(&self, size: u64) {
        self.size.store(size / SECTOR * SECTOR, Ordering::Relaxed);
    }

    pub(super) fn set_write_through(&self, write_through: bool) {
        self.write_through.store(write_through, Ordering::Relaxed);
    }

    pub(super) fn counters(&self) -> IoCounters {
        let [reads, writes, syncs, allocates] =
            [Io::Read, Io::Write, Io::Sync, Io::Allocate].map(|io| self.counter(io).load(Ordering::Relaxed));
        IoCounters { reads, writes, syncs, allocates }
    }

    pub(super) fn disk(&self) -> Disk {
        Disk { size: self.size.load(Ordering::Relaxed), read_only: self.read_only }
    }

    pub(super) fn write_through(&self) -> bool {
        self.write_through.load(Ordering::Relaxed)
    }

    fn counter(&self, io: Io) -> &AtomicU64 {
        let [reads, writes, syncs, allocates] = &self.counters;
        match io {
            Io::Read => reads,
            Io::Write => writes,
            Io::Sync => syncs,
            Io::Allocate => allocates,
        }
    }

    pub(super) fn count(&self, io: Io) {
        self.counter(io).fetch_add(1, Ordering::Relaxed);
    }
}
