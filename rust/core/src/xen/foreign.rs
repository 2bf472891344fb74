//! Another domain's frames in our address space. The array of errors decides what is mapped: the ioctl itself returns
//! success also where single frames failed.
//!
//! On a PV dom0 a frame that is not mapped faults when it is touched; on a PVH dom0 it reads as 0xff and swallows writes; on
//! Arm it is the end of the process (SIGKILL). So nobody is let near one: what is mapped is a list of runs, each a
//! [`Backing`] of its own.
//!
//! # Safety
//! A run's pointers lie within the mapping, which each run and each lease holds.
#![allow(unsafe_code)]

use std::{
    ops::Range,
    ptr::NonNull,
    sync::Arc,
    time::{Duration, Instant},
};

use rustix::io::Errno;

use super::{
    abi::FRAME,
    privcmd::{ForeignCalls, Resource},
};
use crate::memory::{
    Access, Backing, GuestMemory, Hold, Lease, MapError, Mapping, MemoryError, MemoryKind, Owner, Region,
};

/// How long is waited between two tries for frames that are paged out.
const PAGED_OUT_PAUSE: Duration = Duration::from_millis(1);
/// What the array of errors says of such a frame.
const PAGED_OUT: i32 = -Errno::NOENT.raw_os_error();

/// A frame that could not be mapped.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct FrameFailure {
    /// Its place in the request.
    pub index: usize,
    /// The frame number.
    pub frame: u64,
    /// What the kernel says.
    pub errno: Errno,
}

impl FrameFailure {
    /// The errno in words that fit a frame.
    pub fn reason(&self) -> &'static str {
        match self.errno {
            Errno::INVAL => "there is no such frame in the domain",
            Errno::SRCH => "there is no such domain",
            Errno::NOENT => "the frame is paged out and did not come back in time",
            Errno::PERM => "the frames of this domain may not be mapped from here",
            Errno::BUSY => "the frame is in use in a way that forbids mapping it",
            Errno::NOMEM => "no memory for the mapping",
            _ => "the hypervisor refused",
        }
    }
}

/// Why foreign memory could not be mapped. Nothing stays mapped.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
#[non_exhaustive]
pub enum ForeignMapError {
    /// No frames were asked for, or more than the interface can take.
    #[error("{0} frames: between 1 and 2^32 - 1 can be mapped at once")]
    Count(usize),
    /// Single frames failed.
    #[error("{} of {count} frames of domain {domain} could not be mapped; the first is frame {:#x}: {}",
        failures.len(), failures.first().map_or(0, |first| first.frame), failures.first().map_or("", FrameFailure::reason))]
    Frames {
        /// The domain.
        domain: u16,
        /// Frames that were asked for.
        count: usize,
        /// All that failed, by index.
        failures: Vec<FrameFailure>,
    },
    /// The call as a whole failed.
    #[error("{count} frames of domain {domain} could not be mapped: {errno}{hint}")]
    Refused {
        /// The domain.
        domain: u16,
        /// Frames that were asked for.
        count: usize,
        /// What the kernel says.
        errno: Errno,
        /// What it means here.
        hint: &'static str,
    },
}

impl ForeignMapError {
    /// The kernel's error, of the first frame that failed or of the call; None where the kernel was not asked.
    pub fn errno(&self) -> Option<Errno> {
        match self {
            Self::Count(_) => None,
            Self::Frames { failures, .. } => failures.first().map(|first| first.errno),
            Self::Refused { errno, .. } => Some(*errno),
        }
    }
}

/// What is to be mapped.
#[derive(Clone, Copy, Debug)]
pub struct MapRequest<'a> {
    /// The domain.
    pub domain: u16,
    /// Guest frame numbers (machine frames, for a PV domain), of 4 KiB each.
    pub frames: &'a [u64],
    /// For writing too?
    pub writable: bool,
    /// How long frames that are paged out are waited for.
    pub patience: Duration,
}

/// Frames of another domain, mapped one after the other.
#[derive(Debug)]
pub struct ForeignMapping {
    mapping: Mapping,
    domain: u16,
    writable: bool,
    frames: usize,
    failures: Vec<FrameFailure>,
}

impl ForeignMapping {
    /// Maps the frames, as many as can be: [`ForeignMapping::failures`] has the others.
    ///
    /// # Errors
    /// The call as a whole failed.
    pub fn partial(calls: &dyn ForeignCalls, request: &MapRequest<'_>) -> Result<Self, ForeignMapError> {
        let MapRequest { domain, frames, writable, .. } = *request;
        let count = frames.len();
        if count == 0 || u32::try_from(count).is_err() {
            return Err(ForeignMapError::Count(count));
        }
        let mapping = reserve(calls, domain, count, writable)?;
        // SAFETY: the range was made for this many frames, and is empty.
        let failures = unsafe { fill(calls, request, mapping.base()) }?;
        Ok(Self { mapping, domain, writable, frames: count, failures })
    }

