//! Disks under a driver of the same process. What requests may be like is tested from Python, over this disk and
//! over the one that is written there.

use std::{
    fs::File,
    io::Write,
    os::fd::{AsFd, OwnedFd},
    os::unix::fs::FileExt,
    sync::Arc,
};

use rustix::{
    event::{PollFd, PollFlags, poll},
    fs::{MemfdFlags, memfd_create},
    io::Errno,
    pipe::{PipeFlags, pipe_with},
};

use super::{FileBlock, Io, NullBlock, Storage, Trouble};
use crate::{
    memory::{GuestMemory, MappedMemory, Region},
    ring::{DriverQueue, RingFeatures, VirtQueue},
};

const START: u64 = 0x10_0000;
const ROOM: u64 = 4 << 20;
const SIZE: u64 = 1 << 20;
const IN: u32 = 0;
const OUT: u32 = 1;
const FLUSH: u32 = 4;
const GET_ID: u32 = 8;
const WRITE_ZEROES: u32 = 13;

struct Rig {
    driver: DriverQueue,
    queue: Arc<VirtQueue>,
}

/// What came back: token, data, status.
type Answer = (u64, Vec<u8>, u8);

impl Rig {
    fn new(size: u16) -> Self {
        let (_, mapped) = MappedMemory::memfd(ROOM).unwrap();
        let memory = GuestMemory::new(vec![Region::new(START, 0, Arc::new(mapped))]).unwrap();
        let features = RingFeatures { indirect: true, event_idx: true, ..RingFeatures::default() };
        let driver = DriverQueue::new(0, size, features, &memory, START, ROOM).unwrap();
        let queue = Arc::new(VirtQueue::new(0, size));
        queue.start(driver.config(), &memory).unwrap();
        Self { driver, queue }
    }

    fn submit(&mut self, kind: u32, sector: u64, data: &[u8], room: &[u32]) -> u64 {
        let header = [&kind.to_le_bytes()[..], &[0; 4], &sector.to_le_bytes()].concat();
        let writable = [room, &[1]].concat();
        let readable = [header[..].into(), data.into()];
        self.driver.submit(&readable[..if data.is_empty() { 1 } else { 2 }], &writable).unwrap()
    }

    fn completed(&mut self) -> Vec<Answer> {
        let mut answers = Vec::new();
        for completion in self.driver.completed().unwrap() {
            let mut data = vec![0; completion.buffers.iter().map(|buffer| buffer.len as usize).sum()];
            let mut at = 0;
            for &buffer in &completion.buffers {
                let end = at + buffer.len as usize;
                self.driver.read(buffer, (&mut data[at..end]).into()).unwrap();
                at = end;
            }
            let status = data.pop().unwrap();
            answers.push((completion.token, data, status));
            self.driver.release(completion);
        }
        answers
    }
}

/// Waits until a queue of the disk is to be processed.
fn wait(fds: &[OwnedFd]) {
    let mut polled: Vec<_> = fds.iter().map(|fd| PollFd::new(fd, PollFlags::IN)).collect();
    while poll(&mut polled, None).unwrap() == 0 {}
}

fn answers(disk: &FileBlock, fds: &[OwnedFd], rig: &mut Rig, count: usize) -> Vec<Answer> {
    let mut all = Vec::new();
    disk.process(&rig.queue).unwrap();
    loop {
        all.append(&mut rig.completed());
        if all.len() >= count {
            return all;
        }
        wait(fds);
        disk.process(&rig.queue).unwrap();
    }
}

fn memfd() -> File {
    let file = File::from(memfd_create("disk", MemfdFlags::CLOEXEC).unwrap());
    file.set_len(SIZE).unwrap();
    file
}

fn disk(file: impl Into<OwnedFd>, io_uring: bool) -> FileBlock {
    FileBlock::new(file.into(), SIZE, false, *b"a disk for our tests", io_uring)
}

/// io_uring, where this machine has it, and system calls.
fn both(file: &File) -> [FileBlock; 2] {
    [true, false].map(|io_uring| disk(file.try_clone().unwrap(), io_uring))
}

/// A disk whose data comes when somebody writes it to the pipe; None where there is no io_uring.
fn slow_disk(read_end: OwnedFd) -> Option<FileBlock> {
    let disk = disk(read_end, true);
    (disk.storage() == Storage::IoUring).then_some(disk)
}

#[test]
fn requests_reach_the_file_and_answers_the_driver() {
    let file = memfd();
    for disk in both(&file) {
        let mut rig = Rig::new(256);
        let fds = disk.activate(&[Arc::clone(&rig.queue)]).unwrap().remove(0);
        for round in 0..20_u64 {
            let data = [round as u8; 1024];
            let written = rig.submit(OUT, 2 * round, &data, &[]);
            assert_eq!(answers(&disk, &fds, &mut rig, 1), [(written, vec![], 0)]);
            let [read, flush, id] = [(IN, &[100, 412, 512][..]), (FLUSH, &[]), (GET_ID, &[20])]
                .map(|(kind, room)| rig.submit(kind, 2 * round, &[], room));
            let mut done = answers(&disk, &fds, &mut rig, 3);
            done.sort();
            assert_eq!(done[0], (read, data.to_vec(), 0));
            assert_eq!(done[1], (flush, vec![], 0));
            assert_eq!(done[2], (id, b"a disk for our tests".to_vec(), 0));
        }
        let mut stored = [0; 1024];
        file.read_exact_at(&mut stored, 19 * 1024).unwrap();
        assert_eq!(stored, [19; 1024]);
        assert_eq!((disk.counters().reads, disk.counters().writes, disk.counters().syncs), (20, 20, 20));
        assert_eq!(rig.queue.kept(), 0);
    }
}

