//! For tests: a domain of a simulated machine, with a record of the calls that reach it.
//!
//! # Safety
//! What is unsafe is passed on to the simulation.
#![allow(unsafe_code)]

use std::{
    ptr::NonNull,
    sync::{Mutex, MutexGuard},
};

use rustix::io::Errno;

use super::{
    ForeignCalls, Resource,
    abi::FRAME,
    sim::{Domain, Hypervisor, Kind, NewDomain, SimulatedPrivcmd},
};

/// The domain.
pub(crate) const DOMAIN: u16 = 7;

/// A domain of that number, with so many frames from 0 on.
pub(crate) fn numbered(xen: &Hypervisor, number: u16, frames: u64) -> Domain {
    let size = frames.max(1) * FRAME as u64;
    let new = NewDomain { ram: std::iter::once(0..size).collect(), vcpus: 1 };
    let made = std::iter::repeat_with(|| xen.create(&new).unwrap()).find(|made| made.number() == number);
    made.unwrap()
}

/// Each byte of a frame is the low byte of its number, until somebody writes there.
#[derive(Debug)]
pub(crate) struct FakeDomain {
    guest: Domain,
    calls: SimulatedPrivcmd,
    record: Mutex<Record>,
}

#[derive(Debug, Default)]
struct Record {
    batches: Vec<usize>,
    /// How many ranges are refused from now on.
    refusals: usize,
}

impl FakeDomain {
    /// Mapped by a PV dom0.
    pub(crate) fn new(frames: u64) -> Self {
        Self::on(Kind::Pv, frames)
    }

    /// Mapped by a dom0 with translated addresses, which tries no frame twice in its place.
    pub(crate) fn translated(frames: u64) -> Self {
        Self::on(Kind::Pvh, frames)
    }

    fn on(kind: Kind, frames: u64) -> Self {
        let xen = Hypervisor::new(kind).unwrap();
        let guest = numbered(&xen, DOMAIN, frames);
        (0..frames).for_each(|frame| guest.write(frame * FRAME as u64, &[frame as u8; FRAME]).unwrap());
        if frames == 0 {
            guest.balloon_out(0..1).unwrap();
        }
        Self { guest, calls: xen.dom0().privcmd(), record: Mutex::default() }
    }

    fn record(&self) -> MutexGuard<'_, Record> {
        self.record.lock().unwrap()
    }

    /// Gives a frame a new page, full of a byte. What is mapped of the old one stays.
    pub(crate) fn populate(&self, frame: u64, byte: u8) {
        self.guest.populate(frame..frame + 1).unwrap();
        self.guest.write(frame * FRAME as u64, &[byte; FRAME]).unwrap();
    }

    /// Makes a hole.
    pub(crate) fn take_away(&self, frame: u64) {
        // It may be one already.
        let _ = self.guest.balloon_out(frame..frame + 1);
    }

    pub(crate) fn page_out(&self, frames: &[(u64, u32)]) {
        frames.iter().for_each(|&(frame, tries)| self.guest.page_out(frame..frame + 1, tries).unwrap());
    }

    /// Refuses this many ranges for want of memory.
    pub(crate) fn refuse(&self, count: usize) {
        self.record().refusals = count;
    }

    /// How many frames each call mapped so far.
    pub(crate) fn batches(&self) -> Vec<usize> {
        self.record().batches.clone()
    }

    /// What the guest itself sees.
    pub(crate) fn bytes(&self, frame: u64, offset: u64, len: usize) -> Vec<u8> {
        let mut bytes = vec![0; len];
        self.guest.read(frame * FRAME as u64 + offset, &mut bytes).unwrap();
        bytes
    }
}

impl ForeignCalls for FakeDomain {
    fn reserve(&self, frames: usize, writable: bool) -> Result<NonNull<u8>, Errno> {
        self.calls.reserve(frames, writable)
    }

    unsafe fn reserve_at(&self, at: NonNull<u8>, frames: usize, writable: bool) -> Result<(), Errno> {
        let mut record = self.record();
        if record.refusals > 0 {
            record.refusals -= 1;
            return Err(Errno::NOMEM);
        }
        drop(record);
        // SAFETY: as the caller says.
        unsafe { self.calls.reserve_at(at, frames, writable) }
    }

    fn map_frames(
        &self,
        domain: u16,
        at: NonNull<u8>,
        frames: &[u64],
        errors: &mut [i32],
    ) -> Result<(), Errno> {
        self.record().batches.push(frames.len());
        self.calls.map_frames(domain, at, frames, errors)
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
        self.calls.map_resource(domain, at, resource, id, first, frames)
    }

    fn resource_size(&self, domain: u16, resource: Resource, id: u32) -> Result<u64, Errno> {
        self.calls.resource_size(domain, resource, id)
    }

    fn restrict(&self, domain: u16) -> Result<(), Errno> {
        self.calls.restrict(domain)
    }
}
