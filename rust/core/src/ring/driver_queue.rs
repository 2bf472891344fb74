//! A driver's queue for programs: bytes go in, bytes come out. It owns a range of guest memory, in which
//! the ring lies and from which each request's buffers are taken.

use std::{
    collections::HashMap,
    os::fd::{AsFd, BorrowedFd},
};

use super::{
    RingConfig, RingFeatures,
    arena::Arena,
    driver_side::{Buffer, DriverRing, UsedChain},
    error::RingError,
    layout,
};
use crate::{
    event_loop::EventFd,
    memory::{GuestMemory, MemoryError, Source, Target},
};

/// Why a driver's queue could not do what was asked.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
#[non_exhaustive]
pub enum DriverError {
    /// The device broke a rule: nothing more goes through the ring.
    #[error(transparent)]
    Ring(#[from] RingError),
    /// A request has at least one buffer.
    #[error("a request must have at least one buffer")]
    Empty,
    /// It needs more descriptors than the ring has, ever.
    #[error("a request of {buffers} buffers does not fit a ring of {size} descriptors")]
    TooManyBuffers {
        /// Buffers of the request.
        buffers: usize,
        /// Queue size.
        size: u16,
    },
    /// It needs more memory than there is, ever.
    #[error("{len} bytes of buffers do not fit the {capacity} bytes that the queue has for them")]
    TooManyBytes {
        /// Bytes that the request needs.
        len: u64,
        /// Bytes that the queue has for buffers.
        capacity: u64,
    },
    /// No descriptors are free until the device gives some back.
    #[error("the ring is full: {free} of {size} descriptors are free, {needed} are needed")]
    Full {
        /// Descriptors that are free.
        free: usize,
        /// Descriptors that the request needs.
        needed: usize,
        /// Queue size.
        size: u16,
    },
    /// No memory is free until the device gives some back.
    #[error("no memory for {len} bytes of buffers: {room} are free")]
    NoMemory {
        /// Bytes that the request needs.
        len: u64,
        /// Bytes that are free, perhaps not in one piece.
        room: u64,
    },
    /// The memory of the queue is gone.
    #[error(transparent)]
    Memory(#[from] MemoryError),
    /// The kernel gave no eventfd.
    #[error("no eventfd: {0}")]
    EventFd(rustix::io::Errno),
    /// The ring and its buffers do not fit the range of memory.
    #[error("a ring of {size} descriptors does not fit {room} bytes of memory")]
    NoRoomForRing {
        /// Queue size.
        size: u16,
        /// Bytes of the range.
        room: u64,
    },
}

/// What the writable buffers are filled with before the device gets them: what it leaves alone can be
/// seen.
pub const FILL: u8 = 0xA5;

/// A request that came back. Its buffers can be read until it is given to [`DriverQueue::release`].
#[derive(Debug)]
pub struct Completion {
    /// What [`DriverQueue::submit`] returned.
    pub token: u64,
    /// Its writable buffers.
    pub buffers: Vec<Buffer>,
    /// Bytes that the device says it wrote, from the beginning of the first buffer.
    pub used: u32,
    /// All that was taken from the arena.
    pieces: Vec<(u64, u64)>,
}

/// What belongs to a request that the device has.
#[derive(Debug)]
struct Request {
    token: u64,
    buffers: Vec<Buffer>,
    /// All that was taken from the arena.
    pieces: Vec<(u64, u64)>,
}

/// A driver's queue.
#[derive(Debug)]
pub struct DriverQueue {
    index: u16,
    config: RingConfig,
    ring: DriverRing,
    arena: Arena,
    /// Bytes for buffers, when none are lent.
    capacity: u64,
    requests: HashMap<u16, Request>,
    next_token: u64,
    kick: EventFd,
    call: EventFd,
    used: Vec<UsedChain>,
}

impl DriverQueue {
    /// Lays a ring of `size` descriptors into the range of guest memory from `start` on; the rest of the
    /// range is for buffers. The range is for this queue alone.
    pub fn new(
        index: u16,
        size: u16,
        features: RingFeatures,
        memory: &GuestMemory,
        start: u64,
        len: u64,
    ) -> Result<Self, DriverError> {
        let mut arena = Arena::new(start, len);
        let mut part =
            |bytes: usize| arena.take(bytes as u64).ok_or(DriverError::NoRoomForRing { size, room: len });
        let config = RingConfig {
            size,
            descriptors: part(layout::descriptors_len(size))?,
            available: part(layout::available_len(size, true))?,
            used: part(layout::used_len(size, true))?,
            next_available: 0,
            features,
            in_turn: false,
        };
        let eventfd = || EventFd::new().map_err(DriverError::EventFd);
        Ok(Self {
            index,
            config,
            ring: DriverRing::new(&config, memory)?,
            capacity: arena.room(),
            arena,
            requests: HashMap::new(),
            next_token: 0,
            kick: eventfd()?,
            call: eventfd()?,
            used: Vec::new(),
        })
    }

    /// Which queue of its device it is.
    pub fn index(&self) -> u16 {
        self.index
    }

    /// Where the ring lies: what a backend is told.
    pub fn config(&self) -> &RingConfig {
        &self.config
    }

    /// The eventfd that the device listens to.
    pub fn kick_fd(&self) -> BorrowedFd<'_> {
        self.kick.as_fd()
    }

    /// The eventfd that the device signals: readable when something may have come back.
    pub fn call_fd(&self) -> BorrowedFd<'_> {
        self.call.as_fd()
    }

