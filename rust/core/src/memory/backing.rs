//! What backs a region of guest memory: the seam between the kinds of memory and everybody who uses it.
//!
//! A file is mapped whole for as long as its region lives, and its bytes have an address at any time
//! ([`Backing::resident`]). Other kinds map on first touch, or for the length of one request. So nobody
//! outside this room asks for an address without saying for how long: a [`Lease`] is an address and what
//! keeps it mapped. For a file a lease costs an `Arc`, and the ring's fast path does without.
//!
//! # Safety
//! A lease's pointer holds for its length while the lease lives; who makes one answers for that.
#![allow(unsafe_code)]

use std::{fmt, ptr::NonNull, sync::Arc};

use super::{
    error::{MapError, MemoryError},
    fork::Owner,
};

/// How the bytes of a mapping are reached.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[non_exhaustive]
pub enum MemoryKind {
    /// A shared file: memfd, hugetlbfs, a plain file.
    File,
    /// Frames of a Xen domain, through privcmd.
    Foreign {
        /// The domain.
        domain: u16,
    },
    /// Pages that Xen domains granted, through gntdev.
    Grant,
    /// Pages of ours that were granted to a Xen domain, through gntalloc.
    Share,
}

impl MemoryKind {
    /// The stable name of the kind.
    pub fn name(self) -> &'static str {
        match self {
            Self::File => "file",
            Self::Foreign { .. } => "foreign",
            Self::Grant => "grant",
            Self::Share => "share",
        }
    }
}

/// What an access wants to do. Memory that is mapped for a request is mapped for no more than this.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Access {
    /// Read only.
    Read,
    /// Write, perhaps read too.
    Write,
}

/// Something that keeps memory mapped until its last `Arc` is dropped.
pub trait Hold: fmt::Debug + Send + Sync {
    /// True once an access faulted and zeroes were put in the place of what is gone. It stays true.
    fn poisoned(&self) -> bool;

    /// Brings to the guest what was written to a copy of its memory, where a lease for a request is one. It does so once.
    ///
    /// # Errors
    /// The guest's memory cannot be written.
    fn settle(&self) -> Result<(), MemoryError> {
        Ok(())
    }
}

/// What backs a region of guest memory.
pub trait Backing: Hold {
    /// The kind of memory.
    fn kind(&self) -> MemoryKind;

    /// Length in bytes.
    fn len(&self) -> u64;

    /// True for a range without a byte; none is ever made.
    fn is_empty(&self) -> bool {
        self.len() == 0
    }

    /// May we write to it?
    fn writable(&self) -> bool;

    /// The process that may use it.
    fn owner(&self) -> Owner;

    /// The base, where the whole range is mapped at one address for as long as this object lives, and each
    /// byte of it may be touched. The answer never changes.
    fn resident(&self) -> Option<NonNull<u8>>;

    /// Makes `len` bytes from `offset` reachable for `access`, until the lease is dropped.
    ///
    /// The caller has checked that the range is not empty, lies inside, and may be written if it asks so.
    fn lease(self: Arc<Self>, offset: u64, len: u64, access: Access) -> Result<Lease, MapError>;

    /// Makes several ranges, offset and length of each, reachable for one request: as [`lease`](Self::lease) does with each, or
    /// all at once where that is cheaper. They may be copies: of what is there now, and of what is to be there when the lease is
    /// [settled](Lease::settle).
    fn lease_for_request(
        self: Arc<Self>,
        ranges: &[(u64, u64)],
        access: Access,
    ) -> Result<Vec<Lease>, MapError> {
        ranges.iter().map(|&(offset, len)| Arc::clone(&self).lease(offset, len, access)).collect()
    }
}

/// A lease, or something that holds one and knows more: whom to tell when it ends.
pub trait Leased: Send + Sync {
    /// The range. The answer never changes.
    fn lease(&self) -> &Lease;
}

impl Leased for Lease {
    fn lease(&self) -> &Lease {
        self
    }
}

/// A range of memory that stays mapped while this, or a clone of it, lives.
#[derive(Clone, Debug)]
pub struct Lease {
    base: NonNull<u8>,
    len: u64,
    /// None for an empty range.
    hold: Option<Arc<dyn Hold>>,
}

// SAFETY: a pointer and its keeper, which is Send and Sync; whoever uses the pointer answers for the how.
unsafe impl Send for Lease {}
// SAFETY: as above.
unsafe impl Sync for Lease {}

impl Lease {
    /// A lease on mapped memory.
    ///
    /// # Safety
    /// `base` is mapped for `len` bytes while `hold` lives, for the access that was asked for.
    pub unsafe fn new(base: NonNull<u8>, len: u64, hold: Arc<dyn Hold>) -> Self {
        Self { base, len, hold: Some(hold) }
    }

    /// A lease on no byte.
    pub fn empty() -> Self {
        Self { base: NonNull::dangling(), len: 0, hold: None }
    }

    /// The first byte; dangling if the lease is empty.
    pub fn base(&self) -> NonNull<u8> {
        self.base
    }

    /// Length in bytes.
    pub fn len(&self) -> u64 {
        self.len
    }

    /// Is there no byte?
    pub fn is_empty(&self) -> bool {
        self.len == 0
    }

    /// See [`Hold::settle`].
    ///
    /// # Errors
    /// The guest's memory cannot be written.
    pub fn settle(&self) -> Result<(), MemoryError> {
        self.hold.as_ref().map_or(Ok(()), |hold| hold.settle())
    }

    /// True if the memory went away while it was, or before it was, leased: zeroes stand in for it.
    pub fn poisoned(&self) -> bool {
        self.hold.as_ref().is_some_and(|hold| hold.poisoned())
    }
}
