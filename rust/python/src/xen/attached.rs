//! The memory of a whole guest, mapped by windows.

use std::{
    ops::Range,
    sync::{Arc, Weak},
};

use pyo3::{exceptions::PyValueError, prelude::*, types::PyRange};
use xenvirt_core::memory::{AttachRequest, ForeignWindows, MemoryError, SharedMemoryTable, WINDOW};

use crate::{errors::Error, memory::GuestMemory};

/// A guest's memory at its own addresses, mapped when it is touched.
#[pyclass(frozen, extends = GuestMemory, module = "xenvirt._native")]
pub struct AttachedMemory {
    domid: u16,
    size: u64,
    /// The table has them, and those who lease from it: closing lets them go.
    windows: Weak<ForeignWindows>,
}

impl AttachedMemory {
    /// Attaches, and maps nothing.
    pub fn new(
        py: Python<'_>,
        calls: Arc<dyn xenvirt_core::xen::ForeignCalls>,
        ranges: &[Range<u64>],
        request: &AttachRequest,
    ) -> Result<Py<Self>, Error> {
        let (windows, memory) = ForeignWindows::attach(calls, ranges, request)?;
        let size = memory.regions().iter().map(|region| region.len).sum();
        let attached = Self { domid: request.domain, size, windows: Arc::downgrade(&windows) };
        let base = GuestMemory::of_mapping(Arc::new(SharedMemoryTable::new(memory)));
        Ok(Py::new(py, PyClassInitializer::from(base).add_subclass(attached))?)
    }

    fn windows(&self) -> Result<Arc<ForeignWindows>, MemoryError> {
        self.windows.upgrade().ok_or(MemoryError::Closed)
    }
}

#[pymethods]
impl AttachedMemory {
    /// Bytes of a window.
    #[classattr]
    const WINDOW: u64 = WINDOW;

    /// The domain.
    #[getter]
    fn domid(&self) -> u16 {
        self.domid
    }

    /// Bytes that are in windows now.
    #[getter]
    fn mapped_bytes(&self) -> Result<u64, Error> {
        Ok(self.windows()?.mapped_bytes())
    }

    /// Bytes that may stay in windows.
    #[getter]
    fn limit(&self) -> Result<Option<u64>, Error> {
        Ok(Some(self.windows()?.limit()).filter(|&limit| limit != u64::MAX))
    }

    #[setter]
    fn set_limit(&self, py: Python<'_>, limit: Option<u64>) -> Result<(), Error> {
        let windows = self.windows()?;
        Ok(py.detach(|| windows.set_limit(limit.unwrap_or(u64::MAX)))?)
    }

    /// Uses nothing any more that was mapped before.
    fn invalidate(&self, py: Python<'_>) -> Result<(), Error> {
        let windows = self.windows()?;
        Ok(py.detach(|| windows.invalidate())?)
    }

    fn __repr__(&self) -> String {
        let Self { domid, size, .. } = self;
        match self.windows() {
            Ok(windows) => {
                let mapped = windows.mapped_bytes();
                format!("<AttachedMemory of domain {domid}: {mapped:#x} of {size:#x} bytes are mapped>")
            }
            Err(error) => format!("<AttachedMemory of domain {domid}: {error}>"),
        }
    }
}

/// Ranges of guest addresses, as Python has them.
pub fn address_ranges(ranges: &Bound<'_, PyAny>) -> Result<Vec<Range<u64>>, Error> {
    let mut found = Vec::new();
    for range in ranges.try_iter()? {
        let range = range?;
        let range = range.cast::<PyRange>().map_err(PyErr::from)?;
        let (start, stop) = (range.getattr("start")?.extract::<u64>()?, range.getattr("stop")?.extract()?);
        if range.getattr("step")?.extract::<i64>().ok() != Some(1) {
            let text = format!("{range}: a range of addresses has no step");
            return Err(PyValueError::new_err(text).into());
        }
        found.push(start..stop);
    }
    if found.is_empty() {
        return Err(PyValueError::new_err("no ranges: a guest has memory somewhere").into());
    }
    Ok(found)
}
