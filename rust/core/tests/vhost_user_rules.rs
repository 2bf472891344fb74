//! The rules of our backend: what comes at the wrong time or with a wrong value is refused in words, and a
//! refusal leaves everything as it was.

use std::{
    fs::File,
    os::{
        fd::{AsFd, BorrowedFd, OwnedFd},
        unix::net::UnixStream,
    },
};

use rustix::{
    event::{EventfdFlags, PollFd, PollFlags, Timespec, eventfd, poll},
    fs::{MemfdFlags, ftruncate, memfd_create},
    io::{pread, pwrite, read, write},
};
use xenvirt_core::{
    endpoint::Event,
    vhost_user::{
        ConfigSpace, Frontend, FrontendCode as Code, FrontendRequest as R, Header, LogArea, MemoryRegion,
        OFFERED, Patience, ProtocolFeatures, RegionFormat, Reply, Status, VringAddress, VringFlags,
        VringState, virtio_features,
    },
};

mod served;

use served::{CONFIG, FEATURES, PATIENCE, QUEUE_SIZE, Served};

const MEMORY: u64 = 0x10000;
const AVAILABLE: u64 = 0x1000;
const USED: u64 = 0x2000;
const DATA: u64 = 0x3000;
/// Where the frontend says that it sees its memory.
const USER: u64 = 0x7fff_0000;

/// How the backend took a request.
#[derive(Debug, PartialEq)]
enum Taken {
    Done,
    Refused,
    Ended,
    Said(String),
}

/// A frontend that says what it is told to.
struct Client {
    frontend: Frontend,
    memory: OwnedFd,
    kick: OwnedFd,
    call: OwnedFd,
    served: Served,
    /// Requests that the ring has had.
    requests: u16,
}

impl Client {
    /// Connected, and agreed on these protocol features.
    fn new(protocol: ProtocolFeatures) -> Self {
        let (ours, theirs) = UnixStream::pair().unwrap();
        let memory = memfd_create("guest", MemfdFlags::CLOEXEC).unwrap();
        ftruncate(&memory, MEMORY).unwrap();
        let mut client = Self {
            frontend: Frontend::over(theirs.into(), Patience::new(PATIENCE)),
            memory,
            kick: event(),
            call: event(),
            served: Served::connection(ours.into()),
            requests: 0,
        };
        // From the next request on there are acknowledgements.
        client.send(&R::SetProtocolFeatures(protocol.bits()), false);
        client
    }

    /// All that is offered is agreed on, and memory is shared.
    fn ready() -> Self {
        let mut client = Self::new(OFFERED);
        let features = FEATURES | virtio_features::PROTOCOL_FEATURES;
        assert_eq!(client.ask(&R::SetFeatures(features)), Taken::Done);
        let fd = client.memory.try_clone().unwrap();
        assert_eq!(client.ask(&R::SetMemTable(vec![(region(), fd)])), Taken::Done);
        client
    }

    /// Queue 0 runs.
    fn running() -> Self {
        let mut client = Self::ready();
        client.start();
        assert_eq!(client.served.event(), Event::Activate);
        client
    }

    fn start(&mut self) {
        let fd = |fd: &OwnedFd| Some(fd.try_clone().unwrap());
        for request in [
            R::SetVringNum(state(0, QUEUE_SIZE.into())),
            R::SetVringAddr(address(0)),
            R::SetVringBase(state(0, self.requests.into())),
            R::SetVringCall { index: 0, fd: fd(&self.call) },
            R::SetVringEnable { index: 0, enable: true },
            R::SetVringKick { index: 0, fd: fd(&self.kick) },
        ] {
            assert_eq!(self.ask(&request), Taken::Done, "{request}");
        }
    }

    fn send(&mut self, request: &R, need_reply: bool) -> u32 {
        let outgoing = request.encode(RegionFormat::Plain);
        let header = Header::request(outgoing.number, outgoing.payload.len() as u32, need_reply);
        self.frontend.send_raw(header, &outgoing.payload, &outgoing.fds).unwrap();
        outgoing.number
    }

    fn ask(&mut self, request: &R) -> Taken {
        let number = self.send(request, true);
        let code = Code::from_number(number).unwrap();
        let Ok(message) = self.frontend.receive_raw(request.name()) else { return Taken::Ended };
        match Reply::decode(code, &message.payload, message.fds).unwrap() {
            Reply::Number(0) if !code.has_reply() => Taken::Done,
            Reply::Number(_) if !code.has_reply() => Taken::Refused,
            reply => Taken::Said(reply.to_string()),
        }
    }

