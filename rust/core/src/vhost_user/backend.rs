//! The backend's side of one connection: what a frontend says becomes state of the device's queues and memory.
//!
//! A ring runs while it is *started* (its kick came, until GET_VRING_BASE) and *enabled* (vhost-user, "Ring
//! states"). The device is activated with the first ring that runs, and reset when none does any more.
//!
//! One message at a time is dealt with. A reply that must wait, for the device or for chains that it
//! kept, goes out from [`Backend::advance`].

use std::{
    collections::VecDeque,
    os::fd::{AsFd, BorrowedFd, OwnedFd},
    sync::Arc,
    time::{Duration, Instant},
};

use super::{
    BackendRequest, Channel, ConfigSpace, Connection, FrontendCode, FrontendRequest, Message, ProtocolError,
    ProtocolFeatures, RegionFormat, Reply, RequestName, Side, Status, VringAddress, VringState,
    memory_table::{MAX_MEMORY_SLOTS, MemorySlots},
    virtio_features,
};
use crate::{
    endpoint::{Control, Event},
    memory::GuestMemory,
    ring::{RingConfig, RingError, RingFeatures},
};

/// The protocol features that work here.
pub const OFFERED: ProtocolFeatures = ProtocolFeatures::MQ
    .union(ProtocolFeatures::REPLY_ACK)
    .union(ProtocolFeatures::BACKEND_REQ)
    .union(ProtocolFeatures::CONFIG)
    .union(ProtocolFeatures::RESET_DEVICE)
    .union(ProtocolFeatures::CONFIGURE_MEM_SLOTS)
    .union(ProtocolFeatures::STATUS);

/// How long GET_VRING_BASE waits for chains that the device kept.
const KEPT_CHAINS_PATIENCE: Duration = Duration::from_millis(500);

/// The largest config space that GET_CONFIG can ask for (vhost-user, VHOST_USER_MAX_CONFIG_SIZE).
const MAX_CONFIG: usize = 256;

/// Why a request was not carried out.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum BackendError {
    /// The message itself is wrong, or the socket is: the connection ends.
    #[error(transparent)]
    Protocol(#[from] ProtocolError),
    /// The request is well-formed, and what it asks for cannot be: it is refused.
    #[error("{request}: {reason}")]
    Refused {
        /// The request.
        request: RequestName,
        /// Why, in words.
        reason: String,
    },
}

/// What is to be said to the frontend.
enum Answer {
    /// An acknowledgement, where one was asked for.
    Done,
    /// A reply.
    Now(Reply),
    /// A reply, or an acknowledgement, once the device has dealt with the events.
    AfterDevice(Option<Reply>),
    /// GET_VRING_BASE: once no chain of this queue is kept any more.
    AfterChains(u16),
}

/// What a message still has to be answered with, and what that waits for.
struct Owed {
    number: u32,
    needs_reply: bool,
    reply: Option<Reply>,
    chains: Option<(u16, Instant)>,
}

/// What the frontend said of one ring.
#[derive(Debug, Default)]
struct Vring {
    size: u16,
    base: u16,
    address: Option<VringAddress>,
    started: bool,
    enabled: bool,
}

/// One connection.
pub struct Backend {
    connection: Connection,
    reverse: Option<Connection>,
    control: Arc<Control>,
    features: u64,
    protocol: ProtocolFeatures,
    status: Status,
    vrings: Vec<Vring>,
    slots: MemorySlots,
    /// The device was activated.
    active: bool,
    owed: Option<Owed>,
}

impl Backend {
    /// Takes a connected socket.
    pub fn new(socket: OwnedFd, control: &Arc<Control>) -> Self {
        Self {
            connection: Connection::new(socket, Side::Backend, Channel::Main),
            reverse: None,
            control: Arc::clone(control),
            features: 0,
            protocol: ProtocolFeatures::empty(),
            status: Status::empty(),
            vrings: control
                .queues
                .iter()
                .map(|queue| Vring { size: queue.max_size(), ..Vring::default() })
                .collect(),
            slots: MemorySlots::default(),
            active: false,
            owed: None,
        }
    }

