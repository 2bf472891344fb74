//! Bytes between all requests of a batch and a buffer or a file.
//!
//! # Safety
//! As in [`batch`](super::batch): the segments were checked by the walk, and are copied from and to by
//! pointer, or by the kernel, while the queue cannot be stopped.
#![allow(unsafe_code)]

use std::os::fd::BorrowedFd;

use super::{
    batch::{Mask, QueueBatch},
    chain_error::BatchError,
    transfer,
};
use crate::memory::{Source, Target};

impl QueueBatch {
    /// Fills the writable data of each request from `source[offsets[i] * unit..]`. A request that does
    /// not lie wholly inside of the source is not done; the others are. Returns which were.
    pub fn write_from(&self, source: Source<'_>, offsets: &[u64], unit: u64) -> Result<Mask, BatchError> {
        self.check_length("offsets", offsets.len())?;
        let mut mask = Mask(vec![false; offsets.len()]);
        self.each(|index, request, progress| {
            let limit = source.len() as u64;
            if let Some(at) = inside(offsets[index], unit, request.writable, limit) {
                let mut rest = source;
                rest.take(at as usize);
                let segments = self.shared.requests.writable(request);
                // SAFETY: the segments are mapped and writable, and the rest is as long as they are.
                unsafe { transfer::fill(segments, rest) };
                progress.written = request.writable;
                mask.0[index] = true;
            }
        })?;
        Ok(mask)
    }

    /// Copies the readable data of each request to `target[offsets[i] * unit..]`; see
    /// [`Self::write_from`]. Where requests overlap, the later one wins.
    pub fn read_into(&self, target: Target<'_>, offsets: &[u64], unit: u64) -> Result<Mask, BatchError> {
        self.check_length("offsets", offsets.len())?;
        let mut mask = Mask(vec![false; offsets.len()]);
        self.each(|index, request, progress| {
            let (base, len) = (target.base(), target.len());
            if let Some(at) = inside(offsets[index], unit, request.readable, len as u64) {
                let segments = self.shared.requests.readable(request);
                // SAFETY: at <= len; the target is ours while `target` lives.
                let rest = unsafe { Target::from_raw(base.add(at as usize), len - at as usize) };
                // SAFETY: the segments are mapped, and the rest is as long as they are.
                unsafe { transfer::drain(segments, rest) };
                progress.read = request.readable;
                mask.0[index] = true;
            }
        })?;
        Ok(mask)
    }

    /// Fills the writable data of each request from a file, straight into guest memory, from byte
    /// `offsets[i] * unit` on. A request is not done when it does not lie wholly below `limit`, when the
    /// file ends within it, or when the kernel reports an error.
    pub fn write_from_file(
        &self,
        fd: BorrowedFd<'_>,
        offsets: &[u64],
        unit: u64,
        limit: Option<u64>,
    ) -> Result<Mask, BatchError> {
        self.check_length("offsets", offsets.len())?;
        let mut mask = Mask(vec![false; offsets.len()]);
        self.each(|index, request, progress| {
            if let Some(at) = inside(offsets[index], unit, request.writable, file_limit(limit)) {
                let segments = self.shared.requests.writable(request);
                // SAFETY: the segments are mapped and writable.
                let moved = unsafe { transfer::from_file(fd, segments, Some(at)) }.unwrap_or(0);
                progress.written = progress.written.max(moved);
                mask.0[index] = moved == request.writable;
            }
        })?;
        Ok(mask)
    }

    /// Moves the readable data of each request to a file, straight from guest memory; see
    /// [`Self::write_from_file`].
    pub fn read_into_file(
        &self,
        fd: BorrowedFd<'_>,
        offsets: &[u64],
        unit: u64,
        limit: Option<u64>,
    ) -> Result<Mask, BatchError> {
        self.check_length("offsets", offsets.len())?;
        let mut mask = Mask(vec![false; offsets.len()]);
        self.each(|index, request, progress| {
            if let Some(at) = inside(offsets[index], unit, request.readable, file_limit(limit)) {
                let segments = self.shared.requests.readable(request);
                // SAFETY: the segments are mapped.
                let moved = unsafe { transfer::to_file(fd, segments, Some(at)) }.unwrap_or(0);
                progress.read = moved;
                mask.0[index] = moved == request.readable;
            }
        })?;
        Ok(mask)
    }

    /// Fills the writable data of each request with zeroes.
    pub fn write_zeroes(&self) -> Result<(), BatchError> {
        self.each(|_, request, progress| {
            // SAFETY: the segments are mapped and writable.
            unsafe { transfer::zero(self.shared.requests.writable(request)) };
            progress.written = request.writable;
        })
    }

    /// Writes the trailer of each request, little endian: `value` where the mask holds (everywhere,
    /// without one), `otherwise` elsewhere.
    pub fn write_trailer(&self, value: u64, mask: Option<&Mask>, otherwise: u64) -> Result<(), BatchError> {
        let size = self.layout().trailer;
        if let Some(mask) = mask {
            self.check_length("mask entries", mask.0.len())?;
        }
        for value in [value, otherwise] {
            if size < 8 && value >> (8 * size) != 0 {
                return Err(BatchError::TrailerValue { value, size });
            }
        }
        if size == 0 {
            return Err(BatchError::TrailerValue { value, size });
        }
        let mut bytes = [vec![0u8; size], vec![0u8; size]];
        for (bytes, value) in bytes.iter_mut().zip([otherwise, value]) {
            bytes.iter_mut().zip(value.to_le_bytes()).for_each(|(byte, part)| *byte = part);
        }
        self.each(|index, request, progress| {
            let chosen = mask.is_none_or(|mask| mask.0[index]);
            // SAFETY: the segments sum up to the size of the trailer.
            unsafe {
                let segments = self.shared.requests.trailer(request);
                transfer::fill(segments, bytes[usize::from(chosen)][..].into());
            }
            progress.trailer = true;
        })
    }
}

/// Where a request of `len` bytes begins, when all of it lies below `limit`.
#[inline(always)]
fn inside(offset: u64, unit: u64, len: u64, limit: u64) -> Option<u64> {
    let at = offset.checked_mul(unit)?;
    (at <= limit && len <= limit - at).then_some(at)
}

/// The kernel counts places in a file as signed numbers.
fn file_limit(limit: Option<u64>) -> u64 {
    limit.unwrap_or(u64::MAX).min(i64::MAX as u64)
}
