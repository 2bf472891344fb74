//! Our frontend drives rust-vmm's backend: what `vhost` decodes is what we meant.

use std::{
    fs::File,
    io::Write,
    net::Shutdown,
    os::{
        fd::{AsFd, OwnedFd},
        unix::net::UnixStream,
    },
    sync::{Arc, Mutex},
    thread::{self, JoinHandle},
    time::Duration,
};

use proptest::{collection::vec, prelude::*, sample::Index};
use rustix::{
    event::{EventfdFlags, eventfd},
    fs::{MemfdFlags, fstat, ftruncate, memfd_create},
};
use vhost::{
    VhostUserMemoryRegionBase,
    vhost_user::{
        Backend, BackendReqHandler, Error, GpuBackend, Result as VhostResult, VhostUserBackendReqHandlerMut,
        message::{
            VhostTransferStateDirection, VhostTransferStatePhase, VhostUserConfigFlags, VhostUserInflight,
            VhostUserLog, VhostUserMemoryRegion, VhostUserProtocolFeatures, VhostUserShMemConfig,
            VhostUserSharedMsg, VhostUserSingleMemoryRegion, VhostUserVringAddrFlags, VhostUserVringState,
        },
    },
};
use xenvirt_core::vhost_user::{
    Frontend, FrontendCode, FrontendError, Header, MemoryRegion, Patience, ProtocolFeatures, RequestName,
    RingSetup, XenMapFlags, virtio_features,
};

const FEATURES: u64 = virtio_features::VERSION_1 | virtio_features::EVENT_IDX | 0xf;

/// A backend that notes down what rust-vmm made of our messages.
#[derive(Default)]
struct Recorder {
    calls: Vec<String>,
    config: Vec<u8>,
    protocol_features: Option<VhostUserProtocolFeatures>,
    refuse_enable: bool,
    features: Option<u64>,
}

impl Recorder {
    fn note(&mut self, call: String) -> VhostResult<()> {
        self.calls.push(call);
        Ok(())
    }
}

fn eventfd_or_none(fd: &Option<File>) -> &'static str {
    if fd.is_some() { "file" } else { "none" }
}

