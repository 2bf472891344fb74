//! The same memory mapped by vm-memory and by us, on a file that stands for the device: both say the same to the kernel.
//!
//! This program has an `ioctl` of its own in the place of libc's, which writes down what it is given and answers as the
//! devices do. So vm-memory's own structures and numbers, which are private, are what is compared.
//!
//! # Safety
//! The pointers in a structure are followed as the device would: for as many elements as the structure says.

use std::{
    cell::RefCell,
    ffi::{c_int, c_ulong, c_void},
    fs::File,
    os::fd::{FromRawFd, OwnedFd},
    slice,
    sync::Arc,
    time::Duration,
};

use vm_memory::{FileOffset, GuestAddress, MmapRange, MmapRegion, MmapXenFlags};
use xenvirt_core::{
    vhost_user::{FrontendRequest, RegionFormat, XenMapFlags},
    xen::{
        ForeignMapping, Gntdev, Grant, GrantCalls, GrantMapping, GrantRequest, MapRequest, Privcmd,
        UnmapNotify,
        abi::{
            gnttab::{GrantRef, MAP_GRANT_REF, MapGrantRef, UNMAP_GRANT_REF, UnmapGrantRef},
            privcmd::{MMAPBATCH_V2, MmapBatchV2},
        },
    },
};

const PAGE: usize = 4096;
const DOMAIN: u16 = 0x1234;

/// What was said to a device.
#[derive(Clone, Debug, PartialEq, Eq)]
enum Call {
    /// Domain, the frames, and what stood in the list of errors.
    MapBatch { number: u32, domain: u16, frames: Vec<u64>, errors: Vec<i32> },
    /// Domain and reference of each.
    MapGrants { number: u32, grants: Vec<(u32, u32)> },
    /// Index and count.
    UnmapGrants { number: u32, index: u64, count: u32 },
}

thread_local! {
    static CALLS: RefCell<Vec<Call>> = const { RefCell::new(Vec::new()) };
}

fn calls() -> Vec<Call> {
    CALLS.take()
}

/// In the place of libc's. A call with one pointer is passed alike whether it is variadic or not, on x86-64 and on AArch64 of Linux.
#[unsafe(no_mangle)]
extern "C" fn ioctl(fd: c_int, request: c_ulong, argument: *mut c_void) -> c_int {
    let number = request as u32;
    // SAFETY: whoever calls passes the structure that belongs to the number, whose lists are as long as it says.
    let call = unsafe {
        match number {
            MMAPBATCH_V2 => {
                let MmapBatchV2 { num, domain, frames, errors, .. } = *argument.cast::<MmapBatchV2>();
                let frames = slice::from_raw_parts(frames as *const u64, num as usize).to_vec();
                let errors = slice::from_raw_parts(errors as *const i32, num as usize).to_vec();
                Call::MapBatch { number, domain, frames, errors }
            }
            MAP_GRANT_REF => {
                let head = argument.cast::<MapGrantRef>();
                let refs = slice::from_raw_parts(head.add(1).cast::<GrantRef>(), (*head).count as usize);
                (*head).index = PAGE as u64;
                let grants = refs.iter().map(|one| (one.domain, one.reference)).collect();
                Call::MapGrants { number, grants }
            }
            UNMAP_GRANT_REF => {
                let UnmapGrantRef { index, count, .. } = *argument.cast::<UnmapGrantRef>();
                Call::UnmapGrants { number, index, count }
            }
            _ => return libc::syscall(libc::SYS_ioctl, fd, request, argument) as c_int,
        }
    };
    CALLS.with_borrow_mut(|calls| calls.push(call));
    0
}

/// A file that can be mapped as a device is.
fn device() -> OwnedFd {
    // SAFETY: the descriptor is checked, and nobody else's.
    unsafe {
        let fd = libc::memfd_create(c"device".as_ptr(), libc::MFD_CLOEXEC);
        assert!(fd >= 0);
        assert_eq!(libc::ftruncate(fd, 64 * PAGE as libc::off_t), 0);
        OwnedFd::from_raw_fd(fd)
    }
}

