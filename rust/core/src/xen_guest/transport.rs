//! The transport of one device of a guest.

use std::{collections::VecDeque, os::fd::AsFd, sync::Arc};

use rustix::io::Errno;

use super::{
    GuestBus, GuestError, Reach,
    interrupt::InterruptLine,
    record::Record,
    slot::{Slot, Task},
};
use crate::{
    endpoint::{Control, Event, Transport},
    memory::GuestMemory,
    mmio::{Action, DeviceStatus, Identity, MmioDevice, REGION_LEN},
    ring::{RingConfig, RingFeatures},
    vhost_user::virtio_features::{self, ACCESS_PLATFORM},
    xen::{Interrupt, PendingRequest, Registers, RequestKind},
};

const TASKS: u32 = 0;

/// Where in a guest a device is, and as what.
#[derive(Clone, Copy, Debug)]
pub struct Place {
    /// Guest physical address of its registers.
    pub base: u64,
    /// How the guest is interrupted; None for a guest that polls.
    pub interrupt: Option<Interrupt>,
    /// The virtio device id.
    pub device_id: u32,
    /// How the device reaches the guest's memory.
    pub reach: Reach,
    /// Has the kernel take kicks, where it can: see [`IoreqServer::kick_in_kernel`](crate::xen::IoreqServer::kick_in_kernel).
    pub kernel_kicks: bool,
}

/// A device of a guest, served until the guest is gone.
#[derive(Debug, Default)]
pub struct XenGuest {
    /// None before there is a guest, and once it is gone.
    attached: Option<Attached>,
}

impl XenGuest {
    /// Puts a device on the bus: the guest finds it from now on. With a record that another process has left, it is the device
    /// that the driver had there, and goes on; where it cannot be that, it needs a reset.
    ///
    /// # Errors
    /// See [`GuestError`].
    pub fn attach(
        bus: &Arc<GuestBus>,
        place: &Place,
        record: Option<Record>,
        control: &Arc<Control>,
        events: &mut VecDeque<Event>,
    ) -> Result<Self, GuestError> {
        let Place { base, interrupt, device_id, reach, kernel_kicks } = *place;
        if base % 4 != 0 || base.checked_add(REGION_LEN).is_none() {
            return Err(GuestError::Address(base));
        }
        if reach == Reach::Grants && !bus.has_grants() {
            return Err(GuestError::System { what: "opening /dev/xen/gntdev", errno: Errno::NODEV });
        }
        // A driver that gives grants insists on ACCESS_PLATFORM; one without passes it over, or takes it and gives plain addresses.
        let platform = if bus.has_grants() && reach != Reach::Foreign { ACCESS_PLATFORM } else { 0 };
        let identity = Identity {
            device_id,
            features: control.features | platform | virtio_features::RING_RESET,
            required: if reach == Reach::Grants { ACCESS_PLATFORM } else { 0 },
            queue_sizes: control.queues.iter().map(|queue| queue.max_size()).collect(),
        };
        let memory = bus.memory(reach);
        let memory = memory.map_err(|source| GuestError::Memory { domain: bus.domain(), source })?;
        let system = |what| move |errno| GuestError::System { what, errno };
        let registers =
            restored(identity, record.as_ref(), events).map_err(system("reading a device's record"))?;
        let in_turn = record.as_ref().is_some_and(|record| record.in_turn);
        let goes_on = registers.status().contains(DeviceStatus::DRIVER_OK);
        let line = Arc::new(InterruptLine::new(registers.interrupt(), bus.server(), interrupt)?);
        let slot = Slot::new(base, registers, record, Arc::clone(&line), memory, control);
        let slot = Arc::new(slot.map_err(system("making eventfds, or writing a record"))?);
        control.watch_transport(slot.wake.as_fd(), TASKS).map_err(system("watching a device's registers"))?;
        let mut attached = Attached {
            bus: Arc::clone(bus),
            slot,
            line,
            in_turn,
            kernel_kicks,
            active: false,
            added: false,
            kicks_in_kernel: false,
            owed: Vec::new(),
        };
        // If it fails dropping it undoes the rest.
        bus.add(&attached.slot)?;
        attached.added = true;
        if goes_on {
            attached.go_on(control, events);
        }
        Ok(Self { attached: Some(attached) })
    }

    /// How kicks and interrupts go, in words; None once the guest is gone.
    pub fn describe(&self) -> Option<String> {
        let Attached { line, kicks_in_kernel, .. } = self.attached.as_ref()?;
        let kicks = if *kicks_in_kernel { "by ioeventfd" } else { "by trapped writes" };
        Some(format!("kicks {kicks}, interrupts {}", line.describe()))
    }
}

