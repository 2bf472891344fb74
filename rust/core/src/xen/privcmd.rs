//! /dev/xen/privcmd: an address range of the device, which an ioctl then fills with another domain's frames.
//!
//! It takes two calls because the range must exist before frames are put into it: it carries the kernel's own operations
//! (which unmap the frames when it goes), the flags that keep it from being copied, grown or dumped, and on an
//! auto-translated dom0 the pages that stand for the frames. And one `mmap` has no room for a list of frames, nor for an
//! error for each.
//!
//! # Safety
//! Each ioctl gets pointers to memory that lives across the call and is as long as the structure says. Ranges are
//! handed out with their length, and the caller makes a `Mapping` of them at once.
#![allow(unsafe_code)]

use std::{
    fmt,
    os::fd::{AsFd, AsRawFd, BorrowedFd, OwnedFd},
    ptr::{self, NonNull},
};

use rustix::{
    fs::OFlags,
    io::Errno,
    mm::{MapFlags, ProtFlags, mmap},
};

use super::abi::{
    FRAME,
    privcmd::{MMAP_RESOURCE, MMAPBATCH_V2, MmapBatchV2, MmapResource, RESTRICT},
};
use super::open::{OpenError, open_device};

/// Memory of a domain that is not its RAM (`XENMEM_resource_*`, xen/include/public/memory.h).
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Resource {
    /// The pages of an IOREQ server; `id` is the server, frame 0 the buffered page, frame 1 the synchronous one.
    IoreqServer,
    /// The grant table; `id` 0 is the shared frames, 1 the status frames.
    GrantTable,
    /// The buffer of processor trace; `id` is the vCPU.
    VmTrace,
}

impl Resource {
    fn number(self) -> u32 {
        match self {
            Self::IoreqServer => 0,
            Self::GrantTable => 1,
            Self::VmTrace => 2,
        }
    }
}

/// The calls by which foreign memory is mapped: the kernel's, or those of a simulated hypervisor.
pub trait ForeignCalls: fmt::Debug + Send + Sync {
    /// An address range for `frames` frames that holds nothing yet.
    fn reserve(&self, frames: usize, writable: bool) -> Result<NonNull<u8>, Errno>;

    /// Makes such a range in the place of what is mapped at an address, whose pages are the caller's to give up. On an
    /// error what was there is still there.
    ///
    /// # Safety
    /// `at` is aligned to a page, the range belongs to the caller, and nobody holds a pointer into it.
    unsafe fn reserve_at(&self, at: NonNull<u8>, frames: usize, writable: bool) -> Result<(), Errno>;

    /// Puts frames of a domain into a range, from `at` on. `errors` gets 0 or a negative errno for each; the call as a
    /// whole succeeds also where single frames failed, but for ENOENT, which says that one is paged out.
    fn map_frames(
        &self,
        domain: u16,
        at: NonNull<u8>,
        frames: &[u64],
        errors: &mut [i32],
    ) -> Result<(), Errno>;

    /// Puts frames of a resource into a range, from `at` on.
    fn map_resource(
        &self,
        domain: u16,
        at: NonNull<u8>,
        resource: Resource,
        id: u32,
        first: u32,
        frames: u64,
    ) -> Result<(), Errno>;

    /// How many frames a resource has.
    fn resource_size(&self, domain: u16, resource: Resource, id: u32) -> Result<u64, Errno>;

    /// From now on only this domain can be mapped by this device, and no hypercall be made. It cannot be undone.
    fn restrict(&self, domain: u16) -> Result<(), Errno>;
}

/// The device.
#[derive(Debug)]
pub struct Privcmd {
    device: OwnedFd,
}

impl Privcmd {
    /// Opens /dev/xen/privcmd.
    ///
    /// # Errors
    /// ENOENT outside of a Xen domain that has it, EACCES without the permission.
    pub fn open() -> Result<Self, OpenError> {
        let device = open_device("/dev/xen/privcmd", OFlags::empty())?;
        Ok(Self { device })
    }

