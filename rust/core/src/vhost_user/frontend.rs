//! The frontend: drives somebody else's vhost-user device, one blocking request after the other.
//!
//! Every call ends: with an answer, with the peer's refusal, or with an error that names what was asked and
//! what the peer did. After a timeout or a broken rule the connection is of no more use (an answer that comes
//! late would be taken for another's), and says so.

use std::{
    os::fd::{AsFd, BorrowedFd, OwnedFd},
    path::Path,
    time::Duration,
};

use rustix::io::Errno;

use super::{
    ConfigSpace, FrontendCode as Code, FrontendError, FrontendRequest, Header, MemoryRegion, Message,
    Patience, ProtocolError, ProtocolFeatures, RegionFormat, Reply, RequestName, WireLog,
    connect::connect_with_retry, exchange::Exchange, reverse_channel::ReverseChannel, virtio_features,
};

/// Lines that the wire log keeps.
const LOG_LINES: usize = 256;

/// A connection to a vhost-user backend.
#[derive(Debug)]
pub struct Frontend {
    exchange: Exchange,
    reverse: Option<ReverseChannel>,
    offered: u64,
    pub(super) acked: u64,
    offered_protocol: u64,
    protocol: ProtocolFeatures,
    queues: Option<u64>,
    pub(super) memory: Vec<MemoryRegion>,
}

impl Frontend {
    /// What this frontend can do, and acks where the peer offers it.
    pub const PROTOCOL_FEATURES: ProtocolFeatures = ProtocolFeatures::MQ
        .union(ProtocolFeatures::REPLY_ACK)
        .union(ProtocolFeatures::BACKEND_REQ)
        .union(ProtocolFeatures::CONFIG)
        .union(ProtocolFeatures::RESET_DEVICE)
        .union(ProtocolFeatures::CONFIGURE_MEM_SLOTS)
        .union(ProtocolFeatures::STATUS)
        .union(ProtocolFeatures::XEN_MMAP);

    /// Connects; tries again until `patience.timeout` while the socket is not there or nobody listens on it.
    /// Nothing is said yet: see [`negotiate`](Self::negotiate).
    pub fn connect(path: &Path, patience: Patience) -> Result<Self, FrontendError> {
        Ok(Self::over(connect_with_retry(path, &patience)?, patience))
    }

    /// Speaks over a socket that is connected already.
    pub fn over(socket: OwnedFd, patience: Patience) -> Self {
        Self {
            exchange: Exchange::new(socket, patience, WireLog::new(LOG_LINES)),
            reverse: None,
            offered: 0,
            acked: 0,
            offered_protocol: 0,
            protocol: ProtocolFeatures::empty(),
            queues: None,
            memory: Vec::new(),
        }
    }

    /// Takes the backend and settles the protocol features: those of `wanted` that the peer offers are
    /// acked. A peer that offers XEN_MMAP must get it.
    pub fn negotiate(&mut self, wanted: ProtocolFeatures) -> Result<(), FrontendError> {
        self.post(&FrontendRequest::SetOwner)?;
        self.offered = self.ask(&FrontendRequest::GetFeatures)?;
        if self.offered & virtio_features::PROTOCOL_FEATURES == 0 {
            return Ok(());
        }
        self.offered_protocol = self.ask(&FrontendRequest::GetProtocolFeatures)?;
        let offered = ProtocolFeatures::from_bits_truncate(self.offered_protocol);
        let protocol = offered & wanted & Self::PROTOCOL_FEATURES;
        if offered.contains(ProtocolFeatures::XEN_MMAP) && !protocol.contains(ProtocolFeatures::XEN_MMAP) {
            return Err(FrontendError::XenMmapNeeded { asked: wanted.to_string() });
        }
        self.post(&FrontendRequest::SetProtocolFeatures(protocol.bits()))?;
        self.protocol = protocol;
        if protocol.contains(ProtocolFeatures::MQ) {
            self.queues = Some(self.ask(&FrontendRequest::GetQueueNum)?);
        }
        if protocol.contains(ProtocolFeatures::BACKEND_REQ) {
            let reply_ack = protocol.contains(ProtocolFeatures::REPLY_ACK);
            let (reverse, theirs) =
                ReverseChannel::start(self.exchange.log.clone(), reply_ack).map_err(socket_error)?;
            self.confirm(&FrontendRequest::SetBackendReqFd(theirs))?;
            self.reverse = Some(reverse);
        }
        self.barrier()
    }

    /// The virtio features that the peer offers, without the bit that stands for protocol features.
    pub fn offered_features(&self) -> u64 {
        self.offered & !virtio_features::PROTOCOL_FEATURES
    }

    /// The virtio features that [`set_features`](Self::set_features) settled.
    pub fn features(&self) -> u64 {
        self.acked & !virtio_features::PROTOCOL_FEATURES
    }

