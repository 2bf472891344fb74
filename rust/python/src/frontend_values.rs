//! Driver side, over a socket: what goes into the frontend's calls and comes out of them.

use std::os::fd::{AsRawFd, OwnedFd};

use pyo3::{
    prelude::*,
    types::{PyBytes, PyTuple},
};
use xenvirt_core::vhost_user::{Channel, Header, MemoryRegion, RequestName, XenMapFlags};

use crate::buffer::duplicate_fd;

/// A region of shared memory as a frontend describes it to the peer.
#[pyclass(frozen, module = "xenvirt._native")]
pub struct SharedRegion {
    pub(crate) region: MemoryRegion,
    pub(crate) fd: OwnedFd,
}

#[pymethods]
impl SharedRegion {
    #[new]
    #[pyo3(signature = (fd, guest_address, size, *, offset = 0, user_address = None, xen_flags = 0, xen_domain = 0))]
    fn new(
        fd: i32,
        guest_address: u64,
        size: u64,
        offset: u64,
        user_address: Option<u64>,
        xen_flags: u32,
        xen_domain: u32,
    ) -> PyResult<Self> {
        let region = MemoryRegion {
            guest_address,
            size,
            user_address: user_address.unwrap_or(guest_address),
            mmap_offset: offset,
            xen_flags: XenMapFlags::from_bits_retain(xen_flags),
            xen_domain,
        };
        Ok(Self { region, fd: duplicate_fd(fd)? })
    }

    #[getter]
    fn guest_address(&self) -> u64 {
        self.region.guest_address
    }
    #[getter]
    fn size(&self) -> u64 {
        self.region.size
    }
    #[getter]
    fn offset(&self) -> u64 {
        self.region.mmap_offset
    }
    #[getter]
    fn user_address(&self) -> u64 {
        self.region.user_address
    }
    #[getter]
    fn xen_flags(&self) -> u32 {
        self.region.xen_flags.bits()
    }
    #[getter]
    fn xen_domain(&self) -> u32 {
        self.region.xen_domain
    }

    fn __repr__(&self) -> String {
        format!("<SharedRegion {}>", self.region)
    }
}

/// A message as it came, from `Frontend.raw`.
#[pyclass(frozen, module = "xenvirt._native")]
pub struct RawMessage {
    pub(crate) header: Header,
    pub(crate) payload: Py<PyBytes>,
    pub(crate) fds: Vec<OwnedFd>,
}

#[pymethods]
impl RawMessage {
    #[getter]
    fn request(&self) -> u32 {
        self.header.request
    }
    #[getter]
    fn flags(&self) -> u32 {
        self.header.flags
    }
    #[getter]
    fn payload(&self, py: Python<'_>) -> Py<PyBytes> {
        self.payload.clone_ref(py)
    }
    #[getter]
    fn fds<'py>(&self, py: Python<'py>) -> PyResult<Bound<'py, PyTuple>> {
        PyTuple::new(py, self.fds.iter().map(AsRawFd::as_raw_fd))
    }

    fn __repr__(&self) -> String {
        let Header { request, flags, size } = self.header;
        let name = RequestName { channel: Channel::Main, number: request };
        format!("<RawMessage {name} flags {flags:#x}, {size} bytes, {} files>", self.fds.len())
    }
}