impl VhostUserBackendReqHandlerMut for Recorder {
    fn set_owner(&mut self) -> VhostResult<()> {
        self.note("owner".into())
    }
    fn reset_owner(&mut self) -> VhostResult<()> {
        self.note("reset owner".into())
    }
    fn reset_device(&mut self) -> VhostResult<()> {
        self.note("reset".into())
    }
    fn get_features(&mut self) -> VhostResult<u64> {
        Ok(self.features.unwrap_or(FEATURES | virtio_features::PROTOCOL_FEATURES))
    }
    fn set_features(&mut self, features: u64) -> VhostResult<()> {
        self.note(format!("features {features:#x}"))
    }
    fn set_mem_table(
        &mut self,
        regions: &[VhostUserMemoryRegion],
        files: Vec<File>,
        _postcopy: Option<bool>,
    ) -> VhostResult<Option<Vec<VhostUserMemoryRegionBase>>> {
        for (region, file) in regions.iter().zip(files) {
            let VhostUserMemoryRegion { guest_phys_addr, memory_size, user_addr, mmap_offset } = *region;
            let size = fstat(&file).unwrap().st_size;
            self.note(format!(
                "region {guest_phys_addr:#x} {memory_size:#x} {user_addr:#x} {mmap_offset:#x} of {size:#x}"
            ))?;
        }
        Ok(None)
    }
    fn set_vring_num(&mut self, index: u32, num: u32) -> VhostResult<()> {
        self.note(format!("num {index} {num}"))
    }
    fn set_vring_addr(
        &mut self,
        index: u32,
        flags: VhostUserVringAddrFlags,
        descriptor: u64,
        used: u64,
        available: u64,
        log: u64,
    ) -> VhostResult<()> {
        self.note(format!(
            "addr {index} {:#x} {descriptor:#x} {used:#x} {available:#x} {log:#x}",
            flags.bits()
        ))
    }
    fn set_vring_base(&mut self, index: u32, base: u32) -> VhostResult<()> {
        self.note(format!("base {index} {base}"))
    }
    fn get_vring_base(&mut self, index: u32) -> VhostResult<VhostUserVringState> {
        Ok(VhostUserVringState::new(index, 17))
    }
    fn set_vring_kick(&mut self, index: u8, fd: Option<File>) -> VhostResult<()> {
        self.note(format!("kick {index} {}", eventfd_or_none(&fd)))
    }
    fn set_vring_call(&mut self, index: u8, fd: Option<File>) -> VhostResult<()> {
        self.note(format!("call {index} {}", eventfd_or_none(&fd)))
    }
    fn set_vring_err(&mut self, index: u8, fd: Option<File>) -> VhostResult<()> {
        self.note(format!("err {index} {}", eventfd_or_none(&fd)))
    }
    fn get_protocol_features(&mut self) -> VhostResult<VhostUserProtocolFeatures> {
        Ok(self.protocol_features.unwrap_or(VhostUserProtocolFeatures::all()))
    }
    fn set_protocol_features(&mut self, features: u64) -> VhostResult<()> {
        self.note(format!("protocol features {features:#x}"))
    }
    fn get_queue_num(&mut self) -> VhostResult<u64> {
        Ok(3)
    }
    fn set_vring_enable(&mut self, index: u32, enable: bool) -> VhostResult<()> {
        if self.refuse_enable {
            return Err(Error::InvalidOperation("this one never"));
        }
        self.note(format!("enable {index} {enable}"))
    }
    fn get_config(&mut self, offset: u32, size: u32, _flags: VhostUserConfigFlags) -> VhostResult<Vec<u8>> {
        self.note(format!("config {offset} {size}"))?;
        self.config
            .get(offset as usize..(offset + size) as usize)
            .map(<[u8]>::to_vec)
            .ok_or(Error::InvalidOperation("beyond the end"))
    }
    fn set_config(&mut self, offset: u32, data: &[u8], flags: VhostUserConfigFlags) -> VhostResult<()> {
        self.note(format!("set config {offset} {data:?} {:#x}", flags.bits()))
    }
    fn set_backend_req_fd(&mut self, _backend: Backend) {
        self.calls.push("reverse channel".into());
    }
    fn set_gpu_socket(&mut self, _backend: GpuBackend) -> VhostResult<()> {
        Ok(())
    }
    fn get_shared_object(&mut self, _uuid: VhostUserSharedMsg) -> VhostResult<File> {
        Err(Error::InvalidOperation("no objects"))
    }
    fn get_inflight_fd(&mut self, _inflight: &VhostUserInflight) -> VhostResult<(VhostUserInflight, File)> {
        Err(Error::InvalidOperation("no inflight"))
    }
    fn set_inflight_fd(&mut self, _inflight: &VhostUserInflight, _file: File) -> VhostResult<()> {
        Ok(())
    }
    fn get_max_mem_slots(&mut self) -> VhostResult<u64> {
        Ok(509)
    }
    fn add_mem_region(
        &mut self,
        region: &VhostUserSingleMemoryRegion,
        _fd: File,
        _postcopy: Option<bool>,
    ) -> VhostResult<Option<VhostUserMemoryRegionBase>> {
        self.note(format!("add {:#x}", { region.guest_phys_addr }))?;
        Ok(None)
    }
    fn remove_mem_region(&mut self, region: &VhostUserSingleMemoryRegion) -> VhostResult<()> {
        self.note(format!("remove {:#x}", { region.guest_phys_addr }))
    }
    fn set_device_state_fd(
        &mut self,
        _direction: VhostTransferStateDirection,
        _phase: VhostTransferStatePhase,
        _fd: File,
    ) -> VhostResult<Option<File>> {
        Ok(None)
    }
    fn check_device_state(&mut self) -> VhostResult<()> {
        Ok(())
    }
    fn get_shmem_config(&mut self) -> VhostResult<VhostUserShMemConfig> {
        Ok(VhostUserShMemConfig::default())
    }
    fn set_log_base(&mut self, _log: &VhostUserLog, _file: File) -> VhostResult<()> {
        Ok(())
    }
}

/// rust-vmm's backend in a thread; it serves until an error or the end.
struct Peer {
    recorder: Arc<Mutex<Recorder>>,
    thread: JoinHandle<Error>,
}