    /// The protocol features that the peer offers, unknown ones among them.
    pub fn offered_protocol_features(&self) -> u64 {
        self.offered_protocol
    }

    /// The protocol features that were acked.
    pub fn protocol_features(&self) -> ProtocolFeatures {
        self.protocol
    }

    /// How many queues the peer has at most, where it could be asked (MQ).
    pub fn queue_count(&self) -> Option<u64> {
        self.queues
    }

    /// How long an answer may take.
    pub fn timeout(&self) -> Duration {
        self.exchange.patience.timeout
    }

    /// The last messages, in words. It lives on after the frontend.
    pub fn wire_log(&self) -> WireLog {
        self.exchange.log.clone()
    }

    /// Chooses among the virtio features that the peer offers.
    pub fn set_features(&mut self, features: u64) -> Result<(), FrontendError> {
        let offered = self.offered_features();
        argument("virtio features", features, features & !offered == 0, || {
            format!("among the offered ones, {offered:#x}; not offered: {:#x}", features & !offered)
        })?;
        let acked = features | (self.offered & virtio_features::PROTOCOL_FEATURES);
        self.confirm(&FrontendRequest::SetFeatures(acked))?;
        self.barrier()?;
        self.acked = acked;
        Ok(())
    }

    /// Reads configuration space. Asks from its beginning on, as QEMU and Linux do: libvhost-user does not
    /// look at an offset. Do not ask for more than the device has, some daemons read past their structure.
    pub fn config(&mut self, offset: u32, size: u32) -> Result<Vec<u8>, FrontendError> {
        self.need(Code::GetConfig, ProtocolFeatures::CONFIG)?;
        let most = u64::from(Self::MOST_CONFIG);
        let end = u64::from(offset) + u64::from(size);
        argument("end of the configuration space", end, size > 0 && end <= most, || format!("1 to {most}"))?;
        let asked = ConfigSpace { offset: 0, flags: 0, data: vec![0; end as usize] };
        let code = Code::GetConfig;
        match self.call(&FrontendRequest::GetConfig(asked))? {
            Reply::Config(ConfigSpace { data, .. }) if data.is_empty() => {
                Err(FrontendError::Refused { request: code.into(), value: 0 })
            }
            Reply::Config(ConfigSpace { offset: 0, data, .. }) if data.len() as u64 == end => {
                Ok(data.get(offset as usize..).unwrap_or_default().to_vec())
            }
            answer => Err(wrong_answer(code, &answer, format!("{end} bytes at 0 were asked for"))),
        }
    }

    /// The longest configuration space that is read or written: virtio-mmio's, as rust-vmm has it.
    pub const MOST_CONFIG: u32 = 0x1000 - 0x100;

    /// Writes configuration space, as a driver does.
    pub fn set_config(&mut self, offset: u32, data: &[u8]) -> Result<(), FrontendError> {
        self.need(Code::SetConfig, ProtocolFeatures::CONFIG)?;
        let (most, end) = (u64::from(Self::MOST_CONFIG), u64::from(offset) + data.len() as u64);
        argument("end of the configuration space", end, !data.is_empty() && end <= most, || {
            format!("1 to {most}, with at least one byte")
        })?;
        self.confirm(&FrontendRequest::SetConfig(ConfigSpace { offset, flags: 0, data: data.to_vec() }))?;
        self.barrier()
    }

    /// The device status (STATUS).
    pub fn status(&mut self) -> Result<u64, FrontendError> {
        self.need(Code::GetStatus, ProtocolFeatures::STATUS)?;
        self.ask(&FrontendRequest::GetStatus)
    }

    /// Sets the device status (STATUS).
    pub fn set_status(&mut self, status: u8) -> Result<(), FrontendError> {
        self.need(Code::SetStatus, ProtocolFeatures::STATUS)?;
        self.confirm(&FrontendRequest::SetStatus(status))?;
        self.barrier()
    }

    /// Resets the device (RESET_DEVICE).
    pub fn reset_device(&mut self) -> Result<(), FrontendError> {
        self.need(Code::ResetDevice, ProtocolFeatures::RESET_DEVICE)?;
        self.confirm(&FrontendRequest::ResetDevice)?;
        self.barrier()
    }

