//! A guest's bus: what the devices of a guest in this process share.

use std::{
    sync::{Arc, Mutex, PoisonError},
    time::Duration,
};

use pyo3::{exceptions::PyValueError, prelude::*};
use xenvirt_core::{
    xen::{Interrupt, sim::Kind},
    xen_guest::{self, BusOptions, Place, Reach},
};

use super::{attached::address_ranges, sim::hypervisor};
use crate::errors::Error;

/// The IOREQ server of a guest, and its memory.
#[pyclass(frozen, module = "xenvirt._native")]
pub struct GuestBus {
    bus: Mutex<Option<Arc<xen_guest::GuestBus>>>,
    /// Is the guest an Arm one?
    arm: bool,
}

impl GuestBus {
    /// The core's.
    pub fn get(&self) -> Result<Arc<xen_guest::GuestBus>, Error> {
        let bus = self.bus.lock().unwrap_or_else(PoisonError::into_inner).clone();
        bus.ok_or_else(|| PyValueError::new_err("the guest's bus is closed").into())
    }
}

#[pymethods]
impl GuestBus {
    #[new]
    #[pyo3(signature = (domid, ranges, *, limit = None, hypervisor = None))]
    fn new(
        py: Python<'_>,
        domid: u16,
        ranges: &Bound<'_, PyAny>,
        limit: Option<u64>,
        hypervisor: Option<&Bound<'_, PyAny>>,
    ) -> Result<Self, Error> {
        let simulated = self::hypervisor(hypervisor)?;
        let limit = limit.unwrap_or(u64::MAX);
        let options = BusOptions { ranges: address_ranges(ranges)?, limit, patience: Duration::from_secs(5) };
        let bus = py.detach(|| xen_guest::GuestBus::of(domid, &options, simulated.as_ref()))?;
        let arm = simulated.map_or(cfg!(target_arch = "aarch64"), |own| own.hypervisor().kind() == Kind::Arm);
        Ok(Self { bus: Mutex::new(Some(bus)), arm })
    }

    /// How many vCPUs the guest has.
    #[getter]
    fn vcpus(&self) -> Result<usize, Error> {
        Ok(self.get()?.server().vcpus())
    }

    /// The number of its IOREQ server.
    #[getter]
    fn server(&self) -> Result<u16, Error> {
        Ok(self.get()?.server().id())
    }

    /// Ends here, without the guest's noticing.
    fn leave(&self, py: Python<'_>) -> Result<(), Error> {
        let bus = self.get()?;
        py.detach(|| bus.leave());
        Ok(())
    }

    /// Answers what waits for a server that was left, and ends that.
    fn take_over(&self, py: Python<'_>, server: u16) -> Result<usize, Error> {
        let bus = self.get()?;
        Ok(py.detach(|| bus.take_over(server))?)
    }

    /// Somebody knows that the guest is gone.
    fn guest_is_gone(&self, py: Python<'_>) -> Result<(), Error> {
        let bus = self.get()?;
        py.detach(|| bus.guest_is_gone());
        Ok(())
    }

    /// Lets go of it.
    fn close(&self, py: Python<'_>) {
        let bus = self.bus.lock().unwrap_or_else(PoisonError::into_inner).take();
        py.detach(|| drop(bus));
    }
}

/// Where a device is, as Python says it.
pub fn place(
    bus: &GuestBus,
    device_id: u32,
    base: u64,
    interrupt: Option<(String, u32)>,
    reach: &str,
    kernel_kicks: bool,
) -> Result<Place, Error> {
    let reach = match reach {
        "any" => Reach::Any,
        "foreign" => Reach::Foreign,
        "grants" => Reach::Grants,
        _ => {
            let text = format!("memory {reach:?}: 'any', 'foreign' or 'grants' is wanted");
            return Err(PyValueError::new_err(text).into());
        }
    };
    let interrupt = interrupt.map(|(kind, number)| interrupt_of(bus, &kind, number)).transpose()?;
    Ok(Place { base, interrupt, device_id, reach, kernel_kicks })
}

/// "spi", as an Arm guest's GIC counts, or "gsi", an input of an HVM guest's I/O APIC.
fn interrupt_of(bus: &GuestBus, kind: &str, number: u32) -> Result<Interrupt, Error> {
    let text = match (kind, Interrupt::gsi(number)) {
        ("spi", _) if bus.arm => return Ok(Interrupt::Spi(number)),
        ("gsi", Some(interrupt)) if !bus.arm => return Ok(interrupt),
        ("gsi", None) => format!("irq={number}: an input of the guest's I/O APIC is wanted, 16 to 47"),
        ("spi", _) => {
            format!("irq={number}: an SPI can be raised in an Arm guest only; serve another without")
        }
        _ => format!("interrupt {kind:?} {number}: 'spi' is for Arm guests, 'gsi' for HVM guests of x86"),
    };
    Err(PyValueError::new_err(text).into())
}
