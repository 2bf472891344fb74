//! What a chain costs: our batch against rust-vmm's `virtio-queue`, on the same memory and the same chains.
//!
//! Both find the same chains in rings of their own and give each back; the driver's part in between is not
//! timed. Ours looks up every buffer in the memory table, theirs only reads the descriptors, so the
//! comparison is not in our favour. The two take turns, and each says its median.
//!
//! `ring [SAMPLES]` prints one line of JSON for each kind of chain: `{"chain", "ours", "peer", "peer_reached"}`, in
//! nanoseconds a chain; the last is rust-vmm looking up the buffers as well. `ring --peer CHAIN [SAMPLES]` prints
//! rust-vmm's time alone.

use std::{
    fs::File,
    hint::black_box,
    process::ExitCode,
    sync::Arc,
    time::{Duration, Instant},
};

use virtio_queue::{Queue, QueueT};
use vm_memory::{Address, Bytes, FileOffset, GuestAddress, GuestMemoryBackend, GuestMemoryMmap};
use xenvirt_core::{
    memory::{GuestMemory, MappedMemory, Region},
    ring::{BatchLayout, RingConfig, RingFeatures, VirtQueue},
};

const SIZE: u16 = 256;
/// Tables of indirect descriptors, a header, 4 KiB of data and a status byte for each chain.
const TABLES: u64 = 0x4_0000;
const BUFFERS: u64 = 0x20_0000;
const BUFFER_STRIDE: u64 = 0x2000;
/// Guest memory below 4 GiB and above it, as a PC has it.
const LOW: u64 = 64 << 20;
const HIGH: (u64, u64) = (4 << 30, 16 << 20);

const NEXT: u16 = 1;
const WRITE: u16 = 2;
const INDIRECT: u16 = 4;

/// Rounds of one sample: each refills the ring and walks all of it.
const ROUNDS: u16 = 10;

/// A kind of chain: one buffer to write to, or a block read of header, data and status.
#[derive(Clone, Copy)]
struct Kind {
    name: &'static str,
    descriptors: u16,
    indirect: bool,
}

const KINDS: [Kind; 4] = [
    Kind { name: "1-direct", descriptors: 1, indirect: false },
    Kind { name: "3-direct", descriptors: 3, indirect: false },
    Kind { name: "1-indirect", descriptors: 1, indirect: true },
    Kind { name: "3-indirect", descriptors: 3, indirect: true },
];

impl Kind {
    fn stride(self) -> u16 {
        if self.indirect { 1 } else { self.descriptors }
    }

    fn chains(self) -> u16 {
        SIZE / self.stride()
    }

    /// Address, length and flags of each buffer of a chain.
    fn buffers(self, chain: u16) -> Vec<(u64, u32, u16)> {
        let header = BUFFERS + u64::from(chain) * BUFFER_STRIDE;
        let (data, status) = (header + 0x1000, header + 0x20);
        match self.descriptors {
            1 => vec![(data, 4096, WRITE)],
            _ => vec![(header, 16, 0), (data, 4096, WRITE), (status, 1, WRITE)],
        }
    }

    /// What the lengths of all buffers of a full ring sum up to.
    fn bytes(self) -> u64 {
        let one: u64 = self.buffers(0).iter().map(|&(_, len, _)| u64::from(len)).sum();
        one * u64::from(self.chains())
    }
}

/// A driver's half of a ring, which always offers the same chains.
struct Driver {
    memory: Arc<GuestMemoryMmap>,
    kind: Kind,
    base: u64,
    next: u16,
}

impl Driver {
    fn new(memory: &Arc<GuestMemoryMmap>, kind: Kind, base: u64) -> Self {
        let driver = Self { memory: Arc::clone(memory), kind, base, next: 0 };
        memory.write_slice(&[0; 0x2000], GuestAddress(driver.available())).unwrap();
        for chain in 0..kind.chains() {
            let buffers = kind.buffers(chain);
            let first = chain * kind.stride();
            if kind.indirect {
                let table = TABLES + u64::from(chain) * 64;
                driver.table(table, 0, &buffers);
                driver.descriptor(driver.base, first, (table, 16 * buffers.len() as u32, INDIRECT), 0);
            } else {
                driver.table(driver.base, first, &buffers);
            }
        }
        driver
    }

    fn available(&self) -> u64 {
        self.base + 0x1000
    }

    fn used(&self) -> u64 {
        self.base + 0x2000
    }

    fn store(&self, address: u64, value: u16) {
        self.memory.write_obj(value, GuestAddress(address)).unwrap();
    }

