//! The memory of a Xen guest of any size, mapped by windows when it is touched.
//!
//! Attaching reserves addresses, one range for each bank of the guest's RAM, and maps nothing. A lease maps the windows
//! that it spans, at their places in the reserved range, so that a window which is given back and mapped again is at the
//! same address. What nobody leases is given back when the guest's memory map changes ([`ForeignWindows::invalidate`]) or,
//! the longest unused first, when more is mapped than the limit allows.
//!
//! The kernel wants the first batch of frames to cover exactly its range (Linux, drivers/xen/privcmd.c), so each window is
//! a range of the device of its own, put over a part of the reserved one. On a dom0 with translated addresses (PVH, Arm)
//! it does not let a failed frame be tried again in its place either. So an access that meets a frame which failed, or a
//! window that was invalidated while somebody leases it, gets a mapping of its own frames, for itself alone.
//!
//! # Safety
//! A window is taken out only while nobody leases it, and only by who marked it as going under the lock; it is put in
//! only by who marked it as coming. So nobody else touches its part of the range meanwhile.
#![allow(unsafe_code)]

mod bank;
#[cfg(test)]
mod tests;

use std::{
    collections::HashMap,
    ops::Range,
    ptr::NonNull,
    sync::{Arc, Condvar, Mutex, MutexGuard, PoisonError},
    time::Duration,
};

use rustix::io::Errno;

use super::{
    backing::{Hold, Lease},
    error::{MapError, MemoryError},
    fork::Owner,
    guest::{GuestMemory, Region},
};
use crate::xen::{
    ForeignCalls, ForeignMapError, ForeignMapping, FrameFailure, MapRequest, abi::FRAME, fill, refused,
};
use bank::{Bank, WindowedBank};

/// Frames of a window.
///
/// A batch costs as much as 50 of its frames before it maps the first one (measured on Xen 4.17), and unmapping costs more
/// for each frame than mapping. With 1 MiB that is a fifth on top for who reads all, and six times the cost of one
/// frame for who reads one; with 256 KiB it would be four fifths and twice, with 2 MiB a tenth and eleven times.
const WINDOW_FRAMES: u64 = 256;
/// Bytes of a window.
pub const WINDOW: u64 = WINDOW_FRAMES * FRAME as u64;

/// How a guest is attached.
#[derive(Clone, Copy, Debug)]
pub struct AttachRequest {
    /// The domain, whose frame numbers are its own: not a PV domain.
    pub domain: u16,
    /// For writing too?
    pub writable: bool,
    /// How long frames that are paged out are waited for.
    pub patience: Duration,
    /// How many bytes may stay mapped. What is leased at a time may exceed it.
    pub limit: u64,
}

/// The windows of one guest: all banks of its RAM, under one limit.
#[derive(Debug)]
pub struct ForeignWindows {
    calls: Arc<dyn ForeignCalls>,
    domain: u16,
    writable: bool,
    patience: Duration,
    owner: Owner,
    banks: Box<[Bank]>,
    state: Mutex<State>,
    /// A window came or went.
    changed: Condvar,
}

/// A window, by its bank and its place there.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
struct Place {
    bank: usize,
    index: u64,
}

#[derive(Debug)]
struct State {
    /// Those that are not merely reserved.
    windows: HashMap<Place, Window>,
    /// Bytes of those that are coming or mapped.
    mapped: u64,
    limit: u64,
    /// Counts uses, to know which was the last.
    clock: u64,
}

