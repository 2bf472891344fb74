//! /dev/xen/gntdev of the machine: pages that other domains granted.
//!
//! # Safety
//! Copies go between pages and addresses that the caller answers for.
#![allow(unsafe_code)]

use std::{
    collections::BTreeMap,
    ptr::NonNull,
    sync::{Arc, Mutex, MutexGuard, PoisonError},
};

use rustix::io::Errno;

use super::{
    grants::NotGranted,
    machine::{DOMID_SELF, Kind, Machine},
    pages::{self, Page},
};
use crate::xen::{
    Grant, GrantCalls, UnmapNotify,
    abi::{
        FRAME,
        gnttab::{COPY_SOURCE_GRANT, COPY_TARGET_GRANT, CopySegment},
    },
};

/// One open file of the device.
#[derive(Debug)]
pub struct SimulatedGntdev {
    machine: Arc<Machine>,
    own: u16,
    announced: Mutex<Announced>,
}

#[derive(Debug, Default)]
struct Announced {
    batches: BTreeMap<u64, GrantBatch>,
    next_index: u64,
}

/// References that were announced together.
#[derive(Debug)]
struct GrantBatch {
    grants: Vec<Grant>,
    /// Their pages, once they are mapped.
    mapped: Vec<Page>,
    notify: UnmapNotify,
}

impl SimulatedGntdev {
    pub(super) fn new(machine: Arc<Machine>, own: u16) -> Self {
        Self { machine, own, announced: Mutex::default() }
    }

    fn announced(&self) -> MutexGuard<'_, Announced> {
        self.announced.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// The grant with its domain's number in the place of DOMID_SELF.
    fn resolved(&self, grant: Grant) -> Grant {
        if grant.domain == DOMID_SELF { Grant { domain: self.own, ..grant } } else { grant }
    }

    /// Copies one segment, of which one end is a grant.
    ///
    /// # Safety
    /// As [`GrantCalls::copy`].
    unsafe fn copy_one(&self, segment: &CopySegment) -> Result<i16, Errno> {
        let (grant_end, address, to_us) = match segment.flags {
            COPY_SOURCE_GRANT => (segment.source, segment.target, true),
            COPY_TARGET_GRANT => (segment.target, segment.source, false),
            _ => return Err(Errno::INVAL),
        };
        let [r0, r1, r2, r3, o0, o1, d0, d1] = grant_end.to_ne_bytes();
        let (reference, domain) = (u32::from_ne_bytes([r0, r1, r2, r3]), u16::from_ne_bytes([d0, d1]));
        let (offset, len) = (u16::from_ne_bytes([o0, o1]), segment.len);
        if usize::from(offset) + usize::from(len) > FRAME {
            return Ok(BAD_COPY_ARG);
        }
        let grant = self.resolved(Grant { domain, reference });
        let page = match self.machine.state().granted(self.own, grant, !to_us) {
            Err(refusal) => return Ok(refusal.status()),
            Ok(found) => found.page.clone(),
        };
        if to_us {
            // SAFETY: the caller answers for the address.
            unsafe { page.copy_out(offset, len, address as *mut u8) }?;
        } else {
            // SAFETY: as above.
            unsafe { page.copy_in(offset, len, address as *const u8) }?;
        }
        Ok(0)
    }
}

/// `GNTST_bad_copy_arg`.
const BAD_COPY_ARG: i16 = -10;

impl GrantCalls for SimulatedGntdev {
    fn must_not_map(&self, domain: u16) -> bool {
        self.machine.kind == Kind::Pvh && (domain == DOMID_SELF || domain == self.own)
    }

    fn announce(&self, grants: &[Grant]) -> Result<u64, Errno> {
        let mut announced = self.announced();
        let index = announced.next_index;
        announced.next_index += (grants.len() * FRAME) as u64;
        let grants = grants.iter().map(|&grant| self.resolved(grant)).collect();
        let batch = GrantBatch { grants, mapped: Vec::new(), notify: UnmapNotify::default() };
        announced.batches.insert(index, batch);
        Ok(index)
    }

    fn map(&self, index: u64, pages: usize, writable: bool) -> Result<NonNull<u8>, Errno> {
        let mut announced = self.announced();
        let batch = announced.batches.get_mut(&index).filter(|batch| batch.grants.len() == pages);
        let batch = batch.filter(|batch| batch.mapped.is_empty()).ok_or(Errno::INVAL)?;
        let mut state = self.machine.state();
        let found: Result<Vec<Page>, NotGranted> = batch
            .grants
            .iter()
            .map(|&grant| state.granted(self.own, grant, writable).map(|found| found.page.clone()))
            .collect();
        let found = found.map_err(NotGranted::errno)?;
        let base = pages::map(&found, writable)?;
        for grant in &batch.grants {
            let domain = state.domains.get_mut(&grant.domain);
            if let Some(granted) = domain.and_then(|domain| domain.grants.get_mut(&grant.reference)) {
                granted.mapped += 1;
            }
        }
        batch.mapped = found;
        Ok(base)
    }

    fn forget(&self, index: u64, pages: usize) -> Result<(), Errno> {
        let mut announced = self.announced();
        if announced.batches.get(&index).is_none_or(|batch| batch.grants.len() != pages) {
            return Err(Errno::NOENT);
        }
        let Some(batch) = announced.batches.remove(&index) else { return Err(Errno::NOENT) };
        if batch.mapped.is_empty() {
            return Ok(());
        }
        // First the byte, then who waits for it is woken.
        if let Some(offset) = batch.notify.clear_byte
            && let Some(page) = batch.mapped.get((offset / FRAME as u64) as usize)
        {
            page.write((offset % FRAME as u64) as usize, &[0])?;
        }
        let mut state = self.machine.state();
        batch.grants.iter().for_each(|&grant| state.release(grant));
        if let Some(port) = batch.notify.port {
            state.notify(self.own, port);
        }
        Ok(())
    }

    fn notify_on_unmap(&self, index: u64, notify: UnmapNotify) -> Result<(), Errno> {
        let mut announced = self.announced();
        let batch = announced.batches.get_mut(&index).ok_or(Errno::NOENT)?;
        self.machine.state().check_notify(self.own, notify)?;
        batch.notify = notify;
        Ok(())
    }

    unsafe fn copy(&self, segments: &mut [CopySegment]) -> Result<(), Errno> {
        for segment in segments {
            // SAFETY: as the caller says.
            segment.status = unsafe { self.copy_one(segment) }?;
        }
        Ok(())
    }
}
