//! The rings of a connection: set up, started, enabled, stopped, and what becomes of them with a reset or with
//! other memory.

use std::{collections::VecDeque, os::fd::OwnedFd};

use super::{
    Backend, BackendError, Reply, RequestName, Status, VringAddress, VringState,
    backend::{Answer, refused, wrong},
    memory_table::MemorySlots,
    virtio_features,
};
use crate::{
    endpoint::Event,
    ring::{RingConfig, RingError, RingFeatures},
};

/// What the frontend said of one ring.
#[derive(Debug, Default)]
pub(super) struct Vring {
    size: u16,
    base: u16,
    address: Option<VringAddress>,
    started: bool,
    enabled: bool,
}

impl Vring {
    /// A ring of which nothing was said yet: as large as it may be.
    pub(super) fn new(size: u16) -> Self {
        Self { size, ..Self::default() }
    }
}

impl Backend {
    /// SET_VRING_NUM.
    pub(super) fn set_ring_size(
        &mut self,
        name: RequestName,
        index: u32,
        value: u32,
    ) -> Result<Answer, BackendError> {
        let queue = self.index(name, index)?;
        let max = self.control.queues[queue].max_size();
        self.not_started(name, queue)?;
        let size = u16::try_from(value).ok().filter(|&size| (1..=max).contains(&size));
        self.vrings[queue].size =
            size.ok_or_else(|| wrong(name, "queue size", value.into(), format!("1 to {max}")))?;
        Ok(Answer::Done)
    }

    /// SET_VRING_BASE.
    pub(super) fn set_ring_base(
        &mut self,
        name: RequestName,
        index: u32,
        value: u32,
    ) -> Result<Answer, BackendError> {
        let queue = self.index(name, index)?;
        self.not_started(name, queue)?;
        self.vrings[queue].base = u16::try_from(value)
            .map_err(|_| wrong(name, "base", value.into(), "an index of a split ring, 16 bits".into()))?;
        Ok(Answer::Done)
    }

    /// SET_VRING_ADDR.
    pub(super) fn set_ring_address(
        &mut self,
        name: RequestName,
        address: VringAddress,
    ) -> Result<Answer, BackendError> {
        let index = self.index(name, address.index)?;
        // QEMU sends the address of a running ring again when it turns the dirty log on or off.
        if self.vrings[index].started && !self.same_place(index, &address) {
            return Err(refused(name)(format!("queue {index} runs, and cannot be moved")));
        }
        self.vrings[index].address = Some(address);
        Ok(Answer::Done)
    }

    /// SET_VRING_KICK: the ring is started.
    pub(super) fn set_ring_kick(
        &mut self,
        name: RequestName,
        index: u8,
        fd: Option<OwnedFd>,
        events: &mut VecDeque<Event>,
    ) -> Result<Answer, BackendError> {
        let queue = self.index(name, index.into())?;
        let fd =
            fd.ok_or_else(|| refused(name)(format!("queue {index} has no kick eventfd, and is not polled")))?;
        self.control.set_kick(index.into(), Some(fd)).map_err(|errno| {
            refused(name)(format!("the kick of queue {index} cannot be watched: {errno}"))
        })?;
        self.vrings[queue].started = true;
        self.start(queue, events).map_err(|reason| {
            self.vrings[queue].started = false;
            let _ = self.control.set_kick(index.into(), None);
            refused(name)(reason)
        })
    }

    /// SET_VRING_ENABLE.
    pub(super) fn enable_ring(
        &mut self,
        name: RequestName,
        index: u32,
        enable: bool,
        events: &mut VecDeque<Event>,
    ) -> Result<Answer, BackendError> {
        let queue = self.index(name, index)?;
        self.vrings[queue].enabled = enable;
        if enable {
            return self.start(queue, events).map_err(|reason| {
                self.vrings[queue].enabled = false;
                refused(name)(reason)
            });
        }
        self.control.queues[queue].pause();
        Ok(Answer::Done)
    }

    pub(super) fn index(&self, request: RequestName, index: u32) -> Result<usize, BackendError> {
        let count = self.vrings.len();
        let found = usize::try_from(index).ok().filter(|&index| index < count);
        found.ok_or_else(|| wrong(request, "queue", index.into(), format!("below {count}")))
    }

    fn not_started(&self, request: RequestName, index: usize) -> Result<(), BackendError> {
        if !self.vrings[index].started {
            return Ok(());
        }
        Err(refused(request)(format!("queue {index} is started; stop it first")))
    }