#[derive(Debug)]
struct Attached {
    bus: Arc<GuestBus>,
    slot: Arc<Slot>,
    line: Arc<InterruptLine>,
    /// Chains are given back in their turn, as the used index has to say it all: the device outlives its process.
    in_turn: bool,
    kernel_kicks: bool,
    /// The driver is ready.
    active: bool,
    added: bool,
    kicks_in_kernel: bool,
    /// Requests that are answered, with this value, when the device has dealt with what follows from them.
    owed: Vec<(PendingRequest, u64)>,
}

impl Attached {
    fn carry_out(&mut self, action: Action, events: &mut VecDeque<Event>) {
        let control = Arc::clone(&self.slot.control);
        match action {
            Action::Start => self.start(Ring::Fresh, &control, events),
            Action::StartQueue(index) => self.start_queue(index, Ring::Fresh, &control, events),
            Action::StopQueue(index) => {
                self.stop_queue(index, &control);
                if control.take_back(index) {
                    events.push_back(Event::QueueStopped(index));
                }
            }
            Action::Kick(index) => self.slot.kick(index),
            Action::WriteConfig { offset, data } => {
                if control.write_config(offset, &data) {
                    events.push_back(Event::ConfigWritten { offset, data });
                }
            }
            Action::Reset => self.reset(events),
            Action::FeaturesRefused { unknown, missing } => events.push_back(Event::Warning(format!(
                "the driver's features are refused: {unknown:#x} are not offered, {missing:#x} are needed"
            ))),
            Action::GaveUp => events.push_back(Event::Warning("the driver has given up".to_owned())),
        }
    }

    /// The driver was ready when another process served it.
    fn go_on(&mut self, control: &Arc<Control>, events: &mut VecDeque<Event>) {
        self.start(Ring::Left, control, events);
        // The config space may be another by now, and an interrupt may have been lost.
        if self.slot.registers().config_changed() {
            self.line.raise();
        }
    }

    fn start(&mut self, rings: Ring, control: &Arc<Control>, events: &mut VecDeque<Event>) {
        control.set_negotiated(self.slot.registers().negotiated(), 0);
        if let Err(error) = control.memory.replace(self.slot.memory.clone()) {
            events.push_back(Event::Warning(error.to_string()));
            return self.fail();
        }
        self.active = true;
        events.push_back(Event::Activate);
        for queue in &control.queues {
            self.start_queue(queue.index(), rings, control, events);
        }
    }

    /// Makes a queue run, if it is set up.
    fn start_queue(&mut self, index: u16, ring: Ring, control: &Arc<Control>, events: &mut VecDeque<Event>) {
        let registers = self.slot.registers();
        let (setup, features) = (registers.queue(index).copied(), registers.negotiated());
        drop(registers);
        let (Some(setup), Some(queue)) = (setup, control.queues.get(usize::from(index))) else { return };
        if !setup.ready || !self.active {
            return;
        }
        queue.set_caller(self.line.clone());
        let memory = &self.slot.memory;
        let mut config = setup.ring(ring_features(features));
        config.in_turn = self.in_turn;
        let begin = if ring == Ring::Left { config.resume_index(memory) } else { Ok(0) };
        let started =
            begin.and_then(|index| queue.start(&RingConfig { next_available: index, ..config }, memory));
        let started = started.map_err(|error| error.to_string());
        if let Err(reason) = started.and_then(|()| self.take_kicks(index, control)) {
            events.push_back(Event::Warning(format!("queue {index} cannot run: {reason}")));
            return self.fail();
        }
        control.look_at(index, events);
    }

    fn take_kicks(&mut self, index: u16, control: &Control) -> Result<(), String> {
        let Some(kick) = self.slot.kicks.get(usize::from(index)) else { return Ok(()) };
        let server = self.bus.server();
        let kick_again = rustix::io::fcntl_dupfd_cloexec(kick, 0);
        let watched = kick_again.and_then(|fd| control.set_kick(index, Some(fd)));
        watched.map_err(|errno| format!("its kicks cannot be watched: {errno}"))?;
        if self.kernel_kicks {
            let in_kernel = server.kick_in_kernel(self.slot.base, index, kick.as_fd());
            self.kicks_in_kernel = in_kernel.map_err(|error| error.to_string())?;
        }
        Ok(())
    }

    fn stop_queue(&self, index: u16, control: &Control) {
        // It fails when the domain is gone; then nobody kicks.
        let _ = self.bus.server().kick_no_longer(self.slot.base, index);
        // Taking a kick away cannot fail: nothing is watched anew.
        let _ = control.set_kick(index, None);
        if let Some(kick) = self.slot.kicks.get(usize::from(index)) {
            kick.drain();
        }
        if let Some(queue) = control.queues.get(usize::from(index)) {
            queue.stop();
            queue.set_call(None);
        }
    }

