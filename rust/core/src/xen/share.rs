//! Pages of ours that another domain may map.
//!
//! # Safety
//! A share's pointers lie within its range, which it holds, and each lease holds the share.
#![allow(unsafe_code)]

use std::{mem::ManuallyDrop, ptr::NonNull, sync::Arc};

use rustix::io::Errno;

use super::{abi::FRAME, gntalloc::ShareCalls, gntdev::UnmapNotify};
use crate::memory::{
    Access, Backing, GuestMemory, Hold, Lease, MapError, Mapping, MemoryError, MemoryKind, Owner, Region,
};

/// Why pages could not be granted.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
#[non_exhaustive]
pub enum ShareError {
    /// No page was asked for, or more than the interface can take.
    #[error("{0} pages: between 1 and 2^32 - 1 can be granted at once")]
    Count(usize),
    /// The byte that is to be cleared is not in the pages.
    #[error("byte {offset} cannot be cleared when {pages} pages go: it must lie in them")]
    Notify {
        /// The byte.
        offset: u64,
        /// The pages.
        pages: usize,
    },
    /// The kernel refused.
    #[error("{count} pages could not be granted to domain {domain}: {errno}{hint}")]
    Refused {
        /// To whom.
        domain: u16,
        /// Pages.
        count: usize,
        /// What the kernel says.
        errno: Errno,
        /// What it means here.
        hint: &'static str,
    },
}

impl ShareError {
    /// The kernel's error, where the kernel was asked.
    pub fn errno(&self) -> Option<Errno> {
        match self {
            Self::Count(_) | Self::Notify { .. } => None,
            Self::Refused { errno, .. } => Some(*errno),
        }
    }
}

/// What is to be granted.
#[derive(Clone, Copy, Debug)]
pub struct ShareRequest {
    /// To whom.
    pub domain: u16,
    /// How many pages, of 4 KiB.
    pub pages: usize,
    /// May the other domain write?
    pub writable: bool,
    /// What is to happen when they go.
    pub notify: UnmapNotify,
}

/// Pages of zeroes that are granted to a domain, mapped here for writing.
///
/// When it is dropped the grants are ended. What the other domain still has mapped it keeps: the kernel ends that grant
/// when it is let go of.
#[derive(Debug)]
pub struct GrantShare {
    mapping: ManuallyDrop<Mapping>,
    calls: Arc<dyn ShareCalls>,
    index: u64,
    references: Box<[u32]>,
}

impl GrantShare {
    /// Makes pages and grants them.
    ///
    /// # Errors
    /// See [`ShareError`].
    pub fn new(calls: &Arc<dyn ShareCalls>, request: &ShareRequest) -> Result<Self, ShareError> {
        let ShareRequest { domain, pages, writable, notify } = *request;
        if pages == 0 || u32::try_from(pages).is_err() {
            return Err(ShareError::Count(pages));
        }
        if let Some(offset) = notify.clear_byte.filter(|&offset| offset >= (pages * FRAME) as u64) {
            return Err(ShareError::Notify { offset, pages });
        }
        let refused = |errno| {
            let hint = match errno {
                Errno::NOSPC => " (more than the module's limit: xen_gntalloc.limit)",
                _ => "",
            };
            ShareError::Refused { domain, count: pages, errno, hint }
        };
        let mut references = vec![0; pages].into_boxed_slice();
        let index = calls.share(domain, writable, &mut references).map_err(refused)?;
        let base = calls.map(index, pages).map_err(|errno| {
            // They are ours alone, and nobody knows them.
            let _ = calls.unshare(index, pages);
            refused(errno)
        })?;
        // SAFETY: just mapped, for this many pages.
        let mapping = unsafe { Mapping::new(base, pages * FRAME, rustix::param::page_size(), true) };
        let (mapping, calls) = (ManuallyDrop::new(mapping), Arc::clone(calls));
        let share = Self { mapping, calls, index, references };
        share.calls.notify_on_unmap(index, notify).map_err(refused)?;
        Ok(share)
    }

    /// The references, one for each page: what the other domain has to be told.
    pub fn references(&self) -> &[u32] {
        &self.references
    }

    fn base(&self) -> NonNull<u8> {
        self.mapping.base()
    }

    /// The pages as a table of one region, whose addresses are offsets.
    ///
    /// # Errors
    /// [`MemoryError::Forked`].
    pub fn into_memory(self) -> Result<GuestMemory, MemoryError> {
        GuestMemory::new(vec![Region::new(0, 0, Arc::new(self))])
    }
}

impl Drop for GrantShare {
    fn drop(&mut self) {
        let ours = self.mapping.owner().is_this_process();
        // SAFETY: dropped once, here.
        unsafe { ManuallyDrop::drop(&mut self.mapping) };
        // A child has the same open device, and must not take its parent's pages back.
        if ours {
            // An error can only mean that the device knows of nothing: nothing is left to do.
            let _ = self.calls.unshare(self.index, self.references.len());
        }
    }
}

impl Hold for GrantShare {
    fn poisoned(&self) -> bool {
        self.mapping.poisoned()
    }
}

impl Backing for GrantShare {
    fn kind(&self) -> MemoryKind {
        MemoryKind::Share
    }
    fn len(&self) -> u64 {
        (self.references.len() * FRAME) as u64
    }
    fn writable(&self) -> bool {
        true
    }
    fn owner(&self) -> Owner {
        self.mapping.owner()
    }
    fn resident(&self) -> Option<NonNull<u8>> {
        Some(self.base())
    }
    fn lease(self: Arc<Self>, offset: u64, len: u64, _access: Access) -> Result<Lease, MapError> {
        let size = Backing::len(&*self);
        if offset.checked_add(len).is_none_or(|end| end > size) {
            return Err(MapError::BeyondEnd { len, offset, size });
        }
        // SAFETY: inside the pages, which live while the lease does.
        Ok(unsafe { Lease::new(self.base().add(offset as usize), len, self) })
    }
}
