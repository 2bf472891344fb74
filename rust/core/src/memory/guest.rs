//! The table of regions: guest physical and frontend user addresses to host memory.
//!
//! What holds for every range that is given here, an address and a length:
//!
//! - **Crossing**: where one region begins at the end of another, a range may span both. [`GuestMemory::read`],
//!   [`GuestMemory::write`] and [`GuestMemory::reach`] go through; what gives one pointer does not.
//! - **Outside**: a range that begins or ends outside, or spans a hole, is refused whole, before a byte is copied.
//! - **Wrapping**: a range does not go on at 0 after the last address; it ends outside.
//! - **Empty**: a range of no bytes is allowed at any address, and nothing is touched. Only
//!   [`GuestMemory::translate`], which has to give a pointer, wants its address inside a region.
//!
//! # Safety
//! Pointers are handed out only for ranges that lie inside one region, and the region holds its backing.
#![allow(unsafe_code)]

use std::{fmt::Write, ptr::NonNull, sync::Arc};

use super::{
    backing::{Access, Backing, Lease},
    copy::{Source, Target, copy_from_guest, copy_to_guest},
    error::MemoryError,
    fault,
    fork::Owner,
    translate::{Span, Translator},
};

/// One region of guest memory.
#[derive(Clone, Debug)]
pub struct Region {
    /// Guest physical address of the first byte.
    pub guest_address: u64,
    /// Address of the same byte in the frontend's own address space (vhost-user rings use it).
    pub user_address: u64,
    /// Length in bytes; not more than the backing has.
    pub len: u64,
    /// What holds the bytes.
    pub backing: Arc<dyn Backing>,
}

impl Region {
    /// A region that spans the whole backing.
    pub fn new(guest_address: u64, user_address: u64, backing: Arc<dyn Backing>) -> Self {
        Self { guest_address, user_address, len: backing.len(), backing }
    }
}

#[derive(Debug)]
struct Table {
    /// The same regions in the same order.
    spans: Box<[Span]>,
    regions: Box<[Region]>,
    /// All of them.
    resident: bool,
    owner: Owner,
}

/// An immutable table of regions, sorted by guest address. A change makes a new table that shares the
/// backings of the regions that stay: whoever holds the old one still reaches all of its memory. Cloning costs
/// one atomic increment.
#[derive(Clone, Debug)]
pub struct GuestMemory {
    table: Arc<Table>,
}

impl Default for GuestMemory {
    /// A table without regions.
    fn default() -> Self {
        let (spans, regions, owner) = ([].into(), [].into(), Owner::this_process());
        Self { table: Arc::new(Table { spans, regions, resident: true, owner }) }
    }
}

impl GuestMemory {
    /// Checks and sorts the regions: none empty, none wrapping, none overlapping, none longer than its backing.
    ///
    /// # Errors
    /// [`MemoryError::BadTable`]; [`MemoryError::Forked`] for a region that was mapped by another process.
    pub fn new(mut regions: Vec<Region>) -> Result<Self, MemoryError> {
        regions.sort_by_key(|region| region.guest_address);
        for region in &regions {
            region.backing.owner().check()?;
            let bad = if region.len == 0 || region.guest_address.checked_add(region.len - 1).is_none() {
                "is empty or wraps"
            } else if region.len > region.backing.len() {
                "is longer than what backs it"
            } else {
                continue;
            };
            let (address, len) = (region.guest_address, region.len);
            return Err(MemoryError::BadTable(format!("region at {address:#x} of {len:#x} bytes {bad}")));
        }
        for pair in regions.windows(2) {
            if pair[1].guest_address - pair[0].guest_address < pair[0].len {
                return Err(MemoryError::BadTable(format!(
                    "regions at {:#x} and {:#x} overlap",
                    pair[0].guest_address, pair[1].guest_address
                )));
            }
        }
        let spans = regions.iter().map(Span::of).collect();
        let resident = regions.iter().all(|region| region.backing.resident().is_some());
        let (regions, owner) = (regions.into(), Owner::this_process());
        Ok(Self { table: Arc::new(Table { spans, regions, resident, owner }) })
    }

    /// The regions, sorted by guest address.
    pub fn regions(&self) -> &[Region] {
        &self.table.regions
    }

    /// Is this the process that mapped the memory? Every access below that copies or leases asks it by itself.
    #[inline]
    pub fn check_owner(&self) -> Result<(), MemoryError> {
        self.table.owner.check()
    }

    /// Is all of it mapped at any time, so that no access has to wait for a mapping?
    #[inline]
    pub fn is_resident(&self) -> bool {
        self.table.resident
    }

    /// True if any region went away under us. One load, as long as this process never saw a fault.
    #[inline]
    pub fn poisoned(&self) -> bool {
        fault::faults() != 0 && self.regions().iter().any(|region| region.backing.poisoned())
    }

    /// The host pointer of a guest range that may be read, and lies in one always-mapped region.
    #[inline]
    pub fn translate(&self, address: u64, len: u64) -> Option<NonNull<u8>> {
        self.span(address)?.translate(address, len, Access::Read)
    }