/// Maps as vm-memory does, lets go of it, and gives what was said.
fn by_vm_memory(address: u64, pages: usize, flags: MmapXenFlags) -> Vec<Call> {
    let file = Some(FileOffset::new(File::from(device()), 0));
    let range = MmapRange::new(pages * PAGE, file, GuestAddress(address), flags.bits(), DOMAIN.into());
    drop(MmapRegion::<()>::from_range(range).unwrap());
    calls()
}

#[test]
fn foreign_frames_are_asked_for_alike() {
    let theirs = by_vm_memory(0x4000_0000, 3, MmapXenFlags::FOREIGN);
    let frames: Vec<u64> = (0x4_0000..0x4_0003).collect();
    let request = MapRequest { domain: DOMAIN, frames: &frames, writable: true, patience: Duration::ZERO };
    drop(ForeignMapping::whole(&Privcmd::from_fd(device()), &request).unwrap());
    let expected = Call::MapBatch { number: MMAPBATCH_V2, domain: DOMAIN, frames, errors: vec![0; 3] };
    assert_eq!(theirs, [expected]);
    assert_eq!(calls(), theirs);
}

#[test]
fn grants_are_announced_and_taken_back_alike() {
    let theirs = by_vm_memory(1 << 63 | 9 << 12, 3, MmapXenFlags::GRANT);
    let device: Arc<dyn GrantCalls> = Arc::new(Gntdev::from_fd(device()));
    let grants: Vec<Grant> = (9..12).map(|reference| Grant { domain: DOMAIN, reference }).collect();
    let request = GrantRequest {
        grants: &grants,
        writable: true,
        patience: Duration::ZERO,
        notify: UnmapNotify::default(),
        named: 0,
    };
    drop(GrantMapping::map(&device, &request).unwrap());
    let domain = u32::from(DOMAIN);
    let expected = [
        Call::MapGrants { number: MAP_GRANT_REF, grants: vec![(domain, 9), (domain, 10), (domain, 11)] },
        Call::UnmapGrants { number: UNMAP_GRANT_REF, index: PAGE as u64, count: 3 },
    ];
    assert_eq!(theirs, expected);
    assert_eq!(calls(), theirs);
}

#[test]
fn a_region_that_is_not_mapped_in_advance_is_asked_for_by_nobody() {
    assert_eq!(by_vm_memory(1 << 63, 3, MmapXenFlags::GRANT | MmapXenFlags::NO_ADVANCE_MAP), []);
}

/// The flags of a region that came in a message, by our codec; None if it is refused.
fn accepted(flags: u32) -> Option<XenMapFlags> {
    let words = [0, 0x1000, PAGE as u64, 0x1000, 0, u64::from(flags) | u64::from(DOMAIN) << 32];
    let payload: Vec<u8> = words.iter().flat_map(|word| word.to_ne_bytes()).collect();
    const ADD_MEM_REG: u32 = 37;
    match FrontendRequest::decode(ADD_MEM_REG, &payload, vec![device()], RegionFormat::Xen) {
        Ok(FrontendRequest::AddMemReg { region, .. }) => Some(region.xen_flags),
        _ => None,
    }
}

#[test]
fn flags_of_a_region_mean_the_same_and_the_same_ones_are_refused() {
    for bits in 0..32 {
        let theirs = MmapXenFlags::from_bits(bits).filter(MmapXenFlags::is_valid);
        let ours = accepted(bits);
        assert_eq!(ours.map(|flags| flags.bits()), theirs.map(|flags| flags.bits()), "flags {bits:#x}");
        let Some((ours, theirs)) = ours.zip(theirs) else { continue };
        assert_eq!(ours.contains(XenMapFlags::FOREIGN), theirs.is_foreign());
        assert_eq!(ours.contains(XenMapFlags::GRANT), theirs.is_grant());
        assert_eq!(ours.contains(XenMapFlags::NO_ADVANCE_MAP), !theirs.mmap_in_advance());
    }
}
