//! /dev/xen/evtchn: Linux's include/uapi/xen/evtchn.h. A port is an unsigned int; `read` gives those that are pending, and
//! `write` unmasks.

use bytemuck::{Pod, Zeroable};

use super::ioctl;

/// `IOCTL_EVTCHN_BIND_VIRQ`, with the number of a virtual interrupt (u32).
pub const BIND_VIRQ: u32 = ioctl(b'E', 0, size_of::<u32>());
/// `IOCTL_EVTCHN_BIND_INTERDOMAIN`.
pub const BIND_INTERDOMAIN: u32 = ioctl(b'E', 1, size_of::<BindInterdomain>());
/// `IOCTL_EVTCHN_BIND_UNBOUND_PORT`, with the domain that may bind to it (u32).
pub const BIND_UNBOUND_PORT: u32 = ioctl(b'E', 2, size_of::<u32>());
/// `IOCTL_EVTCHN_UNBIND`, with a port.
pub const UNBIND: u32 = ioctl(b'E', 3, size_of::<u32>());
/// `IOCTL_EVTCHN_NOTIFY`, with a port.
pub const NOTIFY: u32 = ioctl(b'E', 4, size_of::<u32>());
/// `IOCTL_EVTCHN_RESTRICT_DOMID`, with a domain (u16).
pub const RESTRICT: u32 = ioctl(b'E', 6, size_of::<u16>());

/// `struct ioctl_evtchn_bind_interdomain`.
#[repr(C)]
#[derive(Clone, Copy, Debug, Zeroable, Pod)]
pub struct BindInterdomain {
    /// The domain at the other end.
    pub remote_domain: u32,
    /// Its port.
    pub remote_port: u32,
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::mem::offset_of;

    #[test]
    fn layouts_and_numbers_are_those_of_the_kernel() {
        assert_eq!((size_of::<BindInterdomain>(), offset_of!(BindInterdomain, remote_port)), (8, 4));
        assert_eq!(
            [BIND_VIRQ, BIND_INTERDOMAIN, BIND_UNBOUND_PORT, UNBIND, NOTIFY, RESTRICT],
            [0x0004_4500, 0x0008_4501, 0x0004_4502, 0x0004_4503, 0x0004_4504, 0x0002_4506]
        );
    }
}
