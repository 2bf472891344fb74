//! Messages in words, one line each, for logs and for the reader of a failed test.

use std::{
    fmt::{self, Display, Formatter},
    os::fd::BorrowedFd,
};

use super::{
    BackendRequest, ConfigSpace, FrontendCode, FrontendRequest, Header, MemoryRegion, ProtocolFeatures,
    RegionFormat, Reply, Status, XenMapFlags,
};

/// Bytes of a payload that a line shows.
const SHOWN: usize = 32;

impl Display for ProtocolFeatures {
    fn fmt(&self, f: &mut Formatter<'_>) -> fmt::Result {
        bitflags::parser::to_writer(self, f)
    }
}

impl Display for Status {
    fn fmt(&self, f: &mut Formatter<'_>) -> fmt::Result {
        bitflags::parser::to_writer(self, f)
    }
}

impl Display for MemoryRegion {
    fn fmt(&self, f: &mut Formatter<'_>) -> fmt::Result {
        let Self { guest_address, size, user_address, mmap_offset, xen_flags, xen_domain } = self;
        write!(f, "guest {guest_address:#x}..+{size:#x} user {user_address:#x} offset {mmap_offset:#x}")?;
        if *xen_flags != XenMapFlags::empty() {
            write!(f, " Xen flags {:#x} domain {xen_domain}", xen_flags.bits())?;
        }
        Ok(())
    }
}

/// The first bytes of a payload in hexadecimal.
struct Bytes<'a>(&'a [u8]);

impl Display for Bytes<'_> {
    fn fmt(&self, f: &mut Formatter<'_>) -> fmt::Result {
        write!(f, "{} bytes", self.0.len())?;
        for (index, byte) in self.0.iter().take(SHOWN).enumerate() {
            f.write_str(if index == 0 { ": " } else { " " })?;
            write!(f, "{byte:02x}")?;
        }
        f.write_str(if self.0.len() > SHOWN { " ..." } else { "" })
    }
}

fn fd_or_none<T>(fd: &Option<T>) -> &'static str {
    if fd.is_some() { "a file" } else { "no file" }
}

fn uuid(f: &mut Formatter<'_>, name: &[u8; 16]) -> fmt::Result {
    write!(f, " {:032x}", u128::from_be_bytes(*name))
}

impl Display for FrontendRequest {
    fn fmt(&self, f: &mut Formatter<'_>) -> fmt::Result {
        write!(f, "{}", self.name())?;
        match self {
            Self::SetFeatures(value) | Self::SendRarp(value) => write!(f, " {value:#x}"),
            Self::SetProtocolFeatures(value) => write!(f, " {}", ProtocolFeatures::from_bits_retain(*value)),
            Self::NetSetMtu(value) => write!(f, " {value}"),
            Self::SetStatus(value) => write!(f, " {}", Status::from_bits_retain(*value)),
            Self::SetVringNum(state) | Self::SetVringBase(state) | Self::SetVringEndian(state) => {
                write!(f, " queue {}: {}", state.index, state.value)
            }
            Self::GetVringBase { index } | Self::VringKick { index } => write!(f, " queue {index}"),
            Self::SetVringEnable { index, enable } => {
                write!(f, " queue {index}: {}", if *enable { "on" } else { "off" })
            }
            Self::SetVringAddr(address) => write!(
                f,
                " queue {}: descriptors {:#x} available {:#x} used {:#x} flags {:#x} log {:#x}",
                address.index,
                address.descriptors,
                address.available,
                address.used,
                address.flags.bits(),
                address.log
            ),
            Self::SetVringKick { index, fd }
            | Self::SetVringCall { index, fd }
            | Self::SetVringErr { index, fd } => {
                write!(f, " queue {index}: {}", fd_or_none(fd))
            }
            Self::SetMemTable(regions) => {
                write!(f, " {} regions", regions.len())?;
                regions.iter().try_for_each(|(region, _)| write!(f, "; {region}"))
            }
            Self::AddMemReg { region, .. } | Self::RemMemReg(region) => write!(f, " {region}"),
            Self::SetLogBase { log, .. } => write!(f, " {:#x} bytes at {:#x}", log.size, log.offset),
            Self::GetConfig(ConfigSpace { offset, data, .. }) => write!(f, " {offset}..+{}", data.len()),
            Self::SetConfig(ConfigSpace { offset, data, flags }) => {
                write!(f, " at {offset} flags {flags} {}", Bytes(data))
            }
            Self::IotlbMsg(message) => write!(f, " {message:?}"),
            Self::GetInflightFd(inflight) | Self::SetInflightFd { inflight, .. } => {
                write!(f, " {inflight:?}")
            }
            Self::GetSharedObject(name) => uuid(f, name),
            Self::SetDeviceStateFd { transfer, .. } => write!(f, " {transfer:?}"),
            _ => Ok(()),
        }
    }
}

