//! A driver on a simulated domain: its vCPU writes registers, the device sees what follows, and the vCPU is answered when it has.

use std::{
    sync::Arc,
    time::{Duration, Instant},
};

use super::*;
use crate::{
    endpoint::{Control, Endpoint, Event, Offer},
    mmio::{CONFIG_OFFSET, Register},
    vhost_user::virtio_features::{EVENT_IDX, VERSION_1},
    xen::{
        EventFdSupport, ForeignCalls, Interrupt, Resource, ServerCalls,
        abi::{
            dm_op::{DmOp, SET_PCI_INTX_LEVEL, SetPciIntxLevel},
            ioreq::{IS_READ, Ioreq, TYPE_INVALIDATE, TYPE_MEMORY},
        },
        fake_domain::FakeDomain,
        fake_model::FakeModel,
    },
};
use rustix::io::Errno;
use std::ptr::NonNull;

const BASE: u64 = 0x200_0000;
const RUNNING: u64 = 1 | 2 | 8 | 4;

/// The page of the server by the one, the frames of the domain by the other.
#[derive(Debug)]
struct Both(Arc<FakeModel>, FakeDomain);

#[allow(unsafe_code)]
impl ForeignCalls for Both {
    fn reserve(&self, frames: usize, writable: bool) -> Result<NonNull<u8>, Errno> {
        self.1.reserve(frames, writable)
    }
    unsafe fn reserve_at(&self, at: NonNull<u8>, frames: usize, writable: bool) -> Result<(), Errno> {
        // SAFETY: as the caller says.
        unsafe { self.1.reserve_at(at, frames, writable) }
    }
    fn map_frames(
        &self,
        domain: u16,
        at: NonNull<u8>,
        frames: &[u64],
        errors: &mut [i32],
    ) -> Result<(), Errno> {
        self.1.map_frames(domain, at, frames, errors)
    }
    fn map_resource(
        &self,
        domain: u16,
        at: NonNull<u8>,
        resource: Resource,
        id: u32,
        first: u32,
        frames: u64,
    ) -> Result<(), Errno> {
        self.0.map_resource(domain, at, resource, id, first, frames)
    }
    fn resource_size(&self, domain: u16, resource: Resource, id: u32) -> Result<u64, Errno> {
        self.0.resource_size(domain, resource, id)
    }
    fn restrict(&self, _: u16) -> Result<(), Errno> {
        Ok(())
    }
}

struct Guest {
    model: Arc<FakeModel>,
    bus: Arc<GuestBus>,
    endpoint: Endpoint<XenGuest>,
    control: Arc<Control>,
}

fn offer() -> Offer {
    Offer {
        features: VERSION_1 | EVENT_IDX,
        queue_sizes: vec![8, 8],
        config: vec![1, 2, 3, 4],
        patience: Duration::ZERO,
    }
}

fn attach(bus: &Arc<GuestBus>, base: u64) -> Result<Endpoint<XenGuest>, GuestError> {
    attach_with(bus, base, Interrupt::Spi(33))
}

fn attach_with(
    bus: &Arc<GuestBus>,
    base: u64,
    interrupt: Interrupt,
) -> Result<Endpoint<XenGuest>, GuestError> {
    let place =
        Place { base, interrupt: Some(interrupt), device_id: 4, reach: Reach::Any, kernel_kicks: true };
    let mut endpoint = Endpoint::new(offer(), XenGuest::default()).unwrap();
    endpoint.drive(|transport, control, events| {
        *transport = XenGuest::attach(bus, &place, None, control, events)?;
        Ok::<(), GuestError>(())
    })?;
    Ok(endpoint)
}

impl Guest {
    fn new(support: EventFdSupport) -> Self {
        Self::with(support, Interrupt::Spi(33))
    }

    fn with(support: EventFdSupport, interrupt: Interrupt) -> Self {
        let model = FakeModel::new(2);
        model.set_support(support);
        let foreign = Arc::new(Both(Arc::clone(&model), FakeDomain::new(64)));
        let calls = GuestCalls { server: ServerCalls { foreign, ..model.calls() }, grants: None, gone: None };
        let options = BusOptions {
            ranges: vec![0..0x2_0000, 0x2_0000..0x4_0000],
            limit: u64::MAX,
            patience: Duration::from_secs(5),
        };
        let bus = GuestBus::new(&calls, FakeModel::DOMAIN, &options).unwrap();
        let endpoint = attach_with(&bus, BASE, interrupt).unwrap();
        let control = Arc::clone(endpoint.control());
        Self { model, bus, endpoint, control }
    }

    fn ask(&self, vcpu: u32, bits: u8, offset: u64, size: u32, data: u64) {
        let ioreq = Ioreq {
            address: BASE + offset,
            data,
            count: 1,
            size,
            bits,
            kind: TYPE_MEMORY,
            ..bytemuck::Zeroable::zeroed()
        };
        self.model.ask(vcpu, ioreq);
    }

