//! Grants: pages of other domains, and pages of ours.

use std::{
    sync::{Arc, Mutex, PoisonError},
    time::Duration,
};

use pyo3::{
    exceptions::{PyTypeError, PyValueError},
    prelude::*,
    types::{PyBytes, PyTuple},
};
use xenvirt_core::{
    memory::{GrantCache, Owner, SharedMemoryTable},
    xen::{self, Gntalloc, Gntdev, Grant, GrantCalls, GrantRequest, ShareCalls, ShareRequest, UnmapNotify},
};

use super::{
    attached_grants::AttachedGrants,
    sim::{Opened, hypervisor},
};
use crate::{
    buffer::{BorrowedBuffer, copying, new_bytes},
    errors::Error,
    memory::GuestMemory,
};

/// A grant that could not be mapped.
#[pyclass(frozen, eq, module = "xenvirt._native")]
#[derive(Clone, Copy, PartialEq)]
pub struct GrantFailure(xen::GrantFailure);

#[pymethods]
impl GrantFailure {
    /// Its place in the request.
    #[getter]
    fn index(&self) -> usize {
        self.0.index
    }

    /// The domain that granted, or did not.
    #[getter]
    fn domid(&self) -> u16 {
        self.0.grant.domain
    }

    /// The reference.
    #[getter]
    fn reference(&self) -> u32 {
        self.0.grant.reference
    }

    /// What the kernel says.
    #[getter]
    fn errno(&self) -> i32 {
        self.0.errno.raw_os_error()
    }

    /// The errno in words.
    #[getter]
    fn reason(&self) -> &'static str {
        self.0.reason()
    }

    fn __repr__(&self) -> String {
        let xen::GrantFailure { index, grant: Grant { domain, reference }, .. } = self.0;
        format!("<GrantFailure {index} reference {reference} of domain {domain}: {}>", self.0.reason())
    }
}

/// A granted page that could not be copied.
#[pyclass(frozen, eq, module = "xenvirt._native")]
#[derive(Clone, Copy, PartialEq)]
pub struct CopyFailure(xen::CopyFailure);

#[pymethods]
impl CopyFailure {
    /// The place of its reference in the request.
    #[getter]
    fn index(&self) -> usize {
        self.0.index
    }

    /// The domain that granted, or did not.
    #[getter]
    fn domid(&self) -> u16 {
        self.0.grant.domain
    }

    /// The reference.
    #[getter]
    fn reference(&self) -> u32 {
        self.0.grant.reference
    }

    /// What the hypervisor says.
    #[getter]
    fn status(&self) -> i16 {
        self.0.status
    }

    /// The errno that comes nearest to the status.
    #[getter]
    fn errno(&self) -> i32 {
        self.0.errno().raw_os_error()
    }

    /// The status in words.
    #[getter]
    fn reason(&self) -> &'static str {
        self.0.reason()
    }

    fn __repr__(&self) -> String {
        let xen::CopyFailure { index, grant: Grant { domain, reference }, .. } = self.0;
        format!("<CopyFailure {index} reference {reference} of domain {domain}: {}>", self.0.reason())
    }
}

/// The failures as Python has them.
pub fn grant_failures<'py>(py: Python<'py>, failures: &[xen::GrantFailure]) -> PyResult<Bound<'py, PyTuple>> {
    let failures = failures.iter().map(|&failure| Py::new(py, GrantFailure(failure)));
    PyTuple::new(py, failures.collect::<PyResult<Vec<_>>>()?)
}

/// The failures of a copy as Python has them.
pub fn copy_failures<'py>(py: Python<'py>, failures: &[xen::CopyFailure]) -> PyResult<Bound<'py, PyTuple>> {
    let failures = failures.iter().map(|&failure| Py::new(py, CopyFailure(failure)));
    PyTuple::new(py, failures.collect::<PyResult<Vec<_>>>()?)
}

/// A device that can be closed, and does not work in a child.
struct Device<T> {
    what: &'static str,
    device: Mutex<Option<Arc<T>>>,
    owner: Owner,
}

impl<T> Device<T> {
    fn new(what: &'static str, device: T) -> Self {
        Self { what, device: Mutex::new(Some(Arc::new(device))), owner: Owner::this_process() }
    }

    fn get(&self) -> Result<Arc<T>, Error> {
        // In a child the lock may have been held by a thread of the parent.
        self.owner.check()?;
        let device = self.device.lock().unwrap_or_else(PoisonError::into_inner).clone();
        device.ok_or_else(|| PyValueError::new_err(format!("the {} is closed", self.what)).into())
    }

