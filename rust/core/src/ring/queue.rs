//! A virtqueue, shared: by the threads that take chains and those that complete them, and by the
//! control plane that starts and stops it.

use std::{
    os::fd::{AsFd, OwnedFd},
    sync::{Arc, Mutex, MutexGuard, PoisonError, RwLock},
};

use super::{
    Ring, RingConfig, SplitRing, background::Background, batch::BatchStorage, chain::Segment,
    error::RingError,
};
use crate::{
    event_loop::signal,
    memory::{GuestMemory, Lease, Owner},
};

/// What a queue does.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum QueueState {
    /// No ring: nothing comes out of it.
    Stopped,
    /// It has a ring.
    Running,
    /// The driver broke a rule (or the device failed): nothing comes out of it until it is stopped.
    Failed(RingError),
}

/// What happened on a queue since it was made.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct QueueCounters {
    /// Notifications by the driver.
    pub kicks: u64,
    /// Chains completed.
    pub chains: u64,
    /// Device-readable bytes that completed chains were read for.
    pub bytes_read: u64,
    /// Used lengths of completed chains.
    pub bytes_written: u64,
    /// Notifications of the driver.
    pub calls: u64,
    /// Rules broken.
    pub errors: u64,
}

/// How a driver is called, where an eventfd alone does not do: a device with registers says there why, before it interrupts.
pub trait Caller: std::fmt::Debug + Send + Sync {
    /// A buffer was used, and the driver wants to know. Any thread may call it, with the queue locked: nothing is to be asked
    /// of the queue here.
    fn call(&self);
}

#[derive(Debug)]
enum Call {
    EventFd(OwnedFd),
    By(Arc<dyn Caller>),
}

#[derive(Debug)]
pub(super) struct Inner {
    pub owner: Owner,
    /// As in the queue's own; here it is asked for under the lock that one has anyway.
    pub generation: u64,
    pub ring: Option<Ring>,
    pub failed: Option<RingError>,
    pub paused: bool,
    /// Somebody else serves the ring.
    pub handed_over: bool,
    config: Option<RingConfig>,
    pub polled: bool,
    call: Option<Call>,
    err: Option<OwnedFd>,
    pub counters: QueueCounters,
    pub spare: Vec<Vec<Segment>>,
    pub spare_batches: Vec<BatchStorage>,
}

impl Inner {
    fn new() -> Self {
        Self {
            owner: Owner::this_process(),
            generation: 0,
            ring: None,
            failed: None,
            paused: false,
            handed_over: false,
            config: None,
            polled: false,
            call: None,
            err: None,
            counters: QueueCounters::default(),
            spare: Vec::new(),
            spare_batches: Vec::new(),
        }
    }

    /// The ring, when chains may be taken from it.
    pub(super) fn running(&mut self) -> Result<Option<&mut SplitRing>, RingError> {
        if !self.owner.is_this_process() {
            return Err(RingError::Forked);
        }
        if let Some(error) = &self.failed {
            return Err(error.clone());
        }
        match &mut self.ring {
            Some(Ring::Split(ring)) if !self.paused && !self.handed_over => Ok(Some(ring)),
            _ => Ok(None),
        }
    }

    pub(super) fn split(&mut self) -> Option<&mut SplitRing> {
        self.ring.as_mut().map(|Ring::Split(ring)| ring)
    }

    pub(super) fn call(&mut self) {
        self.counters.calls += 1;
        match &self.call {
            Some(Call::EventFd(call)) => signal(call.as_fd()),
            Some(Call::By(caller)) => caller.call(),
            None => {}
        }
    }

    /// Puts the queue in its error state, once.
    pub(super) fn fail(&mut self, error: RingError) -> RingError {
        if self.failed.is_none() {
            self.failed = Some(error.clone());
            self.counters.errors += 1;
            if let Some(err) = &self.err {
                signal(err.as_fd());
            }
        }
        error
    }
}

