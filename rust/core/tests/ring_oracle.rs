//! Random ring programs, hostile ones among them, on our queue and on rust-vmm's `virtio-queue`, each in
//! a memory of its own with the same contents: the same chains, the same used entries, the same bytes in
//! the buffers and the same notifications come out. Where ours is stricter, the rule is named here.

use std::sync::Arc;

use proptest::{prelude::*, sample::Index};
use virtio_queue::{Queue, QueueOwnedT, QueueT, desc::split::Descriptor};
use vm_memory::{Address, GuestAddress, GuestMemoryBackend};
use xenvirt_core::{
    memory::{GuestMemory, MappedMemory, Region},
    ring::{QueueChain, RingConfig, RingError, RingFeatures, VirtQueue},
};

const DESCRIPTORS: u64 = 0x1000;
const AVAILABLE: u64 = 0x2000;
const USED: u64 = 0x3000;
const TABLES: u64 = 0x4000;
/// Buffers begin here; so that some of them cross, two regions touch in the middle.
const DATA: u64 = 0x1_0000;
const SEAM: u64 = 0x1_1000;
const END: u64 = 0x1_2000;

const NEXT: u16 = 1;
const WRITE: u16 = 2;
const INDIRECT: u16 = 4;

fn memory() -> GuestMemory {
    let region = |start, end| {
        let (_, mapped) = MappedMemory::memfd(end - start).unwrap();
        Region::new(start, start, Arc::new(mapped))
    };
    GuestMemory::new(vec![region(0, SEAM), region(SEAM, END)]).unwrap()
}

/// What a hostile driver changes in a chain that is otherwise well-formed.
#[derive(Clone, Debug)]
enum Spoil {
    Nothing,
    Head(u16),
    /// Of one descriptor of the chain: another `next`, and the flag with it.
    Next(Index, u16),
    Flags(Index, u16),
    Address(Index, u64),
    Length(Index, u32),
    TableLength(u32),
    TableAddress(u64),
}

#[derive(Clone, Debug)]
enum Step {
    /// Buffers (address, length), how many of them are readable, where the direct descriptors begin, and
    /// how many of the buffers are named by a table.
    Add {
        buffers: Vec<(u64, u32)>,
        readable: Index,
        head: u16,
        table: Option<Index>,
        spoil: Spoil,
    },
    /// The available index jumps.
    Jump(u16),
    Pop,
    Complete {
        which: Index,
        written: Index,
    },
    UsedEvent(u16),
    Flags(u16),
    Restart,
}

fn address() -> impl Strategy<Value = u64> {
    prop_oneof![8 => DATA..END - 0x100, 4 => SEAM - 0x40..SEAM + 0x40, 1 => any::<u64>()]
}

fn spoil() -> impl Strategy<Value = Spoil> {
    let flags =
        prop_oneof![Just(0), Just(NEXT), Just(WRITE), Just(INDIRECT), Just(NEXT | INDIRECT), 0u16..16];
    prop_oneof![
        20 => Just(Spoil::Nothing),
        1 => (0u16..40).prop_map(Spoil::Head),
        1 => (any::<Index>(), 0u16..20).prop_map(|(which, next)| Spoil::Next(which, next)),
        2 => (any::<Index>(), flags).prop_map(|(which, flags)| Spoil::Flags(which, flags)),
        1 => (any::<Index>(), address()).prop_map(|(which, address)| Spoil::Address(which, address)),
        1 => (any::<Index>(), any::<u32>()).prop_map(|(which, len)| Spoil::Length(which, len)),
        1 => prop_oneof![0u32..100, any::<u32>()].prop_map(Spoil::TableLength),
        1 => prop_oneof![TABLES..TABLES + 64, any::<u64>()].prop_map(Spoil::TableAddress),
    ]
}