    /// What the vCPU is answered.
    fn answered(&self, vcpu: u32) -> u64 {
        let until = Instant::now() + Duration::from_secs(20);
        loop {
            if let Some(data) = self.model.answer(vcpu) {
                return data;
            }
            assert!(Instant::now() < until, "vCPU {vcpu} waits for ever");
            std::thread::yield_now();
        }
    }

    /// What the vCPU is answered once the device has dealt with what it did; nothing more follows from it.
    fn settled(&mut self, vcpu: u32) -> u64 {
        let until = Instant::now() + Duration::from_secs(20);
        loop {
            let event = self.endpoint.wait(Some(Instant::now() + Duration::from_millis(1))).unwrap();
            assert_eq!(event, Event::TimedOut);
            if let Some(data) = self.model.answer(vcpu) {
                return data;
            }
            assert!(Instant::now() < until, "vCPU {vcpu} waits for ever");
        }
    }

    fn read(&self, register: Register) -> u64 {
        self.ask(0, IS_READ, register.offset(), 4, 0);
        self.answered(0)
    }

    fn write(&self, register: Register, value: u64) {
        self.ask(0, 0, register.offset(), 4, value);
    }

    fn put(&self, register: Register, value: u64) {
        self.write(register, value);
        self.answered(0);
    }

    fn event(&mut self) -> Event {
        self.endpoint.wait(Some(Instant::now() + Duration::from_secs(20))).unwrap()
    }

    fn no_event(&mut self) {
        assert_eq!(self.endpoint.wait(Some(Instant::now())).unwrap(), Event::TimedOut);
    }

    fn set_up(&self, queue: u64) {
        self.put(Register::QueueSel, queue);
        self.put(Register::QueueNum, 8);
        for (register, address) in [
            (Register::QueueDescLow, 0x1000),
            (Register::QueueDriverLow, 0x2000),
            (Register::QueueDeviceLow, 0x3000),
        ] {
            self.put(register, address + queue * 0x4000);
        }
    }

    fn agree(&mut self) {
        // A reset is the device's own thread's to see, even where there is nothing to reset.
        self.write(Register::Status, 0);
        self.settled(0);
        self.put(Register::Status, 3);
        for word in [1, 0] {
            self.put(Register::DriverFeaturesSel, word);
            self.put(Register::DriverFeatures, ((VERSION_1 | EVENT_IDX) >> (32 * word)) & 0xffff_ffff);
        }
        self.put(Register::Status, 11);
    }

    /// Up to the write of DRIVER_OK, which is not answered yet.
    fn begin(&mut self) {
        self.agree();
        for queue in [0, 1] {
            self.set_up(queue);
            for frame in [1, 2, 3] {
                let memory = self.bus.memory(Reach::Foreign).unwrap();
                memory.write(frame * 0x1000 + queue * 0x4000, &[0; 4096]).unwrap();
            }
            self.put(Register::QueueReady, 1);
        }
        self.write(Register::Status, RUNNING);
    }

    fn start(&mut self) {
        self.begin();
        assert_eq!(self.event(), Event::Activate);
        assert_eq!(self.event(), Event::Kick(0));
        assert_eq!(self.event(), Event::Kick(1));
        self.settled(0);
    }
}

#[test]
fn a_driver_finds_the_device_and_its_config_space() {
    let guest = Guest::new(EventFdSupport::Nothing);
    assert_eq!(guest.read(Register::MagicValue), 0x7472_6976);
    assert_eq!(guest.read(Register::DeviceId), 4);
    guest.ask(1, IS_READ, CONFIG_OFFSET, 4, 0);
    assert_eq!(guest.answered(1), 0x0403_0201);
    guest.control.update_config(vec![9, 9, 9, 9]);
    assert_eq!(guest.read(Register::ConfigGeneration), 1);
}

#[test]
fn the_vcpu_waits_until_the_device_has_dealt_with_driver_ok_and_with_a_reset() {
    let mut guest = Guest::new(EventFdSupport::Nothing);
    guest.begin();
    assert_eq!(guest.event(), Event::Activate);
    assert_eq!(guest.model.answer(0), None);
    assert_eq!(guest.event(), Event::Kick(0));
    assert_eq!(guest.event(), Event::Kick(1));
    guest.settled(0);
    assert_eq!(guest.control.negotiated().0, VERSION_1 | EVENT_IDX);
    guest.write(Register::Status, 0);
    assert_eq!(guest.event(), Event::Reset);
    assert_eq!(guest.model.answer(0), None);
    // The other vCPU goes on meanwhile.
    guest.ask(1, IS_READ, Register::Status.offset(), 4, 0);
    assert_eq!(guest.answered(1), 0);
    guest.settled(0);
    assert!(!guest.control.queues[0].is_started());
    guest.start();
}