    /// An eventfd that counts changes of the configuration space, where the reverse channel is open.
    pub fn config_changes(&self) -> Option<BorrowedFd<'_>> {
        self.reverse.as_ref().map(ReverseChannel::config_changes)
    }

    /// Changes of the configuration space since the last call; 0 without a reverse channel.
    pub fn take_config_changes(&self) -> Result<u64, FrontendError> {
        let Some(fd) = self.config_changes() else {
            return Ok(0);
        };
        let mut count = [0; 8];
        match rustix::io::read(fd, &mut count) {
            Ok(_) => Ok(u64::from_ne_bytes(count)),
            Err(Errno::AGAIN) => Ok(0),
            Err(errno) => Err(socket_error(errno)),
        }
    }

    /// Sends anything, right or wrong, for negative tests. Nothing is checked.
    pub fn send_raw(
        &mut self,
        header: Header,
        payload: &[u8],
        fds: &[BorrowedFd<'_>],
    ) -> Result<(), FrontendError> {
        let format = self.format();
        self.exchange.post_raw(header, payload, fds, format)
    }

    /// The next message, whatever it is; `awaited` is for the error.
    pub fn receive_raw(&mut self, awaited: RequestName) -> Result<Message, FrontendError> {
        self.exchange.message(awaited)
    }

    /// True once the peer has closed the connection; false if it has not within the timeout.
    pub fn closed_within(&mut self, timeout: Duration) -> Result<bool, FrontendError> {
        let patience = Patience { timeout, interrupt: self.exchange.patience.interrupt.clone() };
        self.exchange.closed_within(&patience)
    }

    /// Returns when the peer has worked off everything that was sent. Where requests are acknowledged there
    /// is nothing to wait for; else a GET_FEATURES is asked, whose answer stands behind all of it.
    pub fn barrier(&mut self) -> Result<(), FrontendError> {
        if self.protocol.contains(ProtocolFeatures::REPLY_ACK) {
            return Ok(());
        }
        self.ask(&FrontendRequest::GetFeatures).map(drop)
    }

    pub(super) fn format(&self) -> RegionFormat {
        if self.protocol.contains(ProtocolFeatures::XEN_MMAP) {
            RegionFormat::Xen
        } else {
            RegionFormat::Plain
        }
    }

    fn post(&mut self, request: &FrontendRequest) -> Result<(), FrontendError> {
        let format = self.format();
        self.exchange.post(request, false, format)
    }

    /// Sends a request that has no reply of its own; where there are acknowledgements, waits for it.
    pub(super) fn confirm(&mut self, request: &FrontendRequest) -> Result<(), FrontendError> {
        if !self.protocol.contains(ProtocolFeatures::REPLY_ACK) {
            return self.post(request);
        }
        let (format, name) = (self.format(), request.name());
        self.exchange.post(request, true, format)?;
        match self.exchange.reply(request.code().map_err(|_| unsupported(name))?)? {
            Reply::Number(0) => Ok(()),
            Reply::Number(value) => Err(FrontendError::Refused { request: name, value }),
            other => Err(FrontendError::Answer {
                request: name,
                answer: other.to_string(),
                expected: "an acknowledgement was awaited".into(),
            }),
        }
    }

    /// Sends a request that has a reply of its own, and gives that.
    pub(super) fn call(&mut self, request: &FrontendRequest) -> Result<Reply, FrontendError> {
        self.post(request)?;
        let name = request.name();
        self.exchange.reply(request.code().map_err(|_| unsupported(name))?)
    }

    /// Sends a request whose reply is a number.
    pub(super) fn ask(&mut self, request: &FrontendRequest) -> Result<u64, FrontendError> {
        match self.call(request)? {
            Reply::Number(value) => Ok(value),
            other => Err(FrontendError::Answer {
                request: request.name(),
                answer: other.to_string(),
                expected: "a number was awaited".into(),
            }),
        }
    }

    pub(super) fn need(&self, code: Code, feature: ProtocolFeatures) -> Result<(), FrontendError> {
        if self.protocol.contains(feature) {
            return Ok(());
        }
        let offered = ProtocolFeatures::from_bits_retain(self.offered_protocol).contains(feature);
        let why = if offered { "was not acked" } else { "the peer does not offer" };
        Err(FrontendError::NotNegotiated { request: code.into(), feature: feature.to_string(), why })
    }
}

impl AsFd for Frontend {
    fn as_fd(&self) -> BorrowedFd<'_> {
        self.exchange.as_fd()
    }
}

pub(super) fn socket_error(errno: Errno) -> FrontendError {
    ProtocolError::Socket(errno).into()
}

fn unsupported(request: RequestName) -> FrontendError {
    ProtocolError::Unsupported { request }.into()
}

pub(super) fn argument(
    what: &'static str,
    value: u64,
    good: bool,
    allowed: impl FnOnce() -> String,
) -> Result<(), FrontendError> {
    if good {
        return Ok(());
    }
    Err(FrontendError::Argument { what, value, allowed: allowed() })
}

pub(super) fn wrong_answer(code: Code, answer: &Reply, expected: String) -> FrontendError {
    FrontendError::Answer { request: code.into(), answer: answer.to_string(), expected }
}
