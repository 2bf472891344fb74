//! A frontend that means no good: valid sessions, mutated. The server lives, and serves the next one.

use std::{
    fs::File,
    io::{IoSlice, Read},
    mem::MaybeUninit,
    os::{
        fd::{AsFd, BorrowedFd, OwnedFd},
        unix::net::{UnixListener, UnixStream},
    },
    path::PathBuf,
    sync::Mutex,
};

use proptest::{collection::vec, prelude::*, sample::Index};
use rustix::{
    cmsg_space,
    event::{EventfdFlags, PollFd, PollFlags, Timespec, eventfd, poll},
    fs::{MemfdFlags, ftruncate, memfd_create},
    io::{pread, pwrite, read, write},
    net::{SendAncillaryBuffer, SendAncillaryMessage, SendFlags, Shutdown, sendmsg, shutdown},
};
use xenvirt_core::{
    endpoint::Event,
    vhost_user::{
        ConfigSpace, Frontend, FrontendRequest as R, Header, MemoryRegion, Patience, RegionFormat, RingSetup,
        VringAddress, VringFlags, VringState, virtio_features,
    },
};

mod served;

use served::{CONFIG, FEATURES, PATIENCE, QUEUE_SIZE, Served};

const MEMORY: u64 = 0x10000;
const DESCRIPTORS: u64 = 0;
const AVAILABLE: u64 = 0x1000;
const USED: u64 = 0x2000;
const DATA: u64 = 0x3000;
/// Where the frontend says that it sees its memory.
const USER: u64 = 0x7fff_0000;

/// What can be handed over as a file descriptor.
#[derive(Clone, Copy, Debug)]
enum Kind {
    Memory,
    ShortMemory,
    Eventfd,
    DevNull,
    /// Readable for ever, and never empty.
    DevZero,
    EndedPipe,
    Directory,
    Socket,
}

impl Kind {
    fn open(self) -> OwnedFd {
        let memory = |size| {
            let fd = memfd_create("guest", MemfdFlags::CLOEXEC).unwrap();
            ftruncate(&fd, size).unwrap();
            fd
        };
        match self {
            Self::Memory => memory(MEMORY),
            Self::ShortMemory => memory(0x1800),
            Self::Eventfd => eventfd(1, EventfdFlags::CLOEXEC).unwrap(),
            Self::DevNull => File::open("/dev/null").unwrap().into(),
            Self::DevZero => File::open("/dev/zero").unwrap().into(),
            Self::EndedPipe => rustix::pipe::pipe().unwrap().0,
            Self::Directory => File::open("/").unwrap().into(),
            Self::Socket => UnixStream::pair().unwrap().0.into(),
        }
    }
}

/// One message before it is sent.
#[derive(Clone, Debug)]
struct Frame {
    bytes: Vec<u8>,
    fds: Vec<Kind>,
}

fn frame(request: &R, fds: &[Kind]) -> Frame {
    let outgoing = request.encode(RegionFormat::Plain);
    let header = Header::request(outgoing.number, outgoing.payload.len() as u32, true);
    Frame { bytes: [&header.to_bytes()[..], &outgoing.payload].concat(), fds: fds.to_vec() }
}

fn region() -> MemoryRegion {
    MemoryRegion { guest_address: 0, size: MEMORY, user_address: USER, ..MemoryRegion::default() }
}

