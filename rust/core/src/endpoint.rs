//! The event loop of one device behind one transport.
//!
//! [`Endpoint::wait`] gives the next [`Event`] that the device has to deal with; the *next* call of it says that
//! the device is done with the last one. So there are no callbacks into the device, a device method never
//! runs beside a change of its memory table or of its queues, and a reply that has to wait for the device
//! (an acknowledged SET_CONFIG, say) goes out at the right moment.
//!
//! A device that wants a thread per queue gets its kicks from [`QueueWorker::wait`] instead, and the
//! endpoint keeps the workers out while the control plane changes something.

use std::{
    collections::{BTreeMap, VecDeque},
    os::fd::{AsFd, BorrowedFd, OwnedFd},
    sync::{
        Arc, Condvar, Mutex, MutexGuard, PoisonError,
        atomic::{AtomicBool, Ordering},
    },
    time::{Duration, Instant},
};

use rustix::io::Errno;

use crate::{
    event_loop::{EventFd, EventLoop, Woken, drain},
    memory::SharedMemoryTable,
    ring::{RingError, VirtQueue},
};

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

/// The part of an endpoint that may be used from any thread, and that device and transport share.
#[derive(Debug)]
pub struct Control {
    /// Feature bits that the device offers.
    pub features: u64,
    /// All queues of the device, running or not.
    pub queues: Vec<Arc<VirtQueue>>,
    /// The memory table as it is now.
    pub memory: Arc<SharedMemoryTable>,
    patience: Duration,
    config: Mutex<Config>,
    /// Virtio features, then transport features, of the present session.
    negotiated: Mutex<(u64, u64)>,
    /// Queues that went into their error state and that the transport was not told of yet.
    failed: Mutex<Vec<u16>>,
    event_loop: EventLoop,
    wake: EventFd,
    stopping: AtomicBool,
    watches: Mutex<Watches>,
    workers: Mutex<BTreeMap<u16, Arc<QueueWorker>>>,
    kicks: Mutex<Vec<Option<OwnedFd>>>,
}

#[derive(Debug)]
struct Config {
    bytes: Vec<u8>,
    changed: bool,
}

#[derive(Debug, Default)]
struct Watches {
    next: u32,
    open: BTreeMap<u32, OwnedFd>,
}

/// A lock whose holder panicked still guards whole data here: each critical section is a plain assignment.
fn lock<T>(mutex: &Mutex<T>) -> MutexGuard<'_, T> {
    mutex.lock().unwrap_or_else(PoisonError::into_inner)
}

/// A token is what and which.
const STOP: u64 = 0;
const KICK: u64 = 1;
const WATCH: u64 = 2;
const TRANSPORT: u64 = 3;

fn token(what: u64, which: u32) -> u64 {
    what << 32 | u64::from(which)
}

impl Control {
    fn new(offer: Offer) -> Result<Arc<Self>, Errno> {
        let event_loop = EventLoop::new()?;
        let wake = EventFd::new()?;
        event_loop.watch(wake.as_fd(), token(STOP, 0))?;
        let queues: Vec<_> =
            (0u16..).zip(&offer.queue_sizes).map(|(i, &size)| Arc::new(VirtQueue::new(i, size))).collect();
        Ok(Arc::new(Self {
            features: offer.features,
            kicks: Mutex::new(queues.iter().map(|_| None).collect()),
            queues,
            patience: offer.patience,
            memory: Arc::default(),
            config: Mutex::new(Config { bytes: offer.config, changed: false }),
            negotiated: Mutex::default(),
            failed: Mutex::default(),
            event_loop,
            wake,
            stopping: AtomicBool::new(false),
            watches: Mutex::default(),
            workers: Mutex::default(),
        }))
    }

    /// Ends [`Endpoint::wait`] and every [`QueueWorker::wait`], now and for ever.
    pub fn stop(&self) {
        self.stopping.store(true, Ordering::Release);
        self.wake.signal();
        for worker in lock(&self.workers).values() {
            worker.wake.signal();
        }
    }

    /// True after [`Control::stop`].
    pub fn is_stopping(&self) -> bool {
        self.stopping.load(Ordering::Acquire)
    }

    /// The config space as it is now.
    pub fn config(&self) -> Vec<u8> {
        lock(&self.config).bytes.clone()
    }

    /// Replaces the config space; the driver is told by the transport.
    pub fn update_config(&self, bytes: Vec<u8>) {
        let mut config = lock(&self.config);
        config.bytes = bytes;
        config.changed = true;
        self.wake.signal();
    }

    /// Takes the driver's bytes into the config space, as far as they lie inside it.
    pub fn write_config(&self, offset: u32, data: &[u8]) -> bool {
        let mut config = lock(&self.config);
        let start = offset as usize;
        let range = start.checked_add(data.len()).and_then(|end| config.bytes.get_mut(start..end));
        range.map(|bytes| bytes.copy_from_slice(data)).is_some()
    }

    /// The virtio features and the transport's own features that the present driver agreed to.
    pub fn negotiated(&self) -> (u64, u64) {
        *lock(&self.negotiated)
    }