    fn close(&self) {
        if self.owner.is_this_process() {
            self.device.lock().unwrap_or_else(PoisonError::into_inner).take();
        }
    }
}

/// /dev/xen/gntdev.
#[pyclass(frozen, module = "xenvirt._native")]
pub struct GrantTable {
    device: Device<Opened<dyn GrantCalls>>,
    patience: Duration,
}

#[pymethods]
impl GrantTable {
    #[new]
    #[pyo3(signature = (*, patience = 5.0, hypervisor = None))]
    fn new(patience: f64, hypervisor: Option<&Bound<'_, PyAny>>) -> Result<Self, Error> {
        let patience = Duration::try_from_secs_f64(patience);
        let patience = patience.map_err(|error| PyValueError::new_err(format!("patience: {error}")))?;
        let device = match self::hypervisor(hypervisor)? {
            Some(domain) => Opened::<dyn GrantCalls>::simulated(Arc::new(domain.gntdev())),
            None => {
                let device = Arc::new(Gntdev::open()?);
                Opened::<dyn GrantCalls>::kernel(device.clone(), device)
            }
        };
        Ok(Self { device: Device::new("grant table", device), patience })
    }

    /// Maps granted pages, one after the other.
    #[pyo3(signature = (domid, references, *, writable = false, clear_byte = None, notify_port = None))]
    fn map(
        &self,
        py: Python<'_>,
        domid: &Bound<'_, PyAny>,
        references: &Bound<'_, PyAny>,
        writable: bool,
        clear_byte: Option<u64>,
        notify_port: Option<u32>,
    ) -> Result<Py<GrantMapping>, Error> {
        let calls = self.device.get()?.calls.clone();
        let (grants, notify) = (grants_of(domid, references)?, UnmapNotify { clear_byte, port: notify_port });
        let patience = self.patience;
        let request = GrantRequest { grants: &grants, writable, patience, notify, named: usize::MAX };
        let mapped = py.detach(|| xen::GrantMapping::map(&calls, &request))?;
        let pages = mapped.pages();
        let base = GuestMemory::of_mapping(Arc::new(SharedMemoryTable::new(mapped.into_memory()?)));
        Ok(Py::new(py, PyClassInitializer::from(base).add_subclass(GrantMapping { pages }))?)
    }

    /// What a domain grants, at addresses that references make.
    fn attach(&self, py: Python<'_>, domid: u16) -> Result<Py<AttachedGrants>, Error> {
        let calls = self.device.get()?.calls.clone();
        AttachedGrants::new(py, &GrantCache::new(calls, domid, self.patience))
    }

    /// Has the hypervisor copy bytes of granted pages.
    #[pyo3(signature = (domid, references, size, *, offset = 0))]
    fn copy_from<'py>(
        &self,
        py: Python<'py>,
        domid: &Bound<'_, PyAny>,
        references: &Bound<'_, PyAny>,
        size: usize,
        offset: u64,
    ) -> Result<Bound<'py, PyBytes>, Error> {
        let (device, grants) = (self.device.get()?, grants_of(domid, references)?);
        xen::check_copy(&grants, offset, size as u64)?;
        new_bytes(py, size, |target| {
            copying(py, size, || xen::copy_from_grants(&*device.calls, &grants, offset, target))
        })
    }

    /// Has the hypervisor copy bytes to granted pages.
    #[pyo3(signature = (domid, references, data, *, offset = 0))]
    fn copy_to(
        &self,
        py: Python<'_>,
        domid: &Bound<'_, PyAny>,
        references: &Bound<'_, PyAny>,
        data: &Bound<'_, PyAny>,
        offset: u64,
    ) -> Result<usize, Error> {
        let (device, grants) = (self.device.get()?, grants_of(domid, references)?);
        let data = BorrowedBuffer::readable(data)?;
        let source = data.source();
        copying(py, data.len(), || xen::copy_to_grants(&*device.calls, &grants, offset, source))?;
        Ok(data.len())
    }

    /// The device's descriptor.
    fn fileno(&self) -> Result<i32, Error> {
        self.device.get()?.fileno()
    }

    /// Closes the device; mappings stay.
    fn close(&self) {
        self.device.close();
    }

    fn __enter__(slf: Bound<'_, Self>) -> Bound<'_, Self> {
        slf
    }

    #[pyo3(signature = (*_exception))]
    fn __exit__(&self, _exception: &Bound<'_, PyTuple>) {
        self.close();
    }
}

