//! Driver side: a ring of our own.

use std::{
    os::fd::{AsRawFd, BorrowedFd},
    sync::{Arc, Mutex, MutexGuard, PoisonError},
};

use pyo3::{prelude::*, sync::MutexExt, types::PyBytes};
use xenvirt_core::{
    in_process::RingSetup,
    memory::{MappedMemory, Region, Source},
    ring::{self, RingConfig, RingFeatures},
};

use crate::{
    buffer::{BorrowedBuffer, new_bytes},
    errors::Error,
    memory::GuestMemory,
    queue::VirtQueue,
};

/// What a request gave: its token, its writable buffers, and how many bytes the device says it wrote.
type Answer<'py> = (u64, Vec<Bound<'py, PyBytes>>, u32);

/// A queue, from the driver's end.
#[pyclass(frozen, module = "xenvirt._native")]
pub struct DriverQueue {
    inner: Mutex<ring::DriverQueue>,
    index: u16,
    config: RingConfig,
}

impl DriverQueue {
    fn of(inner: ring::DriverQueue) -> Self {
        Self { index: inner.index(), config: *inner.config(), inner: Mutex::new(inner) }
    }

    /// Where the ring lies.
    pub fn config(&self) -> &RingConfig {
        &self.config
    }

    fn failed(&self, error: ring::DriverError) -> Error {
        Error::Driver(self.index, error)
    }

    /// The ring with duplicates of its eventfds, for a device in this process.
    pub fn setup(&self, py: Python<'_>) -> Result<RingSetup, Error> {
        let queue = self.lock(py);
        let duplicate = |fd: BorrowedFd<'_>| fd.try_clone_to_owned().map_err(PyErr::from);
        Ok(RingSetup {
            config: self.config,
            kick: duplicate(queue.kick_fd())?,
            call: duplicate(queue.call_fd())?,
        })
    }

    fn lock(&self, py: Python<'_>) -> MutexGuard<'_, ring::DriverQueue> {
        self.inner.lock_py_attached(py).unwrap_or_else(PoisonError::into_inner)
    }
}

#[pymethods]
impl DriverQueue {
    /// Lays a ring into guest memory.
    #[new]
    #[pyo3(signature = (index, size, memory, start, length, *, event_idx = false, indirect = false, in_order = false))]
    #[allow(clippy::too_many_arguments)] // keyword arguments of Python
    fn new(
        index: u16,
        size: u16,
        memory: &GuestMemory,
        start: u64,
        length: u64,
        event_idx: bool,
        indirect: bool,
        in_order: bool,
    ) -> Result<Self, Error> {
        let features = RingFeatures { event_idx, indirect, in_order, notify_on_empty: false };
        let memory = memory.snapshot()?;
        let queue = ring::DriverQueue::new(index, size, features, &memory, start, length)
            .map_err(|error| Error::Driver(index, error))?;
        Ok(Self::of(queue))
    }

    /// A driver's queue and a device's queue with one ring between them, for tests.
    #[staticmethod]
    #[pyo3(signature = (size, length = 1048576, *, event_idx = false, indirect = false, in_order = false))]
    fn pair(
        size: u16,
        length: u64,
        event_idx: bool,
        indirect: bool,
        in_order: bool,
    ) -> Result<(Self, VirtQueue), Error> {
        let features = RingFeatures { event_idx, indirect, in_order, notify_on_empty: false };
        let (_, mapped) = MappedMemory::memfd(length)?;
        let memory = xenvirt_core::memory::GuestMemory::new(vec![Region::new(0, 0, Arc::new(mapped))])?;
        let driver = ring::DriverQueue::new(0, size, features, &memory, 0, length)
            .map_err(|error| Error::Driver(0, error))?;
        let device = Arc::new(ring::VirtQueue::new(0, size));
        device.start(driver.config(), &memory).map_err(|error| Error::Ring(0, error))?;
        device.set_call(Some(driver.call_fd().try_clone_to_owned().map_err(PyErr::from)?));
        Ok((Self::of(driver), VirtQueue::new(device)))
    }

    /// Which queue of its device it is.
    #[getter]
    fn index(&self) -> u16 {
        self.index
    }

    /// Descriptors of its ring.
    #[getter]
    fn size(&self) -> u16 {
        self.config.size
    }

    /// Guest addresses of the descriptor table, the available ring and the used ring.
    #[getter]
    fn addresses(&self) -> (u64, u64, u64) {
        (self.config.descriptors, self.config.available, self.config.used)
    }

    /// Requests that the device has.
    #[getter]
    fn pending(&self, py: Python<'_>) -> usize {
        self.lock(py).pending()
    }

    /// The eventfd that the device listens to.
    #[getter]
    fn kick_fd(&self, py: Python<'_>) -> i32 {
        self.lock(py).kick_fd().as_raw_fd()
    }

    /// The eventfd that the device signals.
    fn fileno(&self, py: Python<'_>) -> i32 {
        self.lock(py).call_fd().as_raw_fd()
    }

    /// Puts a request in the ring, and shows it to the device unless that shall come later.
    #[pyo3(signature = (readable = None, writable = None, *, publish = true))]
    fn submit(
        &self,
        py: Python<'_>,
        readable: Option<&Bound<'_, PyAny>>,
        writable: Option<Vec<u32>>,
        publish: bool,
    ) -> Result<u64, Error> {
        let mut buffers = Vec::new();
        if let Some(readable) = readable {
            for buffer in readable.try_iter()? {
                buffers.push(BorrowedBuffer::readable(&buffer?)?);
            }
        }
        let sources: Vec<Source<'_>> = buffers.iter().map(BorrowedBuffer::source).collect();
        let writable = writable.unwrap_or_default();
        let mut queue = self.lock(py);
        let token = queue.add(&sources, &writable).map_err(|error| self.failed(error))?;
        if publish {
            queue.publish();
        }
        Ok(token)
    }

    /// Shows the device what was submitted and not shown yet, and kicks it if it wants.
    fn publish(&self, py: Python<'_>) {
        self.lock(py).publish();
    }

    /// Takes back what the device has used.
    fn completed<'py>(&self, py: Python<'py>) -> Result<Vec<Answer<'py>>, Error> {
        let mut queue = self.lock(py);
        let mut answers = Vec::new();
        for completion in queue.completed().map_err(|error| self.failed(error))? {
            let mut contents = Vec::with_capacity(completion.buffers.len());
            for &buffer in &completion.buffers {
                contents.push(new_bytes(py, buffer.len as usize, |target| {
                    queue.read(buffer, target).map_err(|error| self.failed(error))
                })?);
            }
            answers.push((completion.token, contents, completion.used));
            queue.release(completion);
        }
        Ok(answers)
    }

    fn __repr__(&self, py: Python<'_>) -> String {
        let pending = self.lock(py).pending();
        format!("<DriverQueue {} of {} descriptors, {pending} pending>", self.index, self.config.size)
    }
}