fn step() -> impl Strategy<Value = Step> {
    let buffer = (address(), prop_oneof![1 => Just(0u32), 9 => 0u32..0x80]);
    let add = (
        prop::collection::vec(buffer, 1..6),
        any::<Index>(),
        0u16..16,
        prop::option::of(any::<Index>()),
        spoil(),
    );
    prop_oneof![
        8 => add.prop_map(|(buffers, readable, head, table, spoil)| Step::Add {
            buffers, readable, head, table, spoil
        }),
        1 => prop_oneof![Just(1u16), Just(u16::MAX), any::<u16>()].prop_map(Step::Jump),
        8 => Just(Step::Pop),
        6 => (any::<Index>(), any::<Index>()).prop_map(|(which, written)| Step::Complete { which, written }),
        2 => prop_oneof![0u16..40, any::<u16>()].prop_map(Step::UsedEvent),
        1 => (0u16..4).prop_map(Step::Flags),
        1 => Just(Step::Restart),
    ]
}

/// A chain that both have handed out.
struct Kept {
    ours: QueueChain,
    head: u16,
    /// As theirs was when it came out of the ring: it would read the descriptors again.
    theirs: Vec<Descriptor>,
}

struct Pair {
    config: RingConfig,
    our_memory: GuestMemory,
    their_memory: Arc<GuestMemory>,
    ours: Arc<VirtQueue>,
    theirs: Queue,
    kept: Vec<Kept>,
    /// The driver's available index.
    index: u16,
    calls: u64,
    /// The driver took the available index back, which it must not.
    went_back: bool,
    /// Nothing was completed yet, on a ring that was served before.
    resumed: bool,
}

impl Pair {
    fn new(size: u16, event_idx: bool, indirect: bool, start: u16) -> Self {
        let features = RingFeatures { event_idx, indirect, ..RingFeatures::default() };
        let (descriptors, available, used) = (DESCRIPTORS, AVAILABLE, USED);
        let config = RingConfig {
            size,
            descriptors,
            available,
            used,
            next_available: start,
            features,
            in_turn: false,
        };
        let mut pair = Self {
            config,
            our_memory: memory(),
            their_memory: Arc::new(memory()),
            ours: Arc::new(VirtQueue::new(0, 64)),
            theirs: Queue::new(64).unwrap(),
            kept: Vec::new(),
            index: start,
            calls: 0,
            went_back: false,
            resumed: false,
        };
        pair.put(AVAILABLE + 2, &start.to_le_bytes());
        pair.put(USED + 2, &start.to_le_bytes());
        pair.start(start);
        pair
    }

    fn start(&mut self, next: u16) {
        self.config.next_available = next;
        self.ours.start(&self.config, &self.our_memory).unwrap();
        let q = &mut self.theirs;
        q.set_size(self.config.size);
        q.try_set_desc_table_address(GuestAddress(DESCRIPTORS)).unwrap();
        q.try_set_avail_ring_address(GuestAddress(AVAILABLE)).unwrap();
        q.try_set_used_ring_address(GuestAddress(USED)).unwrap();
        q.set_event_idx(self.config.features.event_idx);
        q.set_next_avail(next);
        let mut used = [0; 2];
        self.their_memory.read(USED + 2, &mut used).unwrap();
        q.set_next_used(u16::from_le_bytes(used));
        self.resumed = next != 0 || used != [0; 2];
        q.set_ready(true);
        self.calls = self.ours.counters().calls;
    }

    /// The driver writes to both memories.
    fn put(&self, address: u64, bytes: &[u8]) {
        self.our_memory.write(address, bytes).unwrap();
        self.their_memory.write(address, bytes).unwrap();
    }

    fn descriptor(&self, at: u64, (address, len, flags, next): (u64, u32, u16, u16)) {
        let mut bytes = address.to_le_bytes().to_vec();
        bytes.extend(len.to_le_bytes());
        bytes.extend(flags.to_le_bytes());
        bytes.extend(next.to_le_bytes());
        self.put(at, &bytes);
    }

