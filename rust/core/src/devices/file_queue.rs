//! One queue of a disk over a file: what was taken from it, and who does the work.

use std::{
    os::fd::{AsFd, OwnedFd},
    sync::{Arc, Mutex, MutexGuard, PoisonError},
};

use rustix::io::Errno;

use super::{
    block::{ID_SIZE, Job, LAYOUT, OK},
    storage::{ProcessError, Settings, Storage, Trouble},
    uring::{CAPACITY, Finished, Uring},
    work::{Failure, Step, Work},
};
use crate::{
    event_loop::EventFd,
    memory::Owner,
    ring::{Background, BatchError, Outcome, QueueBatch, QueueRequest, RingError, VirtQueue},
};

/// Requests that are taken at a time.
const BATCH: usize = 256;
/// Batches after which the others get their turn, the control plane among them.
const ROUNDS: usize = 32;

/// Who moves the bytes.
#[derive(Debug)]
enum Engine {
    Uring(Box<Uring>),
    InPlace,
}

#[derive(Debug)]
struct State {
    engine: Engine,
    /// `again` is signalled.
    again: bool,
    /// What is to be begun.
    next: Vec<Work>,
    finished: Vec<Finished>,
    /// What is to be told to the driver.
    outcomes: Vec<Outcome>,
    troubles: Vec<Trouble>,
}

/// A queue of a disk, from the driver's being ready until the reset.
#[derive(Debug)]
pub(super) struct FileQueue {
    file: Arc<OwnedFd>,
    settings: Arc<Settings>,
    /// Signalled when there is more to do than one call should.
    again: EventFd,
    owner: Owner,
    state: Mutex<State>,
}

impl FileQueue {
    pub(super) fn new(file: Arc<OwnedFd>, settings: Arc<Settings>) -> Result<Self, Errno> {
        let engine = match settings.storage {
            // A ring costs memory, which may have run short by now.
            Storage::IoUring => Uring::new().map_or(Engine::InPlace, |uring| Engine::Uring(Box::new(uring))),
            _ => Engine::InPlace,
        };
        let state = State {
            engine,
            again: false,
            next: Vec::new(),
            finished: Vec::new(),
            outcomes: Vec::new(),
            troubles: Vec::new(),
        };
        let (again, owner) = (EventFd::new()?, Owner::this_process());
        Ok(Self { file, settings, again, owner, state: Mutex::new(state) })
    }

    fn lock(&self) -> MutexGuard<'_, State> {
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// The descriptors that are readable when [`Self::process`] is to be called.
    pub(super) fn wake_fds(&self) -> Result<Vec<OwnedFd>, Errno> {
        let mut fds = vec![rustix::io::fcntl_dupfd_cloexec(&self.again, 0)?];
        if let Engine::Uring(uring) = &self.lock().engine {
            fds.push(rustix::io::fcntl_dupfd_cloexec(uring.fd(), 0)?);
        }
        Ok(fds)
    }

    /// Ends what has ended, and begins what is in the ring.
    pub(super) fn process(&self, queue: &Arc<VirtQueue>) -> Result<Vec<Trouble>, ProcessError> {
        if !self.owner.is_this_process() {
            return Err(RingError::Forked.into());
        }
        let state = &mut *self.lock();
        if std::mem::take(&mut state.again) {
            self.again.drain();
        }
        state.reap(&self.settings);
        for _ in 0..ROUNDS {
            let room = state.room().min(BATCH);
            let taken = if room > 0 { queue.pop_batch(room, LAYOUT) } else { Ok(None) };
            let (batch, broken) = taken.map_or_else(|error| (None, Some(error)), |batch| (batch, None));
            let idle = batch.is_none() && state.next.is_empty() && state.outcomes.is_empty();
            for request in batch.into_iter().flat_map(QueueBatch::into_requests) {
                // One that cannot be read belongs to a ring that was stopped, or its memory is gone.
                let _ = state.take(request, &self.settings);
            }
            let begun = self.begin(queue, state);
            state.reap(&self.settings);
            queue.finish(&mut state.outcomes);
            match (broken, begun) {
                (Some(error), _) => return Err(error.into()),
                (None, Err(errno)) => return Err(errno.into()),
                _ if idle => return Ok(std::mem::take(&mut state.troubles)),
                _ => {}
            }
        }
        state.again = true;
        self.again.signal();
        Ok(std::mem::take(&mut state.troubles))
    }