impl Peer {
    fn start(recorder: Recorder) -> (Self, Frontend) {
        let (ours, theirs) = UnixStream::pair().unwrap();
        let recorder = Arc::new(Mutex::new(recorder));
        let mut handler = BackendReqHandler::from_stream(theirs, Arc::clone(&recorder));
        let thread = thread::spawn(move || {
            loop {
                if let Err(error) = handler.handle_request() {
                    return error;
                }
            }
        });
        (Self { recorder, thread }, Frontend::over(ours.into(), Patience::new(Duration::from_secs(20))))
    }

    fn calls(&self) -> Vec<String> {
        std::mem::take(&mut self.recorder.lock().unwrap().calls)
    }

    fn end(self, frontend: Frontend) -> Error {
        drop(frontend);
        self.thread.join().unwrap()
    }
}

fn negotiated(recorder: Recorder) -> (Peer, Frontend) {
    let (peer, mut frontend) = Peer::start(recorder);
    frontend.negotiate(Frontend::PROTOCOL_FEATURES - ProtocolFeatures::XEN_MMAP).unwrap();
    peer.calls();
    (peer, frontend)
}

/// What rust-vmm's crate can do but XEN_MMAP, for which it must be built otherwise.
fn plain() -> Recorder {
    let protocol_features = VhostUserProtocolFeatures::all() - VhostUserProtocolFeatures::XEN_MMAP;
    Recorder { protocol_features: Some(protocol_features), ..Recorder::default() }
}

fn memory(size: u64) -> OwnedFd {
    let fd = memfd_create("test", MemfdFlags::CLOEXEC).unwrap();
    ftruncate(&fd, size).unwrap();
    fd
}

fn region(guest_address: u64) -> MemoryRegion {
    MemoryRegion {
        guest_address,
        size: 0x10000,
        user_address: 0x7000_0000 + guest_address,
        ..MemoryRegion::default()
    }
}

#[test]
fn negotiation_acks_what_both_sides_know_and_asks_only_then() {
    let (peer, mut frontend) = Peer::start(plain());
    frontend.negotiate(Frontend::PROTOCOL_FEATURES).unwrap();
    let acked = Frontend::PROTOCOL_FEATURES - ProtocolFeatures::XEN_MMAP;
    assert_eq!(frontend.protocol_features(), acked);
    assert_eq!(frontend.queue_count(), Some(3));
    assert_eq!(frontend.offered_features(), FEATURES);
    let calls = peer.calls();
    assert_eq!(calls, ["owner", &format!("protocol features {:#x}", acked.bits()), "reverse channel"]);
    frontend.set_features(virtio_features::VERSION_1).unwrap();
    assert_eq!(peer.calls(), ["features 0x140000000"]);
    assert_eq!(frontend.features(), virtio_features::VERSION_1);
    assert!(matches!(peer.end(frontend), Error::Disconnected));
}

#[test]
fn a_peer_without_protocol_features_is_taken_as_it_is() {
    let (peer, mut frontend) = Peer::start(Recorder { features: Some(FEATURES), ..Recorder::default() });
    frontend.negotiate(Frontend::PROTOCOL_FEATURES).unwrap();
    assert_eq!((frontend.protocol_features(), frontend.queue_count()), (ProtocolFeatures::empty(), None));
    frontend.set_features(virtio_features::VERSION_1).unwrap();
    frontend.enable_ring(0, true).unwrap();
    assert_eq!(peer.calls(), ["owner", "features 0x100000000"]);
}

#[test]
fn not_acking_xen_mmap_to_a_peer_that_offers_it_is_refused_before_it_is_sent() {
    let (peer, mut frontend) = Peer::start(Recorder::default());
    let error = frontend.negotiate(ProtocolFeatures::MQ | ProtocolFeatures::CONFIG).unwrap_err();
    assert!(matches!(error, FrontendError::XenMmapNeeded { .. }));
    assert!(error.to_string().contains("XEN_MMAP") && error.to_string().contains("MQ | CONFIG"), "{error}");
    assert_eq!(peer.calls(), ["owner"]);
}

