//! The event loop of one device behind one transport.
//!
//! [`Endpoint::wait`] gives the next [`Event`] that the device has to deal with; the *next* call of it says that
//! the device is done with the last one. So there are no callbacks into the device, a device method never
//! runs beside a change of its memory table or of its queues, and a reply that has to wait for the device
//! (an acknowledged SET_CONFIG, say) goes out at the right moment.
//!
//! A device that wants a thread per queue gets its kicks from [`QueueWorker::wait`] instead, and the
//! endpoint keeps the workers out while the control plane changes something.

mod control;
mod worker;

use std::{
    collections::VecDeque,
    sync::Arc,
    time::{Duration, Instant},
};

use rustix::io::Errno;

pub use control::{Control, HandedOver};
pub use worker::QueueWorker;

use crate::event_loop::Woken;
use control::{CALL, KICK, TRANSPORT, WATCH, lock};

/// What a device has to deal with.
#[derive(Debug, PartialEq, Eq)]
#[non_exhaustive]
pub enum Event {
    /// The driver is ready: features are agreed on, the first queue runs.
    Activate,
    /// The driver kicked this queue.
    Kick(u16),
    /// The driver wrote to the config space.
    ConfigWritten {
        /// Offset in the config space, in bytes.
        offset: u32,
        /// What was written; it lies inside the config space.
        data: Vec<u8>,
    },
    /// The driver reset the device, or is gone: kept chains are stale.
    Reset,
    /// The driver stopped a queue that was handed over, and waits until who serves it does so no longer.
    QueueStopped(u16),
    /// A watched descriptor is ready.
    Watch(u32),
    /// The connection ended; the text says why, if it was the peer's fault.
    Disconnected(Option<String>),
    /// Something that is worth a line in the log.
    Warning(String),
    /// [`Control::stop`] was called. Nothing comes after it.
    Stopped,
    /// The time of this wait ran out.
    TimedOut,
    /// A signal came in.
    Interrupted,
}

/// What a device offers.
#[derive(Clone, Debug)]
pub struct Offer {
    /// Feature bits: the device's own and those of the ring. The transport adds its own.
    pub features: u64,
    /// The largest size of each queue, in descriptors.
    pub queue_sizes: Vec<u16>,
    /// The config space.
    pub config: Vec<u8>,
    /// How long the queues are looked at again and again after the last request, before their threads
    /// sleep; zero sleeps at once.
    pub patience: Duration,
}

/// How the driver reaches the device: a vhost-user socket, registers trapped by Xen, or the same process.
pub trait Transport: Send {
    /// One of the transport's descriptors is ready. At most one step is taken, so that the device has dealt
    /// with what follows from it before the next.
    fn ready(&mut self, which: u32, control: &Arc<Control>, events: &mut VecDeque<Event>);
    /// The device has dealt with all events that followed from the last step.
    fn handled(&mut self, control: &Arc<Control>, events: &mut VecDeque<Event>);
    /// The config space has changed: tell the driver.
    fn config_changed(&mut self, control: &Arc<Control>);
    /// A queue went into its error state.
    fn queue_failed(&mut self, index: u16, control: &Arc<Control>);
    /// When [`Transport::handled`] is to be called again at the latest, because something is waited for.
    fn deadline(&self) -> Option<Instant> {
        None
    }
}

/// The event loop of one device behind one transport.
pub struct Endpoint<T> {
    control: Arc<Control>,
    transport: T,
    pending: VecDeque<Event>,
    /// The queue whose kick the device deals with now.
    processing: Option<u16>,
    turns: Turns,
    /// Queues are polled: the last request is not long ago.
    awake: bool,
    ready: Vec<u64>,
}

/// Looks between two looks at the descriptors while queues are polled.
const SPINS: u32 = 64;

/// Counts how often a queue may be looked at again before the others get their turn.
#[derive(Debug, Default)]
struct Turns(u32);

impl Turns {
    fn is_over(&mut self) -> bool {
        self.0 = (self.0 + 1) % 8;
        self.0 == 0
    }
}

impl<T: Transport> Endpoint<T> {
    /// Makes the endpoint; the transport watches nothing yet.
    pub fn new(offer: Offer, transport: T) -> Result<Self, Errno> {
        let control = Control::new(offer)?;
        let pending = VecDeque::new();
        let (processing, turns, awake, ready) = (None, Turns::default(), false, Vec::new());
        Ok(Self { control, transport, pending, processing, turns, awake, ready })
    }

    /// The part that other threads use.
    pub fn control(&self) -> &Arc<Control> {
        &self.control
    }

    /// Lets the transport take a step that does not come from a descriptor (a socket that is handed over).
    pub fn drive<R>(&mut self, step: impl FnOnce(&mut T, &Arc<Control>, &mut VecDeque<Event>) -> R) -> R {
        step(&mut self.transport, &self.control, &mut self.pending)
    }

