//! One mapped range and its kind.
//!
//! # Safety
//! A [`MappedMemory`] owns its [`Mapping`]; the base pointer is handed out together with the length, and whoever
//! keeps it keeps the `Arc` too.
#![allow(unsafe_code)]

use std::{
    os::fd::{AsFd, BorrowedFd, OwnedFd},
    ptr::{self, NonNull},
    sync::Arc,
};

use rustix::{
    fs::{FallocateFlags, FileType, MemfdFlags, fallocate, fstat, fstatfs, ftruncate, memfd_create},
    io::Errno,
    mm::{Advice, MapFlags, ProtFlags, madvise, mmap},
    param::page_size,
};

use super::{
    backing::{Access, Backing, Hold, Lease, MemoryKind},
    error::MapError,
    fork::Owner,
    mapping::Mapping,
};

/// `f_type` of hugetlbfs, and of a memfd in huge pages (statfs(2)).
const HUGETLBFS_MAGIC: i64 = 0x9584_58f6;

/// Sizes of huge pages that memory can be made of.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum HugePage {
    /// 2 MiB.
    Mib2,
    /// 1 GiB.
    Gib1,
}

impl HugePage {
    /// Size of a page in bytes.
    pub fn bytes(self) -> u64 {
        match self {
            Self::Mib2 => 2 << 20,
            Self::Gib1 => 1 << 30,
        }
    }
}

/// One mmapped range of a shared file.
#[derive(Debug)]
pub struct MappedMemory {
    mapping: Mapping,
    /// Where the range begins within the first page.
    delta: usize,
    len: usize,
    writable: bool,
}

impl MappedMemory {
    /// Maps `len` bytes of a shared file from `offset` on, which may lie within a page, huge pages included.
    ///
    /// The file is not kept open. It may be truncated later: then what is gone reads as zeroes, and
    /// [`Hold::poisoned`] tells. A child after fork does not have the mapping.
    ///
    /// # Errors
    /// [`MapError::Length`], [`MapError::BeyondEnd`], or what the kernel says.
    pub fn file(fd: BorrowedFd<'_>, offset: u64, len: u64, writable: bool) -> Result<Self, MapError> {
        let refused = |errno| MapError::Refused { len, offset, errno };
        let stat = fstat(fd).map_err(refused)?;
        let size = u64::try_from(stat.st_size).unwrap_or_default();
        // A device has no size of its own.
        let regular = FileType::from_raw_mode(stat.st_mode).is_file();
        if regular && offset.checked_add(len).is_none_or(|end| end > size) {
            return Err(MapError::BeyondEnd { len, offset, size });
        }
        let page = page_size_of(fd).map_err(refused)?;
        let delta = offset % page as u64;
        let mapped_len = len.checked_add(delta).and_then(|end| usize::try_from(end).ok());
        let mapped_len = mapped_len.and_then(|end| end.checked_next_multiple_of(page));
        let mapped_len = mapped_len.filter(|&mapped| len > 0 && isize::try_from(mapped).is_ok());
        let mapped_len = mapped_len.ok_or(MapError::Length(len))?;

        let prot = if writable { ProtFlags::READ | ProtFlags::WRITE } else { ProtFlags::READ };
        let flags = MapFlags::SHARED | MapFlags::NORESERVE;
        // SAFETY: the kernel chooses the address, so that no mapping of ours is replaced.
        let mapping = unsafe { mmap(ptr::null_mut(), mapped_len, prot, flags, fd, offset - delta) };
        let mapping = NonNull::new(mapping.map_err(refused)?.cast::<u8>()).ok_or(refused(Errno::FAULT))?;
        // SAFETY: this is what mmap gave.
        let mapping = unsafe { Mapping::new(mapping, mapped_len, page, writable) };
        let base = mapping.base().as_ptr().cast();
        // SAFETY: the advice changes nothing in this process; the range is ours.
        unsafe { madvise(base, mapped_len, Advice::LinuxDontFork) }.map_err(refused)?;
        Ok(Self { mapping, delta: delta as usize, len: len as usize, writable })
    }

