//! A driver and a device in a thread each, over one ring: a million chains, every one with the right bytes,
//! and no notification lost. Each side sleeps on its eventfd whenever it finds nothing, so that a lost kick
//! or call ends in a wait without end; the wait is bounded, and then the test says so. On a machine that has
//! other things to do it may be fewer chains: each test stops after some seconds.

use std::{
    os::fd::AsFd,
    sync::{
        Arc,
        atomic::{AtomicBool, Ordering},
    },
    thread,
    time::{Duration, Instant},
};

use rustix::event::{PollFd, PollFlags, Timespec, poll};
use xenvirt_core::{
    event_loop::EventFd,
    memory::{GuestMemory, MappedMemory, Region},
    ring::{BatchLayout, Buffer, DriverRing, RingConfig, RingFeatures, VirtQueue},
};

const SIZE: u16 = 16;
const AVAILABLE: u64 = 0x1000;
const TABLES: u64 = 0x3000;
const DATA: u64 = 0x4000;

/// How the device takes chains.
#[derive(Clone, Copy, Debug, PartialEq)]
enum Device {
    /// One at a time, until there is none.
    Single,
    /// By the batch.
    Batch,
    /// By four: fewer than four are left in the ring, until the driver adds some.
    Lazy,
    /// One at a time; four are kept, and completed last one first.
    Keeping,
}

/// How long one run goes on at most.
const BUDGET: Duration = Duration::from_secs(5);

/// Waits for an eventfd, and takes it back to zero.
fn wait(event: &EventFd, who: &str) {
    let timeout = Timespec { tv_sec: 30, tv_nsec: 0 };
    let mut fds = [PollFd::new(event, PollFlags::IN)];
    let woken = poll(&mut fds, Some(&timeout));
    assert_eq!(woken, Ok(1), "{who} waits in vain: a notification was lost");
    event.drain();
}

/// A cheap stream of numbers that look random.
struct Random(u64);

impl Random {
    fn below(&mut self, limit: u64) -> u64 {
        self.0 = self.0.wrapping_mul(6364136223846793005).wrapping_add(1442695040888963407);
        (self.0 >> 33) % limit
    }
}

fn answer(number: u64) -> u64 {
    number.wrapping_mul(0x9E37_79B9_7F4A_7C15)
}

fn drive(
    memory: &GuestMemory,
    mut ring: DriverRing,
    kick: &EventFd,
    call: &EventFd,
    total: u64,
    indirect: bool,
) -> u64 {
    let begin = Instant::now();
    let mut total = total;
    let mut random = Random(1);
    let mut numbers = [0; SIZE as usize];
    let mut slots: Vec<u64> = (0..u64::from(SIZE)).collect();
    let mut slot_of = [0; SIZE as usize];
    let (mut added, mut completed) = (0u64, 0);
    let mut used = Vec::new();
    while completed < total {
        if added.is_multiple_of(4) && begin.elapsed() > BUDGET {
            total = added;
        }
        // Multiples of four in flight at each wait, for the lazy device.
        let burst = 4 * (1 + random.below(4));
        for _ in 0..burst {
            if added == total || slots.is_empty() || ring.free() < 2 {
                break;
            }
            let Some(slot) = slots.pop() else { break };
            let at = DATA + 16 * slot;
            memory.write(at, &added.to_le_bytes()).unwrap();
            memory.write(at + 8, &[0; 8]).unwrap();
            let buffer = |address| Buffer { address, len: 8 };
            let table = indirect.then_some(TABLES + 32 * slot);
            let head = ring.add(&[buffer(at)], &[buffer(at + 8)], table).unwrap().unwrap();
            numbers[usize::from(head)] = added;
            slot_of[usize::from(head)] = slot;
            added += 1;
            // Sometimes one at a time, sometimes all together.
            if random.below(3) == 0 && ring.publish() {
                kick.signal();
            }
        }
        if ring.publish() {
            kick.signal();
        }
        used.clear();
        ring.poll(&mut used).unwrap();
        if used.is_empty() {
            let full = slots.is_empty() || ring.free() < 2 || added == total;
            if full && !ring.arm() {
                wait(call, "the driver");
            }
            continue;
        }
        for chain in &used {
            let head = usize::from(chain.head);
            assert_eq!(chain.written, 8);
            let mut bytes = [0; 8];
            memory.read(DATA + 16 * slot_of[head] + 8, &mut bytes).unwrap();
            assert_eq!(u64::from_le_bytes(bytes), answer(numbers[head]));
            slots.push(slot_of[head]);
        }
        completed += used.len() as u64;
    }
    completed
}