#[test]
fn more_pieces_than_one_system_call_takes_are_moved_all() {
    let file = memfd();
    let expected: Vec<u8> = (0..1500 * 512).map(|at| (at / 512) as u8).collect();
    file.write_all_at(&expected, 0).unwrap();
    for disk in both(&file) {
        let mut rig = Rig::new(2048);
        let fds = disk.activate(&[Arc::clone(&rig.queue)]).unwrap().remove(0);
        let token = rig.submit(IN, 0, &[], &[512; 1500]);
        assert!(answers(&disk, &fds, &mut rig, 1) == [(token, expected.clone(), 0)]);
    }
}

#[test]
fn storage_that_cannot_zero_a_range_gets_zeroes_written() {
    // A memfd can free ranges and not zero them.
    const LARGE: u64 = 4 << 20;
    let file = memfd();
    for io_uring in [true, false] {
        file.write_all_at(&[1; LARGE as usize], 0).unwrap();
        let id = *b"a disk for our tests";
        let disk = FileBlock::new(file.try_clone().unwrap().into(), LARGE, false, id, io_uring);
        let mut rig = Rig::new(16);
        let fds = disk.activate(&[Arc::clone(&rig.queue)]).unwrap().remove(0);
        let range =
            |sector: u64, count: u32| [&sector.to_le_bytes()[..], &count.to_le_bytes(), &[0; 4]].concat();
        let ranges = [range(1, 8000), range(8001, 0), range(8001, 190)].concat();
        let token = rig.submit(WRITE_ZEROES, 0, &ranges, &[]);
        assert_eq!(answers(&disk, &fds, &mut rig, 1), [(token, vec![], 0)]);
        let mut stored = vec![0; LARGE as usize];
        file.read_exact_at(&mut stored, 0).unwrap();
        let (zeroed, sector) = (8191 * 512, [1; 512]);
        assert!(stored[..512] == sector && stored[zeroed..] == sector);
        assert!(stored[512..zeroed].iter().all(|&byte| byte == 0));
    }
}

#[test]
fn a_ring_that_is_longer_than_what_may_be_in_flight_is_emptied() {
    let file = memfd();
    for disk in both(&file) {
        let mut rig = Rig::new(2048);
        let fds = disk.activate(&[Arc::clone(&rig.queue)]).unwrap().remove(0);
        let mut tokens: Vec<u64> = (0..1500).map(|sector| rig.submit(IN, sector, &[], &[512])).collect();
        let mut done: Vec<u64> = answers(&disk, &fds, &mut rig, 1500).iter().map(|answer| answer.0).collect();
        tokens.sort_unstable();
        done.sort_unstable();
        assert_eq!(done, tokens);
    }
}

#[test]
fn what_the_storage_refuses_is_an_io_error_and_told() {
    for io_uring in [true, false] {
        let (read_end, _write_end) = rustix::pipe::pipe().unwrap();
        let disk = disk(read_end, io_uring);
        let mut rig = Rig::new(16);
        let fds = disk.activate(&[Arc::clone(&rig.queue)]).unwrap().remove(0);
        let token = rig.submit(FLUSH, 0, &[], &[]);
        let mut troubles = disk.process(&rig.queue).unwrap();
        while troubles.is_empty() {
            wait(&fds);
            troubles = disk.process(&rig.queue).unwrap();
        }
        assert_eq!(troubles, [Trouble { io: Io::Sync, errno: Errno::INVAL }]);
        assert_eq!(rig.completed(), [(token, vec![], 1)]);
    }
}

#[test]
fn a_request_is_answered_when_its_data_comes_and_others_meanwhile() {
    let (read_end, write_end) = rustix::pipe::pipe().unwrap();
    let Some(disk) = slow_disk(read_end) else { return };
    let mut rig = Rig::new(16);
    let fds = disk.activate(&[Arc::clone(&rig.queue)]).unwrap().remove(0);
    let slow = rig.submit(IN, 0, &[], &[512]);
    let id = rig.submit(GET_ID, 0, &[], &[20]);
    assert_eq!(answers(&disk, &fds, &mut rig, 1), [(id, b"a disk for our tests".to_vec(), 0)]);
    assert_eq!(rig.queue.kept_heads().len(), 1);
    File::from(write_end).write_all(&[7; 512]).unwrap();
    assert_eq!(answers(&disk, &fds, &mut rig, 1), [(slow, vec![7; 512], 0)]);
    assert_eq!(rig.queue.kept(), 0);
}