    /// What the server wrote of it.
    fn words(&self, taken: &Taken) -> String {
        match (taken, self.served.event()) {
            (Taken::Refused, Event::Warning(words)) => words,
            // A malformed message is refused first, and then the connection is ended.
            (Taken::Refused | Taken::Ended, Event::Disconnected(Some(words))) => words,
            other => panic!("{other:?}"),
        }
    }

    fn works_on(&mut self) -> bool {
        matches!(self.ask(&R::GetFeatures), Taken::Said(_))
    }

    fn status(&mut self) -> Status {
        let Taken::Said(words) = self.ask(&R::GetStatus) else { panic!("no status") };
        Status::from_bits_retain(u8::from_str_radix(words.trim_start_matches("0x"), 16).unwrap())
    }

    /// Puts one request into the ring, and kicks.
    fn submit(&mut self) {
        let descriptor = |address: u64, flags: u16, next: u16| {
            [&address.to_le_bytes()[..], &5u32.to_le_bytes(), &flags.to_le_bytes(), &next.to_le_bytes()]
                .concat()
        };
        let table = [descriptor(DATA, 1, 1), descriptor(DATA + 0x100, 2, 0)].concat();
        pwrite(&self.memory, &table, 0).unwrap();
        pwrite(&self.memory, b"hello", DATA).unwrap();
        pwrite(&self.memory, &[0; 5], DATA + 0x100).unwrap();
        self.requests += 1;
        pwrite(&self.memory, &self.requests.to_le_bytes(), AVAILABLE + 2).unwrap();
        write(&self.kick, &1u64.to_ne_bytes()).unwrap();
    }

    /// How many requests came back.
    fn used(&self) -> u16 {
        let mut index = [0; 2];
        pread(&self.memory, &mut index, USED + 2).unwrap();
        u16::from_le_bytes(index)
    }

    fn wait_for_answer(&self) {
        // A ring that is started again calls once, in case that a call was lost.
        while self.used() != self.requests {
            wait_for(self.call.as_fd());
        }
        let mut answer = [0; 5];
        pread(&self.memory, &mut answer, DATA + 0x100).unwrap();
        assert_eq!(&answer, b"olleh");
    }
}

fn event() -> OwnedFd {
    eventfd(0, EventfdFlags::CLOEXEC | EventfdFlags::NONBLOCK).unwrap()
}

fn wait_for(fd: BorrowedFd<'_>) {
    let patience = Timespec { tv_sec: PATIENCE.as_secs() as i64, tv_nsec: 0 };
    assert_eq!(poll(&mut [PollFd::from_borrowed_fd(fd, PollFlags::IN)], Some(&patience)).unwrap(), 1);
    read(fd, &mut [0; 8]).unwrap();
}

fn state(index: u32, value: u32) -> VringState {
    VringState { index, value }
}

fn address(index: u32) -> VringAddress {
    VringAddress {
        index,
        flags: VringFlags::empty(),
        descriptors: USER,
        used: USER + USED,
        available: USER + AVAILABLE,
        log: 0,
    }
}

fn region() -> MemoryRegion {
    MemoryRegion { guest_address: 0, size: MEMORY, user_address: USER, ..MemoryRegion::default() }
}

fn config(offset: u32, data: &[u8]) -> ConfigSpace {
    ConfigSpace { offset, flags: 0, data: data.to_vec() }
}

fn file() -> OwnedFd {
    File::open("/dev/null").unwrap().into()
}

fn kick(index: u8) -> R {
    R::SetVringKick { index, fd: Some(event()) }
}

/// Each request to the client that `make` makes: refused with these words, and the connection goes on, or not.
fn are_refused(make: fn() -> Client, goes_on: bool, table: Vec<(R, &str)>) {
    for (request, expected) in table {
        let mut client = make();
        let taken = client.ask(&request);
        assert!(matches!(taken, Taken::Refused | Taken::Ended), "{request}: {taken:?}");
        let words = client.words(&taken);
        assert!(words.contains(&request.name().to_string()), "{request}: {words}");
        assert!(words.contains(expected), "{request}: {words}");
        assert_eq!(goes_on && client.works_on(), goes_on, "{request}");
    }
}