#[derive(Debug)]
struct Window {
    stage: Stage,
    bytes: u64,
    /// Leases that span it.
    users: usize,
    /// To be given back when nobody leases it, and to be used by nobody else.
    stale: bool,
    last_use: u64,
    failures: Vec<FrameFailure>,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Stage {
    Coming,
    Mapped,
    Going,
}

impl Window {
    fn idle(&self) -> bool {
        self.stage == Stage::Mapped && self.users == 0
    }
}

impl ForeignWindows {
    /// Attaches to ranges of a guest's physical addresses, whole frames each, and maps nothing.
    ///
    /// The table's regions lease from the windows; these give and take under one limit.
    ///
    /// # Errors
    /// [`MemoryError::BadTable`] for a range that is empty, not of whole frames, or overlaps another;
    /// [`MemoryError::Unreachable`] where our own address space has not the room.
    pub fn attach(
        calls: Arc<dyn ForeignCalls>,
        ranges: &[Range<u64>],
        request: &AttachRequest,
    ) -> Result<(Arc<Self>, GuestMemory), MemoryError> {
        let AttachRequest { domain, writable, patience, limit } = *request;
        let banks = ranges.iter().map(|range| Bank::reserve(range, request));
        let windows = Arc::new(Self {
            calls,
            domain,
            writable,
            patience,
            owner: Owner::this_process(),
            banks: banks.collect::<Result<_, _>>()?,
            state: Mutex::new(State { windows: HashMap::new(), mapped: 0, limit, clock: 0 }),
            changed: Condvar::new(),
        });
        let regions = ranges.iter().enumerate().map(|(bank, range)| {
            let backing = WindowedBank { windows: Arc::clone(&windows), bank };
            Region::new(range.start, range.start, Arc::new(backing))
        });
        let memory = GuestMemory::new(regions.collect())?;
        Ok((windows, memory))
    }

    /// How many bytes are mapped in windows now.
    pub fn mapped_bytes(&self) -> u64 {
        self.lock().mapped
    }

    /// How many bytes may stay mapped.
    pub fn limit(&self) -> u64 {
        self.lock().limit
    }

    /// Sets how many bytes may stay mapped, and gives back what is too much.
    ///
    /// # Errors
    /// [`MemoryError::Forked`].
    pub fn set_limit(&self, limit: u64) -> Result<(), MemoryError> {
        self.owner.check()?;
        let mut state = self.lock();
        state.limit = limit;
        self.keep_to_limit(state);
        Ok(())
    }

    /// The guest's memory map has changed: what was mapped before is not used for any access that begins from now on.
    ///
    /// Windows that nobody leases are given back at once, the others when their last lease ends.
    ///
    /// # Errors
    /// [`MemoryError::Forked`].
    pub fn invalidate(&self) -> Result<(), MemoryError> {
        self.owner.check()?;
        self.retire(|_, _| true);
        Ok(())
    }