    /// Maps the frames, all or none.
    ///
    /// # Errors
    /// [`ForeignMapError::Frames`] with every frame that failed; or the call as a whole failed.
    pub fn whole(calls: &dyn ForeignCalls, request: &MapRequest<'_>) -> Result<Self, ForeignMapError> {
        let mut mapped = Self::partial(calls, request)?;
        if mapped.failures.is_empty() {
            return Ok(mapped);
        }
        let (domain, count) = (request.domain, request.frames.len());
        Err(ForeignMapError::Frames { domain, count, failures: std::mem::take(&mut mapped.failures) })
    }

    /// Maps frames of a resource, all or none.
    ///
    /// # Errors
    /// The call as a whole failed.
    pub fn resource(
        calls: &dyn ForeignCalls,
        domain: u16,
        resource: Resource,
        id: u32,
        first: u32,
        frames: u32,
        writable: bool,
    ) -> Result<Self, ForeignMapError> {
        let count = frames as usize;
        if count == 0 {
            return Err(ForeignMapError::Count(0));
        }
        let mapping = reserve(calls, domain, count, writable)?;
        let mapped = calls.map_resource(domain, mapping.base(), resource, id, first, frames.into());
        mapped.map_err(|errno| refused(domain, count, errno))?;
        Ok(Self { mapping, domain, writable, frames: count, failures: Vec::new() })
    }

    /// The first byte of the first frame.
    pub(crate) fn base(&self) -> NonNull<u8> {
        self.mapping.base()
    }

    /// The frames that are not mapped, by index.
    pub fn failures(&self) -> &[FrameFailure] {
        &self.failures
    }

    /// How many frames are mapped.
    pub fn mapped_frames(&self) -> usize {
        self.frames - self.failures.len()
    }

    /// The byte ranges that are not mapped, in order, neighbours joined.
    pub fn holes(&self) -> Vec<Range<u64>> {
        let mut holes: Vec<Range<u64>> = Vec::new();
        for failure in &self.failures {
            let start = (failure.index * FRAME) as u64;
            let end = start + FRAME as u64;
            match holes.last_mut() {
                Some(last) if last.end == start => last.end = end,
                _ => holes.push(start..end),
            }
        }
        holes
    }

    /// The mapping as a table whose addresses are offsets: a region for each run of mapped frames, nothing where a
    /// hole is.
    pub fn into_memory(self) -> Result<GuestMemory, MemoryError> {
        let end = (self.frames * FRAME) as u64;
        let holes = self.holes();
        let mapping = Arc::new(self);
        let starts = std::iter::once(0).chain(holes.iter().map(|hole| hole.end));
        let ends = holes.iter().map(|hole| hole.start).chain(std::iter::once(end));
        let runs = starts.zip(ends).filter(|(start, end)| start < end).map(|(start, end)| {
            let run = ForeignRun { mapping: Arc::clone(&mapping), start, len: end - start };
            Region::new(start, start, Arc::new(run))
        });
        GuestMemory::new(runs.collect())
    }
}

impl Hold for ForeignMapping {
    fn poisoned(&self) -> bool {
        self.mapping.poisoned()
    }
}

/// Mapped frames without a hole between them.
#[derive(Debug)]
struct ForeignRun {
    mapping: Arc<ForeignMapping>,
    /// Offset in the mapping.
    start: u64,
    len: u64,
}

impl ForeignRun {
    fn base(&self) -> NonNull<u8> {
        // SAFETY: a run lies inside its mapping.
        unsafe { self.mapping.base().add(self.start as usize) }
    }
}

impl Hold for ForeignRun {
    fn poisoned(&self) -> bool {
        self.mapping.poisoned()
    }
}

impl Backing for ForeignRun {
    fn kind(&self) -> MemoryKind {
        MemoryKind::Foreign { domain: self.mapping.domain }
    }
    fn len(&self) -> u64 {
        self.len
    }
    fn writable(&self) -> bool {
        self.mapping.writable
    }
    fn owner(&self) -> Owner {
        self.mapping.mapping.owner()
    }
    fn resident(&self) -> Option<NonNull<u8>> {
        Some(self.base())
    }
    fn lease(self: Arc<Self>, offset: u64, len: u64, _access: Access) -> Result<Lease, MapError> {
        if offset.checked_add(len).is_none_or(|end| end > self.len) {
            return Err(MapError::BeyondEnd { len, offset, size: self.len });
        }
        // SAFETY: inside the run, which lives while the lease does; the table checked that a writer may write.
        Ok(unsafe { Lease::new(self.base().add(offset as usize), len, self) })
    }
}

