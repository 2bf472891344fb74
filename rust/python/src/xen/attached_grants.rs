//! What a domain grants, as memory at addresses that references make.

use std::sync::{Arc, Weak};

use pyo3::prelude::*;
use xenvirt_core::memory::{GRANT_ADDRESS, GrantCache, MemoryError, SharedMemoryTable};

use crate::{errors::Error, memory::GuestMemory};

/// Granted pages at addresses that their references make, mapped while they are used.
#[pyclass(frozen, extends = GuestMemory, module = "xenvirt._native")]
pub struct AttachedGrants {
    domid: u16,
    /// The table has it, and those who lease from it.
    cache: Weak<GrantCache>,
}

impl AttachedGrants {
    /// Attaches, and maps nothing.
    pub fn new(py: Python<'_>, cache: &Arc<GrantCache>) -> Result<Py<Self>, Error> {
        let attached = Self { domid: cache.domain(), cache: Arc::downgrade(cache) };
        let base = GuestMemory::of_mapping(Arc::new(SharedMemoryTable::new(cache.memory()?)));
        Ok(Py::new(py, PyClassInitializer::from(base).add_subclass(attached))?)
    }
}

#[pymethods]
impl AttachedGrants {
    /// Where reference 0 is.
    #[classattr]
    const ADDRESS: u64 = GRANT_ADDRESS;

    /// The domain.
    #[getter]
    fn domid(&self) -> u16 {
        self.domid
    }

    /// How many pages are mapped now.
    #[getter]
    fn mapped_pages(&self) -> Result<u64, Error> {
        Ok(self.cache.upgrade().ok_or(MemoryError::Closed)?.mapped_pages())
    }

    fn __repr__(&self) -> String {
        match self.mapped_pages() {
            Ok(pages) => format!("<AttachedGrants of domain {}: {pages} pages are mapped>", self.domid),
            Err(_) => format!("<AttachedGrants of domain {}, closed>", self.domid),
        }
    }
}
