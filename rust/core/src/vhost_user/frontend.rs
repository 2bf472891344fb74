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
    Patience, ProtocolError, ProtocolFeatures, RegionFormat, Reply, RequestName, VringAddress, VringFlags,
    VringState, WireLog, XenMapFlags, connect::connect_with_retry, exchange::Exchange,
    reverse_channel::ReverseChannel, virtio_features,
};

/// Lines that the wire log keeps.
const LOG_LINES: usize = 256;

/// One ring, as [`Frontend::set_ring`] wants it. Addresses are guest physical and lie in the memory table.
#[derive(Clone, Copy, Debug)]
pub struct RingSetup<'a> {
    /// Which queue.
    pub index: u8,
    /// Entries.
    pub size: u16,
    /// The descriptor table.
    pub descriptors: u64,
    /// The available ring.
    pub available: u64,
    /// The used ring.
    pub used: u64,
    /// The available index to go on from; 0 for a new ring.
    pub base: u16,
    /// Signalled by the driver. None: the device polls.
    pub kick: Option<BorrowedFd<'a>>,
    /// Signalled by the device. None: the driver polls.
    pub call: Option<BorrowedFd<'a>>,
    /// Signalled by the device when the ring is broken. Not sent at all if None.
    pub err: Option<BorrowedFd<'a>>,
}

/// A connection to a vhost-user backend.
#[derive(Debug)]
pub struct Frontend {
    exchange: Exchange,
    reverse: Option<ReverseChannel>,
    offered: u64,
    acked: u64,
    offered_protocol: u64,
    protocol: ProtocolFeatures,
    queues: Option<u64>,
    memory: Vec<MemoryRegion>,
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