    fn lock(&self) -> MutexGuard<'_, State> {
        // Nothing under the lock can panic half way.
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn wait<'a>(&self, state: MutexGuard<'a, State>) -> MutexGuard<'a, State> {
        self.changed.wait(state).unwrap_or_else(PoisonError::into_inner)
    }

    fn lease(self: &Arc<Self>, bank: usize, offset: u64, len: u64) -> Result<Lease, MapError> {
        let Bank { mapping, frames, .. } = &self.banks[bank];
        let size = frames * FRAME as u64;
        let end = offset.checked_add(len).filter(|&end| len > 0 && end <= size);
        let end = end.ok_or(MapError::BeyondEnd { len, offset, size })?;
        let first = offset / WINDOW;
        let mut used = Used { windows: Arc::clone(self), bank, indexes: first..first };
        for index in first..=(end - 1) / WINDOW {
            self.acquire(Place { bank, index })?;
            used.indexes.end = index + 1;
        }
        if self.sound(&used, offset..end) {
            // SAFETY: inside the bank; all windows of the range are mapped and stay while they are used, and no
            // frame of it failed.
            return Ok(unsafe { Lease::new(mapping.base().add(offset as usize), len, Arc::new(used)) });
        }
        let indexes = used.indexes.clone();
        drop(used);
        let alone = self.map_alone(bank, offset, len)?;
        // What failed before is there now: whoever comes next shall find it in the window.
        self.retire(|place, window| {
            place.bank == bank && indexes.contains(&place.index) && !window.failures.is_empty()
        });
        Ok(alone)
    }

    /// May this range of the windows that it spans be used?
    fn sound(&self, used: &Used, range: Range<u64>) -> bool {
        let state = self.lock();
        used.places().all(|place| {
            state.windows.get(&place).is_some_and(|window| {
                let start = |failure: &FrameFailure| place.index * WINDOW + (failure.index * FRAME) as u64;
                !window.stale
                    && !window
                        .failures
                        .iter()
                        .map(start)
                        .any(|start| start < range.end && range.start < start + FRAME as u64)
            })
        })
    }

    /// Exactly the frames of a range, for one lease.
    fn map_alone(&self, bank: usize, offset: u64, len: u64) -> Result<Lease, MapError> {
        let Self { domain, writable, patience, .. } = *self;
        let (within, frame) = (offset % FRAME as u64, offset / FRAME as u64);
        let first = self.banks[bank].first_frame + frame;
        let frames: Vec<u64> = (first..first + (within + len).div_ceil(FRAME as u64)).collect();
        let request = MapRequest { domain, frames: &frames, writable, patience };
        let mapped = ForeignMapping::whole(&*self.calls, &request)?;
        // SAFETY: the frames hold the range, which begins so far in the first of them; all of them are mapped.
        Ok(unsafe { Lease::new(mapped.base().add(within as usize), len, Arc::new(mapped)) })
    }

    /// Maps a window unless it is, and counts one user more.
    fn acquire(&self, place: Place) -> Result<(), ForeignMapError> {
        let mut state = self.lock();
        loop {
            state.clock += 1;
            let clock = state.clock;
            match state.windows.get_mut(&place) {
                None => break,
                Some(window) if window.stage == Stage::Mapped => {
                    window.users += 1;
                    window.last_use = clock;
                    return Ok(());
                }
                Some(_) => state = self.wait(state),
            }
        }
        let bytes = self.frames_of(place).1 * FRAME as u64;
        let (clock, stage) = (state.clock, Stage::Coming);
        let window = Window { stage, bytes, users: 0, stale: false, last_use: clock, failures: Vec::new() };
        state.windows.insert(place, window);
        state.mapped += bytes;
        self.keep_to_limit(state);
        let mapped = self.map_or_make_room(place);

        let mut state = self.lock();
        let result = mapped.map(|failures| {
            if let Some(window) = state.enter(place, Stage::Mapped) {
                window.users = 1;
                // Of a window without a single frame nothing is kept.
                window.stale |= (failures.len() * FRAME) as u64 == bytes;
                window.failures = failures;
            }
        });
        if result.is_err() {
            state.enter(place, Stage::Going);
            state.windows.remove(&place);
        }
        self.changed.notify_all();
        result
    }

    /// Counts one user less of each, and gives back what has to be.
    fn release(&self, used: &Used) {
        let mut state = self.lock();
        for place in used.places() {
            if let Some(window) = state.windows.get_mut(&place) {
                window.users -= 1;
                if window.stale && window.idle() {
                    (state, _) = self.give_back(state, place);
                }
            }
        }
        self.keep_to_limit(state);
    }

    /// Lets nobody use these windows any more, and gives back those that nobody uses now.
    fn retire(&self, which: impl Fn(&Place, &Window) -> bool) {
        let mut state = self.lock();
        let mut idle = Vec::new();
        for (place, window) in state.windows.iter_mut().filter(|(place, window)| which(place, window)) {
            window.stale = true;
            if window.idle() {
                idle.push(*place);
            }
        }
        for place in idle {
            // It may have gone or come again since: the lock is let go of in between.
            if state.windows.get(&place).is_some_and(|window| window.stale && window.idle()) {
                (state, _) = self.give_back(state, place);
            }
        }
    }

    /// Gives back the longest unused until no more is mapped than the limit allows, or all is in use.
    fn keep_to_limit<'a>(&'a self, mut state: MutexGuard<'a, State>) {
        while state.mapped > state.limit {
            let Some(place) = state.longest_unused() else { return };
            let gone;
            (state, gone) = self.give_back(state, place);
            if !gone {
                return;
            }
        }
    }

    /// Takes out a window that nobody uses, and says whether the kernel did so. The lock is let go of meanwhile.
    fn give_back<'a>(
        &'a self,
        mut state: MutexGuard<'a, State>,
        place: Place,
    ) -> (MutexGuard<'a, State>, bool) {
        state.enter(place, Stage::Going);
        drop(state);
        let gone = self.vacate(place).is_ok();
        let mut state = self.lock();
        if gone {
            state.windows.remove(&place);
        } else {
            // For the next who tries.
            state.enter(place, Stage::Mapped).iter_mut().for_each(|window| window.stale = true);
        }
        self.changed.notify_all();
        (state, gone)
    }

    /// Maps a window that is coming; where memory is short (pages of dom0, ranges of this process), gives back others.
    fn map_or_make_room(&self, place: Place) -> Result<Vec<FrameFailure>, ForeignMapError> {
        loop {
            let result = self.map(place);
            let short = matches!(result, Err(ForeignMapError::Refused { errno: Errno::NOMEM, .. }));
            let state = self.lock();
            match state.longest_unused().filter(|_| short) {
                Some(unused) if self.give_back(state, unused).1 => {}
                _ => return result,
            }
        }
    }

    fn map(&self, place: Place) -> Result<Vec<FrameFailure>, ForeignMapError> {
        let Self { domain, writable, patience, .. } = *self;
        let (first, count) = self.frames_of(place);
        let frames: Vec<u64> = (first..first + count).collect();
        let request = MapRequest { domain, frames: &frames, writable, patience };
        let at = self.address_of(place);
        // SAFETY: a part of our range that is reserved, and is ours alone while the window is coming.
        let reserved = unsafe { self.calls.reserve_at(at, frames.len(), writable) };
        reserved.map_err(|errno| refused(domain, frames.len(), errno))?;
        // SAFETY: just made for these frames.
        let filled = unsafe { fill(&*self.calls, &request, at) };
        if filled.is_err() {
            // If the kernel does not take it out now, the next window at this place replaces it.
            let _ = self.vacate(place);
        }
        filled
    }

    /// Takes out what stands at a place that nobody uses.
    fn vacate(&self, place: Place) -> Result<(), Errno> {
        let len = self.frames_of(place).1 as usize * FRAME;
        // SAFETY: inside the bank; the window is coming or going, so that nobody leases it.
        unsafe { self.banks[place.bank].mapping.vacate((place.index * WINDOW) as usize, len) }
    }

    /// The first frame of a window, and how many it has: the last of a bank may be shorter.
    fn frames_of(&self, place: Place) -> (u64, u64) {
        let Bank { first_frame, frames, .. } = self.banks[place.bank];
        let before = place.index * WINDOW_FRAMES;
        (first_frame + before, WINDOW_FRAMES.min(frames - before))
    }

    fn address_of(&self, place: Place) -> NonNull<u8> {
        // SAFETY: places are made of offsets inside the bank.
        unsafe { self.banks[place.bank].mapping.base().add((place.index * WINDOW) as usize) }
    }
}

