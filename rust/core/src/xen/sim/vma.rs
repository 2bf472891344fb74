//! Which ranges of this process are the device's, and what is in them: what the kernel knows of its VMAs.

use std::collections::BTreeMap;

use rustix::io::Errno;

use super::machine::Kind;
use crate::xen::abi::FRAME;

/// The ranges of /dev/xen/privcmd, by their first address.
#[derive(Debug, Default)]
pub(super) struct Vmas(BTreeMap<usize, Vma>);

#[derive(Debug)]
struct Vma {
    pages: usize,
    writable: bool,
    /// Which pages are mapped; None while nothing was tried.
    mapped: Option<Vec<bool>>,
}

impl Vmas {
    /// A range was made, in the place of whatever was there.
    pub(super) fn add(&mut self, at: usize, pages: usize, writable: bool) {
        self.remove(at, pages);
        self.0.insert(at, Vma { pages, writable, mapped: None });
    }

    /// A range is no longer the device's. What reached into it from outside is gone as well: that is not done here.
    pub(super) fn remove(&mut self, at: usize, pages: usize) {
        let end = at.saturating_add(pages.saturating_mul(FRAME));
        self.0.retain(|&start, vma| start >= end || start + vma.pages * FRAME <= at);
    }

    fn find(&mut self, at: usize) -> Option<(usize, &mut Vma)> {
        let (&start, vma) = self.0.range_mut(..=at).next_back()?;
        (at < start + vma.pages * FRAME).then_some((start, vma))
    }

    /// May frames be put here? Then they are taken as tried; gives whether the range is writable.
    ///
    /// The first time, they have to be as many as the range has pages. Another time only pages that are not mapped may
    /// be tried, and by a PV dom0 alone (drivers/xen/privcmd.c, privcmd_ioctl_mmap_batch).
    pub(super) fn try_frames(&mut self, kind: Kind, at: usize, pages: usize) -> Result<bool, Errno> {
        let (start, vma) = self.find(at).ok_or(Errno::INVAL)?;
        if !at.is_multiple_of(FRAME) {
            return Err(Errno::INVAL);
        }
        let first = (at - start) / FRAME;
        match &vma.mapped {
            None if first != 0 || pages != vma.pages => return Err(Errno::INVAL),
            None => vma.mapped = Some(vec![false; pages]),
            Some(_) if kind != Kind::Pv => return Err(Errno::INVAL),
            Some(mapped) => {
                let wanted = mapped.get(first..).and_then(|rest| rest.get(..pages));
                if wanted.is_none_or(|wanted| wanted.contains(&true)) {
                    return Err(Errno::INVAL);
                }
            }
        }
        Ok(vma.writable)
    }

    /// A page of a range that was tried is mapped.
    pub(super) fn set_mapped(&mut self, at: usize) {
        if let Some((start, vma)) = self.find(at)
            && let Some(page) = vma.mapped.as_mut().and_then(|mapped| mapped.get_mut((at - start) / FRAME))
        {
            *page = true;
        }
    }
}
