//! Bytes of granted pages without mapping them: the hypervisor copies (GNTTABOP_copy).
//!
//! For a few bytes that costs less than to map, to copy and to unmap, and a bad reference has a status of its own.
//!
//! # Safety
//! Segments have addresses of a [`Source`] or a [`Target`], which are borrowed across the call.
#![allow(unsafe_code)]

use std::ptr::NonNull;

use rustix::io::Errno;

use super::{
    abi::{
        FRAME,
        gnttab::{COPY_SOURCE_GRANT, COPY_TARGET_GRANT, CopySegment, grant_end},
    },
    gntdev::{Grant, GrantCalls},
};
use crate::memory::{Access, Source, Target};

/// A page of which nothing was copied, or less than was asked.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct CopyFailure {
    /// The place of its reference in the request.
    pub index: usize,
    /// The grant.
    pub grant: Grant,
    /// GNTST_* (xen/include/public/grant_table.h).
    pub status: i16,
}

impl CopyFailure {
    /// The errno that comes nearest to the status.
    pub fn errno(&self) -> Errno {
        match self.status {
            -2 => Errno::SRCH,
            -3 | -10 => Errno::INVAL,
            -1 | -8 => Errno::ACCESS,
            -9 => Errno::FAULT,
            -12 => Errno::AGAIN,
            _ => Errno::IO,
        }
    }

    /// The status in words.
    pub fn reason(&self) -> &'static str {
        match self.status {
            // What Xen's _set_status says (xen/common/grant_table.c).
            -1 => "it is not in use, granted to another domain, or for reading only",
            -2 => "there is no such domain",
            -3 => "there is no such reference",
            -8 => "the hypervisor does not permit it",
            -9 => "the page may not be copied",
            -10 => "the copy would leave the page",
            -12 => "the page is not there for the moment",
            _ => "the hypervisor refused",
        }
    }
}

/// Why granted pages could not be copied. What lies in other pages of the request may have been.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
#[non_exhaustive]
pub enum GrantCopyError {
    /// The bytes do not lie in the pages.
    #[error("{len} bytes from offset {offset} on do not lie in {pages} pages of 4096 bytes")]
    Range {
        /// Where they begin.
        offset: u64,
        /// How many.
        len: u64,
        /// The pages.
        pages: usize,
    },
    /// The hypervisor refused single pages.
    #[error("{} of {count} pages could not be copied; the first is reference {} of domain {}: {}", failures.len(),
        failures.first().map_or(0, |first| first.grant.reference),
        failures.first().map_or(0, |first| first.grant.domain),
        failures.first().map_or("", CopyFailure::reason))]
    Pages {
        /// Pages of which something was to be copied.
        count: usize,
        /// All that failed, by index.
        failures: Vec<CopyFailure>,
    },
    /// The kernel refused.
    #[error("{count} pages could not be copied: {errno}")]
    Refused {
        /// Pages of which something was to be copied.
        count: usize,
        /// What it says.
        errno: Errno,
    },
}

impl GrantCopyError {
    /// The error as a number; None where the kernel was not asked.
    pub fn errno(&self) -> Option<Errno> {
        match self {
            Self::Range { .. } => None,
            Self::Pages { failures, .. } => failures.first().map(CopyFailure::errno),
            Self::Refused { errno, .. } => Some(*errno),
        }
    }
}

/// Copies from granted pages, which count as one range, from `offset` on, until the target is full.
///
/// # Errors
/// See [`GrantCopyError`].
pub fn copy_from_grants(
    calls: &dyn GrantCalls,
    grants: &[Grant],
    offset: u64,
    target: Target<'_>,
) -> Result<(), GrantCopyError> {
    let address = target.base().as_ptr() as u64;
    let pieces = pieces(grants, offset, target.len() as u64)?;
    let segments = pieces.iter().map(|piece| CopySegment {
        source: piece.end(),
        target: address + piece.done,
        len: piece.len,
        flags: COPY_SOURCE_GRANT,
        status: 0,
        padding: 0,
    });
    // SAFETY: the pieces together are as long as the target, which is ours to write during the call.
    unsafe { run(calls, segments.collect(), &pieces) }
}