#[test]
fn a_session_that_ends_with_a_running_queue_answers_what_it_began() {
    let (read_end, write_end) = rustix::pipe::pipe().unwrap();
    let Some(disk) = slow_disk(read_end) else { return };
    let mut rig = Rig::new(16);
    disk.activate(&[Arc::clone(&rig.queue)]).unwrap();
    let token = rig.submit(IN, 0, &[], &[512]);
    disk.process(&rig.queue).unwrap();
    assert_eq!(rig.queue.kept(), 1);
    std::thread::scope(|scope| {
        scope.spawn(|| disk.reset());
        File::from(write_end).write_all(&[7; 512]).unwrap();
    });
    assert_eq!(rig.completed(), [(token, vec![7; 512], 0)]);
}

#[test]
fn when_the_queue_has_stopped_the_kernel_touches_no_guest_memory() {
    let (read_end, write_end) = rustix::pipe::pipe().unwrap();
    let peer = read_end.try_clone().unwrap();
    let Some(disk) = slow_disk(read_end) else { return };
    let mut rig = Rig::new(16);
    disk.activate(&[Arc::clone(&rig.queue)]).unwrap();
    for _ in 0..4 {
        rig.submit(IN, 0, &[], &[512]);
    }
    disk.process(&rig.queue).unwrap();
    assert_eq!(rig.queue.kept(), 4);
    assert_eq!(rig.queue.stop(), Some(0));
    // Nobody reads the pipe any more: what is written stays in it.
    File::from(write_end).write_all(&[7; 512]).unwrap();
    let mut left = [0; 600];
    assert_eq!(rustix::io::read(peer.as_fd(), &mut left).unwrap(), 512);
    assert!(rig.completed().is_empty());
    assert_eq!(disk.process(&rig.queue), Ok(vec![]));
}

#[test]
fn writes_that_wait_are_answered_when_there_is_room_and_end_with_the_queue() {
    // A pipe in packet mode passes for a file that was opened with O_DIRECT, and has room for 16 packets.
    let (read_end, write_end) = pipe_with(PipeFlags::DIRECT).unwrap();
    let Some(disk) = slow_disk(write_end) else { return };
    let mut rig = Rig::new(64);
    let fds = disk.activate(&[Arc::clone(&rig.queue)]).unwrap().remove(0);
    let packet = |rig: &mut Rig, tint: u8| rig.submit(OUT, 0, &[tint; 4096], &[]);
    let first: Vec<u64> = (0..20).map(|tint| packet(&mut rig, tint)).collect();
    let mut done = answers(&disk, &fds, &mut rig, 16);
    assert_eq!((done.len(), rig.queue.kept()), (16, 4));
    let mut bytes = [0; 8192];
    let mut packets = || {
        let left = rustix::io::ioctl_fionread(&read_end).unwrap();
        (0..left / 4096).map(|_| rustix::io::read(&read_end, &mut bytes).unwrap()).sum::<usize>()
    };
    assert_eq!(packets(), 16 * 4096);
    done.append(&mut answers(&disk, &fds, &mut rig, 4));
    let mut tokens: Vec<u64> = done.into_iter().map(|(token, _, status)| token + u64::from(status)).collect();
    tokens.sort_unstable();
    assert_eq!(tokens, first);
    for tint in 0..20 {
        packet(&mut rig, tint);
    }
    // Four are there from before.
    assert_eq!(answers(&disk, &fds, &mut rig, 12).len(), 12);
    assert_eq!(rig.queue.kept(), 8);
    rig.queue.stop();
    assert_eq!(packets(), 16 * 4096);
    assert_eq!(packets(), 0);
}

#[test]
fn a_disk_that_is_dropped_with_operations_in_flight_ends_them() {
    let (read_end, _write_end) = rustix::pipe::pipe().unwrap();
    let Some(disk) = slow_disk(read_end) else { return };
    let mut rig = Rig::new(16);
    disk.activate(&[Arc::clone(&rig.queue)]).unwrap();
    rig.submit(IN, 0, &[], &[512]);
    disk.process(&rig.queue).unwrap();
    drop(disk);
    assert_eq!((rig.queue.kept(), rig.queue.abandoned()), (0, 1));
}

#[test]
fn a_null_disk_reads_as_zeroes_and_checks_its_requests() {
    let disk = NullBlock::new(8);
    let mut rig = Rig::new(64);
    let read = rig.submit(IN, 7, &[], &[512]);
    let beyond = rig.submit(IN, 8, &[], &[512]);
    let part = rig.submit(OUT, 0, &[1; 100], &[]);
    let write = rig.submit(OUT, 0, &[1; 4096], &[]);
    let unknown = rig.submit(77, 0, &[], &[]);
    disk.process(&rig.queue).unwrap();
    assert_eq!(
        rig.completed(),
        [
            (read, vec![0; 512], 0),
            (beyond, vec![0; 512], 1),
            (part, vec![], 1),
            (write, vec![], 0),
            (unknown, vec![], 2)
        ]
    );
}
