//! Guest physical addresses to host pointers, for the walk over descriptors.

use crate::memory::GuestMemory;

/// A region, as the walk needs it.
#[derive(Clone, Copy, Debug)]
struct Span {
    start: u64,
    len: u64,
    host: *mut u8,
    writable: bool,
}

impl Span {
    /// The host pointer of a range of at least one byte that lies in this region.
    #[inline(always)]
    fn host(&self, address: u64, len: u64) -> Option<*mut u8> {
        let offset = address.wrapping_sub(self.start);
        (offset < self.len && len <= self.len - offset).then(|| self.host.wrapping_add(offset as usize))
    }
}

/// Where a range of guest memory is in ours.
#[derive(Clone, Copy, Debug)]
pub(super) struct Place {
    pub base: *mut u8,
    pub writable: bool,
}

/// The resident regions of a memory table, the one that was hit last in front.
#[derive(Debug)]
pub(super) struct Translator {
    last: Span,
    spans: Box<[Span]>,
}

impl Translator {
    /// Takes the regions that are mapped as a whole. The memory must outlive what comes out of this.
    pub(super) fn new(memory: &GuestMemory) -> Self {
        let spans: Box<[Span]> = memory
            .regions()
            .iter()
            .filter_map(|region| {
                let host = memory.translate(region.guest_address, region.len)?.as_ptr();
                let writable = region.backing.writable();
                Some(Span { start: region.guest_address, len: region.len, host, writable })
            })
            .collect();
        let nowhere = Span { start: 0, len: 0, host: std::ptr::null_mut(), writable: false };
        Self { last: spans.first().copied().unwrap_or(nowhere), spans }
    }

    /// A range of at least one byte that lies in one region.
    #[inline(always)]
    pub(super) fn place(&mut self, address: u64, len: u64) -> Option<Place> {
        if let Some(base) = self.last.host(address, len) {
            return Some(Place { base, writable: self.last.writable });
        }
        self.search(address, len)
    }

    #[cold]
    fn search(&mut self, address: u64, len: u64) -> Option<Place> {
        let (span, base) =
            self.spans.iter().find_map(|span| span.host(address, len).map(|base| (span, base)))?;
        self.last = *span;
        Some(Place { base, writable: span.writable })
    }

    /// The longest start of a range that lies in one region: a buffer may go on in the next region,
    /// where two of them touch.
    #[cold]
    pub(super) fn start(&mut self, address: u64, len: u64) -> Option<(Place, u64)> {
        let (span, base) =
            self.spans.iter().find_map(|span| span.host(address, 1).map(|base| (span, base)))?;
        let len = len.min(span.len - (address - span.start));
        Some((Place { base, writable: span.writable }, len))
    }
}