/// Copies all of the source to granted pages, which count as one range, from `offset` on.
///
/// # Errors
/// See [`GrantCopyError`].
pub fn copy_to_grants(
    calls: &dyn GrantCalls,
    grants: &[Grant],
    offset: u64,
    source: Source<'_>,
) -> Result<(), GrantCopyError> {
    let address = source.base().as_ptr() as u64;
    let pieces = pieces(grants, offset, source.len() as u64)?;
    let segments = pieces.iter().map(|piece| CopySegment {
        source: address + piece.done,
        target: piece.end(),
        len: piece.len,
        flags: COPY_TARGET_GRANT,
        status: 0,
        padding: 0,
    });
    // SAFETY: the pieces together are as long as the source, which may be read during the call.
    unsafe { run(calls, segments.collect(), &pieces) }
}

/// Copies between ranges of a domain's granted pages and our memory, in one call. A range is an offset into all that the domain can
/// grant, 4096 bytes for each reference, and a length; ours lie one behind the other, each filled up to a multiple of `align` bytes.
/// False where anything was refused.
///
/// # Safety
/// From `ours` on there is room for all ranges; for [`Access::Read`], which copies to it, it is nobody else's during the call.
pub(crate) unsafe fn copy_ranges(
    calls: &dyn GrantCalls,
    domain: u16,
    ranges: &[(u64, u64)],
    ours: NonNull<u8>,
    align: u64,
    access: Access,
) -> bool {
    let frame = FRAME as u64;
    let mut address = ours.as_ptr() as u64;
    let mut segments = Vec::with_capacity(ranges.len());
    for &(offset, len) in ranges {
        let mut done = 0;
        while done < len {
            let at = offset + done;
            let piece = (frame - at % frame).min(len - done);
            let Ok(reference) = u32::try_from(at / frame) else { return false };
            let granted = grant_end(domain, reference, (at % frame) as u16);
            let (source, target, flags) = match access {
                Access::Read => (granted, address + done, COPY_SOURCE_GRANT),
                Access::Write => (address + done, granted, COPY_TARGET_GRANT),
            };
            segments.push(CopySegment { source, target, len: piece as u16, flags, status: 0, padding: 0 });
            done += piece;
        }
        address += len.next_multiple_of(align);
    }
    // SAFETY: each segment lies in the room that the caller promises.
    let copied = unsafe { calls.copy(&mut segments) };
    copied.is_ok() && segments.iter().all(|segment| segment.status == 0)
}

/// Do these bytes lie in the pages?
///
/// # Errors
/// [`GrantCopyError::Range`].
pub fn check_copy(grants: &[Grant], offset: u64, len: u64) -> Result<(), GrantCopyError> {
    end_of(grants, offset, len).map(drop)
}

fn end_of(grants: &[Grant], offset: u64, len: u64) -> Result<u64, GrantCopyError> {
    let end = offset.checked_add(len).filter(|&end| end <= grants.len() as u64 * FRAME as u64);
    end.ok_or(GrantCopyError::Range { offset, len, pages: grants.len() })
}

/// The part of a range that lies in one page.
struct Piece {
    index: usize,
    grant: Grant,
    offset: u16,
    len: u16,
    /// Bytes of the range before it.
    done: u64,
}

impl Piece {
    fn end(&self) -> u64 {
        grant_end(self.grant.domain, self.grant.reference, self.offset)
    }
}