/// All that a frontend says in a life: each kind of message that the backend knows.
fn session() -> Vec<Frame> {
    let spare = || Kind::DevNull.open();
    let mut frames = vec![
        frame(&R::SetOwner, &[]),
        frame(&R::GetFeatures, &[]),
        frame(&R::GetProtocolFeatures, &[]),
        frame(&R::SetProtocolFeatures(0x1a229), &[]),
        frame(&R::GetQueueNum, &[]),
        frame(&R::SetBackendReqFd(spare()), &[Kind::Socket]),
        frame(&R::GetConfig(ConfigSpace { offset: 0, flags: 0, data: vec![0; CONFIG.len()] }), &[]),
        frame(&R::SetConfig(ConfigSpace { offset: 0, flags: 0, data: CONFIG.to_vec() }), &[]),
        frame(&R::SetFeatures(FEATURES | virtio_features::PROTOCOL_FEATURES), &[]),
        frame(&R::SetMemTable(vec![(region(), spare())]), &[Kind::Memory]),
        frame(&R::SetStatus(15), &[]),
    ];
    for index in 0..2u8 {
        let state = |value| VringState { index: index.into(), value };
        let address = VringAddress {
            index: index.into(),
            flags: VringFlags::empty(),
            descriptors: USER + DESCRIPTORS,
            used: USER + USED,
            available: USER + AVAILABLE,
            log: 0,
        };
        let fd = || Some(spare());
        frames.extend([
            frame(&R::SetVringNum(state(QUEUE_SIZE.into())), &[]),
            frame(&R::SetVringAddr(address), &[]),
            frame(&R::SetVringBase(state(0)), &[]),
            frame(&R::SetVringCall { index, fd: fd() }, &[Kind::Eventfd]),
            frame(&R::SetVringErr { index, fd: fd() }, &[Kind::Eventfd]),
            frame(&R::SetVringKick { index, fd: fd() }, &[Kind::Eventfd]),
            frame(&R::SetVringEnable { index: index.into(), enable: true }, &[]),
        ]);
    }
    frames.extend([
        frame(&R::GetStatus, &[]),
        frame(&R::GetMaxMemSlots, &[]),
        frame(&R::SetVringEnable { index: 1, enable: false }, &[]),
        frame(&R::GetVringBase { index: 0 }, &[]),
        frame(&R::GetVringBase { index: 1 }, &[]),
        frame(&R::RemMemReg(region()), &[]),
        frame(&R::AddMemReg { region: region(), fd: spare() }, &[Kind::Memory]),
        frame(&R::ResetDevice, &[]),
        frame(&R::ResetOwner, &[]),
    ]);
    frames
}

/// One change to a session.
#[derive(Clone, Debug)]
enum Mutation {
    Byte { frame: Index, at: Index, value: u8 },
    Bytes { frame: Index, bytes: Vec<u8> },
    Drop(Index),
    Repeat { from: Index, to: Index },
    Swap(Index, Index),
    AddFile { frame: Index, kind: Kind, count: usize },
    TakeFile(Index),
    OtherFile { frame: Index, kind: Kind },
    Number { frame: Index, number: u8 },
    NoReply(Index),
    End { frame: Index, at: Index },
}

fn kind() -> impl Strategy<Value = Kind> {
    prop::sample::select(vec![
        Kind::Memory,
        Kind::ShortMemory,
        Kind::Eventfd,
        Kind::DevNull,
        Kind::DevZero,
        Kind::EndedPipe,
        Kind::Directory,
        Kind::Socket,
    ])
}

fn mutation() -> impl Strategy<Value = Mutation> {
    let index = any::<Index>;
    prop_oneof![
        4 => (index(), index(), any::<u8>()).prop_map(|(frame, at, value)| Mutation::Byte { frame, at, value }),
        1 => (index(), vec(any::<u8>(), 0..64)).prop_map(|(frame, bytes)| Mutation::Bytes { frame, bytes }),
        1 => index().prop_map(Mutation::Drop),
        1 => (index(), index()).prop_map(|(from, to)| Mutation::Repeat { from, to }),
        2 => (index(), index()).prop_map(|(one, other)| Mutation::Swap(one, other)),
        1 => (index(), kind(), 1usize..40).prop_map(|(frame, kind, count)| Mutation::AddFile { frame, kind, count }),
        1 => index().prop_map(Mutation::TakeFile),
        3 => (index(), kind()).prop_map(|(frame, kind)| Mutation::OtherFile { frame, kind }),
        1 => (index(), 0u8..60).prop_map(|(frame, number)| Mutation::Number { frame, number }),
        1 => index().prop_map(Mutation::NoReply),
        1 => (index(), index()).prop_map(|(frame, at)| Mutation::End { frame, at }),
    ]
}

