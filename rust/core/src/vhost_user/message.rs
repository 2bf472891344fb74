//! Requests of the frontend: every number from 1 to 44, decoded and encoded.

use std::os::fd::{AsFd, BorrowedFd, OwnedFd};

use super::payload::{Input, Output};
use super::{
    Channel, ConfigSpace, DeviceStateTransfer, FrontendCode, Inflight, IotlbMessage, LogArea, MAX_FDS,
    MemoryRegion, ProtocolError, RegionFormat, RequestName, Uuid, VringAddress, VringState,
};

/// A payload that is ready to be sent, with the file descriptors that go with it.
#[derive(Debug)]
pub struct Outgoing<'a> {
    /// The request's number.
    pub number: u32,
    /// The payload.
    pub payload: Vec<u8>,
    /// Borrowed from the message.
    pub fds: Vec<BorrowedFd<'a>>,
}

/// A request of the frontend, checked: sizes, counts of file descriptors and what can be said of values
/// without knowing the device. Whether it was allowed at all (features, order, indices) is the caller's.
#[derive(Debug)]
#[non_exhaustive]
pub enum FrontendRequest {
    /// Which virtio features the backend has.
    GetFeatures,
    /// Which virtio features are used.
    SetFeatures(u64),
    /// The frontend takes the backend.
    SetOwner,
    /// Obsolete; DPDK and old QEMUs send it. Backends are advised to ignore it, or to disable all rings.
    ResetOwner,
    /// The whole memory table; each region with its file.
    SetMemTable(Vec<(MemoryRegion, OwnedFd)>),
    /// The dirty log.
    SetLogBase {
        /// Where it lies in the file.
        log: LogArea,
        /// The file.
        fd: OwnedFd,
    },
    /// An eventfd to be signalled when the dirty log was written.
    SetLogFd(OwnedFd),
    /// The size of a ring: `value` entries.
    SetVringNum(VringState),
    /// Where a ring lies.
    SetVringAddr(VringAddress),
    /// The index to go on from.
    SetVringBase(VringState),
    /// Stop the ring and say where it stopped.
    GetVringBase {
        /// Which queue.
        index: u32,
    },
    /// The eventfd for kicks; none: poll.
    SetVringKick {
        /// Which queue.
        index: u8,
        /// The eventfd.
        fd: Option<OwnedFd>,
    },
    /// The eventfd for calls; none: the driver polls.
    SetVringCall {
        /// Which queue.
        index: u8,
        /// The eventfd.
        fd: Option<OwnedFd>,
    },
    /// The eventfd for errors.
    SetVringErr {
        /// Which queue.
        index: u8,
        /// The eventfd.
        fd: Option<OwnedFd>,
    },
    /// Which protocol features the backend has.
    GetProtocolFeatures,
    /// Which protocol features are used; may hold bits that we do not know.
    SetProtocolFeatures(u64),
    /// How many queues the backend has at most.
    GetQueueNum,
    /// Enable (1) or disable (0) a ring.
    SetVringEnable {
        /// Which queue.
        index: u32,
        /// On or off.
        enable: bool,
    },
    /// Announce this MAC address after a migration.
    SendRarp(u64),
    /// The MTU that the guest was told.
    NetSetMtu(u64),
    /// The socket of the reverse channel.
    SetBackendReqFd(OwnedFd),
    /// An update of the translation cache.
    IotlbMsg(IotlbMessage),
    /// 0 little endian, 1 big endian.
    SetVringEndian(VringState),
    /// Read configuration space; the length of `data` says how much.
    GetConfig(ConfigSpace),
    /// Write configuration space.
    SetConfig(ConfigSpace),
    /// Open a userfaultfd.
    PostcopyAdvise,
    /// Postcopy begins with the next memory table.
    PostcopyListen,
    /// Postcopy is over.
    PostcopyEnd,
    /// Make a shared area for what is in flight.
    GetInflightFd(Inflight),
    /// Here is the shared area of an earlier life.
    SetInflightFd {
        /// Its layout.
        inflight: Inflight,
        /// Its file.
        fd: OwnedFd,
    },
    /// The socket of vhost-user-gpu's own protocol.
    GpuSetSocket(OwnedFd),
    /// Disable the rings and reset the device's own state.
    ResetDevice,
    /// A kick without an eventfd.
    VringKick {
        /// Which queue.
        index: u32,
    },
    /// How many regions the backend takes.
    GetMaxMemSlots,
    /// One more region.
    AddMemReg {
        /// The region.
        region: MemoryRegion,
        /// Its file.
        fd: OwnedFd,
    },
    /// Away with one region, named by guest address, user address and size. (A file descriptor that comes
    /// with it, which the specification tolerates, was closed.)
    RemMemReg(MemoryRegion),
    /// The device status, virtio 1.3, 2.1. Bits that we do not know are kept.
    SetStatus(u8),
    /// Ask for the device status.
    GetStatus,
    /// Ask for the dma-buf of that name.
    GetSharedObject(Uuid),
    /// The pipe or file for the device's internal state.
    SetDeviceStateFd {
        /// Where to and when.
        transfer: DeviceStateTransfer,
        /// The pipe.
        fd: OwnedFd,
    },
    /// Was the internal state transferred well?
    CheckDeviceState,
    /// Which shared memory regions the device has.
    GetShmemConfig,
    /// A request whose number is known and which nobody here implements: CREATE_CRYPTO_SESSION and
    /// CLOSE_CRYPTO_SESSION. What came with it was dropped.
    Unimplemented(FrontendCode),
    /// A number that nobody has given out. What came with it was dropped.
    Unknown(u32),
}