    fn reset(&mut self, events: &mut VecDeque<Event>) {
        self.stop_all();
        if std::mem::take(&mut self.active) {
            events.push_back(Event::Reset);
        }
    }

    fn stop_all(&self) {
        let control = &self.slot.control;
        for queue in &control.queues {
            self.stop_queue(queue.index(), control);
        }
        // A table that the device closed needs no emptying.
        let _ = control.memory.replace(GuestMemory::default());
        control.set_negotiated(0, 0);
        // What was used between the write and now concerns nobody.
        self.line.clear();
    }

    /// The device needs a reset.
    fn fail(&self) {
        self.slot.fail();
    }

    /// Several accesses, or one with its value in guest memory, one after the other.
    fn perform(&mut self, request: PendingRequest, events: &mut VecDeque<Event>) {
        let memory = self.slot.memory.clone();
        match request.run(&mut Accesses { attached: self, events }, &memory) {
            Ok(answer) => self.owed.push((request, answer)),
            Err(error) => {
                events.push_back(Event::Warning(error.to_string()));
                self.fail();
                // Dropped, it is answered as an empty bus would.
            }
        }
    }
}

impl Drop for Attached {
    fn drop(&mut self) {
        self.slot.control.unwatch_transport(self.slot.wake.as_fd());
        self.stop_all();
        if self.added {
            self.bus.remove(&self.slot);
        }
    }
}

/// The registers that another process has left, or fresh ones.
fn restored(
    identity: Identity,
    record: Option<&Record>,
    events: &mut VecDeque<Event>,
) -> Result<MmioDevice, Errno> {
    let Some(saved) = record.map(Record::read).transpose()?.flatten() else {
        return Ok(MmioDevice::new(identity));
    };
    Ok(MmioDevice::restore(identity.clone(), &saved).unwrap_or_else(|error| {
        events.push_back(Event::Warning(format!("the device cannot go on for its driver: {error}")));
        let mut fresh = MmioDevice::new(identity);
        if saved.status.contains(DeviceStatus::DRIVER_OK) {
            fresh.fail();
        }
        fresh
    }))
}

/// How the ring of a queue begins.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Ring {
    Fresh,
    /// By another process.
    Left,
}

/// The registers, for accesses whose actions are carried out one after the other.
struct Accesses<'a> {
    attached: &'a mut Attached,
    events: &'a mut VecDeque<Event>,
}

impl Registers for Accesses<'_> {
    fn read(&mut self, _: RequestKind, address: u64, size: u8) -> u64 {
        self.attached.slot.read(address, size)
    }

    fn write(&mut self, _: RequestKind, address: u64, size: u8, value: u64) {
        if let Some(action) = self.attached.slot.write(address, size, value) {
            self.attached.carry_out(action, self.events);
        }
    }
}

fn ring_features(features: u64) -> RingFeatures {
    let has = |bit: u64| features & bit != 0;
    RingFeatures {
        event_idx: has(virtio_features::EVENT_IDX),
        indirect: has(virtio_features::INDIRECT_DESC),
        in_order: has(virtio_features::IN_ORDER),
        notify_on_empty: has(virtio_features::NOTIFY_ON_EMPTY),
    }
}

impl Transport for XenGuest {
    fn ready(&mut self, _which: u32, _control: &Arc<Control>, events: &mut VecDeque<Event>) {
        let Some(attached) = &mut self.attached else { return };
        match attached.slot.next_task() {
            None => {}
            Some(Task::Act(request, action)) => {
                attached.carry_out(action, events);
                attached.owed.push((request, 0));
            }
            Some(Task::Perform(request)) => attached.perform(request, events),
            Some(Task::Gone(reason)) => {
                attached.reset(events);
                events.push_back(Event::Disconnected(reason));
                self.attached = None;
            }
        }
    }

    fn handled(&mut self, _control: &Arc<Control>, _events: &mut VecDeque<Event>) {
        let Some(attached) = &mut self.attached else { return };
        for (request, answer) in attached.owed.drain(..) {
            // If it cannot be answered the domain is gone.
            let _ = request.answer(answer);
        }
    }

    fn config_changed(&mut self, _control: &Arc<Control>) {
        if let Some(attached) = &self.attached
            && attached.slot.registers().config_changed()
        {
            attached.line.raise();
        }
    }

    fn queue_failed(&mut self, _index: u16, _control: &Arc<Control>) {
        if let Some(attached) = &self.attached {
            attached.fail();
        }
    }
}