    fn descriptor(&self, table: u64, index: u16, (address, len, flags): (u64, u32, u16), next: u16) {
        let at = table + 16 * u64::from(index);
        self.memory.write_obj(address, GuestAddress(at)).unwrap();
        self.memory.write_obj(len, GuestAddress(at + 8)).unwrap();
        self.store(at + 12, flags);
        self.store(at + 14, next);
    }

    fn table(&self, table: u64, first: u16, buffers: &[(u64, u32, u16)]) {
        for (index, &(address, len, flags)) in (first..).zip(buffers) {
            let last = usize::from(index - first) + 1 == buffers.len();
            let (more, next) = if last { (0, 0) } else { (NEXT, index + 1) };
            self.descriptor(table, index, (address, len, flags | more), next);
        }
    }

    /// Offers all chains again.
    fn refill(&mut self) {
        for chain in 0..self.kind.chains() {
            let slot = u64::from(self.next.wrapping_add(chain) % SIZE);
            self.store(self.available() + 4 + 2 * slot, chain * self.kind.stride());
        }
        // It wants to hear of the last one: one call a round, as with a queue that is kept full.
        self.next = self.next.wrapping_add(self.kind.chains());
        self.store(self.available() + 4 + 2 * u64::from(SIZE), self.next.wrapping_sub(1));
        self.store(self.available() + 2, self.next);
    }

    /// Everything that was offered came back, in that order.
    fn check(&self) {
        let load = |at| self.memory.read_obj::<u16>(GuestAddress(self.used() + at)).unwrap();
        assert_eq!(load(2), self.next, "the used index");
        for chain in 0..self.kind.chains() {
            let slot = self.next.wrapping_sub(self.kind.chains()).wrapping_add(chain) % SIZE;
            assert_eq!(load(4 + 8 * u64::from(slot)), chain * self.kind.stride(), "used entry {slot}");
        }
    }
}

/// A walker: takes all chains, gives them back, and says how long that took and what the lengths of their
/// buffers sum up to.
trait Walk {
    fn walk(&mut self) -> (Duration, u64);
}

struct Ours(Arc<VirtQueue>);

impl Ours {
    fn new(memory: &GuestMemory, driver: &Driver) -> Self {
        let queue = Arc::new(VirtQueue::new(0, SIZE));
        let config = RingConfig {
            size: SIZE,
            descriptors: driver.base,
            available: driver.available(),
            used: driver.used(),
            next_available: 0,
            features: RingFeatures { event_idx: true, indirect: true, ..RingFeatures::default() },
            in_turn: false,
        };
        queue.start(&config, memory).unwrap();
        Self(queue)
    }
}

impl Walk for Ours {
    fn walk(&mut self) -> (Duration, u64) {
        let mut bytes = 0;
        let mut elapsed = Duration::ZERO;
        loop {
            let start = Instant::now();
            let batch = self.0.pop_batch(SIZE.into(), BatchLayout::default()).unwrap();
            elapsed += start.elapsed();
            let Some(batch) = batch else { return (elapsed, bytes) };
            // Not timed: it only checks, and theirs has each length at hand while it walks.
            bytes += batch.readable().sum::<u64>() + batch.writable().sum::<u64>();
            let start = Instant::now();
            batch.complete().unwrap();
            drop(batch);
            elapsed += start.elapsed();
        }
    }
}

struct Theirs {
    memory: Arc<GuestMemoryMmap>,
    queue: Queue,
    /// Look every buffer up in the memory table as well, as one has to who wants its bytes.
    reach: bool,
}

impl Theirs {
    fn new(memory: &Arc<GuestMemoryMmap>, driver: &Driver, reach: bool) -> Self {
        let mut queue = Queue::new(SIZE).unwrap();
        queue.try_set_desc_table_address(GuestAddress(driver.base)).unwrap();
        queue.try_set_avail_ring_address(GuestAddress(driver.available())).unwrap();
        queue.try_set_used_ring_address(GuestAddress(driver.used())).unwrap();
        queue.set_event_idx(true);
        queue.set_ready(true);
        Self { memory: Arc::clone(memory), queue, reach }
    }
}

impl Walk for Theirs {
    fn walk(&mut self) -> (Duration, u64) {
        let start = Instant::now();
        let mut bytes = 0;
        let memory = &*self.memory;
        loop {
            while let Some(chain) = self.queue.pop_descriptor_chain(memory) {
                let head = chain.head_index();
                for descriptor in chain {
                    bytes += u64::from(descriptor.len());
                    if self.reach {
                        let (address, len) = (descriptor.addr(), descriptor.len() as usize);
                        let slice = GuestMemoryBackend::get_slice(memory, address, len).unwrap();
                        black_box(slice.ptr_guard().as_ptr());
                    } else {
                        black_box(descriptor.addr().raw_value());
                    }
                }
                self.queue.add_used(memory, head, 0).unwrap();
            }
            if !self.queue.enable_notification(memory).unwrap() {
                break;
            }
        }
        black_box(self.queue.needs_notification(memory).unwrap());
        (start.elapsed(), bytes)
    }
}