fn serve(memory: &GuestMemory, queue: &Arc<VirtQueue>, kick: &EventFd, device: Device, done: &AtomicBool) {
    let mut kept = Vec::new();
    let mut taken = 0u16;
    while !done.load(Ordering::Acquire) {
        wait(kick, "the device");
        loop {
            queue.kicked();
            match device {
                Device::Batch => {
                    let layout = BatchLayout { header: 8, trailer: 8 };
                    while let Some(batch) = queue.pop_batch(5, layout).unwrap() {
                        let mut numbers = Vec::new();
                        batch.column(0, 8, &mut numbers).unwrap();
                        for (_, part) in batch.group_by(0, 8).unwrap() {
                            let mut number = Vec::new();
                            part.column(0, 8, &mut number).unwrap();
                            let number = u64::from_le_bytes(number.try_into().unwrap());
                            part.write_trailer(answer(number), None, 0).unwrap();
                        }
                        batch.complete().unwrap();
                    }
                }
                Device::Single | Device::Keeping | Device::Lazy => loop {
                    if device == Device::Lazy {
                        let mut index = [0; 2];
                        memory.read(AVAILABLE + 2, &mut index).unwrap();
                        if u16::from_le_bytes(index).wrapping_sub(taken) < 4 && taken.is_multiple_of(4) {
                            break;
                        }
                    }
                    let Some(mut chain) = queue.pop().unwrap() else { break };
                    taken = taken.wrapping_add(1);
                    let mut number = [0; 8];
                    assert_eq!(chain.read(&mut number), Ok(8));
                    chain.write(&answer(u64::from_le_bytes(number)).to_le_bytes()).unwrap();
                    kept.push(chain);
                    if device != Device::Keeping || kept.len() == 4 {
                        for mut chain in kept.drain(..).rev() {
                            chain.complete(None).unwrap();
                        }
                    }
                },
            }
            if !queue.processed() {
                break;
            }
        }
    }
}

/// Both ends of a ring.
struct Ends {
    memory: GuestMemory,
    ring: DriverRing,
    queue: Arc<VirtQueue>,
    kick: EventFd,
    call: EventFd,
}

impl Ends {
    fn new(features: RingFeatures) -> Self {
        let (_, mapped) = MappedMemory::memfd(0x8000).unwrap();
        let memory = GuestMemory::new(vec![Region::new(0, 0, Arc::new(mapped))]).unwrap();
        let config = RingConfig {
            size: SIZE,
            descriptors: 0,
            available: AVAILABLE,
            used: 0x2000,
            next_available: 0,
            features,
            in_turn: false,
        };
        let ring = DriverRing::new(&config, &memory).unwrap();
        let queue = Arc::new(VirtQueue::new(0, SIZE));
        queue.start(&config, &memory).unwrap();
        let (kick, call) = (EventFd::new().unwrap(), EventFd::new().unwrap());
        queue.set_call(Some(call.as_fd().try_clone_to_owned().unwrap()));
        Self { memory, ring, queue, kick, call }
    }
}

