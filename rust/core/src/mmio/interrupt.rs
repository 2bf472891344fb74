//! Why a device interrupts: the one register that the data path writes too.

use std::sync::atomic::{AtomicU32, Ordering};

use virtio_bindings::virtio_mmio::{VIRTIO_MMIO_INT_CONFIG, VIRTIO_MMIO_INT_VRING};

/// InterruptStatus (virtio 1.3, section 4.2.2). Reasons are added by any thread, before the interrupt is raised, and taken back by
/// the driver's InterruptACK.
#[derive(Debug, Default)]
pub struct InterruptStatus(AtomicU32);

impl InterruptStatus {
    /// The device has used a buffer of a queue.
    pub fn add_used_buffer(&self) {
        // Release: what the driver is told of was written before. Its read comes through Xen, which orders as well.
        self.0.fetch_or(VIRTIO_MMIO_INT_VRING, Ordering::Release);
    }

    /// The config space has changed, or the device needs a reset.
    pub fn add_config_change(&self) {
        self.0.fetch_or(VIRTIO_MMIO_INT_CONFIG, Ordering::Release);
    }

    /// The register as the driver reads it.
    pub fn value(&self) -> u32 {
        self.0.load(Ordering::Acquire)
    }

    /// The driver has dealt with these reasons.
    pub fn acknowledge(&self, reasons: u32) {
        self.0.fetch_and(!reasons, Ordering::AcqRel);
    }

    /// A reset: nothing is to be dealt with.
    pub fn clear(&self) {
        self.0.store(0, Ordering::Release);
    }
}