#[test]
fn a_vcpu_that_stops_a_queue_waits_until_who_serves_it_stopped() {
    let mut guest = Guest::new(EventFdSupport::Nothing);
    guest.start();
    assert!(guest.control.hand_over(1).unwrap().is_some());
    // One that nobody else serves is stopped at once.
    guest.put(Register::QueueSel, 0);
    guest.write(Register::QueueReady, 0);
    guest.settled(0);
    guest.put(Register::QueueSel, 1);
    guest.write(Register::QueueReady, 0);
    assert_eq!(guest.event(), Event::QueueStopped(1));
    assert_eq!(guest.model.answer(0), None);
    guest.settled(0);
    assert!(!guest.control.queues[1].is_started());
    guest.write(Register::QueueReady, 1);
    assert_eq!(guest.event(), Event::Kick(1));
    assert!(guest.control.hand_over(1).unwrap().is_some());
    guest.settled(0);
}

#[test]
fn kicks_are_answered_at_once_and_reach_the_device() {
    let mut guest = Guest::new(EventFdSupport::Nothing);
    guest.start();
    guest.put(Register::QueueNotify, 1);
    assert_eq!(guest.event(), Event::Kick(1));
    guest.put(Register::QueueNotify, 2);
    guest.no_event();
}

#[test]
fn the_kernel_takes_kicks_and_interrupts_where_it_can_and_gives_them_back() {
    let mut guest = Guest::new(EventFdSupport::Both);
    guest.start();
    assert_eq!(guest.model.assigned(), (1, 2));
    guest.write(Register::Status, 0);
    assert_eq!(guest.event(), Event::Reset);
    guest.settled(0);
    assert_eq!(guest.model.assigned(), (1, 0));
    drop(guest.endpoint);
    assert_eq!(guest.model.assigned(), (0, 0));
    assert!(guest.model.ranges().is_empty());
}

#[test]
fn a_failed_queue_says_needs_reset_and_interrupts() {
    let mut guest = Guest::new(EventFdSupport::Nothing);
    guest.start();
    guest.control.fail_queue(1);
    guest.no_event();
    assert_eq!(guest.read(Register::Status), RUNNING | 64);
    assert_eq!(guest.read(Register::InterruptStatus), 2);
    assert_eq!(guest.model.operations().len(), 1);
}

#[test]
fn a_ring_that_cannot_run_says_needs_reset_and_the_vcpu_is_answered() {
    let mut guest = Guest::new(EventFdSupport::Nothing);
    guest.agree();
    guest.put(Register::QueueSel, 0);
    guest.put(Register::QueueDescLow, 0xdead_0000);
    guest.put(Register::QueueReady, 1);
    guest.write(Register::Status, RUNNING);
    assert_eq!(guest.event(), Event::Activate);
    assert!(matches!(guest.event(), Event::Warning(text) if text.contains("queue 0 cannot run")));
    guest.settled(0);
    assert_eq!(guest.read(Register::Status), RUNNING | 64);
}

#[test]
fn the_config_space_is_written_by_the_driver() {
    let mut guest = Guest::new(EventFdSupport::Nothing);
    guest.ask(0, 0, CONFIG_OFFSET + 1, 2, 0x0807);
    assert_eq!(guest.event(), Event::ConfigWritten { offset: 1, data: vec![7, 8] });
    guest.settled(0);
    assert_eq!(guest.control.config(), [1, 7, 8, 4]);
    // Behind its end nothing is written.
    guest.ask(0, 0, CONFIG_OFFSET + 3, 2, 0);
    guest.settled(0);
    assert_eq!(guest.control.config(), [1, 7, 8, 4]);
}

#[test]
fn every_access_of_every_size_is_answered() {
    let mut guest = Guest::new(EventFdSupport::Nothing);
    for offset in 0..0x200 {
        for size in 0..=9 {
            for bits in [IS_READ, 0] {
                guest.ask(1, bits, offset, size, u64::MAX);
                while guest.model.answer(1).is_none() {
                    guest.endpoint.wait(Some(Instant::now())).unwrap();
                }
            }
        }
    }
    guest.start();
}

#[test]
fn repeated_accesses_are_carried_out_one_by_one() {
    let mut guest = Guest::new(EventFdSupport::Nothing);
    guest.start();
    let (address, kind) = (BASE + Register::QueueNotify.offset(), TYPE_MEMORY);
    guest.model.ask(0, Ioreq { address, count: 2, size: 4, kind, ..bytemuck::Zeroable::zeroed() });
    assert_eq!(guest.event(), Event::Kick(0));
    guest.settled(0);
}

