//! The frames of a domain.

use std::{collections::BTreeMap, ops::Range, os::fd::OwnedFd, sync::Arc};

use rustix::{fs::ftruncate, io::Errno};

use super::pages::{Page, file};
use crate::xen::abi::FRAME;

/// Which page each frame is.
#[derive(Debug)]
pub(super) struct Frames {
    ram: Option<Arc<OwnedFd>>,
    /// Frames of RAM, and where in the file the first of them is.
    banks: Vec<(Range<u64>, u64)>,
    /// What is otherwise than the domain was made: another page, or none.
    changed: BTreeMap<u64, Option<Page>>,
    /// For how many tries a frame is paged out yet.
    paged_out: BTreeMap<u64, u32>,
    /// Pages that frames got later, one after the other in a file: who has an old one mapped keeps it.
    later: Option<Arc<OwnedFd>>,
    later_pages: u64,
}

impl Frames {
    /// Of a domain without RAM.
    pub(super) fn none() -> Self {
        Self {
            ram: None,
            banks: Vec::new(),
            changed: BTreeMap::new(),
            paged_out: BTreeMap::new(),
            later: None,
            later_pages: 0,
        }
    }

    /// RAM of zeroes at these frames. EINVAL if they are none or overlap.
    pub(super) fn new(ranges: &[Range<u64>]) -> Result<Self, Errno> {
        let mut banks: Vec<(Range<u64>, u64)> = Vec::new();
        let (mut size, mut end) = (0u64, 0);
        for range in ranges {
            if range.is_empty() || range.start < end {
                return Err(Errno::INVAL);
            }
            end = range.end;
            banks.push((range.clone(), size * FRAME as u64));
            size += range.end - range.start;
        }
        let bytes = size.checked_mul(FRAME as u64).filter(|&bytes| bytes > 0 && i64::try_from(bytes).is_ok());
        Ok(Self { ram: Some(file(bytes.ok_or(Errno::INVAL)?)?), banks, ..Self::none() })
    }

    /// Where RAM was when the domain was made, in frames.
    pub(super) fn banks(&self) -> Vec<Range<u64>> {
        self.banks.iter().map(|(range, _)| range.clone()).collect()
    }

    /// The page of a frame, as the domain itself sees it.
    pub(super) fn page(&self, frame: u64) -> Option<Page> {
        if let Some(changed) = self.changed.get(&frame) {
            return changed.clone();
        }
        let (range, at) = self.banks.iter().find(|(range, _)| range.contains(&frame))?;
        self.ram.as_ref().map(|ram| Page::of(ram, at + (frame - range.start) * FRAME as u64))
    }

    /// The page of a frame for somebody who maps it: ENOENT while it is paged out, and each try brings it nearer.
    pub(super) fn take(&mut self, frame: u64) -> Result<Page, Errno> {
        let page = self.page(frame).ok_or(Errno::INVAL)?;
        match self.paged_out.get_mut(&frame).filter(|tries| **tries > 0) {
            Some(tries) => {
                *tries -= u32::from(*tries != u32::MAX);
                Err(Errno::NOENT)
            }
            None => Ok(page),
        }
    }

    /// Makes a hole; what is mapped of it stays as it is.
    pub(super) fn take_away(&mut self, frame: u64) {
        self.changed.insert(frame, None);
    }

    /// Gives a frame a new page of zeroes.
    pub(super) fn populate(&mut self, frame: u64) -> Result<(), Errno> {
        let file = match &self.later {
            Some(file) => Arc::clone(file),
            None => Arc::clone(self.later.insert(file(0)?)),
        };
        let at = self.later_pages * FRAME as u64;
        ftruncate(&*file, at + FRAME as u64)?;
        self.later_pages += 1;
        self.put(frame, Page::of(&file, at));
        Ok(())
    }

    /// Gives a frame another page.
    pub(super) fn put(&mut self, frame: u64, page: Page) {
        self.changed.insert(frame, Some(page));
    }

    /// For so many tries the frame is not there; `u32::MAX` for ever.
    pub(super) fn page_out(&mut self, frame: u64, tries: u32) {
        self.paged_out.insert(frame, tries);
    }
}
