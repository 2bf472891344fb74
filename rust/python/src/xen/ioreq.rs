//! The IOREQ server and its requests.

use std::{
    os::fd::{AsFd, AsRawFd},
    sync::{Mutex, PoisonError},
};

use pyo3::{exceptions::PyValueError, prelude::*, types::PyTuple};
use xenvirt_core::xen::{self, PageSource, PendingRequest, RequestData, RequestKind, ServerCalls};

use super::{
    model::{range_of, support_name},
    sim::hypervisor,
    waiting::{Closable, deadline, wait},
};
use crate::{buffer::duplicate_fd, errors::Error};

/// What a vCPU wants, and waits for.
#[pyclass(frozen, module = "xenvirt._native")]
pub struct IoRequest {
    request: xen::Request,
    /// None once it is answered.
    pending: Mutex<Option<PendingRequest>>,
}

fn data_address(data: RequestData) -> Option<u64> {
    match data {
        RequestData::Value(_) => None,
        RequestData::At(address) => Some(address),
    }
}

#[pymethods]
impl IoRequest {
    /// The vCPU.
    #[getter]
    fn vcpu(&self) -> u32 {
        self.request.vcpu
    }

    /// What it is about.
    #[getter]
    fn kind(&self) -> &'static str {
        match self.request.kind {
            RequestKind::Port => "port",
            RequestKind::Memory => "memory",
            RequestKind::Invalidate => "invalidate",
            RequestKind::Other(_) => "other",
            RequestKind::Malformed => "malformed",
        }
    }

    /// The address or port of the first access.
    #[getter]
    fn address(&self) -> u64 {
        self.request.address
    }

    /// Bytes of each access.
    #[getter]
    fn size(&self) -> u8 {
        self.request.size
    }

    /// How many accesses.
    #[getter]
    fn count(&self) -> u32 {
        self.request.count
    }

    /// Does it read?
    #[getter]
    fn is_read(&self) -> bool {
        self.request.is_read
    }

    /// Do addresses go down?
    #[getter]
    fn backwards(&self) -> bool {
        self.request.backwards
    }

    /// What is written, where it is not in guest memory.
    #[getter]
    fn value(&self) -> Option<u64> {
        match self.request.data {
            RequestData::Value(value) if !self.request.is_read => Some(value),
            _ => None,
        }
    }

    /// Where the values are, if in guest memory.
    #[getter]
    fn data_address(&self) -> Option<u64> {
        data_address(self.request.data)
    }

    /// The address of each access, and where its value is.
    fn accesses(&self) -> Vec<(u64, Option<u64>)> {
        self.request.accesses().map(|access| (access.address, data_address(access.data))).collect()
    }

    /// Answers it.
    #[pyo3(signature = (value = 0))]
    fn answer(&self, value: u64) -> Result<(), Error> {
        let pending = self.pending.lock().unwrap_or_else(PoisonError::into_inner).take();
        let pending = pending.ok_or_else(|| PyValueError::new_err("the request is answered already"))?;
        Ok(pending.answer(value)?)
    }

    fn __repr__(&self) -> String {
        let xen::Request { vcpu, address, size, count, is_read, .. } = self.request;
        let verb = if is_read { "reads" } else { "writes" };
        format!("<IoRequest vCPU {vcpu} {verb} {count} x {size} bytes, {} {address:#x}>", self.kind())
    }
}

/// It answers the accesses of a domain's vCPUs to addresses where no memory is.
#[pyclass(frozen, module = "xenvirt._native")]
pub struct IoreqServer(Closable<xen::IoreqServer>);