    /// Makes shared memory of `len` bytes and maps it for reading and writing. The file can be given to others.
    ///
    /// # Errors
    /// [`MapError::NotMade`], and those of [`MappedMemory::file`].
    pub fn memfd(len: u64) -> Result<(OwnedFd, Self), MapError> {
        let not_made = |errno| MapError::NotMade { len, page: page_size() as u64, errno };
        let fd = memfd_create("xenvirt", MemfdFlags::CLOEXEC).map_err(not_made)?;
        ftruncate(&fd, len).map_err(not_made)?;
        let memory = Self::file(fd.as_fd(), 0, len, true)?;
        Ok((fd, memory))
    }

    /// The same in huge pages, all of which are taken from the system's pool at once: the length is rounded up to
    /// whole pages.
    ///
    /// # Errors
    /// [`MapError::NotMade`] with ENOSPC or ENOMEM where the pool has not as many, and those of
    /// [`MappedMemory::file`].
    pub fn memfd_huge(len: u64, page: HugePage) -> Result<(OwnedFd, Self), MapError> {
        let not_made = |errno| MapError::NotMade { len, page: page.bytes(), errno };
        let size = match page {
            HugePage::Mib2 => MemfdFlags::HUGE_2MB,
            HugePage::Gib1 => MemfdFlags::HUGE_1GB,
        };
        let len = len.checked_next_multiple_of(page.bytes()).ok_or(MapError::Length(len))?;
        let flags = MemfdFlags::CLOEXEC | MemfdFlags::HUGETLB | size;
        let fd = memfd_create("xenvirt", flags).map_err(not_made)?;
        ftruncate(&fd, len).map_err(not_made)?;
        fallocate(&fd, FallocateFlags::empty(), 0, len).map_err(not_made)?;
        let memory = Self::file(fd.as_fd(), 0, len, true)?;
        Ok((fd, memory))
    }

    /// The process that the mapping belongs to.
    pub fn owner(&self) -> Owner {
        self.mapping.owner()
    }
}

/// What mappings of this file are aligned to.
fn page_size_of(fd: BorrowedFd<'_>) -> Result<usize, Errno> {
    let stat = fstatfs(fd)?;
    #[allow(clippy::unnecessary_cast)] // the field's type depends on the architecture
    let huge = stat.f_type as i64 == HUGETLBFS_MAGIC;
    let page = if huge { usize::try_from(stat.f_bsize).map_err(|_| Errno::INVAL)? } else { page_size() };
    if page.is_power_of_two() { Ok(page) } else { Err(Errno::INVAL) }
}

impl Hold for MappedMemory {
    fn poisoned(&self) -> bool {
        self.mapping.poisoned()
    }
}

impl Backing for MappedMemory {
    fn kind(&self) -> MemoryKind {
        MemoryKind::File
    }
    fn len(&self) -> u64 {
        self.len as u64
    }
    fn writable(&self) -> bool {
        self.writable
    }
    fn owner(&self) -> Owner {
        self.mapping.owner()
    }
    fn resident(&self) -> Option<NonNull<u8>> {
        // SAFETY: delta + len <= mapped_len, so this stays inside the mapping.
        Some(unsafe { self.mapping.base().add(self.delta) })
    }
    fn lease(self: Arc<Self>, offset: u64, len: u64, _access: Access) -> Result<Lease, MapError> {
        if offset.checked_add(len).is_none_or(|end| end > self.len as u64) {
            return Err(MapError::BeyondEnd { len, offset, size: self.len as u64 });
        }
        // SAFETY: inside the mapping, which lives while we do; the table checked that a writer may write.
        Ok(unsafe { Lease::new(self.mapping.base().add(self.delta + offset as usize), len, self) })
    }
}
