//! A range of guest addresses, lent out in pieces.

use std::collections::BTreeMap;

/// Every piece begins at a multiple of this: good for descriptor tables.
const ALIGN: u64 = 16;

/// Which parts of a range are free. First fit; neighbours are joined when they come back.
#[derive(Debug)]
pub struct Arena {
    /// Free pieces: beginning and length.
    free: BTreeMap<u64, u64>,
}

impl Arena {
    /// All of a range, but for what alignment costs.
    pub fn new(start: u64, len: u64) -> Self {
        let aligned = start.next_multiple_of(ALIGN);
        let len = len.saturating_sub(aligned - start) / ALIGN * ALIGN;
        Self { free: (len > 0).then_some((aligned, len)).into_iter().collect() }
    }

    /// What a piece of `len` bytes takes.
    pub fn rounded(len: u64) -> u64 {
        len.saturating_add(ALIGN - 1) / ALIGN * ALIGN
    }

    /// A piece of at least `len` bytes; a piece of no bytes takes no room.
    pub fn take(&mut self, len: u64) -> Option<u64> {
        let len = len.checked_next_multiple_of(ALIGN)?;
        let (&start, &room) = self.free.iter().find(|&(_, &room)| room >= len)?;
        if len > 0 {
            self.free.remove(&start);
            if room > len {
                self.free.insert(start + len, room - len);
            }
        }
        Some(start)
    }

    /// A piece comes back, with the length that was asked for.
    pub fn give_back(&mut self, start: u64, len: u64) {
        let mut len = len.next_multiple_of(ALIGN);
        if len == 0 {
            return;
        }
        let mut start = start;
        if let Some(after) = self.free.remove(&(start + len)) {
            len += after;
        }
        if let Some((&before, &room)) = self.free.range(..start).next_back()
            && before + room == start
        {
            start = before;
            len += room;
        }
        self.free.insert(start, len);
    }

    /// Bytes that are free, in one piece or in many.
    pub fn room(&self) -> u64 {
        self.free.values().sum()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn pieces_are_aligned_disjoint_and_joined_again() {
        let mut arena = Arena::new(8, 16 * 9);
        assert_eq!(arena.room(), 16 * 8);
        let [a, b, c] = [1, 17, 32].map(|len| arena.take(len).unwrap());
        assert_eq!([a, b, c], [16, 32, 64]);
        assert_eq!(arena.take(64), None);
        arena.give_back(b, 17);
        arena.give_back(a, 1);
        assert_eq!(arena.take(48), Some(16));
        arena.give_back(c, 32);
        arena.give_back(16, 48);
        assert_eq!((arena.room(), arena.free.len()), (16 * 8, 1));
    }
}
