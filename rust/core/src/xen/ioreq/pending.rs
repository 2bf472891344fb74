//! A request on its way: taken, not answered yet.

use std::sync::Arc;

use super::{
    page::NOBODY,
    request::{Request, RequestData, RequestKind},
    server::Inner,
};
use crate::{
    memory::{GuestMemory, MemoryError},
    xen::call_error::CallError,
};

/// A request that was taken, and waits for its answer. Dropped without one it is answered as an empty bus would.
#[derive(Debug)]
pub struct PendingRequest {
    request: Request,
    server: Arc<Inner>,
    answered: bool,
}

impl PendingRequest {
    /// One that was taken from its slot.
    pub(super) fn new(request: Request, server: Arc<Inner>) -> Self {
        Self { request, server, answered: false }
    }

    /// What is wanted.
    pub fn request(&self) -> &Request {
        &self.request
    }

    /// Answers. The value is what a read gets, where the values are not in guest memory; else it is passed over.
    ///
    /// # Errors
    /// The server was closed meanwhile, which answered; or the notification failed.
    pub fn answer(mut self, value: u64) -> Result<(), CallError> {
        self.answered = true;
        self.server.answer(&self.request, value)
    }
}

/// Registers, as a vCPU sees them.
pub trait Registers {
    /// The value of a read of `size` bytes, 1 to 8.
    fn read(&mut self, kind: RequestKind, address: u64, size: u8) -> u64;

    /// A write of `size` bytes, 1 to 8; the value is cut to them.
    fn write(&mut self, kind: RequestKind, address: u64, size: u8, value: u64);
}

/// Why a request could not be performed. It is answered all the same.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
#[non_exhaustive]
pub enum PerformError {
    /// The answer was refused.
    #[error(transparent)]
    Call(#[from] CallError),
    /// The values are in guest memory, and cannot be reached there.
    #[error("{count} accesses of {size} bytes from {address:#x} on: {source}")]
    Memory {
        /// Guest physical address or I/O port, of the first access.
        address: u64,
        /// Bytes of each.
        size: u8,
        /// How many.
        count: u32,
        /// What guest memory said.
        source: MemoryError,
    },
}

impl PendingRequest {
    /// Does what is wanted to registers, access by access, and answers. What is neither about memory nor about ports is only
    /// answered.
    ///
    /// # Errors
    /// The values cannot be reached in guest memory: the accesses before that are done, and a vCPU that reads gets what an
    /// empty bus gives.
    pub fn perform(self, registers: &mut dyn Registers, memory: &GuestMemory) -> Result<(), PerformError> {
        let answer = self.run(registers, memory)?;
        Ok(self.answer(answer)?)
    }

    /// As [`perform`](Self::perform), and gives what is to be [answered](Self::answer) instead of doing so.
    ///
    /// # Errors
    /// As for `perform`; it is not answered yet.
    pub fn run(&self, registers: &mut dyn Registers, memory: &GuestMemory) -> Result<u64, PerformError> {
        let Request { kind, size, is_read, address, count, .. } = self.request;
        let failed = |source| PerformError::Memory { address, size, count, source };
        let mut answer = if kind == RequestKind::Malformed { NOBODY } else { 0 };
        for access in self.request.accesses() {
            let mut bytes = [0u8; 8];
            let Some(bytes) = bytes.get_mut(..usize::from(size)) else { continue };
            match (is_read, access.data) {
                (true, RequestData::Value(_)) => answer = registers.read(kind, access.address, size),
                (true, RequestData::At(place)) => {
                    let value = registers.read(kind, access.address, size).to_le_bytes();
                    bytes.iter_mut().zip(value).for_each(|(to, from)| *to = from);
                    memory.write(place, bytes).map_err(failed)?;
                }
                (false, RequestData::Value(value)) => registers.write(kind, access.address, size, value),
                (false, RequestData::At(place)) => {
                    memory.read(place, bytes).map_err(failed)?;
                    let value = bytes.iter().rev().fold(0, |value, &byte| value << 8 | u64::from(byte));
                    registers.write(kind, access.address, size, value);
                }
            }
        }
        Ok(answer)
    }
}

impl Drop for PendingRequest {
    fn drop(&mut self) {
        if !self.answered && self.server.is_ours() {
            // The domain may be gone: then nobody waits.
            let _ = self.server.answer(&self.request, NOBODY);
        }
    }
}