    /// Ends what was begun, and begins nothing new.
    pub(super) fn drain(&self, queue: &VirtQueue) {
        if !self.owner.is_this_process() {
            return;
        }
        let state = &mut *self.lock();
        loop {
            state.reap(&self.settings);
            let begun = self.begin(queue, state);
            state.reap(&self.settings);
            queue.finish(&mut state.outcomes);
            let waited = match &mut state.engine {
                Engine::Uring(uring) if uring.in_flight() > 0 => uring.wait(),
                _ if state.next.is_empty() => return,
                _ => Ok(()),
            };
            if begun.and(waited).is_err() {
                return;
            }
        }
    }

    /// Begins what is to be begun, while the queue cannot be stopped.
    fn begin(&self, queue: &VirtQueue, state: &mut State) -> Result<(), Errno> {
        if state.next.is_empty() {
            return Ok(());
        }
        let generation = queue.generation();
        state.next.retain(|work| work.request.generation() == generation);
        let State { engine, next, finished, .. } = state;
        // Nothing that belongs to the queue may be dropped inside.
        let begun = queue.while_current(generation, || match engine {
            Engine::InPlace => {
                for work in next.drain(..) {
                    let step = work.step().unwrap_or(Step::Sync);
                    let result = work.do_in_place(step, self.file.as_fd());
                    finished.push((work, step, result));
                }
                Ok(())
            }
            Engine::Uring(uring) => {
                for work in next.drain(..) {
                    let step = work.step().unwrap_or(Step::Sync);
                    let cached = self.settings.cached.then(|| work.do_in_cache(step, self.file.as_fd()));
                    if let Some(result) = cached.flatten() {
                        finished.push((work, step, result));
                    } else if let Err(work) = uring.prepare(self.file.as_fd(), work, step) {
                        finished.push((work, step, Err(Errno::AGAIN)));
                    }
                }
                uring.enter()
            }
        });
        // Stopped in between: they are the driver's again.
        next.clear();
        begun.unwrap_or(Ok(()))
    }
}

impl State {
    /// How many requests may be taken.
    fn room(&self) -> usize {
        match &self.engine {
            Engine::Uring(uring) => CAPACITY.saturating_sub(uring.in_flight() + self.next.len()),
            Engine::InPlace => BATCH,
        }
    }

    /// Answers a request, or makes work of it.
    fn take(&mut self, request: QueueRequest, settings: &Settings) -> Result<(), BatchError> {
        let sync = settings.write_through();
        let job = settings.disk().job(&request)?;
        let work = match job {
            Job::Read { offset } => Work::read(request, offset),
            Job::Write { offset } => Work::write(request, offset, sync),
            Job::Flush => Work::flush(request),
            Job::Discard(ranges) => Work::ranges(request, ranges, true, sync),
            Job::Zero(ranges) => Work::ranges(request, ranges, false, sync),
            Job::Id => {
                let id: &[u8; ID_SIZE] = &settings.id;
                let written = request.write(id)? as u64;
                self.outcomes.push(Outcome { request, read: 0, written, trailer: OK });
                return Ok(());
            }
            Job::Refuse(trailer) => {
                self.outcomes.push(Outcome { request, read: 0, written: 0, trailer });
                return Ok(());
            }
        };
        match work.step() {
            Some(_) => self.next.push(work),
            None => self.outcomes.push(work.outcome(Ok(()))),
        }
        Ok(())
    }

    /// Takes what has ended: it is to be told to the driver, or goes on with its next step.
    fn reap(&mut self, settings: &Settings) {
        if let Engine::Uring(uring) = &mut self.engine {
            uring.reap(&mut self.finished);
        }
        for (mut work, step, result) in self.finished.drain(..) {
            settings.count(step.io());
            match work.done(step, result) {
                Ok(()) if work.step().is_some() => self.next.push(work),
                Ok(()) => self.outcomes.push(work.outcome(Ok(()))),
                Err(failure) => {
                    if let Failure::Storage(trouble) = failure {
                        self.troubles.push(trouble);
                    }
                    self.outcomes.push(work.outcome(Err(failure)));
                }
            }
        }
    }
}

impl Background for FileQueue {
    /// What the kernel has is cancelled or waited for; nobody wants its end any more.
    fn settle(&self) {
        if !self.owner.is_this_process() {
            return;
        }
        let state = &mut *self.lock();
        if let Engine::Uring(uring) = &mut state.engine {
            uring.settle(&mut state.finished);
        }
        state.finished.clear();
        state.next.clear();
        state.outcomes.clear();
    }
}
