//! virtio over MMIO, version 2 (virtio 1.3, section 4.2), as a state machine: registers in, [`Action`]s out.
//!
//! No I/O and no waiting: whoever traps the driver's accesses gives them to [`MmioDevice::read`] and [`MmioDevice::write`],
//! carries out what a write asks for, and only then lets the driver go on. So a driver never sees a reset that is not over.
//!
//! What a driver must not do has a defined outcome all the same: a control register is reached by aligned accesses of four bytes,
//! anything else reads 0 and writes nothing, and is counted.

mod device;
mod interrupt;
mod queue;
mod register;
mod saved;
#[cfg(test)]
mod tests;

pub use device::{Action, ConfigSpace, Identity, MmioDevice};
pub use interrupt::InterruptStatus;
pub use queue::QueueSetup;
pub use register::Register;
pub use saved::{RestoreError, SavedRegisters};

use bitflags::bitflags;

/// Bytes that a device takes in guest physical address space: the control registers, and up to 256 bytes of config space.
pub const REGION_LEN: u64 = 0x200;

/// Where the config space begins.
pub const CONFIG_OFFSET: u64 = 0x100;

bitflags! {
    /// How far a driver is with its device (virtio 1.3, section 2.1).
    #[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
    pub struct DeviceStatus: u32 {
        /// The guest has found the device.
        const ACKNOWLEDGE = 1;
        /// The guest has a driver for it.
        const DRIVER = 2;
        /// The driver is ready.
        const DRIVER_OK = 4;
        /// Features are agreed on.
        const FEATURES_OK = 8;
        /// The device cannot go on before it is reset. Only the device sets it.
        const NEEDS_RESET = 64;
        /// The driver has given up.
        const FAILED = 128;
    }
}