fn mutate(frames: &mut Vec<Frame>, mutation: &Mutation) {
    if frames.is_empty() {
        return;
    }
    match mutation {
        Mutation::Byte { frame, at, value } => {
            let bytes = &mut frame.get_mut(frames).bytes;
            if !bytes.is_empty() {
                *at.get_mut(bytes) = *value;
            }
        }
        Mutation::Bytes { frame, bytes } => frame.get_mut(frames).bytes = bytes.clone(),
        Mutation::Drop(frame) => drop(frames.remove(frame.index(frames.len()))),
        Mutation::Repeat { from, to } => {
            let copy = from.get(frames).clone();
            frames.insert(to.index(frames.len()), copy);
        }
        Mutation::Swap(one, other) => {
            let count = frames.len();
            frames.swap(one.index(count), other.index(count));
        }
        Mutation::AddFile { frame, kind, count } => {
            frame.get_mut(frames).fds.extend(std::iter::repeat_n(*kind, *count));
        }
        Mutation::TakeFile(frame) => drop(frame.get_mut(frames).fds.pop()),
        Mutation::OtherFile { frame, kind } => {
            let with_files: Vec<usize> = (0..frames.len()).filter(|&i| !frames[i].fds.is_empty()).collect();
            if !with_files.is_empty() {
                frames[*frame.get(&with_files)].fds[0] = *kind;
            }
        }
        Mutation::Number { frame, number } => {
            if let Some(byte) = frame.get_mut(frames).bytes.first_mut() {
                *byte = *number;
            }
        }
        Mutation::NoReply(frame) => {
            if let Some(byte) = frame.get_mut(frames).bytes.get_mut(4) {
                *byte &= !8;
            }
        }
        Mutation::End { frame, at } => {
            let index = frame.index(frames.len());
            frames.truncate(index + 1);
            let bytes = &mut frames[index].bytes;
            bytes.truncate(if bytes.is_empty() { 0 } else { at.index(bytes.len()) });
        }
    }
}

/// A socket to listen on, away when the test is over.
struct Place {
    directory: PathBuf,
}

impl Place {
    fn new(name: &str) -> Self {
        let directory = std::env::temp_dir().join(format!("xenvirt-{name}-{}", std::process::id()));
        std::fs::create_dir_all(&directory).unwrap();
        Self { directory }
    }

    fn socket(&self) -> PathBuf {
        self.directory.join("device.sock")
    }
}

impl Drop for Place {
    fn drop(&mut self) {
        let _ = std::fs::remove_dir_all(&self.directory);
    }
}

/// Sends a piece with descriptors; an error means that the server has hung up, as it may.
fn send(socket: &UnixStream, bytes: &[u8], fds: &[BorrowedFd<'_>]) -> bool {
    let mut space = vec![MaybeUninit::uninit(); cmsg_space!(ScmRights(fds.len()))];
    let mut control = SendAncillaryBuffer::new(&mut space);
    if !fds.is_empty() {
        assert!(control.push(SendAncillaryMessage::ScmRights(fds)));
    }
    sendmsg(socket, &[IoSlice::new(bytes)], &mut control, SendFlags::NOSIGNAL).is_ok()
}

/// Plays a session to its end; `cuts` says after how many bytes a write ends.
fn play(place: &Place, frames: &[Frame], cuts: &[usize], ring: &[u8]) {
    let mut socket = UnixStream::connect(place.socket()).unwrap();
    socket.set_read_timeout(Some(PATIENCE)).unwrap();
    let mut cuts = cuts.iter().copied().cycle();
    'session: for frame in frames {
        let files: Vec<OwnedFd> = frame
            .fds
            .iter()
            .map(|kind| {
                let file = kind.open();
                if matches!(kind, Kind::Memory) {
                    pwrite(&file, ring, 0).unwrap();
                }
                file
            })
            .collect();
        let mut fds: Vec<BorrowedFd<'_>> = files.iter().map(AsFd::as_fd).collect();
        let mut rest = &frame.bytes[..];
        while !rest.is_empty() {
            let (now, later) = rest.split_at(cuts.next().unwrap_or(rest.len()).min(rest.len()));
            if !send(&socket, now, &fds) {
                break 'session;
            }
            fds.clear();
            rest = later;
        }
    }
    // The server has worked off everything, and has let go of it, when its end is closed.
    let _ = shutdown(&socket, Shutdown::Write);
    let mut answers = Vec::new();
    if let Err(error) = socket.read_to_end(&mut answers) {
        assert_eq!(error.kind(), std::io::ErrorKind::ConnectionReset, "the server hangs");
    }
}

