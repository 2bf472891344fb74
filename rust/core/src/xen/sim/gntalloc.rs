//! /dev/xen/gntalloc of the machine: pages that are granted to other domains.

use std::{
    collections::BTreeMap,
    ptr::NonNull,
    sync::{Arc, Mutex, MutexGuard, PoisonError},
};

use rustix::io::Errno;

use super::{
    grants::{self, Granted},
    machine::Machine,
    pages::{self, Page},
};
use crate::xen::{ShareCalls, UnmapNotify, abi::FRAME};

/// How many pages the kernel allows at a time (the module's parameter `limit`).
const LIMIT: usize = 1024;

/// One open file of the device.
#[derive(Debug)]
pub struct SimulatedGntalloc {
    machine: Arc<Machine>,
    own: u16,
    shares: Mutex<Shares>,
}

#[derive(Debug, Default)]
struct Shares {
    known: BTreeMap<u64, Share>,
    next_index: u64,
}

/// Pages that were made together.
#[derive(Debug)]
struct Share {
    pages: Vec<Page>,
    references: Vec<u32>,
    notify: UnmapNotify,
}

impl SimulatedGntalloc {
    pub(super) fn new(machine: Arc<Machine>, own: u16) -> Self {
        Self { machine, own, shares: Mutex::default() }
    }

    fn shares(&self) -> MutexGuard<'_, Shares> {
        self.shares.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl ShareCalls for SimulatedGntalloc {
    fn share(&self, domain: u16, writable: bool, references: &mut [u32]) -> Result<u64, Errno> {
        let mut shares = self.shares();
        let used: usize = shares.known.values().map(|share| share.pages.len()).sum();
        if used + references.len() > LIMIT {
            return Err(Errno::NOSPC);
        }
        let file = pages::file((references.len() * FRAME) as u64)?;
        let made: Vec<Page> =
            (0..references.len()).map(|page| Page::of(&file, (page * FRAME) as u64)).collect();
        let mut state = self.machine.state();
        let own = state.get(self.own)?;
        for (index, page) in made.iter().enumerate() {
            let added = grants::add(&mut own.grants, Granted::new(page.clone(), domain, writable));
            let (done, rest) = references.split_at_mut(index);
            match (added, rest.first_mut()) {
                (Ok(added), Some(reference)) => *reference = added,
                (added, _) => {
                    done.iter().for_each(|&one| grants::end_when_free(&mut own.grants, one));
                    return added.and(Err(Errno::INVAL));
                }
            }
        }
        let index = shares.next_index;
        shares.next_index += (made.len() * FRAME) as u64;
        let (references, notify) = (references.to_vec(), UnmapNotify::default());
        shares.known.insert(index, Share { pages: made, references, notify });
        Ok(index)
    }

    fn map(&self, index: u64, pages: usize) -> Result<NonNull<u8>, Errno> {
        let shares = self.shares();
        let share = shares.known.get(&index).filter(|share| share.pages.len() == pages);
        pages::map(&share.ok_or(Errno::NOENT)?.pages, true)
    }

    fn unshare(&self, index: u64, pages: usize) -> Result<(), Errno> {
        let mut shares = self.shares();
        if shares.known.get(&index).is_none_or(|share| share.pages.len() != pages) {
            return Err(Errno::NOENT);
        }
        let Some(share) = shares.known.remove(&index) else { return Err(Errno::NOENT) };
        if let Some(offset) = share.notify.clear_byte
            && let Some(page) = share.pages.get((offset / FRAME as u64) as usize)
        {
            page.write((offset % FRAME as u64) as usize, &[0])?;
        }
        let mut state = self.machine.state();
        if let Ok(own) = state.get(self.own) {
            share.references.iter().for_each(|&one| grants::end_when_free(&mut own.grants, one));
        }
        if let Some(port) = share.notify.port {
            state.notify(self.own, port);
        }
        Ok(())
    }

    fn notify_on_unmap(&self, index: u64, notify: UnmapNotify) -> Result<(), Errno> {
        let mut shares = self.shares();
        let share = shares.known.get_mut(&index).ok_or(Errno::NOENT)?;
        self.machine.state().check_notify(self.own, notify)?;
        share.notify = notify;
        Ok(())
    }
}
