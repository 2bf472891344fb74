//! Eventfds that the kernel serves for a device model: Linux's include/uapi/xen/privcmd.h, since 6.6 and 6.7. Xen's own copy
//! of that header does not have them.

use bytemuck::{Pod, Zeroable};

use super::ioctl;

/// `_IOC_WRITE`, which these two say and no other one of the device does.
const WRITE: u32 = 1 << 30;
/// `IOCTL_PRIVCMD_IRQFD`.
pub const IRQFD: u32 = WRITE | ioctl(b'P', 8, size_of::<IrqFd>());
/// `IOCTL_PRIVCMD_IOEVENTFD`.
pub const IOEVENTFD: u32 = WRITE | ioctl(b'P', 9, size_of::<IoEventFd>());
/// `PRIVCMD_IRQFD_FLAG_DEASSIGN`, `PRIVCMD_IOEVENTFD_FLAG_DEASSIGN`.
pub const DEASSIGN: u32 = 1;

/// `struct privcmd_irqfd`.
#[repr(C)]
#[derive(Clone, Copy, Debug, Zeroable, Pod)]
pub struct IrqFd {
    /// Address of the operation, which the kernel copies, and makes at each signal.
    pub operation: u64,
    /// Its size in bytes.
    pub size: u32,
    /// The eventfd.
    pub eventfd: u32,
    /// 0, or `DEASSIGN`.
    pub flags: u32,
    /// The domain.
    pub domain: u16,
    /// Zero.
    pub padding: [u8; 2],
}

/// `struct privcmd_ioeventfd`.
#[repr(C)]
#[derive(Clone, Copy, Debug, Zeroable, Pod)]
pub struct IoEventFd {
    /// Where the page of the IOREQ server is mapped here.
    pub page: u64,
    /// Address of our ports (u32), one for each vCPU.
    pub ports: u64,
    /// Guest physical address of the registers of a virtio-mmio device.
    pub address: u64,
    /// Bytes of a write to QueueNotify.
    pub address_len: u32,
    /// The eventfd.
    pub eventfd: u32,
    /// How many vCPUs.
    pub vcpus: u32,
    /// The queue whose number is written.
    pub queue: u32,
    /// 0, or `DEASSIGN`.
    pub flags: u32,
    /// The domain.
    pub domain: u16,
    /// Zero.
    pub padding: [u8; 2],
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::mem::offset_of;

    #[test]
    fn layouts_and_numbers_are_those_of_the_kernel() {
        assert_eq!((size_of::<IrqFd>(), IRQFD), (24, 0x4018_5008));
        assert_eq!(
            [
                offset_of!(IrqFd, size),
                offset_of!(IrqFd, eventfd),
                offset_of!(IrqFd, flags),
                offset_of!(IrqFd, domain)
            ],
            [8, 12, 16, 20]
        );
        assert_eq!((size_of::<IoEventFd>(), IOEVENTFD), (48, 0x4030_5009));
        assert_eq!(
            [
                offset_of!(IoEventFd, ports),
                offset_of!(IoEventFd, address),
                offset_of!(IoEventFd, address_len),
                offset_of!(IoEventFd, eventfd),
                offset_of!(IoEventFd, vcpus),
                offset_of!(IoEventFd, queue),
                offset_of!(IoEventFd, flags),
                offset_of!(IoEventFd, domain)
            ],
            [8, 16, 24, 28, 32, 36, 40, 44]
        );
    }
}
