//! The grant table of a domain.

use std::collections::BTreeMap;

use bytemuck::{Pod, Zeroable};
use rustix::io::Errno;

use super::{machine::State, pages::Page};
use crate::xen::{Grant, abi::FRAME};

/// The first reference that is not reserved (GNTTAB_NR_RESERVED_ENTRIES, xen/include/public/grant_table.h).
const FIRST: u32 = 8;
/// How many entries a table has at most: 64 frames of version 1, as Xen allows by default.
const MOST: u32 = (64 * FRAME / size_of::<Entry>()) as u32;

/// A page that is granted.
#[derive(Debug)]
pub(super) struct Granted {
    pub(super) page: Page,
    /// To whom.
    pub(super) to: u16,
    pub(super) writable: bool,
    /// For how many tries the page is not there; `u32::MAX` for ever.
    pub(super) away: u32,
    /// How often it is mapped.
    pub(super) mapped: u32,
    /// Its domain takes it back when it is mapped no longer; nobody maps it anew.
    pub(super) ended: bool,
}

impl Granted {
    pub(super) fn new(page: Page, to: u16, writable: bool) -> Self {
        Self { page, to, writable, away: 0, mapped: 0, ended: false }
    }

    /// Is the page there? Each try brings it nearer.
    fn is_here(&mut self) -> bool {
        let here = self.away == 0;
        if !here && self.away != u32::MAX {
            self.away -= 1;
        }
        here
    }
}

/// Why a grant is not for whoever asks.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum NotGranted {
    NoDomain,
    NoReference,
    /// It is another domain's, or for reading only.
    Refused,
    NotHere,
}

impl NotGranted {
    /// GNTST_* (xen/include/public/grant_table.h).
    pub(super) fn status(self) -> i16 {
        match self {
            Self::NoDomain => -2,
            Self::NoReference => -3,
            Self::Refused => -1,
            Self::NotHere => -12,
        }
    }

    /// What mmap of gntdev makes of it.
    pub(super) fn errno(self) -> Errno {
        match self {
            Self::NotHere => Errno::AGAIN,
            _ => Errno::INVAL,
        }
    }
}

impl State {
    /// What a domain may have of another's grants.
    pub(super) fn granted(
        &mut self,
        user: u16,
        grant: Grant,
        writable: bool,
    ) -> Result<&mut Granted, NotGranted> {
        let domain = self.domains.get_mut(&grant.domain).ok_or(NotGranted::NoDomain)?;
        // An entry beyond the table is no reference; one that is not in use has no flags (_set_status in
        // xen/common/grant_table.c).
        let absent = if grant.reference < MOST { NotGranted::Refused } else { NotGranted::NoReference };
        let found = domain.grants.get_mut(&grant.reference).ok_or(absent)?;
        if found.ended || found.to != user || writable && !found.writable {
            return Err(NotGranted::Refused);
        }
        if found.is_here() { Ok(found) } else { Err(NotGranted::NotHere) }
    }

    /// A mapping of a grant is gone.
    pub(super) fn release(&mut self, grant: Grant) {
        let Some(domain) = self.domains.get_mut(&grant.domain) else { return };
        if let Some(found) = domain.grants.get_mut(&grant.reference) {
            found.mapped = found.mapped.saturating_sub(1);
            if found.ended && found.mapped == 0 {
                domain.grants.remove(&grant.reference);
            }
        }
    }
}

/// Puts a grant under the first reference that is free. ENOSPC if none is.
pub(super) fn add(grants: &mut BTreeMap<u32, Granted>, new: Granted) -> Result<u32, Errno> {
    let free = (FIRST..MOST).find(|reference| !grants.contains_key(reference)).ok_or(Errno::NOSPC)?;
    grants.insert(free, new);
    Ok(free)
}

/// Ends a grant. EBUSY while it is mapped.
pub(super) fn end(grants: &mut BTreeMap<u32, Granted>, reference: u32) -> Result<(), Errno> {
    match grants.get(&reference) {
        None => Err(Errno::NOENT),
        Some(grant) if grant.mapped > 0 => Err(Errno::BUSY),
        Some(_) => {
            grants.remove(&reference);
            Ok(())
        }
    }
}

/// Ends a grant now, or when it is mapped no longer.
pub(super) fn end_when_free(grants: &mut BTreeMap<u32, Granted>, reference: u32) {
    if let Some(grant) = grants.get_mut(&reference) {
        grant.ended = true;
        if grant.mapped == 0 {
            grants.remove(&reference);
        }
    }
}

/// `grant_entry_v1_t` (xen/include/public/grant_table.h).
#[repr(C)]
#[derive(Clone, Copy, Debug, Zeroable, Pod)]
struct Entry {
    flags: u16,
    domain: u16,
    frame: u32,
}

/// `GTF_permit_access`, and `GTF_readonly`, `GTF_reading`, `GTF_writing`.
const PERMIT_ACCESS: u16 = 1;
const READ_ONLY: u16 = 1 << 2;
const IN_USE: u16 = 1 << 3 | 1 << 4;

/// The frames of the table, as they are at this moment: they do not change afterwards, and frame numbers are not in them.
pub(super) fn table(grants: &BTreeMap<u32, Granted>) -> Result<Vec<Page>, Errno> {
    let per_page = (FRAME / size_of::<Entry>()) as u32;
    let pages = 1 + grants.keys().next_back().map_or(0, |last| last / per_page);
    let made: Vec<Page> = (0..pages).map(|_| Page::new()).collect::<Result<_, _>>()?;
    for (reference, grant) in grants {
        let read_only = if grant.writable { 0 } else { READ_ONLY };
        let used = if grant.mapped > 0 { IN_USE } else { 0 };
        let entry = Entry { flags: PERMIT_ACCESS | read_only | used, domain: grant.to, frame: 0 };
        let offset = (reference % per_page) as usize * size_of::<Entry>();
        if let Some(page) = made.get((reference / per_page) as usize) {
            page.write(offset, bytemuck::bytes_of(&entry))?;
        }
    }
    Ok(made)
}
