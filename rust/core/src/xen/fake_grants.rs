//! For tests: domains that grant pages of a memfd, behind the calls of the device.
//!
//! # Safety
//! It maps where the kernel chooses, and copies between addresses that the tests borrow.
#![allow(unsafe_code)]

use std::{
    collections::BTreeMap,
    os::fd::{AsFd, OwnedFd},
    ptr::{self, NonNull},
    sync::{Mutex, MutexGuard},
};

use rustix::{
    fs::{MemfdFlags, ftruncate, memfd_create},
    io::{Errno, pread, pwrite},
    mm::{MapFlags, ProtFlags, mmap, mmap_anonymous, munmap},
};

use super::{
    Grant, GrantCalls, UnmapNotify,
    abi::{
        FRAME,
        gnttab::{COPY_SOURCE_GRANT, CopySegment},
    },
};

/// Pages that are granted, each to whoever asks.
#[derive(Debug)]
pub(crate) struct FakeGrants {
    memory: OwnedFd,
    state: Mutex<State>,
}

#[derive(Debug, Default)]
struct State {
    pages: BTreeMap<(u16, u32), Page>,
    announced: BTreeMap<u64, Vec<Grant>>,
    /// Every batch that was mapped: its grants, and whether for writing.
    maps: Vec<(Vec<u32>, bool)>,
    own: Option<u16>,
    next_index: u64,
    tries: u64,
}

#[derive(Clone, Copy, Debug)]
struct Page {
    at: u64,
    writable: bool,
    /// For how many tries it is not there.
    away: u32,
}

impl Default for FakeGrants {
    fn default() -> Self {
        let memory = memfd_create("grants", MemfdFlags::CLOEXEC).unwrap();
        Self { memory, state: Mutex::default() }
    }
}

impl FakeGrants {
    fn state(&self) -> MutexGuard<'_, State> {
        self.state.lock().unwrap()
    }

    /// A domain grants a page of zeroes.
    pub(crate) fn grant(&self, grant: Grant, writable: bool) {
        let mut state = self.state();
        let at = (state.pages.len() * FRAME) as u64;
        ftruncate(&self.memory, at + FRAME as u64).unwrap();
        state.pages.insert((grant.domain, grant.reference), Page { at, writable, away: 0 });
    }

    /// A page is not there for so many tries.
    pub(crate) fn take_away(&self, grant: Grant, tries: u32) {
        self.state().pages.get_mut(&(grant.domain, grant.reference)).unwrap().away = tries;
    }

    fn place(&self, grant: Grant) -> u64 {
        self.state().pages[&(grant.domain, grant.reference)].at
    }

    /// What the domain itself sees.
    pub(crate) fn read(&self, grant: Grant, offset: u64, len: usize) -> Vec<u8> {
        let mut bytes = vec![0; len];
        pread(&self.memory, &mut bytes, self.place(grant) + offset).unwrap();
        bytes
    }

    /// The domain writes to its page.
    pub(crate) fn write(&self, grant: Grant, offset: u64, bytes: &[u8]) {
        pwrite(&self.memory, bytes, self.place(grant) + offset).unwrap();
    }

    /// Every batch that was mapped so far: its references, and whether for writing.
    pub(crate) fn maps(&self) -> Vec<(Vec<u32>, bool)> {
        self.state().maps.clone()
    }

    /// Which domain must not be mapped.
    pub(crate) fn set_own(&self, domain: u16) {
        self.state().own = Some(domain);
    }

    /// How many batches were announced so far.
    pub(crate) fn tries(&self) -> u64 {
        self.state().tries
    }

    /// How many batches the device knows.
    pub(crate) fn announced(&self) -> usize {
        self.state().announced.len()
    }
}

impl GrantCalls for FakeGrants {
    fn must_not_map(&self, domain: u16) -> bool {
        self.state().own == Some(domain)
    }

    fn announce(&self, grants: &[Grant]) -> Result<u64, Errno> {
        let mut state = self.state();
        let index = state.next_index;
        state.tries += 1;
        state.next_index += (grants.len() * FRAME) as u64;
        state.announced.insert(index, grants.to_vec());
        Ok(index)
    }

    fn map(&self, index: u64, pages: usize, writable: bool) -> Result<NonNull<u8>, Errno> {
        let mut state = self.state();
        let grants = state.announced.get(&index).filter(|grants| grants.len() == pages);
        let grants = grants.ok_or(Errno::INVAL)?.clone();
        let mut places = Vec::new();
        for grant in &grants {
            let page = state.pages.get_mut(&(grant.domain, grant.reference)).ok_or(Errno::INVAL)?;
            if writable && !page.writable {
                return Err(Errno::INVAL);
            }
            if page.away > 0 {
                page.away -= 1;
                return Err(Errno::AGAIN);
            }
            places.push(page.at);
        }
        state.maps.push((grants.iter().map(|grant| grant.reference).collect(), writable));
        let protection = if writable { ProtFlags::READ | ProtFlags::WRITE } else { ProtFlags::READ };
        // SAFETY: a fresh range, which the pages are put into.
        unsafe {
            let len = pages * FRAME;
            let base = mmap_anonymous(ptr::null_mut(), len, ProtFlags::empty(), MapFlags::PRIVATE)?;
            for (page, place) in places.into_iter().enumerate() {
                let at = base.byte_add(page * FRAME);
                let flags = MapFlags::SHARED | MapFlags::FIXED;
                if let Err(errno) = mmap(at, FRAME, protection, flags, self.memory.as_fd(), place) {
                    let _ = munmap(base, len);
                    return Err(errno);
                }
            }
            Ok(NonNull::new(base.cast()).unwrap())
        }
    }

    fn forget(&self, index: u64, pages: usize) -> Result<(), Errno> {
        let forgotten = self.state().announced.remove(&index);
        forgotten.filter(|grants| grants.len() == pages).map(drop).ok_or(Errno::INVAL)
    }

    fn notify_on_unmap(&self, index: u64, _notify: UnmapNotify) -> Result<(), Errno> {
        self.state().announced.get(&index).map(drop).ok_or(Errno::INVAL)
    }

    unsafe fn copy(&self, segments: &mut [CopySegment]) -> Result<(), Errno> {
        for segment in segments {
            let to_us = segment.flags == COPY_SOURCE_GRANT;
            let (end, address) =
                if to_us { (segment.source, segment.target) } else { (segment.target, segment.source) };
            let end = end.to_ne_bytes();
            let reference = u32::from_ne_bytes([end[0], end[1], end[2], end[3]]);
            let (offset, domain) =
                (u16::from_ne_bytes([end[4], end[5]]), u16::from_ne_bytes([end[6], end[7]]));
            let page = self.state().pages.get(&(domain, reference)).copied();
            segment.status = match page {
                None => -3,
                Some(page) if !to_us && !page.writable => -1,
                Some(page) => {
                    let place = page.at + u64::from(offset);
                    // SAFETY: the test borrows as many bytes there.
                    unsafe {
                        let address = address as *mut u8;
                        if to_us {
                            let bytes = std::slice::from_raw_parts_mut(address, segment.len.into());
                            pread(&self.memory, bytes, place)?;
                        } else {
                            let bytes = std::slice::from_raw_parts(address, segment.len.into());
                            pwrite(&self.memory, bytes, place)?;
                        }
                    }
                    0
                }
            };
        }
        Ok(())
    }
}