    /// Deals with at most one message. An error ends the connection.
    pub fn receive(&mut self, events: &mut VecDeque<Event>) -> Result<(), BackendError> {
        if self.owed.is_some() {
            // The frontend does not wait for its reply: then it is not made to, and neither is the loop.
            self.pay(events, true)?;
        }
        let Some(Message { header, payload, fds }) = self.connection.receive()? else { return Ok(()) };
        let (number, needs_reply) = (header.request, header.needs_reply());
        let answer = FrontendRequest::decode(number, &payload, fds, self.region_format())
            .map_err(BackendError::from)
            .and_then(|request| self.carry_out(request, events));
        let (reply, chains) = match answer {
            Ok(Answer::Done) => return self.answer(number, needs_reply, None),
            Ok(Answer::Now(reply)) => return self.answer(number, needs_reply, Some(reply)),
            Ok(Answer::AfterDevice(reply)) => (reply, None),
            Ok(Answer::AfterChains(index)) => (None, Some((index, Instant::now() + KEPT_CHAINS_PATIENCE))),
            Err(error) => return self.refuse(number, needs_reply, error, events),
        };
        self.owed = Some(Owed { number, needs_reply, reply, chains });
        Ok(())
    }

    /// The device has dealt with the events: what it was waited for can go out.
    pub fn advance(&mut self, events: &mut VecDeque<Event>) -> Result<(), BackendError> {
        self.connection.flush()?;
        self.pay(events, false)
    }

    /// When [`Backend::advance`] is to be called again, since nothing else may happen until then.
    pub fn deadline(&self) -> Option<Instant> {
        self.owed.as_ref()?.chains.map(|(_, deadline)| deadline)
    }

    /// The config space changed, or the device failed: the frontend is told if it listens.
    pub fn config_changed(&mut self) {
        if let Some(reverse) = &mut self.reverse
            && reverse.send_request(&BackendRequest::ConfigChange.encode(), false).is_err()
        {
            self.reverse = None;
        }
    }

    /// A queue failed: from now on the status says so.
    pub fn queue_failed(&mut self) {
        self.status |= Status::DEVICE_NEEDS_RESET;
        self.config_changed();
    }

    /// The connection is over: nothing of it stays behind.
    pub fn close(mut self, events: &mut VecDeque<Event>) {
        self.stop_all(events);
        // A table that the device closed needs no emptying.
        let _ = self.control.memory.replace(GuestMemory::default());
        self.control.set_negotiated(0, 0);
    }

    /// True while a reply waits for room in the socket.
    pub fn wants_write(&self) -> bool {
        self.connection.wants_write()
    }

    fn region_format(&self) -> RegionFormat {
        if self.protocol.contains(ProtocolFeatures::XEN_MMAP) {
            RegionFormat::Xen
        } else {
            RegionFormat::Plain
        }
    }

    fn answer(&mut self, number: u32, needs_reply: bool, reply: Option<Reply>) -> Result<(), BackendError> {
        let acknowledge = needs_reply && self.protocol.contains(ProtocolFeatures::REPLY_ACK);
        if let Some(reply) = reply.or(acknowledge.then_some(Reply::Number(0))) {
            self.connection.send_reply(&reply.encode(number))?;
        }
        Ok(())
    }

    /// A refusal that the frontend can hear leaves the connection as it is; else only its end is heard.
    fn refuse(
        &mut self,
        number: u32,
        needs_reply: bool,
        error: BackendError,
        events: &mut VecDeque<Event>,
    ) -> Result<(), BackendError> {
        let has_reply = FrontendCode::from_number(number).is_some_and(FrontendCode::has_reply);
        if has_reply || !needs_reply || !self.protocol.contains(ProtocolFeatures::REPLY_ACK) {
            return Err(error);
        }
        self.connection.send_reply(&Reply::Number(1).encode(number))?;
        match error {
            BackendError::Refused { .. } | BackendError::Protocol(ProtocolError::Unsupported { .. }) => {
                events.push_back(Event::Warning(format!("refused: {error}")));
                Ok(())
            }
            malformed @ BackendError::Protocol(_) => Err(malformed),
        }
    }

    /// Sends what is owed, if nothing is waited for any more, or at once.
    fn pay(&mut self, events: &mut VecDeque<Event>, at_once: bool) -> Result<(), BackendError> {
        let Some(mut owed) = self.owed.take() else { return Ok(()) };
        if let Some((index, deadline)) = owed.chains.take() {
            let queue = &self.control.queues[usize::from(index)];
            let late = at_once || deadline <= Instant::now();
            if queue.kept() > 0 && !late {
                owed.chains = Some((index, deadline));
                self.owed = Some(owed);
                return Ok(());
            }
            if queue.kept() > 0 {
                events.push_back(Event::Warning(format!(
                    "queue {index} is stopped while the device still has {} chains of it (heads {:?}); they are stale now",
                    queue.kept(),
                    queue.kept_heads()
                )));
            }
            owed.reply = Some(self.vring_base(index, events));
            if !events.is_empty() && !at_once {
                self.owed = Some(owed); // the device's reset comes first
                return Ok(());
            }
        }
        self.answer(owed.number, owed.needs_reply, owed.reply)
    }