/// One virtqueue of a device. All methods may be called from any thread.
#[derive(Debug)]
pub struct VirtQueue {
    index: u16,
    max_size: u16,
    inner: Mutex<Inner>,
    /// Grows with every start and stop. Who copies from or to a chain holds it for reading, so that a
    /// stop waits for the copy, and none begins after it. Taken after `inner`, never before.
    generation: RwLock<u64>,
    /// What works on chains while no call is inside of the queue.
    pub(super) background: Mutex<Option<Arc<dyn Background>>>,
}

impl VirtQueue {
    /// A stopped queue, of at most `max_size` descriptors.
    pub fn new(index: u16, max_size: u16) -> Self {
        let (inner, generation) = (Mutex::new(Inner::new()), RwLock::new(0));
        Self { index, max_size, inner, generation, background: Mutex::default() }
    }

    /// Nothing that runs under the lock panics; if it does, the data is still whole.
    pub(super) fn lock(&self) -> MutexGuard<'_, Inner> {
        self.inner.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Which queue of its device it is.
    pub fn index(&self) -> u16 {
        self.index
    }

    /// The most descriptors that its ring may have.
    pub fn max_size(&self) -> u16 {
        self.max_size
    }

    /// Descriptors of its ring; of the largest that it may have, while there is none.
    pub fn size(&self) -> u16 {
        match &self.lock().ring {
            Some(Ring::Split(ring)) => ring.size(),
            None => self.max_size,
        }
    }

    /// Checks the ring and starts it; kicks are asked for. Look at it then, as after a kick: what is in it
    /// already is kicked for no more. Chains of an earlier ring become stale.
    pub fn start(&self, config: &RingConfig, memory: &GuestMemory) -> Result<(), RingError> {
        let mut inner = self.lock();
        if config.size > self.max_size {
            let error = RingError::QueueSize { size: config.size.into(), max: self.max_size };
            return Err(inner.fail(error));
        }
        let mut ring = config.activate(memory).map_err(|error| inner.fail(error))?;
        self.advance(&mut inner);
        let Ring::Split(split) = &mut ring;
        split.set_polled(inner.polled);
        // Whoever served the ring before may have asked for no kicks. What is wrong with the ring is told
        // when a chain is taken.
        let _ = split.arm();
        let resumed = split.resumed();
        let before = inner.ring.replace(ring);
        inner.failed = None;
        inner.paused = false;
        inner.handed_over = false;
        inner.config = Some(*config);
        if resumed {
            // Whoever served the ring before may have died between the used index and the call.
            inner.call();
        }
        drop(inner);
        if before.is_some() {
            self.settle();
        }
        Ok(())
    }

    /// The memory table changed while the ring runs: the ring's addresses are translated again. Chains
    /// that were taken before keep the old memory.
    pub fn update_memory(&self, memory: &GuestMemory) -> Result<(), RingError> {
        let mut inner = self.lock();
        match inner.split().map(|ring| ring.update_memory(memory)) {
            Some(Err(error)) => Err(inner.fail(error)),
            _ => Ok(()),
        }
    }

    /// Stops the ring: when this returns, nobody reads or writes its memory any more, and the chains
    /// that were taken are stale. Returns the available index to go on with, which lies before the
    /// newest chains that were not completed; `None` when there was no ring.
    ///
    /// It waits for copies, and for what works in the background (see [`Background`]) to be cancelled or done.
    pub fn stop(&self) -> Option<u16> {
        let mut inner = self.lock();
        self.advance(&mut inner);
        inner.failed = None;
        inner.paused = false;
        inner.handed_over = false;
        let ring = inner.ring.take();
        drop(inner);
        self.settle();
        // Only now: what is mapped for single chains goes with the ring.
        ring.map(|Ring::Split(ring)| ring.resume_index())
    }

    /// Lets somebody else serve the ring (a daemon, in a process of its own) until it is stopped: no chain is taken
    /// here any more, and nobody looks; where it is stopped they know, and we do not. Gives what the ring was started
    /// with; `None` when there is no ring.
    pub fn hand_over(&self) -> Option<RingConfig> {
        let mut inner = self.lock();
        inner.ring.as_ref()?;
        inner.handed_over = true;
        inner.config
    }

    /// Calls the driver for whoever the ring was handed over to.
    pub fn called(&self) {
        self.lock().call();
    }

