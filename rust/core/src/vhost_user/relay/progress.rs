//! How far the device has come: chains that it gave back, told from the used index of each ring.

use std::{collections::BTreeMap, os::fd::OwnedFd, sync::Arc};

use super::RelayControl;
use crate::vhost_user::{MemoryRegion, MemorySlots, TableError, VringAddress};

/// Where the index stands in a used ring (virtio 1.3, 2.7.8).
const USED_INDEX: u64 = 2;

#[derive(Debug, Default)]
struct Ring {
    /// User address of the used ring.
    used: Option<u64>,
    /// Its index when it was looked at last.
    last: Option<u16>,
}

/// The frontend's memory, and what is known of the rings in it.
pub(super) struct Progress {
    control: Arc<RelayControl>,
    slots: MemorySlots,
    rings: BTreeMap<u8, Ring>,
    /// False with packed rings, which have no such index.
    pub(super) split: bool,
}

impl Progress {
    pub(super) fn new(control: &Arc<RelayControl>) -> Self {
        Self {
            control: Arc::clone(control),
            slots: MemorySlots::default(),
            rings: BTreeMap::new(),
            split: true,
        }
    }

    /// SET_MEM_TABLE. What cannot be mapped here is not looked into.
    pub(super) fn set_memory(&mut self, regions: Vec<(MemoryRegion, OwnedFd)>) -> Result<(), TableError> {
        let mapped = self.slots.map(regions);
        self.take(mapped)
    }

    /// ADD_MEM_REG.
    pub(super) fn add_region(&mut self, region: MemoryRegion, fd: OwnedFd) -> Result<(), TableError> {
        let mapped = self.slots.with(region, fd);
        self.take(mapped)
    }

    /// REM_MEM_REG.
    pub(super) fn remove_region(&mut self, region: &MemoryRegion) -> Result<(), TableError> {
        let mapped = self.slots.without(region);
        self.take(mapped)
    }

    fn take(&mut self, mapped: Result<MemorySlots, TableError>) -> Result<(), TableError> {
        let (slots, outcome) = match mapped {
            Ok(slots) => (slots, Ok(())),
            Err(error) => (MemorySlots::default(), Err(error)),
        };
        self.slots = slots;
        outcome
    }

    /// SET_VRING_ADDR.
    pub(super) fn set_address(&mut self, address: &VringAddress) {
        if let Ok(index) = u8::try_from(address.index) {
            self.rings.entry(index).or_default().used = Some(address.used);
        }
    }

    /// The ring begins to run: what was done before is not counted.
    pub(super) fn start(&mut self, queue: u8) {
        let now = self.used_index(queue);
        self.rings.entry(queue).or_default().last = now;
    }

    /// The device gave no more back after this.
    pub(super) fn stop(&mut self, queue: u8) {
        self.look(queue);
        if let Some(ring) = self.rings.get_mut(&queue) {
            ring.last = None;
        }
    }

    /// Counts what was given back since the last time. (A ring has at most 32768 entries, so that the index
    /// cannot come round between two looks unless neither side notified the other for two rings' worth.)
    pub(super) fn look(&mut self, queue: u8) {
        let now = self.used_index(queue);
        let Some(ring) = self.rings.get_mut(&queue) else { return };
        if let (Some(last), Some(now)) = (ring.last, now) {
            ring.last = Some(now);
            self.control.count(queue, |counts| counts.chains += u64::from(now.wrapping_sub(last)));
        }
    }

    /// As [`Progress::look`], at every ring.
    pub(super) fn look_at_all(&mut self) {
        for queue in self.rings.keys().copied().collect::<Vec<_>>() {
            self.look(queue);
        }
    }

    fn used_index(&self, queue: u8) -> Option<u16> {
        let used = self.rings.get(&queue)?.used.filter(|_| self.split)?;
        let at = self.slots.table().user_to_guest(used)?.checked_add(USED_INDEX)?;
        let mut index = [0; 2];
        self.slots.table().read(at, &mut index).ok()?;
        Some(u16::from_le_bytes(index))
    }
}
