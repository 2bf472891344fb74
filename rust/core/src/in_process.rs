//! Driver and device in one process: no socket, the driver hands memory and rings over directly.

use std::{collections::VecDeque, os::fd::OwnedFd, sync::Arc};

use rustix::io::Errno;

use crate::{
    endpoint::{Control, Event, Transport},
    memory::{GuestMemory, MemoryError},
    ring::{RingConfig, RingError},
};

/// One ring that the driver laid out, with its eventfds.
#[derive(Debug)]
pub struct RingSetup {
    /// The ring.
    pub config: RingConfig,
    /// The driver signals it.
    pub kick: OwnedFd,
    /// The device signals it.
    pub call: OwnedFd,
}

/// Why a driver's rings cannot be started.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum StartError {
    /// There is a session already.
    #[error("the device is in use by a driver already")]
    Busy,
    /// A ring is impossible.
    #[error("queue {index}: {error}")]
    Ring {
        /// Which queue.
        index: usize,
        /// Why.
        error: RingError,
    },
    /// More rings than the device has queues.
    #[error("{wanted} queues are wanted, the device has {count}")]
    Queues {
        /// What the driver wants.
        wanted: usize,
        /// What the device has.
        count: usize,
    },
    /// The device closed its memory table.
    #[error(transparent)]
    Memory(#[from] MemoryError),
    /// The kick cannot be watched.
    #[error("a kick eventfd cannot be watched: {0}")]
    Kick(#[from] Errno),
}

/// The transport between a driver and a device of the same process.
#[derive(Debug, Default)]
pub struct InProcess {
    active: bool,
    config_changes: u64,
}

impl InProcess {
    /// The driver is ready: its features (a subset of what the device offers), memory and rings.
    pub fn start(
        &mut self,
        features: u64,
        memory: GuestMemory,
        rings: Vec<RingSetup>,
        control: &Arc<Control>,
        events: &mut VecDeque<Event>,
    ) -> Result<(), StartError> {
        if self.active {
            return Err(StartError::Busy);
        }
        let (wanted, count) = (rings.len(), control.queues.len());
        if wanted > count {
            return Err(StartError::Queues { wanted, count });
        }
        control.set_negotiated(features, 0);
        control.memory.replace(memory.clone())?;
        self.active = true;
        events.push_back(Event::Activate);
        for ((index, queue), ring) in (0u16..).zip(&control.queues).zip(rings) {
            queue.set_call(Some(ring.call));
            let started = queue.start(&ring.config, &memory);
            let started = started.map_err(|error| StartError::Ring { index: index.into(), error });
            if let Err(error) = started.and_then(|()| Ok(control.set_kick(index, Some(ring.kick))?)) {
                events.clear();
                self.active = false;
                stop_queues(control);
                return Err(error);
            }
            control.look_at(index, events);
        }
        Ok(())
    }

    /// The driver resets the device.
    pub fn stop(&mut self, control: &Arc<Control>, events: &mut VecDeque<Event>) {
        stop_queues(control);
        if std::mem::take(&mut self.active) {
            events.push_back(Event::Reset);
        }
        // A table that the device closed needs no emptying.
        let _ = control.memory.replace(GuestMemory::default());
        control.set_negotiated(0, 0);
    }

    /// How often the device changed its config space.
    pub fn config_changes(&self) -> u64 {
        self.config_changes
    }
}

fn stop_queues(control: &Control) {
    for (index, queue) in (0u16..).zip(&control.queues) {
        // Taking a kick away cannot fail: nothing is watched anew.
        let _ = control.set_kick(index, None);
        queue.stop();
        queue.set_call(None);
    }
}

impl Transport for InProcess {
    fn ready(&mut self, _which: u32, _control: &Arc<Control>, _events: &mut VecDeque<Event>) {}

    fn handled(&mut self, _control: &Arc<Control>, _events: &mut VecDeque<Event>) {}

    fn config_changed(&mut self, _control: &Arc<Control>) {
        self.config_changes += 1;
    }

    fn queue_failed(&mut self, _index: u16, _control: &Arc<Control>) {}
}