    fn add(
        &mut self,
        buffers: &[(u64, u32)],
        readable: usize,
        head: u16,
        table: Option<usize>,
        spoil: &Spoil,
    ) {
        let size = self.config.size;
        let head = head % size;
        // Below this one direct, the rest in a table; only as many direct ones as there are descriptors.
        let direct = table.unwrap_or(buffers.len()).min(usize::from(size) - usize::from(table.is_some()));
        let in_table = if table.is_some() { &buffers[direct..] } else { &[] };
        let flags = |index: usize| if index < readable { 0 } else { WRITE };
        let mut list = Vec::new();
        let mut table_at = TABLES + 0x100 * u64::from(head);
        let mut table_len = 16 * in_table.len() as u32;
        for (index, &(address, len)) in buffers[..direct].iter().enumerate() {
            let place = (head + index as u16) % size;
            let more = if index + 1 < direct || table.is_some() { NEXT } else { 0 };
            let next = (place + 1) % size;
            list.push((DESCRIPTORS + 16 * u64::from(place), (address, len, flags(index) | more, next)));
        }
        for (index, &(address, len)) in in_table.iter().enumerate() {
            let more = if index + 1 < in_table.len() { NEXT } else { 0 };
            let entry = (address, len, flags(direct + index) | more, index as u16 + 1);
            list.push((table_at + 16 * index as u64, entry));
        }
        let mut published = head;
        match spoil {
            Spoil::Nothing => {}
            Spoil::Head(other) => published = *other,
            Spoil::Next(which, next) if !list.is_empty() => {
                let entry = which.get_mut(&mut list);
                (entry.1.2, entry.1.3) = (entry.1.2 | NEXT, *next);
            }
            Spoil::Flags(which, flags) if !list.is_empty() => which.get_mut(&mut list).1.2 = *flags,
            Spoil::Address(which, address) if !list.is_empty() => which.get_mut(&mut list).1.0 = *address,
            Spoil::Length(which, len) if !list.is_empty() => which.get_mut(&mut list).1.1 = *len,
            Spoil::TableLength(len) => table_len = *len,
            Spoil::TableAddress(address) => table_at = *address,
            _ => {}
        }
        if table.is_some() {
            let place = (head + direct as u16) % size;
            list.push((DESCRIPTORS + 16 * u64::from(place), (table_at, table_len, INDIRECT, 0)));
        }
        list.iter().for_each(|&(at, descriptor)| self.descriptor(at, descriptor));
        self.put(AVAILABLE + 4 + 2 * u64::from(self.index % size), &published.to_le_bytes());
        self.jump(1);
    }

    fn jump(&mut self, by: u16) {
        self.index = self.index.wrapping_add(by);
        self.went_back |= by > 0x8000;
        self.put(AVAILABLE + 2, &self.index.to_le_bytes());
    }

    /// Takes one chain on both sides. An error of ours ends the program.
    fn pop(&mut self) -> Result<(), RingError> {
        let ahead = self.index.wrapping_sub(self.theirs.next_avail()) > self.config.size;
        if self.went_back || ahead {
            // Ours looks at the index again only when it has taken what it saw, or after a kick.
            self.ours.kicked();
        }
        let memory = Arc::clone(&self.their_memory);
        let theirs = match self.theirs.iter(memory) {
            Ok(mut chains) => Ok(chains.next()),
            Err(error) => Err(error),
        };
        match (self.ours.pop(), theirs) {
            (Ok(None), Ok(None)) => {
                self.theirs.enable_notification(&*self.their_memory).unwrap();
                let event = USED + 4 + 8 * u64::from(self.config.size);
                self.same(if self.config.features.event_idx { event } else { USED }, 2);
            }
            (Ok(Some(ours)), Ok(Some(theirs))) => {
                let head = ours.head();
                assert_eq!(head, theirs.head_index());
                let list: Vec<_> = theirs.collect();
                let bytes = |write| {
                    list.iter().filter(|d| d.is_write_only() == write).map(|d| u64::from(d.len())).sum()
                };
                assert_eq!((ours.readable(), ours.writable()), (bytes(false), bytes(true)));
                let leases =
                    ours.readable_leases().unwrap().into_iter().chain(ours.writable_leases().unwrap());
                let ours_at: Vec<_> =
                    leases.map(|lease| (lease.base().as_ptr() as usize, lease.len())).collect();
                assert_eq!(ours_at, self.places(&list));
                self.kept.push(Kept { ours, head, theirs: list });
            }
            (Err(error), theirs) => {
                self.judge(&error, theirs);
                return Err(error);
            }
            (ours, theirs) => panic!("ours {ours:?}, theirs {:?}", theirs.map(|chain| chain.is_some())),
        }
        Ok(())
    }

