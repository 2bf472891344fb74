//! For tests: domains of a simulated machine that grant pages, with a record of the calls that reach them.
//!
//! # Safety
//! What is unsafe is passed on to the simulation.
#![allow(unsafe_code)]

use std::{
    collections::BTreeMap,
    ptr::NonNull,
    sync::{Mutex, MutexGuard},
};

use rustix::io::Errno;

use super::{
    Grant, GrantCalls, UnmapNotify,
    abi::{FRAME, gnttab::CopySegment},
    sim::{Domain, Hypervisor, Kind, NewDomain, SimulatedGntdev},
};

/// Domains 1 to 7 of a machine, whose pages are granted to dom0.
#[derive(Debug)]
pub(crate) struct FakeGrants {
    domains: Vec<Domain>,
    calls: SimulatedGntdev,
    record: Mutex<Record>,
}

#[derive(Debug, Default)]
struct Record {
    /// The references of each batch that is announced.
    announced: BTreeMap<u64, Vec<u32>>,
    /// Every batch that was mapped: its grants, and whether for writing.
    maps: Vec<(Vec<u32>, bool)>,
    own: Option<u16>,
    tries: u64,
}

impl Default for FakeGrants {
    fn default() -> Self {
        let xen = Hypervisor::new(Kind::Pv).unwrap();
        let new = NewDomain { ram: std::iter::once(0..FRAME as u64).collect(), vcpus: 1 };
        let domains = (1..8).map(|_| xen.create(&new).unwrap()).collect();
        Self { domains, calls: xen.dom0().gntdev(), record: Mutex::default() }
    }
}

/// The address of the page that a reference stands for.
fn place(reference: u32) -> u64 {
    (u64::from(reference) + 1) * FRAME as u64
}

impl FakeGrants {
    fn record(&self) -> MutexGuard<'_, Record> {
        self.record.lock().unwrap()
    }

    fn domain(&self, grant: Grant) -> &Domain {
        self.domains.iter().find(|domain| domain.number() == grant.domain).unwrap()
    }

    /// A domain grants a page of zeroes.
    pub(crate) fn grant(&self, grant: Grant, writable: bool) {
        let frame = place(grant.reference) / FRAME as u64;
        self.domain(grant).grant_as(grant.reference, frame, 0, writable);
    }

    /// A page is not there for so many tries.
    pub(crate) fn take_away(&self, grant: Grant, tries: u32) {
        self.domain(grant).page_out_grant(grant.reference, tries).unwrap();
    }

    /// What the domain itself sees.
    pub(crate) fn read(&self, grant: Grant, offset: u64, len: usize) -> Vec<u8> {
        let mut bytes = vec![0; len];
        self.domain(grant).read(place(grant.reference) + offset, &mut bytes).unwrap();
        bytes
    }

    /// The domain writes to its page.
    pub(crate) fn write(&self, grant: Grant, offset: u64, bytes: &[u8]) {
        self.domain(grant).write(place(grant.reference) + offset, bytes).unwrap();
    }

    /// Every batch that was mapped so far: its references, and whether for writing.
    pub(crate) fn maps(&self) -> Vec<(Vec<u32>, bool)> {
        self.record().maps.clone()
    }

    /// Which domain must not be mapped.
    pub(crate) fn set_own(&self, domain: u16) {
        self.record().own = Some(domain);
    }

    /// How many batches were announced so far.
    pub(crate) fn tries(&self) -> u64 {
        self.record().tries
    }

    /// How many batches the device knows.
    pub(crate) fn announced(&self) -> usize {
        self.record().announced.len()
    }
}

impl GrantCalls for FakeGrants {
    fn must_not_map(&self, domain: u16) -> bool {
        self.record().own == Some(domain)
    }

    fn announce(&self, grants: &[Grant]) -> Result<u64, Errno> {
        let index = self.calls.announce(grants)?;
        let mut record = self.record();
        record.tries += 1;
        record.announced.insert(index, grants.iter().map(|grant| grant.reference).collect());
        Ok(index)
    }

    fn map(&self, index: u64, pages: usize, writable: bool) -> Result<NonNull<u8>, Errno> {
        let base = self.calls.map(index, pages, writable)?;
        let mut record = self.record();
        let references = record.announced[&index].clone();
        record.maps.push((references, writable));
        Ok(base)
    }

    fn forget(&self, index: u64, pages: usize) -> Result<(), Errno> {
        self.calls.forget(index, pages)?;
        self.record().announced.remove(&index);
        Ok(())
    }

    fn notify_on_unmap(&self, index: u64, notify: UnmapNotify) -> Result<(), Errno> {
        self.calls.notify_on_unmap(index, notify)
    }

    unsafe fn copy(&self, segments: &mut [CopySegment]) -> Result<(), Errno> {
        // SAFETY: as the caller says.
        unsafe { self.calls.copy(segments) }
    }
}
