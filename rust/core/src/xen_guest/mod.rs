//! A Xen guest as a transport: virtio-mmio registers that Xen traps, interrupts by Xen, memory by foreign mappings or grants.
//!
//! A [`GuestBus`] is what the devices of a guest in this process share: one IOREQ server, a thread that answers its requests, and the
//! guest's memory. Each device has a `Slot` there, its registers; an [`XenGuest`] is the transport of one device.
//!
//! The way of an access: Xen -> the bus's thread -> the slot's registers. Reads, kicks and what only changes a register are answered
//! at once. What the device has to see (a reset, the driver's being ready) goes to the device's own thread, and the vCPU
//! waits until the device has dealt with it. So a slow device keeps the vCPU that speaks to it, and no other.
//!
//! A device with a [`Record`] outlives its process: the next one restores the registers, goes on where the used rings stand, and
//! answers what waited meanwhile ([`GuestBus::take_over`]). The guest notices no more than the time it took.

mod bus;
mod interrupt;
mod record;
mod slot;
#[cfg(test)]
mod tests;
mod transport;

pub use bus::{BusOptions, GuestBus, GuestCalls, Reach};
pub use record::Record;
pub use transport::{Place, XenGuest};

use rustix::io::Errno;

use crate::{
    memory::MemoryError,
    xen::{CallError, Interrupt, OpenError, ServerError},
};

/// Why a device cannot be served to a guest.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum GuestError {
    /// The IOREQ server could not be made.
    #[error(transparent)]
    Server(#[from] ServerError),
    /// A device of Xen's could not be opened.
    #[error(transparent)]
    Open(#[from] OpenError),
    /// A call was refused.
    #[error(transparent)]
    Call(#[from] CallError),
    /// The guest's memory cannot be attached to.
    #[error("the memory of domain {domain}: {source}")]
    Memory {
        /// The guest.
        domain: u16,
        /// Why.
        source: MemoryError,
    },
    /// Another device of this process is there.
    #[error("a device is served at {0:#x} already")]
    Occupied(u64),
    /// Another device of this process has this level: whoever took it back would do so for both.
    #[error("{0} is the interrupt of another device already")]
    SharedLevel(Interrupt),
    /// The registers do not fit.
    #[error(
        "{0:#x} cannot be the address of a device's registers: it must be a multiple of 4, and 512 bytes fit behind it"
    )]
    Address(u64),
    /// An interface of the kernel is missing.
    #[error("{what}: {errno}")]
    System {
        /// What was tried.
        what: &'static str,
        /// What the kernel says.
        errno: Errno,
    },
}
