//! The data path of a queue: looking, taking chains, giving them back.

use std::sync::Arc;

use super::{
    SplitRing,
    batch::{BatchStorage, QueueBatch},
    chain::{Chain, QueueChain, Segment},
    chain_error::ChainError,
    error::RingError,
    queue::VirtQueue,
    requests::BatchLayout,
};

/// How many lists of segments are kept for the next chains.
const SPARE: usize = 64;
/// How much storage of batches is kept for the next ones.
const SPARE_BATCHES: usize = 2;

impl VirtQueue {
    /// The driver kicked, and the device is about to look: no more kicks until [`Self::processed`].
    /// False when there is nothing to look at: the queue does not run, is paused or failed.
    pub fn kicked(&self) -> bool {
        let mut inner = self.lock();
        let Ok(Some(ring)) = inner.running() else { return false };
        ring.disarm();
        let looked = ring.look();
        inner.counters.kicks += 1;
        if let Err(error) = looked {
            inner.fail(error);
        }
        true
    }

    /// From now on somebody looks by [`Self::has_work`], and no kicks are asked for; or no longer. See
    /// [`Self::sleep`].
    pub fn set_polled(&self, polled: bool) {
        let mut inner = self.lock();
        inner.polled = polled;
        if let Some(ring) = inner.split() {
            ring.set_polled(polled);
        }
    }

    /// Ends the polling: kicks are asked for again. True when there is something already.
    pub fn sleep(&self) -> bool {
        self.set_polled(false);
        self.processed()
    }

    /// Has the driver added something since anybody looked? Asks for no kick. What a device left in the
    /// ring (buffers to receive into, say) does not count: it was looked at.
    pub fn has_work(&self) -> bool {
        let mut inner = self.lock();
        match inner.running().map(|ring| ring.map(SplitRing::has_more)) {
            Ok(Some(Ok(more))) => more,
            Ok(Some(Err(error))) => {
                inner.fail(error);
                false
            }
            _ => false,
        }
    }

    /// The device has looked: asks for a kick for whatever comes on top, also when the device left
    /// chains in the ring. Returns true when something came that nobody has looked at; no kick was
    /// sent for it, so let the device look again, after [`Self::kicked`].
    pub fn processed(&self) -> bool {
        let mut inner = self.lock();
        match inner.running().map(|ring| ring.map(SplitRing::arm)) {
            Ok(Some(Ok(more))) => more,
            Ok(Some(Err(error))) => {
                inner.fail(error);
                false
            }
            _ => false,
        }
    }

    /// Takes the next chain. `None` when the ring is empty: then a kick comes for the next one. Also
    /// when the queue is stopped or paused.
    pub fn pop(self: &Arc<Self>) -> Result<Option<QueueChain>, RingError> {
        let mut inner = self.lock();
        let generation = inner.generation;
        let mut segments = inner.spare.pop().unwrap_or_default();
        segments.clear();
        let Some(ring) = inner.running()? else { return Ok(None) };
        let mut take = || {
            while ring.is_drained() {
                if ring.look()? == 0 && !ring.arm()? {
                    return Ok(None);
                }
            }
            let extent = ring.take(&mut segments).map_err(|error| *error)?;
            ring.accept(extent.head);
            if ring.memory().poisoned() {
                // What was read may be the zeroes that stand in for it.
                ring.abandon(extent.head);
                return Err(RingError::MemoryFault);
            }
            Ok(Some(extent))
        };
        let taken = take();
        match taken {
            Ok(Some(extent)) => {
                let chain = Chain {
                    head: extent.head,
                    segments,
                    readable_segments: extent.readable_segments as usize,
                    readable: extent.readable,
                    writable: extent.writable,
                };
                let memory = ring.memory().clone();
                Ok(Some(QueueChain::new(Arc::clone(self), generation, memory, chain)))
            }
            Ok(None) => {
                inner.spare.push(segments);
                Ok(None)
            }
            Err(error) => Err(inner.fail(error)),
        }
    }

