//! /dev/xen/gntdev: pages that other domains granted, mapped and copied.
//!
//! A list of references is announced by an ioctl, which looks at none of them; `mmap` asks the hypervisor for all at
//! once, and says EINVAL if one is bad, not which. What was announced is taken back by another ioctl, whether it
//! was mapped or not; the pages are given back when that and `munmap` have both been done.
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
    mm::{Advice, MapFlags, ProtFlags, madvise, mmap, munmap},
};

use super::abi::{
    FRAME,
    gnttab::{
        CopySegment, GRANT_COPY, GrantCopy, GrantRef, MAP_GRANT_REF, MapGrantRef, NOTIFY_CLEAR_BYTE,
        NOTIFY_SEND_EVENT, SET_UNMAP_NOTIFY, UNMAP_GRANT_REF, UnmapGrantRef, UnmapNotify as RawNotify,
    },
};
use super::open::{OpenError, open_device};

/// A page that a domain granted.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub struct Grant {
    /// The domain.
    pub domain: u16,
    /// The reference, in that domain's table.
    pub reference: u32,
}

/// What is to happen when pages are unmapped, also when the program dies: how the other side learns of it.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct UnmapNotify {
    /// A byte of the pages, by its offset, that becomes 0.
    pub clear_byte: Option<u64>,
    /// An event channel that is notified, by its port, which /dev/xen/evtchn has bound in this process.
    pub port: Option<u32>,
}

impl UnmapNotify {
    /// The structure for pages that begin at this offset of the device; None where nothing is to happen.
    pub(super) fn raw(self, index: u64) -> Result<Option<RawNotify>, Errno> {
        let clear = if self.clear_byte.is_some() { NOTIFY_CLEAR_BYTE } else { 0 };
        let send = if self.port.is_some() { NOTIFY_SEND_EVENT } else { 0 };
        let index = index.checked_add(self.clear_byte.unwrap_or(0)).ok_or(Errno::INVAL)?;
        let raw = RawNotify { index, action: clear | send, port: self.port.unwrap_or(0) };
        Ok((raw.action != 0).then_some(raw))
    }
}

/// The calls by which grants are mapped: the kernel's, or those of a simulated hypervisor.
pub trait GrantCalls: fmt::Debug + Send + Sync {
    /// Is this a domain of which no grant must be mapped, because that takes the page away from who granted it? See
    /// [`Gntdev`].
    fn must_not_map(&self, _domain: u16) -> bool {
        false
    }

    /// Announces grants, and gives the index by which the device knows them. No reference is looked at.
    fn announce(&self, grants: &[Grant]) -> Result<u64, Errno>;

    /// Maps all pages that were announced together. EINVAL if a reference is bad, or is read-only and is to be written;
    /// EAGAIN if the domain's page is not there for the moment. A child after fork does not get the range.
    fn map(&self, index: u64, pages: usize, writable: bool) -> Result<NonNull<u8>, Errno>;

    /// Takes back what was announced. What is mapped of it is given back when it is unmapped as well.
    fn forget(&self, index: u64, pages: usize) -> Result<(), Errno>;

    /// Says what is to happen when the pages are unmapped.
    fn notify_on_unmap(&self, index: u64, notify: UnmapNotify) -> Result<(), Errno>;

    /// Has the hypervisor copy between grants and memory of this process. Each segment gets its status; the call
    /// as a whole fails for what the kernel itself refuses, and then nothing is known of the segments.
    ///
    /// # Safety
    /// The ends that are addresses may be read, or written, for the length of the segment, by nobody else for
    /// writing.
    unsafe fn copy(&self, segments: &mut [CopySegment]) -> Result<(), Errno>;
}

/// The device.
///
/// On x86 a domain with translated addresses (PVH, HVM) must not map its own grants. Xen gives a page that it maps in the
/// domain that owns it a new place *instead of* the old one (xen/arch/x86/mm/p2m.c, "aliased"), where the kernel then
/// finds 0xff, also when it uses the page for something else: dom0 crashes. So that is refused here.
#[derive(Debug)]
pub struct Gntdev {
    device: OwnedFd,
    /// What this domain is called, where it must not map its own grants.
    own: Option<Own>,
}

#[derive(Debug)]
struct Own {
    /// Dom0's number; that of another domain is not known here.
    control: bool,
}

impl Own {
    /// None where a domain may map its own grants.
    fn of_this_domain() -> Option<Self> {
        let read = |path| std::fs::read_to_string(path).unwrap_or_default();
        let kind = read("/sys/hypervisor/guest_type");
        let translated = !kind.is_empty() && kind.trim() != "PV";
        (cfg!(target_arch = "x86_64") && translated)
            .then(|| Self { control: read("/proc/xen/capabilities").contains("control_d") })
    }
}

/// `DOMID_SELF` (xen/include/public/xen.h).
const DOMID_SELF: u16 = 0x7FF0;

impl Gntdev {
    /// Opens /dev/xen/gntdev.
    ///
    /// # Errors
    /// ENOENT outside of a Xen domain that has it (its module is xen_gntdev), EACCES without the permission.
    pub fn open() -> Result<Self, OpenError> {
        let device = open_device("/dev/xen/gntdev", OFlags::empty())?;
        Ok(Self { device, own: Own::of_this_domain() })
    }