/// A frontend that means well is served: one request comes back reversed.
fn is_served(place: &Place, served: &Served) {
    let mut frontend = Frontend::connect(&place.socket(), Patience::new(PATIENCE)).unwrap();
    frontend.negotiate(Frontend::PROTOCOL_FEATURES).unwrap();
    assert_eq!(frontend.config(0, CONFIG.len() as u32).unwrap().len(), CONFIG.len());
    frontend.set_features(FEATURES).unwrap();
    let memory = Kind::Memory.open();
    frontend.set_memory(&[(region(), memory.as_fd())]).unwrap();
    let descriptor = |address: u64, flags: u16, next: u16| {
        [&address.to_le_bytes()[..], &5u32.to_le_bytes(), &flags.to_le_bytes(), &next.to_le_bytes()].concat()
    };
    let table = [descriptor(DATA, 1, 1), descriptor(DATA + 0x100, 2, 0)].concat();
    pwrite(&memory, &table, DESCRIPTORS).unwrap();
    pwrite(&memory, b"hello", DATA).unwrap();
    pwrite(&memory, &[0, 0, 1, 0, 0, 0], AVAILABLE).unwrap();
    let (kick, call) = (Kind::Eventfd.open(), eventfd(0, EventfdFlags::CLOEXEC).unwrap());
    let ring = RingSetup {
        index: 0,
        size: QUEUE_SIZE,
        descriptors: DESCRIPTORS,
        available: AVAILABLE,
        used: USED,
        base: 0,
        kick: Some(kick.as_fd()),
        call: Some(call.as_fd()),
        err: None,
    };
    frontend.set_ring(&ring).unwrap();
    frontend.enable_ring(0, true).unwrap();
    write(&kick, &1u64.to_ne_bytes()).unwrap();
    let patience = Timespec { tv_sec: PATIENCE.as_secs() as i64, tv_nsec: 0 };
    assert_eq!(poll(&mut [PollFd::new(&call, PollFlags::IN)], Some(&patience)).unwrap(), 1, "no call came");
    read(&call, &mut [0; 8]).unwrap();
    let mut answer = [0; 5];
    pread(&memory, &mut answer, DATA + 0x100).unwrap();
    assert_eq!(&answer, b"olleh");
    assert_eq!(frontend.stop_ring(0).unwrap(), 1);
    drop(frontend);
    assert_eq!(*ended(served).last().unwrap(), Event::Disconnected(None));
}

/// What happened until the end of the connection.
fn ended(served: &Served) -> Vec<Event> {
    let mut events = vec![served.event()];
    while !matches!(events.last(), Some(Event::Disconnected(_))) {
        events.push(served.event());
    }
    events
}

/// The tests count what is open: one at a time.
static ALONE: Mutex<()> = Mutex::new(());

fn open_files() -> usize {
    std::fs::read_dir("/proc/self/fd").unwrap().count()
}

#[test]
fn a_whole_session_is_played_without_an_objection() {
    let _alone = ALONE.lock();
    let place = Place::new("whole");
    let served = Served::listener(UnixListener::bind(place.socket()).unwrap().into());
    play(&place, &session(), &[usize::MAX], &[]);
    let events = ended(&served);
    assert_eq!(events.last(), Some(&Event::Disconnected(None)), "{events:?}");
    assert!(!events.iter().any(|event| matches!(event, Event::Warning(_))), "{events:?}");
    is_served(&place, &served);
}

#[test]
fn no_mutated_session_ends_the_server_and_none_leaves_anything_open() {
    let _alone = ALONE.lock();
    let place = Place::new("hostile");
    let served = Served::listener(UnixListener::bind(place.socket()).unwrap().into());
    is_served(&place, &served);
    let before = open_files();
    let mut runner = proptest::test_runner::TestRunner::new(ProptestConfig {
        cases: 300,
        failure_persistence: None,
        ..ProptestConfig::default()
    });
    let cuts = prop_oneof![Just(vec![usize::MAX]), vec(1usize..30, 1..8)];
    let ring = vec(any::<u8>(), 0..0x3000);
    let strategy = (vec(mutation(), 1..6), cuts, ring);
    let result = runner.run(&strategy, |(mutations, cuts, ring)| {
        let mut frames = session();
        mutations.iter().for_each(|mutation| mutate(&mut frames, mutation));
        play(&place, &frames, &cuts, &ring);
        ended(&served);
        is_served(&place, &served);
        prop_assert_eq!(open_files(), before);
        Ok(())
    });
    if let Err(error) = result {
        panic!("{error}");
    }
    drop(served);
}
