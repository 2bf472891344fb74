//! A disk that stores nothing: the measure of what everything but storage costs.

use std::sync::Arc;

use super::block::{Disk, ID_SIZE, Job, LAYOUT, OK, SECTOR};
use crate::ring::{BatchError, Outcome, QueueRequest, RingError, VirtQueue};

/// Requests that are taken at a time.
const BATCH: usize = 256;

/// A disk that reads as zeroes and forgets what is written to it. Requests are checked as on any disk.
#[derive(Debug)]
pub struct NullBlock {
    disk: Disk,
}

impl NullBlock {
    /// A disk of this many sectors of 512 bytes.
    pub fn new(sectors: u64) -> Self {
        Self { disk: Disk { size: sectors.saturating_mul(SECTOR), read_only: false } }
    }

    /// Answers what is in the ring.
    ///
    /// # Errors
    /// The driver broke a rule of the ring.
    pub fn process(&self, queue: &Arc<VirtQueue>) -> Result<(), RingError> {
        let mut outcomes = Vec::new();
        while let Some(batch) = queue.pop_batch(BATCH, LAYOUT)? {
            // A request that cannot be answered belongs to a ring that was stopped, or to memory that is gone.
            outcomes.extend(batch.into_requests().filter_map(|request| self.answer(request).ok()));
            queue.finish(&mut outcomes);
        }
        Ok(())
    }

    fn answer(&self, request: QueueRequest) -> Result<Outcome, BatchError> {
        let (read, written, trailer) = match self.disk.job(&request)? {
            Job::Read { .. } => {
                request.write_zeroes()?;
                (0, request.writable(), OK)
            }
            Job::Write { .. } | Job::Discard(_) | Job::Zero(_) => (request.readable(), 0, OK),
            Job::Flush => (0, 0, OK),
            Job::Id => (0, request.write(&[0; ID_SIZE])? as u64, OK),
            Job::Refuse(status) => (0, 0, status),
        };
        Ok(Outcome { request, read, written, trailer })
    }
}
