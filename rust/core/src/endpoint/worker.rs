//! A thread per queue: its kicks, and the gate that keeps it out while the control plane changes something.

use std::{
    os::fd::AsFd,
    sync::{Arc, Condvar, Mutex, PoisonError},
    time::Instant,
};

use rustix::io::Errno;

use super::{
    Control, Event, SPINS,
    control::{KICK, STOP, lock, token},
};
use crate::{
    event_loop::{EventFd, EventLoop, Woken},
    ring::VirtQueue,
};

/// A queue that is served by a thread of its own.
#[derive(Debug)]
pub struct QueueWorker {
    index: u16,
    control: Arc<Control>,
    pub(super) event_loop: EventLoop,
    pub(super) wake: EventFd,
    pub(super) gate: Gate,
}

impl QueueWorker {
    pub(super) fn new(index: u16, control: Arc<Control>) -> Result<Self, Errno> {
        let event_loop = EventLoop::new()?;
        let wake = EventFd::new()?;
        event_loop.watch(wake.as_fd(), token(STOP, 0))?;
        Ok(Self { index, control, event_loop, wake, gate: Gate::default() })
    }

    /// Which queue it is.
    pub fn index(&self) -> u16 {
        self.index
    }

    /// Says that the device is done with the last kick, and waits for the next one.
    pub fn wait(&self) -> Result<Event, Errno> {
        let queue = &self.control.queues[usize::from(self.index)];
        let mut awake = self.gate.leave();
        let mut more = awake && queue.processed();
        loop {
            if self.control.is_stopping() {
                return Ok(Event::Stopped);
            }
            if more && self.enter() {
                return Ok(Event::Kick(self.index));
            }
            if std::mem::take(&mut awake) && !self.control.patience.is_zero() {
                more = self.watch_queue(queue);
                continue;
            }
            let mut ready = Vec::new();
            if self.event_loop.wait(None, &mut ready)? == Woken::Interrupted {
                return Ok(Event::Interrupted);
            }
            for token in ready {
                match token >> 32 {
                    KICK => drop(self.control.drain_kick(self.index)),
                    _ => self.wake.drain(),
                }
            }
            // Also when woken without a kick: the queue may have just begun to run.
            more = true;
        }
    }

    /// As [`Endpoint`] does for the queues that it serves itself.
    fn watch_queue(&self, queue: &VirtQueue) -> bool {
        let until = Instant::now() + self.control.patience;
        while Instant::now() < until && !self.control.is_stopping() {
            for _ in 0..SPINS {
                if queue.has_work() {
                    return true;
                }
                std::hint::spin_loop();
            }
        }
        queue.sleep()
    }

    fn enter(&self) -> bool {
        self.gate.enter();
        let runs = self.control.kicked(self.index);
        if !runs {
            self.gate.leave();
        }
        runs
    }
}

/// Keeps a queue's thread out of the device while the control plane changes something.
#[derive(Debug, Default)]
pub(super) struct Gate {
    state: Mutex<GateState>,
    changed: Condvar,
}

#[derive(Debug, Default)]
struct GateState {
    inside: bool,
    held: bool,
}

impl Gate {
    fn enter(&self) {
        let mut state = lock(&self.state);
        while state.held {
            state = self.changed.wait(state).unwrap_or_else(PoisonError::into_inner);
        }
        state.inside = true;
    }

    /// True if the thread was inside.
    fn leave(&self) -> bool {
        let was_inside = std::mem::take(&mut lock(&self.state).inside);
        self.changed.notify_all();
        was_inside
    }

    pub(super) fn hold(&self) {
        let mut state = lock(&self.state);
        state.held = true;
        while state.inside {
            state = self.changed.wait(state).unwrap_or_else(PoisonError::into_inner);
        }
    }

    pub(super) fn release(&self) {
        lock(&self.state).held = false;
        self.changed.notify_all();
    }
}
