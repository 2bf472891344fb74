//! The binary interface of Linux's Xen devices: structures and ioctl numbers, a file for each device.

pub mod dm_op;
pub mod eventfd;
pub mod evtchn;
pub mod gnttab;
#[cfg(test)]
mod headers;
pub mod ioreq;
pub mod privcmd;

/// Bytes of a Xen frame, on every machine (XEN_PAGE_SIZE): frames are of 4 KiB also where the kernel's pages are larger.
pub const FRAME: usize = 4096;

/// `_IOC(_IOC_NONE, device, number, size)`: what these devices' headers use, whatever the direction is.
const fn ioctl(device: u8, number: u8, size: usize) -> u32 {
    (size as u32) << 16 | (device as u32) << 8 | number as u32
}