    fn carry_out(
        &mut self,
        request: FrontendRequest,
        events: &mut VecDeque<Event>,
    ) -> Result<Answer, BackendError> {
        use FrontendRequest as R;
        let name = request.name();
        self.check_negotiated(&request)?;
        let refused = |reason: String| BackendError::Refused { request: name, reason };
        Ok(match request {
            R::GetFeatures => Answer::Now(Reply::Number(self.offered())),
            R::SetFeatures(features) => {
                allowed(name, "features", features, self.offered())?;
                self.features = features;
                self.publish();
                Answer::Done
            }
            R::GetProtocolFeatures => Answer::Now(Reply::Number(self.offered_protocol().bits())),
            R::SetProtocolFeatures(bits) => {
                allowed(name, "protocol features", bits, self.offered_protocol().bits())?;
                self.protocol = ProtocolFeatures::from_bits_truncate(bits);
                self.publish();
                Answer::Done
            }
            R::SetOwner => Answer::Done,
            R::ResetOwner | R::ResetDevice => self.reset(events),
            R::GetQueueNum => Answer::Now(Reply::Number(self.vrings.len() as u64)),
            R::GetMaxMemSlots => Answer::Now(Reply::Number(MAX_MEMORY_SLOTS as u64)),
            R::SetMemTable(regions) => {
                let slots = MemorySlots::map(regions).map_err(|error| refused(error.to_string()))?;
                self.set_memory(slots, events).map_err(refused)?;
                Answer::Done
            }
            R::AddMemReg { region, fd } => {
                let slots = self.slots.with(region, fd).map_err(|error| refused(error.to_string()))?;
                self.set_memory(slots, events).map_err(refused)?;
                Answer::Done
            }
            R::RemMemReg(region) => {
                let slots = self.slots.without(&region).map_err(|error| refused(error.to_string()))?;
                self.set_memory(slots, events).map_err(refused)?;
                Answer::Done
            }
            R::SetVringNum(VringState { index, value }) => {
                let max = self.control.queues[self.index(name, index)?].max_size();
                self.not_started(name, index)?;
                let size = u16::try_from(value).ok().filter(|&size| (1..=max).contains(&size));
                self.vrings[index as usize].size =
                    size.ok_or_else(|| wrong(name, "queue size", value.into(), format!("1 to {max}")))?;
                Answer::Done
            }
            R::SetVringBase(VringState { index, value }) => {
                self.index(name, index)?;
                self.not_started(name, index)?;
                self.vrings[index as usize].base = u16::try_from(value).map_err(|_| {
                    wrong(name, "base", value.into(), "an index of a split ring, 16 bits".into())
                })?;
                Answer::Done
            }
            R::SetVringAddr(address) => {
                let index = self.index(name, address.index)?;
                // QEMU sends the address of a running ring again when it turns the dirty log on or off.
                if self.vrings[index].started && !self.same_place(index, &address) {
                    return Err(refused(format!("queue {index} runs, and cannot be moved")));
                }
                self.vrings[index].address = Some(address);
                Answer::Done
            }
            R::SetVringKick { index, fd } => {
                let queue = self.index(name, index.into())?;
                let fd = fd.ok_or_else(|| {
                    refused(format!("queue {index} has no kick eventfd, and is not polled"))
                })?;
                self.control.set_kick(index.into(), Some(fd)).map_err(|errno| {
                    refused(format!("the kick of queue {index} cannot be watched: {errno}"))
                })?;
                self.vrings[queue].started = true;
                self.start(queue, events).map_err(refused)?
            }
            R::SetVringCall { index, fd } => {
                self.control.queues[self.index(name, index.into())?].set_call(fd);
                Answer::Done
            }
            R::SetVringErr { index, fd } => {
                self.control.queues[self.index(name, index.into())?].set_err(fd);
                Answer::Done
            }
            R::SetVringEnable { index, enable } => {
                let queue = self.index(name, index)?;
                self.vrings[queue].enabled = enable;
                if enable {
                    self.start(queue, events).map_err(refused)?
                } else {
                    self.control.queues[queue].pause();
                    Answer::Done
                }
            }
            R::GetVringBase { index } => self.stop(self.index(name, index)? as u16, events),
            R::GetConfig(wanted) => Answer::Now(Reply::Config(self.config(wanted))),
            R::SetConfig(ConfigSpace { offset, data, .. }) => {
                if !self.control.write_config(offset, &data) {
                    let len = self.control.config().len();
                    return Err(refused(format!(
                        "{} bytes at offset {offset} do not lie inside the config space of {len} bytes",
                        data.len()
                    )));
                }
                events.push_back(Event::ConfigWritten { offset, data });
                Answer::AfterDevice(None)
            }
            R::SetBackendReqFd(fd) => {
                self.reverse = Some(Connection::new(fd, Side::Backend, Channel::Reverse));
                Answer::Done
            }
            R::SetStatus(0) => self.reset(events),
            R::SetStatus(status) => {
                let failed = self.status & Status::DEVICE_NEEDS_RESET;
                self.status = Status::from_bits_retain(status) | failed;
                Answer::Done
            }
            R::GetStatus => Answer::Now(Reply::Number(self.status.bits().into())),
            other => return Err(ProtocolError::unsupported(&other).into()),
        })
    }