#[pymethods]
impl IoreqServer {
    #[new]
    #[pyo3(signature = (domid, *, page = "any", hypervisor = None))]
    fn new(
        py: Python<'_>,
        domid: u16,
        page: &str,
        hypervisor: Option<&Bound<'_, PyAny>>,
    ) -> Result<Self, Error> {
        let source = match page {
            "any" => PageSource::Any,
            "resource" => PageSource::Resource,
            "frame" => PageSource::Frame,
            _ => {
                let text = format!("page {page:?}: 'any', 'resource' or 'frame' is wanted");
                return Err(PyValueError::new_err(text).into());
            }
        };
        let calls = match self::hypervisor(hypervisor)? {
            Some(domain) => domain.server_calls()?,
            None => ServerCalls::open()?,
        };
        let server = py.detach(|| xen::IoreqServer::create(&calls, domid, source))?;
        Ok(Self(Closable::new("the IOREQ server", server)))
    }

    /// The domain.
    #[getter]
    fn domid(&self) -> Result<u16, Error> {
        Ok(self.0.get()?.domain())
    }

    /// Its number in the domain.
    #[getter]
    fn number(&self) -> Result<u16, Error> {
        Ok(self.0.get()?.id())
    }

    /// How many vCPUs it answers.
    #[getter]
    fn vcpus(&self) -> Result<usize, Error> {
        Ok(self.0.get()?.vcpus())
    }

    /// What the kernel does with eventfds.
    #[getter]
    fn eventfd_support(&self) -> Result<&'static str, Error> {
        Ok(support_name(self.0.get()?.eventfds()))
    }

    /// Addresses come here from now on.
    fn map_memory(&self, address: u64, size: u64) -> Result<(), Error> {
        Ok(self.0.get()?.map_range(&range_of(false, address, size)?)?)
    }

    /// No longer.
    fn unmap_memory(&self, address: u64, size: u64) -> Result<(), Error> {
        Ok(self.0.get()?.unmap_range(&range_of(false, address, size)?)?)
    }

    /// Ports come here from now on.
    fn map_ports(&self, port: u64, size: u64) -> Result<(), Error> {
        Ok(self.0.get()?.map_range(&range_of(true, port, size)?)?)
    }

    /// No longer.
    fn unmap_ports(&self, port: u64, size: u64) -> Result<(), Error> {
        Ok(self.0.get()?.unmap_range(&range_of(true, port, size)?)?)
    }

    /// The requests that are there, after waiting for one.
    #[pyo3(signature = (timeout = 0.0))]
    fn requests(&self, py: Python<'_>, timeout: Option<f64>) -> Result<Vec<IoRequest>, Error> {
        let (server, deadline) = (self.0.get()?, deadline(timeout)?);
        let mut requests = Vec::new();
        loop {
            server.take(&mut requests)?;
            if !requests.is_empty() || !wait(py, server.as_fd(), deadline)? {
                break;
            }
        }
        let made = requests
            .into_iter()
            .map(|pending| IoRequest { request: *pending.request(), pending: Mutex::new(Some(pending)) });
        Ok(made.collect())
    }

    /// Lets the kernel signal kicks of a queue.
    fn kick_in_kernel(&self, registers: u64, queue: u16, eventfd: &Bound<'_, PyAny>) -> Result<bool, Error> {
        let number: i32 = match eventfd.extract() {
            Ok(number) => number,
            Err(_) => eventfd.call_method0("fileno")?.extract()?,
        };
        let eventfd = duplicate_fd(number)?;
        Ok(self.0.get()?.kick_in_kernel(registers, queue, eventfd.as_fd())?)
    }

    /// No longer.
    fn kick_no_longer(&self, registers: u64, queue: u16) -> Result<(), Error> {
        Ok(self.0.get()?.kick_no_longer(registers, queue)?)
    }

    /// The descriptor of its event channels.
    fn fileno(&self) -> Result<i32, Error> {
        Ok(self.0.get()?.as_fd().as_raw_fd())
    }

    /// Ends it; whoever waits for it is answered.
    fn close(&self, py: Python<'_>) {
        if let Some(server) = self.0.close() {
            py.detach(|| server.close());
        }
    }

    fn __enter__(slf: Bound<'_, Self>) -> Bound<'_, Self> {
        slf
    }

    #[pyo3(signature = (*_exception))]
    fn __exit__(&self, py: Python<'_>, _exception: &Bound<'_, PyTuple>) {
        self.close(py);
    }
}
