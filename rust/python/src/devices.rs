//! Native devices for Python: one call for each kick.

use std::{
    os::fd::{AsRawFd, OwnedFd},
    sync::{Arc, Mutex, PoisonError},
};

use pyo3::prelude::*;
use xenvirt_core::devices::{self as core, Trouble};

use crate::{errors::Error, file::FileArgument, queue::VirtQueue};

/// A disk that stores nothing.
#[pyclass(frozen, module = "xenvirt._native")]
pub struct NullBlock {
    inner: core::NullBlock,
}

#[pymethods]
impl NullBlock {
    #[new]
    fn new(sectors: u64) -> Self {
        Self { inner: core::NullBlock::new(sectors) }
    }

    /// Answers what is in the ring.
    fn process(&self, py: Python<'_>, queue: &VirtQueue) -> Result<(), Error> {
        let queue = queue.core();
        py.detach(|| self.inner.process(queue)).map_err(|error| Error::Ring(queue.index(), error))
    }
}

/// A disk over a file.
#[pyclass(frozen, module = "xenvirt._native")]
pub struct FileBlock {
    inner: core::FileBlock,
    /// What the session watches.
    fds: Mutex<Vec<OwnedFd>>,
}

impl FileBlock {
    fn replace_fds(&self, fds: Vec<OwnedFd>) {
        *self.fds.lock().unwrap_or_else(PoisonError::into_inner) = fds;
    }
}

#[pymethods]
impl FileBlock {
    #[new]
    #[pyo3(signature = (file, size, disk_id, *, read_only = false, io_uring = true))]
    fn new(
        py: Python<'_>,
        file: FileArgument,
        size: u64,
        disk_id: [u8; 20],
        read_only: bool,
        io_uring: bool,
    ) -> Self {
        let inner = py.detach(|| core::FileBlock::new(file.into(), size, read_only, disk_id, io_uring));
        Self { inner, fds: Mutex::default() }
    }

    /// Who moves the bytes, in words.
    #[getter]
    fn storage(&self) -> String {
        self.inner.storage().to_string()
    }

    /// Reads, writes, syncs, allocations.
    #[getter]
    fn counters(&self) -> (u64, u64, u64, u64) {
        let counters = self.inner.counters();
        (counters.reads, counters.writes, counters.syncs, counters.allocates)
    }

    /// The disk has another size.
    fn set_size(&self, size: u64) {
        self.inner.set_size(size);
    }

    /// Whether writes are durable before they are answered.
    fn set_write_through(&self, write_through: bool) {
        self.inner.set_write_through(write_through);
    }

    /// The driver is ready: gives descriptors to watch for each queue.
    fn activate(&self, py: Python<'_>, queues: Vec<Py<VirtQueue>>) -> Result<Vec<Vec<i32>>, Error> {
        let queues: Vec<_> = queues.iter().map(|queue| Arc::clone(queue.get().core())).collect();
        let fds = py.detach(|| self.inner.activate(&queues))?;
        let numbers = fds.iter().map(|fds| fds.iter().map(AsRawFd::as_raw_fd).collect()).collect();
        self.replace_fds(fds.into_iter().flatten().collect());
        Ok(numbers)
    }

    /// Ends and begins requests; tells what the storage refused, and with which errno.
    fn process(&self, py: Python<'_>, queue: &VirtQueue) -> Result<Vec<(&'static str, i32)>, Error> {
        let queue = queue.core();
        let troubles = py.detach(|| self.inner.process(queue));
        let troubles = troubles.map_err(|error| Error::Process(queue.index(), error))?;
        Ok(troubles.iter().map(|&Trouble { io, errno }| (io.name(), errno.raw_os_error())).collect())
    }

    /// The driver is gone.
    fn reset(&self, py: Python<'_>) {
        py.detach(|| self.inner.reset());
        self.replace_fds(Vec::new());
    }

    /// Lets go of the file.
    fn close(&self, py: Python<'_>) {
        py.detach(|| self.inner.close());
        self.replace_fds(Vec::new());
    }
}