    /// The transport says what was agreed on.
    pub fn set_negotiated(&self, features: u64, transport_features: u64) {
        *lock(&self.negotiated) = (features, transport_features);
    }

    /// The device could not deal with this queue: it goes into its error state, and the transport tells the
    /// driver.
    pub fn fail_queue(&self, index: u16) {
        if let Some(queue) = self.queues.get(usize::from(index)) {
            queue.fail(RingError::DeviceFailed);
            lock(&self.failed).push(index);
            self.wake.signal();
        }
    }

    /// Watches a descriptor for input until the session ends or it is unwatched. Gives the watch's number.
    pub fn watch(&self, fd: OwnedFd) -> Result<u32, Errno> {
        let mut watches = lock(&self.watches);
        let id = watches.next;
        self.event_loop.watch(fd.as_fd(), token(WATCH, id))?;
        watches.next = watches.next.wrapping_add(1);
        watches.open.insert(id, fd);
        Ok(id)
    }

    /// Ends a watch; one that has ended already is no error.
    pub fn unwatch(&self, id: u32) {
        if let Some(fd) = lock(&self.watches).open.remove(&id) {
            self.event_loop.unwatch(fd.as_fd());
        }
    }

    /// Ends all watches: they belong to a session.
    pub fn unwatch_all(&self) {
        for fd in std::mem::take(&mut lock(&self.watches).open).values() {
            self.event_loop.unwatch(fd.as_fd());
        }
    }

    /// Sets or takes away the descriptor that kicks a queue. It is read only when it is readable, and
    /// made non-blocking, since the other side may read it as well.
    pub fn set_kick(&self, index: u16, kick: Option<OwnedFd>) -> Result<(), Errno> {
        let workers = lock(&self.workers);
        let event_loop = workers.get(&index).map_or(&self.event_loop, |worker| &worker.event_loop);
        let mut kicks = lock(&self.kicks);
        let Some(slot) = kicks.get_mut(usize::from(index)) else { return Ok(()) };
        if let Some(old) = slot.take() {
            event_loop.unwatch(old.as_fd());
        }
        if let Some(fd) = kick {
            rustix::io::ioctl_fionbio(&fd, true)?;
            event_loop.watch(fd.as_fd(), token(KICK, index.into()))?;
            *slot = Some(fd);
        }
        Ok(())
    }

    /// Watches a descriptor for the transport.
    pub fn watch_transport(&self, fd: BorrowedFd<'_>, which: u32) -> Result<(), Errno> {
        self.event_loop.watch(fd, token(TRANSPORT, which))
    }

    /// Watches a transport's descriptor for room to write as well, or no longer.
    pub fn watch_output(&self, fd: BorrowedFd<'_>, which: u32, output: bool) {
        self.event_loop.watch_output(fd, token(TRANSPORT, which), output);
    }

    /// Ends the watch of a transport's descriptor.
    pub fn unwatch_transport(&self, fd: BorrowedFd<'_>) {
        self.event_loop.unwatch(fd);
    }

    /// The loop, to be polled from another one (asyncio).
    pub fn as_fd(&self) -> BorrowedFd<'_> {
        self.event_loop.as_fd()
    }

    /// Lets a thread of its own serve this queue: from now on its kicks come from the worker.
    pub fn worker(self: &Arc<Self>, index: u16) -> Result<Arc<QueueWorker>, Errno> {
        let worker = Arc::new(QueueWorker::new(index, Arc::clone(self))?);
        lock(&self.workers).insert(index, Arc::clone(&worker));
        Ok(worker)
    }

    /// Has the device look at a queue that nobody may have kicked: it has just begun to run.
    pub fn look_at(&self, index: u16, events: &mut VecDeque<Event>) {
        match lock(&self.workers).get(&index) {
            Some(worker) => worker.wake.signal(),
            None => events.push_back(Event::Kick(index)),
        }
    }

    fn drain_kick(&self, index: u16) -> bool {
        let kicks = lock(&self.kicks);
        let Some(Some(fd)) = kicks.get(usize::from(index)) else { return false };
        drain(fd.as_fd());
        true
    }

    /// Takes a kick: true if the queue runs, so that the device should look at it.
    fn kicked(&self, index: u16) -> bool {
        let Some(queue) = self.queues.get(usize::from(index)) else { return false };
        if !self.patience.is_zero() {
            queue.set_polled(true);
        }
        queue.kicked()
    }
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
                TRANSPORT => {
                    self.hold_workers();
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

/// A queue that is served by a thread of its own.
#[derive(Debug)]
pub struct QueueWorker {
    index: u16,
    control: Arc<Control>,
    event_loop: EventLoop,
    wake: EventFd,
    gate: Gate,
}

impl QueueWorker {
    fn new(index: u16, control: Arc<Control>) -> Result<Self, Errno> {
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
struct Gate {
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

    fn hold(&self) {
        let mut state = lock(&self.state);
        state.held = true;
        while state.inside {
            state = self.changed.wait(state).unwrap_or_else(PoisonError::into_inner);
        }
    }

    fn release(&self) {
        lock(&self.state).held = false;
        self.changed.notify_all();
    }
}
