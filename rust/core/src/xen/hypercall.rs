//! Memory that Xen itself reads and writes during a hypercall.
//!
//! Ordinary memory will not do: the kernel may take a page away for a moment (to move it, or to share it with a child), and Xen,
//! which cannot wait for it to come back, fails with EFAULT. The kernel's own pages stay: /dev/xen/hypercall gives them. Where it
//! does not (before Linux 4.18), pages that are locked, touched and not inherited come close.
//!
//! Mapping foreign memory and device model operations need none of this: there the kernel copies, or locks what it is given.
//!
//! # Safety
//! A buffer is one mapping, which lives as long as the buffer; every copy is checked against its length.
#![allow(unsafe_code)]

use std::ptr::{self, NonNull};

use rustix::{
    fs::{Mode, OFlags, open},
    io::Errno,
    mm::{Advice, MapFlags, ProtFlags, madvise, mlock, mmap, mmap_anonymous},
    param::page_size,
};

use super::call_error::{CallError, check_owner};
use crate::memory::{Mapping, Source, Target, copy_from_guest, copy_to_guest};

/// The device.
const DEVICE: &str = "/dev/xen/hypercall";

/// Whose pages a buffer has.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum BufferKind {
    /// The kernel's: a hypercall cannot fail for want of a page.
    Kernel,
    /// Ours, locked and not inherited: a hypercall may fail with EFAULT, seldom.
    Locked,
}

impl BufferKind {
    /// The stable name.
    pub fn name(self) -> &'static str {
        match self {
            Self::Kernel => "kernel",
            Self::Locked => "locked",
        }
    }
}

/// A buffer for hypercalls, full of zeroes.
#[derive(Debug)]
pub struct HypercallBuffer {
    mapping: Mapping,
    len: usize,
    kind: BufferKind,
}

impl HypercallBuffer {
    /// Makes one, of the kernel's pages if it has them to give.
    ///
    /// # Errors
    /// No memory, or no more that may be locked (`ulimit -l`); /dev/xen/hypercall is there and may not be opened.
    pub fn new(len: usize) -> Result<Self, CallError> {
        match Self::of_kernel(len) {
            Err(error) if error.errno() == Some(Errno::NOENT) => Self::locked(len),
            made => made,
        }
    }

    /// Makes one of the kernel's pages.
    ///
    /// # Errors
    /// ENOENT where there is no /dev/xen/hypercall; no memory.
    pub fn of_kernel(len: usize) -> Result<Self, CallError> {
        let size = size_of_pages(len)?;
        let refused = |errno| CallError::refused(format!("{len} bytes of {DEVICE}"), errno);
        let device = open(DEVICE, OFlags::RDWR | OFlags::CLOEXEC, Mode::empty()).map_err(refused)?;
        let protection = ProtFlags::READ | ProtFlags::WRITE;
        // SAFETY: the kernel chooses the address, so that no mapping of ours is replaced.
        let base = unsafe { mmap(ptr::null_mut(), size, protection, MapFlags::SHARED, &device, 0) };
        let base = NonNull::new(base.map_err(refused)?.cast::<u8>()).ok_or(refused(Errno::FAULT))?;
        // SAFETY: this is what mmap gave.
        let mapping = unsafe { Mapping::new(base, size, page_size(), true) };
        // SAFETY: the range is ours, and its content does not change.
        unsafe { madvise(base.as_ptr().cast(), size, Advice::LinuxDontFork) }.map_err(refused)?;
        // On Arm a page that can be written is marked as read-only until it is for the first time; the kernel would mend
        // that, Xen fails with EFAULT.
        for offset in (0..size).step_by(page_size()) {
            // SAFETY: inside the mapping, which is full of zeroes.
            unsafe { base.add(offset).write_volatile(0) };
        }
        Ok(Self { mapping, len, kind: BufferKind::Kernel })
    }