    /// Requests that the device has.
    pub fn pending(&self) -> usize {
        self.requests.len()
    }

    /// Puts a request in the ring, and kicks the device if it wants: [`DriverQueue::add`] and
    /// [`DriverQueue::publish`].
    pub fn submit(&mut self, readable: &[Source<'_>], writable: &[u32]) -> Result<u64, DriverError> {
        let token = self.add(readable, writable)?;
        self.publish();
        Ok(token)
    }

    /// Shows the device what was added since the last time, all at once, and kicks it if it wants.
    pub fn publish(&mut self) {
        if self.ring.publish() {
            self.kick.signal();
        }
    }

    /// Puts a request in the ring without showing it to the device: the bytes for it to read, and the
    /// lengths of the buffers for it to write, which begin as [`FILL`]. Returns the token of the request.
    pub fn add(&mut self, readable: &[Source<'_>], writable: &[u32]) -> Result<u64, DriverError> {
        let buffers = readable.len() + writable.len();
        if buffers == 0 {
            return Err(DriverError::Empty);
        }
        let size = self.config.size;
        let indirect = self.config.features.indirect && buffers > 1;
        // 2.7.5.3.1: also with an indirect table a chain is not longer than the queue.
        if buffers > usize::from(size) {
            return Err(DriverError::TooManyBuffers { buffers, size });
        }
        let (free, needed) = (self.ring.free(), if indirect { 1 } else { buffers });
        if needed > free {
            return Err(DriverError::Full { free, needed, size });
        }
        let table = if indirect { (buffers * layout::DESCRIPTOR) as u64 } else { 0 };
        let lens = readable.iter().map(|bytes| bytes.len() as u64);
        let len = lens.chain(writable.iter().map(|&len| len.into())).map(Arena::rounded).sum::<u64>() + table;
        if len > self.capacity {
            return Err(DriverError::TooManyBytes { len, capacity: self.capacity });
        }
        let mut pieces = Vec::with_capacity(buffers + 1);
        let result = self.lay_out(readable, writable, indirect, &mut pieces);
        match result {
            Ok((head, buffers)) => {
                let token = self.next_token;
                self.next_token += 1;
                self.requests.insert(head, Request { token, buffers, pieces });
                Ok(token)
            }
            Err(error) => {
                self.free(&pieces);
                Err(error)
            }
        }
    }

    fn free(&mut self, pieces: &[(u64, u64)]) {
        pieces.iter().for_each(|&(start, len)| self.arena.give_back(start, len));
    }

    fn take(&mut self, len: u64, pieces: &mut Vec<(u64, u64)>) -> Result<u64, DriverError> {
        let start = self.arena.take(len);
        let start = start.ok_or_else(|| DriverError::NoMemory { len, room: self.arena.room() })?;
        pieces.push((start, len));
        Ok(start)
    }

    fn fill(&self, buffer: Buffer) -> Result<(), MemoryError> {
        let fill = [FILL; 4096];
        let mut done = 0;
        while done < buffer.len {
            let len = (buffer.len - done).min(4096);
            self.ring.memory().write(buffer.address + u64::from(done), &fill[..len as usize])?;
            done += len;
        }
        Ok(())
    }

    fn lay_out(
        &mut self,
        readable: &[Source<'_>],
        writable: &[u32],
        indirect: bool,
        pieces: &mut Vec<(u64, u64)>,
    ) -> Result<(u16, Vec<Buffer>), DriverError> {
        let mut sources = Vec::with_capacity(readable.len());
        for bytes in readable {
            let len = bytes.len() as u64;
            let short = u32::try_from(len);
            let len = short.map_err(|_| DriverError::NoMemory { len, room: self.arena.room() })?;
            let address = self.take(len.into(), pieces)?;
            self.ring.memory().write_from(address, *bytes)?;
            sources.push(Buffer { address, len });
        }
        let mut targets = Vec::with_capacity(writable.len());
        for &len in writable {
            let buffer = Buffer { address: self.take(len.into(), pieces)?, len };
            self.fill(buffer)?;
            targets.push(buffer);
        }
        let count = sources.len() + targets.len();
        let table =
            if indirect { Some(self.take((count * layout::DESCRIPTOR) as u64, pieces)?) } else { None };
        let head = self.ring.add(&sources, &targets, table)?;
        let (free, size) = (self.ring.free(), self.config.size);
        let head = head.ok_or(DriverError::Full { free, needed: count, size })?;
        Ok((head, targets))
    }

    /// Takes back what the device has used so far, in its order, and has the call eventfd told when there
    /// is more. What comes before an error is given out first; the error is told by the next call.
    pub fn completed(&mut self) -> Result<Vec<Completion>, DriverError> {
        crate::event_loop::drain(self.call.as_fd());
        let mut completions = Vec::new();
        loop {
            self.used.clear();
            let polled = self.ring.poll(&mut self.used);
            for UsedChain { head, written } in self.used.drain(..) {
                if let Some(Request { token, buffers, pieces }) = self.requests.remove(&head) {
                    completions.push(Completion { token, buffers, used: written, pieces });
                }
            }
            match polled {
                Err(error) if completions.is_empty() => return Err(error.into()),
                Err(_) => return Ok(completions),
                Ok(()) if !self.ring.arm() => return Ok(completions),
                Ok(()) => {}
            }
        }
    }

    /// The contents of a writable buffer of a request that came back.
    pub fn read(&self, buffer: Buffer, target: Target<'_>) -> Result<(), DriverError> {
        Ok(self.ring.memory().read_into(buffer.address, target)?)
    }

    /// The memory of a request that came back is free for the next ones.
    pub fn release(&mut self, completion: Completion) {
        self.free(&completion.pieces);
    }
}

#[cfg(test)]
mod tests {
    use std::sync::Arc;

    use super::*;
    use crate::{
        memory::{MappedMemory, Region},
        ring::{BatchLayout, VirtQueue},
    };

    const START: u64 = 0x10_0000;

    fn memory() -> GuestMemory {
        let (_, mapped) = MappedMemory::memfd(1 << 20).unwrap();
        GuestMemory::new(vec![Region::new(START, 0, Arc::new(mapped))]).unwrap()
    }

    fn pair(size: u16, features: RingFeatures) -> (DriverQueue, Arc<VirtQueue>) {
        let memory = memory();
        let driver = DriverQueue::new(0, size, features, &memory, START, 1 << 20).unwrap();
        let queue = Arc::new(VirtQueue::new(0, 256));
        queue.start(driver.config(), &memory).unwrap();
        (driver, queue)
    }

    fn submit(driver: &mut DriverQueue, readable: &[&[u8]], writable: &[u32]) -> u64 {
        let readable: Vec<Source<'_>> = readable.iter().map(|&bytes| bytes.into()).collect();
        driver.submit(&readable, writable).unwrap()
    }

    /// Token, contents of the buffers, used length.
    fn completed(driver: &mut DriverQueue) -> Vec<(u64, Vec<Vec<u8>>, u32)> {
        let mut done = Vec::new();
        for completion in driver.completed().unwrap() {
            let contents = completion.buffers.iter().map(|&buffer| {
                let mut bytes = vec![0; buffer.len as usize];
                driver.read(buffer, (&mut bytes[..]).into()).unwrap();
                bytes
            });
            done.push((completion.token, contents.collect(), completion.used));
            driver.release(completion);
        }
        done
    }

    fn all_features() -> impl Iterator<Item = RingFeatures> {
        (0..8).map(|bits| RingFeatures {
            event_idx: bits & 1 != 0,
            indirect: bits & 2 != 0,
            in_order: bits & 4 != 0,
            notify_on_empty: false,
        })
    }

    #[test]
    fn bytes_go_in_and_bytes_come_out_with_all_features() {
        for features in all_features() {
            let (mut driver, queue) = pair(8, features);
            for round in 0..40_u64 {
                let text = format!("round {round}");
                let first = submit(&mut driver, &[b"say ", text.as_bytes()], &[4, 0, 9]);
                let second = submit(&mut driver, &[b"nothing"], &[]);
                let mut asked = queue.pop().unwrap().unwrap();
                let mut other = queue.pop().unwrap().unwrap();
                let mut bytes = [0; 64];
                let len = asked.read(&mut bytes).unwrap();
                assert_eq!(&bytes[..len], format!("say {text}").as_bytes());
                asked.write(text.as_bytes()).unwrap();
                other.complete(None).unwrap();
                asked.complete(None).unwrap();
                let mut done = completed(&mut driver);
                done.sort_by_key(|(token, ..)| *token);
                let mut rest = text.as_bytes()[4..].to_vec();
                rest.resize(9, FILL);
                assert_eq!(done[0], (first, vec![b"roun".to_vec(), vec![], rest], text.len() as u32));
                assert_eq!(done[1], (second, vec![], 0));
                assert_eq!((driver.pending(), queue.kept()), (0, 0));
            }
        }
    }

    #[test]
    fn a_device_that_claims_more_than_there_is_keeps_its_claim_and_the_ring_goes_on() {
        let (mut driver, _) = pair(8, RingFeatures::default());
        for round in 1..20_u16 {
            submit(&mut driver, &[b"read"], &[3]);
            // The device counts what it read too, as some do.
            let used = driver.config().used;
            let entry = used + 4 + u64::from(round - 1) % 8 * 8;
            let memory = driver.ring.memory().clone();
            let head = u32::from(round - 1) * 2 % 8; // two descriptors a chain
            memory.write(entry, &head.to_le_bytes()).unwrap();
            memory.write(entry + 4, &7_u32.to_le_bytes()).unwrap();
            memory.write(used + 2, &round.to_le_bytes()).unwrap();
            let done = completed(&mut driver);
            assert_eq!(done, [(u64::from(round) - 1, vec![vec![FILL; 3]], 7)]);
        }
    }

    #[test]
    fn what_is_added_is_seen_by_the_device_when_it_is_published_and_not_before() {
        for features in all_features() {
            let (mut driver, queue) = pair(8, features);
            driver.add(&[(&b"first"[..]).into()], &[]).unwrap();
            driver.add(&[(&b"second"[..]).into()], &[1]).unwrap();
            assert!(queue.pop().unwrap().is_none());
            driver.publish();
            let seen = std::iter::from_fn(|| queue.pop().unwrap()).count();
            assert_eq!(seen, 2);
        }
    }

    #[test]
    fn a_batch_answers_what_lies_inside_and_refuses_the_rest() {
        let features = RingFeatures { indirect: true, ..RingFeatures::default() };
        let (mut driver, queue) = pair(16, features);
        let request =
            |kind: u32, sector: u64| [&kind.to_le_bytes()[..], &[0; 4], &sector.to_le_bytes()].concat();
        let read = |sector| request(0, sector);
        submit(&mut driver, &[&read(1)], &[8, 1]);
        submit(&mut driver, &[&read(u64::MAX)], &[8, 1]);
        let (front, back): (_, &[u8]) = (request(1, 3), b"written!");
        submit(&mut driver, &[&front[..5], &front[5..], back], &[1]);
        submit(&mut driver, &[&read(3)], &[5, 4]);
        let mut data = *b"........sector 1........SECTOR 3";
        let layout = BatchLayout { header: 16, trailer: 1 };
        let batch = queue.pop_batch(64, layout).unwrap().unwrap();
        assert_eq!(batch.readable().collect::<Vec<_>>(), [0, 0, 8, 0]);
        assert_eq!(batch.writable().collect::<Vec<_>>(), [8, 8, 0, 8]);
        for (kind, part) in batch.group_by(0, 4).unwrap() {
            let mut sectors = Vec::new();
            part.column(8, 8, &mut sectors).unwrap();
            let sectors: Vec<u64> =
                sectors.chunks_exact(8).map(|b| u64::from_le_bytes(b.try_into().unwrap())).collect();
            let mask = match kind {
                0 => part.write_from((&data[..]).into(), &sectors, 8).unwrap(),
                _ => part.read_into((&mut data[..]).into(), &sectors, 8).unwrap(),
            };
            part.write_trailer(0, Some(&mask), 1).unwrap();
        }
        batch.complete().unwrap();
        assert_eq!(&data, b"........sector 1........written!");
        let done = completed(&mut driver);
        let contents = |index: usize| -> &[Vec<u8>] { &done[index].1 };
        assert_eq!(contents(0), [b"sector 1".to_vec(), vec![0]]);
        // So that the status is within what was written, the data before it is zeroes.
        assert_eq!((done[1].2, contents(1)), (9, &[vec![0; 8], vec![1]][..]));
        assert_eq!(contents(2), [vec![0]]);
        assert_eq!(contents(3), [b"SECTO".to_vec(), b"R 3\0".to_vec()]);
        assert_eq!(queue.counters().calls, 1);
    }
}
