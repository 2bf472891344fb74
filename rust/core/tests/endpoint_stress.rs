//! A driver as libblkio's `blkio-bench` is one, against the event loop that looks on for a while before it sleeps:
//! no notification lost, whoever falls asleep just as the other has something for it.
//!
//! The driver keeps a number of requests in flight, sleeps on the call, then wants no calls while it takes
//! back what there is, wants them again, looks once more, and only then adds as many new ones. It sleeps for
//! a bounded time, and when that runs out the test says what the ring looked like.

use std::{
    os::fd::AsFd,
    sync::Arc,
    thread,
    time::{Duration, Instant},
};

use rustix::event::{PollFd, PollFlags, Timespec, poll};
use xenvirt_core::{
    endpoint::{Control, Endpoint, Event, Offer},
    event_loop::EventFd,
    in_process::{InProcess, RingSetup},
    memory::{GuestMemory, MappedMemory, Region},
    ring::{BatchLayout, Buffer, DriverRing, RingConfig, RingFeatures},
};

const SIZE: u16 = 128;
const AVAILABLE: u64 = 0x1000;
const USED: u64 = 0x2000;
const DATA: u64 = 0x4000;

/// How long one run goes on at most: a machine that has other things to do does fewer rounds.
const BUDGET: Duration = Duration::from_secs(3);
const ROUNDS: u32 = 100_000;

/// A cheap stream of numbers that look random.
struct Random(u64);

impl Random {
    fn below(&mut self, limit: u64) -> u64 {
        self.0 = self.0.wrapping_mul(6364136223846793005).wrapping_add(1442695040888963407);
        (self.0 >> 33) % limit
    }
}

struct Driver {
    memory: GuestMemory,
    ring: DriverRing,
    kick: EventFd,
    call: EventFd,
}

impl Driver {
    /// A header to read, a status byte to write.
    fn add(&mut self, count: usize) {
        let (header, status) = (Buffer { address: DATA, len: 16 }, Buffer { address: DATA + 16, len: 1 });
        for _ in 0..count {
            self.ring.add(&[header], &[status], None).unwrap().expect("room for the depth");
        }
        if self.ring.publish() {
            self.kick.signal();
        }
    }

    fn sleep(&self, control: &Control) {
        let timeout = Timespec { tv_sec: 30, tv_nsec: 0 };
        if poll(&mut [PollFd::new(&self.call, PollFlags::IN)], Some(&timeout)) == Ok(0) {
            let word = |address| {
                let mut bytes = [0; 2];
                self.memory.read(address, &mut bytes).unwrap();
                u16::from_le_bytes(bytes)
            };
            panic!(
                "the driver waits in vain: available {}, wants to hear of used {}; used {}, wants to hear of \
                 available {}; {:?}",
                word(AVAILABLE + 2),
                word(AVAILABLE + 4 + 2 * u64::from(SIZE)),
                word(USED + 2),
                word(USED + 4 + 8 * u64::from(SIZE)),
                control.queues[0].counters(),
            );
        }
        self.call.drain();
    }

    /// Requests that came back.
    fn run(&mut self, depth: usize, control: &Control) -> u64 {
        let (begin, mut random) = (Instant::now(), Random(depth as u64));
        let (mut used, mut total) = (Vec::new(), 0);
        self.ring.arm();
        self.add(depth);
        for _ in 0..ROUNDS {
            self.sleep(control);
            self.ring.disarm();
            used.clear();
            loop {
                let before = used.len();
                self.ring.poll(&mut used).unwrap();
                if used.len() == before && !self.ring.arm() {
                    break;
                }
            }
            total += used.len() as u64;
            if begin.elapsed() > BUDGET && self.ring.outstanding() == 0 {
                return total;
            }
            if begin.elapsed() <= BUDGET {
                // Somewhere about the moment when the device falls asleep.
                for turn in 0..random.below(2000) {
                    std::hint::black_box(turn);
                }
                self.add(used.len());
            }
        }
        total
    }
}

/// Answers every request until it is stopped.
fn serve(endpoint: &mut Endpoint<InProcess>) {
    let layout = BatchLayout { header: 16, trailer: 1 };
    loop {
        match endpoint.wait(None).unwrap() {
            Event::Kick(index) => {
                let queue = Arc::clone(&endpoint.control().queues[usize::from(index)]);
                while let Some(batch) = queue.pop_batch(256, layout).unwrap() {
                    batch.write_trailer(0, None, 0).unwrap();
                    batch.complete().unwrap();
                }
            }
            Event::Stopped => return,
            _ => {}
        }
    }
}

fn run(patience: Duration, event_idx: bool, depth: usize) {
    let (_, mapped) = MappedMemory::memfd(0x8000).unwrap();
    let memory = GuestMemory::new(vec![Region::new(0, 0, Arc::new(mapped))]).unwrap();
    let features = RingFeatures { event_idx, ..RingFeatures::default() };
    let config = RingConfig {
        size: SIZE,
        descriptors: 0,
        available: AVAILABLE,
        used: USED,
        next_available: 0,
        features,
        in_turn: false,
    };
    let ring = DriverRing::new(&config, &memory).unwrap();
    let (kick, call) = (EventFd::new().unwrap(), EventFd::new().unwrap());
    let own = |event: &EventFd| event.as_fd().try_clone_to_owned().unwrap();
    let setup = RingSetup { config, kick: own(&kick), call: own(&call) };
    let offer = Offer { features: 0, queue_sizes: vec![SIZE], config: Vec::new(), patience };
    let mut endpoint = Endpoint::new(offer, InProcess::default()).unwrap();
    endpoint
        .drive(|transport, control, events| transport.start(0, memory.clone(), vec![setup], control, events))
        .unwrap();
    let control = Arc::clone(endpoint.control());
    let mut driver = Driver { memory, ring, kick, call };
    thread::scope(|scope| {
        let driving = scope.spawn(|| driver.run(depth, &control));
        scope.spawn(|| serve(&mut endpoint));
        let driven = driving.join();
        control.stop();
        let driven = driven.unwrap();
        assert!(driven >= depth as u64);
    });
    let counters = control.queues[0].counters();
    assert_eq!(counters.errors, 0);
    println!("{patience:?}, EVENT_IDX {event_idx}, depth {depth}: {counters:?}");
}

#[test]
fn nothing_is_lost_when_the_device_sleeps_at_once() {
    run(Duration::ZERO, true, 32);
    run(Duration::ZERO, false, 1);
}

#[test]
fn nothing_is_lost_when_the_device_looks_on_for_a_moment() {
    for event_idx in [true, false] {
        run(Duration::from_micros(2), event_idx, 1);
        run(Duration::from_micros(5), event_idx, 32);
    }
}

#[test]
fn nothing_is_lost_when_the_device_looks_on_for_as_long_as_it_does_by_default() {
    run(Duration::from_micros(50), true, 32);
    run(Duration::from_micros(50), true, 1);
}