    /// Makes one of our own pages.
    ///
    /// # Errors
    /// No memory, or no more that may be locked.
    pub fn locked(len: usize) -> Result<Self, CallError> {
        let size = size_of_pages(len)?;
        let refused = |errno| CallError::refused(format!("{len} bytes of locked memory"), errno);
        let protection = ProtFlags::READ | ProtFlags::WRITE;
        // SAFETY: the kernel chooses the address, so that no mapping of ours is replaced.
        let base = unsafe { mmap_anonymous(ptr::null_mut(), size, protection, MapFlags::PRIVATE) };
        let base = NonNull::new(base.map_err(refused)?.cast::<u8>()).ok_or(refused(Errno::FAULT))?;
        // SAFETY: this is what mmap gave.
        let mapping = unsafe { Mapping::new(base, size, page_size(), true) };
        // Not inherited: else a fork would make the pages be copied when they are written, away from where Xen looks. Locked,
        // which touches each as well.
        // SAFETY: the range is ours, and neither call changes its content.
        unsafe {
            madvise(base.as_ptr().cast(), size, Advice::LinuxDontFork).map_err(refused)?;
            mlock(base.as_ptr().cast(), size).map_err(refused)?;
        }
        Ok(Self { mapping, len, kind: BufferKind::Locked })
    }

    /// Whose pages it has.
    pub fn kind(&self) -> BufferKind {
        self.kind
    }

    /// Length in bytes.
    pub fn len(&self) -> usize {
        self.len
    }

    /// False: none is made without a byte.
    pub fn is_empty(&self) -> bool {
        self.len == 0
    }

    /// What a hypercall is given.
    pub fn address(&self) -> u64 {
        self.mapping.base().as_ptr() as u64
    }

    /// Does a range lie inside, in the process that made the buffer?
    ///
    /// # Errors
    /// It does not.
    pub fn check(&self, offset: usize, len: usize) -> Result<(), CallError> {
        self.at(offset, len).map(drop)
    }

    fn at(&self, offset: usize, len: usize) -> Result<NonNull<u8>, CallError> {
        check_owner(self.mapping.owner(), "the hypercall buffer")?;
        if offset.checked_add(len).is_none_or(|end| end > self.len) {
            let text = format!("{len} bytes at {offset}: the hypercall buffer has {}", self.len);
            return Err(CallError::Argument(text));
        }
        // SAFETY: inside the mapping.
        Ok(unsafe { self.mapping.base().add(offset) })
    }

    /// Copies out of it.
    ///
    /// # Errors
    /// The range is not inside, or this is a child after fork.
    pub fn read(&self, offset: usize, target: Target<'_>) -> Result<(), CallError> {
        let at = self.at(offset, target.len())?;
        // SAFETY: checked; Xen may write there meanwhile.
        unsafe { copy_from_guest(at, target) };
        Ok(())
    }

    /// Copies into it.
    ///
    /// # Errors
    /// As for [`read`](Self::read).
    pub fn write(&self, offset: usize, source: Source<'_>) -> Result<(), CallError> {
        let at = self.at(offset, source.len())?;
        // SAFETY: checked.
        unsafe { copy_to_guest(at, source) };
        Ok(())
    }
}

fn size_of_pages(len: usize) -> Result<usize, CallError> {
    let size =
        len.checked_next_multiple_of(page_size()).filter(|&size| len > 0 && isize::try_from(size).is_ok());
    size.ok_or_else(|| {
        CallError::Argument(format!("a hypercall buffer of {len} bytes: at least one is wanted"))
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_locked_buffer_is_locked_and_not_inherited() {
        let buffer = HypercallBuffer::locked(5000).unwrap();
        assert_eq!((buffer.len(), buffer.kind()), (5000, BufferKind::Locked));
        let smaps = std::fs::read_to_string("/proc/self/smaps").unwrap();
        let start = format!("{:x}-", buffer.address());
        let flags =
            smaps[smaps.find(&start).unwrap()..].lines().find(|line| line.starts_with("VmFlags")).unwrap();
        for flag in [" lo", " dc"] {
            assert!(flags.contains(flag), "{flags}");
        }
    }

    #[test]
    fn what_is_written_is_read_and_nothing_beyond() {
        let buffer = HypercallBuffer::locked(100).unwrap();
        buffer.write(90, Source::from(&b"ten bytes."[..])).unwrap();
        let mut read = [1; 12];
        buffer.read(88, Target::from(&mut read[..])).unwrap();
        assert_eq!(&read, b"\0\0ten bytes.");
        for (offset, len) in [(91, 10), (0, 101), (usize::MAX, 1)] {
            let mut room = vec![0; len];
            let refused = buffer.read(offset, Target::from(&mut room[..]));
            assert!(matches!(refused, Err(CallError::Argument(_))));
        }
        assert!(matches!(HypercallBuffer::new(0), Err(CallError::Argument(_))));
    }
}