    /// Takes up to `limit` chains at once, each with a header and a trailer of the given sizes. `None`
    /// as for [`Self::pop`]. When a chain breaks a rule (or is too short for its header and trailer),
    /// those before it are handed out first.
    pub fn pop_batch(
        self: &Arc<Self>,
        limit: usize,
        layout: BatchLayout,
    ) -> Result<Option<QueueBatch>, RingError> {
        let mut inner = self.lock();
        let generation = inner.generation;
        let mut storage = inner.spare_batches.pop().unwrap_or_default();
        storage.requests.begin(layout);
        let Some(ring) = inner.running()? else { return Ok(None) };
        let taken = ring.take_many(limit, &mut storage.requests);
        if storage.requests.list.is_empty() {
            inner.spare_batches.push(storage);
            return taken.map(|()| None).map_err(|error| inner.fail(error));
        }
        let memory = ring.memory().clone();
        Ok(Some(QueueBatch::new(Arc::clone(self), generation, memory, storage)))
    }

    /// Puts a chain in the used ring, and calls if the driver wants. Takes its storage back.
    pub(super) fn complete(
        &self,
        generation: u64,
        head: u16,
        written: u64,
        read: u64,
        segments: &mut Vec<Segment>,
    ) -> Result<(), ChainError> {
        let mut inner = self.lock();
        if !inner.owner.is_this_process() {
            return Err(ChainError::Forked { head });
        }
        if inner.generation != generation {
            return Err(ChainError::Stale { head });
        }
        let ring = inner.split().ok_or(ChainError::Stale { head })?;
        // A chain of exactly 2^32 writable bytes claims one less: the field has no room for it.
        match ring.put(head, u32::try_from(written).unwrap_or(u32::MAX)) {
            Ok(true) => {}
            Ok(false) => return Err(ChainError::Completed { head }),
            Err(error) => {
                inner.fail(*error);
                return Err(ChainError::Fault { head });
            }
        }
        let call = ring.publish();
        inner.counters.chains += 1;
        inner.counters.bytes_read += read;
        inner.counters.bytes_written += written;
        if inner.spare.len() < SPARE {
            inner.spare.push(std::mem::take(segments));
        }
        if call {
            inner.call();
        }
        Ok(())
    }

    /// Puts chains in the used ring, each with its head, the bytes written and the bytes read; publishes
    /// them together and calls at most once. `None` when the generation has ended, or ends with a chain whose memory cannot be
    /// written.
    pub(super) fn complete_all(
        &self,
        generation: u64,
        chains: impl Iterator<Item = (u16, u64, u64)>,
    ) -> Option<()> {
        let mut inner = self.lock();
        if inner.generation != generation {
            return None;
        }
        let mut counters = inner.counters;
        let ring = inner.split()?;
        let mut failure = None;
        for (head, written, read) in chains {
            match ring.put(head, u32::try_from(written).unwrap_or(u32::MAX)) {
                Ok(true) => {
                    counters.chains = counters.chains.wrapping_add(1);
                    counters.bytes_read = counters.bytes_read.wrapping_add(read);
                    counters.bytes_written = counters.bytes_written.wrapping_add(written);
                }
                Ok(false) => {}
                Err(error) => {
                    failure = Some(*error);
                    break;
                }
            }
        }
        let call = ring.publish();
        inner.counters = counters;
        if call {
            inner.call();
        }
        match failure {
            None => Some(()),
            Some(error) => {
                inner.fail(error);
                None
            }
        }
    }

    /// A batch ends; see [`Self::give_back`].
    pub(super) fn give_back_batch(&self, generation: u64, abandoned: &[u16], storage: BatchStorage) {
        let mut inner = self.lock();
        if !abandoned.is_empty()
            && inner.generation == generation
            && let Some(ring) = inner.split()
        {
            abandoned.iter().for_each(|&head| ring.abandon(head));
        }
        if inner.spare_batches.len() < SPARE_BATCHES {
            inner.spare_batches.push(storage);
        }
    }

    /// A chain ends that was not completed: nobody can complete it any more.
    pub(super) fn give_back(&self, generation: u64, head: u16, segments: Vec<Segment>) {
        let mut inner = self.lock();
        if inner.generation == generation
            && let Some(ring) = inner.split()
        {
            ring.abandon(head);
        }
        if inner.spare.len() < SPARE {
            inner.spare.push(segments);
        }
    }
}
