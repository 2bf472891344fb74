//! The interrupt of a device: the reason first, then the line.

use std::sync::Arc;

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
    /// We ask Xen.
    Call(DeviceModel, Interrupt),
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
            Way::None => {}
        }
    }

    /// In words, for the log.
    pub(super) fn describe(&self) -> &'static str {
        match self.way {
            Way::Kernel(_) => "by irqfd",
            Way::Call(..) => "by dm_op",
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