    /// Translates many ranges, remembering the region of the last one: the ring's fast path.
    pub fn translator(&self) -> Translator {
        Translator::new(self.clone())
    }

    /// What a translation of this address has to look at.
    #[inline]
    pub(super) fn span(&self, address: u64) -> Option<&Span> {
        let index = self.table.spans.partition_point(|span| span.start() <= address).checked_sub(1)?;
        self.table.spans.get(index)
    }

    /// Goes through all of a range, piece by piece: gives the host pointer and the length of each.
    ///
    /// This is the slow path beside [`Translator`]: for ranges that cross regions, for memory that is mapped
    /// only on demand, and to learn why a range was refused. Pieces that are mapped for this access are put into
    /// `leases`; the pointers hold while `leases` and this table live. Nothing is given before all is checked.
    ///
    /// # Errors
    /// [`MemoryError::OutOfRange`], [`MemoryError::ReadOnly`], [`MemoryError::Unreachable`],
    /// [`MemoryError::Forked`].
    pub fn reach(
        &self,
        address: u64,
        len: u64,
        access: Access,
        leases: &mut Vec<Lease>,
        mut each: impl FnMut(NonNull<u8>, u64),
    ) -> Result<(), MemoryError> {
        self.check_owner()?;
        if len == 0 {
            return Ok(());
        }
        let range = self.covering(address, len, access)?;
        let first_lease = leases.len();
        for (region, offset, piece) in pieces(range, address, len) {
            if region.backing.resident().is_none() {
                let lease = Arc::clone(&region.backing).lease(offset, piece, access);
                leases.push(lease.map_err(|source| MemoryError::Unreachable { address, len, source })?);
            }
        }
        let mut leased = leases[first_lease..].iter();
        for (region, offset, piece) in pieces(range, address, len) {
            match region.backing.resident() {
                // SAFETY: offset < the region's length, which is not more than the backing has.
                Some(base) => each(unsafe { base.add(offset as usize) }, piece),
                None => leased.by_ref().take(1).for_each(|lease| each(lease.base(), piece)),
            }
        }
        Ok(())
    }

    /// Makes a range reachable by one pointer, for as long as the lease lives.
    ///
    /// # Errors
    /// [`MemoryError::Crossing`] if the range spans regions; [`MemoryError::Fault`] if the region is gone
    /// already; and those of [`GuestMemory::reach`].
    pub fn lease(&self, address: u64, len: u64, access: Access) -> Result<Lease, MemoryError> {
        self.check_owner()?;
        if len == 0 {
            return Ok(Lease::empty());
        }
        let [region] = self.covering(address, len, access)? else {
            return Err(MemoryError::Crossing { address, len });
        };
        if region.backing.poisoned() {
            return Err(MemoryError::Fault { address, len });
        }
        let lease = Arc::clone(&region.backing).lease(address - region.guest_address, len, access);
        lease.map_err(|source| MemoryError::Unreachable { address, len, source })
    }

    /// Makes ranges of guest addresses, address and length of each, reachable for one request, each by one pointer. They may be
    /// copies: of what is there now, and of what is to be there when the leases are [settled](Lease::settle).
    ///
    /// # Errors
    /// Those of [`GuestMemory::lease`], for the first range that has one.
    pub fn lease_for_request(
        &self,
        ranges: &[(u64, u64)],
        access: Access,
    ) -> Result<Vec<Lease>, MemoryError> {
        let one_by_one = || ranges.iter().map(|&(address, len)| self.lease(address, len, access)).collect();
        let Some(&(first, _)) = ranges.first() else { return Ok(Vec::new()) };
        self.check_owner()?;
        let Some(region) =
            self.regions().iter().find(|region| first.wrapping_sub(region.guest_address) < region.len)
        else {
            return one_by_one();
        };
        let inside = |&(address, len): &(u64, u64)| {
            let offset = address.wrapping_sub(region.guest_address);
            (len > 0 && offset < region.len && len <= region.len - offset).then_some((offset, len))
        };
        let allowed = access == Access::Read || region.backing.writable();
        let Some(offsets) = ranges.iter().map(inside).collect::<Option<Vec<_>>>().filter(|_| allowed) else {
            return one_by_one();
        };
        // Together they fail without saying which of them did.
        Arc::clone(&region.backing).lease_for_request(&offsets, access).or_else(|_| one_by_one())
    }

    /// Does this range lie in one region, which is mapped only on demand?
    pub fn is_on_demand(&self, address: u64, len: u64) -> bool {
        len > 0
            && matches!(self.covering(address, len, Access::Read), Ok([region]) if region.backing.resident().is_none())
    }

    /// Says whether a range can be accessed, without touching it.
    ///
    /// # Errors
    /// [`MemoryError::OutOfRange`], [`MemoryError::ReadOnly`], [`MemoryError::Forked`].
    pub fn validate(&self, address: u64, len: u64, access: Access) -> Result<(), MemoryError> {
        self.check_owner()?;
        if len == 0 { Ok(()) } else { self.covering(address, len, access).map(|_| ()) }
    }

