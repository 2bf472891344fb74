//! What the device has: the chains that it took and has not given back.

/// What became of a chain since it was taken.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
#[repr(u8)]
pub(super) enum State {
    /// The driver has it.
    #[default]
    Free,
    /// Somebody holds it and may complete it.
    Kept,
    /// Nobody can complete it any more: it was dropped.
    Abandoned,
    /// Completed before its turn, with IN_ORDER.
    Held,
}

/// One head.
#[derive(Clone, Copy, Debug, Default)]
struct Entry {
    /// Used length of a chain that is held.
    written: u32,
    /// At which available index it was taken.
    position: u16,
    state: State,
}

/// The chains that were taken: by head, and by the order in which they came.
#[derive(Debug)]
pub(super) struct InFlight {
    entries: Box<[Entry]>,
    /// The head that was taken last at an available index with this remainder.
    taken: Box<[u16]>,
    /// The available index of the oldest chain, for IN_ORDER.
    oldest: u16,
    kept: u16,
    outstanding: u16,
}

impl InFlight {
    pub(super) fn new(size: u16, next: u16) -> Self {
        let size = usize::from(size);
        Self {
            entries: vec![Entry::default(); size].into(),
            taken: vec![0; size].into(),
            oldest: next,
            kept: 0,
            outstanding: 0,
        }
    }

    /// Chains that somebody holds.
    pub(super) fn kept(&self) -> u16 {
        self.kept
    }

    /// Chains that nobody can complete.
    pub(super) fn abandoned(&self) -> usize {
        self.entries.iter().filter(|entry| entry.state == State::Abandoned).count()
    }

    /// Chains that were taken and are not in the used ring.
    pub(super) fn outstanding(&self) -> u16 {
        self.outstanding
    }

    /// The heads that are kept, oldest first.
    pub(super) fn kept_heads(&self, next: u16) -> Vec<u16> {
        let mut heads: Vec<(u16, u16)> = (0..)
            .zip(self.entries.iter())
            .filter(|(_, entry)| entry.state == State::Kept)
            .map(|(head, entry)| (next.wrapping_sub(entry.position), head))
            .collect();
        heads.sort_unstable_by_key(|&(age, _)| std::cmp::Reverse(age));
        heads.into_iter().map(|(_, head)| head).collect()
    }

    /// Is the head (which is below the size) with the device?
    #[inline(always)]
    pub(super) fn has(&self, head: u16) -> bool {
        self.entries.get(usize::from(head)).is_some_and(|entry| entry.state != State::Free)
    }

    /// A chain is taken, at an available index.
    #[inline(always)]
    pub(super) fn take(&mut self, head: u16, position: u16) {
        let slot = usize::from(position) & (self.taken.len() - 1);
        if let (Some(entry), Some(taken)) =
            (self.entries.get_mut(usize::from(head)), self.taken.get_mut(slot))
        {
            *entry = Entry { written: 0, position, state: State::Kept };
            *taken = head;
            self.kept += 1;
            self.outstanding += 1;
        }
    }

    /// A kept chain is completed. False when it is not kept: it was completed before.
    #[inline(always)]
    pub(super) fn complete(&mut self, head: u16) -> bool {
        match self.entries.get_mut(usize::from(head)) {
            Some(entry) if entry.state == State::Kept => {
                entry.state = State::Free;
                self.kept -= 1;
                self.outstanding -= 1;
                true
            }
            _ => false,
        }
    }

    /// A kept chain is completed, but its turn may not have come. False when it is not kept.
    pub(super) fn hold(&mut self, head: u16, written: u32) -> bool {
        match self.entries.get_mut(usize::from(head)) {
            Some(entry) if entry.state == State::Kept => {
                entry.state = State::Held;
                entry.written = written;
                self.kept -= 1;
                true
            }
            _ => false,
        }
    }

    /// The oldest chain, when it is held: its turn has come.
    pub(super) fn release(&mut self) -> Option<(u16, u32)> {
        let slot = usize::from(self.oldest) & (self.taken.len() - 1);
        let head = *self.taken.get(slot)?;
        let entry = self.entries.get_mut(usize::from(head))?;
        if entry.state != State::Held || entry.position != self.oldest {
            return None;
        }
        entry.state = State::Free;
        self.oldest = self.oldest.wrapping_add(1);
        self.outstanding -= 1;
        Some((head, entry.written))
    }

    /// Nobody can complete the chain any more.
    pub(super) fn abandon(&mut self, head: u16) {
        if let Some(entry) = self.entries.get_mut(usize::from(head))
            && entry.state == State::Kept
        {
            entry.state = State::Abandoned;
            self.kept -= 1;
        }
    }

    /// From where to go on after a stop: before the newest chains that are not in the used ring. The
    /// driver cannot have reused their entries of the available ring, so they can be taken again.
    pub(super) fn rewind(&self, next: u16) -> u16 {
        let newest_first = (1..=self.taken.len()).map(|back| next.wrapping_sub(back as u16));
        let outstanding = newest_first.take_while(|&position| {
            let slot = usize::from(position) & (self.taken.len() - 1);
            self.taken
                .get(slot)
                .and_then(|&head| self.entries.get(usize::from(head)))
                .is_some_and(|entry| entry.state != State::Free && entry.position == position)
        });
        outstanding.last().unwrap_or(next)
    }
}
