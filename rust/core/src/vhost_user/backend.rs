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
    ProtocolFeatures, Reply, RequestName, Side, Status, VringState, XenDevices,
    backend_negotiation::allowed,
    backend_rings::Vring,
    memory_table::{MAX_MEMORY_SLOTS, MemorySlots},
};
use crate::{
    endpoint::{Control, Event},
    memory::GuestMemory,
};

/// How long GET_VRING_BASE waits for chains that the device kept.
const KEPT_CHAINS_PATIENCE: Duration = Duration::from_millis(500);

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
pub(super) enum Answer {
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

/// One connection.
pub struct Backend {
    connection: Connection,
    reverse: Option<Connection>,
    pub(super) control: Arc<Control>,
    pub(super) features: u64,
    pub(super) protocol: ProtocolFeatures,
    pub(super) status: Status,
    pub(super) vrings: Vec<Vring>,
    pub(super) slots: MemorySlots,
    pub(super) offers_xen: bool,
    /// The device was activated.
    pub(super) active: bool,
    owed: Option<Owed>,
}

impl Backend {
    /// Takes a connected socket. With devices, memory of Xen guests is offered to be mapped (XEN_MMAP).
    pub fn new(socket: OwnedFd, control: &Arc<Control>, devices: Option<Arc<dyn XenDevices>>) -> Self {
        let offers_xen = devices.is_some();
        Self {
            connection: Connection::new(socket, Side::Backend, Channel::Main),
            reverse: None,
            control: Arc::clone(control),
            features: 0,
            protocol: ProtocolFeatures::empty(),
            status: Status::empty(),
            vrings: control.queues.iter().map(|queue| Vring::new(queue.max_size())).collect(),
            slots: devices.map_or_else(MemorySlots::default, MemorySlots::with_devices),
            offers_xen,
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
        let refused = refused(name);
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
                let slots = self.slots.map(regions).map_err(|error| refused(error.to_string()))?;
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
            R::SetVringNum(VringState { index, value }) => self.set_ring_size(name, index, value)?,
            R::SetVringBase(VringState { index, value }) => self.set_ring_base(name, index, value)?,
            R::SetVringAddr(address) => self.set_ring_address(name, address)?,
            R::SetVringKick { index, fd } => self.set_ring_kick(name, index, fd, events)?,
            R::SetVringCall { index, fd } => {
                self.control.queues[self.index(name, index.into())?].set_call(fd);
                Answer::Done
            }
            R::SetVringErr { index, fd } => {
                self.control.queues[self.index(name, index.into())?].set_err(fd);
                Answer::Done
            }
            R::SetVringEnable { index, enable } => self.enable_ring(name, index, enable, events)?,
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
}

impl AsFd for Backend {
    fn as_fd(&self) -> BorrowedFd<'_> {
        self.connection.as_fd()
    }
}

/// A well-formed request that asks for what cannot be; wants the reason.
pub(super) fn refused(request: RequestName) -> impl Fn(String) -> BackendError {
    move |reason| BackendError::Refused { request, reason }
}

/// A request with a value that is not allowed.
pub(super) fn wrong(request: RequestName, what: &'static str, value: u64, allowed: String) -> BackendError {
    ProtocolError::Value { request, what, value, allowed }.into()
}
