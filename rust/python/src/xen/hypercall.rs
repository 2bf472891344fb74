//! Buffers for hypercalls.

use pyo3::{
    prelude::*,
    types::{PyBytes, PyTuple},
};
use xenvirt_core::xen;

use super::waiting::Closable;
use crate::{
    buffer::{BorrowedBuffer, new_bytes},
    errors::Error,
};

/// Memory that Xen reads and writes during a hypercall.
#[pyclass(frozen, module = "xenvirt._native")]
pub struct HypercallBuffer(Closable<xen::HypercallBuffer>);

#[pymethods]
impl HypercallBuffer {
    #[new]
    #[pyo3(signature = (size, *, locked = false))]
    fn new(size: usize, locked: bool) -> Result<Self, Error> {
        let make = if locked { xen::HypercallBuffer::locked } else { xen::HypercallBuffer::new };
        Ok(Self(Closable::new("the hypercall buffer", make(size)?)))
    }

    /// Whose pages it has.
    #[getter]
    fn kind(&self) -> Result<&'static str, Error> {
        Ok(self.0.get()?.kind().name())
    }

    /// What a hypercall is given.
    #[getter]
    fn address(&self) -> Result<u64, Error> {
        Ok(self.0.get()?.address())
    }

    /// Length in bytes.
    #[getter]
    fn size(&self) -> Result<usize, Error> {
        Ok(self.0.get()?.len())
    }

    /// Copies out of it.
    fn read<'py>(&self, py: Python<'py>, offset: usize, size: usize) -> Result<Bound<'py, PyBytes>, Error> {
        let buffer = self.0.get()?;
        buffer.check(offset, size)?;
        new_bytes(py, size, |target| buffer.read(offset, target))
    }

    /// Copies into it.
    fn write(&self, offset: usize, data: &Bound<'_, PyAny>) -> Result<usize, Error> {
        let data = BorrowedBuffer::readable(data)?;
        self.0.get()?.write(offset, data.source())?;
        Ok(data.len())
    }

    /// Unmaps it.
    fn close(&self) {
        self.0.close();
    }

    fn __enter__(slf: Bound<'_, Self>) -> Bound<'_, Self> {
        slf
    }

    #[pyo3(signature = (*_exception))]
    fn __exit__(&self, _exception: &Bound<'_, PyTuple>) {
        self.close();
    }
}
