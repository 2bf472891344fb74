//! Requests of the frontend: every number from 1 to 44 as a value.

use std::os::fd::{BorrowedFd, OwnedFd};

use super::{
    Channel, ConfigSpace, DeviceStateTransfer, FrontendCode, Inflight, IotlbMessage, LogArea, MemoryRegion,
    RequestName, Uuid, VringAddress, VringState,
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
}