    /// Where buffers of theirs are in our memory, piece by piece.
    fn places(&self, list: &[Descriptor]) -> Vec<(usize, u64)> {
        let mut places = Vec::new();
        for d in list {
            let (mut at, mut left) = (d.addr().raw_value(), u64::from(d.len()));
            while left > 0 {
                let len = if at < SEAM { left.min(SEAM - at) } else { left };
                places.push((self.our_memory.translate(at, len).unwrap().as_ptr() as usize, len));
                at += len;
                left -= len;
            }
        }
        places
    }

    /// Ours has refused a chain: theirs must have refused it too, cut it short, or be known to be laxer.
    fn judge(
        &self,
        error: &RingError,
        theirs: Result<Option<virtio_queue::DescriptorChain<Arc<GuestMemory>>>, virtio_queue::Error>,
    ) {
        // Stricter: theirs does not remember what the index was before.
        let went_back = self.went_back && error.rule() == "available-index";
        let (Ok(theirs), false) = (theirs, went_back) else {
            assert_eq!(error.rule(), "available-index");
            return;
        };
        let list: Vec<_> = theirs.expect("a chain that ours refused").collect();
        let cut_short = list.last().is_none_or(Descriptor::has_next);
        let inside = |address, len: u32| {
            len == 0
                || GuestMemoryBackend::check_range(&*self.their_memory, GuestAddress(address), len as usize)
        };
        match error.rule() {
            // Both see it: theirs by ending the chain without a word.
            "head-index" => assert!(list.is_empty()),
            "next-index" | "chain-length" | "indirect-nested" | "indirect-length" => {
                assert!(cut_short, "{error}: {list:?}");
            }
            // Stricter: theirs does not look.
            "readable-after-writable" => {
                assert!(!list.is_sorted_by_key(Descriptor::is_write_only), "{error}: {list:?}");
            }
            "buffer-address" => {
                assert!(!list.iter().all(|d| inside(d.addr().raw_value(), d.len())), "{error}: {list:?}");
            }
            // Theirs looks only at the entries that it comes by.
            "indirect-address" => {
                let RingError::IndirectAddress { address, len, .. } = *error else { panic!("{error:?}") };
                assert!(!inside(address, len));
            }
            "head-in-flight" => {
                assert!(
                    self.kept
                        .iter()
                        .any(|kept| matches!(error, RingError::HeadInFlight { head } if *head == kept.head))
                );
            }
            "indirect-not-negotiated" => assert!(!self.config.features.indirect),
            "indirect-with-next" => {}
            other => panic!("{other}: {error}"),
        }
    }

    fn complete(&mut self, which: &Index, written: &Index) {
        if self.kept.is_empty() {
            return;
        }
        let Kept { mut ours, head, theirs } = self.kept.swap_remove(which.index(self.kept.len()));
        let written = written.index(ours.writable() as usize + 1);
        let bytes: Vec<u8> = (0..written).map(|n| (n % 251) as u8 ^ head as u8).collect();
        let (first, second) = bytes.split_at(written / 3);
        ours.write(first).unwrap();
        ours.write(second).unwrap();
        let mut rest = &bytes[..];
        for buffer in theirs.iter().filter(|buffer| buffer.is_write_only()) {
            let (part, after) = rest.split_at(rest.len().min(buffer.len() as usize));
            self.their_memory.write(buffer.addr().raw_value(), part).unwrap();
            rest = after;
        }
        ours.complete(None).unwrap();
        self.theirs.add_used(&*self.their_memory, head, written as u32).unwrap();
        let theirs = self.theirs.needs_notification(&*self.their_memory).unwrap();
        let calls = self.ours.counters().calls;
        let called = calls != self.calls;
        self.calls = calls;
        let first = std::mem::take(&mut self.resumed);
        if self.config.features.event_idx {
            // Stricter: theirs does not call for the first chain of a ring that was served before, though
            // whoever served it may have died before its last call.
            assert_eq!(called, theirs || first);
        } else {
            // Stricter: theirs does not look at the flag by which the driver refuses calls.
            let mut flags = [0; 2];
            self.our_memory.read(AVAILABLE, &mut flags).unwrap();
            assert_eq!(called, theirs && flags[0] & 1 == 0);
        }
    }