fn reserve(
    calls: &dyn ForeignCalls,
    domain: u16,
    frames: usize,
    writable: bool,
) -> Result<Mapping, ForeignMapError> {
    let base = calls.reserve(frames, writable).map_err(|errno| refused(domain, frames, errno))?;
    // SAFETY: just mapped, for this many frames; a fault is mended by the kernel's page, never less than a frame.
    Ok(unsafe { Mapping::new(base, frames * FRAME, rustix::param::page_size(), writable) })
}

/// Puts the frames of a request into a range of the device that holds nothing yet, as many as can be; gives the others.
///
/// # Safety
/// The range from `at` on was made for exactly the frames of the request, and stays during the call.
pub(crate) unsafe fn fill(
    calls: &dyn ForeignCalls,
    request: &MapRequest<'_>,
    at: NonNull<u8>,
) -> Result<Vec<FrameFailure>, ForeignMapError> {
    let MapRequest { domain, frames, .. } = *request;
    let mut errors = vec![0i32; frames.len()];
    match calls.map_frames(domain, at, frames, &mut errors) {
        Ok(()) => {}
        // SAFETY: as the caller says.
        Err(Errno::NOENT) => unsafe { await_paged_out(calls, request, at, &mut errors) }?,
        Err(errno) => return Err(refused(domain, frames.len(), errno)),
    }
    // Of thousands of frames mostly none has failed: that is found by vectors.
    if errors.iter().fold(0, |any, error| any | error) == 0 {
        return Ok(Vec::new());
    }
    let failures = errors.iter().zip(frames).enumerate().filter(|(_, (error, _))| **error != 0);
    let failures =
        failures.map(|(index, (&error, &frame))| FrameFailure { index, frame, errno: errno_of(error) });
    Ok(failures.collect())
}

/// Frames that are paged out come back when they are asked for: they are tried again until the time is over.
///
/// # Safety
/// As [`fill`].
unsafe fn await_paged_out(
    calls: &dyn ForeignCalls,
    request: &MapRequest<'_>,
    base: NonNull<u8>,
    errors: &mut [i32],
) -> Result<(), ForeignMapError> {
    let deadline = Instant::now() + request.patience;
    let refused = |errno| refused(request.domain, request.frames.len(), errno);
    let mut in_place = true;
    loop {
        // SAFETY: as the caller says.
        in_place = in_place && unsafe { try_again(calls, request, base, errors) }.map_err(refused)?;
        if !in_place {
            // SAFETY: the range is the caller's, who uses it when we are done.
            unsafe { calls.reserve_at(base, request.frames.len(), request.writable) }.map_err(refused)?;
            match calls.map_frames(request.domain, base, request.frames, errors) {
                Ok(()) | Err(Errno::NOENT) => {}
                Err(errno) => return Err(refused(errno)),
            }
        }
        if !errors.contains(&PAGED_OUT) || Instant::now() >= deadline {
            return Ok(());
        }
        std::thread::sleep(PAGED_OUT_PAUSE);
    }
}

/// Tries those frames alone that are paged out. False where the kernel does not let a frame be tried again in its place:
/// with translated addresses (a PVH or Arm dom0), or pages larger than a frame. Then the errors mean nothing any more.
///
/// # Safety
/// As [`fill`].
unsafe fn try_again(
    calls: &dyn ForeignCalls,
    request: &MapRequest<'_>,
    base: NonNull<u8>,
    errors: &mut [i32],
) -> Result<bool, Errno> {
    let mut from = 0;
    while let Some(start) = errors.iter().skip(from).position(|&error| error == PAGED_OUT).map(|at| at + from)
    {
        let end = start + errors.iter().skip(start).take_while(|&&error| error == PAGED_OUT).count();
        // SAFETY: start is below the number of frames.
        let at = unsafe { base.add(start * FRAME) };
        match calls.map_frames(request.domain, at, &request.frames[start..end], &mut errors[start..end]) {
            Ok(()) | Err(Errno::NOENT) => {}
            Err(Errno::INVAL) => return Ok(false),
            Err(errno) => return Err(errno),
        }
        from = end;
    }
    Ok(true)
}

fn errno_of(error: i32) -> Errno {
    Errno::from_raw_os_error(
        error.checked_neg().filter(|errno| (1..4096).contains(errno)).unwrap_or(libc::EIO),
    )
}

pub(crate) fn refused(domain: u16, count: usize, errno: Errno) -> ForeignMapError {
    let hint = match errno {
        Errno::PERM => " (the device is restricted to another domain, or this one has not the right)",
        Errno::NOMEM => " (dom0 has no pages left to stand for them)",
        Errno::SRCH => " (there is no such domain)",
        _ => "",
    };
    ForeignMapError::Refused { domain, count, errno, hint }
}

#[cfg(test)]
mod tests {
    use super::{
        super::fake_domain::{DOMAIN, FakeDomain},
        *,
    };

