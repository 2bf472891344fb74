//! What the device has: the chains that it took and has not given back.

/// What became of a chain since it was taken.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[repr(u16)]
enum State {
    /// The driver has it.
    Free = 0,
    /// Somebody holds it and may complete it.
    Kept = 1,
    /// Nobody can complete it any more: it was dropped.
    Abandoned = 2,
    /// Completed before its turn, with IN_ORDER.
    Held = 3,
}

/// A head: its state, and the available index at which it was taken. All zeroes is a free one.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
struct Entry {
    state: u16,
    position: u16,
}

impl Entry {
    #[inline(always)]
    fn is(self, state: State) -> bool {
        self.state == state as u16
    }
}

/// The chains that were taken.
#[derive(Debug)]
pub(super) struct InFlight {
    /// By head.
    entries: Box<[Entry]>,
    /// With IN_ORDER only: what is needed to give chains back in their order.
    order: Option<Order>,
}

/// The order in which chains were taken.
#[derive(Debug)]
struct Order {
    /// The head that was taken at an available index with this remainder.
    taken: Box<[u16]>,
    /// The used length of a chain that is held, by head.
    written: Box<[u32]>,
    /// The available index of the oldest chain.
    oldest: u16,
}

impl InFlight {
    pub(super) fn new(size: u16, next: u16, in_order: bool) -> Self {
        let size = usize::from(size);
        let order = || Order { taken: vec![0; size].into(), written: vec![0; size].into(), oldest: next };
        Self { entries: vec![Entry::default(); size].into(), order: in_order.then(order) }
    }

    /// Are chains given back in the order in which they were taken?
    #[inline(always)]
    pub(super) fn is_ordered(&self) -> bool {
        self.order.is_some()
    }

    fn count(&self, state: State) -> usize {
        self.entries.iter().filter(|entry| entry.is(state)).count()
    }

    /// Chains that somebody holds.
    pub(super) fn kept(&self) -> usize {
        self.count(State::Kept)
    }

    /// Chains that nobody can complete.
    pub(super) fn abandoned(&self) -> usize {
        self.count(State::Abandoned)
    }

    /// Is everything with the driver?
    pub(super) fn is_empty(&self) -> bool {
        self.entries.iter().all(|entry| entry.is(State::Free))
    }

    /// The heads that are kept, oldest first; `next` is the available index that is taken next.
    pub(super) fn kept_heads(&self, next: u16) -> Vec<u16> {
        let mut heads: Vec<(u16, u16)> = (0..)
            .zip(self.entries.iter())
            .filter(|(_, entry)| entry.is(State::Kept))
            .map(|(head, entry)| (next.wrapping_sub(entry.position), head))
            .collect();
        heads.sort_unstable_by_key(|&(age, _)| std::cmp::Reverse(age));
        heads.into_iter().map(|(_, head)| head).collect()
    }

    /// Is the head with the device?
    #[inline(always)]
    pub(super) fn has(&self, head: u16) -> bool {
        self.entries.get(usize::from(head)).is_none_or(|entry| !entry.is(State::Free))
    }

    /// A chain is taken, at an available index.
    #[inline(always)]
    pub(super) fn take(&mut self, head: u16, position: u16) {
        if let Some(entry) = self.entries.get_mut(usize::from(head)) {
            *entry = Entry { state: State::Kept as u16, position };
        }
        if let Some(order) = &mut self.order {
            order.take(head, position);
        }
    }

    /// A kept chain is completed. False when it is not kept: it was completed before.
    #[inline(always)]
    pub(super) fn complete(&mut self, head: u16) -> bool {
        match self.entries.get_mut(usize::from(head)) {
            Some(entry) if entry.is(State::Kept) => {
                *entry = Entry::default();
                true
            }
            _ => false,
        }
    }

    /// A kept chain is completed, but its turn may not have come. False when it is not kept.
    pub(super) fn hold(&mut self, head: u16, written: u32) -> bool {
        let index = usize::from(head);
        let order = self.order.as_mut().and_then(|order| order.written.get_mut(index));
        match (self.entries.get_mut(index), order) {
            (Some(entry), Some(place)) if entry.is(State::Kept) => {
                entry.state = State::Held as u16;
                *place = written;
                true
            }
            _ => false,
        }
    }

    /// The oldest chain, when it is held: its turn has come.
    pub(super) fn release(&mut self) -> Option<(u16, u32)> {
        let order = self.order.as_mut()?;
        let head = *order.taken.get(usize::from(order.oldest) & (order.taken.len() - 1))?;
        let entry = self.entries.get_mut(usize::from(head))?;
        if !entry.is(State::Held) || entry.position != order.oldest {
            return None;
        }
        *entry = Entry::default();
        order.oldest = order.oldest.wrapping_add(1);
        Some((head, *order.written.get(usize::from(head))?))
    }

    /// Nobody can complete the chain any more.
    pub(super) fn abandon(&mut self, head: u16) {
        if let Some(entry) = self.entries.get_mut(usize::from(head))
            && entry.is(State::Kept)
        {
            entry.state = State::Abandoned as u16;
        }
    }

    /// From where to go on after a stop: before the newest chains that are not in the used ring. The
    /// driver cannot have reused their entries of the available ring, so they can be taken again.
    pub(super) fn rewind(&self, next: u16) -> u16 {
        let mut out = vec![false; self.entries.len()];
        for entry in self.entries.iter().filter(|entry| !entry.is(State::Free)) {
            // How many were taken since.
            let age = usize::from(next.wrapping_sub(entry.position).wrapping_sub(1));
            if let Some(place) = out.get_mut(age) {
                *place = true;
            }
        }
        let newest = out.iter().take_while(|&&out| out).count();
        next.wrapping_sub(newest as u16)
    }
}

impl Order {
    #[cold]
    fn take(&mut self, head: u16, position: u16) {
        let slot = usize::from(position) & (self.taken.len() - 1);
        if let Some(taken) = self.taken.get_mut(slot) {
            *taken = head;
        }
    }
}