#[test]
fn values_that_cannot_be_end_the_connection() {
    let table = vec![
        (R::SetFeatures(FEATURES | 1 << 5), "features 0x100000020, must be bits out of"),
        (R::SetFeatures(1 << 5), "0x20 was not offered"),
        (R::SetProtocolFeatures(1 << 40), "0x10000000000 was not offered"),
        (R::SetVringNum(state(0, 0)), "queue size 0x0, must be 1 to 16"),
        (R::SetVringNum(state(0, u32::from(QUEUE_SIZE) + 1)), "queue size 0x11, must be 1 to 16"),
        (R::SetVringNum(state(0, 0x10001)), "queue size 0x10001, must be 1 to 16"),
        (R::SetVringNum(state(2, 8)), "queue 0x2, must be below 2"),
        (R::SetVringBase(state(0, 0x10000)), "base 0x10000"),
        (R::SetVringBase(state(9, 0)), "queue 0x9, must be below 2"),
        (R::SetVringAddr(address(2)), "queue 0x2, must be below 2"),
        (kick(2), "queue 0x2, must be below 2"),
        (R::SetVringCall { index: 2, fd: None }, "queue 0x2, must be below 2"),
        (R::SetVringErr { index: 2, fd: None }, "queue 0x2, must be below 2"),
        (R::SetVringEnable { index: u32::MAX, enable: true }, "queue 0xffffffff, must be below 2"),
        (R::GetVringBase { index: 2 }, "queue 0x2, must be below 2"),
    ];
    are_refused(Client::ready, false, table);
}

#[test]
fn what_cannot_be_done_is_refused_and_the_connection_goes_on() {
    let other = MemoryRegion { guest_address: MEMORY, user_address: USER + MEMORY, ..region() };
    let outside = config(CONFIG.len() as u32 - 1, b"ab");
    let table = vec![
        (R::SetVringKick { index: 0, fd: None }, "queue 0 has no kick eventfd, and is not polled"),
        (R::SetVringKick { index: 0, fd: Some(file()) }, "the kick of queue 0 cannot be watched"),
        (R::RemMemReg(other), "no region of 0x10000 bytes at guest address 0x10000"),
        (R::RemMemReg(MemoryRegion { size: 0x1000, ..region() }), "no region of 0x1000 bytes"),
        (R::AddMemReg { region: region(), fd: file() }, "region at 0x0"),
        (R::SetMemTable(vec![(region(), file())]), "region at 0x0"),
        (R::SetConfig(outside), "2 bytes at offset 12 do not lie inside the config space of 13 bytes"),
        (R::SetConfig(config(1000, b"a")), "1 bytes at offset 1000"),
        (R::SendRarp(0), "is not supported here"),
        (R::SetLogFd(file()), "is not supported here"),
    ];
    are_refused(Client::ready, true, table);
}

#[test]
fn what_is_not_offered_and_has_an_answer_of_its_own_ends_the_connection() {
    let log = || LogArea { size: 0x1000, offset: 0 };
    are_refused(
        Client::ready,
        false,
        vec![(R::SetLogBase { log: log(), fd: file() }, "is not supported here")],
    );
}

#[test]
fn a_request_whose_protocol_feature_was_not_agreed_on_is_refused() {
    fn acknowledging() -> Client {
        Client::new(ProtocolFeatures::REPLY_ACK)
    }
    let refused = vec![
        (R::SetConfig(config(0, b"a")), "CONFIG"),
        (R::AddMemReg { region: region(), fd: file() }, "CONFIGURE_MEM_SLOTS"),
        (R::RemMemReg(region()), "CONFIGURE_MEM_SLOTS"),
        (R::SetBackendReqFd(event()), "BACKEND_REQ"),
        (R::SetStatus(1), "STATUS"),
        (R::ResetDevice, "RESET_DEVICE"),
    ];
    are_refused(acknowledging, true, refused);
    let ended = vec![
        (R::GetConfig(config(0, &[0; 4])), "CONFIG"),
        (R::GetQueueNum, "MQ"),
        (R::GetMaxMemSlots, "CONFIGURE_MEM_SLOTS"),
        (R::GetStatus, "STATUS"),
    ];
    are_refused(acknowledging, false, ended);
}

#[test]
fn a_running_ring_is_not_changed() {
    let moved = VringAddress { used: USER + USED + 0x1000, ..address(0) };
    let table = vec![
        (R::SetVringNum(state(0, 8)), "queue 0 is started; stop it first"),
        (R::SetVringBase(state(0, 0)), "queue 0 is started; stop it first"),
        (R::SetVringAddr(moved), "queue 0 runs, and cannot be moved"),
    ];
    are_refused(Client::running, true, table);
    // QEMU says the same address again when it turns the dirty log on.
    let mut client = Client::running();
    assert_eq!(client.ask(&R::SetVringAddr(address(0))), Taken::Done);
    client.submit();
    client.wait_for_answer();
}