    /// A request that belongs to a protocol feature wants it negotiated.
    fn check_negotiated(&self, request: &FrontendRequest) -> Result<(), BackendError> {
        use FrontendRequest as R;
        let needed = match request {
            R::GetQueueNum => ProtocolFeatures::MQ,
            R::GetConfig(_) | R::SetConfig(_) => ProtocolFeatures::CONFIG,
            R::GetMaxMemSlots | R::AddMemReg { .. } | R::RemMemReg(_) => {
                ProtocolFeatures::CONFIGURE_MEM_SLOTS
            }
            R::SetBackendReqFd(_) => ProtocolFeatures::BACKEND_REQ,
            R::GetStatus | R::SetStatus(_) => ProtocolFeatures::STATUS,
            _ => return Ok(()),
        };
        if self.protocol.contains(needed) {
            return Ok(());
        }
        Err(BackendError::Refused {
            request: request.name(),
            reason: format!("the protocol feature {needed:?} was not negotiated"),
        })
    }

    fn offered(&self) -> u64 {
        self.control.features | virtio_features::PROTOCOL_FEATURES
    }

    fn offered_protocol(&self) -> ProtocolFeatures {
        OFFERED
    }

    fn publish(&self) {
        self.control
            .set_negotiated(self.features & !virtio_features::PROTOCOL_FEATURES, self.protocol.bits());
    }

    fn index(&self, request: RequestName, index: u32) -> Result<usize, BackendError> {
        let count = self.vrings.len();
        let found = usize::try_from(index).ok().filter(|&index| index < count);
        found.ok_or_else(|| wrong(request, "queue", index.into(), format!("0 to {}", count - 1)))
    }

    fn not_started(&self, request: RequestName, index: u32) -> Result<(), BackendError> {
        if !self.vrings[index as usize].started {
            return Ok(());
        }
        Err(BackendError::Refused { request, reason: format!("queue {index} is started; stop it first") })
    }

    fn same_place(&self, index: usize, new: &VringAddress) -> bool {
        self.vrings[index].address.as_ref().is_some_and(|old| {
            (old.descriptors, old.available, old.used) == (new.descriptors, new.available, new.used)
        })
    }

    /// Makes a ring run, if it is started and enabled and does not run yet.
    fn start(&mut self, index: usize, events: &mut VecDeque<Event>) -> Result<Answer, String> {
        let queue = &self.control.queues[index];
        let vring = &self.vrings[index];
        let always_enabled = self.features & virtio_features::PROTOCOL_FEATURES == 0;
        if !vring.started || !(vring.enabled || always_enabled) {
            return Ok(Answer::Done);
        }
        if queue.is_started() {
            queue.resume();
        } else {
            let config = self.ring_config(index)?;
            queue
                .start(&config, self.slots.table())
                .map_err(|error: RingError| format!("queue {index}: {error}"))?;
            if !self.active {
                self.active = true;
                events.push_back(Event::Activate);
            }
        }
        // What the driver put there before nobody kicks for again.
        self.control.look_at(index as u16, events);
        Ok(Answer::AfterDevice(None))
    }