    /// Begins a new generation, after the last copy of the old one has ended.
    fn advance(&self, inner: &mut Inner) {
        inner.generation += 1;
        *self.generation.write().unwrap_or_else(PoisonError::into_inner) = inner.generation;
    }

    /// Runs a copy, if this is still the generation, and keeps the queue from being stopped meanwhile. Nothing
    /// else may be asked of the queue inside.
    pub(crate) fn while_current<T>(&self, generation: u64, copy: impl FnOnce() -> T) -> Option<T> {
        let current = self.generation.read().unwrap_or_else(PoisonError::into_inner);
        (*current == generation).then(copy)
    }

    /// What is mapped for one chain alone; not to be asked for inside of `while_current`.
    pub(super) fn leases(&self, generation: u64, head: u16) -> Vec<Lease> {
        let mut inner = self.lock();
        let current = inner.generation == generation;
        inner.split().filter(|_| current).map_or_else(Vec::new, |ring| ring.leases(head).to_vec())
    }

    /// True while nobody copies from or to a chain.
    #[cfg(test)]
    pub(super) fn generation_is_free(&self) -> bool {
        self.generation.try_write().is_ok()
    }

    /// How often the queue was started and stopped: chains of another generation are stale.
    pub fn generation(&self) -> u64 {
        *self.generation.read().unwrap_or_else(PoisonError::into_inner)
    }

    /// No more chains are handed out; those that were may be completed.
    pub fn pause(&self) {
        self.lock().paused = true;
    }

    /// Ends a pause. Look at the queue then, as after a kick.
    pub fn resume(&self) {
        self.lock().paused = false;
    }

    /// True while it has a ring, paused and failed ones included.
    pub fn is_started(&self) -> bool {
        self.lock().ring.is_some()
    }

    /// What the queue does.
    pub fn state(&self) -> QueueState {
        let inner = self.lock();
        match (&inner.failed, &inner.ring) {
            (Some(error), _) => QueueState::Failed(error.clone()),
            (None, Some(_)) => QueueState::Running,
            (None, None) => QueueState::Stopped,
        }
    }

    /// Puts the queue in its error state and signals the error eventfd.
    pub fn fail(&self, error: RingError) {
        self.lock().fail(error);
    }

    /// What happened so far.
    pub fn counters(&self) -> QueueCounters {
        self.lock().counters
    }

    /// How many chains are held by somebody who may complete them.
    pub fn kept(&self) -> usize {
        self.lock().split().map_or(0, |ring| ring.in_flight().kept())
    }

    /// How many chains were dropped without having been completed: they stay with the device.
    pub fn abandoned(&self) -> usize {
        self.lock().split().map_or(0, |ring| ring.in_flight().abandoned())
    }

    /// The heads of the kept chains, oldest first.
    pub fn kept_heads(&self) -> Vec<u16> {
        self.lock().split().map(|ring| ring.kept_heads()).unwrap_or_default()
    }

    /// The eventfd by which the driver is called. On a running ring it is signalled at once: a call may
    /// have been wanted while there was none.
    pub fn set_call(&self, call: Option<OwnedFd>) {
        self.call_by(call.map(Call::EventFd));
    }

    /// As [`set_call`](Self::set_call), for a driver that is called in another way.
    pub fn set_caller(&self, caller: Arc<dyn Caller>) {
        self.call_by(Some(Call::By(caller)));
    }

    fn call_by(&self, call: Option<Call>) {
        let mut inner = self.lock();
        inner.call = call;
        if inner.ring.is_some() && inner.call.is_some() {
            inner.call();
        }
    }

    /// The eventfd by which the frontend hears of an error.
    pub fn set_err(&self, err: Option<OwnedFd>) {
        let mut inner = self.lock();
        inner.err = err;
        if let (Some(err), Some(_)) = (&inner.err, &inner.failed) {
            signal(err.as_fd());
        }
    }
}

#[cfg(test)]
mod tests {
    use super::{super::test_guest::*, *};
    use crate::ring::{ChainError, QueueChain, RingFeatures};