impl FrontendRequest {
    /// Makes a request of what came. File descriptors that the request does not keep are closed, on error
    /// all of them.
    pub fn decode(
        number: u32,
        payload: &[u8],
        fds: Vec<OwnedFd>,
        format: RegionFormat,
    ) -> Result<Self, ProtocolError> {
        use FrontendCode as C;
        let Some(code) = C::from_number(number) else {
            return Ok(Self::Unknown(number));
        };
        let mut input = Input::new(code, payload, fds);
        let empty = |input: &Input<'_>, request| input.expect(0, 0).map(|()| request);
        Ok(match code {
            C::GetFeatures => empty(&input, Self::GetFeatures)?,
            C::SetOwner => empty(&input, Self::SetOwner)?,
            C::ResetOwner => empty(&input, Self::ResetOwner)?,
            C::GetProtocolFeatures => empty(&input, Self::GetProtocolFeatures)?,
            C::GetQueueNum => empty(&input, Self::GetQueueNum)?,
            C::PostcopyAdvise => empty(&input, Self::PostcopyAdvise)?,
            C::PostcopyListen => empty(&input, Self::PostcopyListen)?,
            C::PostcopyEnd => empty(&input, Self::PostcopyEnd)?,
            C::ResetDevice => empty(&input, Self::ResetDevice)?,
            C::GetMaxMemSlots => empty(&input, Self::GetMaxMemSlots)?,
            C::GetStatus => empty(&input, Self::GetStatus)?,
            C::CheckDeviceState => empty(&input, Self::CheckDeviceState)?,
            C::GetShmemConfig => empty(&input, Self::GetShmemConfig)?,
            C::SetFeatures => Self::SetFeatures(number_of(&mut input)?),
            C::SetProtocolFeatures => Self::SetProtocolFeatures(number_of(&mut input)?),
            C::SendRarp => Self::SendRarp(number_of(&mut input)?),
            C::NetSetMtu => Self::NetSetMtu(number_of(&mut input)?),
            C::SetStatus => {
                let value = number_of(&mut input)?;
                input.value("status", value, value <= 0xff, || "at most 0xff".into())?;
                Self::SetStatus(value as u8)
            }
            C::SetVringNum => Self::SetVringNum(input.vring_state()?),
            C::SetVringBase => Self::SetVringBase(input.vring_state()?),
            C::GetVringBase => Self::GetVringBase { index: input.vring_state()?.index },
            C::SetVringEndian => Self::SetVringEndian(input.vring_state()?),
            C::VringKick => Self::VringKick { index: input.vring_state()?.index },
            C::SetVringEnable => {
                let VringState { index, value } = input.vring_state()?;
                input.value("enable", value.into(), value <= 1, || "0 or 1".into())?;
                Self::SetVringEnable { index, enable: value == 1 }
            }
            C::SetVringAddr => Self::SetVringAddr(input.vring_address()?),
            C::SetVringKick => {
                let (index, fd) = input.vring_fd(8)?;
                Self::SetVringKick { index, fd }
            }
            C::SetVringCall => {
                let (index, fd) = input.vring_fd(8)?;
                Self::SetVringCall { index, fd }
            }
            C::SetVringErr => {
                let (index, fd) = input.vring_fd(8)?;
                Self::SetVringErr { index, fd }
            }
            C::SetMemTable => Self::SetMemTable(memory_table(&mut input, format)?),
            C::AddMemReg => {
                input.expect(8 + format.size(), 1)?;
                let _padding = input.u64()?;
                Self::AddMemReg { region: input.region(format)?, fd: input.fd()? }
            }
            C::RemMemReg => {
                let size = 8 + format.size();
                input.size(input.len() == size, || size.to_string())?;
                input.fds(input.fd_count() <= 1, || "0 or 1".into())?;
                let _padding = input.u64()?;
                Self::RemMemReg(input.region(format)?)
            }
            C::SetLogBase => {
                input.expect(16, 1)?;
                Self::SetLogBase {
                    log: LogArea { size: input.u64()?, offset: input.u64()? },
                    fd: input.fd()?,
                }
            }
            C::SetLogFd => {
                // The specification gives it no payload, the kernel's ioctl after which it is named a number.
                input.size(matches!(input.len(), 0 | 8), || "0 or 8".into())?;
                input.fds(input.fd_count() == 1, || "1".into())?;
                Self::SetLogFd(input.fd()?)
            }
            C::SetBackendReqFd => {
                input.expect(0, 1)?;
                Self::SetBackendReqFd(input.fd()?)
            }
            C::GpuSetSocket => {
                input.expect(0, 1)?;
                Self::GpuSetSocket(input.fd()?)
            }
            C::IotlbMsg => Self::IotlbMsg(input.iotlb()?),
            C::GetConfig => Self::GetConfig(input.config(true)?),
            C::SetConfig => Self::SetConfig(input.config(false)?),
            C::GetInflightFd => {
                input.fds(input.fd_count() == 0, || "0".into())?;
                Self::GetInflightFd(input.inflight()?)
            }
            C::SetInflightFd => {
                input.fds(input.fd_count() == 1, || "1".into())?;
                Self::SetInflightFd { inflight: input.inflight()?, fd: input.fd()? }
            }
            C::GetSharedObject => Self::GetSharedObject(input.uuid()?),
            C::SetDeviceStateFd => {
                input.expect(8, 1)?;
                let transfer = DeviceStateTransfer { direction: input.u32()?, phase: input.u32()? };
                Self::SetDeviceStateFd { transfer, fd: input.fd()? }
            }
            C::CreateCryptoSession | C::CloseCryptoSession => Self::Unimplemented(code),
        })
    }

