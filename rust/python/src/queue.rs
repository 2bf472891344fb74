//! Device side: a virtqueue and the chains that come out of it, one at a time.

use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

use pyo3::{exceptions::PyValueError, prelude::*, types::PyBytes};
use xenvirt_core::ring::{self, QueueChain, QueueState};

use crate::errors::Error;

/// One virtqueue of a device.
#[pyclass(frozen, module = "xenvirt._native")]
pub struct VirtQueue {
    inner: Arc<ring::VirtQueue>,
}

impl VirtQueue {
    /// The Python side of a queue of the core.
    pub fn new(inner: Arc<ring::VirtQueue>) -> Self {
        Self { inner }
    }
}

#[pymethods]
impl VirtQueue {
    /// Which queue of its device it is.
    #[getter]
    fn index(&self) -> u16 {
        self.inner.index()
    }

    /// Descriptors of its ring.
    #[getter]
    fn size(&self) -> u16 {
        self.inner.size()
    }

    /// True while chains can come out of it.
    #[getter]
    fn running(&self) -> bool {
        self.inner.state() == QueueState::Running
    }

    /// Chains that were taken and not completed.
    #[getter]
    fn kept(&self) -> usize {
        self.inner.kept()
    }

    /// Kicks, chains, bytes read, bytes written, calls, errors.
    #[getter]
    fn counters(&self) -> (u64, u64, u64, u64, u64, u64) {
        let c = self.inner.counters();
        (c.kicks, c.chains, c.bytes_read, c.bytes_written, c.calls, c.errors)
    }

    /// The next chain; None when the ring is empty, or stopped.
    fn pop(&self) -> Result<Option<Chain>, Error> {
        let chain = self.inner.pop().map_err(|error| Error::Ring(self.inner.index(), error))?;
        Ok(chain.map(|chain| Chain { inner: Mutex::new(chain) }))
    }

    fn __iter__(slf: Py<Self>) -> Py<Self> {
        slf
    }

    fn __next__(&self) -> Result<Option<Chain>, Error> {
        self.pop()
    }
}

/// One descriptor chain.
#[pyclass(frozen, module = "xenvirt._native")]
pub struct Chain {
    inner: Mutex<QueueChain>,
}

impl Chain {
    fn lock(&self) -> MutexGuard<'_, QueueChain> {
        self.inner.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

#[pymethods]
impl Chain {
    /// Index of its first descriptor.
    #[getter]
    fn index(&self) -> u16 {
        self.lock().head()
    }

    /// Bytes of the readable part that were not read yet.
    #[getter]
    fn readable(&self) -> u64 {
        self.lock().readable()
    }

    /// Bytes of the writable part that were not written yet.
    #[getter]
    fn writable(&self) -> u64 {
        self.lock().writable()
    }

    /// Was it completed?
    #[getter]
    fn completed(&self) -> bool {
        self.lock().completed()
    }

    /// Reads the next `size` bytes, or what is left; all that is left without a size.
    #[pyo3(signature = (size = -1))]
    fn read<'py>(&self, py: Python<'py>, size: i64) -> Result<Bound<'py, PyBytes>, Error> {
        let mut chain = self.lock();
        let left = chain.readable();
        let len = u64::try_from(size).map_or(left, |size| size.min(left));
        let len =
            usize::try_from(len).map_err(|_| PyValueError::new_err("the chain is larger than memory"))?;
        let mut failure = None;
        let bytes = PyBytes::new_with(py, len, |target| {
            failure = chain.read(target).err();
            Ok(())
        })?;
        failure.map_or(Ok(bytes), |error| Err(error.into()))
    }

    /// Writes all of `data` to the next bytes of the writable part, or nothing.
    fn write(&self, data: &[u8]) -> Result<usize, Error> {
        self.lock().write(data)?;
        Ok(data.len())
    }

    /// Gives the chain back to the driver.
    #[pyo3(signature = (written = None))]
    fn complete(&self, written: Option<u64>) -> Result<(), Error> {
        Ok(self.lock().complete(written)?)
    }
}
