//! Guest memory for Python: regions over shared files, the table of them, reads, writes and views.

use std::{os::fd::AsFd, sync::Arc};

use pyo3::{
    exceptions::{PyBufferError, PyValueError},
    prelude::*,
    types::{PyBytes, PyTuple, PyType},
};
use xenvirt_core::memory::{self as core, Access, MappedMemory, MemoryError, Region, SharedMemoryTable};

use crate::{
    buffer::{BorrowedBuffer, MemoryView, copying, duplicate_fd, new_bytes},
    errors::Error,
};

/// One region of guest memory in a shared file.
#[pyclass(frozen, module = "xenvirt._native")]
pub struct FileRegion {
    region: Region,
}

#[pymethods]
impl FileRegion {
    #[new]
    #[pyo3(signature = (fd, guest_address, size, *, offset = 0, user_address = None, writable = true))]
    fn new(
        py: Python<'_>,
        fd: i32,
        guest_address: u64,
        size: u64,
        offset: u64,
        user_address: Option<u64>,
        writable: bool,
    ) -> Result<Self, Error> {
        let file = duplicate_fd(fd)?;
        let mapped = py.detach(|| MappedMemory::file(file.as_fd(), offset, size, writable))?;
        let user_address = user_address.unwrap_or(guest_address);
        Ok(Self { region: Region::new(guest_address, user_address, Arc::new(mapped)) })
    }

    /// Guest physical address of the first byte.
    #[getter]
    fn guest_address(&self) -> u64 {
        self.region.guest_address
    }

    /// Length in bytes.
    #[getter]
    fn size(&self) -> u64 {
        self.region.len
    }

    /// Address of the first byte in the frontend's own address space.
    #[getter]
    fn user_address(&self) -> u64 {
        self.region.user_address
    }

    /// Can it be written?
    #[getter]
    fn writable(&self) -> bool {
        self.region.backing.writable()
    }

    /// What backs it: "file".
    #[getter]
    fn kind(&self) -> &'static str {
        self.region.backing.kind().name()
    }

    fn __repr__(&self) -> String {
        let Region { guest_address, user_address, len, .. } = self.region;
        let mode = if self.writable() { "" } else { ", read-only" };
        format!(
            "<FileRegion of {len:#x} bytes at guest {guest_address:#x}, user {user_address:#x}, {}{mode}>",
            self.kind()
        )
    }
}

/// Who may replace the table, and who may close it.
#[derive(Clone, Copy, PartialEq)]
enum Keeper {
    /// Who made it.
    Maker,
    /// The transport of the session that it belongs to.
    Transport,
    /// Nobody replaces it: it is one mapping. Who made it closes it.
    Mapping,
}

/// The memory of a guest: a table of regions that can be replaced while it is used.
#[pyclass(frozen, subclass, module = "xenvirt._native")]
pub struct GuestMemory {
    table: Arc<SharedMemoryTable>,
    keeper: Keeper,
}

impl GuestMemory {
    /// The memory of a session, shared with what replaces its table.
    pub fn of_session(table: Arc<SharedMemoryTable>) -> Self {
        Self { table, keeper: Keeper::Transport }
    }

    /// The table of this moment.
    ///
    /// # Errors
    /// `ValueError` once it is closed; `ForkError` in a child.
    pub fn snapshot(&self) -> Result<core::GuestMemory, Error> {
        Ok(self.table.snapshot()?)
    }

    fn table_of(regions: &Bound<'_, PyAny>) -> Result<core::GuestMemory, Error> {
        let mut table = Vec::new();
        for region in regions.try_iter()? {
            table.push(region?.cast::<FileRegion>().map_err(PyErr::from)?.get().region.clone());
        }
        Ok(core::GuestMemory::new(table)?)
    }

    /// The memory of one mapping.
    pub fn of_mapping(table: Arc<SharedMemoryTable>) -> Self {
        Self { table, keeper: Keeper::Mapping }
    }

    fn check_ours(&self) -> Result<(), Error> {
        match self.keeper {
            Keeper::Maker | Keeper::Mapping => Ok(()),
            Keeper::Transport => {
                let text = "the memory of a session is its transport's to replace and to close";
                Err(PyValueError::new_err(text).into())
            }
        }
    }
}

/// Runs an access: detached from the interpreter if it copies much, or may have to wait for a mapping.
fn reaching<R: Send>(
    py: Python<'_>,
    memory: &core::GuestMemory,
    len: usize,
    access: impl FnOnce() -> R + Send,
) -> R {
    if memory.is_resident() { copying(py, len, access) } else { py.detach(access) }
}

#[pymethods]
impl GuestMemory {
    #[new]
    #[pyo3(signature = (regions = None))]
    fn new(regions: Option<&Bound<'_, PyAny>>) -> Result<Self, Error> {
        let memory = regions.map(Self::table_of).transpose()?.unwrap_or_default();
        Ok(Self { table: Arc::new(SharedMemoryTable::new(memory)), keeper: Keeper::Maker })
    }