    /// Frame 5 is missing.
    fn holed() -> FakeDomain {
        let domain = FakeDomain::new(16);
        domain.take_away(5);
        domain
    }

    fn request(frames: &[u64]) -> MapRequest<'_> {
        MapRequest { domain: DOMAIN, frames, writable: true, patience: Duration::from_secs(60) }
    }

    fn failure(index: usize, frame: u64, errno: Errno) -> FrameFailure {
        FrameFailure { index, frame, errno }
    }

    #[test]
    fn frames_are_mapped_in_the_order_of_the_request() {
        let domain = holed();
        let memory = ForeignMapping::whole(&domain, &request(&[9, 3, 4])).unwrap().into_memory().unwrap();
        assert_eq!(memory.regions().len(), 1);
        let mut bytes = vec![0; 3 * FRAME];
        memory.read(0, &mut bytes).unwrap();
        assert!(
            bytes.chunks(FRAME).zip([9, 3, 4]).all(|(page, frame)| page.iter().all(|&byte| byte == frame))
        );
        memory.write(FRAME as u64 + 1, b"written").unwrap();
        assert_eq!(domain.bytes(3, 1, 7), b"written");
    }

    #[test]
    fn a_bad_frame_unmaps_all_and_every_failure_is_named() {
        let error = ForeignMapping::whole(&holed(), &request(&[4, 5, 6, 99])).unwrap_err();
        let failures = vec![failure(1, 5, Errno::INVAL), failure(3, 99, Errno::INVAL)];
        assert_eq!(error, ForeignMapError::Frames { domain: DOMAIN, count: 4, failures });
        assert_eq!(
            error.to_string(),
            "2 of 4 frames of domain 7 could not be mapped; the first is frame 0x5: there is no such frame in the domain"
        );
    }

    #[test]
    fn a_hole_of_a_partial_mapping_can_not_be_touched() {
        let mapped = ForeignMapping::partial(&holed(), &request(&[4, 5, 99, 6])).unwrap();
        assert_eq!(mapped.mapped_frames(), 2);
        let frame = FRAME as u64;
        assert_eq!(mapped.holes(), vec![frame..3 * frame]);
        let memory = mapped.into_memory().unwrap();
        let mut byte = [0];
        memory.read(3 * frame, &mut byte).unwrap();
        assert_eq!(byte, [6]);
        for (address, len) in [(frame, 1), (2 * frame, 1), (frame - 1, 2), (0, 4 * FRAME)] {
            let mut bytes = vec![0; len];
            let error = memory.read(address, &mut bytes).unwrap_err();
            assert!(matches!(error, MemoryError::OutOfRange { .. }), "{error}");
        }
    }

    #[test]
    fn frames_that_are_paged_out_alone_are_tried_again() {
        let domain = FakeDomain::new(16);
        domain.page_out(&[(2, 1), (3, 1), (7, 3)]);
        let mapped = ForeignMapping::whole(&domain, &request(&[1, 2, 3, 4, 7])).unwrap();
        assert!(mapped.failures().is_empty());
        assert_eq!(domain.batches(), [5, 2, 1, 1, 1]);
    }

    #[test]
    fn where_a_frame_is_not_tried_again_in_its_place_all_are_mapped_anew() {
        let domain = FakeDomain::translated(16);
        domain.page_out(&[(2, 2), (7, 1)]);
        let frames: Vec<u64> = (0..9).collect();
        let mapped = ForeignMapping::whole(&domain, &request(&frames)).unwrap();
        // The whole, a frame alone which is refused, then the whole until all are there.
        assert_eq!(domain.batches(), [9, 1, 9, 9]);
        let memory = mapped.into_memory().unwrap();
        let mut byte = [0];
        memory.read(7 * FRAME as u64, &mut byte).unwrap();
        assert_eq!(byte, [7]);
    }

    #[test]
    fn a_frame_that_stays_paged_out_is_a_failure_after_a_while() {
        let domain = FakeDomain::new(16);
        domain.page_out(&[(2, u32::MAX)]);
        let request = MapRequest { patience: Duration::from_millis(5), ..request(&[1, 2]) };
        let mapped = ForeignMapping::partial(&domain, &request).unwrap();
        assert_eq!(mapped.failures(), [failure(1, 2, Errno::NOENT)]);
    }

    #[test]
    fn an_unknown_domain_fails_every_frame() {
        let domain = holed();
        let error =
            ForeignMapping::whole(&domain, &MapRequest { domain: 8, ..request(&[1, 2]) }).unwrap_err();
        assert!(error.to_string().contains("there is no such domain"), "{error}");
    }

    #[test]
    fn no_frames_are_refused() {
        let error = ForeignMapping::partial(&holed(), &request(&[])).unwrap_err();
        assert_eq!(error, ForeignMapError::Count(0));
    }
}
