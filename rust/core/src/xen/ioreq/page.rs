//! The page that Xen shares with a server: a slot for each vCPU.
//!
//! # Safety
//! Slots lie within the page, which each [`Page`] holds mapped. Xen writes there as well: only raw pointers, each field is read
//! once, and the byte with the state is an atomic.
#![allow(unsafe_code)]

use std::{
    ptr::NonNull,
    sync::atomic::{AtomicU8, Ordering},
    time::Duration,
};

use rustix::io::Errno;

use super::{request::Request, server::ServerError};
use crate::xen::{
    abi::{
        FRAME,
        ioreq::{IS_POINTER, IS_READ, Ioreq, STATE_ANSWERED, STATE_IN_PROCESS, STATE_MASK, STATE_READY},
    },
    dm_op::DeviceModel,
    foreign::{ForeignMapError, ForeignMapping, MapRequest},
    privcmd::{ForeignCalls, Resource},
};

/// How many vCPUs have a slot in the page.
pub const MAX_VCPUS: usize = FRAME / size_of::<Ioreq>();
/// The frame of the page in the resource: frame 0 is that of buffered requests.
const PAGE_INDEX: u32 = 1;
/// What a read gives where nobody answers, as on an empty bus.
pub(super) const NOBODY: u64 = u64::MAX;
/// How long the frame of a page that is in the domain's memory is waited for.
const PATIENCE: Duration = Duration::from_secs(5);

/// How the page of a server is reached.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum PageSource {
    /// As a resource; as a frame where the kernel or Xen has no resources.
    #[default]
    Any,
    /// As a resource (Linux 4.18, Xen 4.11).
    Resource,
    /// As a frame of the domain's memory, on x86.
    Frame,
}

/// The shared page.
#[derive(Debug)]
pub(super) struct Page {
    mapping: ForeignMapping,
}

impl Page {
    /// The slot of a vCPU below [`MAX_VCPUS`].
    pub(super) fn slot(&self, vcpu: usize) -> Option<NonNull<Ioreq>> {
        // SAFETY: the page has room for this many; it is aligned to a page.
        (vcpu < MAX_VCPUS).then(|| unsafe { self.mapping.base().cast::<Ioreq>().add(vcpu) })
    }

    /// Where it is mapped.
    pub(super) fn address(&self) -> u64 {
        self.mapping.base().as_ptr() as u64
    }

    fn bits(&self, slot: NonNull<Ioreq>) -> &AtomicU8 {
        // SAFETY: a byte of the page, which lives as long as `self`; everybody here uses it as an atomic.
        unsafe { AtomicU8::from_ptr(&raw mut (*slot.as_ptr()).bits) }
    }

    /// The port that Xen notifies for a vCPU.
    pub(super) fn port(&self, slot: NonNull<Ioreq>) -> u32 {
        // SAFETY: inside the page, and aligned.
        unsafe { (&raw const (*slot.as_ptr()).port).read_volatile() }
    }

    /// Takes a request, if one is ready: moves the slot to "in process".
    pub(super) fn take(&self, vcpu: u32) -> Option<Request> {
        let slot = self.slot(vcpu as usize)?;
        let bits = self.bits(slot).load(Ordering::Relaxed);
        if bits & STATE_MASK != STATE_READY {
            return None;
        }
        let taken = bits & !STATE_MASK | STATE_IN_PROCESS;
        // The kernel answers by itself what an ioeventfd waits for: whoever is second must leave the slot alone. Acquire,
        // as Xen writes the state after the rest.
        self.bits(slot).compare_exchange(bits, taken, Ordering::Acquire, Ordering::Relaxed).ok()?;
        // SAFETY: inside the page, and aligned. Xen leaves the slot alone until it is answered; that nothing else does is
        // not relied upon: each field is read once.
        let raw = unsafe { slot.read_volatile() };
        Some(Request::new(vcpu, &Ioreq { bits: taken, ..raw }))
    }

    /// As [`take`](Self::take), also what a process took that is gone.
    pub(super) fn take_over(&self, vcpu: u32) -> Option<Request> {
        if let Some(request) = self.take(vcpu) {
            return Some(request);
        }
        let slot = self.slot(vcpu as usize)?;
        let bits = self.bits(slot).load(Ordering::Acquire);
        if bits & STATE_MASK != STATE_IN_PROCESS {
            return None;
        }
        // SAFETY: inside the page, and aligned; each field is read once.
        let raw = unsafe { slot.read_volatile() };
        Some(Request::new(vcpu, &Ioreq { bits, ..raw }))
    }

    /// Answers what is in process; false if nothing is.
    pub(super) fn answer(&self, vcpu: u32, value: Option<u64>) -> bool {
        let Some(slot) = self.slot(vcpu as usize) else { return false };
        let bits = self.bits(slot).load(Ordering::Relaxed);
        if bits & STATE_MASK != STATE_IN_PROCESS {
            return false;
        }
        if let Some(value) = value {
            // SAFETY: inside the page, and aligned.
            unsafe { (&raw mut (*slot.as_ptr()).data).write_volatile(value) };
        }
        // Release: Xen reads the data after the state; so does the guest what we wrote to its memory.
        self.bits(slot).store(bits & !STATE_MASK | STATE_ANSWERED, Ordering::Release);
        true
    }

    /// Answers what is there, taken or not, as an empty bus would; false if nothing is.
    pub(super) fn finish(&self, vcpu: usize) -> bool {
        // vCPUs are fewer than slots.
        let number = vcpu as u32;
        let Some(slot) = self.slot(vcpu) else { return false };
        self.take(number);
        let bits = self.bits(slot).load(Ordering::Relaxed);
        self.answer(number, (bits & (IS_READ | IS_POINTER) == IS_READ).then_some(NOBODY))
    }

    /// True while an answer lies here that Xen has not taken.
    pub(super) fn holds_answer(&self, vcpu: usize) -> bool {
        self.slot(vcpu)
            .is_some_and(|slot| self.bits(slot).load(Ordering::Relaxed) & STATE_MASK == STATE_ANSWERED)
    }
}

/// Maps the page of a server.
pub(super) fn map_page(
    foreign: &dyn ForeignCalls,
    model: &DeviceModel,
    id: u16,
    source: PageSource,
) -> Result<Page, ServerError> {
    let domain = model.domain();
    if source != PageSource::Frame {
        let mapped =
            ForeignMapping::resource(foreign, domain, Resource::IoreqServer, id.into(), PAGE_INDEX, 1, true);
        match mapped {
            Ok(mapping) => return Ok(Page { mapping }),
            Err(error) if source == PageSource::Resource || !has_no_resources(&error) => {
                return Err(error.into());
            }
            Err(_) => {}
        }
    }
    let frame = model.ioreq_server_frame(id)?;
    let request = MapRequest { domain, frames: &[frame], writable: true, patience: PATIENCE };
    Ok(Page { mapping: ForeignMapping::whole(foreign, &request)? })
}

/// Does the error say that the kernel or Xen does not know resources? (Older kernels have EINVAL for any ioctl that they do
/// not know.)
fn has_no_resources(error: &ForeignMapError) -> bool {
    matches!(error.errno(), Some(Errno::NOTTY | Errno::NOSYS | Errno::OPNOTSUPP | Errno::INVAL))
}
