//! For tests: one domain whose frames are pages of a memfd, behind the calls of the device.
//!
//! # Safety
//! It maps where the device would: in ranges that its caller reserved.
#![allow(unsafe_code)]

use std::{
    collections::{BTreeMap, BTreeSet},
    os::fd::{AsFd, OwnedFd},
    ptr::{self, NonNull},
    sync::{Mutex, MutexGuard},
};

use rustix::{
    fs::{MemfdFlags, ftruncate, memfd_create},
    io::Errno,
    mm::{MapFlags, ProtFlags, mmap, mmap_anonymous},
};

use super::{ForeignCalls, Resource, abi::FRAME};

/// The domain.
pub(crate) const DOMAIN: u16 = 7;

/// Each byte of a frame is the low byte of its number, until somebody writes there.
#[derive(Debug)]
pub(crate) struct FakeDomain {
    memory: OwnedFd,
    state: Mutex<State>,
}

#[derive(Debug)]
struct State {
    /// The page of each frame.
    pages: BTreeMap<u64, u64>,
    /// Pages that were ever used.
    used: u64,
    /// How many tries each frame is paged out for.
    paged_out: BTreeMap<u64, u32>,
    batches: Vec<usize>,
    /// Of a dom0 with translated addresses, those at which frames were tried: once only.
    tried: Option<BTreeSet<usize>>,
    /// How many ranges are refused from now on.
    refusals: usize,
}

impl FakeDomain {
    pub(crate) fn new(frames: u64) -> Self {
        let memory = memfd_create("domain", MemfdFlags::CLOEXEC).unwrap();
        let state = State {
            pages: BTreeMap::new(),
            used: 0,
            paged_out: BTreeMap::new(),
            batches: Vec::new(),
            tried: None,
            refusals: 0,
        };
        let domain = Self { memory, state: Mutex::new(state) };
        (0..frames).for_each(|frame| domain.populate(frame, frame as u8));
        domain
    }

    fn state(&self) -> MutexGuard<'_, State> {
        self.state.lock().unwrap()
    }

    /// Gives a frame a new page, full of a byte. What is mapped of the old one stays.
    pub(crate) fn populate(&self, frame: u64, byte: u8) {
        let mut state = self.state();
        let page = state.used;
        state.used += 1;
        ftruncate(&self.memory, state.used * FRAME as u64).unwrap();
        rustix::io::pwrite(&self.memory, &[byte; FRAME], page * FRAME as u64).unwrap();
        state.pages.insert(frame, page);
    }

    /// Makes a hole.
    pub(crate) fn take_away(&self, frame: u64) {
        self.state().pages.remove(&frame);
    }

    pub(crate) fn page_out(&self, frames: &[(u64, u32)]) {
        self.state().paged_out = frames.iter().copied().collect();
    }

    /// From now on it is mapped by a dom0 with translated addresses, which tries no frame twice in its place.
    pub(crate) fn translate(&self) {
        self.state().tried = Some(BTreeSet::new());
    }

    /// Refuses this many ranges for want of memory.
    pub(crate) fn refuse(&self, count: usize) {
        self.state().refusals = count;
    }

    /// How many frames each call mapped so far.
    pub(crate) fn batches(&self) -> Vec<usize> {
        self.state().batches.clone()
    }

    /// What the guest itself sees.
    pub(crate) fn bytes(&self, frame: u64, offset: u64, len: usize) -> Vec<u8> {
        let page = self.state().pages[&frame];
        let mut bytes = vec![0; len];
        rustix::io::pread(&self.memory, &mut bytes, page * FRAME as u64 + offset).unwrap();
        bytes
    }

    fn page_of(&self, domain: u16, frame: u64) -> Result<u64, Errno> {
        if domain != DOMAIN {
            return Err(Errno::SRCH);
        }
        let mut state = self.state();
        let page = *state.pages.get(&frame).ok_or(Errno::INVAL)?;
        match state.paged_out.get_mut(&frame).filter(|tries| **tries > 0) {
            Some(tries) => {
                *tries -= 1;
                Err(Errno::NOENT)
            }
            None => Ok(page),
        }
    }
}

impl ForeignCalls for FakeDomain {
    fn reserve(&self, frames: usize, _writable: bool) -> Result<NonNull<u8>, Errno> {
        // SAFETY: a fresh range.
        let base = unsafe {
            mmap_anonymous(ptr::null_mut(), frames * FRAME, ProtFlags::empty(), MapFlags::PRIVATE)
        }?;
        Ok(NonNull::new(base.cast()).unwrap())
    }

    unsafe fn reserve_at(&self, at: NonNull<u8>, frames: usize, _writable: bool) -> Result<(), Errno> {
        let mut state = self.state();
        if state.refusals > 0 {
            state.refusals -= 1;
            return Err(Errno::NOMEM);
        }
        let range = at.as_ptr() as usize..at.as_ptr() as usize + frames * FRAME;
        state.tried.iter_mut().for_each(|tried| tried.retain(|at| !range.contains(at)));
        let flags = MapFlags::PRIVATE | MapFlags::FIXED;
        // SAFETY: the caller gives the range up.
        unsafe { mmap_anonymous(at.as_ptr().cast(), frames * FRAME, ProtFlags::empty(), flags) }.map(drop)
    }

    fn map_frames(
        &self,
        domain: u16,
        at: NonNull<u8>,
        frames: &[u64],
        errors: &mut [i32],
    ) -> Result<(), Errno> {
        let mut state = self.state();
        state.batches.push(frames.len());
        if let Some(tried) = &mut state.tried {
            let mut places = (0..frames.len()).map(|index| at.as_ptr() as usize + index * FRAME);
            if !places.all(|place| tried.insert(place)) {
                errors.fill(0);
                return Err(Errno::INVAL);
            }
        }
        drop(state);
        for (index, (&frame, error)) in frames.iter().zip(errors.iter_mut()).enumerate() {
            *error = match self.page_of(domain, frame) {
                Err(errno) => -errno.raw_os_error(),
                Ok(page) => {
                    let (flags, protection) =
                        (MapFlags::SHARED | MapFlags::FIXED, ProtFlags::READ | ProtFlags::WRITE);
                    // SAFETY: inside the range that was reserved.
                    unsafe {
                        let at = at.add(index * FRAME).as_ptr().cast();
                        mmap(at, FRAME, protection, flags, self.memory.as_fd(), page * FRAME as u64)?;
                    }
                    0
                }
            };
        }
        if errors.contains(&-Errno::NOENT.raw_os_error()) { Err(Errno::NOENT) } else { Ok(()) }
    }

    fn map_resource(
        &self,
        _domain: u16,
        _at: NonNull<u8>,
        _resource: Resource,
        _id: u32,
        _first: u32,
        _frames: u64,
    ) -> Result<(), Errno> {
        Err(Errno::OPNOTSUPP)
    }

    fn resource_size(&self, _domain: u16, _resource: Resource, _id: u32) -> Result<u64, Errno> {
        Err(Errno::OPNOTSUPP)
    }

    fn restrict(&self, _domain: u16) -> Result<(), Errno> {
        Ok(())
    }
}