#[test]
fn memory_and_rings_arrive_as_they_were_meant() {
    let (peer, mut frontend) = negotiated(plain());
    let file = memory(0x20000);
    let second = MemoryRegion { mmap_offset: 0x10000, ..region(0x10000) };
    frontend.set_memory(&[(region(0), file.as_fd()), (second, file.as_fd())]).unwrap();
    assert_eq!(
        peer.calls(),
        [
            "region 0x0 0x10000 0x70000000 0x0 of 0x20000",
            "region 0x10000 0x10000 0x70010000 0x10000 of 0x20000"
        ]
    );
    let event = eventfd(0, EventfdFlags::CLOEXEC).unwrap();
    frontend.set_features(virtio_features::VERSION_1).unwrap();
    peer.calls();
    let ring = RingSetup {
        index: 2,
        size: 128,
        descriptors: 0x1000,
        available: 0x1800,
        used: 0x12000,
        base: 5,
        kick: Some(event.as_fd()),
        call: None,
        err: Some(event.as_fd()),
    };
    frontend.set_ring(&ring).unwrap();
    frontend.enable_ring(2, true).unwrap();
    assert_eq!(
        peer.calls(),
        [
            "num 2 128",
            "addr 2 0x0 0x70001000 0x70012000 0x70001800 0x0",
            "base 2 5",
            "call 2 none",
            "err 2 file",
            "kick 2 file",
            "enable 2 true"
        ]
    );
    assert_eq!(frontend.stop_ring(2).unwrap(), 17);
    let outside = frontend.set_ring(&RingSetup { used: 0x20000, ..ring }).unwrap_err();
    assert!(outside.to_string().contains("used ring 0x20000, must be in one of the 2 regions"), "{outside}");
}

#[test]
fn memory_slots_come_and_go() {
    let (peer, mut frontend) = negotiated(plain());
    assert_eq!(frontend.max_memory_slots().unwrap(), 509);
    let file = memory(0x10000);
    frontend.add_region(&region(0x5000), file.as_fd()).unwrap();
    frontend.remove_region(&region(0x5000)).unwrap();
    assert_eq!(peer.calls(), ["add 0x5000", "remove 0x5000"]);
}

#[test]
fn config_space_is_read_from_its_beginning_and_a_refusal_is_told() {
    let (peer, mut frontend) = negotiated(Recorder { config: (0..16).collect(), ..plain() });
    assert_eq!(frontend.config(4, 2).unwrap(), [4, 5]);
    assert_eq!(peer.calls(), ["config 0 6"]);
    let error = frontend.config(0, 17).unwrap_err();
    assert!(matches!(error, FrontendError::Refused { .. }), "{error}");
    frontend.set_config(8, &[1, 2, 3]).unwrap();
    assert_eq!(peer.calls()[1..], ["set config 8 [1, 2, 3] 0x0"]);
}

#[test]
fn a_refused_request_names_itself_whether_or_not_the_peer_lives_on() {
    let (peer, mut frontend) = negotiated(Recorder { refuse_enable: true, ..plain() });
    frontend.set_features(virtio_features::VERSION_1).unwrap();
    let error = frontend.enable_ring(0, true).unwrap_err();
    assert_eq!(error.to_string(), "the peer refused SET_VRING_ENABLE (it answered 0x1)");
    peer.thread.join().unwrap();
    let error = frontend.reset_device().unwrap_err();
    assert!(matches!(error, FrontendError::Closed { .. }), "{error}");
    let error = frontend.reset_device().unwrap_err();
    assert!(matches!(error, FrontendError::Ended(_)), "{error}");
}

#[test]
fn without_acknowledgements_a_barrier_finds_the_error_and_names_the_suspects() {
    let (_peer, mut frontend) = Peer::start(Recorder { refuse_enable: true, ..plain() });
    frontend.negotiate(ProtocolFeatures::MQ | ProtocolFeatures::CONFIG).unwrap();
    frontend.set_features(virtio_features::VERSION_1).unwrap();
    let error = frontend.enable_ring(0, true).unwrap_err().to_string();
    assert!(error.contains("SET_VRING_ENABLE, GET_FEATURES"), "{error}");
    assert!(frontend.wire_log().lines().iter().any(|line| line.ends_with("-> SET_VRING_ENABLE queue 0: on")));
}

#[test]
fn what_was_not_negotiated_is_not_sent() {
    let (peer, mut frontend) = Peer::start(Recorder::default());
    frontend.negotiate(ProtocolFeatures::XEN_MMAP | ProtocolFeatures::REPLY_ACK).unwrap();
    frontend.set_features(virtio_features::VERSION_1).unwrap(); // acknowledged: the peer is done with all before it
    peer.calls();
    let error = frontend.config(0, 4).unwrap_err().to_string();
    assert_eq!(error, "GET_CONFIG needs the protocol feature CONFIG, which was not acked");
    assert!(frontend.set_features(1 << 50).unwrap_err().to_string().contains("not offered: 0x4000000000000"));
    assert_eq!(peer.calls(), [""; 0]);
}

