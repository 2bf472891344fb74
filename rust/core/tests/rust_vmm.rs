//! rust-vmm's own `virtio-queue` runs on our guest memory.

use std::sync::Arc;

use virtio_queue::{Queue, QueueT};
use vm_memory::{Bytes, GuestAddress, GuestMemoryBackend, GuestMemoryRegion};
use xenvirt_core::memory::{GuestMemory, MappedMemory, Region};

const DESCRIPTORS: u64 = 0x1000;
const AVAILABLE: u64 = 0x2000;
const USED: u64 = 0x3000;
const HIGH: u64 = 1 << 32;
const NEXT: u16 = 1;
const WRITE: u16 = 2;

fn memory() -> GuestMemory {
    let region = |address| {
        let (_, memory) = MappedMemory::memfd(0x10000).expect("a memfd");
        Region::new(address, 0, Arc::new(memory))
    };
    GuestMemory::new(vec![region(0), region(HIGH), region(HIGH + 0x10000)]).expect("a table")
}

fn describe(memory: &GuestMemory, index: u64, address: u64, len: u32, flags: u16, next: u16) {
    let mut bytes = [0; 16];
    bytes[..8].copy_from_slice(&address.to_le_bytes());
    bytes[8..12].copy_from_slice(&len.to_le_bytes());
    bytes[12..14].copy_from_slice(&flags.to_le_bytes());
    bytes[14..].copy_from_slice(&next.to_le_bytes());
    memory.write(DESCRIPTORS + index * 16, &bytes).expect("inside");
}

#[test]
fn virtio_queue_takes_a_chain_from_our_memory_and_gives_it_back() {
    let memory = memory();
    memory.write(HIGH + 0xfffc, b"question").expect("across two regions");
    describe(&memory, 0, HIGH + 0xfffc, 8, NEXT, 1);
    describe(&memory, 1, 0x8000, 16, WRITE, 0);
    memory.write(AVAILABLE, &[0, 0, 1, 0, 0, 0]).expect("inside");

    let mut queue = Queue::new(16).expect("a power of two");
    queue.try_set_desc_table_address(GuestAddress(DESCRIPTORS)).expect("aligned");
    queue.try_set_avail_ring_address(GuestAddress(AVAILABLE)).expect("aligned");
    queue.try_set_used_ring_address(GuestAddress(USED)).expect("aligned");
    queue.set_ready(true);
    assert!(queue.is_valid(&memory));

    let chain = queue.pop_descriptor_chain(&memory).expect("one chain");
    let head = chain.head_index();
    let descriptors: Vec<_> = chain.collect();
    assert_eq!(descriptors.len(), 2);
    let mut question = [0; 8];
    Bytes::read_slice(&memory, &mut question, descriptors[0].addr()).expect("across two regions");
    assert_eq!(&question, b"question");
    Bytes::write_slice(&memory, b"answer", descriptors[1].addr()).expect("inside");
    queue.add_used(&memory, head, 6).expect("inside");
    assert!(queue.pop_descriptor_chain(&memory).is_none());

    let mut answer = [0; 6];
    memory.read(0x8000, &mut answer).expect("inside");
    assert_eq!(&answer, b"answer");
    let mut used = [0; 12];
    memory.read(USED, &mut used).expect("inside");
    assert_eq!(used, [0, 0, 1, 0, 0, 0, 0, 0, 6, 0, 0, 0]);
}

#[test]
fn ranges_are_the_same_for_rust_vmm_and_for_us() {
    let memory = memory();
    assert_eq!(memory.num_regions(), 3);
    assert_eq!(memory.last_addr(), GuestAddress(HIGH + 0x1ffff));
    let found = memory.find_region(GuestAddress(HIGH + 0x10000)).expect("the third");
    assert_eq!(found.start_addr(), GuestAddress(HIGH + 0x10000));
    assert!(memory.find_region(GuestAddress(0x10000)).is_none());
    for (address, len) in [(0, 0x10000), (0xffff, 2), (HIGH, 0x20000), (HIGH + 0x1ffff, 2), (u64::MAX, 1)] {
        let ours = memory.read(address, &mut vec![0; len]).is_ok();
        assert_eq!(
            GuestMemoryBackend::check_range(&memory, GuestAddress(address), len),
            ours,
            "{address:#x}"
        );
    }
    let ours = memory.translate(HIGH + 8, 1).expect("inside").as_ptr();
    assert_eq!(memory.get_host_address(GuestAddress(HIGH + 8)).expect("inside"), ours);
}