    /// The device as somebody else opened it, and perhaps restricted it, and handed it to us over a socket.
    pub fn from_fd(device: OwnedFd) -> Self {
        Self { device }
    }

    pub(super) fn ioctl<T>(&self, number: u32, argument: *mut T) -> Result<libc::c_int, Errno> {
        // SAFETY: each caller passes a pointer to the structure that belongs to the number, whose own pointers hold
        // across the call.
        let result =
            unsafe { libc::ioctl(self.device.as_raw_fd(), libc::c_ulong::from(number) as _, argument) };
        if result < 0 {
            Err(Errno::from_io_error(&std::io::Error::last_os_error()).unwrap_or(Errno::IO))
        } else {
            Ok(result)
        }
    }
}

fn protection(writable: bool) -> ProtFlags {
    if writable { ProtFlags::READ | ProtFlags::WRITE } else { ProtFlags::READ }
}

impl AsFd for Privcmd {
    fn as_fd(&self) -> BorrowedFd<'_> {
        self.device.as_fd()
    }
}

impl ForeignCalls for Privcmd {
    fn reserve(&self, frames: usize, writable: bool) -> Result<NonNull<u8>, Errno> {
        let len = frames.checked_mul(FRAME).ok_or(Errno::NOMEM)?;
        // SAFETY: the kernel chooses the address, so that no mapping of ours is replaced.
        let base =
            unsafe { mmap(ptr::null_mut(), len, protection(writable), MapFlags::SHARED, &self.device, 0) }?;
        NonNull::new(base.cast()).ok_or(Errno::FAULT)
    }

    unsafe fn reserve_at(&self, at: NonNull<u8>, frames: usize, writable: bool) -> Result<(), Errno> {
        let len = frames.checked_mul(FRAME).ok_or(Errno::NOMEM)?;
        let (at, flags) = (at.as_ptr().cast(), MapFlags::SHARED | MapFlags::FIXED);
        // SAFETY: the caller gives the range up. The kernel refuses before it takes away what stands there.
        unsafe { mmap(at, len, protection(writable), flags, &self.device, 0) }.map(drop)
    }

    fn map_frames(
        &self,
        domain: u16,
        at: NonNull<u8>,
        frames: &[u64],
        errors: &mut [i32],
    ) -> Result<(), Errno> {
        let num = u32::try_from(frames.len()).map_err(|_| Errno::INVAL)?;
        if errors.len() != frames.len() {
            return Err(Errno::INVAL);
        }
        let mut request = MmapBatchV2 {
            num,
            domain,
            padding: 0,
            address: at.as_ptr() as u64,
            frames: frames.as_ptr() as u64,
            errors: errors.as_mut_ptr() as u64,
        };
        self.ioctl(MMAPBATCH_V2, &raw mut request).map(drop)
    }

    fn map_resource(
        &self,
        domain: u16,
        at: NonNull<u8>,
        resource: Resource,
        id: u32,
        first: u32,
        frames: u64,
    ) -> Result<(), Errno> {
        let (kind, address) = (resource.number(), at.as_ptr() as u64);
        let mut request = MmapResource { domain, padding: 0, kind, id, index: first, num: frames, address };
        self.ioctl(MMAP_RESOURCE, &raw mut request).map(drop)
    }

    fn resource_size(&self, domain: u16, resource: Resource, id: u32) -> Result<u64, Errno> {
        let mut request =
            MmapResource { domain, padding: 0, kind: resource.number(), id, index: 0, num: 0, address: 0 };
        self.ioctl(MMAP_RESOURCE, &raw mut request)?;
        Ok(request.num)
    }

    fn restrict(&self, domain: u16) -> Result<(), Errno> {
        let mut domain = domain;
        self.ioctl(RESTRICT, &raw mut domain).map(drop)
    }
}
