//! rust-vmm's frontend drives our backend, and its mock driver fills the rings that we serve.

use std::{
    fs::File,
    os::{
        fd::{AsRawFd, OwnedFd},
        unix::net::UnixStream,
    },
    sync::{
        Arc,
        mpsc::{Sender, channel},
    },
};

use rustix::fs::{MemfdFlags, ftruncate, memfd_create};
use vhost::{
    VhostBackend, VhostUserMemoryRegionInfo, VringConfigData,
    vhost_user::{
        Frontend, FrontendReqHandler, HandlerResult, VhostUserFrontend, VhostUserFrontendReqHandler,
        message::{VhostUserConfigFlags, VhostUserHeaderFlag, VhostUserProtocolFeatures},
    },
};
use virtio_queue::{
    desc::{RawDescriptor, split::Descriptor},
    mock::MockSplitQueue,
};
use vm_memory::{
    Address, Bytes, FileOffset, GuestAddress, GuestMemoryBackend, GuestMemoryMmap, GuestRegionMmap,
    MmapRegion,
};
use vmm_sys_util::{
    epoll::{ControlOperation, Epoll, EpollEvent, EventSet},
    eventfd::{EFD_CLOEXEC, EventFd},
};
use xenvirt_core::{endpoint::Event, vhost_user::virtio_features};

mod served;

use served::{FEATURES, PATIENCE, QUEUE_SIZE, Served};

const MEMORY: usize = 0x20_0000;
const DATA: u64 = 0x10_0000;

/// rust-vmm's end: the frontend, and memory that both share.
struct Driver {
    frontend: Frontend,
    memory: GuestMemoryMmap,
}

fn shared_memory() -> GuestMemoryMmap {
    let file: OwnedFd = memfd_create("guest", MemfdFlags::CLOEXEC).unwrap();
    ftruncate(&file, MEMORY as u64).unwrap();
    let region = MmapRegion::from_file(FileOffset::new(File::from(file), 0), MEMORY).unwrap();
    GuestMemoryMmap::from_regions(vec![GuestRegionMmap::new(region, GuestAddress(0)).unwrap()]).unwrap()
}

fn pair() -> (Driver, Served) {
    let (ours, theirs) = UnixStream::pair().unwrap();
    (
        Driver { frontend: Frontend::from_stream(theirs, 2), memory: shared_memory() },
        Served::connection(ours.into()),
    )
}

impl Driver {
    /// All that a frontend says before the rings.
    fn negotiate(&mut self, protocol: VhostUserProtocolFeatures) {
        self.frontend.set_owner().unwrap();
        let features = self.frontend.get_features().unwrap();
        assert_eq!(features & FEATURES, FEATURES);
        let offered = self.frontend.get_protocol_features().unwrap();
        assert!(offered.contains(protocol), "{offered:?}");
        self.frontend.set_protocol_features(protocol).unwrap();
        if protocol.contains(VhostUserProtocolFeatures::REPLY_ACK) {
            self.frontend.set_hdr_flags(VhostUserHeaderFlag::NEED_REPLY);
        }
        self.frontend.set_features(FEATURES | virtio_features::PROTOCOL_FEATURES).unwrap();
    }

    fn region(&self) -> VhostUserMemoryRegionInfo {
        VhostUserMemoryRegionInfo::from_guest_region(self.memory.iter().next().unwrap()).unwrap()
    }

    fn start_queue(
        &mut self,
        index: usize,
        queue: &MockSplitQueue<'_, GuestMemoryMmap>,
        kick: &EventFd,
        call: &EventFd,
    ) {
        let user = |address: GuestAddress| self.memory.get_host_address(address).unwrap() as u64;
        let config = VringConfigData {
            queue_max_size: QUEUE_SIZE,
            queue_size: QUEUE_SIZE,
            flags: 0,
            desc_table_addr: user(queue.desc_table_addr()),
            used_ring_addr: user(queue.used_addr()),
            avail_ring_addr: user(queue.avail_addr()),
            log_addr: None,
        };
        self.frontend.set_vring_num(index, QUEUE_SIZE).unwrap();
        self.frontend.set_vring_addr(index, &config).unwrap();
        self.frontend.set_vring_base(index, 0).unwrap();
        self.frontend.set_vring_call(index, call).unwrap();
        self.frontend.set_vring_kick(index, kick).unwrap();
        self.frontend.set_vring_enable(index, true).unwrap();
    }
}

fn wait_for(event: &EventFd) {
    let epoll = Epoll::new().unwrap();
    epoll.ctl(ControlOperation::Add, event.as_raw_fd(), EpollEvent::new(EventSet::IN, 0)).unwrap();
    let count = epoll.wait(PATIENCE.as_millis() as i32, &mut [EpollEvent::default()]).unwrap();
    assert_eq!(count, 1, "no call came");
    event.read().unwrap();
}

fn eventfd() -> EventFd {
    EventFd::new(EFD_CLOEXEC).unwrap()
}

fn everything() -> VhostUserProtocolFeatures {
    use VhostUserProtocolFeatures as P;
    P::MQ | P::REPLY_ACK | P::CONFIG | P::BACKEND_REQ | P::CONFIGURE_MEM_SLOTS | P::RESET_DEVICE
}

