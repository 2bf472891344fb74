//! The requests of a batch: what was taken from the ring, in storage that the next batch uses again.
//!
//! # Safety
//! Segments come from the walk. Headers are copied out of them once, while the queue cannot be stopped.
#![allow(unsafe_code)]

use super::{
    chain::{Extent, Segment},
    error::RingError,
    walk::{Refusal, refuse},
};

/// Where each request of a batch has its fixed parts: both in bytes, 0 for none.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct BatchLayout {
    /// The header is the first bytes of the device-readable part.
    pub header: usize,
    /// The trailer is the last bytes of the device-writable part.
    pub trailer: usize,
}

/// One request. Its segments lie one after the other: readable data, writable data, trailer.
#[derive(Clone, Copy, Debug)]
pub(super) struct Request {
    pub head: u16,
    first: u32,
    readable_end: u32,
    writable_end: u32,
    end: u32,
    /// Bytes of the readable data, after the header.
    pub readable: u64,
    /// Bytes of the writable data, before the trailer.
    pub writable: u64,
}

/// The requests of one batch, by column.
#[derive(Debug, Default)]
pub(super) struct Requests {
    pub layout: BatchLayout,
    pub list: Vec<Request>,
    /// The headers, one after the other.
    pub headers: Vec<u8>,
    pub segments: Vec<Segment>,
}

impl Requests {
    pub(super) fn begin(&mut self, layout: BatchLayout) {
        self.layout = layout;
        self.list.clear();
        self.headers.clear();
        self.segments.clear();
    }

    /// Makes room for so many requests.
    pub(super) fn reserve(&mut self, count: usize) {
        self.list.reserve(count);
        self.headers.reserve(count * self.layout.header);
        self.segments.reserve(4 * count);
    }

    /// Makes a request of the chain whose segments were just added from `first` on, or takes them off
    /// again.
    #[inline(always)]
    pub(super) fn add(&mut self, first: usize, extent: &Extent) -> Result<(), Refusal> {
        let BatchLayout { header, trailer } = self.layout;
        let head = extent.head;
        if extent.readable < header as u64 {
            self.segments.truncate(first);
            return Err(refuse(RingError::ChainHeader { head, readable: extent.readable, header }));
        }
        if extent.writable < trailer as u64 {
            self.segments.truncate(first);
            return Err(refuse(RingError::ChainTrailer { head, writable: extent.writable, trailer }));
        }
        let data = if header == 0 { first } else { first + self.take_header(first, header) };
        let writable_end = if trailer == 0 { self.segments.len() } else { self.cut_trailer(first, trailer) };
        self.list.push(Request {
            head,
            first: data as u32,
            readable_end: first as u32 + extent.readable_segments,
            writable_end: writable_end as u32,
            end: self.segments.len() as u32,
            readable: extent.readable - header as u64,
            writable: extent.writable - trailer as u64,
        });
        Ok(())
    }

    /// Copies the header out of the first segments, and returns how many of them it used up.
    #[inline(always)]
    fn take_header(&mut self, first: usize, header: usize) -> usize {
        let mut left = header;
        let mut used_up = 0;
        self.headers.reserve(header);
        while left > 0 {
            let Some(segment) = self.segments.get_mut(first + used_up) else { break };
            let len = left.min(segment.len as usize);
            let filled = self.headers.len();
            // SAFETY: `left` bytes were reserved behind `filled`; the segment has `len` bytes.
            unsafe {
                std::ptr::copy(segment.base, self.headers.as_mut_ptr().add(filled), len);
                self.headers.set_len(filled + len);
            }
            left -= len;
            if len == segment.len as usize {
                used_up += 1;
            } else {
                segment.base = segment.base.wrapping_add(len);
                segment.len -= len as u32;
            }
        }
        used_up
    }

    /// Cuts the trailer off the last segments, and returns the index of its first one.
    #[inline(always)]
    fn cut_trailer(&mut self, first: usize, trailer: usize) -> usize {
        let mut left = trailer;
        let mut at = self.segments.len();
        while left > 0 && at > first {
            let Some(segment) = self.segments.get_mut(at - 1) else { break };
            let len = segment.len as usize;
            if len <= left {
                left -= len;
                at -= 1;
            } else {
                let base = segment.base.wrapping_add(len - left);
                let part = Segment { base, len: left as u32, writable: true };
                segment.len -= left as u32;
                self.segments.insert(at, part);
                left = 0;
            }
        }
        at
    }

    fn part(&self, from: u32, to: u32) -> impl Iterator<Item = Segment> {
        self.segments.get(from as usize..to as usize).unwrap_or_default().iter().copied()
    }

    /// The pieces of the readable data.
    #[inline(always)]
    pub(super) fn readable(&self, request: &Request) -> impl Iterator<Item = Segment> {
        self.part(request.first, request.readable_end)
    }

    /// The pieces of the writable data.
    #[inline(always)]
    pub(super) fn writable(&self, request: &Request) -> impl Iterator<Item = Segment> {
        self.part(request.readable_end, request.writable_end)
    }

    /// The pieces of the trailer.
    #[inline(always)]
    pub(super) fn trailer(&self, request: &Request) -> impl Iterator<Item = Segment> {
        self.part(request.writable_end, request.end)
    }
}
