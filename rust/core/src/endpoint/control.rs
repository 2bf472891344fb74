//! What device, transport and other threads share of an endpoint: queues, memory, config space, watches, kicks.

use std::{
    collections::{BTreeMap, VecDeque},
    os::fd::{AsFd, BorrowedFd, OwnedFd},
    sync::{
        Arc, Mutex, MutexGuard, PoisonError,
        atomic::{AtomicBool, Ordering},
    },
    time::Duration,
};

use rustix::io::Errno;

use super::{Event, Offer, QueueWorker};
use crate::{
    event_loop::{EventFd, EventLoop, drain},
    memory::SharedMemoryTable,
    ring::{RingConfig, RingError, VirtQueue},
};

/// The part of an endpoint that may be used from any thread, and that device and transport share.
#[derive(Debug)]
pub struct Control {
    /// Feature bits that the device offers.
    pub features: u64,
    /// All queues of the device, running or not.
    pub queues: Vec<Arc<VirtQueue>>,
    /// The memory table as it is now.
    pub memory: Arc<SharedMemoryTable>,
    pub(super) patience: Duration,
    pub(super) config: Mutex<Config>,
    /// Virtio features, then transport features, of the present session.
    negotiated: Mutex<(u64, u64)>,
    /// Queues that went into their error state and that the transport was not told of yet.
    pub(super) failed: Mutex<Vec<u16>>,
    pub(super) event_loop: EventLoop,
    pub(super) wake: EventFd,
    stopping: AtomicBool,
    pub(super) watches: Mutex<Watches>,
    pub(super) workers: Mutex<BTreeMap<u16, Arc<QueueWorker>>>,
    kicks: Mutex<Vec<Option<OwnedFd>>>,
    /// By which those that queues were handed over to call the driver.
    calls: Mutex<BTreeMap<u16, EventFd>>,
}

/// A queue that somebody else serves from now on: see [`Control::hand_over`].
#[derive(Debug)]
pub struct HandedOver {
    /// Where the ring is, and from where on it is to be served.
    pub ring: RingConfig,
    /// Signalled by the driver.
    pub kick: OwnedFd,
    /// To be signalled for the driver.
    pub call: OwnedFd,
}

#[derive(Debug)]
pub(super) struct Config {
    bytes: Vec<u8>,
    /// Counts the device's changes.
    generation: u32,
    pub(super) changed: bool,
}

#[derive(Debug, Default)]
pub(super) struct Watches {
    next: u32,
    pub(super) open: BTreeMap<u32, OwnedFd>,
}

/// A lock whose holder panicked still guards whole data here: each critical section is a plain assignment.
pub(super) fn lock<T>(mutex: &Mutex<T>) -> MutexGuard<'_, T> {
    mutex.lock().unwrap_or_else(PoisonError::into_inner)
}

/// A token is what and which.
pub(super) const STOP: u64 = 0;
pub(super) const KICK: u64 = 1;
pub(super) const WATCH: u64 = 2;
pub(super) const TRANSPORT: u64 = 3;
pub(super) const CALL: u64 = 4;

pub(super) fn token(what: u64, which: u32) -> u64 {
    what << 32 | u64::from(which)
}

impl Control {
    pub(super) fn new(offer: Offer) -> Result<Arc<Self>, Errno> {
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
            config: Mutex::new(Config { bytes: offer.config, generation: 0, changed: false }),
            negotiated: Mutex::default(),
            failed: Mutex::default(),
            event_loop,
            wake,
            stopping: AtomicBool::new(false),
            watches: Mutex::default(),
            workers: Mutex::default(),
            calls: Mutex::default(),
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
        config.generation = config.generation.wrapping_add(1);
        config.changed = true;
        self.wake.signal();
    }

    /// Changes with each change of the config space by the device.
    pub fn config_generation(&self) -> u32 {
        lock(&self.config).generation
    }

    /// Bytes of the config space from `offset` on, all of one generation. What lies behind its end stays as it is.
    pub fn read_config(&self, offset: u64, bytes: &mut [u8]) {
        let config = lock(&self.config);
        let start = usize::try_from(offset).unwrap_or(usize::MAX);
        let rest = config.bytes.get(start..).unwrap_or_default();
        bytes.iter_mut().zip(rest).for_each(|(to, from)| *to = *from);
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
            // In this order: the frontend, once it hears of the error, may ask what the transport knows.
            lock(&self.failed).push(index);
            queue.fail(RingError::DeviceFailed);
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

    /// Lets somebody else serve a running queue until the session ends: kicks go there, and what is signalled there
    /// calls the driver in the transport's own way. `None` when the queue does not run, or has no kick.
    pub fn hand_over(&self, index: u16) -> Result<Option<HandedOver>, Errno> {
        let Some(queue) = self.queues.get(usize::from(index)) else { return Ok(None) };
        let kick = {
            let kicks = lock(&self.kicks);
            let Some(Some(kick)) = kicks.get(usize::from(index)) else { return Ok(None) };
            self.event_loop.unwatch(kick.as_fd());
            rustix::io::fcntl_dupfd_cloexec(kick, 3)?
        };
        let call = EventFd::new()?;
        let theirs = rustix::io::fcntl_dupfd_cloexec(&call, 3)?;
        self.event_loop.watch(call.as_fd(), token(CALL, index.into()))?;
        lock(&self.calls).insert(index, call);
        Ok(queue.hand_over().map(|ring| HandedOver { ring, kick, call: theirs }))
    }

    /// Who serves a queue that was handed over calls the driver.
    pub(super) fn called(&self, index: u16) {
        if let (Some(call), Some(queue)) =
            (lock(&self.calls).get(&index), self.queues.get(usize::from(index)))
        {
            call.drain();
            queue.called();
        }
    }

    /// Takes a queue back that the driver stopped. True if it was handed over: who serves it is to be told.
    pub fn take_back(&self, index: u16) -> bool {
        let Some(call) = lock(&self.calls).remove(&index) else { return false };
        self.event_loop.unwatch(call.as_fd());
        true
    }

    /// Ends all watches: they belong to a session. So does what was handed over.
    pub fn unwatch_all(&self) {
        for call in std::mem::take(&mut *lock(&self.calls)).values() {
            self.event_loop.unwatch(call.as_fd());
        }
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

    pub(super) fn drain_kick(&self, index: u16) -> bool {
        let kicks = lock(&self.kicks);
        let Some(Some(fd)) = kicks.get(usize::from(index)) else { return false };
        drain(fd.as_fd());
        true
    }

    /// Takes a kick: true if the queue runs, so that the device should look at it.
    pub(super) fn kicked(&self, index: u16) -> bool {
        let Some(queue) = self.queues.get(usize::from(index)) else { return false };
        if !self.patience.is_zero() {
            queue.set_polled(true);
        }
        queue.kicked()
    }
}