    fn same_place(&self, index: usize, new: &VringAddress) -> bool {
        self.vrings[index].address.as_ref().is_some_and(|old| {
            (old.descriptors, old.available, old.used) == (new.descriptors, new.available, new.used)
        })
    }

    /// Makes a ring run, if it is started and enabled and does not run yet.
    fn start(&mut self, index: usize, events: &mut VecDeque<Event>) -> Result<Answer, String> {
        let queue = &self.control.queues[index];
        let vring = &self.vrings[index];
        let always_enabled = self.features & virtio_features::PROTOCOL_FEATURES == 0;
        if !vring.started || !(vring.enabled || always_enabled) {
            return Ok(Answer::Done);
        }
        if queue.is_started() {
            queue.resume();
        } else {
            let config = self.ring_config(index)?;
            queue
                .start(&config, self.slots.table())
                .map_err(|error: RingError| format!("queue {index}: {error}"))?;
            if !self.active {
                self.active = true;
                events.push_back(Event::Activate);
            }
        }
        // What the driver put there before nobody kicks for again.
        self.control.look_at(index as u16, events);
        Ok(Answer::AfterDevice(None))
    }

    fn ring_config(&self, index: usize) -> Result<RingConfig, String> {
        let vring = &self.vrings[index];
        let address =
            vring.address.as_ref().ok_or(format!("queue {index} is started without SET_VRING_ADDR"))?;
        let guest = |what: &str, user: u64| {
            self.slots.table().user_to_guest(user).ok_or(format!(
                "queue {index}: the {what} at user address {user:#x} is not in the memory table"
            ))
        };
        let has = |bit: u64| self.features & bit != 0;
        Ok(RingConfig {
            size: vring.size,
            descriptors: guest("descriptor table", address.descriptors)?,
            available: guest("available ring", address.available)?,
            used: guest("used ring", address.used)?,
            next_available: vring.base,
            features: RingFeatures {
                event_idx: has(virtio_features::EVENT_IDX),
                indirect: has(virtio_features::INDIRECT_DESC),
                in_order: has(virtio_features::IN_ORDER),
                notify_on_empty: has(virtio_features::NOTIFY_ON_EMPTY),
            },
            in_turn: false,
        })
    }

    /// GET_VRING_BASE: the ring hands out nothing more, and is stopped once the device has given all back.
    pub(super) fn stop(&mut self, index: u16, events: &mut VecDeque<Event>) -> Answer {
        let queue = &self.control.queues[usize::from(index)];
        queue.pause();
        if queue.kept() > 0 {
            return Answer::AfterChains(index);
        }
        Answer::AfterDevice(Some(self.vring_base(index, events)))
    }

    /// Stops a ring, and the session with the last one.
    pub(super) fn vring_base(&mut self, index: u16, events: &mut VecDeque<Event>) -> Reply {
        let vring = &mut self.vrings[usize::from(index)];
        vring.started = false;
        let _ = self.control.set_kick(index, None);
        if let Some(base) = self.control.queues[usize::from(index)].stop() {
            vring.base = base;
        }
        let reply = Reply::VringBase(VringState { index: index.into(), value: vring.base.into() });
        if self.active && !self.control.queues.iter().any(|queue| queue.is_started()) {
            self.active = false;
            events.push_back(Event::Reset);
        }
        reply
    }

    pub(super) fn reset(&mut self, events: &mut VecDeque<Event>) -> Answer {
        self.status = Status::empty();
        self.stop_all(events);
        Answer::AfterDevice(None)
    }

    pub(super) fn stop_all(&mut self, events: &mut VecDeque<Event>) {
        for (index, vring) in (0u16..).zip(&mut self.vrings) {
            let queue = &self.control.queues[usize::from(index)];
            let _ = self.control.set_kick(index, None);
            queue.stop();
            queue.set_call(None);
            queue.set_err(None);
            *vring = Vring::new(queue.max_size());
        }
        if std::mem::take(&mut self.active) {
            events.push_back(Event::Reset);
        }
    }

    /// Puts a new table in force, for running queues too.
    pub(super) fn set_memory(
        &mut self,
        slots: MemorySlots,
        events: &mut VecDeque<Event>,
    ) -> Result<(), String> {
        let table = slots.table().clone();
        self.control.memory.replace(table.clone()).map_err(|error| error.to_string())?;
        self.slots = slots;
        for queue in &self.control.queues {
            if queue.is_started()
                && let Err(error) = queue.update_memory(&table)
            {
                events.push_back(Event::Warning(format!("queue {} stops: {error}", queue.index())));
                self.status |= Status::DEVICE_NEEDS_RESET;
            }
        }
        Ok(())
    }
}