/// One who walks, and the driver of the ring that it walks.
struct Runner {
    driver: Driver,
    walker: Box<dyn Walk>,
    samples: Vec<f64>,
}

impl Runner {
    fn sample(&mut self) {
        let kind = self.driver.kind;
        let mut elapsed = Duration::ZERO;
        for _ in 0..ROUNDS {
            self.driver.refill();
            let (time, bytes) = black_box(self.walker.walk());
            elapsed += time;
            assert_eq!(bytes, kind.bytes(), "the lengths of all buffers");
        }
        self.driver.check();
        self.samples.push(elapsed.as_nanos() as f64 / f64::from(ROUNDS) / f64::from(kind.chains()));
    }

    fn median(&mut self) -> f64 {
        self.samples.sort_by(f64::total_cmp);
        self.samples[self.samples.len() / 2]
    }
}

struct Guest {
    ours: GuestMemory,
    theirs: Arc<GuestMemoryMmap>,
}

impl Guest {
    fn new() -> Self {
        let (low, mapped_low) = MappedMemory::memfd(LOW).unwrap();
        let (high, mapped_high) = MappedMemory::memfd(HIGH.1).unwrap();
        let region = |address, mapped| Region::new(address, address, Arc::new(mapped));
        let ours = GuestMemory::new(vec![region(0, mapped_low), region(HIGH.0, mapped_high)]).unwrap();
        let file = |fd| Some(FileOffset::new(File::from(fd), 0));
        let ranges =
            [(GuestAddress(0), LOW as usize, file(low)), (GuestAddress(HIGH.0), HIGH.1 as usize, file(high))];
        Self { ours, theirs: Arc::new(GuestMemoryMmap::from_ranges_with_files(ranges).unwrap()) }
    }

    fn runner(&self, kind: Kind, ring: u64, walker: impl FnOnce(&Driver) -> Box<dyn Walk>) -> Runner {
        let driver = Driver::new(&self.theirs, kind, ring * 0x1_0000);
        Runner { walker: walker(&driver), driver, samples: Vec::new() }
    }

    fn ours(&self, kind: Kind) -> Runner {
        self.runner(kind, 1, |driver| Box::new(Ours::new(&self.ours, driver)))
    }

    fn theirs(&self, kind: Kind, reach: bool) -> Runner {
        self.runner(kind, 2 + u64::from(reach), |driver| Box::new(Theirs::new(&self.theirs, driver, reach)))
    }
}

fn measure(runners: &mut [Runner], samples: usize) -> Vec<f64> {
    for _ in 0..samples {
        runners.iter_mut().for_each(Runner::sample);
    }
    runners.iter_mut().map(Runner::median).collect()
}

fn main() -> ExitCode {
    // Cargo says `--bench`.
    let mut arguments: Vec<String> = std::env::args().skip(1).filter(|word| word != "--bench").collect();
    let peer = arguments.first().is_some_and(|word| word == "--peer");
    if peer {
        arguments.remove(0);
    }
    let only = if peer && !arguments.is_empty() { Some(arguments.remove(0)) } else { None };
    let samples = arguments.first().map_or(Ok(501), |word| word.parse());
    let (true, Ok(samples @ 1..)) = (arguments.len() <= 1 && peer == only.is_some(), samples) else {
        eprintln!("usage: ring [SAMPLES] | ring --peer CHAIN [SAMPLES]");
        return ExitCode::FAILURE;
    };
    let guest = Guest::new();
    for kind in KINDS.into_iter().filter(|kind| only.as_deref().is_none_or(|name| name == kind.name)) {
        if peer {
            println!("{:.2}", measure(&mut [guest.theirs(kind, false)], samples)[0]);
            continue;
        }
        let runners = &mut [guest.ours(kind), guest.theirs(kind, false), guest.theirs(kind, true)];
        let ns = measure(runners, samples);
        let chain = kind.name;
        println!(
            r#"{{"chain": "{chain}", "ours": {:.2}, "peer": {:.2}, "peer_reached": {:.2}}}"#,
            ns[0], ns[1], ns[2]
        );
    }
    ExitCode::SUCCESS
}
