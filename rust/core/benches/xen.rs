//! Foreign memory and grants in a dom0, for `benches/dom0`: waits for lines, answers each with the nanoseconds that it took.
//!
//! - `map DOMID FIRST COUNT ROUNDS` maps so many frames, reads a byte of the first and unmaps, so many times. The answer is the
//!   median, and the sum of the bytes.
//! - `ring DOMID SIZE DESCRIPTORS AVAILABLE USED FIRST` takes all chains of a ring whose three parts lie in pages of these grant
//!   references, from the available entry FIRST on: reads what is readable, fills what is writable, completes. The answer is the
//!   time for one chain, and how many there were.
//!
//! The C programs beside `benches/dom0` do the same over Xen's libraries.

use std::{
    hint::black_box,
    io::{BufRead, Write, stdin, stdout},
    sync::Arc,
    time::{Duration, Instant},
};

use xenvirt_core::{
    memory::{GRANT_ADDRESS, GrantCache},
    ring::{RingConfig, RingFeatures, VirtQueue},
    xen::{ForeignMapping, Gntdev, MapRequest, Privcmd},
};

const FILLING: u8 = 0x5a;
const LARGEST: usize = 4096;

fn map(privcmd: &Privcmd, domain: u16, first: u64, count: u64, rounds: usize) -> (u64, u64) {
    let frames: Vec<u64> = (first..first + count).collect();
    let mut sum = 0;
    let mut taken: Vec<u64> = (0..rounds)
        .map(|_| {
            let start = Instant::now();
            let request = MapRequest { domain, frames: &frames, writable: false, patience: Duration::ZERO };
            let memory = ForeignMapping::whole(privcmd, &request).unwrap().into_memory().unwrap();
            let mut byte = [0];
            memory.read(0, &mut byte).unwrap();
            sum += u64::from(byte[0]);
            drop(memory);
            start.elapsed().as_nanos() as u64
        })
        .collect();
    taken.sort_unstable();
    (taken[rounds / 2], sum)
}

fn ring(gntdev: &Arc<Gntdev>, domain: u16, size: u16, parts: [u64; 3], first: u16) -> (u64, u64) {
    let [descriptors, available, used] = parts.map(|reference| GRANT_ADDRESS | reference << 12);
    let features =
        RingFeatures { event_idx: false, indirect: false, in_order: false, notify_on_empty: false };
    let config =
        RingConfig { size, descriptors, available, used, next_available: first, features, in_turn: false };
    let cache = GrantCache::new(Arc::clone(gntdev) as _, domain, Duration::ZERO);
    let queue = Arc::new(VirtQueue::new(0, size));
    queue.start(&config, &cache.memory().unwrap()).unwrap();
    let (mut buffer, mut chains) = ([0; LARGEST], 0);
    let start = Instant::now();
    while let Some(mut chain) = queue.pop().unwrap() {
        let read = chain.read(&mut buffer).unwrap();
        black_box(&buffer[..read]);
        let writable = chain.writable() as usize;
        buffer[..writable.min(LARGEST)].fill(FILLING);
        while chain.writable() > 0 {
            let len = (chain.writable() as usize).min(LARGEST);
            chain.write(&buffer[..len]).unwrap();
        }
        chain.complete(None).unwrap();
        chains += 1;
    }
    let taken = start.elapsed().as_nanos() as u64;
    queue.stop();
    assert_eq!(cache.mapped_pages(), 0);
    (taken / chains, chains)
}

fn main() {
    let privcmd = Privcmd::open().unwrap();
    let gntdev = Arc::new(Gntdev::open().unwrap());
    for line in stdin().lock().lines() {
        let line = line.unwrap();
        let mut words = line.split_whitespace();
        let what = words.next();
        let numbers: Vec<u64> = words.map(|word| word.parse().unwrap()).collect();
        let (nanoseconds, check) = match (what, numbers.as_slice()) {
            (Some("map"), &[domain, first, count, rounds]) => {
                map(&privcmd, domain as u16, first, count, rounds as usize)
            }
            (Some("ring"), &[domain, size, descriptors, available, used, first]) => {
                let parts = [descriptors, available, used];
                ring(&gntdev, domain as u16, size as u16, parts, first as u16)
            }
            _ => panic!("{line:?} is no request"),
        };
        println!("{nanoseconds} {check}");
        stdout().flush().unwrap();
    }
}