impl State {
    fn longest_unused(&self) -> Option<Place> {
        let idle = self.windows.iter().filter(|(_, window)| window.idle());
        idle.min_by_key(|(_, window)| window.last_use).map(|(&place, _)| place)
    }

    /// Moves a window to its next stage. What is going does not count as mapped.
    fn enter(&mut self, place: Place, stage: Stage) -> Option<&mut Window> {
        let window = self.windows.get_mut(&place)?;
        let counts = |stage| if stage == Stage::Going { 0 } else { window.bytes };
        self.mapped = self.mapped - counts(window.stage) + counts(stage);
        window.stage = stage;
        Some(window)
    }
}

/// What a lease holds: neighbouring windows of a bank.
#[derive(Debug)]
struct Used {
    windows: Arc<ForeignWindows>,
    bank: usize,
    indexes: Range<u64>,
}

impl Used {
    fn places(&self) -> impl Iterator<Item = Place> {
        let bank = self.bank;
        self.indexes.clone().map(move |index| Place { bank, index })
    }
}

impl Hold for Used {
    fn poisoned(&self) -> bool {
        self.windows.banks[self.bank].mapping.poisoned()
    }
}

impl Drop for Used {
    fn drop(&mut self) {
        // In a child nothing is mapped, and another thread of its parent may have held the lock.
        if self.windows.owner.is_this_process() {
            self.windows.release(self);
        }
    }
}