    /// The request's number on the wire.
    pub fn number(&self) -> u32 {
        self.code().map_or_else(|number| number, FrontendCode::number)
    }

    /// The request's name, for errors and logs.
    pub fn name(&self) -> RequestName {
        RequestName { channel: Channel::Main, number: self.number() }
    }

    /// The request's code, or the number of one that nobody knows.
    pub fn code(&self) -> Result<FrontendCode, u32> {
        use FrontendCode as C;
        Ok(match self {
            Self::GetFeatures => C::GetFeatures,
            Self::SetFeatures(_) => C::SetFeatures,
            Self::SetOwner => C::SetOwner,
            Self::ResetOwner => C::ResetOwner,
            Self::SetMemTable(_) => C::SetMemTable,
            Self::SetLogBase { .. } => C::SetLogBase,
            Self::SetLogFd(_) => C::SetLogFd,
            Self::SetVringNum(_) => C::SetVringNum,
            Self::SetVringAddr(_) => C::SetVringAddr,
            Self::SetVringBase(_) => C::SetVringBase,
            Self::GetVringBase { .. } => C::GetVringBase,
            Self::SetVringKick { .. } => C::SetVringKick,
            Self::SetVringCall { .. } => C::SetVringCall,
            Self::SetVringErr { .. } => C::SetVringErr,
            Self::GetProtocolFeatures => C::GetProtocolFeatures,
            Self::SetProtocolFeatures(_) => C::SetProtocolFeatures,
            Self::GetQueueNum => C::GetQueueNum,
            Self::SetVringEnable { .. } => C::SetVringEnable,
            Self::SendRarp(_) => C::SendRarp,
            Self::NetSetMtu(_) => C::NetSetMtu,
            Self::SetBackendReqFd(_) => C::SetBackendReqFd,
            Self::IotlbMsg(_) => C::IotlbMsg,
            Self::SetVringEndian(_) => C::SetVringEndian,
            Self::GetConfig(_) => C::GetConfig,
            Self::SetConfig(_) => C::SetConfig,
            Self::PostcopyAdvise => C::PostcopyAdvise,
            Self::PostcopyListen => C::PostcopyListen,
            Self::PostcopyEnd => C::PostcopyEnd,
            Self::GetInflightFd(_) => C::GetInflightFd,
            Self::SetInflightFd { .. } => C::SetInflightFd,
            Self::GpuSetSocket(_) => C::GpuSetSocket,
            Self::ResetDevice => C::ResetDevice,
            Self::VringKick { .. } => C::VringKick,
            Self::GetMaxMemSlots => C::GetMaxMemSlots,
            Self::AddMemReg { .. } => C::AddMemReg,
            Self::RemMemReg(_) => C::RemMemReg,
            Self::SetStatus(_) => C::SetStatus,
            Self::GetStatus => C::GetStatus,
            Self::GetSharedObject(_) => C::GetSharedObject,
            Self::SetDeviceStateFd { .. } => C::SetDeviceStateFd,
            Self::CheckDeviceState => C::CheckDeviceState,
            Self::GetShmemConfig => C::GetShmemConfig,
            Self::Unimplemented(code) => *code,
            Self::Unknown(number) => return Err(*number),
        })
    }