    /// Gives the peer the whole memory table.
    pub fn set_memory(&mut self, regions: &[(MemoryRegion, BorrowedFd<'_>)]) -> Result<(), FrontendError> {
        let most = super::MAX_FDS;
        argument("number of regions", regions.len() as u64, regions.len() <= most, || {
            format!("at most {most}")
        })?;
        let regions = regions.iter().map(|(region, fd)| Ok((self.region(region)?, duplicate(*fd)?)));
        let regions = regions.collect::<Result<Vec<_>, FrontendError>>()?;
        let table = regions.iter().map(|(region, _)| *region).collect();
        self.confirm(&FrontendRequest::SetMemTable(regions))?;
        self.barrier()?;
        self.memory = table;
        Ok(())
    }

    /// How many regions the peer takes (CONFIGURE_MEM_SLOTS).
    pub fn max_memory_slots(&mut self) -> Result<u64, FrontendError> {
        self.need(Code::GetMaxMemSlots, ProtocolFeatures::CONFIGURE_MEM_SLOTS)?;
        self.ask(&FrontendRequest::GetMaxMemSlots)
    }

    /// One more region (CONFIGURE_MEM_SLOTS).
    pub fn add_region(&mut self, region: &MemoryRegion, fd: BorrowedFd<'_>) -> Result<(), FrontendError> {
        self.need(Code::AddMemReg, ProtocolFeatures::CONFIGURE_MEM_SLOTS)?;
        let region = self.region(region)?;
        self.confirm(&FrontendRequest::AddMemReg { region, fd: duplicate(fd)? })?;
        self.barrier()?;
        self.memory.push(region);
        Ok(())
    }

    /// Away with a region (CONFIGURE_MEM_SLOTS).
    pub fn remove_region(&mut self, region: &MemoryRegion) -> Result<(), FrontendError> {
        self.need(Code::RemMemReg, ProtocolFeatures::CONFIGURE_MEM_SLOTS)?;
        let region = self.region(region)?;
        self.confirm(&FrontendRequest::RemMemReg(region))?;
        self.barrier()?;
        self.memory.retain(|known| {
            (known.guest_address, known.user_address, known.size)
                != (region.guest_address, region.user_address, region.size)
        });
        Ok(())
    }

    /// Sets one ring up; enable it when all are. The kick comes last: it is what starts the ring.
    pub fn set_ring(&mut self, ring: &RingSetup<'_>) -> Result<(), FrontendError> {
        let index = u32::from(ring.index);
        let address = VringAddress {
            index,
            flags: VringFlags::empty(),
            descriptors: self.user_address("descriptor table", ring.descriptors)?,
            available: self.user_address("available ring", ring.available)?,
            used: self.user_address("used ring", ring.used)?,
            log: 0,
        };
        let duplicate = |fd: Option<BorrowedFd<'_>>| fd.map(duplicate).transpose();
        self.confirm(&FrontendRequest::SetVringNum(VringState { index, value: ring.size.into() }))?;
        self.confirm(&FrontendRequest::SetVringAddr(address))?;
        self.confirm(&FrontendRequest::SetVringBase(VringState { index, value: ring.base.into() }))?;
        self.confirm(&FrontendRequest::SetVringCall { index: ring.index, fd: duplicate(ring.call)? })?;
        if ring.err.is_some() {
            self.confirm(&FrontendRequest::SetVringErr { index: ring.index, fd: duplicate(ring.err)? })?;
        }
        self.confirm(&FrontendRequest::SetVringKick { index: ring.index, fd: duplicate(ring.kick)? })?;
        self.barrier()
    }

    /// Enables or disables a ring. Without protocol features there is nothing to say: it runs from the start.
    pub fn enable_ring(&mut self, index: u8, enable: bool) -> Result<(), FrontendError> {
        if self.acked & virtio_features::PROTOCOL_FEATURES == 0 {
            return Ok(());
        }
        self.confirm(&FrontendRequest::SetVringEnable { index: index.into(), enable })?;
        self.barrier()
    }

    /// Stops a ring and says at which available index: the base to go on from.
    pub fn stop_ring(&mut self, index: u8) -> Result<u32, FrontendError> {
        match self.call(&FrontendRequest::GetVringBase { index: index.into() })? {
            Reply::VringBase(state) if state.index == u32::from(index) => Ok(state.value),
            answer => Err(wrong_answer(Code::GetVringBase, &answer, format!("queue {index} was asked for"))),
        }
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

    fn format(&self) -> RegionFormat {
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
    fn confirm(&mut self, request: &FrontendRequest) -> Result<(), FrontendError> {
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
    fn call(&mut self, request: &FrontendRequest) -> Result<Reply, FrontendError> {
        self.post(request)?;
        let name = request.name();
        self.exchange.reply(request.code().map_err(|_| unsupported(name))?)
    }

    /// Sends a request whose reply is a number.
    fn ask(&mut self, request: &FrontendRequest) -> Result<u64, FrontendError> {
        match self.call(request)? {
            Reply::Number(value) => Ok(value),
            other => Err(FrontendError::Answer {
                request: request.name(),
                answer: other.to_string(),
                expected: "a number was awaited".into(),
            }),
        }
    }

    fn need(&self, code: Code, feature: ProtocolFeatures) -> Result<(), FrontendError> {
        if self.protocol.contains(feature) {
            return Ok(());
        }
        let offered = ProtocolFeatures::from_bits_retain(self.offered_protocol).contains(feature);
        let why = if offered { "was not acked" } else { "the peer does not offer" };
        Err(FrontendError::NotNegotiated { request: code.into(), feature: feature.to_string(), why })
    }

    /// The region as the negotiated format can carry it.
    fn region(&self, region: &MemoryRegion) -> Result<MemoryRegion, FrontendError> {
        let plain = region.xen_flags == XenMapFlags::empty() && region.xen_domain == 0;
        let bits = u64::from(region.xen_flags.bits());
        argument("Xen mapping flags", bits, plain || self.format() == RegionFormat::Xen, || {
            "0 where XEN_MMAP was not acked".into()
        })?;
        argument("region size", region.size, region.size > 0, || "more than 0".into())?;
        for (what, start) in [
            ("guest address", region.guest_address),
            ("user address", region.user_address),
            ("mmap offset", region.mmap_offset),
        ] {
            argument(what, start, start.checked_add(region.size).is_some(), || {
                format!("such that the region's {:#x} bytes do not wrap", region.size)
            })?;
        }
        Ok(*region)
    }

    fn user_address(&self, what: &'static str, address: u64) -> Result<u64, FrontendError> {
        let region =
            self.memory.iter().find(|region| address.wrapping_sub(region.guest_address) < region.size);
        match region {
            Some(region) => Ok(region.user_address + (address - region.guest_address)),
            None => Err(FrontendError::Argument {
                what,
                value: address,
                allowed: format!("in one of the {} regions that were set", self.memory.len()),
            }),
        }
    }
}

impl AsFd for Frontend {
    fn as_fd(&self) -> BorrowedFd<'_> {
        self.exchange.as_fd()
    }
}

fn socket_error(errno: Errno) -> FrontendError {
    ProtocolError::Socket(errno).into()
}

fn unsupported(request: RequestName) -> FrontendError {
    ProtocolError::Unsupported { request }.into()
}

fn duplicate(fd: BorrowedFd<'_>) -> Result<OwnedFd, FrontendError> {
    rustix::io::fcntl_dupfd_cloexec(fd, 3).map_err(socket_error)
}

fn argument(
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

fn wrong_answer(code: Code, answer: &Reply, expected: String) -> FrontendError {
    FrontendError::Answer { request: code.into(), answer: answer.to_string(), expected }
}
