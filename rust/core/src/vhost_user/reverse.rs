//! Requests of the backend, on the reverse channel. Each is answered by a number, 0 for success, where
//! NEED_REPLY asks for it.

use std::os::fd::{AsFd, BorrowedFd, OwnedFd};

use super::cursor::{Input, Output};
use super::{
    BackendCode, Channel, IotlbMessage, Outgoing, ProtocolError, RequestName, SharedMemoryMap, Uuid,
    VringArea, VringState,
};

/// A request of the backend.
#[derive(Debug)]
#[non_exhaustive]
pub enum BackendRequest {
    /// A miss or a failed access of the translation cache.
    IotlbMsg(IotlbMessage),
    /// The configuration space changed; read it again.
    ConfigChange,
    /// A doorbell that the guest may write to directly.
    VringHostNotifier {
        /// Where it lies.
        area: VringArea,
        /// Its file; none takes the doorbell away.
        fd: Option<OwnedFd>,
    },
    /// A call without an eventfd.
    VringCall {
        /// Which queue.
        index: u32,
    },
    /// An error of a queue without an eventfd.
    VringErr {
        /// Which queue.
        index: u32,
    },
    /// The backend has a shared object of that name.
    SharedObjectAdd(Uuid),
    /// It no longer has.
    SharedObjectRemove(Uuid),
    /// It wants the file of the object of that name.
    SharedObjectLookup(Uuid),
    /// Map this file into the device's shared memory.
    ShmemMap {
        /// What and where to.
        map: SharedMemoryMap,
        /// The file.
        fd: OwnedFd,
    },
    /// Away with such a mapping.
    ShmemUnmap(SharedMemoryMap),
    /// A number that nobody has given out. What came with it was dropped.
    Unknown(u32),
}

impl BackendRequest {
    /// Makes a request of what came. File descriptors that the request does not keep are closed.
    pub fn decode(number: u32, payload: &[u8], fds: Vec<OwnedFd>) -> Result<Self, ProtocolError> {
        use BackendCode as C;
        let Some(code) = C::from_number(number) else {
            return Ok(Self::Unknown(number));
        };
        let mut input = Input::new(code, payload, fds);
        Ok(match code {
            C::IotlbMsg => Self::IotlbMsg(input.iotlb()?),
            C::ConfigChange => {
                input.expect(0, 0)?;
                Self::ConfigChange
            }
            C::VringHostNotifier => {
                let (index, fd) = input.vring_fd(24)?;
                Self::VringHostNotifier {
                    area: VringArea { index, size: input.u64()?, offset: input.u64()? },
                    fd,
                }
            }
            C::VringCall => Self::VringCall { index: input.vring_state()?.index },
            C::VringErr => Self::VringErr { index: input.vring_state()?.index },
            C::SharedObjectAdd => Self::SharedObjectAdd(input.uuid()?),
            C::SharedObjectRemove => Self::SharedObjectRemove(input.uuid()?),
            C::SharedObjectLookup => Self::SharedObjectLookup(input.uuid()?),
            C::ShmemMap => {
                input.fds(input.fd_count() == 1, || "1".into())?;
                Self::ShmemMap { map: input.shared_memory_map()?, fd: input.fd()? }
            }
            C::ShmemUnmap => {
                input.fds(input.fd_count() == 0, || "0".into())?;
                Self::ShmemUnmap(input.shared_memory_map()?)
            }
        })
    }

    /// The request's number on the wire.
    pub fn number(&self) -> u32 {
        use BackendCode as C;
        match self {
            Self::IotlbMsg(_) => C::IotlbMsg.number(),
            Self::ConfigChange => C::ConfigChange.number(),
            Self::VringHostNotifier { .. } => C::VringHostNotifier.number(),
            Self::VringCall { .. } => C::VringCall.number(),
            Self::VringErr { .. } => C::VringErr.number(),
            Self::SharedObjectAdd(_) => C::SharedObjectAdd.number(),
            Self::SharedObjectRemove(_) => C::SharedObjectRemove.number(),
            Self::SharedObjectLookup(_) => C::SharedObjectLookup.number(),
            Self::ShmemMap { .. } => C::ShmemMap.number(),
            Self::ShmemUnmap(_) => C::ShmemUnmap.number(),
            Self::Unknown(number) => *number,
        }
    }

    /// The request's name, for errors and logs.
    pub fn name(&self) -> RequestName {
        RequestName { channel: Channel::Reverse, number: self.number() }
    }

    /// The payload and the file descriptors.
    pub fn encode(&self) -> Outgoing<'_> {
        let mut out = Output::default();
        let mut fds: Vec<BorrowedFd<'_>> = Vec::new();
        match self {
            Self::ConfigChange | Self::Unknown(_) => {}
            Self::IotlbMsg(message) => out.iotlb(message),
            Self::VringHostNotifier { area, fd } => {
                out.vring_fd(area.index, fd.is_some());
                out.u64(area.size);
                out.u64(area.offset);
                fds.extend(fd.as_ref().map(AsFd::as_fd));
            }
            Self::VringCall { index } | Self::VringErr { index } => {
                out.vring_state(&VringState { index: *index, value: 0 });
            }
            Self::SharedObjectAdd(uuid) | Self::SharedObjectRemove(uuid) | Self::SharedObjectLookup(uuid) => {
                out.0.extend_from_slice(uuid);
            }
            Self::ShmemMap { map, fd } => {
                out.shared_memory_map(map);
                fds.push(fd.as_fd());
            }
            Self::ShmemUnmap(map) => out.shared_memory_map(map),
        }
        Outgoing { number: self.number(), payload: out.0, fds }
    }
}