    /// The device as somebody else opened it, and perhaps handed it to us over a socket.
    pub fn from_fd(device: OwnedFd) -> Self {
        Self { device, own: Own::of_this_domain() }
    }
}

impl AsFd for Gntdev {
    fn as_fd(&self) -> BorrowedFd<'_> {
        self.device.as_fd()
    }
}

/// One ioctl of a grant device.
///
/// # Safety
/// `argument` points to the structure that belongs to the number, and to what follows it; its own pointers hold.
pub(super) unsafe fn ioctl<T>(device: BorrowedFd<'_>, number: u32, argument: *mut T) -> Result<(), Errno> {
    // SAFETY: as the caller says.
    let result = unsafe { libc::ioctl(device.as_raw_fd(), libc::c_ulong::from(number) as _, argument) };
    if result < 0 {
        return Err(Errno::from_io_error(&std::io::Error::last_os_error()).unwrap_or(Errno::IO));
    }
    Ok(())
}

/// Maps pages of a grant device, not for children.
pub(super) fn map_pages(
    device: BorrowedFd<'_>,
    index: u64,
    pages: usize,
    writable: bool,
) -> Result<NonNull<u8>, Errno> {
    let len = pages.checked_mul(FRAME).ok_or(Errno::NOMEM)?;
    let protection = if writable { ProtFlags::READ | ProtFlags::WRITE } else { ProtFlags::READ };
    // SAFETY: the kernel chooses the address, so that no mapping of ours is replaced.
    let base = unsafe { mmap(ptr::null_mut(), len, protection, MapFlags::SHARED, device, index) }?;
    // A translated dom0 (PVH, Arm) gives the pages to children as well: a child that lives on would keep them mapped.
    // SAFETY: the range that was just made; the advice changes nothing in this process.
    if let Err(errno) = unsafe { madvise(base, len, Advice::LinuxDontFork) } {
        // SAFETY: nobody has seen the range.
        let _ = unsafe { munmap(base, len) };
        return Err(errno);
    }
    NonNull::new(base.cast()).ok_or(Errno::FAULT)
}

impl GrantCalls for Gntdev {
    fn must_not_map(&self, domain: u16) -> bool {
        self.own.as_ref().is_some_and(|own| domain == DOMID_SELF || own.control && domain == 0)
    }

    fn announce(&self, grants: &[Grant]) -> Result<u64, Errno> {
        let count = u32::try_from(grants.len()).map_err(|_| Errno::INVAL)?;
        let head = MapGrantRef { count, padding: 0, index: 0 };
        let refs =
            grants.iter().map(|grant| GrantRef { domain: grant.domain.into(), reference: grant.reference });
        let refs: Vec<GrantRef> = refs.collect();
        // In words, so that the structure is aligned. The kernel reads and answers the first reference too.
        let mut request: Vec<u64> = vec![0; 2 + refs.len().max(1)];
        let bytes: &mut [u8] = bytemuck::cast_slice_mut(&mut request);
        let (front, tail) = bytes.split_at_mut(size_of::<MapGrantRef>());
        front.copy_from_slice(bytemuck::bytes_of(&head));
        let refs: &[u8] = bytemuck::cast_slice(&refs);
        tail.get_mut(..refs.len()).ok_or(Errno::INVAL)?.copy_from_slice(refs);
        // SAFETY: the structure with its references, of which the kernel writes the fixed part.
        unsafe { ioctl(self.as_fd(), MAP_GRANT_REF, request.as_mut_ptr()) }?;
        request.get(1).copied().ok_or(Errno::INVAL)
    }

    fn map(&self, index: u64, pages: usize, writable: bool) -> Result<NonNull<u8>, Errno> {
        map_pages(self.as_fd(), index, pages, writable)
    }

    fn forget(&self, index: u64, pages: usize) -> Result<(), Errno> {
        let count = u32::try_from(pages).map_err(|_| Errno::INVAL)?;
        let mut request = UnmapGrantRef { index, count, padding: 0 };
        // SAFETY: the structure, which lives across the call.
        unsafe { ioctl(self.as_fd(), UNMAP_GRANT_REF, &raw mut request) }
    }

    fn notify_on_unmap(&self, index: u64, notify: UnmapNotify) -> Result<(), Errno> {
        let Some(mut request) = notify.raw(index)? else { return Ok(()) };
        // SAFETY: the structure, which lives across the call.
        unsafe { ioctl(self.as_fd(), SET_UNMAP_NOTIFY, &raw mut request) }
    }

    unsafe fn copy(&self, segments: &mut [CopySegment]) -> Result<(), Errno> {
        let count = u32::try_from(segments.len()).map_err(|_| Errno::INVAL)?;
        let mut request = GrantCopy { count, padding: 0, segments: segments.as_mut_ptr() as u64 };
        // SAFETY: the structure and its segments live across the call; the caller answers for their ends.
        unsafe { ioctl(self.as_fd(), GRANT_COPY, &raw mut request) }
    }
}
