//! Device side: a virtqueue and the chains that come out of it, one at a time.

use std::{
    os::fd::AsFd,
    sync::{Arc, Mutex, MutexGuard, PoisonError},
};

use pyo3::{
    exceptions::{PyMemoryError, PyValueError},
    prelude::*,
    sync::MutexExt,
    types::PyBytes,
};
use xenvirt_core::{
    memory::Lease,
    ring::{self, BatchLayout, ChainError, QueueChain, QueueState},
};

use crate::{
    batch::Batch,
    buffer::{BorrowedBuffer, MemoryView, copying, new_bytes},
    errors::Error,
    file::FileArgument,
    header::Header,
};

/// One virtqueue of a device.
#[pyclass(frozen, module = "xenvirt._native")]
pub struct VirtQueue {
    inner: Arc<ring::VirtQueue>,
    /// The header that the last batch was popped with: its layout is asked of Python once.
    header: Mutex<Option<Arc<Header>>>,
}

impl VirtQueue {
    /// The Python side of a queue of the core.
    pub fn new(inner: Arc<ring::VirtQueue>) -> Self {
        Self { inner, header: Mutex::default() }
    }

    /// The queue of the core.
    pub fn core(&self) -> &Arc<ring::VirtQueue> {
        &self.inner
    }

    fn failed(&self, error: ring::RingError) -> Error {
        Error::Ring(self.inner.index(), error)
    }

    /// The layout of a header class.
    fn layout(&self, py: Python<'_>, class: &Bound<'_, PyAny>) -> PyResult<Arc<Header>> {
        let last = || self.header.lock().unwrap_or_else(PoisonError::into_inner);
        if let Some(header) = last().as_ref().filter(|header| header.is_of(class)) {
            return Ok(Arc::clone(header));
        }
        let header = Arc::new(Header::of(py, class)?);
        let replaced = last().replace(Arc::clone(&header));
        drop(replaced);
        Ok(header)
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
        let chain = self.inner.pop().map_err(|error| self.failed(error))?;
        Ok(chain.map(Chain::new))
    }

    fn __iter__(slf: Py<Self>) -> Py<Self> {
        slf
    }

    fn __next__(&self) -> Result<Option<Chain>, Error> {
        self.pop()
    }

    /// Completes several chains of this queue; the driver sees them at once.
    fn complete(&self, py: Python<'_>, chains: Vec<Bound<'_, Chain>>) -> Result<(), Error> {
        // Locked in one order by everybody, so that two calls with the same chains cannot wait for each other.
        let mut order: Vec<usize> = (0..chains.len()).collect();
        order.sort_by_key(|&index| chains.get(index).map(|chain| chain.as_ptr()));
        let mut locked = Vec::with_capacity(chains.len());
        for (place, &index) in order.iter().enumerate() {
            let Some(chain) = chains.get(index) else { continue };
            if place > 0
                && order.get(place - 1).and_then(|&last| chains.get(last)).is_some_and(|last| last.is(chain))
            {
                return Err(ChainError::Completed { head: chain.get().head }.into());
            }
            let guard = chain.get().lock(py);
            if !Arc::ptr_eq(guard.queue(), &self.inner) {
                let (head, queue) = (chain.get().head, self.inner.index());
                let text = format!("chain {head} is of another queue than {queue}");
                return Err(PyValueError::new_err(text).into());
            }
            chain.get().release_views()?;
            locked.push((index, guard));
        }
        locked.sort_by_key(|(index, _)| *index);
        let mut parts: Vec<&mut QueueChain> = locked.iter_mut().map(|(_, guard)| &mut **guard).collect();
        Ok(QueueChain::complete_together(&mut parts)?)
    }

    /// Up to `limit` chains at once; None when the ring is empty, or stopped.
    #[pyo3(signature = (header = None, trailer = 0, limit = 256))]
    fn pop_batch(
        &self,
        py: Python<'_>,
        header: Option<&Bound<'_, PyAny>>,
        trailer: usize,
        limit: usize,
    ) -> Result<Option<Batch>, Error> {
        if limit == 0 {
            return Err(PyValueError::new_err("a batch has at least one chain: limit is 0").into());
        }
        if trailer > 8 {
            let text = format!("trailer is {trailer}, and takes 0 to 8 bytes");
            return Err(PyValueError::new_err(text).into());
        }
        let header = header.map(|class| self.layout(py, class)).transpose()?;
        let layout = BatchLayout { header: header.as_ref().map_or(0, |header| header.size), trailer };
        let batch = self.inner.pop_batch(limit, layout).map_err(|error| self.failed(error))?;
        Ok(batch.map(|batch| Batch::new(batch, header)))
    }

    fn __repr__(&self) -> String {
        let state = match self.inner.state() {
            QueueState::Stopped => "stopped".to_owned(),
            QueueState::Running => format!("running, {} chains kept", self.inner.kept()),
            QueueState::Failed(error) => format!("failed: {error}"),
        };
        format!("<VirtQueue {} of {} descriptors, {state}>", self.inner.index(), self.inner.size())
    }
}

/// One descriptor chain.
#[pyclass(frozen, module = "xenvirt._native")]
pub struct Chain {
    head: u16,
    inner: Mutex<QueueChain>,
    /// Views of its memory that are to end before it is completed.
    views: Mutex<Vec<Py<MemoryView>>>,
}

impl Chain {
    fn new(chain: QueueChain) -> Self {
        Self { head: chain.head(), inner: Mutex::new(chain), views: Mutex::default() }
    }