fn pieces(grants: &[Grant], offset: u64, len: u64) -> Result<Vec<Piece>, GrantCopyError> {
    let frame = FRAME as u64;
    let end = end_of(grants, offset, len)?;
    let piece = |(index, &grant): (usize, &Grant)| {
        let page = index as u64 * frame;
        let (from, to) = (offset.max(page), end.min(page + frame));
        let (start, len) = ((from.wrapping_sub(page)) as u16, to.saturating_sub(from) as u16);
        (len > 0).then(|| Piece { index, grant, offset: start, len, done: from - offset })
    };
    Ok(grants.iter().enumerate().filter_map(piece).collect())
}

/// # Safety
/// As [`GrantCalls::copy`].
unsafe fn run(
    calls: &dyn GrantCalls,
    mut segments: Vec<CopySegment>,
    pieces: &[Piece],
) -> Result<(), GrantCopyError> {
    let count = pieces.len();
    if count == 0 {
        return Ok(());
    }
    // SAFETY: as the caller says.
    let copied = unsafe { calls.copy(&mut segments) };
    copied.map_err(|errno| GrantCopyError::Refused { count, errno })?;
    let failed = segments.iter().zip(pieces).filter(|(segment, _)| segment.status != 0);
    let failures = failed.map(|(segment, piece)| CopyFailure {
        index: piece.index,
        grant: piece.grant,
        status: segment.status,
    });
    let failures: Vec<_> = failures.collect();
    if failures.is_empty() { Ok(()) } else { Err(GrantCopyError::Pages { count, failures }) }
}

#[cfg(test)]
mod tests {
    use super::{super::fake_grants::FakeGrants, *};

    fn grants(references: &[u32]) -> Vec<Grant> {
        references.iter().map(|&reference| Grant { domain: 3, reference }).collect()
    }

    fn granted() -> FakeGrants {
        let fake = FakeGrants::default();
        [8, 9, 10].iter().for_each(|&reference| fake.grant(Grant { domain: 3, reference }, reference != 10));
        fake
    }

    #[test]
    fn bytes_go_both_ways_across_pages() {
        let fake = granted();
        let pages = grants(&[9, 8]);
        copy_to_grants(&fake, &pages, 4094, (&b"across"[..]).into()).unwrap();
        assert_eq!(
            (fake.read(pages[0], 4094, 2), fake.read(pages[1], 0, 4)),
            (b"ac".to_vec(), b"ross".to_vec())
        );
        let mut back = [0; 6];
        copy_from_grants(&fake, &pages, 4094, (&mut back[..]).into()).unwrap();
        assert_eq!(&back, b"across");
        copy_from_grants(&fake, &pages, 8192, (&mut [][..]).into()).unwrap();
    }

    #[test]
    fn each_page_that_is_refused_is_named_with_its_status() {
        let fake = granted();
        let bytes = [1; 3 * FRAME];
        let error = copy_to_grants(&fake, &grants(&[8, 0xfffff0, 10]), 0, (&bytes[..]).into()).unwrap_err();
        let GrantCopyError::Pages { count: 3, failures } = &error else { panic!("{error}") };
        let failures: Vec<_> = failures.iter().map(|one| (one.index, one.status, one.errno())).collect();
        assert_eq!(failures, [(1, -3, Errno::INVAL), (2, -1, Errno::ACCESS)]);
        assert_eq!(
            error.to_string(),
            "2 of 3 pages could not be copied; the first is reference 16777200 of domain 3: \
             there is no such reference"
        );
        assert_eq!(fake.read(grants(&[8])[0], 4095, 1), [1]);
    }

    #[test]
    fn a_range_beyond_the_pages_is_refused() {
        let fake = granted();
        for (offset, len) in [(4096, 1), (0, 4097), (u64::MAX, 1)] {
            let mut bytes = vec![0; len];
            let error = copy_from_grants(&fake, &grants(&[8]), offset, (&mut bytes[..]).into()).unwrap_err();
            assert_eq!(error, GrantCopyError::Range { offset, len: len as u64, pages: 1 });
        }
    }
}
