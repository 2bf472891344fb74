//! A part of what backs memory: for regions that do not begin where a page does, in memory that comes by the page.
//!
//! # Safety
//! A part lies inside of what it is a part of, which it holds.
#![allow(unsafe_code)]

use std::{ptr::NonNull, sync::Arc};

use super::{Access, Backing, Hold, Lease, MapError, MemoryKind, Owner};

/// `len` bytes of a backing, from `start` on.
#[derive(Debug)]
pub struct Part {
    whole: Arc<dyn Backing>,
    start: u64,
    len: u64,
}

impl Part {
    /// That part of a backing; all of it is given back as it is.
    ///
    /// # Errors
    /// [`MapError::BeyondEnd`] if it does not lie inside, [`MapError::Length`] if it is empty.
    pub fn of(whole: Arc<dyn Backing>, start: u64, len: u64) -> Result<Arc<dyn Backing>, MapError> {
        let size = whole.len();
        if len == 0 {
            return Err(MapError::Length(len));
        }
        if start.checked_add(len).is_none_or(|end| end > size) {
            return Err(MapError::BeyondEnd { len, offset: start, size });
        }
        Ok(if len == size { whole } else { Arc::new(Self { whole, start, len }) })
    }
}

impl Hold for Part {
    fn poisoned(&self) -> bool {
        self.whole.poisoned()
    }
}

impl Backing for Part {
    fn kind(&self) -> MemoryKind {
        self.whole.kind()
    }
    fn len(&self) -> u64 {
        self.len
    }
    fn writable(&self) -> bool {
        self.whole.writable()
    }
    fn owner(&self) -> Owner {
        self.whole.owner()
    }
    fn resident(&self) -> Option<NonNull<u8>> {
        // SAFETY: inside the whole, all of which is mapped.
        self.whole.resident().map(|base| unsafe { base.add(self.start as usize) })
    }
    fn lease(self: Arc<Self>, offset: u64, len: u64, access: Access) -> Result<Lease, MapError> {
        if offset.checked_add(len).is_none_or(|end| end > self.len) {
            return Err(MapError::BeyondEnd { len, offset, size: self.len });
        }
        Arc::clone(&self.whole).lease(self.start + offset, len, access)
    }
}

#[cfg(test)]
mod tests {
    use super::{
        super::{GuestMemory, MappedMemory, Region, on_demand::on_demand},
        *,
    };

    const PAGE: u64 = 4096;

    fn whole() -> Region {
        Region::new(0, 0, Arc::new(MappedMemory::memfd(2 * PAGE).expect("a memfd").1))
    }

    #[test]
    fn a_part_reaches_its_own_bytes_alone() {
        let all = GuestMemory::new(vec![whole()]).expect("a table");
        all.write(PAGE - 1, b"ab").expect("written");
        let (demanded, _) = on_demand(&all);
        for memory in [&all, &demanded] {
            let backing = Arc::clone(&memory.regions()[0].backing);
            let part = Part::of(backing, PAGE - 1, 3).expect("inside");
            assert_eq!((part.len(), part.resident().is_some()), (3, memory.translate(0, 1).is_some()));
            let part = GuestMemory::new(vec![Region::new(0x7000, 0, part)]).expect("a table");
            let mut back = [0; 2];
            part.read(0x7000, &mut back).expect("read");
            assert_eq!(&back, b"ab");
            assert!(part.read(0x7002, &mut back).is_err());
            part.write(0x7002, b"c").expect("written");
            all.read(PAGE + 1, &mut back).expect("read");
            assert_eq!(back[0], b'c');
        }
    }

    #[test]
    fn a_part_that_is_no_part_is_refused() {
        let backing = whole().backing;
        assert_eq!(Part::of(Arc::clone(&backing), 0, 0).unwrap_err(), MapError::Length(0));
        for (start, len) in [(0, 2 * PAGE + 1), (2 * PAGE, 1), (u64::MAX, 2)] {
            let error = Part::of(Arc::clone(&backing), start, len).unwrap_err();
            assert_eq!(error, MapError::BeyondEnd { len, offset: start, size: 2 * PAGE });
        }
    }
}
