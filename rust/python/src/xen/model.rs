//! Device model operations, and eventfds for interrupts.

use std::{
    os::fd::{AsFd, AsRawFd},
    sync::Arc,
};

use pyo3::{exceptions::PyValueError, prelude::*, types::PyTuple};
use xenvirt_core::xen::{self, DeviceModelCalls, EventFdCalls, EventFdSupport, Interrupt, IoRange, Privcmd};

use super::{sim::hypervisor, waiting::Closable};
use crate::errors::Error;

/// What a device model does to one domain.
#[pyclass(frozen, module = "xenvirt._native")]
pub struct DeviceModel(Closable<Model>);

struct Model {
    model: xen::DeviceModel,
    eventfds: Arc<dyn EventFdCalls>,
}

/// The range of `size` addresses or ports from a first one on.
pub fn range_of(ports: bool, first: u64, size: u64) -> Result<IoRange, Error> {
    let last = size.checked_sub(1).and_then(|more| first.checked_add(more));
    let range = match (last, ports) {
        (Some(last), false) => Some(IoRange::Memory(first..=last)),
        (Some(last), true) => {
            let (first, last) = (u16::try_from(first).ok(), u16::try_from(last).ok());
            first.zip(last).map(|(first, last)| IoRange::Ports(first..=last))
        }
        (None, _) => None,
    };
    range.ok_or_else(|| {
        let (what, end) = if ports { ("ports", "2^16") } else { ("addresses", "2^64") };
        let text =
            format!("{size:#x} {what} from {first:#x} on: at least one is wanted, and all below {end}");
        PyValueError::new_err(text).into()
    })
}

/// The stable name of what the kernel does.
pub fn support_name(support: EventFdSupport) -> &'static str {
    match support {
        EventFdSupport::Both => "both",
        EventFdSupport::InterruptsOnly => "interrupts",
        EventFdSupport::Nothing => "nothing",
    }
}

#[pymethods]
impl DeviceModel {
    #[new]
    #[pyo3(signature = (domid, *, hypervisor = None))]
    fn new(domid: u16, hypervisor: Option<&Bound<'_, PyAny>>) -> Result<Self, Error> {
        let (calls, eventfds): (Arc<dyn DeviceModelCalls>, Arc<dyn EventFdCalls>) =
            match self::hypervisor(hypervisor)? {
                Some(domain) => {
                    let device = Arc::new(domain.privcmd());
                    (device.clone(), device)
                }
                None => {
                    let device = Arc::new(Privcmd::open()?);
                    (device.clone(), device)
                }
            };
        let model = xen::DeviceModel::new(calls, domid);
        Ok(Self(Closable::new("the device model", Model { model, eventfds })))
    }

    /// The domain.
    #[getter]
    fn domid(&self) -> Result<u16, Error> {
        Ok(self.0.get()?.model.domain())
    }

    /// How many vCPUs it has.
    fn vcpus(&self) -> Result<u32, Error> {
        Ok(self.0.get()?.model.vcpus()?)
    }

    /// Makes an IOREQ server, disabled.
    fn create_ioreq_server(&self) -> Result<u16, Error> {
        Ok(self.0.get()?.model.create_ioreq_server()?)
    }

    /// Ends one.
    fn destroy_ioreq_server(&self, server: u16) -> Result<(), Error> {
        Ok(self.0.get()?.model.destroy_ioreq_server(server)?)
    }

    /// Lets one be given requests, or no longer.
    fn set_ioreq_server_state(&self, server: u16, enabled: bool) -> Result<(), Error> {
        Ok(self.0.get()?.model.set_ioreq_server_state(server, enabled)?)
    }

    /// Puts its page into the domain's memory.
    fn ioreq_server_frame(&self, server: u16) -> Result<u64, Error> {
        Ok(self.0.get()?.model.ioreq_server_frame(server)?)
    }

    /// Gives it addresses.
    fn map_memory(&self, server: u16, address: u64, size: u64) -> Result<(), Error> {
        Ok(self.0.get()?.model.map_range(server, &range_of(false, address, size)?)?)
    }

    /// Takes addresses from it.
    fn unmap_memory(&self, server: u16, address: u64, size: u64) -> Result<(), Error> {
        Ok(self.0.get()?.model.unmap_range(server, &range_of(false, address, size)?)?)
    }

    /// Gives it ports.
    fn map_ports(&self, server: u16, port: u64, size: u64) -> Result<(), Error> {
        Ok(self.0.get()?.model.map_range(server, &range_of(true, port, size)?)?)
    }

    /// Takes ports from it.
    fn unmap_ports(&self, server: u16, port: u64, size: u64) -> Result<(), Error> {
        Ok(self.0.get()?.model.unmap_range(server, &range_of(true, port, size)?)?)
    }

    /// Raises a shared peripheral interrupt, or takes it back.
    fn set_irq_level(&self, irq: u32, asserted: bool) -> Result<(), Error> {
        Ok(self.0.get()?.model.set_interrupt(Interrupt::Spi(irq), asserted)?)
    }

    /// Raises an ISA interrupt, or takes it back.
    #[pyo3(signature = (irq, asserted, *, hvm))]
    fn set_isa_irq_level(&self, irq: u8, asserted: bool, hvm: bool) -> Result<(), Error> {
        let model = self.0.get()?;
        if !hvm {
            let text = format!(
                "ISA interrupt {irq} of domain {}: only an HVM domain has those, and for a PVH one Xen 4.17 panics",
                model.model.domain()
            );
            return Err(PyValueError::new_err(text).into());
        }
        Ok(model.model.set_interrupt(Interrupt::Isa(irq), asserted)?)
    }

    /// Sends a message.
    fn inject_msi(&self, address: u64, data: u32) -> Result<(), Error> {
        Ok(self.0.get()?.model.set_interrupt(Interrupt::Msi { address, data }, true)?)
    }

    /// What the kernel does with eventfds.
    #[getter]
    fn eventfd_support(&self) -> Result<&'static str, Error> {
        Ok(support_name(self.0.get()?.eventfds.support()))
    }

    /// An eventfd for a shared peripheral interrupt.
    fn irq_fd(&self, irq: u32) -> Result<InterruptFd, Error> {
        let model = self.0.get()?;
        InterruptFd::new(&model, Interrupt::Spi(irq))
    }

    /// An eventfd for a message.
    fn msi_fd(&self, address: u64, data: u32) -> Result<InterruptFd, Error> {
        let model = self.0.get()?;
        InterruptFd::new(&model, Interrupt::Msi { address, data })
    }

    /// Closes the device.
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

/// An eventfd that raises an interrupt of a domain.
#[pyclass(frozen, module = "xenvirt._native")]
pub struct InterruptFd(Closable<xen::InterruptFd>);

impl InterruptFd {
    fn new(model: &Model, interrupt: Interrupt) -> Result<Self, Error> {
        let made = xen::InterruptFd::new(&model.eventfds, &model.model, interrupt)?;
        Ok(Self(Closable::new("the eventfd", made)))
    }
}

#[pymethods]
impl InterruptFd {
    /// Does the kernel raise it?
    #[getter]
    fn in_kernel(&self) -> Result<bool, Error> {
        Ok(self.0.get()?.in_kernel())
    }

    /// Raises the interrupt where it is ours to raise.
    fn deliver(&self) -> Result<(), Error> {
        Ok(self.0.get()?.deliver()?)
    }

    /// The eventfd.
    fn fileno(&self) -> Result<i32, Error> {
        Ok(self.0.get()?.as_fd().as_raw_fd())
    }

    /// Takes it back.
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
