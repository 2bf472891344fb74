//! /dev/xen/privcmd of the machine: foreign frames and resources. (Device model operations are in `model`.)
//!
//! # Safety
//! What is mapped goes into ranges that this device reserved, which the machine has in its list.
#![allow(unsafe_code)]

use std::{
    ptr::NonNull,
    sync::{Arc, Mutex, PoisonError},
};

use rustix::io::Errno;

use super::{
    grants,
    machine::{DOM0, DOMID_IO, DOMID_SELF, Kind, Machine},
    pages::{self, Page},
};
use crate::xen::{ForeignCalls, Resource, abi::FRAME};

/// One open file of the device.
#[derive(Debug)]
pub struct SimulatedPrivcmd {
    machine: Arc<Machine>,
    own: u16,
    restricted: Mutex<Option<u16>>,
}

/// One IOCTL_PRIVCMD_MMAPBATCH_V2, with all that a program can get wrong.
#[derive(Debug)]
pub struct Batch<'a> {
    /// The domain.
    pub domain: u16,
    /// Where to.
    pub address: usize,
    /// How many frames the program says there are; not more than the lists have.
    pub count: usize,
    /// The frames; None for an address where nothing is.
    pub frames: Option<&'a [u64]>,
    /// Their errors; None for an address where nothing is.
    pub errors: Option<&'a mut [i32]>,
}

impl SimulatedPrivcmd {
    pub(super) fn new(machine: Arc<Machine>, own: u16) -> Self {
        Self { machine, own, restricted: Mutex::new(None) }
    }

    pub(super) fn machine(&self) -> &Machine {
        &self.machine
    }

    pub(super) fn own(&self) -> u16 {
        self.own
    }

    /// EPERM if the file is restricted to another domain.
    pub(super) fn check(&self, domain: u16) -> Result<(), Errno> {
        match *self.restricted.lock().unwrap_or_else(PoisonError::into_inner) {
            Some(only) if only != domain => Err(Errno::PERM),
            _ => Ok(()),
        }
    }

    /// What Xen says of a domain whose frames are to be mapped, where that is not an ordinary one. Measured: see
    /// python/xenvirt/testing/measured.py.
    fn special(&self, domain: u16) -> Option<Result<Page, Errno>> {
        let refusal = match (domain, self.machine.kind) {
            (DOMID_SELF, Kind::Pv) => return Some(Page::new()),
            (DOMID_SELF, Kind::Arm) | (DOMID_IO, Kind::Arm) => Errno::INVAL,
            (DOMID_IO, Kind::Pv) => Errno::BUSY,
            (DOMID_SELF | DOMID_IO, Kind::Pvh) => Errno::SRCH,
            (own, Kind::Pvh) if own == self.own => Errno::PERM,
            (own, _) if own == self.own => Errno::SRCH,
            // Not measured: a domain without the right.
            _ if self.own != DOM0 => Errno::PERM,
            _ => return None,
        };
        Some(Err(refusal))
    }

    fn page(&self, domain: u16, frame: u64) -> Result<Page, Errno> {
        match self.special(domain) {
            Some(known) => known,
            None => self.machine.state().get(domain)?.frames.take(frame),
        }
    }

    /// The bare call. Everything that it maps lies in a range of the device, and nothing else is touched.
    ///
    /// # Errors
    /// As the kernel: EPERM, EINVAL and EFAULT for the call as a whole, ENOENT if a frame is paged out.
    pub fn map_batch(&self, batch: Batch<'_>) -> Result<(), Errno> {
        let Batch { domain, address, count, frames, errors } = batch;
        self.check(domain)?;
        if count == 0 {
            return Err(Errno::INVAL);
        }
        let frames = frames.ok_or(Errno::FAULT)?.get(..count).ok_or(Errno::FAULT)?;
        let errors = errors.ok_or(Errno::FAULT)?.get_mut(..count).ok_or(Errno::FAULT)?;
        errors.fill(0);
        let at = NonNull::new(address as *mut u8).ok_or(Errno::INVAL)?;
        let writable = self.machine.state().vmas.try_frames(self.machine.kind, address, count)?;
        let found: Vec<_> = frames.iter().map(|&frame| self.page(domain, frame)).collect();
        let mut index = 0;
        while index < count {
            let run: Vec<Page> =
                found.iter().skip(index).map_while(|page| page.as_ref().ok().cloned()).collect();
            // SAFETY: below the number of pages of a range that is in the list.
            let to = unsafe { at.add(index * FRAME) };
            if run.is_empty() {
                if let (Some(Err(errno)), Some(error)) = (found.get(index), errors.get_mut(index)) {
                    *error = -errno.raw_os_error();
                }
                if self.machine.kind == Kind::Pvh {
                    // SAFETY: as above, for one page.
                    unsafe { pages::place_copy(to, &self.machine.ones, writable) }?;
                }
                index += 1;
                continue;
            }
            // SAFETY: as above, for as many pages as there are frames left, at most.
            unsafe { pages::place(to, &run, writable) }?;
            let mut state = self.machine.state();
            (0..run.len()).for_each(|page| state.vmas.set_mapped(address + (index + page) * FRAME));
            index += run.len();
        }
        if errors.contains(&-Errno::NOENT.raw_os_error()) { Err(Errno::NOENT) } else { Ok(()) }
    }