    /// Says that the device is done with the last event, and waits for the next one.
    pub fn wait(&mut self, deadline: Option<Instant>) -> Result<Event, Errno> {
        let mut busy = match self.processing.take() {
            Some(index) if self.processed(index) => {
                self.pending.push_back(Event::Kick(index));
                true
            }
            _ => false,
        };
        loop {
            if self.control.is_stopping() {
                // A last step of the transport may have held them, and they have to see it as well.
                self.release_workers();
                return Ok(Event::Stopped);
            }
            // A queue that never runs dry must not keep the others, and the control plane, from their turn.
            if busy && self.turns.is_over() {
                self.look(Some(Instant::now()))?;
            }
            if let Some(event) = self.next_pending() {
                return Ok(event);
            }
            self.transport.handled(&self.control, &mut self.pending);
            if !self.pending.is_empty() {
                continue;
            }
            self.release_workers();
            busy = self.watch_queues()?;
            if busy {
                continue;
            }
            let until = [deadline, self.transport.deadline()].into_iter().flatten().min();
            match self.look(until)? {
                Woken::Interrupted => return Ok(Event::Interrupted),
                Woken::TimedOut if deadline.is_some_and(|at| at <= Instant::now()) => {
                    return Ok(Event::TimedOut);
                }
                _ => {}
            }
        }
    }

    /// The next of the events that are there, if the device still has to do with it.
    fn next_pending(&mut self) -> Option<Event> {
        while let Some(event) = self.pending.pop_front() {
            match event {
                Event::Kick(index) if self.control.kicked(index) => {
                    self.processing = Some(index);
                    self.awake = true;
                    return Some(event);
                }
                Event::Kick(_) => {}
                Event::Watch(id) if !lock(&self.control.watches).open.contains_key(&id) => {}
                Event::Reset => {
                    self.control.unwatch_all();
                    return Some(event);
                }
                _ => return Some(event),
            }
        }
        None
    }

    /// Waits for descriptors, and deals with those that are ready.
    fn look(&mut self, until: Option<Instant>) -> Result<Woken, Errno> {
        let woken = self.control.event_loop.wait(until, &mut self.ready)?;
        self.take_ready();
        Ok(woken)
    }

    /// Looks at the queues again and again for a while, instead of sleeping. True when something is there.
    fn watch_queues(&mut self) -> Result<bool, Errno> {
        if self.control.patience.is_zero() || !self.awake {
            return Ok(false);
        }
        let until = Instant::now() + self.control.patience;
        let workers: Vec<u16> = lock(&self.control.workers).keys().copied().collect();
        while Instant::now() < until {
            for _ in 0..SPINS {
                for queue in &self.control.queues {
                    if !workers.contains(&queue.index()) && queue.has_work() {
                        self.pending.push_back(Event::Kick(queue.index()));
                    }
                }
                if !self.pending.is_empty() {
                    return Ok(true);
                }
                std::hint::spin_loop();
            }
            if self.look(Some(Instant::now()))? == Woken::Ready {
                return Ok(true);
            }
        }
        self.awake = false;
        for queue in &self.control.queues {
            if !workers.contains(&queue.index()) && queue.sleep() {
                self.pending.push_back(Event::Kick(queue.index()));
            }
        }
        Ok(!self.pending.is_empty())
    }

    /// Says that the device is done with the kick of a queue: true if the driver added something since. Only
    /// for those who deal with several events at once (asyncio); [`Endpoint::wait`] does it for the others.
    pub fn processed(&mut self, index: u16) -> bool {
        self.control.queues.get(usize::from(index)).is_some_and(|queue| queue.processed())
    }

    /// As [`Endpoint::wait`], without waiting; the caller says [`Endpoint::processed`] itself.
    pub fn poll(&mut self) -> Result<Event, Errno> {
        let event = self.wait(Some(Instant::now()));
        self.processing = None;
        event
    }

    /// When [`Endpoint::poll`] is to be called again though nothing is ready.
    pub fn deadline(&self) -> Option<Instant> {
        self.transport.deadline()
    }

    fn take_ready(&mut self) {
        for token in std::mem::take(&mut self.ready) {
            let which = token as u32;
            match token >> 32 {
                KICK => {
                    if self.control.drain_kick(which as u16) {
                        self.pending.push_back(Event::Kick(which as u16));
                    }
                }
                WATCH => self.pending.push_back(Event::Watch(which)),
                CALL => self.control.called(which as u16),
                TRANSPORT => {
                    self.hold_workers();
                    // What happened before the frontend asked is what it shall hear of.
                    self.tell_transport();
                    self.transport.ready(which, &self.control, &mut self.pending);
                }
                _ => {
                    self.control.wake.drain();
                    self.tell_transport();
                }
            }
        }
    }

    /// What other threads changed, the transport tells the driver.
    fn tell_transport(&mut self) {
        if std::mem::take(&mut lock(&self.control.config).changed) {
            self.transport.config_changed(&self.control);
        }
        let failed = std::mem::take(&mut *lock(&self.control.failed));
        for index in failed {
            self.transport.queue_failed(index, &self.control);
        }
    }

    fn hold_workers(&self) {
        for worker in lock(&self.control.workers).values() {
            worker.gate.hold();
        }
    }

    fn release_workers(&self) {
        for worker in lock(&self.control.workers).values() {
            worker.gate.release();
        }
    }
}