fn run(device: Device, features: RingFeatures, total: u64) {
    let Ends { memory, ring, queue, kick, call } = Ends::new(features);
    let done = AtomicBool::new(false);
    let driven = thread::scope(|scope| {
        let (memory, kick, call, queue, done) = (&memory, &kick, &call, &queue, &done);
        let driver = scope.spawn(move || {
            let driven = drive(memory, ring, kick, call, total, features.indirect);
            done.store(true, Ordering::Release);
            kick.signal();
            driven
        });
        scope.spawn(move || serve(memory, queue, kick, device, done));
        driver.join().unwrap()
    });
    let counters = queue.counters();
    assert_eq!((counters.chains, queue.kept(), counters.errors), (driven, 0, 0));
}

/// Two descriptors a chain in a ring of 16, or one with a table.
fn features(event_idx: bool, indirect: bool) -> RingFeatures {
    RingFeatures { event_idx, indirect, ..RingFeatures::default() }
}

#[test]
fn nothing_is_lost_with_event_idx() {
    run(Device::Single, features(true, true), 250_000);
    run(Device::Batch, features(true, false), 250_000);
}

/// One chain at a time, and whoever waits looks for a while before it sleeps: so that one side goes to sleep
/// just when the other one has something for it. Without the fence between the used index and the driver's
/// wish this soon ends in a wait in vain.
#[test]
fn nothing_is_lost_when_one_side_falls_asleep_as_the_other_wakes_it() {
    for event_idx in [false, true] {
        let Ends { memory, mut ring, queue, kick, call } = Ends::new(features(event_idx, false));
        const TOTAL: u64 = 150_000;
        let done = AtomicBool::new(false);
        thread::scope(|scope| {
            let (kick, call, queue, done) = (&kick, &call, &queue, &done);
            scope.spawn(move || {
                let begin = Instant::now();
                let (mut random, mut used) = (Random(3), Vec::new());
                let buffer = Buffer { address: DATA, len: 8 };
                for number in (0..TOTAL).take_while(|_| begin.elapsed() < BUDGET) {
                    // Somewhere about the moment when the device falls asleep.
                    for _ in 0..random.below(500) {
                        std::hint::black_box(number);
                    }
                    memory.write(DATA, &number.to_le_bytes()).unwrap();
                    ring.add(&[], &[buffer], None).unwrap().unwrap();
                    if ring.publish() {
                        kick.signal();
                    }
                    used.clear();
                    ring.disarm();
                    for _ in 0..random.below(400) {
                        ring.poll(&mut used).unwrap();
                        if !used.is_empty() {
                            break;
                        }
                        std::hint::spin_loop();
                    }
                    while used.is_empty() {
                        if !ring.arm() {
                            wait(call, "the driver");
                        }
                        ring.poll(&mut used).unwrap();
                    }
                }
                done.store(true, Ordering::Release);
                kick.signal();
            });
            scope.spawn(move || {
                let mut random = Random(4);
                while !done.load(Ordering::Acquire) {
                    match queue.pop().unwrap() {
                        Some(mut chain) => {
                            chain.write(&[1; 8]).unwrap();
                            chain.complete(None).unwrap();
                        }
                        // Kicks are asked for now.
                        None if (0..random.below(8)).any(|_| queue.has_work()) => {}
                        None => wait(kick, "the device"),
                    }
                }
            });
        });
    }
}

#[test]
fn nothing_is_lost_with_flags() {
    run(Device::Single, features(false, false), 100_000);
    run(Device::Batch, features(false, true), 100_000);
}

#[test]
fn nothing_is_lost_when_the_device_leaves_chains_in_the_ring() {
    run(Device::Lazy, features(true, true), 100_000);
    run(Device::Lazy, features(false, true), 100_000);
}

#[test]
fn nothing_is_lost_when_the_device_keeps_chains() {
    run(Device::Keeping, features(true, true), 60_000);
    run(Device::Keeping, RingFeatures { in_order: true, ..features(true, true) }, 40_000);
}