    /// A range of the device was unmapped by somebody else.
    pub fn forget_range(&self, address: usize, pages: usize) {
        self.machine.state().vmas.remove(address, pages);
    }

    /// The pages of a resource.
    fn resource(&self, domain: u16, resource: Resource, id: u32) -> Result<Vec<Page>, Errno> {
        let mut state = self.machine.state();
        let domain = state.get(domain)?;
        match resource {
            Resource::IoreqServer => {
                let server = u16::try_from(id).ok().and_then(|id| domain.servers.get(&id));
                Ok(server.ok_or(Errno::NOENT)?.pages.to_vec())
            }
            Resource::GrantTable if id == 0 => grants::table(&domain.grants),
            Resource::GrantTable => Err(Errno::INVAL),
            Resource::VmTrace => Err(Errno::OPNOTSUPP),
        }
    }
}

impl ForeignCalls for SimulatedPrivcmd {
    fn reserve(&self, frames: usize, writable: bool) -> Result<NonNull<u8>, Errno> {
        let base = pages::reserve(&self.machine.nothing, frames, writable)?;
        self.machine.state().vmas.add(base.as_ptr() as usize, frames, writable);
        Ok(base)
    }

    unsafe fn reserve_at(&self, at: NonNull<u8>, frames: usize, writable: bool) -> Result<(), Errno> {
        // SAFETY: as the caller says.
        unsafe { pages::reserve_at(at, &self.machine.nothing, frames, writable) }?;
        self.machine.state().vmas.add(at.as_ptr() as usize, frames, writable);
        Ok(())
    }

    fn map_frames(
        &self,
        domain: u16,
        at: NonNull<u8>,
        frames: &[u64],
        errors: &mut [i32],
    ) -> Result<(), Errno> {
        if errors.len() != frames.len() {
            return Err(Errno::INVAL);
        }
        let (address, count) = (at.as_ptr() as usize, frames.len());
        self.map_batch(Batch { domain, address, count, frames: Some(frames), errors: Some(errors) })
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
        self.check(domain)?;
        let found = self.resource(domain, resource, id)?;
        let count = usize::try_from(frames).map_err(|_| Errno::INVAL)?;
        let wanted = found.get(first as usize..).and_then(|rest| rest.get(..count)).ok_or(Errno::INVAL)?;
        let address = at.as_ptr() as usize;
        let writable = self.machine.state().vmas.try_frames(self.machine.kind, address, count)?;
        // SAFETY: a range in the list, of exactly as many pages, or on PV a part of one that was never mapped.
        unsafe { pages::place(at, wanted, writable) }?;
        let mut state = self.machine.state();
        (0..count).for_each(|page| state.vmas.set_mapped(address + page * FRAME));
        Ok(())
    }

    fn resource_size(&self, domain: u16, resource: Resource, id: u32) -> Result<u64, Errno> {
        self.check(domain)?;
        Ok(self.resource(domain, resource, id)?.len() as u64)
    }

    fn restrict(&self, domain: u16) -> Result<(), Errno> {
        let mut restricted = self.restricted.lock().unwrap_or_else(PoisonError::into_inner);
        match *restricted {
            Some(only) if only != domain => Err(Errno::INVAL),
            _ => {
                *restricted = Some(domain);
                Ok(())
            }
        }
    }
}