#[test]
fn an_invalidation_is_answered_and_running_rings_go_on() {
    let mut guest = Guest::new(EventFdSupport::Nothing);
    guest.start();
    guest.model.ask(0, Ioreq { size: 4, kind: TYPE_INVALIDATE, ..bytemuck::Zeroable::zeroed() });
    guest.answered(0);
    assert!(guest.control.queues[0].is_started());
    guest.put(Register::QueueNotify, 0);
    assert_eq!(guest.event(), Event::Kick(0));
}

#[test]
fn two_devices_share_a_server_and_not_an_address() {
    let guest = Guest::new(EventFdSupport::Nothing);
    let attach = |base| attach(&guest.bus, base);
    assert!(matches!(attach(BASE + 0x1fc), Err(GuestError::Occupied(_))));
    assert!(matches!(attach(BASE + 0x201), Err(GuestError::Address(_))));
    assert!(matches!(attach(u64::MAX - 0x103), Err(GuestError::Address(_))));
    let second = attach(BASE + 0x200).unwrap();
    assert_eq!(guest.model.ranges().len(), 2);
    guest.ask(0, IS_READ, 0x200, 4, 0);
    assert_eq!(guest.answered(0), 0x7472_6976);
    drop(second);
    assert_eq!(guest.model.ranges().len(), 1);
    // Nobody is there any more: as on an empty bus.
    guest.ask(0, IS_READ, 0x200, 4, 0);
    assert_eq!(guest.answered(0), 0xffff_ffff);
}

#[test]
fn a_guest_that_is_gone_resets_the_device_and_lets_go_of_everything() {
    let mut guest = Guest::new(EventFdSupport::Both);
    guest.start();
    guest.bus.guest_is_gone();
    assert_eq!(guest.event(), Event::Reset);
    assert_eq!(guest.event(), Event::Disconnected(None));
    guest.no_event();
    assert!(guest.bus.is_gone());
    assert_eq!(guest.model.assigned(), (0, 0));
    assert!(!guest.control.queues[0].is_started());
    drop(guest.bus);
    assert!(!guest.model.has_server());
    assert_eq!(guest.model.bound_ports(), 0);
}

/// What Xen was told of levels, in order.
fn levels(guest: &Guest) -> Vec<bool> {
    let level =
        |op: &DmOp| (op.op == SET_PCI_INTX_LEVEL).then(|| op.arguments::<SetPciIntxLevel>().level == 1);
    guest.model.operations().iter().filter_map(level).collect()
}

fn io_apic_guest() -> Guest {
    // As it is a level the kernel must not raise it, though it could.
    let guest = Guest::with(EventFdSupport::Both, Interrupt::gsi(40).unwrap());
    assert_eq!(guest.model.assigned().0, 0);
    // As somebody may have left it.
    assert_eq!(levels(&guest), [false]);
    guest
}

#[test]
fn a_level_stays_asserted_until_the_driver_has_acknowledged_every_reason() {
    let mut guest = io_apic_guest();
    guest.start();
    guest.control.update_config(vec![7]);
    guest.no_event();
    assert_eq!(levels(&guest), [false, true]);
    guest.control.update_config(vec![8]);
    guest.control.fail_queue(0);
    guest.no_event();
    assert_eq!(levels(&guest), [false, true]);
    guest.put(Register::InterruptAck, 1);
    assert_eq!(levels(&guest), [false, true]);
    guest.put(Register::InterruptAck, 2);
    assert_eq!(levels(&guest), [false, true, false]);
    guest.control.update_config(vec![9]);
    guest.no_event();
    assert_eq!(levels(&guest), [false, true, false, true]);
}

#[test]
fn a_level_is_taken_back_by_a_reset_and_when_the_device_goes() {
    let mut guest = io_apic_guest();
    guest.start();
    guest.control.update_config(vec![7]);
    guest.no_event();
    guest.write(Register::Status, 0);
    assert_eq!(guest.event(), Event::Reset);
    guest.settled(0);
    assert_eq!(levels(&guest), [false, true, false]);
    guest.start();
    guest.control.update_config(vec![8]);
    guest.no_event();
    let Guest { model, bus, endpoint, control } = guest;
    drop(endpoint);
    let last = model.operations().pop().unwrap();
    assert_eq!(last.arguments::<SetPciIntxLevel>().level, 0);
    drop((bus, control));
}

#[test]
fn two_devices_do_not_share_a_level() {
    let guest = io_apic_guest();
    let second = attach_with(&guest.bus, BASE + 0x200, Interrupt::gsi(40).unwrap());
    assert!(matches!(second, Err(GuestError::SharedLevel(_))));
    assert_eq!(guest.model.ranges().len(), 1);
    attach_with(&guest.bus, BASE + 0x200, Interrupt::gsi(41).unwrap()).unwrap();
}