    fn same(&self, address: u64, len: usize) {
        let [mut ours, mut theirs] = [vec![0; len], vec![0; len]];
        self.our_memory.read(address, &mut ours).unwrap();
        self.their_memory.read(address, &mut theirs).unwrap();
        assert_eq!(ours, theirs, "at {address:#x}");
    }

    fn restart(&mut self) {
        let oldest = self.ours.kept_heads();
        let next = self.ours.stop().unwrap();
        // What was kept is handed out again, unless a newer one was given back.
        assert!(self.theirs.next_avail().wrapping_sub(next) <= oldest.len() as u16);
        for mut kept in self.kept.drain(..) {
            assert!(kept.ours.complete(None).is_err());
        }
        self.start(next);
    }

    /// A driver that means well has no more chains than descriptors, names none twice, leaves them as they
    /// are, and takes nothing back.
    fn means_well(&self, step: &Step) -> bool {
        let Step::Add { buffers, head, spoil: Spoil::Nothing, .. } = step else {
            return !matches!(step, Step::Add { .. } | Step::Jump(_));
        };
        let size = self.config.size;
        let waiting = self.index.wrapping_sub(self.theirs.next_avail());
        let mut heads: Vec<_> = self.kept.iter().map(|kept| kept.head).collect();
        for back in 1..=waiting {
            let mut head = [0; 2];
            let slot = u64::from(self.index.wrapping_sub(back) % size);
            self.our_memory.read(AVAILABLE + 4 + 2 * slot, &mut head).unwrap();
            heads.push(u16::from_le_bytes(head));
        }
        let inside = |&(address, len): &(u64, u32)| DATA <= address && address < END - u64::from(len);
        heads.len() < size.into() && !heads.contains(&(head % size)) && buffers.iter().all(inside)
    }

    fn run(&mut self, steps: &[Step], hostile: bool) -> Result<(), RingError> {
        for step in steps {
            if !hostile && !self.means_well(step) {
                continue;
            }
            match step {
                Step::Add { buffers, readable, head, table, spoil } => {
                    let readable = readable.index(buffers.len() + 1);
                    let table = table.map(|table| table.index(buffers.len()));
                    self.add(buffers, readable, *head, table, spoil);
                }
                Step::Jump(by) => self.jump(*by),
                Step::Pop => self.pop()?,
                Step::Complete { which, written } => self.complete(which, written),
                Step::UsedEvent(event) => {
                    let event = event.wrapping_add(self.config.next_available);
                    self.put(AVAILABLE + 4 + 2 * u64::from(self.config.size), &event.to_le_bytes());
                }
                Step::Flags(flags) => self.put(AVAILABLE, &flags.to_le_bytes()),
                Step::Restart => self.restart(),
            }
            // The used ring without its flags and event word, which are compared when both are armed.
            self.same(USED + 2, 2 + 8 * usize::from(self.config.size));
            self.same(DATA, (END - DATA) as usize);
        }
        Ok(())
    }
}

proptest! {
    #![proptest_config(ProptestConfig { cases: 1000, failure_persistence: None, ..ProptestConfig::default() })]

    #[test]
    fn both_queues_find_the_same(
        size in prop_oneof![Just(1u16), Just(2), Just(4), Just(8), Just(16)],
        event_idx: bool,
        indirect in prop::bool::weighted(0.8),
        start in prop_oneof![Just(0u16), Just(65530), any::<u16>()],
        steps in prop::collection::vec(step(), 1..80),
        hostile: bool,
    ) {
        let mut pair = Pair::new(size, event_idx, indirect, start);
        if let Err(error) = pair.run(&steps, hostile) {
            // It says so again, and comes to life again with another ring.
            prop_assert_eq!(pair.ours.pop().unwrap_err(), error);
            pair.ours.stop();
            prop_assert!(pair.ours.pop().unwrap().is_none());
        }
    }
}