#[test]
fn xen_flags_need_the_long_format() {
    let (_peer, mut frontend) = negotiated(plain());
    let file = memory(0x10000);
    let foreign = MemoryRegion { xen_flags: XenMapFlags::FOREIGN, xen_domain: 3, ..region(0) };
    let error = frontend.set_memory(&[(foreign, file.as_fd())]).unwrap_err();
    assert_eq!(error.to_string(), "Xen mapping flags 0x1, must be 0 where XEN_MMAP was not acked");
}

#[test]
fn raw_messages_reach_the_peer_as_they_are() {
    let (peer, mut frontend) = negotiated(plain());
    let get = RequestName::from(FrontendCode::GetQueueNum);
    frontend.send_raw(Header::request(17, 0, false), &[], &[]).unwrap();
    assert_eq!(frontend.receive_raw(get).unwrap().payload, 3u64.to_ne_bytes());
    assert!(!frontend.closed_within(Duration::ZERO).unwrap());
    frontend.send_raw(Header::request(17, 5, false), b"extra", &[]).unwrap();
    assert!(frontend.closed_within(Duration::from_secs(20)).unwrap());
    assert!(matches!(peer.thread.join().unwrap(), Error::InvalidMessage));
    assert!(
        frontend
            .wire_log()
            .lines()
            .iter()
            .any(|line| line.contains("raw: GET_QUEUE_NUM 5 bytes: 65 78 74 72 61"))
    );
}

/// What a backend answers to a negotiation and a configuration read, one reply after the other.
fn answers() -> Vec<u8> {
    let acked = (Frontend::PROTOCOL_FEATURES - ProtocolFeatures::XEN_MMAP).bits();
    let number =
        |request: u32, value: u64| [&Header::reply(request, 8).to_bytes()[..], &value.to_ne_bytes()].concat();
    let config = [&Header::reply(24, 16).to_bytes()[..], &[0; 4], &[4, 0, 0, 0], &[0; 4], b"data"].concat();
    let features = FEATURES | virtio_features::PROTOCOL_FEATURES;
    [number(1, features), number(15, acked), number(17, 2), number(21, 0), number(2, 0), config].concat()
}

fn listens_to(answers: &[u8]) -> Vec<Result<(), FrontendError>> {
    let (ours, mut theirs) = UnixStream::pair().unwrap();
    theirs.write_all(answers).unwrap();
    theirs.shutdown(Shutdown::Write).unwrap();
    let mut frontend = Frontend::over(ours.into(), Patience::new(Duration::from_secs(20)));
    let negotiated = frontend.negotiate(Frontend::PROTOCOL_FEATURES);
    let settled = frontend.set_features(virtio_features::VERSION_1);
    vec![negotiated, settled, frontend.config(0, 4).map(drop), frontend.stop_ring(0).map(drop)]
}

#[test]
fn the_answers_of_the_next_test_are_good_ones_before_they_are_changed() {
    let results = listens_to(&answers());
    assert!(results[..3].iter().all(Result::is_ok), "{results:?}");
    assert!(matches!(results[3], Err(FrontendError::Closed { .. })), "{results:?}");
}

proptest! {
    #[test]
    fn a_backend_that_answers_anything_gives_errors_and_nothing_worse(
        changes in vec((any::<Index>(), any::<u8>()), 0..6),
        cut in proptest::option::of(any::<Index>()),
        more in vec(any::<u8>(), 0..40),
    ) {
        let mut bytes = answers();
        changes.iter().for_each(|(at, value)| *at.get_mut(&mut bytes) = *value);
        if let Some(cut) = cut {
            bytes.truncate(cut.index(bytes.len()));
        }
        bytes.extend(more);
        let results = listens_to(&bytes);
        let late = results.iter().any(|result| matches!(result, Err(FrontendError::Timeout { .. })));
        prop_assert!(!late, "{:?}", results);
        prop_assert!(results[3].is_err());
    }
}