    /// Another thread may hold it for as long as a copy takes, and wants the interpreter afterwards.
    fn lock(&self, py: Python<'_>) -> MutexGuard<'_, QueueChain> {
        self.inner.lock_py_attached(py).unwrap_or_else(PoisonError::into_inner)
    }

    fn views(&self) -> MutexGuard<'_, Vec<Py<MemoryView>>> {
        self.views.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Ends its views, as it must before it is completed.
    fn release_views(&self) -> Result<(), Error> {
        let mut views = self.views();
        for view in views.iter() {
            view.get().release()?;
        }
        views.clear();
        Ok(())
    }

    fn lend(&self, py: Python<'_>, leases: Vec<Lease>, writable: bool) -> PyResult<Vec<Py<MemoryView>>> {
        let views: PyResult<Vec<_>> =
            leases.into_iter().map(|lease| Py::new(py, MemoryView::new(lease, writable))).collect();
        let views = views?;
        self.views().extend(views.iter().map(|view| view.clone_ref(py)));
        Ok(views)
    }
}

#[pymethods]
impl Chain {
    /// Index of its first descriptor.
    #[getter]
    fn index(&self) -> u16 {
        self.head
    }

    /// Bytes of the readable part that were not read yet.
    #[getter]
    fn readable(&self, py: Python<'_>) -> u64 {
        self.lock(py).readable()
    }

    /// Bytes of the writable part that were not written yet.
    #[getter]
    fn writable(&self, py: Python<'_>) -> u64 {
        self.lock(py).writable()
    }

    /// Was it completed?
    #[getter]
    fn completed(&self, py: Python<'_>) -> bool {
        self.lock(py).completed()
    }

    /// Reads the next `size` bytes, or what is left; all that is left without a size.
    #[pyo3(signature = (size = -1), text_signature = "($self, size=-1)")]
    fn read<'py>(&self, py: Python<'py>, size: i64) -> Result<Bound<'py, PyBytes>, Error> {
        let mut chain = self.lock(py);
        let left = chain.readable();
        let len = u64::try_from(size).map_or(left, |size| size.min(left));
        let len = usize::try_from(len).map_err(|_| PyMemoryError::new_err(()))?;
        let chain = &mut *chain;
        new_bytes(py, len, |target| copying(py, len, || chain.read_into(target).map(|_| ())))
    }

    /// Fills a buffer with the next bytes, and returns how many there were.
    fn readinto(&self, py: Python<'_>, buffer: &Bound<'_, PyAny>) -> Result<usize, Error> {
        let mut buffer = BorrowedBuffer::writable(buffer)?;
        let len = buffer.len();
        let target = buffer.target()?;
        let chain = &mut *self.lock(py);
        Ok(copying(py, len, || chain.read_into(target))?)
    }

    /// Writes all of `data` to the next bytes of the writable part, or nothing.
    fn write(&self, py: Python<'_>, data: &Bound<'_, PyAny>) -> Result<usize, Error> {
        let data = BorrowedBuffer::readable(data)?;
        let len = data.len();
        let source = data.source();
        let chain = &mut *self.lock(py);
        copying(py, len, || chain.write_from(source))?;
        Ok(len)
    }

    /// Moves the next readable bytes to a file, straight from guest memory.
    #[pyo3(signature = (file, offset = None, size = None))]
    fn read_to_file(
        &self,
        py: Python<'_>,
        file: FileArgument,
        offset: Option<u64>,
        size: Option<u64>,
    ) -> Result<u64, Error> {
        let chain = &mut *self.lock(py);
        let moved = py.detach(|| chain.read_to_fd(file.as_fd(), offset, size.unwrap_or(u64::MAX)));
        Ok(moved?)
    }

    /// Moves bytes of a file to the next writable bytes, straight into guest memory.
    #[pyo3(signature = (file, offset = None, size = None))]
    fn write_from_file(
        &self,
        py: Python<'_>,
        file: FileArgument,
        offset: Option<u64>,
        size: Option<u64>,
    ) -> Result<u64, Error> {
        let chain = &mut *self.lock(py);
        let moved = py.detach(|| chain.write_from_fd(file.as_fd(), offset, size.unwrap_or(u64::MAX)));
        Ok(moved?)
    }

    /// The memory of what was not read yet, a view for each piece.
    fn readable_views(&self, py: Python<'_>) -> Result<Vec<Py<MemoryView>>, Error> {
        let leases = self.lock(py).readable_leases()?;
        Ok(self.lend(py, leases, false)?)
    }

    /// The memory of what was not written yet, a view for each piece.
    fn writable_views(&self, py: Python<'_>) -> Result<Vec<Py<MemoryView>>, Error> {
        let leases = self.lock(py).writable_leases()?;
        Ok(self.lend(py, leases, true)?)
    }

    /// Gives the chain back to the driver.
    #[pyo3(signature = (written = None))]
    fn complete(&self, py: Python<'_>, written: Option<u64>) -> Result<(), Error> {
        let mut chain = self.lock(py);
        if chain.completed() {
            return Err(ChainError::Completed { head: self.head }.into());
        }
        self.release_views()?;
        Ok(chain.complete(written)?)
    }

    fn __repr__(&self, py: Python<'_>) -> String {
        let chain = self.lock(py);
        let (head, readable, writable) = (chain.head(), chain.readable(), chain.writable());
        let done = if chain.completed() { ", completed" } else { "" };
        format!("<Chain {head}: {readable} bytes left to read, {writable} to write{done}>")
    }
}