/// One request through a queue: the bytes come back reversed.
fn request(
    driver: &Driver,
    queue: &MockSplitQueue<'_, GuestMemoryMmap>,
    kick: &EventFd,
    call: &EventFd,
    nth: u16,
) {
    let data = format!("request {nth}").into_bytes();
    let (from, to) = (GuestAddress(DATA), GuestAddress(DATA + 0x1000));
    driver.memory.write_slice(&data, from).unwrap();
    let len = data.len() as u32;
    let chain = [
        RawDescriptor::from(Descriptor::new(from.raw_value(), len, 1, (nth * 2 % QUEUE_SIZE) + 1)),
        RawDescriptor::from(Descriptor::new(to.raw_value(), len, 2, 0)),
    ];
    queue.add_desc_chains(&chain, nth * 2 % QUEUE_SIZE).unwrap();
    kick.write(1).unwrap();
    wait_for(call);
    assert_eq!(u16::from_le(queue.used().idx().load()), nth + 1);
    let used = queue.used().ring().ref_at(usize::from(nth)).unwrap().load();
    assert_eq!((used.id(), used.len()), (u32::from(nth * 2 % QUEUE_SIZE), len));
    let mut answer = vec![0; data.len()];
    driver.memory.read_slice(&mut answer, to).unwrap();
    answer.reverse();
    assert_eq!(answer, data);
}

fn requests_are_served(protocol: VhostUserProtocolFeatures) {
    let (mut driver, served) = pair();
    driver.negotiate(protocol);
    driver.frontend.set_mem_table(&[driver.region()]).unwrap();
    let memory = driver.memory.clone();
    let queue = MockSplitQueue::new(&memory, QUEUE_SIZE);
    let (kick, call) = (eventfd(), eventfd());
    driver.start_queue(1, &queue, &kick, &call);
    assert_eq!(served.event(), Event::Activate);
    for nth in 0..8 {
        request(&driver, &queue, &kick, &call, nth);
    }
    assert_eq!(driver.frontend.get_vring_base(1).unwrap(), 8);
    assert_eq!(served.event(), Event::Reset);
    drop(driver);
    assert_eq!(served.event(), Event::Disconnected(None));
}

#[test]
fn requests_through_rust_vmms_rings_are_served() {
    requests_are_served(everything());
}

#[test]
fn and_they_are_without_acknowledgements() {
    requests_are_served(VhostUserProtocolFeatures::MQ);
}

#[test]
fn what_rust_vmm_asks_is_answered_as_it_wants_it() {
    let (mut driver, _served) = pair();
    driver.negotiate(everything());
    assert_eq!(driver.frontend.get_queue_num().unwrap(), 2);
    assert!(driver.frontend.get_max_mem_slots().unwrap() >= 32);
    let flags = VhostUserConfigFlags::empty();
    let (_, config) = driver.frontend.get_config(0, 13, flags, &[0; 13]).unwrap();
    assert_eq!(config, b"configuration");
    driver.frontend.set_config(3, flags, b"FIG").unwrap();
    let (_, config) = driver.frontend.get_config(0, 13, flags, &[0; 13]).unwrap();
    assert_eq!(config, b"conFIGuration");
    driver.frontend.reset_device().unwrap();
}

#[test]
fn memory_slots_of_rust_vmm_are_mapped_and_unmapped() {
    let (mut driver, served) = pair();
    driver.negotiate(everything());
    driver.frontend.add_mem_region(&driver.region()).unwrap();
    assert_eq!(served.control.memory.snapshot().unwrap().regions().len(), 1);
    let memory = driver.memory.clone();
    let queue = MockSplitQueue::new(&memory, QUEUE_SIZE);
    let (kick, call) = (eventfd(), eventfd());
    driver.start_queue(0, &queue, &kick, &call);
    request(&driver, &queue, &kick, &call, 0);
    assert_eq!(driver.frontend.get_vring_base(0).unwrap(), 1);
    driver.frontend.remove_mem_region(&driver.region()).unwrap();
    assert_eq!(served.control.memory.snapshot().unwrap().regions().len(), 0);
}

#[test]
fn a_queue_size_beyond_the_largest_ends_the_connection_in_words() {
    let (mut driver, served) = pair();
    driver.negotiate(everything());
    driver.frontend.set_vring_num(0, QUEUE_SIZE + 1).unwrap_err();
    let Event::Disconnected(Some(reason)) = served.event() else { panic!("the connection is not closed") };
    assert!(reason.contains("SET_VRING_NUM: queue size 0x11, must be 1 to 16"), "{reason}");
}

/// Notes that the configuration changed.
struct Changes(Sender<()>);

impl VhostUserFrontendReqHandler for Changes {
    fn handle_config_change(&self) -> HandlerResult<u64> {
        self.0.send(()).unwrap();
        Ok(0)
    }
}

#[test]
fn a_changed_configuration_reaches_rust_vmm_over_the_reverse_channel() {
    let (mut driver, served) = pair();
    driver.negotiate(everything());
    let (sender, changes) = channel();
    let mut handler = FrontendReqHandler::new(Arc::new(Changes(sender))).unwrap();
    driver.frontend.set_backend_request_fd(&handler.get_tx_raw_fd()).unwrap();
    served.control.update_config(b"new".to_vec());
    handler.handle_request().unwrap();
    changes.recv().unwrap();
    let (_, config) = driver.frontend.get_config(0, 3, VhostUserConfigFlags::empty(), &[0; 3]).unwrap();
    assert_eq!(config, b"new");
}
