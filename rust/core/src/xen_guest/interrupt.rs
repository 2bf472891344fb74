//! The interrupt of a device: the reason first, then the line.

use std::sync::{Arc, Mutex, PoisonError};

use crate::{
    event_loop::signal,
    mmio::InterruptStatus,
    ring::Caller,
    xen::{CallError, DeviceModel, Interrupt, InterruptFd, IoreqServer},
};
use std::os::fd::AsFd;

/// How a guest is interrupted for one device.
#[derive(Debug)]
pub(super) struct InterruptLine {
    status: Arc<InterruptStatus>,
    way: Way,
}

#[derive(Debug)]
enum Way {
    /// The kernel raises it when the eventfd is signalled.
    Kernel(InterruptFd),
    /// We ask Xen, which takes it by its edge.
    Call(DeviceModel, Interrupt),
    /// We ask Xen, which takes it by its level: asserted as long as there is a reason. The lock keeps what Xen was told last.
    Level(DeviceModel, Interrupt, Mutex<bool>),
    /// The guest has no interrupt that could be raised from outside: it polls.
    None,
}

impl InterruptLine {
    pub(super) fn new(
        status: &Arc<InterruptStatus>,
        server: &IoreqServer,
        interrupt: Option<Interrupt>,
    ) -> Result<Self, CallError> {
        let way = match interrupt {
            None => Way::None,
            Some(interrupt @ Interrupt::Intx { .. }) => {
                let model = server.model().clone();
                // Whoever was here before may have left it asserted.
                model.set_interrupt(interrupt, false)?;
                Way::Level(model, interrupt, Mutex::new(false))
            }
            Some(interrupt) => {
                let fd = server.interrupt_fd(interrupt)?;
                if fd.in_kernel() { Way::Kernel(fd) } else { Way::Call(server.model().clone(), interrupt) }
            }
        };
        Ok(Self { status: Arc::clone(status), way })
    }

    /// Interrupts; the reason is in the status already.
    pub(super) fn raise(&self) {
        match &self.way {
            Way::Kernel(fd) => signal(fd.as_fd()),
            // It fails when the domain is gone, and then nobody waits for it. The level stays: it is taken by its edge.
            Way::Call(model, interrupt) => drop(model.set_interrupt(*interrupt, true)),
            Way::Level(..) => self.settle(),
            Way::None => {}
        }
    }

    /// The reasons may have changed: a level is as they say. Whoever changes them calls it afterwards; the last one sees all.
    pub(super) fn settle(&self) {
        let Way::Level(model, interrupt, told) = &self.way else { return };
        let mut told = told.lock().unwrap_or_else(PoisonError::into_inner);
        let wanted = self.status.value() != 0;
        // It fails when the domain is gone, and then nobody waits for it.
        if *told != wanted && model.set_interrupt(*interrupt, wanted).is_ok() {
            *told = wanted;
        }
    }

    /// The interrupt, where it is taken by its level.
    pub(super) fn level(&self) -> Option<Interrupt> {
        match &self.way {
            Way::Level(_, interrupt, _) => Some(*interrupt),
            _ => None,
        }
    }

    /// Nothing is to be dealt with any more.
    pub(super) fn clear(&self) {
        self.status.clear();
        self.settle();
    }

    /// In words, for the log.
    pub(super) fn describe(&self) -> &'static str {
        match self.way {
            Way::Kernel(_) => "by irqfd",
            Way::Call(..) => "by dm_op",
            Way::Level(..) => "by dm_op, as a level",
            Way::None => "none, the guest polls",
        }
    }
}

impl Caller for InterruptLine {
    fn call(&self) {
        self.status.add_used_buffer();
        self.raise();
    }
}