    /// The payload and the file descriptors, for [`Connection::send`](super::Connection::send).
    pub fn encode(&self, format: RegionFormat) -> Outgoing<'_> {
        let mut out = Output::default();
        let mut fds: Vec<BorrowedFd<'_>> = Vec::new();
        match self {
            Self::GetFeatures
            | Self::SetOwner
            | Self::ResetOwner
            | Self::GetProtocolFeatures
            | Self::GetQueueNum
            | Self::PostcopyAdvise
            | Self::PostcopyListen
            | Self::PostcopyEnd
            | Self::ResetDevice
            | Self::GetMaxMemSlots
            | Self::GetStatus
            | Self::CheckDeviceState
            | Self::GetShmemConfig
            | Self::Unimplemented(_)
            | Self::Unknown(_) => {}
            Self::SetFeatures(value)
            | Self::SetProtocolFeatures(value)
            | Self::SendRarp(value)
            | Self::NetSetMtu(value) => out.u64(*value),
            Self::SetStatus(value) => out.u64((*value).into()),
            Self::SetVringNum(state) | Self::SetVringBase(state) | Self::SetVringEndian(state) => {
                out.vring_state(state)
            }
            Self::GetVringBase { index } | Self::VringKick { index } => {
                out.vring_state(&VringState { index: *index, value: 0 });
            }
            Self::SetVringEnable { index, enable } => {
                out.vring_state(&VringState { index: *index, value: u32::from(*enable) });
            }
            Self::SetVringAddr(address) => out.vring_address(address),
            Self::SetVringKick { index, fd }
            | Self::SetVringCall { index, fd }
            | Self::SetVringErr { index, fd } => {
                out.vring_fd(*index, fd.is_some());
                fds.extend(fd.as_ref().map(AsFd::as_fd));
            }
            Self::SetMemTable(regions) => {
                out.u32(regions.len() as u32);
                out.u32(0);
                for (region, fd) in regions {
                    out.region(region, format);
                    fds.push(fd.as_fd());
                }
            }
            Self::AddMemReg { region, fd } => {
                out.u64(0);
                out.region(region, format);
                fds.push(fd.as_fd());
            }
            Self::RemMemReg(region) => {
                out.u64(0);
                out.region(region, format);
            }
            Self::SetLogBase { log, fd } => {
                out.u64(log.size);
                out.u64(log.offset);
                fds.push(fd.as_fd());
            }
            Self::SetLogFd(fd) | Self::SetBackendReqFd(fd) | Self::GpuSetSocket(fd) => fds.push(fd.as_fd()),
            Self::IotlbMsg(message) => out.iotlb(message),
            Self::GetConfig(config) | Self::SetConfig(config) => out.config(config),
            Self::GetInflightFd(inflight) => out.inflight(inflight),
            Self::SetInflightFd { inflight, fd } => {
                out.inflight(inflight);
                fds.push(fd.as_fd());
            }
            Self::GetSharedObject(uuid) => out.0.extend_from_slice(uuid),
            Self::SetDeviceStateFd { transfer, fd } => {
                out.u32(transfer.direction);
                out.u32(transfer.phase);
                fds.push(fd.as_fd());
            }
        }
        Outgoing { number: self.number(), payload: out.0, fds }
    }
}

fn number_of(input: &mut Input<'_>) -> Result<u64, ProtocolError> {
    input.expect(8, 0)?;
    input.u64()
}

/// The only payload that may be longer than what it says of itself: User-Mode Linux sends a structure of
/// two regions (72 bytes) whatever their number.
fn memory_table(
    input: &mut Input<'_>,
    format: RegionFormat,
) -> Result<Vec<(MemoryRegion, OwnedFd)>, ProtocolError> {
    let len = input.len();
    input.size(len >= 8, || "at least 8".into())?;
    let count = input.u32()?;
    let _padding = input.u32()?;
    input.value("number of regions", count.into(), count as usize <= MAX_FDS, || {
        format!("at most {MAX_FDS}")
    })?;
    let count = count as usize;
    let least = 8 + count * format.size();
    input
        .size(len >= least, || format!("at least {least} for {count} regions of {} bytes", format.size()))?;
    input.fds(input.fd_count() == count, || format!("{count}, one a region"))?;
    (0..count).map(|_| Ok((input.region(format)?, input.fd()?))).collect()
}