/// Granted pages, mapped.
#[pyclass(frozen, extends = GuestMemory, module = "xenvirt._native")]
pub struct GrantMapping {
    pages: usize,
}

#[pymethods]
impl GrantMapping {
    /// How many pages of 4 KiB it has.
    #[getter]
    fn pages(&self) -> usize {
        self.pages
    }

    fn __repr__(&self) -> String {
        format!("<GrantMapping of {} pages>", self.pages)
    }
}

/// /dev/xen/gntalloc.
#[pyclass(frozen, module = "xenvirt._native")]
pub struct GrantAllocator {
    device: Device<Opened<dyn ShareCalls>>,
}

#[pymethods]
impl GrantAllocator {
    #[new]
    #[pyo3(signature = (*, hypervisor = None))]
    fn new(hypervisor: Option<&Bound<'_, PyAny>>) -> Result<Self, Error> {
        let device = match self::hypervisor(hypervisor)? {
            Some(domain) => Opened::<dyn ShareCalls>::simulated(Arc::new(domain.gntalloc())),
            None => {
                let device = Arc::new(Gntalloc::open()?);
                Opened::<dyn ShareCalls>::kernel(device.clone(), device)
            }
        };
        Ok(Self { device: Device::new("grant allocator", device) })
    }

    /// Makes pages and grants them to a domain.
    #[pyo3(signature = (domid, pages = 1, *, writable = true, clear_byte = None, notify_port = None))]
    fn share(
        &self,
        py: Python<'_>,
        domid: u16,
        pages: usize,
        writable: bool,
        clear_byte: Option<u64>,
        notify_port: Option<u32>,
    ) -> Result<Py<GrantShare>, Error> {
        let calls = self.device.get()?.calls.clone();
        let notify = UnmapNotify { clear_byte, port: notify_port };
        let share = xen::GrantShare::new(&calls, &ShareRequest { domain: domid, pages, writable, notify })?;
        let references = share.references().to_vec();
        let base = GuestMemory::of_mapping(Arc::new(SharedMemoryTable::new(share.into_memory()?)));
        Ok(Py::new(py, PyClassInitializer::from(base).add_subclass(GrantShare { references }))?)
    }

    /// The device's descriptor.
    fn fileno(&self) -> Result<i32, Error> {
        self.device.get()?.fileno()
    }

    /// Closes the device; what is shared stays so.
    fn close(&self) {
        self.device.close();
    }

    fn __enter__(slf: Bound<'_, Self>) -> Bound<'_, Self> {
        slf
    }

    #[pyo3(signature = (*_exception))]
    fn __exit__(&self, _exception: &Bound<'_, PyTuple>) {
        self.close();
    }
}

/// Pages of ours that a domain may map.
#[pyclass(frozen, extends = GuestMemory, module = "xenvirt._native")]
pub struct GrantShare {
    references: Vec<u32>,
}

#[pymethods]
impl GrantShare {
    /// The references, one for each page.
    #[getter]
    fn references<'py>(&self, py: Python<'py>) -> PyResult<Bound<'py, PyTuple>> {
        PyTuple::new(py, &self.references)
    }

    fn __repr__(&self) -> String {
        format!("<GrantShare of {} pages>", self.references.len())
    }
}

/// One domain or one for each reference; one reference, or many.
fn grants_of(domid: &Bound<'_, PyAny>, references: &Bound<'_, PyAny>) -> Result<Vec<Grant>, Error> {
    let references: Vec<u32> = many(references, "references")?;
    let domains: Vec<u16> = match domid.extract::<u16>() {
        Ok(domain) => vec![domain; references.len()],
        Err(_) => many(domid, "domid")?,
    };
    if domains.len() != references.len() {
        let text =
            format!("{} domains for {} references: one, or one for each", domains.len(), references.len());
        return Err(PyValueError::new_err(text).into());
    }
    let grants = domains.into_iter().zip(references);
    Ok(grants.map(|(domain, reference)| Grant { domain, reference }).collect())
}

/// A number, or a sequence of them.
fn many<'py, T>(value: &Bound<'py, PyAny>, what: &str) -> Result<Vec<T>, Error>
where
    T: for<'a> FromPyObject<'a, 'py>,
{
    if value.hasattr("__index__")? {
        return Ok(vec![value.extract::<T>().map_err(Into::into)?]);
    }
    value.extract().map_err(|error: PyErr| match error.is_instance_of::<PyTypeError>(value.py()) {
        true => PyTypeError::new_err(format!("{what}: a number or a sequence of numbers is wanted")).into(),
        false => error.into(),
    })
}