    /// The regions of this moment, sorted by guest address.
    #[getter]
    fn regions<'py>(&self, py: Python<'py>) -> Result<Bound<'py, PyTuple>, Error> {
        let memory = self.table.snapshot()?;
        let regions = memory.regions().iter().cloned().map(|region| Py::new(py, FileRegion { region }));
        Ok(PyTuple::new(py, regions.collect::<PyResult<Vec<_>>>()?)?)
    }

    /// Was it closed?
    #[getter]
    fn closed(&self) -> bool {
        self.table.is_closed()
    }

    /// The `size` bytes at a guest address.
    fn read<'py>(&self, py: Python<'py>, address: u64, size: usize) -> Result<Bound<'py, PyBytes>, Error> {
        let memory = self.table.snapshot()?;
        // Before room is made for it.
        memory.validate(address, size as u64, Access::Read)?;
        new_bytes(py, size, |target| reaching(py, &memory, size, || memory.read_into(address, target)))
    }

    /// Fills all of a buffer from a guest address on.
    fn readinto(&self, py: Python<'_>, address: u64, buffer: &Bound<'_, PyAny>) -> Result<usize, Error> {
        let memory = self.table.snapshot()?;
        let mut buffer = BorrowedBuffer::writable(buffer)?;
        let size = buffer.len();
        let target = buffer.target()?;
        reaching(py, &memory, size, || memory.read_into(address, target))?;
        Ok(size)
    }

    /// Writes all of the data from a guest address on.
    fn write(&self, py: Python<'_>, address: u64, data: &Bound<'_, PyAny>) -> Result<usize, Error> {
        let memory = self.table.snapshot()?;
        let data = BorrowedBuffer::readable(data)?;
        let source = data.source();
        reaching(py, &memory, data.len(), || memory.write_from(address, source))?;
        Ok(data.len())
    }

    /// The bytes themselves, as an object with the buffer protocol.
    #[pyo3(signature = (address, size, *, writable = None))]
    fn view(
        &self,
        py: Python<'_>,
        address: u64,
        size: u64,
        writable: Option<bool>,
    ) -> Result<MemoryView, Error> {
        let lease = |access| match self.table.is_resident() {
            true => self.table.lease(address, size, access),
            false => py.detach(|| self.table.lease(address, size, access)),
        };
        let (lease, writable) = match writable {
            Some(true) => (lease(Access::Write)?, true),
            Some(false) => (lease(Access::Read)?, false),
            None => match lease(Access::Write) {
                Err(MemoryError::ReadOnly { .. }) => (lease(Access::Read)?, false),
                result => (result?, true),
            },
        };
        Ok(MemoryView::new(lease, writable))
    }

    /// The guest address of an address in the frontend's own address space.
    fn user_to_guest(&self, user_address: u64) -> Result<u64, Error> {
        let guest_address = self.table.snapshot()?.user_to_guest(user_address);
        Ok(guest_address.ok_or(MemoryError::NotUser { address: user_address })?)
    }

    /// Puts another table in the place of this one.
    fn replace(&self, py: Python<'_>, regions: &Bound<'_, PyAny>) -> Result<(), Error> {
        self.check_ours()?;
        if self.keeper == Keeper::Mapping {
            return Err(PyValueError::new_err("a mapping is what was mapped: make another one").into());
        }
        let old = self.table.replace(Self::table_of(regions)?)?;
        // Unmapping can take long.
        py.detach(|| drop(old));
        Ok(())
    }

    /// Lets go of the table.
    fn close(&self, py: Python<'_>) -> Result<(), Error> {
        self.check_ours()?;
        py.detach(|| self.table.close()).map_err(|live| {
            PyBufferError::new_err(format!("cannot close guest memory with {live} live views")).into()
        })
    }

    fn __enter__(slf: Bound<'_, Self>) -> Bound<'_, Self> {
        slf
    }

    #[pyo3(signature = (exception_type, _exception, _traceback, /))]
    fn __exit__(
        &self,
        py: Python<'_>,
        exception_type: Option<&Bound<'_, PyType>>,
        _exception: Option<&Bound<'_, PyAny>>,
        _traceback: Option<&Bound<'_, PyAny>>,
    ) -> Result<(), Error> {
        match exception_type {
            None => self.close(py),
            Some(_) => {
                self.check_ours()?;
                py.detach(|| self.table.abandon());
                Ok(())
            }
        }
    }

    fn __repr__(&self) -> String {
        match self.table.snapshot() {
            Ok(memory) => format!("<GuestMemory of {} regions>", memory.regions().len()),
            Err(error) => format!("<GuestMemory: {error}>"),
        }
    }
}
