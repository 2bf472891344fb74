//! Requests of the frontend between values and bytes.

use std::os::fd::{AsFd, BorrowedFd, OwnedFd};

use super::cursor::{Input, Output};
use super::{
    DeviceStateTransfer, FrontendCode, FrontendRequest, LogArea, MAX_FDS, MemoryRegion, Outgoing,
    ProtocolError, RegionFormat, VringState,
};

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