#[test]
fn a_ring_that_cannot_start_stays_as_it_was_and_can_be_set_up_again() {
    let mut client = Client::ready();
    let enable = R::SetVringEnable { index: 0, enable: true };
    assert_eq!(client.ask(&enable), Taken::Done);
    assert_eq!(client.ask(&kick(0)), Taken::Refused);
    assert!(client.words(&Taken::Refused).contains("queue 0 is started without SET_VRING_ADDR"));
    let nowhere = VringAddress { descriptors: 0x1234_0000, ..address(0) };
    assert_eq!(client.ask(&R::SetVringAddr(nowhere)), Taken::Done);
    assert_eq!(client.ask(&kick(0)), Taken::Refused);
    let words = client.words(&Taken::Refused);
    assert!(
        words.contains("the descriptor table at user address 0x12340000 is not in the memory table"),
        "{words}"
    );
    client.start();
    assert_eq!(client.served.event(), Event::Activate);
    client.submit();
    client.wait_for_answer();
}

#[test]
fn a_disabled_ring_is_not_served_until_it_is_enabled_again() {
    let mut client = Client::running();
    client.submit();
    client.wait_for_answer();
    assert_eq!(client.ask(&R::SetVringEnable { index: 0, enable: false }), Taken::Done);
    client.submit();
    // The kick was there before the question, whose answer says that both have been looked at.
    assert!(client.works_on());
    assert!(client.works_on());
    assert_eq!(client.used(), 1);
    assert_eq!(client.ask(&R::SetVringEnable { index: 0, enable: true }), Taken::Done);
    client.wait_for_answer();
    assert_eq!(client.ask(&R::GetVringBase { index: 0 }), Taken::Said("queue 0: 2".into()));
}

/// A request that resets everything: the device hears of it, and the ring is to be set up anew.
fn everything_is_reset_by(request: &R) {
    let mut client = Client::running();
    assert_eq!(client.ask(&R::SetStatus(15)), Taken::Done);
    client.submit();
    client.wait_for_answer();
    assert_eq!(client.ask(request), Taken::Done);
    assert_eq!(client.served.event(), Event::Reset);
    assert_eq!(client.status(), Status::empty());
    assert!(!client.served.control.queues[0].is_started());
    client.start();
    assert_eq!(client.served.event(), Event::Activate);
    client.submit();
    client.wait_for_answer();
}

#[test]
fn a_status_of_zero_resets() {
    everything_is_reset_by(&R::SetStatus(0));
}

#[test]
fn reset_device_resets() {
    everything_is_reset_by(&R::ResetDevice);
}

#[test]
fn the_status_is_kept_and_given_back() {
    let mut client = Client::ready();
    assert_eq!(client.status(), Status::empty());
    assert_eq!(client.ask(&R::SetStatus(11)), Taken::Done);
    assert_eq!(client.status(), Status::ACKNOWLEDGE | Status::DRIVER | Status::FEATURES_OK);
}

#[test]
fn a_running_ring_goes_on_in_a_table_that_has_it_at_another_place() {
    let mut client = Client::running();
    client.submit();
    client.wait_for_answer();
    let copy = memfd_create("copy", MemfdFlags::CLOEXEC).unwrap();
    let mut content = vec![0; MEMORY as usize];
    pread(&client.memory, &mut content, 0).unwrap();
    pwrite(&copy, &content, 0).unwrap();
    // The next request is in the new memory only.
    client.memory = copy;
    let table = R::SetMemTable(vec![(region(), client.memory.try_clone().unwrap())]);
    assert_eq!(client.ask(&table), Taken::Done);
    client.submit();
    client.wait_for_answer();
}

#[test]
fn a_running_ring_that_the_new_table_has_not_stops_and_the_status_says_so() {
    let mut client = Client::running();
    assert_eq!(client.ask(&R::RemMemReg(region())), Taken::Done);
    let Event::Warning(words) = client.served.event() else { panic!("nothing was said") };
    assert!(words.contains("queue 0 stops"), "{words}");
    assert_eq!(client.status(), Status::DEVICE_NEEDS_RESET);
    // A driver that goes on as if nothing were does not take it back; a reset does.
    assert_eq!(client.ask(&R::SetStatus(15)), Taken::Done);
    assert!(client.status().contains(Status::DEVICE_NEEDS_RESET));
    assert_eq!(client.ask(&R::SetStatus(0)), Taken::Done);
    assert_eq!(client.status(), Status::empty());
}

#[test]
fn a_refused_table_leaves_the_old_one_in_force() {
    let mut client = Client::running();
    assert_eq!(client.ask(&R::SetMemTable(vec![(region(), file())])), Taken::Refused);
    client.submit();
    client.wait_for_answer();
}

#[test]
fn a_configuration_that_is_read_beyond_its_end_is_zero_there() {
    let mut client = Client::ready();
    let Taken::Said(words) = client.ask(&R::GetConfig(config(8, &[0; 8]))) else { panic!("no answer") };
    assert_eq!(words, "at 8 8 bytes: 61 74 69 6f 6e 00 00 00");
}