    fn ring_config(&self, index: usize) -> Result<RingConfig, String> {
        let vring = &self.vrings[index];
        let address =
            vring.address.as_ref().ok_or(format!("queue {index} is started without SET_VRING_ADDR"))?;
        let guest = |what: &str, user: u64| {
            self.slots.table().user_to_guest(user).ok_or(format!(
                "queue {index}: the {what} at user address {user:#x} is not in the memory table"
            ))
        };
        let has = |bit: u64| self.features & bit != 0;
        Ok(RingConfig {
            size: vring.size,
            descriptors: guest("descriptor table", address.descriptors)?,
            available: guest("available ring", address.available)?,
            used: guest("used ring", address.used)?,
            next_available: vring.base,
            features: RingFeatures {
                event_idx: has(virtio_features::EVENT_IDX),
                indirect: has(virtio_features::INDIRECT_DESC),
                in_order: has(virtio_features::IN_ORDER),
                notify_on_empty: has(virtio_features::NOTIFY_ON_EMPTY),
            },
        })
    }

    /// GET_VRING_BASE: the ring hands out nothing more, and is stopped once the device has given all back.
    fn stop(&mut self, index: u16, events: &mut VecDeque<Event>) -> Answer {
        let queue = &self.control.queues[usize::from(index)];
        queue.pause();
        if queue.kept() > 0 {
            return Answer::AfterChains(index);
        }
        Answer::AfterDevice(Some(self.vring_base(index, events)))
    }

    /// Stops a ring, and the session with the last one.
    fn vring_base(&mut self, index: u16, events: &mut VecDeque<Event>) -> Reply {
        let vring = &mut self.vrings[usize::from(index)];
        vring.started = false;
        let _ = self.control.set_kick(index, None);
        if let Some(base) = self.control.queues[usize::from(index)].stop() {
            vring.base = base;
        }
        let reply = Reply::VringBase(VringState { index: index.into(), value: vring.base.into() });
        if self.active && !self.control.queues.iter().any(|queue| queue.is_started()) {
            self.active = false;
            events.push_back(Event::Reset);
        }
        reply
    }

    fn reset(&mut self, events: &mut VecDeque<Event>) -> Answer {
        self.status = Status::empty();
        self.stop_all(events);
        Answer::AfterDevice(None)
    }

    fn stop_all(&mut self, events: &mut VecDeque<Event>) {
        for (index, vring) in (0u16..).zip(&mut self.vrings) {
            let queue = &self.control.queues[usize::from(index)];
            let _ = self.control.set_kick(index, None);
            queue.stop();
            queue.set_call(None);
            queue.set_err(None);
            *vring = Vring { size: queue.max_size(), ..Vring::default() };
        }
        if std::mem::take(&mut self.active) {
            events.push_back(Event::Reset);
        }
    }

    /// Puts a new table in force, for running queues too.
    fn set_memory(&mut self, slots: MemorySlots, events: &mut VecDeque<Event>) -> Result<(), String> {
        let table = slots.table().clone();
        self.control.memory.replace(table.clone()).map_err(|error| error.to_string())?;
        self.slots = slots;
        for queue in &self.control.queues {
            if queue.is_started()
                && let Err(error) = queue.update_memory(&table)
            {
                events.push_back(Event::Warning(format!("queue {} stops: {error}", queue.index())));
                self.status |= Status::DEVICE_NEEDS_RESET;
            }
        }
        Ok(())
    }

    /// What GET_CONFIG reads: bytes beyond the device's space are zero, as QEMU asks for the whole structure
    /// that it knows.
    fn config(&self, wanted: ConfigSpace) -> ConfigSpace {
        let space = self.control.config();
        let mut data = wanted.data;
        data.truncate(MAX_CONFIG);
        data.fill(0);
        let from = space.get(wanted.offset as usize..).unwrap_or_default();
        let len = from.len().min(data.len());
        data[..len].copy_from_slice(&from[..len]);
        ConfigSpace { data, ..wanted }
    }
}

impl AsFd for Backend {
    fn as_fd(&self) -> BorrowedFd<'_> {
        self.connection.as_fd()
    }
}

fn wrong(request: RequestName, what: &'static str, value: u64, allowed: String) -> BackendError {
    ProtocolError::Value { request, what, value, allowed }.into()
}

/// Only bits that were offered may be taken.
fn allowed(request: RequestName, what: &'static str, bits: u64, offered: u64) -> Result<(), BackendError> {
    if bits & !offered == 0 {
        return Ok(());
    }
    Err(wrong(
        request,
        what,
        bits,
        format!("bits out of {offered:#x}; {:#x} was not offered", bits & !offered),
    ))
}