    fn started(features: RingFeatures) -> (TestGuest, Arc<VirtQueue>) {
        let guest = TestGuest::new(8, features);
        let queue = Arc::new(VirtQueue::new(0, 256));
        queue.start(&guest.config, &guest.memory).unwrap();
        (guest, queue)
    }

    #[test]
    fn a_direct_chain_is_read_written_and_used() {
        let (mut guest, queue) = started(RingFeatures::default());
        guest.put(DATA, b"question");
        guest.chain(2, &[(DATA, 3, 0), (DATA + 3, 5, 0), (DATA + 16, 4, WRITE), (DATA + 32, 4, WRITE)]);
        let mut chain = queue.pop().unwrap().unwrap();
        assert_eq!((chain.head(), chain.readable(), chain.writable()), (2, 8, 8));
        let mut question = [0; 16];
        assert_eq!(chain.read(&mut question), Ok(8));
        assert_eq!(&question[..8], b"question");
        chain.write(b"answer").unwrap();
        assert_eq!(chain.write(b"s  "), Err(ChainError::DoesNotFit { head: 2, len: 3, room: 2 }));
        chain.complete(None).unwrap();
        assert_eq!(guest.used_index(), 1);
        assert_eq!(guest.used(0), (2, 6));
        assert_eq!((guest.get(DATA + 16, 4), guest.get(DATA + 32, 2)), (b"answ".to_vec(), b"er".to_vec()));
        assert!(queue.pop().unwrap().is_none());
    }

    #[test]
    fn chains_that_are_completed_together_are_published_at_once() {
        let (mut guest, queue) = started(RingFeatures::default());
        for head in 0..3 {
            guest.chain(head, &[(DATA + u64::from(head) * 16, 16, WRITE)]);
        }
        let mut chains: Vec<_> = std::iter::from_fn(|| queue.pop().unwrap()).collect();
        chains[1].write(b"second").unwrap();
        chains[2].write(b"last").unwrap();
        let [first, second, last] = &mut chains[..] else { panic!("three chains") };
        QueueChain::complete_together(&mut [last, second]).unwrap();
        assert_eq!(guest.used_index(), 2);
        assert_eq!((guest.used(0), guest.used(1)), ((2, 4), (1, 6)));
        let again = QueueChain::complete_together(&mut [first, second]);
        assert_eq!(again, Err(ChainError::Completed { head: 1 }));
        assert_eq!((guest.used_index(), first.completed()), (2, false));
        queue.stop();
        assert_eq!(QueueChain::complete_together(&mut [first]), Err(ChainError::Stale { head: 0 }));
    }

    #[test]
    fn an_indirect_table_may_follow_direct_descriptors() {
        let (mut guest, queue) = started(RingFeatures { indirect: true, ..RingFeatures::default() });
        guest.table(TABLE, 0, &[(DATA + 4, 4, 0), (DATA + 8, 8, WRITE), (DATA + 16, 0, WRITE)]);
        guest.chain(0, &[(DATA, 4, 0), (TABLE, 48, INDIRECT | WRITE)]);
        let chain = queue.pop().unwrap().unwrap();
        assert_eq!((chain.readable(), chain.writable()), (8, 8));
    }

    #[test]
    fn a_stopped_queue_makes_its_chains_stale_and_goes_on_before_them() {
        let (mut guest, queue) = started(RingFeatures::default());
        for head in 0..3 {
            guest.chain(head, &[(DATA, 8, WRITE)]);
        }
        let [mut first, second, mut third] = [(); 3].map(|()| queue.pop().unwrap().unwrap());
        first.complete(None).unwrap();
        assert_eq!((queue.kept(), queue.kept_heads()), (2, vec![1, 2]));
        drop(second);
        assert_eq!((queue.kept(), queue.abandoned()), (1, 1));
        assert_eq!(queue.stop(), Some(1));
        assert_eq!(third.write(b"x"), Err(ChainError::Stale { head: 2 }));
        assert_eq!(third.complete(None), Err(ChainError::Stale { head: 2 }));
        assert_eq!(guest.get(DATA, 1), [0]);
        assert_eq!(guest.used_index(), 1);
    }
}