    /// Fills the buffer from guest memory.
    ///
    /// # Errors
    /// Those of [`GuestMemory::reach`]; [`MemoryError::Fault`] if a region is gone, and then the buffer's bytes
    /// mean nothing.
    pub fn read(&self, address: u64, buffer: &mut [u8]) -> Result<(), MemoryError> {
        self.read_into(address, buffer.into())
    }

    /// [`GuestMemory::read`] into bytes that others may look at meanwhile.
    ///
    /// # Errors
    /// As `read`.
    pub fn read_into(&self, address: u64, mut target: Target<'_>) -> Result<(), MemoryError> {
        self.copy(address, target.len() as u64, Access::Read, |guest, piece| {
            // SAFETY: `reach` gives mapped pieces that may be read, and together they are as long as the target.
            unsafe { copy_from_guest(guest, target.take(piece as usize)) }
        })
    }

    /// Writes all of the bytes to guest memory.
    ///
    /// # Errors
    /// Those of [`GuestMemory::reach`]; [`MemoryError::Fault`] if a region is gone, and then some bytes may have
    /// been written elsewhere in the range.
    pub fn write(&self, address: u64, bytes: &[u8]) -> Result<(), MemoryError> {
        self.write_from(address, bytes.into())
    }

    /// [`GuestMemory::write`] from bytes that others may change meanwhile.
    ///
    /// # Errors
    /// As `write`.
    pub fn write_from(&self, address: u64, mut source: Source<'_>) -> Result<(), MemoryError> {
        self.copy(address, source.len() as u64, Access::Write, |guest, piece| {
            // SAFETY: as in `read_into`; the pieces may be written.
            unsafe { copy_to_guest(guest, source.take(piece as usize)) }
        })
    }

    /// The guest physical address of a frontend user address. Where regions overlap in the frontend's space
    /// the first one is meant.
    pub fn user_to_guest(&self, user_address: u64) -> Option<u64> {
        self.regions().iter().find_map(|region| {
            let offset = user_address.wrapping_sub(region.user_address);
            (offset < region.len).then(|| region.guest_address + offset)
        })
    }

    fn copy(
        &self,
        address: u64,
        len: u64,
        access: Access,
        each: impl FnMut(NonNull<u8>, u64),
    ) -> Result<(), MemoryError> {
        let mut leases = Vec::new();
        self.intact(address, len, access, &leases)?;
        self.reach(address, len, access, &mut leases, each)?;
        self.intact(address, len, access, &leases)
    }

    /// An error if what the range is backed by is gone.
    fn intact(&self, address: u64, len: u64, access: Access, leases: &[Lease]) -> Result<(), MemoryError> {
        if fault::faults() == 0 || len == 0 {
            return Ok(());
        }
        let regions = self.covering(address, len, access)?;
        let gone = regions.iter().any(|region| region.backing.poisoned());
        if gone || leases.iter().any(Lease::poisoned) {
            return Err(MemoryError::Fault { address, len });
        }
        Ok(())
    }

    /// The regions that a range of at least one byte lies in: all of it, without a hole.
    fn covering(&self, address: u64, len: u64, access: Access) -> Result<&[Region], MemoryError> {
        let spans = &self.table.spans;
        let outside = || MemoryError::OutOfRange { address, len, regions: self.in_words() };
        let last = address.checked_add(len - 1).ok_or_else(outside)?;
        let first =
            spans.partition_point(|span| span.start() <= address).checked_sub(1).ok_or_else(outside)?;
        let mut next = address;
        for (index, region) in self.regions().iter().enumerate().skip(first) {
            let offset = next.wrapping_sub(region.guest_address);
            if offset >= region.len {
                break;
            }
            if access == Access::Write && !region.backing.writable() {
                return Err(MemoryError::ReadOnly { address, len });
            }
            let region_last = region.guest_address + (region.len - 1);
            if last <= region_last {
                return Ok(&self.regions()[first..=index]);
            }
            next = region_last + 1;
        }
        Err(outside())
    }

    /// The table for an error message: the first regions of it.
    fn in_words(&self) -> String {
        const SHOWN: usize = 8;
        let mut words = String::new();
        for (index, region) in self.regions().iter().take(SHOWN).enumerate() {
            let separator = if index == 0 { "" } else { ", " };
            // Writing to a string cannot fail.
            let _ = write!(words, "{separator}{:#x}..+{:#x}", region.guest_address, region.len);
        }
        match self.regions().len() {
            0 => words.push_str("which is empty"),
            count if count > SHOWN => {
                let _ = write!(words, " and {} more", count - SHOWN);
            }
            _ => {}
        }
        words
    }
}

/// The pieces of a range in the regions that cover it: region, offset in it, length.
fn pieces(regions: &[Region], address: u64, len: u64) -> impl Iterator<Item = (&Region, u64, u64)> {
    let mut done = 0;
    regions.iter().map(move |region| {
        let offset = address + done - region.guest_address;
        let piece = (region.len - offset).min(len - done);
        done += piece;
        (region, offset, piece)
    })
}
