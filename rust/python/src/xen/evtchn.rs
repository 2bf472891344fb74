//! Event channels.

use std::{
    os::fd::{AsFd, AsRawFd},
    sync::Arc,
};

use pyo3::{prelude::*, types::PyTuple};
use xenvirt_core::xen;

use super::{
    sim::hypervisor,
    waiting::{Closable, deadline, wait},
};
use crate::errors::Error;

/// /dev/xen/evtchn.
#[pyclass(frozen, module = "xenvirt._native")]
pub struct EventChannels(Closable<xen::EventChannels>);

#[pymethods]
impl EventChannels {
    #[new]
    #[pyo3(signature = (*, hypervisor = None))]
    fn new(hypervisor: Option<&Bound<'_, PyAny>>) -> Result<Self, Error> {
        let channels = match self::hypervisor(hypervisor)? {
            Some(domain) => xen::EventChannels::new(Arc::new(domain.evtchn()?)),
            None => xen::EventChannels::open()?,
        };
        Ok(Self(Closable::new("the event channel device", channels)))
    }

    /// Binds to a port that another domain has made for us.
    fn bind_interdomain(&self, domid: u16, port: u32) -> Result<u32, Error> {
        Ok(self.0.get()?.bind_interdomain(domid, port)?)
    }

    /// Makes a port to which a domain may bind.
    fn bind_unbound(&self, domid: u16) -> Result<u32, Error> {
        Ok(self.0.get()?.bind_unbound(domid)?)
    }

    /// Makes a port of a virtual interrupt.
    fn bind_virq(&self, virq: u32) -> Result<u32, Error> {
        Ok(self.0.get()?.bind_virq(virq)?)
    }

    /// Closes a port.
    fn unbind(&self, port: u32) -> Result<(), Error> {
        Ok(self.0.get()?.unbind(port)?)
    }

    /// Wakes the other end of a port.
    fn notify(&self, port: u32) -> Result<(), Error> {
        Ok(self.0.get()?.notify(port)?)
    }

    /// Lets a port be pending again.
    fn unmask(&self, port: u32) -> Result<(), Error> {
        Ok(self.0.get()?.unmask(port)?)
    }

    /// The ports that are pending, after waiting for one.
    #[pyo3(signature = (timeout = 0.0))]
    fn pending(&self, py: Python<'_>, timeout: Option<f64>) -> Result<Vec<u32>, Error> {
        let (channels, deadline) = (self.0.get()?, deadline(timeout)?);
        let mut ports = Vec::new();
        loop {
            channels.pending(&mut ports)?;
            if !ports.is_empty() || !wait(py, channels.as_fd(), deadline)? {
                return Ok(ports);
            }
        }
    }

    /// Gives up every other domain, for ever.
    fn restrict(&self, domid: u16) -> Result<(), Error> {
        Ok(self.0.get()?.restrict(domid)?)
    }

    /// The device's descriptor.
    fn fileno(&self) -> Result<i32, Error> {
        Ok(self.0.get()?.as_fd().as_raw_fd())
    }

    /// Closes the device and all that it has bound.
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