impl Display for Reply {
    fn fmt(&self, f: &mut Formatter<'_>) -> fmt::Result {
        match self {
            Self::Number(value) => write!(f, "{value:#x}"),
            Self::VringBase(state) => write!(f, "queue {}: {}", state.index, state.value),
            Self::Config(config) if config.data.is_empty() => f.write_str("refused (no bytes)"),
            Self::Config(config) => write!(f, "at {} {}", config.offset, Bytes(&config.data)),
            Self::Inflight { inflight, fd } => write!(f, "{inflight:?}, {}", fd_or_none(fd)),
            Self::Userfault(fd) => f.write_str(fd_or_none(fd)),
            Self::NumberAndFile { value, fd } => write!(f, "{value:#x}, {}", fd_or_none(fd)),
            Self::SharedMemory(sizes) => {
                let present = sizes.iter().enumerate().filter(|&(_, &size)| size != 0);
                present.clone().try_for_each(|(id, size)| write!(f, "{id}: {size:#x} bytes; "))?;
                write!(f, "{} regions", present.count())
            }
        }
    }
}

impl Display for BackendRequest {
    fn fmt(&self, f: &mut Formatter<'_>) -> fmt::Result {
        write!(f, "{}", self.name())?;
        match self {
            Self::ConfigChange | Self::Unknown(_) => Ok(()),
            Self::IotlbMsg(message) => write!(f, " {message:?}"),
            Self::VringHostNotifier { area, fd } => write!(f, " {area:?}, {}", fd_or_none(fd)),
            Self::VringCall { index } | Self::VringErr { index } => write!(f, " queue {index}"),
            Self::SharedObjectAdd(name) | Self::SharedObjectRemove(name) | Self::SharedObjectLookup(name) => {
                uuid(f, name)
            }
            Self::ShmemMap { map, .. } | Self::ShmemUnmap(map) => write!(f, " {map:?}"),
        }
    }
}

/// A request of the frontend as it stands on the wire, in words where it can be decoded, else in bytes. It looks at
/// duplicates of the files, which stay the caller's.
pub fn describe_request(
    header: &Header,
    payload: &[u8],
    fds: &[BorrowedFd<'_>],
    format: RegionFormat,
) -> String {
    let number = header.request;
    let need = if header.needs_reply() { " (need_reply)" } else { "" };
    let copies = fds.iter().map(BorrowedFd::try_clone_to_owned).collect::<Result<Vec<_>, _>>();
    match copies.map(|copies| FrontendRequest::decode(number, payload, copies, format)) {
        Ok(Ok(request))
            if !matches!(request, FrontendRequest::Unknown(_) | FrontendRequest::Unimplemented(_)) =>
        {
            format!("{request}{need}")
        }
        other => {
            let request = super::RequestName { channel: super::Channel::Main, number };
            let why = match other {
                Ok(Err(error)) => format!(" (malformed: {error})"),
                _ => String::new(),
            };
            format!("{request} {}, {} files{need}{why}", Bytes(payload), fds.len())
        }
    }
}

/// A request of the backend, on the reverse channel, likewise.
pub fn describe_backend_request(header: &Header, payload: &[u8], fds: usize) -> String {
    let need = if header.needs_reply() { " (need_reply)" } else { "" };
    match BackendRequest::decode(header.request, payload, Vec::new()) {
        Ok(request) if fds == 0 && !matches!(request, BackendRequest::Unknown(_)) => {
            format!("{request}{need}")
        }
        _ => {
            let request = super::RequestName { channel: super::Channel::Reverse, number: header.request };
            format!("{request} {}, {fds} files{need}", Bytes(payload))
        }
    }
}

/// A reply in words, likewise. An acknowledgement is told from a reply by the request.
pub fn describe_reply(header: &Header, payload: &[u8], fds: usize) -> String {
    let request = super::RequestName { channel: super::Channel::Main, number: header.request };
    let decoded = FrontendCode::from_number(header.request)
        .filter(|_| fds == 0)
        .and_then(|code| Some((code, Reply::decode(code, payload, Vec::new()).ok()?)));
    match decoded {
        Some((code, Reply::Number(value))) if !code.has_reply() => {
            format!("{request}: {}", if value == 0 { "ok".into() } else { format!("refused ({value:#x})") })
        }
        Some((FrontendCode::GetProtocolFeatures, Reply::Number(value))) => {
            format!("{request}: {}", ProtocolFeatures::from_bits_retain(value))
        }
        Some((_, reply)) => format!("{request}: {reply}"),
        None => format!("{request}: {}, {fds} files", Bytes(payload)),
    }
}
